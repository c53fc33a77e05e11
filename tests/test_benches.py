"""The benches: that every contender computes the same, that rows add up, and that the report follows the results."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from modules import ROOT

import fastib
from benches import calls, estimators, floors, harness, large_batches, report, run, suites

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
        of_other_isas = {name for name in suites.contenders(spec) if name.startswith("fastib ")}
        assert set(by_name) == {"fastib", "eager"} | of_other_isas
        for row in by_name.values():
            assert 0 < row["p25_ms"] <= row["median_ms"] <= row["p75_ms"]
            assert row["rounds"] >= harness.MIN_ROUNDS
            assert row["floor_ms"] > 0 and row["floor_kind"] in ("bytes", "call", "arithmetic")
            assert row["time_over_floor"] == pytest.approx(row["median_ms"] / row["floor_ms"])
            assert row["ratio"] == pytest.approx(row["median_ms"] / by_name["fastib"]["median_ms"])


def test_pytest_benchmark_has_every_operator() -> None:
    """A file for each, as CONTRIBUTING.md says, whose contenders run: here once, on the small shapes."""
    files = [f"benches/bench_{operator}.py" for operator in suites.OPERATORS]
    small = " or ".join(f"{spec.shape_name}-{spec.dtype_name}-eager" for spec in QUICK)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--benchmark-disable",
        "-k",
        small,
        *files,
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"{len(QUICK)} passed" in result.stdout, result.stdout[-2000:] + result.stderr[-1000:]


@pytest.mark.parametrize("spec", QUICK, ids=str)
def test_contenders_compute_the_same(spec: suites.Spec) -> None:
    """All but the gradients that depend on the noise, of which each contender has its own."""
    case = suites.build(spec, ["fastib", "eager"])
    fastib, eager = (call() for call in case.contenders.values())
    assert [g.shape for g in fastib] == [g.shape for g in eager] == [t.shape for t in case.inputs]
    without_noise = {"gaussian_kl": 2, "log_variance_penalty": 1, "reparameterize": 1, "reparameterize_with_kl": 1}
    without_noise |= {"aggregate_posterior": 3, "elbo_decomposition": 3}
    for of_fastib, of_eager in list(zip(fastib, eager, strict=True))[: without_noise.get(spec.operator, 0)]:
        torch.testing.assert_close(of_fastib, of_eager)


def test_a_case_of_the_forward_pass_alone() -> None:
    both, forward = (suites.Spec("aggregate_posterior", (64, 10), backward=b) for b in (True, False))
    case = suites.build(forward, ["fastib", "eager"])
    fastib, eager = (call() for call in case.contenders.values())
    assert [t.shape for t in fastib] == [(64,), (64, 10)] and not any(t.requires_grad for t in fastib)
    for of_fastib, of_eager in zip(fastib, eager, strict=True):
        torch.testing.assert_close(of_fastib, of_eager)
    assert case.exponentials == 64 * 64 * 10 and suites.build(both, []).exponentials == 2 * case.exponentials
    assert {row["operator"] for row in harness.measure(case, 0.05)} == {"aggregate_posterior, forward"}


def test_the_plain_loop_of_the_floor_computes_exponentials() -> None:
    x = -10 * torch.rand(4096)
    total = floors._plain_loop()(x.data_ptr(), x.numel(), 2)
    assert total == pytest.approx(2 * torch.exp2(x.double()).sum().item(), rel=1e-5)
    assert floors.exponential_rate(repeats=10, rounds=2) > 1e6


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
    begin, end = report.markers("CPU")
    readme.write_text(f"above\n{begin}\nold\n{end}\nbelow\n")
    arguments = {"readme": readme, "results": tmp_path}
    assert report.main(["--check"], **arguments) == 1
    assert report.main([], **arguments) == 0
    assert report.main(["--check"], **arguments) == 0
    text = readme.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text
    whole = (tmp_path / report.PAGE).read_text()
    brief = [row for row in report.in_brief(rows) if row["contender"] in report.BRIEF_CONTENDERS]
    for of_file, of_rows in ((text, brief), (whole, rows)):
        for fact in (header["cpu"], header["torch"], header["date"], header["commit"][:9], report.table(of_rows)):
            assert fact in of_file
    (tmp_path / report.PAGE).write_text("edited")
    assert report.main(["--check"], **arguments) == 1


def test_report_refuses_a_readme_without_markers(rows: list[harness.Row], tmp_path: Path) -> None:
    run.save(rows, tmp_path)
    (tmp_path / "README.md").write_text("nothing here\n")
    with pytest.raises(ValueError, match="cpu:begin"):
        report.main([], readme=tmp_path / "README.md", results=tmp_path)


# The bench of estimators.


def test_column_weights_are_those_of_the_widespread_code() -> None:
    """Which writes them by a flat index: every B-th number is the first column, not the diagonal."""
    n, batch = 50, 7
    others = batch - 1
    flat = torch.full((batch * batch,), 1 / others)
    flat[0::batch], flat[1::batch] = 1 / n, (n - others) / (n * others)
    flat[(others - 1) * batch] = (n - others) / (n * others)
    weights = estimators.column_weights(n, batch)
    assert torch.equal(weights, flat.view(batch, batch))

    data = estimators.DataSet.of(torch.randn(batch, 3), torch.randn(batch, 3) - 1, (0.0, 0.0))
    log_density = torch.distributions.Normal(data.mu, torch.exp(data.logvar / 2)).log_prob(data.z[:, None])
    log_qz = torch.logsumexp(weights.log() + log_density.sum(2), dim=1)
    log_qz_marginals = torch.logsumexp(weights.log()[..., None] + log_density, dim=1)
    ours = fastib.aggregate_posterior(data.z, data.mu, data.logvar, log_weights=weights.log())
    torch.testing.assert_close(ours[0], log_qz)
    torch.testing.assert_close(ours[1], log_qz_marginals)


def test_estimators_are_where_their_theory_puts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert estimators.main(["--trials", "4"], results=tmp_path) == 0
    assert (tmp_path / "estimators.png").stat().st_size > 10_000
    rows = json.loads((tmp_path / estimators.NAME).read_text())["rows"]
    assert estimators.table(rows) in capsys.readouterr().out
    found = {(r["data_set"], r["term"], r["batch"], r["estimator"]): r["mean"] for r in rows}
    assert len(found) == len(rows) == 4 * 2 * len(estimators.BATCHES) * len(estimators.ESTIMATORS)
    ln_n = math.log(estimators.N)
    for row in rows:
        if row["estimator"] == "mss" and row["data_set"] in ("collapse", "separated"):
            assert row["mean"] == pytest.approx(row["truth"], abs=0.05)
        assert row["exact"] == pytest.approx(row["truth"], abs=0.15)
    for batch in estimators.BATCHES:
        assert found["collapse", "MI", batch, "mws"] == pytest.approx(ln_n, abs=1e-3)
        assert found["separated", "MI", batch, "in_batch"] == pytest.approx(math.log(batch), abs=1e-3)
        assert found["hash code", "TC", batch, "in_batch"] == pytest.approx(ln_n - math.log(batch), abs=1.2)


# The bench of large batches.


@pytest.mark.thorough
def test_large_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    util = suites.importlib.util
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "pykeops" else find(name, *rest))
    monkeypatch.setattr(harness, "MIN_ROUNDS", 2)
    monkeypatch.setattr(large_batches.harness, "interleave", lambda calls, budget_seconds: _once(calls))
    assert large_batches.main(["--largest", "256"], results=tmp_path) == 0
    assert (tmp_path / large_batches.PICTURE).stat().st_size > 10_000
    rows = json.loads((tmp_path / large_batches.NAME).read_text())["rows"]
    assert large_batches.table(rows) in capsys.readouterr().out
    contenders = {*large_batches.FASTIB, "torch.compile"}
    assert {(r["operator"], r["size"], r["contender"]) for r in rows} == {
        (operator, size, name) for operator in large_batches.OPERATORS for size in (64, 256) for name in contenders
    }
    for row in rows:
        assert row["median_ms"] > 0
        if row["contender"] in large_batches.FASTIB:
            assert row["error"] < (2e-6 if row["operator"] == "marginals" else 1e-5)


def _once(calls: dict[str, suites.Contender]) -> dict[str, list[float]]:
    return {name: [large_batches._seconds(call)] for name, call in calls.items()}


@pytest.mark.parametrize("operator", large_batches.OPERATORS)
def test_contenders_of_large_batches_agree(operator: str) -> None:
    inputs = large_batches.posteriors("mixture", 90, 4)
    expected = large_batches.contender("direct", operator)(*inputs)
    for name in ("auto", "near_linear", "torch.compile"):
        torch.testing.assert_close(large_batches.contender(name, operator)(*inputs), expected, rtol=1e-5, atol=1e-4)


def test_contenders_stop_where_they_would_take_too_long() -> None:
    case = large_batches.Case("marginals", "mixture", 1024, 10, ("auto", "torch.compile"))
    last = {("marginals", "auto"): 1.0, ("marginals", "torch.compile"): 1e3}
    assert large_batches._goes_on(case, "auto", last) and not large_batches._goes_on(case, "torch.compile", last)
    big = case._replace(size=65_536)
    assert not large_batches._goes_on(big, "torch.compile", {("marginals", "torch.compile"): 1.0})  # for its memory
    assert not large_batches._goes_on(big, "auto", {})  # it stopped before


def test_ten_regimes() -> None:
    assert len(large_batches.REGIMES) == 10
    for regime in (*large_batches.REGIMES, "k5"):
        first, again = (large_batches.posteriors(regime, 50, 7) for _ in range(2))
        assert all(t.shape == (50, 7) and t.dtype == torch.float32 and t.isfinite().all() for t in first)
        assert all(map(torch.equal, first, again))


# The bench of small calls.


def test_calls_are_taken_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calls.main(["--seconds", "0.02"], results=tmp_path) == 0
    rows = json.loads((tmp_path / calls.NAME).read_text())["rows"]
    printed = capsys.readouterr().out
    assert calls.table(rows) in printed and calls.alternatives(rows) in printed
    assert {row["operator"] for row in rows} == set(suites.OPERATORS)
    assert {row["part"] for row in rows if row["operator"] == "gaussian_kl"} == set(calls.PARTS)
    assert all(0 < row["least_us"] <= row["median_us"] for row in rows)
    section = report.small_calls(tmp_path, brief=False)
    assert calls.table(rows) in section and "registered autograd" in section
