"""Builds kernels into modules for tests, by the host's compiler: under sanitizers, with edits, and those for a GPU."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sysconfig
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parent.parent
BUILT = ROOT / "build" / "modules"
MACROS = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]
# Of addresses and undefined behaviour, and of races: the libraries to load first, and the flags. GCC takes 1.7 times as
# long for -O1 as for -Og where it checks both, and the tests as long.
SANITIZERS = {
    "address": (
        ["asan", "ubsan", "stdc++"],
        ("-Og", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    ),
    "thread": (["tsan"], ("-O1", "-fsanitize=thread")),
}
# As setup.py has them, but for what is for speed alone.
CPU = ["-std=c++20", "-g1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
INCLUDES = [f"-I{path}" for path in [*include_paths(), sysconfig.get_path("include")]]
LIBRARIES = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10"]
COMPILER = os.environ.get("CXX", "c++").split()  # as the build takes it


def sanitized(name: str) -> dict[str, str]:
    """The environment of a process that loads a module built with `SANITIZERS[name]`."""
    libraries = [_run([*COMPILER, f"-print-file-name=lib{library}.so"]).strip() for library in SANITIZERS[name][0]]
    return {
        "LD_PRELOAD": " ".join(libraries),
        "OMP_NUM_THREADS": "1",  # threads of PyTorch's own are none of ThreadSanitizer's business
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",
        "TSAN_OPTIONS": "halt_on_error=1",
    }


def cpu(name: str, csrc: Path = ROOT / "csrc", operators: Sequence[str] | None = None) -> Path:
    """The module _C of all kernels for a CPU or of those of some operators, under `SANITIZERS[name]`."""
    flags = [*CPU, *SANITIZERS[name][1]]
    if name == "thread":
        flags += ["-include", str(ROOT / "tests" / "cpp_threads.h")]
    files = sorted((csrc / "cpu").glob("*.cpp"))
    if operators is not None:
        files = [source for source in files if source.stem in (*operators, "isa", "reduction")]
    sources = {source: flags for source in [csrc / "module.cpp", *files]}
    return module("_C", sources, SANITIZERS[name][1], [*csrc.glob("*/*.h"), ROOT / "tests" / "cpp_threads.h"])


def module(name: str, sources: Mapping[Path, Sequence[str]], link: Sequence[str], read: Iterable[Path]) -> Path:
    """The module of some sources, each with its flags. Made anew is what comes of a source that has changed, or a flag
    of it; and all, where another file that they read has."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        common = [path.read_bytes() for path in sorted(read)]
        objects = list(pool.map(lambda source: _object(source, sources[source], common), sources))
    folder = BUILT / _digest(name, link, objects)
    return _made(folder / f"{name}.so", ["-shared", *link, *map(str, objects), *LIBRARIES])


def _object(source: Path, flags: Sequence[str], read: Sequence[bytes]) -> Path:
    digest = _digest(COMPILER, torch.__version__, flags, source.read_bytes(), *read)
    return _made(BUILT / digest / f"{source.stem}.o", [*flags, *INCLUDES, *MACROS, "-fPIC", "-c", str(source)])


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _made(path: Path, arguments: Sequence[str]) -> Path:
    """What the compiler writes, whole or not at all, if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.stem}.{threading.get_ident()}{path.suffix}")
        _run([*COMPILER, *arguments, "-o", str(part)])
        part.rename(path)
    return path


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr[:4000]}")
    return result.stdout
