"""reparameterize_with_kl, under pytest-benchmark."""

from __future__ import annotations

from typing import Any

from benches.suites import Contender


def test_reparameterize_with_kl(benchmark: Any, contender: Contender) -> None:
    benchmark(contender)
