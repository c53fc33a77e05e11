"""A mixture of diagonal Gaussians, and points under it: what the kernels on it share. The formulas are in
csrc/cpu/mixture.h: v is u sqrt(log2(e) / 2), and a density in one dimension 2^(c - v^2), where c is the component's.

A row's own component is apart from the others, which all weigh the same: its share in a sum is divided once, so that a
component that is all of a sum has a share of exactly 1, and gradients that cancel leave nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastib._arguments import accumulate_dtype

from ._elements import block_of, double_of, load
from ._launch import bits, block_of_rows, compiled_once, launch
from ._math import exponential

LN2 = tl.constexpr(math.log(2))
LOG2_E = tl.constexpr(1 / math.log(2))
LOG_2_PI = tl.constexpr(math.log(2 * math.pi))
_ROOT_HALF_LOG2_E = tl.constexpr(math.sqrt(0.5 / math.log(2)))
LOWEST_32 = tl.constexpr(-3.4028234663852886e38)
LOWEST_64 = tl.constexpr(-1.7976931348623157e308)
# A precision beyond this is taken for it: the density is 0 but at the mean itself, where no 0 * inf may arise.
_MOST_PRECISE_32 = tl.constexpr(2.0**110)
_MOST_PRECISE_64 = tl.constexpr(2.0**1000)

_BLOCK = 256  # components of one program

# Below this ratio of the two weights, sums of float32 would overflow, or lose the smaller one.
_SMALLEST_RATIO = 2.0**-60


@compiled_once
def _pack(logvar, precision, c, joint, components, dims, BLOCK: tl.constexpr):
    """Of components [N', D]: sqrt(log2(e) / 2) e^(-logvar / 2) and c, both [D, N'], and the sums of c, [N']."""
    j, inside = block_of(components, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    d = tl.program_id(0).to(tl.int64) * 0
    while d < dims:
        x = load(logvar + j * dims + d, inside)
        half = x.to(tl.float64) * -0.5
        of_j = tl.where(half < float("inf"), half * LOG2_E, float("nan"))
        scaled = exponential(half) * _ROOT_HALF_LOG2_E
        most = _MOST_PRECISE_64 if x.dtype == tl.float64 else _MOST_PRECISE_32
        scaled = tl.where(scaled > most, most, scaled)
        tl.store(c + d * components + j, of_j.to(x.dtype), mask=inside)
        tl.store(precision + d * components + j, scaled.to(x.dtype), mask=inside)
        total += of_j
        d += 1
    tl.store(joint + j, total.to(joint.dtype.element_ty), mask=inside)


@triton.jit
def lowest(like):
    return LOWEST_64 if like.dtype == tl.float64 else LOWEST_32


@triton.jit
def exponent(v, c):
    """Rounded once, in every kernel alike."""
    return tl.fma(-v, v, c)


@triton.jit
def log2_weights(log_weights, largest, i, j, components, inside, log2_other):
    """Of pairs: of a row's given weights relative to its largest, or of any component but its own."""
    if log_weights is None:
        return log2_other
    else:
        given = tl.load(log_weights + i * components + j, mask=inside, other=float("-inf"))
        return (given - largest) * LOG2_E


@triton.jit
def load_largest(log_weights, largest, i, inside, like):
    """The largest log-weight of rows; 0 where none are given."""
    if log_weights is None:
        return tl.zeros_like(like)
    else:
        return tl.load(largest + i, mask=inside, other=0.0)


@triton.jit
def own_squares(z, mu, precision, i, j, inside, rows, components, dims):
    """The sum of v^2 over all dimensions, of rows and their own components: the same bits wherever it is taken."""
    total = tl.zeros_like(i).to(z.dtype.element_ty)
    d = tl.program_id(0).to(tl.int64) * 0
    while d < dims:
        v = own_deviation(z + d * rows, mu + d * components, precision + d * components, i, j, inside)
        total = tl.fma(v, v, total)
        d += 1
    return total


@triton.jit
def own_deviation(z, mu, precision, i, j, inside):
    at, mean = tl.load(z + i, mask=inside, other=0.0), tl.load(mu + j, mask=inside, other=0.0)
    return (at - mean) * tl.load(precision + j, mask=inside, other=0.0)


@triton.jit
def weighed_or_nothing(t, own):
    """The exponent of a row's own component; that of nothing where it weighs nothing, but for a NaN."""
    weight = tl.zeros_like(t) + own
    return tl.where(weight > 0.0, t, tl.where(t < float("inf"), float("-inf"), t))


class Mixture(NamedTuple):
    """What the kernels take."""

    rows: int
    components: int
    dims: int
    z: Tensor  # [D, S]
    mu: Tensor  # [D, N']
    precision: Tensor  # [D, N']
    c: Tensor  # [D, N']
    joint: Tensor  # [N']: the sums of c
    log_weights: Tensor | None  # [S, N']
    largest: Tensor | None  # [S]: of the given weights
    row_offset: int
    # The weight of a row's own component relative to `log_base`, or, where float32 could not hold both, 1, and the
    # logarithms of both to base 2; bits of floats.
    own: int
    log2_own: int
    log2_other: int
    log_base: float

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.z, self.mu, self.precision, self.c, self.log_weights, self.largest

    def numbers(self) -> tuple[int, ...]:
        return self.rows, self.components, self.row_offset, self.own, self.log2_own, self.log2_other


def _log2(x: float) -> float:
    return math.log2(x) if x > 0 else -math.inf


def _transposed(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.t().to(dtype).contiguous()


def pack(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    weights: tuple[float, float],
    row_offset: int,
) -> Mixture:
    dtype, (components, dims) = accumulate_dtype(z.dtype), mu.shape
    precision, c = (torch.empty((dims, components), dtype=dtype, device=z.device) for _ in range(2))
    joint = torch.empty(components, dtype=dtype, device=z.device)
    block = block_of_rows(components, _BLOCK)
    grid = (triton.cdiv(components, block),)
    launch(_pack, grid, z, logvar.contiguous(), precision, c, joint, components, dims, BLOCK=block)
    largest = None
    if log_weights is not None:
        log_weights = log_weights.to(dtype).contiguous()
        largest = log_weights.amax(1)
        largest = torch.where(largest.isfinite(), largest, 0.0)
        weights = 1.0, 1.0
    w_self, w_other = weights
    base = w_other if w_other >= _SMALLEST_RATIO * w_self else w_self
    own, other = w_self / base, w_other / base
    by_logarithm = other != 1 or 0 < own < _SMALLEST_RATIO
    encoded = (1.0, _log2(own), _log2(other)) if by_logarithm else (own, 0.0, 0.0)
    return Mixture(
        z.shape[0], components, dims, _transposed(z, dtype), _transposed(mu, dtype), precision, c, joint, log_weights,
        largest, row_offset, *map(bits, encoded), math.log(base),
    )  # fmt: skip


class Saved(NamedTuple):
    """What the forward pass leaves to the backward pass: a sum is of 2^(exponent - offset), where there is one."""

    joint_offsets: Tensor  # [S]
    joint_sums: Tensor  # [S]
    sums: Tensor  # [D, S]
    offsets: Tensor  # [D, S]


def saved_of(memory: Tensor) -> Saved:
    """The parts of the operators' `saved`, which is [S, 2 D + 2] in name alone."""
    rows, columns = memory.shape
    dims = (columns - 2) // 2
    flat = memory.view(-1)
    parts = flat[:rows], flat[rows : 2 * rows], *flat[2 * rows :].view(2, dims, rows)
    return Saved(*parts)


@triton.jit
def own_weights(own, log2_own, log2_other, like):
    """In the dtype of `like`."""
    return (
        double_of(own).to(like.dtype),
        double_of(log2_own).to(like.dtype),
        double_of(log2_other).to(like.dtype),
    )
