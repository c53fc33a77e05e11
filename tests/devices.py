"""Where the tests of the operators run, which of them, and what they allocate there.

`FASTIB_TEST_DEVICE=cuda` runs them on a GPU, by the backend that serves it (`FASTIB_BACKEND`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fastib import _fallback

TESTS = Path(__file__).parent
OPERATORS = {path.stem[5:]: path for path in sorted(TESTS.glob("test_*.py")) if path.stem[5:] in _fallback.KERNELS}
ON_PAIRS = ["aggregate_posterior", "elbo_decomposition"]
ELEMENTWISE = [name for name in OPERATORS if name not in ON_PAIRS]

# What is of the CPU alone: its memory, as the system counts it, and its time.
OF_THE_CPU = ("memory", "time_grows")
# Selections, as pytest's -k has them. Of what runs on a CPU in a GPU's stead: neither threads of the CPU, nor
# schemas, nor what is for speed alone or takes too long, 2^31 elements and 10^7 draws.
WHERE_EMULATED = " and ".join(
    f"not {word}" for word in (*OF_THE_CPU, "threads", "opcheck", "31_elements", "compiles", "moments", "tail")
)
# Nor derivatives by differences, which take 20 s interpreted (the oracle has the same gradients), nor what comes before
# all kernels.
WHERE_INTERPRETED = f"{WHERE_EMULATED} and not caches and not gradcheck and not wrong"

# Of processes that share the cores: threads of several would mostly wait for each other, and take the cores for it.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def at_once(run: Callable[..., None], cases: Sequence[tuple[Any, ...]]) -> None:
    """On all cores, where each run is a process of one thread."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda case: run(*case), cases))


def chosen() -> str:
    device = os.environ.get("FASTIB_TEST_DEVICE", "cpu")
    if device not in ("cpu", "cuda"):
        raise pytest.UsageError(f"FASTIB_TEST_DEVICE={device!r}: choose cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(f"FASTIB_TEST_DEVICE=cuda: PyTorch {torch.__version__} finds no GPU")
    return device


class Allocated:
    """How many bytes were asked for, all in all."""

    bytes = 0


@contextmanager
def allocations() -> Iterator[Allocated]:
    """Counts what is allocated on the device of the tests."""
    torch.use_deterministic_algorithms(False)  # nothing is filled with NaN
    found = Allocated()
    if torch.get_default_device().type == "cuda":
        before = _asked_for()
        yield found
        found.bytes = _asked_for() - before
        return
    with torch.profiler.profile(profile_memory=True) as profile:
        yield found
    found.bytes = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())


def _asked_for() -> int:
    return int(torch.cuda.memory_stats()["requested_bytes.all.allocated"])
