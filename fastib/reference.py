"""The public functions in plain PyTorch: same names, same arguments (but for `group`), same results, no kernel.

They are the oracle of the tests and the baseline of the benches (with `noise=torch.randn_like(mu)`). The formulas are
documented in `fastib.functional`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastib import _arguments, _formulas, _rng
from fastib._arguments import Reduction, accumulate_dtype
from fastib._results import ELBODecomposition

__all__ = [
    "aggregate_posterior",
    "aggregate_posterior_marginals",
    "elbo_decomposition",
    "gaussian_kl",
    "information_dropout",
    "log_variance_penalty",
    "reparameterize",
    "reparameterize_with_kl",
    "total_correlation",
]


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng: Tensor | None = None,
) -> Tensor:
    """See `fastib.reparameterize`."""
    mu, logvar, noise = _arguments.check_noisy("mu", mu, "logvar", logvar, noise)
    noise = _noise(mu, noise, generator, rng)
    m, lv, eps = _formulas.upcast(mu, logvar, noise)
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
    mu, logvar, prior_mu, prior_logvar = _arguments.check_distributions(mu, logvar, prior_mu, prior_logvar)
    kind, divisor = _arguments.reduction_of(reduction, mu.shape)
    _arguments.check_free_bits(free_bits, free_bits_per, reduction, mu.dtype)
    free_bits = float(free_bits)  # clamp takes no integer beyond 64 bits
    kl = _formulas.kl_elements(mu, logvar, prior_mu, prior_logvar)
    if free_bits == 0:
        return _formulas.reduce(kl, kind, divisor)
    if free_bits_per == "element":
        return _formulas.reduce(kl.clamp(min=free_bits), kind, divisor)
    batch = _arguments.batch_size(mu.shape)
    mean = _formulas.reduce(kl, Reduction.BATCH if free_bits_per == "dimension" else Reduction.SUM, max(batch, 1))
    return mean.clamp(min=free_bits).sum() / divisor * batch


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
    mu, logvar, noise = _arguments.check_noisy("mu", mu, "logvar", logvar, noise)
    kl = gaussian_kl(mu, logvar, reduction=reduction)
    return reparameterize(mu, logvar, noise=noise, generator=generator, rng=rng), kl


def log_variance_penalty(logvar: Tensor, *, reduction: str = "batchmean") -> Tensor:
    """See `fastib.log_variance_penalty`."""
    _arguments.check_floating("logvar", logvar)
    kind, divisor = _arguments.reduction_of(reduction, logvar.shape)
    return _formulas.reduce(-logvar.to(accumulate_dtype(logvar.dtype)) / 2, kind, divisor)


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
    x, log_std, noise = _arguments.check_noisy("x", x, "log_std", log_std, noise)
    _arguments.check_flag("mask_zero", mask_zero)
    _arguments.check_flag("mean_one", mean_one)
    prior_mean, prior_log_std = _arguments.dropout_prior(prior, prior_mean, prior_log_std, x)
    kind, divisor = _arguments.reduction_of(reduction, x.shape)
    noise = _noise(x, noise, generator, rng)
    f, a, eps = _formulas.upcast(x, log_std, noise)
    z, kl = _formulas.dropout(f, a, eps, prior_mean, prior_log_std, prior == "log_normal", mask_zero, mean_one)
    return z.to(x.dtype), _formulas.reduce(kl, kind, divisor)


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
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor]:
    """See `fastib.aggregate_posterior`, but for `algorithm`, which is checked and means nothing here."""
    z, mu, logvar = _arguments.check_posteriors(z, mu, logvar)
    weighting = _arguments.mixture_weights(estimator, dataset_size, weights, log_weights, z, mu)
    _arguments.check_row_offset(row_offset, weighting, z, mu)
    _arguments.algorithm_of(algorithm)
    z, mu, logvar = _formulas.upcast(z, mu, logvar)
    kind, size, *given = weighting
    w = _formulas.estimator_weights(kind, size, mu.shape[0], (given[0], given[1]))
    return _formulas.mixture(_formulas.pairs(z, mu, logvar), _formulas.log_weights(z, mu, log_weights, w, row_offset))


def aggregate_posterior_marginals(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    estimator: str = "mss",
    dataset_size: int | None = None,
    weights: tuple[float, float] | None = None,
    log_weights: Tensor | None = None,
    row_offset: int = 0,
    algorithm: str = "auto",
) -> Tensor:
    """See `fastib.aggregate_posterior_marginals`."""
    _, log_qz_marginals = aggregate_posterior(
        z,
        mu,
        logvar,
        estimator=estimator,
        dataset_size=dataset_size,
        weights=weights,
        log_weights=log_weights,
        row_offset=row_offset,
        algorithm=algorithm,
    )
    return log_qz_marginals


def elbo_decomposition(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None = None,
    *,
    estimator: str = "mss",
    row_offset: int | None = None,
    reduction: str = "mean",
    algorithm: str = "auto",
) -> ELBODecomposition:
    """See `fastib.elbo_decomposition`, but for `algorithm`, which is checked and means nothing here."""
    z, mu, logvar = _arguments.check_posteriors(z, mu, logvar)
    options = _arguments.decomposition(z, mu, logvar, dataset_size, estimator, row_offset, reduction)
    _arguments.algorithm_of(algorithm)
    code, size, offset, kind, divisor = options
    z, mu, logvar = _formulas.upcast(z, mu, logvar)
    weights = _formulas.estimator_weights(code, size, mu.shape[0])
    log_q, log_q_marginals = _formulas.mixture(
        _formulas.pairs(z, mu, logvar), _formulas.log_weights(z, mu, None, weights, offset)
    )
    terms = _formulas.decompose(z, mu, logvar, offset, log_q, log_q_marginals)
    return ELBODecomposition.of((_formulas.reduce(t, kind, divisor) for t in terms), code, size, mu.shape[0])


def total_correlation(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None = None,
    *,
    estimator: str = "mss",
    row_offset: int | None = None,
    reduction: str = "mean",
    algorithm: str = "auto",
) -> Tensor:
    """See `fastib.total_correlation`."""
    decomposition = elbo_decomposition(
        z,
        mu,
        logvar,
        dataset_size,
        estimator=estimator,
        row_offset=row_offset,
        reduction=reduction,
        algorithm=algorithm,
    )
    return decomposition.total_correlation


def _noise(x: Tensor, noise: Any, generator: Any, rng: Any) -> Tensor:
    """The noise given, or drawn."""
    rng = _rng.draw(x, noise, generator, rng)
    return noise if rng is None else _rng.normal(rng, x.shape, accumulate_dtype(x.dtype))
