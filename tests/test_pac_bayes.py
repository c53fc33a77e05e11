"""The PAC-Bayes bound: cases in closed form, its limits, and how often it holds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fastib.metrics import pac_bayes_bound


def _rate(information: float, examples: int, delta: float = 0.05) -> float:
    return (information + math.log(2 * math.sqrt(examples) / delta)) / examples


@pytest.mark.parametrize("information", [0.0, 3.0, 500.0, 1e6])
def test_of_an_error_of_nothing(information: float) -> None:
    """kl(0, q) is -log(1 - q)."""
    expected = -math.expm1(-_rate(information, 1000))
    assert pac_bayes_bound(0.0, information, 1000) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("error", [0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("information", [0.0, 40.0, 700.0])
def test_the_divergence_of_the_bound_is_its_right_side(error: float, information: float) -> None:
    bound = pac_bayes_bound(error, information, 1000, 0.1)
    p, q = (torch.distributions.Bernoulli(torch.tensor(x, dtype=torch.float64)) for x in (error, bound))
    assert error < bound < 1
    divergence = torch.distributions.kl_divergence(p, q).item()
    assert divergence == pytest.approx(_rate(information, 1000, 0.1), rel=1e-9)


def test_limits() -> None:
    assert pac_bayes_bound(1.0, 0.0, 100) == 1
    assert pac_bayes_bound(0.1, 1e9, 100) == pytest.approx(1, abs=1e-12)
    assert pac_bayes_bound(0.1, 0.0, 10**15) == pytest.approx(0.1, abs=1e-6)
    looser = [pac_bayes_bound(0.1, 100.0, 1000, delta) for delta in (0.5, 0.05, 0.005)]
    assert looser == sorted(looser) and looser[0] < looser[2]


def test_pinsker_is_never_tighter() -> None:
    for error in (0.0, 0.05, 0.4):
        for information in (0.0, 10.0, 300.0):
            assert pac_bayes_bound(error, information, 2000) <= error + math.sqrt(_rate(information, 2000) / 2)


def test_an_estimated_error_costs() -> None:
    """For no error in n draws the two steps have closed forms: the error is at most 1 - (delta / 4)**(1 / n)."""
    estimated = pac_bayes_bound(0.0, 20.0, 1000, 0.1, draws=50)
    assert estimated == pytest.approx(pac_bayes_bound(1 - (0.1 / 4) ** (1 / 50), 20.0, 1000, 0.05), rel=1e-12)
    exact = pac_bayes_bound(0.2, 20.0, 1000, 0.05)
    costs = [pac_bayes_bound(0.2, 20.0, 1000, 0.1, draws=draws) - exact for draws in (10, 1000, 10**9)]
    assert costs[0] > costs[1] > costs[2] > 0 and costs[2] < 1e-4


def test_it_holds() -> None:
    """Of classifiers that guess the label of n images, the best: it costs log(classifiers) nats to say which it is. Its
    true error is a half, and the bound is below that as seldom as it says; without the information it would be
    often."""
    count, n, delta = 1024, 40, 0.5
    errors = torch.distributions.Binomial(n, 0.5).sample((4000, count)).min(1).values / n
    bounds = torch.tensor([pac_bayes_bound(e, math.log(count), n, delta) for e in errors.tolist()])
    free = torch.tensor([pac_bayes_bound(e, 0.0, n, delta) for e in errors.tolist()])
    assert (bounds < 0.5).double().mean() <= delta < (free < 0.5).double().mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"error": 1.5}, "error must be in .0, 1., got 1.5"),
        ({"error": -0.1}, "error must be a finite number of at least 0, got -0.1"),
        ({"information": -1.0}, "information must be a finite number of at least 0, got -1.0"),
        ({"information": math.nan}, "information must be a finite number of at least 0, got nan"),
        ({"examples": 7}, "examples must be at least 8, got 7"),
        ({"delta": 0.0}, "delta must be between 0 and 1, got 0.0"),
        ({"delta": 1}, "delta must be between 0 and 1, got 1"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
    ],
)
def test_bad_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pac_bayes_bound(**({"error": 0.1, "information": 10.0, "examples": 100} | arguments))


@pytest.mark.parametrize("name", ["error", "information", "examples", "delta", "draws"])
def test_bad_types(name: str) -> None:
    arguments: dict[str, Any] = {"error": 0.1, "information": 10.0, "examples": 100, name: "10"}
    with pytest.raises(TypeError, match=f"{name} must be an? (number|integer), got str '10'"):
        pac_bayes_bound(**arguments)
