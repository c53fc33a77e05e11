"""What benches.gpu does in processes of their own, since a process has one backend: `python -m benches.on_device PART`.

A part prints a line of JSON for each thing that it did: {"passed": name}, {"failed": name, "why": text}, or what the
part gives. Its exit status is 0 where it came to its end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # its table of calls, and its budget

import in_place
import triton_calls
from tolerance import assert_within_budget

import fastib
from benches import harness, provenance, suites
from benches.suites import CACHE, CALL_BOUND, CONVOLUTION, MEMORY, Contender, Spec
from fastib import _backends, _fallback

Line = dict[str, Any]
Tensors = tuple[Tensor, ...]

# Which arguments of a backward are of the forward, and where it takes what that saved: each backend saves its own.
_SAVED = {"aggregate_posterior_backward": (slice(2, 6), 6), "elbo_decomposition_backward": (slice(3, 6), 6)}
_SECONDS_A_CASE = 0.15  # for each of its two measurements
_SLACK = {torch.float64: 512}  # plain float64 is the oracle itself


def _to(device: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(a.to(device) if isinstance(a, Tensor) else a for a in arguments)


def _doubles(arguments: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments)


def _results(kernels: Callable[[str], Callable[..., Any]], name: str, arguments: tuple[Any, ...]) -> list[Tensor]:
    """What can be compared: neither what a forward saves, nor what a backward leaves open."""
    if name in _SAVED:
        inputs, saved = _SAVED[name]
        forward = name.removesuffix("_backward")
        own = kernels(forward)(*arguments[inputs], *arguments[saved + 1 :])[-1]
        arguments = (*arguments[:saved], own, *arguments[saved + 1 :])
    found = kernels(name)(*arguments)
    found = [found] if isinstance(found, Tensor) else list(found)
    if name in ("aggregate_posterior", "elbo_decomposition"):
        found.pop()
    if name == "information_dropout_backward" and arguments[4] is None:  # no prior: no gradient by it
        del found[2:]
    return [t.cpu() for t in found]


def _operator(name: str) -> Callable[..., Any]:
    return getattr(torch.ops.fastib, name).default  # type: ignore[no-any-return]


def _assert_agreement(device: str, name: str, arguments: tuple[Any, ...]) -> None:
    """The kernels of the CPU and of the device: words bit for bit, results within the budget of the tests.

    An error is relative to the element and to the usual size of the result's elements: a sum is as good as its terms.
    """
    oracle = _results(_fallback.KERNELS.__getitem__, name, _doubles(arguments))
    plain = _results(_fallback.KERNELS.__getitem__, name, arguments)
    for place in dict.fromkeys(("cpu", device)):
        found = _results(_operator, name, _to(place, arguments))
        for ours, theirs, exact in zip(found, plain, oracle, strict=True):
            if not exact.is_floating_point():
                assert torch.equal(ours, exact), f"other words on {place}"
                continue
            scale = exact.abs() + (exact.abs().median() if exact.numel() else 0)
            assert_within_budget(ours, theirs, exact, scale=scale, slack=_SLACK.get(ours.dtype, 64))


def _table(dtypes: Sequence[torch.dtype]) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """The calls of the tests, made on the CPU: the same on every device."""
    for dtype in dtypes:
        torch.manual_seed(0)
        with torch.device("cpu"):
            calls = list(triton_calls.calls(dtype, dims=10))
        for number, (name, arguments) in enumerate(calls):
            yield f"{name} {str(dtype).removeprefix('torch.')} {number}", name, arguments


def _tried(name: str, check: Callable[[], Any], gives: str | None = None) -> Line:
    """One failure is reported and ends nothing."""
    try:
        found = check()
    except Exception as error:  # noqa: BLE001
        return {"failed": name, "why": f"{type(error).__name__}: {str(error)[:500]}"}
    return {"passed": name} | ({gives: found} if gives else {})


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def agreement(device: str, which: slice = slice(None)) -> Iterator[Line]:
    """Of some of the calls. Whatever is allocated is NaN at first, so that what a kernel forgets is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    for module in (_backends._cpu, _backends._cuda):
        if module is not None:
            module.poison_results(True)
    for label, name, arguments in list(_table(DTYPES))[which]:
        for tiles in _choices_of_tiles(device, name):
            yield _tried(f"{label}{tiles}", partial(_assert_agreement, device, name, arguments))


def _choices_of_tiles(device: str, name: str) -> Iterator[str]:
    """Where Triton's kernels on pairs have tiles to choose from, each in its turn is the first, which they take."""
    kernels = _tuned_kernels() if name.startswith(("aggregate", "elbo")) and _served_by_triton(device) else []
    for number in range(max((len(kernel.configs) for kernel in kernels), default=1)):
        yield f", tiles {number}" if kernels else ""
        for kernel in kernels:
            kernel.configs = [*kernel.configs[1:], kernel.configs[0]]


