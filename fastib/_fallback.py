"""The kernels of last resort, in plain PyTorch, for devices that have no compiled ones.

Backward kernels are the derivatives written out, since nothing records a graph inside an operator. Forward ones write
to nothing: they are also what derivatives and graphs of torch.compile are made of, where that has its limits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastib import _formulas, _rng
from fastib._arguments import Reduction, accumulate_dtype


def _noise_kernel(noise: Tensor | None, rng: Tensor | None, like: Tensor) -> Tensor:
    dtype = accumulate_dtype(like.dtype)
    if noise is not None:
        return noise.to(dtype)
    assert rng is not None
    return _rng.normal(rng, like.shape, dtype)


def _check_reduction_with_noise(reduction: int) -> None:
    if reduction == Reduction.BATCH:  # as the compiled kernels, whose noise comes in groups of elements
        raise RuntimeError("fastib: noise with a reduction over the first dimension")


def _wanted(wanted: int, *gradients: tuple[Tensor | None, Tensor]) -> tuple[Tensor, ...]:
    """Of pairs of values and what the gradient is like: the gradient, summed where that is broadcast, or nothing."""
    return tuple(
        values.sum_to_size(like.shape).to(like.dtype) if wanted >> i & 1 and values is not None else like.new_empty(0)
        for i, (values, like) in enumerate(gradients)
    )


def _reparameterize_kernel(mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None) -> Tensor:
    m, lv = _formulas.upcast(mu, logvar)
    return (m + torch.exp(lv / 2) * _noise_kernel(noise, rng, mu)).to(mu.dtype)


def _reparameterize_backward(grad_z: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None) -> Tensor:
    g, lv = _formulas.upcast(grad_z, logvar)
    return (g * torch.exp(lv / 2) * _noise_kernel(noise, rng, logvar) / 2).to(logvar.dtype)


def _gaussian_kl_kernel(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    divisor: int,
    floor: float,
) -> Tensor:
    kl = _formulas.kl_elements(mu, logvar, prior_mu, prior_logvar)
    if floor > 0:
        kl = kl.clamp(min=floor)
    return _formulas.reduce(kl, reduction, divisor)


def _gaussian_kl_backward(
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
    m, lv = _formulas.upcast(mu, logvar)
    g = _formulas.spread(grad / divisor, m.shape, reduction)
    if floor > 0:
        g = torch.where(_formulas.kl_elements(mu, logvar, prior_mu, prior_logvar) >= floor, g, 0.0)
    if prior_mu is None or prior_logvar is None:
        return _wanted(wanted, (g * m, mu), (g * (torch.expm1(lv) / 2), logvar), (None, mu), (None, mu))
    p, pl = _formulas.upcast(prior_mu, prior_logvar)
    ratio, by_mu = torch.expm1(lv - pl), (m - p) * torch.exp(-pl)
    by_prior_logvar = -(ratio / 2 + (m - p) / 2 * by_mu)
    return _wanted(
        wanted, (g * by_mu, mu), (g * (ratio / 2), logvar), (-g * by_mu, prior_mu), (g * by_prior_logvar, prior_logvar)
    )


_ONE_THREAD = 2**14  # elements that PyTorch sums on one thread, however many there are


def _floored_sum(values: Tensor, floor: float) -> Tensor:
    """The same bits for any number of threads."""
    total = values.clamp(min=floor).flatten()
    while total.numel() > _ONE_THREAD:
        total = torch.stack([piece.sum() for piece in total.split(_ONE_THREAD)])
    return total.sum()


def _reparameterize_with_kl_kernel(
    mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None, reduction: int, divisor: int
) -> tuple[Tensor, Tensor]:
    _check_reduction_with_noise(reduction)
    kl = _gaussian_kl_kernel(mu, logvar, None, None, reduction, divisor, 0.0)
    return _reparameterize_kernel(mu, logvar, noise, rng), kl


def _reparameterize_with_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    reduction: int,
    divisor: int,
    wanted: int,
) -> tuple[Tensor, ...]:
    m, lv = _formulas.upcast(mu, logvar)
    d_mu, d_logvar = torch.zeros_like(m), torch.zeros_like(lv)
    if grad_z is not None:
        gz = grad_z.to(m.dtype)
        d_mu = d_mu + gz
        d_logvar = d_logvar + gz * torch.exp(lv / 2) * _noise_kernel(noise, rng, mu) / 2
    if grad_kl is not None:
        gk = _formulas.spread(grad_kl / divisor, m.shape, reduction)
        d_mu = d_mu + gk * m
        d_logvar = d_logvar + gk * (torch.expm1(lv) / 2)
    return _wanted(wanted, (d_mu, mu), (d_logvar, logvar))


def _log_variance_penalty_kernel(logvar: Tensor, reduction: int, divisor: int) -> Tensor:
    penalty = -logvar.to(accumulate_dtype(logvar.dtype)) / 2
    return _formulas.reduce(penalty, reduction, divisor)


def log_variance_penalty_backward(grad: Tensor, logvar: Tensor, reduction: int, divisor: int) -> Tensor:
    grad = grad * (-0.5 * _formulas.scale_of(divisor))
    return _formulas.spread(grad.to(logvar.dtype), logvar.shape, reduction)


def _information_dropout_kernel(
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
    _check_reduction_with_noise(reduction)
    f, a = _formulas.upcast(x, log_std)
    eps = _noise_kernel(noise, rng, x)
    z, kl = _formulas.dropout(f, a, eps, prior_mean, prior_log_std, log_normal, mask_zero, mean_one)
    return z.to(x.dtype), _formulas.reduce(kl, reduction, divisor)


def _information_dropout_backward(
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
    f, a = _formulas.upcast(x, log_std)
    eps = _noise_kernel(noise, rng, x)
    std = torch.exp(a)
    variance = std**2 if mean_one else torch.zeros_like(std)
    d_x, d_log_std = torch.zeros_like(f), torch.zeros_like(a)
    d_mean, d_prior_log_std = f.new_zeros(()), f.new_zeros(())
    if grad_z is not None:
        factor = torch.exp(std * eps - variance / 2)
        by_x = grad_z.to(f.dtype) * factor
        d_x = d_x + by_x
        d_log_std = d_log_std + torch.where(factor == 0, by_x * f, by_x * f * (std * eps - variance))
    if grad_kl is not None:
        g = _formulas.spread(grad_kl / divisor, f.shape, reduction)
        if log_normal:
            assert prior_mean is not None and prior_log_std is not None
            m, inverse = prior_mean.to(f.dtype).reshape(()), torch.exp(-prior_log_std.to(f.dtype).reshape(()))
            deviation, ratio = (torch.log(f) - variance / 2 - m) * inverse, std * inverse
            by_mean = deviation * inverse
            d_x = d_x + g * by_mean / f
            d_log_std = d_log_std + g * (ratio**2 - 1 - (variance * by_mean if mean_one else 0.0))
            d_mean = -(g * by_mean).sum()
            d_prior_log_std = (g * (1 - ratio**2 - deviation**2)).sum()
        else:
            d_log_std = d_log_std - (torch.where(f > 0, g, 0.0) if mask_zero else g)
    return *_wanted(wanted, (d_x, x), (d_log_std, log_std)), d_mean, d_prior_log_std


# A mixture's algorithm means nothing here: plain PyTorch knows the direct one alone.

# Rows of the mixture that are in memory at once: at most so many numbers for their pairs.
_PAIRS_AT_ONCE = 2**24


def _row_chunks(z: Tensor, mu: Tensor) -> list[slice]:
    rows = max(1, _PAIRS_AT_ONCE // max(mu.numel(), 1))
    return [slice(begin, begin + rows) for begin in range(0, max(z.shape[0], 1), rows)]


def _all_log_weights(
    z: Tensor,
    mu: Tensor,
    given: Tensor | None,
    estimator: int,
    dataset_size: int,
    w_self: float,
    w_other: float,
    row_offset: int,
) -> Tensor:
    weights = _formulas.estimator_weights(estimator, dataset_size, mu.shape[0], (w_self, w_other))
    return _formulas.log_weights(z, mu, given, weights, row_offset)


def _aggregate_posterior(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    estimator: int,
    dataset_size: int,
    w_self: float,
    w_other: float,
    row_offset: int,
    algorithm: int,
    joint: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    z, mu, logvar = _formulas.upcast(z, mu, logvar)
    log_w = _all_log_weights(z, mu, log_weights, estimator, dataset_size, w_self, w_other, row_offset)
    log_q, log_q_marginals = _formulas.mixture(_formulas.pairs(z, mu, logvar), log_w)
    unused = torch.zeros_like(z)
    saved = torch.cat((log_q[:, None], torch.zeros_like(log_q)[:, None], log_q_marginals, unused), 1)
    return log_q if joint else log_q[:0], log_q_marginals, saved


def _aggregate_posterior_kernel(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    estimator: int,
    dataset_size: int,
    w_self: float,
    w_other: float,
    row_offset: int,
    algorithm: int,
    joint: bool,
) -> tuple[Tensor, ...]:
    weighting = estimator, dataset_size, w_self, w_other
    parts = [
        _aggregate_posterior(
            z[rows],
            mu,
            logvar,
            None if log_weights is None else log_weights[rows],
            *weighting,
            row_offset + rows.start,
            algorithm,
            joint,
        )
        for rows in _row_chunks(z, mu)
    ]
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _aggregate_posterior_backward(
    grad_log_q: Tensor | None,
    grad_log_q_marginals: Tensor | None,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    saved: Tensor,
    estimator: int,
    dataset_size: int,
    w_self: float,
    w_other: float,
    row_offset: int,
    algorithm: int,
    joint: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    x, m, lv = _formulas.upcast(z, mu, logvar)
    d_x, d_m, d_lv = torch.zeros_like(x), torch.zeros_like(m), torch.zeros_like(lv)
    saved = saved.clamp(min=torch.finfo(saved.dtype).min)  # a density of 0 has no gradient: exp(-inf - finite)
    log_q, log_q_marginals = saved[:, :1], saved[:, None, 2 : 2 + x.shape[1]]
    for rows in _row_chunks(x, m):
        given = None if log_weights is None else log_weights[rows]
        offset = row_offset + rows.start
        log_w = _all_log_weights(x[rows], m, given, estimator, dataset_size, w_self, w_other, offset)
        pairs = _formulas.pairs(x[rows], m, lv)
        c = torch.zeros_like(pairs)
        if joint and grad_log_q is not None:
            c += (grad_log_q[rows, None] * torch.exp(pairs.sum(-1) + log_w - log_q[rows]))[:, :, None]
        if grad_log_q_marginals is not None:
            c += grad_log_q_marginals[rows, None] * torch.exp(pairs + log_w[:, :, None] - log_q_marginals[rows])
        std = torch.exp(lv / 2)
        u = (x[rows, None] - m) / std
        d_x[rows] = -(c * u / std).sum(1)
        d_m += (c * u / std).sum(0)
        d_lv += (c * (u**2 - 1) / 2).sum(0)
    return d_x.to(z.dtype), d_m.to(mu.dtype), d_lv.to(logvar.dtype)


def _elbo_decomposition(*args: Any) -> tuple[Tensor, ...]:
    return _decomposition(_aggregate_posterior, *args)


def _elbo_decomposition_kernel(*args: Any) -> tuple[Tensor, ...]:
    return _decomposition(_aggregate_posterior_kernel, *args)


def _decomposition(
    mixture: Callable[..., tuple[Tensor, ...]],
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    estimator: int,
    dataset_size: int,
    row_offset: int,
    reduction: int,
    divisor: int,
    algorithm: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_q, log_q_marginals, saved = mixture(
        z, mu, logvar, None, estimator, dataset_size, 1.0, 1.0, row_offset, algorithm, True
    )
    z, mu, logvar = _formulas.upcast(z, mu, logvar)
    mi, tc, kl = (
        _formulas.reduce(t, reduction, divisor)
        for t in _formulas.decompose(z, mu, logvar, row_offset, log_q, log_q_marginals)
    )
    return mi, tc, kl, saved


def _elbo_decomposition_backward(
    grad_mi: Tensor | None,
    grad_tc: Tensor | None,
    grad_kl: Tensor | None,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    saved: Tensor,
    estimator: int,
    dataset_size: int,
    row_offset: int,
    reduction: int,
    divisor: int,
    algorithm: int,
) -> tuple[Tensor, Tensor, Tensor]:
    x, m, lv = _formulas.upcast(z, mu, logvar)
    sample = x.new_zeros(x.shape[:1])
    mi, tc, kl = (
        sample if grad is None else (grad / divisor).expand(sample.shape) for grad in (grad_mi, grad_tc, grad_kl)
    )
    d_x, d_m, d_lv = _aggregate_posterior_backward(
        tc - mi,
        (kl - tc)[:, None].expand(x.shape),
        x,
        m,
        lv,
        None,
        saved,
        estimator,
        dataset_size,
        1.0,
        1.0,
        row_offset,
        algorithm,
        True,
    )
    own = slice(row_offset, row_offset + x.shape[0])
    std = torch.exp(lv[own] / 2)
    u = (x - m[own]) / std
    by_x, mi = mi[:, None] * u / std, mi[:, None]
    d_m[own] += by_x
    d_lv[own] += mi * (u**2 - 1) / 2
    return (d_x - by_x + kl[:, None] * x).to(z.dtype), d_m.to(mu.dtype), d_lv.to(logvar.dtype)


# Noise that wants a gradient is rare, and not worth a compiled kernel.


def noise_grad(grad_z: Tensor, logvar: Tensor) -> Tensor:
    """The gradient by the noise of `reparameterize`: dz/dnoise is the standard deviation."""
    g, lv = _formulas.upcast(grad_z, logvar)
    return (g * torch.exp(lv / 2)).to(logvar.dtype)


def dropout_noise_grad(grad_z: Tensor, x: Tensor, log_std: Tensor, noise: Tensor, mean_one: bool) -> Tensor:
    """The gradient by the noise of `information_dropout`."""
    g, f, a, eps = _formulas.upcast(grad_z, x, log_std, noise)
    z, _ = _formulas.dropout(f, a, eps, None, None, False, False, mean_one)
    return (g * z * torch.exp(a)).to(noise.dtype)


# Operators that have no other kernel on any device. They say themselves how their results lie in memory.
EVERYWHERE: dict[str, Callable[..., Any]] = {
    "snapshot": torch.clone,
    "floored_sum": _floored_sum,
    "noise_grad": noise_grad,
    "dropout_noise_grad": dropout_noise_grad,
    "log_variance_penalty_backward": log_variance_penalty_backward,
}

KERNELS: dict[str, Callable[..., Any]] = {
    "philox_words": _rng.philox_words,
    "reparameterize": _reparameterize_kernel,
    "reparameterize_backward": _reparameterize_backward,
    "gaussian_kl": _gaussian_kl_kernel,
    "gaussian_kl_backward": _gaussian_kl_backward,
    "reparameterize_with_kl": _reparameterize_with_kl_kernel,
    "reparameterize_with_kl_backward": _reparameterize_with_kl_backward,
    "log_variance_penalty": _log_variance_penalty_kernel,
    "information_dropout": _information_dropout_kernel,
    "information_dropout_backward": _information_dropout_backward,
    "aggregate_posterior": _aggregate_posterior_kernel,
    "aggregate_posterior_backward": _aggregate_posterior_backward,
    "elbo_decomposition": _elbo_decomposition_kernel,
    "elbo_decomposition_backward": _elbo_decomposition_backward,
}

# What derivatives and graphs of torch.compile are made of: the kernels, but for those that go by chunks of rows. The
# chunks would save no memory there, and their number would be another for each batch.
FORMULAS: dict[str, Callable[..., Any]] = {
    **KERNELS,
    **EVERYWHERE,
    "aggregate_posterior": _aggregate_posterior,
    "elbo_decomposition": _elbo_decomposition,
}
