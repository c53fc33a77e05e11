"""Which kernels serve which device, and why.

`FASTIB_BACKEND` asks for one by name, which then serves or raises at import; unset or "auto", the best that loads
serves, and the plain-PyTorch reference where none does. `FASTIB_CPU_ISA` asks for an instruction set of the CPU
kernels instead of the processor's best.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import struct
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch


class Backend(NamedTuple):
    """What serves a device: `name` is one of "cpu", "cuda", "triton" and "reference"; `detail` says why."""

    name: str
    detail: str


BACKENDS = ("auto", "cpu", "cuda", "triton", "reference")
_OLDEST_TORCH = 2, 11  # that of setup.py, whose stable ABI the compiled kernels speak
# Where the kernels for a GPU ran until now; to be changed with the rows of a card in benches/results.
_PROOF = "run on an NVIDIA H200, and for every change by the tests on a CPU from the same source"

_wanted = os.environ.get("FASTIB_BACKEND", "auto")
if _wanted not in BACKENDS:
    raise ImportError(f"FASTIB_BACKEND={_wanted!r} is not a backend of this build: choose {', '.join(BACKENDS)}")


def _refuse(backend: str, reason: str, cause: Exception | None = None) -> str:
    """`reason`, which is an error where `backend` is asked for by name."""
    if _wanted == backend:
        raise ImportError(f"FASTIB_BACKEND={backend}: {reason}") from cause
    return reason


def _load(name: str, backend: str) -> tuple[ModuleType | None, str]:
    """A compiled module, or None with the reason."""
    if _wanted == "reference":
        return None, "FASTIB_BACKEND=reference"
    try:
        _check_whole(name)
        return importlib.import_module(name), ""
    except Exception as error:  # noqa: BLE001  (whatever a broken module raises)
        return None, _refuse(backend, f"{name} does not load ({error}); {_remedy(backend)}", error)


def _check_whole(name: str) -> None:
    """Raises where the file of a module is cut, as by a copy that was interrupted or a full disk: the loader would map
    what is not there, and the process die by a signal. Of ELF files alone, whose last part is the section headers."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return
    with open(spec.origin, "rb") as file:
        header, size = file.read(64), os.fstat(file.fileno()).st_size
    if len(header) < 64 or not header.startswith(b"\x7fELF\x02\x01"):  # not of 64 bits and little-endian
        return
    start, entry, entries = struct.unpack_from("<Q10xHH", header, 0x28)
    whole = start + entry * entries
    if size < whole:
        raise ImportError(f"{spec.origin} is cut: of {whole} bytes it has {size}")


def _remedy(backend: str) -> str:
    if tuple(map(int, torch.__version__.split(".")[:2])) < _OLDEST_TORCH:
        return (
            f"PyTorch {torch.__version__} is too old for it: pip install 'torch>={'.'.join(map(str, _OLDEST_TORCH))}'"
        )
    # On "auto" the build would leave out what it can't make; asked for, it says why.
    asked = "FASTIB_CUDA=1 " if backend == "cuda" else ""
    return f"build it with: {asked}pip install --no-build-isolation -e ."


def _check_functions(module: ModuleType) -> None:
    """Raises where an older module is left in place. The reference can't serve instead: its kernels are registered."""
    missing = [name for name in ("isa", "supported_isas", "use_isa") if not hasattr(module, name)]
    if missing:
        raise ImportError(
            f"{module.__name__} is of another version of fastib (it has no {missing[0]}); {_remedy('cpu')}, "
            "or set FASTIB_BACKEND=reference"
        )


def _choose_isa(module: ModuleType) -> None:
    isa = os.environ.get("FASTIB_CPU_ISA", "auto")
    if isa == "auto":
        return
    try:
        module.use_isa(isa)
    except ValueError:
        supported = ", ".join(["auto", *module.supported_isas()])
        raise ImportError(f"FASTIB_CPU_ISA={isa!r} is not supported here: choose {supported}") from None


def _has_gpu_support() -> bool:
    return torch.version.cuda is not None or torch.version.hip is not None


def _load_cuda() -> tuple[ModuleType | None, str]:
    if torch.version.cuda is None:
        return None, _refuse("cuda", f"this PyTorch, {torch.__version__}, has no CUDA")
    if _wanted == "triton":
        return None, "FASTIB_BACKEND=triton"
    return _load("fastib._C_cuda", "cuda")


def _choose_triton_keys() -> tuple[str, ...]:
    """The dispatch keys that the Triton kernels serve: under Triton's interpreter that of the CPU, too."""
    if _wanted == "reference" or (_wanted != "triton" and (_cuda is not None or not _has_gpu_support())):
        return ()
    if importlib.util.find_spec("triton") is None:
        _refuse("triton", "Triton is not installed; install it with: pip install triton")
        return ()
    interpreted = _wanted == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    keys = (("CPU",) if interpreted else ()) + (("CUDA",) if _has_gpu_support() else ())
    if not keys:
        _refuse("triton", f"this PyTorch, {torch.__version__}, has no GPU (TRITON_INTERPRET=1 interprets on a CPU)")
    return keys


_cuda, _cuda_reason = _load_cuda()
TRITON_KEYS = _choose_triton_keys()
_cpu, _cpu_reason = (None, "") if "CPU" in TRITON_KEYS else _load("fastib._C", "cpu")
if _cpu is not None:
    _check_functions(_cpu)
    _choose_isa(_cpu)


def triton_kernel(name: str) -> Callable[..., Any]:
    """The Triton kernel of an operator, imported at its first call: Triton takes half a second to import."""

    @functools.wraps(triton_kernel, assigned=())
    def call(*args: Any) -> Any:
        return importlib.import_module("fastib._triton").KERNELS[name](*args)

    return call


def _cpu_backend() -> Backend:
    if "CPU" in TRITON_KEYS:
        return Backend("triton", "Triton kernels, interpreted: for tests, and slow")
    if _cpu is not None:
        return Backend("cpu", f"C++ kernels, {_cpu.isa()}")
    return Backend("reference", _cpu_reason)


def _cuda_backend() -> Backend:
    if _cuda is not None:
        return Backend("cuda", f"CUDA C++ kernels; {_PROOF}")
    if "CUDA" in TRITON_KEYS:
        return Backend("triton", f"Triton kernels, as {_cuda_reason}; {_PROOF}")
    return Backend("reference", _cuda_reason)


def backends() -> dict[str, Backend]:
    """Which backend serves each device type, and why.

    Returns a dictionary from device type to a named tuple `(name, detail)`: the compiled kernels of "cpu" with their
    instruction set, those of "cuda" or "triton", or "reference" with the reason why nothing faster serves. Any other
    device that PyTorch has is served by the reference.

    >>> import fastib
    >>> fastib.backends()["cpu"].name in ("cpu", "triton", "reference")
    True
    """
    return {"cpu": _cpu_backend(), "cuda": _cuda_backend()}
