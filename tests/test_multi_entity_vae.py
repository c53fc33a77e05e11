"""Multi-Entity VAE: entities are chosen and composed as they should be, and what is trained is the formula."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastib
from fastib.datasets import LabelledImages, Scenes
from fastib.models import Entities, MultiEntityVAE
from fastib.models.multi_entity_vae import _parting, composed, most_informative

SHAPE = (1, 20, 24)  # of 3 x 3 cells
IMAGES = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0))
TINY = {"width": 4, "hidden": 16, "latent_dim": 5, "entities": 2}


def _model(**options: Any) -> MultiEntityVAE:
    return MultiEntityVAE(SHAPE, **{**TINY, **options})


# Composition.


def _product(logits: Tensor) -> Tensor:
    dark = torch.sigmoid(-logits.double()).prod(1)
    return torch.log1p(-dark) - dark.log()


@pytest.mark.parametrize("entities", [1, 2, 3, 5])
def test_composition_is_the_product_of_the_probabilities(entities: int) -> None:
    logits = 3 * torch.randn(50, entities, 2, 3)
    torch.testing.assert_close(composed(logits).double(), _product(logits), rtol=1e-5, atol=1e-5)
    exact = logits.double().requires_grad_()
    torch.testing.assert_close(composed(exact), _product(exact), rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(composed, exact[:3])


LIMITS = {
    "all black": ([-200.0, -200.0, -300.0], -200 + math.log(2), [0.5, 0.5, 0.0]),
    "all white": ([200.0, 100.0, 0.0], 300 + math.log(2), [1.0, 1.0, 0.5]),
    "black and white": ([-500.0, 90.0], 90.0, [0.0, 1.0]),
    "black and grey": ([-500.0, 0.0], 0.0, [0.0, 1.0]),
    "just grey": ([0.0, 0.0], math.log(3), [2 / 3, 2 / 3]),
}


@pytest.mark.parametrize(("logits", "expected", "gradients"), LIMITS.values(), ids=LIMITS)
def test_composition_at_its_limits(logits: list[float], expected: float, gradients: list[float]) -> None:
    """The derivative by a logit is p of the entity / p of the pixel."""
    given = torch.tensor([logits], requires_grad=True)
    result = composed(given)
    assert result.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    result.sum().backward()
    assert given.grad is not None and given.grad[0].tolist() == pytest.approx(gradients, abs=1e-6)


def test_the_order_of_the_entities_means_nothing() -> None:
    logits = 5 * torch.randn(4, 3, 7, dtype=torch.float64)
    orders = [composed(logits[:, list(order)]) for order in itertools.permutations(range(3))]
    for other in orders[1:]:
        torch.testing.assert_close(other, orders[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(composed(logits[:, [0, 1]]), composed(logits[:, [1, 0]]))


# Selection.


def test_selection_is_a_loop() -> None:
    codes, kl = torch.randn(5, 9, 4, requires_grad=True), torch.rand(5, 9)
    chosen = most_informative(codes, kl, 3)
    for b in range(5):
        order = sorted(range(9), key=lambda cell: -kl[b, cell].item())[:3]
        assert chosen.cells[b].tolist() == order
        for k, cell in enumerate(order):
            assert torch.equal(chosen.codes[b, k], codes[b, cell]) and chosen.kl[b, k] == kl[b, cell]
    chosen.codes.sum().backward()
    assert codes.grad is not None
    assert torch.equal(codes.grad[..., 0], torch.zeros(5, 9).scatter(1, chosen.cells, 1.0))


# The model.


def test_the_loss_is_its_formula() -> None:
    model = _model(beta=3.0)
    torch.manual_seed(1)
    terms = model(IMAGES)
    torch.manual_seed(1)
    mu, logvar = model.encode(IMAGES)
    z, kl = fastib.reparameterize(mu, logvar), fastib.reference.gaussian_kl(mu, logvar, reduction="sample")
    assert mu.shape == (6, 9, 5) and kl.shape == (6, 9)
    largest, cells = kl.sort(dim=1, descending=True)
    bright = torch.stack([model.decode(z[b, cells[b, :2]][None])[0] for b in range(6)])
    p = 1 - (1 - bright.double()).prod(1)
    reconstruction = F.binary_cross_entropy(p, IMAGES.double(), reduction="sum").float() / 6
    torch.testing.assert_close(terms.reconstruction, reconstruction)
    torch.testing.assert_close(terms.kl, kl.sum() / 6)
    torch.testing.assert_close(terms.kl_of_entities, largest[:, :2].sum() / 6)
    torch.testing.assert_close(terms.loss, reconstruction + 3 * kl.sum() / 6)


def test_beta_warms_up() -> None:
    model = _model(beta=3.0, warm_up=2)
    for expected in (0.0, 1.5, 3.0, 3.0):
        terms = model(IMAGES)
        torch.testing.assert_close(terms.loss, terms.reconstruction + expected * terms.kl)
        model.step()


def test_all_of_it_is_trained() -> None:
    model = _model()
    model(IMAGES).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_cell_that_is_not_chosen_is_paid_for() -> None:
    model = _model(entities=1)
    mu, logvar = model.encode(IMAGES)
    mu.retain_grad()
    model.encode = lambda images: (mu, logvar)  # type: ignore[method-assign]
    model(IMAGES).loss.backward()
    assert mu.grad is not None
    others = torch.ones(6, 9).scatter(1, fastib.gaussian_kl(mu, logvar, reduction="sample").argmax(1, True), 0.0) > 0
    torch.testing.assert_close(mu.grad[others], mu[others] / 6)  # that of the KL, and no other


def test_entities_are_without_noise_and_above_the_threshold() -> None:
    model = _model(entities=3)
    mu, logvar = model.encode(IMAGES)
    kl = fastib.reference.gaussian_kl(mu, logvar, reduction="sample").sort(descending=True, dim=1)
    model.threshold = kl.values[:, :3].median().item() + 1e-4
    found = model.entities(IMAGES)
    assert 0 < found.there.sum() < found.there.numel()
    assert torch.equal(found.there, kl.values[:, :3] > model.threshold)
    codes = torch.stack([mu[b, kl.indices[b, :3]] for b in range(6)])
    assert torch.equal(found.codes, codes) and torch.equal(found.images, model.decode(codes))
    of_dimensions = model.kl_of_dimensions(IMAGES)
    assert of_dimensions.shape == (6, 3, 5)
    torch.testing.assert_close(of_dimensions.sum(2), kl.values[:, :3])


def test_only_what_is_there_is_composed() -> None:
    model = _model()
    found = Entities(torch.tensor([[True, False]]), *torch.zeros(2, 1, 2, 5), torch.rand(1, 2, *SHAPE))
    torch.testing.assert_close(model.compose(found), found.images[:, 0])
    both = found._replace(there=torch.tensor([[True, True]]))
    torch.testing.assert_close(model.compose(both), 1 - (1 - found.images[:, 0]) * (1 - found.images[:, 1]))


@pytest.mark.parametrize(("shape", "cells"), [((1, 32, 32), 16), ((1, 50, 50), 49), ((3, 8, 12), 2), ((1, 5, 7), 1)])
def test_images_of_every_size(shape: tuple[int, int, int], cells: int) -> None:
    model = MultiEntityVAE(shape, **{**TINY, "entities": 1})
    images = torch.rand(2, *shape)
    assert model.encode(images)[0].shape == (2, cells, 5) and model.entities(images).images.shape == (2, 1, *shape)
    assert model(images).loss.isfinite()


def test_a_code_can_say_where_its_entity_is() -> None:
    """Cells that see the same differ by where they are: nothing else tells them apart but the edge of the image."""
    model = MultiEntityVAE((1, 56, 56), **TINY)
    mu, _ = model.encode(torch.zeros(1, 1, 56, 56))
    inner = mu.view(7, 7, 5)[2:5, 2:5]
    assert (inner - inner[:1, :1]).abs().amax(2).flatten()[1:].min() > 1e-3


def test_groups_are_parted() -> None:
    """Against all cuts."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        values = torch.cat([torch.randn(n, generator=generator).double() + m for n, m in ((30, 0.0), (9, 4.0))])
        ordered = values.sort().values
        within = [part.var(correction=0) * len(part) for k in range(1, 39) for part in (ordered[:k], ordered[k:])]
        best = min(range(38), key=lambda k: within[2 * k] + within[2 * k + 1])
        assert _parting(values[torch.randperm(39)]) == pytest.approx(ordered[best : best + 2].mean().item())


