"""What the classifiers with a bottleneck have in common."""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from fastib.models.model import Model
from fastib.schedules import Schedule


class ClassifierTerms(NamedTuple):
    """The loss of a classifier and what it is made of: scalars in nats per image, float32 from a model in float32. All
    but `loss` are detached: for the log."""

    loss: Tensor
    """What is to be minimised, and has the gradients."""
    cross_entropy: Tensor
    """Of the labels, mean of the batch."""
    information: Tensor
    """The bound on what the code knows of the image, or the weights of each image trained on: the KL of the noise."""


class Classifier(Model):
    """A classifier of images that pays for what it knows of them; each subclass is one paper's.

    Call it with images [B, C, H, W] in [0, 1] and labels int64 [B] for the terms of the loss.

    Gradients: of the loss and of `logits`, by the parameters and the images.

    >>> import torch
    >>> from fastib.models import VIB, Classifier
    >>> model = VIB((1, 8, 8), 10, latent_dim=16, hidden=32)
    >>> isinstance(model, Classifier), [r.shape for r in model.representations(torch.zeros(4, 1, 8, 8))]
    (True, [torch.Size([4, 16])])
    """

    beside: ClassVar[tuple[str, ...]] = ("labels",)
    of_data: ClassVar[tuple[str, ...]] = ("classes",)
    beta: float | Schedule  # the price of a nat about the image in nats about the label

    def terms(self, logits: Tensor, labels: Tensor, information: Tensor) -> ClassifierTerms:
        """The loss, cross_entropy(logits, labels) + beta * information, and what it is made of."""
        cross_entropy = F.cross_entropy(logits, labels)
        loss = cross_entropy + self.price() * information
        return ClassifierTerms(loss, cross_entropy.detach(), information.detach())

    def price(self) -> float:
        """The present value of beta."""
        return self.beta.at(self.beta.steps) if isinstance(self.beta, Schedule) else self.beta

    def step(self) -> None:
        if isinstance(self.beta, Schedule):
            self.beta.step()

    @abc.abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """The logarithms of the probabilities of the classes, up to a constant, without noise: [B, classes]."""

    @abc.abstractmethod
    def representations(self, images: Tensor) -> list[Tensor]:
        """What the layers say that noise reaches, in their order, with new noise: [B, ...] each."""
