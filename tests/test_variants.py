"""Data sets made of others: which images and labels they have, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastib.configs import Config
from fastib.datasets import FactoredImages, LabelledImages, Part, RandomLabels, Sprites, digits


def _plain(n: int = 4000) -> LabelledImages:
    return LabelledImages(torch.rand(n, 2, 3), torch.arange(n) % 10, 10)


def test_a_part_is_the_first_images() -> None:
    whole = _plain(50)
    part = Part(whole, 20)
    assert len(part) == 20 and part.factor_sizes == whole.factor_sizes and part.image_shape == (1, 2, 3)
    some = torch.tensor([19, 0, 3])
    assert torch.equal(part.images(some), whole.images(some)) and torch.equal(part.factors(some), whole.factors(some))
    with pytest.raises(IndexError, match=r"indices must be in \[0, 20\), got 20"):
        part.images([20])
    with pytest.raises(IndexError, match=r"indices must be in \[0, 20\), got 20"):
        part[20]
    assert torch.equal(part[3][0], whole[3][0]) and part[3][1:] == whole[3][1:] == (3,)
    assert torch.equal(Part(Sprites(32), 10)[3], Sprites(32)[3])  # an image alone


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_as_many_labels_are_random_as_asked_for(fraction: float) -> None:
    whole = _plain()
    changed = RandomLabels(whole, fraction, seed=1)
    every = torch.arange(len(whole))
    true, found = whole.factors(every)[:, 0], changed.factors(every)[:, 0]
    wrong = (true != found).double().mean().item()
    deviation = (0.25 / len(whole)) ** 0.5
    assert wrong == pytest.approx(fraction * 0.9, abs=5 * deviation)
    if fraction == 1:  # each class is as likely, whatever the true one
        assert torch.bincount(true * 10 + found, minlength=100).sub(len(whole) / 100).abs().max() < 5 * 40**0.5
    assert torch.equal(changed.images(every), whole.images(every))


def test_random_labels_are_drawn_once() -> None:
    whole = _plain(300)
    first, second, other = (RandomLabels(whole, 0.5, seed).factors(range(300)) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    backwards = RandomLabels(whole, 0.5, 1).factors(range(299, -1, -1))
    assert torch.equal(backwards.flip(0), first)
    assert torch.equal(whole.factors(range(300))[:, 0], torch.arange(300) % 10)  # the others' are as they were


def test_only_the_label_is_random() -> None:
    sprites = Sprites(32)
    some = torch.arange(0, len(sprites), 9973)
    changed = RandomLabels(sprites, 1.0).factors(some)
    assert torch.equal(changed[:, 1:], sprites.factors(some)[:, 1:]) and changed[:, 0].max() <= 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Part(torch.zeros(3), 2), TypeError, "of must be FactoredImages, got Tensor"),
        (lambda: Part(_plain(5), 6), ValueError, "size must be at most 5, got 6"),
        (lambda: Part(_plain(5), 0), ValueError, "size must be at least 1, got 0"),
        (lambda: RandomLabels(_plain(5), 1.1), ValueError, r"fraction must be in \[0, 1\], got 1.1"),
        (lambda: RandomLabels(_plain(5), float("nan")), ValueError, r"fraction must be in \[0, 1\], got nan"),
        (lambda: RandomLabels(_plain(5), True), TypeError, "fraction must be a number, got bool"),
        (lambda: RandomLabels(_plain(5), 0.5, -1), ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_bad_arguments(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def _images(**values: Any) -> FactoredImages:
    return Config.of({"model": "vib", "dataset": "digits", **values}).images()


def test_the_images_of_a_configuration() -> None:
    assert len(_images()) == 1437 and len(_images(examples=100)) == 100
    labels = [_images(random_labels=1.0, seed=seed).factors(range(200)) for seed in (0, 0, 1)]
    assert torch.equal(labels[0], labels[1]) and not torch.equal(labels[0], labels[2])
    config = Config.of({"model": "vib", "dataset": "digits", "examples": 10, "random_labels": 1.0})
    test = config.images(train=False)
    assert torch.equal(
        test.factors(range(360)), digits(train=False).factors(range(360))
    )  # with the labels that they have
    with pytest.raises(ValueError, match="examples must be at most 1437, those of digits, got 1438"):
        _images(examples=1438)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "beta-vae", "random_labels": 0.5}, "random_labels must be 0 for beta-vae, which sees no labels"),
        ({"random_labels": 1.5}, r"random_labels must be in \[0, 1\], got 1.5"),
        ({"examples": -1}, "examples must be at least 0, got -1"),
    ],
)
def test_bad_keys(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _images(**values)
