"""What a training script does around the losses: mixed precision, modules that are copied and saved, data loaders."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from devices import allocations
from public import DETERMINISTIC, EVERYTHING, FUNCTIONS, RNG, STOCHASTIC, tensors
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

import fastib
from fastib import reference
from fastib.losses import AnnealedVAELoss, BetaTCVAELoss, BetaVAELoss
from fastib.schedules import Cosine, Cyclic, Linear, Schedule

LOW = [torch.bfloat16, torch.float16]
N = 10_000


# Mixed precision.


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_changes_nothing_of_what_is_low_already(name: str, dtype: torch.dtype) -> None:
    """Losses in float32, samples and gradients in the dtype of the inputs, the bits of the same call without it."""
    inputs = [torch.randn(8, 5).to(dtype).requires_grad_() for _ in range(2)]
    results = []
    for enabled in (True, False):
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            out = tensors(FUNCTIONS[name](*inputs))
        results.append((*out, *torch.autograd.grad(sum(t.float().sum() for t in out), inputs)))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(*results, strict=True))
    assert results[0][-1].dtype == dtype
    assert all(t.dtype == torch.float32 or (t.dtype == dtype and name in STOCHASTIC) for t in results[0][:-2])


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_autocast_brings_several_dtypes_together(dtype: torch.dtype) -> None:
    """In the widest, as PyTorch promotes; without it they are an error, which names them."""
    mu, logvar, prior = torch.randn(8, 5).to(dtype).requires_grad_(), torch.randn(8, 5), torch.randn(5)
    z = torch.randn(8, 5)
    calls: dict[str, Callable[[Any], Any]] = {
        "reparameterize": lambda m: m.reparameterize(mu, logvar, rng=RNG),
        "with_kl": lambda m: m.reparameterize_with_kl(logvar, mu, rng=RNG),
        "noise": lambda m: m.reparameterize(mu, mu, noise=z),
        "kl": lambda m: m.gaussian_kl(mu, logvar),
        "prior": lambda m: m.gaussian_kl(mu, mu, prior, prior),
        "dropout": lambda m: m.information_dropout(mu.exp(), logvar, rng=RNG),
        "posterior": lambda m: m.aggregate_posterior(z, mu, mu, dataset_size=N),
        "decomposition": lambda m: m.elbo_decomposition(z, mu, logvar, N),
    }
    for call in calls.values():
        with torch.autocast("cpu", dtype=dtype):
            ours, theirs = (tensors(call(module)) for module in (fastib, reference))
            (grad,) = torch.autograd.grad(sum(t.sum() for t in ours), mu)
        assert grad.dtype == dtype and all(t.dtype == torch.float32 for t in ours)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        with pytest.raises(TypeError, match=r"must have the dtype of"):
            call(fastib)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_no_copy_in_float32(dtype: torch.dtype) -> None:
    """Of what is allocated in both passes, all is outputs and gradients, in their own dtype, and small change."""
    mu, logvar = (torch.randn(256, 1024).to(dtype).requires_grad_() for _ in range(2))
    low = mu.numel() * dtype.itemsize
    # Samples and gradients; that of `reparameterize` by mu is the incoming one.
    sizes = {"reparameterize": 1 + 1, "reparameterize_with_kl": 1 + 2, "gaussian_kl": 2, "information_dropout": 1 + 2}
    for name, count in sizes.items():
        fn = getattr(fastib, name)
        with torch.autocast("cpu", dtype=dtype):
            fn(mu, logvar)  # what the first call makes for good
            with allocations() as found:
                out = tensors(fn(mu, logvar))
                upstream = [torch.ones((), dtype=t.dtype).expand(t.shape) for t in out]
                torch.autograd.grad(out, (mu, logvar), upstream)
        assert found.bytes <= count * low + 8192, name


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_reconstruction_makes_no_copy_in_float32(likelihood: str, dtype: torch.dtype) -> None:
    """And is that of a copy in float32, with its gradients by output and target. At its peak it holds the gradient, and
    the pieces that it is made of."""
    output, target = torch.randn(64, 3, 64, 64).to(dtype).requires_grad_(), torch.rand(64, 3, 64, 64).to(dtype)
    criterion, kl = BetaVAELoss(likelihood=likelihood), torch.zeros(())
    assert _peak(criterion, output, target, kl) < 2 * output.numel() * dtype.itemsize + 2**20
    target.requires_grad_()
    loss = criterion(output, target, kl=kl).loss
    assert loss.dtype == torch.float32
    ours = torch.autograd.grad(criterion(output, target, kl=kl).loss, (output, target))
    wide = [t.detach().float().requires_grad_() for t in (output, target)]
    expected = criterion(*wide, kl=kl).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for a, b in zip(ours, torch.autograd.grad(expected, wide), strict=True):
        torch.testing.assert_close(a, b.to(dtype), rtol=0.01, atol=1e-7)


def _peak(criterion: BetaVAELoss, output: Tensor, target: Tensor, kl: Tensor) -> int:
    """The most that both passes hold at once, beyond what there was."""
    with torch.profiler.profile(profile_memory=True) as profile:
        torch.autograd.grad(criterion(output, target, kl=kl).loss, output)
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def _train(plain: bool, dtype: torch.dtype) -> list[Tensor]:
    """Losses of steps with autocast and a GradScaler, on data whose codes are large."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(16, 2 * 64), nn.Linear(64, 16)
    with torch.no_grad():
        encoder.bias[:64] = 200.0  # in float16, the sum of their squares is infinite
    optimiser = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=1e-4)
    scaler, losses = torch.amp.GradScaler("cpu", init_scale=2.0**10), []
    for _ in range(8):
        x = torch.rand(32, 16)
        with torch.autocast("cpu", dtype=dtype):
            mu, logvar = encoder(x).chunk(2, -1)
            if plain:
                z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
                kl = (mu**2 + torch.expm1(logvar) - logvar).sum() / 2 / len(mu)
            else:
                z, kl = fastib.reparameterize_with_kl(mu, logvar)
            loss = BetaVAELoss()(decoder(z), x, kl=kl).loss
        losses.append(loss.detach())
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
    return losses


