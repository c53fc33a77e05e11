"""The densities of points in each dimension alone, and their part of the gradients. A program has one dimension.

Sums are of 2^(exponent - offset). An offset known beforehand, the shift of the dimension, saves the running maximum; it
costs digits, so it is no larger than the largest exponent needs. A point that no component is near, whose sum
underflows then, is summed again relative to its own largest exponent.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._elements import double_of
from ._math import logarithm
from ._mixture import (
    LN2,
    LOG_2_PI,
    exponent,
    load_largest,
    log2_weights,
    lowest,
    own_deviation,
    own_weights,
    weighed_or_nothing,
)
from ._tuning import tuned, which_of_others

_TILES = tl.constexpr(32)  # of sums in the dtype of the pairs, before they go to a float64
_FAR_32 = tl.constexpr(2.0**-48)
_FAR_64 = tl.constexpr(2.0**-900)
_LARGEST_EXPONENT = tl.constexpr(40.0)  # with a weight of up to 2^60, float32 holds the sum of such powers


@triton.jit
def _shift(c, components, LANES: tl.constexpr):
    """What is known beforehand of the largest exponent of a dimension; 0 for all that are common."""
    largest = tl.full([LANES], float("-inf"), c.dtype.element_ty)
    begin = tl.program_id(0).to(tl.int64) * 0
    while begin < components:
        j = begin + tl.arange(0, LANES)
        x = tl.load(c + j, mask=j < components, other=float("-inf"))
        largest = tl.where((x > largest) & (x < float("inf")), x, largest)
        begin += LANES
    most = tl.max(largest, axis=0)
    most = tl.where(most > float("-inf"), most, 0.0)
    needed = tl.maximum(tl.ceil(most - _LARGEST_EXPONENT), 0.0)
    return tl.where(tl.abs(most) > 1048576.0, most, tl.minimum(tl.floor(most), needed))


@triton.jit
def _deviations(at, mu, precision, j, near):
    """v of pairs, and what it was multiplied by."""
    k = tl.load(precision + j, mask=near, other=1.0)  # infinity times 0 would be NaN
    return (at - tl.load(mu + j, mask=near, other=0.0)) * k, k


@triton.jit
def _exponents(
    v, c, log_weights, largest, i, j, rows, components, log2_other, begin, first_own, row_offset,
    OUTER: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Of pairs of rows `i` and components `j`, that of a row and its own component left out."""
    near = j < components
    t = exponent(v, tl.load(c + j, mask=near, other=float("-inf")))
    t += log2_weights(log_weights, largest, i, j, components, (i < rows) & near, log2_other)
    if log_weights is None and begin < first_own + OUTER and begin + LANES > first_own:
        t = tl.where(j == i + row_offset, float("-inf"), t)
    return t


