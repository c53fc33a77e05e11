"""aggregate_posterior, under pytest-benchmark."""

from __future__ import annotations

from typing import Any

from benches.suites import Contender


def test_aggregate_posterior(benchmark: Any, contender: Contender) -> None:
    benchmark(contender)
