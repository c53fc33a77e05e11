"""The sprites data set, like dSprites, rendered from its factors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastib._arguments import check_integer
from fastib.datasets._images import FactoredImages, check_range, integers

CANVAS = 64
SIZES = (64, 32)
POSITIONS = 32  # a pixel apart, so that moving a sprite is moving a window over it
RADIUS = 16  # of the largest sprite, with the pixel that its edge may blur: what the positions leave free on all sides
HALF_SIDE = 11.0  # of the largest square, whose corners are the points farthest from the centre of any sprite
SUBPIXELS = 4


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) < 1


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    return u**2 / 2 + v**2 * 2 < 1


def _heart(u: Tensor, v: Tensor) -> Tensor:
    return (u**2 + v**2 - 1) ** 3 < u**2 * v**3


class Sprites(FactoredImages):
    """737 280 images of a white sprite on black, one for each combination of five factors::

        shape        3   square, ellipse, heart
        scale        6   0.5 to 1
        orientation  40  0 to 2 pi, counterclockwise; the last looks like the first, as in dSprites
        x            32  0 to 1, left to right
        y            32  0 to 1, top to bottom

    in row-major order: y changes fastest. Nothing is stored but the 720 sprites, each rendered once in the middle of a
    black field (26 MB, a fraction of a second): an image is the window of that field that puts the sprite in its place.

    Images are float32 [1, size, size] in [0, 1], edges smoothed over a pixel. All sprites are inside, whole. A sample
    is an image alone, without its factors.

    Args:
        size: 64, or 32 for images whose pixels are the means of 2 x 2 of those: a position is then half a pixel.

    Raises:
        TypeError: if `size` is not an integer.
        ValueError: if it is neither 64 nor 32.

    Source: Matthey et al. 2017, "dSprites: Disentanglement testing sprites dataset", whose factors these are.

    >>> from fastib.datasets import Sprites
    >>> sprites = Sprites()
    >>> len(sprites), sprites[0].shape
    (737280, torch.Size([1, 64, 64]))
    >>> sprites.factors([0, 33])
    tensor([[0, 0, 0, 0, 0],
            [0, 0, 0, 1, 1]])
    """

    factor_names = ("shape", "scale", "orientation", "x", "y")
    factor_sizes = (3, 6, 40, POSITIONS, POSITIONS)

    def __init__(self, size: int = CANVAS) -> None:
        check_integer("size", size, 1)
        if size not in SIZES:
            raise ValueError(f"size must be {' or '.join(map(str, SIZES))}, got {size}")
        step = CANVAS // size
        field = F.avg_pool2d(F.pad(_render_sprites(), [POSITIONS - 1] * 4), step, stride=1)
        windows = field.unfold(1, CANVAS - step + 1, 1).unfold(2, CANVAS - step + 1, 1)
        self._windows = windows[..., ::step, ::step]  # a view: [sprite, row, column, size, size]
        self.image_shape = (1, size, size)

    def __len__(self) -> int:
        return math.prod(self.factor_sizes)

    def __getitem__(self, index: int) -> Tensor:
        """An image: a tensor [1, size, size]."""
        return self.images([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """A batch at once, for `torch.utils.data.DataLoader`."""
        return list(self.images(indices))

    def _images(self, indices: Tensor) -> Tensor:
        shape, scale, orientation, x, y = self._factors(indices).unbind(1)
        sprite = (shape * self.factor_sizes[1] + scale) * self.factor_sizes[2] + orientation
        return self._windows[sprite, POSITIONS - 1 - y, POSITIONS - 1 - x].unsqueeze(1)

    def _factors(self, indices: Tensor) -> Tensor:
        return torch.stack(torch.unravel_index(indices, self.factor_sizes), dim=1)

    def index(self, factors: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """The indices of the images with `factors` [n, 5], each in [0, its size): int64 [n].

        Raises:
            IndexError: for a factor out of range.
            ValueError: if `factors` are not integers, or not of shape [n, 5].
        """
        factors = integers("factors", factors)
        if factors.dim() != 2 or factors.shape[1] != len(self.factor_sizes):
            raise ValueError(f"factors must have shape (n, {len(self.factor_sizes)}), got {tuple(factors.shape)}")
        index = factors.new_zeros(len(factors))
        for name, size, values in zip(self.factor_names, self.factor_sizes, factors.unbind(1), strict=True):
            check_range(f"factors: {name}", values, size)
            index = index * size + values
        return index


class CentredSprites(FactoredImages):
    """The 720 sprites of `Sprites` in the middle, 33 x 33: one for each shape, scale and orientation.

    >>> from fastib.datasets import CentredSprites
    >>> sprites = CentredSprites()
    >>> len(sprites), sprites.image_shape, sprites.factor_names
    (720, (1, 33, 33), ('shape', 'scale', 'orientation'))
    """

    factor_names, factor_sizes = Sprites.factor_names[:3], Sprites.factor_sizes[:3]
    image_shape = (1, 2 * RADIUS + 1, 2 * RADIUS + 1)

    def __init__(self) -> None:
        self._sprites = _render_sprites().unsqueeze(1)

    def __len__(self) -> int:
        return len(self._sprites)

    def _images(self, indices: Tensor) -> Tensor:
        return self._sprites[indices]

    def _factors(self, indices: Tensor) -> Tensor:
        return torch.stack(torch.unravel_index(indices, self.factor_sizes), dim=1)


def _render_sprites() -> Tensor:
    """Every shape, scale and orientation, centred: [720, 33, 33]."""
    _, scales, orientations = Sprites.factor_sizes[:3]
    side = 2 * RADIUS + 1
    axis = (torch.arange(side * SUBPIXELS) + 0.5) / SUBPIXELS - side / 2
    right, up = axis, -axis.unsqueeze(1)
    size = HALF_SIDE * torch.linspace(0.5, 1, scales).view(-1, 1, 1, 1)
    angle = torch.linspace(0, 2 * math.pi, orientations).view(-1, 1, 1)
    u = (torch.cos(angle) * right + torch.sin(angle) * up) / size
    v = (torch.cos(angle) * up - torch.sin(angle) * right) / size
    inside = torch.stack([shape(u, v) for shape in (_square, _ellipse, _heart)])
    return F.avg_pool2d(inside.flatten(0, 2).float(), SUBPIXELS)
