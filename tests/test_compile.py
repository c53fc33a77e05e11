"""torch.compile, torch.export and recomputation: one graph for all batches, the bits of the eager call, and one noise
for both passes."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._functorch.config
from public import EACH, EVERYTHING, FUNCTIONS, LOSSES, STOCHASTIC, tensors
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import fastib
from fastib.losses import AnnealedVAELoss, BetaTCVAELoss, BetaVAELoss
from fastib.schedules import Cosine, Cyclic, Linear, Schedule

DIMS = 7
INDUCTOR = pytest.param("inductor", marks=pytest.mark.thorough)  # it asks a C++ compiler


@pytest.fixture(autouse=True)
def compiling(poisoned_memory: None) -> None:
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()


def _inputs(batch: int, dims: int = DIMS) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, dims, requires_grad=True), torch.randn(batch, dims, requires_grad=True)


def _results(fn: Callable[..., Any], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Outputs, and the gradients of their sum."""
    out = tensors(fn(*inputs))
    total = sum(t.sum() for t in out if t.requires_grad)
    return *out, *(g for g in torch.autograd.grad(total, inputs, allow_unused=True) if g is not None)


@pytest.mark.parametrize("name", EACH)
def test_one_graph_and_the_same_bits_for_every_batch(name: str) -> None:
    """More batches than dynamo compiles anew."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(EVERYTHING[name], fullgraph=True, backend=counter, dynamic=True)
    _results(compiled, *_inputs(5))
    once = counter.frame_count
    for batch in (8, 13, 64, 37, 99, 2, 50, 51, 52, 53):
        inputs = _inputs(batch)
        for a, b in zip(_results(compiled, *inputs), _results(EVERYTHING[name], *inputs), strict=True):
            assert torch.equal(a, b), batch
    assert counter.frame_count == once


@pytest.mark.parametrize("name", EACH)
def test_inductor_changes_no_bit(name: str) -> None:
    """But those of PyTorch's own sum in a reconstruction."""
    compiled = torch.compile(EVERYTHING[name], fullgraph=True, dynamic=True)
    for batch in (5, 99):
        inputs = _inputs(batch)
        for a, b in zip(_results(compiled, *inputs), _results(EVERYTHING[name], *inputs), strict=True):
            if name in LOSSES or name == "information_dropout_log_normal":  # which has a mean for its prior
                torch.testing.assert_close(a, b)
            else:
                assert torch.equal(a, b), batch


@pytest.mark.parametrize("name", ["reparameterize", "reparameterize_with_kl", "information_dropout"])
def test_inductor_changes_no_bit_of_the_gradient_of_noise(name: str) -> None:
    mu, logvar, noise = (torch.randn(50, 7, requires_grad=True) for _ in range(3))
    eager, compiled = STOCHASTIC[name], torch.compile(STOCHASTIC[name], fullgraph=True)
    ours, expected = (
        torch.autograd.grad(tensors(f(mu, logvar, noise=noise))[0].sum(), noise) for f in (compiled, eager)
    )
    assert torch.equal(*ours, *expected)


def test_automatic_dynamic_shapes_compile_twice() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(EVERYTHING["BetaTCVAELoss"], fullgraph=True, backend=counter)
    for batch in range(5, 25):
        compiled(*_inputs(batch))
    assert counter.frame_count == 2


def test_compiles_with_numbers_that_vary() -> None:
    """Dynamo makes them symbolic, and so their checks."""

    def f(mu: Tensor, logvar: Tensor, free_bits: float, beta: float) -> Tensor:
        kl = fastib.gaussian_kl(mu, logvar, free_bits=free_bits)
        element = fastib.gaussian_kl(mu, logvar, free_bits=free_bits, free_bits_per="element")
        return kl + element + BetaVAELoss(beta)(mu, mu.sigmoid(), mu, logvar).loss

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for size, number in ((5, 0.25), (6, 0.5), (7, 0.75)):
        inputs = [torch.randn(8, size) for _ in range(2)]
        torch.testing.assert_close(compiled(*inputs, number, number), f(*inputs, number, number))


