"""Posteriors of ten kinds, from collapsed to adversarial, on which large batches are measured and tested."""

from __future__ import annotations

import math

import torch
from torch import Tensor

REGIMES = (
    "collapsed",
    "informative",
    "informative_tiny",
    "wide",
    "vwide",
    "bimodal",
    "mixture",
    "adversarial",
    "advtiny",
    "tail",
)


def _parameters(regime: str, size: int, dims: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    def normal() -> Tensor:
        return torch.randn(size, dims, generator=generator, dtype=torch.float64)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(size, dims, generator=generator, dtype=torch.float64)

    narrow = math.log(1e-4), math.log(1e-2), math.log(0.02), math.log(0.1)
    if regime in ("collapsed", "tail"):
        return normal() / 20, normal() / 20
    if regime == "informative_tiny":
        return 3 * normal(), 2 * narrow[2] + normal() / 10
    if regime == "wide":
        return normal(), uniform(-10, 1)
    if regime == "vwide":
        return normal(), uniform(-12, 2)
    if regime == "bimodal":
        return uniform(-1, 1).sign(), 2 * narrow[1] + normal() / 100
    if regime == "advtiny":
        mu, logvar = normal(), 2 * narrow[0] + normal() / 10
        mu[0], logvar[-1] = 1e4, 2 * math.log(30)
        return mu, logvar
    mu, logvar = normal(), normal() / 2 - 4
    if regime == "adversarial":
        mu[0], mu[-1] = 1e4, 37
        logvar[0], logvar[-1] = 2 * narrow[0], 2 * math.log(30)
    elif regime == "mixture":  # every third dimension is informative
        collapsed = torch.arange(dims) % 3 != 0
        mu[:, collapsed] /= 20
        logvar[:, collapsed] = (logvar[:, collapsed] + 4) / 10
    elif regime.startswith("k"):  # so many are, the others are collapsed
        mu[:, int(regime[1:]) :] /= 20
        logvar[:, int(regime[1:]) :] = (logvar[:, int(regime[1:]) :] + 4) / 10
        logvar[:, : int(regime[1:])] = 2 * narrow[3]
    return mu, logvar


def posteriors(regime: str, size: int, dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """(z, mu, logvar), float32 [size, dims], one sample of each; the same on every call.

    Beside the ten, "k5" has five informative dimensions, of standard deviation 0.1, and the others collapsed.
    """
    generator = torch.Generator().manual_seed(size + dims)
    mu, logvar = _parameters(regime, size, dims, generator)
    noise = torch.randn(size, dims, generator=generator, dtype=torch.float64)
    if regime == "tail":  # samples out to 6.5 sigmas
        noise[:40] = torch.linspace(-6.5, 6.5, 40, dtype=torch.float64)[:size, None]
    return (mu + torch.exp(logvar / 2) * noise).float(), mu.float(), logvar.float()
