"""Scenes of several objects: how many there are, what they are and where is known."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastib._arguments import check_integer
from fastib.datasets._images import FactoredImages

DRAWS = 200  # of the places of a scene's objects, until they are far enough apart: one in 10 or so is, if there is room


class Scenes(FactoredImages):
    """Black canvases with none to several of another data set's images, the objects, somewhere on each, inside, whole;
    where two overlap, the brighter is seen.

    What is where is drawn once: it is always the same. Every count is as likely; so is every object, and every place,
    as far as the objects of a scene are apart: by three quarters of their side, from centre to centre, unless there is
    no room for that. The factors are the count and then, of each object, its own factors, its row and its column (of
    its upper left corner), each from 1, and 0 where there is no object.

    Args:
        objects: of one channel; resized, with antialiasing, to `size` x `size`.
        scenes: how many there are.
        side: of the canvas, which is square.
        size: of an object, at most `side`.
        most: the largest number of objects.
        seed: of the draws.

    Raises:
        TypeError: for an argument of another type.
        ValueError: if `size` is larger than the canvas, a number is below 1, `seed` is negative, or the objects have
            several channels.

    Source: Eslami et al. 2016, "Attend, Infer, Repeat", section 3.1, whose multi-MNIST is of this kind.

    >>> import torch
    >>> from fastib.datasets import LabelledImages, Scenes
    >>> white = LabelledImages(torch.ones(4, 1, 1), torch.tensor([0, 1, 2, 3]))
    >>> scenes = Scenes(white, scenes=100, side=5, size=2, most=2)
    >>> scenes.factor_names
    ('count', 'label_1', 'row_1', 'column_1', 'label_2', 'row_2', 'column_2')
    >>> scenes.factor_sizes
    (3, 5, 5, 5, 5, 5, 5)
    >>> counts = scenes.factors(range(100))[:, 0]
    >>> torch.equal(scenes.images(range(100)).amax((1, 2, 3)), (counts > 0).float())
    True
    """

    def __init__(
        self,
        objects: FactoredImages,
        *,
        scenes: int = 60_000,
        side: int = 50,
        size: int = 20,
        most: int = 2,
        seed: int = 0,
    ) -> None:
        if not isinstance(objects, FactoredImages):
            raise TypeError(f"objects must be FactoredImages, got {type(objects).__name__}")
        if objects.image_shape[0] != 1:
            raise ValueError(f"objects must have one channel, got images of {objects.image_shape}")
        for name, value in (("scenes", scenes), ("side", side), ("size", size), ("most", most)):
            check_integer(name, value, 1)
        check_integer("seed", seed, 0)
        if size > side:
            raise ValueError(f"size must be at most {side}, the side of the canvas, got {size}")
        generator = torch.Generator().manual_seed(seed)
        self._counts = torch.randint(most + 1, (scenes,), generator=generator)
        self._which = torch.randint(len(objects), (scenes, most), generator=generator)
        self._places = _apart(self._counts, most, side - size + 1, size * 3 / 4, generator)
        self._resized = _resized(objects, size)
        self._objects, self.size, self.most = objects, size, most
        self.image_shape = (1, side, side)
        own = tuple(n + 1 for n in objects.factor_sizes)
        of_object = (*own, side - size + 2, side - size + 2)
        self.factor_sizes = (most + 1, *of_object * most)
        self.factor_names = (
            "count",
            *(f"{name}_{k}" for k in range(1, most + 1) for name in (*objects.factor_names, "row", "column")),
        )

    def __len__(self) -> int:
        return len(self._counts)

    def _images(self, indices: Tensor) -> Tensor:
        canvas = self._resized.new_zeros(len(indices), *self.image_shape)
        windows = canvas.unfold(2, self.size, 1).unfold(3, self.size, 1)
        for k in range(self.most):
            there = (self._counts[indices] > k).nonzero().squeeze(1)
            row, column = self._places[indices[there], k].unbind(1)
            at = there, slice(None), row, column
            windows[at] = torch.maximum(windows[at], self._resized[self._which[indices[there], k]])
        return canvas

    def _factors(self, indices: Tensor) -> Tensor:
        counts, columns = self._counts[indices], []
        for k in range(self.most):
            own = self._objects.factors(self._which[indices, k])
            columns.append(torch.cat([own, self._places[indices, k]], dim=1).add(1) * (counts > k).unsqueeze(1))
        return torch.cat([counts.unsqueeze(1), *columns], dim=1)


def _resized(objects: FactoredImages, size: int) -> Tensor:
    images = objects.images(range(len(objects)))
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True).clamp(0, 1)  # rounding may be beyond


def _apart(counts: Tensor, most: int, places: int, distance: float, generator: torch.Generator) -> Tensor:
    """Rows and columns of so many objects, [n, most, 2]; those that there are, at least so far from each other."""
    there = torch.arange(most) < counts.unsqueeze(1)
    pairs = (there.unsqueeze(1) & there.unsqueeze(2)).triu(1)
    found = torch.zeros(len(counts), most, 2, dtype=torch.int64)
    wanted = torch.arange(len(counts))
    for _ in range(DRAWS):
        found[wanted] = torch.randint(places, (len(wanted), most, 2), generator=generator)
        drawn = found[wanted]
        squares = (drawn.unsqueeze(1) - drawn.unsqueeze(2)).square().sum(-1)
        wanted = wanted[((squares < distance**2) & pairs[wanted]).any((1, 2))]
        if not len(wanted):
            break
    return found
