"""torch.func, derivatives of derivatives, and derivatives forwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from public import DETERMINISTIC, FUNCTIONS, LOSSES, STOCHASTIC, tensors
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import fastib

EXAMPLES = 5


def _inputs(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64) * 0.3


def _leaves(*shape: int) -> tuple[Tensor, Tensor]:
    mu, logvar = _inputs(*shape)
    return mu.requires_grad_(), logvar.requires_grad_()


def _loss(name: str, mu: Tensor, logvar: Tensor) -> Tensor:
    """Of all results, and not linear in them."""
    return sum((t**2).sum() for t in tensors(FUNCTIONS[name](mu, logvar)))  # type: ignore[return-value]


def _outputs(name: str, mu: Tensor, logvar: Tensor) -> tuple[Tensor, ...]:
    return tensors(FUNCTIONS[name](mu, logvar))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_by_differences(name: str) -> None:
    assert torch.autograd.gradgradcheck(partial(_outputs, name), _leaves(4, 3))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_derivatives_by_differences(name: str) -> None:
    assert torch.autograd.gradcheck(
        partial(_outputs, name), _leaves(4, 3), check_forward_ad=True, check_backward_ad=False
    )


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_third_derivatives(name: str) -> None:
    """By one number, against those of the same function in float64 by differences."""
    mu, logvar = _inputs(4, 3)

    def along(t: Tensor) -> Tensor:
        return _loss(name, mu + t, logvar - t * 0.5)

    t = torch.tensor(0.1, dtype=torch.float64)
    third = grad(grad(grad(along)))(t)
    step = 1e-4
    second = grad(grad(along))
    torch.testing.assert_close(third, (second(t + step) - second(t - step)) / (2 * step), rtol=1e-5, atol=1e-5)


def test_a_gradient_penalty_trains() -> None:
    """Through what the inputs were made of, as autograd and torch.func see it."""
    w = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)

    def cost(w: Tensor) -> Tensor:
        return fastib.gaussian_kl(w**2, w, free_bits=0.01) + fastib.gaussian_kl(w, w, w[0] ** 2, w[:, :1])

    (first,) = torch.autograd.grad(cost(w), w, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), w)
    expected = grad(lambda w: (grad(cost)(w) ** 2).sum())(w.detach())
    torch.testing.assert_close(second, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_graph_of_the_gradients_changes_none(name: str) -> None:
    """They are the kernel's in any case, bit for bit."""
    mu, logvar = (t.float().requires_grad_() for t in _inputs(6, 3))
    plain = torch.autograd.grad(_loss(name, mu, logvar), (mu, logvar))
    graphed = torch.autograd.grad(_loss(name, mu, logvar), (mu, logvar), create_graph=True)
    transformed = grad(partial(_loss, name), (0, 1))(mu.detach(), logvar.detach())
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(plain, graphed, transformed, strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jacobians_and_hessians(name: str) -> None:
    inputs = _inputs(4, 3)
    outputs, loss = partial(_outputs, name), partial(_loss, name)
    torch.testing.assert_close(jacrev(outputs, (0, 1))(*inputs), jacfwd(outputs, (0, 1))(*inputs))
    by_autograd = torch.autograd.functional.hessian(loss, inputs)
    torch.testing.assert_close(hessian(loss, (0, 1))(*inputs), by_autograd)


def _of_each(fn: Callable[..., object], *examples: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(
        torch.stack(t) for t in zip(*(tensors(fn(*each)) for each in zip(*examples, strict=True)), strict=True)
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_is_a_loop(name: str) -> None:
    """Over both inputs, over one along another dimension, and over two dimensions."""
    outputs, (mu, logvar) = partial(_outputs, name), _inputs(EXAMPLES, 4, 3)
    torch.testing.assert_close(vmap(outputs)(mu, logvar), _of_each(outputs, list(mu), list(logvar)))
    shared = _of_each(lambda m: outputs(m, logvar[0]), list(mu))
    torch.testing.assert_close(vmap(outputs, (2, None))(mu.permute(1, 2, 0), logvar[0]), shared)
    nested = vmap(vmap(outputs, (0, None)), (None, 0))(mu[:2], logvar)
    for i, each in enumerate(logvar):
        expected = _of_each(lambda m, each=each: outputs(m, each), list(mu[:2]))
        torch.testing.assert_close(tuple(t[i] for t in nested), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_of_each_example(name: str) -> None:
    """By inputs of their own, and by one that they share."""
    gradient, (mu, logvar) = grad(partial(_loss, name), (0, 1)), _inputs(EXAMPLES, 4, 3)
    torch.testing.assert_close(vmap(gradient)(mu, logvar), _of_each(gradient, list(mu), list(logvar)))
    shared = _of_each(lambda m: gradient(m, logvar[0]), list(mu))
    torch.testing.assert_close(vmap(gradient, (0, None))(mu, logvar[0]), shared)


def test_gradients_of_each_sample_of_a_model() -> None:
    """By the parameters of an encoder: as many backward passes give the same."""
    encoder, x = torch.nn.Linear(6, 8).double(), torch.randn(EXAMPLES, 6, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], sample: Tensor, rng: Tensor) -> Tensor:
        mu, logvar = functional_call(encoder, parameters, (sample[None],)).chunk(2, -1)
        z, kl = fastib.reparameterize_with_kl(mu, logvar, rng=rng)
        return kl + (z**2).sum()

    parameters, rngs = dict(encoder.named_parameters()), torch.arange(2 * EXAMPLES).view(EXAMPLES, 2)
    found = vmap(grad(loss), (None, 0, 0))({k: v.detach() for k, v in parameters.items()}, x, rngs)
    for i in range(EXAMPLES):
        expected = torch.autograd.grad(loss(parameters, x[i], rngs[i]), tuple(parameters.values()))
        for each, one in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(each[i], one)


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_randomness_of_vmap(name: str, compiled: bool) -> None:
    """Refused unless it is said; then the same for all examples, or not; and the gradient sees the noise of its own."""
    zero = torch.zeros(EXAMPLES, 4, 3)

    def outputs(mu: Tensor) -> tuple[Tensor, ...]:
        return tensors(STOCHASTIC[name](mu, torch.zeros(4, 3)))

    def drawn(randomness: str) -> Tensor:
        fn = vmap(outputs, randomness=randomness)
        torch._dynamo.reset()
        return (torch.compile(fn, fullgraph=True, backend="aot_eager") if compiled else fn)(zero + 0.5)[0]

    torch.use_deterministic_algorithms(False)
    with pytest.raises(RuntimeError, match="random"):
        drawn("error")
    same, different = drawn("same"), drawn("different")
    assert all(torch.equal(same[0], each) for each in same)
    assert not any(torch.equal(different[0], each) for each in different[1:])


def test_gradients_of_noise_that_differs() -> None:
    def sample(logvar: Tensor) -> tuple[Tensor, Tensor]:
        z = fastib.reparameterize(torch.zeros(3), logvar)
        return z.sum(), z

    gradients, z = vmap(grad(sample, has_aux=True), randomness="different")(torch.zeros(EXAMPLES, 3))
    assert len(set(z.flatten().tolist())) == z.numel()
    torch.testing.assert_close(gradients, z / 2)


def test_directional_derivatives_and_duals() -> None:
    inputs, tangents = _inputs(4, 3), _inputs(4, 3)
    for name in FUNCTIONS:
        outputs = partial(_outputs, name)
        _, forwards = jvp(outputs, inputs, tangents)
        values, pull = vjp(outputs, *inputs)
        weights = tuple(torch.randn_like(t) for t in values)
        backwards = pull(weights)
        torch.testing.assert_close(
            sum((w * t).sum() for w, t in zip(weights, forwards, strict=True)),
            sum((g * t).sum() for g, t in zip(backwards, tangents, strict=True)),
        )
        with forward_ad.dual_level():
            duals = outputs(*map(forward_ad.make_dual, inputs, tangents))
            assert all(
                torch.equal(forward_ad.unpack_dual(dual).tangent, forward)
                for dual, forward in zip(duals, forwards, strict=True)
            )


def test_what_a_transform_has_left_behind() -> None:
    """A tensor that outlives its transform is the one that it wraps."""
    kept = []

    def fn(mu: Tensor) -> Tensor:
        kept.append(mu * 2)
        return fastib.gaussian_kl(mu, mu)

    mu = torch.randn(4, 3)
    grad(fn)(mu)
    assert torch.equal(fastib.gaussian_kl(kept[0], kept[0]), fastib.gaussian_kl(mu * 2, mu * 2))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_as_modules(name: str) -> None:
    """Gradients, those of each example and forward ones, of outputs of every precision."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):

        def loss(mu: Tensor, logvar: Tensor) -> Tensor:
            return LOSSES[name](mu, logvar).loss  # type: ignore[attr-defined]

        mu, logvar = (t.to(dtype) for t in _inputs(EXAMPLES, 4, 3))
        gradient = grad(loss, (0, 1))
        leaves = mu[0].clone().requires_grad_(), logvar[0].clone().requires_grad_()
        by_autograd = torch.autograd.grad(loss(*leaves), leaves)
        tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
        close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
        close(gradient(mu[0], logvar[0]), by_autograd)
        close(vmap(gradient)(mu, logvar), _of_each(gradient, list(mu), list(logvar)))
        _, forward = jvp(loss, (mu[0], logvar[0]), (logvar[0], mu[0]))
        directional = (by_autograd[0] * logvar[0]).sum() + (by_autograd[1] * mu[0]).sum()
        close(forward, directional.to(forward.dtype))


# But free bits, which are scaled by a number: of no examples, PyTorch's vmap doesn't know how.
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.startswith("free_bits")])
def test_no_examples_at_all(name: str) -> None:
    none = torch.zeros(0, 4, 3)
    one = _outputs(name, none.new_ones(4, 3), none.new_ones(4, 3))
    assert [t.shape for t in vmap(partial(_outputs, name))(none, none)] == [(0, *t.shape) for t in one]
