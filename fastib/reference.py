"""The public functions in plain PyTorch: same names, same arguments, same results, no kernel.

They are the oracle of the tests, the baseline of the benches (with `noise=torch.randn_like(mu)`), and, at the end of
this file, the kernels of last resort, for devices that have no compiled ones. The formulas are documented in
`fastib.functional`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastib import _arguments, _rng
from fastib._arguments import Reduction, accumulate_dtype


class _Terms(NamedTuple):
    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor


class ELBODecomposition(_Terms):
    """What `fastib.elbo_decomposition` returns: three terms, and beside the first its ceiling."""

    mutual_information_ceiling: float
    """-ln w_self, which no sample's mutual information exceeds, however much more the code may tell."""

    @classmethod
    def of(cls, terms: Iterable[Tensor], w_self: float) -> ELBODecomposition:
        decomposition = cls(*terms)
        decomposition.mutual_information_ceiling = -math.log(w_self) if w_self > 0 else math.inf
        return decomposition


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng: Tensor | None = None,
) -> Tensor:
    """See `fastib.reparameterize`."""
    _arguments.check_noisy("mu", mu, "logvar", logvar, noise)
    noise = _noise(mu, noise, generator, rng)
    m, lv, eps = _accumulate(mu, logvar, noise)
    return (m + torch.exp(lv / 2) * eps).to(mu.dtype)


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    reduction: str = "batchmean",
    free_bits: float = 0.0,
    free_bits_per: str = "dimension",
) -> Tensor:
    """See `fastib.gaussian_kl`."""
    _arguments.check_floating("mu", mu)
    _arguments.check_like("logvar", logvar, "mu", mu)
    for name, prior in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
        if prior is not None:
            _arguments.check_broadcast(name, prior, "mu", mu)
    kind, scale = _arguments.reduction_of(reduction, mu.shape)
    _arguments.check_free_bits(free_bits, free_bits_per, reduction)
    kl = _kl_elements(mu, logvar, prior_mu, prior_logvar)
    if free_bits == 0:
        return _reduce(kl, kind, scale)
    if free_bits_per == "element":
        return _reduce(kl.clamp(min=free_bits), kind, scale)
    batch = _arguments.batch_size(mu.shape)
    mean = _reduce(kl, Reduction.BATCH if free_bits_per == "dimension" else Reduction.SUM, 1 / max(batch, 1))
    return mean.clamp(min=free_bits).sum() * (scale * batch)


def reparameterize_with_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    reduction: str = "batchmean",
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `fastib.reparameterize_with_kl`."""
    kl = gaussian_kl(mu, logvar, reduction=reduction)
    return reparameterize(mu, logvar, noise=noise, generator=generator, rng=rng), kl


def log_variance_penalty(logvar: Tensor, *, reduction: str = "batchmean") -> Tensor:
    """See `fastib.log_variance_penalty`."""
    _arguments.check_floating("logvar", logvar)
    kind, scale = _arguments.reduction_of(reduction, logvar.shape)
    return _reduce(-logvar.to(accumulate_dtype(logvar.dtype)) / 2, kind, scale)


def information_dropout(
    x: Tensor,
    log_std: Tensor,
    *,
    prior: str = "log_uniform",
    prior_mean: Tensor | float | None = None,
    prior_log_std: Tensor | float | None = None,
    mask_zero: bool = True,
    mean_one: bool = False,
    reduction: str = "batchmean",
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `fastib.information_dropout`."""
    _arguments.check_noisy("x", x, "log_std", log_std, noise)
    _arguments.check_flag("mask_zero", mask_zero)
    _arguments.check_flag("mean_one", mean_one)
    prior_mean, prior_log_std = _arguments.dropout_prior(prior, prior_mean, prior_log_std, x)
    kind, scale = _arguments.reduction_of(reduction, x.shape)
    noise = _noise(x, noise, generator, rng)
    f, a, eps = _accumulate(x, log_std, noise)
    z, kl = _dropout(f, a, eps, prior_mean, prior_log_std, prior == "log_normal", mask_zero, mean_one)
    return z.to(x.dtype), _reduce(kl, kind, scale)


