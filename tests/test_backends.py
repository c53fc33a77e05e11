"""Which kernels serve, and what happens where they cannot; everything once more on the reference."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from devices import OPERATORS, TESTS

import fastib
from fastib import _fallback, _ops

COMPILED = fastib.backends()["cpu"].name == "cpu"


def _python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


def test_compiled_kernels_serve_the_cpu() -> None:
    """In every run of the tests but the one below, which asks for the reference."""
    backend = fastib.backends()["cpu"]
    assert backend.name == os.environ.get("FASTIB_BACKEND", "cpu").replace("auto", "cpu")
    if COMPILED:
        assert torch._C._dispatch_has_kernel_for_dispatch_key("fastib::gaussian_kl", "CPU")
        assert backend.detail.startswith("C++ kernels")


def test_every_operator_has_a_compiled_kernel() -> None:
    for name in _fallback.KERNELS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastib::{name}", "CompositeExplicitAutograd")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastib::{name}", "CPU") == COMPILED


@pytest.mark.parametrize("backend", ["cpu", "auto", "reference"])
def test_backend_by_name(backend: str) -> None:
    result = _python("import fastib; print(fastib.backends()['cpu'].name)", FASTIB_BACKEND=backend)
    assert result.stdout.strip() == ("reference" if backend == "reference" else "cpu"), result.stderr


@pytest.mark.parametrize("backend", ["CPU", "gpu"])
def test_backend_that_does_not_exist(backend: str) -> None:
    result = _python("import fastib", FASTIB_BACKEND=backend)
    assert result.returncode != 0
    assert (
        f"ImportError: FASTIB_BACKEND='{backend}' is not a backend of this build: "
        "choose auto, cpu, cuda, triton, reference" in result.stderr
    )


@pytest.mark.thorough
def test_a_device_of_the_tests_that_is_not_there() -> None:
    """The operators' tests then say so, instead of running elsewhere."""
    for device, said in (("tpu", "'tpu': choose cpu or cuda"), ("cuda", "cuda: PyTorch .* finds no GPU")):
        if device == "cuda" and torch.cuda.is_available():
            continue
        command = [sys.executable, "-m", "pytest", "--collect-only", str(TESTS / "test_log_variance_penalty.py")]
        env = {**os.environ, "FASTIB_TEST_DEVICE": device}
        result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert result.returncode != 0 and re.search(f"FASTIB_TEST_DEVICE={said}", result.stderr)


@pytest.mark.skipif(torch.version.cuda is not None, reason="a PyTorch with CUDA may serve them")
@pytest.mark.parametrize("backend, reason", [("cuda", "has no CUDA"), ("triton", "has no GPU (TRITON_INTERPRET=1")])
def test_backend_that_this_pytorch_lacks(backend: str, reason: str) -> None:
    result = _python("import fastib", FASTIB_BACKEND=backend, TRITON_INTERPRET="0")
    assert result.returncode != 0
    assert f"ImportError: FASTIB_BACKEND={backend}: this PyTorch, {torch.__version__}, {reason}" in result.stderr


def test_triton_interpreted_serves_the_cpu() -> None:
    code = "import fastib, sys; print(fastib.backends()['cpu'].name, 'triton' in sys.modules)"
    result = _python(code, FASTIB_BACKEND="triton", TRITON_INTERPRET="1")
    assert result.stdout.strip() == "triton False", result.stderr  # imported when a kernel is first called


BROKEN = "import sys; sys.modules['fastib._C'] = None; import fastib, torch; "


def test_without_a_compiled_module_the_reference_serves_and_says_why() -> None:
    code = BROKEN + (
        "b = fastib.backends()['cpu']; print(b.name, '|', b.detail); "
        "print(fastib.gaussian_kl(torch.ones(2, 2), torch.zeros(2, 2)).item())"
    )
    result = _python(code, FASTIB_BACKEND="auto")
    assert result.stdout.startswith("reference | fastib._C does not load"), result.stderr
    assert result.stdout.splitlines()[1] == "1.0"


def test_an_old_torch_is_told() -> None:
    code = "import torch; torch.__version__ = '2.10.0+cpu'; " + BROKEN + "print(fastib.backends()['cpu'].detail)"
    said = _python(code, FASTIB_BACKEND="auto").stdout.strip()
    assert said.endswith("; PyTorch 2.10.0+cpu is too old for it: pip install 'torch>=2.11'")


def test_asked_for_by_name_a_broken_module_raises() -> None:
    result = _python(BROKEN, FASTIB_BACKEND="cpu")
    assert "ImportError: FASTIB_BACKEND=cpu: fastib._C does not load" in result.stderr


# What may be in the place of fastib._C: contents of the file, or C whose initialisation fails with or without an error.
BROKEN_FILES = {
    "empty": "",
    "text": "no module\n",
    "cut": "half of the module that serves here",
    "raises": 'void *PyInit__C(void) { PyErr_SetString(PyExc_RuntimeError, "no"); return 0; }\n',
    "says_nothing": "void *PyInit__C(void) { return 0; }\n",
}


SERVING = Path(fastib.__file__).parent / "_C.abi3.so"


