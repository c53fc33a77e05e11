"""log_variance_penalty: values, and a gradient that takes no memory."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, DTYPES, Make
from tolerance import assert_within_budget

import fastib
from fastib import _arguments, _formulas, _ops, reference
from fastib._arguments import REDUCTIONS


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", CASES)
def test_values_and_gradients(kernels: str, make: Make, dtype: torch.dtype, reduction: str) -> None:
    logvar = make(dtype)[1].requires_grad_()
    lv = logvar.detach().double().requires_grad_()
    ours, plain, oracle = (
        fn(t, reduction=reduction)
        for fn, t in (
            (fastib.log_variance_penalty, logvar),
            (reference.log_variance_penalty, logvar),
            (reference.log_variance_penalty, lv),
        )
    )
    size = _formulas.reduce(lv.abs(), *_arguments.reduction_of(reduction, lv.shape))
    assert_within_budget(ours, plain, oracle, scale=size)
    grad = torch.randn(ours.shape, dtype=ours.dtype)
    (a,), (p,), (o,) = (
        torch.autograd.grad(out, leaf, grad.to(out.dtype))
        for out, leaf in ((ours, logvar), (plain, logvar), (oracle, lv))
    )
    assert a.dtype == dtype
    assert_within_budget(a, p, o)


def test_value_by_hand() -> None:
    logvar = torch.tensor([[-2.0, -4.0], [0.0, 1.0]])
    expected = {"none": -logvar / 2, "sample": [3.0, -0.5], "sum": 2.5, "mean": 2.5 / 4, "batchmean": 1.25}
    for reduction, value in expected.items():
        torch.testing.assert_close(fastib.log_variance_penalty(logvar, reduction=reduction), torch.as_tensor(value))


def test_gradient_takes_no_memory() -> None:
    logvar = torch.randn(64, 32, requires_grad=True)
    (grad,) = torch.autograd.grad(fastib.log_variance_penalty(logvar), logvar)
    assert grad.shape == logvar.shape and grad.stride() == (0, 0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(kernels: str, reduction: str) -> None:
    logvar = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda lv: fastib.log_variance_penalty(lv, reduction=reduction), (logvar,))


@pytest.mark.parametrize("kind", range(4))
def test_opcheck(kind: int) -> None:
    torch.library.opcheck(_ops.log_variance_penalty, (torch.randn(4, 6), kind, 2))
