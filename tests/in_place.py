"""The Triton kernels of a checkout that is built in place: what an installation maps to fastib._triton."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from fastib import _backends

_KERNELS = Path(__file__).parent.parent / "csrc" / "triton"


def load_triton() -> None:
    """Loads them from csrc/triton, if they serve and are not installed."""
    if not _backends.TRITON_KEYS or importlib.util.find_spec("fastib._triton") is not None:
        return
    spec = importlib.util.spec_from_file_location(
        "fastib._triton", _KERNELS / "__init__.py", submodule_search_locations=[str(_KERNELS)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
