"""What a training is told: presets, files and flags, and what of them is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastib import checkpoints, cli, configs
from fastib.configs import Config


@pytest.fixture(autouse=True)
def fast_memory() -> None:
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("model", configs.MODELS)
def test_presets(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {"quick", "paper"} <= set(configs.presets(model))
    for name in configs.presets(model):
        Config.of(configs.presets(model)[name])
    arguments = ["--preset=quick", "--steps=2", "--batch=4", f"--output={tmp_path}"]
    assert cli.main(["train", model, *arguments]) == 0
    assert checkpoints.load(tmp_path / checkpoints.NAME).step == 2


def test_flags_override_a_file_that_overrides_a_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("steps = 7\nbatch = 8\nbeta = 1")
    config = configs.of_command("vib", "quick", tmp_path / "mine.toml", ["--batch", "16", "--latent-dim=3"])
    assert (config.dataset, config.steps, config.batch) == ("digits", 7, 16)
    assert config.options == {"hidden": 256, "latent_dim": 3, "beta": 1.0}
    assert Config.of(config.values()) == config


@pytest.mark.parametrize("text", ["ä/ö", "😀", "a\tb\x7f", 'quote " and \\', "new\nline"])
def test_every_text_is_read_as_it_was_written(text: str, tmp_path: Path) -> None:
    config = Config.of({"model": "vib", "data": text, "learning_rate": 1 / 3})
    (tmp_path / "file.toml").write_text(config.toml(), encoding="utf-8")
    assert Config.of(configs.read(tmp_path / "file.toml")) == config


def test_an_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "gan"]) == 2
    assert "model must be one of 'beta-vae', 'annealed-vae'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="model must be given, one of beta-vae"):
        Config.of({"steps": 3})


BAD = {
    "unknown key": (["--betta=3"], "--betta must be a key of vib, one of dataset"),
    "no key": (["steps=3"], "steps must be a key of vib"),
    "key of another model": (["--estimator=mss"], "--estimator must be a key of vib"),
    "no value": (["--steps"], "steps must be given a value"),
    "not an integer": (["--steps=2.5"], "steps must be an integer, got '2.5'"),
    "not a number": (["--beta=much"], "beta must be a number, got 'much'"),
    "not a flag": (["--tensorboard=maybe"], "tensorboard must be true or false, got 'maybe'"),
    "too few steps": (["--steps=0"], "steps must be at least 1, got 0"),
    "empty batches": (["--batch=0"], "batch must be at least 1, got 0"),
    "no steps of decay": (["--decay-steps=0"], "decay_steps must be at least 1, got 0"),
    "no rows": (["--log-every=0"], "log_every must be at least 1, got 0"),
    "negative time": (["--save-seconds=-1"], "save_seconds must be a finite number of at least 0, got -1.0"),
    "a huge integer": (["--steps=" + "9" * 5001], "steps must be an integer, got '999"),
    "bytes that are no text": (["--data=\udcff"], "data must be the name of a folder in UTF-8, got '\\udcff'"),
    "negative seed": (["--seed=-1"], "seed must be at least 0, got -1"),
    "infinite rate": (["--learning-rate=inf"], "learning_rate must be a finite number of at least 0, got inf"),
    "average of 1": (["--average=1"], "average must be in [0, 1), got 1.0"),
    "decay above 1": (["--decay=1e300"], "decay must be in [0, 1], got 1e+300"),
    "beta1 that is not a number": (["--beta1=nan"], "beta1 must be in [0, 1), got nan"),
    "twice": (["--steps=3", "--steps=4"], "steps must be given once"),
    "another model": (["--model=beta-vae"], "--model must be a key of vib"),
    "more than all images": (["--batch=2000"], "batch must be at most 1437, the images of digits, got 2000"),
    "too large a model": (["--latent-dim=1000000000000"], "the options must make a model that fits into memory, got {"),
    "bad option": (["--beta=-1"], "beta must be a finite number of at least 0, got -1.0"),
    "unknown data": (["--preset=paper", "--dataset=cifar"], "dataset must be one of 'sprites', 'sprites-32', 'digits'"),
    "missing data": (["--preset=paper", "--data=nowhere"], "data must be the folder of the files of mnist, got 'now"),
    "unknown preset": (["--preset=best"], "preset must be one of 'quick', 'paper', got 'best'"),
    "missing file": (["--config=nowhere.toml"], "config must be a file of text, got nowhere.toml: FileNotFoundError"),
}


@pytest.mark.parametrize(("flags", "message"), BAD.values(), ids=BAD)
def test_bad_flags(flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = [] if "--preset=paper" in flags else ["--dataset=digits"]
    assert cli.main(["train", "vib", *dataset, *flags, f"--output={tmp_path / 'new'}"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "new").exists()


BAD_FILES = {
    "unknown key": ("betta = 3", "betta must be a key of vib"),
    "wrong type": ('steps = "3"', "steps must be an integer, got '3'"),
    "number for a flag": ("tensorboard = 1", "tensorboard must be true or false, got 1"),
    "flag for a number": ("steps = true", "steps must be an integer, got True"),
    "fraction for an integer": ("steps = 3.0", "steps must be an integer, got 3.0"),
    "a table": ("[steps]\na = 1", "steps must be an integer, got {'a': 1}"),
    "no TOML": ("steps 3", "config must be a TOML file, got"),
    "a huge integer": ("steps = " + "9" * 5001, "config must be a TOML file, got"),
    "arrays within arrays": ("steps = " + "[" * 5000 + "]" * 5000, "config must be a TOML file, got"),
    "another model": ('model = "beta-vae"', "model must be that of"),
    "a huge number": ("beta = 1" + "0" * 400, "beta must be a number that a double can hold, got one of 401 digits"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.toml").write_text(text)
    arguments = ["--dataset=digits", f"--config={tmp_path / 'bad.toml'}", f"--output={tmp_path / 'new'}"]
    assert cli.main(["train", "vib", *arguments]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "new").exists()
