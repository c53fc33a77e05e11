"""The benches: that every contender computes the same, that rows add up, and that the report follows the results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent.parent))  # benches is not installed: it runs from the checkout

from benches import harness, report, run, suites

QUICK = run.select(None, quick=True)


@pytest.fixture(scope="module")
def rows() -> list[harness.Row]:
    return run.measure(QUICK, quick=True)


def test_quick_covers_every_operator() -> None:
    assert {spec.operator for spec in QUICK} == set(suites.OPERATORS)


@pytest.mark.parametrize("operator", suites.OPERATORS)
def test_main_prints_a_line_per_case_and_saves_nothing(operator: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(report.RESULTS.glob("*"))
    assert run.main(["--quick", "--no-save", "--operator", operator]) == 0
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert "time / floor" in header
    assert len(lines) == 1 and operator in lines[0]
    assert sorted(report.RESULTS.glob("*")) == before


def test_rows_add_up(rows: list[harness.Row]) -> None:
    for spec in QUICK:
        by_name = {row["contender"]: row for row in rows if row["operator"] == spec.operator}
        assert set(by_name) == {"fastib", "eager"}
        for row in by_name.values():
            assert 0 < row["p25_ms"] <= row["median_ms"] <= row["p75_ms"]
            assert row["rounds"] >= harness.MIN_ROUNDS
            assert row["floor_ms"] > 0 and row["floor_kind"] in ("bytes", "call", "arithmetic")
            assert row["time_over_floor"] == pytest.approx(row["median_ms"] / row["floor_ms"])
            assert row["ratio"] == pytest.approx(row["median_ms"] / by_name["fastib"]["median_ms"])


@pytest.mark.parametrize("spec", QUICK, ids=str)
def test_contenders_compute_the_same(spec: suites.Spec) -> None:
    """All but the gradients that depend on the noise, of which each contender has its own."""
    case = suites.build(spec, ["fastib", "eager"])
    fastib, eager = (call() for call in case.contenders.values())
    assert [g.shape for g in fastib] == [g.shape for g in eager] == [t.shape for t in case.inputs]
    without_noise = {"gaussian_kl": 2, "log_variance_penalty": 1, "reparameterize": 1, "reparameterize_with_kl": 1}
    without_noise["aggregate_posterior"] = 3
    for of_fastib, of_eager in list(zip(fastib, eager, strict=True))[: without_noise.get(spec.operator, 0)]:
        torch.testing.assert_close(of_fastib, of_eager)


def test_other_instruction_sets_are_contenders_and_leave_no_trace() -> None:
    spec = suites.Spec("reparameterize_with_kl", suites.CACHE)
    names = [name for name in suites.contenders(spec) if name.startswith("fastib ")]
    before = suites.isa()
    for call in suites.build(spec, names).contenders.values():
        call()
    assert suites.isa() == before


def test_report_follows_the_newest_results(rows: list[harness.Row], tmp_path: Path) -> None:
    path = run.save(rows, tmp_path)
    header, *saved = map(json.loads, path.read_text().splitlines())
    assert saved == rows
    (tmp_path / f"2000-01-01-{path.name[11:]}").write_text("an older run on the same CPU, which must not be read")
    assert str(Path(__file__).parent.parent) not in path.read_text()

    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    arguments = {"readme": readme, "results": tmp_path}
    assert report.main(["--check"], **arguments) == 1
    assert report.main([], **arguments) == 0
    assert report.main(["--check"], **arguments) == 0
    text = readme.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    for fact in (header["cpu"], header["torch"], header["date"], header["commit"][:9], report.table(rows)):
        assert fact in text


def test_report_refuses_a_readme_without_markers(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here\n")
    with pytest.raises(ValueError, match="benches:begin"):
        report.main([], readme=tmp_path / "README.md", results=tmp_path)
