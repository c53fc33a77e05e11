"""PyTorch's own check of operators: of those that graphs have beside the kernels', and that none is left out."""

from __future__ import annotations

import pytest
import torch
from public import RNG

from fastib import _fallback
from fastib._arguments import Algorithm, Estimator, Reduction

T, SCALAR = torch.randn(5, 6), torch.randn(())
GRAPHS_HAVE = {  # beside the operators that have kernels, whose own tests check them
    "draw_rng": (T, torch.empty(0)),
    "dropout_noise_grad": (T, T.abs(), T, T, False),
    "floored_sum": (T, 0.1),
    "log_variance_penalty_backward": (SCALAR, T, Reduction.SUM, 2),
    "noise_grad": (T, T),
    "snapshot": (SCALAR,),
}
EXPORTED = {
    "aggregate_posterior": (T, T, T, None, Estimator.MSS, 100, 1.0, 1.0, 0, Algorithm.AUTO, True),
    "elbo_decomposition": (T, T, T, Estimator.MSS, 100, 0, Reduction.SUM, 2, Algorithm.AUTO),
    "floored_sum": (T, 0.1),
    "gaussian_kl": (T, T, None, None, Reduction.SUM, 2, 0.0),
    "information_dropout": (T.abs(), T, None, None, None, RNG, False, True, False, Reduction.SUM, 2),
    "log_variance_penalty": (T, Reduction.SUM, 2),
    "reparameterize": (T, T, None, RNG),
    "reparameterize_with_kl": (T, T, None, RNG, Reduction.SUM, 2),
}


@pytest.mark.parametrize("name", GRAPHS_HAVE)
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.fastib, name).default, GRAPHS_HAVE[name])


@pytest.mark.parametrize("name", EXPORTED)
def test_opcheck_of_exported_twins(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.fastib, name).differentiable, EXPORTED[name])


def test_every_operator_is_checked() -> None:
    operators = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastib::")}
    twins = {f"fastib::{name}.differentiable" for name in EXPORTED}
    assert operators == twins | {f"fastib::{name}" for name in (*_fallback.KERNELS, *GRAPHS_HAVE)}
