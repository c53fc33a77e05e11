"""aggregate_posterior: values and gradients, weights, edges, and the unbiasedness of its estimators."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
import timeit
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
from fastib import _arguments, _formulas, _ops, reference

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
    log_w = _formulas.log_weights(z, mu, given, *w, offset)
    pairs = _formulas.pairs(z, mu, logvar)
    log_q, log_q_marginals = _formulas.mixture(pairs, log_w)
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
    slack = 520 if dtype == torch.float64 else 64 if kind == "others_hardly" else 24
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
        of = lambda out, inputs, used=used: torch.autograd.grad(
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_strides(kernels: str, dtype: torch.dtype) -> None:
    z, mu, logvar = _mixture(24, 30, 7)(dtype)
    log_weights = _log_weights(24, 30)
    grads = torch.randn(24), torch.randn(24, 7)

    def run(*inputs: Tensor, **keywords: Any) -> tuple[Tensor, ...]:
        leaves = [t.requires_grad_() for t in inputs]
        outputs = fastib.aggregate_posterior(*leaves, **keywords)
        return *outputs, *torch.autograd.grad(outputs, leaves, keywords_grads)

    keywords_grads = grads
    expected = run(z.clone(), mu.clone(), logvar.clone(), log_weights=log_weights)
    wide = torch.zeros(30, 21, dtype=dtype)
    wide[:, 1::3] = logvar
    keywords_grads = grads[0], grads[1].t().contiguous().t()
    strided = z.t().contiguous().t(), mu[:, None].expand(30, 2, 7)[:, 1], wide[:, 1::3]
    strided_weights = log_weights.t().contiguous().t()
    for a, b in zip(run(*strided, log_weights=strided_weights), expected, strict=True):
        assert torch.equal(a, b)


def test_expanded_gradients_and_weights(kernels: str) -> None:
    inputs = [t.requires_grad_() for t in _mixture(12, 12, 5)(torch.float32)]
    row = torch.randn(1, 12)
    outputs = fastib.aggregate_posterior(*inputs, log_weights=row.expand(12, 12))
    grads = torch.autograd.grad(outputs[0].sum() + outputs[1].sum(), inputs)
    outputs = fastib.aggregate_posterior(*inputs, log_weights=row.repeat(12, 1))
    repeated = torch.autograd.grad(outputs, inputs, (torch.ones(12), torch.ones(12, 5)))
    assert all(torch.equal(a, b) for a, b in zip(grads, repeated, strict=True))


@pytest.mark.parametrize("kind", [k for k in WEIGHTINGS if k != "own_hardly"])
def test_gradcheck(kernels: str, kind: str) -> None:
    inputs = [t.requires_grad_() for t in _mixture(4, 7, 3)(torch.float64)]
    keywords = _doubles(_weightings(inputs[0], inputs[1])[kind])
    assert torch.autograd.gradcheck(lambda *t: fastib.aggregate_posterior(*t, **keywords), inputs)
    far = [(inputs[0] + 40).detach().requires_grad_(), *inputs[1:]]
    assert torch.autograd.gradcheck(lambda *t: fastib.aggregate_posterior(*t, **keywords), far, rtol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_opcheck(weighted: bool) -> None:
    z, mu, logvar = _mixture(5, 8, 3)(torch.float32)
    log_weights = _log_weights(5, 8) if weighted else None
    weights = (log_weights, 0.1, 0.2, 2)
    torch.library.opcheck(_ops.aggregate_posterior, (z, mu, logvar, *weights))
    log_qz, log_qz_marginals, saved = _ops.aggregate_posterior(z, mu, logvar, *weights)
    for grads in ((log_qz, log_qz_marginals), (None, log_qz_marginals), (log_qz, None)):
        arguments = (*grads, z, mu, logvar, log_weights, saved, 0.1, 0.2, 2)
        torch.library.opcheck(_ops.aggregate_posterior_backward, arguments)


def test_second_derivatives_raise() -> None:
    z, mu, logvar = (t.requires_grad_() for t in _mixture(4, 4, 2)(torch.float32))
    log_qz, _ = fastib.aggregate_posterior(z**2, mu, logvar, estimator="in_batch")
    (grad,) = torch.autograd.grad(log_qz.sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="once differentiable"):
        torch.autograd.grad(grad.sum(), mu)


@pytest.mark.parametrize("kind", ["mss", "log_weights"])
@pytest.mark.parametrize("shape", [(64, 64, 10), (500, 700, 5), (700, 500, 5)], ids=str)
def test_same_bits_for_any_number_of_threads(
    kernels: str, threads: None, shape: tuple[int, int, int], kind: str
) -> None:
    inputs = [t.requires_grad_() for t in _mixture(*shape)(torch.float32)]
    keywords = _weightings(inputs[0], inputs[1]).get(kind, {"estimator": "in_batch"})

    def run() -> tuple[Tensor, ...]:
        outputs = fastib.aggregate_posterior(*inputs, **keywords)
        return *outputs, *torch.autograd.grad(outputs, inputs, [o.detach() for o in outputs])

    assert_same_bits_for_threads(run)


def test_parts_of_the_rows_give_the_whole(kernels: str) -> None:
    """Row by row or all at once: the same bits, where row_offset says which components are the rows' own."""
    z, mu, logvar = _mixture(150, 150, 6)(torch.float32)
    whole = fastib.aggregate_posterior(z, mu, logvar, dataset_size=1000)
    for begin, end in ((0, 1), (1, 48), (48, 150)):
        part = fastib.aggregate_posterior(z[begin:end], mu, logvar, dataset_size=1000, row_offset=begin)
        for a, b in zip(part, whole, strict=True):
            assert torch.equal(a, b[begin:end])


