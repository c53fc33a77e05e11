"""information_dropout: both priors, both noises, all gradients."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from cases import DTYPES, LAYOUTS, Make
from devices import allocations
from tolerance import assert_same_bits_for_threads, assert_within_budget

import fastib
from fastib import _arguments, _ops, _rng, reference
from fastib._arguments import REDUCTIONS, Reduction

RNG = torch.tensor([31, 32])
OPTIONS = [
    {"prior": prior, "mask_zero": mask, "mean_one": mean}
    for prior, mask, mean in itertools.product(("log_uniform", "log_normal"), (True, False), (False, True))
]


def _activations(make: Make, dtype: torch.dtype, prior: str) -> tuple[torch.Tensor, torch.Tensor]:
    """x as the prior expects it: after a ReLU or a softplus, with the strides of the case; log_std about -1."""
    x, log_std = make(dtype)
    activation = torch.nn.functional.relu if prior == "log_uniform" else torch.nn.functional.softplus
    positive = torch.empty_strided(x.shape, x.stride(), dtype=dtype) if x._is_view() and 0 not in x.stride() else x
    return (activation(x) if positive is x else positive.copy_(activation(x))), log_std * 0.3 - 1


def _parameters(prior: str, dtype: torch.dtype) -> dict[str, Any]:
    if prior == "log_uniform":
        return {}
    return {"prior_mean": torch.tensor(0.3, dtype=dtype), "prior_log_std": torch.tensor([-0.2], dtype=dtype)}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", LAYOUTS)
def test_values_and_gradients(kernels: str, make: Make, dtype: torch.dtype, options: dict[str, Any]) -> None:
    x, log_std = (t.detach().requires_grad_() for t in _activations(make, dtype, options["prior"]))
    parameters = {
        k: v.requires_grad_() for k, v in _parameters(options["prior"], _arguments.accumulate_dtype(dtype)).items()
    }
    leaves = [x, log_std, *parameters.values()]
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    noise = _rng.normal(RNG, x.shape, torch.float64)

    def run(fn: Any, tensors: list[torch.Tensor], **source: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return fn(
            *tensors[:2], **dict(zip(parameters, tensors[2:], strict=True)), **options, **source, reduction="none"
        )

    ours = run(fastib.information_dropout, leaves, rng=RNG)
    plain = run(reference.information_dropout, leaves, rng=RNG)
    oracle = run(reference.information_dropout, doubles, noise=noise)
    assert ours[0].dtype == dtype and ours[0].stride() == torch.empty_like(x).stride()
    assert_within_budget(ours[0], plain[0], oracle[0], slack=8)
    size = oracle[1].abs() + 1 + doubles[1].abs()
    assert_within_budget(ours[1], plain[1], oracle[1], scale=size, slack=8)

    grads = torch.randn(x.shape).to(dtype), torch.randn(x.shape, dtype=ours[1].dtype)
    results = [
        torch.autograd.grad(
            out, tensors, [g.to(o.dtype) for g, o in zip(grads, out, strict=True)], materialize_grads=True
        )
        for out, tensors in ((ours, leaves), (plain, leaves), (oracle, doubles))
    ]
    for a, p, o, leaf in zip(*results, leaves, strict=True):
        assert a.dtype == leaf.dtype and a.shape == leaf.shape
        finite = torch.isfinite(o)
        size = o.abs() + (
            grads[0].double().abs() * oracle[0].abs() + grads[1].double().abs() if leaf.shape == x.shape else x.numel()
        )
        assert_within_budget(
            torch.where(finite, a, 0), torch.where(finite, p, 0), torch.where(finite, o, 0), scale=size, slack=32
        )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("make", LAYOUTS)
def test_reductions(kernels: str, make: Make, reduction: str) -> None:
    x, log_std = (t.detach().requires_grad_() for t in _activations(make, torch.float64, "log_uniform"))
    ours = fastib.information_dropout(x, log_std, rng=RNG, reduction=reduction)
    twin = reference.information_dropout(x, log_std, rng=RNG, reduction=reduction)
    torch.testing.assert_close(ours, twin, equal_nan=True)
    grads = [torch.randn(t.shape, dtype=t.dtype) for t in ours]
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, log_std), grads), torch.autograd.grad(twin, (x, log_std), grads), equal_nan=True
    )


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(kernels: str, options: dict[str, Any], reduction: str) -> None:
    x = (torch.rand(3, 7, dtype=torch.float64) + 0.1).requires_grad_()
    log_std, noise = (torch.randn(3, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    parameters = [t.requires_grad_() for t in _parameters(options["prior"], torch.float64).values()]

    def fixed(*t: torch.Tensor) -> Any:
        names = dict(zip(("prior_mean", "prior_log_std"), t[2:], strict=False))
        return fastib.information_dropout(*t[:2], **names, **options, rng=RNG, reduction=reduction)

    assert torch.autograd.gradcheck(fixed, (x, log_std, *parameters))
    assert torch.autograd.gradcheck(
        lambda n: fastib.information_dropout(x.detach(), log_std.detach(), mean_one=options["mean_one"], noise=n)[0],
        (noise,),
    )


def test_no_noise_with_a_reduction_over_the_first_dimension(kernels: str) -> None:
    t = torch.zeros(3, 5)
    with pytest.raises(RuntimeError, match="noise with a reduction over the first dimension"):
        _ops.information_dropout(t, t, None, None, None, RNG, False, True, False, Reduction.BATCH, 1)


@pytest.mark.parametrize("wanted", [3, *(pytest.param(one, marks=pytest.mark.thorough) for one in (1, 2))])
def test_opcheck(wanted: int) -> None:
    x, log_std, noise = torch.rand(5, 6) + 0.1, torch.randn(5, 6), torch.randn(5, 6)
    prior = torch.tensor(0.1), torch.tensor(-0.2)
    for log_normal, kind in itertools.product((False, True), range(3)):
        for source in ((noise, None), (None, RNG)):
            tensors = x, log_std, *(prior if log_normal else (None, None)), *source
            options = log_normal, True, True, kind, 2
            outputs = _ops.information_dropout(*tensors, *options)
            torch.library.opcheck(_ops.information_dropout, (*tensors, *options))
            for grads in (outputs, (outputs[0], None), (None, outputs[1])):
                torch.library.opcheck(_ops.information_dropout_backward, (*grads, *tensors, *options, wanted))


def test_log_normal_kl_is_that_of_the_normals_of_the_logarithms() -> None:
    """Against torch.distributions: KL(logN(a, s) || logN(b, t)) = KL(N(a, s) || N(b, t))."""
    x, log_std = torch.rand(50).double() + 0.1, torch.randn(50).double()
    for mean_one in (False, True):
        _, kl = fastib.information_dropout(
            x, log_std, prior="log_normal", prior_mean=0.4, prior_log_std=0.3, mean_one=mean_one, reduction="none"
        )
        std = log_std.exp()
        code = torch.distributions.Normal(x.log() - (std**2 / 2 if mean_one else 0), std)
        prior = torch.distributions.Normal(torch.tensor(0.4).double(), torch.tensor(math.exp(0.3)).double())
        torch.testing.assert_close(kl, torch.distributions.kl_divergence(code, prior), rtol=1e-6, atol=1e-6)


def test_zero_activations_are_free_only_if_masked() -> None:
    x, log_std = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    z, kl = fastib.information_dropout(x, log_std, reduction="none")
    assert kl.tolist() == [[0.0, 2.0, 0.0]] and z[0, 0] == 0 and z[0, 2] == 0
    kl.sum().backward()
    assert log_std.grad.tolist() == [[0.0, -1.0, 0.0]]
    _, kl = fastib.information_dropout(x, log_std, mask_zero=False, reduction="none")
    assert kl.tolist() == [[1.0, 2.0, 3.0]]


@pytest.mark.parametrize("mean_one", [False, True])
def test_mean_of_the_noise(kernels: str, mean_one: bool) -> None:
    n = 200_000 if kernels == "reference" else 2_000_000
    log_std = torch.full((n,), math.log(0.5))
    z, _ = fastib.information_dropout(torch.ones(n), log_std, mean_one=mean_one)
    mean = 1.0 if mean_one else math.exp(0.125)
    deviation = mean * math.sqrt((math.exp(0.25) - 1) / n)
    assert abs(z.double().mean().item() - mean) < 4 * deviation
    assert abs(z.double().log().std().item() - 0.5) < 4 * 0.5 / math.sqrt(2 * n)


def test_dead_units_do_not_reach_the_gradient_of_z(kernels: str) -> None:
    """log 0 is infinite; where only z is used, it must not appear."""
    x, log_std = torch.zeros(3, 9, requires_grad=True), torch.zeros(3, 9, requires_grad=True)
    z, kl = fastib.information_dropout(x, log_std, prior="log_normal")
    assert kl.isinf()
    assert all(g.isfinite().all() for g in torch.autograd.grad(z.sum(), (x, log_std)))


@pytest.mark.parametrize("prior", ["log_uniform", "log_normal"])
@pytest.mark.parametrize("mean_one", [False, True])
def test_noise_that_overflows_does_not_reach_the_gradient_of_the_kl(kernels: str, prior: str, mean_one: bool) -> None:
    leaves = [t.requires_grad_() for t in (torch.full((2, 9), 0.5), torch.full((2, 9), 5.0))]
    options = {"prior": prior, "mean_one": mean_one, "noise": torch.full((2, 9), torch.inf)}
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    _, kl = fastib.information_dropout(*leaves, **options)
    _, oracle = reference.information_dropout(*doubles, **{**options, "noise": torch.zeros(2, 9).double()})
    ours, theirs = (
        torch.autograd.grad(out, inputs, materialize_grads=True) for out, inputs in ((kl, leaves), (oracle, doubles))
    )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prior", ["log_uniform", "log_normal"])
@pytest.mark.parametrize("which", [0, 1])
def test_only_the_gradient_that_is_wanted_is_computed(kernels: str, which: int, prior: str) -> None:
    tensors = [torch.rand(1024, 51) + 0.1, torch.randn(1024, 51)]
    both, one = ([t.clone().requires_grad_(i in w) for i, t in enumerate(tensors)] for w in ((0, 1), (which,)))
    grads = torch.randn(1024, 51), torch.ones(())
    full = torch.autograd.grad(fastib.information_dropout(*both, rng=RNG, prior=prior), both, grads)
    with allocations() as allocated:
        (grad,) = torch.autograd.grad(fastib.information_dropout(*one, rng=RNG, prior=prior), one[which], grads)
    assert torch.equal(grad, full[which])
    assert allocated.bytes < 2 * tensors[0].nbytes + 4096 or kernels == "reference"  # z and the gradient


@pytest.mark.parametrize(
    "log_std, mean_one", [(-60.0, False), (-50.0, False), (-45.0, False), (45.0, True), (60.0, True), (60.0, False)]
)
def test_priors_far_from_unit(kernels: str, log_std: float, mean_one: bool) -> None:
    """The square of the prior's precision is no normal number; the squares of the quotients by its width are."""
    inputs = [torch.ones(2, 9), torch.full((2, 9), min(log_std, 3.0)), torch.zeros(()), torch.tensor(log_std)]
    leaves, doubles = ([t.to(dtype).requires_grad_() for t in inputs] for dtype in (torch.float32, torch.float64))
    kls = [
        fn(*t[:2], prior="log_normal", prior_mean=t[2], prior_log_std=t[3], mean_one=mean_one)[1]
        for fn, t in ((fastib.information_dropout, leaves), (reference.information_dropout, doubles))
    ]
    torch.testing.assert_close(kls[0].double(), kls[1], rtol=1e-5, atol=1e-5)
    grads = (torch.autograd.grad(kl, t) for kl, t in zip(kls, (leaves, doubles), strict=True))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("log_std", [5.0, 60.0])
