"""The estimators' weights: what their densities are on average, over all minibatches and in exact arithmetic."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import enumeration
import pytest
import torch
from torch import Tensor

import fastib
from fastib import _formulas
from fastib._arguments import Estimator


def _density(z: Tensor, mu: Tensor, logvar: Tensor, i: int, j: int, dims: slice) -> Fraction:
    """Of z_i under component j, in the dimensions `dims`: exact from rounded factors on."""
    rows = zip(z[i, dims].tolist(), mu[j, dims].tolist(), logvar[j, dims].tolist(), strict=True)
    return math.prod((Fraction(enumeration.gaussian(*row)) for row in rows), start=Fraction(1))


@pytest.mark.parametrize("estimator", enumeration.WEIGHTS)
@pytest.mark.parametrize(("n", "b"), [(5, 2), (5, 4), (6, 3), (6, 6)])
def test_mean_over_all_minibatches(kernels: str, estimator: str, n: int, b: int) -> None:
    """The mean estimate of a density, over every minibatch, against exact arithmetic; for "mss" that is the truth."""
    torch.manual_seed(n * b)
    z, mu, logvar = (torch.randn(n, 2, dtype=torch.float64) for _ in range(3))
    for row in range(n):
        batches = enumeration.minibatches(n, b, row)
        for dims in (slice(0, 2), slice(0, 1), slice(1, 2)):
            densities = [_density(z, mu, logvar, row, j, dims) for j in range(n)]
            exact = sum((enumeration.estimate(estimator, densities, batch) for batch in batches), Fraction(0))
            estimates = []
            for batch in batches:
                columns = list(batch)
                log_qz, log_qz_marginals = fastib.aggregate_posterior(
                    z[row : row + 1], mu[columns], logvar[columns], estimator=estimator, dataset_size=n
                )
                log_q = log_qz if dims == slice(0, 2) else log_qz_marginals[:, dims.start]
                estimates.append(math.exp(log_q.item()))
            assert math.fsum(estimates) == pytest.approx(float(exact), rel=1e-12)
            if estimator == "mss":
                truth = sum(densities, Fraction(0)) / n
                assert math.fsum(estimates) / len(batches) == pytest.approx(float(truth), rel=1e-12)


def test_the_example_of_the_derivation() -> None:
    """Densities (7, 1, 4, 0, 9), the row's own being 7: the truth is 21/5, and the estimates have these moments."""
    densities = [Fraction(x) for x in (7, 1, 4, 0, 9)]
    batches = enumeration.minibatches(5, 4, 0)
    ours = []
    for batch in batches:
        weights = [_formulas.estimator_weights(Estimator.MSS, 5, 4)[min(k, 1)] for k in range(4)]
        values = torch.tensor([float(densities[j]) for j in batch], dtype=torch.float64)
        # Components of one density everywhere near 0, so that the weights carry the given densities.
        zero = torch.zeros(4, 1, dtype=torch.float64)
        log_weights = (values * torch.tensor(weights, dtype=torch.float64)).log()[None]
        log_qz, _ = fastib.aggregate_posterior(zero[:1], zero, zero, log_weights=log_weights)
        ours.append(math.exp(log_qz.item()) * math.sqrt(2 * math.pi))
    assert statistics.fmean(ours) == pytest.approx(21 / 5, rel=1e-12)
    assert statistics.pvariance(ours) == pytest.approx(0.87, abs=0.005)
    mws = [enumeration.estimate("mws", densities, batch) for batch in batches]
    assert sum(mws) / len(mws) == Fraction(7, 8)
