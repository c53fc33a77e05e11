"""algorithm="near_linear": as accurate as float64 allows float32 to be, certified, and chosen by shapes alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from modules import ROOT
from tolerance import assert_same_bits_for_threads
from torch import Tensor

import fastib
from benches.regimes import REGIMES, posteriors
from fastib import _backends, _ops
from fastib._arguments import Algorithm, Estimator

Inputs = tuple[Tensor, Tensor, Tensor]
IN_BATCH = {"estimator": "in_batch"}
LARGEST_ERROR = 2e-6  # of log F, in units of max(1, |log F|)

needs_kernels = pytest.mark.skipif(_backends._cpu is None, reason="plain PyTorch has the direct algorithm alone")


def _marginals(inputs: Inputs, algorithm: str, **keywords: Any) -> Tensor:
    return fastib.aggregate_posterior_marginals(*inputs, algorithm=algorithm, **keywords)


def _error(actual: Tensor, expected: Tensor) -> float:
    """The largest error of logarithms, where float32 holds them."""
    held = expected.abs() < 3e38
    assert torch.isfinite(actual[held]).all()
    errors = (actual.double() - expected).abs() / expected.abs().clamp(min=1)
    return errors[held].max().item() if held.any() else 0.0


def _doubles(inputs: Inputs) -> Inputs:
    z, mu, logvar = (t.detach().double() for t in inputs)
    return z, mu, logvar


def _gradients(function: Callable[..., Tensor], inputs: Inputs, grad: Tensor) -> Inputs:
    leaves = [t.detach().requires_grad_() for t in inputs]
    d_z, d_mu, d_logvar = torch.autograd.grad(function(leaves), leaves, grad)
    return d_z, d_mu, d_logvar


def _gradient_scales(inputs: Inputs, grad: Tensor) -> Inputs:
    """What the gradients of the marginals are sums of, without signs: [S, D], [N, D] twice."""
    z, mu, logvar = _doubles(inputs)
    u = (z[:, None] - mu) * torch.exp(-logvar / 2)
    share = torch.softmax(-(u**2 + logvar) / 2, 1)
    slope = (share * (1 + u**2) * torch.exp(-logvar)).sum(1).sqrt()  # the local scale of the study
    weighed = grad.double().abs()[:, None] * share
    return (
        grad.double().abs() * slope,
        (weighed * (1 + u.abs())).sum(0) * torch.exp(-logvar / 2),
        (weighed * (1 + u**2)).sum(0),
    )


def _assert_close(near: Inputs, exact: Inputs, scales: Inputs, tolerances: tuple[float, float, float]) -> None:
    """Relative to what each gradient is a sum of; where that is next to nothing, to a thousandth of the largest one."""
    for name, a, b, scale, tolerance in zip(("z", "mu", "logvar"), near, exact, scales, tolerances, strict=True):
        unit = scale + 1e-3 * scale.max(0).values + 1e-30
        worst = ((a.double() - b).abs() / unit).max().item()
        assert worst <= tolerance, f"gradient of {name}: {worst:.2g}"


def _assert_gradients(inputs: Inputs, *, tolerances: tuple[float, float, float], **keywords: Any) -> None:
    grad = torch.randn(inputs[0].shape)
    near = _gradients(lambda t: _marginals(t, "near_linear", **keywords), inputs, grad)
    exact = _gradients(lambda t: _marginals(t, "direct", **keywords), _doubles(inputs), grad.double())
    _assert_close(near, exact, _gradient_scales(inputs, grad), tolerances)


# The study's bounds, of dlogF/dz and of the transposed sums.
STUDY = (1e-5, 2e-6, 1e-5)


@needs_kernels
@pytest.mark.parametrize("regime", REGIMES)
def test_ten_regimes(kernels: str, regime: str) -> None:
    inputs = posteriors(regime, 1500, 2)
    expected = _marginals(_doubles(inputs), "direct", **IN_BATCH)
    assert _error(_marginals(inputs, "near_linear", **IN_BATCH), expected) <= LARGEST_ERROR
    _assert_gradients(inputs, tolerances=STUDY, **IN_BATCH)


@needs_kernels
@pytest.mark.parametrize("size", [4096, pytest.param(65_536, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("regime", REGIMES)
def test_ten_regimes_at_full_size(regime: str, size: int) -> None:
    inputs = posteriors(regime, size, 2)
    rows = torch.linspace(0, size - 1, 256).long()
    z, mu, logvar = _doubles(inputs)
    expected = _marginals((z[rows], mu, logvar), "direct", **IN_BATCH)
    log_q = _marginals(inputs, "near_linear", **IN_BATCH)
    assert _error(log_q[rows], expected) <= LARGEST_ERROR
    grad = torch.zeros_like(inputs[0])
    grad[rows] = torch.randn(len(rows), 2)
    near = _gradients(lambda t: _marginals(t, "near_linear", **IN_BATCH), inputs, grad)
    exact = _gradients(lambda t: _marginals(t, "direct", **IN_BATCH), (z[rows], mu, logvar), grad[rows].double())
    scales = _gradient_scales((z[rows], mu, logvar), grad[rows])
    _assert_close((near[0][rows], near[1], near[2]), exact, scales, STUDY)


def test_direct_sums_stay_exact_at_large_batches() -> None:
    """A sequential sum in float loses 1e-5 and more of F at this size."""
    z, mu, logvar = posteriors("mixture", 65_536, 3)
    rows = torch.arange(0, 65_536, 2048)
    near = _marginals((z[rows], mu, logvar), "direct", **IN_BATCH)
    assert _error(near, _marginals(_doubles((z[rows], mu, logvar)), "direct", **IN_BATCH)) <= LARGEST_ERROR


# Fuzzing: each dimension of a call is a set of its own.


def _any_means(n: int) -> Tensor:
    kind, size = int(torch.randint(8, ())), 10 ** (6 * torch.rand((), dtype=torch.float64))
    normal = torch.randn(n, dtype=torch.float64)
    if kind == 0:
        return normal / torch.randn(n, dtype=torch.float64).abs().clamp(min=1e-6)  # Cauchy
    if kind == 1:
        return torch.full_like(normal, float(normal[0] * size))
    if kind == 2:
        return torch.round(normal * 3)  # ties
    if kind == 3:
        return normal * 10 ** (30 * torch.rand(n, dtype=torch.float64) - 15)
    if kind == 4:
        return normal + size
    if kind == 5:
        normal[: n // 50 + 1] *= size**2  # outliers
        return normal
    return normal.sign() if kind == 6 else normal


def _any_logvars(n: int) -> Tensor:
    kind, thirty_decades = int(torch.randint(6, ())), 138 * (torch.rand(n, dtype=torch.float64) - 0.5)
    normal = torch.randn(n, dtype=torch.float64) / 2 - 4
    if kind == 0:
        return torch.zeros_like(normal)
    if kind == 1:
        return 14 * torch.rand(n, dtype=torch.float64) - 12
    if kind == 2:
        return thirty_decades
    if kind == 3:
        return thirty_decades[:1].expand(n)
    if kind == 4:
        normal[: n // 50 + 1] = thirty_decades[0]
    return normal


def _any_targets(n: int, mu: Tensor, logvar: Tensor) -> Tensor:
    kind, own = int(torch.randint(6, ())), torch.arange(n) % len(mu)
    normal, size = torch.randn(n, dtype=torch.float64), 10 ** (3 * torch.rand((), dtype=torch.float64))
    if kind == 0:
        return mu[own]
    if kind == 1:
        return 3 * normal
    if kind == 2:
        return torch.round(2 * mu[own]) / 2 + normal / size**2
    if kind == 3:
        return mu[own] + torch.exp(logvar[own] / 2) * normal * size  # far out
    return mu[own] + torch.exp(logvar[own] / 2) * normal


def _any_set(rows: int, components: int) -> Inputs:
    mu, logvar = _any_means(components).float().double(), _any_logvars(components).float().double()
    z = _any_targets(rows, mu, logvar)
    return z.clamp(-1e18, 1e18).float(), mu.clamp(-1e18, 1e18).float(), logvar.float()


def _any_weights(rows: int, components: int) -> dict[str, Any]:
    if rows > components or components == 1:
        return IN_BATCH
    choices: list[dict[str, Any]] = [
        IN_BATCH,
        {"estimator": "leave_one_out"},
        {"dataset_size": components * int(torch.randint(1, 1000, ()))},
        {"weights": (10.0 ** int(torch.randint(-4, 4, ())), 1.0)},
    ]
    return choices[int(torch.randint(len(choices), ()))]


def _any_size(largest: int) -> int:
    return int(largest ** torch.rand(()).item())


@needs_kernels
@pytest.mark.parametrize("seed", range(10))
def test_fuzz(seed: int) -> None:
    """20 000 sets in ten tests."""
    torch.manual_seed(seed)
    for _ in range(50):
        components = _any_size(400)
        rows = components if torch.rand(()) < 0.5 else _any_size(400)
        weights = _any_weights(rows, components)
        z, mu, logvar = (torch.stack(t, 1) for t in zip(*(_any_set(rows, components) for _ in range(40)), strict=True))
        expected = _marginals(_doubles((z, mu, logvar)), "direct", **weights)
        assert _error(_marginals((z, mu, logvar), "near_linear", **weights), expected) <= LARGEST_ERROR


@needs_kernels
@pytest.mark.parametrize("seed", range(4))
def test_fuzz_of_gradients(kernels: str, seed: int) -> None:
    torch.manual_seed(100 + seed)
    for _ in range(4):
        components, rows = _any_size(300), _any_size(300)
        z, mu, logvar = (torch.stack(t, 1) for t in zip(*(_any_set(rows, components) for _ in range(20)), strict=True))
        # Gradients are held to float32's range: a far point's may overflow it.
        z, logvar = (
            torch.minimum(torch.maximum(z, mu.min(0).values - 1e3), mu.max(0).values + 1e3),
            logvar.clamp(-20, 20),
        )
        _assert_gradients((z, mu, logvar), tolerances=(2e-5, 1e-5, 2e-5), **IN_BATCH)


# Weights of the own component.


@needs_kernels
@pytest.mark.parametrize("regime", ["informative", "wide", "informative_tiny", "advtiny", "collapsed"])
@pytest.mark.parametrize("weights", [(0.0, 1.0), (1e-6, 1.0), (1 / 1e6, 1 / 512), (30.0, 1.0), (1e5, 1.0)], ids=str)
def test_own_weights_without_cancellation(kernels: str, regime: str, weights: tuple[float, float]) -> None:
    inputs = posteriors(regime, 600, 3)
    expected = _marginals(_doubles(inputs), "direct", weights=weights)
    assert _error(_marginals(inputs, "near_linear", weights=weights), expected) <= LARGEST_ERROR
    grad = torch.randn(inputs[0].shape)
    near = _gradients(lambda t: _marginals(t, "near_linear", weights=weights), inputs, grad)
    exact = _gradients(lambda t: _marginals(t, "direct", weights=weights), _doubles(inputs), grad.double())
    for a, b in zip(near, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@needs_kernels
def test_row_offset() -> None:
    z, mu, logvar = posteriors("wide", 500, 4)
    whole = fastib.aggregate_posterior(z, mu, logvar, dataset_size=5000, algorithm="near_linear")
    part = fastib.aggregate_posterior(
        z[200:300], mu, logvar, dataset_size=5000, row_offset=200, algorithm="near_linear"
    )
    for a, b in zip(part, whole, strict=True):
        torch.testing.assert_close(a, b[200:300], rtol=2e-6, atol=2e-6)


# Certificates.


@pytest.fixture
def weakened() -> Iterator[Any]:
    """The C++ module, whose certificates a test may weaken."""
    yield _backends._cpu
    _backends._cpu.set_marginal_cutoff(7.0)
    _backends._cpu.set_joint_dropped_bits(24.0)


@needs_kernels
@pytest.mark.parametrize("regime", ["tail", "vwide", "adversarial"])
def test_no_certified_point_is_off_when_the_cutoff_shrinks(kernels: str, weakened: Any, regime: str) -> None:
    z, mu, logvar = posteriors(regime, 1200, 2)
    z[:50] *= 3  # far out: where a cutoff is missed most
    weights = None, Estimator.GIVEN, 0, 1 / 1200, 1 / 1200, 0
    expected = _marginals(_doubles((z, mu, logvar)), "direct", **IN_BATCH)
    certified = []
    for cutoff in (7.0, 6.0, 5.5, 5.0, 4.5):
        weakened.set_marginal_cutoff(cutoff)
        _, log_q, saved = _ops.aggregate_posterior(z, mu, logvar, *weights, Algorithm.NEAR_LINEAR, False)
        sums = saved.flatten()[2 * 1200 :][: 2 * 1200].view(2, 1200).T  # above 0 where certified
        assert _error(log_q[sums > 0], expected[sums > 0]) <= LARGEST_ERROR
        assert _error(log_q, expected) <= LARGEST_ERROR  # the others were summed apart
        certified.append(int((sums > 0).sum()))
    assert certified == sorted(certified, reverse=True) and certified[-1] < certified[0] / 2


def _log_qz(inputs: Inputs, algorithm: str) -> Tensor:
    return fastib.aggregate_posterior(*inputs, algorithm=algorithm, **IN_BATCH)[0]


@needs_kernels
@pytest.mark.parametrize("bits", [0.0, 10.0, 24.0])
def test_the_joint_drops_no_more_than_it_says(kernels: str, weakened: Any, bits: float) -> None:
    inputs = posteriors("k6", 1500, 12)
    exact = _log_qz(_doubles(inputs), "direct")
    weakened.set_joint_dropped_bits(bits)
    lost = (1 - torch.exp(_log_qz(inputs, "near_linear").double() - exact)).max().item()
    assert lost <= 2**-bits + 2e-5
    if bits == 0:
        assert lost > 4e-5  # something was dropped


# The joint.


def _decomposition(inputs: Any, algorithm: str) -> tuple[Tensor, ...]:
    return fastib.elbo_decomposition(*inputs, 20 * len(inputs[0]), reduction="none", algorithm=algorithm)


@needs_kernels
@pytest.mark.parametrize("dims", [1, 3, 12])
@pytest.mark.parametrize("regime", ["collapsed", "informative", "wide", "mixture", "adversarial", "k6"])
def test_decomposition(kernels: str, regime: str, dims: int) -> None:
    """No further from float64 than four times the direct kernel is."""
    inputs = posteriors(regime, 700, dims)
    grads = torch.randn(3, 700)

    def run(inputs: Inputs, algorithm: str) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        terms = _decomposition(leaves, algorithm)
        return [*terms, *torch.autograd.grad(terms, leaves, [g.to(t.dtype) for g, t in zip(grads, terms, strict=True)])]

    exact, direct, near = run(_doubles(inputs), "direct"), run(inputs, "direct"), run(inputs, "near_linear")
    for a, b, c in zip(near, direct, exact, strict=True):
        error, allowed = ((t.double() - c).abs().max().item() for t in (a, b))
        assert error <= 4 * allowed + 1e-6 * c.abs().max().item() + 1e-6


@needs_kernels
@pytest.mark.parametrize("weights", [(0.0, 1.0), (1e-3, 1.0), (1.0, 1.0)], ids=str)
@pytest.mark.parametrize("size", [3, 9, 21])
def test_own_components_far_above_all_others(kernels: str, size: int, weights: tuple[float, float]) -> None:
    """By more than a float holds; and sizes that no block of rows divides."""
    mu, logvar = 30 * torch.randn(size, 3), torch.full((size, 3), -6.0)
    inputs = mu + torch.exp(logvar / 2) * torch.randn(size, 3), mu, logvar
    grad = torch.randn(size)

    def log_qz(inputs: Any, algorithm: str) -> Tensor:
        return fastib.aggregate_posterior(*inputs, weights=weights, algorithm=algorithm)[0]

    near = _gradients(lambda t: log_qz(t, "near_linear"), inputs, grad)
    exact = _gradients(lambda t: log_qz(t, "direct"), _doubles(inputs), grad.double())
    for a, b in zip(near, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4 * b.abs().max().item())


@needs_kernels
@pytest.mark.parametrize("shape", [(1700, 1700, 8), (40, 3000, 8), (3000, 40, 8), (1, 1, 1), (17, 130, 2)], ids=str)
def test_shapes(kernels: str, shape: tuple[int, int, int]) -> None:
    rows, components, dims = shape
    _, mu, logvar = posteriors("k6", components, dims)
    z = mu[torch.arange(rows) % components] + torch.randn(rows, dims) * 0.3
    near = fastib.aggregate_posterior(z, mu, logvar, algorithm="near_linear", **IN_BATCH)
    exact = fastib.aggregate_posterior(*_doubles((z, mu, logvar)), algorithm="direct", **IN_BATCH)
    for a, b in zip(near, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=3e-6, atol=3e-5)


@needs_kernels
def test_gradients_by_one_result_alone() -> None:
    inputs = [t.requires_grad_() for t in posteriors("mixture", 600, 6)]
    log_qz, marginals = fastib.aggregate_posterior(*inputs, algorithm="near_linear", **IN_BATCH)
    joint, each = (torch.autograd.grad(r.sum(), inputs, retain_graph=True) for r in (log_qz, marginals))
    both = torch.autograd.grad(log_qz.sum() + marginals.sum(), inputs)
    for a, b, c in zip(joint, each, both, strict=True):
        torch.testing.assert_close(a + b, c, rtol=1e-5, atol=1e-5 * c.abs().max().item())


# The choice of the algorithm.


def _all_bits(inputs: Any, algorithm: str, **keywords: Any) -> tuple[Tensor, ...]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    results = fastib.aggregate_posterior(*leaves, algorithm=algorithm, **keywords)
    return *results, *torch.autograd.grad(sum(r.sum() for r in results), leaves)


def _same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(a, b, strict=True))


@needs_kernels
@pytest.mark.parametrize(("size", "expected"), [(256, "direct"), (1024, "direct"), (1536, "near_linear")])
def test_auto_chooses_by_shapes(size: int, expected: str) -> None:
    inputs = posteriors("informative", size, 6)
    other = {"direct": "near_linear", "near_linear": "direct"}[expected]
    auto = _all_bits(inputs, "auto", **IN_BATCH)
    assert _same(auto, _all_bits(inputs, expected, **IN_BATCH))
    assert not _same(auto, _all_bits(inputs, other, **IN_BATCH))


@needs_kernels
@pytest.mark.parametrize(("size", "expected"), [(1000, "direct"), (1024, "near_linear")])
def test_auto_for_marginals_alone(size: int, expected: str) -> None:
    inputs = posteriors("informative", size, 2)
    auto, same = _marginals(inputs, "auto", **IN_BATCH), _marginals(inputs, expected, **IN_BATCH)
    assert torch.equal(auto, same)


@needs_kernels
@pytest.mark.parametrize("kind", ["float64", "log_weights", "nan", "inf", "huge", "huge_logvar", "extreme_weights"])
def test_what_only_the_direct_kernel_can_do(kind: str) -> None:
    z, mu, logvar = posteriors("informative", 300, 3)
    keywords: dict[str, Any] = IN_BATCH
    if kind == "float64":
        z, mu, logvar = _doubles((z, mu, logvar))
    elif kind == "log_weights":
        keywords = {"log_weights": torch.randn(300, 300)}
    elif kind == "extreme_weights":
        keywords = {"weights": (1e-30, 1.0)}
    elif kind == "huge_logvar":
        logvar[5, 1] = 1e4
    else:
        z[7, 1] = {"nan": math.nan, "inf": math.inf, "huge": 1e30}[kind]
    assert _same(
        _all_bits((z, mu, logvar), "near_linear", **keywords), _all_bits((z, mu, logvar), "direct", **keywords)
    )


@needs_kernels
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_that_are_not_finite_reach_all_components(value: float) -> None:
    inputs = posteriors("informative", 400, 2)
    grad = torch.ones(400, 2)
    grad[3, 1] = value
    near, direct = (
        _gradients(lambda t, a=a: _marginals(t, a, **IN_BATCH), inputs, grad) for a in ("near_linear", "direct")
    )
    for a, b in zip(near, direct, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    inputs = [t.to(dtype) for t in posteriors("mixture", 500, 6)]
    near, direct = (_all_bits(inputs, algorithm, **IN_BATCH) for algorithm in ("near_linear", "direct"))
    for a, b in zip(near, direct, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=2e-2, atol=1e-2 * b.float().abs().max().item())


def test_strides_do_not_matter() -> None:
    inputs = posteriors("wide", 600, 5)
    strided = [torch.stack([t.t(), t.t()], -1)[..., 0].t() for t in inputs]
    assert not strided[0].is_contiguous()
    assert _same(_all_bits(inputs, "near_linear", **IN_BATCH), _all_bits(strided, "near_linear", **IN_BATCH))


@pytest.mark.parametrize("regime", ["collapsed", "k6", "vwide", "advtiny"])
def test_same_bits_for_any_number_of_threads(kernels: str, threads: None, regime: str) -> None:
    inputs = posteriors(regime, 1800, 7)
    assert_same_bits_for_threads(lambda: _all_bits(inputs, "near_linear", dataset_size=9000))
    assert_same_bits_for_threads(
        lambda: _gradients(lambda t: torch.stack(_decomposition(t, "near_linear")), inputs, torch.ones(3, 1800))
    )


def test_marginals_are_those_of_both() -> None:
    inputs = posteriors("mixture", 90, 4)
    for algorithm in ("auto", "direct", "near_linear"):
        _, marginals = fastib.aggregate_posterior(*inputs, dataset_size=900, algorithm=algorithm)
        assert torch.equal(_marginals(inputs, algorithm, dataset_size=900), marginals)


@pytest.mark.parametrize("function", ["aggregate_posterior", "aggregate_posterior_marginals", "elbo_decomposition"])
@pytest.mark.parametrize("module", [fastib, fastib.reference], ids=["fastib", "reference"])
@pytest.mark.parametrize("algorithm", ["fast", "", None, 1])
def test_unknown_algorithm(module: Any, function: str, algorithm: Any) -> None:
    inputs = torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 2)
    with pytest.raises(ValueError, match="algorithm must be one of 'auto', 'direct', 'near_linear'"):
        getattr(module, function)(*inputs, estimator="in_batch", algorithm=algorithm)


def test_compiles_whole() -> None:
    inputs = [t.requires_grad_() for t in posteriors("mixture", 64, 3)]

    def loss(*t: Tensor) -> Tensor:
        return fastib.aggregate_posterior_marginals(*t, dataset_size=640, algorithm="near_linear").sum()

    ours, expected = torch.compile(loss, fullgraph=True)(*inputs), loss(*inputs)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_opcheck() -> None:
    z, mu, logvar = posteriors("mixture", 40, 3)
    options = Estimator.MSS, 100, 1.0, 1.0, 0, Algorithm.NEAR_LINEAR, False
    torch.library.opcheck(_ops.aggregate_posterior, (z, mu, logvar, None, *options))
    _, marginals, saved = _ops.aggregate_posterior(z, mu, logvar, None, *options)
    arguments = (None, marginals, z, mu, logvar, None, saved, *options)
    torch.library.opcheck(_ops.aggregate_posterior_backward, arguments)


def test_the_readme_says_from_which_sizes_on_it_serves() -> None:
    source = (ROOT / "csrc" / "cpu" / "near_linear.cpp").read_text()
    found = re.search(r"enough = !joint \? (\d+) : m\.dims >= 6 \? (\d+) : (\d+);", source)
    assert found is not None
    said = "From {} points on, or with the joint density beside them from {} ({} below six dimensions)"
    assert said.format(*found.groups()) in (ROOT / "README.md").read_text()
