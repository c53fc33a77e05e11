"""Builds the CUDA kernels for a CPU, by the host's compiler and under the emulation, into one library."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What nvcc is told too: nothing is contracted behind the formulas' back.
FLAGS = ["-std=c++20", "-g1", "-fPIC", "-march=x86-64-v3", "-ffp-contract=off"]
MACROS = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]


def _run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[:4000]}")


def build(*extra: str) -> Path:
    """The module _C_cuda, made anew where a source or a flag has changed. `extra` are flags for the kernels alone."""
    extra = extra or ("-O2",)
    kernels = sorted((ROOT / "csrc/cuda").glob("*.c*[pu]"))
    sources = [*kernels, *sorted((ROOT / "csrc").glob("*/*.*h")), *sorted(HERE.glob("cuda_emulator.*"))]
    compiler = os.environ.get("CXX", "g++")
    includes = [f"-I{path}" for path in [HERE, *include_paths(), sysconfig.get_path("include")]]
    key = hashlib.sha256(repr((compiler, torch.__version__, FLAGS, MACROS, extra)).encode())
    for source in sources:
        key.update(source.read_bytes())
    folder = ROOT / "build" / "emulation" / key.hexdigest()[:16]
    library = folder / "_C_cuda.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> Path:
        made = folder / f"{source.stem}.o"
        flags = [] if source.parent == HERE else [*extra, "-x", "c++"]  # the emulator plays the hardware
        _run([compiler, *FLAGS, *MACROS, *includes, *flags, "-c", str(source), "-o", str(made)])
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [HERE / "cuda_emulator.cpp", *kernels]))
    linked = folder / "linking.so"
    search = [f"-L{path}" for path in library_paths()]
    _run([compiler, "-shared", *extra, "-o", str(linked), *map(str, objects), *search, "-ltorch_cpu", "-lc10"])
    linked.rename(library)  # whole, or not there
    return library
