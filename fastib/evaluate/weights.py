"""What a classifier with information in its weights is worth: how well it fits what it was trained on, and what that
promises for other images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastib import metrics
from fastib.datasets import FactoredImages
from fastib.evaluate.classifiers import of_classifier
from fastib.evaluate.common import BATCH, Results, chosen, seeded
from fastib.metrics.pac_bayes import FEWEST_EXAMPLES
from fastib.models import VariationalClassifier
from fastib.models.variational import PRIORS_COVERED

DRAWS = 100  # of the weights


@torch.no_grad()
def of_weights(
    model: VariationalClassifier,
    train: FactoredImages,
    test: FactoredImages,
    images: int | None = None,
    seed: int = 0,
) -> Results:
    """The metrics of a classifier, and error and cross-entropy of weights drawn from the posterior: on all images that
    it was trained on, with the labels that they had there, and the error on the images to test with.

    The PAC-Bayes bound is of the Gaussian posterior alone: the log-uniform prior of the other one is no distribution,
    and its information is a KL only up to a constant. It holds with probability 0.95 for all the priors of which one
    was chosen (a union bound over widths of 1, 2, ... 8). It bounds the error of drawn weights on images that are
    labelled as those of the training are: with labels at random, so are those that it speaks of.
    """
    results = of_classifier(model, train, test, images, seed)
    with seeded(seed):
        error, cross_entropy = _of_draws(model, train, torch.arange(len(train)))
        results |= {"error_on_training": error, "cross_entropy_on_training": cross_entropy}
        results["error_of_drawn_weights"], _ = _of_draws(model, test, chosen(test, images))
    if model.posterior == "gaussian" and len(train) >= FEWEST_EXAMPLES:
        # Errors of draws of their own are independent, image by image; others are so only from one mean to the next.
        draws = DRAWS * len(train) if model.draws_per_image else DRAWS
        information = results["information"] * len(train)
        delta = 0.05 / PRIORS_COVERED
        results["pac_bayes_bound"] = metrics.pac_bayes_bound(error, information, len(train), delta, draws=draws)
    return results


def _of_draws(model: VariationalClassifier, dataset: FactoredImages, indices: Tensor) -> tuple[float, float]:
    """Error and cross-entropy of weights drawn anew for each batch, or image where the model does so: their mean."""
    sums = torch.zeros(2, dtype=torch.float64)
    for some in indices.split(BATCH):
        x, labels = dataset.images(some), dataset.factors(some)[:, 0]
        for _ in range(DRAWS):
            logits, _ = model.draw(x)
            wrong = logits.argmax(1) != labels
            sums += torch.stack([wrong.sum(), F.cross_entropy(logits, labels, reduction="sum")])
    error, cross_entropy = (sums / (len(indices) * DRAWS)).tolist()
    return error, cross_entropy
