"""Deep variational information bottleneck: a classifier whose code is a Gaussian with a price."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastib
from fastib._arguments import check_integer, check_number
from fastib.models.classifier import Classifier, ClassifierTerms
from fastib.models.model import pixels_of


class VIB(Classifier):
    """An encoder to a diagonal Gaussian, and a linear classifier of its samples::

        mu, rho = encoder(images).chunk(2, dim=-1)
        std = softplus(rho - 5)
        z = mu + std * torch.randn_like(mu)
        loss = cross_entropy(decoder(z), labels) + beta * KL(N(mu, std**2), N(0, 1))

    Args:
        image_shape: channels, height and width of the images.
        classes: the number of labels.
        latent_dim: the number of dimensions of the code.
        hidden: the width of the two hidden layers.
        beta: the price of a nat about the image in nats about the label.

    Call it with images [B, C, H, W] in [0, 1] and labels int64 [B]; it returns `ClassifierTerms(loss, cross_entropy,
    information)`; information is the bound on I(Z; X), in nats.

    Gradients: of the loss, by the parameters and the images.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    Source: Alemi et al. 2017, "Deep variational information bottleneck", section 4.1; the shift by 5 is that of the
    authors' code.

    >>> import torch
    >>> from fastib.models import VIB
    >>> model = VIB((1, 8, 8), 10, latent_dim=16, hidden=32)
    >>> model.logits(torch.zeros(4, 1, 8, 8)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        latent_dim: int = 256,
        hidden: int = 1024,
        beta: float = 1e-3,
    ) -> None:
        super().__init__()
        check_integer("classes", classes, 1)
        check_integer("latent_dim", latent_dim, 1)
        check_integer("hidden", hidden, 1)
        check_number("beta", beta, minimum=0.0)
        self.beta = beta
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels_of(image_shape), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * latent_dim),
        )
        self.decoder = nn.Linear(latent_dim, classes)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of the variances of the posteriors: two of [B, latent_dim]."""
        mu, rho = self.encoder(images).chunk(2, dim=-1)
        return mu, 2 * _log_softplus(rho - 5)

    def logits(self, images: Tensor) -> Tensor:
        """Those of the mean code: [B, classes]."""
        logits: Tensor = self.decoder(self.encode(images)[0])
        return logits

    def representations(self, images: Tensor) -> list[Tensor]:
        return [fastib.reparameterize(*self.encode(images))]

    def forward(self, images: Tensor, labels: Tensor) -> ClassifierTerms:
        z, information = fastib.reparameterize_with_kl(*self.encode(images))
        return self.terms(self.decoder(z), labels, information)


def _log_softplus(x: Tensor) -> Tensor:
    """log(softplus(x)), which is x to the last digit where softplus(x) is too small to be represented."""
    return torch.where(x < -20, x, torch.log(F.softplus(x.clamp(min=-20))))
