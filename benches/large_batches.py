"""Time and accuracy against the size of the batch: `python -m benches.large_batches` (25 minutes).

Each row is one contender on one kind of posteriors (regimes.py), forward plus backward. `direct` and `near_linear` are
fastib with that algorithm, `auto` is fastib as it is called; `torch.compile` and `KeOps` are those of suites.py. A
contender goes as far as its next call is expected to take LIMIT_SECONDS or LIMIT_BYTES; one that takes long is called
once. Errors are against float64, on 256 rows, in units of max(1, |value|): of log q(z_d), and of the terms of
elbo_decomposition.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastib
from benches import harness, provenance, suites
from benches.provenance import RESULTS
from benches.regimes import REGIMES, posteriors
from benches.suites import Contender
from benches.tables import markdown, number
from fastib._extras import require

Row = dict[str, Any]
NAME, PICTURE = "large_batches.json", "large_batches.png"
SIZES = tuple(64 * 4**k for k in range(7))
LIMIT_SECONDS, LIMIT_BYTES = 220.0, 6e9
SHORT_SECONDS = (
    1.0  # calls up to here take turns, many times; up to ten times as much, they are timed at the second call
)
FASTIB = ("auto", "near_linear", "direct")


class Case(NamedTuple):
    operator: str
    regime: str
    size: int
    dims: int
    contenders: tuple[str, ...] = FASTIB


def cases(largest: int) -> list[Case]:
    """The curves, and then the regimes."""
    others = tuple(name for name in ("torch.compile", "KeOps") if name in suites.contenders(suites.SPECS[-1]))
    found = [Case(operator, "mixture", size, 10, FASTIB + others) for operator in OPERATORS for size in SIZES]
    found += [Case("marginals", regime, size, 32) for size in (4096, 65_536) for regime in REGIMES]
    found += [Case("elbo_decomposition", regime, 4096, 32) for regime in ("collapsed", "k5", *REGIMES[1:])]
    found += [Case("elbo_decomposition", regime, 16_384, 10) for regime in ("collapsed", "k5", *REGIMES[1:])]
    return [case for case in found if case.size <= largest]


def _marginals(algorithm: str) -> Callable[..., Any]:
    return lambda *inputs: fastib.aggregate_posterior_marginals(*inputs, estimator="in_batch", algorithm=algorithm)


def _decomposition(algorithm: str) -> Callable[..., Any]:
    return lambda *inputs: torch.stack(fastib.elbo_decomposition(*inputs, estimator="in_batch", algorithm=algorithm))


OPERATORS = {"marginals": _marginals, "elbo_decomposition": _decomposition}


def contender(name: str, operator: str) -> Callable[..., Any]:
    """The function whose first or only result the bench differentiates."""
    if name in FASTIB:
        return OPERATORS[operator](name)
    spec = suites.OPERATORS["aggregate_posterior" if operator == "marginals" else operator]
    function: Any = spec.eager if name == "torch.compile" else spec.keops
    if operator == "marginals":
        return _compiled(name, lambda *inputs: function(*inputs)[1])
    return _compiled(name, lambda *inputs: torch.stack(function(*inputs)))


def _compiled(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    if name != "torch.compile":
        return function
    torch.compiler.reset()  # else the second size would be compiled for any size, and be slower
    return torch.compile(function)


def measure(case: Case, names: Sequence[str]) -> list[Row]:
    """One row for each of these contenders; they take turns."""
    inputs = [t.requires_grad_() for t in posteriors(case.regime, case.size, case.dims)]
    # The terms of a beta-TCVAE's loss: equal weights would cancel the joint density, and a pass would do nothing.
    upstream = torch.tensor([1.0, 6.0, 1.0]) if case.operator != "marginals" else torch.randn(case.size, case.dims)
    calls = {name: _both_passes(contender(name, case.operator), inputs, upstream) for name in names}
    taken = {name: [_seconds(call)] for name, call in calls.items()}
    short = {name: call for name, call in calls.items() if taken[name][0] < SHORT_SECONDS}
    for group in ({n: c for n, c in short.items() if (n in FASTIB) == ours} for ours in (True, False)):
        if group:  # apart: KeOps leaves threads that hold up whoever is next
            taken |= harness.interleave(group, budget_seconds=len(group))
    for name, seconds in taken.items():
        # The first call compiled, or found cold memory.
        if name not in short and (name == "torch.compile" or seconds[0] < 10 * SHORT_SECONDS):
            taken[name] = [_seconds(calls[name])]
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return [
        {
            "operator": case.operator,
            "regime": case.regime,
            "size": case.size,
            "dims": case.dims,
            "contender": name,
            "median_ms": 1e3 * median,
            "rounds": len(taken[name]),
            "error": error(case, inputs, name) if name in FASTIB else None,
        }
        for name, median in medians.items()
    ]


def _both_passes(function: Callable[..., Any], inputs: Sequence[Tensor], upstream: Tensor) -> Contender:
    def call() -> tuple[Tensor, ...]:
        result = function(*inputs)
        return torch.autograd.grad(result, inputs, upstream)

    return call


def _seconds(call: Contender) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.no_grad()
def error(case: Case, inputs: Sequence[Tensor], algorithm: str) -> float:
    few = slice(min(256, case.size))
    rows = few if algorithm == "direct" else slice(None)  # direct sums of few rows are those of all
    found = _values(case.operator, inputs, rows, algorithm)[few].double()
    exact = _values(case.operator, [t.double() for t in inputs], few, "direct")
    return float(((found - exact).abs() / exact.abs().clamp(min=1)).max())


def _values(operator: str, inputs: Sequence[Tensor], rows: slice, algorithm: str) -> Tensor:
    """What the operator gives for some rows against all posteriors, one value or more for each."""
    z, mu, logvar = inputs
    if operator == "marginals":
        return _marginals(algorithm)(z[rows], mu, logvar)
    options: dict[str, Any] = {"estimator": "in_batch", "reduction": "none", "row_offset": 0}
    return torch.stack(fastib.elbo_decomposition(z[rows], mu, logvar, algorithm=algorithm, **options), 1)


def run(largest: int) -> Iterator[Row]:
    last: dict[tuple[str, ...], float] = {}  # seconds of a contender on its curve, by operator
    for case in cases(largest):
        names = [name for name in case.contenders if _goes_on(case, name, last)]
        print(f"{case.operator} {case.regime} {case.size}x{case.dims}: {', '.join(names)}", file=sys.stderr, flush=True)
        for row in measure(case, names):
            if case.contenders != FASTIB:
                last[case.operator, row["contender"]] = row["median_ms"] / 1e3
            yield row


def _goes_on(case: Case, name: str, last: dict[tuple[str, ...], float]) -> bool:
    if case.contenders == FASTIB or case.size == SIZES[0]:
        return True
    if (case.operator, name) not in last or last.pop((case.operator, name)) * 16 > LIMIT_SECONDS:
        return False
    return name != "torch.compile" or 12 * case.size**2 * case.dims < LIMIT_BYTES


def table(rows: Sequence[Row]) -> str:
    """A line per case: milliseconds, in brackets as a multiple of auto, and the errors of both algorithms."""
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        case = row["operator"], row["regime"], f"{row['size']}x{row['dims']}"
        found.setdefault(case, {})[row["contender"]] = row
    names = list(dict.fromkeys(row["contender"] for row in rows))
    lines = [["operator", "posteriors", "shape", *names, "error, near_linear", "error, direct"]]
    for case, of_case in found.items():
        auto = of_case["auto"]["median_ms"]
        times = [_time(of_case.get(name), auto) for name in names]
        lines.append([*case, *times, *(f"{of_case[name]['error']:.1e}" for name in ("near_linear", "direct"))])
    return markdown(lines)


def _time(row: Row | None, auto: float) -> str:
    if row is None:
        return ""
    ratio = "" if row["contender"] == "auto" else f" ({number(row['median_ms'] / auto)}x)"
    return number(row["median_ms"]) + ratio


def picture(path: Path, rows: Sequence[Row]) -> None:
    """Time against the size of the batch, both logarithmic, one panel per operator."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axis, operator in zip(figure.subplots(1, len(OPERATORS)), OPERATORS, strict=True):
        curve = [
            row for row in rows if row["operator"] == operator and row["dims"] == 10 and row["regime"] == "mixture"
        ]
        for name in dict.fromkeys(row["contender"] for row in curve):
            points = {row["size"]: row["median_ms"] for row in curve if row["contender"] == name}
            axis.plot(list(points), list(points.values()), marker="o", markersize=3, label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set(title=operator, xlabel="batch size", ylabel="ms, forward and backward")
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=90, format="png")


def main(argv: Sequence[str] | None = None, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.large_batches", description="Time against batch size.")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help=f"batch size to go to (default: {SIZES[-1]})")
    arguments = parser.parse_args(argv)
    require("matplotlib", "a picture")
    if arguments.largest < SIZES[0]:
        parser.error(f"argument --largest: must be at least {SIZES[0]}, got {arguments.largest}")
    rows = list(run(arguments.largest))
    print(table(rows))
    provenance.write(results / NAME, rows)
    picture(results / PICTURE, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
