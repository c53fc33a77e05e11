"""log_variance_penalty, under pytest-benchmark."""

from __future__ import annotations

from typing import Any

from benches.suites import Contender


def test_log_variance_penalty(benchmark: Any, contender: Contender) -> None:
    benchmark(contender)
