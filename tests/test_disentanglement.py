"""Measures of disentanglement, on codes whose value is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import enumeration
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastib
from fastib.metrics import (
    active_units,
    dci,
    factor_vae_score,
    gaussian_total_correlation,
    mutual_information_gap,
    sap,
)


def _grid(*sizes: int) -> Tensor:
    """Every combination of factors once: they are independent, exactly."""
    return torch.cartesian_prod(*map(torch.arange, sizes))


FACTORS = _grid(4, 5, 3)
ENTROPIES = torch.tensor([4.0, 5.0, 3.0]).double().log()
TURN = torch.tensor([[1.0, -1.0], [1.0, 1.0]]).double() / math.sqrt(2)  # by 45 degrees

# Each factor has a dimension of its own, in this order.
PERFECT: dict[str, tuple[Tensor, list[int]]] = {
    "as_they_are": (FACTORS.double(), [0, 1, 2]),
    "permuted": (FACTORS[:, [2, 0, 1]].double(), [1, 2, 0]),
    "scaled": (FACTORS * torch.tensor([100.0, -0.2, 3.0]) + 7, [0, 1, 2]),
    "with_dimensions_to_spare": (torch.cat([torch.full((60, 2), 0.1), FACTORS.flip(1)], 1), [4, 3, 2]),
    "float16": (((FACTORS - 2) * 30_000).half(), [0, 1, 2]),  # 4 * 30 000 is more than it can have
}


@pytest.fixture(params=PERFECT)
def perfect(request: pytest.FixtureRequest) -> tuple[Tensor, list[int]]:
    return PERFECT[request.param]


# The mutual information gap.


def test_gap_of_a_perfect_code(perfect: tuple[Tensor, list[int]]) -> None:
    codes, order = perfect
    result = mutual_information_gap(codes, FACTORS)
    expected = torch.zeros(codes.shape[1], 3).double()
    expected[order, range(3)] = ENTROPIES
    torch.testing.assert_close(result.information, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.gaps, torch.ones(3).double())
    assert result.score == pytest.approx(1)


def test_gap_does_not_depend_on_what_values_are_called() -> None:
    result = mutual_information_gap(FACTORS.double(), FACTORS * 7 - 3)
    torch.testing.assert_close(result.information.diagonal(), ENTROPIES)


@pytest.mark.parametrize(
    ("codes", "gaps"),
    [
        (FACTORS[:, [0, 1, 1, 2]], [1, 0, 1]),  # the second has two dimensions
        (FACTORS[:, :2], [1, 1, 0]),  # the third has none
        (torch.stack([FACTORS[:, 0] // 2, FACTORS[:, 1], FACTORS[:, 2]], 1), [0.5, 1, 1]),  # half of the first is lost
    ],
    ids=["duplicated", "missing", "coarse"],
)
def test_gap_for_each_factor(codes: Tensor, gaps: list[float]) -> None:
    result = mutual_information_gap(codes.double(), FACTORS)
    torch.testing.assert_close(result.gaps, torch.tensor(gaps).double(), rtol=0, atol=1e-12)
    assert result.score == pytest.approx(sum(gaps) / 3)


def test_gap_of_rotated_factors() -> None:
    """Each dimension knows as much of each factor."""
    factors = _grid(16, 16)
    result = mutual_information_gap(factors.double() @ TURN, factors)
    assert result.score < 0.03
    assert (result.information > 0.3).all()


def test_gap_of_noise() -> None:
    factors = _grid(4, 5, 3).repeat(100, 1)
    assert mutual_information_gap(torch.randn(6000, 4), factors).score < 0.01


def test_bins_have_equal_widths() -> None:
    factors = _grid(40, 2)
    codes = factors.double()
    for bins, expected in ((20, math.log(20)), (40, math.log(40)), (2, math.log(2))):
        found = mutual_information_gap(codes, factors, bins=bins).information[0, 0].item()
        assert found == pytest.approx(expected)
    codes[:, 0] = torch.where(codes[:, 0] < 39, 0.0, 1.0)  # one of 40 is alone in its bin
    found = mutual_information_gap(codes, factors).information[0, 0].item()
    assert found == pytest.approx(math.log(40) / 40 + 39 / 40 * math.log(40 / 39))


def test_a_factor_of_one_value_is_left_out() -> None:
    factors = torch.stack([FACTORS[:, 0], torch.full((60,), 6), FACTORS[:, 1]], 1)
    codes, logvar = FACTORS.double(), torch.full((60, 3), -20.0).double()
    for options in ({}, {"logvar": logvar}):
        result = mutual_information_gap(codes, factors, **options)
        assert result.gaps.isnan().tolist() == [False, True, False]
        assert result.score == pytest.approx(1)
        assert result.information[:, 1].tolist() == pytest.approx([0, 0, 0], abs=1e-12)


# With the posteriors.


def _information(z: Tensor, mu: Tensor, logvar: Tensor, factors: Tensor, j: int, k: int) -> float:
    """By loops over Python numbers."""
    total = 0.0
    for i in range(len(z)):
        densities = [
            enumeration.gaussian(z[i, j].item(), m.item(), v.item())
            for m, v in zip(mu[:, j], logvar[:, j], strict=True)
        ]
        alike = [d for d, v in zip(densities, factors[:, k], strict=True) if v == factors[i, k]]
        total += math.log(math.fsum(alike) / len(alike)) - math.log(math.fsum(densities) / len(densities))
    return total / len(z)


def test_gap_of_posteriors_by_enumeration() -> None:
    """Of values that are not as frequent as each other."""
    factors = torch.stack([torch.randint(2, (23,)), torch.arange(23) % 3, torch.arange(23) // 20], 1)
    mu, logvar = torch.randn(23, 4).double() + factors[:, :1], torch.randn(23, 4).double() - 1
    z = fastib.reparameterize(mu, logvar, rng=torch.tensor([5, 0]))
    result = mutual_information_gap(mu, factors, logvar=logvar, seed=5)
    gaps = []
    for k in range(3):
        column = [_information(z, mu, logvar, factors, j, k) for j in range(4)]
        assert result.information[:, k].tolist() == pytest.approx(column, rel=1e-10, abs=1e-12)
        second, first = sorted(column)[-2:]
        shares = factors[:, k].bincount().double() / 23
        gaps.append((first - second) / -(shares * shares.log()).sum().item())
    assert result.gaps.tolist() == pytest.approx(gaps, rel=1e-10)
    assert result.score == pytest.approx(sum(gaps) / 3, rel=1e-10)


def test_gap_of_posteriors_at_its_limits() -> None:
    factors = FACTORS.repeat(20, 1)
    codes = torch.cat([factors[:, [1, 2, 0]].float(), torch.zeros(1200, 1)], 1)
    precise = torch.tensor([-12.0, -12.0, -12.0, 0.0]).expand(1200, 4).contiguous()
    assert mutual_information_gap(codes, factors, logvar=precise).score == pytest.approx(1, abs=1e-5)
    blurred = mutual_information_gap(codes, factors, logvar=torch.full_like(codes, 12.0))
    assert blurred.information.abs().max() < 1e-3 and blurred.score < 1e-3


def test_gap_of_posteriors_in_single_precision() -> None:
    factors = _grid(4, 5, 3).repeat(50, 1)
    mu, logvar = torch.randn(3000, 3) + factors, torch.randn(3000, 3) - 2
    single = mutual_information_gap(mu, factors, logvar=logvar)
    z = fastib.reparameterize(mu, logvar, rng=torch.tensor([0, 0]))
    log_q = fastib.aggregate_posterior_marginals(z.double(), mu.double(), logvar.double(), estimator="in_batch")
    for v in range(4):
        rows = factors[:, 0] == v
        mixture = (t[rows].double() for t in (z, mu, logvar))
        log_q[rows] = fastib.aggregate_posterior_marginals(*mixture, estimator="in_batch") - log_q[rows]
    torch.testing.assert_close(single.information[:, 0], log_q.mean(0), rtol=0, atol=1e-5)


# The FactorVAE score.


class _Images:
    """Images whose pixels are their factors, of these sizes."""

    def __init__(self, *sizes: int) -> None:
        self.values = _grid(*sizes)
        self.seen: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.values)

    def factors(self, indices: Tensor) -> Tensor:
        return self.values[indices]

    def images(self, indices: Tensor) -> Tensor:
        self.seen.append(self.values[indices])
        return self.values[indices].float()[:, :, None, None]


def _encoder(of_pixels: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def encode(images: Tensor) -> tuple[Tensor, Tensor]:
        mu = of_pixels(images.flatten(1))
        return mu, torch.zeros_like(mu)

    return encode


FEW: dict[str, Any] = {"votes": 200, "test_votes": 200}


@pytest.mark.parametrize(
    "of_pixels",
    [
        lambda x: x,
        lambda x: x[:, [2, 0, 1]],
        lambda x: (x + 0.1 * x.roll(1, 1)) * torch.tensor([100.0, -0.2, 3.0]) + 7,
        lambda x: torch.cat([torch.ones_like(x), x + 0.01 * x.flip(1)], 1),
        lambda x: torch.cat([x, 1e-3 * x], 1),
    ],
    ids=["as_they_are", "permuted", "scaled", "with_constant_dimensions", "with_collapsed_dimensions"],
)
def test_votes_of_a_perfect_code(of_pixels: Callable[[Tensor], Tensor]) -> None:
    assert factor_vae_score(_encoder(of_pixels), _Images(4, 5, 6), **FEW) == 1


def test_votes_of_noise() -> None:
    noise = torch.Generator().manual_seed(0)
    encode = _encoder(lambda x: torch.randn(len(x), 5, generator=noise))
    assert factor_vae_score(encode, _Images(4, 5, 6)) == pytest.approx(1 / 3, abs=0.06)
    assert factor_vae_score(encode, _Images(4, 5, 6), votes=1) < 0.5  # which it would predict


def test_votes_of_a_code_that_lacks_a_factor() -> None:
    """Collapsed is lacking: where the third factor is fixed, one of the other two is named."""
    for scale in (0.0, 1e-3):
        encode = _encoder(lambda x, s=scale: x * torch.tensor([1.0, 1.0, s]))
        assert factor_vae_score(encode, _Images(4, 5, 6), **FEW) == pytest.approx(2 / 3, abs=0.1)
    assert factor_vae_score(_encoder(lambda x: x * 1e-3), _Images(4, 5, 6), **FEW) == 0


def test_a_vote_fixes_one_factor_that_varies() -> None:
    dataset = _Images(4, 1, 6, 7)
    assert factor_vae_score(_encoder(lambda x: x), dataset, votes=30, test_votes=30, batch=512) == 1
    of_votes = [batch for batch in dataset.seen if len(batch) == 512]
    assert len(of_votes) == 60
    fixed = [tuple((batch == batch[0]).all(0).tolist()) for batch in of_votes]
    assert set(fixed) == {tuple(i in (1, k) for i in range(4)) for k in (0, 2, 3)}
    values = {int(batch[0, 3]) for batch, of in zip(of_votes, fixed, strict=True) if of[3]}
    assert len(values) > 3


def test_the_encoder_is_in_evaluation_mode() -> None:
    class Encoder(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            assert not self.training and not torch.is_grad_enabled()
            return x.flatten(1), x.flatten(1)

    encoder = Encoder()
    assert factor_vae_score(encoder, _Images(4, 5), **FEW) == 1
    assert encoder.training


# Disentanglement, completeness, informativeness.


ROWS = FACTORS.repeat(10, 1)


def test_dci_of_a_perfect_code(perfect: tuple[Tensor, list[int]]) -> None:
    codes, order = perfect
    result = dci(codes.repeat(10, 1), ROWS)
    assert result[:3] == pytest.approx((1, 1, 1))
    expected = torch.zeros(codes.shape[1], 3).double()
    expected[order, range(3)] = 1
    torch.testing.assert_close(result.importance, expected, rtol=0, atol=1e-12)


def test_dci_of_a_factor_in_two_dimensions() -> None:
    """It is not complete, and both are disentangled."""
    result = dci(ROWS[:, [0, 1, 1, 2]].double(), ROWS)
    assert result.disentanglement == pytest.approx(1)
    assert result.completeness == pytest.approx(1 - math.log(2) / math.log(4) / 3, abs=0.03)
    assert result.informativeness == pytest.approx(1)


def test_dci_of_two_factors_in_a_dimension() -> None:
    """It is not disentangled, and both are complete."""
    factors = ROWS[:, :2]
    codes = torch.stack([factors[:, 0] * 5 + factors[:, 1], torch.zeros(600)], 1)
    result = dci(codes, factors)
    assert result[:3] == pytest.approx((0, 1, 1), abs=1e-12)
    assert result.importance.tolist() == [[1, 1], [0, 0]]


def test_dci_of_rotated_factors() -> None:
    factors = _grid(16, 16).repeat(4, 1)
    result = dci(factors.double() @ TURN, factors)
    assert result.disentanglement < 0.1 and result.completeness < 0.1 and result.informativeness > 0.9


def test_dci_of_a_noisy_code_of_many_values() -> None:
    """Trees that classify would take the noise for knowledge: 0.8."""
    factors = torch.randint(32, (2000, 2))
    codes = torch.cat([factors + torch.randn(2000, 2) / 2, torch.randn(2000, 3)], 1)
    assert min(dci(codes, factors)[:3]) > 0.98


NOISE = torch.randn(600, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("codes", [NOISE, torch.ones(600, 3)], ids=["noise", "constant"])
def test_dci_of_a_code_that_knows_nothing(codes: Tensor) -> None:
    result = dci(codes, ROWS)
    assert result.informativeness < 0.02 and max(result[:2]) < 0.3
    if codes[0, 0] == 1:
        assert result[:3] == (0, 0, 0) and not result.importance.any()


def test_dci_leaves_out_a_factor_of_one_value() -> None:
    codes = torch.stack([ROWS[:, 0] * 5 + ROWS[:, 1], ROWS[:, 2], ROWS[:, 2]], 1).double()
    result = dci(codes, torch.cat([ROWS, torch.ones_like(ROWS[:, :1])], 1))
    assert result[:3] == dci(codes, ROWS)[:3]
    assert result.importance[:, 3].tolist() == [0, 0, 0]


# Separated attribute predictability.


def test_sap_of_a_perfect_code(perfect: tuple[Tensor, list[int]]) -> None:
    codes, order = perfect
    result = sap(codes, FACTORS)
    expected = torch.zeros(codes.shape[1], 3).double()
    expected[order, range(3)] = 1
    torch.testing.assert_close(result.predictability, expected, rtol=0, atol=1e-12)
    assert result.score == pytest.approx(1)


def test_sap_is_a_gap_of_squared_correlations() -> None:
    codes = torch.randn(60, 4).double() + FACTORS[:, :1]
    result = sap(codes, FACTORS)
    table = np.corrcoef(codes.numpy().T, FACTORS.numpy().T)[:4, 4:] ** 2
    assert result.predictability.numpy() == pytest.approx(table)
    table.sort(axis=0)
    assert result.gaps.numpy() == pytest.approx(table[-1] - table[-2])
    assert result.score == pytest.approx((table[-1] - table[-2]).mean())


def test_sap_of_a_factor_without_an_order() -> None:
    """The second has its values in another order, which a line does not see and thresholds do."""
    codes = FACTORS.double()
    codes[:, 1] = torch.tensor([0.0, 4.0, 1.0, 3.0, 2.0]).double()[FACTORS[:, 1]]
    assert sap(codes, FACTORS).gaps[1] < 0.2
    result = sap(codes, FACTORS, categorical=[1])
    assert result.predictability[:, 1].tolist() == pytest.approx([0.2, 1, 0.2])  # by chance: one of five
    assert result.gaps.tolist() == pytest.approx([1, 0.8, 1])
    constant = torch.cat([codes, torch.ones(60, 1)], 1)
    assert sap(constant, FACTORS, categorical=[0, 1, 2]).predictability[3].tolist() == [0, 0, 0]


def test_sap_balances_classes() -> None:
    """Of 90 rows of one class 30 have the code of all 10 of the other, which counts as much."""
    factors = (torch.arange(100) >= 90).long()[:, None]
    codes = torch.stack([(torch.arange(100) >= 60).float(), torch.zeros(100)], 1)
    assert sap(codes, factors, categorical=[0]).gaps.tolist() == pytest.approx([(60 / 90 + 1) / 2])


def test_sap_leaves_out_a_factor_of_one_value() -> None:
    factors = torch.cat([FACTORS, torch.ones_like(FACTORS[:, :1])], 1)
    result = sap(FACTORS.double(), factors, categorical=[3])
    assert result.score == pytest.approx(1) and result.gaps.isnan().tolist() == [False, False, False, True]


# Of all of them.


CALLS: dict[str, Callable[..., Any]] = {
    "mutual_information_gap": lambda codes, seed: mutual_information_gap(codes, ROWS),
    "mutual_information_gap_of_posteriors": lambda codes, seed: mutual_information_gap(
        codes, ROWS, logvar=codes, seed=seed
    ),
    "factor_vae_score": lambda codes, seed: factor_vae_score(
        _encoder(lambda x: x[:, :1]), _Images(4, 5, 6), **FEW, seed=seed
    ),
    "dci": lambda codes, seed: dci(codes, ROWS, seed=seed),
    "sap": lambda codes, seed: sap(codes, ROWS, categorical=[0]),
    "active_units": lambda codes, seed: active_units(codes),
    "gaussian_total_correlation": lambda codes, seed: gaussian_total_correlation(codes),
}


def _flat(result: Any) -> list[Any]:
    parts = result if isinstance(result, tuple) else (result,)
    return [p.tolist() if isinstance(p, Tensor) else p for p in parts]


@pytest.mark.parametrize("name", CALLS)
def test_is_a_function_of_the_seed(name: str) -> None:
    """And draws nothing from the generators of PyTorch and NumPy. Of codes with a gradient it takes the values."""
    codes = (torch.randn(600, 3) + ROWS).double().requires_grad_()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    first, again, other = (_flat(CALLS[name](codes, seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # type: ignore[index]
    assert first == again
    assert (first != other) == (name in ("mutual_information_gap_of_posteriors", "factor_vae_score", "dci"))


@pytest.mark.parametrize("name", ["mutual_information_gap", "dci", "sap", "gaussian_total_correlation"])
@pytest.mark.parametrize("scale", [2.0**1000, 2.0**-1000])
def test_codes_may_be_of_any_scale(name: str, scale: float) -> None:
    codes = (torch.randn(600, 3) + ROWS).double()
    assert _flat(CALLS[name](codes * scale, 0)) == _flat(CALLS[name](codes, 0))


def test_means_may_be_as_large_as_can_be() -> None:
    encoders = [_encoder(lambda x, scale=scale: x.double() * scale) for scale in (1.0, 2.0**1000)]
    found, of_large = (factor_vae_score(encoder, IMAGES, **FEW) for encoder in encoders)
    assert found == of_large == 1


def test_seeds_beyond_those_of_numpy() -> None:
    assert _flat(dci(ROWS.double(), ROWS, seed=2**63 - 1))[:3] == pytest.approx([1, 1, 1], abs=0.1)


def test_scikit_learn_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"dci needs scikit-learn: pip install 'fastib\[models\]'"):
        dci(ROWS.double(), ROWS)
    with pytest.raises(ImportError, match=r"sap needs scikit-learn: pip install 'fastib\[models\]'"):
        sap(ROWS.double(), ROWS, categorical=[0])
    assert sap(ROWS.double(), ROWS).score == pytest.approx(1)


CODES = FACTORS.double()
BROKEN = CODES.clone()
BROKEN[3, 1] = math.nan
ENCODE = _encoder(lambda x: x)
IMAGES = _Images(4, 5)


@pytest.mark.parametrize("measure", [mutual_information_gap, dci, sap])
@pytest.mark.parametrize(
    ("codes", "factors", "error", "message"),
    [
        (CODES.tolist(), FACTORS, TypeError, "codes must be a torch.Tensor, got list"),
        (FACTORS, FACTORS, TypeError, "codes must be float16, .*got torch.int64"),
        (CODES[:, 0], FACTORS, ValueError, r"codes must have shape \(n, D\), .*got \(60,\)"),
        (CODES[:, :1], FACTORS, ValueError, r"codes must have shape \(n, D\), .*D >= 2, got \(60, 1\)"),
        (CODES[:1], FACTORS[:1], ValueError, r"codes must have shape \(n, D\), n >= ., .*got \(1, 3\)"),
        (BROKEN, FACTORS, ValueError, "codes must be finite, got nan"),
        (CODES, FACTORS.tolist(), TypeError, "factors must be an int64 tensor, got list"),
        (CODES, CODES, TypeError, "factors must be an int64 tensor, got torch.float64"),
        (CODES, FACTORS[:, 0], ValueError, r"factors must have shape \(60, K\), .*got \(60,\)"),
        (CODES, FACTORS[:7], ValueError, r"factors must have shape \(60, K\), .*got \(7, 3\)"),
        (CODES, FACTORS.to("meta"), ValueError, "factors must be on the device of codes, cpu, got meta"),
        (CODES, FACTORS * 0, ValueError, "factors must have at least . that vary, got 0"),
        (CODES, FACTORS[:, :0], ValueError, "factors must have at least . that vary, got 0"),
    ],
)
def test_wrong_codes_and_factors(
    measure: Callable[..., Any], codes: Any, factors: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        measure(codes, factors)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mutual_information_gap(CODES, FACTORS, bins=1), ValueError, "bins must be at least 2, got 1"),
        (lambda: mutual_information_gap(CODES, FACTORS, bins=2.0), TypeError, "bins must be an integer, got float"),
        (
            lambda: mutual_information_gap(CODES, FACTORS, bins=61),
            ValueError,
            "bins must be at most .* rows, 60, got 61",
        ),
        (
            lambda: sap(CODES, FACTORS, categorical=0),
            TypeError,
            "categorical must be a sequence of integers, got int 0",
        ),
        (lambda: mutual_information_gap(CODES, FACTORS, seed=-1), ValueError, "seed must be at least 0, got -1"),
        (
            lambda: mutual_information_gap(CODES, FACTORS, logvar=CODES[:7]),
            ValueError,
            r"logvar must have the shape of codes, \(60, 3\), got \(7, 3\)",
        ),
        (lambda: mutual_information_gap(CODES, FACTORS, logvar=BROKEN), ValueError, "logvar must be finite, got nan"),
        (lambda: dci(CODES[:7], FACTORS[:7]), ValueError, r"codes must have shape \(n, D\), n >= 8"),
        (lambda: dci(CODES, FACTORS[:, :1]), ValueError, "factors must have at least 2 that vary, got 1"),
        (lambda: dci(CODES, FACTORS, seed=0.5), TypeError, "seed must be an integer, got float"),
        (lambda: sap(CODES, FACTORS, categorical=[3]), ValueError, "categorical must have .* below 3, got 3"),
        (lambda: sap(CODES, FACTORS, categorical=[-1]), ValueError, "categorical must be at least 0, got -1"),
        (lambda: sap(CODES, FACTORS, categorical=[True]), TypeError, "categorical must be an integer, got bool"),
        (lambda: active_units(CODES[:1]), ValueError, r"mu must have shape .*got \(1, 3\)"),
        (lambda: active_units(BROKEN), ValueError, "mu must be finite, got nan"),
        (lambda: active_units(CODES, -1), ValueError, "threshold must be a finite number of at least 0, got -1"),
        (lambda: gaussian_total_correlation(BROKEN), ValueError, "codes must be finite, got nan"),
        (lambda: gaussian_total_correlation(FACTORS), TypeError, "codes must be float16, .*got torch.int64"),
        (lambda: factor_vae_score(ENCODE, IMAGES, votes=0), ValueError, "votes must be at least 1, got 0"),
        (lambda: factor_vae_score(ENCODE, IMAGES, test_votes=0), ValueError, "test_votes must be at least 1, got 0"),
        (lambda: factor_vae_score(ENCODE, IMAGES, batch=1), ValueError, "batch must be at least 2, got 1"),
        (lambda: factor_vae_score(ENCODE, IMAGES, seed=-1), ValueError, "seed must be at least 0, got -1"),
        (lambda: factor_vae_score(ENCODE, [1]), TypeError, "dataset must have len, images and factors, got list"),
        (lambda: factor_vae_score(5, IMAGES), TypeError, "encoder must be a callable, got int"),
        (lambda: factor_vae_score(ENCODE, _Images(1, 1)), ValueError, "dataset.factors must have at least 1 that var"),
        (lambda: factor_vae_score(lambda x: x, IMAGES), TypeError, r"encoder must give \(mu, logvar\), got Tensor"),
        (
            lambda: factor_vae_score(_encoder(lambda x: x / 0), IMAGES),
            ValueError,
            "the means of encoder must be finite, got nan",
        ),
    ],
)
def test_wrong_arguments(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()
