"""The experiments: their configurations, the lines that they leave, and the page that is made of these."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from pathlib import Path

import pytest
import torch

from benches import experiments, gallery, training_step
from benches.estimators import column_weights
from benches.experiments import ColumnTCVAE, Experiment, Values
from fastib import configs
from fastib.configs import Config
from fastib.models import VIB, BetaTCVAE

TINY = {"model": "vib", "dataset": "digits", "hidden": 8, "latent_dim": 2, "steps": 3, "log_every": 1}


@pytest.fixture(autouse=True)
def column_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(configs.MODELS, "column-tcvae", ColumnTCVAE)


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
def test_every_configuration_is_one_and_its_command_repeats_it(name: str) -> None:
    found = list(experiments.runs(name))
    assert len({experiments.label(values) for values in found}) == len(found) >= 3
    for values in found:
        config = Config.of(values)
        if values["model"] != "column-tcvae":
            train, evaluate = experiments.command(values).split(" && ")
            _, _, module, command, model, *flags, output = shlex.split(train)
            assert (module, command, output) == ("fastib", "train", "--output=run")
            assert configs.of_command(model, None, None, flags) == config
            assert evaluate == "python -m fastib evaluate run/checkpoint.pt"


def test_the_column_model_is_its_formula() -> None:
    model = ColumnTCVAE((1, 8, 8), 100, latent_dim=3, network="mlp", hidden=8)
    images, noise = torch.rand(5, 1, 8, 8), torch.randn(5, 3)
    mu, logvar = model.encode(images)
    z = mu + torch.exp(logvar / 2) * noise
    density = torch.distributions.Normal(mu, torch.exp(logvar / 2)).log_prob(z[:, None])  # [5, 5, 3]
    log_weights = column_weights(100, 5).log()
    log_qz = torch.logsumexp(density.sum(2) + log_weights, 1)
    log_qz_d = torch.logsumexp(density + log_weights[..., None], 1).sum(1)
    log_qz_x = density.diagonal().sum(0)
    log_pz = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    mi, tc, kl = (log_qz_x - log_qz).mean(), (log_qz - log_qz_d).mean(), (log_qz_d - log_pz).mean()
    terms = model(images, noise)
    torch.testing.assert_close(terms.total_correlation, tc)
    torch.testing.assert_close(terms.loss, terms.reconstruction + mi + 6 * tc + kl)
    right = BetaTCVAE((1, 8, 8), 100, latent_dim=3, network="mlp", hidden=8)
    right.load_state_dict(model.state_dict())
    assert abs(right(images, noise).total_correlation - tc) > 0.01
    torch.testing.assert_close(right(images, noise).reconstruction, terms.reconstruction)


@pytest.mark.thorough
def test_lines_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [TINY, TINY | {"dataset": "mnist", "data": "nowhere"}]
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"tiny": Experiment(runs, 1, alone=True)})
    results = tmp_path / "rows.jsonl"
    options = ["--workers", "1", "--work", str(tmp_path / "work"), "--results", str(results)]
    for _ in range(2):
        assert experiments.main(["tiny", *options]) == 1
    done, failed, again = experiments.done(results)
    assert done["threads"] == os.cpu_count()
    assert done["config"] == TINY | {"seed": 0} and 0 < done["results"]["error"] < 1
    assert 0 <= sum(done["results"][f"{part}_seconds"] for part in ("training", "evaluation")) <= done["seconds"] + 1
    assert done["command"].startswith("python -m fastib train vib --dataset=digits --hidden=8")
    assert "data must be the folder of the files of mnist" in failed["failure"] and "results" not in failed
    assert again["config"] == failed["config"]  # what failed is tried again; what is done is not


def test_a_training_that_was_stopped_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal ends it early and well, with a checkpoint that could be evaluated."""
    monkeypatch.setattr(VIB, "step", lambda model: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit, match="the training was stopped after 1 of 3 steps"):
        experiments.make(TINY, tmp_path)
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.thorough
def test_the_first_run_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"model": "multi-entity-vae", "dataset": "sprite-scenes-32", "width": 4, "hidden": 8, "steps": 1}
    monkeypatch.setattr(experiments, "EXPERIMENTS", {"multi-entity-vae": Experiment([tiny], 2)})
    assert experiments.main(["--workers", "2", "--work", str(tmp_path / "work")], tmp_path / "rows.jsonl") == 0
    assert (tmp_path / "multi-entity-vae.png").read_bytes()[1:4] == b"PNG"
    (tmp_path / "multi-entity-vae.png").unlink()
    rows = tmp_path / "rows.jsonl"
    assert not experiments.start("multi-entity-vae", tiny | {"seed": 1, "batch": 0}, tmp_path, rows, threads=1)
    assert not (tmp_path / "multi-entity-vae.png").exists()


