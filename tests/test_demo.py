"""The demo: the two trainings agree, and a picture comes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastib import cli, demo


@pytest.fixture(autouse=True)
def fast_memory() -> None:
    """The network allocates much, and its memory is not what is tested."""
    torch.use_deterministic_algorithms(False)


def test_a_few_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = demo.run(steps=4, output=tmp_path / "new" / "folder")
    assert len(result.fused) == len(result.plain) == 4
    assert result.agrees and result.difference < 1e-5
    assert result.picture.read_bytes().startswith(b"\x89PNG\r\n")
    for ours, theirs in zip(result.fused, result.plain, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.loss == pytest.approx(ours.reconstruction + demo.BETA * ours.kl, rel=1e-5)
        assert 0 < ours.kl < ours.reconstruction and ours.seconds > 0
    assert result.fused[0].loss == pytest.approx(result.plain[0].loss, rel=1e-6)
    assert all(0 < share < 1 for share in (result.fused_share, result.plain_share))
    printed = capsys.readouterr().out
    assert demo.report(result) in printed and str(result.picture) in printed and "they agree" in printed


def test_the_fused_loss_takes_less_time() -> None:
    """By medians of 300 rounds in turn: of the steps, of which there are few, other work may slow either kind."""
    fused, plain = demo._loss_seconds("beta-vae")
    assert 0 < fused < plain


def test_trainings_that_differ_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain loss with another beta: the command fails and says so."""

    def other_loss(*args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss, reconstruction, kl = demo.fused_loss(*args)  # type: ignore[arg-type]
        return loss + kl, reconstruction, kl

    monkeypatch.setattr(demo, "plain_loss", other_loss)
    assert cli.main(["demo", "--seconds", "0.2", "--output", str(tmp_path)]) == 1
    assert "THEY DO NOT AGREE" in capsys.readouterr().out


def test_an_interrupt_still_gives_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = demo.Training.step

    def interrupted(self: demo.Training, *args: torch.Tensor) -> float:
        if len(self.steps) == 2:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(demo.Training, "step", interrupted)
    result = demo.run(seconds=60, output=tmp_path)
    assert len(result.fused) == len(result.plain) == 2 and result.picture.exists()


def test_an_interrupt_before_the_first_step_is_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: demo.Training, *args: torch.Tensor) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.Training, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run(steps=3, output=tmp_path)


def test_without_matplotlib_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'fastib\[models\]'"):
        demo.run(steps=1, output=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "-inf", "soon"])
def test_a_time_that_is_none(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", f"--seconds={seconds}"])
    assert "argument --seconds:" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "folder"])
def test_output_in_place_of_a_file(below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", "--seconds", "0", "--output", str(tmp_path / "file" / below)])
    assert (
        f"argument --output: must be a folder, or the name of a new one: {tmp_path / 'file'} is a file"
        in capsys.readouterr().err
    )


def test_beta_tcvae(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = demo.run(steps=4, loss="beta-tcvae", output=tmp_path)
    assert result.agrees and result.picture.exists()
    for ours, theirs in zip(result.fused, result.plain, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.kl == pytest.approx(theirs.kl, rel=1e-4)
    # Not the loss of the beta-VAE: what beta multiplies is the total correlation alone.
    first = result.fused[0]
    assert first.loss != pytest.approx(first.reconstruction + demo.TC_BETA * first.kl, abs=0.1)
    assert "beta-TCVAE" in capsys.readouterr().out


def test_an_unknown_loss_trains_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loss must be one of 'beta-vae', 'beta-tcvae', got 'vae'"):
        demo.run(steps=1, loss="vae", output=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_output_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert cli.main(["demo", "--seconds", "0", "--output", "nowhere"]) == 2
    assert "--output must be a folder that can be made, got nowhere: Permission denied" in capsys.readouterr().err
