"""aggregate_posterior: values and gradients, weights, edges, and the unbiasedness of its estimators."""

from __future__ import annotations

import math
import resource
import statistics
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import enumeration
import pytest
import torch
from cases import DTYPES
from tolerance import assert_same_bits_for_threads, assert_within_budget
from torch import Tensor

import fastib
from fastib import _arguments, _ops, reference

Mixture = tuple[Tensor, Tensor, Tensor]
Make = Callable[[torch.dtype], Mixture]


def _mixture(rows: int, components: int, dims: int) -> Make:
    def make(dtype: torch.dtype) -> Mixture:
        z, mu, logvar = torch.randn(rows, dims), torch.randn(components, dims), torch.randn(components, dims) * 1.5 - 1
        return z.to(dtype), mu.to(dtype), logvar.to(dtype)

    return make


def _sampled(mu: Tensor, logvar: Tensor) -> Tensor:
    """One sample of each component."""
    return mu + torch.exp(logvar / 2) * torch.randn_like(mu)


def _from(change: Callable[[Tensor, Tensor, Tensor], Any], rows: int = 40, dims: int = 6) -> Make:
    def make(dtype: torch.dtype) -> Mixture:
        mu, logvar = torch.randn(rows, dims), torch.randn(rows, dims)
        z, mu, logvar = change(_sampled(mu, logvar), mu, logvar)
        return z.to(dtype), mu.to(dtype), logvar.to(dtype)

    return make


def _wide(z: Tensor, mu: Tensor, logvar: Tensor) -> Mixture:
    logvar = torch.rand_like(mu) * 50 - 30
    return _sampled(mu, logvar), mu, logvar


def _tiny_among_wide(z: Tensor, mu: Tensor, logvar: Tensor) -> Mixture:
    logvar = torch.full_like(mu, 2.0)
    logvar[3] = -30
    return _sampled(mu, logvar), mu, logvar


def _duplicated(z: Tensor, mu: Tensor, logvar: Tensor) -> Mixture:
    mu, logvar = mu[:2].repeat(len(mu) // 2, 1), logvar[:2].repeat(len(mu) // 2, 1)
    return _sampled(mu, logvar), mu, logvar


SHAPES = [
    pytest.param(_mixture(5, 5, 3), id="tiny"),
    pytest.param(_mixture(1, 2, 1), id="one_row"),
    pytest.param(_mixture(64, 64, 10), id="vae"),
    pytest.param(_mixture(70, 301, 7), id="fewer_rows"),  # neither is a multiple of a vector or a block
    pytest.param(_mixture(33, 33, 1), id="one_dimension"),
    pytest.param(_mixture(20, 1100, 5), id="many_components"),  # more than one block of sums
    pytest.param(_mixture(200, 260, 12), id="several_tasks"),
    pytest.param(_mixture(0, 4, 3), id="no_rows"),
    pytest.param(_mixture(6, 6, 0), id="no_dimensions"),
]
EDGES = [
    pytest.param(_from(_wide), id="logvar_from_-30_to_20"),
    pytest.param(_from(lambda z, mu, lv: (z + 60, mu, lv)), id="far_from_every_component"),
    pytest.param(_from(lambda z, mu, lv: (z + 1e4, mu, lv)), id="very_far"),
    pytest.param(_from(lambda z, mu, lv: (z[:20] * 30, mu, lv)), id="some_far"),
    pytest.param(_from(_tiny_among_wide), id="one_tiny_among_wide"),
    pytest.param(_from(_tiny_among_wide, dims=64), id="one_tiny_among_wide_in_many_dimensions"),
    pytest.param(_from(_duplicated), id="duplicated"),
    pytest.param(_from(lambda z, mu, lv: (z + 1e3, mu + 1e3, lv)), id="far_from_zero"),
]


def _log_weights(rows: int, components: int) -> Tensor:
    log_weights = torch.randn(rows, components) * 3
    log_weights[:, ::3] = -math.inf
    log_weights[:, -1] = 0
    return log_weights


def _weightings(z: Tensor, mu: Tensor) -> dict[str, dict[str, Any]]:
    """The keywords of every kind of weights that these tensors allow."""
    rows, components = len(z), len(mu)
    kinds: dict[str, dict[str, Any]] = {
        "in_batch": {"estimator": "in_batch"},
        "mws": {"estimator": "mws", "dataset_size": 10 * components},
        "log_weights": {"log_weights": _log_weights(rows, components)},
    }
    if rows <= components:
        kinds["mss"] = {"dataset_size": 10 * components, "row_offset": components - rows}
        kinds["leave_one_out"] = {"estimator": "leave_one_out"}
        kinds["own_only"] = {"weights": (0.5, 0.0)}
        kinds["own_hardly"] = {"weights": (1e-30, 1.0), "row_offset": components - rows}
        kinds["others_hardly"] = {"weights": (1.0, 1e-25)}
    return kinds


WEIGHTINGS = ["in_batch", "mws", "log_weights", "mss", "leave_one_out", "own_only", "own_hardly", "others_hardly"]


def _doubles(keywords: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, Tensor) else v for k, v in keywords.items()}


