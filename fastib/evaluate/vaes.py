"""What a variational autoencoder is worth: rate and distortion, the parts of its KL, and its disentanglement."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.data import Subset

from fastib import functional, metrics
from fastib.datasets import FactoredImages
from fastib.evaluate.common import BATCH, Results, chosen, seeded
from fastib.metrics.exact import encoded
from fastib.models import VAE

SAMPLES = 10_000  # images for the metrics that need no more
ROWS = 8192  # of the exact decomposition: each meets all posteriors
CATEGORICAL = "shape", "label", "nuisance"  # the factors whose values have no order


@torch.no_grad()
def of_vae(model: VAE, dataset: FactoredImages, images: int | None = None, seed: int = 0) -> Results:
    """The metrics of a VAE."""
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
        "active_units": float(metrics.active_units(mu)),
        "gaussian_total_correlation": metrics.gaussian_total_correlation(mu),
    }
    if len(dataset.factor_names) > 1 and model.latent_dim > 1:
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
    categorical = [i for i, name in enumerate(dataset.factor_names) if name in CATEGORICAL]
    gap = metrics.mutual_information_gap(mu, factors, logvar=logvar, seed=seed)
    dci = metrics.dci(mu[some], factors[some], seed=seed)
    gaps = {f"gap_of_{name}": value for name, value in zip(dataset.factor_names, gap.gaps.tolist(), strict=True)}
    return {
        "mutual_information_gap": gap.score,
        **gaps,
        "factor_vae_score": metrics.factor_vae_score(model.encode, dataset, seed=seed),
        "dci_disentanglement": dci.disentanglement,
        "dci_completeness": dci.completeness,
        "dci_informativeness": dci.informativeness,
        "separated_attribute_predictability": metrics.sap(mu[some], factors[some], categorical=categorical).score,
    }
