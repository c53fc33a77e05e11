"""reparameterize_with_kl: the two functions in one pass, and what it keeps between forward and backward."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, DTYPES, LAYOUTS, Make
from devices import allocations
from tolerance import assert_same_bits_for_threads, assert_within_budget

import fastib
from fastib import _arguments, _fallback, _formulas, _ops, _rng, reference
from fastib._arguments import REDUCTIONS, Reduction

RNG = torch.tensor([21, 22])


def _oracle(mu: torch.Tensor, logvar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z, the KL of each element, and the sizes of the terms of z, in float64."""
    m, lv = mu.detach().double(), logvar.detach().double()
    spread = torch.exp(lv / 2) * _rng.normal(RNG, m.shape, torch.float64)
    return m + spread, reference.gaussian_kl(m, lv, reduction="none"), m.abs() + spread.abs()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", CASES)
def test_values(kernels: str, make: Make, dtype: torch.dtype) -> None:
    mu, logvar = make(dtype)
    z, kl = fastib.reparameterize_with_kl(mu, logvar, rng=RNG, reduction="none")
    plain_z, plain_kl = reference.reparameterize_with_kl(mu, logvar, rng=RNG, reduction="none")
    true_z, true_kl, size = _oracle(mu, logvar)
    assert z.dtype == dtype and z.stride() == kl.stride() == torch.empty_like(mu).stride()
    assert_within_budget(z, plain_z, true_z, scale=size)
    m, lv = mu.double(), logvar.double()
    terms = m**2 + torch.expm1(lv).abs() + lv.abs() if dtype == torch.float64 else None
    assert_within_budget(kl, plain_kl, true_kl, scale=terms, slack=8)


@pytest.mark.parametrize(
    ("dtype", "used"),
    [
        pytest.param(dtype, used, marks=[] if used == "both" or dtype == torch.float32 else pytest.mark.thorough)
        for dtype in DTYPES
        for used in ("both", "z", "kl")
    ],
    ids=str,
)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("make", LAYOUTS)
def test_gradients(kernels: str, make: Make, dtype: torch.dtype, reduction: str, used: str) -> None:
    mu, logvar = (t.requires_grad_() for t in make(dtype))
    kind, divisor = _arguments.reduction_of(reduction, mu.shape)
    grad_z, grad_kl = (
        torch.randn(mu.shape).to(dtype),
        torch.randn(_formulas.reduce(mu.detach().double(), kind, 1).shape),
    )
    grad_kl = grad_kl.to(_arguments.accumulate_dtype(dtype))
    grads = {"both": (grad_z, grad_kl), "z": (grad_z, None), "kl": (None, grad_kl)}[used]

    def gradients(fn: object) -> tuple[torch.Tensor, ...]:
        outputs = fn(mu, logvar, rng=RNG, reduction=reduction)  # type: ignore[operator]
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if grad is not None]
        return torch.autograd.grad([p[0] for p in pairs], (mu, logvar), [p[1] for p in pairs], materialize_grads=True)

    doubles = [None if t is None else t.detach().double() for t in (*grads, mu, logvar)]
    oracle = _fallback.KERNELS["reparameterize_with_kl_backward"](*doubles, None, RNG, kind, divisor, 3)
    sizes = _fallback.KERNELS["reparameterize_with_kl_backward"](
        *(None if t is None else t.abs() for t in doubles[:3]), doubles[3].abs(), None, RNG, kind, divisor, 3
    )
    noise = _rng.normal(RNG, mu.shape, torch.float64).abs()
    sizes = (
        sizes[0],
        sizes[1].abs() + (doubles[0].abs() * torch.exp(doubles[3] / 2) * noise if doubles[0] is not None else 0),
    )
    for a, p, o, size in zip(
        gradients(fastib.reparameterize_with_kl),
        gradients(reference.reparameterize_with_kl),
        oracle,
        sizes,
        strict=True,
    ):
        assert a.dtype == dtype
        assert_within_budget(a, p, o, scale=size + o.abs(), slack=16)


def test_equals_the_two_functions(kernels: str) -> None:
    mu, logvar = torch.randn(700, 33), torch.randn(700, 33)
    z, kl = fastib.reparameterize_with_kl(mu, logvar, rng=RNG)
    assert torch.equal(z, fastib.reparameterize(mu, logvar, rng=RNG))
    torch.testing.assert_close(kl, fastib.gaussian_kl(mu, logvar), rtol=1e-6, atol=0)


def test_z_alone_survives_a_variance_that_overflows(kernels: str) -> None:
    """exp(100 / 2) is finite in float32; exp(100), which only the KL needs, is not."""
    mu, logvar = torch.zeros(40), torch.full((40,), 100.0, requires_grad=True)
    z, _ = fastib.reparameterize_with_kl(mu, logvar, rng=RNG)
    (grad,) = torch.autograd.grad(z.sum(), logvar)
    torch.testing.assert_close(grad, z.detach() / 2)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(kernels: str, reduction: str) -> None:
    mu, logvar, noise = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(
        lambda m, lv: fastib.reparameterize_with_kl(m, lv, rng=RNG, reduction=reduction), (mu, logvar)
    )
    assert torch.autograd.gradcheck(
        lambda m, lv, n: fastib.reparameterize_with_kl(m, lv, noise=n, reduction=reduction), (mu, logvar, noise)
    )


