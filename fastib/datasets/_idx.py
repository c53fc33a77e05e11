"""The files of MNIST: IDX, an array of bytes after a header that has its shape."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

_UNSIGNED_BYTE = 8


def read(path: Path, dims: int) -> Tensor:
    """The array of a file, which may be compressed: uint8, of `dims` dimensions, not empty.

    Raises:
        ValueError: if the file is anything else.

    Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits", file formats.
    """
    content = _decompressed(path) if path.suffix == ".gz" else path.read_bytes()
    start = 4 + 4 * dims
    magic = bytes([0, 0, _UNSIGNED_BYTE, dims])
    if content[:4] != magic or len(content) < start:
        raise ValueError(
            f"{path} must be an IDX file of bytes in {dims} dimensions, which begins with {magic.hex()} and is at "
            f"least {start} bytes long, got {content[:4].hex()} and {len(content)}"
        )
    shape = struct.unpack(f">{dims}I", content[4:start])
    if len(content) - start != math.prod(shape) or math.prod(shape) == 0:
        raise ValueError(f"{path} must have the bytes of an array {list(shape)}, not empty, got {len(content) - start}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)


def _decompressed(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a file of gzip: {error}") from None