def _package(folder: Path) -> Path:
    """A copy of fastib without its compiled modules."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    return Path(shutil.copytree(Path(fastib.__file__).parent, folder / "fastib", ignore=ignored))


def _compile(source: str, module: Path) -> None:
    command = ["cc", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}", "-x", "c", "-", "-o", module]
    subprocess.run(command, input=source, text=True, check=True)


def _half(file: Path) -> bytes:
    return file.read_bytes()[: file.stat().st_size // 2]


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in ("cut", "raises") else pytest.mark.thorough) for kind in BROKEN_FILES],
)
def test_a_file_that_is_no_module(tmp_path: Path, kind: str) -> None:
    """The reference serves, and says why."""
    module, text = _package(tmp_path) / "_C.abi3.so", BROKEN_FILES[kind]
    module.write_text(text)
    if "PyInit" in text:
        _compile(f"extern void *PyExc_RuntimeError; void PyErr_SetString(void *, const char *);\n{text}", module)
    elif kind == "cut":
        module.write_bytes(_half(SERVING))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fastib; print(*fastib.backends()['cpu'])"
    result = _python(code, FASTIB_BACKEND="auto")
    assert result.stdout.startswith("reference fastib._C does not load ("), result.stderr
    assert result.stdout.strip().endswith("build it with: pip install --no-build-isolation -e .")
    assert ("is cut: of " in result.stdout) == (kind == "cut")


def test_modules_that_are_cut_are_refused_by_name(tmp_path: Path) -> None:
    """Both: to load one kills the process."""
    for name in ("_C", "_C_cuda"):
        (_package(tmp_path / name) / f"{name}.abi3.so").write_bytes(_half(SERVING))
        code = f"import sys; sys.path.insert(0, {str(tmp_path / name)!r}); import torch; torch.version.cuda = '13.0'; "
        backend = {"_C": "cpu", "_C_cuda": "cuda"}[name]
        result = _python(f"{code}import fastib", FASTIB_BACKEND=backend)
        said = f"ImportError: FASTIB_BACKEND={backend}: fastib.{name} does not load ({tmp_path / name}"
        assert result.returncode == 1 and said in result.stderr.splitlines()[-1]


def test_a_module_of_another_version_is_told(tmp_path: Path) -> None:
    """Its kernels are registered: nothing else can serve in their place."""
    source = """
    #define Py_LIMITED_API 0x030A0000
    #include <Python.h>
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", 0, -1, 0, 0, 0, 0, 0};
    PyObject *PyInit__C(void) { return PyModule_Create(&module); }
    """
    _compile(source, _package(tmp_path) / "_C.abi3.so")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fastib; print(fastib.backends()['cpu'].name)"
    for backend in ("auto", "cpu"):
        said = _python(code, FASTIB_BACKEND=backend).stderr.splitlines()[-1]
        assert said.startswith("ImportError: fastib._C is of another version of fastib (it has no isa); build it with:")
    assert _python(code, FASTIB_BACKEND="reference").stdout.strip() == "reference"


def test_the_remedy_for_cuda_says_why() -> None:
    """By FASTIB_CUDA=1: what is left to the build, it left out."""
    code = "import torch; torch.version.cuda = '13.0'; import sys; sys.modules['fastib._C_cuda'] = None; import fastib"
    result = _python(code, FASTIB_BACKEND="cuda")
    assert result.stderr.strip().endswith("build it with: FASTIB_CUDA=1 pip install --no-build-isolation -e .")


def test_instruction_set_by_name() -> None:
    code = "import fastib; print(fastib.backends()['cpu'].detail)"
    assert _python(code, FASTIB_BACKEND="cpu", FASTIB_CPU_ISA="baseline").stdout.strip() == "C++ kernels, baseline"
    result = _python(code, FASTIB_BACKEND="cpu", FASTIB_CPU_ISA="mmx")
    assert "ImportError: FASTIB_CPU_ISA='mmx' is not supported here: choose auto, baseline" in result.stderr


def test_other_devices_are_served_by_the_reference() -> None:
    meta = torch.zeros(4, 3, device="meta")
    z, kl = fastib.reparameterize_with_kl(meta, meta)
    assert z.shape == (4, 3) and kl.shape == () and z.device.type == "meta"
    served = {"reference"} if torch.version.cuda is None else {"cuda", "triton"}  # Triton comes with such a PyTorch
    assert fastib.backends()["cuda"].name in served


def test_operators_are_not_for_calling_with_gradients() -> None:
    """Gradients live in the autograd.Functions; the bare operator returns what has none."""
    mu = torch.zeros(2, 2, requires_grad=True)
    assert not _ops.gaussian_kl(mu, mu, None, None, 2, 1, 0.0).requires_grad
    assert fastib.gaussian_kl(mu, mu).requires_grad


@pytest.mark.skipif(not COMPILED, reason="PyTorch has its own words for it")
@pytest.mark.parametrize(
    "call, what",
    [
        (
            lambda: fastib.reparameterize(*2 * [torch.empty(1).expand(2**46)]),
            "a result of shape [70368744177664] and dtype float32",
        ),
        (
            lambda: _ops.philox_words(torch.tensor([1, 2]), 0, 2**44),  # contiguous: made by another way
            "a result of shape [17592186044416, 4] and dtype int64",
        ),
        (
            lambda: fastib.elbo_decomposition(*3 * [torch.empty(1).expand(2**28, 2**17)], dataset_size=2**30),
            "the work space of elbo_decomposition",
        ),
    ],
)
def test_what_no_memory_holds(call: Callable[[], object], what: str) -> None:
    """Of more than a process can address: one line says what."""
    with pytest.raises(RuntimeError, match=f"^fastib: can't allocate memory for {re.escape(what)}$"):
        call()


SELECTION = "(vae or chunk or transposed or non_finite or extreme-torch or check or known or bits_of) and not float16"


@pytest.mark.thorough
@pytest.mark.skipif(not COMPILED, reason="this is that run")
def test_all_operators_on_the_reference() -> None:
    """The operators' own tests, in a process that asks for the reference, which is slow: not on every layout."""
    files = [str(path) for path in OPERATORS.values()]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *files, "-k", SELECTION],
        env={**os.environ, "FASTIB_BACKEND": "reference", "CI": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:]
