"""The exact decomposition: against the estimator at B = N, and against enumeration."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import enumeration
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastib
from fastib import ELBODecomposition, checkpoints, cli, decompose
from fastib.checkpoints import Checkpoint, Data, new_model
from fastib.configs import Config
from fastib.datasets import Sprites
from fastib.metrics import exact, exact_elbo_decomposition
from fastib.models import VAE, ConvVAE


def _data_set(n: int, dims: int) -> tuple[Tensor, Tensor, Tensor]:
    mu, logvar = torch.randn(n, dims).double(), torch.randn(n, dims).double() - 1
    return mu + torch.exp(logvar / 2) * torch.randn_like(mu), mu, logvar


def _enumerated(z: Tensor, mu: Tensor, logvar: Tensor) -> tuple[float, float, float]:
    """Mean MI, TC and dimension-wise KL by loops over Python numbers."""
    n, dims = mu.shape
    mi = tc = kl = 0.0
    for i in range(n):
        densities = [
            [enumeration.gaussian(z[i, d].item(), mu[j, d].item(), logvar[j, d].item()) for d in range(dims)]
            for j in range(n)
        ]
        joint = math.log(math.fsum(map(math.prod, densities)) / n)
        marginals = math.fsum(math.log(math.fsum(column) / n) for column in zip(*densities, strict=True))
        prior = math.fsum(math.log(enumeration.gaussian(z[i, d].item(), 0.0, 0.0)) for d in range(dims))
        mi += math.log(math.prod(densities[i])) - joint
        tc += joint - marginals
        kl += marginals - prior
    return mi / n, tc / n, kl / n


def test_three_ways_agree(kernels: str) -> None:
    z, mu, logvar = _data_set(23, 3)
    exact = exact_elbo_decomposition(z, mu, logvar)
    estimated = fastib.elbo_decomposition(z, mu, logvar, 23)
    for a, b, c in zip(exact, estimated, _enumerated(z, mu, logvar), strict=True):
        assert a.item() == pytest.approx(c, rel=1e-12)
        assert b.item() == pytest.approx(c, rel=1e-12)
    assert exact.mutual_information_ceiling == pytest.approx(math.log(23))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_low_precision_and_reductions(reduction: str, dtype: torch.dtype) -> None:
    inputs = tuple(t.to(dtype) for t in _data_set(150, 5))
    exact = exact_elbo_decomposition(*inputs, reduction=reduction)
    expected = exact_elbo_decomposition(*(t.double() for t in inputs), reduction=reduction)
    for a, b in zip(exact, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)


def test_no_sample_exceeds_the_ceiling(kernels: str) -> None:
    """Where log densities are so large that float32 has few digits left for their difference."""
    mu = torch.randn(50, 400)
    logvar = torch.full_like(mu, -40.0)
    z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
    terms = exact_elbo_decomposition(z, mu, logvar, reduction="none")
    assert (terms.mutual_information <= terms.mutual_information_ceiling * (1 + 1e-6)).all()
    torch.testing.assert_close(terms.mutual_information, torch.full((50,), math.log(50)), rtol=1e-6, atol=0)


_PEAK = """
import resource, torch
from fastib.metrics import exact, exact_elbo_decomposition
torch.set_num_threads(2)
inputs = [torch.randn(20_000, 16) for _ in range(3)]
exact_elbo_decomposition(*(t[:64] for t in inputs))  # the libraries' own memory
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
exact_elbo_decomposition(*inputs)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_bounded() -> None:
    """A tensor of all pairs would have 25 GB; the inputs have 4 MB."""
    kilobytes = int(subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True).stdout)
    assert kilobytes < 20_000


def test_has_no_gradient() -> None:
    inputs = [t.requires_grad_() for t in _data_set(10, 2)]
    assert not any(term.requires_grad for term in exact_elbo_decomposition(*inputs))


def _same(a: ELBODecomposition, b: ELBODecomposition) -> bool:
    return all(map(torch.equal, a, b)) and a.standard_errors == b.standard_errors


