"""The loss modules: their values, their terms, and when they anneal."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

import fastib
from fastib.losses import AnnealedVAELoss, BetaTCVAELoss, BetaVAELoss
from fastib.schedules import Cosine, Cyclic, Linear, Schedule

B = 6
OUTPUT, TARGET = torch.randn(B, 1, 4, 4), torch.rand(B, 1, 4, 4)
MU, LOGVAR = torch.randn(B, 3), torch.randn(B, 3)
KL = ((MU**2 + torch.expm1(LOGVAR) - LOGVAR) / 2).sum(-1)


def _bernoulli() -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(OUTPUT, TARGET, reduction="sum") / B


def test_beta_vae_is_reconstruction_plus_beta_kl() -> None:
    loss, reconstruction, kl = BetaVAELoss(4.0)(OUTPUT, TARGET, MU, LOGVAR)
    torch.testing.assert_close(reconstruction, _bernoulli())
    torch.testing.assert_close(kl, KL.mean())
    torch.testing.assert_close(loss, _bernoulli() + 4 * KL.mean())
    terms = BetaVAELoss(likelihood="gaussian")(OUTPUT, TARGET, MU, LOGVAR)
    torch.testing.assert_close(terms.reconstruction, ((OUTPUT - TARGET) ** 2).sum() / 2 / B)
    torch.testing.assert_close(terms.loss, terms.reconstruction + terms.kl)


def test_a_kl_that_is_already_there() -> None:
    _, kl = fastib.reparameterize_with_kl(MU, LOGVAR)
    torch.testing.assert_close(BetaVAELoss(4.0)(OUTPUT, TARGET, kl=kl), BetaVAELoss(4.0)(OUTPUT, TARGET, MU, LOGVAR))
    _, kl = fastib.reparameterize_with_kl(MU, LOGVAR, reduction="sample")
    criterion = AnnealedVAELoss(per="sample")
    torch.testing.assert_close(criterion(OUTPUT, TARGET, kl=kl), criterion(OUTPUT, TARGET, MU, LOGVAR))


def test_free_bits() -> None:
    per_dimension = ((MU**2 + torch.expm1(LOGVAR) - LOGVAR) / 2).mean(0)
    terms = BetaVAELoss(2.0, free_bits=0.8)(OUTPUT, TARGET, MU, LOGVAR)
    torch.testing.assert_close(terms.kl, per_dimension.clamp(min=0.8).sum())


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_capacity(per: str) -> None:
    criterion = AnnealedVAELoss(10.0, capacity=8.0, steps=4, per=per)
    for step in range(6):
        capacity = min(step / 4, 1) * 8.0
        constraint = (KL.mean() - capacity).abs() if per == "batch" else (KL - capacity).abs().mean()
        terms = criterion(OUTPUT, TARGET, MU, LOGVAR)
        torch.testing.assert_close(terms.loss, _bernoulli() + 10 * constraint)
        torch.testing.assert_close(terms.kl, KL.mean())
        criterion.step()


@pytest.mark.parametrize("shape", [(B,), (B, 3), (B, 3, 4, 5)], ids=str)
def test_capacity_of_samples_of_any_shape(shape: tuple[int, ...]) -> None:
    mu, logvar = torch.randn(shape), torch.randn(shape)
    kl = ((mu**2 + torch.expm1(logvar) - logvar) / 2).reshape(B, -1).sum(1)
    terms = AnnealedVAELoss(10.0, Linear(2.0, 3.0, 5), per="sample")(OUTPUT, TARGET, mu, logvar)
    torch.testing.assert_close(terms.loss, _bernoulli() + 10 * (kl - 2.0).abs().mean())


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64], ids=str)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_targets_of_zeros_and_ones_may_be_integers(dtype: torch.dtype, likelihood: str) -> None:
    target, criterion = TARGET > 0.5, BetaVAELoss(likelihood=likelihood)
    expected = criterion(OUTPUT, target.float(), MU, LOGVAR)
    torch.testing.assert_close(criterion(OUTPUT, target.to(dtype), MU, LOGVAR), expected, rtol=0, atol=0)


def test_capacity_of_batch_and_of_sample_differ_in_gradient() -> None:
    grads = []
    middle = KL.sort().values[2:4].mean()
    for per in ("batch", "sample"):
        mu = MU.clone().requires_grad_()
        criterion = AnnealedVAELoss(1.0, capacity=Linear(middle.item(), 99.0, 5), per=per)
        (grad,) = torch.autograd.grad(criterion(OUTPUT, TARGET, mu, LOGVAR).loss, mu)
        sign = torch.sign(KL.mean() - middle) if per == "batch" else torch.sign(KL - middle)[:, None]
        torch.testing.assert_close(grad, sign * MU / B)
        grads.append(grad)
    assert not torch.allclose(*grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_may_come_before_the_backward_pass(dtype: torch.dtype) -> None:
    criterion = BetaVAELoss(Linear(1.0, 2.0, 10))
    mu = torch.ones(B, 2, dtype=dtype, requires_grad=True)
    loss = criterion(OUTPUT.to(dtype), TARGET.to(dtype), mu, torch.zeros(B, 2, dtype=dtype)).loss
    criterion.step()
    (grad,) = torch.autograd.grad(loss, mu)
    torch.testing.assert_close(grad, torch.full((B, 2), 1 / B, dtype=dtype))


def test_nothing_but_step_anneals() -> None:
    criterion = AnnealedVAELoss(capacity=25.0, steps=10)
    criterion.step()
    for module in (criterion.eval(), criterion.train()):
        module(OUTPUT, TARGET, MU, LOGVAR)
    assert criterion.capacity.steps == 1 and criterion.capacity.value.item() == 2.5


def test_terms_are_detached_and_the_loss_is_not() -> None:
    mu = MU.clone().requires_grad_()
    terms = BetaVAELoss()(OUTPUT, TARGET, mu, LOGVAR)
    assert terms.loss.requires_grad and not terms.reconstruction.requires_grad and not terms.kl.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    output, target = torch.zeros(4, 100_000, dtype=dtype), torch.ones(4, 100_000, dtype=dtype)
    terms = BetaVAELoss()(output, target, MU[:4].to(dtype), LOGVAR[:4].to(dtype))
    assert terms.loss.dtype == torch.float32
    assert terms.reconstruction.item() == pytest.approx(100_000 * 0.6931472, rel=1e-5)


def test_a_checkpoint_holds_the_position() -> None:
    criterion = BetaVAELoss(Linear(0.0, 4.0, steps=8))
    for _ in range(3):
        criterion.step()
    buffer = io.BytesIO()
    torch.save(criterion.state_dict(), buffer)
    buffer.seek(0)
    resumed = BetaVAELoss(Linear(0.0, 4.0, steps=8))
    resumed.load_state_dict(torch.load(buffer))
    for copied in (resumed, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert copied.beta.steps == 3
        torch.testing.assert_close(copied(OUTPUT, TARGET, MU, LOGVAR), criterion(OUTPUT, TARGET, MU, LOGVAR))
        copied.step()
        assert copied.beta.value.item() == 2.0
    assert criterion.beta.value.item() == 1.5


CASTS = [
    lambda m: m.half(),
    lambda m: m.bfloat16(),
    lambda m: m.double(),
    lambda m: m.float(),
    lambda m: m.to(torch.bfloat16),
    lambda m: m.to("cpu", torch.float16),
    lambda m: m.to("meta").to_empty(device="cpu"),
]


@pytest.mark.parametrize("cast", CASTS)
def test_a_schedule_is_exact_in_any_dtype_of_the_module(cast: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
    for criterion, schedule in (
        (beta := BetaVAELoss(Linear(0.0, 1.0, 10)), beta.beta),
        (annealed := AnnealedVAELoss(1.0, 1.0, 10), annealed.capacity),
    ):
        criterion.step()
        cast(criterion)
        for step in (1, 2, 3):
            assert schedule.value.dtype == torch.float64 and schedule.value.item() == step / 10
            criterion.step()
        cast(criterion)
        assert schedule.value.item() == 0.4
        assert criterion(OUTPUT, TARGET, MU, LOGVAR).loss.dtype == torch.float32
        doubles = criterion(*(t.double() for t in (OUTPUT, TARGET, MU, LOGVAR)))
        cost = 0.4 * doubles.kl if isinstance(criterion, BetaVAELoss) else (doubles.kl - 0.4).abs()
        assert doubles.loss == doubles.reconstruction + cost


def test_a_schedule_moves_with_its_module() -> None:
    assert BetaVAELoss(Linear(0.0, 1.0, 10)).to("meta").beta.value.device.type == "meta"


def test_a_schedule_that_moves_on_is_not_compiled_again() -> None:
    criterion, counter = BetaVAELoss(Linear(0.0, 1.0, 10)), CompileCounter()
    compiled = torch.compile(criterion, fullgraph=True, backend=counter)
    for _ in range(4):
        torch.testing.assert_close(compiled(OUTPUT, TARGET, MU, LOGVAR), criterion(OUTPUT, TARGET, MU, LOGVAR))
        criterion.step()
    assert counter.frame_count == 1


def test_schedules_at_their_landmarks() -> None:
    linear, cosine, cyclic = Linear(2.0, 6.0, 8), Cosine(2.0, 6.0, 8), Cyclic(2.0, 6.0, 8, ramp=0.5)
    assert [linear.at(s) for s in (0, 2, 4, 8, 100)] == [2, 3, 4, 6, 6]
    assert [round(cosine.at(s), 9) for s in (0, 4, 8, 100)] == [2, 4, 6, 6]
    assert cosine.at(2) < linear.at(2) and cosine.at(6) > linear.at(6)
    assert [cyclic.at(s) for s in (0, 2, 4, 7, 8, 10)] == [2, 4, 6, 6, 2, 4]
    for schedule in (linear, cosine, cyclic):
        for step in range(12):
            assert schedule.value.item() == pytest.approx(schedule.at(step), abs=1e-6)
            schedule.step()


def test_the_ceiling_stays_with_the_terms_of_a_loss() -> None:
    terms = BetaTCVAELoss(dataset_size=100)(OUTPUT, TARGET, MU, MU, LOGVAR)
    replaced = terms._replace(loss=torch.zeros(()))
    assert replaced.mutual_information_ceiling == terms.mutual_information_ceiling == pytest.approx(math.log(100))


@pytest.mark.parametrize(("kind", "reached"), [(Linear, 7), (Cosine, 7), (Cyclic, 4)])
@pytest.mark.parametrize(("start", "end"), [(100_000.0, 0.1), (0.7, 0.1), (0.1, 0.7), (0.3, 0.3)])
def test_schedules_end_exactly_where_they_should(
    kind: Callable[..., Schedule], reached: int, start: float, end: float
) -> None:
    schedule = kind(start, end, 7)
    for number in (int, lambda step: torch.tensor([float(step)], dtype=torch.float64)):
        assert schedule.at(number(0)) == start
        assert schedule.at(number(reached)) == end


@pytest.mark.parametrize("criterion", [BetaVAELoss(4.0), AnnealedVAELoss(steps=5)], ids=["beta", "annealed"])
def test_gradients_train(criterion: torch.nn.Module) -> None:
    """A few steps of gradient descent lower the loss, and the schedule follows the optimiser."""
    mu, logvar, output = (t.clone().requires_grad_() for t in (MU, LOGVAR, OUTPUT))
    optimiser = torch.optim.SGD([mu, logvar, output], lr=1e-3)
    first = criterion(output, TARGET, mu, logvar).loss.item()
    for _ in range(5):
        optimiser.zero_grad()
        criterion(output, TARGET, mu, logvar).loss.backward()
        optimiser.step()
    assert criterion(output, TARGET, mu, logvar).loss.item() < first


# beta-TCVAE.

Z = MU + torch.exp(LOGVAR / 2) * torch.randn(B, 3)


def test_beta_tcvae_weighs_the_three_parts() -> None:
    terms = BetaTCVAELoss(0.5, 6.0, 2.0, dataset_size=100)(OUTPUT, TARGET, Z, MU, LOGVAR)
    parts = fastib.elbo_decomposition(Z, MU, LOGVAR, 100)
    torch.testing.assert_close(terms.reconstruction, _bernoulli())
    torch.testing.assert_close(terms[2:5], tuple(parts))
    torch.testing.assert_close(terms.loss, _bernoulli() + 0.5 * parts[0] + 6 * parts[1] + 2 * parts[2])
    assert terms.mutual_information_ceiling == parts.mutual_information_ceiling == pytest.approx(math.log(100))
    assert not any(term.requires_grad for term in terms[1:5])


@pytest.mark.parametrize("estimator", ["mss", "mws", "in_batch", "leave_one_out"])
def test_beta_tcvae_with_weights_of_one_is_the_evidence_lower_bound(estimator: str) -> None:
    mu, logvar, z = (t.clone().requires_grad_() for t in (MU, LOGVAR, Z))
    terms = BetaTCVAELoss(beta=1.0, dataset_size=100, estimator=estimator)(OUTPUT, TARGET, z, mu, logvar)
    posterior, prior = torch.distributions.Normal(mu, torch.exp(logvar / 2)), torch.distributions.Normal(0, 1)
    bound = _bernoulli() + (posterior.log_prob(z) - prior.log_prob(z)).sum(-1).mean()
    torch.testing.assert_close(terms.loss, bound)
    gradients = (torch.autograd.grad(loss, (z, mu, logvar)) for loss in (terms.loss, bound))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("estimator", ["mss", "mws", "in_batch", "leave_one_out"])
def test_beta_tcvae_estimates_as_it_is_asked_to(estimator: str) -> None:
    terms = BetaTCVAELoss(dataset_size=100, estimator=estimator)(OUTPUT, TARGET, Z, MU, LOGVAR)
    expected = fastib.elbo_decomposition(Z, MU, LOGVAR, 100, estimator=estimator)
    torch.testing.assert_close(tuple(terms[2:5]), tuple(t.detach() for t in expected))
    assert terms.mutual_information_ceiling == expected.mutual_information_ceiling


def test_beta_tcvae_anneals_by_step_alone() -> None:
    criterion = BetaTCVAELoss(beta=Linear(1.0, 6.0, 5), gamma=Linear(0.0, 1.0, 2), dataset_size=100)
    mi, tc, kl = fastib.elbo_decomposition(Z, MU, LOGVAR, 100)
    for step in range(7):
        for _ in range(2):
            loss = criterion(OUTPUT, TARGET, Z, MU, LOGVAR).loss
            expected = _bernoulli() + mi + min(1.0 + step, 6.0) * tc + min(step / 2, 1.0) * kl
            torch.testing.assert_close(loss, expected)
        criterion.step()
    loaded = BetaTCVAELoss(beta=Linear(1.0, 6.0, 5), gamma=Linear(0.0, 1.0, 2), dataset_size=100)
    loaded.load_state_dict(criterion.state_dict())
    torch.testing.assert_close(loaded(OUTPUT, TARGET, Z, MU, LOGVAR), criterion(OUTPUT, TARGET, Z, MU, LOGVAR))


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({}, ValueError, "dataset_size must be given"),
        ({"dataset_size": 0}, ValueError, "dataset_size must be at least 1, got 0"),
        ({"dataset_size": "100"}, TypeError, "dataset_size must be an integer"),
        ({"dataset_size": 100, "alpha": -1.0}, ValueError, "alpha must be a finite number of at least 0"),
        ({"dataset_size": 100, "beta": "6"}, TypeError, "beta must be a number"),
        ({"dataset_size": 100, "gamma": math.nan}, ValueError, "gamma must be a finite number"),
        ({"dataset_size": 100, "estimator": "chen"}, ValueError, "estimator must be one of"),
        ({"dataset_size": 100, "likelihood": "laplace"}, ValueError, "likelihood must be one of"),
    ],
)
def test_beta_tcvae_checks_what_it_is_made_of(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BetaTCVAELoss(**keywords)


def test_beta_tcvae_checks_its_batch() -> None:
    criterion = BetaTCVAELoss(dataset_size=100)
    with pytest.raises(ValueError, match="z must have one row for each row of mu, 6, got 5"):
        criterion(OUTPUT, TARGET, Z[:5], MU, LOGVAR)
    with pytest.raises(ValueError, match="at least two components, mu has 1"):
        criterion(OUTPUT[:1], TARGET[:1], Z[:1], MU[:1], LOGVAR[:1])
    with pytest.raises(ValueError, match="dataset_size must be at least the number of components, 6, got 5"):
        BetaTCVAELoss(dataset_size=5)(OUTPUT, TARGET, Z, MU, LOGVAR)


def test_beta_tcvae_gives_a_short_last_batch_weights_of_its_own() -> None:
    criterion = BetaTCVAELoss(dataset_size=100)
    criterion(OUTPUT, TARGET, Z, MU, LOGVAR)
    short = criterion(OUTPUT[:3], TARGET[:3], Z[:3], MU[:3], LOGVAR[:3])
    expected = fastib.reference.elbo_decomposition(Z[:3], MU[:3], LOGVAR[:3], 100)
    torch.testing.assert_close(tuple(short[2:5]), tuple(t.detach() for t in expected))


def test_beta_tcvae_says_what_it_is() -> None:
    assert "beta=6.0" in repr(BetaTCVAELoss(dataset_size=100)) and "dataset_size=100" in repr(
        BetaTCVAELoss(dataset_size=100)
    )
