"""An operator is added as CONTRIBUTING.md says: add_operator.patch adds a small one, forward and backward,
everywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from emulation.build import build
from modules import ROOT

PATCH = ROOT / "tests" / "add_operator.patch"
SELECTED = "not gradcheck and not opcheck and not threads and not float16"


def _pass(checkout: Path, **env: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_mean_penalty.py",
        "-k",
        SELECTED,
    ]
    env = {**os.environ, "CI": "", "PYTHONPATH": str(checkout), "FASTIB_BACKEND": "reference", **env}
    result = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout[-3000:] + result.stderr[-1000:]


def test_the_diff_that_adds_an_operator(tmp_path: Path) -> None:
    """It still applies; its tests pass on the reference, and on its CUDA kernels. What it takes of Triton and of a
    build is for the tests of those."""
    for folder in ("fastib", "csrc", "tests", "benches"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "results", "__pycache__")
        )
    for file in ("CHANGELOG.md", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path / file)
    subprocess.run(["git", "apply", str(PATCH)], cwd=tmp_path, check=True)
    _pass(tmp_path)
    emulated = build(csrc=tmp_path / "csrc", operators=["mean_penalty"])
    _pass(tmp_path, FASTIB_EMULATED=str(emulated))
