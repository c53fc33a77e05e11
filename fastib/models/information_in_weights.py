"""Information in the weights: a classifier that pays for what its weights know of the training set."""

from __future__ import annotations

from torch import Tensor

from fastib._arguments import check_choice, check_integer, check_number
from fastib.models.classifier import Classifier, ClassifierTerms
from fastib.models.model import pixels_of
from fastib.models.variational import VariationalConv2d, VariationalLinear, VariationalNetwork, variational_mlp
from fastib.schedules import warmed_up


class VariationalClassifier(Classifier):
    """A classifier whose weights are noisy, and pay for what the noise lets them know of the N images trained on::

        loss = cross_entropy(logits(images, noisy weights), labels) + beta / N * information(weights)

    which is 1 / N of the cross-entropy summed over the training set, plus beta I(w; D). With labels drawn at random a
    nat in Gaussian weights saves at most one of cross-entropy: above beta = 1 it isn't worth its price, and nothing is
    fitted. The information of log-normal ones leaves out what means and signs know, so that a counted nat may save
    more.

    Args:
        image_shape: channels, height and width of the images.
        classes: the number of labels.
        examples: the number N of training images.
        posterior: "log_normal" or "gaussian": see `fastib.models.VariationalLinear`. The latter has a prior that is a
            distribution, so that its information bounds the error (`fastib.metrics.pac_bayes_bound`).
        network: "mlp", or "conv" for convolutions of 3 x 3 and stride 2 and a linear layer.
        hidden: the number of units, or channels, of a hidden layer.
        depth: the number of hidden layers.
        noise: the variance that the noise has at first: of the logarithm, or as a fraction of the prior's.
        beta: the price of a nat in the weights, in nats about the labels of the training set.
        warm_up: the number of steps over which beta grows to it from 0 (none: it is constant).

    Call it with images [B, C, H, W] in [0, 1] and labels int64 [B]; it returns `ClassifierTerms(loss, cross_entropy,
    information)`; information is that in the weights, in nats per training image.

    Gradients: of the loss, by the means of the weights, the size of their noise, and the images.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    Source: Achille & Soatto 2018, "Emergence of invariance and disentanglement in deep representations", section 4 and
    equation 3; "gaussian": Hinton & van Camp 1993, "Keeping the neural networks simple by minimizing the description
    length of the weights".

    >>> import torch
    >>> from fastib.models import VariationalClassifier
    >>> model = VariationalClassifier((1, 8, 8), 10, 1000, hidden=32)
    >>> model.logits(torch.zeros(4, 1, 8, 8)).shape
    torch.Size([4, 10])
    """

    of_data = "classes", "images"

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        examples: int,
        *,
        posterior: str = "log_normal",
        network: str = "mlp",
        hidden: int = 128,
        depth: int = 1,
        noise: float = 0.01,
        beta: float = 1.0,
        warm_up: int = 0,
    ) -> None:
        super().__init__()
        check_integer("classes", classes, 1)
        check_integer("examples", examples, 1)
        check_choice("network", network, ("mlp", "conv"))
        check_integer("hidden", hidden, 1)
        check_integer("depth", depth, 1)
        check_number("beta", beta, minimum=0.0)
        self.examples, self.posterior = examples, posterior
        self.beta = warmed_up(beta, warm_up)
        pixels = pixels_of(image_shape)
        if network == "mlp":
            self.network = variational_mlp([pixels, *[hidden] * depth, classes], posterior, noise)
        else:
            self.network = _convolutions(image_shape, classes, hidden, depth, posterior, noise)
        #: whether each image of a batch has weights of its own
        self.draws_per_image = network == "mlp" and posterior == "gaussian"

    def draw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits with new weights, [B, classes], and the information in the weights, in nats per training image."""
        said, information = self.network(images)
        return said[-1], information / self.examples

    def logits(self, images: Tensor) -> Tensor:
        """Those of the mean weights: [B, classes]."""
        return self.network.mean(images)

    def representations(self, images: Tensor) -> list[Tensor]:
        hidden: list[Tensor] = self.network(images)[0][:-1]
        return hidden

    def forward(self, images: Tensor, labels: Tensor) -> ClassifierTerms:
        logits, information = self.draw(images)
        return self.terms(logits, labels, information)


def _convolutions(
    image_shape: tuple[int, int, int], classes: int, hidden: int, depth: int, posterior: str, noise: float
) -> VariationalNetwork:
    """Convolutions that each halve the image, and a linear layer."""
    channels, height, width = image_shape
    convolutions = [
        VariationalConv2d(inputs, hidden, 3, stride=2, padding=1, posterior=posterior, noise=noise)
        for inputs in [channels, *[hidden] * (depth - 1)]
    ]
    for _ in convolutions:
        height, width = (height + 1) // 2, (width + 1) // 2
    last = VariationalLinear(hidden * height * width, classes, posterior=posterior, noise=noise)
    return VariationalNetwork(*convolutions, last)
