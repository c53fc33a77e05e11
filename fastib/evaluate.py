"""`python -m fastib evaluate`: what a trained model is worth, by the metrics of its kind."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Subset

from fastib import _files, checkpoints, functional, metrics
from fastib._arguments import check_integer
from fastib._extras import require
from fastib.datasets import FactoredImages
from fastib.datasets.catalogue import open_dataset
from fastib.metrics.exact import encoded
from fastib.models import VAE, VIB, AllCNN, Classifier

NAME = "evaluation.json"  # in the folder of the checkpoint
SAMPLES = 10_000  # images for the metrics that need no more
ROWS = 8192  # of the exact decomposition: each meets all posteriors
EPSILONS = 0.01, 0.03, 0.1
PROBED, PROBED_TEST = 6000, 3000  # images that a probe sees
SETTLING = 10_000  # images from which statistics without noise are learned
FEATURES = 2048  # that a probe sees of a layer
CATEGORICAL = "shape", "label", "nuisance"  # the factors whose values have no order
_BATCH = 512

Results = dict[str, float]


def run(checkpoint: Path, *, images: int | None = None, seed: int = 0, data: str | None = None) -> Results:
    """Measures the model of a checkpoint, prints the results, and writes them beside it as `evaluation.json`.

    For a VAE: distortion (the reconstruction) and rate, exact mutual information, total correlation and dimension-wise
    KL, active units and the Gaussian total correlation and, where there are several factors, the mutual information gap,
    the FactorVAE score, DCI and SAP, over the images that it was trained on. For a classifier, over the images to test
    with: error, cross-entropy and information; the error after a step of the size `EPSILONS` along the sign of the
    gradient; and, where there is a nuisance, what a probe reads of it and of the label, in nats, from the image and from
    each layer.

    Args:
        checkpoint: a file of `python -m fastib train`, or of the demo.
        images: so many, drawn at random, instead of all; at least 100.
        seed: of whatever is drawn.
        data: the folder of the data set's files, where it is no longer that of the training.

    Raises:
        ImportError: without scikit-learn and tqdm, which the extra `models` installs.
        ValueError: if the file is no checkpoint, or its data is missing.
    """
    require("tqdm", "the progress bar")
    require("sklearn", "evaluate")
    if images is not None:
        check_integer("images", images, 100)
    check_integer("seed", seed, 0)
    trained = checkpoints.load(checkpoint)
    model = checkpoints.trained_model(trained)
    open_ = partial(open_dataset, trained.config.dataset, data or trained.config.data)
    if isinstance(model, VAE):
        results = of_vae(model, open_(), images, seed)
    else:
        results = of_classifier(model, open_(), open_(train=False), images, seed)
    print(report(results))
    path = checkpoint.with_name(NAME)
    finite = {name: value if math.isfinite(value) else None for name, value in results.items()}
    text = json.dumps({"step": trained.step, **finite}, indent=1) + "\n"
    _files.replace(path, lambda new: new.write_text(text, encoding="utf-8"))
    print(f"Wrote {path}")
    return results


def evaluation(folder: Path) -> dict[str, Any]:
    """What `run` wrote in the folder of a checkpoint, with the step of the training."""
    try:
        results: dict[str, Any] = json.loads(_files.text("run", folder / NAME))
    except json.JSONDecodeError as error:
        raise ValueError(f"run must have a whole {NAME}, got {folder}: {error}") from None
    return results


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Whatever is drawn within follows from the seed, and nothing that is drawn after."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def of_vae(model: VAE, dataset: FactoredImages, images: int | None = None, seed: int = 0) -> Results:
    """The metrics of a VAE."""
    with seeded(seed):
        indices = _chosen(dataset, images)
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


def _chosen(dataset: FactoredImages, images: int | None) -> Tensor:
    """All indices, or so many, at random."""
    if images is None or images >= len(dataset):
        return torch.arange(len(dataset))
    return torch.randperm(len(dataset))[:images]


def _distortion(model: VAE, dataset: FactoredImages, indices: Tensor) -> float:
    """-log p(image | code) in nats, of one code each, mean of the images."""
    batches = indices.tensor_split(math.ceil(len(indices) / _BATCH))
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


def of_classifier(
    model: Classifier, train: FactoredImages, test: FactoredImages, images: int | None = None, seed: int = 0
) -> Results:
    """The metrics of a classifier, over the images to test with."""
    with seeded(seed):
        if isinstance(model, AllCNN):
            model.settle(train.images(some) for some in _chosen(train, SETTLING).split(_BATCH))
        errors = _errors(model, test, images)
    with seeded(seed):  # whatever noise the model drew: probes of several models see the same images
        return errors | of_nuisance(model, train, test)


def _errors(model: Classifier, test: FactoredImages, images: int | None) -> Results:
    indices = _chosen(test, images)
    batches = [(test.images(some), test.factors(some)[:, 0]) for some in indices.split(_BATCH)]

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
    """What a probe reads of the label and of the nuisance, from the images and from each layer of a classifier."""
    if len(train.factor_names) == 1:
        return {}
    results: Results = {}
    chosen, chosen_test = _chosen(train, PROBED), _chosen(test, PROBED_TEST)  # before the model draws its noise
    features, factors = _features(model, train, chosen)
    test_features, test_factors = _features(model, test, chosen_test)
    for layer, x in features.items():
        for i, name in enumerate(train.factor_names):
            found = metrics.probe(x, factors[:, i], test_features[layer], test_factors[:, i])
            results |= {f"{name}_information_{layer}": found.information, f"{name}_accuracy_{layer}": found.accuracy}
    return results


def _features(model: Classifier, dataset: FactoredImages, indices: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """What the images and each layer, with its noise, say of some images; and their factors."""
    batches = []
    for some in indices.split(_BATCH):
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


def report(results: Results) -> str:
    """The results, a line each."""
    return "\n".join(f"{name.replace('_', ' '):40}{value:12.4f}" for name, value in results.items())
