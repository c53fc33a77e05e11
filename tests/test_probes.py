"""The probe, on features whose information is known."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastib.metrics import probe


def _split(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For training all but the last 2000 rows."""
    return features[:-2000], targets[:-2000], features[-2000:], targets[-2000:]


def _entropy(targets: Tensor) -> float:
    return float(torch.distributions.Categorical(probs=targets.bincount().double()).entropy())


@pytest.mark.parametrize("classes", [2, 5])
def test_all_is_read_where_classes_are_apart(classes: int) -> None:
    targets = torch.randint(classes, (4000,))
    features = torch.nn.functional.one_hot(targets).float() + 0.01 * torch.randn(4000, classes)
    result = probe(*_split(features, targets))
    assert result.information == pytest.approx(_entropy(targets[-2000:]), abs=2e-3)
    assert result.accuracy == 1


def test_information_of_a_gaussian_of_each_class() -> None:
    """Two classes at -1 and 1 with variance 1: I = 0.3369 nats, and the best accuracy is 0.8413."""
    targets = torch.randint(2, (40_000,))
    features = torch.randn(40_000, 1) + 2 * targets[:, None] - 1
    result = probe(features[:20_000], targets[:20_000], features[20_000:], targets[20_000:])
    z = torch.linspace(-12, 12, 100_001).double()
    log_odds = 2 * z  # of the density at z of one class to that of the other
    density = torch.exp(-((z - 1) ** 2) / 2) / math.sqrt(2 * math.pi)
    exact = math.log(2) - torch.trapezoid(density * torch.nn.functional.softplus(-log_odds), z).item()
    assert exact == pytest.approx(0.3369, abs=1e-4)
    assert result.information == pytest.approx(exact, abs=0.01)
    assert result.accuracy == pytest.approx(0.8413, abs=0.01)


@pytest.mark.parametrize("features", [torch.ones(2300, 3), torch.randn(2300, 500)], ids=["constant", "noise"])
def test_nothing_is_read_where_there_is_nothing(features: Tensor) -> None:
    """Also from more features than rows, to which a weak penalty lets it fit; then a guess is better: 0."""
    targets = torch.randint(3, (2300,))
    result = probe(*_split(features, targets))
    assert 0 <= result.information < 0.01
    assert result.accuracy == pytest.approx(1 / 3, abs=0.06)


def test_what_a_line_does_not_see_is_not_read() -> None:
    """Exclusive or: the mutual information is ln 2."""
    bits = torch.randint(2, (4000, 2))
    result = probe(*_split(bits.float(), bits[:, 0] ^ bits[:, 1]))
    assert result.information < 0.01
    assert probe(*_split((bits[:, :1] ^ bits[:, 1:]).float(), bits[:, 0] ^ bits[:, 1])).information > 0.68


def test_the_penalty_suits_the_features() -> None:
    """A weak one would read nothing of 200 features with 500 rows, a strong one little of a single feature."""
    targets = torch.randint(2, (2500,))
    faint = torch.randn(2500, 200)
    faint[:, 0] += 3 * targets
    assert probe(*_split(faint, targets)).information > 0.3
    clear = targets[:, None] + 0.1 * torch.randn(2500, 1)
    assert probe(*_split(clear, targets)).information > 0.68


def test_scale_shape_and_names_do_not_matter() -> None:
    targets = torch.randint(3, (2600,))
    features = torch.randn(2600, 12) + targets[:, None]
    expected = probe(*_split(features, targets))
    assert 0.4 < expected.information < math.log(3)
    scaled = (features.double() * torch.logspace(-6, 6, 12) + 5).reshape(2600, 3, 2, 2)
    found = probe(*_split(scaled, 7 - 10 * targets))
    assert found == pytest.approx(expected, abs=2e-3)


def test_targets_of_the_test_are_what_is_told() -> None:
    """Their entropy, not that of the training targets, which have other shares."""
    targets = torch.cat([torch.arange(1000) % 2, (torch.arange(2000) % 10 == 0).long()])
    information, accuracy = probe(*_split(targets[:, None].float(), targets))
    assert information == pytest.approx(_entropy(targets[-2000:]), abs=5e-3) and accuracy == 1
    assert information < 0.34 < math.log(2)


def test_is_the_same_in_every_call() -> None:
    """It draws nothing from the generators of PyTorch and NumPy. Of features with a gradient it takes the values."""
    targets = torch.randint(3, (2600,))
    features = (torch.randn(2600, 4) + targets[:, None]).requires_grad_()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first = probe(*_split(features, targets))
    assert probe(*_split(features, targets)) == first
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]


@pytest.mark.parametrize("scale", [2.0**1000, 2.0**-1000])
def test_features_may_be_of_any_scale(scale: float) -> None:
    targets = torch.randint(3, (2600,))
    features = (torch.randn(2600, 4) + targets[:, None]).double()
    assert probe(*_split(features * scale, targets)) == probe(*_split(features, targets))


def test_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastib.metrics.probes._STEPS", 1)
    targets = torch.randint(3, (2600,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = probe(*_split(torch.randn(2600, 4) + targets[:, None], targets))
    assert result.information > 0


def test_scikit_learn_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"probe needs scikit-learn: pip install 'fastib\[models\]'"):
        probe(torch.zeros(10, 2), torch.arange(10) % 2, torch.zeros(10, 2), torch.arange(10) % 2)


X, Y = torch.zeros(10, 2), torch.arange(10) % 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.tolist(), Y, X, Y), TypeError, "features_train must be a torch.Tensor, got list"),
        ((X, Y, X.long(), Y), TypeError, "features_test must be float16, .*got torch.int64"),
        ((X, Y.float(), X, Y), TypeError, "targets_train must be an int64 tensor, got torch.float32"),
        ((X, Y, X, Y.tolist()), TypeError, "targets_test must be an int64 tensor, got list"),
        ((X, Y[:9], X, Y), ValueError, r"targets_train must have shape \(10,\), .*got \(9,\)"),
        ((X, Y, X, Y[:, None]), ValueError, r"targets_test must have shape \(10,\), .*got \(10, 1\)"),
        ((X, Y, X, Y.to("meta")), ValueError, "targets_test must be on the device of features_test, cpu, got meta"),
        ((X / 0, Y, X, Y), ValueError, "features_train must be finite, got nan"),
        ((X, Y, X - math.inf, Y), ValueError, "features_test must be finite, got -inf"),
        ((X, Y, X[:0], Y[:0]), ValueError, r"features_test must have at least one row .*got shape \(0, 2\)"),
        ((X[:, :0], Y, X, Y), ValueError, r"features_train must have at least one row .*got shape \(10, 0\)"),
        (
            (X, Y, X[:, :1], Y),
            ValueError,
            r"features_test must have the features of features_train, \(2,\), got \(1,\)",
        ),
        ((X, Y * 0, X, Y), ValueError, r"targets_train must have at least two classes, got \[0\]"),
        ((X[:9], Y[:9], X, Y), ValueError, "targets_train must have at least 5 rows of each class, got 4 of class 1"),
        ((X, Y, X, Y * 3), ValueError, "targets_test must have no class that targets_train lacks, got 3"),
    ],
)
def test_wrong_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        probe(*arguments)
