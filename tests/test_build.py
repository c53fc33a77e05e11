"""What the build says where it can't be: the reason and the remedy, in one line."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ModuleType:
    """setup.py, which sets nothing up."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FASTIB_CUDA", "0")  # else it notes what it finds in the environment
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    spec = importlib.util.spec_from_file_location("setup_of_fastib", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert capsys.readouterr().out.startswith("fastib: building _C")
    return module


def _said(check: Callable[[], object]) -> str:
    with pytest.raises(SystemExit) as raised:
        check()
    said = str(raised.value)
    assert said.startswith("fastib: ") and "\n" not in said
    return said


def test_no_compiler(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++-of-nowhere")
    said = _said(build.check_compiler)
    assert "'g++-of-nowhere' does not run (No such file or directory): install GCC 12 or Clang 14" in said


def test_an_old_compiler(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "g++-8"
    old.write_text("#!/bin/sh\necho \"g++-8: error: unrecognized command line option '-std=c++20'\" >&2\nexit 1\n")
    old.chmod(0o755)
    monkeypatch.setenv("CXX", str(old))
    said = _said(build.check_compiler)
    assert "unrecognized command line option '-std=c++20'): install GCC 12 or Clang 14, or newer, or name" in said
    monkeypatch.delenv("CXX")
    build.check_compiler()
    monkeypatch.setenv("CXX", "env c++")  # a command of several words
    build.check_compiler()


def test_the_build_command_asks_for_the_compiler(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path), "--build-temp", str(tmp_path)],
        env={**os.environ, "CXX": "g++-of-nowhere"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1 and "'g++-of-nowhere' does not run" in result.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_an_old_torch(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    assert _said(build.check_torch) == "fastib: PyTorch 2.10.1+cpu is too old: pip install 'torch>=2.11'"
    monkeypatch.setattr(torch, "__version__", "2.11.0a0+git123")
    build.check_torch()


def test_no_torch(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    said = _said(build.check_torch)
    assert "PyTorch is not there (" in said and said.endswith(": pip install 'torch>=2.11'")


def _with_nvcc(build: ModuleType, monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(build, "find_nvcc", lambda: version and ("/opt/nvcc", "/opt", version))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("FASTIB_CUDA", "1")


def test_no_nvcc(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_nvcc(build, monkeypatch, None)
    said = _said(build.cuda_extension)
    assert said.startswith("fastib: FASTIB_CUDA=1: no nvcc is found: install") and "CUDA 13.0" in said


def test_an_nvcc_of_another_cuda(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    _with_nvcc(build, monkeypatch, "12.8")
    said = _said(build.cuda_extension)
    assert "/opt/nvcc is of CUDA 12.8, and PyTorch" in said and said.endswith("of 13.0: set CUDA_HOME to one of it")
    monkeypatch.setenv("FASTIB_CUDA", "auto")  # then _C alone is built
    extension, why = build.cuda_extension()
    assert extension is None and why in said


def test_a_torch_without_cuda(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv("FASTIB_CUDA", "1")
    assert "has no CUDA: install one that has" in _said(build.cuda_extension)


def test_no_such_choice(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTIB_CUDA", "yes")
    assert _said(build.cuda_extension) == "fastib: FASTIB_CUDA='yes': choose 0, 1 or auto"
