"""reparameterize: values, gradients, and where its noise comes from."""

from __future__ import annotations

import os

import pytest
import torch
from cases import CASES, DTYPES, Make
from tolerance import assert_same_bits_for_threads, assert_within_budget

import fastib
from fastib import _ops, _rng, reference

RNG = torch.tensor([11, 12])


def _noise(like: torch.Tensor) -> torch.Tensor:
    return _rng.normal(RNG, like.shape, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", CASES)
def test_values_and_gradients(kernels: str, make: Make, dtype: torch.dtype) -> None:
    mu, logvar = (t.requires_grad_() for t in make(dtype))
    grad = torch.randn(mu.shape).to(dtype)
    m, lv = (t.detach().double().requires_grad_() for t in (mu, logvar))
    oracle = reference.reparameterize(m, lv, noise=_noise(m))
    noise = _noise(m).to(dtype)

    z = fastib.reparameterize(mu, logvar, rng=RNG)
    plain = reference.reparameterize(mu, logvar, rng=RNG)
    spread = torch.exp(lv / 2) * _noise(m)
    assert z.dtype == dtype and z.stride() == torch.empty_like(mu).stride()
    assert_within_budget(z, plain, oracle, scale=m.abs() + spread.abs())

    given = fastib.reparameterize(mu, logvar, noise=noise)
    exact = reference.reparameterize(m, lv, noise=noise.double())
    assert_within_budget(given, reference.reparameterize(mu, logvar, noise=noise), exact, scale=m.abs() + spread.abs())

    ours, theirs, true = (
        torch.autograd.grad(out, inputs, grad.to(out.dtype))
        for out, inputs in ((z, (mu, logvar)), (plain, (mu, logvar)), (oracle, (m, lv)))
    )
    for a, p, o in zip(ours, theirs, true, strict=True):
        assert a.dtype == dtype
        assert_within_budget(a, p, o, slack=8)


def test_gradcheck(kernels: str) -> None:
    mu, logvar, noise = (torch.randn(3, 7, dtype=torch.float64, requires_grad=True) for _ in range(3))
    assert torch.autograd.gradcheck(lambda m, lv: fastib.reparameterize(m, lv, rng=RNG), (mu, logvar))
    assert torch.autograd.gradcheck(lambda m, lv, n: fastib.reparameterize(m, lv, noise=n), (mu, logvar, noise))


def test_opcheck() -> None:
    mu, logvar = torch.randn(5, 6), torch.randn(5, 6)
    torch.library.opcheck(torch.ops.fastib.philox_words.default, (RNG, 3, 5))
    for noise, rng in ((None, RNG), (torch.randn(5, 6), None)):
        torch.library.opcheck(_ops.reparameterize, (mu, logvar, noise, rng))
        torch.library.opcheck(_ops.reparameterize_backward, (mu, logvar, noise, rng))


def test_given_noise_has_a_gradient_only_if_it_requires_one() -> None:
    mu, logvar, noise = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3), torch.randn(4, 3)
    fastib.reparameterize(mu, logvar, noise=noise).sum().backward()
    assert noise.grad is None
    noise.requires_grad_()
    fastib.reparameterize(mu, logvar, noise=noise).sum().backward()
    torch.testing.assert_close(noise.grad, torch.exp(logvar / 2))


def test_backward_sees_the_noise_of_the_forward(kernels: str) -> None:
    """dz/dlogvar is std eps / 2, so the gradient gives the noise back; nothing of its size is saved."""
    mu, logvar = torch.zeros(500, 30), torch.zeros(500, 30, requires_grad=True)
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        z = fastib.reparameterize(mu, logvar)
    z.sum().backward()
    torch.testing.assert_close(logvar.grad, z.detach() / 2, rtol=1e-6, atol=0)
    assert logvar.data_ptr() in saved and len(set(saved)) == 2  # logvar and the 16 bytes of rng


def test_manual_seed_and_generator_govern_the_noise(kernels: str) -> None:
    zero = torch.zeros(100)
    torch.manual_seed(5)
    first, second = fastib.reparameterize(zero, zero), fastib.reparameterize(zero, zero)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(first, fastib.reparameterize(zero, zero))
    generator = torch.Generator(zero.device).manual_seed(5)
    assert torch.equal(first, fastib.reparameterize(zero, zero, generator=generator))
    assert torch.equal(second, fastib.reparameterize(zero, zero, generator=generator))


def test_twin_has_the_same_noise(kernels: str) -> None:
    mu, logvar = torch.randn(50, 8), torch.randn(50, 8)
    torch.manual_seed(1)
    ours = fastib.reparameterize(mu, logvar)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, reference.reparameterize(mu, logvar), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_for_any_number_of_threads(kernels: str, threads: None, dtype: torch.dtype) -> None:
    mu, logvar, grad = (torch.randn(301, 777).to(dtype) for _ in range(3))

    def run() -> tuple[torch.Tensor, ...]:
        z = _ops.reparameterize(mu, logvar, None, RNG)
        return z, _ops.reparameterize_backward(grad, logvar, None, RNG)

    assert_same_bits_for_threads(run)