@triton.jit
def _sum_of_others(
    at, mu, precision, c, log_weights, largest, i, rows, components, log2_other, row_offset, offset,
    OUTER: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    first_own = tl.program_id(0).to(tl.int64) * OUTER + row_offset
    total = tl.zeros([OUTER, 1], tl.float64)
    begin = tl.program_id(0).to(tl.int64) * 0
    while begin < components:
        end = tl.minimum(begin + LANES * _TILES, components)
        part = tl.zeros([OUTER, LANES], at.dtype)
        while begin < end:
            j = begin + tl.arange(0, LANES)[None, :]
            v, _ = _deviations(at, mu, precision, j, j < components)
            t = _exponents(
                v,
                c,
                log_weights,
                largest,
                i,
                j,
                rows,
                components,
                log2_other,
                begin,
                first_own,
                row_offset,
                OUTER,
                LANES,
            )
            part += tl.exp2(t - offset)
            begin += LANES
        total += tl.sum(part, axis=1)[:, None].to(tl.float64)
    return total


@triton.jit
def _largest_of_others(
    at, mu, precision, c, log_weights, largest, i, rows, components, log2_other, row_offset,
    OUTER: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    first_own = tl.program_id(0).to(tl.int64) * OUTER + row_offset
    most = tl.full([OUTER, LANES], lowest(at), at.dtype)
    begin = tl.program_id(0).to(tl.int64) * 0
    while begin < components:
        j = begin + tl.arange(0, LANES)[None, :]
        v, _ = _deviations(at, mu, precision, j, j < components)
        t = _exponents(
            v, c, log_weights, largest, i, j, rows, components, log2_other, begin, first_own, row_offset, OUTER, LANES
        )
        most = tl.where(t > most, t, most)
        begin += LANES
    return tl.max(most, axis=1)[:, None]


@tuned((16, 32, 4), (32, 16, 4), (8, 64, 4))
def forward(
    z, mu, precision, c, log_weights, largest, rows, components, row_offset,
    own: tl.int64, log2_own: tl.int64, log2_other: tl.int64,
    log_base: tl.int64, sums, offsets, logs, dims, size_class, OUTER: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    d = tl.minimum(which_of_others(), dims - 1)
    z, mu, precision, c = z + d * rows, mu + d * components, precision + d * components, c + d * components
    i = tl.program_id(0).to(tl.int64) * OUTER + tl.arange(0, OUTER)[:, None]
    inside = i < rows
    own_of = i + row_offset if log_weights is None else i * 0 + components
    has_own = inside & (own_of < components)
    at = tl.load(z + i, mask=inside, other=0.0)
    largest_of = load_largest(log_weights, largest, i, inside, at)
    own_weight, log2_own, log2_other = own_weights(own, log2_own, log2_other, at)
    v = own_deviation(z, mu, precision, i, own_of, has_own)
    own_t = exponent(v, tl.load(c + own_of, mask=has_own, other=float("-inf"))) + log2_own
    own_t = weighed_or_nothing(own_t, own_weight)
    offset = tl.zeros_like(at) + _shift(c, components, LANES)
    total = tl.exp2(own_t - offset) * own_weight + _sum_of_others(
        at, mu, precision, c, log_weights, largest_of, i, rows, components, log2_other, row_offset, offset, OUTER, LANES
    )
    far = inside & (total < (_FAR_64 if at.dtype == tl.float64 else _FAR_32))
    if tl.max(tl.max(far.to(tl.int32), axis=1), axis=0) > 0:
        most = _largest_of_others(
            at, mu, precision, c, log_weights, largest_of, i, rows, components, log2_other, row_offset, OUTER, LANES
        )
        most = tl.where(own_t > most, own_t, most)
        again = tl.exp2(own_t - most) * own_weight + _sum_of_others(
            at,
            mu,
            precision,
            c,
            log_weights,
            largest_of,
            i,
            rows,
            components,
            log2_other,
            row_offset,
            most,
            OUTER,
            LANES,
        )
        offset, total = tl.where(far, most, offset), tl.where(far, again, total)
    tl.store(sums + d * rows + i, total.to(at.dtype), mask=inside)
    tl.store(offsets + d * rows + i, offset, mask=inside)
    if logs is not None:
        log = logarithm(total) + offset.to(tl.float64) * LN2 + largest_of.to(tl.float64)
        log += double_of(log_base) - 0.5 * LOG_2_PI
        tl.store(logs + i * dims + d, log.to(at.dtype), mask=inside)


@triton.jit
def quotient(gradient, total):
    """What a density is multiplied by: 0 where nothing weighs anything."""
    return tl.where(total == 0.0, 0.0, gradient / total)


@tuned((16, 32, 4), (32, 32, 4), (8, 64, 4))
def backward_rows(
    z, mu, precision, c, log_weights, largest, rows, components, row_offset,
    own: tl.int64, log2_own: tl.int64, log2_other: tl.int64,
    sums, offsets, gradients, gradient_stride, out, dims, size_class, OUTER: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Of rows, the sums of g v sqrt(log2(e) / 2) e^(-logvar / 2) over all components but their own, [D, S]."""
    d = tl.minimum(which_of_others(), dims - 1)
    mu, precision, c = mu + d * components, precision + d * components, c + d * components
    i = tl.program_id(0).to(tl.int64) * OUTER + tl.arange(0, OUTER)[:, None]
    inside = i < rows
    at = tl.load(z + d * rows + i, mask=inside, other=0.0)
    largest_of = load_largest(log_weights, largest, i, inside, at)
    _, _, log2_other = own_weights(own, log2_own, log2_other, at)
    offset = tl.load(offsets + d * rows + i, mask=inside, other=0.0)
    g = tl.load(gradients + d * gradient_stride + i, mask=inside, other=0.0)
    g = quotient(g, tl.load(sums + d * rows + i, mask=inside, other=0.0))
    first_own = tl.program_id(0).to(tl.int64) * OUTER + row_offset
    total = tl.zeros([OUTER, 1], tl.float64)
    begin = tl.program_id(0).to(tl.int64) * 0
    while begin < components:
        end = tl.minimum(begin + LANES * _TILES, components)
        part = tl.zeros([OUTER, LANES], at.dtype)
        while begin < end:
            j = begin + tl.arange(0, LANES)[None, :]
            v, k = _deviations(at, mu, precision, j, j < components)
            t = _exponents(
                v, c, log_weights, largest_of, i, j, rows, components, log2_other, begin, first_own, row_offset,
                OUTER, LANES,
            )  # fmt: skip
            share = tl.exp2(t - offset) * g
            part += share * tl.where(share == 0.0, 0.0, v) * k  # v may be infinite
            begin += LANES
        total += tl.sum(part, axis=1)[:, None].to(tl.float64)
    tl.store(out + d * rows + i, total.to(at.dtype), mask=inside)


@tuned((32, 16, 4), (32, 32, 4), (8, 64, 4))
def backward_columns(
    z, mu, precision, c, log_weights, largest, rows, components, row_offset,
    own: tl.int64, log2_own: tl.int64, log2_other: tl.int64,
    sums, offsets, gradients, gradient_stride, by_mean, by_logvar, dims, size_class,
    OUTER: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Of components, the sums of g v and of g (u^2 - 1) / 2 over all rows but their own, [D, N']."""
    d = tl.minimum(which_of_others(), dims - 1)
    j = tl.program_id(0).to(tl.int64) * OUTER + tl.arange(0, OUTER)[:, None]
    near, of_d = j < components, d * components + j
    mean, k = tl.load(mu + of_d, mask=near, other=0.0), tl.load(precision + of_d, mask=near, other=0.0)
    of_component = tl.load(c + of_d, mask=near, other=float("-inf"))
    _, _, log2_other = own_weights(own, log2_own, log2_other, mean)
    first_own = tl.program_id(0).to(tl.int64) * OUTER - row_offset
    total_mean, total_logvar = tl.zeros([OUTER, 1], tl.float64), tl.zeros([OUTER, 1], tl.float64)
    begin = tl.program_id(0).to(tl.int64) * 0
    while begin < rows:
        end = tl.minimum(begin + LANES * _TILES, rows)
        part_mean, part_logvar = tl.zeros([OUTER, LANES], mean.dtype), tl.zeros([OUTER, LANES], mean.dtype)
        while begin < end:
            i = begin + tl.arange(0, LANES)[None, :]
            inside = i < rows
            at = tl.load(z + d * rows + i, mask=inside, other=0.0)
            largest_of = load_largest(log_weights, largest, i, inside, at)
            g = tl.load(gradients + d * gradient_stride + i, mask=inside, other=0.0)
            g = quotient(g, tl.load(sums + d * rows + i, mask=inside, other=0.0))
            v = (at - mean) * k
            t = exponent(v, of_component)
            t += log2_weights(log_weights, largest_of, i, j, components, inside & near, log2_other)
            if log_weights is None and begin < first_own + OUTER and begin + LANES > first_own:
                t = tl.where(i == j - row_offset, float("-inf"), t)
            share = tl.exp2(t - tl.load(offsets + d * rows + i, mask=inside, other=float("inf"))) * g
            v = tl.where(share == 0.0, 0.0, v)  # it may be infinite
            part_mean += share * v
            part_logvar += share * v * v * LN2 - share * 0.5
            begin += LANES
        total_mean += tl.sum(part_mean, axis=1)[:, None].to(tl.float64)
        total_logvar += tl.sum(part_logvar, axis=1)[:, None].to(tl.float64)
    tl.store(by_mean + of_d, total_mean.to(mean.dtype), mask=near)
    tl.store(by_logvar + of_d, total_logvar.to(mean.dtype), mask=near)
