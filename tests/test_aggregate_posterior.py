"""aggregate_posterior: values and gradients for every kind of weights, edges, memory and time."""

from __future__ import annotations

import math
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import DTYPES
from mixture_oracle import Mixture, Oracle
from tolerance import assert_same_bits_for_threads, assert_within_budget
from torch import Tensor

import fastib
from fastib import _ops, reference
from fastib._arguments import Algorithm, Estimator

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
    pytest.param(_mixture(3, 5, 150), id="several_panels"),  # of dimensions: more than a block of a GPU has
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


# Roundings of an exponent, in units of its dtype: three of v, doubled by its square, and one of the difference.
ROUNDINGS = 3.5


def check(make: Make, dtype: torch.dtype, kind: str, of_values: float = 0.0, of_gradients: float = ROUNDINGS) -> None:
    """Values and gradients; errors count beyond so many roundings of each exponent: for inputs of whatever size those
    of the values, too, since that of 20 dimensions, each a standard deviation of 0.05 wide, is a difference of
    hundreds."""
    # Plain float64 rounds exponents of thousands two or three times, ours up to five: once more for their unit,
    # log2(e).
    slack = 320 if dtype == torch.float64 else 64 if kind == "others_hardly" else 24
    inputs = tuple(t.requires_grad_() for t in make(dtype))
    weightings = _weightings(inputs[0], inputs[1])
    if kind not in weightings:
        return  # it needs a component for each row
    keywords = weightings[kind]
    oracle = Oracle(inputs, keywords)
    ours, plain = (fn(*inputs, **keywords) for fn in (fastib.aggregate_posterior, reference.aggregate_posterior))
    eps = torch.finfo(ours[0].dtype).eps
    for a, p, o, moved in zip(ours, plain, oracle.values(), oracle.moved(), strict=True):
        scale = o.abs().clamp(min=1)
        assert_within_budget(a, p, o, scale=scale, slack=slack, unavoidable=moved * of_values * eps)
    grads = tuple(torch.randn(o.shape, dtype=torch.float64) for o in ours)
    parts = oracle.gradients(grads)
    for used in ((0, 1), (0,), (1,)):
        found, as_plain = (
            torch.autograd.grad(
                [out[k] for k in used], inputs, [grads[k].to(out[k].dtype) for k in used], retain_graph=True
            )
            for out in (ours, plain)
        )
        exact = [sum(of_one) for of_one in zip(*(parts[k] for k in used), strict=True)]
        for a, p, (o, terms, moved) in zip(found, as_plain, exact, strict=True):
            assert a.dtype == dtype
            # What weighs less than 2^-60 of the rest is nobody's gradient: it is where float32 ends.
            scale = terms + terms.max() * 2**-60 if terms.numel() else terms
            # Far from all components exponents are thousands. Whose roundings of them hit the shares is luck.
            unavoidable = moved * of_gradients * eps
            assert_within_budget(a, p, o, scale=scale, slack=slack, unavoidable=unavoidable)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(dtype, kind) for dtype in DTYPES[:2] for kind in WEIGHTINGS]
    + [(dtype, kind) for dtype in DTYPES[2:] for kind in ("mss", "log_weights")],
    ids=str,
)
@pytest.mark.parametrize("make", SHAPES)
def test_values_and_gradients(kernels: str, make: Make, dtype: torch.dtype, kind: str) -> None:
    check(make, dtype, kind)


@pytest.mark.parametrize("kind", ["in_batch", "mss", "leave_one_out"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", EDGES)
def test_edges(kernels: str, make: Make, dtype: torch.dtype, kind: str) -> None:
    check(make, dtype, kind)


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
    options = Estimator.GIVEN, 0, 0.1, 0.2, 2, Algorithm.AUTO, True
    torch.library.opcheck(_ops.aggregate_posterior, (z, mu, logvar, log_weights, *options))
    log_qz, log_qz_marginals, saved = _ops.aggregate_posterior(z, mu, logvar, log_weights, *options)
    for grads in ((log_qz, log_qz_marginals), (None, log_qz_marginals), (log_qz, None)):
        arguments = (*grads, z, mu, logvar, log_weights, saved, *options)
        torch.library.opcheck(_ops.aggregate_posterior_backward, arguments)


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


@pytest.mark.parametrize("shift", [-20000.0, 20000.0])
def test_weights_far_from_one_shift_the_densities(kernels: str, shift: float) -> None:
    inputs = [t.requires_grad_() for t in _mixture(6, 6, 3)(torch.float64)]
    log_weights = _log_weights(6, 6).double()
    plain = fastib.aggregate_posterior(*inputs, log_weights=log_weights)
    shifted = fastib.aggregate_posterior(*inputs, log_weights=log_weights + shift)
    for near, far in zip(plain, shifted, strict=True):
        torch.testing.assert_close(far - shift, near, rtol=0, atol=1e-9)
        upstream = torch.randn_like(near)
        gradients = (torch.autograd.grad(result, inputs, upstream, retain_graph=True) for result in (near, far))
        for expected, found in zip(*gradients, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


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


@pytest.mark.parametrize("distance", [7.0, 8.0, 8.6, 9.1, 20.0])  # of the nearest component; the others are 2^-70 of it
def test_a_component_far_behind_another_keeps_its_gradient(kernels: str, distance: float) -> None:
    behind = math.hypot(distance, math.sqrt(2 * 70 * math.log(2)))
    z, mu, logvar = torch.zeros(1, 1), torch.tensor([[distance], [behind]]), torch.zeros(2, 1)
    found, expected = (
        _values_and_gradients(fn, [t.to(dtype) for t in (z, mu, logvar)], estimator="in_batch")
        for fn, dtype in ((fastib.aggregate_posterior, torch.float32), (reference.aggregate_posterior, torch.float64))
    )
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=0)


@pytest.mark.parametrize("distance", [0.7, 30.0])  # the second is summed apart
@pytest.mark.parametrize(("rows", "components", "dims"), [(20_000, 16, 1), (16, 20_000, 1), (16, 20_000, 17)])
def test_long_sums_of_duplicates_keep_their_digits(
    kernels: str, rows: int, components: int, dims: int, distance: float
) -> None:
    """All terms of a gradient are the same number: float32 alone would round each addition the same way."""
    point = torch.randn(1, dims)
    z, mu, logvar = (
        point.expand(rows, -1) + distance,
        point.expand(components, -1),
        torch.full((components, dims), -0.3),
    )
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


def test_subnormal_numbers_are_as_before_after_a_call(threads: None) -> None:
    """The sums of densities flush them, which are slow on an Intel CPU."""
    torch.set_num_threads(2)
    inputs = [t.requires_grad_() for t in _mixture(300, 300, 8)(torch.float32)]
    torch.autograd.grad(fastib.aggregate_posterior(*inputs, estimator="in_batch")[0].sum(), inputs)
    assert (torch.full((300, 300), 1e-38) * 0.125 > 0).all()  # on all threads


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
