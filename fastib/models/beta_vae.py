"""beta-VAE: one weight on the whole KL."""

from __future__ import annotations

from torch import Tensor

import fastib
from fastib._arguments import check_number
from fastib.losses import BetaVAELoss, VAETerms
from fastib.models.vae import VAE
from fastib.schedules import warmed_up


class BetaVAE(VAE):
    """A variational autoencoder whose KL weighs beta::

        mu, logvar = encode(images)
        z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
        loss = -log p(images | decode(z)) + beta * KL(N(mu, exp(logvar)), N(0, 1))

    Args:
        image_shape: channels, height and width of the images.
        network, latent_dim, hidden: see `fastib.models.VAE`.
        beta: the weight of the KL.
        warm_up: the number of steps over which beta grows to it from 0 (none: it is constant).
        likelihood: "bernoulli" or "gaussian", of the pixels.

    Call it with images [B, C, H, W] in [0, 1]; it returns `VAETerms(loss, reconstruction, kl)`, in nats per image.

    Gradients: of the loss, by the parameters and the images.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    Source: Higgins et al. 2017, "beta-VAE: learning basic visual concepts with a constrained variational framework";
    the warm-up: Sønderby et al. 2016, "Ladder variational autoencoders", section 2.2.

    >>> import torch
    >>> from fastib.models import BetaVAE
    >>> model = BetaVAE((1, 8, 8), network="mlp", latent_dim=2, hidden=16, beta=4.0)
    >>> loss, reconstruction, kl = model(torch.rand(4, 1, 8, 8))
    >>> torch.allclose(loss, reconstruction + 4 * kl)
    True
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        network: str = "conv",
        latent_dim: int = 10,
        hidden: int = 1200,
        beta: float = 4.0,
        warm_up: int = 0,
        likelihood: str = "bernoulli",
    ) -> None:
        super().__init__(image_shape, network, latent_dim, hidden)
        check_number("beta", beta, minimum=0.0)
        self.criterion = BetaVAELoss(warmed_up(beta, warm_up), likelihood=likelihood)

    def forward(self, images: Tensor) -> VAETerms:
        z, kl = fastib.reparameterize_with_kl(*self.encode(images))
        terms: VAETerms = self.criterion(self.network.decode(z), images, kl=kl)
        return terms
