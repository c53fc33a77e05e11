"""The exact decomposition: against the estimator at B = N, and against enumeration."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import enumeration
import pytest
import torch
from torch import Tensor

import fastib
from fastib.metrics import exact_elbo_decomposition


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
from fastib.metrics import exact_elbo_decomposition
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


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reduction": "batch"}, ValueError, "reduction must be one of"),
        ({"z": torch.zeros(3, 2)}, ValueError, "z must have one row for each row of mu"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {name: torch.zeros(4, 2) for name in ("z", "mu", "logvar")}
    with pytest.raises(error, match=message):
        exact_elbo_decomposition(**arguments | change)