def _rows() -> list[Values]:
    rows: list[Values] = []
    for name, keys in gallery.COLUMNS.items():
        for values in experiments.runs(name):
            results = {key: 1.0 + values["seed"] for key in keys.values()}
            row: Values = {"experiment": name, "config": values, "command": "python -m fastib train", "seconds": 90}
            row |= {"results": results, "origin": {"cpu": "a CPU", "torch": "2", "date": "today"}}
            row["log"] = [{"step": float(i), "kl_1": 1.0 * i, "kl_2": 0.5 * i} for i in range(3)]
            rows.append(row)
    return rows


def test_means_and_spreads() -> None:
    rows = _rows()
    found = gallery.groups(rows, "vib-digits")
    assert list(found) == [("0",), ("0.0001",), ("0.001",), ("0.01",), ("0.1",)]
    runs = found[("0.1",)]
    assert len(runs) == 5 and gallery.spread(runs, "error") == (3.0, pytest.approx(2.5**0.5))
    rows.append(runs[-1] | {"seconds": 30})  # run again
    assert len(gallery.groups(rows, "vib-digits")[("0.1",)]) == 5
    failed = rows.pop()
    rows.remove(runs[-1])
    rows.append(failed)
    runs = [*runs[:-1], failed]
    del failed["results"]
    failed["failure"] = "the disk was full"
    assert gallery.spread(runs, "error") == (2.5, pytest.approx((5 / 3) ** 0.5))
    line = next(line for line in gallery.table(rows, "vib-digits").splitlines() if line.startswith("| 0.1 "))
    assert "| 5, 1 failed |" in line and "| 2.5 ± 1.3 " in line and "| 1.3 " in line
    again = rows[:-1] + [failed, runs[0] | {"config": failed["config"]}]
    line = next(line for line in gallery.table(again, "vib-digits").splitlines() if line.startswith("| 0.1 "))
    assert "| 5, 1 failed before |" in line
    assert set(gallery.drawn(rows, "vib-digits")) == set(gallery.groups(rows, "vib-digits"))
    assert ("0.1",) not in gallery.drawn([failed], "vib-digits") and ("0.1",) in gallery.groups([failed], "vib-digits")


def _row(name: str, values: Values, **results: float) -> Values:
    return {"experiment": name, "config": values | {"seed": 0}, "results": results, "seconds": 60}


def test_a_beta_vae_of_the_same_rate() -> None:
    sweep = zip(experiments.EXPERIMENTS["beta-vae"].runs, [20.0, 16, 12, 10, 6], [4.0, 3, 2, 1, 0], strict=False)
    rows = [
        _row("beta-vae", values, rate=rate, total_correlation=tc, mutual_information_gap=tc / 10)
        for values, rate, tc in sweep
    ]
    for rate, expected in ((14.0, ["2.5", "0.25"]), (10.0, ["1", "0.1"]), (20.5, ["", ""]), (5.0, ["", ""])):
        assert gallery._at_the_same_rate(rows, [_row("beta-tcvae", {}, rate=rate)]) == expected
    assert gallery._at_the_same_rate([], [_row("beta-tcvae", {}, rate=1.0)]) == ["", ""]


def test_failures_are_no_successes() -> None:
    runs = [_row("air", {}, count_accuracy=accuracy) for accuracy in (0.951, 0.949, 1.0)]
    assert gallery._successes(runs, [*runs, {"failure": "killed"}]) == ["2 of 4"]


def test_scenes_in_a_sentence() -> None:
    of_air = experiments.EXPERIMENTS["air"].runs[0]
    rows = [_row("air", of_air, count_accuracy=0.96), _row("air", of_air, count_accuracy=0.9), _row("air", of_air)]
    for seed, row in enumerate(rows):
        row["config"] = of_air | {"seed": seed}
    rows[2] = {key: value for key, value in rows[2].items() if key != "results"} | {"failure": "killed"}
    said = gallery.counted(rows)
    assert said.endswith("runs that reach 95%: AIR on digits, relaxed decisions: 93.0% (90.0%), 1 of 3 (2 to be made).")