@pytest.mark.skipif(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 12 << 30, reason="needs 12 GiB")
@pytest.mark.thorough
def test_more_than_two_to_the_31_elements() -> None:
    n = 2**31 + 1001
    mu = torch.zeros(1, dtype=torch.bfloat16).expand(n)
    logvar = torch.zeros(1, dtype=torch.bfloat16).expand(n)
    torch.use_deterministic_algorithms(False)  # filling 4 GiB with NaN takes longer than the kernel
    z = fastib.reparameterize(mu, logvar, rng=RNG)
    words = _rng.philox_words(RNG, (n - 1001) // 4, 250).double()
    radius = (-2 * torch.log((words[:, 0::2] + 0.5) / 2**32)).sqrt()
    angle = words[:, 1::2] * (2 * torch.pi / 2**32)
    expected = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten()
    torch.testing.assert_close(z[n - 1001 : n - 1], expected.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_is_float32_rounded_once(kernels: str, dtype: torch.dtype) -> None:
    """Every bit: ties, overflow, infinities and NaN included, in whole vectors and in what is left over."""
    mu, logvar, noise = (torch.randn(100_003).mul(scale).to(dtype) for scale in (1.0, 4.0, 3.0))
    mu[:8] = torch.tensor([torch.inf, -torch.inf, torch.nan, 65504.0, -65504.0, 1.0, 1.0, -0.0])
    logvar[3:5], noise[3:5] = 20.0, torch.tensor([1.0, -1.0])
    logvar[5:8], noise[5:8] = 0.0, torch.tensor([2**-9, 3 * 2**-12, 0.0])
    mu[-1] = torch.nan
    z = fastib.reparameterize(mu, logvar, noise=noise)
    expected = fastib.reparameterize(mu.float(), logvar.float(), noise=noise.float()).to(dtype)
    assert torch.equal(z.isnan(), expected.isnan())
    assert torch.equal(z.nan_to_num().view(torch.int16), expected.nan_to_num().view(torch.int16))


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_no_nan_is_rounded_to_a_number(kernels: str, dtype: torch.dtype, bits: int) -> None:
    """Rounding adds to the bits; a NaN of float32, which the gradient of a KL may be, can have any in its low half."""
    nan = torch.tensor(bits - 2**32 if bits >= 2**31 else bits, dtype=torch.int32).view(torch.float32)
    a, b, c, d = (torch.rand(40).to(dtype).requires_grad_() for _ in range(4))
    for kl, leaves in (
        (fastib.gaussian_kl(a, b, reduction="none"), (a, b)),
        (fastib.gaussian_kl(a, b, c, d, reduction="none"), (a, b, c, d)),
        (fastib.reparameterize_with_kl(a, b, reduction="none")[1], (a, b)),
        (fastib.information_dropout(a, b, reduction="none")[1], (b,)),
        (fastib.information_dropout(a, b, prior="log_normal", prior_mean=0.0, prior_log_std=0.0)[1], (a, b)),
    ):
        for gradient in torch.autograd.grad(kl, leaves, nan.expand_as(kl)):
            assert gradient.isnan().all()
    z, kl = fastib.information_dropout(a, b, prior="log_normal", prior_mean=nan, prior_log_std=torch.tensor(0.0))
    assert torch.autograd.grad((z, kl), a, (torch.ones_like(z), torch.ones_like(kl)))[0].isnan().all()


@pytest.mark.parametrize("n", [2**21, 2**21 + 5])
def test_results_beyond_the_caches_are_those_of_their_parts(kernels: str, n: int) -> None:
    """Kernels may write long results in another way; what they write is the same."""
    mu, logvar, noise, grad = (torch.randn(n) for _ in range(4))

    def run(part: slice) -> tuple[torch.Tensor, ...]:
        leaves = mu[part].requires_grad_(), logvar[part].requires_grad_()
        z, kl = fastib.reparameterize_with_kl(*leaves, noise=noise[part], reduction="none")
        alone = fastib.reparameterize(*leaves, noise=noise[part])
        return (
            z,
            alone,
            *torch.autograd.grad((z, kl), leaves, (grad[part], grad[part])),
            *torch.autograd.grad(alone, leaves, grad[part]),
        )

    parts = [run(slice(i, i + 2**19)) for i in range(0, n, 2**19)]
    for whole, pieces in zip(run(slice(None)), zip(*parts, strict=True), strict=True):
        assert torch.equal(whole, torch.cat(pieces))
