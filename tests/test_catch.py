"""The catch: a code that is to be the index of an image, and what it is charged for it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastib.models import Catch
from fastib.models.catch import LOGVAR, _draw

SHAPE, EXAMPLES = (1, 4, 4), 12
IMAGES = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
LABELS, INDICES = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 3, 5, 7, 11])


def _model(**options: float) -> Catch:
    return Catch(SHAPE, 3, EXAMPLES, hidden=8, **options)  # type: ignore[arg-type]


def _numbers(bits: Tensor) -> list[int]:
    return (bits.long() << torch.arange(bits.shape[1])).sum(1).tolist()


def test_every_image_has_an_index_of_its_own() -> None:
    torch.manual_seed(1)
    one, other = _model(), _model()
    assert one.latent_dim == 4 and Catch(SHAPE, 3, 1024).latent_dim == 10 and Catch(SHAPE, 3, 1025).latent_dim == 11
    numbers = _numbers(one.bits(torch.arange(EXAMPLES)))
    assert sorted(numbers) == list(range(EXAMPLES)) and numbers != list(range(EXAMPLES))
    assert numbers != _numbers(other.bits(torch.arange(EXAMPLES)))
    other.load_state_dict(one.state_dict())  # which a checkpoint keeps
    assert numbers == _numbers(other.bits(torch.arange(EXAMPLES)))


@pytest.mark.parametrize("index", [-1, EXAMPLES])
def test_an_index_is_one_of_the_training_images(index: int) -> None:
    with pytest.raises(IndexError):
        _model()(IMAGES, LABELS, torch.tensor([0, 3, 5, 7, index]))


def test_codes_are_at_the_corners_and_pass_gradients_as_a_tanh() -> None:
    model = _model()
    mu, logvar = model.encode(IMAGES)
    logits = model.encoder.mean(IMAGES)
    torch.testing.assert_close(mu, torch.where(logits > 0, 1.0, -1.0))
    assert torch.equal(logvar, torch.full_like(mu, LOGVAR)) and (mu > 0).any() and (mu < 0).any()
    weights = [p for p in model.encoder.parameters() if p.requires_grad]
    found = torch.autograd.grad(mu.sum(), weights, allow_unused=True)
    expected = torch.autograd.grad(torch.tanh(logits).sum(), weights, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_it_is_its_formula(beta: float) -> None:
    model = _model(beta=beta)
    torch.manual_seed(2)
    terms = model(IMAGES, LABELS, INDICES)
    torch.manual_seed(2)
    said, of_encoder = model.encoder(IMAGES)
    p = torch.sigmoid(said[-1].double())
    bits = model.bits(INDICES).double()
    index = -(bits * p.log() + (1 - bits) * (1 - p).log()).sum(1).mean()
    torch.testing.assert_close(terms.index_cross_entropy.double(), index, check_dtype=False, rtol=1e-5, atol=1e-5)
    answers, _ = model.decoder(_draw(said[-1]))
    torch.testing.assert_close(terms.cross_entropy, F.cross_entropy(answers[-1], LABELS))
    rest = terms.loss - terms.cross_entropy - terms.index_cross_entropy
    torch.testing.assert_close(rest, beta * terms.information, rtol=1e-4, atol=1e-4)
    assert terms.information * EXAMPLES > of_encoder  # and what is in the decoder


def test_its_answer_is_read_from_the_code() -> None:
    model = _model()
    mu, _ = model.encode(IMAGES)
    torch.testing.assert_close(model.logits(IMAGES), model.decoder.mean(mu))
    (z,) = model.representations(IMAGES.expand(5, *SHAPE).repeat(400, 1, 1, 1))
    spread = (z.abs() - 1).std().item()
    assert spread == pytest.approx(torch.tensor(LOGVAR / 2).exp().item(), rel=0.05)


def test_all_of_it_is_trained() -> None:
    torch.manual_seed(0)
    model = _model(beta=1.0)
    model(IMAGES, LABELS, INDICES).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 1}, "examples must be at least 2, got 1"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"beta": -1.0}, "beta must be a finite number of at least 0, got -1.0"),
        ({"warm_up": -1}, "warm_up must be at least 0, got -1"),
        ({"posterior": "uniform"}, "posterior must be one of 'log_normal', 'gaussian', got 'uniform'"),
    ],
)
def test_bad_arguments(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Catch(SHAPE, 3, **{"examples": EXAMPLES, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    model = _model().to(dtype)
    images = torch.rand(4, *SHAPE, dtype=dtype)
    terms = model(images, torch.tensor([0, 1, 2, 0]), torch.arange(4))
    assert terms.loss.isfinite() and model.encode(images)[0].dtype == dtype