@pytest.mark.parametrize("estimator", ["mss", "mws", "in_batch"])
def test_the_ceiling_of_the_information_comes_with_the_terms(estimator: str) -> None:
    def f(mu: Tensor, logvar: Tensor) -> fastib.ELBODecomposition:
        return fastib.elbo_decomposition(mu, mu, logvar, 1000, estimator=estimator)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (5, 8):
        ours, expected = (fn(*_inputs(batch)).mutual_information_ceiling for fn in (compiled, f))
        assert ours == expected < float("inf")


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_noise_is_new_in_each_call(backend: str) -> None:
    """In each call of a graph, too; and repeated after torch.manual_seed."""

    def f(zero: Tensor, logvar: Tensor) -> tuple[Tensor, ...]:
        z, _ = fastib.reparameterize_with_kl(zero, logvar)
        y, _ = fastib.information_dropout(zero + 1, logvar)
        return fastib.reparameterize(zero, logvar), z, y

    compiled = torch.compile(f, fullgraph=True, backend=backend)
    zero, logvar = torch.zeros(50, 3), torch.zeros(50, 3, requires_grad=True)
    torch.manual_seed(3)
    first, second = compiled(zero, logvar), compiled(zero, logvar)
    torch.manual_seed(3)
    repeated = compiled(zero, logvar)
    assert all(torch.equal(a, b) for a, b in zip(first, repeated, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])
    for out, expected in zip(first, (first[0] / 2, first[1] / 2, first[2] * first[2].log()), strict=True):
        (grad,) = torch.autograd.grad(out.sum(), logvar, retain_graph=True)
        torch.testing.assert_close(grad, expected.detach())


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_seed_gives_what_it_gives_without_the_compiler(name: str, backend: str) -> None:
    compiled, inputs = torch.compile(STOCHASTIC[name], fullgraph=True, backend=backend), _inputs(9)
    for _ in range(2):
        state = torch.get_rng_state()
        ours = tensors(compiled(*inputs))
        torch.set_rng_state(state)
        for a, b in zip(ours, tensors(STOCHASTIC[name](*inputs)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# With rng or without, both passes have one noise: with z = mu + e^(logvar / 2) eps, dz/dlogvar is (z - mu) / 2.


def _activation(rng: Tensor | None, mu: Tensor, logvar: Tensor) -> Tensor:
    """Cheap operations around the noise, which a partitioner would rather repeat than save."""
    return fastib.reparameterize(mu.sin(), logvar.cos(), rng=rng).mul(2).sigmoid()


def _assert_one_noise(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    mu, logvar = _inputs(64, 8)
    out = fn(mu, logvar)
    z = torch.logit(out.detach()) / 2
    (grad,) = torch.autograd.grad(out.sum(), logvar)
    chain = 2 * out.detach() * (1 - out.detach()) * -logvar.detach().sin()
    torch.testing.assert_close(grad, chain * (z - mu.detach().sin()) / 2, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rng", [None, torch.tensor([5, 6])], ids=["drawn", "given"])
@pytest.mark.parametrize("backend", [None, "aot_eager", INDUCTOR])
def test_activation_checkpointing_repeats_the_noise(backend: str | None, rng: Tensor | None) -> None:
    def f(mu: Tensor, logvar: Tensor) -> Tensor:
        return checkpoint(functools.partial(_activation, rng), mu, logvar, use_reentrant=False)

    _assert_one_noise(f if backend is None else torch.compile(f, fullgraph=True, backend=backend))


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("budget", [0.6, 0.2, 0.01])
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_a_partitioner_that_saves_memory_keeps_the_noise(backend: str, budget: float, checkpointed: bool) -> None:
    """PyTorch's own noise, it draws again: with torch.randn_like in its place this fails."""
    f = functools.partial(_activation, None)
    inner = functools.partial(checkpoint, f, use_reentrant=False) if checkpointed else f
    with torch._functorch.config.patch(activation_memory_budget=budget):
        _assert_one_noise(torch.compile(inner, fullgraph=True, backend=backend))


@pytest.mark.parametrize("name", STOCHASTIC)
def test_checkpoints_recompute_every_stochastic_function(name: str) -> None:
    """With a graph of the gradients, too: what is saved is given out once."""
    inputs = _inputs(6)
    for graph in (False, True):
        grads = []
        for run in (STOCHASTIC[name], functools.partial(checkpoint, STOCHASTIC[name], use_reentrant=False)):
            torch.manual_seed(0)
            total = sum(t.sum() for t in tensors(run(*inputs)))
            grads.append(torch.autograd.grad(total, inputs, create_graph=graph))
        assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


class _VAE(nn.Module):
    """A model with the losses inside."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder, self.criterion = nn.Linear(12, 8), nn.Linear(4, 12), criterion

    def forward(self, x: Tensor, rng: Tensor | None = None) -> Tensor:
        mu, logvar = self.encoder(x).chunk(2, -1)
        z, _ = fastib.reparameterize_with_kl(mu, logvar, rng=rng)
        sample = (z,) if isinstance(self.criterion, BetaTCVAELoss) else ()
        loss: Tensor = self.criterion(self.decoder(z), x, *sample, mu, logvar).loss
        return loss + fastib.log_variance_penalty(logvar)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "criterion",
    [
        BetaVAELoss(4.0),
        BetaVAELoss(free_bits=0.1),
        AnnealedVAELoss(10.0, 5.0, 100),
        BetaTCVAELoss(dataset_size=1000),
        BetaTCVAELoss(dataset_size=1000, estimator="mws"),
    ],
    ids=["beta", "free_bits", "annealed", "tc", "tc_mws"],
)
def test_exports(criterion: nn.Module, strict: bool) -> None:
    """A model with its losses, for any batch; saved, loaded, and run."""
    model, x, rng = _VAE(criterion), torch.rand(16, 12), torch.tensor([3, 4])
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=1000)}, "rng": None}
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x, rng), dynamic_shapes=shapes, strict=strict), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (16, 37):
        x = torch.rand(batch, 12)
        torch.testing.assert_close(loaded(x, rng), model(x, rng))
    drawn = torch.export.export(model, (x,), strict=strict).module()
    assert not torch.equal(drawn(x), drawn(x))


class _Encoded(nn.Module):
    """A function or loss of what a trained layer gives."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder, self.name = nn.Linear(12, 8), name

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mu, logvar = self.encoder(x).chunk(2, -1)
        out = tensors(EVERYTHING[self.name](mu, logvar * 0.3))
        return out[:1] if self.name in LOSSES else out


def _values_and_gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    out = model(x)
    return *out, *torch.autograd.grad(sum(t.sum() for t in out), tuple(model.parameters()))


@pytest.mark.thorough
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", EVERYTHING)
def test_an_exported_model_trains(name: str, strict: bool) -> None:
    """Saved and loaded, of any batch, with the bits of the model's own values and gradients; and when compiled, and in
    the graph for inference, where PyTorch takes its own likelihoods apart."""
    model, file = _Encoded(name), io.BytesIO()
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=1000)}}
    program = torch.export.export(model, (torch.rand(16, 12),), dynamic_shapes=shapes, strict=strict)
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    module, decomposed = loaded.module(), loaded.run_decompositions().module()
    for batch in (16, 37):
        x = torch.rand(batch, 12)
        expected = _values_and_gradients(model, x)
        for exported in (module, torch.compile(module, backend="aot_eager")):
            for a, b in zip(_values_and_gradients(exported, x), expected, strict=True):
                assert torch.equal(a, b), batch
        torch.testing.assert_close(_values_and_gradients(decomposed, x), expected)


@pytest.mark.parametrize("name", ["BetaVAELoss", "BetaTCVAELoss", "elbo_decomposition"])
def test_an_exported_model_may_return_the_tuple(name: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> object:
            return EVERYTHING[name](x, x * 0.3)

    x, file = torch.rand(4, 3), io.BytesIO()
    torch.export.save(torch.export.export(Model(), (x,)), file)
    file.seek(0)
    found, expected = torch.export.load(file).module()(x), Model()(x)
    assert type(found) is type(expected) and all(map(torch.equal, found, expected))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_exported_model_in_transforms(name: str) -> None:
    """And derivatives of its gradients."""
    model, x = _Encoded(name), torch.rand(5, 12)
    exported = torch.export.export(model, (x,)).module()

    def second(model: nn.Module) -> tuple[Tensor, ...]:
        parameters = tuple(model.parameters())
        first = torch.autograd.grad(sum((t**2).sum() for t in model(x)), parameters, create_graph=True)
        return torch.autograd.grad(sum((t**2).sum() for t in first), parameters)

    def gradient(model: nn.Module) -> dict[str, Tensor]:
        parameters = {key: value.detach() for key, value in model.named_parameters()}
        return grad(lambda p: sum((t**2).sum() for t in functional_call(model, p, (x,))))(parameters)

    torch.testing.assert_close(second(exported), second(model))
    torch.testing.assert_close(gradient(exported), gradient(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strict", [False, True])
def test_every_reduction_and_batch_exports(strict: bool) -> None:
    """Up to the whole data set."""

    class All(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = fastib.gaussian_kl(x, x, reduction="mean") + fastib.log_variance_penalty(x, reduction="mean")
            mean = mean + fastib.gaussian_kl(x, x, free_bits=0.1, reduction="mean")
            return mean + fastib.aggregate_posterior(x, x, x, dataset_size=1000)[1].mean()

    x = torch.randn(5, 3)
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=1000)}}
    exported = torch.export.export(All(), (x,), dynamic_shapes=shapes, strict=strict).module()
    for batch in (5, 9, 1000):
        x = torch.randn(batch, 3)
        torch.testing.assert_close(exported(x), All()(x))


class _Quadratic(Schedule):
    """Of a user's own."""

    def at(self, step: int) -> float:
        return 0.5 * step**2


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize(
    "schedule",
    [Linear(0.0, 4.0, 20), Cosine(1.0, 5.0, 20), Cyclic(0.0, 4.0, 7), _Quadratic()],
    ids=lambda schedule: type(schedule).__name__,
)
def test_one_graph_of_a_schedule_that_steps(schedule: Schedule, backend: str) -> None:
    """Through all its course, and on from there without the graph."""
    schedule = copy.deepcopy(schedule)

    def step(x: Tensor) -> Tensor:
        schedule.step()
        return x + schedule.value

    counter, zero = CompileCounterWithBackend(backend), torch.zeros(1, dtype=torch.float64)
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for steps in range(1, 25):
        assert compiled(zero).item() == pytest.approx(schedule.at(steps), rel=1e-15, abs=1e-15)
        assert schedule.steps == steps and schedule.get_extra_state() == {"steps": steps}
    assert counter.frame_count == 1
    schedule.step()
    assert schedule.value.item() == schedule.at(25)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize(
    "of", [BetaVAELoss, lambda schedule: AnnealedVAELoss(10.0, schedule)], ids=["beta", "annealed"]
)
def test_a_schedule_may_step_before_the_backward_pass(of: Callable[[Linear], Any], backend: str) -> None:
    criterion, output, target = of(Linear(0.0, 4.0, 10)), torch.randn(4, 3, requires_grad=True), torch.rand(4, 3)
    criterion.step()

    def loss(output: Tensor) -> Tensor:
        return criterion(output, target, output, output * 0.5).loss

    (expected,) = torch.autograd.grad(loss(output), output)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)(output)
    criterion.step()
    torch.testing.assert_close(torch.autograd.grad(compiled, output)[0], expected)


# torch.func inside the graph, where an autograd.Function would not be asked for its gradient.


@pytest.mark.thorough
@pytest.mark.parametrize("name", EVERYTHING)
def test_second_derivatives_in_a_graph(name: str) -> None:
    def loss(mu: Tensor, logvar: Tensor) -> Tensor:
        out = tensors(EVERYTHING[name](mu, logvar))
        return sum((t**2).sum() for t in out[: 1 if name in LOSSES else None])  # type: ignore[return-value]

    def second(mu: Tensor, logvar: Tensor) -> Tensor:
        return grad(lambda mu: (grad(loss)(mu, logvar) ** 2).sum())(mu)

    mu, logvar = (t.detach().double() * 0.3 for t in _inputs(4, 3))
    compiled = torch.compile(second, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(mu, logvar), second(mu, logvar), rtol=1e-6, atol=1e-7)


@pytest.mark.thorough
@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_drawn_in_transforms_in_a_graph(name: str) -> None:
    """With the same seed, the gradients of the eager call; in vmap, other ones for each example."""

    def loss(mu: Tensor, logvar: Tensor) -> Tensor:
        return tensors(STOCHASTIC[name](mu, logvar))[0].sum()

    inputs = torch.full((4, 3), 0.5), torch.zeros(4, 3)
    results = []
    for fn in (grad(loss, (0, 1)), torch.compile(grad(loss, (0, 1)), fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        results.append(fn(*inputs))
    torch.testing.assert_close(*results)
    of_each = vmap(grad(loss, (0, 1)), randomness="different")
    _, by_logvar = torch.compile(of_each, fullgraph=True, backend="aot_eager")(*(t.expand(2, 4, 3) for t in inputs))
    assert not torch.equal(*by_logvar)


_SHARED = torch.randn(4, 3, dtype=torch.float64) * 0.3
_OF_ONE: dict[str, Callable[[Tensor], Any]] = {
    **{f"{name}_mu": lambda t, f=f: tensors(f(t, _SHARED)) for name, f in FUNCTIONS.items()},
    **{f"{name}_logvar": lambda t, f=f: tensors(f(_SHARED, t)) for name, f in FUNCTIONS.items()},
    "noise": lambda t: fastib.reparameterize(_SHARED, _SHARED, noise=t),
    "noise_with_kl": lambda t: fastib.reparameterize_with_kl(_SHARED, _SHARED, noise=t),
    "noise_of_dropout": lambda t: fastib.information_dropout(_SHARED.exp(), _SHARED, noise=t),
    "rng": lambda t: fastib.reparameterize(_SHARED, _SHARED, rng=t.flatten()[:2].long()),
    "priors": lambda t: fastib.gaussian_kl(_SHARED, _SHARED, t, t, reduction="none"),
    "log_weights": lambda t: fastib.aggregate_posterior(_SHARED, _SHARED, _SHARED, log_weights=t @ t.mT),
    "z": lambda t: tuple(fastib.elbo_decomposition(t, _SHARED, _SHARED, 100)),
    "mu": lambda t: tuple(fastib.elbo_decomposition(_SHARED, t, _SHARED, 100)),
    "logvar": lambda t: tuple(fastib.elbo_decomposition(_SHARED, _SHARED, t, 100)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", _OF_ONE)
def test_vmap_over_one_of_the_inputs_in_a_graph(name: str) -> None:
    fn, examples = vmap(_OF_ONE[name]), torch.randn(2, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(fn, fullgraph=True, backend="aot_eager")(examples), fn(examples))


@pytest.mark.thorough
@pytest.mark.parametrize("name", EVERYTHING)
def test_one_graph_of_a_gradient_serves_all_batches(name: str) -> None:
    """Those of each example, and forward ones, serve some: PyTorch compiles them anew for each size."""

    def loss(mu: Tensor, logvar: Tensor) -> Tensor:
        out = tensors(EVERYTHING[name](mu, logvar))
        return sum((t**2).sum() for t in out[: 1 if name in LOSSES else None])  # type: ignore[return-value]

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(grad(loss, (0, 1)), fullgraph=True, backend=counter)
    for batch in range(5, 15):
        inputs = [t.detach().double() * 0.3 for t in _inputs(batch, 3)]
        torch.testing.assert_close(compiled(*inputs), grad(loss, (0, 1))(*inputs), rtol=1e-6, atol=1e-7)
    assert counter.frame_count <= 2
    compiled = torch.compile(vmap(grad(loss, (0, 1))), fullgraph=True, backend="aot_eager")
    forwards = torch.compile(lambda a, b: jvp(loss, (a, b), (b, a))[1], fullgraph=True, backend="aot_eager")
    for batch in (5, 6):
        inputs = [torch.randn(2, batch, 3).double() * 0.3 for _ in range(2)]
        torch.testing.assert_close(compiled(*inputs), vmap(grad(loss, (0, 1)))(*inputs), rtol=1e-6, atol=1e-7)
        mu, logvar = inputs[0][0], inputs[1][0]
        expected = jvp(loss, (mu, logvar), (logvar, mu))[1]
        torch.testing.assert_close(forwards(mu, logvar), expected, rtol=1e-6, atol=1e-7)


def test_a_graph_in_transforms() -> None:
    mu = torch.randn(4, 3)
    compiled = torch.compile(fastib.gaussian_kl, backend="aot_eager")
    torch.testing.assert_close(grad(compiled)(mu, mu), grad(fastib.gaussian_kl)(mu, mu))


def test_a_tensor_that_comes_twice() -> None:
    """As the sample and the mean, or the prior and the posterior."""

    def f(mu: Tensor, logvar: Tensor) -> Tensor:
        terms = fastib.elbo_decomposition(mu, mu, logvar, 1000)
        return sum(terms) + fastib.gaussian_kl(mu, mu) + fastib.gaussian_kl(mu, logvar, logvar, mu)

    inputs = _inputs(6)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for a, b in zip(_results(compiled, *inputs), _results(f, *inputs), strict=True):
        torch.testing.assert_close(a, b)
