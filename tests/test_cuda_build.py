"""fastib._C_cuda as nvcc made it, on a machine that may have no GPU: it loads and serves, checks its arguments, and its
kernels fit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

import cuda_resources
import pytest
import torch
from modules import ROOT

import fastib
from fastib import _backends, _fallback

if _backends._cuda is None:
    reason = f"fastib._C_cuda is not built: {fastib.backends()['cuda'].detail}"
    pytest.skip(reason, allow_module_level=True)

ON_CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
ROWS = cuda_resources.table()


def test_it_serves_cuda() -> None:
    assert fastib.backends()["cuda"].name == "cuda"
    for name in _fallback.KERNELS:
        registered = torch._C._dispatch_dump(f"fastib::{name}")
        assert re.search(
            rf"^CUDA: registered at \S*csrc/cuda/{name.removesuffix('_backward')}.cu:", registered, re.MULTILINE
        )


def _tensors(count: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(4, 3) for _ in range(count))


def _kernel(name: str) -> Callable[..., Any]:
    """The operator's CUDA kernel, whatever the device of its arguments."""
    operator = getattr(torch.ops.fastib, name).default
    return lambda *arguments: operator.redispatch(ON_CUDA, *arguments)


RNG = torch.tensor([1, 2])
MU, LOGVAR, Z = _tensors(3)
BAD = {
    "noise with a reduction over the first dimension": ("reparameterize_with_kl", (MU, LOGVAR, None, RNG, 3, 1)),
    "a prior that is broadcast in other than leading": (
        "gaussian_kl_backward",
        (torch.zeros(()), MU, LOGVAR, MU[:, :1], LOGVAR[:, :1], 2, 1, 0.0, 15),
    ),
    "more than 25 dimensions": (
        "log_variance_penalty",
        (torch.zeros(64).as_strided((2,) * 27, (0, 1) * 13 + (0,)), 2, 1),
    ),
}


@pytest.mark.parametrize("said", BAD)
def test_arguments_are_checked_before_anything_runs(said: str) -> None:
    name, arguments = BAD[said]
    with pytest.raises(RuntimeError, match=said):
        _kernel(name)(*arguments)


@pytest.mark.parametrize("name", ["reparameterize", "aggregate_posterior"])
def test_without_a_gpu_a_call_raises(name: str) -> None:
    if torch.cuda.is_available():
        return  # what it does then is the business of all other tests
    arguments = (
        (MU, LOGVAR, None, RNG) if name == "reparameterize" else (Z, MU, LOGVAR, None, 0, 0, 0.25, 0.25, 0, 0, True)
    )
    with pytest.raises(RuntimeError, match="cuda_guard"):
        _kernel(name)(*arguments)


ARCHITECTURES = "sm_80", "sm_90", "sm_100"  # that budgets are for


def test_what_was_asked_for_is_built() -> None:
    """Else the next test compares less than it seems to."""
    asked = {
        f"sm_{major}{minor}" for major, minor in re.findall(r"(\d+)\.(\d)", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))
    }
    assert asked <= {name.rpartition(" ")[2] for name in ROWS} != set()


@pytest.mark.parametrize(
    "architecture", [one for one in ARCHITECTURES if any(name.endswith(f" {one}") for name in ROWS)]
)
def test_resources_are_within_the_budget(architecture: str) -> None:
    """No kernel spills, nor takes more registers or shared memory than tests/cuda_budget.json has."""
    rows = {name: row for name, row in ROWS.items() if name.endswith(f" {architecture}")}
    for name, row in sorted(rows.items()):
        print(name, row)
        assert row["spilled"] == 0, f"{name} spills {row['spilled']} bytes"
    version, budgets = cuda_resources.ptx_version(), json.loads(cuda_resources.BUDGET.read_text())
    if version not in budgets:
        return  # registers are the business of the nvcc that CI has
    budget = {name: most for name, most in budgets[version].items() if name.endswith(f" {architecture}")}
    assert rows.keys() == budget.keys()
    for name, row in rows.items():
        registers, shared = budget[name]
        assert row["registers"] <= registers and row["shared"] <= shared, f"{name}: {row}, allowed {budget[name]}"


def test_launch_bounds_hold_the_launched_blocks() -> None:
    """All kernels are launched with kThreads threads, or as many warps as kMostWarps."""
    sources = "".join(path.read_text() for path in sorted((ROOT / "csrc/cuda").glob("*.cu*")))
    constants = dict(re.findall(r"constexpr int (\w+) = (\d+);", sources))
    threads = int(constants["kThreads"])
    assert threads == int(constants["kMostWarps"]) * int(constants["kWarp"])
    bounds = re.findall(r"\.entry (?:.|\n)*?\{", cuda_resources.dump("ptx"))
    assert len(bounds) > 100
    assert all(f".maxntid {threads}" in entry for entry in bounds)