class _Encoder(nn.Module):
    """Dropout shows whether it runs in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(7, 20), nn.Dropout(0.5), nn.Tanh(), nn.Linear(20, 6))
        self.seen = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(x)
        assert not torch.is_grad_enabled()
        mu, logvar = self.layers(x).chunk(2, -1)
        return mu, logvar

    encode = forward


def test_posteriors_are_sampled_once_each() -> None:
    _, mu, logvar = _data_set(60, 3)
    z = fastib.reparameterize(mu, logvar, rng=torch.tensor([5, 0]))
    expected = exact_elbo_decomposition((z, mu, logvar))
    assert _same(exact_elbo_decomposition((mu, logvar), seed=5), expected)
    assert _same(exact_elbo_decomposition(z, mu, logvar), expected)
    assert not _same(exact_elbo_decomposition((mu, logvar)), expected)


@pytest.mark.parametrize("kind", ["tensor", "dataset", "pairs", "loader", "batches"])
@pytest.mark.parametrize("method", [False, True])
def test_an_encoder_and_its_data(kind: str, method: bool) -> None:
    encoder, samples = _Encoder(), torch.randn(1100, 7)
    datasets: dict[str, Any] = {
        "tensor": samples,
        "dataset": TensorDataset(samples),
        "pairs": TensorDataset(samples, torch.zeros(1100)),
        "loader": DataLoader(TensorDataset(samples, torch.zeros(1100)), batch_size=300),
        "batches": samples.split(450),
    }
    encoder.layers[1].eval()  # a part that was frozen stays so
    result = exact_elbo_decomposition(encoder.encode if method else encoder, datasets[kind])
    assert encoder.training and encoder.layers.training and not encoder.layers[1].training
    encoder.eval()
    with torch.no_grad():
        expected = exact_elbo_decomposition(encoder(samples))
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_function_is_an_encoder() -> None:
    samples = torch.randn(80, 4)
    result = exact_elbo_decomposition(lambda x: (x, torch.zeros_like(x)), samples)
    assert _same(result, exact_elbo_decomposition((samples, torch.zeros_like(samples))))


def test_a_sample_of_rows() -> None:
    """Its means are within a few of its standard errors of those of all rows; each row meets all posteriors."""
    mu, logvar = torch.randn(3000, 2), torch.randn(3000, 2) - 2
    whole = exact_elbo_decomposition((mu, logvar), reduction="none")
    sampled = [exact_elbo_decomposition((mu, logvar), rows=300, seed=0, reduction=r) for r in ("none", "mean")]
    assert len(sampled[0].mutual_information) == 300
    rows = torch.randperm(3000, generator=torch.Generator().manual_seed(0))[:300].sort().values
    for a, b in zip(sampled[0], whole, strict=True):
        torch.testing.assert_close(a, b[rows], rtol=1e-5, atol=2e-5)
    errors = sampled[1].standard_errors
    assert errors is not None and sampled[1].mutual_information_ceiling == pytest.approx(math.log(3000))
    for mean, terms, error, all_terms in zip(sampled[1], sampled[0], errors, whole, strict=True):
        assert error == pytest.approx(terms.double().std().item() / math.sqrt(300), rel=1e-5)
        assert abs(mean.item() - all_terms.mean().item()) < 5 * error


def test_all_rows_asked_for_are_all_rows() -> None:
    posteriors = torch.randn(50, 3), torch.randn(50, 3)
    assert _same(exact_elbo_decomposition(posteriors, rows=50), exact_elbo_decomposition(posteriors))


def test_one_row_has_no_standard_error() -> None:
    result = exact_elbo_decomposition((torch.zeros(5, 2), torch.zeros(5, 2)), rows=1)
    assert result.standard_errors is not None and all(map(math.isnan, result.standard_errors))
    assert exact_elbo_decomposition((torch.zeros(5, 2), torch.zeros(5, 2)), reduction="sum").standard_errors is None


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_FEWEST_ROWS", 10)
    monkeypatch.setattr(exact, "_MOST_ROWS", 10)


def _interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The next calls end like a user's Ctrl-C after so many parts."""
    whole, calls = fastib.functional.elbo_decomposition, []

    def part(*args: Any, **keywords: Any) -> ELBODecomposition:
        calls.append(args)
        if len(calls) > after:
            raise KeyboardInterrupt
        return whole(*args, **keywords)

    monkeypatch.setattr(fastib.functional, "elbo_decomposition", part)


