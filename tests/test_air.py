"""Attend-Infer-Repeat: its loss is its formula, its windows lie where they should, and its gradient is unbiased."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastib
from fastib.models import AIR
from fastib.models.air import _most_likely, _sampled

SHAPE = (1, 12, 12)
IMAGES = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
SMALL = {"hidden": 16, "latent_dim": 3, "window": 6, "most": 2}


def _model(**options: Any) -> AIR:
    return AIR(SHAPE, **{**SMALL, **options})


class _Given:
    """Decides as it is told, step by step: a column [B] of zeros and ones for each."""

    def __init__(self, presences: Tensor) -> None:
        self.columns = iter(presences.unbind(1))

    def __call__(self, logit: Tensor, before: Tensor) -> Tensor:
        return before * next(self.columns)


def _where(model: AIR, scale: float, x: float, y: float) -> Tensor:
    """The latent place of a window of that scale and centre."""
    raw = (scale - model.scale_floor) / (1 - model.scale_floor)
    return torch.tensor([[math.log(raw / (1 - raw)), math.atanh(x / (1 - scale)), math.atanh(y / (1 - scale))]])


def test_a_window_is_written_pixel_by_pixel_where_it_is_read() -> None:
    """A window of half the canvas's side, at a whole number of pixels: no pixel is changed."""
    model, window = _model(window=6), torch.rand(1, 1, 6, 6)
    for row, column in ((1, 2), (3, 3), (5, 1)):
        where = _where(model, 0.5, (column + 3) / 6 - 1, (row + 3) / 6 - 1)
        canvas = torch.zeros(1, *SHAPE)
        canvas[..., row : row + 6, column : column + 6] = window
        torch.testing.assert_close(model.write(window, where), canvas, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.read(canvas, where), window, rtol=0, atol=1e-5)


def test_windows_are_inside_and_have_a_floor() -> None:
    model = _model(scale_floor=0.25)
    scale, centre = model.window_of(torch.randn(1000, 3) * 20)
    assert scale.min() >= 0.25 and scale.max() <= 1 and scale.max() - scale.min() > 0.7
    assert (centre.abs() + scale.unsqueeze(1)).max() <= 1 + 1e-6 and centre.min() < -0.5 < 0.5 < centre.max()


@pytest.mark.parametrize("prior_steps", [4, 1000])
def test_it_is_its_formula(prior_steps: int) -> None:
    model = _model(prior_steps=prior_steps, prior_start=0.8, prior_end=0.01, likelihood_std=0.5)
    model.step()
    presences = torch.tensor([[0.0, 0], [1, 0], [1, 1], [1, 0], [1, 1]])
    torch.manual_seed(1)
    terms = model.terms(IMAGES, _Given(presences))
    torch.manual_seed(1)
    steps = model.infer(IMAGES, _Given(presences))
    mean, kl, kl_presence, before = torch.zeros_like(IMAGES), torch.zeros(5), torch.zeros(5), torch.ones(5)
    first, last = math.log(0.8 / 0.2), math.log(0.01 / 0.99)
    prior = torch.sigmoid(torch.tensor(first + (last - first) / prior_steps))
    for step, there in zip(steps, presences.T, strict=True):
        scale = 0.2 + 0.8 * torch.sigmoid(step.where[:, 0])
        centre = (1 - scale).unsqueeze(1) * torch.tanh(step.where[:, 1:])
        for i, (s, (x, y)) in enumerate(zip(scale.tolist(), centre.tolist(), strict=True)):
            to_window = torch.linalg.inv(torch.tensor([[s, 0, x], [0, s, y], [0, 0, 1]]))
            grid = F.affine_grid(to_window[:2].unsqueeze(0), [1, *SHAPE], align_corners=False)
            mean[i] += there[i] * F.grid_sample(model.decode(step.what[i : i + 1]), grid, align_corners=False)[0]
        kl = kl + there * step.kl
        q = torch.sigmoid(step.logit)
        kl_presence = kl_presence + before * (q * (q / prior).log() + (1 - q) * ((1 - q) / (1 - prior)).log())
        before = there
    reconstruction = (IMAGES - mean).square().flatten(1).sum(1) / (2 * 0.5**2)
    torch.testing.assert_close(terms.reconstruction, reconstruction.mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms.kl, (kl + kl_presence).mean())
    torch.testing.assert_close(terms.kl_presence, kl_presence.mean())
    torch.testing.assert_close(terms.loss, terms.reconstruction + terms.kl)
    assert terms.objects == 6 / 5


def test_the_kl_of_a_step_is_that_of_its_posteriors() -> None:
    model = _model(most=1)
    (step,) = model.infer(IMAGES, _most_likely, noise=False)
    look = model.look(IMAGES)
    state, _ = model.lstm(torch.cat([look, torch.zeros(5, 3 + 3), torch.ones(5, 1)], dim=1))
    of_where = model.decide(state)[:, 1:]
    of_what = model.encoder(model.read(IMAGES, step.where))
    expected = sum(fastib.reference.gaussian_kl(*p.chunk(2, dim=1), reduction="sample") for p in (of_where, of_what))
    torch.testing.assert_close(step.kl, expected)
    assert torch.equal(step.where, of_where[:, :3]) and torch.equal(step.what, of_what[:, :3])


