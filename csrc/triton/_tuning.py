"""The choice of tile sizes for the kernels on all pairs.

A choice fixes the order of their sums, and so may change last bits. It is made once for a device, the dtypes and a class
of sizes, and Triton keeps it on disk: every run after the first has the same bits. Where nothing may be timed, or the
bits must not depend on it, it is the first of the list: while a CUDA graph is captured, and under
torch.use_deterministic_algorithms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from ._launch import interpreted, launch, power_of_two

_MOST_OUTER, _MOST_LANES = 512, 2048  # of a tile under the interpreter


def tuned(*tiles: tuple[int, int, int]) -> Callable[[Any], Any]:
    """A kernel on tiles of OUTER x LANES pairs by so many warps: a short list to choose from, the safest first."""
    configs = [triton.Config({"OUTER": outer, "LANES": lanes}, num_warps=warps) for outer, lanes, warps in tiles]

    def decorate(function: Any) -> Any:
        kernel = triton.jit(function)
        return kernel if interpreted else triton.autotune(configs, key=["size_class"], cache_results=True)(kernel)

    return decorate


def _size_class(on: Tensor, *sizes: int) -> int:
    """The sizes to a power of two, on one device."""
    code = on.device.index or 0
    for size in sizes:
        code = code * 64 + size.bit_length()
    return code


def _may_time(on: Tensor) -> bool:
    capturing = on.is_cuda and torch.cuda.is_current_stream_capturing()
    return not (capturing or torch.are_deterministic_algorithms_enabled())


def launch_pairs(kernel: Any, outer: int, lanes: int, others: int, on: Tensor, *args: Any, **meta: Any) -> None:
    """Runs a tuned kernel for tiles of `outer`, each against all `lanes`, `others` times."""
    if outer == 0 or others == 0:
        return
    if interpreted:
        tile = power_of_two(outer, _MOST_OUTER)
        meta |= {"OUTER": tile, "LANES": power_of_two(lanes, _MOST_LANES), "size_class": 0}
        return launch(kernel, (triton.cdiv(outer, tile), others), on, *args, **meta)
    meta["size_class"] = _size_class(on, outer, lanes, others)

    def grid(chosen: dict[str, Any]) -> tuple[int, int]:
        return triton.cdiv(outer, chosen["OUTER"]), others

    if not _may_time(on):
        kernel, meta = kernel.fn, meta | kernel.configs[0].all_kwargs()
    launch(kernel, grid, on, *args, **meta)
