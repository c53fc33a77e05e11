"""The data sets that can be trained on, by their names."""

from __future__ import annotations

from collections.abc import Callable

from fastib._arguments import check_choice
from fastib.datasets._images import FactoredImages
from fastib.datasets.labelled import digits, mnist
from fastib.datasets.nuisances import Cluttered, Occluded
from fastib.datasets.sprites import Sprites

# Each is made of the folder of its files, and whether it is for training or for the test.
DATASETS: dict[str, Callable[[str, bool], FactoredImages]] = {
    "sprites": lambda data, train: Sprites(),
    "sprites-32": lambda data, train: Sprites(32),
    "digits": lambda data, train: digits(train),
    "mnist": lambda data, train: mnist(data, train),
    "fashion-mnist": lambda data, train: mnist(data, train),
    "occluded": lambda data, train: Occluded(mnist(data, train), digits(train)),
    "cluttered": lambda data, train: Cluttered(mnist(data, train)),
}


def open_dataset(name: str, data: str = "", train: bool = True) -> FactoredImages:
    """A data set by its name.

    Args:
        name: "sprites" (64 x 64) or "sprites-32", which are rendered and have no other images to test with; "digits",
            scikit-learn's; "mnist", "fashion-mnist"; or those two "occluded" by digits, or "cluttered".
        data: the folder with the files of all but the first three; see `fastib.datasets.mnist`.
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
