"""KL of a diagonal Gaussian to N(0, 1), or to another diagonal Gaussian, reduced as asked.

A floor above 0 holds for each element, before the reduction; below it there is no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastib._arguments import Reduction
from fastib._formulas import scale_of

from ._elements import block_of, double_of, load, store
from ._kl import kl_between, kl_standard
from ._launch import bits, compiled_once, deliver, dense, launch_elements, target, wanted_like
from ._math import exponentials
from ._reduce import (
    Sums,
    chunk_of,
    gradient_arguments,
    gradient_of,
    reduce,
    reduced_like,
    store_sums,
    sums_of,
    tile_of,
)


@triton.jit
def _load_prior(prior, i, inside, inner, period):
    """A prior at elements `i`: one number for each, or `period` of them, each for `inner` elements in a row."""
    if period is None:
        return load(prior + i, inside)
    else:
        return load(prior + i // inner % period, inside)


@triton.jit
def _kl(mu, logvar, prior_mu, prior_logvar, mu_inner, mu_period, logvar_inner, logvar_period, i, inside):
    """The KL of elements `i`, and its derivatives by mu, logvar and, where there is a prior, prior_logvar."""
    m, lv = load(mu + i, inside), load(logvar + i, inside)
    if prior_mu is None:
        _, minus_1, _ = exponentials(lv)
        return kl_standard(m, lv), m, 0.5 * minus_1, lv
    else:
        p = _load_prior(prior_mu, i, inside, mu_inner, mu_period)
        pl = _load_prior(prior_logvar, i, inside, logvar_inner, logvar_period)
        return kl_between(m, lv, p, pl)


@triton.jit
def _floored(kl, floor):
    """As torch.clamp: a NaN compares false and stays."""
    if floor is None:
        return kl
    else:
        least = double_of(floor).to(kl.dtype)
        return tl.where(kl < least, least, kl)


@triton.jit
def _passed(g, kl, floor):
    """The gradient where the floor lets it pass."""
    if floor is None:
        return g
    else:
        return tl.where(kl >= double_of(floor).to(kl.dtype), g, 0.0)


@compiled_once
def forward(
    mu, logvar, prior_mu, prior_logvar, mu_inner, mu_period, logvar_inner, logvar_period, floor, out, count,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i, inside = block_of(count, BLOCK)
    kl, _, _, _ = _kl(mu, logvar, prior_mu, prior_logvar, mu_inner, mu_period, logvar_inner, logvar_period, i, inside)
    store(out + i, _floored(kl, floor), inside)


@compiled_once
def forward_sums(
    mu, logvar, prior_mu, prior_logvar, mu_inner, mu_period, logvar_inner, logvar_period, floor,
    out, outputs, terms, output_stride, term_stride, steps, scale: tl.int64,
    OUTPUTS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    begin, end = chunk_of(terms, steps, TERMS)
    total = tl.zeros([OUTPUTS, TERMS], tl.float64)
    while begin < end:
        i, inside = tile_of(begin, end, outputs, output_stride, term_stride, OUTPUTS, TERMS)
        kl, _, _, _ = _kl(
            mu, logvar, prior_mu, prior_logvar, mu_inner, mu_period, logvar_inner, logvar_period, i, inside
        )
        total += tl.where(inside, _floored(kl, floor), 0.0).to(tl.float64)
        begin += TERMS
    store_sums(out, total, outputs, scale, OUTPUTS)


@compiled_once
def backward(
    grad, width, grad_scale: tl.int64,
    mu, logvar, prior_mu, prior_logvar, mu_inner, mu_period, logvar_inner, logvar_period, floor,
    d_mu, d_logvar, d_prior_mu, d_prior_logvar, count, REDUCTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i, inside = block_of(count, BLOCK)
    g = gradient_of(grad, i, inside, width, grad_scale, REDUCTION)
    kl, by_mu, by_logvar, by_prior_logvar = _kl(
        mu, logvar, prior_mu, prior_logvar, mu_inner, mu_period, logvar_inner, logvar_period, i, inside
    )
    g = _passed(g, kl, floor)
    if d_mu is not None:
        store(d_mu + i, g * by_mu, inside)
    if d_logvar is not None:
        store(d_logvar + i, g * by_logvar, inside)
    if d_prior_mu is not None:
        store(d_prior_mu + i, -g * by_mu, inside)
    if d_prior_logvar is not None:
        store(d_prior_logvar + i, g * by_prior_logvar, inside)


@compiled_once
def backward_sums(
    grad, width, grad_scale: tl.int64,
    mu, logvar, prior_mu, prior_logvar, mu_inner, mu_period, logvar_inner, logvar_period, floor,
    out, outputs, terms, output_stride, term_stride, steps, scale: tl.int64, REDUCTION: tl.constexpr,
    OF_MEAN: tl.constexpr, OUTPUTS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    begin, end = chunk_of(terms, steps, TERMS)
    total = tl.zeros([OUTPUTS, TERMS], tl.float64)
    while begin < end:
        i, inside = tile_of(begin, end, outputs, output_stride, term_stride, OUTPUTS, TERMS)
        kl, by_mu, _, by_prior_logvar = _kl(
            mu, logvar, prior_mu, prior_logvar, mu_inner, mu_period, logvar_inner, logvar_period, i, inside
        )
        g = _passed(gradient_of(grad, i, inside, width, grad_scale, REDUCTION), kl, floor)
        value = -g * by_mu if OF_MEAN else g * by_prior_logvar
        total += tl.where(inside, value, 0.0).to(tl.float64)
        begin += TERMS
    store_sums(out, total, outputs, scale, OUTPUTS)


class _Prior(NamedTuple):
    """A prior as `_load_prior` takes it."""

    values: Tensor | None
    inner: int | None
    period: int | None


def _prior(prior: Tensor | None, mu: Tensor) -> _Prior:
    if prior is None:
        return _Prior(None, None, None)
    if prior.numel() == mu.numel():
        return _Prior(prior.expand(mu.shape).contiguous(), None, None)
    shape = (1,) * (mu.dim() - prior.dim()) + tuple(prior.shape)
    own = [d for d in range(mu.dim()) if shape[d] != 1]
    first, end = (own[0], own[-1] + 1) if own else (0, mu.dim())
    if own and shape[first:end] != tuple(mu.shape[first:end]):
        return _Prior(prior.expand(mu.shape).contiguous(), None, None)
    return _Prior(prior.contiguous(), mu.shape[end:].numel(), prior.numel())


def _inputs(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None, floor: float
) -> tuple[object, ...]:
    p, pl = _prior(prior_mu, mu), _prior(prior_logvar, mu)
    return (
        dense(mu),
        dense(logvar),
        p.values,
        pl.values,
        p.inner,
        p.period,
        pl.inner,
        pl.period,
        bits(floor) if floor > 0 else None,
    )


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    divisor: int,
    floor: float,
) -> Tensor:
    out = reduced_like(mu, reduction)
    inputs = _inputs(mu, logvar, prior_mu, prior_logvar, floor)
    if reduction != Reduction.NONE:
        return reduce(forward_sums, sums_of(mu, reduction), out, scale_of(divisor), *inputs)
    to = target(out)
    launch_elements(forward, mu, *inputs, to)
    return deliver(out, to)


def gaussian_kl_backward(
    grad: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    divisor: int,
    floor: float,
    wanted: int,
) -> tuple[Tensor, ...]:
    likes = mu, logvar, prior_mu, prior_logvar
    outputs = [None if t is None else wanted_like(t, wanted >> i & 1) for i, t in enumerate(likes)]
    of_elements = [out is not None and out.numel() == mu.numel() for out in outputs]
    targets = [target(out) for out in outputs]
    grad, width, kind = gradient_arguments(grad, mu, reduction)
    inputs = grad, width, bits(scale_of(divisor)), *_inputs(mu, logvar, prior_mu, prior_logvar, floor)
    if any(of_elements):
        own = [to if each else None for to, each in zip(targets, of_elements, strict=True)]
        launch_elements(backward, mu, *inputs, *own, REDUCTION=kind)
    for i, to in enumerate(targets):
        if to is not None and not of_elements[i] and to.numel() > 0:
            count = to.numel()  # it is broadcast over leading dimensions alone: the others are the caller's
            sums = Sums(count, mu.numel() // count, 1, count)
            reduce(backward_sums, sums, to, 1.0, *inputs, REDUCTION=kind, OF_MEAN=i == 2)
    return tuple(mu.new_empty(0) if out is None else deliver(out, to) for out, to in zip(outputs, targets, strict=True))
