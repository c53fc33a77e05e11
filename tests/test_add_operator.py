"""An operator is added as CONTRIBUTING.md says: add_operator.patch adds a small one, forward and backward,
everywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import modules
import pytest
from emulation.build import build
from modules import ROOT

PATCH = ROOT / "tests" / "add_operator.patch"
OWN = "tests/test_mean_penalty.py", "-k", "not gradcheck and not opcheck and not threads and not float16"
# What says which operators there are, and what it does with this one.
TABLES = "tests/test_fuzz.py", "tests/test_opcheck.py", "-k", "every_function or every_operator or mean_penalty"


def _pass(checkout: Path, selection: Sequence[str] = OWN, **env: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *selection]
    env = {**os.environ, "CI": "", "PYTHONPATH": str(checkout), "FASTIB_BACKEND": "reference", **env}
    result = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-3000:] + result.stderr[-1000:]


def _cpu_kernels(csrc: Path) -> Path:
    """The module _C of this operator alone."""
    files = [csrc / "module.cpp", *(csrc / "cpu" / f"{name}.cpp" for name in ("isa", "reduction", "mean_penalty"))]
    return modules.module("_C", {file: [*modules.CPU, "-O1"] for file in files}, ())


@pytest.mark.thorough
def test_the_diff_that_adds_an_operator(tmp_path: Path) -> None:
    """It still applies; its tests pass on the reference, and on its kernels of each kind."""
    for folder in ("fastib", "csrc", "tests", "benches"):
        ignored = shutil.ignore_patterns("*.so", "*.png", "*.jsonl", "__pycache__", "_triton")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    (tmp_path / "fastib" / "_triton").symlink_to(tmp_path / "csrc" / "triton")
    for file in ("CHANGELOG.md", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path / file)
    subprocess.run(["git", "apply", str(PATCH)], cwd=tmp_path, check=True)
    _pass(tmp_path)
    _pass(tmp_path, TABLES)
    _pass(tmp_path, FASTIB_BACKEND="cpu", FASTIB_SANITIZED=str(_cpu_kernels(tmp_path / "csrc")))
    _pass(tmp_path, FASTIB_BACKEND="triton", TRITON_INTERPRET="1")
    emulated = build(csrc=tmp_path / "csrc", operators=["mean_penalty"])
    _pass(tmp_path, FASTIB_EMULATED=str(emulated))
