"""Builds kernels into modules for tests, by the host's compiler: under sanitizers, with edits, and those for a GPU."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sysconfig
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
    return module("_C", sources, SANITIZERS[name][1])


def module(name: str, sources: Mapping[Path, Sequence[str]], link: Sequence[str]) -> Path:
    """The module of some sources, each with its flags. Made anew is what comes of a file or a flag that has changed."""
    times = Counter(tuple(flags) for flags in sources.values())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        headers = {flags: pool.submit(_precompiled_headers, flags) for flags in times if times[flags] > 1}
        made = [
            pool.submit(_object, source, flags, headers.get(tuple(flags)))
            for source, flags in sorted(sources.items(), key=lambda item: tuple(item[1]) in headers)
        ]
        objects = sorted(future.result() for future in made)
    folder = BUILT / _digest(name, link, objects)
    return _made(folder / f"{name}.so", ["-shared", *link, *map(str, objects), *LIBRARIES])


def _precompiled_headers(flags: Sequence[str]) -> Path:
    """What all kernels include of PyTorch, as a header: a compiler takes three seconds to read it for each source."""
    names = re.findall(r"^#include <(.+)>", (ROOT / "csrc/common/stable.h").read_text(), re.MULTILINE)
    command = [*flags, *INCLUDES, *MACROS, "-fPIC", *(f"-include{name}" for name in names)]
    header = BUILT / _digest(COMPILER, torch.__version__, command) / "headers.h"
    _made(header.with_name("headers.h.gch"), [*command, "-x", "c++-header", "-c", os.devnull])
    return header


def _object(source: Path, flags: Sequence[str], headers: Future[Path] | None) -> Path:
    digest = _digest(COMPILER, torch.__version__, flags, _text(source, flags))
    first = ["-include", str(headers.result())] if headers else []
    command = [*first, *flags, *INCLUDES, *MACROS, "-fPIC", "-c", str(source)]
    return _made(BUILT / digest / f"{source.stem}.o", command)


def _text(source: Path, flags: Sequence[str]) -> list[bytes]:
    """A source's, and that of the project's files that are included, by it or by others."""
    folders = [Path(flag[2:]) for flag in flags if flag.startswith("-I")]
    left = [source, *(Path(flag) for flag in flags if flag.endswith(".h"))]
    read: dict[Path, bytes] = {}
    while left:
        path = left.pop().resolve()
        if path in read or not path.exists():
            continue
        read[path] = path.read_bytes()
        named = re.findall(r'"([\w./]+\.c?u?h)"', read[path].decode())
        left += [folder / name for name in named for folder in (path.parent, *folders)]
    return list(read.values())


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
