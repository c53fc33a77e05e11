"""Multi-Entity VAE: of a grid of Gaussian codes, those that say the most are the entities of the image."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastib
from fastib._arguments import check_integer, check_number
from fastib.losses import BetaVAELoss, VAETerms
from fastib.models.model import pixels_of
from fastib.models.scene import Entities, SceneModel
from fastib.models.vae import halving, kaiming_init
from fastib.schedules import warmed_up

HALVINGS = 3  # of the image, to the grid: a cell is 8 pixels wide
CELL = 2**HALVINGS


class Chosen(NamedTuple):
    """Of each image, the cells whose codes say the most, K of them: codes [B, K, D], KL [B, K], cells int64 [B, K]."""

    codes: Tensor
    kl: Tensor
    cells: Tensor


def most_informative(codes: Tensor, kl: Tensor, count: int) -> Chosen:
    """The cells of the largest KL, of all with codes [B, cells, D] and KL [B, cells]::

        kl, cells = kl.topk(count, dim=1)
        codes[b, k] = codes[b, cells[b, k]]

    Source: Nash et al. 2017, "The multi-entity variational autoencoder", whose encoder attends to them.
    """
    largest, cells = kl.topk(count, dim=1)
    return Chosen(_taken(codes, cells), largest, cells)


def _taken(of_cells: Tensor, cells: Tensor) -> Tensor:
    return of_cells.gather(1, cells.unsqueeze(2).expand(-1, -1, of_cells.shape[2]))


def composed(logits: Tensor) -> Tensor:
    """The logits of a pixel that is bright where any entity is, of those of each entity, [B, K, ...]::

        p = 1 - (1 - torch.sigmoid(logits)).prod(1)
        torch.logit(p)

    in any order, to rounding. Two at a time, as log(exp(a) + exp(b) + exp(a + b)): accurate where p is near 0 or 1,
    too.
    """
    return functools.reduce(lambda a, b: torch.logaddexp(torch.logaddexp(a, b), a + b), logits.unbind(1))


class MultiEntityVAETerms(NamedTuple):
    """The loss and what it is made of: scalars, float32 (float64 for float64), in nats per image. All but `loss` are
    detached: they are for the log."""

    loss: Tensor
    """What is to be minimised, and has the gradients."""
    reconstruction: Tensor
    """-log p(images | p)."""
    kl: Tensor
    """Of all cells, before it is weighed."""
    kl_of_entities: Tensor
    """The part of `kl` that is in the chosen cells: all of it, if no other says anything."""


class MultiEntityVAE(SceneModel):
    """A variational autoencoder whose code is a set of entities, each decoded by itself::

        mu, logvar = encode(images)                         # [B, cells, D]
        z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
        kl = KL(N(mu, exp(logvar)), N(0, 1))                # of each cell
        entities = z of the K cells of the largest kl
        p = 1 - (1 - sigmoid(decoder(entities))).prod(1)    # bright where any entity is
        loss = -log p(images | p) + beta * kl.sum(1)

    A cell that is not chosen says nothing of the image, and has learned to pay nothing. One that is chosen where there
    is no object left is decoded to black, and pays about a nat for it; an object costs many.

    Args:
        image_shape: channels, height and width of the images, which are padded with black to cells of 8 x 8 pixels.
        latent_dim: the number of dimensions of the code of a cell.
        entities: K, the largest number of them.
        width: the number of channels of the convolutions at half the size of the image; twice as many at a half of
            that.
        hidden: the width of the dense layers.
        beta: the weight of the KL.
        warm_up: the number of steps over which beta grows to it from 0 (none: it is constant).
        threshold: the nats of KL above which an entity is there, until `calibrate` finds it.

    Call it with images [B, C, H, W] in [0, 1]; it returns `MultiEntityVAETerms(loss, reconstruction, kl,
    kl_of_entities)`, in nats per image.

    Gradients: of the loss, by the parameters and the images. Which cells are chosen has none.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    Source: Nash et al. 2017, "The multi-entity variational autoencoder", whose entities are decoded to maps of
    features, which are joined and go through further convolutions; here they are images, so that each can be seen by
    itself.

    >>> import torch
    >>> from fastib.models import MultiEntityVAE
    >>> model = MultiEntityVAE((1, 32, 32), entities=3, latent_dim=8)
    >>> found = model.entities(torch.zeros(4, 1, 32, 32))
    >>> found.there.shape, found.codes.shape, found.images.shape
    (torch.Size([4, 3]), torch.Size([4, 3, 8]), torch.Size([4, 3, 1, 32, 32]))
    """

    places: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        latent_dim: int = 8,
        entities: int = 3,
        width: int = 16,
        hidden: int = 256,
        beta: float = 1.0,
        warm_up: int = 0,
        threshold: float = 7.0,
    ) -> None:
        super().__init__()
        for name, value in (("latent_dim", latent_dim), ("entities", entities), ("width", width), ("hidden", hidden)):
            check_integer(name, value, 1)
        check_number("beta", beta, minimum=0.0)
        check_number("threshold", threshold, minimum=0.0)
        pixels_of(image_shape)
        channels, height, width_ = image_shape
        rows, columns = -(-height // CELL), -(-width_ // CELL)
        if entities > rows * columns:
            raise ValueError(
                f"entities must be at most {rows * columns}, the cells of image_shape {image_shape}, got {entities}"
            )
        self.count, self.threshold = entities, threshold
        self._margins = [*_margins(width_, columns * CELL), *_margins(height, rows * CELL)]
        places = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
        self.register_buffer("places", torch.stack(places), persistent=False)
        self.features = _features(channels, width)
        self.posteriors = _posteriors(width, hidden, latent_dim)
        self.decoder = _decoder(latent_dim, hidden, width, (channels, rows, columns))
        kaiming_init(self)
        self.criterion = BetaVAELoss(warmed_up(beta, warm_up))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of the variances of the posteriors of all cells: two of [B, cells, latent_dim]."""
        features = self.features(F.pad(images, self._margins))
        places = self.places.expand(len(images), -1, -1, -1)  # so that a code can say where its entity is
        mu, logvar = self.posteriors(torch.cat([features, places], dim=1)).flatten(2).transpose(1, 2).chunk(2, dim=-1)
        return mu, logvar

    def logits(self, codes: Tensor) -> Tensor:
        """Those of the pixels of the entities that codes [B, K, latent_dim] stand for: [B, K, C, H, W]."""
        padded = self.decoder(codes.flatten(0, 1))
        logits: Tensor = F.pad(padded, [-margin for margin in self._margins]).unflatten(0, codes.shape[:2])
        return logits

    def decode(self, codes: Tensor) -> Tensor:
        """The images of the entities that codes [B, K, latent_dim] stand for, in [0, 1]: [B, K, C, H, W]."""
        return torch.sigmoid(self.logits(codes))

    def forward(self, images: Tensor) -> MultiEntityVAETerms:
        z, kl = fastib.reparameterize_with_kl(*self.encode(images), reduction="sample")
        chosen = most_informative(z, kl, self.count)
        terms: VAETerms = self.criterion(composed(self.logits(chosen.codes)), images, kl=kl.sum(1).mean())
        return MultiEntityVAETerms(*terms, chosen.kl.detach().sum(1).mean())

    def entities(self, images: Tensor) -> Entities:
        mu, logvar = self.encode(images)
        chosen = self._chosen(mu, logvar)
        logvars = _taken(logvar, chosen.cells)
        return Entities(chosen.kl > self.threshold, chosen.codes, logvars, self.decode(chosen.codes))

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> float:
        """Sets `threshold`, and returns it: it parts the KLs of what is decoded to black from those of objects, in
        images [B, C, H, W] of which some have fewer objects than there are entities. Nothing else need be known of
        them.

        Raises:
            ValueError: if there are not two entities, between which it could lie.

        Source: Otsu 1979, "A threshold selection method from gray-level histograms".
        """
        mu, logvar = self.encode(images)
        kl = self._chosen(mu, logvar).kl
        if kl.numel() < 2:
            raise ValueError(f"images must have at least 2 entities, got {len(images)} images with {self.count} each")
        self.threshold = _parting(kl.flatten().double().cpu())
        return self.threshold

    def compose(self, entities: Entities) -> Tensor:
        there = entities.there[..., None, None, None]
        return 1 - (1 - entities.images * there).prod(1)

    def kl_of_dimensions(self, images: Tensor) -> Tensor:
        """The KL of each dimension of the codes of `entities`, in nats: [B, K, latent_dim]."""
        mu, logvar = self.encode(images)
        return _taken(fastib.gaussian_kl(mu, logvar, reduction="none"), self._chosen(mu, logvar).cells)

    def step(self) -> None:
        self.criterion.step()

    def _chosen(self, mu: Tensor, logvar: Tensor) -> Chosen:
        return most_informative(mu, fastib.gaussian_kl(mu, logvar, reduction="sample"), self.count)


