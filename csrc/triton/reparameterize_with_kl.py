"""reparameterize and the KL to N(0, 1) in one pass, and their gradients in another.

Both are made of e^(logvar / 2): see csrc/common/gaussian.h.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from fastib._arguments import Reduction
from fastib._formulas import scale_of

from ._elements import block_of, load, noise_of, store
from ._kl import kl_standard
from ._launch import bits, compiled_once, deliver, dense, launch_elements, target, wanted_like
from ._math import exponentials
from ._reduce import (
    chunk_of,
    gradient_arguments,
    gradient_of,
    launch_with_sum,
    no_sum_over_the_batch,
    reduce,
    reduced_like,
    store_sums,
    sums_of,
    tile_of,
)


@compiled_once
def forward(mu, logvar, noise, rng, z, kl, kl_sums, count, BLOCK: tl.constexpr):
    i, inside = block_of(count, BLOCK)
    m = load(mu + i, inside)
    std, minus_1, tail = exponentials(load(logvar + i, inside) * 0.5)
    store(z + i, std * noise_of(noise, rng, i, inside, m.dtype, BLOCK) + m, inside)
    # expm1(l) - l is a^2 + 2 (a - l / 2), with a = expm1(l / 2).
    loss = 0.5 * (m * m + (minus_1 * minus_1 + (tail + tail)))
    if kl is not None:
        store(kl + i, loss, inside)
    if kl_sums is not None:
        tl.store(kl_sums + tl.program_id(0), tl.sum(tl.where(inside, loss, 0.0).to(tl.float64)))


@compiled_once
def kl_of_samples(
    mu, logvar, out, outputs, terms, output_stride, term_stride, steps, scale: tl.int64, OUTPUTS: tl.constexpr,
    TERMS: tl.constexpr,
):  # fmt: skip
    begin, end = chunk_of(terms, steps, TERMS)
    total = tl.zeros([OUTPUTS, TERMS], tl.float64)
    while begin < end:
        i, inside = tile_of(begin, end, outputs, output_stride, term_stride, OUTPUTS, TERMS)
        kl = kl_standard(load(mu + i, inside), load(logvar + i, inside))
        total += tl.where(inside, kl, 0.0).to(tl.float64)
        begin += TERMS
    store_sums(out, total, outputs, scale, OUTPUTS)


@compiled_once
def backward(
    grad_z, grad_kl, width, scale: tl.int64, mu, logvar, noise, rng, d_mu, d_logvar, count, REDUCTION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i, inside = block_of(count, BLOCK)
    m = load(mu + i, inside)
    std, minus_1, _ = exponentials(load(logvar + i, inside) * 0.5)
    by_mu, by_logvar = tl.zeros_like(m), tl.zeros_like(m)
    if grad_z is not None:
        g = load(grad_z + i, inside)
        by_mu = g
        if d_logvar is not None:  # the gradient by mu has no noise
            by_logvar = g * (std * noise_of(noise, rng, i, inside, m.dtype, BLOCK))
    if grad_kl is not None:  # where z alone is used, mu may be infinite and e^logvar overflow
        g = gradient_of(grad_kl, i, inside, width, scale, REDUCTION)
        by_mu = g * m + by_mu
        by_logvar = g * (minus_1 * (minus_1 + 2.0)) + by_logvar
    if d_mu is not None:
        store(d_mu + i, by_mu, inside)
    if d_logvar is not None:
        store(d_logvar + i, 0.5 * by_logvar, inside)


def reparameterize_with_kl(
    mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None, reduction: int, divisor: int
) -> tuple[Tensor, Tensor]:
    no_sum_over_the_batch(reduction)
    z, kl = torch.empty_like(mu), reduced_like(mu, reduction)
    to, inputs = target(z), (dense(mu), dense(logvar))
    arguments = *inputs, dense(noise), rng, to
    if reduction == Reduction.NONE:
        kl_to = target(kl)
        launch_elements(forward, mu, *arguments, kl_to, None)
        deliver(kl, kl_to)
    elif reduction == Reduction.SUM or mu.dim() == 0:
        launch_with_sum(forward, mu, kl, scale_of(divisor), *arguments, None)
    else:  # blocks of noise are not blocks of samples
        launch_elements(forward, mu, *arguments, None, None)
        reduce(kl_of_samples, sums_of(mu, reduction), kl, scale_of(divisor), *inputs)
    return deliver(z, to), kl


def reparameterize_with_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    reduction: int,
    divisor: int,
    wanted: int,
) -> tuple[Tensor, Tensor]:
    d_mu, d_logvar = wanted_like(mu, wanted & 1), wanted_like(logvar, wanted & 2)
    targets = target(d_mu), target(d_logvar)
    by_kl, width, kind = gradient_arguments(grad_kl, mu, reduction)
    inputs = dense(grad_z), by_kl, width, bits(scale_of(divisor)), dense(mu), dense(logvar), dense(noise), rng
    launch_elements(backward, mu, *inputs, *targets, REDUCTION=kind)
    return tuple(
        mu.new_empty(0) if d is None else deliver(d, to) for d, to in zip((d_mu, d_logvar), targets, strict=True)
    )