def _magnitudes(inputs: Mixture, keywords: dict[str, Any], grads: tuple[Tensor, Tensor]) -> Mixture:
    """The sums of the sizes of the terms that make up each gradient, in float64."""
    z, mu, logvar = (t.detach().double() for t in inputs)
    options = {k: v for k, v in _doubles(keywords).items() if k not in ("log_weights", "row_offset")}
    given, offset = _doubles(keywords).get("log_weights"), keywords.get("row_offset", 0)
    all_options = {"estimator": "mss", "dataset_size": None, "weights": None} | options
    w = _arguments.mixture_weights(log_weights=given, z=z, mu=mu, **all_options)
    log_w = reference._log_weights(z, mu, given, *w, offset)
    pairs = reference._pairs(z, mu, logvar)
    log_q, log_q_marginals = reference._mixture(pairs, log_w)
    joint = torch.exp(pairs.sum(-1) + log_w - log_q[:, None].clamp(min=-1e300))
    marginals = torch.exp(pairs + log_w[..., None] - log_q_marginals[:, None].clamp(min=-1e300))
    c = grads[0].abs()[:, None, None] * joint[..., None] + grads[1].abs()[:, None] * marginals
    std = torch.exp(logvar / 2)
    u = ((z[:, None] - mu) / std).abs()
    sums = (c * u / std).sum(1), (c * u / std).sum(0), (c * (u**2 + 1) / 2).sum(0)
    # What weighs less than 2^-60 of the rest is nobody's gradient: it is where float32 ends.
    return tuple(t + t.max() * 2**-60 if t.numel() else t for t in sums)  # type: ignore[return-value]


def _check(make: Make, dtype: torch.dtype, kind: str) -> None:
    # The oracle is float64 itself, and rounds large exponents as we do; weights of e^-58 are such exponents.
    slack = 512 if dtype == torch.float64 else 64 if kind == "others_hardly" else 24
    inputs = tuple(t.requires_grad_() for t in make(dtype))
    weightings = _weightings(inputs[0], inputs[1])
    if kind not in weightings:
        return  # it needs a component for each row
    keywords = weightings[kind]
    doubles = tuple(t.detach().double().requires_grad_() for t in inputs)
    ours, plain = (fn(*inputs, **keywords) for fn in (fastib.aggregate_posterior, reference.aggregate_posterior))
    oracle = reference.aggregate_posterior(*doubles, **_doubles(keywords))
    for a, p, o in zip(ours, plain, oracle, strict=True):
        assert_within_budget(a, p, o, scale=o.detach().abs().clamp(min=1), slack=slack)
    grads = tuple(torch.randn(o.shape, dtype=torch.float64) for o in oracle)
    for used in ((0, 1), (0,), (1,)):
        of = lambda out, inputs, used=used: torch.autograd.grad(  # noqa: E731
            [out[k] for k in used], inputs, [grads[k].to(out[k].dtype) for k in used], allow_unused=True
        )
        weighed = tuple(g if k in used else torch.zeros_like(g) for k, g in enumerate(grads))
        scales = _magnitudes(inputs, keywords, weighed)
        for a, p, o, s in zip(of(ours, inputs), of(plain, inputs), of(oracle, doubles), scales, strict=True):
            assert a.dtype == dtype
            assert_within_budget(a, p, o, scale=s, slack=slack)
        ours, plain = (fn(*inputs, **keywords) for fn in (fastib.aggregate_posterior, reference.aggregate_posterior))
        oracle = reference.aggregate_posterior(*doubles, **_doubles(keywords))


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(dtype, kind) for dtype in DTYPES[:2] for kind in WEIGHTINGS]
    + [(dtype, kind) for dtype in DTYPES[2:] for kind in ("mss", "log_weights")],
    ids=str,
)
@pytest.mark.parametrize("make", SHAPES)
def test_values_and_gradients(kernels: str, make: Make, dtype: torch.dtype, kind: str) -> None:
    _check(make, dtype, kind)


@pytest.mark.parametrize("kind", ["in_batch", "mss", "leave_one_out"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", EDGES)
def test_edges(kernels: str, make: Make, dtype: torch.dtype, kind: str) -> None:
    _check(make, dtype, kind)
