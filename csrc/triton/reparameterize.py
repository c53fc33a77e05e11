"""z = mu + exp(logvar / 2) eps, and the gradient by logvar (the one by mu is the gradient of z itself)."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ._elements import block_of, load, noise_of, store
from ._launch import compiled_once, deliver, dense, launch_elements, target
from ._math import exponential


@compiled_once
def forward(mu, logvar, noise, rng, z, count, BLOCK: tl.constexpr):
    i, inside = block_of(count, BLOCK)
    m = load(mu + i, inside)
    std = exponential(load(logvar + i, inside) * 0.5)
    store(z + i, std * noise_of(noise, rng, i, inside, m.dtype, BLOCK) + m, inside)


@compiled_once
def backward(grad_z, logvar, noise, rng, d_logvar, count, BLOCK: tl.constexpr):
    i, inside = block_of(count, BLOCK)
    g = load(grad_z + i, inside)
    std = exponential(load(logvar + i, inside) * 0.5)
    store(d_logvar + i, g * (0.5 * std * noise_of(noise, rng, i, inside, g.dtype, BLOCK)), inside)


def reparameterize(mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None) -> Tensor:
    z = torch.empty_like(mu)
    to = target(z)
    launch_elements(forward, mu, dense(mu), dense(logvar), dense(noise), rng, to)
    return deliver(z, to)


def reparameterize_backward(grad_z: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None) -> Tensor:
    d_logvar = torch.empty_like(logvar)
    to = target(d_logvar)
    launch_elements(backward, logvar, dense(grad_z), dense(logvar), dense(noise), rng, to)
    return deliver(d_logvar, to)
