"""Triton's interpreter, made quicker, or stricter than it is."""

from __future__ import annotations

import functools
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


@functools.cache
def _patch_core(function: Any) -> None:
    interpreter._patch_lang(function)


def patch_the_language_once() -> None:
    """The interpreter puts its own functions into triton.language again at each call of a device function: half of
    the time. A launch does it for triton.language; what Triton's own functions see of it stays patched."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if tl not in self.fn.__globals__.values():
            _patch_core(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
