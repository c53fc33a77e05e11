"""fastib: the losses of the information bottleneck as compiled kernels for PyTorch."""

from fastib import losses, reference, schedules
from fastib._backends import backends
from fastib.functional import (
    gaussian_kl,
    information_dropout,
    log_variance_penalty,
    reparameterize,
    reparameterize_with_kl,
)

__version__ = "0.1.0"

__all__ = [
    "backends",
    "gaussian_kl",
    "information_dropout",
    "log_variance_penalty",
    "losses",
    "reference",
    "reparameterize",
    "reparameterize_with_kl",
    "schedules",
]
