"""Information Dropout: a convolutional classifier whose activations carry noise of a learned size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastib
from fastib._arguments import check_choice, check_flag, check_integer, check_number
from fastib.models.classifier import Classifier, ClassifierTerms
from fastib.models.model import pixels_of

MAX_STD = 0.7  # of the logarithm of the noise, as in the authors' code


class Noise(nn.Module):
    """Information Dropout: noise on `activations`, of a size that a convolution of the `inputs` of their layer
    chooses::

        std = MAX_STD * sigmoid(size(inputs))
        z = activations * exp(std * randn - std**2 / 2)

    Its information is -log(std) of each activation above 0 for a ReLU, and for a softplus the KL to a log-normal prior
    whose two parameters are learned.
    """

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.size = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        if activation == "softplus":
            self.prior_mean, self.prior_log_std = (nn.Parameter(torch.zeros(())) for _ in range(2))

    def forward(self, inputs: Tensor, activations: Tensor, reduction: str = "batchmean") -> tuple[Tensor, Tensor]:
        """The activations with noise, and their information in nats."""
        log_std = F.logsigmoid(self.size(inputs)) + math.log(MAX_STD)
        if self.activation == "relu":
            return fastib.information_dropout(activations, log_std, mean_one=True, reduction=reduction)
        return fastib.information_dropout(
            activations,
            log_std,
            prior="log_normal",
            prior_mean=self.prior_mean,
            prior_log_std=self.prior_log_std,
            mean_one=True,
            reduction=reduction,
        )


class Dropout(nn.Module):
    """The baseline: each activation is lost with probability 1/2, or none is. It knows of no information."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, inputs: Tensor, activations: Tensor, reduction: str = "batchmean") -> tuple[Tensor, Tensor]:
        nothing = torch.zeros_like(activations) if reduction == "none" else activations.new_zeros(())
        return F.dropout(activations, self.rate), nothing


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "softplus": F.softplus}


class Convolution(nn.Module):
    """Convolution, batch normalisation, activation and, for `pooling` in place of a stride, the maximum of 3 x 3."""

    def __init__(self, inputs: int, outputs: int, kernel: int, activation: str, stride: int, pooling: bool) -> None:
        super().__init__()
        self.activation, self.pooled = _ACTIVATIONS[activation], pooling and stride > 1
        step = 1 if self.pooled else stride
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride=step, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.convolution(x)))
        return F.max_pool2d(x, 3, stride=2, padding=1) if self.pooled else x


class Layer(NamedTuple):
    """What a noisy layer says of a batch: its activations with their noise, and their information, [B, C, H, W]."""

    z: Tensor
    information: Tensor


class AllCNN(Classifier):
    """Convolutions alone, in three stages, with noise on what the first two end with::

        3x3 width      3x3 width      3x3 width, stride 2       noise
        3x3 2 width    3x3 2 width    3x3 2 width, stride 2     noise
        3x3 2 width                   1x1 2 width
        1x1 classes, mean over the image
        loss = cross_entropy(logits, labels) + beta * sum of the information of the two noises

    Args:
        image_shape: channels, height and width of the images.
        classes: the number of labels.
        noise: "information"; or, for baselines of the same shape, "dropout" (binary, of rate 1/2) or "none".
        activation: "relu", whose noise has a log-uniform prior, or "softplus", with a log-normal one.
        pooling: whether maxima of 3 x 3 take the place of strides.
        width: the number of channels of the first stage; 96 in the paper.
        beta: the price of a nat about the image in nats about the label, per image. (The authors divide the information
            by the number N of training images: their beta is N times this.)

    Call it with images [B, C, H, W] in [0, 1] and labels int64 [B]; it returns `ClassifierTerms(loss, cross_entropy,
    information)`. Evaluation is without noise, whose mean is 1; call `update_batch_norm` before it, with images to
    train with.

    Gradients: of the loss, by the parameters and the images. The information of "dropout" and "none" is 0, without one.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    Source: Achille & Soatto 2018, "Information Dropout: learning optimal representations through noisy computation",
    section 6; the network: Springenberg et al. 2015, "Striving for simplicity: the all convolutional net", table 1.

    >>> import torch
    >>> from fastib.models import AllCNN
    >>> model = AllCNN((1, 28, 28), 10, width=8)
    >>> terms = model(torch.rand(4, 1, 28, 28), torch.tensor([0, 1, 2, 3]))
    >>> [layer.z.shape[1:].numel() for layer in model.layers(torch.rand(4, 1, 28, 28))]
    [1568, 784]
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        noise: str = "information",
        activation: str = "relu",
        pooling: bool = False,
        width: int = 96,
        beta: float = 1e-4,
    ) -> None:
        super().__init__()
        pixels_of(image_shape)
        check_integer("classes", classes, 1)
        check_choice("noise", noise, ("information", "dropout", "none"))
        check_choice("activation", activation, tuple(_ACTIVATIONS))
        check_flag("pooling", pooling)
        check_integer("width", width, 1)
        check_number("beta", beta, minimum=0.0)
        self.beta = beta

        def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> Convolution:
            return Convolution(inputs, outputs, kernel, activation, stride, pooling)

        def noise_of(channels: int) -> nn.Module:
            if noise == "information":
                return Noise(channels, activation)
            return Dropout(0.5 if noise == "dropout" else 0.0)

        double = 2 * width
        self.bodies = nn.ModuleList(
            [
                nn.Sequential(convolution(image_shape[0], width), convolution(width, width)),
                nn.Sequential(convolution(width, double), convolution(double, double)),
            ]
        )
        self.ends = nn.ModuleList([convolution(width, width, stride=2), convolution(double, double, stride=2)])
        self.noises = nn.ModuleList([noise_of(width), noise_of(double)])
        self.last = nn.Sequential(convolution(double, double), convolution(double, double, kernel=1))
        self.classes = nn.Conv2d(double, classes, 1)

    def forward(self, images: Tensor, labels: Tensor) -> ClassifierTerms:
        x, information = images, images.new_zeros(())
        for body, end, noise in zip(self.bodies, self.ends, self.noises, strict=True):
            inputs = body(x)
            x, kl = noise(inputs, end(inputs))
            information = information + kl
        return self.terms(self._classify(x), labels, information)

    def logits(self, images: Tensor) -> Tensor:
        x = images
        for body, end in zip(self.bodies, self.ends, strict=True):
            x = end(body(x))
        return self._classify(x)

    def layers(self, images: Tensor) -> list[Layer]:
        """The noisy layers in their order, with new noise."""
        layers, x = [], images
        for body, end, noise in zip(self.bodies, self.ends, self.noises, strict=True):
            inputs = body(x)
            layers.append(Layer(*noise(inputs, end(inputs), "none")))
            x = layers[-1].z
        return layers

    def representations(self, images: Tensor) -> list[Tensor]:
        """What the two noisy layers and the one before the classes say, in their order, with new noise."""
        noisy = [layer.z for layer in self.layers(images)]
        return [*noisy, self.last(noisy[-1])]

    @torch.no_grad()
    def update_batch_norm(self, batches: Iterable[Tensor]) -> None:
        """Learns the statistics of the batch normalisations anew from batches of images, without the noise with which
        they were learned, as the authors' code does before it evaluates."""
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        momenta, mode = [norm.momentum for norm in norms], self.training
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean of all batches
        self.train()
        for images in batches:
            self.logits(images)
        self.train(mode)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _classify(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classes(self.last(x)).mean(dim=(2, 3))
        return logits
