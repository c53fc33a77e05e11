"""The data sets that can be trained on, by their names."""

from __future__ import annotations

from collections.abc import Callable

from fastib._arguments import check_choice
from fastib.datasets._images import FactoredImages
from fastib.datasets.labelled import digits, mnist
from fastib.datasets.nuisances import Cluttered, Occluded
from fastib.datasets.scenes import Scenes
from fastib.datasets.sprites import CentredSprites, Sprites

# Each is made of the folder of its files, and whether it is for training or for the test.
DATASETS: dict[str, Callable[[str, bool], FactoredImages]] = {
    "sprites": lambda data, train: Sprites(),
    "sprites-32": lambda data, train: Sprites(32),
    "digits": lambda data, train: digits(train),
    "mnist": lambda data, train: mnist(data, train),
    "fashion-mnist": lambda data, train: mnist(data, train),
    "occluded": lambda data, train: Occluded(mnist(data, train), digits(train)),
    "cluttered": lambda data, train: Cluttered(mnist(data, train)),
    "sprite-scenes": lambda data, train: _scenes(CentredSprites(), train, most=3),
    "sprite-scenes-32": lambda data, train: _scenes(CentredSprites(), train, side=32, size=14, most=3),
    "digit-scenes": lambda data, train: _scenes(digits(train), train),
    "mnist-scenes": lambda data, train: _scenes(mnist(data, train), train, size=28),
}


def _scenes(objects: FactoredImages, train: bool, **options: int) -> Scenes:
    return Scenes(objects, scenes=60_000 if train else 10_000, seed=0 if train else 1, **options)


def open_dataset(name: str, data: str = "", train: bool = True) -> FactoredImages:
    """A data set by its name.

    Args:
        name: "sprites" (64 x 64) or "sprites-32", which are rendered and have no other images to test with; "digits",
            scikit-learn's; "mnist", "fashion-mnist"; those two "occluded" by digits, or "cluttered"; or scenes of
            several: "sprite-scenes" (up to 3 on 50 x 50), "sprite-scenes-32" (on 32 x 32), "digit-scenes" (up to 2 on
            50 x 50) or "mnist-scenes".
        data: the folder with the files of MNIST or Fashion-MNIST, if it is made of them; see `fastib.datasets.mnist`.
        train: the images to train with, or those to test with.

    Raises:
        ValueError: for an unknown name, or files that are missing or wrong.
        ImportError: without scikit-learn, where there are digits.
    """
    check_choice("dataset", name, tuple(DATASETS))
    try:
        return DATASETS[name](data, train)
    except (OSError, ValueError) as error:
        raise ValueError(f"data must be the folder of the files of {name}, got {data!r}: {error}") from None
