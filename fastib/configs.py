"""What a training is told: by a preset, a TOML file, and flags, each of which overrides the one before."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastib import _files
from fastib._arguments import check_choice, check_integer, check_number
from fastib._extras import toml_reader
from fastib.datasets import FactoredImages, Part, RandomLabels
from fastib.datasets.catalogue import DATASETS, open_dataset
from fastib.models import (
    AIR,
    VIB,
    AllCNN,
    AnnealedVAE,
    BetaTCVAE,
    BetaVAE,
    Catch,
    Model,
    MultiEntityVAE,
    VariationalClassifier,
)

MODELS: dict[str, type[Model]] = {
    "beta-vae": BetaVAE,
    "annealed-vae": AnnealedVAE,
    "beta-tcvae": BetaTCVAE,
    "vib": VIB,
    "information-dropout": AllCNN,
    "air": AIR,
    "multi-entity-vae": MultiEntityVAE,
    "information-in-weights": VariationalClassifier,
    "catch": Catch,
}
PRESETS = Path(__file__).parent / "presets.toml"


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that decides what a training does.

    Args:
        model: which: a key of `MODELS`.
        dataset: its images: a key of `fastib.datasets.catalogue.DATASETS`.
        data: the folder of the data set's files, where it has any.
        examples: the number of images to train on, the first ones (0: all).
        random_labels: the fraction of the labels to train on that are drawn at random, once.
        steps: the number of steps of the optimiser, which is Adam.
        batch: the number of images of a step.
        learning_rate: of the first step.
        decay, decay_steps: after each `decay_steps` steps the learning rate is multiplied by `decay`.
        beta1: of Adam: the coefficient of its first moment.
        average: of the weights: the exponential moving average with this coefficient is evaluated (0: the weights).
        seed: of the weights, the order of the images and the noise.
        log_every: the number of steps from a row of the log to the next.
        save_seconds: the time from a checkpoint to the next, at least.
        tensorboard: whether the log is also written for TensorBoard, which the extra `tensorboard` installs.
        options: those of the model: all keyword arguments of its class.
    """

    model: str
    dataset: str = "sprites"
    data: str = ""
    examples: int = 0
    random_labels: float = 0.0
    steps: int = 1000
    batch: int = 64
    learning_rate: float = 5e-4
    decay: float = 1.0
    decay_steps: int = 1000
    beta1: float = 0.9
    average: float = 0.0
    seed: int = 0
    log_every: int = 50
    save_seconds: float = 20.0
    tensorboard: bool = False
    options: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Config:
        """Of what a TOML file says: keys of the training and of the model side by side.

        Raises:
            ValueError, TypeError: for a missing model, an unknown key, or a value of a wrong type or out of range,
                naming the key and the value.
        """
        if "model" not in values:
            raise ValueError("model must be given, one of " + ", ".join(MODELS))
        check_choice("model", values["model"], tuple(MODELS))
        known = keys(values["model"])
        for key in values:
            if key not in known:
                raise ValueError(f"{key} must be a key of {values['model']}, one of " + ", ".join(known))
        given = {key: _of_type(key, value, known[key]) for key, value in values.items()}
        options = {key: given.pop(key, default) for key, default in defaults_of(given["model"]).items()}
        config = cls(**given, options=options)
        if config.random_labels > 0 and "labels" not in MODELS[config.model].beside:
            raise ValueError(
                f"random_labels must be 0 for {config.model}, which sees no labels, got {config.random_labels}"
            )
        return config

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, tuple(DATASETS))
        if not _is_unicode(self.data):
            raise ValueError(f"data must be the name of a folder in UTF-8, got {self.data!r}")
        for name in ("steps", "batch", "decay_steps", "log_every"):
            check_integer(name, getattr(self, name), 1)
        for name in ("seed", "examples"):
            check_integer(name, getattr(self, name), 0)
        for name in ("learning_rate", "save_seconds"):
            check_number(name, getattr(self, name), minimum=0.0)
        for name in ("decay", "random_labels"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("average", "beta1"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def values(self) -> dict[str, Any]:
        """What `of` makes the same configuration from."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "options"}
        return values | dict(self.options)

    def toml(self) -> str:
        """The text of a TOML file that says the same."""
        return "".join(f"{key} = {_toml(value)}\n" for key, value in self.values().items())

    def images(self, train: bool = True, data: str | None = None) -> FactoredImages:
        """Those that it trains on, or those of the data set to test with.

        Args:
            train: which.
            data: the folder of the data set's files, where it is no longer that of the training.

        Raises:
            ValueError: as `fastib.datasets.catalogue.open_dataset` does, or if there are fewer images than `examples`.
        """
        images = open_dataset(self.dataset, data or self.data, train)
        if not train:
            return images
        if self.examples > len(images):
            raise ValueError(f"examples must be at most {len(images)}, those of {self.dataset}, got {self.examples}")
        if self.examples > 0:
            images = Part(images, self.examples)
        return RandomLabels(images, self.random_labels, self.seed) if self.random_labels > 0 else images

    def learning_rate_at(self, step: int) -> float:
        """That of one step, counted from 0."""
        return self.learning_rate * self.decay ** (step // self.decay_steps)


def defaults_of(model: str) -> dict[str, Any]:
    """The keyword arguments of a model, and their defaults."""
    signature = inspect.signature(MODELS[model].__init__)
    return {name: p.default for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}


def keys(model: str) -> dict[str, type]:
    """All that the configuration of a model may have, and the types."""
    of_model, of_all = typing.get_type_hints(MODELS[model].__init__), typing.get_type_hints(Config)
    named = [f.name for f in fields(Config) if f.name != "options"]
    return {name: of_all[name] for name in named} | {name: of_model[name] for name in defaults_of(model)}


def of_command(model: str, preset: str | None, file: Path | None, flags: Sequence[str]) -> Config:
    """The configuration that a command line asks for: a preset, overridden by a file, overridden by flags.

    Raises:
        ValueError, TypeError: as `Config.of`, `read` and `parse` do, and for an unknown preset.
    """
    check_choice("model", model, tuple(MODELS))
    values: dict[str, Any] = {}
    if preset is not None:
        known = presets(model)
        check_choice("preset", preset, tuple(known))
        values |= known[preset]
    if file is not None:
        values |= read(file)
        if values.get("model", model) != model:
            raise ValueError(f"model must be that of {file}, {values['model']!r}, got {model!r}")
    return Config.of(values | {"model": model} | parse(flags, model))


def presets(model: str) -> dict[str, dict[str, Any]]:
    """The presets of a model, by their names."""
    return {name: {"model": model, **values} for name, values in read(PRESETS)[model].items()}


def read(path: Path) -> dict[str, Any]:
    """What a TOML file says.

    Raises:
        ValueError: if there is no such file, or it is no TOML.
    """
    toml, text = toml_reader(), _files.text("config", path)
    try:
        values: dict[str, Any] = toml.loads(text)
        return values
    except (ValueError, RecursionError) as error:  # no TOML, a number of too many digits, or arrays within arrays
        raise ValueError(f"config must be a TOML file, got {path}: {error}") from None


def parse(flags: Sequence[str], model: str) -> dict[str, Any]:
    """The values of flags, as --key value or --key=value.

    Raises:
        ValueError: for an unknown key, one without a value or with two, or a value that isn't of its type.
    """
    known = {key: kind for key, kind in keys(model).items() if key != "model"}
    values: dict[str, Any] = {}
    rest = list(flags)
    while rest:
        flag, *given = rest.pop(0).split("=", 1)
        key = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or key not in known:
            raise ValueError(f"{flag} must be a key of {model}, one of " + ", ".join(known))
        if key in values:
            raise ValueError(f"{key} must be given once")
        if not given and not rest:
            raise ValueError(f"{key} must be given a value")
        values[key] = _of_text(key, given[0] if given else rest.pop(0), known[key])
    return values


def _of_text(key: str, text: str, kind: type) -> Any:
    try:
        return {"true": True, "false": False}[text] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"{key} must be {_KINDS[kind]}, got {text!r}") from None


_KINDS: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def _of_type(key: str, value: Any, kind: type) -> Any:
    right = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not right:
        raise TypeError(f"{key} must be {_KINDS[kind]}, got {value!r}")
    try:
        return kind(value)
    except OverflowError:
        raise ValueError(
            f"{key} must be a number that a double can hold, got one of {len(str(value))} digits"
        ) from None


def _is_unicode(text: str) -> bool:
    """Whether a file can have it; Python reads other bytes of a command line as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):  # a JSON string is a TOML one, but for this character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
