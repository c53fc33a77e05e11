"""`python -m fastib train`: what a run writes, that it goes on bit for bit, and the folders that it refuses."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import importlib.util
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

import fastib
from fastib import _files, checkpoints, cli, configs, logs, train
from fastib.configs import Config

# Of which two ranks don't share a batch evenly.
TINY = {"dataset": "digits", "batch": 9, "steps": 6, "log_every": 2}
MODELS: dict[str, dict[str, Any]] = {
    "beta-vae": {"warm_up": 10},
    "annealed-vae": {"capacity_steps": 5},
    "beta-tcvae": {"network": "mlp", "hidden": 16},
    "vib": {"hidden": 16, "average": 0.9, "decay": 0.5, "decay_steps": 2},
    "information-dropout": {"width": 4},
    "air": {"most": 2, "hidden": 8, "window": 4, "presence": "score_function"},
    "multi-entity-vae": {"width": 4, "hidden": 16, "entities": 1, "warm_up": 10},
    "information-in-weights": {"hidden": 8, "warm_up": 4},
    "catch": {"hidden": 8, "beta": 1.0, "warm_up": 4},
}


@pytest.fixture(autouse=True)
def fast_memory() -> None:
    torch.use_deterministic_algorithms(False)


def _config(model: str, **values: Any) -> Config:
    return Config.of({"model": model, **TINY, **MODELS[model], **values})


def _flags(model: str, **values: Any) -> list[str]:
    return [f"--{key}={value}" for key, value in (TINY | MODELS[model] | values).items()]


def _digest(folder: Path) -> str:
    content = torch.load(folder / checkpoints.NAME, weights_only=True)
    digest: str = content["sha256"]
    return digest


def _log(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in logs.read(folder / logs.NAME)]


# What a run does.


@pytest.mark.parametrize("model", MODELS)
def test_a_run_in_parts_is_a_run(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = train.run(_config(model), tmp_path / "whole")
    for steps in (1, 3, 6):
        train.run(_config(model, steps=steps, log_every=2 if steps == 6 else 1), tmp_path / "parts")
    assert whole.steps == 6
    whole_, parts = (checkpoints.load(tmp_path / name / checkpoints.NAME) for name in ("whole", "parts"))
    assert whole_.config.steps == parts.config.steps == whole_.step == 6
    for state in ("model", "optimiser", "average"):
        assert _files.digest(getattr(whole_, state)) == _files.digest(getattr(parts, state))
    every = {row["step"]: row for row in _log(tmp_path / "parts")}
    assert [every[row["step"]] for row in _log(tmp_path / "whole")] == _log(tmp_path / "whole")
    assert [row["step"] for row in _log(tmp_path / "whole")] == [2, 4, 6]


def test_a_seed_decides_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)
        train.run(_config("beta-vae", seed=seed), tmp_path / name)
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b") != _digest(tmp_path / "c")
    torch.set_rng_state(before)
    train.run(_config("beta-vae"), tmp_path / "d")
    assert torch.equal(torch.get_rng_state(), before)


def test_every_image_once_an_epoch() -> None:
    order = train.Order(10, 4, seed=0)
    seen = torch.cat([order.indices(step) for step in range(5)])
    first, second = seen.split(10)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10)) and first.tolist() != second.tolist()
    assert torch.equal(train.Order(10, 4, seed=0).indices(3), order.indices(3))
    assert not torch.equal(train.Order(10, 4, seed=1).indices(3), order.indices(3))
    assert sorted(train.Order(3, 7, seed=0).indices(0).tolist()) != sorted(
        train.Order(3, 7, seed=0).indices(1).tolist()
    )


def test_it_learns_what_the_formula_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.run(
        _config("beta-vae", steps=200, batch=64, learning_rate=3e-3, log_every=1, network="mlp", hidden=32), tmp_path
    )
    losses = [row["loss"] for row in _log(tmp_path)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    row = _log(tmp_path)[-1]
    assert row["loss"] == pytest.approx(row["reconstruction"] + 4 * row["kl"], rel=1e-6)
    assert sum(row[f"kl_{i}"] for i in range(1, 11)) > 0


@pytest.mark.parametrize("model", ["catch", "air"])
def test_the_average_follows_what_has_none(model: str, tmp_path: Path) -> None:
    """The order of the catch, whole numbers, and the step that the prior of AIR is at."""
    more = {"examples": 200} if model == "catch" else {"prior_steps": 3}
    train.run(_config(model, average=0.9, **more), tmp_path)
    kept = checkpoints.load(tmp_path / checkpoints.NAME)
    assert kept.average is not None
    if model == "catch":
        assert torch.equal(kept.average["order"], kept.model["order"])
    else:
        assert kept.average["prior_logit._extra_state"] == {"steps": 6}


def test_an_air_that_diverges_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="learning_rate"):
        train.run(_config("air", learning_rate=1e6, presence="concrete", steps=30), tmp_path)


def test_learning_rate_and_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = _config("vib")
    assert [config.learning_rate_at(step) for step in range(5)] == [5e-4, 5e-4, 2.5e-4, 2.5e-4, 1.25e-4]
    train.run(config, tmp_path)
    kept = checkpoints.load(tmp_path / checkpoints.NAME)
    assert kept.optimiser["param_groups"][0]["lr"] == 1.25e-4
    assert kept.average is not None
    expected = torch.zeros(())
    for step in range(6):
        train.run(_config("vib", steps=step + 1), tmp_path / "steps")
        weight = checkpoints.load(tmp_path / "steps" / checkpoints.NAME).model["decoder.weight"]
        expected = weight if step == 0 else 0.9 * expected + 0.1 * weight
    torch.testing.assert_close(kept.average["decoder.weight"], expected)
    model = checkpoints.trained_model(kept)
    assert torch.equal(model.state_dict()["decoder.weight"], kept.average["decoder.weight"])


def test_the_report_names_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "vib", *_flags("vib", tensorboard="true"), f"--output={tmp_path}"]) == 0
    said = {Path(line.removeprefix("Wrote ")) for line in capsys.readouterr().out.splitlines() if "Wrote" in line}
    assert said == set(tmp_path.iterdir()) and len(said) == 4
    repeated = Config.of(configs.read(tmp_path / train.CONFIG))
    assert repeated == _config("vib", tensorboard=True)


def test_tensorboard_has_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train.run(_config("vib", tensorboard=True), tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in _log(tmp_path)]


def test_rows_of_a_lost_part_are_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.run(_config("vib", steps=4), tmp_path / "a")
    train.run(_config("vib"), tmp_path / "b")
    path = tmp_path / "a" / logs.NAME
    path.write_text(path.read_text() + (tmp_path / "b" / logs.NAME).read_text().splitlines()[3] + "\n8,1")  # cut short
    train.run(_config("vib"), tmp_path / "a")
    assert _log(tmp_path / "a") == _log(tmp_path / "b")


# Ends.


def _start(model: str, folder: Path, **values: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastib", "train", model, *_flags(model, **values), f"--output={folder}"]
    heard = ["env", "--default-signal"]  # also where the tests run under nohup, or with & from a script
    return subprocess.Popen([*heard, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(condition: Any) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


_HEARD = [pytest.param(number, marks=pytest.mark.thorough) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]


@pytest.mark.parametrize("number", [signal.SIGKILL, *_HEARD])
def test_a_killed_run_ends_with_the_same_weights(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"steps": 100_000, "save_seconds": 0.2, "log_every": 5, "network": "mlp", "hidden": 16}
    path = tmp_path / "killed" / checkpoints.NAME
    with _start("beta-vae", tmp_path / "killed", **values) as process:
        _wait_for(lambda: path.exists() and checkpoints.load(path).step >= values["log_every"])
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    step = checkpoints.load(path).step
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, errors
        assert f"after {step} of 100000 steps: the same command goes on" in output
        assert _log(tmp_path / "killed")[-1]["step"] == step - step % 5
    for name in ("killed", "whole"):
        train.run(_config("beta-vae", **(values | {"steps": step + 20})), tmp_path / name)
    assert _digest(tmp_path / "killed") == _digest(tmp_path / "whole")
    assert _log(tmp_path / "killed") == _log(tmp_path / "whole")


def test_nohup_is_heeded() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with train.interruptions() as asked:
            signal.raise_signal(signal.SIGHUP)
            assert not asked()
            signal.raise_signal(signal.SIGTERM)
            assert asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_loss_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(_config("beta-vae", steps=4, network="mlp", hidden=16), tmp_path)
    before = _digest(tmp_path)
    arguments = _flags("beta-vae", network="mlp", hidden=16)
    model = "fastib.models.beta_vae.fastib.reparameterize_with_kl"
    right = fastib.reparameterize_with_kl
    with monkeypatch.context() as patch:
        patch.setattr(model, lambda mu, logvar: (right(mu, logvar)[0], mu.sum() * torch.nan))
        assert cli.main(["train", "beta-vae", *arguments, f"--output={tmp_path}"]) == 2
    assert "the loss is nan in step 6: try a lower learning_rate" in capsys.readouterr().err
    assert _digest(tmp_path) == before
    with monkeypatch.context() as patch:  # which nothing has looked at when the run ends
        patch.setattr(model, lambda mu, logvar: (right(mu, logvar)[0], mu.sum() * torch.nan))
        assert cli.main(["train", "beta-vae", *arguments, "--learning-rate=2", f"--output={tmp_path}"]) == 2
        assert "learning_rate must be that of the run" in capsys.readouterr().err
        arguments = _flags("beta-vae", network="mlp", hidden=16, steps=5, log_every=100)
        monkeypatch.setattr(train, "_check_finite", lambda loss, step: None)
        assert cli.main(["train", "beta-vae", *arguments, f"--output={tmp_path}"]) == 2
    assert "the weights are no longer finite in step 5: try a lower learning_rate" in capsys.readouterr().err
    assert _digest(tmp_path) == before


# Checkpoints.


@pytest.fixture
def checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    train.run(_config("vib"), tmp_path)
    return tmp_path / checkpoints.NAME


def _edited(path: Path, edit: Any) -> None:
    content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, path)


EDITS = {
    "a weight": lambda c: c["model"]["decoder.bias"].add_(1e-6),
    "a name": lambda c: c["model"].update(other=c["model"].pop("decoder.bias")),
    "the step": lambda c: c.update(step=5),
    "the configuration": lambda c: c["config"].update(beta=0.5),
    "a moment": lambda c: c["optimiser"]["state"][0]["exp_avg"].zero_(),
    "the digest": lambda c: c.pop("sha256"),
    "a dtype": lambda c: c["model"].update({"decoder.bias": c["model"]["decoder.bias"].double()}),
    "a sparse weight": lambda c: c["model"].update({"decoder.bias": c["model"]["decoder.bias"].to_sparse()}),
    "no weight": lambda c: c["model"].update({"decoder.bias": c["model"]["decoder.bias"].to("meta")}),
    "a complex weight": lambda c: c["model"].update({"decoder.bias": torch.ones(3, dtype=torch.complex64).conj()}),
    "more than memory": lambda c: c["model"].update({"decoder.bias": torch.zeros(1).expand(10**13)}),
    "itself": lambda c: c["model"].update(model=c["model"]),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_checkpoint_that_was_edited_is_refused(edit: Any, checkpoint: Path) -> None:
    checkpoints.load(checkpoint)
    _edited(checkpoint, edit)
    with pytest.raises(ValueError, match="checkpoint must be as it was written, got .*checkpoint.pt"):
        checkpoints.load(checkpoint)


def test_a_checkpoint_that_was_cut_or_flipped_is_refused(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        checkpoint.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="checkpoint must be a file of torch.save, got .*checkpoint.pt"):
            checkpoints.load(checkpoint)
    middle = whole.index(b"decoder.weight")  # among what is pickled
    for at in (middle, len(whole) // 2):
        checkpoint.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="checkpoint must be .*checkpoint.pt"):
            checkpoints.load(checkpoint)
    checkpoint.write_bytes(whole)
    checkpoints.load(checkpoint)


def test_other_files_are_no_checkpoints(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint must be a file, got .*missing"):
        checkpoints.load(tmp_path / "missing")
    torch.save({"mu": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match="checkpoint must be one of python -m fastib train, got .*other"):
        checkpoints.load(tmp_path / "other")
    _edited(checkpoint, lambda c: c.update(fastib=2))
    with pytest.raises(ValueError, match="checkpoint must be of format 1, got .* of format 2"):
        checkpoints.load(checkpoint)


@contextlib.contextmanager
def _small_files(size: int) -> Iterator[None]:
    """No file may become larger, which ends a write as a full disk does, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_is_never_half_written(checkpoint: Path) -> None:
    kept, content = checkpoint.read_bytes(), checkpoints.load(checkpoint)
    with _small_files(10_000), pytest.raises(OSError, match="File too large"):
        checkpoints.save(content, checkpoint)
    assert checkpoint.read_bytes() == kept and not list(checkpoint.parent.glob("*.new"))


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "file", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_size, path.exists())))
    _files.replace(path, lambda new: new.write_text("four"))
    assert synced == [(4, False)] and path.exists()


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    """Each its own whole content, whoever is last."""
    path = tmp_path / "file"
    written: list[Path] = []

    def write(new: Path) -> None:
        new.write_text("first")
        if not written:
            written.append(new)
            _files.replace(path, write)
            assert path.read_text() == new.read_text() == "first"
            new.write_text("second")

    _files.replace(path, write)
    assert path.read_text() == "second" and list(tmp_path.iterdir()) == [path]