def test_no_noise_with_a_reduction_over_the_first_dimension(kernels: str) -> None:
    t = torch.zeros(3, 5)
    with pytest.raises(RuntimeError, match="noise with a reduction over the first dimension"):
        _ops.reparameterize_with_kl(t, t, None, RNG, Reduction.BATCH, 1)


@pytest.mark.parametrize("kind", [2, *(pytest.param(one, marks=pytest.mark.thorough) for one in (0, 1))])
def test_opcheck(kind: int) -> None:
    mu, logvar = torch.randn(5, 6), torch.randn(5, 6)
    for noise, rng in ((None, RNG), (torch.randn(5, 6), None)):
        z, kl = _ops.reparameterize_with_kl(mu, logvar, noise, rng, kind, 2)
        torch.library.opcheck(_ops.reparameterize_with_kl, (mu, logvar, noise, rng, kind, 2))
        for grads in ((z, kl), (z, None), (None, kl)):
            for wanted in (1, 2, 3):
                torch.library.opcheck(
                    _ops.reparameterize_with_kl_backward, (*grads, mu, logvar, noise, rng, kind, 2, wanted)
                )


def test_the_kl_alone_has_no_noise_in_its_gradient(kernels: str) -> None:
    mu, logvar = torch.ones(2, 9, requires_grad=True), torch.ones(2, 9, requires_grad=True)
    _, kl = fastib.reparameterize_with_kl(mu, logvar, noise=torch.full((2, 9), torch.inf), reduction="sum")
    (grad,) = torch.autograd.grad(kl, logvar)
    torch.testing.assert_close(grad, torch.expm1(logvar.detach()) / 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads(kernels: str, threads: None, dtype: torch.dtype) -> None:
    mu, logvar, grad = (torch.randn(301, 777).to(dtype) for _ in range(3))

    def run() -> tuple[torch.Tensor, ...]:
        z, kl = _ops.reparameterize_with_kl(mu, logvar, None, RNG, 2, 10)
        return z, kl, *_ops.reparameterize_with_kl_backward(grad, kl, mu, logvar, None, RNG, 2, 10, 3)

    assert_same_bits_for_threads(run)


def test_saves_only_its_inputs_and_the_seed() -> None:
    mu, logvar = torch.randn(300, 20, requires_grad=True), torch.randn(300, 20, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fastib.reparameterize_with_kl(mu, logvar)
    assert {t.data_ptr() for t in saved if t.numel() > 2} == {mu.data_ptr(), logvar.data_ptr()}
    assert [t.dtype for t in saved if t.numel() <= 2] == [torch.int64]


@pytest.mark.parametrize("which", [0, 1])
def test_only_the_gradient_that_is_wanted_is_computed(kernels: str, which: int) -> None:
    tensors = [torch.randn(1024, 51), torch.randn(1024, 51)]
    both, one = ([t.clone().requires_grad_(i in w) for i, t in enumerate(tensors)] for w in ((0, 1), (which,)))
    grads = torch.randn(1024, 51), torch.ones(())
    full = torch.autograd.grad(fastib.reparameterize_with_kl(*both, rng=RNG), both, grads)
    with allocations() as allocated:
        (grad,) = torch.autograd.grad(fastib.reparameterize_with_kl(*one, rng=RNG), one[which], grads)
    assert torch.equal(grad, full[which])
    assert allocated.bytes < 2 * tensors[0].nbytes + 4096 or kernels == "reference"  # z and the gradient


def test_peak_memory_is_that_of_the_results() -> None:
    """Forward and backward allocate z, the KL, the two gradients, and nothing else of any size."""
    mu, logvar = torch.randn(1024, 512, requires_grad=True), torch.randn(1024, 512, requires_grad=True)
    grad = torch.randn(1024, 512)
    with allocations() as allocated:
        z, kl = fastib.reparameterize_with_kl(mu, logvar)
        torch.autograd.grad((z, kl), (mu, logvar), (grad, torch.ones(())))
    assert 3 * mu.nbytes <= allocated.bytes < 3 * mu.nbytes + 4096


def test_a_kl_that_is_not_used_adds_nothing_to_the_gradient(kernels: str) -> None:
    """Also where it is infinite."""
    mu, logvar = torch.tensor([[torch.inf, 1.0]], requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    z, _ = fastib.reparameterize_with_kl(mu, logvar, noise=torch.ones(1, 2))
    d_mu, d_logvar = torch.autograd.grad(z.sum(), (mu, logvar))
    assert d_mu.tolist() == [[1.0, 1.0]] and d_logvar.tolist() == [[0.5, 0.5]]
