"""The choice of tile sizes for the kernels on all pairs.

A choice fixes the order of their sums, and so may change last bits. It is made once for a device, the dtypes and a
class of sizes, and Triton keeps it on disk: every run after the first has the same bits. Where the bits must not depend
on it, it is the first of the list: under torch.use_deterministic_algorithms. A CUDA graph has the choice of its
warm-up, without which it could neither time nor load anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import OPTIONS, compiled_once, interpreted, launch, on_device_of, power_of_two

_MOST_PROGRAMS = 65535  # along a grid's second axis
_MOST_OUTER, _MOST_LANES = 512, 2048  # of a tile under the interpreter


def tuned(*tiles: tuple[int, int, int]) -> Callable[[Any], Any]:
    """A kernel on tiles of OUTER x LANES pairs by so many warps: a short list to choose from, the safest first."""
    configs = [triton.Config({"OUTER": outer, "LANES": lanes}, num_warps=warps) for outer, lanes, warps in tiles]

    def decorate(function: Any) -> Any:
        kernel = compiled_once(function)
        return kernel if interpreted else triton.autotune(configs, key=["size_class"], cache_results=True)(kernel)

    return decorate


def _size_class(on: Tensor, *sizes: int) -> int:
    """The sizes to a power of two, on one device."""
    code = on.device.index or 0
    for size in sizes:
        code = code * 64 + size.bit_length()
    return code


_chosen: dict[tuple[Any, ...], Any] = {}  # the tiles of what has run
_one_at_a_time = threading.Lock()  # an Autotuner keeps the arguments of a call in itself


def _known_tiles(kernel: Any, key: tuple[Any, ...], on: Tensor) -> Any:
    """None where they are to be timed."""
    if torch.are_deterministic_algorithms_enabled():
        return kernel.configs[0]
    if key not in _chosen and on.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("fastib: a call in a CUDA graph must have run before the capture, on tensors of such sizes")
    return _chosen.get(key)


def _run_tuned(kernel: Any, grid: Callable[..., tuple[int, ...]], on: Tensor, *args: Any, **meta: Any) -> None:
    key = kernel, meta["size_class"], *(arg.dtype for arg in args if isinstance(arg, Tensor))
    tiles = _known_tiles(kernel, key, on)
    if tiles is not None:
        kernel.fn[grid](*args, **meta, **OPTIONS, **tiles.all_kwargs())
        return
    with _one_at_a_time:
        kernel[grid](*args, **meta, **OPTIONS)
        _chosen[key] = kernel.best_config


@triton.jit
def which_of_others():
    """The place of this program among the `others` of `launch_pairs`; the last ones may be beyond the end."""
    return tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)


def launch_pairs(kernel: Any, outer: int, lanes: int, others: int, on: Tensor, *args: Any, **meta: Any) -> None:
    """Runs a tuned kernel for tiles of `outer`, each against all `lanes`, `others` times."""
    if outer == 0 or others == 0:
        return
    columns = min(others, _MOST_PROGRAMS), triton.cdiv(others, _MOST_PROGRAMS)
    if interpreted:
        tile = power_of_two(outer, _MOST_OUTER)
        meta |= {"OUTER": tile, "LANES": power_of_two(lanes, _MOST_LANES), "size_class": 0}
        return launch(kernel, (triton.cdiv(outer, tile), *columns), on, *args, **meta)

    def grid(chosen: dict[str, Any]) -> tuple[int, ...]:
        return triton.cdiv(outer, chosen["OUTER"]), *columns

    with on_device_of(on):
        _run_tuned(kernel, grid, on, *args, **meta, size_class=_size_class(on, outer, lanes, others))
