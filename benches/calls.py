"""What a small call costs, part by part, and what other ways to it cost: `python -m benches.calls`.

Forward and backward of each function at a size where all is overhead. Each part is all that is below the one before:

    eager       plain PyTorch
    fastib      the public function: checks, the draw of a seed, and
    function    its autograd.Function alone, given what the checks make of the arguments
    nothing     an autograd.Function of as many tensors that does nothing, which no operator can be cheaper than
    operators   the forward and the backward operator, called from Python, of which the kernels are a part

All but `operators` contain torch.autograd.grad. For `reparameterize_with_kl` also the ways that were not taken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd import Function

from benches import harness, provenance, suites
from benches.provenance import RESULTS
from benches.suites import Contender
from benches.tables import markdown, number
from fastib import _derivatives, _ops, functional

NAME = "calls.json"
SHAPE, PAIRS = (128, 10), (64, 10)
PARTS = "eager", "fastib", "function", "nothing", "operators"

Tensors = tuple[Any, ...]


def _both_passes(function: Callable[..., Any], inputs: Tensors, upstream: Tensors, *arguments: Any) -> Contender:
    def call() -> Any:
        out = function(*arguments)
        out = out[: len(upstream)] if isinstance(out, tuple) else (out,)
        return torch.autograd.grad(out, inputs, upstream, allow_unused=True)

    return call


def _recorded(function: Callable[..., Any], inputs: Tensors) -> tuple[Any, Tensors]:
    """The autograd.Function that a public one applies, and its arguments."""
    with mock.patch.object(functional, "apply", wraps=_derivatives.apply) as apply:
        function(*inputs)
    (of, *arguments), _ = apply.call_args
    return of, tuple(arguments)


def _nothing(arguments: Tensors, outputs: int, upstream: Tensors) -> Contender:
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    wanted = [t for t in tensors if t.requires_grad]
    results = tuple(torch.empty_like(g) for g in upstream)

    class Nothing(Function):
        forward = staticmethod(lambda *tensors: tuple(t.detach() for t in results))
        setup_context = staticmethod(lambda ctx, inputs, output: None)
        backward = staticmethod(lambda ctx, *grads: tuple(t if t.requires_grad else None for t in tensors))

    apply = super(Function, Nothing).apply  # type: ignore[misc]
    return _both_passes(apply, tuple(wanted), upstream[:outputs], *tensors)


def _operators(of: Any, arguments: Tensors, upstream: Tensors) -> Contender:
    tensors = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments[: of.tensors])
    options = arguments[of.tensors :]
    needed = [isinstance(a, Tensor) and a.requires_grad for a in arguments[: of.tensors]]
    with torch.no_grad():
        out = of.forward(*tensors, *options)
    kept = (*tensors, out[-1]) if isinstance(out, tuple) and len(out) > len(upstream) else tensors

    def call() -> None:
        of.forward(*tensors, *options)
        of.gradients(needed, upstream, kept, options)

    return call


# Other ways to reparameterize_with_kl: they spend nothing on options and checks, and draw no seed.


def _gradients(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> Tensors:
    mu, logvar, rng = ctx.saved_tensors
    return *_ops.reparameterize_with_kl_backward(grad_z, grad_kl, mu, logvar, None, rng, 2, SHAPE[0], 3), None


def _saved(ctx: Any, inputs: Tensors, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _sample_and_kl(mu: Tensor, logvar: Tensor, rng: Tensor) -> tuple[Tensor, Tensor]:
    return _ops.reparameterize_with_kl(mu, logvar, None, rng, 2, SHAPE[0])


class _Bare(Function):
    forward, setup_context, backward = map(staticmethod, (_sample_and_kl, _saved, _gradients))  # type: ignore[assignment]


class _OneOutput(Function):
    """Both results in one tensor, which somebody would have to take apart: the sample is its first rows."""

    @staticmethod
    def forward(mu: Tensor, logvar: Tensor, rng: Tensor) -> Tensor:
        return _sample_and_kl(mu, logvar, rng)[0]

    setup_context = staticmethod(_saved)  # type: ignore[assignment]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensors:
        return _gradients(ctx, grad, None)  # type: ignore[arg-type]


def _registered() -> Callable[..., Any]:
    """The operator with torch.library.register_autograd."""
    name = "fastib_benches::reparameterize_with_kl"
    if not hasattr(torch.ops.fastib_benches, "reparameterize_with_kl"):
        torch.library.define(name, "(Tensor mu, Tensor logvar, Tensor rng) -> (Tensor, Tensor)")
        torch.library.impl(name, "default", _sample_and_kl)
        torch.library.register_autograd(name, _gradients, setup_context=_saved)
    operator: Callable[..., Any] = torch.ops.fastib_benches.reparameterize_with_kl.default
    return operator


def _alternatives(inputs: Tensors, upstream: Tensors) -> dict[str, Contender]:
    rng = torch.tensor([1, 2])
    ways: dict[str, Callable[..., Any]] = {
        "registered autograd": _registered(),
        "Function.apply": _Bare.apply,
        "C++ apply": super(Function, _Bare).apply,  # type: ignore[misc]
    }
    calls = {name: _both_passes(way, inputs, upstream, *inputs, rng) for name, way in ways.items()}
    one = super(Function, _OneOutput).apply  # type: ignore[misc]
    return calls | {"C++ apply, one output": _both_passes(one, inputs, upstream[:1], *inputs, rng)}


def measure(seconds: float) -> list[dict[str, Any]]:
    rows = []
    for name, operator in suites.OPERATORS.items():
        shape = PAIRS if operator.pairs else SHAPE
        torch.manual_seed(0)
        inputs = tuple(t.requires_grad_() for t in operator.inputs(shape))
        upstream = tuple(map(torch.ones_like, suites.outputs(operator.fastib, inputs)))
        of, arguments = _recorded(operator.fastib, inputs)
        calls: dict[str, Contender] = {
            "eager": _both_passes(operator.eager, inputs, upstream, *inputs),
            "fastib": _both_passes(operator.fastib, inputs, upstream, *inputs),
            "function": _both_passes(_derivatives.apply, inputs, upstream, of, *arguments),
            "nothing": _nothing(arguments, len(upstream), upstream),
            "operators": _operators(of, arguments, upstream),
        }
        if name == "reparameterize_with_kl":
            calls |= _alternatives(inputs, upstream)
        for part, taken in harness.interleave(calls, seconds).items():
            row = {"operator": name, "shape": " x ".join(map(str, shape)), "part": part}
            rows.append(row | {"median_us": 1e6 * median(taken), "least_us": 1e6 * min(taken), "rounds": len(taken)})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each function, in microseconds, and how many times faster than eager it is."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        found.setdefault((row["operator"], row["shape"]), {})[row["part"]] = row["median_us"]
    lines = [["function", "shape", *PARTS, "eager / fastib"]]
    for case, parts in found.items():
        lines.append([*case, *(number(parts[part]) for part in PARTS), f"{number(parts['eager'] / parts['fastib'])}x"])
    return markdown(lines)


def alternatives(rows: Sequence[dict[str, Any]]) -> str:
    """The ways that were not taken, in a line."""
    return ", ".join(f"{row['part']} {number(row['median_us'])}" for row in rows if row["part"] not in PARTS)


def main(argv: Sequence[str] | None = None, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.calls", description="What a small call costs.")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each function (default: 6)")
    arguments = parser.parse_args(argv)
    rows = measure(arguments.seconds)
    print(f"{table(rows)}\nreparameterize_with_kl in other ways: {alternatives(rows)}")
    provenance.write(results / NAME, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
