"""What the evaluations of all models share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from fastib import metrics
from fastib.datasets import FactoredImages
from fastib.metrics import _inputs
from fastib.metrics.disentanglement import FEWEST_FOR_TREES

BATCH = 512
Results = dict[str, float]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Whatever is drawn within follows from the seed, and nothing that is drawn after."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def varying(factors: Tensor) -> int:
    """How many factors have more than one value."""
    return int(_inputs.varying(factors).sum())


def of_dci(codes: Tensor, factors: Tensor, seed: int) -> Results:
    """The scores of `fastib.metrics.dci`, where it has enough to go by."""
    if len(codes) < FEWEST_FOR_TREES or varying(factors) < 2:
        return {}
    dci = metrics.dci(codes, factors, seed=seed)
    return {
        "dci_disentanglement": dci.disentanglement,
        "dci_completeness": dci.completeness,
        "dci_informativeness": dci.informativeness,
    }


def chosen(dataset: FactoredImages, images: int | None) -> Tensor:
    """All indices, or so many, at random."""
    if images is None or images >= len(dataset):
        return torch.arange(len(dataset))
    return torch.randperm(len(dataset))[:images]
