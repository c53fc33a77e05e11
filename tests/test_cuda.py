"""The CUDA kernels, run on a CPU from the sources that nvcc compiles: each thread of the GPU is a fiber."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulation.build import build

from fastib import _fallback

TESTS = Path(__file__).parent
FILES = [path for path in sorted(TESTS.glob("test_*.py")) if path.stem[5:] in _fallback.KERNELS]
# What is of other kernels, or for speed alone: threads, memory and time of the CPU, 2^31 elements, 10^7 draws.
OTHERS = (
    "not threads and not memory and not time_grows and not 31_elements and not compiles and not moments and not tail"
)
# Each kernel, in each dtype; ragged, strided and with what is not finite.
EACH_KERNEL = (
    f"{OTHERS} and not gradcheck and not opcheck and (vae or -chunk or transposed or non_finite or known or "
    "one_dimension or many_dimensions or far or log_weights or several_tasks-torch.float32)"
)


def _pytest(library: Path, selection: str, **env: str) -> subprocess.CompletedProcess[str]:
    emulated = {"FASTIB_BACKEND": "reference", "FASTIB_EMULATED": str(library), "CI": ""}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:warnings", *map(str, FILES), "-k", selection],
        env={**os.environ, **emulated, **env},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_operator_has_a_file() -> None:
    assert len(FILES) == 8
    assert all((TESTS.parent / "csrc/cuda" / f"{path.stem[5:]}.cu").exists() for path in FILES)


def test_operators() -> None:
    """The operators' own tests, with their oracles and budgets."""
    result = _pytest(build(), OTHERS)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("order", ["1", "2"])
def test_orders_of_threads_and_errors_of_instructions(order: str) -> None:
    """Threads and blocks in descending and in random order; approximate instructions off by as much as they may be."""
    result = _pytest(build(), EACH_KERNEL, EMULATED_ORDER=order, EMULATED_PERTURBATION=order)
    assert result.returncode == 0, result.stdout[-3000:]
