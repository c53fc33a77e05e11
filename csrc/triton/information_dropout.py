"""Information Dropout: multiplicative log-normal noise and its KL in one pass, and the gradients in another."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastib._arguments import Reduction, accumulate_dtype
from fastib._formulas import scale_of

from ._elements import block_of, load, noise_of, store
from ._launch import bits, block_size, compiled_once, deliver, dense, launch_elements, target, wanted_like
from ._math import exponential, logarithm
from ._reduce import (
    Sums,
    chunk_of,
    gradient_arguments,
    gradient_of,
    launch_with_sum,
    no_sum_over_the_batch,
    reduce,
    reduced_like,
    store_sums,
    sum_values,
    sums_of,
    tile_of,
)


@triton.jit
def _shift(std, MEAN_ONE: tl.constexpr):
    """Twice what the logarithm of noise of mean one is shifted by; else 0, also of a std that is infinite."""
    return std * std if MEAN_ONE else tl.zeros_like(std)


@triton.jit
def _noise(std, normal, MEAN_ONE: tl.constexpr):
    return exponential(std * normal - 0.5 * _shift(std, MEAN_ONE))


@triton.jit
def _sample(x, eps):
    """0 stays 0 also where eps, which is finite, is too large for its dtype."""
    return tl.where((x == 0.0) & (eps == float("inf")), x, x * eps)


@triton.jit
def _log_normal(x, log_std, std, prior_mean, prior_log_std, MEAN_ONE: tl.constexpr):
    """The KL to the log-normal prior; its derivatives by x, log_std, prior_mean and prior_log_std."""
    mean = tl.load(prior_mean).to(x.dtype)
    log_width = tl.load(prior_log_std).to(tl.float64)
    inverse = exponential(-log_width).to(x.dtype)  # its square may over- or underflow where those below do not
    shifted = _shift(std, MEAN_ONE)
    ratio = std * inverse
    variance = ratio * ratio
    deviation = (logarithm(x) - 0.5 * shifted - mean) * inverse
    square = deviation * deviation
    by_mean = deviation * inverse  # infinite at x = 0
    by_log_std = variance - 1.0
    if MEAN_ONE:
        by_log_std = by_log_std - shifted * by_mean
    kl = 0.5 * (variance + square - 1.0) + log_width.to(x.dtype) - log_std
    return kl, by_mean / x, by_log_std, -by_mean, 1.0 - variance - square


@triton.jit
def _kl(
    x, log_std, std, prior_mean, prior_log_std, LOG_NORMAL: tl.constexpr, MASK: tl.constexpr, MEAN_ONE: tl.constexpr
):
    if LOG_NORMAL:
        kl, _, _, _, _ = _log_normal(x, log_std, std, prior_mean, prior_log_std, MEAN_ONE)
        return kl
    elif MASK:
        return tl.where(x > 0.0, -log_std, 0.0)
    else:
        return -log_std


@compiled_once
def forward(
    x, log_std, prior_mean, prior_log_std, noise, rng, z, kl, kl_sums, count, LOG_NORMAL: tl.constexpr,
    MASK: tl.constexpr, MEAN_ONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i, inside = block_of(count, BLOCK)
    f, a = load(x + i, inside), load(log_std + i, inside)
    std = exponential(a)
    eps = _noise(std, noise_of(noise, rng, i, inside, f.dtype, BLOCK), MEAN_ONE)
    store(z + i, _sample(f, eps), inside)
    if kl is not None:
        store(kl + i, _kl(f, a, std, prior_mean, prior_log_std, LOG_NORMAL, MASK, MEAN_ONE), inside)
    if kl_sums is not None:
        loss = _kl(f, a, std, prior_mean, prior_log_std, LOG_NORMAL, MASK, MEAN_ONE)
        tl.store(kl_sums + tl.program_id(0), tl.sum(tl.where(inside, loss, 0.0).to(tl.float64)))


@compiled_once
def kl_of_samples(
    x, log_std, prior_mean, prior_log_std, out, outputs, terms, output_stride, term_stride, steps, scale: tl.int64,
    LOG_NORMAL: tl.constexpr, MASK: tl.constexpr, MEAN_ONE: tl.constexpr, OUTPUTS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    begin, end = chunk_of(terms, steps, TERMS)
    total = tl.zeros([OUTPUTS, TERMS], tl.float64)
    while begin < end:
        i, inside = tile_of(begin, end, outputs, output_stride, term_stride, OUTPUTS, TERMS)
        f, a = load(x + i, inside), load(log_std + i, inside)
        kl = _kl(f, a, exponential(a), prior_mean, prior_log_std, LOG_NORMAL, MASK, MEAN_ONE)
        total += tl.where(inside, kl, 0.0).to(tl.float64)
        begin += TERMS
    store_sums(out, total, outputs, scale, OUTPUTS)


@compiled_once
def backward(
    grad_z, grad_kl, width, scale: tl.int64,
    x, log_std, prior_mean, prior_log_std, noise, rng, d_x, d_log_std, d_prior, count,
    REDUCTION: tl.constexpr, LOG_NORMAL: tl.constexpr, MASK: tl.constexpr, MEAN_ONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i, inside = block_of(count, BLOCK)
    f, a = load(x + i, inside), load(log_std + i, inside)
    std = exponential(a)
    by_x, by_log_std = tl.zeros_like(f), tl.zeros_like(f)
    if grad_kl is not None:  # where z alone is used, log x and its derivatives may be infinite
        g = gradient_of(grad_kl, i, inside, width, scale, REDUCTION)
        if LOG_NORMAL:
            _, of_x, of_log_std, of_mean, of_prior_log_std = _log_normal(f, a, std, prior_mean, prior_log_std, MEAN_ONE)
            by_x = g * of_x
            by_log_std = g * of_log_std
            sums = d_prior + 2 * tl.program_id(0).to(tl.int64)
            tl.store(sums, tl.sum(tl.where(inside, g * of_mean, 0.0).to(tl.float64)))
            tl.store(sums + 1, tl.sum(tl.where(inside, g * of_prior_log_std, 0.0).to(tl.float64)))
        elif MASK:
            by_log_std = tl.where(f > 0.0, -g, 0.0)
        else:
            by_log_std = tl.zeros_like(f) - g
    if grad_z is not None:  # where the KL alone is used, the noise may overflow
        normal = noise_of(noise, rng, i, inside, f.dtype, BLOCK)
        eps = _noise(std, normal, MEAN_ONE)
        g = load(grad_z + i, inside)
        by_x = g * eps + by_x
        of_exponent = g * _sample(f, eps)
        of_log_std = of_exponent * (std * normal - _shift(std, MEAN_ONE))
        by_log_std += tl.where(
            eps == 0.0, of_exponent, of_log_std
        )  # 0, where x is finite; the exponent may be infinite
    if d_x is not None:
        store(d_x + i, by_x, inside)
    if d_log_std is not None:
        store(d_log_std + i, by_log_std, inside)


def information_dropout(
    x: Tensor,
    log_std: Tensor,
    prior_mean: Tensor | None,
    prior_log_std: Tensor | None,
    noise: Tensor | None,
    rng: Tensor | None,
    log_normal: bool,
    mask_zero: bool,
    mean_one: bool,
    reduction: int,
    divisor: int,
) -> tuple[Tensor, Tensor]:
    no_sum_over_the_batch(reduction)
    z, kl = torch.empty_like(x), reduced_like(x, reduction)
    to, inputs = target(z), (dense(x), dense(log_std), prior_mean, prior_log_std)
    arguments = *inputs, dense(noise), rng, to
    options = {"LOG_NORMAL": log_normal, "MASK": mask_zero, "MEAN_ONE": mean_one}
    if reduction == Reduction.NONE:
        kl_to = target(kl)
        launch_elements(forward, x, *arguments, kl_to, None, **options)
        deliver(kl, kl_to)
    elif reduction == Reduction.SUM or x.dim() == 0:
        launch_with_sum(forward, x, kl, scale_of(divisor), *arguments, None, **options)
    else:  # blocks of noise are not blocks of samples
        launch_elements(forward, x, *arguments, None, None, **options)
        reduce(kl_of_samples, sums_of(x, reduction), kl, scale_of(divisor), *inputs, **options)
    return deliver(z, to), kl


def information_dropout_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    x: Tensor,
    log_std: Tensor,
    prior_mean: Tensor | None,
    prior_log_std: Tensor | None,
    noise: Tensor | None,
    rng: Tensor | None,
    log_normal: bool,
    mask_zero: bool,
    mean_one: bool,
    reduction: int,
    divisor: int,
    wanted: int,
) -> tuple[Tensor, ...]:
    d_x, d_log_std = wanted_like(x, wanted & 1), wanted_like(log_std, wanted & 2)
    targets = target(d_x), target(d_log_std)
    by_kl, width, kind = gradient_arguments(grad_kl, x, reduction)
    programs = triton.cdiv(x.numel(), block_size(x.numel()))
    partial = (
        torch.empty((programs, 2), dtype=torch.float64, device=x.device) if log_normal and by_kl is not None else None
    )
    inputs = dense(x), dense(log_std), prior_mean, prior_log_std, dense(noise), rng
    options = {"REDUCTION": kind, "LOG_NORMAL": log_normal, "MASK": mask_zero, "MEAN_ONE": mean_one}
    scale = bits(scale_of(divisor))
    launch_elements(backward, x, dense(grad_z), by_kl, width, scale, *inputs, *targets, partial, **options)
    gradients = tuple(
        x.new_empty(0) if d is None else deliver(d, to) for d, to in zip((d_x, d_log_std), targets, strict=True)
    )
    return *gradients, *_prior_gradients(partial, x)


def _prior_gradients(partial: Tensor | None, x: Tensor) -> list[Tensor]:
    """By prior_mean and prior_log_std: the sums of what the programs left of each."""
    dtype = accumulate_dtype(x.dtype)
    if partial is None:
        return [x.new_zeros((), dtype=dtype) for _ in range(2)]
    sums = Sums(1, partial.shape[0], 1, 2)
    return [reduce(sum_values, sums, x.new_empty((), dtype=dtype), 1.0, partial[:, k]) for k in range(2)]