def test_compiles_whole() -> None:
    inputs = [t.requires_grad_() for t in _mixture(20, 20, 3)(torch.float32)]
    compiled = torch.compile(fastib.aggregate_posterior, fullgraph=True)
    ours, expected = (fn(*inputs, dataset_size=100) for fn in (compiled, fastib.aggregate_posterior))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
    grads = (torch.autograd.grad(out[0].sum() + out[1].sum(), inputs) for out in (ours, expected))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


# What is not finite.


def test_nan_propagates_as_in_the_plain_expression(kernels: str) -> None:
    for which, index in ((0, (2, 1)), (1, (4, 0)), (2, (3, 2))):
        inputs = list(_mixture(9, 9, 4)(torch.float32))
        inputs[which][index] = math.nan
        for inputs_of in (inputs, [t.double() for t in inputs]):
            ours, plain = (
                fn(*inputs_of, estimator="in_batch")
                for fn in (fastib.aggregate_posterior, reference.aggregate_posterior)
            )
            for a, b in zip(ours, plain, strict=True):
                torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_infinite_inputs(kernels: str) -> None:
    z, mu, logvar = _mixture(9, 9, 3)(torch.float32)
    mu[1, 0], logvar[2, 1], z[5, 2] = math.inf, math.inf, -math.inf  # two components of no density, one far row
    ours, plain = (
        fn(z, mu, logvar, estimator="in_batch") for fn in (fastib.aggregate_posterior, reference.aggregate_posterior)
    )
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_nothing_weighs_anything(kernels: str) -> None:
    """A row whose weights are all 0 has density 0, and no gradient."""
    inputs = [t.requires_grad_() for t in _mixture(3, 5, 2)(torch.float32)]
    log_weights = torch.zeros(3, 5)
    log_weights[1] = -math.inf
    log_qz, log_qz_marginals = fastib.aggregate_posterior(*inputs, log_weights=log_weights)
    assert log_qz[1] == -math.inf and (log_qz_marginals[1] == -math.inf).all()
    assert log_qz[[0, 2]].isfinite().all()
    for grad in torch.autograd.grad((log_qz, log_qz_marginals), inputs, (torch.ones(3), torch.ones(3, 2))):
        assert grad.isfinite().all()


