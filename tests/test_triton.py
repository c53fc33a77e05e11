"""The Triton kernels without a GPU: interpreted on the tests of the operators, within guard pages and in any order, and
compiled for three architectures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from devices import ELEMENTWISE, ON_PAIRS, ONE_THREAD, OPERATORS, TESTS, WHERE_INTERPRETED, at_once

triton = pytest.importorskip("triton")

_ELEMENTWISE = (
    f"{WHERE_INTERPRETED} and not free_bits_of_each and (not torch. or (vae or transposed) and not batchmean and "
    "not mean- or near_zero or wide-torch or extreme-torch or non_finite or signed_zero or (0d or empty or -chunk-) "
    "and (float32 or bfloat16) and not -mean and not batchmean) and (not torch.float16 or vae)"
)
_PAIRS = (
    f"{WHERE_INTERPRETED} and not 150 and not many_dimensions and not several_panels and not large_densities and "
    "not several_tasks and not many_components and not 20000-17 and not -30.0 and (not torch. or tiny or mss-none or "
    "leave_one_out-sum or mss] or log_weights] or --20.0) and (not torch.float16 or tiny)"
)


def _interpreted(*command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])  # which may have this Triton
    interpreted = {"FASTIB_BACKEND": "triton", "TRITON_INTERPRET": "1", "CI": "", "PYTHONPATH": path}
    env = {**os.environ, **ONE_THREAD, **interpreted}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=False)


def _pass(selection: str, *names: str) -> None:
    files = [str(OPERATORS[name]) for name in names]
    result = _interpreted("-m", "pytest", "-m", "", "-q", "-x", "-p", "no:warnings", "-k", selection, *files)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.thorough
def test_operators_interpreted() -> None:
    """The operators' own tests, in processes whose CPU kernels are Triton's."""
    at_once(_pass, [*((_PAIRS, name) for name in ON_PAIRS), (_ELEMENTWISE, *ELEMENTWISE)])


# Every tensor ends, then begins, at a page that can't be touched; and the programs run in random order.
_OTHERWISE = (
    "interpreter.use_guard_pages(at_end=True)",
    "interpreter.use_guard_pages(at_end=False)",
    "interpreter.use_grids_of_three_axes(); interpreter.shuffle_programs(seed=0)",
)
_SAME_BITS = """
import os, sys, torch, interpreter, triton_calls
from fastib import _triton
interpreter.make_quicker()
interpreter.use_small_blocks()
torch.manual_seed(0)
calls = list(triton_calls.calls(torch.bfloat16, dims=3))
def results():
    for name, arguments in calls:
        found = _triton.KERNELS[name](*arguments)
        yield name, [found] if isinstance(found, torch.Tensor) else found
expected = list(results())
assert {name for name, _ in expected} == set(_triton.KERNELS)
children = {}
for otherwise in sys.argv[1:]:
    if child := os.fork():
        children[otherwise] = child
        continue
    exec(otherwise)
    for (name, before), (_, after) in zip(expected, results(), strict=True):
        for a, b in zip(before, after, strict=True):
            assert a.dtype == b.dtype and torch.equal(a.nan_to_num(nan=123.0), b.nan_to_num(nan=123.0)), name
    os._exit(0)
ends = {otherwise: os.waitpid(child, 0)[1] for otherwise, child in children.items()}
assert not any(ends.values()), ends
"""


@pytest.mark.thorough
def test_same_bits_within_guard_pages_and_in_any_order_of_the_programs() -> None:
    result = _interpreted("-c", _SAME_BITS, *_OTHERWISE)
    assert result.returncode == 0, result.stderr[-3000:]


_BEYOND = """
import mmap, torch, interpreter
from fastib import _rng
from fastib._triton.reparameterize import forward
n, block = 2**34 + 1000, 1024
memory = mmap.mmap(-1, 2 * n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)  # MAP_NORESERVE: 32 GiB in name
z, rng = torch.frombuffer(memory, dtype=torch.float16), torch.tensor([3, -4])
interpreter.begin_at_program(n // block)
forward[(1,)](z, z, None, rng, z, n, BLOCK=block)
first = n // block * block
words = _rng.philox_words(rng, first // 4, block // 4).double()
radius = (-2 * torch.log((words[:, 0::2] + 0.5) / 2**32)).sqrt()
angle = words[:, 1::2] * (2 * torch.pi / 2**32)
expected = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten()
assert first >= 2**34 and 0 < n - first < block
torch.testing.assert_close(z[first:], expected[: n - first].half())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="an array of 2^34 elements that takes no memory")
def test_noise_beyond_two_to_the_34_elements() -> None:
    result = _interpreted("-c", _BEYOND)
    assert result.returncode == 0, result.stderr[-3000:]


class _Kernel:
    """An autotuned kernel that only tells the tiles with which it was launched."""

    configs = triton.Config({"OUTER": 8}), triton.Config({"OUTER": 16})

    def __init__(self, launched: list[int], tuned: bool = True) -> None:
        self.launched, self.tuned = launched, tuned
        self.fn = _Kernel(launched, tuned=False) if tuned else None

    def __getitem__(self, grid: Any) -> Any:
        return self._launch

    def _launch(self, *args: Any, OUTER: int = 16, **meta: Any) -> None:
        self.best_config = self.configs[1]
        self.launched.append(OUTER)


def test_tiles_are_timed_once_and_not_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph has the tiles, and so the bits, of its warm-up; without one it raises."""
    from fastib._triton import _tuning

    launched: list[int] = []
    kernel, on = _Kernel(launched), SimpleNamespace(is_cuda=True)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    for capturing in (False, True):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        _tuning._run_tuned(kernel, None, on, size_class=1)
    with pytest.raises(RuntimeError, match="before the capture"):
        _tuning._run_tuned(kernel, None, on, size_class=2)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    _tuning._run_tuned(kernel, None, on, size_class=1)
    assert launched == [16, 16, 8]


def test_threads_tune_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """An Autotuner that two threads are in has lost its arguments."""
    from fastib._triton import _tuning

    class Busy(_Kernel):
        inside = False

        def _launch(self, *args: Any, **meta: Any) -> None:
            if self.tuned:
                assert not Busy.inside
                Busy.inside = True
                time.sleep(0.01)
                Busy.inside = False
            super()._launch(*args, **meta)

    kernel, on = Busy([]), SimpleNamespace(is_cuda=False)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda size: _tuning._run_tuned(kernel, None, on, size_class=size), range(8)))
    assert len(kernel.launched) == 8


@pytest.mark.thorough
def test_resources_are_within_the_budget() -> None:
    """No kernel spills, nor takes more registers or shared memory than tests/triton_budget.json has."""
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(TESTS / "triton_resources.py"), "--json"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    table, _, rows = result.stdout.rstrip().rpartition("\n")
    print(table)
    found = json.loads(rows)
    for name, row in found.items():
        assert row["spilled"] == 0, f"{name} spills {row['spilled']} bytes"
    budget = json.loads((TESTS / "triton_budget.json").read_text())
    if triton.__version__ not in budget:
        return  # registers are the business of the versions that CI has
    allowed = budget[triton.__version__]
    assert found.keys() == allowed.keys()
    for name, row in found.items():
        registers, shared = allowed[name]
        assert row["registers"] <= registers and row["shared"] <= shared, f"{name}: {row}, allowed {allowed[name]}"
