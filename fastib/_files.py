"""Files that are never half written; and those of torch.save, read with a clear error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def load(name: str, path: Path, device: str | None = None) -> Any:
    """What a file has, tensors and plain values alone; `name` is the argument that gave its path."""
    try:
        # What was saved on a GPU is also loaded where there is none.
        place = device if torch.cuda.is_available() else "cpu"
        return torch.load(path, weights_only=True, map_location=place)
    except FileNotFoundError:
        raise ValueError(f"{name} must be a file, got {path}") from None
    except Exception as error:  # noqa: BLE001 - on junk the unpickler raises whatever it comes to
        raise ValueError(f"{name} must be a file of torch.save, got {path}: {type(error).__name__}") from None


def text(name: str, path: Path) -> str:
    """What a file of text says; `name` is the argument that gave its path."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} must be a file of text, got {path}: {type(error).__name__}") from None


def save(content: Any, path: Path) -> None:
    """Writes, or replaces, a file of torch.save at once."""

    def write(new: Path) -> None:
        with new.open("wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # what becomes of a full disk when PyTorch then closes its archive
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    replace(path, write)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Puts what `write` writes to the path that it is given in the place of a file at once, or leaves it as it was."""
    new = path.with_name(path.name + ".new")
    try:
        write(new)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise
