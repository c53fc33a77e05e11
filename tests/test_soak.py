"""The soak: that it sees other bits and memory that grows."""

from __future__ import annotations

import pytest

from benches import soak


def test_a_soak_sees_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "SHAPES", ((16, 3),))  # not so in the processes that are started
    found = soak.soak(0)
    assert found["rounds"] == 5 and found["differing"].pop("two processes at once") == 10
    assert not any(found["differing"].values()) and found["resident_mib"]["last"] > 50
    memory = {"settled": 100.0, "last": 107.0}
    assert soak.failures({"differing": {"one thread": 0}, "resident_mib": memory}) == []
    memory["last"] = 109.0
    assert soak.failures({"differing": {"one thread": 2}, "resident_mib": memory}) == [
        "2 times other bits on one thread",
        "memory has grown by 9.0 MiB",
    ]
