"""Files that are never half written; those of torch.save and of text, read with a clear error; and digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.new")  # another process may be writing, too
    try:
        write(new)
        with new.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
        os.replace(new, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # which the user knows
            if error.filename2 is not None:
                del error.filename2
        raise


@contextlib.contextmanager
def writing(name: str, what: str, path: Path) -> Iterator[None]:
    """Errors of the system, as those of the argument that gave the path, which must be `what` that can be written."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{name} must be {what} that can be written, got {path}: {reason}") from error


def digest(content: Any) -> str:
    """One of all of a value that torch.save can write: kinds, keys and the elements of tensors.

    Raises:
        RuntimeError, ValueError: for tensors that are not stored element by element, or a value that contains itself.
    """
    found = hashlib.sha256()
    for part in _bytes(content):
        found.update(part)
    return found.hexdigest()


def _bytes(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, dict):
        yield f"dict {len(value)}\n".encode()
        for key, entry in value.items():
            yield from _bytes(key)
            yield from _bytes(entry)
    elif isinstance(value, (list, tuple)):
        yield f"list {len(value)}\n".encode()
        for entry in value:
            yield from _bytes(entry)
    elif isinstance(value, Tensor):
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # expanded, maybe beyond memory
            raise ValueError(f"a tensor must be stored element by element, got one of shape {tuple(value.shape)}")
        yield f"tensor {value.dtype} {tuple(value.shape)}\n".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    else:
        yield f"{value!r}\n".encode()
