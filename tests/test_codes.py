"""Active units, and the total correlation of a Gaussian."""

from __future__ import annotations

import math

import pytest
import torch

from fastib.metrics import active_units, gaussian_total_correlation


def test_active_units() -> None:
    mu = torch.tensor([0.0, 0.05, 0.2, -3.0]) * torch.tensor([-1.0, 1.0]).repeat(50)[:, None] + 100
    assert active_units(mu) == 2
    assert active_units(mu.half(), 0.001) == active_units(mu.double(), threshold=0.001) == 3
    assert active_units(mu, 0) == 3


@pytest.mark.parametrize("rho", [0.0, 0.5, -0.9, 0.999999])
def test_gaussian_total_correlation_of_two(rho: float) -> None:
    signs = torch.cartesian_prod(torch.arange(2), torch.arange(2)).double() * 2 - 1  # uncorrelated, exactly
    codes = torch.stack([signs[:, 0], rho * signs[:, 0] + math.sqrt(1 - rho**2) * signs[:, 1]], 1)
    expected = -math.log1p(-(rho**2)) / 2
    for scaled in (codes, codes * torch.tensor([1e-6, -1e6]) + 3, torch.cat([codes, torch.full((4, 1), 0.1)], 1)):
        assert gaussian_total_correlation(scaled) == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_gaussian_total_correlation_of_many() -> None:
    codes = torch.randn(1000, 6).double() @ torch.randn(6, 6).double()
    covariance = codes.T.cov()
    expected = (covariance.diagonal().log().sum() - covariance.logdet()).item() / 2
    assert gaussian_total_correlation(codes) == pytest.approx(expected)
    assert gaussian_total_correlation(torch.cat([codes, codes @ torch.randn(6, 1).double()], 1)) == math.inf
    assert gaussian_total_correlation(codes[:6]) == math.inf  # of six rows
    assert gaussian_total_correlation(torch.ones(5, 3)) == 0
