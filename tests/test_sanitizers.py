"""The CPU kernels under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer, and that these see
what they are for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import modules
import pytest
from devices import ELEMENTWISE, ON_PAIRS, OPERATORS, TESTS, at_once
from modules import ROOT, SANITIZERS, sanitized

pytestmark = pytest.mark.thorough

# Not what measures, nor what takes too long, nor what doesn't reach the kernels. Of the dtypes, two sizes.
EVERYWHERE = " and ".join(
    f"not {word}"
    for word in (
        *("memory", "time_grows", "31_elements", "compiles", "moments", "tail"),
        *("gradcheck", "opcheck", "wrong", "torch.float16"),
    )
)
# Doubles where a vector, a block or a row of pairs ends. Of reductions that differ by a divisor, one where no prior is
# summed.
EVERY_ACCESS = (
    "(not torch.float64 or vector or -block or -chunk or fewer_rows) and "
    "((not -mean- and not batchmean) or broadcast_prior)"
)
# The work of more than one thread: chunks, tasks of pairs, sums over the batch, and words.
SHARED = (
    "chunk or long_row or wide_batch or several_tasks or (150 and mss and mean) or words_equal or "
    "(broadcast_prior and batchmean and shape4-) or (free_bits_of_the_batch and 700)"
)
SELECTED = {
    "address": f"{EVERYWHERE} and {EVERY_ACCESS}",
    "thread": f"{EVERYWHERE} and not torch.float64 and ({SHARED})",
}
OF_LARGE_BATCHES = "shapes or decomposition or same_bits"


def _run(module: Path, sanitizer: str, *command: str) -> subprocess.CompletedProcess[str]:
    env = {"FASTIB_SANITIZED": str(module), "CI": "", "PYTHONPATH": str(TESTS), **sanitized(sanitizer)}
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **env},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def _pass(sanitizer: str, files: Sequence[Path], selected: str) -> None:
    options = "-q", "-x", "-m", "", "-p", "no:warnings", "--capture=sys"
    result = _run(modules.cpu(sanitizer), sanitizer, "-m", "pytest", *options, *map(str, files), "-k", selected)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def test_operators() -> None:
    """The operators' own tests, on the table of cases and every instruction set; and random inputs and arguments."""
    for name in SANITIZERS:
        modules.cpu(name)  # on all cores, and once for what runs at once
    parts = [[OPERATORS[operator] for operator in operators] for operators in (ELEMENTWISE, ON_PAIRS)]
    of_operators = [(name, part, SELECTED[name]) for name in SANITIZERS for part in parts]
    of_large_batches = [(name, [TESTS / "test_near_linear.py"], OF_LARGE_BATCHES) for name in SANITIZERS]
    of_random = ("address", [TESTS / "test_fuzz.py"], "random_inputs or random_arguments")
    at_once(_pass, [*of_operators, *of_large_batches, of_random])


# What must be seen: the sanitizer, a file, the edit, and what is said of it.
FAULTS = {
    "a write beyond the end": (
        "address", "reduction.cpp", "partials.resize(size_t(2 * chunks()))",
        "partials.resize(size_t(2 * chunks() - 2))",
        "heap-buffer-overflow",
    ),
    "an integer overflows": (
        "address", "reduction.cpp", "begin = chunk * kChunk, end", "begin = (chunk + 1) * (INT64_MAX - 1), end",
        "signed integer overflow",
    ),
    "threads write to one place": (
        "thread", "log_variance_penalty.cpp", "  Buffer<T> buffer;\n",
        "  Buffer<T> buffer;\n  a.reduction->scale += 1;\n",
        "data race",
    ),
}  # fmt: skip
USE = """
import torch, conftest, fastib
fastib.log_variance_penalty(torch.randn(3, 9000), reduction="sample")
"""


def test_planted_faults_are_seen(tmp_path: Path) -> None:
    used = ["log_variance_penalty"]
    for sanitizer in SANITIZERS:
        assert _run(modules.cpu(sanitizer, operators=used), sanitizer, "-c", USE).returncode == 0
    for name, (sanitizer, file, before, after, said) in FAULTS.items():
        csrc = tmp_path / name
        shutil.copytree(ROOT / "csrc", csrc)
        text = (csrc / "cpu" / file).read_text()
        assert text.count(before) == 1, name
        (csrc / "cpu" / file).write_text(text.replace(before, after))
        faulty = _run(modules.cpu(sanitizer, csrc, used), sanitizer, "-c", USE)
        assert faulty.returncode != 0 and said in faulty.stderr, f"{name}: {faulty.stderr[-3000:]}"