def test_a_step_sees_what_is_left() -> None:
    model = _model(most=2)
    first, second = model.infer(IMAGES, _Given(torch.tensor([[1.0, 0.5]] * 5)), noise=False)
    torch.testing.assert_close(first.drawn, model.write(model.decode(first.what), first.where))
    torch.testing.assert_close(second.drawn, 0.5 * model.write(model.decode(second.what), second.where))
    left = IMAGES - first.drawn
    start = torch.cat([model.look(IMAGES), torch.zeros(5, 3 + 3), torch.ones(5, 1)], dim=1)
    then = torch.cat([model.look(left), first.where, first.what, torch.ones(5, 1)], dim=1)
    state, _ = model.lstm(then, model.lstm(start))
    torch.testing.assert_close(second.logit, model.decide(state)[:, 0])
    torch.testing.assert_close(second.what, model.encoder(model.read(left, second.where))[:, :3])


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_gradient_by_decisions_is_unbiased(most: int) -> None:
    """Every outcome of two images is enumerated: the mean of the estimates is the gradient of the mean, whatever the
    baseline."""
    model = _model(presence="score_function", most=most).double()
    images = IMAGES[:2].double()
    of_one = [[1.0] * n + [0.0] * (most - n) for n in range(most + 1)]
    outcomes = [torch.tensor(pair).double() for pair in product(of_one, repeat=2)]
    weights = [p for name, p in model.named_parameters() if not name.startswith("baseline.")]
    exact, estimate, total = torch.zeros((), dtype=torch.float64), [torch.zeros_like(p) for p in weights], 0.0
    for outcome in outcomes:
        torch.manual_seed(2)
        steps = model.infer(images, _Given(outcome))
        probability = torch.ones((), dtype=torch.float64)
        for step, there in zip(steps, outcome.T, strict=True):
            q = torch.sigmoid(step.logit)
            probability = probability * torch.where(step.before > 0, torch.where(there > 0, q, 1 - q), 1.0).prod()
        torch.manual_seed(2)
        terms = model.terms(images, _Given(outcome))
        parts = terms.reconstruction + terms.kl
        torch.testing.assert_close(terms.loss.detach(), parts)
        for sum_, g in zip(estimate, torch.autograd.grad(terms.loss, weights), strict=True):
            sum_ += probability.detach() * g
        concrete = _loss_of(model, images, outcome)
        torch.testing.assert_close(concrete.detach(), parts)
        exact, total = exact + probability * concrete, total + probability.item()
    assert total == pytest.approx(1)
    for found, expected in zip(estimate, torch.autograd.grad(exact, weights), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def _loss_of(model: AIR, images: Tensor, outcome: Tensor) -> Tensor:
    """The loss of one outcome, with gradients by all but the decision."""
    torch.manual_seed(2)
    presence, model.presence = model.presence, "concrete"
    try:
        return model.terms(images, _Given(outcome)).loss
    finally:
        model.presence = presence


def test_the_baseline_learns_what_follows_a_decision() -> None:
    model = _model(presence="score_function", most=1)
    torch.manual_seed(3)
    (step,) = model.infer(IMAGES, _Given(torch.ones(5, 1)))
    torch.manual_seed(3)
    terms = model.terms(IMAGES, _Given(torch.ones(5, 1)))
    mean = model.write(model.decode(step.what), step.where)
    follows = ((IMAGES - mean).square().flatten(1).sum(1) / (2 * 0.3**2) + step.kl).detach()
    error = (follows - model.baseline(step.state.detach()).squeeze(1)).square().mean()
    expected = torch.autograd.grad(error, list(model.baseline.parameters()))
    found = torch.autograd.grad(terms.loss, list(model.baseline.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_baseline_lowers_the_variance() -> None:
    """That of the gradient by the logits, with the baseline that is the mean, against none."""
    model = _model(presence="score_function", most=1)
    image = IMAGES[:1].expand(400, *SHAPE)
    spreads = []
    for value in (0.0, None):
        torch.manual_seed(4)
        if value is None:
            follows = model.terms(image, _sampled).reconstruction.item()
            value = follows
        with torch.no_grad():
            for p in model.baseline.parameters():
                p.zero_()
            model.baseline[-1].bias.fill_(value)  # type: ignore[union-attr]
        torch.manual_seed(5)
        gradients = []
        for _ in range(30):
            loss = model.terms(image[:8], _sampled).loss
            gradients.append(torch.autograd.grad(loss, model.decide.bias)[0][0])
        spreads.append(torch.stack(gradients).std().item())
    assert spreads[1] < spreads[0] / 2


def test_a_decision_is_made_with_its_probability() -> None:
    logit = torch.tensor([-1.0, 2.0]).repeat_interleave(20_000)
    made = _sampled(logit, torch.ones(40_000)).view(2, -1).mean(1)
    torch.testing.assert_close(made, torch.sigmoid(torch.tensor([-1.0, 2.0])), rtol=0, atol=0.015)
    assert _sampled(logit, torch.zeros(40_000)).sum() == 0
    assert torch.equal(
        _most_likely(torch.tensor([-0.1, 0.1, 0.1]), torch.tensor([1.0, 1.0, 0.0])), torch.tensor([0.0, 1, 0])
    )


@pytest.mark.parametrize("presence", ["concrete", "score_function"])
def test_all_of_it_is_trained(presence: str) -> None:
    torch.manual_seed(0)
    model = _model(presence=presence)
    terms = model(IMAGES)
    terms.loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.grad is not None)
    groups = model.parameter_groups()
    assert sum(p.numel() for group in groups for p in group["params"]) == sum(p.numel() for p in model.parameters())
    assert [group.get("factor", 1.0) for group in groups] == ([1.0] if presence == "concrete" else [1.0, 10.0])


@pytest.mark.parametrize("prior", [0.999, 1e-3, 1 - 1e-9, 1e-40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_the_kl_of_a_decision_is_finite_for_every_prior(prior: float, dtype: torch.dtype) -> None:
    model = _model(prior_start=prior).to(dtype)
    logit = torch.tensor([-30.0, -5.0, 0.0, 5.0, 30.0], dtype=dtype)
    bernoulli = torch.distributions.Bernoulli
    exact = torch.distributions.kl_divergence(
        bernoulli(logits=logit.double()), bernoulli(logits=model.prior_logit.value.double())
    )
    found = model._kl_of_decision(logit)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=2e-5)
    assert model(IMAGES.to(dtype)).loss.isfinite()


def test_it_compiles_whole() -> None:
    model = _model(most=1)
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(IMAGES).loss
    assert loss.isfinite() and loss.requires_grad


def test_presences_are_relaxed_in_training_alone() -> None:
    model = _model(temperature=0.7)
    presences = torch.stack([step.presence for step in model.infer(IMAGES, model._relaxed)])
    assert ((presences > 0) & (presences < 1)).all()
    torch.manual_seed(2)
    relaxed = model.terms(IMAGES, model._relaxed).objects
    torch.manual_seed(2)
    assert model(IMAGES).objects == relaxed
    found = {round(model.eval()(IMAGES).objects.item() * 5, 4) for _ in range(10)}
    assert found <= set(map(float, range(11))) and len(found) > 1


def test_entities_are_what_it_draws() -> None:
    model = _model(most=3)
    with torch.no_grad():
        model.decide.bias[0] = -2.0  # so that logits are about 0
    torch.manual_seed(1)
    before = torch.get_rng_state()
    entities = model.entities(IMAGES)
    assert torch.equal(before, torch.get_rng_state()) and model.training
    steps = model.infer(IMAGES, _most_likely, noise=False)
    there = torch.stack([step.presence for step in steps], dim=1) > 0
    assert torch.equal(entities.there, there) and (there[:, 1:] <= there[:, :-1]).all()
    assert (entities.images.amax((2, 3, 4)) > 0).equal(there)
    assert entities.codes.shape == (5, 3, 3 + 3)
    assert entities.boxes is not None
    left, top, right, bottom = entities.boxes.unbind(-1)
    scale, centre = model.window_of(torch.stack([step.where for step in steps], dim=1).flatten(0, 1))
    torch.testing.assert_close((right - left).flatten(), scale * 12)
    torch.testing.assert_close(bottom - top, right - left)
    middles = torch.stack([left + right, top + bottom], dim=-1).flatten(0, 1) / 2
    torch.testing.assert_close(middles, (centre + 1) * 6)
    backwards = type(entities)(*(part.flip(1) for part in entities))
    torch.testing.assert_close(model.compose(backwards), model.compose(entities), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"presence": "soft"}, "presence must be one of 'concrete', 'score_function', got 'soft'"),
        ({"most": 0}, "most must be at least 1, got 0"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"scale_floor": 0.0}, r"scale_floor must be in \(0, 1\), got 0.0"),
        ({"prior_end": 1.0}, r"prior_end must be in \(0, 1\), got 1.0"),
        ({"prior_steps": 0}, "prior_steps must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"likelihood_std": -1.0}, "likelihood_std must be a finite number of at least 0, got -1.0"),
        ({"baseline_factor": math.nan}, "baseline_factor must be a finite number of at least 0, got nan"),
    ],
)
def test_bad_arguments(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _model(**options)
    with pytest.raises(ValueError, match=r"image_shape must be \(1, side, side\), got \(3, 8, 8\)"):
        AIR((3, 8, 8))