def _served_by_triton(device: str) -> bool:
    return fastib.backends()[device].name == "triton"


def _tuned_kernels() -> list[Any]:
    modules = [sys.modules[f"fastib._triton.{name}"] for name in ("_joint", "_marginals")]
    return [value for module in modules for value in vars(module).values() if hasattr(value, "configs")]


def calls(device: str, which: slice = slice(None)) -> Iterator[Line]:
    """Every kernel of every operator, for a tool that looks on. Kernels of float16 are those of bfloat16."""
    for label, name, arguments in _table(DTYPES[:3][which]):
        yield _tried(label, partial(_results, _operator, name, _to(device, arguments)))


class Captured(NamedTuple):
    replay: Callable[[], object]
    results: Tensors


def capture(call: Contender) -> Captured:
    """`call` in a CUDA graph, after a warm-up elsewhere, as PyTorch wants it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(harness.WARM_UP_CALLS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return Captured(graph.replay, results)


def _assert_fresh_replays(spec: Spec, capture: Callable[[Contender], Captured]) -> None:
    """Forward and backward in a graph: its replays are the eager call's results, bit for bit, for any rng."""
    noisy = spec.operator in suites.WITH_NOISE
    case = suites.build(spec, [])
    function = suites.OPERATORS[spec.operator].fastib
    rng = torch.tensor([1, 2])

    def call() -> Tensors:
        outputs = function(*case.inputs, **({"rng": rng} if noisy else {}))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return *(t.detach() for t in outputs), *torch.autograd.grad(outputs, case.inputs, case.upstream)

    captured, seen = capture(call), []
    for seed in (3, 4):
        rng.copy_(torch.tensor([seed, seed]))
        captured.replay()
        replayed = [t.clone() for t in captured.results]
        assert all(map(torch.equal, replayed, call())), "a replay is not the eager call of its rng"
        seen.append(replayed[0])
    assert torch.equal(*seen) != noisy, "two replays have the same noise" if noisy else "replays differ"


def _assert_drawn_anew(spec: Spec, capture: Callable[[Contender], Captured]) -> None:
    """Where no rng is given, a graph draws it from PyTorch's generator, at each replay."""
    inputs = tuple(t.detach() for t in suites.build(spec, []).inputs)
    captured, seen = capture(lambda: suites.outputs(suites.OPERATORS[spec.operator].fastib, inputs)), []
    for _ in range(2):
        captured.replay()
        seen.append(captured.results[0].clone())
    assert not torch.equal(*seen), "two replays have the same noise"


def graphs(which: slice = slice(None), capture: Callable[[Contender], Captured] = capture) -> Iterator[Line]:
    """Of some of the operators."""
    for operator in list(suites.OPERATORS)[which]:
        spec = Spec(operator, (1000, 24))
        yield _tried(str(spec), partial(_assert_fresh_replays, spec, capture))
        if operator in suites.WITH_NOISE:
            yield _tried(f"{operator}, its own rng", partial(_assert_drawn_anew, spec, capture))


PAIRS = ((4096, 64), (2048, 32), (1024, 64), (256, 10))


def specs() -> list[Spec]:
    """What matters most comes first: time may end before the list."""
    found = [Spec("aggregate_posterior", PAIRS[0], backward=False)]
    for dtype in (torch.float32, torch.bfloat16):
        for shape in (MEMORY, CONVOLUTION, *PAIRS, CACHE, CALL_BOUND):
            for name, operator in suites.OPERATORS.items():
                of_its_own = shape == CONVOLUTION and name != "information_dropout"
                if (shape in PAIRS) == operator.pairs and not of_its_own:
                    found.append(Spec(name, shape, dtype))
    return found


COMPILED = "torch.compile"
CONTENDERS = ["fastib", "eager", COMPILED]


def compile_some(which: slice) -> Iterator[Line]:
    """Compiles torch.compile's contenders into its cache: several processes at once, which nobody times."""
    for spec in specs()[which]:
        yield _tried(str(spec), partial(_compile, spec))


def _compile(spec: Spec) -> None:
    suites.build(spec, [COMPILED]).contenders[COMPILED]()


class Device(NamedTuple):
    """How calls are timed on it, and what it can do."""

    turn: harness.Turn  # of calls, one after the other
    cold_turn: harness.Turn  # of replays, each with its data out of the cache
    capture: Callable[[Contender], Captured]
    peak: Callable[[Contender], int]
    bytes_per_second: float
    exponentials_per_second: float


def _turn_between_events(call: Contender, repeats: int) -> float:
    """The longer of what the host takes to launch the calls and of what the device takes to run them, which is what
    a loop pays."""
    call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / repeats


def _cold_turn(other: Tensor, call: Callable[[], object], repeats: int) -> float:
    """What the device takes for a call that finds nothing in its cache, as after other layers.

    `other` is larger than the cache. It is read, not written: what is written would be written back in the call's time.
    """
    repeats, seconds = min(repeats, 20), 0.0  # each waits for the device
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        other.sum()
        begin.record()
        call()
        end.record()
        end.synchronize()
        seconds += begin.elapsed_time(end) / 1e3
    return seconds / repeats


