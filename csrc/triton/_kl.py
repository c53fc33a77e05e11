"""The Gaussian KL of an element, and its derivatives: see csrc/common/gaussian.h."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  # the interpreter asks each file for it

from ._math import exponential, exponentials


@triton.jit
def kl_standard(mu, logvar):
    """To N(0, 1): (mu^2 + expm1(logvar) - logvar) / 2."""
    _, _, tail = exponentials(logvar)
    return 0.5 * (mu * mu + tail)


@triton.jit
def kl_between(mu, logvar, prior_mu, prior_logvar):
    """The KL, and its derivatives by mu, logvar and prior_logvar; that by prior_mu is minus the first."""
    _, minus_1, tail = exponentials(logvar - prior_logvar)
    by_mu = (mu - prior_mu) * exponential(-prior_logvar)
    square = 0.5 * (mu - prior_mu) * by_mu  # halved first: the square itself may overflow where half of it does not
    by_logvar = 0.5 * minus_1
    return 0.5 * tail + square, by_mu, by_logvar, -(by_logvar + square)
