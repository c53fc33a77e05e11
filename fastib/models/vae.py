"""The convolutional variational autoencoder for 64 x 64 images."""

from __future__ import annotations

from torch import Tensor, nn


class ConvVAE(nn.Module):
    """Encoder and decoder of the beta-VAE for 64 x 64 images of one channel; the loss is up to you::

        mu, logvar = model.encode(images)
        z, kl = fastib.reparameterize_with_kl(mu, logvar)
        loss, *_ = criterion(model.decode(z), images, kl=kl)

    Args:
        latent_dim: the number of dimensions of the latent code.

    The paper's ReLUs are SiLUs here. A ReLU's derivative jumps, so two trainings that differ in the last bit of one
    number part within a hundred steps; with a smooth activation they stay together, and it learns faster.

    Source: Burgess et al. 2018, "Understanding disentangling in beta-VAE", appendix A.1.

    >>> import torch
    >>> from fastib.models import ConvVAE
    >>> model = ConvVAE(latent_dim=10)
    >>> mu, logvar = model.encode(torch.zeros(8, 1, 64, 64))
    >>> mu.shape, model.decode(mu).shape
    (torch.Size([8, 10]), torch.Size([8, 1, 64, 64]))
    """

    def __init__(self, latent_dim: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=4, stride=2, padding=1),  # 64 x 64 to 32 x 32
            nn.SiLU(),
            nn.Conv2d(32, 32, kernel_size=4, stride=2, padding=1),  # 16 x 16
            nn.SiLU(),
            nn.Conv2d(32, 32, kernel_size=4, stride=2, padding=1),  # 8 x 8
            nn.SiLU(),
            nn.Conv2d(32, 32, kernel_size=4, stride=2, padding=1),  # 4 x 4
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 256),
            nn.SiLU(),
            nn.Linear(256, 256),
            nn.SiLU(),
            nn.Linear(256, 2 * latent_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 256),
            nn.SiLU(),
            nn.Linear(256, 256),
            nn.SiLU(),
            nn.Linear(256, 32 * 4 * 4),
            nn.SiLU(),
            nn.Unflatten(1, (32, 4, 4)),
            nn.ConvTranspose2d(32, 32, kernel_size=4, stride=2, padding=1),  # 8 x 8
            nn.SiLU(),
            nn.ConvTranspose2d(32, 32, kernel_size=4, stride=2, padding=1),  # 16 x 16
            nn.SiLU(),
            nn.ConvTranspose2d(32, 32, kernel_size=4, stride=2, padding=1),  # 32 x 32
            nn.SiLU(),
            nn.ConvTranspose2d(32, 1, kernel_size=4, stride=2, padding=1),  # 64 x 64
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                # PyTorch's own initialisation shrinks the signal in every layer. After fourteen the code says nothing
                # of the image, and it takes Adam hundreds of steps to find that it could.
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of the variances of the posteriors of images [B, 1, 64, 64]: two of [B, latent_dim]."""
        mu, logvar = self.encoder(x).chunk(2, dim=-1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """The logits of the pixels that codes [B, latent_dim] stand for: [B, 1, 64, 64]."""
        logits: Tensor = self.decoder(z)
        return logits
