"""Scenes of several objects: what is on them is what their factors say, and all of it is as likely as it should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastib.datasets import CentredSprites, LabelledImages, Scenes, Sprites, digits


def _white(kinds: int = 4) -> LabelledImages:
    return LabelledImages(torch.ones(kinds, 1, 1), torch.arange(kinds))


def test_scenes_are_their_factors() -> None:
    """Pasted by hand, object by object."""
    objects = digits()
    scenes = Scenes(objects, scenes=50, side=20, size=8, most=3, seed=1)
    images, factors = scenes.images(range(50)), scenes.factors(range(50))
    for scene, image, (count, *rest) in zip(range(50), images, factors.tolist(), strict=True):
        canvas = torch.zeros(20, 20)
        for k in range(3):
            label, row, column = rest[3 * k : 3 * k + 3]
            assert (label > 0) == (row > 0) == (column > 0) == (k < count)
            if k < count:
                which = scenes._which[scene, k : k + 1]
                assert objects.factors(which).item() == label - 1
                window = canvas[row - 1 : row + 7, column - 1 : column + 7]
                window.copy_(torch.maximum(window, objects.images(which)[0, 0]))
        torch.testing.assert_close(image[0], canvas, rtol=0, atol=1e-6)


def test_counts_objects_and_places_are_as_likely() -> None:
    n = 20_000
    factors = Scenes(_white(), scenes=n, side=6, size=2, most=1).factors(range(n))
    there = factors[factors[:, 0] == 1]
    for found, size in ((factors[:, 0], 2), (there[:, 1] - 1, 4), (there[:, 2] - 1, 5), (there[:, 3] - 1, 5)):
        expected = len(found) / size
        assert (torch.bincount(found, minlength=size) - expected).abs().max() < 5 * expected**0.5


@pytest.mark.parametrize(("side", "size"), [(50, 12), (32, 14)])
def test_objects_are_apart(side: int, size: int) -> None:
    factors = Scenes(_white(), scenes=2000, side=side, size=size, most=3).factors(range(2000))
    full = factors[factors[:, 0] == 3]
    places = torch.stack([full[:, 3 * k + 2 : 3 * k + 4] for k in range(3)], dim=1).float()
    gaps = torch.cdist(places, places) + torch.eye(3) * 100
    assert (gaps.amin((1, 2)) >= size * 3 / 4).all()


def test_an_object_alone_is_anywhere() -> None:
    """Those that there might have been leave it its place."""
    factors = Scenes(_white(), scenes=40_000, side=12, size=6, most=3).factors(range(40_000))
    alone = factors[factors[:, 0] == 1]
    for found in (alone[:, 2] - 1, alone[:, 3] - 1):
        expected = len(found) / 7
        assert (torch.bincount(found, minlength=7) - expected).abs().max() < 5 * expected**0.5


def test_there_may_be_no_room() -> None:
    scenes = Scenes(_white(), scenes=100, side=3, size=3, most=2)
    assert scenes.factor_sizes == (3, 5, 2, 2, 5, 2, 2)
    assert set(scenes.images(range(100)).unique().tolist()) == {0.0, 1.0}


def test_scenes_are_drawn_once() -> None:
    one, same, other = (Scenes(digits(), scenes=40, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.images(range(40)), same.images(range(40)))
    assert torch.equal(one.images([7, 3]), one.images(range(40))[[7, 3]])
    assert not torch.equal(one.factors(range(40)), other.factors(range(40)))


def test_centred_sprites_are_those_of_the_images() -> None:
    sprites, centred = Sprites(), CentredSprites()
    some = torch.tensor([0, 55, 719])
    own = centred.factors(some)
    whole = sprites.images(sprites.index(torch.cat([own, torch.zeros(3, 2, dtype=torch.int64)], dim=1)))
    assert torch.equal(centred.images(some), whole[:, :, :33, :33])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 51}, ValueError, "size must be at most 50, the side of the canvas, got 51"),
        ({"most": 0}, ValueError, "most must be at least 1, got 0"),
        ({"scenes": 0}, ValueError, "scenes must be at least 1, got 0"),
        ({"side": 1.5}, TypeError, "side must be an integer, got float"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"objects": torch.zeros(3)}, TypeError, "objects must be FactoredImages, got Tensor"),
        (
            {"objects": LabelledImages(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))},
            ValueError,
            r"objects must have one channel, got images of \(3, 4, 4\)",
        ),
    ],
)
def test_bad_arguments(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Scenes(options.pop("objects", _white()), **options)