@pytest.mark.parametrize("images", [0, 1])
def test_nothing_is_parted(images: int) -> None:
    with pytest.raises(ValueError, match=f"images must have at least 2 entities, got {images} images with 1 each"):
        MultiEntityVAE((1, 16, 16), entities=1, width=4, hidden=8).calibrate(torch.rand(images, 1, 16, 16))


def test_it_counts_squares() -> None:
    """White squares, none to two, which are apart."""
    scenes = Scenes(LabelledImages(torch.ones(1, 1, 1), torch.tensor([0])), scenes=2000, side=16, size=5)
    model = MultiEntityVAE((1, 16, 16), latent_dim=4, entities=2, width=8, hidden=64, warm_up=100)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(300):
        optimiser.zero_grad()
        model(scenes.images(range(step * 32 % 1900, step * 32 % 1900 + 32))).loss.backward()
        optimiser.step()
        model.step()
    kl = fastib.gaussian_kl(*model.encode(scenes.images(range(1000))), reduction="sample").topk(2, dim=1).values
    assert (kl < model.calibrate(scenes.images(range(1000)))).double().mean().item() == pytest.approx(0.5, abs=0.12)
    counts = model.entities(scenes.images(range(2000))).there.sum(1)
    assert (counts == scenes.factors(range(2000))[:, 0]).double().mean() > 0.75


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"entities": 10}, ValueError, r"entities must be at most 9, the cells of image_shape \(1, 20, 24\), got 10"),
        ({"entities": 0}, ValueError, "entities must be at least 1, got 0"),
        ({"latent_dim": 0}, ValueError, "latent_dim must be at least 1, got 0"),
        ({"width": 1.5}, TypeError, "width must be an integer, got float"),
        ({"hidden": 0}, ValueError, "hidden must be at least 1, got 0"),
        ({"beta": -1.0}, ValueError, "beta must be a finite number of at least 0, got -1.0"),
        ({"warm_up": -1}, ValueError, "warm_up must be at least 0, got -1"),
        ({"threshold": math.nan}, ValueError, "threshold must be a finite number of at least 0, got nan"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _model(**options)
