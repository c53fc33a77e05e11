"""The command `python -m fastib decompose`: the exact decomposition of a checkpoint, over all of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastib import _files, checkpoints
from fastib._results import ELBODecomposition
from fastib.metrics import exact_elbo_decomposition
from fastib.models import VAE, VIB

_NAMES = ("mutual information", "total correlation", "dimension-wise KL")


def run(checkpoint: Path, rows: int | None = None, seed: int = 0, data: str | None = None) -> ELBODecomposition:
    """Decomposes, with a progress bar, and prints what came of it. An interrupted run goes on when it is made again.

    Args:
        checkpoint: a file that `python -m fastib demo` or `train` wrote, whose model is to encode all that it was
            trained on, or that `torch.save({"mu": mu, "logvar": logvar}, checkpoint)` wrote: posteriors, two of [N, D],
            and maybe "z", a sample of each. What is done is kept beside it, in a file of its name and ".partial", until
            the end.
        rows: so many samples, drawn at random, instead of all; each meets all posteriors.
        seed: of the samples z and of the choice of rows.
        data: the folder of the data set's files, where it is no longer that of the training.

    Returns:
        The result of `fastib.metrics.exact_elbo_decomposition`.

    Raises:
        ValueError: if the file is none of them, its model has no Gaussian code or was trained on other images, and as
            `exact_elbo_decomposition` does: what is kept is of other weights, say.
        ImportError: without tqdm, which the extra `models` installs.
    """
    partial = partial_of(checkpoint)
    if partial.exists():
        print(f"Going on with {partial}.")
    terms = exact_elbo_decomposition(*_source(checkpoint, data), rows=rows, seed=seed, state=partial, progress=True)
    print(report(terms))
    return terms


def partial_of(checkpoint: Path) -> Path:
    """The file that keeps what is done."""
    return checkpoint.with_name(checkpoint.name + ".partial")


def _source(checkpoint: Path, data: str | None) -> tuple[Any, ...]:
    """The posteriors of a checkpoint, or an encoder and its data."""
    content = _files.load("checkpoint", checkpoint)
    if checkpoints.is_checkpoint(content):
        trained = checkpoints.of_content(content, checkpoint)
        model = checkpoints.trained_model(trained)
        if not isinstance(model, (VAE, VIB)):
            raise ValueError(f"checkpoint must be of a model with a Gaussian code, got {trained.config.model}")
        return model.encode, checkpoints.images(trained, data)
    keys = set(content) if isinstance(content, dict) else set()
    if {"mu", "logvar"} <= keys:
        return (tuple(content[name] for name in ("z", "mu", "logvar") if name in content),)
    raise ValueError(f"checkpoint must be one of python -m fastib train, or have mu and logvar, got {checkpoint}")


def report(terms: ELBODecomposition) -> str:
    """The terms as lines of text."""
    assert terms.standard_errors is not None
    lines = [
        f"{name:20}{value.item():11.5f} nats, standard error {error:.1g}"
        for name, value, error in zip(_NAMES, terms, terms.standard_errors, strict=True)
    ]
    lines[0] += f", ceiling {terms.mutual_information_ceiling:.5f}"
    lines.append(f"{'their sum, the KL':20}{sum(value.item() for value in terms):11.5f} nats")
    return "\n".join(lines)
