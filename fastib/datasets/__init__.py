"""Data sets that are computed, not downloaded."""

from fastib.datasets.sprites import Sprites

__all__ = ["Sprites"]
