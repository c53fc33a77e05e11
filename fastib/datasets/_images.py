"""What all data sets of images have in common."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class FactoredImages(Dataset[Any], abc.ABC):
    """Images, and the integers that they were made from or are labelled with: their factors.

    A subclass says how many there are, in `__len__`, and what they are, in `_images` and `_factors`, of indices that
    have passed the checks. What an index gives depends on the arguments of the data set alone: in any order, batch, or
    process of a `torch.utils.data.DataLoader` it is the same, and no random number of PyTorch is drawn. A sample is an
    image, float32 [C, H, W] in [0, 1], and its K factors, ints (of `Sprites`, the image alone).

    Attributes:
        factor_names: K strings.
        factor_sizes: for each factor, the number of its values, which count from 0.
        image_shape: (C, H, W), ints.

    Gradients: none, unless a tensor that the images are made of requires one.

    Raises:
        IndexError: for an index out of range.
        ValueError: for indices that are not integers, or not of one dimension.

    >>> import torch
    >>> from fastib.datasets import FactoredImages
    >>> class Greys(FactoredImages):
    ...     factor_names, factor_sizes, image_shape = ("level",), (256,), (1, 2, 2)
    ...
    ...     def __len__(self):
    ...         return 256
    ...
    ...     def _images(self, indices):
    ...         return (indices / 255).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    ...
    ...     def _factors(self, indices):
    ...         return indices.unsqueeze(1)
    >>> Greys()[255]
    (tensor([[[1., 1.],
             [1., 1.]]]), 255)
    """

    factor_names: tuple[str, ...]
    factor_sizes: tuple[int, ...]
    image_shape: tuple[int, int, int]

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def _images(self, indices: Tensor) -> Tensor: ...

    @abc.abstractmethod
    def _factors(self, indices: Tensor) -> Tensor: ...

    def __getitem__(self, index: int) -> Any:
        """An image and its factors: a tensor [C, H, W] and K ints."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """A batch at once, for `torch.utils.data.DataLoader`."""
        return list(zip(self.images(indices), *self.factors(indices).T.tolist(), strict=True))

    def images(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The images at `indices` [n], in [0, len): float32 [n, C, H, W] in [0, 1].

        Raises:
            IndexError: for an index out of range.
            ValueError: if `indices` are not integers, or not of one dimension.
        """
        return self._images(self._checked(indices))

    def factors(self, indices: Tensor | Sequence[int]) -> Tensor:
        """The factors of the images at `indices` [n], in the order of `factor_names`: int64 [n, K].

        Raises:
            IndexError: for an index out of range.
            ValueError: if `indices` are not integers, or not of one dimension.
        """
        return self._factors(self._checked(indices))

    def _checked(self, indices: Tensor | Sequence[int]) -> Tensor:
        indices = integers("indices", indices)
        if indices.dim() != 1:
            raise ValueError(f"indices must have one dimension, got shape {tuple(indices.shape)}")
        check_range("indices", indices, len(self))
        return indices


def integers(name: str, values: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(f"{name} must be integers, got {values!r}") from None
    # Of an empty list, PyTorch makes floats.
    if tensor.numel() > 0 and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise ValueError(f"{name} must be integers, got {tensor.dtype}")
    return tensor.long()


def check_range(name: str, values: Tensor, size: int) -> None:
    wrong = values[(values < 0) | (values >= size)]
    if len(wrong) > 0:
        raise IndexError(f"{name} must be in [0, {size}), got {wrong[0].item()}")