# What is refused, before anything is written.


def test_a_folder_with_another_run(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = checkpoint.read_bytes()
    for flags, message in (
        ({"seed": 1}, f"seed must be that of the run in {checkpoint.parent}, 0, got 1"),
        ({"beta": 0.5}, f"beta must be that of the run in {checkpoint.parent}"),
        ({"steps": 3}, f"steps must be at least those of the run in {checkpoint.parent}, 6, got 3"),
    ):
        assert cli.main(["train", "vib", *_flags("vib", **flags), f"--output={checkpoint.parent}"]) == 2
        assert message in capsys.readouterr().err
    checkpoint.write_bytes(kept[:100])
    assert cli.main(["train", "vib", *_flags("vib"), f"--output={checkpoint.parent}"]) == 2
    assert f"checkpoint must be a file of torch.save, got {checkpoint}" in capsys.readouterr().err
    assert checkpoint.read_bytes() == kept[:100]


def test_a_disk_that_fills_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.run(_config("vib", steps=4), tmp_path)
    before = _digest(tmp_path)
    with _small_files(10_000):
        assert cli.main(["train", "vib", *_flags("vib"), f"--output={tmp_path}"]) == 2
    message = f"output must be a folder that can be written, got {tmp_path}: File too large"
    assert message in capsys.readouterr().err and _digest(tmp_path) == before
    train.run(_config("vib"), tmp_path)
    assert checkpoints.load(tmp_path / checkpoints.NAME).step == 6


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert cli.main(["train", "vib", *_flags("vib"), f"--output={link}"]) == 2
    assert f"output must be a folder that can be written, got {link}: File exists" in capsys.readouterr().err


def test_a_folder_that_cannot_be_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def forbidden(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(train, "_go_on", forbidden)  # as the first look at it does, but not for root
    assert cli.main(["train", "vib", *_flags("vib"), f"--output={tmp_path}"]) == 2
    assert f"output must be a folder that can be written, got {tmp_path}: Permission denied" in capsys.readouterr().err


def test_one_folder_is_of_one_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = tmp_path / "checkpoint.pt.0.new"
    left.touch()
    other = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    assert cli.main(["train", "vib", *_flags("vib"), f"--output={tmp_path}"]) == 2
    assert f"output must not be in use by another training, got {tmp_path}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [left]
    os.close(other)
    assert cli.main(["train", "vib", *_flags("vib", steps=1), f"--output={tmp_path}"]) == 0
    assert not left.exists()


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "step,loss\nx,2\n", "step,loss\n2,much\n", "step,loss\n2,3,4\n"])
def test_a_log_that_is_damaged(text: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = checkpoint.parent / logs.NAME
    log.write_text(text)
    for command in (
        ["train", "vib", *_flags("vib"), f"--output={checkpoint.parent}"],
        ["plot", "dimensions", str(log.parent)],
    ):
        assert cli.main(command) == 2
        assert f"log must be that of a training, got {log}, with {{" in capsys.readouterr().err
    assert log.read_text() == text


def test_files_of_somebody_else_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, config = tmp_path / logs.NAME, tmp_path / train.CONFIG
    log.write_text("step,weight\n1,80\n")
    assert cli.main(["train", "vib", *_flags("vib"), f"--output={tmp_path}"]) == 2
    assert f"output must be a folder without the log.csv of something else, got {tmp_path}" in capsys.readouterr().err
    assert log.read_text() == "step,weight\n1,80\n" and not config.exists()
    log.unlink()
    config.write_text("# mine\nsteps = 4\ndataset = 'digits'\nhidden = 8\n")
    assert cli.main(["train", "vib", *_flags("vib"), f"--output={tmp_path}"]) == 2
    assert f"batch must be that of the run in {tmp_path}, 64, got 9" in capsys.readouterr().err
    assert cli.main(["train", "vib", f"--config={config}", f"--output={tmp_path}"]) == 0
    assert config.read_text().startswith("# mine")


def test_what_is_left_out_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _config("vib").options == {"latent_dim": 256, "hidden": 16, "beta": 1e-3}
    train.run(_config("vib", steps=2, beta=0.5), tmp_path / "a")
    with pytest.raises(ValueError, match="beta must be that of the run in .*, 0.5, got 0.001"):
        train.run(_config("vib"), tmp_path / "a")
    train.run(_config("vib", steps=2), tmp_path / "b")
    train.run(_config("vib", beta=1e-3), tmp_path / "b")
    assert checkpoints.load(tmp_path / "b" / checkpoints.NAME).step == 6


def test_other_images_under_the_same_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, pixels in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        for part in ("train", "t10k"):
            images = bytes([0, 0, 8, 3, 0, 0, 0, 20, 0, 0, 0, 8, 0, 0, 0, 8]) + bytes([pixels] * 20 * 64)
            (tmp_path / name / f"{part}-images-idx3-ubyte").write_bytes(images)
            (tmp_path / name / f"{part}-labels-idx1-ubyte").write_bytes(
                bytes([0, 0, 8, 1, 0, 0, 0, 20, *range(10)] + [*range(10)])
            )
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    run = {"dataset": "mnist", "network": "mlp", "hidden": 16}
    train.run(_config("beta-vae", **run, steps=2, data=str(tmp_path / "a")), tmp_path / "run")
    with pytest.raises(ValueError, match="data must be that of the run in .*, got .*b', with other images"):
        train.run(_config("beta-vae", **run, data=str(tmp_path / "b")), tmp_path / "run")
    train.run(_config("beta-vae", **run, data=str(tmp_path / "moved")), tmp_path / "run")
    train.run(_config("beta-vae", **run, data=str(tmp_path / "a")), tmp_path / "whole")
    run_, whole = (checkpoints.load(tmp_path / name / checkpoints.NAME) for name in ("run", "whole"))
    assert _files.digest(run_.model) == _files.digest(whole.model)


@pytest.mark.parametrize(
    "command", [["train", "vib", *_flags("vib")], ["evaluate", "x.pt"], ["demo"], ["plot", "traversals", "x"]]
)
def test_missing_extras(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    assert cli.main(command) == 2
    assert "pip install 'fastib[models]'" in capsys.readouterr().err
    with pytest.raises(ImportError, match="a TOML file needs tomli"):
        configs.presets("vib")


def test_missing_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "tensorboard" else found(name))
    assert cli.main(["train", "vib", *_flags("vib", tensorboard="true"), f"--output={tmp_path / 'new'}"]) == 2
    assert "pip install 'fastib[tensorboard]'" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_ctrl_c_while_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(configs, "open_dataset", interrupted)
    assert cli.main(["train", "vib", *_flags("vib"), f"--output={tmp_path / 'new'}"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usage = train.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(train.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert cli.main(["train", "vib", *_flags("vib"), f"--output={tmp_path}"]) == 2
    assert "output must be on a disk with 1 MiB left, got" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def _raise(error: Exception) -> NoReturn:
    raise error


HUGE = torch.empty(1).expand(2**46)


@pytest.mark.parametrize(
    "too_large",
    [
        lambda: torch.zeros(10**15),
        lambda: fastib.reparameterize(HUGE, HUGE),
        lambda: _raise(torch.OutOfMemoryError("CUDA out of memory")),
        lambda: _raise(MemoryError("std::bad_alloc")),
    ],
    ids=["cpu", "fastib", "gpu", "python"],
)
def test_a_step_without_room_in_memory(
    too_large: Callable[[], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train.Training, "take_step", lambda training: too_large())
    assert cli.main(["train", "vib", *_flags("vib"), f"--output={tmp_path}"]) == 2
    assert "batch must leave room in memory, got 9: " in capsys.readouterr().err


def test_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "beta-tcvae", f"--output={tmp_path / 'file'}"])
    assert "argument --output: must be a folder" in capsys.readouterr().err


# Several ranks.


def _torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.run(
        [*command, "-m", "fastib", "train", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.thorough
@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_train_what_one_does(ranks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--{key}={value}" for key, value in (TINY | {"steps": 3}).items()]
    assert cli.main(["train", "beta-tcvae", *flags, f"--output={tmp_path / 'one'}"]) == 0
    said = capsys.readouterr().out
    result = _torchrun(ranks, "beta-tcvae", *flags, f"--output={tmp_path / 'several'}")
    assert result.returncode == 0, result.stderr
    assert "Trained on 1 rank." in said and f"Trained on {ranks} ranks." in result.stdout
    assert str(tmp_path / "several" / checkpoints.NAME) in result.stdout and "Warning: `torch" not in result.stderr
    one, several = (checkpoints.load(tmp_path / name / checkpoints.NAME) for name in ("one", "several"))
    for name, weight in one.model.items():
        # Adam divides a gradient by its size, so that a step is of 5e-4 whatever little is left of it.
        torch.testing.assert_close(several.model[name], weight, rtol=0, atol=2e-4)
    for row, other in zip(_log(tmp_path / "one"), _log(tmp_path / "several"), strict=True):
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-5)


@pytest.mark.thorough
def test_several_ranks_go_on(tmp_path: Path) -> None:
    for steps in (2, 4):
        result = _torchrun(2, "beta-tcvae", *_flags("beta-tcvae", steps=steps), f"--output={tmp_path / 'parts'}")
        assert result.returncode == 0, result.stderr
    assert _torchrun(2, "beta-tcvae", *_flags("beta-tcvae", steps=4), f"--output={tmp_path / 'whole'}").returncode == 0
    assert _digest(tmp_path / "parts") == _digest(tmp_path / "whole")


@pytest.mark.thorough
def test_what_several_ranks_cannot_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = _torchrun(3, "beta-tcvae", "--dataset=digits", "--batch=2", f"--output={tmp_path / 'new'}")
    assert result.returncode != 0 and not (tmp_path / "new").exists()
    assert "batch must have an image for each of the 3 ranks, got 2" in result.stderr
    result = _torchrun(2, "vib", "--dataset=digits", f"--output={tmp_path / 'new'}")
    assert "model must be beta-tcvae on several ranks, got vib" in result.stderr
    assert cli.main(["train", "beta-tcvae", "--dataset=digits", "--batch=1", f"--output={tmp_path / 'new'}"]) == 2
    assert "batch must be at least 2, got 1" in capsys.readouterr().err


def test_the_log_is_a_csv(checkpoint: Path) -> None:
    with (checkpoint.parent / logs.NAME).open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "seconds", "loss", "cross_entropy", "information"]
    assert [row["step"] for row in rows] == ["2", "4", "6"]
