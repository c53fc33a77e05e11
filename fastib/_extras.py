"""What fastib needs beyond torch for some things, and which extra installs it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

_EXTRAS = {  # the module, what it is called, and the extra
    "matplotlib": ("matplotlib", "models"),
    "sklearn": ("scikit-learn", "models"),
    "tensorboard": ("TensorBoard", "tensorboard"),
    "tomli": ("tomli", "models"),
    "tqdm": ("tqdm", "models"),
}


def require(module: str, who: str) -> None:
    """Raises ImportError, naming the extra, where a module is missing: before long work, not after it."""
    if importlib.util.find_spec(module) is None:
        name, extra = _EXTRAS[module]
        raise ImportError(f"{who} needs {name}: pip install 'fastib[{extra}]'")


def toml_reader() -> Any:
    """`tomllib`, or before Python 3.11 what became of it."""
    if importlib.util.find_spec("tomllib") is not None:
        return importlib.import_module("tomllib")
    require("tomli", "a TOML file")
    return importlib.import_module("tomli")
