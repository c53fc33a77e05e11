"""Builds fastib._C, the CPU kernels, and fastib._C_cuda, those for a GPU. What is declarative is in pyproject.toml.

FASTIB_CUDA=1 builds the second or fails, 0 does not, and auto, the default, does where PyTorch has CUDA and an nvcc of
the same major version is found. Whether there is a GPU does not matter.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

OLDEST_TORCH = 2, 11
STABLE_ABI = "0x020b000000000000"  # that of OLDEST_TORCH, against which the kernels are compiled
OLDEST_NVCC = 12, 1  # of which a kernel's parameters may exceed 4 KiB
OLDEST_GPU = 70  # of which they may, too
WITHOUT_A_GPU = 80  # the oldest that copies to shared memory in the background
MACROS = [("TORCH_TARGET_VERSION", STABLE_ABI), ("TORCH_STABLE_ONLY", None)]
COMPILERS = "GCC 12 or Clang 14, or newer"
# What the kernels want of a compiler.
PROBE = """
#include <concepts>
typedef float Floats __attribute__((vector_size(16)));
typedef int Ints __attribute__((vector_size(16)));
Ints probe(Floats x) { return __builtin_convertvector(__builtin_shufflevector(x, x, 0, 2, 4, 6), Ints); }
"""
NVCC = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-fmad=false", "--threads=2", "-DUSE_CUDA"]


def check_torch() -> None:
    try:
        import torch
    except ImportError as error:
        raise SystemExit(
            f"fastib: PyTorch is not there ({error}): pip install 'torch>={_said(OLDEST_TORCH)}'"
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        raise SystemExit(f"fastib: PyTorch {torch.__version__} is too old: pip install 'torch>={_said(OLDEST_TORCH)}'")


def check_compiler() -> None:
    """Before a page of errors says less."""
    from torch.utils.cpp_extension import get_cxx_compiler

    name = get_cxx_compiler()
    command = [*name.split(), "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    try:
        probed = subprocess.run(command, input=PROBE, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise SystemExit(
            f"fastib: the C++ compiler {name!r} does not run ({error.strerror}): install {COMPILERS} "
            "(apt install g++), or name one by CXX"
        ) from None
    if probed.returncode != 0:
        why = next((line for line in probed.stderr.splitlines() if "error" in line), "no reason given")
        raise SystemExit(
            f"fastib: the C++ compiler {name!r} does not know what the kernels want ({why}): install {COMPILERS}, "
            "or name one by CXX"
        )


def _said(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def sources(folder: str) -> list[str]:
    return sorted(str(path) for path in Path("csrc", folder).glob("*.c*") if path.suffix in (".cpp", ".cu"))


def headers() -> list[str]:
    return sorted(str(path) for path in Path("csrc").glob("*/*") if path.suffix in (".h", ".cuh"))


def without_folders() -> list[str]:
    """The flags by which messages name no folder of the builder's: theirs are of sources here and of PyTorch's headers.
    A folder that nvcc would take for several words stays."""
    from torch.utils.cpp_extension import include_paths

    folders = [folder for folder in (os.getcwd(), *include_paths()) if re.fullmatch(r"[\w/.+-]+", folder)]
    return [f"-ffile-prefix-map={folder}/=" for folder in folders]


def extension(kind: Any, name: str, files: list[str], flags: dict[str, list[str]]) -> Any:
    hidden = without_folders()
    of_host = {"cxx": hidden, "nvcc": [word for flag in hidden for word in ("-Xcompiler", flag)]}
    return kind(
        name,
        files,
        depends=headers(),
        py_limited_api=True,  # BuildExtension defines Py_LIMITED_API
        define_macros=MACROS,
        extra_compile_args={compiler: [*own, *of_host[compiler]] for compiler, own in flags.items()},
        extra_link_args=[] if sys.platform == "darwin" else ["-s"],
    )


def cpu_extension() -> Any:
    from torch.utils.cpp_extension import CppExtension

    flags = [
        "-O3",
        "-g0",  # Python's own flags ask for symbols, a fifth of the compiler's time, which linking then drops
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",
        "-fvisibility=hidden",
        "-Wno-psabi",
        "-Wno-unused-function",
        "-Wno-maybe-uninitialized",
    ]
    return extension(CppExtension, "fastib._C", ["csrc/module.cpp", *sources("cpu")], {"cxx": flags})


def output_of(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return result.stdout + result.stderr


def find_nvcc() -> tuple[str, str, str] | None:
    """The nvcc that PyTorch or the shell knows: its command, its toolkit's folder and its version.

    It is asked for the folder: the command may be a link, or a script that calls another.
    """
    from torch.utils.cpp_extension import CUDA_HOME

    for nvcc in ([str(Path(CUDA_HOME) / "bin" / "nvcc")] if CUDA_HOME else []) + ["nvcc"]:
        try:
            version = re.search(r"release (\d+\.\d+)", output_of(nvcc, "--version"))
            folder = re.search(
                r"^#\$ (?:_TARGET_DIR_=\S*\s*)?TOP=(.+)", output_of(nvcc, "--dryrun", "x.cu"), re.MULTILINE
            )
        except OSError:
            continue
        if version and folder:
            return nvcc, os.path.realpath(folder[1]), version[1]
    return None


def architectures(nvcc: str) -> str:
    """Those of this machine's GPUs. Where there is none, one, whose PTX the driver compiles for newer ones: each of
    those of PyTorch's own binaries would take two thirds of the compiler's time again. Nothing where nvcc knows none
    that will do.
    """
    import torch

    known = [int(n) for n in re.findall(r"compute_(\d+)", output_of(nvcc, "--list-gpu-arch")) if int(n) >= OLDEST_GPU]
    devices = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    wanted = [10 * major + minor for major, minor in devices] or [WITHOUT_A_GPU]
    found = {max((n for n in known if n <= one), default=0) for one in wanted}
    return "" if 0 in found else ";".join(f"{n // 10}.{n % 10}" for n in sorted(found)) + "+PTX"


def cuda_extension() -> tuple[Any, str]:
    """The extension, or None, and why."""
    import torch

    wanted = os.environ.get("FASTIB_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise SystemExit(f"fastib: FASTIB_CUDA={wanted!r}: choose 0, 1 or auto")
    if wanted == "0":
        return None, "FASTIB_CUDA=0"
    found, cuda = find_nvcc(), torch.version.cuda
    if cuda is None:
        reason = f"this PyTorch, {torch.__version__}, has no CUDA: install one that has"
    elif found is None:
        reason = f"no nvcc is found: install that of CUDA {cuda}, as PyTorch {torch.__version__} has, or set CUDA_HOME"
    elif found[2].split(".")[0] != cuda.split(".")[0]:
        reason = (
            f"{found[0]} is of CUDA {found[2]}, and PyTorch {torch.__version__} of {cuda}: set CUDA_HOME to one of it"
        )
    elif tuple(map(int, found[2].split("."))) < OLDEST_NVCC:
        reason = f"{found[0]} is of CUDA {found[2]}, and the kernels want {_said(OLDEST_NVCC)}: set CUDA_HOME to it"
    elif not (targets := os.environ.get("TORCH_CUDA_ARCH_LIST") or architectures(found[0])):
        reason = f"{found[0]} has nothing for a GPU of this machine, or for sm_{OLDEST_GPU}: set TORCH_CUDA_ARCH_LIST"
    else:
        os.environ["TORCH_CUDA_ARCH_LIST"] = targets
        return build_with(found[1]), f"nvcc {found[2]} for {targets}"
    if wanted == "1":
        raise SystemExit(f"fastib: FASTIB_CUDA=1: {reason}")
    return None, reason


def build_with(folder: str) -> Any:
    from torch.utils import cpp_extension

    os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = folder
    flags = {"cxx": ["-O3", "-g0", "-fvisibility=hidden"], "nvcc": NVCC}
    return extension(cpp_extension.CUDAExtension, "fastib._C_cuda", sources("cuda"), flags)


def extensions() -> list[Any]:
    check_torch()
    cuda, why = cuda_extension()
    print(f"fastib: building {'_C and _C_cuda' if cuda else '_C alone'}: {why}")
    return [cpu_extension()] + ([cuda] if cuda else [])


def build_command() -> Any:
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):  # type: ignore[misc]
        def run(self) -> None:
            check_compiler()
            if self.editable_mode:  # else in a folder that pip removes: what was compiled would be compiled again
                self.build_temp = f"build/temp.{self.plat_name}-{sys.implementation.cache_tag}"  # as without pip
            super().run()

    return Build


@contextmanager
def alone() -> Iterator[None]:
    """No other process builds in this folder: two installs at once would write the same files of build/. But `develop`
    starts one that does, and waits for it."""
    import fcntl

    with open(__file__) as file:
        with suppress(OSError):  # of a file system without locks
            if "develop" not in sys.argv:
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


with alone():
    setup(
        packages=[*find_packages(include=["fastib*"]), "fastib._triton"],
        package_dir={"fastib._triton": "csrc/triton"},
        ext_modules=extensions(),
        cmdclass={"build_ext": build_command()},
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
