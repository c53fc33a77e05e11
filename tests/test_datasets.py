"""The data sets: what all have in common, the files of MNIST, and the nuisances, each where its factor says."""

from __future__ import annotations

import functools
import gzip
import math
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, StackDataset, Subset

from fastib.datasets import Cluttered, FactoredImages, LabelledImages, Occluded, Sprites, digits, mnist


def labelled(n: int = 50, shape: tuple[int, ...] = (7, 6), classes: int = 4) -> LabelledImages:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(256, (n, *shape), dtype=torch.uint8, generator=generator)
    return LabelledImages(images, torch.randint(classes, (n,), generator=generator), classes)


def colours() -> LabelledImages:
    return LabelledImages(torch.linspace(0, 1, 50 * 3 * 8 * 9).view(50, 3, 8, 9), torch.arange(50))


DATA_SETS: dict[str, Callable[[], FactoredImages]] = {
    "sprites": Sprites,
    "small_sprites": lambda: Sprites(32),
    "labelled": labelled,
    "colours": colours,
    "digits": lambda: digits(train=False),
    "occluded": lambda: Occluded(colours(), labelled(), side=5),
    "cluttered": lambda: Cluttered(labelled(), side=15, pieces=3, piece=4),
}
IMAGE_SHAPES = {
    "sprites": (1, 64, 64),
    "small_sprites": (1, 32, 32),
    "labelled": (1, 7, 6),
    "colours": (3, 8, 9),
    "digits": (1, 8, 8),
    "occluded": (3, 8, 9),
    "cluttered": (1, 15, 15),
}
data_set = functools.cache(lambda name: DATA_SETS[name]())
of_all = pytest.mark.parametrize("name", DATA_SETS)


def some(data: FactoredImages, n: int = 30) -> Tensor:
    return torch.randint(len(data), (n,))


@of_all
def test_images_and_factors_are_as_announced(name: str) -> None:
    data = data_set(name)
    indices = some(data)
    images, factors = data.images(indices), data.factors(indices)
    assert data.image_shape == IMAGE_SHAPES[name] and images.shape == (30, *data.image_shape)
    assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1 and images.std() > 0.05
    assert factors.dtype == torch.int64 and factors.shape == (30, len(data.factor_names))
    assert len(data.factor_sizes) == len(data.factor_names)
    assert (factors >= 0).all() and (factors < torch.tensor(data.factor_sizes)).all()
    assert data.images([]).shape == (0, *data.image_shape)
    assert data.factors(torch.empty(0, dtype=torch.int32)).shape == (0, len(data.factor_names))


@of_all
def test_a_batch_is_its_images(name: str) -> None:
    data = data_set(name)
    indices = some(data)
    images, factors = data.images(indices), data.factors(indices)
    assert torch.equal(images, torch.cat([data.images([i]) for i in indices.tolist()]))
    assert torch.equal(factors, torch.cat([data.factors([i]) for i in indices.tolist()]))
    assert torch.equal(images, data.images(indices.numpy()))  # type: ignore[arg-type]


@of_all
def test_an_image_is_nobody_elses(name: str) -> None:
    """Writing into one leaves the data set as it was."""
    data = data_set(name)
    before = data.images([0])
    data.images([0]).fill_(0.5)
    assert torch.equal(data.images([0]), before)


@pytest.mark.parametrize("name", [name for name in DATA_SETS if "sprites" not in name])
def test_a_sample_is_an_image_and_its_factors(name: str) -> None:
    data = data_set(name)
    image, *factors = data[3]
    assert torch.equal(image, data.images([3])[0])
    assert factors == data.factors([3])[0].tolist() and all(type(factor) is int for factor in factors)
    for index, (image, *factors) in zip((4, 3), data.__getitems__([4, 3]), strict=True):
        assert torch.equal(image, data.images([index])[0])
        assert factors == data.factors([index])[0].tolist()


