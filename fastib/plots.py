"""Pictures of models and of their training, as PNG files: `python -m fastib plot`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastib import _files, checkpoints, functional, logs
from fastib._arguments import check_choice, check_integer
from fastib._extras import require
from fastib.checkpoints import Checkpoint
from fastib.evaluate import evaluation, seeded
from fastib.evaluate.scenes import CALIBRATING
from fastib.models import VAE, AllCNN, Entities, Model, MultiEntityVAE, SceneModel

COLUMNS = 11


@torch.no_grad()
def traversals(model: VAE, images: Tensor, path: Path) -> None:
    """Images over their reconstructions, and below them, a row for each latent dimension, what the first image becomes
    where the dimension goes from -3 to 3; in the order of their KL over the images, which are [n, C, H, W]."""
    mu, logvar = model.encode(images)
    kl = functional.gaussian_kl(mu, logvar, reduction="none").mean(0)
    order = kl.argsort(descending=True)
    codes = mu[:1].expand(len(order), COLUMNS, -1).clone()
    for row, dimension in enumerate(order):
        codes[row, :, dimension] = torch.linspace(-3, 3, COLUMNS)
    rows = model.decode(codes.flatten(0, 1)).unflatten(0, (len(order), COLUMNS))
    figure = new_figure(COLUMNS * 0.75 + 1.4, (len(order) + 2) * 0.75 + 1.3)
    above, below = figure.subfigures(2, 1, height_ratios=[2.6, len(order) + 0.6])
    pairs = [("original", images[:COLUMNS]), ("reconstruction", model.decode(mu[:COLUMNS]))]
    _grid(above, "Reconstructions", pairs)
    names = [f"{value:.2f} nats" for value in kl[order].tolist()]
    _grid(below, "Latent traversals, -3 to 3, by the KL of the dimension", list(zip(names, rows, strict=True)))
    save_figure(figure, path)


def dimensions(rows: Sequence[dict[str, float]], path: Path) -> None:
    """The KL of each latent dimension against the steps of the training, from the rows of its log.

    Source: Burgess et al. 2018, "Understanding disentangling in beta-VAE", figure 5.
    """
    figure = new_figure(7, 4.5)
    axis = figure.subplots()
    names = [name for name in rows[0] if name.startswith("kl_")]
    for name in sorted(names, key=lambda name: -rows[-1][name]):
        axis.plot([row["step"] for row in rows], [row[name] for row in rows], label=f"z {name.removeprefix('kl_')}")
    axis.set(xlabel="step of the optimiser", ylabel="KL of the dimension, nats", ylim=(0, None))
    axis.legend(fontsize=8, ncols=2)
    save_figure(figure, path)


def rate_distortion(points: Sequence[tuple[str, float, float]], path: Path) -> None:
    """Distortion against rate: a line through each kind of model, a point (kind, rate, distortion) for each run."""
    figure = new_figure(6, 4.5)
    axis = figure.subplots()
    for kind in dict.fromkeys(kind for kind, _, _ in points):
        of_kind = sorted((rate, distortion) for other, rate, distortion in points if other == kind)
        axis.plot(*zip(*of_kind, strict=True), "o-", label=kind)
    axis.set(xlabel="rate: KL, nats per image", ylabel="distortion: -log p(x | z), nats per image")
    axis.legend(fontsize=8)
    save_figure(figure, path)


@torch.no_grad()
def information_maps(model: AllCNN, images: Tensor, path: Path) -> None:
    """Images, and below them where each noisy layer takes its information from: its KL, summed over the channels.

    Source: Achille & Soatto 2018, "Information Dropout", figure 3.
    """
    maps = [layer.information.sum(1, keepdim=True) for layer in model.layers(images[:COLUMNS])]
    figure = new_figure(COLUMNS * 0.75 + 1.4, (1 + len(maps)) * 0.75 + 0.6)
    rows = [("image", images[:COLUMNS]), *((f"layer {i}", m / m.max()) for i, m in enumerate(maps, 1))]
    _grid(figure, "Information of each place, from none (black) to the most of its layer", rows)
    save_figure(figure, path)


@torch.no_grad()
def entities(model: SceneModel, images: Tensor, path: Path) -> None:
    """Images, what is composed of the entities that are found there, with the boxes that they were found in, if the
    model has any, and each entity by itself, black where none is. Below them, for a model that decodes codes: what an
    image becomes where a dimension of one entity's code goes from -3 to 3, in the order of their KL, and the others
    stay; of the entity that is found first in the first of the fullest images."""
    found = model.entities(images)
    own = found.images * found.there[..., None, None, None]
    rows = [("image", images), ("composition", model.compose(found))]
    rows += [(f"entity {k}", image) for k, image in enumerate(own.unbind(1), 1)]
    below = _traversals_of_an_entity(model, images) if isinstance(model, MultiEntityVAE) else []
    figure = new_figure(len(images) * 0.75 + 1.4, (len(rows) + len(below)) * 0.75 + 1.3)
    if below:
        above, under = figure.subfigures(2, 1, height_ratios=[len(rows) + 0.6, len(below) + 0.6])
        _grid(under, "Latent traversals of one entity, -3 to 3, by the KL of the dimension", below)
    _, composition, *_ = _grid(above if below else figure, "Entities", rows)
    if found.boxes is not None:
        _draw_boxes(composition, found.boxes, found.there)
    save_figure(figure, path)


def _draw_boxes(axes: Sequence[Any], boxes: Tensor, there: Tensor) -> None:
    """Those of what is there, over a row of images whose first pixel has its centre, not its edge, at 0."""
    from matplotlib.patches import Rectangle

    for axis, of_image, is_there in zip(axes, boxes - 0.5, there, strict=True):
        for left, top, right, bottom in of_image[is_there].tolist():
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="tab:red"))


def _traversals_of_an_entity(model: MultiEntityVAE, images: Tensor) -> list[tuple[str, Tensor]]:
    found = model.entities(images)
    if not found.there.any():
        return []
    fullest = int(found.there.sum(1).argmax())
    entity = int(found.there[fullest].int().argmax())
    kl = model.kl_of_dimensions(images)[fullest, entity]
    rows = []
    for dimension in kl.argsort(descending=True):
        codes = found.codes[fullest].repeat(COLUMNS, 1, 1)
        codes[:, entity, dimension] = torch.linspace(-3, 3, COLUMNS)
        there = found.there[fullest].expand(COLUMNS, -1)
        images_of_row = model.compose(Entities(there, codes, torch.zeros_like(codes), model.decode(codes)))
        rows.append((f"{kl[dimension]:.2f} nats", images_of_row))
    return rows


def run(kind: str, runs: Sequence[Path], output: Path | None = None, seed: int = 0, data: str | None = None) -> Path:
    """Draws a picture of runs, and prints where it is.

    Args:
        kind: "traversals", "information" or "entities" of a checkpoint, "dimensions" of a log, or "rate-distortion" of
            the evaluations of several runs.
        runs: their folders, of which all but "rate-distortion" take one.
        output: the PNG file (default: `kind`.png in the folder of the first run).
        seed: of the choice of the images.
        data: the folder of the data set's files, where it is no longer that of the training.

    Returns:
        The PNG file.

    Raises:
        ImportError: without matplotlib, which the extra `models` installs.
        ValueError: if a run lacks the file that is drawn from, has another kind of model, or was trained on other
            images.
    """
    require("matplotlib", "a picture")
    check_choice("kind", kind, tuple(_KINDS))
    check_integer("seed", seed, 0)
    if kind != "rate-distortion" and len(runs) != 1:
        raise ValueError(f"{kind} must be of one run, got {len(runs)}")
    picture = output or runs[0] / f"{kind}.png"
    with seeded(seed):
        _KINDS[kind](runs, picture, data)
    print(f"Wrote {picture}")
    return picture


def _of_traversals(runs: Sequence[Path], picture: Path, data: str | None) -> None:
    trained, model = _trained(runs[0])
    if isinstance(model, VAE):
        return traversals(model, _some_images(trained, 512, data), picture)
    raise ValueError(f"traversals must be of a VAE, got {trained.config.model} in {runs[0]}")


def _of_information(runs: Sequence[Path], picture: Path, data: str | None) -> None:
    trained, model = _trained(runs[0])
    if not isinstance(model, AllCNN) or trained.config.options["noise"] != "information":
        raise ValueError(f"information must be of Information Dropout, got {trained.config.model} in {runs[0]}")
    information_maps(model, _some_images(trained, COLUMNS, data), picture)


def _of_entities(runs: Sequence[Path], picture: Path, data: str | None) -> None:
    trained, model = _trained(runs[0])
    if isinstance(model, SceneModel):
        if isinstance(model, MultiEntityVAE):
            model.calibrate(_some_images(trained, CALIBRATING, data, train=True))
        return entities(model, _some_images(trained, COLUMNS, data), picture)
    raise ValueError(f"entities must be of a model of scenes, got {trained.config.model} in {runs[0]}")


def _of_dimensions(runs: Sequence[Path], picture: Path, data: str | None) -> None:
    rows = logs.read(runs[0] / logs.NAME)
    if not rows or "kl_1" not in rows[0]:
        raise ValueError(f"dimensions must be of the log of a VAE, got that of {runs[0]}")
    dimensions(rows, picture)


def _of_rate_distortion(runs: Sequence[Path], picture: Path, data: str | None) -> None:
    rate_distortion([_point(run) for run in runs], picture)


def _point(run: Path) -> tuple[str, float, float]:
    """Model, rate and distortion of a run that has been evaluated."""
    trained = checkpoints.load(run / checkpoints.NAME)
    results = evaluation(run)
    rate, distortion = (results.get(name) for name in ("rate", "distortion"))
    if results.get("step") != trained.step or not isinstance(rate, float) or not isinstance(distortion, float):
        raise ValueError(f"run must be a VAE that was evaluated since it was trained, got {run}")
    return trained.config.model, rate, distortion


def _trained(run: Path) -> tuple[Checkpoint, Model]:
    trained = checkpoints.load(run / checkpoints.NAME)
    return trained, checkpoints.trained_model(trained)


_KINDS: dict[str, Callable[[Sequence[Path], Path, str | None], None]] = {
    "traversals": _of_traversals,
    "information": _of_information,
    "entities": _of_entities,
    "dimensions": _of_dimensions,
    "rate-distortion": _of_rate_distortion,
}


def _some_images(trained: Checkpoint, count: int, data: str | None, train: bool = False) -> Tensor:
    dataset = checkpoints.images(trained, data, train)
    return dataset.images(torch.randint(len(dataset), (count,)))


def new_figure(width: float, height: float) -> Any:
    """An empty figure, of a size in inches."""
    require("matplotlib", "a picture")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Writes, or replaces, a PNG file at once; raises ValueError where it can't be written."""
    with _files.writing("output", "a file", path):
        _files.replace(path, lambda new: figure.savefig(new, dpi=100, format="png"))


def _grid(figure: Any, title: str, rows: Sequence[tuple[str, Tensor]]) -> Any:
    """A labelled row of images for each entry of `rows`; gives their axes, row by row."""
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(rows), len(rows[0][1]), squeeze=False)
    for (name, images), line in zip(rows, axes, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for image, axis in zip(images, line, strict=True):
            axis.imshow(image.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1)  # or three colours
            axis.set(xticks=[], yticks=[])
    return axes
