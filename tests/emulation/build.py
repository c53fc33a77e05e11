"""Builds the CUDA kernels for a CPU, by the host's compiler and under the emulation, into one module."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What nvcc is told too: nothing is contracted behind the formulas' back.
FLAGS = ["-std=c++20", "-g1", "-fPIC", "-Wno-attributes", "-march=x86-64-v3", "-ffp-contract=off"]
MACROS = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]
COUNTED = ("-O1", "--coverage")  # how often each line is run: see lines.py
# Of addresses and undefined behaviour, and of races: the libraries to load first, and the flags.
SANITIZERS = {
    "address": (
        ["asan", "ubsan", "stdc++"],
        ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    ),
    "thread": (["tsan"], ("-O1", "-fsanitize=thread")),
}
COMPILER = os.environ.get("CXX", "g++")


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[:4000]}")
    return result.stdout


def sanitized(name: str) -> dict[str, str]:
    """The environment of a process that loads a module built with `SANITIZERS[name]`."""
    libraries = [_run([COMPILER, f"-print-file-name=lib{library}.so"]).strip() for library in SANITIZERS[name][0]]
    return {
        "LD_PRELOAD": " ".join(libraries),
        "OMP_NUM_THREADS": "1",  # threads of PyTorch's own are none of ThreadSanitizer's business
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
        "TSAN_OPTIONS": "halt_on_error=1",
    }


def build(flags: Sequence[str] = COUNTED, csrc: Path = ROOT / "csrc", operators: Sequence[str] | None = None) -> Path:
    """The module _C_cuda of all kernels or of those of some operators, made anew where a source or a flag changed."""
    kernels = sorted((csrc / "cuda").glob("*.c*[pu]"))
    if operators is not None:
        kernels = [source for source in kernels if source.stem in (*operators, "launch", "module")]
    emulator = sorted(HERE.glob("cuda_emulator.*"))
    includes = [f"-I{path}" for path in [HERE, *include_paths(), sysconfig.get_path("include")]]
    key = hashlib.sha256(repr((COMPILER, torch.__version__, FLAGS, MACROS, flags)).encode())
    for source in [*kernels, *sorted(csrc.glob("*/*.*h")), *emulator]:
        key.update(source.read_bytes())
    folder = ROOT / "build" / "emulation" / key.hexdigest()[:16]
    module = folder / "_C_cuda.so"
    if module.exists():
        return module
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> Path:
        made = folder / f"{source.stem}.o"
        own = ["-O2"] if source.parent == HERE else [*flags, "-x", "c++"]  # the emulator plays the hardware
        _run([COMPILER, *FLAGS, *MACROS, *includes, *own, "-c", str(source), "-o", str(made)])
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [HERE / "cuda_emulator.cpp", *kernels]))
    linked = folder / "linking.so"
    search = [f"-L{path}" for path in library_paths()]
    _run([COMPILER, "-shared", *flags, "-o", str(linked), *map(str, objects), *search, "-ltorch_cpu", "-lc10"])
    linked.rename(module)  # whole, or not there
    return module
