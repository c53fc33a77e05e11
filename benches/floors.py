"""What the counted work of a case takes at rates that are measured on the same machine in the same run.

It is the longest of three. Each is the fastest of its rounds, because noise can only raise it:

bytes: the time in which `copy_` on all threads moves as many bytes as the case must (suites.py counts them), half of
    them read and half written, between two tensors that exist already. A call that returns new tensors must also have
    their pages mapped where the allocator does not keep them; that is not counted.
call: the time of an autograd.Function with the same inputs and outputs that does nothing: it returns tensors that exist
    already, forward and backward (or forward, where that is all that is timed).
arithmetic: the counted vector instructions (suites.py) at the rate at which a matrix product issues its multiply-adds,
    two a cycle on every core: that measures cores, lanes and the frequency under vector load in one. It is what two
    vector ports can do. Some cores have more for additions and bit operations, and other instruction sets do in one
    instruction what takes AVX2 two, so this one is a floor in practice rather than by law. Exponentials on all pairs
    are counted apart, at the rate of a plain loop over numbers in the first-level cache (exponentials.cpp), which the
    compiler makes vectors of: they are mostly multiply-adds, so the two times add up.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from benches.suites import Case, Contender


class _Nothing(Function):
    @staticmethod
    def forward(ctx: Any, outputs: tuple[Tensor, ...], grads: tuple[Tensor, ...], *inputs: Tensor) -> Any:
        ctx.grads = grads
        return tuple(output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return None, None, *ctx.grads


def nothing(case: Case) -> Contender:
    grads = tuple(t.detach() for t in case.inputs)

    def forward() -> Any:
        return _Nothing.apply(case.upstream, grads, *case.inputs)  # type: ignore[no-untyped-call]

    return lambda: torch.autograd.grad(forward(), case.inputs, case.upstream) if case.spec.backward else forward()


def copy(case: Case) -> Contender:
    source = torch.zeros(case.bytes // 2, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return lambda: (target.copy_(source),)


def arithmetic(case: Case) -> float:
    """Seconds."""
    seconds = case.instructions / issue_rate()
    return seconds + case.exponentials / exponential_rate() if case.exponentials else seconds


def issue_rate() -> float:
    """Vector instructions per second, times lanes, of all threads: the multiply-adds of a matrix product."""
    size, seconds = 1024, []
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    for _ in range(20):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return size**3 / min(seconds)


def exponential_rate(repeats: int = 1000, rounds: int = 20) -> float:
    """Exponentials per second of a plain loop on all threads."""
    threads, count = torch.get_num_threads(), 4096
    numbers = [-10 * torch.rand(count) for _ in range(threads)]
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(lambda x: _plain_loop()(x.data_ptr(), count, repeats), numbers))
            seconds.append(time.perf_counter() - start)
    return threads * count * repeats / min(seconds)


def compiler() -> list[str]:
    """The command of the C++ compiler, as the build takes it."""
    return os.environ.get("CXX", "c++").split()


@functools.cache
def _plain_loop() -> Callable[[int, int, int], float]:
    source = Path(__file__).with_name("exponentials.cpp")
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/exponentials.so"
        subprocess.run(
            [*compiler(), "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", source, "-o", library],
            check=True,
        )
        loop: Any = ctypes.CDLL(library).exponentials
    loop.argtypes, loop.restype = (ctypes.c_void_p, ctypes.c_long, ctypes.c_long), ctypes.c_float
    return loop  # type: ignore[no-any-return]
