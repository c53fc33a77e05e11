"""The CUDA kernels, run on a CPU from the sources that nvcc compiles: each thread of the GPU is a fiber."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from emulation.build import build

TESTS = Path(__file__).parent


def _pytest(library: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *arguments],
        env={**os.environ, "FASTIB_BACKEND": "reference", "FASTIB_EMULATED": str(library), "CI": "", **env},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (TESTS.parent / "csrc/cuda").glob("*.cu") if path.stem != "launch")
)
def test_operators(name: str) -> None:
    """The operators' own tests, with their oracles and budgets."""
    result = _pytest(build(), str(TESTS / f"test_{name}.py"))
    assert result.returncode == 0, result.stdout[-3000:]
