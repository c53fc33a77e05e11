"""The CUDA kernels, run on a CPU from the sources that nvcc compiles: each thread of the GPU is a fiber."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from devices import OPERATORS, TESTS, WHERE_EMULATED
from emulation.build import ROOT, SANITIZERS, build, sanitized

PAIRS = ["aggregate_posterior", "elbo_decomposition"]
ELEMENTWISE = [name for name in OPERATORS if name not in PAIRS]
# Each kernel in each dtype, of ragged and strided inputs.
EACH_KERNEL = (
    f"{WHERE_EMULATED} and not gradcheck and not opcheck and (vae or -chunk or transposed or known or one_dimension or "
    "many_dimensions or far or log_weights)"
)


def _run(module: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    emulated = {"FASTIB_BACKEND": "reference", "FASTIB_EMULATED": str(module), "CI": "", "PYTHONPATH": str(TESTS)}
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **emulated, **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def _pass(module: Path, selection: str, names: Sequence[str], **env: str) -> None:
    files = [str(OPERATORS[name]) for name in names]
    # What a sanitizer says goes past Python.
    options = "-q", "-x", "-p", "no:warnings", "--capture=sys"
    result = _run(module, "-m", "pytest", *options, *files, "-k", selection, **env)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def test_every_operator_has_a_file() -> None:
    assert len(OPERATORS) == 8
    assert all((ROOT / "csrc/cuda" / f"{name}.cu").exists() for name in OPERATORS)


def test_operators() -> None:
    """The operators' own tests, with their oracles and budgets."""
    module = build()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda names: _pass(module, WHERE_EMULATED, names), (ELEMENTWISE, PAIRS)))


@pytest.mark.parametrize("order", ["1", "2"])
def test_orders_of_threads_and_errors_of_instructions(order: str) -> None:
    """Threads and blocks in descending and in random order; approximate instructions off by as much as they may be."""
    _pass(build(), EACH_KERNEL, [*OPERATORS], EMULATED_ORDER=order, EMULATED_PERTURBATION=order)


@pytest.mark.parametrize("name", SANITIZERS)
def test_sanitizers(name: str) -> None:
    _pass(build(SANITIZERS[name][1]), EACH_KERNEL, [*OPERATORS], **sanitized(name))


# What the checks must see: a name, the sanitizer, the edit, and what is said of it.
FAULTS = [
    ("a barrier is missing", "thread", "= value;\n  __syncthreads();", "= value;", "data race"),
    ("blocks add to one sum", "thread", "else partials[blockIdx.x] = total;", "else partials[0] += total;", "data race"),
    ("shared memory is too small", "address", "tile, S[kTile]", "tile, S[kTile / 8]", "out of bounds"),
    ("a result is beyond the end", "address", "out[first_row + r] =", "out[first_row + r + 1] =", "heap-buffer-overflow"),
    ("half a block skips a barrier", None, "  if (threadIdx.x % kWarp == 0) of", "  if (threadIdx.x < 128) return 0;\n  of",
     "deadlock: of 256 threads 128 at a barrier"),
    ("memory is read unwritten", None, "threadIdx.x % kWarp == 0) of_warps", "threadIdx.x % kWarp == 99) of_warps", "nan"),
]  # fmt: skip
USE = """
import torch, conftest, fastib
for shape in ((5, 3), (400, 5), (3, 9000)):
    logvar = torch.randn(shape)
    for reduction in ("sample", "sum"):
        found = fastib.log_variance_penalty(logvar, reduction=reduction)
        torch.testing.assert_close(found, fastib.reference.log_variance_penalty(logvar, reduction=reduction))
"""


@pytest.mark.parametrize(("sanitizer", "before", "after", "said"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_planted_fault_is_seen(tmp_path: Path, sanitizer: str | None, before: str, after: str, said: str) -> None:
    csrc = tmp_path / "csrc"
    for folder in ("cuda", "common"):
        shutil.copytree(ROOT / "csrc" / folder, csrc / folder)
    flags, env = (SANITIZERS[sanitizer][1][1:], sanitized(sanitizer)) if sanitizer else ((), {})
    sound = _run(build(flags, csrc, ["log_variance_penalty"]), "-c", USE, **env)
    assert sound.returncode == 0, sound.stderr[-3000:]
    header = csrc / "cuda" / "reduce.cuh"
    text = header.read_text()
    assert text.count(before) == 1
    header.write_text(text.replace(before, after))
    faulty = _run(build(flags, csrc, ["log_variance_penalty"]), "-c", USE, **env)
    assert faulty.returncode != 0 and said in faulty.stderr, faulty.stderr[-3000:]