@of_all
def test_the_random_numbers_of_pytorch_are_left_alone(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    images = DATA_SETS[name]().images(range(30))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(DATA_SETS[name]().images(range(30)), images)


@of_all
def test_pickled(name: str) -> None:
    data = data_set(name)
    copy = pickle.loads(pickle.dumps(data))
    indices = some(data)
    assert torch.equal(copy.images(indices), data.images(indices))
    assert torch.equal(copy.factors(indices), data.factors(indices))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_data_loader(context: str) -> None:
    """All data sets at once, since a fresh process takes seconds."""
    data = {name: data_set(name) for name in DATA_SETS}
    order = torch.randperm(50).tolist()
    stack = StackDataset(**{name: Subset(one, range(50)) for name, one in data.items()})
    loader = DataLoader(stack, batch_size=8, sampler=order, num_workers=2, multiprocessing_context=context, timeout=60)
    batches = list(loader)
    for name, one in data.items():
        if "sprites" in name:
            assert torch.equal(torch.cat([batch[name] for batch in batches]), one.images(order))
        else:
            image, *factors = (torch.cat(parts) for parts in zip(*(batch[name] for batch in batches), strict=True))
            assert torch.equal(image, one.images(order))
            assert torch.equal(torch.stack(factors, dim=1), one.factors(order))


@of_all
@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, -1], IndexError, r"indices must be in \[0, \d+\), got -1"),
        ([737_280], IndexError, r"indices must be in \[0, \d+\), got 737280"),
        ([0.5], ValueError, "indices must be integers, got torch.float32"),
        (torch.tensor([True]), ValueError, "indices must be integers, got torch.bool"),
        (["a"], ValueError, r"indices must be integers, got \['a'\]"),
        (None, ValueError, "indices must be integers, got None"),
        ([2**70], ValueError, f"indices must be integers, got .{2**70}"),
        (3, ValueError, r"indices must have one dimension, got shape \(\)"),
    ],
)
def test_wrong_indices(name: str, indices: Any, error: type[Exception], message: str) -> None:
    data = data_set(name)
    for of in (data.images, data.factors):
        with pytest.raises(error, match=message):
            of(indices)


# Labelled images.


def test_bytes_become_fractions() -> None:
    data = LabelledImages(torch.arange(256, dtype=torch.uint8).view(4, 8, 8), torch.tensor([2, 0, 1, 2]))
    images = data.images([3, 0])
    assert torch.equal(images[0], (torch.arange(192.0, 256.0) / 255).view(1, 8, 8))
    assert torch.equal(images[1], (torch.arange(64.0) / 255).view(1, 8, 8))
    assert data.factors([3, 0]).tolist() == [[2], [2]]


def test_fractions_are_kept() -> None:
    images = torch.rand(5, 3, 4, 2)
    assert torch.equal(LabelledImages(images, torch.zeros(5, dtype=torch.uint8)).images([4, 1]), images[[4, 1]])


def test_classes_are_counted_unless_they_are_given() -> None:
    images, labels = torch.zeros(3, 2, 2), torch.tensor([0, 6, 2])
    assert LabelledImages(images, labels).factor_sizes == (7,)
    assert LabelledImages(images, labels, classes=10).factor_sizes == (10,)


