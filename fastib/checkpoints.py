"""A training as a file: from which it goes on bit for bit, and from which its model is measured."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fastib import _files
from fastib.configs import MODELS, Config
from fastib.datasets import FactoredImages
from fastib.models import VAE, BetaTCVAE, Classifier

NAME = "checkpoint.pt"  # in the folder of a run
FORMAT = 1


class DataShape(NamedTuple):
    """What a model must know of its data."""

    images: int
    image_shape: tuple[int, int, int]
    classes: int

    @classmethod
    def of(cls, dataset: FactoredImages) -> DataShape:
        return cls(len(dataset), dataset.image_shape, dataset.factor_sizes[0])


class Checkpoint(NamedTuple):
    """A training after `step` steps. `average` is the state of the averaged weights, or None."""

    config: Config
    data: DataShape
    step: int
    model: dict[str, Any]
    optimiser: dict[str, Any]
    average: dict[str, Any] | None


def new_model(config: Config, data: DataShape, group: ProcessGroup | None = None) -> VAE | Classifier:
    """The model that a configuration describes, untrained."""
    kind: Any = MODELS[config.model]
    beside: tuple[Any, ...] = ()
    if issubclass(kind, Classifier):
        beside = (data.classes,)
    if issubclass(kind, BetaTCVAE):
        beside = data.images, group
    model: VAE | Classifier = kind(data.image_shape, *beside, **config.options)
    return model


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes, or replaces, a checkpoint at once."""
    content = {
        "fastib": FORMAT,
        "config": checkpoint.config.values(),
        "data": [checkpoint.data.images, list(checkpoint.data.image_shape), checkpoint.data.classes],
        "step": checkpoint.step,
        "model": checkpoint.model,
        "optimiser": checkpoint.optimiser,
        "average": checkpoint.average,
    }
    _files.save({**content, "sha256": _digest(content)}, path)


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        ValueError: if the file is none, is truncated, or is not as it was written, naming the file.
    """
    content = _files.load("checkpoint", path)
    if not is_checkpoint(content):
        raise ValueError(f"checkpoint must be one of python -m fastib train, got {path}")
    written = content.pop("sha256", None)
    if content["fastib"] != FORMAT:
        raise ValueError(f"checkpoint must be of format {FORMAT}, got {path} of format {content['fastib']!r}")
    if written != _digest(content):
        raise ValueError(f"checkpoint must be as it was written, got {path}, whose content has another digest")
    images, shape, classes = content["data"]
    data = DataShape(images, tuple(shape), classes)
    parts = (content[name] for name in ("step", "model", "optimiser", "average"))
    return Checkpoint(Config.of(content["config"]), data, *parts)


def is_checkpoint(content: Any) -> bool:
    """Whether what a file has is a checkpoint, of whatever format."""
    return isinstance(content, dict) and "fastib" in content


def trained_model(checkpoint: Checkpoint) -> VAE | Classifier:
    """The model of a checkpoint, with its averaged weights where there are any, for evaluation."""
    model = new_model(checkpoint.config, checkpoint.data)
    state = checkpoint.model if checkpoint.average is None else checkpoint.average
    model.load_state_dict(state)
    return model.eval()


def _digest(content: Any) -> str:
    digest = hashlib.sha256()
    for part in _bytes(content):
        digest.update(part)
    return digest.hexdigest()


def _bytes(value: Any) -> Iterator[bytes]:
    """All of a value: kinds, keys and the elements of tensors."""
    if isinstance(value, dict):
        yield f"dict {len(value)}\n".encode()
        for key, entry in value.items():
            yield from _bytes(key)
            yield from _bytes(entry)
    elif isinstance(value, (list, tuple)):
        yield f"list {len(value)}\n".encode()
        for entry in value:
            yield from _bytes(entry)
    elif isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}\n".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        yield f"{value!r}\n".encode()