@pytest.mark.parametrize(("name", "further"), [("air", ["0 of 5"]), ("beta-tcvae", ["", ""]), ("vib-digits", [])])
def test_a_line_of_failures_alone(name: str, further: list[str]) -> None:
    values = experiments.EXPERIMENTS[name].runs[0]
    failed: Values = {"experiment": name, "seconds": 60, "failure": "killed"}
    heading, _, line = gallery.table(
        [failed | {"config": values | {"seed": seed}} for seed in range(5)], name
    ).splitlines()
    cells = dict(zip(*([cell.strip() for cell in row.split("|")] for row in (heading, line)), strict=True))
    assert cells["seeds"] == "5, 5 failed" and cells["minutes"] == "1.0"
    assert [cells[key] for key in gallery.COLUMNS[name]] == [""] * len(gallery.COLUMNS[name])
    assert [cells[key] for key in gallery.FURTHER.get(name, ([],))[0]] == further


def test_one_seed_has_no_spread() -> None:
    rows = [row for row in _rows() if row["experiment"] == "vib-digits" and row["config"]["seed"] < 2]
    assert " | 1.5 ± 0.71 | " in re.sub(" +", " ", gallery.table(rows, "vib-digits"))
    for row in rows:
        if row["config"]["seed"] == 1:
            row["failure"] = row.pop("results")
    table = gallery.table(rows, "vib-digits")
    assert "±" not in table and " | 1 | 1 | " in re.sub(" +", " ", table)


def test_the_page_and_its_pictures(tmp_path: Path) -> None:
    rows = _rows()
    (tmp_path / experiments.NAME).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert gallery.main([], results=tmp_path) == 0
    page = (tmp_path / gallery.PAGE).read_text()
    for name in experiments.EXPERIMENTS:
        assert f"## {name}\n" in page and gallery.table(rows, name) in page
    pictures = {file for file, _ in gallery.PICTURES.values()}
    assert all(f"]({file})" in page and (tmp_path / file).read_bytes()[1:4] == b"PNG" for file in pictures)


def test_origins_are_all_told() -> None:
    rows = [{"origin": {"cpu": cpu, "torch": "2", "date": "today"}} for cpu in ("one", "other", "one")]
    assert gallery._origins(rows) == "2 runs: one, PyTorch 2, today; 1 run: other, PyTorch 2, today"


def test_a_result_that_only_some_runs_have() -> None:
    """Such as one that was measured in another way before, and taken out."""
    runs = [_row("air", {}, distortion=value) for value in (1.0, 3.0)]
    assert gallery._cell([*runs, _row("air", {})], "distortion") == "2 ± 1.4 (of 2)"
    assert gallery._cell(runs, "distortion") == "2 ± 1.4" and gallery._cell(runs, "rate") == ""


def test_the_page_has_the_order_of_the_experiments() -> None:
    headings = [line[3:] for line in gallery.page(_rows()[::-1]).splitlines() if line.startswith("## ")]
    assert headings == list(experiments.EXPERIMENTS)


def test_to_be_asked_for_help_is_no_reason_to_draw(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="0"):
        gallery.main(["--help"], results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_page_of_what_is_there(tmp_path: Path) -> None:
    rows = [row for row in _rows() if row["experiment"] == "vib-digits"]
    (tmp_path / experiments.NAME).write_text("".join(json.dumps(row) + "\n" for row in rows))
    gallery.main([], results=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {experiments.NAME, gallery.PAGE, "vib-digits.png"}


@pytest.mark.thorough
def test_a_whole_step(capsys: pytest.CaptureFixture[str]) -> None:
    rows = training_step.measure(0.01, (4,))
    assert [(row["model"], row["losses"]) for row in rows] == [
        (model, kind) for model in training_step.MODELS for kind in training_step.KINDS
    ]
    assert all(row["step_ms"] > row["loss_ms"] > 0 and row["peak_bytes"] > 2**20 for row in rows)
    first = training_step.table(rows).splitlines()[2]
    assert first.startswith("| beta-vae   | 4 |") and f"{rows[0]['loss_ms'] / rows[0]['step_ms']:.2%}" in first
