"""The time that a case cannot go below, counted and then measured on the same machine in the same run.

It is the longest of three. Each is the fastest of its rounds, because noise can only raise it:

bytes: the time in which `copy_` on all threads moves as many bytes as the case must (suites.py counts them), half of
    them read and half written, between two tensors that exist already. A call that returns new tensors must also have
    their pages mapped where the allocator does not keep them; that is not counted.
call: the time of an autograd.Function with the same inputs and outputs that does nothing: it returns tensors that exist
    already, forward and backward.
arithmetic: the counted vector instructions (suites.py) at the rate at which a matrix product issues its multiply-adds,
    two a cycle on every core: that measures cores, lanes and the frequency under vector load in one. It is what two
    vector ports can do. Some cores have more for additions and bit operations, and other instruction sets do in one
    instruction what takes AVX2 two, so this one is a floor in practice rather than by law.
"""

from __future__ import annotations

import time
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

    def call() -> tuple[Tensor, ...]:
        outputs = _Nothing.apply(case.upstream, grads, *case.inputs)  # type: ignore[no-untyped-call]
        return torch.autograd.grad(outputs, case.inputs, case.upstream)

    return call


def copy(case: Case) -> Contender:
    source = torch.zeros(case.bytes // 2, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return lambda: (target.copy_(source),)


def issue_rate(size: int = 1024, rounds: int = 20) -> float:
    """Vector instructions per second, times lanes, of all threads: the multiply-adds of a matrix product."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        seconds.append(time.perf_counter() - start)
    return size**3 / min(seconds)
