"""Every public function and loss as a function of mu and logvar [B, D], for what must hold of all of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import fastib
from fastib.losses import AnnealedVAELoss, BetaTCVAELoss, BetaVAELoss

N = 1000  # of the data set
RNG = torch.tensor([3, 4])

Outputs = tuple[Tensor, ...]


def tensors(out: object) -> Outputs:
    """Of a result: what is a tensor with a gradient, or would be if the inputs had one."""
    return (out,) if isinstance(out, Tensor) else tuple(t for t in out if isinstance(t, Tensor))  # type: ignore[attr-defined]


def _of_prior(mu: Tensor, logvar: Tensor) -> Tensor:
    return fastib.gaussian_kl(mu, logvar, logvar[0], mu[:, :1])


def _log_normal_dropout(mu: Tensor, logvar: Tensor, **noise: Tensor) -> Outputs:
    prior = {"prior_mean": mu.mean(), "prior_log_std": 0.1}
    return fastib.information_dropout(
        mu.exp(), logvar, prior="log_normal", mean_one=True, reduction="mean", **prior, **noise
    )  # type: ignore[arg-type]


def _dropout(mu: Tensor, logvar: Tensor, **noise: Tensor) -> Outputs:
    return fastib.information_dropout(mu.abs(), logvar, **noise)  # type: ignore[arg-type]


# Of tensors [B, D] and the noise, which is drawn where it isn't given.
STOCHASTIC: dict[str, Callable[..., object]] = {
    "reparameterize": fastib.reparameterize,
    "reparameterize_with_kl": fastib.reparameterize_with_kl,
    "information_dropout": _dropout,
    "information_dropout_log_normal": _log_normal_dropout,
}

DETERMINISTIC: dict[str, Callable[[Tensor, Tensor], object]] = {
    "gaussian_kl": fastib.gaussian_kl,
    "gaussian_kl_none": partial(fastib.gaussian_kl, reduction="none"),
    "gaussian_kl_sample": partial(fastib.gaussian_kl, reduction="sample"),
    "gaussian_kl_mean": partial(fastib.gaussian_kl, reduction="mean"),
    "gaussian_kl_prior": _of_prior,
    "free_bits": partial(fastib.gaussian_kl, free_bits=0.5),
    "free_bits_total": partial(fastib.gaussian_kl, free_bits=0.5, free_bits_per="total", reduction="mean"),
    "log_variance_penalty": lambda mu, logvar: fastib.log_variance_penalty(mu * logvar),
    "log_variance_penalty_sample": lambda mu, logvar: fastib.log_variance_penalty(mu * logvar, reduction="sample"),
    "aggregate_posterior": lambda mu, logvar: fastib.aggregate_posterior(mu + logvar, mu, logvar, dataset_size=N),
    "aggregate_posterior_weights": lambda mu, logvar: fastib.aggregate_posterior(mu, mu, logvar, weights=(0.1, 0.2)),
    "aggregate_posterior_marginals": lambda mu, logvar: fastib.aggregate_posterior_marginals(
        mu + logvar, mu, logvar, dataset_size=N
    ),
    "elbo_decomposition": lambda mu, logvar: fastib.elbo_decomposition(mu + logvar, mu, logvar, N),
    "elbo_decomposition_mws": lambda mu, logvar: fastib.elbo_decomposition(mu, mu, logvar, N, estimator="mws"),
    "elbo_decomposition_in_batch": lambda mu, logvar: fastib.elbo_decomposition(
        mu + logvar, mu, logvar, estimator="in_batch", reduction="none"
    ),
    "total_correlation": lambda mu, logvar: fastib.total_correlation(
        mu + logvar, mu, logvar, estimator="leave_one_out"
    ),
}

_TC_LOSS = BetaTCVAELoss(dataset_size=N, likelihood="gaussian")
_MWS_LOSS = BetaTCVAELoss(dataset_size=N, estimator="mws")
_ANNEALED = AnnealedVAELoss(10.0, 5.0, 100)
_PER_SAMPLE = AnnealedVAELoss(10.0, 5.0, 100, per="sample")
LOSSES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "BetaVAELoss": lambda mu, logvar: BetaVAELoss(4.0)(mu, mu.sigmoid(), mu, logvar),
    "BetaVAELoss_free_bits": lambda mu, logvar: BetaVAELoss(free_bits=0.1)(mu, mu.sigmoid(), mu, logvar),
    "AnnealedVAELoss": lambda mu, logvar: _ANNEALED(mu, mu.sigmoid(), mu, logvar),
    "AnnealedVAELoss_per_sample": lambda mu, logvar: _PER_SAMPLE(mu, mu.sigmoid(), mu, logvar),
    "BetaTCVAELoss": lambda mu, logvar: _TC_LOSS(mu, mu.sigmoid(), mu + logvar, mu, logvar),
    "BetaTCVAELoss_mws": lambda mu, logvar: _MWS_LOSS(mu, mu.sigmoid(), mu + logvar, mu, logvar),
}


def _with_noise(name: str, mu: Tensor, logvar: Tensor) -> object:
    return STOCHASTIC[name](mu, logvar, rng=RNG)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], object]] = {
    **{name: partial(_with_noise, name) for name in STOCHASTIC},
    **DETERMINISTIC,
}
EVERYTHING = FUNCTIONS | LOSSES

# What is another's operator with another reduction, prior, estimator or option: for thorough runs.
_LIKE_ANOTHER = {"information_dropout_log_normal", "gaussian_kl_none", "gaussian_kl_sample", "gaussian_kl_mean"}
_LIKE_ANOTHER |= {"gaussian_kl_prior", "free_bits", "log_variance_penalty_sample", "aggregate_posterior_weights"}
_LIKE_ANOTHER |= {"elbo_decomposition_mws", "elbo_decomposition_in_batch", "total_correlation"}
_LIKE_ANOTHER |= {"BetaVAELoss_free_bits", "AnnealedVAELoss", "AnnealedVAELoss_per_sample", "BetaTCVAELoss_mws"}
assert EVERYTHING.keys() >= _LIKE_ANOTHER
EACH = [pytest.param(name, marks=pytest.mark.thorough if name in _LIKE_ANOTHER else []) for name in EVERYTHING]