def _parting(values: Tensor) -> float:
    """Where the numbers part into two groups with the least variance within them: halfway between these."""
    values = values.sort().values
    below = torch.arange(1, len(values), dtype=values.dtype)
    deviations = (values - values.mean()).cumsum(0)[:-1]  # of those below a cut, in sum
    cut = (deviations**2 / (below * (len(values) - below))).argmax()
    return values[cut : cut + 2].mean().item()


def _margins(side: int, padded: int) -> tuple[int, int]:
    """What is added before and after."""
    before = (padded - side) // 2
    return before, padded - side - before


def _features(channels: int, width: int) -> nn.Sequential:
    convolutions = [halving(nn.Conv2d, *pair) for pair in pairwise([channels, *_widths(width)])]
    return nn.Sequential(*(layer for convolution in convolutions for layer in (convolution, nn.SiLU())))


def _posteriors(width: int, hidden: int, latent_dim: int) -> nn.Sequential:
    """Of features and places; the first layer lets neighbours agree on which of them has an object that lies
    between."""
    last = _widths(width)[-1]
    return nn.Sequential(
        nn.Conv2d(last + 2, last, kernel_size=3, padding=1),
        nn.SiLU(),
        nn.Conv2d(last, hidden, kernel_size=1),
        nn.SiLU(),
        nn.Conv2d(hidden, 2 * latent_dim, kernel_size=1),
    )


def _decoder(latent_dim: int, hidden: int, width: int, grid: tuple[int, int, int]) -> nn.Sequential:
    channels, rows, columns = grid
    widths = _widths(width)[::-1]
    convolutions = [halving(nn.ConvTranspose2d, *pair) for pair in pairwise([*widths, channels])]
    return nn.Sequential(
        nn.Linear(latent_dim, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, widths[0] * rows * columns),
        nn.Unflatten(1, (widths[0], rows, columns)),
        *(layer for convolution in convolutions for layer in (nn.SiLU(), convolution)),
    )


def _widths(width: int) -> list[int]:
    """The channels of the layers, from the image to the grid."""
    return [width * 2**i for i in range(HALVINGS)]
