"""Mutual information, total correlation and dimension-wise KL of each sample, reduced as asked."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastib._arguments import Reduction, accumulate_dtype
from fastib._formulas import estimator_weights, scale_of

from ._elements import double_of
from ._gradients import RowGradients, gradients
from ._launch import bits, block_of_rows, compiled_once, launch
from ._math import logarithm
from ._mixture import LN2, LOG_2_PI, pack, saved_of
from ._reduce import Sums, reduce, sum_values
from .aggregate_posterior import joint, marginals

_BLOCK = 128


@compiled_once
def _terms(z, offsets, sums, log_qz, information, log_base: tl.int64, mi, tc, kl, rows, dims, BLOCK: tl.constexpr):
    """Of rows, the three terms."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < rows
    log_marginals, log_prior = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    d = tl.program_id(0).to(tl.int64) * 0
    while d < dims:
        at = tl.load(z + d * rows + i, mask=inside, other=0.0).to(tl.float64)
        log = logarithm(tl.load(sums + d * rows + i, mask=inside, other=1.0).to(tl.float64))
        log += tl.load(offsets + d * rows + i, mask=inside, other=0.0).to(tl.float64) * LN2
        log_marginals += log + double_of(log_base) - 0.5 * LOG_2_PI
        log_prior -= 0.5 * (at * at + LOG_2_PI)
        d += 1
    tl.store(mi + i, tl.load(information + i, mask=inside, other=0.0), mask=inside)
    tl.store(tc + i, tl.load(log_qz + i, mask=inside, other=0.0) - log_marginals, mask=inside)
    tl.store(kl + i, log_marginals - log_prior, mask=inside)


@triton.jit
def _row_gradient(grad, i, inside, scale, EACH: tl.constexpr):
    """That of a term, which a reduction spreads over all rows."""
    if grad is None:
        return tl.zeros_like(i).to(tl.float64)
    elif EACH:
        return tl.load(grad + i, mask=inside, other=0.0).to(tl.float64) * double_of(scale)
    else:
        return tl.zeros_like(i).to(tl.float64) + tl.load(grad).to(tl.float64) * double_of(scale)


@compiled_once
def _row_gradients(
    grad_mi, grad_tc, grad_kl, scale: tl.int64, by_joint, by_information, by_marginals, by_prior, rows,
    EACH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """By log q(z), by log q(z|x) - log q(z), by each log q(z_d), and by -log p(z)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < rows
    mi = _row_gradient(grad_mi, i, inside, scale, EACH)
    tc = _row_gradient(grad_tc, i, inside, scale, EACH)
    kl = _row_gradient(grad_kl, i, inside, scale, EACH)
    tl.store(by_joint + i, tc.to(by_joint.dtype.element_ty), mask=inside)
    tl.store(by_information + i, mi.to(by_joint.dtype.element_ty), mask=inside)
    tl.store(by_marginals + i, (kl - tc).to(by_joint.dtype.element_ty), mask=inside)
    tl.store(by_prior + i, kl.to(by_joint.dtype.element_ty), mask=inside)


def elbo_decomposition(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    estimator: int,
    dataset_size: int,
    row_offset: int,
    reduction: int,
    divisor: int,
    algorithm: int,
) -> tuple[Tensor, ...]:
    weights, dtype = estimator_weights(estimator, dataset_size, mu.shape[0]), accumulate_dtype(z.dtype)
    m = pack(z, mu, logvar, None, weights, row_offset)
    memory = z.new_empty((m.rows, 2 * m.dims + 2), dtype=dtype)
    saved = saved_of(memory)
    log_qz, information = (torch.empty(m.rows, dtype=torch.float64, device=z.device) for _ in range(2))
    joint(m, saved, log_qz, information)
    marginals(m, saved, None)
    terms = [torch.empty(m.rows, dtype=torch.float64, device=z.device) for _ in range(3)]
    block = block_of_rows(m.rows, _BLOCK)
    inputs = m.z, saved.offsets, saved.sums, log_qz, information, bits(m.log_base)
    launch(_terms, (triton.cdiv(m.rows, block),), z, *inputs, *terms, m.rows, m.dims, BLOCK=block)
    each = reduction == Reduction.NONE
    sums = Sums(m.rows, 1, 1, 1) if each else Sums(1, m.rows, 1, 1)
    outputs = (z.new_empty((m.rows,) if each else (), dtype=dtype) for _ in range(3))
    scale = scale_of(divisor)
    return *(reduce(sum_values, sums, out, scale, term) for out, term in zip(outputs, terms, strict=True)), memory


def elbo_decomposition_backward(
    grad_mi: Tensor | None,
    grad_tc: Tensor | None,
    grad_kl: Tensor | None,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    memory: Tensor,
    estimator: int,
    dataset_size: int,
    row_offset: int,
    reduction: int,
    divisor: int,
    algorithm: int,
) -> tuple[Tensor, Tensor, Tensor]:
    m = pack(z, mu, logvar, None, estimator_weights(estimator, dataset_size, mu.shape[0]), row_offset)
    by = RowGradients(*(torch.empty(m.rows, dtype=m.z.dtype, device=z.device) for _ in range(4)))
    block = block_of_rows(m.rows, _BLOCK)
    grads = [None if grad is None else grad.contiguous() for grad in (grad_mi, grad_tc, grad_kl)]
    each = reduction == Reduction.NONE
    grid = (triton.cdiv(m.rows, block),)
    launch(_row_gradients, grid, z, *grads, bits(scale_of(divisor)), *by, m.rows, EACH=each, BLOCK=block)
    return gradients(m, saved_of(memory), by, z, mu, logvar)