def test_a_scaled_run_is_finite_where_the_plain_expression_overflows() -> None:
    ours, plain = _train(False, torch.float16), _train(True, torch.float16)
    assert all(loss.isfinite() for loss in ours) and ours[-1] < ours[0]
    assert not all(loss.isfinite() for loss in plain)


# Modules.


def _schedules() -> list[nn.Module]:
    return [
        BetaVAELoss(Linear(0.0, 4.0, 10), free_bits=0.1),
        AnnealedVAELoss(10.0, Cosine(0.0, 5.0, 8), per="sample"),
        BetaTCVAELoss(Linear(0.0, 1.0, 10), Cyclic(1.0, 6.0, 8, ramp=0.5), dataset_size=N, likelihood="gaussian"),
    ]


def _loss(criterion: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    output, z, mu, logvar = (torch.rand(6, 4, generator=generator) for _ in range(4))
    sample = (z,) if isinstance(criterion, BetaTCVAELoss) else ()
    loss: Tensor = criterion(output, output.sigmoid(), *sample, mu, logvar).loss
    return loss


def _saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, _saved, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("which", range(3))
def test_a_loss_in_the_middle_of_its_schedules(which: int, again: Callable[[nn.Module], nn.Module]) -> None:
    """Goes on from there when it is copied, pickled or saved, and when its state is loaded into another."""
    criterion = _schedules()[which]
    for _ in range(3):
        criterion.step()
    others = [again(criterion), _schedules()[which]]
    others[1].load_state_dict(criterion.state_dict())
    assert torch.equal(_loss(others[0]), _loss(criterion)) and torch.equal(_loss(others[1]), _loss(criterion))
    if again is copy.copy:  # which shares the schedules
        return
    criterion.step()
    assert not torch.equal(_loss(others[0]), _loss(criterion))
    for other in others:
        other.step()
        assert torch.equal(_loss(other), _loss(criterion))


def test_devices_and_dtypes_of_a_module() -> None:
    for criterion in _schedules():
        before = _loss(criterion)
        for move in (nn.Module.double, nn.Module.half, nn.Module.cpu, lambda m: m.to("cpu", torch.float32)):
            assert torch.equal(_loss(move(criterion)), before)
        assert all(buffer.device.type == "meta" for buffer in criterion.to("meta").buffers())


@pytest.mark.parametrize("of", [lambda: Linear(0.0, 4.0, 10), lambda: Linear(0.0, 4.0, 10).half()])
def test_schedules_made_in_inference_mode_step_outside_it(of: Callable[[], Schedule]) -> None:
    with torch.inference_mode():
        schedule = of()
        schedule.step()
    schedule.step()
    assert schedule.steps == 2 and schedule.value.item() == schedule.at(2)


def test_a_loss_made_on_meta_takes_the_state_of_another() -> None:
    with torch.device("meta"):
        ours, expected = _schedules(), []
    for criterion, other in zip(ours, _schedules(), strict=True):
        other.step()
        criterion.load_state_dict(other.state_dict(), assign=True)
        expected.append(_loss(other))
    assert all(torch.equal(_loss(criterion), loss) for criterion, loss in zip(ours, expected, strict=True))


@pytest.mark.parametrize("name", EVERYTHING)
def test_deterministic_algorithms_refuse_nothing(name: str) -> None:
    inputs = [torch.randn(6, 4, requires_grad=True) for _ in range(2)]
    results = []
    for enabled in (False, True):
        torch.use_deterministic_algorithms(enabled)
        out = [t for t in tensors(EVERYTHING[name](*inputs)) if t.requires_grad]
        results.append((*out, *torch.autograd.grad(sum(t.sum() for t in out), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class _OnTheDevice(TorchDispatchMode):
    """Refuses what waits for a device: numbers read from it, shapes that depend on them, and tensors made of the
    host's."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "item", "lift_fresh")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        assert name not in self.WAITS, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", EVERYTHING)
def test_nothing_waits_for_the_device(name: str) -> None:
    """In both passes, with noise drawn and given, nor in a derivative of the gradient."""
    mu, logvar = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
    for fn in (EVERYTHING[name], *([STOCHASTIC[name]] if name in STOCHASTIC else [])):
        with _OnTheDevice():
            total = sum(t.sum() for t in tensors(fn(mu, logvar)) if t.requires_grad)
            gradients = torch.autograd.grad(total, (mu, logvar), create_graph=True, allow_unused=True)
            again = [g.sum() for g in gradients if g is not None and g.requires_grad]
            if again:
                torch.autograd.grad(sum(again), (mu, logvar), allow_unused=True)


def test_the_mode_above_sees_what_waits() -> None:
    for waits in (lambda t: t.item(), lambda t: bool(t > 0), lambda t: torch.tensor(1.0), lambda t: t[t > 0]):
        with pytest.raises(AssertionError, match="waits for the device"), _OnTheDevice():
            waits(torch.ones(()))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", EVERYTHING)
def test_nothing_is_saved_where_no_gradient_is_wanted(name: str, mode: Callable[[], Any]) -> None:
    inputs = [torch.randn(6, 4, requires_grad=True) for _ in range(2)]
    expected = tensors(EVERYTHING[name](*inputs))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t), mode():
        out = tensors(EVERYTHING[name](*inputs))
    assert not saved
    for ours, graphed in zip(out, expected, strict=True):
        assert torch.equal(ours, graphed) and not ours.requires_grad and ours.grad_fn is None
        assert ours.is_inference() == (mode is torch.inference_mode)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_inference_tensors_may_come_in(name: str) -> None:
    with torch.inference_mode():
        inputs = [torch.randn(6, 4) for _ in range(2)]
    clones = [t.clone() for t in inputs]
    for a, b in zip(tensors(DETERMINISTIC[name](*inputs)), tensors(DETERMINISTIC[name](*clones)), strict=True):
        assert torch.equal(a, b)


# Data loaders, whose workers are forks or fresh processes.


class _Noisy(Dataset[Tensor]):
    """Every sample is made by fastib, of a size that the kernels share between threads."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        torch.manual_seed(index)
        mu = torch.zeros(300, 70)
        z, kl = fastib.reparameterize_with_kl(mu, mu)
        terms = fastib.elbo_decomposition(z, mu, mu, N)
        return torch.cat([z.flatten(), kl[None], torch.stack(tuple(terms))])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_data_loader(context: str, threads: None) -> None:
    """After the kernels have run here, on two threads: nothing hangs, and every worker gives the same bits."""
    torch.set_num_threads(2)
    expected = torch.stack([_Noisy()[i] for i in range(4)])
    loader = DataLoader(_Noisy(), batch_size=2, num_workers=2, multiprocessing_context=context, timeout=60)
    assert torch.equal(torch.cat(list(loader)), expected)
    torch.use_deterministic_algorithms(False)
    assert torch.equal(torch.stack([_Noisy()[i] for i in range(4)]), expected)
