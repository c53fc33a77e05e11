"""The sprites: every image has its factors, and each factor changes what its name says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from fastib.datasets import Sprites

SQUARE, ELLIPSE, HEART = range(3)


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    return Sprites()


def image(sprites: Sprites, *factors: int) -> Tensor:
    return sprites.images(sprites.index([factors]))[0, 0]


def centre(image: Tensor) -> tuple[float, float]:
    """The centre of mass: column and row."""
    axis = torch.arange(float(len(image)))
    return (image.sum(0) @ axis / image.sum()).item(), (image.sum(1) @ axis / image.sum()).item()


def lean(image: Tensor) -> float:
    """The angle of the longest axis to the horizontal, counterclockwise, in [0, pi)."""
    column, row = centre(image)
    right, up = torch.arange(64.0) - column, row - torch.arange(64.0)
    covariance = up @ image @ right
    spread = image.sum(0) @ right**2 - image.sum(1) @ up**2
    return (math.atan2(2 * covariance, spread) / 2) % math.pi


def test_every_index_has_its_factors(sprites: Sprites) -> None:
    assert len(sprites) == math.prod(sprites.factor_sizes) == 737_280
    assert sprites.factor_names == ("shape", "scale", "orientation", "x", "y")
    every = torch.cartesian_prod(*(torch.arange(size) for size in (3, 6, 40, 32, 32)))
    assert torch.equal(sprites.factors(torch.arange(len(sprites))), every)
    assert torch.equal(sprites.index(every), torch.arange(len(sprites)))


def test_a_batch_is_its_images(sprites: Sprites) -> None:
    indices = torch.randint(len(sprites), (16,)).tolist()
    batch = sprites.images(indices)
    assert batch.shape == (16, 1, 64, 64) and batch.dtype == torch.float32
    assert torch.equal(batch, torch.stack([sprites[i] for i in indices]))
    assert torch.equal(batch, torch.stack(sprites.__getitems__(indices)))
    assert sprites.images(torch.empty(0, dtype=torch.int64)).shape == (0, 1, 64, 64)


def test_a_loader_takes_batches(sprites: Sprites) -> None:
    batch = next(iter(DataLoader(sprites, batch_size=8, sampler=SequentialSampler(sprites))))
    assert torch.equal(batch, sprites.images(range(8)))


def test_an_image_is_nobody_elses(sprites: Sprites) -> None:
    """Writing into one leaves the data set as it was."""
    before = sprites[0].clone()
    sprites[0].fill_(0.5)
    assert torch.equal(sprites[0], before)


def test_edges_are_smooth_over_a_pixel(sprites: Sprites) -> None:
    images = sprites.images(torch.randint(len(sprites), (256,)))
    assert images.amin() == 0 and images.amax() == 1
    edges = ((images > 0) & (images < 1)).sum((1, 2, 3))
    assert edges.gt(0).float().mean() > 0.9, "only an upright square may have hard edges"
    perimeter = 2 * torch.pi * (images.sum((1, 2, 3)) / torch.pi).sqrt()  # of the circle of that area: the least
    assert (edges < 2.5 * perimeter).all()


@pytest.mark.parametrize("x", [0, 31])
@pytest.mark.parametrize("y", [0, 31])
def test_the_largest_are_inside_at_the_corners(sprites: Sprites, x: int, y: int) -> None:
    factors = torch.cartesian_prod(torch.arange(3), torch.tensor([5]), torch.arange(40), *torch.tensor([[x], [y]]))
    middle = factors.clone()
    middle[:, 3:] = 16
    corner, whole = sprites.images(sprites.index(factors)), sprites.images(sprites.index(middle))
    border = torch.ones(64, 64, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (corner[..., border] < 0.5).all(), "the outermost pixels hold the tips of corners, cut by nothing"
    torch.testing.assert_close(corner.sum((1, 2, 3)), whole.sum((1, 2, 3)))


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_position_moves_by_a_pixel_and_nothing_else(sprites: Sprites, shape: int) -> None:
    start = image(sprites, shape, 3, 7, 0, 0)
    assert torch.equal(image(sprites, shape, 3, 7, 10, 0), start.roll(10, 1))
    assert torch.equal(image(sprites, shape, 3, 7, 0, 10), start.roll(10, 0))
    assert torch.equal(image(sprites, shape, 3, 7, 31, 31), start.roll((31, 31), (0, 1)))


def test_positions_are_symmetric(sprites: Sprites) -> None:
    (left, top), (right, bottom) = (
        centre(image(sprites, SQUARE, 5, 0, 0, 0)),
        centre(image(sprites, SQUARE, 5, 0, 31, 31)),
    )
    assert (left, top, right, bottom) == pytest.approx((16, 16, 47, 47), abs=1e-3)


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_scale_scales_the_area(sprites: Sprites, shape: int) -> None:
    areas = torch.stack([image(sprites, shape, scale, 3, 16, 16).sum() for scale in range(6)])
    torch.testing.assert_close(areas / areas[-1], torch.linspace(0.5, 1, 6) ** 2, rtol=0.02, atol=0)


def test_shapes_differ_in_area(sprites: Sprites) -> None:
    """In units of half the square's side: 4, pi, and the heart's 3.66."""
    areas = torch.stack([image(sprites, shape, 5, 3, 16, 16).sum() for shape in range(3)])
    torch.testing.assert_close(areas / 11**2, torch.tensor([4.0, math.pi, 3.66]), rtol=0.02, atol=0)


def test_orientation_turns_counterclockwise(sprites: Sprites) -> None:
    for orientation in range(40):
        angle = lean(image(sprites, ELLIPSE, 5, orientation, 16, 16))
        away = (angle - 2 * math.pi * orientation / 39 + math.pi / 2) % math.pi - math.pi / 2
        assert abs(away) < 0.01, orientation


def test_the_last_orientation_looks_like_the_first(sprites: Sprites) -> None:
    first, last = (image(sprites, HEART, 5, orientation, 16, 16) for orientation in (0, 39))
    assert (first - last).abs().sum() < 1, "a full turn, to rounding"


def test_the_heart_stands_on_its_tip(sprites: Sprites) -> None:
    heart = image(sprites, HEART, 5, 0, 16, 16)
    widths = heart.sum(1)[heart.sum(1) > 0]
    assert widths[-1] < 4 and widths[len(widths) // 4] > 15
    torch.testing.assert_close(heart[:, 16:49], heart[:, 16:49].flip(1))


def test_half_the_size_has_the_means_of_four_pixels(sprites: Sprites) -> None:
    small, indices = Sprites(size=32), torch.randint(len(sprites), (512,))
    assert small.image_shape == (1, 32, 32) and len(small) == len(sprites)
    assert small.images(indices).shape == (512, 1, 32, 32)
    torch.testing.assert_close(small.images(indices), F.avg_pool2d(sprites.images(indices), 2), rtol=0, atol=1e-6)
    assert torch.equal(small.factors(indices), sprites.factors(indices))


def test_half_the_size_shows_positions_of_half_a_pixel() -> None:
    small = Sprites(size=32)
    for position in range(32):
        expected = pytest.approx((8 - 0.25 + position / 2, 8 - 0.25 + position / 2), abs=1e-3)
        assert centre(image(small, SQUARE, 5, 0, position, position)) == expected


@pytest.mark.parametrize("size", [0, 16, 33, 128])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be .*, got {size}$"):
        Sprites(size)


@pytest.mark.parametrize("size", [32.0, True, "32", None])
def test_a_size_is_an_integer(size: Any) -> None:
    with pytest.raises(TypeError, match="size must be an integer, got"):
        Sprites(size)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s[737_280], IndexError, r"indices must be in \[0, 737280\), got 737280"),
        (lambda s: s[-1], IndexError, r"indices must be in \[0, 737280\), got -1"),
        (lambda s: s.images([0, 800_000]), IndexError, "indices .* got 800000"),
        (lambda s: s.factors(torch.tensor([0.5])), ValueError, "indices must be integers, got torch.float32"),
        (lambda s: s.factors([True]), ValueError, "indices must be integers, got torch.bool"),
        (lambda s: s.images(torch.tensor([[1]])), ValueError, r"indices must have one dimension, got shape \(1, 1\)"),
        (lambda s: s[1:3], ValueError, r"indices must be integers, got \[slice\(1, 3, None\)\]"),
        (lambda s: s.index([[0, 6, 0, 0, 0]]), IndexError, r"factors: scale must be in \[0, 6\), got 6"),
        (lambda s: s.index([[0, 0, 0, 0, -1]]), IndexError, r"factors: y must be in \[0, 32\), got -1"),
        (lambda s: s.index([[0, 0, 0, 0]]), ValueError, r"factors must have shape \(n, 5\), got \(1, 4\)"),
        (lambda s: s.index(torch.zeros(1, 5)), ValueError, "factors must be integers, got torch.float32"),
    ],
)
def test_wrong_arguments_are_named(
    sprites: Sprites, call: Callable[[Sprites], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(sprites)
