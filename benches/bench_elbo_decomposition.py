"""elbo_decomposition, under pytest-benchmark."""

from __future__ import annotations

from typing import Any

from benches.suites import Contender


def test_elbo_decomposition(benchmark: Any, contender: Contender) -> None:
    benchmark(contender)