def test_parts_make_the_whole(few_at_once: None) -> None:
    inputs = _data_set(37, 3)
    expected = fastib.elbo_decomposition(*inputs, estimator="in_batch", reduction="none")
    for a, b in zip(exact_elbo_decomposition(*inputs, reduction="none"), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rows", [None, 33])
@pytest.mark.parametrize("encoded", [False, True])
def test_goes_on_where_it_was_interrupted(
    few_at_once: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoded: bool, rows: int | None
) -> None:
    samples, encoder = torch.randn(45, 7), _Encoder()
    source = (encoder, samples) if encoded else ((samples, torch.zeros_like(samples)),)
    expected = exact_elbo_decomposition(*source, rows=rows)
    state = tmp_path / "state"
    encoder.seen = 0
    with monkeypatch.context() as patch:
        _interrupted(patch, after=2)
        with pytest.raises(KeyboardInterrupt):
            exact_elbo_decomposition(*source, rows=rows, state=state)
    assert list(tmp_path.iterdir()) == [state]
    with monkeypatch.context() as patch:
        _interrupted(patch, after=0)
        with pytest.raises(KeyboardInterrupt):
            exact_elbo_decomposition(*source, rows=rows, state=state)
    with monkeypatch.context() as patch:
        _interrupted(patch, after=3)  # as many parts as are left
        assert _same(exact_elbo_decomposition(*source, rows=rows, state=str(state)), expected)
    assert not list(tmp_path.iterdir())
    assert encoder.seen == (45 if encoded else 0)


def test_is_saved_from_time_to_time(few_at_once: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that a process that is killed, and saves nothing, loses little."""
    monkeypatch.setattr(exact, "_SECONDS_BETWEEN_SAVES", 0.0)
    done = []
    monkeypatch.setattr(exact._files, "save", lambda content, path: done.append(content["done"]))
    exact_elbo_decomposition((torch.zeros(35, 2), torch.zeros(35, 2)), state=tmp_path / "state")
    assert done == [10, 20, 30, 35]


@pytest.mark.parametrize("change", ["rows", "seed", "posteriors", "weights", "samples", "file"])
def test_the_state_of_another_call(
    few_at_once: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    mu, state, encoder = torch.randn(30, 7), tmp_path / "state", _Encoder()

    def call(**options: Any) -> None:
        source = (encoder, mu) if change in ("weights", "samples") else ((mu, mu),)
        exact_elbo_decomposition(*source, state=state, **options)

    with monkeypatch.context() as patch:
        _interrupted(patch, after=1)
        with pytest.raises(KeyboardInterrupt):
            call()
    if change == "file":
        state.write_text("something else")
    elif change == "weights":
        next(encoder.parameters()).data.add_(1)
    elif change in ("posteriors", "samples"):
        mu = mu + 1
    before = state.read_bytes()
    options: dict[str, Any] = {"rows": {"rows": 20}, "seed": {"seed": 1}}.get(change, {})
    with pytest.raises(ValueError, match="^state must be "):
        call(**options)
    assert state.read_bytes() == before


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    samples = torch.randn(45, 7)
    exact_elbo_decomposition(_Encoder(), samples, progress=True)
    shown = capsys.readouterr().err
    assert "encoding: 100%" in shown and "decomposing: 100%" in shown and "45/45" in shown
    exact_elbo_decomposition((samples, samples))
    assert not capsys.readouterr().err


def test_progress_needs_tqdm_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    encoder = _Encoder()
    with pytest.raises(ImportError, match=r"fastib\[models\]"):
        exact_elbo_decomposition(encoder, torch.randn(5, 7), progress=True)
    assert encoder.seen == 0
    exact_elbo_decomposition(encoder, torch.randn(5, 7))


ZEROS = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ZEROS, ZEROS, ZEROS), {"reduction": "batch"}, ValueError, "reduction must be one of"),
        ((ZEROS[:3], ZEROS, ZEROS), {}, ValueError, "z must have one row for each row of mu, 4, got 3"),
        ((ZEROS, ZEROS), {}, TypeError, "logvar must be a torch.Tensor, got NoneType"),
        (((ZEROS, ZEROS), None, ZEROS), {}, ValueError, "logvar must be None, unless z and mu come before it"),
        ((5,), {}, TypeError, "encoder must be a callable, .* got int"),
        (((ZEROS,),), {}, TypeError, "encoder must be a callable, .* got tuple of 1"),
        (((ZEROS, ZEROS[:3]),), {}, ValueError, "logvar must have the shape of mu"),
        (((ZEROS.long(), ZEROS),), {}, TypeError, "mu must be float16"),
        (((ZEROS, ZEROS), ZEROS), {}, ValueError, "dataset must be None with posteriors"),
        ((_Encoder(),), {}, ValueError, "dataset must be given with an encoder"),
        ((_Encoder(), 5), {}, TypeError, "dataset must be a tensor, a Dataset or an iterable, got int"),
        ((_Encoder(), []), {}, ValueError, "dataset must have at least one sample"),
        ((lambda x: x, ZEROS), {}, TypeError, r"encoder must give \(mu, logvar\), got Tensor"),
        (((ZEROS, ZEROS),), {"rows": 0}, ValueError, "rows must be at least 1, got 0"),
        (((ZEROS, ZEROS),), {"rows": 5}, ValueError, "rows must be at most the number of posteriors, 4, got 5"),
        (((ZEROS, ZEROS),), {"rows": 2.0}, TypeError, "rows must be an integer, got float"),
        (((ZEROS, ZEROS),), {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        (((ZEROS, ZEROS),), {"progress": 1}, TypeError, "progress must be a bool, got int"),
        (((ZEROS, ZEROS),), {"state": "no/such/folder/state"}, ValueError, "state must be in a folder that exists"),
    ],
)
def test_wrong_arguments(arguments: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        exact_elbo_decomposition(*arguments, **options)


# The command.


def _run(*arguments: str) -> int:
    return cli.main(["decompose", *arguments])


def test_command_on_posteriors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mu, logvar = torch.randn(500, 3), torch.randn(500, 3) - 2
    path = tmp_path / "posteriors.pt"
    torch.save({"mu": mu, "logvar": logvar}, path)
    assert _run(str(path), "--rows", "200", "--seed", "3") == 0
    expected = exact_elbo_decomposition((mu, logvar), rows=200, seed=3)
    assert capsys.readouterr().out.strip() == decompose.report(expected)
    assert list(tmp_path.iterdir()) == [path]


def _save_model(path: Path) -> VAE:
    config, sprites = Config.of({"model": "beta-vae", "latent_dim": 4}), Sprites()
    model = new_model(config, Data.of(sprites))
    assert isinstance(model, VAE)
    checkpoints.save(Checkpoint(config, Data.of(sprites), 0, model.state_dict(), {}, None), path)
    return model


def test_command_on_the_model_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Sprites, "__len__", lambda self: 70)
    model = _save_model(tmp_path / "model.pt")
    assert _run(str(tmp_path / "model.pt")) == 0
    expected = exact_elbo_decomposition(model.encode, Sprites().images(torch.arange(70)))
    printed = capsys.readouterr().out
    for name, value in zip(("mutual information", "total correlation", "dimension-wise KL"), expected, strict=True):
        found = next(line for line in printed.splitlines() if line.startswith(name))
        assert float(found.removeprefix(name).split()[0]) == pytest.approx(value.item(), abs=2e-5)


def test_command_stopped_while_it_encodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _save_model(tmp_path / "model.pt")

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ConvVAE, "encode", interrupted)
    assert _run(str(tmp_path / "model.pt")) == 130
    assert "begins anew" in capsys.readouterr().err


def test_command_goes_on(
    few_at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, mu = tmp_path / "posteriors.pt", torch.randn(40, 3)
    torch.save({"mu": mu, "logvar": mu, "z": mu}, path)
    with monkeypatch.context() as patch:
        _interrupted(patch, after=2)
        assert _run(str(path)) == 130
    assert "goes on from here" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        _interrupted(patch, after=2)
        assert _run(str(path)) == 0
    printed = capsys.readouterr().out
    assert "Going on with" in printed and decompose.report(exact_elbo_decomposition(mu, mu, mu)) in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "checkpoint must be a file, got"),
        ("junk", "checkpoint must be a file of torch.save, got"),
        ({"mu": torch.zeros(3, 2)}, "checkpoint must be one of python -m fastib train, or have mu and logvar"),
        ([1], "checkpoint must be one of python -m fastib train, or have mu and logvar"),
        ({"mu": torch.zeros(3, 2), "logvar": torch.zeros(4, 2)}, "logvar must have the shape of mu"),
        ({"mu": 1, "logvar": 2}, "mu must be a torch.Tensor, got int"),
    ],
)
def test_command_on_a_wrong_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str
) -> None:
    path = tmp_path / "file.pt"
    if content == "junk":
        path.write_text("junk of some kind")
    elif content is not None:
        torch.save(content, path)
    assert _run(str(path)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--rows", "0"], ["--rows", "x"], ["--seed", "x"], []], ids=str)
def test_command_with_wrong_arguments(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        _run(*arguments, *(["file.pt"] if arguments else []))
