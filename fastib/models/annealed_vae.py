"""beta-VAE with an annealed capacity: the KL is held at a value that grows."""

from __future__ import annotations

from torch import Tensor

import fastib
from fastib._arguments import check_integer
from fastib.losses import AnnealedVAELoss, VAETerms
from fastib.models.vae import VAE


class AnnealedVAE(VAE):
    """A variational autoencoder whose KL is to be C nats, which grows with the steps of the optimiser::

        mu, logvar = encode(images)
        z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
        loss = -log p(images | decode(z)) + gamma * (KL(N(mu, exp(logvar)), N(0, 1)) - C).abs()

    so that factors enter the code one after the other, by how much of the reconstruction each is worth.

    Args:
        image_shape: channels, height and width of the images.
        network, latent_dim, hidden: see `fastib.models.VAE`.
        gamma: the weight of the constraint.
        capacity: the nats that C grows to, linearly from 0.
        capacity_steps: the number of steps that it takes.
        likelihood: "bernoulli" or "gaussian", of the pixels.

    Call it with images [B, C, H, W] in [0, 1]; it returns `VAETerms(loss, reconstruction, kl)`, in nats per image.

    Gradients: of the loss, by the parameters and the images; where the KL is C, the constraint has one of 0.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    Source: Burgess et al. 2018, "Understanding disentangling in beta-VAE", equation 8.

    >>> import torch
    >>> from fastib.models import AnnealedVAE
    >>> model = AnnealedVAE((1, 8, 8), network="mlp", latent_dim=2, hidden=16, capacity=25.0, capacity_steps=100)
    >>> model(torch.rand(4, 1, 8, 8)).loss.backward()
    >>> model.step()  # after the optimiser's
    >>> float(model.criterion.capacity.value)
    0.25
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        network: str = "conv",
        latent_dim: int = 10,
        hidden: int = 1200,
        gamma: float = 1000.0,
        capacity: float = 25.0,
        capacity_steps: int = 100_000,
        likelihood: str = "bernoulli",
    ) -> None:
        super().__init__(image_shape, network, latent_dim, hidden)
        check_integer("capacity_steps", capacity_steps, 1)
        self.criterion = AnnealedVAELoss(gamma, capacity, capacity_steps, likelihood=likelihood)

    def forward(self, images: Tensor) -> VAETerms:
        z, kl = fastib.reparameterize_with_kl(*self.encode(images))
        terms: VAETerms = self.criterion(self.network.decode(z), images, kl=kl)
        return terms
