"""Files of torch.save: read with a clear error, and never half written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def load(name: str, path: Path) -> Any:
    """What a file has, tensors and plain values alone; `name` is the argument that gave its path."""
    try:
        # What was saved on a GPU is also loaded where there is none.
        return torch.load(path, weights_only=True, map_location=None if torch.cuda.is_available() else "cpu")
    except FileNotFoundError:
        raise ValueError(f"{name} must be a file, got {path}") from None
    except Exception as error:  # noqa: BLE001 - on junk the unpickler raises whatever it comes to
        raise ValueError(f"{name} must be a file of torch.save, got {path}: {type(error).__name__}") from None


def save(content: Any, path: Path) -> None:
    """Writes, or replaces, a file at once."""
    new = path.with_name(path.name + ".new")
    torch.save(content, new)
    os.replace(new, path)
