"""Images with a class each: of tensors, of the files of MNIST, and scikit-learn's digits."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor

from fastib._arguments import check_dense, check_flag, check_integer
from fastib.datasets import _idx
from fastib.datasets._images import FactoredImages

CLASSES = 10  # of MNIST and of the digits
DIGITS_FOR_TRAINING = 1437  # of 1797


class LabelledImages(FactoredImages):
    """Images with a label each, which is their one factor. The tensors are kept as they are, not copied.

    Args:
        images: [n, H, W] or [n, C, H, W], uint8 in [0, 255] or float32 in [0, 1]; at least one.
        labels: integers [n] in [0, classes).
        classes: how many there are; by default, one more than the largest label.

    Gradients: none, unless `images` require one.

    Raises:
        TypeError: if `images` or `labels` are no dense tensors, or of another dtype, or `classes` is not an integer.
        ValueError: for another shape, no image, pixels outside [0, 1], or labels outside [0, classes).

    >>> import torch
    >>> from fastib.datasets import LabelledImages
    >>> white = LabelledImages(torch.full([3, 2, 2], 255, dtype=torch.uint8), torch.tensor([0, 4, 1]))
    >>> white.factor_names, white.factor_sizes, white.image_shape
    (('label',), (5,), (1, 2, 2))
    >>> white[1]
    (tensor([[[1., 1.],
             [1., 1.]]]), 4)
    """

    factor_names = ("label",)

    def __init__(self, images: Tensor, labels: Tensor, classes: int | None = None) -> None:
        _check_images(images)
        _check_labels(labels, len(images), classes)
        self._pixels = images.unsqueeze(1) if images.dim() == 3 else images
        self._labels = labels.long()
        channels, height, width = self._pixels.shape[1:]
        self.image_shape = (channels, height, width)
        self.factor_sizes = (int(labels.max()) + 1 if classes is None else classes,)

    def __len__(self) -> int:
        return len(self._pixels)

    def _images(self, indices: Tensor) -> Tensor:
        pixels = self._pixels[indices]
        return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels

    def _factors(self, indices: Tensor) -> Tensor:
        return self._labels[indices].unsqueeze(1)


def _check_images(images: Tensor) -> None:
    _check_dtype("images", images, (torch.uint8, torch.float32))
    if images.dim() not in (3, 4) or images.numel() == 0:
        raise ValueError(f"images must be [n, H, W] or [n, C, H, W] and not empty, got shape {tuple(images.shape)}")
    if images.dtype == torch.float32:
        least, most = images.aminmax()
        if not (least >= 0 and most <= 1):  # so that NaN is refused, too
            raise ValueError(f"images must be in [0, 1], got pixels from {least:g} to {most:g}")


def _check_labels(labels: Tensor, n: int, classes: int | None) -> None:
    _check_dtype("labels", labels, (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
    if labels.shape != (n,):
        raise ValueError(f"labels must have one for each of the {n} images, got shape {tuple(labels.shape)}")
    if classes is not None:
        check_integer("classes", classes, 1)
    least, most = (int(label) for label in labels.aminmax())
    if least < 0 or (classes is not None and most >= classes):
        bound = "at least 0" if classes is None else f"in [0, {classes})"
        raise ValueError(f"labels must be {bound}, got {least if least < 0 else most}")


def _check_dtype(name: str, value: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must be {' or '.join(map(str, dtypes))}, got {value.dtype}")
    check_dense(name, value)


def mnist(folder: str | os.PathLike[str], train: bool = True) -> LabelledImages:
    """MNIST, or a data set in its format, such as Fashion-MNIST: uint8 [1, 28, 28], of 10 classes. As of all
    `FactoredImages`, what it gives is float32 in [0, 1].

    Args:
        folder: where the four files are, each as it is or compressed: train-images-idx3-ubyte[.gz],
            train-labels-idx1-ubyte[.gz], t10k-images-idx3-ubyte[.gz] and t10k-labels-idx1-ubyte[.gz]. Debian's package
            dataset-fashion-mnist has those of Fashion-MNIST in /usr/share/datasets/fashion-mnist.
        train: whether to read the 60 000 images to train with, or the 10 000 to test with.

    Raises:
        TypeError: if `train` is not a bool.
        FileNotFoundError: if a file is not there.
        ValueError: if a file is not what its name says, or there are not as many labels as images.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition"; Xiao et al. 2017,
    "Fashion-MNIST".

    >>> from fastib.datasets import mnist
    >>> mnist("/usr/share/datasets/fashion-mnist", train=False).image_shape  # doctest: +SKIP
    (1, 28, 28)
    """
    check_flag("train", train)
    part = "train" if train else "t10k"
    images_file = _file_of_mnist(Path(folder), f"{part}-images-idx3-ubyte")
    labels_file = _file_of_mnist(Path(folder), f"{part}-labels-idx1-ubyte")
    images, labels = _idx.read(images_file, 3), _idx.read(labels_file, 1)
    if len(labels) != len(images):
        raise ValueError(f"{labels_file} must have a label for each of the {len(images)} images, got {len(labels)}")
    if labels.max() >= CLASSES:
        raise ValueError(f"{labels_file} must have labels in [0, {CLASSES}), got {int(labels.max())}")
    return LabelledImages(images, labels, CLASSES)


def _file_of_mnist(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"folder must have the four files of MNIST or of Fashion-MNIST, got {os.fspath(folder)!r} without {name} or "
        f"{name}.gz (Debian's package dataset-fashion-mnist has Fashion-MNIST in /usr/share/datasets/fashion-mnist)"
    )


def digits(train: bool = True) -> LabelledImages:
    """The 1797 handwritten digits that come with scikit-learn: float32 [1, 8, 8], of 17 grey levels and 10 classes.

    Args:
        train: whether to give the first 1437, to train with, or the last 360, to test with. All classes are about as
            frequent in both.

    Raises:
        TypeError: if `train` is not a bool.
        ImportError: without scikit-learn, which the extra `models` installs.

    Source: Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.

    >>> from fastib.datasets import digits
    >>> len(digits()), len(digits(train=False)), digits().image_shape
    (1437, 360, (1, 8, 8))
    """
    check_flag("train", train)
    if importlib.util.find_spec("sklearn") is None:
        raise ImportError("digits needs scikit-learn: pip install 'fastib[models]'")
    from sklearn.datasets import load_digits

    every = load_digits()
    part = slice(DIGITS_FOR_TRAINING) if train else slice(DIGITS_FOR_TRAINING, None)
    images, labels = torch.from_numpy(every.images[part]), torch.from_numpy(every.target[part])
    return LabelledImages(images.float() / 16, labels, CLASSES)