def aggregate_posterior(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    estimator: str = "mss",
    dataset_size: int | None = None,
    weights: tuple[float, float] | None = None,
    log_weights: Tensor | None = None,
    row_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """See `fastib.aggregate_posterior`."""
    _arguments.check_posteriors(z, mu, logvar)
    w = _arguments.mixture_weights(estimator, dataset_size, weights, log_weights, z, mu)
    _arguments.check_row_offset(row_offset, w, z, mu)
    z, mu, logvar = _accumulate(z, mu, logvar)
    return _mixture(_pairs(z, mu, logvar), _log_weights(z, mu, log_weights, *w, row_offset))


def elbo_decomposition(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None = None,
    *,
    estimator: str = "mss",
    reduction: str = "mean",
) -> ELBODecomposition:
    """See `fastib.elbo_decomposition`."""
    w_self, w_other, kind, scale = _arguments.decomposition(z, mu, logvar, dataset_size, estimator, reduction)
    z, mu, logvar = _accumulate(z, mu, logvar)
    log_q, log_q_marginals = _mixture(_pairs(z, mu, logvar), _log_weights(z, mu, None, w_self, w_other, 0))
    terms = (_reduce(t, kind, scale) for t in _decompose(z, mu, logvar, log_q, log_q_marginals))
    return ELBODecomposition.of(terms, w_self)


def total_correlation(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None = None,
    *,
    estimator: str = "mss",
    reduction: str = "mean",
) -> Tensor:
    """See `fastib.total_correlation`."""
    decomposition = elbo_decomposition(z, mu, logvar, dataset_size, estimator=estimator, reduction=reduction)
    return decomposition.total_correlation


def _noise(x: Tensor, noise: Any, generator: Any, rng: Any) -> Tensor:
    """The noise given, or drawn."""
    rng = _rng.draw(x, noise, generator, rng)
    return noise if rng is None else _rng.normal(rng, x.shape, accumulate_dtype(x.dtype))


def _accumulate(*tensors: Tensor) -> list[Tensor]:
    return [t.to(accumulate_dtype(t.dtype)) for t in tensors]


def _reduce(values: Tensor, kind: int, scale: float) -> Tensor:
    if kind == Reduction.NONE:
        return values
    if kind == Reduction.SUM or values.dim() == 0:
        return values.sum() * scale
    return values.sum(0 if kind == Reduction.BATCH else -1) * scale


def spread(grad: Tensor, shape: torch.Size, kind: int) -> Tensor:
    """The gradient of `_reduce`, but for the scale, as a view."""
    if kind == Reduction.SAMPLE and shape:
        grad = grad.unsqueeze(-1)
    return grad.expand(shape)


def _kl_elements(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None) -> Tensor:
    m, lv = _accumulate(mu, logvar)
    if prior_mu is not None:
        m = m - prior_mu.to(m.dtype)
    if prior_logvar is None:
        return (m**2 + torch.expm1(lv) - lv) / 2
    d = lv - prior_logvar.to(lv.dtype)
    return (torch.expm1(d) - d + m**2 * torch.exp(-prior_logvar.to(lv.dtype))) / 2


def _dropout(
    x: Tensor,
    log_std: Tensor,
    noise: Tensor,
    prior_mean: Tensor | None,
    prior_log_std: Tensor | None,
    log_normal: bool,
    mask_zero: bool,
    mean_one: bool,
) -> tuple[Tensor, Tensor]:
    std = torch.exp(log_std)
    shift = std**2 / 2 if mean_one else torch.zeros_like(std)
    z = x * torch.exp(std * noise - shift)
    if not log_normal:
        return z, torch.where(x > 0, -log_std, 0.0) if mask_zero else -log_std
    assert prior_mean is not None and prior_log_std is not None
    m, s = prior_mean.to(x.dtype).reshape(()), prior_log_std.to(x.dtype).reshape(())
    kl = ((std / torch.exp(s)) ** 2 + ((torch.log(x) - shift - m) / torch.exp(s)) ** 2 - 1) / 2 + s - log_std
    return z, kl


_LOG_2PI = math.log(2 * math.pi)


def _log_normal(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    u = (z - mu) * torch.exp(-logvar / 2)
    return -(u**2 + logvar + _LOG_2PI) / 2


def _pairs(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """log N(z_id; mu_jd, exp(logvar_jd)), [S, N', D]."""
    return _log_normal(z[:, None], mu, logvar)


def _log_weights(
    z: Tensor, mu: Tensor, log_weights: Tensor | None, w_self: float, w_other: float, row_offset: int
) -> Tensor:
    """The logarithms of the weights, [S, N']."""
    if log_weights is not None:
        return log_weights.to(z.dtype)
    own = torch.arange(z.shape[0], device=z.device)[:, None] + row_offset
    is_own = own == torch.arange(mu.shape[0], device=z.device)
    return torch.log(torch.where(is_own, z.new_tensor(w_self), z.new_tensor(w_other)))


def _mixture(pairs: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.logsumexp(pairs.sum(-1) + log_weights, 1),
        torch.logsumexp(pairs + log_weights[:, :, None], 1),
    )


def _decompose(
    z: Tensor, mu: Tensor, logvar: Tensor, log_q: Tensor, log_q_marginals: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mutual information, total correlation and dimension-wise KL of each sample."""
    marginals = log_q_marginals.sum(-1)
    log_q_given_x = _log_normal(z, mu, logvar).sum(-1)
    log_p = -(z**2 + _LOG_2PI).sum(-1) / 2
    return log_q_given_x - log_q, log_q - marginals, marginals - log_p


# The kernels of last resort. Forward kernels repeat the expressions above on arguments that are already checked;
# backward kernels are the derivatives written out, since nothing records a graph inside an operator.


def _noise_kernel(noise: Tensor | None, rng: Tensor | None, like: Tensor) -> Tensor:
    dtype = accumulate_dtype(like.dtype)
    if noise is not None:
        return noise.to(dtype)
    assert rng is not None
    return _rng.normal(rng, like.shape, dtype)


def _check_reduction_with_noise(reduction: int) -> None:
    if reduction == Reduction.BATCH:  # as the compiled kernels, whose noise comes in groups of elements
        raise RuntimeError("fastib: noise with a reduction over the first dimension")


def _dense(values: Tensor, like: Tensor) -> Tensor:
    """`values` with the dtype and strides that the kernel's output has."""
    return torch.empty_like(like).copy_(values)


def _wanted(wanted: int, *gradients: tuple[Tensor | None, Tensor]) -> tuple[Tensor, ...]:
    """Of pairs of values and what the gradient is like: the gradient, summed where that is broadcast, or nothing."""
    return tuple(
        _dense(values.sum_to_size(like.shape), like) if wanted >> i & 1 and values is not None else like.new_empty(0)
        for i, (values, like) in enumerate(gradients)
    )


def _reparameterize_kernel(mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None) -> Tensor:
    m, lv = _accumulate(mu, logvar)
    return _dense(m + torch.exp(lv / 2) * _noise_kernel(noise, rng, mu), mu)


def _reparameterize_backward(grad_z: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None) -> Tensor:
    g, lv = _accumulate(grad_z, logvar)
    return _dense(g * torch.exp(lv / 2) * _noise_kernel(noise, rng, logvar) / 2, logvar)


def _gaussian_kl_kernel(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    scale: float,
    floor: float,
) -> Tensor:
    kl = _kl_elements(mu, logvar, prior_mu, prior_logvar)
    if floor > 0:
        kl = kl.clamp(min=floor)
    return (
        _dense(kl, torch.empty_like(mu, dtype=kl.dtype))
        if reduction == Reduction.NONE
        else _reduce(kl, reduction, scale)
    )


def _gaussian_kl_backward(
    grad: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    scale: float,
    floor: float,
    wanted: int,
) -> tuple[Tensor, ...]:
    m, lv = _accumulate(mu, logvar)
    g = spread(grad * scale, m.shape, reduction)
    if floor > 0:
        g = torch.where(_kl_elements(mu, logvar, prior_mu, prior_logvar) >= floor, g, 0.0)
    if prior_mu is None or prior_logvar is None:
        return _wanted(wanted, (g * m, mu), (g * (torch.expm1(lv) / 2), logvar), (None, mu), (None, mu))
    p, pl = _accumulate(prior_mu, prior_logvar)
    ratio, by_mu = torch.expm1(lv - pl), (m - p) * torch.exp(-pl)
    by_prior_logvar = -(ratio + (m - p) * by_mu) / 2
    return _wanted(
        wanted, (g * by_mu, mu), (g * (ratio / 2), logvar), (-g * by_mu, prior_mu), (g * by_prior_logvar, prior_logvar)
    )


def _reparameterize_with_kl_kernel(
    mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None, reduction: int, scale: float
) -> tuple[Tensor, Tensor]:
    _check_reduction_with_noise(reduction)
    kl = _gaussian_kl_kernel(mu, logvar, None, None, reduction, scale, 0.0)
    return _reparameterize_kernel(mu, logvar, noise, rng), kl


def _reparameterize_with_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    reduction: int,
    scale: float,
    wanted: int,
) -> tuple[Tensor, ...]:
    m, lv = _accumulate(mu, logvar)
    d_mu, d_logvar = torch.zeros_like(m), torch.zeros_like(lv)
    if grad_z is not None:
        gz = grad_z.to(m.dtype)
        d_mu = d_mu + gz
        d_logvar = d_logvar + gz * torch.exp(lv / 2) * _noise_kernel(noise, rng, mu) / 2
    if grad_kl is not None:
        gk = spread(grad_kl * scale, m.shape, reduction)
        d_mu = d_mu + gk * m
        d_logvar = d_logvar + gk * (torch.expm1(lv) / 2)
    return _wanted(wanted, (d_mu, mu), (d_logvar, logvar))


def _log_variance_penalty_kernel(logvar: Tensor, reduction: int, scale: float) -> Tensor:
    penalty = -logvar.to(accumulate_dtype(logvar.dtype)) / 2
    if reduction == Reduction.NONE:
        return _dense(penalty, torch.empty_like(logvar, dtype=penalty.dtype))
    return _reduce(penalty, reduction, scale)


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
    scale: float,
) -> tuple[Tensor, Tensor]:
    _check_reduction_with_noise(reduction)
    f, a = _accumulate(x, log_std)
    eps = _noise_kernel(noise, rng, x)
    z, kl = _dropout(f, a, eps, prior_mean, prior_log_std, log_normal, mask_zero, mean_one)
    if reduction == Reduction.NONE:
        return _dense(z, x), _dense(kl, torch.empty_like(x, dtype=kl.dtype))
    return _dense(z, x), _reduce(kl, reduction, scale)


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
    scale: float,
    wanted: int,
) -> tuple[Tensor, ...]:
    f, a = _accumulate(x, log_std)
    eps = _noise_kernel(noise, rng, x)
    std = torch.exp(a)
    variance = std**2 if mean_one else torch.zeros_like(std)
    d_x, d_log_std = torch.zeros_like(f), torch.zeros_like(a)
    d_mean, d_prior_log_std = f.new_zeros(()), f.new_zeros(())
    if grad_z is not None:
        by_x = grad_z.to(f.dtype) * torch.exp(std * eps - variance / 2)
        d_x = d_x + by_x
        d_log_std = d_log_std + by_x * f * (std * eps - variance)
    if grad_kl is not None:
        g = spread(grad_kl * scale, f.shape, reduction)
        if log_normal:
            assert prior_mean is not None and prior_log_std is not None
            m, inverse = prior_mean.to(f.dtype).reshape(()), torch.exp(-prior_log_std.to(f.dtype).reshape(()))
            deviation, ratio = (torch.log(f) - variance / 2 - m) * inverse, std * inverse
            by_mean = deviation * inverse
            d_x = d_x + g * by_mean / f
            d_log_std = d_log_std + g * (ratio**2 - 1 - variance * by_mean)
            d_mean = -(g * by_mean).sum()
            d_prior_log_std = (g * (1 - ratio**2 - deviation**2)).sum()
        else:
            d_log_std = d_log_std - (torch.where(f > 0, g, 0.0) if mask_zero else g)
    return *_wanted(wanted, (d_x, x), (d_log_std, log_std)), d_mean, d_prior_log_std


# Rows of the mixture that are in memory at once: at most so many numbers for their pairs.
_PAIRS_AT_ONCE = 2**24


def _row_chunks(z: Tensor, mu: Tensor) -> list[slice]:
    rows = max(1, _PAIRS_AT_ONCE // max(mu.numel(), 1))
    return [slice(begin, begin + rows) for begin in range(0, z.shape[0], rows)]


def _chunk_log_weights(rows: slice, z: Tensor, mu: Tensor, given: Tensor | None, *weights: Any) -> Tensor:
    w_self, w_other, row_offset = weights
    return _log_weights(z[rows], mu, given if given is None else given[rows], w_self, w_other, row_offset + rows.start)


def _aggregate_posterior_kernel(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    w_self: float,
    w_other: float,
    row_offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    z, mu, logvar = _accumulate(z, mu, logvar)
    saved = z.new_zeros((z.shape[0], z.shape[1] + 2))
    log_q, log_q_marginals = z.new_empty(z.shape[:1]), z.new_empty(z.shape)
    for rows in _row_chunks(z, mu):
        log_w = _chunk_log_weights(rows, z, mu, log_weights, w_self, w_other, row_offset)
        log_q[rows], log_q_marginals[rows] = _mixture(_pairs(z[rows], mu, logvar), log_w)
    saved[:, 0], saved[:, 2:] = log_q, log_q_marginals
    return log_q, log_q_marginals, saved


def _aggregate_posterior_backward(
    grad_log_q: Tensor | None,
    grad_log_q_marginals: Tensor | None,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    saved: Tensor,
    w_self: float,
    w_other: float,
    row_offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    x, m, lv = _accumulate(z, mu, logvar)
    d_x, d_m, d_lv = torch.zeros_like(x), torch.zeros_like(m), torch.zeros_like(lv)
    saved = saved.clamp(min=torch.finfo(saved.dtype).min)  # a density of 0 has no gradient: exp(-inf - finite)
    for rows in _row_chunks(x, m):
        log_w = _chunk_log_weights(rows, x, m, log_weights, w_self, w_other, row_offset)
        pairs = _pairs(x[rows], m, lv)
        c = torch.zeros_like(pairs)
        if grad_log_q is not None:
            c += (grad_log_q[rows, None] * torch.exp(pairs.sum(-1) + log_w - saved[rows, :1]))[:, :, None]
        if grad_log_q_marginals is not None:
            c += grad_log_q_marginals[rows, None] * torch.exp(pairs + log_w[:, :, None] - saved[rows, None, 2:])
        std = torch.exp(lv / 2)
        u = (x[rows, None] - m) / std
        d_x[rows] = -(c * u / std).sum(1)
        d_m += (c * u / std).sum(0)
        d_lv += (c * (u**2 - 1) / 2).sum(0)
    return _dense(d_x, z), _dense(d_m, mu), _dense(d_lv, logvar)


def _elbo_decomposition_kernel(
    z: Tensor, mu: Tensor, logvar: Tensor, w_self: float, w_other: float, reduction: int, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_q, log_q_marginals, saved = _aggregate_posterior_kernel(z, mu, logvar, None, w_self, w_other, 0)
    z, mu, logvar = _accumulate(z, mu, logvar)
    mi, tc, kl = (_reduce(t, reduction, scale) for t in _decompose(z, mu, logvar, log_q, log_q_marginals))
    return mi, tc, kl, saved


def _elbo_decomposition_backward(
    grad_mi: Tensor | None,
    grad_tc: Tensor | None,
    grad_kl: Tensor | None,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    saved: Tensor,
    w_self: float,
    w_other: float,
    reduction: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    x, m, lv = _accumulate(z, mu, logvar)
    sample = x.new_zeros(x.shape[:1])
    mi, tc, kl = (
        sample if grad is None else (grad * scale).expand(sample.shape) for grad in (grad_mi, grad_tc, grad_kl)
    )
    d_x, d_m, d_lv = _aggregate_posterior_backward(
        tc - mi, (kl - tc)[:, None].expand(x.shape), x, m, lv, None, saved, w_self, w_other, 0
    )
    std = torch.exp(lv / 2)
    u = (x - m) / std
    by_x, mi = mi[:, None] * u / std, mi[:, None]
    return (
        _dense(d_x - by_x + kl[:, None] * x, z),
        _dense(d_m + by_x, mu),
        _dense(d_lv + mi * (u**2 - 1) / 2, logvar),
    )


# Noise that wants a gradient is rare, and not worth a compiled kernel.


def noise_grad(grad_z: Tensor, logvar: Tensor) -> Tensor:
    """The gradient by the noise of `reparameterize`: dz/dnoise is the standard deviation."""
    g, lv = _accumulate(grad_z, logvar)
    return (g * torch.exp(lv / 2)).to(logvar.dtype)


def dropout_noise_grad(grad_z: Tensor, x: Tensor, log_std: Tensor, noise: Tensor, mean_one: bool) -> Tensor:
    """The gradient by the noise of `information_dropout`."""
    g, f, a, eps = _accumulate(grad_z, x, log_std, noise)
    z, _ = _dropout(f, a, eps, None, None, False, False, mean_one)
    return (g * z * torch.exp(a)).to(noise.dtype)


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
