"""The networks of the variational autoencoders, and what these models have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastib import functional
from fastib._arguments import check_choice, check_integer
from fastib.models.model import Model, pixels_of


class _Network(nn.Module):
    encoder: nn.Sequential
    decoder: nn.Sequential

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of the variances of the posteriors of images [B, C, H, W]: two of [B, latent_dim]."""
        mu, logvar = self.encoder(x).chunk(2, dim=-1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        """The logits of the pixels that codes [B, latent_dim] stand for: [B, C, H, W]."""
        logits: Tensor = self.decoder(z)
        return logits


class ConvVAE(_Network):
    """Encoder and decoder of the beta-VAE, by convolutions that halve the image until it is 4 pixels wide, or odd; the
    loss is up to you::

        mu, logvar = model.encode(images)
        z, kl = fastib.reparameterize_with_kl(mu, logvar)
        loss, *_ = criterion(model.decode(z), images, kl=kl)

    Args:
        latent_dim: the number of dimensions of the latent code.
        image_shape: channels, height and width of the images. Height and width are even, and at least 6.

    Gradients: of what `encode` and `decode` give, by the parameters and what they are given.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument; for images that can't be
            halved.

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

    def __init__(self, latent_dim: int = 10, image_shape: tuple[int, int, int] = (1, 64, 64)) -> None:
        super().__init__()
        check_integer("latent_dim", latent_dim, 1)
        pixels_of(image_shape)
        channels, height, width = image_shape
        halvings = _halvings(height, width)
        height, width = height >> halvings, width >> halvings
        down = [halving(nn.Conv2d, channels if i == 0 else 32, 32) for i in range(halvings)]
        up = [halving(nn.ConvTranspose2d, 32, channels if i == 0 else 32) for i in reversed(range(halvings))]
        self.encoder = nn.Sequential(
            *(layer for conv in down for layer in (conv, nn.SiLU())),
            nn.Flatten(),
            nn.Linear(32 * height * width, 256),
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
            nn.Linear(256, 32 * height * width),
            nn.Unflatten(1, (32, height, width)),
            *(layer for conv in up for layer in (nn.SiLU(), conv)),
        )
        kaiming_init(self)


def _halvings(height: int, width: int) -> int:
    """How often an image is halved: until a side is 4 pixels or fewer, or odd."""
    count = 0
    while min(height, width) >> count > 4 and (height >> count) % 2 == 0 and (width >> count) % 2 == 0:
        count += 1
    if count == 0:
        raise ValueError(f"image_shape must have an even height and width of at least 6, got {height} x {width}")
    return count


def halving(kind: Any, inputs: int, outputs: int) -> nn.Module:
    """A convolution to half the size or, of the kind nn.ConvTranspose2d, to twice the size."""
    layer: nn.Module = kind(inputs, outputs, kernel_size=4, stride=2, padding=1)
    return layer


def kaiming_init(model: nn.Module) -> None:
    """Initialises the layers. PyTorch's own initialisation shrinks the signal in every layer: after fourteen the code
    says nothing of the image, and it takes Adam hundreds of steps to find that it could."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class MLPVAE(_Network):
    """Encoder and decoder of two hidden layers each, used as `ConvVAE` is.

    Args:
        latent_dim: the number of dimensions of the latent code.
        image_shape: channels, height and width of the images.
        hidden: the width of the hidden layers; 1200 in the paper.

    Gradients: as of `ConvVAE`.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    Source: Higgins et al. 2017, "beta-VAE", table 1 (2D shapes), whose decoder has one more layer, and tanh where there
    are SiLUs here, as in `ConvVAE`.

    >>> import torch
    >>> from fastib.models import MLPVAE
    >>> model = MLPVAE(latent_dim=10, image_shape=(1, 8, 8), hidden=32)
    >>> mu, logvar = model.encode(torch.zeros(4, 1, 8, 8))
    >>> mu.shape, model.decode(mu).shape
    (torch.Size([4, 10]), torch.Size([4, 1, 8, 8]))
    """

    def __init__(
        self, latent_dim: int = 10, image_shape: tuple[int, int, int] = (1, 64, 64), hidden: int = 1200
    ) -> None:
        super().__init__()
        check_integer("latent_dim", latent_dim, 1)
        check_integer("hidden", hidden, 1)
        pixels = pixels_of(image_shape)
        self.encoder = nn.Sequential(nn.Flatten(), *_mlp(pixels, hidden, 2 * latent_dim))
        self.decoder = nn.Sequential(*_mlp(latent_dim, hidden, pixels), nn.Unflatten(1, image_shape))
        kaiming_init(self)


def _mlp(inputs: int, hidden: int, outputs: int) -> list[nn.Module]:
    first, second, last = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)
    return [first, nn.SiLU(), second, nn.SiLU(), last]


_NETWORKS = {"conv": ConvVAE, "mlp": MLPVAE}


class VAE(Model):
    """A variational autoencoder: a network and the loss that it is trained with; each subclass is one paper's, and has
    its loss as `criterion`, and a `forward`.

    Args:
        image_shape: channels, height and width of the images.
        network: "conv" for `ConvVAE`, or "mlp" for `MLPVAE`.
        latent_dim: the number of dimensions of the latent code.
        hidden: the width of the hidden layers of the "mlp".

    Gradients: of the loss, and of what `encode` and `decode` give, by the parameters and what they are given.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    >>> import torch, fastib
    >>> from fastib.losses import BetaVAELoss
    >>> from fastib.models import VAE
    >>> class Plain(VAE):
    ...     def __init__(self):
    ...         super().__init__((1, 8, 8), network="mlp", latent_dim=2, hidden=16)
    ...         self.criterion = BetaVAELoss()
    ...
    ...     def forward(self, images):
    ...         z, kl = fastib.reparameterize_with_kl(*self.encode(images))
    ...         return self.criterion(self.network.decode(z), images, kl=kl)
    >>> Plain().kl_of_dimensions(torch.zeros(4, 1, 8, 8)).shape
    torch.Size([2])
    """

    criterion: Any

    def __init__(self, image_shape: tuple[int, int, int], network: str, latent_dim: int, hidden: int) -> None:
        super().__init__()
        check_choice("network", network, tuple(_NETWORKS))
        check_integer("hidden", hidden, 1)
        options = {"hidden": hidden} if network == "mlp" else {}
        self.latent_dim = latent_dim
        self.network: ConvVAE | MLPVAE = _NETWORKS[network](latent_dim, image_shape, **options)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of the variances of the posteriors: two of [B, latent_dim]."""
        return self.network.encode(images)

    def decode(self, z: Tensor) -> Tensor:
        """The means of the images that codes [B, latent_dim] stand for, in [0, 1]: [B, C, H, W]."""
        output = self.network.decode(z)
        return torch.sigmoid(output) if self.criterion.likelihood == "bernoulli" else output

    def kl_of_dimensions(self, images: Tensor) -> Tensor:
        """The KL of each latent dimension in nats, mean of the batch: [latent_dim]."""
        return functional.gaussian_kl(*self.encode(images), reduction="none").mean(0)

    def measures(self, images: Tensor) -> dict[str, float]:
        """The KL of each latent dimension."""
        return {f"kl_{i}": kl for i, kl in enumerate(self.kl_of_dimensions(images).tolist(), 1)}

    def step(self) -> None:
        self.criterion.step()
