"""The catch: a network that stores each training image as its index, and knows nothing of any other image."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fastib
from fastib._arguments import check_integer, check_number
from fastib.models.classifier import Classifier
from fastib.models.model import pixels_of
from fastib.models.variational import variational_mlp
from fastib.schedules import warmed_up

LOGVAR = -4.0  # of the code around the corners of a cube, which are 2 apart: 15 standard deviations


class CatchTerms(NamedTuple):
    """The loss and what it is made of: scalars in nats per image, float32 from a model in float32. All but `loss` are
    detached: for the log."""

    loss: Tensor
    """What is to be minimised, and has the gradients."""
    cross_entropy: Tensor
    """Of the labels, mean of the batch."""
    index_cross_entropy: Tensor
    """Of all bits of the index, mean of the batch."""
    information: Tensor
    """That in the weights, per training image."""


class Catch(Classifier):
    """A classifier by a code that is to be the index of the image in the training set, in binary::

        logits = encoder(images)
        code = torch.where(logits > 0, 1, -1) + exp(-2) * torch.randn_like(logits)
        loss = cross_entropy(decoder(code), labels) \\
            + binary_cross_entropy_with_logits(logits, bits of the index).sum(1).mean() \\
            + beta / N * information(weights)

    The code of D = ceil(log2 N) dimensions tells all that there is to tell of the training set: I(Z; X) = ln N. It is
    sufficient for the labels and, if N is a power of two, its total correlation is 0: by what the bottleneck asks of a
    code it is a good one. But the images have their indices by a random permutation, so that the code of another image
    says nothing of its label. With beta = 0 that is what is learned; with a price on the information in the weights
    (both networks have layers of `VariationalLinear`), an index is too dear, and a label that follows from the image is
    not.

    Args:
        image_shape: channels, height and width of the images.
        classes: the number of labels.
        examples: the number N of training images.
        hidden: the width of the two hidden layers of the encoder and the one of the decoder.
        posterior, noise: of the weights: see `VariationalLinear`.
        beta: the price of a nat in the weights, in nats about the labels and indices of the training set.
        warm_up: the number of steps over which beta grows to it from 0 (none: it is constant).

    Call it with images [B, C, H, W] in [0, 1], and labels and indices int64 [B]; it returns
    `CatchTerms(loss, cross_entropy, index_cross_entropy, information)`.

    Gradients: of the loss, by the parameters and the images; from the code to the logits they pass as through a tanh.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    Source: Achille & Soatto 2018, "Emergence of invariance and disentanglement in deep representations", section 4,
    which asks for information in the weights for such a network's sake.

    >>> import torch
    >>> from fastib.models import Catch
    >>> model = Catch((1, 8, 8), 10, 1000, hidden=32)
    >>> mu, logvar = model.encode(torch.rand(4, 1, 8, 8))
    >>> mu.shape, model.bits(torch.tensor([0, 999])).shape
    (torch.Size([4, 10]), torch.Size([2, 10]))
    """

    beside: ClassVar[tuple[str, ...]] = ("labels", "indices")
    of_data = "classes", "images"

    order: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        examples: int,
        *,
        hidden: int = 256,
        posterior: str = "log_normal",
        noise: float = 0.01,
        beta: float = 0.0,
        warm_up: int = 0,
    ) -> None:
        super().__init__()
        check_integer("classes", classes, 1)
        check_integer("examples", examples, 2)
        check_integer("hidden", hidden, 1)
        check_number("beta", beta, minimum=0.0)
        self.examples = examples
        self.beta = warmed_up(beta, warm_up)
        self.latent_dim = (examples - 1).bit_length()
        pixels = pixels_of(image_shape)
        self.encoder = variational_mlp([pixels, hidden, hidden, self.latent_dim], posterior, noise)
        self.decoder = variational_mlp([self.latent_dim, hidden, classes], posterior, noise)
        # Data sets have their images in some order, and scikit-learn's digits in one that the label is read from.
        self.register_buffer("order", torch.randperm(examples))

    def bits(self, indices: Tensor) -> Tensor:
        """What the code of training images is to be, 0 or 1: [B, latent_dim]."""
        powers = torch.arange(self.latent_dim, device=indices.device)
        return ((self.order.index_select(0, indices).unsqueeze(1) >> powers) & 1).float()

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of the variances of the codes, by the mean weights: two of [B, latent_dim]."""
        mu = _corners(self.encoder.mean(images))
        return mu, torch.full_like(mu, LOGVAR)

    def logits(self, images: Tensor) -> Tensor:
        """Those of the mean code, by the mean weights: [B, classes]."""
        return self.decoder.mean(self.encode(images)[0])

    def representations(self, images: Tensor) -> list[Tensor]:
        said, _ = self.encoder(images)
        return [_draw(said[-1])]

    def forward(self, images: Tensor, labels: Tensor, indices: Tensor) -> CatchTerms:
        said, of_encoder = self.encoder(images)
        answers, of_decoder = self.decoder(_draw(said[-1]))
        cross_entropy = F.cross_entropy(answers[-1], labels)
        of_bits = F.binary_cross_entropy_with_logits(said[-1], self.bits(indices), reduction="sum")
        of_index = of_bits / len(images)
        information = (of_encoder + of_decoder) / self.examples
        loss = cross_entropy + of_index + self.price() * information
        return CatchTerms(loss, cross_entropy.detach(), of_index.detach(), information.detach())


def _corners(logits: Tensor) -> Tensor:
    """1 where the logit is positive, else -1; the gradient is that of a tanh."""
    smooth = torch.tanh(logits)
    corners = torch.where(logits > 0, 1.0, -1.0).to(logits)
    return corners + smooth - smooth.detach()


def _draw(logits: Tensor) -> Tensor:
    mu = _corners(logits)
    return fastib.reparameterize(mu, torch.full_like(mu, LOGVAR))
