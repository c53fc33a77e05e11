"""Data sets of images that are labelled by their factors: computed, or read from files that are there. None
downloads."""

from fastib.datasets._images import FactoredImages
from fastib.datasets.labelled import LabelledImages, digits, mnist
from fastib.datasets.nuisances import Cluttered, Occluded
from fastib.datasets.scenes import Scenes
from fastib.datasets.sprites import CentredSprites, Sprites
from fastib.datasets.variants import Part, RandomLabels

__all__ = [
    "CentredSprites",
    "Cluttered",
    "FactoredImages",
    "LabelledImages",
    "Occluded",
    "Part",
    "RandomLabels",
    "Scenes",
    "Sprites",
    "digits",
    "mnist",
]