PIXELS, LABELS = torch.zeros(3, 4, 4), torch.arange(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0.0]], LABELS), TypeError, "images must be a torch.Tensor, got list"),
        ((PIXELS.double(), LABELS), TypeError, "images must be torch.uint8 or torch.float32, got torch.float64"),
        ((PIXELS.to_sparse(), LABELS), TypeError, "images must be a dense tensor, got layout torch.sparse_coo"),
        ((PIXELS[0], LABELS), ValueError, r"images must be \[n, H, W\] or .*, got shape \(4, 4\)"),
        ((PIXELS[:0], LABELS[:0]), ValueError, r"images must be .* not empty, got shape \(0, 4, 4\)"),
        ((PIXELS + 1.5, LABELS), ValueError, r"images must be in \[0, 1\], got pixels from 1.5 to 1.5"),
        ((PIXELS - 0.5, LABELS), ValueError, r"images must be in \[0, 1\], got pixels from -0.5 to -0.5"),
        ((PIXELS / 0, LABELS), ValueError, r"images must be in \[0, 1\], got pixels from nan to nan"),
        ((PIXELS, [0, 1, 2]), TypeError, "labels must be a torch.Tensor, got list"),
        ((PIXELS, LABELS.float()), TypeError, "labels must be .*, got torch.float32"),
        ((PIXELS, LABELS.bool()), TypeError, "labels must be .*, got torch.bool"),
        ((PIXELS, LABELS[:2]), ValueError, r"labels must have one for each of the 3 images, got shape \(2,\)"),
        ((PIXELS, LABELS[:, None]), ValueError, r"labels must have one for each .*, got shape \(3, 1\)"),
        ((PIXELS, LABELS - 1), ValueError, "labels must be at least 0, got -1"),
        ((PIXELS, LABELS - 1, 3), ValueError, r"labels must be in \[0, 3\), got -1"),
        ((PIXELS, LABELS, 2), ValueError, r"labels must be in \[0, 2\), got 2"),
        ((PIXELS, LABELS, 0), ValueError, "classes must be at least 1, got 0"),
        ((PIXELS, LABELS, 3.0), TypeError, "classes must be an integer, got float 3.0"),
    ],
)
def test_wrong_labelled_images(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LabelledImages(*arguments)


# The files of MNIST.


def idx(array: Tensor) -> bytes:
    return bytes([0, 0, 8, array.dim()]) + struct.pack(f">{array.dim()}I", *array.shape) + array.numpy().tobytes()


IMAGES = torch.randint(256, (300, 3, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))
CLASSES = (torch.arange(300) % 10).to(torch.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """300 images to train with, and 2 to test with in compressed files."""
    for part, n, compress in (("train", 300, bytes), ("t10k", 2, gzip.compress)):
        suffix = ".gz" if n == 2 else ""
        (tmp_path / f"{part}-images-idx3-ubyte{suffix}").write_bytes(compress(idx(IMAGES[:n])))
        (tmp_path / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(compress(idx(CLASSES[:n])))
    return tmp_path


def test_files_are_read_as_they_are_or_compressed(folder: Path) -> None:
    for data, n in ((mnist(folder), 300), (mnist(str(folder), train=False), 2)):
        assert len(data) == n and data.image_shape == (1, 3, 2) and data.factor_sizes == (10,)
        assert torch.equal(data.images(range(n)), IMAGES[:n, None].float() / 255)
        assert torch.equal(data.factors(range(n))[:, 0], CLASSES[:n].long())


@pytest.mark.parametrize("name", ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / f"{name}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"folder must have .*{folder}' without {name} or .*dataset-fashion"):
        mnist(folder, train=False)
    assert len(mnist(folder)) == 300


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder must have the four files of MNIST .*nowhere"):
        mnist(tmp_path / "nowhere")


def test_train_is_a_flag(folder: Path) -> None:
    for read in (lambda train: mnist(folder, train), digits):
        with pytest.raises(TypeError, match="train must be a bool, got str 'test'"):
            read("test")


GOOD = idx(CLASSES[:2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with 00000801 .*, got  and 0"),
        (GOOD[:6], "at least 8 bytes long, got 00000801 and 6"),
        (b"\x00\x00\x08\x03" + GOOD[4:], "begins with 00000801 .*, got 00000803"),
        (b"\x00\x00\x0d\x01" + GOOD[4:], "begins with 00000801 .*, got 00000d01"),
        (GOOD[:-1], r"the bytes of an array \[2\].*, got 1"),
        (GOOD + b"\x00", r"the bytes of an array \[2\].*, got 3"),
        (idx(CLASSES[:0]), r"the bytes of an array \[0\], not empty, got 0"),
        (idx(CLASSES[:3]), "have a label for each of the 2 images, got 3"),
        (idx(CLASSES[:2] + 10), r"have labels in \[0, 10\), got 11"),
    ],
    ids=["empty", "header", "dimensions", "dtype", "truncated", "trailing", "no_labels", "count", "classes"],
)
def test_wrong_files_are_named(folder: Path, content: bytes, message: str) -> None:
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=f"{path} must .*{message}"):
        mnist(folder, train=False)


@pytest.mark.parametrize(
    "content",
    [GOOD, gzip.compress(GOOD)[:-9], gzip.compress(GOOD) + b"more", gzip.compress(GOOD)[:10] + b"\xff" * 30],
    ids=["plain", "truncated", "trailing", "junk"],
)
def test_wrong_compressed_files_are_named(folder: Path, content: bytes) -> None:
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} must be a file of gzip: "):
        mnist(folder, train=False)


# Digits.


def test_digits_are_split_into_two() -> None:
    from sklearn.datasets import load_digits

    both, every = (digits(), digits(train=False)), load_digits()
    assert [len(part) for part in both] == [1437, 360]
    images, factors = zip(
        *((part.images(range(len(part))), part.factors(range(len(part)))) for part in both), strict=True
    )
    np.testing.assert_array_equal(16 * torch.cat(images)[:, 0].numpy(), every.images)
    np.testing.assert_array_equal(torch.cat(factors)[:, 0].numpy(), every.target)
    for labels in factors:
        counts = labels.flatten().bincount()
        assert len(counts) == 10 and counts.min() > 0.9 * len(labels) / 10


def test_digits_need_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"digits needs scikit-learn: pip install 'fastib\[models\]'"):
        digits()


# Occluded images.


def test_an_occluder_is_in_front_of_the_middle() -> None:
    scenes, occluders = labelled(200, (3, 7, 8)), LabelledImages(torch.rand(20, 4, 4), torch.arange(20))
    occluded = Occluded(scenes, occluders, side=4)
    assert occluded.factor_names == ("label", "nuisance") and occluded.factor_sizes == (4, 20)
    label, nuisance = occluded.factors(range(200)).unbind(1)
    assert torch.equal(label, scenes.factors(range(200))[:, 0])
    expected, front = scenes.images(range(200)), occluders.images(nuisance)
    expected[:, :, 1:5, 2:6] = expected[:, :, 1:5, 2:6] * (1 - front) + front
    torch.testing.assert_close(occluded.images(range(200)), expected, rtol=0, atol=1e-6)


def test_an_occluder_is_resized_smoothly() -> None:
    black = LabelledImages(torch.zeros(1, 4, 4), torch.tensor([0]))
    half = LabelledImages(torch.tensor([[[0.0, 1.0]]]), torch.tensor([0]))
    row = torch.tensor([0.0, 0.25, 0.75, 1.0])
    torch.testing.assert_close(Occluded(black, half, side=4)[0][0], row.expand(1, 4, 4))
    line = torch.zeros(1, 16, 16)
    line[:, 0] = 1
    shrunk = Occluded(black, LabelledImages(line, torch.tensor([0])), side=4)[0][0]
    assert (shrunk[0, 0] > 0.1).all(), "thin lines are not lost"


def test_a_white_occluder_is_no_brighter_than_white() -> None:
    """The weights of 7 pixels on 3 add up to more than 1, by rounding."""
    white, black = LabelledImages(torch.ones(1, 7, 7), LABELS[:1]), LabelledImages(torch.zeros(1, 7, 7), LABELS[:1])
    assert Occluded(black, white, side=3)[0][0].max() == 1


def test_occluders_are_drawn_evenly_and_by_seed() -> None:
    scenes = LabelledImages(torch.zeros(5000, 2, 2), torch.arange(5000) % 2)
    occluders = LabelledImages(torch.linspace(0, 1, 5).view(5, 1, 1).expand(5, 2, 2), torch.arange(5))
    first, again, other = (Occluded(scenes, occluders, side=1, seed=seed).factors(range(5000)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert 0.1 < (first[:, 1] == other[:, 1]).float().mean() < 0.3
    together = (2 * first[:, 1] + first[:, 0]).bincount()
    assert ((together - 500).abs() < 5 * math.sqrt(500)).all(), "each with each label"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": torch.zeros(3, 7, 6)}, TypeError, "images must be LabelledImages, got Tensor"),
        ({"occluders": None}, TypeError, "occluders must be LabelledImages, got NoneType"),
        ({"occluders": colours()}, ValueError, r"occluders must have one channel, got images of \(3, 8, 9\)"),
        ({"side": 7}, ValueError, "side must be at most 6, for images 7 x 6, got 7"),
        ({"side": 0}, ValueError, "side must be at least 1, got 0"),
        ({"side": 2.0}, TypeError, "side must be an integer, got float 2.0"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"seed": None}, TypeError, "seed must be an integer, got NoneType None"),
    ],
)
def test_wrong_occlusion(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Occluded(**{"images": labelled(), "occluders": labelled(), "side": 4, **arguments})


# Cluttered images.


def test_an_image_is_where_its_factors_say() -> None:
    scenes = labelled(300, (3, 7, 6))
    cluttered = Cluttered(scenes, side=12, pieces=0, piece=1)
    assert cluttered.factor_names == ("label", "row", "column") and cluttered.factor_sizes == (4, 6, 7)
    expected, factors = torch.zeros(300, 3, 12, 12), cluttered.factors(range(300))
    for canvas, scene, (_, row, column) in zip(expected, scenes.images(range(300)), factors.tolist(), strict=True):
        canvas[:, row : row + 7, column : column + 6] = scene
    assert torch.equal(cluttered.images(range(300)), expected)
    assert torch.equal(factors[:, 0], scenes.factors(range(300))[:, 0])
    assert len((7 * factors[:, 1] + factors[:, 2]).unique()) == 42, "everywhere"


def outside(canvas: Tensor, row: int, column: int, height: int, width: int) -> Tensor:
    """What is not in the window where the image is."""
    rest = canvas.clone()
    rest[row : row + height, column : column + width] = 0
    return rest


def test_pieces_are_of_all_others() -> None:
    """Every image is of one grey level."""
    grey = torch.arange(1.0, 4.0) / 3
    cluttered = Cluttered(LabelledImages(grey.view(3, 1, 1).expand(3, 4, 4), torch.arange(3)), 40, pieces=30, piece=2)
    for index in range(3):
        canvas, _, row, column = cluttered[index]
        assert (canvas[0, row : row + 4, column : column + 4] >= grey[index]).all(), "the image is never hidden"
        rest = outside(canvas[0], row, column, 4, 4)
        assert set(rest.unique().tolist()) == {0.0, *grey.tolist()} - {grey[index].item()}
        assert rest.count_nonzero() <= 30 * 4


def test_a_piece_is_cut_from_anywhere_and_put_anywhere() -> None:
    """Every pixel tells where it comes from: it is its number in the image."""
    number = torch.arange(1, 31, dtype=torch.uint8).view(5, 6)
    cluttered = Cluttered(LabelledImages(number.expand(2000, 5, 6), torch.zeros(2000).long()), 10, pieces=1, piece=3)
    cuts, places = set(), set()
    for canvas, _, row, column in cluttered.__getitems__(list(range(2000))):
        rest = outside((255 * canvas[0]).round(), row, column, 5, 6)
        if rest.count_nonzero() == 9:
            top, left = rest.nonzero()[0].tolist()
            corner = rest[top, left].item() - 1
            assert torch.equal(rest[top : top + 3, left : left + 3], corner + number[:3, :3]), "a piece, whole"
            cuts.add(corner)
            places.add((top, left))
    assert cuts == {6.0 * row + column for row in range(3) for column in range(4)}
    assert {top for top, _ in places} == {left for _, left in places} == set(range(8))


def test_the_brightest_is_in_front() -> None:
    number = torch.arange(1.0, 31.0).view(5, 6) / 30
    cluttered = Cluttered(LabelledImages(number.expand(100, 5, 6), torch.zeros(100).long()), 6, pieces=1, piece=5)
    canvases = torch.stack([canvas[0, row : row + 5, :] for canvas, _, row, _ in cluttered.__getitems__([*range(100)])])
    assert (canvases >= number).all()
    assert (canvases > number).any() and (canvases == number).any()


def test_clutter_is_by_seed() -> None:
    first, again, other = (Cluttered(labelled(), 20, 3, 4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.images(range(50)), again.images(range(50)))
    assert (first.factors(range(50))[:, 1:] == other.factors(range(50))[:, 1:]).float().mean() < 0.3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": torch.zeros(3, 7, 6)}, TypeError, "images must be LabelledImages, got Tensor"),
        ({"images": labelled(1)}, ValueError, "images must be at least 2, to cut 4 pieces from others, got 1"),
        ({"side": 6}, ValueError, "side must be at least 7, got 6"),
        ({"side": "60"}, TypeError, "side must be an integer, got str '60'"),
        ({"pieces": -1}, ValueError, "pieces must be at least 0, got -1"),
        ({"pieces": 1.5}, TypeError, "pieces must be an integer, got float 1.5"),
        ({"piece": 7}, ValueError, "piece must be at most 6, for images 7 x 6, got 7"),
        ({"piece": 0}, ValueError, "piece must be at least 1, got 0"),
        ({"piece": True}, TypeError, "piece must be an integer, got bool True"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_wrong_clutter(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Cluttered(**{"images": labelled(), "piece": 4, **arguments})
