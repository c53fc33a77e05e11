"""What every test runs under: poisoned uninitialised memory, a fixed seed, and no skip in CI."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Generator, Iterator
from types import ModuleType

import pytest
import torch


def _load(name: str, path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if "FASTIB_SANITIZED" in os.environ:  # in the place of the installed one
    sys.modules["fastib._C"] = _load("fastib._C", os.environ["FASTIB_SANITIZED"])

import devices
import in_place

import fastib
from fastib import _backends

EMULATED: ModuleType | None = None
if "FASTIB_EMULATED" in os.environ:  # the CUDA kernels (tests/emulation), which register for the CPU
    assert os.environ.get("FASTIB_BACKEND") == "reference"
    EMULATED = _load("_C_cuda", os.environ["FASTIB_EMULATED"])
COMPILED = [module for module in (_backends._cpu, _backends._cuda, EMULATED) if module is not None]


DEVICE = devices.chosen()
if DEVICE != "cpu":
    torch.set_default_device(DEVICE)
    in_place.load_triton()
    collect_ignore = [path.name for path in devices.TESTS.glob("test_*.py") if path not in devices.OPERATORS.values()]


def _kernels() -> list[str]:
    """Those that this process can run: the CPU ones by instruction set, or the ones that it was asked for."""
    if EMULATED is not None:
        return ["cuda"]
    if DEVICE != "cpu":
        return [fastib.backends()[DEVICE].name]
    return _backends._cpu.supported_isas() if _backends._cpu is not None else [fastib.backends()["cpu"].name]


KERNELS = _kernels()

if KERNELS == ["triton"]:
    import interpreter

    interpreter.make_quicker()


@pytest.fixture(params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once for each set of kernels."""
    module = _backends._cpu
    if module is None or DEVICE != "cpu":
        yield request.param
        return
    before = module.isa()
    module.use_isa(request.param)
    yield request.param
    module.use_isa(before)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """What PyTorch or the kernels allocate is NaN at first, so that an element that a kernel forgets is seen."""
    torch.set_deterministic_debug_mode("warn")  # which imports no inductor
    assert torch.empty(3).isnan().all()
    for module in COMPILED:
        module.poison_results(True)
    yield
    for module in COMPILED:
        module.poison_results(False)
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(autouse=True)
def seed() -> None:
    if DEVICE != "cpu":
        torch.manual_seed(0)
    else:  # where torch.manual_seed writes down the stack, three times a test, for GPUs that may come
        torch.random.default_generator.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def pytest_configure(config: pytest.Config) -> None:
    """The workers of pytest-xdist share the cores."""
    if hasattr(config, "workerinput"):
        share = max((os.cpu_count() or 1) // config.workerinput["workercount"], 1)
        torch.set_num_threads(share)
        os.environ["OMP_NUM_THREADS"] = str(share)  # of what a test starts


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if DEVICE == "cpu":
        return
    others = [item for item in items if any(word in item.name for word in devices.OF_THE_CPU)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def pytest_collection_finish() -> None:
    """Thousands of tests live to the end, and the garbage collector need not look at them again and again."""
    gc.collect()
    gc.freeze()


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI has all that the tests need: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if collector.name != "test_cuda_build.py" or torch.version.cuda is not None:  # PyTorch for the CPU has none of it
        _fail_if_skipped(report)
    return report