def test_zero_stays_zero_under_noise_that_overflows(kernels: str, log_std: float) -> None:
    if kernels == "reference":
        return  # the plain expression: 0 times infinity
    x, log_stds = torch.tensor([[0.0, 1.0, 0.0, 1.0]]), torch.full((1, 4), log_std, requires_grad=True)
    noise = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    z, _ = fastib.information_dropout(x, log_stds, noise=noise)
    assert z.tolist() == [[0.0, torch.inf, 0.0, 0.0]]
    (grad,) = torch.autograd.grad(z, log_stds, torch.ones(1, 4))
    assert grad[0, 0] == 0 and grad[0, 2] == 0
    z, _ = fastib.information_dropout(x, log_stds, noise=torch.full((1, 4), torch.nan))
    assert z.isnan().all()


def test_what_is_not_finite_is_not_lost_under_noise_that_vanishes(kernels: str) -> None:
    x = torch.tensor([[1.0, -1.0, torch.nan, torch.inf, -torch.inf]])
    log_std = torch.full((1, 5), 88.0, requires_grad=True)
    z, _ = fastib.information_dropout(x, log_std, mask_zero=False, noise=torch.full((1, 5), -10.0))
    (grad,) = torch.autograd.grad(z.sum(), log_std)
    for found in (z, grad):
        assert (found[0, :2] == 0).all() and found[0, 2:].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_extremes_are_as_in_the_plain_expression(kernels: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """Activations of 0 and near it, and standard deviations that overflow or whose squares do: the results, and the
    gradients by autograd of the plain expression."""
    x = torch.tensor([0.0, 1e-7, 1.0, 2.0, 300.0]).to(dtype)
    log_std = torch.tensor([-200.0, -30.0, -1.0, 0.0, 20.0, 44.5, 60.0, 89.0, 200.0, 60000.0]).to(dtype)
    pairs = torch.cartesian_prod(x, log_std, torch.tensor([-1.5, 0.5]).to(dtype))
    x, log_std, noise = (column.contiguous() for column in pairs.unbind(1))
    found, expected = [], []
    for results, fn in ((found, fastib.information_dropout), (expected, reference.information_dropout)):
        leaves = x.clone().requires_grad_(), log_std.clone().requires_grad_()
        z, kl = fn(*leaves, noise=noise, reduction="none", **options)
        results += [z, kl, *torch.autograd.grad(z.sum(), leaves, retain_graph=True)]
        results += torch.autograd.grad(kl.sum(), leaves, allow_unused=True, materialize_grads=True)
    rtol = 2e-2 if dtype == torch.bfloat16 else 2e-3
    for ours, plain in zip(found, expected, strict=True):
        known = ~plain.isnan()  # else the plain expression is 0 times infinity, and ours may be the limit
        torch.testing.assert_close(ours[known], plain[known], rtol=rtol, atol=1e-4)


def test_same_bits_for_any_number_of_threads(kernels: str, threads: None) -> None:
    x, log_std, grad = torch.rand(301, 777), torch.randn(301, 777), torch.randn(301, 777)
    prior = torch.tensor(0.1), torch.tensor(-0.2)
    tail = (x, log_std, *prior, None, RNG, True, True, True, 2, 10)

    def run() -> tuple[torch.Tensor, ...]:
        z, kl = _ops.information_dropout(*tail)
        return z, kl, *_ops.information_dropout_backward(grad, kl, *tail, 3)

    assert_same_bits_for_threads(run)
