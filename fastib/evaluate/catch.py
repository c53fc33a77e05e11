"""What a classifier by the index of the image is worth: nothing on other images, and all that a bottleneck asks for."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fastib import functional, metrics
from fastib.datasets import FactoredImages
from fastib.evaluate.common import BATCH, Results, chosen, seeded
from fastib.models import Catch

ESTIMATORS: tuple[Literal["mss", "mws", "in_batch"], ...] = ("mss", "mws", "in_batch")
MINIBATCH = 64  # of the estimates
EPOCHS = 4  # over which they are averaged


@torch.no_grad()
def of_catch(
    model: Catch, train: FactoredImages, test: FactoredImages, images: int | None = None, seed: int = 0
) -> Results:
    """Errors on the images trained on and on others, the share of the former with the right index, and the mutual
    information and total correlation of their codes: exactly, and as minibatches of 64 estimate them."""
    everything = torch.arange(len(train))
    with seeded(seed):
        others = chosen(test, images)
    mu, logvar = _codes(model, train)
    right = ((mu > 0) == (model.bits(everything) > 0)).all(1)
    exact = metrics.exact_elbo_decomposition((mu, logvar), seed=seed)
    results = {
        "error": _error(model, test, others),
        "error_on_training": _error(model, train, everything),
        "right_indices": right.double().mean().item(),
        "mutual_information_ceiling": exact.mutual_information_ceiling,
        "mutual_information": exact.mutual_information.item(),
        "total_correlation": exact.total_correlation.item(),
    }
    with seeded(seed):
        terms = model(train.images([0]), train.factors([0])[:, 0], everything[:1])
        results["information_in_weights"] = terms.information.item()
        return results | _estimated(mu, logvar)


def _codes(model: Catch, dataset: FactoredImages) -> tuple[Tensor, Tensor]:
    """Means and logarithms of the variances for all images."""
    batches = [model.encode(dataset.images(some)) for some in torch.arange(len(dataset)).split(BATCH)]
    mu, logvar = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return mu, logvar


def _error(model: Catch, dataset: FactoredImages, indices: Tensor) -> float:
    wrong = [model.logits(dataset.images(s)).argmax(1) != dataset.factors(s)[:, 0] for s in indices.split(BATCH)]
    return torch.cat(wrong).double().mean().item()


def _estimated(mu: Tensor, logvar: Tensor) -> Results:
    """The means of what each estimator says of minibatches, all of one size, each code in about as many."""
    size = min(MINIBATCH, len(mu))
    whole = len(mu) // size * size
    batches = torch.cat([torch.randperm(len(mu))[:whole].view(-1, size) for _ in range(EPOCHS)])
    results: Results = {}
    for estimator in ESTIMATORS:
        terms = [
            functional.elbo_decomposition(
                functional.reparameterize(mu[i], logvar[i]), mu[i], logvar[i], dataset_size=len(mu), estimator=estimator
            )
            for i in batches
        ]
        results[f"mutual_information_by_{estimator}"] = _mean([t.mutual_information for t in terms])
        results[f"total_correlation_by_{estimator}"] = _mean([t.total_correlation for t in terms])
    return results


def _mean(values: list[Tensor]) -> float:
    return torch.stack(values).double().mean().item()
