"""Data sets made of others: fewer images, or other labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastib._arguments import check_integer
from fastib.datasets._images import FactoredImages


class _Variant(FactoredImages):
    def __init__(self, of: FactoredImages) -> None:
        if not isinstance(of, FactoredImages):
            raise TypeError(f"of must be FactoredImages, got {type(of).__name__}")
        self._of = of
        self.factor_names, self.factor_sizes, self.image_shape = of.factor_names, of.factor_sizes, of.image_shape

    def __len__(self) -> int:
        return len(self._of)

    def _images(self, indices: Tensor) -> Tensor:
        return self._of.images(indices)

    def _factors(self, indices: Tensor) -> Tensor:
        return self._of.factors(indices)


class Part(_Variant):
    """The first images of a data set: an index gives what it gives there.

    Args:
        of: the data set.
        size: how many.

    Raises:
        TypeError: for an argument of another type.
        ValueError: if `size` is below 1 or above the number of images.

    >>> import torch
    >>> from fastib.datasets import LabelledImages, Part
    >>> white = LabelledImages(torch.ones(3, 2, 2), torch.tensor([0, 4, 1]))
    >>> part = Part(white, 2)
    >>> len(part), part.factors([1]), part.factor_sizes
    (2, tensor([[4]]), (5,))
    """

    def __init__(self, of: FactoredImages, size: int) -> None:
        super().__init__(of)
        check_integer("size", size, 1)
        if size > len(of):
            raise ValueError(f"size must be at most {len(of)}, got {size}")
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return self._of.__getitems__(self._checked(indices).tolist())


class RandomLabels(_Variant):
    """Labelled images of which some have a label that was drawn at random, from all, once: it is always the same.

    Args:
        of: images whose first factor is the label.
        fraction: of them that have a random one: each image with this probability.
        seed: of the draws.

    Raises:
        TypeError: for an argument of another type.
        ValueError: if `fraction` is not in [0, 1], or `seed` is negative.

    Source: Zhang et al. 2017, "Understanding deep learning requires rethinking generalization", section 2.

    >>> import torch
    >>> from fastib.datasets import LabelledImages, RandomLabels
    >>> white = LabelledImages(torch.ones(1000, 2, 2), torch.zeros(1000, dtype=torch.int64), classes=10)
    >>> labels = RandomLabels(white, 0.5).factors(range(1000))[:, 0]
    >>> (labels == 0).double().mean()  # a half, and a tenth of the other
    tensor(0.5580, dtype=torch.float64)
    """

    def __init__(self, of: FactoredImages, fraction: float, seed: int = 0) -> None:
        super().__init__(of)
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)):
            raise TypeError(f"fraction must be a number, got {type(fraction).__name__}")
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be in [0, 1], got {fraction}")
        check_integer("seed", seed, 0)
        generator = torch.Generator().manual_seed(seed)
        self._is_random = torch.rand(len(of), generator=generator) < fraction
        self._random = torch.randint(of.factor_sizes[0], (len(of),), generator=generator)

    def _factors(self, indices: Tensor) -> Tensor:
        factors = self._of.factors(indices).clone()
        factors[:, 0] = torch.where(self._is_random[indices], self._random[indices], factors[:, 0])
        return factors
