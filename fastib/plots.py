"""Pictures of models, as PNG files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor


def require_matplotlib() -> None:
    """Raises ImportError, naming the extra, where there is no matplotlib: before long work, not after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("pictures need matplotlib: pip install 'fastib[models]'")


def vae_picture(path: Path, originals: Tensor, reconstructions: Tensor, traversals: Tensor, kl: Tensor) -> None:
    """Originals over their reconstructions, and below them the traversals, one row per latent dimension.

    Args:
        path: the PNG file to write.
        originals, reconstructions: images in [0, 1], [n, 1, H, W].
        traversals: images [dimensions, columns, 1, H, W], in the order of the rows.
        kl: the KL of each row's dimension in nats, [dimensions].

    Raises:
        ImportError: without matplotlib, which the extra `models` installs.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    rows, columns = traversals.shape[:2]
    figure = Figure(figsize=(columns * 0.75 + 1.4, (rows + 2) * 0.75 + 1.3), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.6, rows + 0.6])  # its annotation knows one part only
    above, below = parts
    pairs = [("original", originals[:columns]), ("reconstruction", reconstructions[:columns])]
    _grid(above, "Reconstructions", pairs)
    names = [f"{value:.2f} nats" for value in kl.tolist()]
    _grid(below, "Latent traversals, -3 to 3, by the KL of the dimension", list(zip(names, traversals, strict=True)))
    figure.savefig(path, dpi=100, format="png")


def _grid(figure: Any, title: str, rows: list[tuple[str, Tensor]]) -> None:
    """A labelled row of images for each entry of `rows`."""
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(len(rows), len(rows[0][1]), squeeze=False)
    for (name, images), line in zip(rows, axes, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        for image, axis in zip(images, line, strict=True):
            axis.imshow(image.squeeze(0).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