def test_finite_for_every_reasonable_logvar(kernels: str) -> None:
    logvar = torch.linspace(-80, 80, 64)[:, None].repeat(1, 3).requires_grad_()
    mu = torch.randn(64, 3, requires_grad=True)
    z = (mu.detach() + 1e-3 * torch.randn(64, 3)).requires_grad_()
    outputs = fastib.aggregate_posterior(z, mu, logvar, dataset_size=100)
    grads = torch.autograd.grad([o.sum() for o in outputs], (z, mu, logvar))
    assert all(t.isfinite().all() for t in (*outputs, *grads))


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1, 0x7FC001FF], ids=hex)
@pytest.mark.parametrize("which", ["z", "mu", "logvar", "log_weights"])
def test_every_nan_propagates(kernels: str, which: str, bits: int) -> None:
    """Whatever it carries in its low bits."""
    inputs = {name: torch.randn(6, 3) for name in ("z", "mu", "logvar")} | {"log_weights": torch.zeros(6, 6)}
    inputs[which].view(torch.int32)[2, 1] = bits
    log_qz, log_qz_marginals = fastib.aggregate_posterior(**inputs)
    expected_qz, expected_marginals = reference.aggregate_posterior(**inputs)
    assert torch.equal(log_qz.isnan(), expected_qz.isnan()) and log_qz.isnan().any()
    assert torch.equal(log_qz_marginals.isnan(), expected_marginals.isnan()) and log_qz_marginals.isnan().any()


def test_a_variance_of_zero_is_as_in_the_plain_expression(kernels: str) -> None:
    z, mu, logvar = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6, 3)
    logvar[2, 1] = -math.inf
    for ours, plain in zip(
        fastib.aggregate_posterior(z, mu, logvar, estimator="in_batch"),
        reference.aggregate_posterior(z, mu, logvar, estimator="in_batch"),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, equal_nan=True)


def test_leave_one_out_does_not_hide_the_nan_that_it_leaves_out(kernels: str) -> None:
    z, mu, logvar = torch.randn(6, 3), torch.randn(6, 3), torch.randn(6, 3)
    mu[2] = math.nan
    log_qz, log_qz_marginals = fastib.aggregate_posterior(z, mu, logvar, estimator="leave_one_out")
    assert log_qz.isnan().all() and log_qz_marginals.isnan().all()


@pytest.mark.parametrize("w_self", [1e-20, 1e-37, 1e-40, 1e-44, 1e-50, 1e-200])
def test_a_row_weighs_its_own_component_next_to_nothing(kernels: str, w_self: float) -> None:
    """And no other is near: what is left is that weight, where float32 cannot hold it."""
    mu, logvar = torch.arange(5.0)[:, None].repeat(1, 2), torch.full((5, 2), -8.0)
    inputs = [mu + 0.01, mu, logvar]
    found, expected = (
        _values_and_gradients(fn, [t.to(dtype) for t in inputs], weights=(w_self, 1.0))
        for fn, dtype in ((fastib.aggregate_posterior, torch.float32), (reference.aggregate_posterior, torch.float64))
    )
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("narrow", [-30.0, -80.0, -120.0, -1e3, -1e4, -1e6, -1e20])
def test_one_narrow_component_leaves_the_others_their_digits(kernels: str, narrow: float) -> None:
    z, mu, logvar = torch.randn(64, 4), torch.randn(64, 4), torch.zeros(64, 4)
    logvar[3] = narrow
    _, ours = fastib.aggregate_posterior(z, mu, logvar, estimator="in_batch")
    _, exact = reference.aggregate_posterior(z.double(), mu.double(), logvar.double(), estimator="in_batch")
    worst = (ours - exact).abs().max().item()
    assert worst < (4e-6 if narrow == -120 else 1e-6)  # there, both are summed relative to the narrow one


@pytest.mark.parametrize(("rows", "components"), [(20_000, 16), (16, 20_000)])
def test_long_sums_of_duplicates_keep_their_digits(kernels: str, rows: int, components: int) -> None:
    """All terms of a gradient are the same number: float32 alone would round each addition the same way."""
    point = torch.randn(1, 1)
    z, mu, logvar = point.expand(rows, 1) + 0.7, point.expand(components, 1), torch.full((components, 1), -0.3)
    found, expected = (
        _values_and_gradients(fn, [t.to(dtype) for t in (z, mu, logvar)], estimator="in_batch")
        for fn, dtype in ((fastib.aggregate_posterior, torch.float32), (reference.aggregate_posterior, torch.float64))
    )
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=24 * torch.finfo(torch.float32).eps, atol=0)


