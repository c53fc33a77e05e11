"""What the build says where it can't be: the reason and the remedy, in one line."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
import torch
from torch.utils import cpp_extension

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


def test_two_installs_from_one_folder_take_turns(build: ModuleType) -> None:
    with open(ROOT / "setup.py") as file:
        with build.alone(), pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# What nvcc says to what setup.py asks it.
NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
  --dryrun) echo "#$ _SPACE_= "; echo "#$ TOP={folder}" >&2 ;;
  --list-gpu-arch) echo compute_50; echo compute_80; echo compute_90 ;;
esac
"""


def _toolkit(monkeypatch: pytest.MonkeyPatch, folder: Path, version: str) -> Path:
    """The CUDA of that version in that folder."""
    (folder / "bin").mkdir(parents=True)
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(NVCC.format(version=version, folder=folder))
    nvcc.chmod(0o755)
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(folder))
    monkeypatch.setenv("FASTIB_CUDA", "1")
    return nvcc


def test_nvcc_in_a_folder_with_a_space(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "of CUDA"
    nvcc = _toolkit(monkeypatch, folder, "13.0")
    assert build.find_nvcc() == (str(nvcc), str(folder), "13.0")


def test_tools_that_speak_no_utf8(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in another locale: nvcc is understood, and what a compiler says against the kernels is shown."""
    nvcc = _toolkit(monkeypatch, tmp_path, "13.0")
    latin = nvcc.read_text().replace("#!/bin/sh", "#!/bin/sh\nprintf '\\351t\\351\\n'; printf '\\351\\n' >&2")
    nvcc.write_text(latin)
    assert build.find_nvcc() == (str(nvcc), str(tmp_path), "13.0")
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nprintf 'error: \\351crit\\n' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert "(error: \ufffdcrit): install GCC 12" in _said(build.check_compiler)


def test_messages_name_no_folder_of_the_builder(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither of sources nor of headers, by either compiler."""
    source = tmp_path / "probe.cpp"
    source.write_text("const char* file = __FILE__;\n")
    monkeypatch.chdir(tmp_path)
    hidden = build.without_folders()
    assert len(hidden) > 1
    subprocess.run(["c++", "-c", *hidden, str(source)], check=True)
    assert b"probe.cpp" in (made := Path("probe.o").read_bytes()) and str(tmp_path).encode() not in made
    assert build.cpu_extension().extra_compile_args["cxx"][-len(hidden) :] == hidden
    of_nvcc = build.build_with(str(tmp_path)).extra_compile_args["nvcc"]
    assert [flag for before, flag in pairwise(of_nvcc) if before == "-Xcompiler"][: len(hidden)] == hidden


# GPUs, and what that nvcc, of compute_50, compute_80 and compute_90, makes for them.
GPUS = [
    ([], "8.0+PTX"),
    ([(9, 0), (8, 6), (9, 0)], "8.0;9.0+PTX"),
    ([(12, 0)], "9.0+PTX"),
    ([(8, 0), (7, 5)], ""),  # the kernels want more than compute_50
]


@pytest.mark.parametrize(("gpus", "expected"), GPUS)
def test_what_is_compiled_for_the_gpus(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpus: list[tuple[int, int]], expected: str
) -> None:
    nvcc = _toolkit(monkeypatch, tmp_path, "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: gpus[i])
    assert build.architectures(str(nvcc)) == expected
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    if not expected:
        assert f"{nvcc} has nothing for a GPU of this machine" in _said(build.cuda_extension)


@pytest.mark.parametrize(
    ("version", "cuda", "said"),
    [("12.8", "13.0", "is of CUDA 12.8, and PyTorch"), ("12.0", "12.8", "is of CUDA 12.0, and the kernels want 12.1")],
)
def test_an_nvcc_that_will_not_do(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, cuda: str, said: str
) -> None:
    nvcc = _toolkit(monkeypatch, tmp_path, version)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert _said(build.cuda_extension).startswith(f"fastib: FASTIB_CUDA=1: {nvcc} {said}")


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
