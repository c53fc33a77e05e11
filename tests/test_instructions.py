"""The count of instructions: that it is held to what was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benches import instructions, suites


def test_instructions_may_not_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {name: 10.0 for name in instructions.cases()}
    monkeypatch.setattr(instructions, "count", lambda: dict(counts))
    assert instructions.main(["--check"], results=tmp_path) == 1  # to be held to nothing is no success
    assert "instructions.json must have the counts of" in capsys.readouterr().err
    assert instructions.main(["--write"], results=tmp_path) == 0
    counts["gaussian_kl float32"] = 10.29
    assert instructions.main(["--check"], results=tmp_path) == 0
    counts["gaussian_kl float32"] = 10.31
    assert instructions.main(["--check"], results=tmp_path) == 1
    assert capsys.readouterr().err == "gaussian_kl float32: 10.00 -> 10.31 instructions per element\n"


def test_every_operator_has_its_instructions_counted() -> None:
    for name, sizes in instructions.cases().items():
        (few, call), (many, _) = sizes
        assert many > few and all(torch.isfinite(gradient).all() for gradient in call()), name
    before = json.loads((instructions.RESULTS / instructions.NAME).read_text())
    assert all(set(counts) == set(instructions.cases()) for counts in before.values())
    assert {name.split()[0] for name in instructions.cases()} >= set(suites.OPERATORS)
