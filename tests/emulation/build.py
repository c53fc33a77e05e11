"""Builds the CUDA kernels for a CPU, by the host's compiler and under the emulation, into one module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from devices import ON_PAIRS
from modules import ROOT, module

HERE = Path(__file__).parent
# What nvcc is told too: nothing is contracted behind the formulas' back.
FLAGS = ["-std=c++20", "-g1", "-Wno-attributes", "-march=x86-64-v3", "-ffp-contract=off", f"-I{HERE}"]
COUNTED = ("-O1", "--coverage")  # how often each line is run: see lines.py


def build(flags: Sequence[str] = COUNTED, csrc: Path = ROOT / "csrc", operators: Sequence[str] | None = None) -> Path:
    """The module _C_cuda of all kernels or of those of some operators, made anew where a source or a flag changed."""
    kernels = sorted((csrc / "cuda").glob("*.c*[pu]"))
    if operators is not None:
        needed = {*operators, "launch", "module"}
        if needed & set(ON_PAIRS):
            needed.add("pairs")
        kernels = [source for source in kernels if source.stem in needed]
    sources: dict[Path, list[str]] = {source: [*FLAGS, *flags, "-x", "c++"] for source in kernels}
    sources[HERE / "cuda_emulator.cpp"] = [*FLAGS, "-O2"]  # it plays the hardware
    return module("_C_cuda", sources, flags)