def _peak(call: Contender) -> int:
    """The bytes that a call adds, at most, to those of its inputs; its results are among them."""
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def _copy_rate() -> float:
    """Bytes per second of a copy in the device's memory, read and written, of the fastest round."""
    source = torch.randn(2**28)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_turn_between_events(lambda: (target.copy_(source),), 1) for _ in range(10))


def gpu() -> Device:
    from benches import exponentials

    other = torch.ones(4 * torch.cuda.get_device_properties().L2_cache_size, dtype=torch.uint8).view(torch.float32)
    rates = _copy_rate(), exponentials.rate()
    return Device(_turn_between_events, partial(_cold_turn, other), capture, _peak, *rates)


def card() -> Line:
    properties = torch.cuda.get_device_properties()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {
        "card": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
        "driver": driver,
        "cuda": torch.version.cuda,
        "triton": _version_of_triton(),
    }


def _version_of_triton() -> str:
    import triton

    return str(triton.__version__)


def rows_of(spec: Spec, device: Device, backend: str) -> list[Line]:
    """One for each contender that memory allows. Its times are of replays of a graph, which the host does not hold up;
    `call_ms` is of calls as they are written. Who is no backend of fastib's is timed once, beside the first of them."""
    case = suites.build(spec, CONTENDERS if backend == "cuda" else CONTENDERS[:1])
    with _no_default_device():
        return _rows_of_case(case, device, backend)


@contextmanager
def _no_default_device() -> Iterator[None]:
    """As users have it: one costs each call of PyTorch as much again."""
    device = torch.get_default_device()
    torch.set_default_device(None)
    try:
        yield
    finally:
        torch.set_default_device(device)


def _rows_of_case(case: suites.Case, device: Device, backend: str) -> list[Line]:
    peaks = _of_each(device.peak, case.contenders)
    captured = _of_each(device.capture, {name: case.contenders[name] for name in peaks})
    calls = {name: case.contenders[name] for name in captured}
    as_written = harness.interleave(calls, _SECONDS_A_CASE, device.turn)
    taken = harness.interleave({name: c.replay for name, c in captured.items()}, _SECONDS_A_CASE, device.cold_turn)
    floors = {"bytes": case.bytes / device.bytes_per_second}
    floors["exponentials"] = case.exponentials / device.exponentials_per_second
    kind = max(floors, key=lambda k: floors[k])
    ours = median(taken["fastib"])
    return [
        harness.row(case, name, taken[name], ours, kind, floors[kind])
        | {"backend": backend, "call_ms": 1e3 * median(as_written[name]), "peak_bytes": peaks[name]}
        for name in calls
    ]


def _of_each(measure: Callable[[Contender], Any], calls: dict[str, Contender]) -> dict[str, Any]:
    """Of all that there is memory for."""
    found = {}
    for name, call in calls.items():
        try:
            found[name] = measure(call)
        except torch.OutOfMemoryError:
            if name == "fastib":
                raise
            torch.cuda.empty_cache()
    return found


def benches(device: Device, backend: str, seconds: float, cases: Sequence[Spec]) -> Iterator[Line]:
    """Rows, as far as the time allows."""
    end = time.monotonic() + seconds
    for number, spec in enumerate(cases):
        if time.monotonic() > end:
            yield {"cut": len(cases) - number, "of": len(cases)}
            return
        yield _tried(str(spec), partial(rows_of, spec, device, backend), gives="rows")


def timed(backend: str, end: float) -> Iterator[Line]:
    device = gpu()
    rates = {
        "bytes_per_second": device.bytes_per_second,
        "exponentials_per_second": device.exponentials_per_second,
    }
    yield {"header": provenance.header() | card(), "rates": rates}
    yield from benches(device, backend, end - time.monotonic(), specs())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.on_device", description="A part of benches.gpu.")
    parser.add_argument("part", choices=("agreement", "calls", "graphs", "compile", "benches"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--seconds", type=float, default=60, help="for the benches")
    parser.add_argument(
        "--slice", type=int, nargs=2, metavar=("I", "N"), default=(0, 1), help="I N: every Nth of what there is, from I"
    )
    arguments = parser.parse_args(argv)

    end = time.monotonic() + arguments.seconds
    torch.set_default_device(arguments.device)
    in_place.load_triton()
    which = slice(arguments.slice[0], None, arguments.slice[1])
    backend = fastib.backends()[arguments.device].name
    parts: dict[str, Callable[[], Iterator[Line]]] = {
        "agreement": lambda: agreement(arguments.device, which),
        "calls": lambda: calls(arguments.device, which),
        "graphs": lambda: graphs(which),
        "compile": lambda: compile_some(which),
        "benches": lambda: timed(backend, end),
    }
    for line in parts[arguments.part]():
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
