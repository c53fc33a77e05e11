"""`python -m fastib train`, on one process and, by torchrun, on several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastib import cli, train

STEPS, BATCH = 3, 9  # which two ranks don't share evenly


@pytest.fixture(autouse=True)
def fast_memory() -> None:
    torch.use_deterministic_algorithms(False)


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


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_train_what_one_does(ranks: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["beta-tcvae", f"--steps={STEPS}", f"--batch={BATCH}"]
    assert cli.main(["train", *arguments, f"--output={tmp_path / 'one'}"]) == 0
    said = capsys.readouterr().out
    result = _torchrun(ranks, *arguments, f"--output={tmp_path / 'several'}")
    assert result.returncode == 0, result.stderr
    assert "Trained on 1 rank." in said and f"Trained on {ranks} ranks." in result.stdout
    assert str(tmp_path / "several" / "model.pt") in result.stdout and "Warning: `torch" not in result.stderr
    one, several = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("one", "several"))
    assert one["latent_dim"] == several["latent_dim"]
    for name, weight in one["state_dict"].items():
        # Adam divides a gradient by its size, so that a step is of 5e-4 whatever little is left of it.
        torch.testing.assert_close(several["state_dict"][name], weight, rtol=0, atol=2e-4)


def test_losses_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    losses = train.run(STEPS, batch=BATCH, output=tmp_path / "new" / "folder")
    assert len(losses) == STEPS and losses == train.run(STEPS, batch=BATCH, output=tmp_path)
    assert losses != train.run(STEPS, batch=BATCH, output=tmp_path, seed=1)


def test_a_batch_with_too_few_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = _torchrun(3, "beta-tcvae", "--batch=2", f"--output={tmp_path / 'new'}")
    assert result.returncode != 0 and not (tmp_path / "new").exists()
    assert "batch must have an image for each of the 3 ranks, got 2" in result.stderr
    assert cli.main(["train", "beta-tcvae", "--batch=1", f"--output={tmp_path / 'new'}"]) == 2
    assert "batch must be at least 2, got 1" in capsys.readouterr().err


def test_an_output_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "beta-tcvae", f"--output={tmp_path / 'file'}"])
    assert "argument --output: must be a folder" in capsys.readouterr().err