def test_a_point_on_a_mean_whose_precision_overflows(kernels: str) -> None:
    """exp(-logvar / 2) is infinite in float32, and the deviation it multiplies is 0."""
    mu, logvar = torch.tensor([[0.0, 1.0], [0.5, 1.0]]), torch.tensor([[-400.0, 0.0], [0.0, -300.0]])
    found, expected = (
        _values_and_gradients(fn, [t.to(dtype) for t in (mu, mu, logvar)], estimator="in_batch")
        for fn, dtype in ((fastib.aggregate_posterior, torch.float32), (reference.aggregate_posterior, torch.float64))
    )
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-20)


def _values_and_gradients(fn: Callable[..., Any], inputs: list[Tensor], **keywords: Any) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in inputs]
    outputs = fn(*leaves, **keywords)
    return [*outputs, *torch.autograd.grad([o.sum() for o in outputs], leaves)]


# The estimators.


def _density(z: Tensor, mu: Tensor, logvar: Tensor, i: int, j: int, dims: slice) -> Fraction:
    """Of z_i under component j, in the dimensions `dims`: exact from rounded factors on."""
    rows = zip(z[i, dims].tolist(), mu[j, dims].tolist(), logvar[j, dims].tolist(), strict=True)
    return math.prod((Fraction(enumeration.gaussian(*row)) for row in rows), start=Fraction(1))


@pytest.mark.parametrize("estimator", enumeration.WEIGHTS)
@pytest.mark.parametrize(("n", "b"), [(5, 2), (5, 4), (6, 3), (6, 6)])
def test_mean_over_all_minibatches(kernels: str, estimator: str, n: int, b: int) -> None:
    """The mean estimate of a density, over every minibatch, against exact arithmetic; for "mss" that is the truth."""
    torch.manual_seed(n * b)
    z, mu, logvar = _mixture(n, n, 2)(torch.float64)
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
        weights = [fastib._arguments.estimator_weights("mss", 5, 4)[min(k, 1)] for k in range(4)]
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


# Memory and time.

_PEAK = """
import resource, sys, torch, fastib
rows, dims = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(2)
inputs = [torch.randn(rows, dims, requires_grad=True) for _ in range(3)]
small = [t[:64] for t in inputs]
torch.autograd.grad(fastib.aggregate_posterior(*small, dataset_size=64)[0].sum(), inputs)  # the libraries' own memory
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
outputs = fastib.aggregate_posterior(*inputs, dataset_size=rows)
grads = torch.autograd.grad([o.sum() for o in outputs], inputs)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_of_a_large_batch() -> None:
    """8192 x 64: 17 GB for whoever holds the pairs."""
    command = [sys.executable, "-c", _PEAK, "8192", "64"]
    kilobytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert kilobytes < 100_000


def test_time_grows_as_pairs_times_dimensions(threads: None) -> None:
    """Which leaves room for 1.6 times that, and none for another factor of the batch or of the dimensions.

    The time of the processor, on one thread: what else the machine does is not in it.
    """
    torch.set_num_threads(1)

    def call(batch: int, dims: int) -> Callable[[], object]:
        inputs = [torch.randn(batch, dims, requires_grad=True) for _ in range(3)]
        ones = [torch.ones(batch), torch.ones(batch, dims)]
        return lambda: torch.autograd.grad(fastib.aggregate_posterior(*inputs, estimator="in_batch"), inputs, ones)

    shapes = [(1024, 32), (2048, 32), (1024, 64)]
    calls = [call(*shape) for shape in shapes]
    rounds = [[timeit.timeit(c, timer=time.thread_time, number=1) for c in calls] for _ in range(5)]
    once, twice_the_batch, twice_the_dims = (min(seconds) for seconds in zip(*rounds, strict=True))
    assert twice_the_batch < 4 * 1.6 * once
    assert twice_the_dims < 2 * 1.6 * once
