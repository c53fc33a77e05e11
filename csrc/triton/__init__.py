"""The Triton kernels, imported as fastib._triton: one file per operator, with its forward and backward kernels.

They serve a GPU where fastib._C_cuda does not, and the CPU under TRITON_INTERPRET=1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .aggregate_posterior import aggregate_posterior, aggregate_posterior_backward
from .elbo_decomposition import elbo_decomposition, elbo_decomposition_backward
from .gaussian_kl import gaussian_kl, gaussian_kl_backward
from .information_dropout import information_dropout, information_dropout_backward
from .log_variance_penalty import log_variance_penalty
from .philox_words import philox_words
from .reparameterize import reparameterize, reparameterize_backward
from .reparameterize_with_kl import reparameterize_with_kl, reparameterize_with_kl_backward

KERNELS: dict[str, Callable[..., Any]] = {
    kernel.__name__: kernel
    for kernel in (
        philox_words,
        reparameterize,
        reparameterize_backward,
        gaussian_kl,
        gaussian_kl_backward,
        reparameterize_with_kl,
        reparameterize_with_kl_backward,
        log_variance_penalty,
        information_dropout,
        information_dropout_backward,
        aggregate_posterior,
        aggregate_posterior_backward,
        elbo_decomposition,
        elbo_decomposition_backward,
    )
}
