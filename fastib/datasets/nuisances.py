"""Labelled images with something in them that doesn't tell the label, and is known: for measuring what is kept of
it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastib._arguments import check_integer
from fastib.datasets._images import FactoredImages
from fastib.datasets.labelled import LabelledImages


class Occluded(FactoredImages):
    """Images with another one, white where it is bright, in front of their middle::

        image * (1 - occluder) + occluder

    Which occluder an image has is drawn once: it is always the same. The factors are the image's label, and the
    occluder's, which is the nuisance and independent of it.

    Args:
        images: what is occluded.
        occluders: of one channel; resized, bilinearly, to `side` x `side`.
        side: at most the height and the width of the images.
        seed: of the draws.

    Raises:
        TypeError: for an argument of another type.
        ValueError: if `side` is too large or below 1, `seed` is negative, or occluders have several channels.

    Source: Achille & Soatto 2018, "Information Dropout", whose CIFAR-10 is occluded by MNIST.

    >>> import torch
    >>> from fastib.datasets import LabelledImages, Occluded
    >>> black = LabelledImages(torch.zeros(100, 5, 5), torch.zeros(100, dtype=torch.int64))
    >>> white = LabelledImages(torch.ones(2, 1, 1), torch.tensor([0, 1]))
    >>> occluded = Occluded(black, white, side=3)
    >>> occluded.factor_names, occluded.factor_sizes
    (('label', 'nuisance'), (1, 2))
    >>> occluded.images([0])[0, 0]
    tensor([[0., 0., 0., 0., 0.],
            [0., 1., 1., 1., 0.],
            [0., 1., 1., 1., 0.],
            [0., 1., 1., 1., 0.],
            [0., 0., 0., 0., 0.]])
    """

    factor_names = ("label", "nuisance")

    def __init__(self, images: LabelledImages, occluders: LabelledImages, side: int = 16, seed: int = 0) -> None:
        _check_labelled("images", images)
        _check_labelled("occluders", occluders)
        if occluders.image_shape[0] != 1:
            raise ValueError(f"occluders must have one channel, got images of {occluders.image_shape}")
        _, height, width = images.image_shape
        check_integer("side", side, 1)
        if side > min(height, width):
            raise ValueError(f"side must be at most {min(height, width)}, for images {height} x {width}, got {side}")
        check_integer("seed", seed, 0)
        self._scenes, self._which = images, _draws(len(images), seed, len(occluders))[:, 0]
        resized = F.interpolate(occluders.images(range(len(occluders))), (side, side), mode="bilinear", antialias=True)
        self._occluders = resized.clamp(0, 1)  # rounding may be beyond
        self._nuisances = occluders.factors(self._which)
        top, left = (height - side) // 2, (width - side) // 2
        self._margins = [left, width - side - left, top, height - side - top]
        self.image_shape = images.image_shape
        self.factor_sizes = images.factor_sizes + occluders.factor_sizes

    def __len__(self) -> int:
        return len(self._scenes)

    def _images(self, indices: Tensor) -> Tensor:
        occluder = F.pad(self._occluders[self._which[indices]], self._margins)
        return self._scenes.images(indices) * (1 - occluder) + occluder

    def _factors(self, indices: Tensor) -> Tensor:
        return torch.cat([self._scenes.factors(indices), self._nuisances[indices]], dim=1)


class Cluttered(FactoredImages):
    """Images somewhere on a larger black canvas, among pieces of others: the brightest is in front.

    Where an image is and which pieces are where is drawn once: it is always the same. The factors are the image's
    label, and the row and column of its upper left corner, which are the nuisance and independent of it. All places
    where it is inside, whole, are as likely; so are those of the pieces, and what they are cut from.

    Args:
        images: what is placed.
        side: of the canvas, which is square.
        pieces: how many there are.
        piece: the side of a piece, at most the height and the width of the images.
        seed: of the draws.

    Raises:
        TypeError: for an argument of another type.
        ValueError: if `side` is too small, `piece` too large or below 1, `pieces` or `seed` negative, or there are
            pieces but no others to cut them from.

    Source: Mnih et al. 2014, "Recurrent Models of Visual Attention", whose cluttered translated MNIST this is.

    >>> import torch
    >>> from fastib.datasets import Cluttered, LabelledImages
    >>> white = LabelledImages(torch.ones(100, 2, 2), torch.zeros(100, dtype=torch.int64))
    >>> cluttered = Cluttered(white, side=5, pieces=1, piece=1)
    >>> cluttered.factor_names, cluttered.factor_sizes
    (('label', 'row', 'column'), (1, 4, 4))
    >>> cluttered.image_shape
    (1, 5, 5)
    """

    factor_names = ("label", "row", "column")

    def __init__(self, images: LabelledImages, side: int = 60, pieces: int = 4, piece: int = 8, seed: int = 0) -> None:
        _check_labelled("images", images)
        channels, height, width = images.image_shape
        check_integer("side", side, max(height, width))
        check_integer("pieces", pieces, 0)
        check_integer("piece", piece, 1)
        if piece > min(height, width):
            raise ValueError(f"piece must be at most {min(height, width)}, for images {height} x {width}, got {piece}")
        if pieces > 0 and len(images) == 1:
            raise ValueError(f"images must be at least 2, to cut {pieces} pieces from others, got 1")
        check_integer("seed", seed, 0)
        self._scenes, self._piece = images, piece
        self.image_shape = (channels, side, side)
        self.factor_sizes = (*images.factor_sizes, side - height + 1, side - width + 1)
        of_piece = (len(images) - 1, height - piece + 1, width - piece + 1, side - piece + 1, side - piece + 1)
        draws = _draws(len(images), seed, *self.factor_sizes[1:], *of_piece * pieces)
        self._places, self._pieces = draws[:, :2], draws[:, 2:].unflatten(1, (pieces, len(of_piece)))

    def __len__(self) -> int:
        return len(self._scenes)

    def _images(self, indices: Tensor) -> Tensor:
        scenes = self._scenes.images(indices)
        canvas = scenes.new_zeros(len(indices), *self.image_shape)
        _paste(canvas, scenes, *self._places[indices].unbind(1))
        for piece in self._pieces[indices].unbind(1):
            distance, top, left, row, column = piece.unbind(1)
            others = self._scenes.images((indices + 1 + distance) % len(self))
            _paste(canvas, _windows(others, self._piece, self._piece)[_at(top, left)], row, column)
        return canvas

    def _factors(self, indices: Tensor) -> Tensor:
        return torch.cat([self._scenes.factors(indices), self._places[indices]], dim=1)


def _check_labelled(name: str, images: LabelledImages) -> None:
    if not isinstance(images, LabelledImages):
        raise TypeError(f"{name} must be LabelledImages, got {type(images).__name__}")


def _draws(n: int, seed: int, *sizes: int) -> Tensor:
    """For each of n indices, an integer below each of the sizes: [n, len(sizes)]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(size, (n,), generator=generator) for size in sizes], dim=1)


def _windows(images: Tensor, height: int, width: int) -> Tensor:
    """Every part of that size, as a view: [n, C, row, column, height, width]."""
    return images.unfold(2, height, 1).unfold(3, width, 1)


def _at(row: Tensor, column: Tensor) -> tuple[Tensor, slice, Tensor, Tensor]:
    """The index of the window of each image that is at its row and column: gives [n, C, height, width]."""
    return torch.arange(len(row)), slice(None), row, column


def _paste(canvas: Tensor, images: Tensor, row: Tensor, column: Tensor) -> None:
    windows, at = _windows(canvas, *images.shape[2:]), _at(row, column)
    windows[at] = torch.maximum(windows[at], images)
