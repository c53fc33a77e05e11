"""What a variational autoencoder is worth: rate and distortion, the parts of its KL, and its disentanglement."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torch.utils.data import Subset

from fastib import functional, metrics
from fastib.datasets import FactoredImages
from fastib.evaluate.common import BATCH, Results, chosen, of_dci, seeded, varying
from fastib.metrics.exact import encoded
from fastib.models import VAE

SAMPLES = 10_000  # images for the metrics that need no more
ROWS = 8192  # of the exact decomposition: each meets all posteriors
CATEGORICAL = "shape", "label", "nuisance"  # the factors whose values have no order


@torch.no_grad()
def of_vae(model: VAE, dataset: FactoredImages, images: int | None = None, seed: int = 0) -> Results:
    """The metrics of a VAE that so many images and so many factors that vary allow."""
    with seeded(seed):
        indices = chosen(dataset, images)
        mu, logvar = encoded(model.encode, Subset(dataset, indices.tolist()), progress=True)
        some = torch.randperm(len(mu))[:SAMPLES]
        distortion = _distortion(model, dataset, indices[some])
    exact = metrics.exact_elbo_decomposition((mu, logvar), rows=min(ROWS, len(mu)), seed=seed, progress=True)
    results = {
        "distortion": distortion,
        "rate": functional.gaussian_kl(mu, logvar).item(),
        **{name: value.item() for name, value in exact._asdict().items()},
        "mutual_information_ceiling": exact.mutual_information_ceiling,
    }
    if len(mu) > 1:
        results["active_units"] = float(metrics.active_units(mu))
        results["gaussian_total_correlation"] = metrics.gaussian_total_correlation(mu)
    if len(dataset.factor_names) > 1 and model.latent_dim > 1 and varying(dataset.factors(indices[some])) > 0:
        results |= _disentanglement(model, dataset, mu, logvar, indices, some, seed)
    return results


def _distortion(model: VAE, dataset: FactoredImages, indices: Tensor) -> float:
    """-log p(image | code) in nats, of one code each, mean of the images."""
    batches = indices.tensor_split(math.ceil(len(indices) / BATCH))
    sums = [model(dataset.images(some)).reconstruction * len(some) for some in batches]
    return torch.stack(sums).sum().item() / len(indices)


def _disentanglement(
    model: VAE, dataset: FactoredImages, mu: Tensor, logvar: Tensor, indices: Tensor, some: Tensor, seed: int
) -> Results:
    factors = dataset.factors(indices)
    kinds = [re.sub(r"_\d+$", "", name) for name in dataset.factor_names]  # of scenes, each object has its own
    categorical = [i for i, kind in enumerate(kinds) if kind in CATEGORICAL]
    gap = metrics.mutual_information_gap(mu, factors, logvar=logvar, seed=seed)
    gaps = {f"gap_of_{name}": value for name, value in zip(dataset.factor_names, gap.gaps.tolist(), strict=True)}
    return {
        "mutual_information_gap": gap.score,
        **gaps,
        "factor_vae_score": metrics.factor_vae_score(model.encode, dataset, seed=seed),
        **of_dci(mu[some], factors[some], seed),
        "separated_attribute_predictability": metrics.sap(mu[some], factors[some], categorical=categorical).score,
    }
