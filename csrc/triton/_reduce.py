"""Sums of elements, in an order that depends on the shapes alone.

The elements of a reduction are a matrix, outputs x terms, with strides in the logical order of the elements. A program
sums one chunk of the terms of a few outputs, in float64; the sums of chunks are elements of the next reduction.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastib._arguments import Reduction, accumulate_dtype

from ._elements import double_of, load, store
from ._launch import (
    bits,
    block_of_rows,
    block_size,
    compiled_once,
    dense,
    launch,
    launch_elements,
    power_of_two,
    tile_size,
)


class Sums(NamedTuple):
    outputs: int
    terms: int
    output_stride: int
    term_stride: int


_MOST_OUTPUTS = 128  # of one program, where neighbours are of different outputs
_STEPS = 16  # of one chunk, at least
_CHUNKS = 1024  # of all outputs together, about


def sums_of(t: Tensor, reduction: int) -> Sums:
    """The sums that `reduction` takes of the elements of `t`."""
    if reduction == Reduction.SUM or t.dim() == 0:
        return Sums(1, t.numel(), 1, 1)
    if reduction == Reduction.SAMPLE:
        return Sums(t.shape[:-1].numel(), t.shape[-1], t.shape[-1], 1)
    columns = t.shape[1:].numel()
    return Sums(columns, t.shape[0], 1, columns)


def reduced_like(t: Tensor, reduction: int) -> Tensor:
    """Room for the result of a reduction of `t`."""
    dtype = accumulate_dtype(t.dtype)
    if reduction == Reduction.NONE:
        return torch.empty_like(t, dtype=dtype)
    if reduction == Reduction.SUM or t.dim() == 0:
        return t.new_empty((), dtype=dtype)
    return t.new_empty(t.shape[1:] if reduction == Reduction.BATCH else t.shape[:-1], dtype=dtype)


@triton.jit
def tile_of(begin, end, outputs, output_stride, term_stride, OUTPUTS: tl.constexpr, TERMS: tl.constexpr):
    """The elements that are terms [begin, end) of this program's outputs, at most TERMS of each."""
    o = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
    k = begin + tl.arange(0, TERMS)[None, :]
    return o * output_stride + k * term_stride, (o < outputs) & (k < end)


@triton.jit
def chunk_of(terms, steps, TERMS: tl.constexpr):
    """So many tiles of terms."""
    begin = tl.program_id(1).to(tl.int64) * steps * TERMS
    return begin, tl.minimum(begin + steps.to(tl.int64) * TERMS, terms)


@triton.jit
def store_sums(out, total, outputs, scale, OUTPUTS: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    to = out + tl.program_id(1).to(tl.int64) * outputs + o
    store(to, tl.sum(total, axis=1) * double_of(scale), o < outputs)


@compiled_once
def sum_values(
    values,
    out,
    outputs,
    terms,
    output_stride,
    term_stride,
    steps,
    scale: tl.int64,
    OUTPUTS: tl.constexpr,
    TERMS: tl.constexpr,
):
    begin, end = chunk_of(terms, steps, TERMS)
    total = tl.zeros([OUTPUTS, TERMS], tl.float64)
    while begin < end:
        i, inside = tile_of(begin, end, outputs, output_stride, term_stride, OUTPUTS, TERMS)
        total += load(values + i, inside).to(tl.float64)
        begin += TERMS
    store_sums(out, total, outputs, scale, OUTPUTS)


def reduce(kernel: Any, sums: Sums, out: Tensor, scale: float, *inputs: Any, **meta: Any) -> Tensor:
    """Runs a kernel like `sum_values` for `sums`: their results, times `scale`, in `out`."""
    tile = tile_size()
    if sums.term_stride == 1:
        terms = power_of_two(sums.terms, tile)
        outputs = block_of_rows(sums.outputs, tile // terms)
    else:
        outputs = block_of_rows(sums.outputs, min(tile, _MOST_OUTPUTS))
        terms = power_of_two(sums.terms, tile // outputs)
    tiles = triton.cdiv(sums.outputs, outputs)
    chunks = min(triton.cdiv(sums.terms, terms * _STEPS), triton.cdiv(_CHUNKS, max(tiles, 1)))
    blocks = {"OUTPUTS": outputs, "TERMS": terms, **meta}
    if chunks <= 1:
        launch(kernel, (tiles, 1), out, *inputs, out, *sums, triton.cdiv(sums.terms, terms), bits(scale), **blocks)
        return out
    steps = triton.cdiv(triton.cdiv(sums.terms, chunks), terms)
    chunks = triton.cdiv(sums.terms, steps * terms)
    partial = torch.empty((chunks, sums.outputs), dtype=torch.float64, device=out.device)
    launch(kernel, (tiles, chunks), out, *inputs, partial, *sums, steps, bits(1.0), **blocks)
    return reduce(sum_values, Sums(sums.outputs, chunks, 1, sums.outputs), out, scale, partial)


@triton.jit
def gradient_of(grad, i, inside, width, scale, REDUCTION: tl.constexpr):
    """That of a reduction, at elements `i`: `width` is the size of the last dimension, or of all but the first."""
    if REDUCTION == 0:
        g = load(grad + i, inside)
    elif REDUCTION == 1:
        g = load(grad + i // width, inside)
    elif REDUCTION == 2:
        g = tl.load(grad)
    else:
        g = load(grad + i % width, inside)
    return g * double_of(scale).to(g.dtype)


def launch_with_sum(kernel: Any, like: Tensor, out: Tensor, scale: float, *args: Any, **meta: Any) -> None:
    """Runs `kernel` on blocks of the elements of `like`, and sums what each program left in the array that it gets."""
    programs = triton.cdiv(like.numel(), block_size(like.numel()))
    partial = torch.empty(programs, dtype=torch.float64, device=like.device)
    launch_elements(kernel, like, *args, partial, **meta)
    reduce(sum_values, Sums(1, programs, 1, 1), out, scale, partial)


def no_sum_over_the_batch(reduction: int) -> None:
    if reduction == Reduction.BATCH:  # noise comes in groups of elements
        raise RuntimeError("fastib: noise with a reduction over the first dimension")


def gradient_arguments(grad: Tensor | None, like: Tensor, reduction: int) -> tuple[Tensor | None, int, int]:
    """For `gradient_of`: the gradient, its width and its reduction, for elements of `like`."""
    if like.dim() == 0 and reduction != Reduction.NONE:
        reduction = Reduction.SUM
    width = 1
    if reduction == Reduction.SAMPLE:
        width = like.shape[-1]
    elif reduction == Reduction.BATCH:
        width = like.shape[1:].numel()
    return dense(grad), width, reduction
