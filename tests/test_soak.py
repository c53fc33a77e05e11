"""The soak: that it sees other bits and memory that grows."""

from __future__ import annotations

import pytest

from benches import soak


@pytest.mark.thorough
def test_a_soak_sees_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "SHAPES", ((16, 3),))  # not so in the processes that are started
    found = soak.soak(0)
    assert found["rounds"] == 5 and found["differing"].pop("two processes at once") == 10
    assert not any(found["differing"].values()) and len(found["resident_mib"]) == 5
    assert all(mib > 50 for mib in found["resident_mib"])


def test_a_soak_sees_memory_that_grows() -> None:
    """By the most of each half, whatever it was at first, or just after the last round."""
    memory = [300.0, 300.0, *[100.0, 104.0] * 2, *[100.0, 111.0, 90.0, 90.0]]
    assert soak.halves(memory) == (104.0, 111.0)
    found = {"differing": {"one thread": 0}, "resident_mib": memory, "rounds": 10, "minutes": 3.2}
    assert soak.failures(found) == []
    assert soak.said(found) == (
        "in all 10 rounds of 3 minutes the bits were the same; the process had 104 MiB at most in the first half of "
        "the rounds, 111 in the last"
    )
    memory[7] = 113.0
    assert soak.failures(found | {"differing": {"one thread": 2}}) == [
        "2 times other bits on one thread",
        "memory has grown by 9.0 MiB",
    ]
