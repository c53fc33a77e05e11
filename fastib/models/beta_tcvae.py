"""beta-TCVAE: the weight is on the total correlation alone."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

import fastib
from fastib.losses import BetaTCVAELoss, BetaTCVAETerms
from fastib.models.vae import VAE


class BetaTCVAE(VAE):
    """A variational autoencoder whose KL is taken apart, to weigh the total correlation of the code alone::

        mu, logvar = encode(images)
        z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
        terms = fastib.elbo_decomposition(z, mu, logvar, dataset_size)
        loss = -log p(images | decode(z)) + alpha * terms.mutual_information \\
            + beta * terms.total_correlation + gamma * terms.dimension_wise_kl

    Args:
        image_shape: channels, height and width of the images.
        dataset_size: the number of images that are trained on.
        group: ranks of torch.distributed that share each batch; see `fastib.losses.BetaTCVAELoss`.
        network, latent_dim, hidden: see `fastib.models.VAE`.
        alpha, beta, gamma: the weights of the three terms.
        estimator: "mss", "mws", "in_batch" or "leave_one_out": see `fastib.aggregate_posterior`.
        likelihood: "bernoulli" or "gaussian", of the pixels.

    Call it with images [B, C, H, W] in [0, 1]; it returns `BetaTCVAETerms`: the loss, the reconstruction and the three
    terms, in nats per image.

    Gradients: of the loss, by the parameters and the images.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    Source: Chen et al. 2018, "Isolating sources of disentanglement in VAEs", equation 4.

    >>> import torch
    >>> from fastib.models import BetaTCVAE
    >>> model = BetaTCVAE((1, 8, 8), 1000, network="mlp", latent_dim=2, hidden=16)
    >>> terms = model(torch.rand(4, 1, 8, 8))
    >>> terms.total_correlation.shape, round(terms.mutual_information_ceiling, 4)
    (torch.Size([]), 6.9078)
    """

    of_data = ("images",)

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        dataset_size: int,
        group: dist.ProcessGroup | None = None,
        *,
        network: str = "conv",
        latent_dim: int = 10,
        hidden: int = 1200,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        estimator: str = "mss",
        likelihood: str = "bernoulli",
    ) -> None:
        super().__init__(image_shape, network, latent_dim, hidden)
        self.criterion = BetaTCVAELoss(
            alpha, beta, gamma, dataset_size=dataset_size, estimator=estimator, likelihood=likelihood, group=group
        )

    def forward(self, images: Tensor, noise: Tensor | None = None) -> BetaTCVAETerms:
        """`noise` is that of the sample, [B, latent_dim]; without it, it is drawn."""
        mu, logvar = self.encode(images)
        z = fastib.reparameterize(mu, logvar, noise=noise)
        terms: BetaTCVAETerms = self.criterion(self.network.decode(z), images, z, mu, logvar)
        return terms
