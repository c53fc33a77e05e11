"""The CUDA kernels, run on a CPU from the sources that nvcc compiles: each thread of the GPU is a fiber."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from devices import ELEMENTWISE, ON_PAIRS, ONE_THREAD, OPERATORS, TESTS, WHERE_EMULATED, at_once
from emulation import lines
from emulation.build import COUNTED, build
from modules import ROOT, SANITIZERS, sanitized

from fastib import _fallback

# Each kernel, of ragged and strided inputs. What differs by a conversion alone is run once (bfloat16 for float16), and
# what differs by a divisor (sums for means).
EACH_KERNEL = (
    f"{WHERE_EMULATED} and not gradcheck and not one_tiny and not torch.float16 and not -mean- and not batchmean and "
    "(vae or -chunk or transposed or known or one_dimension or many_dimensions or far or log_weights or 33 or "
    "free_bits or broadcast_prior)"
)


def _run(module: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    emulated = {"FASTIB_BACKEND": "reference", "FASTIB_EMULATED": str(module), "CI": "", "PYTHONPATH": str(TESTS)}
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **ONE_THREAD, **emulated, **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def _pass(module: Path, selection: str, names: Sequence[str], **env: str) -> None:
    files = [str(OPERATORS[name]) for name in names]
    # What a sanitizer says goes past Python.
    options = "-q", "-x", "-m", "", "-p", "no:warnings", "--capture=sys"
    result = _run(module, "-m", "pytest", *options, *files, "-k", selection, **env)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def test_every_operator_has_a_file() -> None:
    assert OPERATORS.keys() == {name for name in _fallback.KERNELS if not name.endswith("_backward")}
    assert all((ROOT / "csrc/cuda" / f"{name}.cu").exists() for name in OPERATORS)


@pytest.mark.thorough
def test_operators() -> None:
    """The operators' own tests, with their oracles and budgets, run nearly every line of the kernels."""
    module = build()
    lines.forget()
    at_once(lambda *names: _pass(module, WHERE_EMULATED, names), [ELEMENTWISE, ON_PAIRS])
    share, never_run = lines.run()
    assert share >= 0.95, f"only {share:.1%} of the lines are run; never run: {never_run}"


@pytest.mark.thorough
def test_each_kernel_in_any_order_and_under_sanitizers() -> None:
    """Under sanitizers; and with threads and blocks in descending and in random order, where approximate instructions
    are off by as much as they may be."""
    runs = [(build(flags), sanitized(name)) for name, (_, flags) in SANITIZERS.items()]
    runs += [(build(), {"EMULATED_ORDER": order, "EMULATED_PERTURBATION": order}) for order in ("1", "2")]
    at_once(lambda module, env: _pass(module, EACH_KERNEL, [*OPERATORS], **env), runs)


# What the checks must see: a name, the sanitizer, the edit, and what is said of it. First of sums,
FAULTS = [
    ("a barrier is missing", "thread", "= value;\n  __syncthreads();", "= value;", "data race"),
    ("blocks add to one sum", "thread", "else partials[blockIdx.x] = total;", "else partials[0] += total;",
     "data race"),
    ("shared memory is too small", "address", "tile, S[kTile]", "tile, S[kTile / 8]", "out of bounds"),
    ("a result is beyond the end", "address", "out[first_row + r] =", "out[first_row + r + 1] =",
     "heap-buffer-overflow"),
    ("half a block skips a barrier", None, "  if (threadIdx.x % kWarp == 0) of",
     "  if (threadIdx.x < 128) return 0;\n  of",
     "deadlock: of 256 threads 128 at a barrier"),
    ("memory is read unwritten", None, "threadIdx.x % kWarp == 0) of_warps", "threadIdx.x % kWarp == 99) of_warps",
     "nan"),
]  # fmt: skip
# then of the passes over all pairs, into whose shared memory each warp copies what comes.
FAULTS_OF_PAIRS = [
    ("a copy is not waited for", None, "wait_for_copies();\n    __syncwarp();  //", "__syncwarp();  //", "nan"),
    ("lanes do not wait for those that copy", "thread", "    __syncwarp();  //", "    //", "data race"),
]
USE = """
import torch, conftest, fastib
for shape in ((5, 3), (400, 5), (3, 9000)):
    logvar = torch.randn(shape)
    for reduction in ("sample", "sum"):
        found = fastib.log_variance_penalty(logvar, reduction=reduction)
        torch.testing.assert_close(found, fastib.reference.log_variance_penalty(logvar, reduction=reduction))
"""


USE_OF_PAIRS = """
import torch, conftest, fastib
z, mu, logvar = torch.randn(3, 70, 20)
found, expected = (f.aggregate_posterior(z, mu, logvar, estimator="in_batch") for f in (fastib, fastib.reference))
torch.testing.assert_close(found, expected)
"""


def _plant(
    folder: Path,
    file: str,
    operator: str,
    use: str,
    name: str,
    sanitizer: str | None,
    before: str,
    after: str,
    said: str,
) -> None:
    csrc = folder / name.replace(" ", "_")
    for part in ("cuda", "common"):
        shutil.copytree(ROOT / "csrc" / part, csrc / part)
    header = csrc / "cuda" / file
    text = header.read_text()
    assert text.count(before) == 1, name
    header.write_text(text.replace(before, after))
    flags, env = (SANITIZERS[sanitizer][1], sanitized(sanitizer)) if sanitizer else (COUNTED, {})
    faulty = _run(build(flags, csrc, [operator]), "-c", use, **env)
    assert faulty.returncode != 0 and said in faulty.stderr, f"{name}: {faulty.stderr[-3000:]}"


@pytest.mark.thorough
def test_planted_faults_are_seen(tmp_path: Path) -> None:
    of_sums = [(tmp_path, "reduce.cuh", "log_variance_penalty", USE, *fault) for fault in FAULTS]
    of_pairs = [(tmp_path, "pairs.cu", "aggregate_posterior", USE_OF_PAIRS, *f) for f in FAULTS_OF_PAIRS]
    at_once(_plant, [*of_sums, *of_pairs])
