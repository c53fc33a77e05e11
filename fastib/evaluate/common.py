"""What the evaluations of all models share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from fastib.datasets import FactoredImages

BATCH = 512
Results = dict[str, float]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Whatever is drawn within follows from the seed, and nothing that is drawn after."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def chosen(dataset: FactoredImages, images: int | None) -> Tensor:
    """All indices, or so many, at random."""
    if images is None or images >= len(dataset):
        return torch.arange(len(dataset))
    return torch.randperm(len(dataset))[:images]
