"""`pytest benches/bench_<operator>.py`: one benchmark for each case of the operator and each of its contenders."""

from __future__ import annotations

from typing import Any

import pytest

from benches import suites


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    operator = metafunc.module.__name__.rpartition("bench_")[2]
    runs = [(spec, name) for spec in suites.SPECS if spec.operator == operator for name in suites.contenders(spec)]
    ids = [f"{spec.shape_name}-{spec.dtype_name}-{name}" for spec, name in runs]
    metafunc.parametrize("contender", runs, indirect=True, ids=ids)


@pytest.fixture
def contender(request: pytest.FixtureRequest, benchmark: Any) -> suites.Contender:
    spec, name = request.param
    benchmark.group = str(spec)
    return suites.build(spec, [name]).contenders[name]
