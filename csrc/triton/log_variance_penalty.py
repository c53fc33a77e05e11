"""-logvar / 2, reduced as asked. Its gradient is a constant, which Python expands without touching memory."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from fastib._arguments import Reduction
from fastib._formulas import scale_of

from ._elements import block_of, load, store
from ._launch import compiled_once, deliver, dense, launch_elements, target
from ._reduce import reduce, reduced_like, sum_values, sums_of


@compiled_once
def forward(logvar, penalty, count, BLOCK: tl.constexpr):
    i, inside = block_of(count, BLOCK)
    store(penalty + i, load(logvar + i, inside) * -0.5, inside)


def log_variance_penalty(logvar: Tensor, reduction: int, divisor: int) -> Tensor:
    out = reduced_like(logvar, reduction)
    if reduction != Reduction.NONE:
        return reduce(sum_values, sums_of(logvar, reduction), out, -0.5 * scale_of(divisor), dense(logvar))
    to = target(out)
    launch_elements(forward, logvar, dense(logvar), to)
    return deliver(out, to)
