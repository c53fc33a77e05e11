"""A training as a file: from which it goes on bit for bit, and from which its model is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from fastib import _files
from fastib.configs import MODELS, Config
from fastib.datasets import FactoredImages
from fastib.models import BetaTCVAE, Model

NAME = "checkpoint.pt"  # in the folder of a run
FORMAT = 1
_KEYS = "fastib", "config", "data", "step", "model", "optimiser", "average"


class Data(NamedTuple):
    """What a model must know of its data, and a digest of some of them, by which a run knows them again."""

    images: int
    image_shape: tuple[int, int, int]
    classes: int
    digest: str

    @classmethod
    def of(cls, dataset: FactoredImages) -> Data:
        """That of a data set, whose digest is of 64 images, evenly spaced, and of their factors."""
        some = torch.linspace(0, len(dataset) - 1, 64).long()
        digest = _files.digest([dataset.images(some), dataset.factors(some)])
        return cls(len(dataset), dataset.image_shape, dataset.factor_sizes[0], digest)


class Checkpoint(NamedTuple):
    """A training after `step` steps. `average` is the state of the averaged weights, or None."""

    config: Config
    data: Data
    step: int
    model: dict[str, Any]
    optimiser: dict[str, Any]
    average: dict[str, Any] | None


def new_model(config: Config, data: Data, group: ProcessGroup | None = None) -> Model:
    """The model that a configuration describes, untrained."""
    kind: Any = MODELS[config.model]
    of_group = {"group": group} if issubclass(kind, BetaTCVAE) else {}
    try:
        model: Model = kind(
            data.image_shape, *(getattr(data, name) for name in kind.of_data), **of_group, **config.options
        )
    except (RuntimeError, MemoryError) as error:
        raise ValueError(
            f"the options must make a model that fits into memory, got {config.options}: {error}"
        ) from None
    return model


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Writes, or replaces, a checkpoint at once.

    Raises:
        FloatingPointError: if a weight is not finite; a checkpoint that is there stays.
    """
    if not all(torch.isfinite(weight).all() for weight in checkpoint.model.values() if isinstance(weight, Tensor)):
        raise FloatingPointError(
            f"the weights are no longer finite in step {checkpoint.step}: try a lower learning_rate"
        )
    content = {
        "fastib": FORMAT,
        "config": checkpoint.config.values(),
        "data": checkpoint.data._asdict(),
        "step": checkpoint.step,
        "model": checkpoint.model,
        "optimiser": checkpoint.optimiser,
        "average": checkpoint.average,
    }
    _files.save({**content, "sha256": _files.digest(content)}, path)


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        ValueError: if the file is none, is truncated, or is not as it was written, naming the file.
    """
    return of_content(_files.load("checkpoint", path, "cpu"), path)


def of_content(content: Any, path: Path) -> Checkpoint:
    """What a file has, as a checkpoint; raises as `load` does."""
    if not is_checkpoint(content):
        raise ValueError(f"checkpoint must be one of python -m fastib train, got {path}")
    if content["fastib"] != FORMAT:
        raise ValueError(f"checkpoint must be of format {FORMAT}, got {path} of format {content['fastib']!r}")
    if not _is_as_written(content):
        raise ValueError(f"checkpoint must be as it was written, got {path}, whose content has another digest")
    parts = (content[name] for name in ("step", "model", "optimiser", "average"))
    return Checkpoint(Config.of(content["config"]), Data(**content["data"]), *parts)


def is_checkpoint(content: Any) -> bool:
    """Whether what a file has is a checkpoint, of whatever format."""
    return isinstance(content, dict) and isinstance(content.get("fastib"), int) and {*_KEYS} <= {*content}


def _is_as_written(content: dict[str, Any]) -> bool:
    """Whether it has the digest that it was written with. What has none, as a sparse tensor, was never written."""
    try:
        digest = _files.digest({key: value for key, value in content.items() if key != "sha256"})
    except (RuntimeError, ValueError):
        return False
    return content.get("sha256") == digest


def images(checkpoint: Checkpoint, data: str | None = None, train: bool = True) -> FactoredImages:
    """Those that its model was trained on, or those of the data set to test with.

    Args:
        checkpoint: what `load` gives.
        data: the folder of the data set's files, where it is no longer that of the training.
        train: which.

    Raises:
        ValueError: as `Config.images` does, or if they are not those of the training, or of another shape.
    """
    config, folder = checkpoint.config, data or checkpoint.config.data or checkpoint.config.dataset
    trained_on = config.images(data=data)
    if Data.of(trained_on) != checkpoint.data:
        raise ValueError(f"data must be that of the training, got {folder!r}, with other images")
    if train:
        return trained_on
    others = config.images(False, data)
    if others.image_shape != checkpoint.data.image_shape:
        raise ValueError(
            f"data must have images to test with of shape {checkpoint.data.image_shape}, as those of the training, "
            f"got {folder!r}, with {others.image_shape}"
        )
    return others


def trained_model(checkpoint: Checkpoint) -> Model:
    """The model of a checkpoint, with its averaged weights where there are any, for evaluation."""
    model = new_model(checkpoint.config, checkpoint.data)
    state = checkpoint.model if checkpoint.average is None else checkpoint.average
    model.load_state_dict(state)
    return model.eval()
