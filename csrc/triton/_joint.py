"""The joint densities of points, and their part of the gradients.

Sums are of 2^(exponent - offset), where the offset is the largest exponent so far. A program of the gradients has a few
dimensions: it goes over all of them for the densities of a tile, and then over its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._elements import double_of
from ._marginals import quotient
from ._math import logarithm
from ._mixture import (
    LN2,
    load_largest,
    log2_weights,
    lowest,
    own_squares,
    own_weights,
    weighed_or_nothing,
)
from ._tuning import tuned, which_of_others

_TILES = tl.constexpr(32)  # as in _marginals.py


@triton.jit
def _squares(z, mu, precision, i, j, inside, near, rows, components, dims, like):
    """The sums of v^2 over all dimensions, of pairs; `like` has their shape."""
    total = tl.zeros_like(like)
    d = tl.program_id(0).to(tl.int64) * 0
    while d < dims:
        mean = tl.load(mu + d * components + j, mask=near, other=0.0)
        k = tl.load(precision + d * components + j, mask=near, other=1.0)  # infinity times 0 would be NaN
        v = (tl.load(z + d * rows + i, mask=inside, other=0.0) - mean) * k
        total = tl.fma(v, v, total)
        d += 1
    return total


@triton.jit
def _exponents(
    z, mu, precision, joint, log_weights, largest, i, j, rows, components, dims, row_offset, log2_other, like
):
    """Of pairs, that of a row and its own component left out."""
    inside, near = i < rows, j < components
    t = tl.load(joint + j, mask=near, other=float("-inf"))
    t = t - _squares(z, mu, precision, i, j, inside, near, rows, components, dims, like)
    t += log2_weights(log_weights, largest, i, j, components, inside & near, log2_other)
    if log_weights is None:
        t = tl.where(j == i + row_offset, float("-inf"), t)
    return t


@triton.jit
def _merge(most, total, other_most, other_total):
    """The sum of two sums, each relative to a largest exponent of its own."""
    larger = tl.where(other_most > most, other_most, most)
    left, right = tl.exp2(most - larger).to(tl.float64), tl.exp2(other_most - larger).to(tl.float64)
    return larger, total * left + other_total * right


@tuned((8, 64, 4), (4, 64, 4), (16, 64, 4))
def forward(
    z, mu, precision, joint, log_weights, largest, rows, components, row_offset,
    own: tl.int64, log2_own: tl.int64, log2_other: tl.int64,
    log_base: tl.int64, log_normaliser: tl.int64, offsets, sums, logs, information, dims, size_class,
    OUTER: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """`logs` are of q(z); `information` is log q(z|x) - log q(z) without their common part, to keep its digits."""
    i = tl.program_id(0).to(tl.int64) * OUTER + tl.arange(0, OUTER)[:, None]
    inside = i < rows
    none = tl.zeros([OUTER, LANES], joint.dtype.element_ty)
    largest_of = load_largest(log_weights, largest, i, inside, tl.zeros([OUTER, 1], joint.dtype.element_ty))
    own_weight, log2_own, log2_other = own_weights(own, log2_own, log2_other, none)
    most, total = tl.zeros([OUTER, 1], none.dtype) + lowest(none), tl.zeros([OUTER, 1], tl.float64)
    begin = tl.program_id(0).to(tl.int64) * 0
    while begin < components:
        end = tl.minimum(begin + LANES * _TILES, components)
        lane_most, lane_total = none + lowest(none), tl.zeros_like(none)
        while begin < end:
            j = begin + tl.arange(0, LANES)[None, :]
            t = _exponents(
                z, mu, precision, joint, log_weights, largest_of, i, j, rows, components, dims, row_offset,
                log2_other, none,
            )  # fmt: skip
            larger = t > lane_most
            ratio = tl.exp2(tl.where(larger, lane_most - t, t - lane_most))
            lane_total = tl.where(larger, lane_total * ratio + 1.0, lane_total + ratio)
            lane_most = tl.where(larger, t, lane_most)
            begin += LANES
        part_most = tl.max(lane_most, axis=1)[:, None]
        part = tl.sum(lane_total * tl.exp2(lane_most - part_most), axis=1)[:, None].to(tl.float64)
        most, total = _merge(most, total, part_most, part)
    log_unit = double_of(log_base) + largest_of.to(tl.float64)
    if log_weights is None:
        own_of = i + row_offset
        has_own = inside & (own_of < components)
        squares = own_squares(z, mu, precision, i, own_of, has_own, rows, components, dims)
        own_t = tl.load(joint + own_of, mask=has_own, other=float("-inf")) - squares
        weighed = weighed_or_nothing(own_t + log2_own, own_weight)
        most, total = _merge(most, total, weighed, tl.zeros_like(total) + own_weight.to(tl.float64))
        if information is not None:
            log_ratio = (own_t.to(tl.float64) - most.to(tl.float64)) * LN2 - logarithm(total)
            tl.store(information + i, log_ratio - log_unit, mask=inside)
    tl.store(offsets + i, most, mask=inside)
    tl.store(sums + i, total.to(none.dtype), mask=inside)
    if logs is not None:
        log = logarithm(total) + most.to(tl.float64) * LN2 + log_unit + double_of(log_normaliser)
        tl.store(logs + i, log.to(logs.dtype.element_ty), mask=inside)


@triton.jit
def _at(part, k, DIMS: tl.constexpr):
    """A column in place k of DIMS, among zeros."""
    return tl.where(tl.arange(0, DIMS)[None, :] == k, part, 0.0)


@tuned((16, 32, 4), (8, 32, 2), (32, 16, 4))
def backward_rows(
    z, mu, precision, joint, log_weights, largest, rows, components, row_offset,
    own: tl.int64, log2_own: tl.int64, log2_other: tl.int64,
    offsets, sums, gradients, out, dims, size_class, DIMS: tl.constexpr, OUTER: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """As in _marginals.py."""
    i = tl.program_id(0).to(tl.int64) * OUTER + tl.arange(0, OUTER)[:, None]
    inside = i < rows
    none = tl.zeros([OUTER, LANES], joint.dtype.element_ty)
    largest_of = load_largest(log_weights, largest, i, inside, tl.zeros([OUTER, 1], none.dtype))
    _, _, log2_other = own_weights(own, log2_own, log2_other, none)
    offset = tl.load(offsets + i, mask=inside, other=float("inf"))
    g = quotient(tl.load(gradients + i, mask=inside, other=0.0), tl.load(sums + i, mask=inside, other=0.0))
    total = tl.zeros([OUTER, DIMS], tl.float64)
    first = which_of_others() * DIMS
    begin = first * 0
    while begin < components:
        end = tl.minimum(begin + LANES * _TILES, components)
        part = tl.zeros([OUTER, DIMS], none.dtype)
        while begin < end:
            j = begin + tl.arange(0, LANES)[None, :]
            near = j < components
            t = _exponents(
                z, mu, precision, joint, log_weights, largest_of, i, j, rows, components, dims, row_offset,
                log2_other, none,
            )  # fmt: skip
            share = tl.exp2(t - offset) * g
            d = first
            while d < tl.minimum(first + DIMS, dims):
                mean = tl.load(mu + d * components + j, mask=near, other=0.0)
                k = tl.load(precision + d * components + j, mask=near, other=0.0)
                v = (tl.load(z + d * rows + i, mask=inside, other=0.0) - mean) * k
                terms = share * tl.where(share == 0.0, 0.0, v) * k  # v may be infinite
                part += _at(tl.sum(terms, axis=1)[:, None], d - first, DIMS)
                d += 1
            begin += LANES
        total += part.to(tl.float64)
    d = first + tl.arange(0, DIMS)[None, :]
    tl.store(out + d * rows + i, total.to(none.dtype), mask=inside & (d < dims))


@tuned((16, 16, 4), (8, 32, 2), (16, 16, 2))
def backward_columns(
    z, mu, precision, joint, log_weights, largest, rows, components, row_offset,
    own: tl.int64, log2_own: tl.int64, log2_other: tl.int64,
    offsets, sums, gradients, by_mean, by_logvar, dims, size_class,
    DIMS: tl.constexpr, OUTER: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """As in _marginals.py."""
    j = tl.program_id(0).to(tl.int64) * OUTER + tl.arange(0, OUTER)[:, None]
    near = j < components
    none = tl.zeros([OUTER, LANES], joint.dtype.element_ty)
    _, _, log2_other = own_weights(own, log2_own, log2_other, none)
    total_mean, total_logvar = tl.zeros([OUTER, DIMS], tl.float64), tl.zeros([OUTER, DIMS], tl.float64)
    first = which_of_others() * DIMS
    begin = first * 0
    while begin < rows:
        end = tl.minimum(begin + LANES * _TILES, rows)
        part_mean, part_logvar = tl.zeros([OUTER, DIMS], none.dtype), tl.zeros([OUTER, DIMS], none.dtype)
        while begin < end:
            i = begin + tl.arange(0, LANES)[None, :]
            inside = i < rows
            largest_of = load_largest(log_weights, largest, i, inside, tl.zeros([1, LANES], none.dtype))
            g = quotient(tl.load(gradients + i, mask=inside, other=0.0), tl.load(sums + i, mask=inside, other=0.0))
            t = _exponents(
                z, mu, precision, joint, log_weights, largest_of, i, j, rows, components, dims, row_offset,
                log2_other, none,
            )  # fmt: skip
            share = tl.exp2(t - tl.load(offsets + i, mask=inside, other=float("inf"))) * g
            shares = tl.sum(share, axis=1)[:, None]
            d = first
            while d < tl.minimum(first + DIMS, dims):
                mean = tl.load(mu + d * components + j, mask=near, other=0.0)
                k = tl.load(precision + d * components + j, mask=near, other=0.0)
                v = (tl.load(z + d * rows + i, mask=inside, other=0.0) - mean) * k
                v = tl.where(share == 0.0, 0.0, v)  # it may be infinite
                by_square = tl.sum(share * v * v, axis=1)[:, None]
                part_mean += _at(tl.sum(share * v, axis=1)[:, None], d - first, DIMS)
                part_logvar += _at(by_square * LN2 - shares * 0.5, d - first, DIMS)
                d += 1
            begin += LANES
        total_mean += part_mean.to(tl.float64)
        total_logvar += part_logvar.to(tl.float64)
    d = first + tl.arange(0, DIMS)[None, :]
    mask = near & (d < dims)
    tl.store(by_mean + d * components + j, total_mean.to(none.dtype), mask=mask)
    tl.store(by_logvar + d * components + j, total_logvar.to(none.dtype), mask=mask)
