"""What every operator does around its kernels: sizes of blocks, launches, arguments, outputs."""

from __future__ import annotations

import contextlib
import inspect
import struct
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from ._math import INTERPRETED

interpreted = bool(INTERPRETED.value)
_GPU_BLOCK = 512  # four elements of each thread: one counter of the noise
_GPU_TILE = 256  # with more, a number or two of a sum's loop spill on some architecture
_INTERPRETED_BLOCK = 2**17  # the interpreter's time goes by operations, not by elements
# Of every launch. Nothing is contracted behind the formulas' back, as where they are interpreted. And a thread may have
# all registers: else NVIDIA's assembler spills one or two for an occupancy of its own choice.
OPTIONS = {"enable_fp_fusion": False} | ({} if torch.version.hip else {"maxnreg": 255})

# Arguments of any value, for which nothing is compiled anew. Else Triton does for an integer that is 1, or a multiple
# of 16, or not. Aligned rows would be worth little to a tile of pairs; those of elements are, for wide accesses.
_OF_MIXTURES = "rows", "components", "dims", "row_offset", "stride", "gradient_stride", "size_class"
_OF_ELEMENTS = "outputs", "steps", "width", "mu_period", "logvar_period"
_BITS = "own", "log2_own", "log2_other", "log_base", "log_normaliser", "floor", "scale", "grad_scale"
_ONE_OR_NOT = "mu_inner", "logvar_inner"  # a division by 1 is none


def compiled_once(function: Any) -> Any:
    """A kernel, as triton.jit's, but for those arguments."""
    names = inspect.signature(function).parameters
    return triton.jit(
        function,
        do_not_specialize=[name for name in names if name in _OF_MIXTURES + _OF_ELEMENTS + _BITS],
        do_not_specialize_on_alignment=[name for name in names if name in _ONE_OR_NOT],
    )


def power_of_two(count: int, most: int, least: int = 1) -> int:
    """The smallest power of two that `count` fits in, between `least` and `most`."""
    return min(max(triton.next_power_of_2(max(count, 1)), least), most)


def block_size(count: int) -> int:
    """Elements of one program: whole groups of four, which share a counter of the noise."""
    return power_of_two(count, _INTERPRETED_BLOCK, 4) if interpreted else _GPU_BLOCK


def block_of_rows(count: int, most: int) -> int:
    """Rows of one program, where a kernel is for rows: on a GPU, the same for any `count`."""
    return power_of_two(count, most) if interpreted else most


def tile_size() -> int:
    """Elements that one program of a reduction has at once."""
    return _INTERPRETED_BLOCK if interpreted else _GPU_TILE


def on_device_of(t: Tensor) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(t.device) if t.is_cuda else contextlib.nullcontext()


def launch(
    kernel: Any, grid: tuple[int, ...] | Callable[..., tuple[int, ...]], on: Tensor, *args: Any, **meta: Any
) -> None:
    """Runs `kernel` on the device of `on`."""
    if isinstance(grid, tuple) and 0 in grid:
        return
    with on_device_of(on):
        kernel[grid](*args, **meta, **OPTIONS)


def launch_elements(kernel: Any, like: Tensor, *args: Any, **meta: Any) -> None:
    """Runs `kernel` on blocks of the elements of `like`, the number of which is its last argument."""
    block = block_size(like.numel())
    launch(kernel, (triton.cdiv(like.numel(), block),), like, *args, like.numel(), BLOCK=block, **meta)


def bits(value: float) -> int:
    """A float argument as `_elements.double_of` takes it."""
    return int(struct.unpack("q", struct.pack("d", value))[0])


def dense(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def target(out: Tensor | None) -> Tensor | None:
    """Where a kernel writes `out`, which has elements in logical order: itself, or what `deliver` copies to it."""
    return out if out is None or out.is_contiguous() else torch.empty(out.shape, dtype=out.dtype, device=out.device)


def deliver(out: Tensor, written: Tensor | None) -> Tensor:
    return out if written is None or written is out else out.copy_(written)


def wanted_like(like: Tensor, wanted: int) -> Tensor | None:
    return torch.empty_like(like) if wanted else None
