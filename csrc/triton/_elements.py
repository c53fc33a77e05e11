"""Blocks of elements in memory: indices, loads, stores, and the noise of a block."""

from __future__ import annotations

import triton
import triton.language as tl

from ._math import INTERPRETED, log_uniform, sine_cosine_turn, square_root


@triton.jit
def block_of(count, BLOCK: tl.constexpr):
    """The indices of this program's block, and which of them are less than `count`."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return i, i < count


@triton.jit
def load(pointer, mask):
    """As float32, or float64 as it is; 0 where masked. Triton's interpreter takes subnormal bfloat16s for others."""
    x = tl.load(pointer, mask=mask, other=0.0)
    if x.dtype == tl.float64:
        return x
    elif INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def double_of(bits):
    """A float64 argument, which Triton would pass as a float32, from its bits."""
    return bits.to(tl.int64).to(tl.float64, bitcast=True)


@triton.jit
def _nearest_bfloat16(x):
    """float32 rounded to what bfloat16 holds, ties to even, in integers; a NaN stays one."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) & 0xFFFF0000).to(tl.uint32).to(tl.float32, bitcast=True)
    return tl.where(bits << 1 > 0xFF000000, float("nan"), rounded)


@triton.jit
def store(pointer, x, mask):
    """Rounds to nearest, which Triton's interpreter does not for bfloat16."""
    dtype: tl.constexpr = pointer.dtype.element_ty
    if dtype != tl.float64:
        x = x.to(tl.float32)
    if INTERPRETED and dtype == tl.bfloat16:
        x = _nearest_bfloat16(x)
    tl.store(pointer, x.to(dtype), mask=mask)


@triton.jit
def philox(group, rng):
    """The words of counters (group, offset) under the key seed, both from `rng` in memory: see fastib/_rng.py."""
    seed, offset = tl.load(rng), tl.load(rng + 1)
    zero = tl.zeros_like(group).to(tl.uint32)
    return tl.philox_impl(
        group.to(tl.uint32),
        (group >> 32).to(tl.uint32),
        zero + offset.to(tl.uint32),
        zero + (offset >> 32).to(tl.uint32),
        zero + seed.to(tl.uint32),
        zero + (seed >> 32).to(tl.uint32),
        10,
    )


@triton.jit
def _normal_pair(radius_word, angle_word, dtype: tl.constexpr):
    radius = square_root(log_uniform(radius_word, dtype) * -2.0)
    sine, cosine = sine_cosine_turn(angle_word, dtype)
    return radius * cosine, radius * sine


@triton.jit
def _normals(rng, dtype: tl.constexpr, BLOCK: tl.constexpr):
    """Of the elements of this program's block, four to a counter."""
    group = tl.program_id(0).to(tl.int64) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = philox(group, rng)
    first, second = _normal_pair(w0, w1, dtype)
    third, fourth = _normal_pair(w2, w3, dtype)
    return tl.interleave(tl.interleave(first, third), tl.interleave(second, fourth))


@triton.jit
def noise_of(given, rng, i, inside, dtype: tl.constexpr, BLOCK: tl.constexpr):
    """The noise of elements `i`, those of this program's block: the one given, or else drawn from `rng`."""
    if given is not None:
        return load(given + i, inside)
    else:
        return _normals(rng, dtype, BLOCK)
