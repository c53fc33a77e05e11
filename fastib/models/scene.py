"""What the models of scenes of several objects have in common."""

from __future__ import annotations

import abc
from typing import NamedTuple

from torch import Tensor

from fastib.models.model import Model


class Entities(NamedTuple):
    """What a model finds in B images: up to K entities each, in no order that means anything.

    `there`, bool [B, K], says which of them it holds for objects; `codes` and `logvars`, [B, K, D], are the means of
    their codes' posteriors and the logarithms of the variances; `images`, [B, K, C, H, W], is each one's own, where it
    lies on the canvas; `boxes`, [B, K, 4], are the windows that it looked through, in pixels: left, top, right and
    bottom. A model that has none leaves them out. All but `there` are of the model's dtype, and have gradients, by its
    parameters and the images.
    """

    there: Tensor
    codes: Tensor
    logvars: Tensor
    images: Tensor
    boxes: Tensor | None = None


class SceneModel(Model):
    """A model that takes an image apart into entities; each subclass is one paper's. No label is needed.

    Call it with images [B, C, H, W] in [0, 1] for the terms of the loss.

    Gradients: of the loss, by the parameters and the images.

    >>> import torch
    >>> from fastib.models import MultiEntityVAE
    >>> model = MultiEntityVAE((1, 32, 32))  # a SceneModel
    >>> model.compose(model.entities(torch.zeros(4, 1, 32, 32))).shape
    torch.Size([4, 1, 32, 32])
    """

    @abc.abstractmethod
    def entities(self, images: Tensor) -> Entities:
        """What is found in images [B, C, H, W], without noise."""

    @abc.abstractmethod
    def compose(self, entities: Entities) -> Tensor:
        """The images of which entities are the parts, in [0, 1], in whatever order they are: [B, C, H, W]."""
