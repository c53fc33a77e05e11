"""What a classifier is worth: its errors, with and without an adversary, and what its layers know of a nuisance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastib import functional, metrics
from fastib.datasets import FactoredImages
from fastib.evaluate.common import BATCH, Results, chosen, seeded
from fastib.metrics.probes import what_is_wrong
from fastib.models import VIB, AllCNN, Classifier

EPSILONS = 0.01, 0.03, 0.1
PROBED, PROBED_TEST = 6000, 3000  # images that a probe sees
UNNOISED = 10_000  # images from which statistics without noise are learned
FEATURES = 2048  # that a probe sees of a layer


def of_classifier(
    model: Classifier, train: FactoredImages, test: FactoredImages, images: int | None = None, seed: int = 0
) -> Results:
    """The metrics of a classifier, over the images to test with."""
    with seeded(seed):
        if isinstance(model, AllCNN):
            model.update_batch_norm(train.images(some) for some in chosen(train, UNNOISED).split(BATCH))
        errors = _errors(model, test, images)
    with seeded(seed):  # whatever noise the model drew: probes of several models see the same images
        return errors | of_nuisance(model, train, test)


def _errors(model: Classifier, test: FactoredImages, images: int | None) -> Results:
    indices = chosen(test, images)
    batches = [(test.images(some), test.factors(some)[:, 0]) for some in indices.split(BATCH)]

    def error(x: Tensor, labels: Tensor) -> Tensor:
        return (model.logits(x).argmax(1) != labels).double()

    with torch.no_grad():
        results = {
            "error": _mean(error, batches),
            "cross_entropy": _mean(lambda x, y: F.cross_entropy(model.logits(x), y, reduction="none"), batches),
            "information": _mean(lambda x, y: model(x, y).information.expand(len(x)), batches),
        }
        if isinstance(model, VIB):
            results["error_of_12_samples"] = _mean(
                lambda x, y: (_mean_of_samples(model, x).argmax(1) != y).double(), batches
            )
    for epsilon in EPSILONS:
        attacked = [(adversarial(model, x, labels, epsilon), labels) for x, labels in batches]
        with torch.no_grad():
            results[f"error_of_adversary_{epsilon}"] = _mean(error, attacked)
    return results


def _mean(measure: Callable[[Tensor, Tensor], Tensor], batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Of what is measured of each image."""
    return torch.cat([measure(*batch) for batch in batches]).double().mean().item()


def _mean_of_samples(model: VIB, images: Tensor, samples: int = 12) -> Tensor:
    """The probabilities of the classes, mean of samples of the code, as Alemi et al. have them."""
    mu, logvar = (t.expand(samples, *t.shape) for t in model.encode(images))
    probabilities: Tensor = model.decoder(functional.reparameterize(mu, logvar)).softmax(-1)
    return probabilities.mean(0)


def adversarial(model: Classifier, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Images a step from the given ones, in the direction in which the loss grows: the fast gradient sign method::

        (images + epsilon * grad(cross_entropy(logits(images), labels)).sign()).clamp(0, 1)

    Source: Goodfellow et al. 2015, "Explaining and harnessing adversarial examples", section 4.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        loss = F.cross_entropy(model.logits(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    return (images.detach() + epsilon * gradient.sign()).clamp(0, 1)


@torch.no_grad()
def of_nuisance(model: Classifier, train: FactoredImages, test: FactoredImages) -> Results:
    """What a probe reads of the label and of the nuisance, from the images and from each layer of a classifier; of
    either, if there are images enough of all its values."""
    if len(train.factor_names) == 1:
        return {}
    results: Results = {}
    some, some_test = chosen(train, PROBED), chosen(test, PROBED_TEST)  # before the model draws its noise
    features, factors = _features(model, train, some)
    test_features, test_factors = _features(model, test, some_test)
    probed = [
        (i, name)
        for i, name in enumerate(train.factor_names)
        if what_is_wrong(factors[:, i], test_factors[:, i]) is None
    ]
    for layer, x in features.items():
        for i, name in probed:
            found = metrics.probe(x, factors[:, i], test_features[layer], test_factors[:, i])
            results |= {f"{name}_information_{layer}": found.information, f"{name}_accuracy_{layer}": found.accuracy}
    return results


def _features(model: Classifier, dataset: FactoredImages, indices: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the images and each layer, with its noise, say of some images; and their factors."""
    batches = []
    for some in indices.split(BATCH):
        images = dataset.images(some)
        batches.append([_coarse(x) for x in (images, *model.representations(images))])
    names = ["image", *(f"layer_{i}" for i in range(1, len(batches[0])))]
    features = {name: torch.cat(parts) for name, *parts in zip(names, *batches, strict=True)}
    return features, dataset.factors(indices)


def _coarse(x: Tensor) -> Tensor:
    """[n, features]: of a map, the means of the parts of as fine a grid as there may be."""
    if x.dim() == 2:
        return x
    finest = max(math.isqrt(FEATURES // x.shape[1]), 1)
    return F.adaptive_avg_pool2d(x, (min(finest, x.shape[2]), min(finest, x.shape[3]))).flatten(1)
