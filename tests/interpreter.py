"""Triton's interpreter, made quicker, or stricter than it is."""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
import random
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter


@functools.cache
def _patch_core(function: Any) -> None:
    interpreter._patch_lang(function)


def _patch_the_language_once() -> None:
    """The interpreter puts its own functions into triton.language again at each call of a device function: half of
    the time. A launch does it for triton.language; what Triton's own functions see of it stays patched."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if tl not in self.fn.__globals__.values():
            _patch_core(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call


def _make_types_once() -> None:
    """The interpreter makes each type anew at each operation, and NumPy's table of them: half of the time again."""
    init_block, init_tensor, np_dtype = tl.block_type.__init__, tl.tensor.__init__, interpreter._get_np_dtype
    blocks: dict[Any, dict[str, Any]] = {}
    tensors: dict[str, tuple[Any, Any]] = {}
    np_dtypes: dict[str, Any] = {}

    def of_block(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, *(getattr(size, "value", size) for size in shape)
        if key not in blocks:
            init_block(self, element_ty, shape)
            blocks[key] = vars(self)
        self.__dict__ = blocks[key]

    def of_tensor(self: Any, handle: Any, type: Any) -> None:
        if type.name not in tensors:
            init_tensor(self, handle, type)
            tensors[type.name] = self.numel, self.shape
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = tensors[type.name]

    def of_array(tt_dtype: Any) -> Any:
        name = tt_dtype.scalar.name
        if name not in np_dtypes:
            np_dtypes[name] = np_dtype(tt_dtype)
        return np_dtypes[name]

    tl.block_type.__init__, tl.tensor.__init__, interpreter._get_np_dtype = of_block, of_tensor, of_array


def make_quicker() -> None:
    """The same results in a quarter of the time."""
    _patch_the_language_once()
    _make_types_once()


def use_small_blocks() -> None:
    """Several programs for a few rows."""
    from fastib._triton import _launch, _tuning

    _launch._INTERPRETED_BLOCK = 256
    _tuning._MOST_OUTER, _tuning._MOST_LANES = 64, 128


def use_grids_of_three_axes() -> None:
    """What takes more than 65535 dimensions."""
    from fastib._triton import _tuning

    _tuning._MOST_PROGRAMS = 2


def _protected(t: Tensor, at_end: bool) -> Tensor:
    """A copy of what `t` spans in memory, flush with a page that can't be touched."""
    count = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    page, length = mmap.PAGESIZE, count * t.element_size()
    inner = -(-max(length, 1) // page) * page
    memory = mmap.mmap(-1, inner + page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    forbidden = base + inner if at_end else base
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), 0) != 0:
        raise OSError("mprotect")
    offset = inner - length if at_end else page
    flat = torch.frombuffer(memory, dtype=t.dtype, count=count, offset=offset) if count else t.new_empty(0)
    return flat.as_strided(t.shape, t.stride()).copy_(t)


def use_guard_pages(at_end: bool) -> None:
    """Every tensor of every launch ends, or begins, at a page that can't be touched: who does gets a SIGSEGV."""
    run = interpreter.InterpretedFunction.run

    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        replaced = [_protected(a, at_end) if isinstance(a, Tensor) else a for a in args]
        run(self, *replaced, **kwargs)
        for arg, copy in zip(args, replaced, strict=True):
            if isinstance(arg, Tensor):
                arg.copy_(copy)

    interpreter.InterpretedFunction.run = guarded


def shuffle_programs(seed: int) -> None:
    """The programs of each launch run in a random order."""
    builder, order = interpreter.interpreter_builder, random.Random(seed)
    set_dim, set_index = builder.set_grid_dim, builder.set_grid_idx
    left: list[tuple[int, ...]] = []

    def set_grid_dim(*size: int) -> None:
        set_dim(*size)
        left[:] = itertools.product(*map(range, size))
        order.shuffle(left)

    builder.set_grid_dim = set_grid_dim
    builder.set_grid_idx = lambda *_: set_index(*left.pop())


def begin_at_program(first: int) -> None:
    """The programs of each launch are those from `first` on."""
    builder = interpreter.interpreter_builder
    set_dim, set_index = builder.set_grid_dim, builder.set_grid_idx
    builder.set_grid_dim = lambda x, y, z: set_dim(x + first, y, z)
    builder.set_grid_idx = lambda x, y, z: set_index(x + first, y, z)
