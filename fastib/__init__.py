"""fastib: the losses of the information bottleneck as compiled kernels for PyTorch."""

from fastib import losses, reference, schedules
from fastib._backends import backends
from fastib._results import ELBODecomposition
from fastib.functional import (
    aggregate_posterior,
    aggregate_posterior_marginals,
    elbo_decomposition,
    gaussian_kl,
    information_dropout,
    log_variance_penalty,
    reparameterize,
    reparameterize_with_kl,
    total_correlation,
)

__version__ = "0.1.0"

__all__ = [
    "ELBODecomposition",
    "aggregate_posterior",
    "aggregate_posterior_marginals",
    "backends",
    "elbo_decomposition",
    "gaussian_kl",
    "information_dropout",
    "log_variance_penalty",
    "losses",
    "reference",
    "reparameterize",
    "reparameterize_with_kl",
    "schedules",
    "total_correlation",
]
