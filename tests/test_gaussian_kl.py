"""gaussian_kl: both forms, every reduction, free bits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from cases import CASES, DTYPES, LAYOUTS, VALUES, Make
from devices import allocations
from tolerance import assert_same_bits_for_threads, assert_within_budget

import fastib
from fastib import _arguments, _fallback, _formulas, _ops, reference
from fastib._arguments import REDUCTIONS, Reduction

Tensors = tuple[torch.Tensor, ...]
BATCH_REDUCTIONS = ["sum", "mean", "batchmean"]


def _scale(mu: torch.Tensor, d: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """The oracle subtracts in float64: good to all digits of the other dtypes, but not to those of float64 itself."""
    return mu**2 + torch.expm1(d).abs() + d.abs() if dtype == torch.float64 else None


def _assert_gradients(kl: torch.Tensor, plain: torch.Tensor, inputs: list[torch.Tensor], reduction: str) -> None:
    """Against the derivatives written out, in float64: autograd would form expm1(l) as (expm1(l) + 1) - 1."""
    grad = torch.randn(kl.shape, dtype=kl.dtype)
    ours, theirs = (torch.autograd.grad(out, inputs, grad) for out in (kl, plain))
    doubles = [t.detach().double() for t in (grad, *inputs)] + [None] * (4 - len(inputs))
    options = *_arguments.reduction_of(reduction, inputs[0].shape), 0.0, 2 ** len(inputs) - 1
    oracle = _fallback.KERNELS["gaussian_kl_backward"](*doubles, *options)
    scales = [None] * 4
    if len(inputs) == 4:
        m, lv, p, pl = doubles[1:]
        scales[3] = doubles[0] * (torch.expm1(lv - pl).abs() + (m - p) ** 2 * torch.exp(-pl))  # what it subtracts
    for a, plain_grad, o, leaf, scale in zip(ours, theirs, oracle, inputs, scales, strict=False):
        assert a.dtype == leaf.dtype and a.shape == leaf.shape
        assert_within_budget(a, plain_grad, o, scale=scale, slack=16)


def _close(a: torch.Tensor, b: torch.Tensor, rtol: float = 2e-6) -> None:
    torch.testing.assert_close(a, b, rtol=rtol, atol=1e-30, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", CASES)
def test_elements_and_gradients(kernels: str, make: Make, dtype: torch.dtype) -> None:
    mu, logvar = (t.requires_grad_() for t in make(dtype))
    m, lv = mu.detach().double(), logvar.detach().double()
    kl, plain = (fn(mu, logvar, reduction="none") for fn in (fastib.gaussian_kl, reference.gaussian_kl))
    assert kl.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert kl.stride() == torch.empty_like(mu).stride()
    assert_within_budget(kl, plain, reference.gaussian_kl(m, lv, reduction="none"), scale=_scale(m, lv, dtype))
    _assert_gradients(kl, plain, [mu, logvar], "none")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", LAYOUTS)
def test_reductions(kernels: str, make: Make, dtype: torch.dtype, reduction: str) -> None:
    mu, logvar = (t.requires_grad_() for t in make(dtype))
    m, lv = mu.detach().double(), logvar.detach().double()
    kl, plain = (fn(mu, logvar, reduction=reduction) for fn in (fastib.gaussian_kl, reference.gaussian_kl))
    scale = _scale(m, lv, dtype)
    if scale is not None:
        scale = _formulas.reduce(scale, *_arguments.reduction_of(reduction, mu.shape))
    assert_within_budget(kl, plain, reference.gaussian_kl(m, lv, reduction=reduction), scale=scale)
    _assert_gradients(kl, plain, [mu, logvar], reduction)


def test_reductions_mean_what_they_say() -> None:
    mu, logvar = torch.randn(6, 5, 4, dtype=torch.float64), torch.randn(6, 5, 4, dtype=torch.float64)
    kl = (mu**2 + torch.exp(logvar) - 1 - logvar) / 2
    expected = {"none": kl, "sample": kl.sum(-1), "sum": kl.sum(), "mean": kl.mean(), "batchmean": kl.sum() / 6}
    for reduction, value in expected.items():
        torch.testing.assert_close(fastib.gaussian_kl(mu, logvar, reduction=reduction), value)
    torch.testing.assert_close(fastib.gaussian_kl(mu, logvar), expected["batchmean"])


def test_known_divergences() -> None:
    """Against torch.distributions, an implementation of its own."""
    q = torch.distributions.Normal(torch.randn(5, 3).double(), torch.rand(5, 3).double() + 0.1)
    p = torch.distributions.Normal(torch.randn(5, 3).double(), torch.rand(5, 3).double() + 0.1)
    unit = torch.distributions.Normal(torch.zeros(5, 3).double(), torch.ones(5, 3).double())
    ours = fastib.gaussian_kl(q.loc, 2 * q.scale.log(), p.loc, 2 * p.scale.log(), reduction="none")
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(q, p))
    ours = fastib.gaussian_kl(q.loc, 2 * q.scale.log(), reduction="none")
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(q, unit))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_digit_near_zero(kernels: str, dtype: torch.dtype) -> None:
    """expm1(l) - l as a series in float64; exp(l) - 1 - l would have lost all digits at 1e-4."""
    logvar = torch.cat([sign * torch.logspace(-12, -1.5, 2000, dtype=dtype) for sign in (1, -1)])
    series = torch.ones(logvar.shape, dtype=torch.float64)
    for k in range(14, 2, -1):
        series = 1 + logvar.double() / k * series
    exact = logvar.double() ** 2 / 2 * series
    kl = fastib.gaussian_kl(torch.zeros_like(logvar), logvar, reduction="none").double()
    error = ((2 * kl - exact) / exact).abs().max().item()
    assert error < 4 * torch.finfo(dtype).eps or kernels == "reference"
    _, fused = fastib.reparameterize_with_kl(torch.zeros_like(logvar), logvar, reduction="none")
    error = ((2 * fused.double() - exact) / exact).abs().max().item()
    assert error < 8 * torch.finfo(dtype).eps or kernels == "reference"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_extreme_neighbour_changes_nothing(kernels: str, dtype: torch.dtype) -> None:
    """A vector with one e^logvar that is no normal number takes another path as a whole."""
    logvar = torch.cat([torch.logspace(-6, 0, 301, dtype=dtype), torch.linspace(-80, 80, 300, dtype=dtype)])
    mixed = torch.stack([logvar, torch.full_like(logvar, -2000.0)], dim=1)
    mu = torch.zeros_like(mixed, requires_grad=True)
    mixed.requires_grad_()
    alone = logvar.clone().requires_grad_()
    kl, lone = (fastib.gaussian_kl(m, lv, reduction="none") for m, lv in ((mu, mixed), (mu[:, 0].detach(), alone)))
    assert torch.equal(kl[:, 0], lone)
    ours, theirs = (torch.autograd.grad(t.sum(), lv)[0] for t, lv in ((kl, mixed), (lone, alone)))
    assert torch.equal(ours[:, 0], theirs)


def test_finite_for_all_reasonable_logvar(kernels: str) -> None:
    logvar = torch.linspace(-80, 80, 16001, requires_grad=True)
    mu = torch.linspace(-100, 100, 16001, requires_grad=True)
    kl = fastib.gaussian_kl(mu, logvar, reduction="none")
    assert kl.isfinite().all() and (kl >= 0).all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(kl.sum(), (mu, logvar)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_finite_for_the_extremes_of_low_precision(kernels: str, dtype: torch.dtype) -> None:
    """fp16 reaches 65504: its square overflows there but not in float32. bf16 reaches the range of float32."""
    big = 65504.0 if dtype == torch.float16 else 1e19
    mu = torch.tensor([big, -big, 0.0], dtype=dtype, requires_grad=True)
    logvar = torch.tensor([-80.0, 80.0, torch.finfo(dtype).tiny], dtype=dtype, requires_grad=True)
    kl = fastib.gaussian_kl(mu, logvar, reduction="none")
    assert kl.isfinite().all()
    d_mu, d_logvar = torch.autograd.grad(kl.sum(), (mu, logvar))
    assert d_mu.isfinite().all()
    assert d_logvar[[0, 2]].isfinite().all()  # expm1(80) / 2 itself exceeds fp16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", LAYOUTS)
def test_between_two_gaussians(kernels: str, make: Make, dtype: torch.dtype) -> None:
    inputs = [t.requires_grad_() for t in (*make(dtype), *make(dtype))]
    m, lv, p, pl = (t.detach().double() for t in inputs)
    kl, plain = (fn(*inputs, reduction="none") for fn in (fastib.gaussian_kl, reference.gaussian_kl))
    oracle = reference.gaussian_kl(m, lv, p, pl, reduction="none")
    terms = (m - p) ** 2 * torch.exp(-pl) + torch.expm1(lv - pl).abs() + (lv - pl).abs()
    assert_within_budget(kl, plain, oracle, scale=terms)
    _assert_gradients(kl, plain, inputs, "none")


def test_prior_broadcasts_and_may_be_partial() -> None:
    mu, logvar = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    mean, var = (
        torch.randn(3, dtype=torch.float64, requires_grad=True),
        torch.randn((), dtype=torch.float64, requires_grad=True),
    )
    full = (mu, logvar, mean.expand(6, 3), var.expand(6, 3))
    torch.testing.assert_close(fastib.gaussian_kl(mu, logvar, mean, var), reference.gaussian_kl(*full))
    zero = torch.zeros(6, 3, dtype=torch.float64)
    torch.testing.assert_close(fastib.gaussian_kl(mu, logvar, mean), reference.gaussian_kl(mu, logvar, full[2], zero))
    torch.testing.assert_close(
        fastib.gaussian_kl(mu, logvar, prior_logvar=var), reference.gaussian_kl(mu, logvar, zero, full[3])
    )
    assert torch.autograd.gradcheck(lambda a, b: fastib.gaussian_kl(mu, logvar, a, b), (mean, var))


PRIOR_SHAPES: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = [
    ((600, 7), (7,), ()),
    ((600, 7), (1, 7), (600, 7)),
    ((600, 7), (1, 1), (600, 1)),
    ((3000,), (1,), ()),
    ((700, 1100), (1100,), (1,)),
    ((40, 9, 11), (9, 11), (11,)),
    ((40, 9, 11), (40, 1, 11), (9, 1)),
    ((40, 9, 11), (1, 9, 1), (40, 9, 1)),
    ((1, 600), (600,), (1, 1)),
    ((), (), ()),
    ((0, 4), (4,), ()),
    ((4, 0), (1,), (0,)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape, mean_shape, var_shape", PRIOR_SHAPES)
@pytest.mark.parametrize("reduction", ["none", "sample", "batchmean"])
def test_gradients_of_a_broadcast_prior(
    kernels: str, shape: torch.Size, mean_shape: torch.Size, var_shape: torch.Size, dtype: torch.dtype, reduction: str
) -> None:
    inputs = [torch.randn(s).to(dtype).requires_grad_() for s in (shape, shape, mean_shape, var_shape)]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    kl, oracle = fastib.gaussian_kl(*inputs, reduction=reduction), reference.gaussian_kl(*doubles, reduction=reduction)
    grad = torch.randn(kl.shape, dtype=kl.dtype) / 100
    ours = torch.autograd.grad(kl, inputs, grad)
    rtol = {torch.float64: 1e-11, torch.float32: 1e-5}.get(dtype, 2 * torch.finfo(dtype).eps)
    for a, b, leaf in zip(ours, torch.autograd.grad(oracle, doubles, grad.double()), inputs, strict=True):
        assert a.dtype == dtype and a.shape == leaf.shape
        largest = torch.cat((torch.ones(1), b.abs().nan_to_num(nan=0.0).flatten())).max().item()
        atol = rtol * largest  # a sum is as good as its terms
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=atol, equal_nan=True)


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_a_broadcast_prior_of_any_strides(kernels: str, channels_last: bool) -> None:
    """Each element is in its place."""
    if channels_last:
        shape, priors = (8, 4, 5, 3), [torch.randn(1, 4, 5, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    else:
        shape, priors = (8, 4, 3), [torch.randn(3, 4).t() for _ in range(2)]
    inputs = [t.double().requires_grad_() for t in (torch.randn(shape), torch.randn(shape), *priors)]
    grads, expected = (
        torch.autograd.grad(module.gaussian_kl(*inputs, reduction="sum"), inputs) for module in (fastib, reference)
    )
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mean_shape, var_shape", [((5,), ()), ((6, 1), (5,)), ((6, 5), (6, 1))])
def test_a_broadcast_prior_compiles(mean_shape: torch.Size, var_shape: torch.Size) -> None:
    torch.use_deterministic_algorithms(False)
    inputs = [torch.randn(s, requires_grad=True) for s in ((6, 5), (6, 5), mean_shape, var_shape)]
    compiled = torch.compile(fastib.gaussian_kl, fullgraph=True, backend="aot_eager", dynamic=True)
    results = [torch.autograd.grad(fn(*inputs), inputs) for fn in (fastib.gaussian_kl, compiled)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gradients_of_a_broadcast_prior_are_rounded_once(kernels: str, dtype: torch.dtype) -> None:
    """Each element's is below what the dtype can hold, or add."""
    mu, logvar = torch.full((300_000, 3), 2e-2, dtype=dtype), torch.zeros(300_000, 3, dtype=dtype)
    prior = torch.zeros(3, dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(fastib.gaussian_kl(mu, logvar, prior), prior)
    torch.testing.assert_close(grad, -mu[0])


@pytest.mark.parametrize("shape, mean_shape, var_shape", [*PRIOR_SHAPES, ((3001, 77), (77,), (3001, 1))])
def test_gradients_of_a_broadcast_prior_have_the_same_bits_for_any_number_of_threads(
    threads: None, shape: torch.Size, mean_shape: torch.Size, var_shape: torch.Size
) -> None:
    inputs = [torch.randn(s, requires_grad=True) for s in (shape, shape, mean_shape, var_shape)]

    def run() -> Tensors:
        return torch.autograd.grad(fastib.gaussian_kl(*inputs, reduction="sum"), inputs)

    assert_same_bits_for_threads(run)


def _allocated(inputs: list[torch.Tensor]) -> float:
    """Bytes that forward and backward allocate, in units of the first input's."""
    with allocations() as allocated:
        fastib.gaussian_kl(*inputs).backward()
    return allocated.bytes / inputs[0].nbytes


@pytest.mark.parametrize("prior_shape", [(), (512,), (1024, 1)], ids=str)
def test_memory_of_a_broadcast_prior(prior_shape: torch.Size) -> None:
    mu, logvar = (torch.randn(1024, 512, requires_grad=True) for _ in range(2))
    priors = [torch.zeros(prior_shape, requires_grad=True) for _ in range(2)]
    assert _allocated([mu, logvar, *priors]) < 2.02
    assert _allocated([mu.detach(), logvar.detach(), *priors]) < 0.02


def test_memory_of_the_gradients_that_are_wanted() -> None:
    tensors = [torch.randn(1024, 512) for _ in range(4)]
    for wanted in ([1], [0], [0, 3], [2]):
        inputs = [t.clone().requires_grad_() if i in wanted else t for i, t in enumerate(tensors)]
        assert len(wanted) <= _allocated(inputs) < len(wanted) + 0.02
    assert 1 <= _allocated([tensors[0].clone().requires_grad_(), tensors[1]]) < 1.02


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(kernels: str, reduction: str) -> None:
    inputs = [torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda m, lv: fastib.gaussian_kl(m, lv, reduction=reduction), inputs[:2])
    assert torch.autograd.gradcheck(lambda *t: fastib.gaussian_kl(*t, reduction=reduction), inputs)


@pytest.mark.parametrize("kind", [2, *(pytest.param(one, marks=pytest.mark.thorough) for one in (0, 1, 3))])
def test_opcheck(kind: int) -> None:
    mu, logvar = torch.randn(5, 6), torch.randn(5, 6)
    priors_of = [
        (None, None),
        (torch.randn(5, 6), torch.randn(5, 6).t().contiguous().t()),
        (torch.randn(6), torch.randn(())),
    ]
    for priors, floor in itertools.product(priors_of, (0.0, 0.7)):
        torch.library.opcheck(_ops.gaussian_kl, (mu, logvar, *priors, kind, 2, floor))
        grad = _ops.gaussian_kl(mu, logvar, *priors, kind, 2, floor)
        for wanted in (1, 2, 3) if priors[0] is None else (3, 4, 9, 15):
            torch.library.opcheck(_ops.gaussian_kl_backward, (grad, mu, logvar, *priors, kind, 2, floor, wanted))


@pytest.mark.parametrize("reduction", BATCH_REDUCTIONS)
@pytest.mark.parametrize("per", ["dimension", "total"])
@pytest.mark.parametrize("shape", [(40, 7), (700, 70), (3, 900), (5, 4, 6), (9,), ()], ids=str)
def test_free_bits_of_the_batch(kernels: str, shape: tuple[int, ...], per: str, reduction: str) -> None:
    mu, logvar = torch.randn(shape).double().requires_grad_(), torch.randn(shape).double().requires_grad_()
    kl = (mu**2 + torch.expm1(logvar) - logvar) / 2
    mean = kl.mean(0) if shape else kl
    floor = mean.detach().median().item() if per == "dimension" else mean.sum().item() * 0.9
    total = torch.maximum(mean if per == "dimension" else mean.sum(), torch.tensor(floor).double()).sum()
    batch = shape[0] if shape else 1
    expected = total * {"sum": batch, "mean": batch / kl.numel(), "batchmean": 1}[reduction]
    floor -= 1e-12  # not exactly at one of the values, where the gradient is a matter of taste
    ours = fastib.gaussian_kl(mu, logvar, reduction=reduction, free_bits=floor, free_bits_per=per)
    twin = reference.gaussian_kl(mu, logvar, reduction=reduction, free_bits=floor, free_bits_per=per)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(twin, expected)
    for a, b in zip(torch.autograd.grad(ours, (mu, logvar)), torch.autograd.grad(twin, (mu, logvar)), strict=True):
        torch.testing.assert_close(a, b)


def test_column_sums_of_no_rows(kernels: str) -> None:
    empty = torch.zeros(0, 5)
    assert torch.equal(_ops.gaussian_kl(empty, empty, None, None, Reduction.BATCH, 1, 0.0), torch.zeros(5))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_free_bits_of_each_element(reduction: str) -> None:
    mu, logvar = torch.randn(8, 5).double().requires_grad_(), torch.randn(8, 5).double().requires_grad_()
    kl = ((mu**2 + torch.expm1(logvar) - logvar) / 2).clamp(min=0.7)
    expected = {"none": kl, "sample": kl.sum(-1), "sum": kl.sum(), "mean": kl.mean(), "batchmean": kl.sum() / 8}
    ours = fastib.gaussian_kl(mu, logvar, reduction=reduction, free_bits=0.7, free_bits_per="element")
    torch.testing.assert_close(ours, expected[reduction])
    torch.testing.assert_close(
        reference.gaussian_kl(mu, logvar, reduction=reduction, free_bits=0.7, free_bits_per="element"), ours
    )
    assert torch.autograd.gradcheck(
        lambda m, lv: fastib.gaussian_kl(m, lv, reduction=reduction, free_bits=0.7, free_bits_per="element"),
        (mu, logvar),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("make", CASES)
def test_floor_of_each_element_is_a_clamp(kernels: str, make: Make, prior: bool, dtype: torch.dtype) -> None:
    """Every bit of the clamped elements and of their gradient, NaN and elements exactly at the floor included: these
    have one, as by `clamp` up to PyTorch 2.13."""
    inputs = [t.requires_grad_() for t in (*make(dtype), *(make(dtype) if prior else ()))]
    elements = fastib.gaussian_kl(*inputs, reduction="none")
    floor = elements.detach().nanmedian().item() if elements.numel() else 1.0
    if not 0 < floor < math.inf:
        floor = 0.5
    ours = fastib.gaussian_kl(*inputs, reduction="none", free_bits=floor, free_bits_per="element")
    clamped = elements.clamp(min=floor)
    assert torch.equal(ours.nan_to_num(nan=-1.0), clamped.nan_to_num(nan=-1.0))
    grad = torch.randn(ours.shape, dtype=ours.dtype)
    passed = torch.where(elements >= floor, grad, 0)
    found, expected = torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(elements, inputs, passed)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_floor_of_each_element_has_the_same_bits_for_any_number_of_threads(threads: None, reduction: str) -> None:
    mu, logvar = (torch.randn(3001, 77, requires_grad=True) for _ in range(2))

    def run() -> Tensors:
        kl = fastib.gaussian_kl(mu, logvar, reduction=reduction, free_bits=0.4, free_bits_per="element")
        return kl, *torch.autograd.grad(kl, (mu, logvar), torch.ones_like(kl))

    assert_same_bits_for_threads(run)


def test_a_gradient_in_the_last_binade_does_not_overflow(kernels: str) -> None:
    mu, logvar, prior_mu, prior_logvar = (torch.tensor([v]) for v in (39.2885, -47.411, 77.154, -81.7276))
    prior_logvar.requires_grad_()
    (grad,) = torch.autograd.grad(fastib.gaussian_kl(mu, logvar, prior_mu, prior_logvar), prior_logvar)
    oracle = -torch.expm1(logvar.double() + 81.7276) / 2 - (mu.double() - 77.154) ** 2 * math.exp(81.7276) / 2
    torch.testing.assert_close(grad.double(), oracle, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dims", [40_000, 200_000])
def test_free_bits_of_many_dimensions_have_the_same_bits_for_any_number_of_threads(threads: None, dims: int) -> None:
    for dtype in (torch.float32, torch.float64):
        mu, logvar = torch.randn(2, dims, dtype=dtype), torch.randn(2, dims, dtype=dtype)
        assert_same_bits_for_threads(lambda: (fastib.gaussian_kl(mu, logvar, free_bits=0.1),))  # noqa: B023


@pytest.mark.parametrize("per", ["dimension", "total"])
def test_free_bits_do_not_overflow_on_the_way(per: str) -> None:
    logvar = torch.full((100_000, 1), 80.0)
    for reduction in ("mean", "batchmean"):
        kl = fastib.gaussian_kl(torch.zeros_like(logvar), logvar, reduction=reduction, free_bits=0.1, free_bits_per=per)
        torch.testing.assert_close(kl, torch.tensor((math.expm1(80.0) - 80.0) / 2))


@pytest.mark.parametrize("batch", [1, 13, 21, 26, 41])
def test_free_bits_are_their_number_exactly_where_all_is_below(batch: int) -> None:
    zeros = torch.zeros(batch, 4)
    assert fastib.gaussian_kl(zeros, zeros, free_bits=0.1) == torch.tensor(0.1) * 4


@pytest.mark.parametrize("shape", [(0, 3), (0, 0), (3, 0)], ids=str)
def test_free_bits_of_nothing(shape: tuple[int, int]) -> None:
    nothing = torch.zeros(shape)
    for reduction in BATCH_REDUCTIONS:
        options = {"reduction": reduction, "free_bits": 0.5}
        ours, plain = (fn(nothing, nothing, **options) for fn in (fastib.gaussian_kl, reference.gaussian_kl))
        torch.testing.assert_close(ours, plain, equal_nan=True)


def test_floor_of_each_element_takes_no_memory() -> None:
    mu, logvar = torch.randn(1024, 512, requires_grad=True), torch.randn(1024, 512, requires_grad=True)
    with allocations() as allocated:
        fastib.gaussian_kl(mu, logvar, free_bits=0.4, free_bits_per="element").backward()
    assert allocated.bytes < 2 * mu.nbytes + 4096


def test_no_gradient_below_the_floor() -> None:
    mu, logvar = torch.zeros(4, 2, requires_grad=True), torch.full((4, 2), 0.1, requires_grad=True)
    with torch.no_grad():
        mu[:, 1] = 3.0
    loss = fastib.gaussian_kl(mu, logvar, free_bits=0.5)
    loss.backward()
    assert (mu.grad[:, 0] == 0).all() and (logvar.grad[:, 0] == 0).all()
    assert (mu.grad[:, 1] == 3 / 4).all()
    _close(loss, torch.tensor(0.5) + fastib.gaussian_kl(mu[:, 1:], logvar[:, 1:]))


@pytest.mark.parametrize("kind", range(4))
def test_same_bits_for_any_number_of_threads(kernels: str, threads: None, kind: int) -> None:
    mu, logvar = torch.randn(3001, 77), torch.randn(3001, 77)
    assert_same_bits_for_threads(lambda: (_ops.gaussian_kl(mu, logvar, None, None, kind, 3, 0.0),))


@pytest.mark.thorough
def test_more_than_two_to_the_31_elements() -> None:
    """One element in memory, expanded: the sum of its KL, exact because it is the same everywhere."""
    n = 2**31 + 8
    mu, logvar = (torch.full((1,), value, dtype=torch.bfloat16).expand(n) for value in (1.0, 0.0))
    assert fastib.gaussian_kl(mu, logvar, reduction="sum").item() == pytest.approx(n / 2, rel=1e-6)
    assert fastib.gaussian_kl(mu, logvar, reduction="mean").item() == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("make", VALUES)
def test_unit_prior_given_as_tensors(kernels: str, make: Make) -> None:
    mu, logvar = make(torch.float32)
    zero = torch.zeros(())
    _close(
        fastib.gaussian_kl(mu, logvar, zero, zero, reduction="none"),
        fastib.gaussian_kl(mu, logvar, reduction="none"),
        rtol=2e-6,
    )
