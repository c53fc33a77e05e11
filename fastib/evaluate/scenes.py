"""What a model of scenes is worth: whether it finds the objects, each by itself, and what its codes say of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastib import metrics
from fastib.datasets import Scenes
from fastib.evaluate.common import BATCH, Results, chosen, of_dci, seeded, varying
from fastib.models import MultiEntityVAE, SceneModel

SAMPLES = 10_000  # objects for the metrics that need no more
FEWEST = 100  # matched objects, without which nothing is said of the codes
CALIBRATING = 1000  # images
NEAR = 0.5  # of the side of an object: how far from its centre that of an entity may be
_TERMS = {"distortion": "reconstruction", "rate": "kl"}  # of the loss, where it has them


class _Found(NamedTuple):
    """Of n images and up to K entities each: `there` [n, K], `codes` and `logvars` [n, K, D], `centres` [n, K, 2], the
    row and column of their centres of mass, and `squared_errors` [n], of the images that they compose."""

    there: Tensor
    codes: Tensor
    logvars: Tensor
    centres: Tensor
    squared_errors: Tensor


@torch.no_grad()
def of_scenes(model: SceneModel, train: Scenes, test: Scenes, images: int | None = None, seed: int = 0) -> Results:
    """The metrics of a model of scenes, over the images to test with. What an entity of a `MultiEntityVAE` must know to
    be there, `threshold`, is read from images that it was trained on, of which no factor is looked at.

    The entities that are there are matched with the objects by place, one to one, where the centre of mass of an
    entity's own image is within half an object of the object's centre. What the codes of the matched ones say of the
    factors of their objects is measured as it is of a VAE.
    """
    with seeded(seed):
        indices = chosen(test, images)
        results = _terms(model, test, indices)
        if isinstance(model, MultiEntityVAE):
            results["threshold"] = model.calibrate(train.images(torch.arange(min(len(train), CALIBRATING))))
        found = _found(model, test, indices)
        factors = test.factors(indices)
        errors = (found.there.sum(1) - factors[:, 0]).double()
        objects = factors[:, 1:].unflatten(1, (test.most, -1))  # of each its own factors, row and column
        scenes, entities, which = _matched(found, objects, test.size)
        results |= {
            "squared_error": found.squared_errors.double().mean().item(),
            "count_accuracy": (errors == 0).double().mean().item(),
            "count_error": errors.abs().mean().item(),
            "matched_objects": len(which) / max(int(factors[:, 0].sum()), 1),
        }
        names = [name.removesuffix("_1") for name in test.factor_names[1 : 1 + objects.shape[2]]]
        codes, logvars = found.codes[scenes, entities], found.logvars[scenes, entities]
        return results | _disentanglement(codes, logvars, objects[scenes, which], names, seed)


def _terms(model: SceneModel, test: Scenes, indices: Tensor) -> Results:
    """Those of the loss, of one code for each image."""
    parts = indices.split(BATCH)
    batches = [model(test.images(some))._asdict() for some in parts]
    return {
        name: sum(terms[term].item() * len(some) for terms, some in zip(batches, parts, strict=True)) / len(indices)
        for name, term in _TERMS.items()
        if term in batches[0]
    }


def _found(model: SceneModel, test: Scenes, indices: Tensor) -> _Found:
    batches = []
    for some in indices.split(BATCH):
        images = test.images(some)
        entities = model.entities(images)
        squared_errors = (model.compose(entities) - images).square().flatten(1).sum(1)
        codes = entities.codes, entities.logvars
        batches.append((entities.there, *codes, _centres(entities.images), squared_errors))
    return _Found(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _centres(images: Tensor) -> Tensor:
    """The row and column of the centre of mass of images [..., C, H, W]: [..., 2], NaN where all is black."""
    mass = images.double().sum(-3)
    moments = [(mass.sum(-dim) * torch.arange(mass.shape[dim - 3], device=mass.device)).sum(-1) for dim in (1, 2)]
    return torch.stack(moments, dim=-1) / mass.sum((-2, -1)).unsqueeze(-1)


def _matched(found: _Found, objects: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of an entity and an object: their image, the entity and the object, int64 [pairs] each.

    Of all ways to pair them, one that leaves as few objects as may be, and of those the one of the smallest distances.
    """
    from scipy.optimize import linear_sum_assignment

    centres = objects[..., -2:] - 1 + (size - 1) / 2
    distances = torch.linalg.vector_norm(found.centres.unsqueeze(2) - centres.unsqueeze(1), dim=-1)
    may_pair = found.there.unsqueeze(2) & (objects[..., 0] > 0).unsqueeze(1) & (distances <= NEAR * size)
    costs = torch.where(may_pair, distances, size * objects.shape[1])  # more than all pairs together
    pairs = [
        (scene, entity, which)
        for scene, cost in enumerate(costs.numpy())
        for entity, which in zip(*linear_sum_assignment(cost), strict=True)
        if may_pair[scene, entity, which]
    ]
    scenes, entities, which = torch.tensor(pairs, dtype=torch.int64).view(-1, 3).unbind(1)
    return scenes, entities, which


def _disentanglement(codes: Tensor, logvars: Tensor, factors: Tensor, names: Sequence[str], seed: int) -> Results:
    if len(codes) < FEWEST or codes.shape[1] == 1 or varying(factors) == 0:
        return {}
    some = torch.randperm(len(codes))[:SAMPLES]
    gap = metrics.mutual_information_gap(codes, factors, logvar=logvars, seed=seed)
    return {
        "mutual_information_gap": gap.score,
        **{f"gap_of_{name}": value for name, value in zip(names, gap.gaps.tolist(), strict=True)},
        **of_dci(codes[some], factors[some], seed),
    }
