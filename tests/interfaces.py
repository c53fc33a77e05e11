"""How people write a VAE's loss: three interfaces in plain PyTorch, small and faithful, for test_drop_in.py.

Their noise is drawn as fastib draws it, so that a seed means the same to both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import fastib


def _noise(like: Tensor) -> Tensor:
    zero = torch.zeros_like(like)
    return fastib.reparameterize(zero, zero)


# Distributions, as torch.distributions has them.


class Normal:
    def __init__(self, loc: Tensor | float, scale: Tensor | float) -> None:
        self.loc, self.scale = torch.broadcast_tensors(torch.as_tensor(loc), torch.as_tensor(scale))

    def rsample(self) -> Tensor:
        return self.loc + self.scale * _noise(self.loc)


def kl_divergence(p: Normal, q: Normal) -> Tensor:
    ratio, distance = (p.scale / q.scale) ** 2, ((p.loc - q.loc) / q.scale) ** 2
    return (ratio + distance - 1 - ratio.log()) / 2


# The pair of functions of mean and log-variance.


def reparameterize(mu: Tensor, logvar: Tensor) -> Tensor:
    return mu + torch.exp(0.5 * logvar) * _noise(mu)


def gaussian_kl(mu: Tensor, logvar: Tensor, reduction: str = "batchmean") -> Tensor:
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())
    return kl.sum(-1) if reduction == "sample" else kl.sum() / len(mu)


# Terms of each sample, for a trainer that weighs them and keeps them for its log.


def elbo_decomposition(z: Tensor, mu: Tensor, logvar: Tensor, dataset_size: int, reduction: str) -> tuple[Tensor, ...]:
    assert reduction == "none"
    batch, size = len(z), dataset_size
    log_density = torch.distributions.Normal(mu, torch.exp(logvar / 2)).log_prob(z[:, None])
    weights = torch.full((batch, batch), (size - 1) / (size * (batch - 1))).fill_diagonal_(1 / size).log()
    log_qz = torch.logsumexp(log_density.sum(2) + weights, 1)
    marginals = torch.logsumexp(log_density + weights[..., None], 1).sum(1)
    log_pz = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    return log_density.diagonal().sum(0) - log_qz, log_qz - marginals, marginals - log_pz


def reconstruction(logits: Tensor, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
