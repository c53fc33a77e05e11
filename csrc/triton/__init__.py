"""The Triton kernels, imported as fastib._triton: one file per operator, with its forward and backward kernels.

They serve a GPU where fastib._C_cuda does not, and the CPU under TRITON_INTERPRET=1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KERNELS: dict[str, Callable[..., Any]] = {}
