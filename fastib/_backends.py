"""Which kernels serve which device, and why.

`FASTIB_BACKEND` asks for one by name, which then serves or raises at import; unset or "auto", the best that loads
serves, and the plain-PyTorch reference where none does. `FASTIB_CPU_ISA` asks for an instruction set of the CPU
kernels instead of the processor's best.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import NamedTuple


class Backend(NamedTuple):
    """What serves a device: `name` is "cpu" for compiled CPU kernels, or "reference"; `detail` says why."""

    name: str
    detail: str


BACKENDS = ("auto", "cpu", "reference")


def _load() -> tuple[ModuleType | None, str]:
    """The compiled CPU module, or None with the reason."""
    wanted = os.environ.get("FASTIB_BACKEND", "auto")
    if wanted not in BACKENDS:
        raise ImportError(f"FASTIB_BACKEND={wanted!r} is not a backend of this build: choose {', '.join(BACKENDS)}")
    if wanted == "reference":
        return None, "FASTIB_BACKEND=reference"
    try:
        module = importlib.import_module("fastib._C")
    except ImportError as error:
        reason = f"fastib._C does not load ({error}); build it with: pip install --no-build-isolation -e ."
        if wanted == "cpu":
            raise ImportError(f"FASTIB_BACKEND=cpu: {reason}") from error
        return None, reason
    _choose_isa(module)
    return module, ""


def _choose_isa(module: ModuleType) -> None:
    isa = os.environ.get("FASTIB_CPU_ISA", "auto")
    if isa == "auto":
        return
    try:
        module.use_isa(isa)
    except ValueError:
        supported = ", ".join(["auto", *module.supported_isas()])
        raise ImportError(f"FASTIB_CPU_ISA={isa!r} is not supported here: choose {supported}") from None


_cpu, _reason = _load()


def backends() -> dict[str, Backend]:
    """Which backend serves each device type, and why.

    Returns a dictionary from device type to a named tuple `(name, detail)`: the compiled kernels of "cpu" with their
    instruction set, or "reference" with the reason why nothing faster serves. Any other device that PyTorch has is
    served by the reference.

    >>> import fastib
    >>> fastib.backends()["cpu"].name in ("cpu", "reference")
    True
    """
    cpu = Backend("reference", _reason) if _cpu is None else Backend("cpu", f"C++ kernels, {_cpu.isa()}")
    return {"cpu": cpu, "cuda": Backend("reference", "fastib has no CUDA kernels yet")}
