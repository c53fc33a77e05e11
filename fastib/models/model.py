"""What all models have in common, so that one training loop serves them."""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar

from torch import Tensor, nn

from fastib._arguments import check_integer


def pixels_of(image_shape: tuple[int, int, int]) -> int:
    """The number of values of an image of so many channels, and height and width, which are checked."""
    if len(image_shape) != 3:
        raise ValueError(f"image_shape must be channels, height and width, got {tuple(image_shape)}")
    for size in image_shape:
        check_integer("image_shape", size, 1)
    return math.prod(image_shape)


class Model(nn.Module, abc.ABC):
    """A network and the loss that it is trained with: call it with images [B, C, H, W] in [0, 1], and whatever `beside`
    names, for the terms of its loss, a named tuple of scalars whose first is `loss`; then `step()` after each step of
    the optimiser.

    Gradients: of `loss` alone, by the parameters and the images; the other terms are detached.

    >>> import torch
    >>> from fastib.models import VIB
    >>> model = VIB((1, 8, 8), 10, latent_dim=16, hidden=32)
    >>> terms = model(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))
    >>> terms.loss.backward()
    >>> model.step()  # after the optimiser's
    >>> [name for name, term in terms._asdict().items() if term.requires_grad]
    ['loss']
    """

    beside: ClassVar[tuple[str, ...]] = ()  # of "labels" and "indices", int64 [B]: what it is called with, too
    of_data: ClassVar[
        tuple[str, ...]
    ] = ()  # of "classes" and "images", their numbers: what it is made of after the shape

    def step(self) -> None:
        """Advances the schedules of the loss by one step of the optimiser."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of the optimiser; the learning rate of one is that of the training, times its "factor"."""
        return [{"params": list(self.parameters())}]

    def measures(self, images: Tensor) -> dict[str, float]:
        """What the log has of a batch, beside the terms of the loss."""
        return {}
