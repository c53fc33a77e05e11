"""`python -m fastib evaluate` and `plot` of models of scenes: of some whose finds are known, and of a trained one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from matplotlib.image import imread
from torch import Tensor

from fastib import checkpoints, cli, evaluate, plots, train
from fastib.configs import Config
from fastib.datasets import LabelledImages, Scenes
from fastib.evaluate import scenes as of_scenes
from fastib.losses import VAETerms
from fastib.models import AIR, Entities, MultiEntityVAE, SceneModel


def _scenes(count: int = 600) -> Scenes:
    """None to three of three kinds of objects, each of which has its mass in its middle."""
    kinds = torch.stack([torch.full((4, 4), 0.4), torch.eye(4) / 2 + torch.eye(4).flip(1) / 2, torch.ones(4, 4)])
    return Scenes(LabelledImages(kinds, torch.arange(3)), scenes=count, side=24, size=4, most=3, seed=1)


class _Known(SceneModel):
    """Finds all objects of the images of a data set, which it knows, unless it is told to err."""

    def __init__(self, scenes: Scenes) -> None:
        super().__init__()
        indices = torch.arange(len(scenes))
        self.scenes, self.all = scenes, scenes.images(indices)
        objects = scenes.factors(indices)[:, 1:].unflatten(1, (3, 3))
        images = torch.zeros(len(scenes), 3, *scenes.image_shape)
        codes = objects.double()
        self.found = Entities(objects[..., 0] > 0, codes, torch.full_like(codes, -6.0), images)
        for scene, k in self.found.there.nonzero().tolist():
            row, column = (objects[scene, k, 1:] - 1).tolist()
            own = scenes._resized[scenes._which[scene, k], 0]
            self.found.images[scene, k, 0, row : row + 4, column : column + 4] = own

    def entities(self, images: Tensor) -> Entities:
        same = (images.flatten(1).unsqueeze(1) == self.all.flatten(1)).all(2).int().argmax(1)
        return Entities(*(t[same] for t in self.found[:4]))

    def compose(self, entities: Entities) -> Tensor:
        return (entities.images * entities.there[..., None, None, None]).amax(1)

    def forward(self, images: Tensor) -> Any:
        return VAETerms(images.sum(), images.sum() / len(images), torch.tensor(7.0))


def test_of_a_model_that_finds_all() -> None:
    scenes = _scenes()
    results = evaluate.of_scenes(_Known(scenes), scenes, scenes)
    expected = {"rate": 7.0, "squared_error": 0.0, "count_accuracy": 1.0, "count_error": 0.0, "matched_objects": 1.0}
    assert results.items() >= expected.items()
    assert results["distortion"] == pytest.approx(scenes.images(range(600)).sum().item() / 600, rel=1e-5)
    # Each dimension of its codes is a factor.
    names = ("mutual_information_gap", "gap_of_label", "gap_of_row", "gap_of_column", "dci_disentanglement")
    assert all(results[name] > 0.85 for name in (*names, "dci_completeness", "dci_informativeness"))


def test_of_a_model_that_misses_an_object() -> None:
    scenes = _scenes()
    model, counts = _Known(scenes), scenes.factors(range(600))[:, 0]
    model.found.there[:, 0] = False
    results = evaluate.of_scenes(model, scenes, scenes)
    full = (counts > 0).double().mean().item()
    assert results["count_accuracy"] == pytest.approx(1 - full) and results["count_error"] == pytest.approx(full)
    assert results["matched_objects"] == pytest.approx(1 - (counts > 0).sum().item() / counts.sum().item())
    missed = (scenes.images(range(600)) - model.found.images[:, 1:].amax(1)).square().sum().item() / 600
    assert results["squared_error"] == pytest.approx(missed, rel=1e-5) and missed > 1


def test_the_order_of_the_entities_means_nothing() -> None:
    scenes = _scenes()
    model, other = _Known(scenes), _Known(scenes)
    orders = torch.rand(600, 3).argsort(1)
    other.found = Entities(*(t[torch.arange(600).unsqueeze(1), orders] for t in model.found[:4]))
    results, permuted = (evaluate.of_scenes(m, scenes, scenes) for m in (model, other))
    for name in ("squared_error", "count_accuracy", "matched_objects", "mutual_information_gap"):
        assert permuted[name] == pytest.approx(results[name], rel=1e-9)


def test_a_dimension_whose_noise_hides_what_it_says_is_not_informative() -> None:
    """Its mean follows a factor, but a sample of it doesn't: then a second dimension that does leaves a gap."""
    scenes = _scenes()
    model = _Known(scenes)
    codes, logvars = model.found.codes, model.found.logvars
    doubled = torch.cat([codes, codes / 1000], dim=2), torch.cat([logvars, torch.zeros_like(logvars)], dim=2)
    model.found = model.found._replace(codes=doubled[0], logvars=doubled[1])
    assert evaluate.of_scenes(model, scenes, scenes)["mutual_information_gap"] > 0.85


def test_nothing_is_said_of_factors_that_do_not_vary() -> None:
    one = Scenes(LabelledImages(torch.ones(1, 8, 8), torch.zeros(1).long()), scenes=300, side=8, size=8, most=1, seed=1)
    results = evaluate.of_scenes(AIR((1, 8, 8), hidden=8, window=4, most=1, latent_dim=2), one, one)
    assert "count_accuracy" in results and "mutual_information_gap" not in results


def test_what_is_there_is_read_from_the_training_scenes() -> None:
    scenes, test = _scenes(), _scenes(200)
    model = MultiEntityVAE(scenes.image_shape, latent_dim=2, entities=3, width=4, hidden=8, threshold=1e9)
    results = evaluate.of_scenes(model, scenes, test)
    assert results["threshold"] == model.threshold == model.calibrate(scenes.images(range(600)))
    assert 0 < results["threshold"] < 1e3


@pytest.mark.parametrize(("pixels", "least", "most"), [(1, 0.9, 1.0), (3, 0.0, 0.2)])  # some are across the edge then
def test_what_is_within_half_an_object_is_matched(pixels: int, least: float, most: float) -> None:
    scenes = _scenes()
    model = _Known(scenes)
    model.found = model.found._replace(images=model.found.images.roll(pixels, -1))
    results = evaluate.of_scenes(model, scenes, scenes)
    assert least <= results["matched_objects"] <= most and results["count_accuracy"] == 1


def test_what_is_black_is_not_matched() -> None:
    scenes = _scenes()
    model, counts = _Known(scenes), scenes.factors(range(600))[:, 0]
    model.found.images[:, 0] = 0
    expected = 1 - (counts > 0).sum().item() / counts.sum().item()
    assert evaluate.of_scenes(model, scenes, scenes)["matched_objects"] == pytest.approx(expected)


def test_one_entity_of_two_at_an_object_is_matched() -> None:
    scenes = _scenes()
    model = _Known(scenes)
    model.found = Entities(*(t.repeat_interleave(2, 1) for t in model.found[:4]))
    results = evaluate.of_scenes(model, scenes, scenes)
    counts = scenes.factors(range(600))[:, 0].double()
    assert results["matched_objects"] == 1 and results["count_error"] == pytest.approx(counts.mean().item())


def test_matches_are_the_best_of_all() -> None:
    """Against all ways to pair four entities with three objects."""
    centres, objects = 8 * torch.rand(40, 4, 2), torch.randint(1, 6, (40, 3, 3))
    objects[:20, 2] = 0
    there = torch.rand(40, 4) < 0.8
    found = of_scenes._Found(there, *torch.zeros(2, 40, 4, 1), centres, torch.zeros(40))
    scenes, entities, which = of_scenes._matched(found, objects, size=5)
    for scene in range(40):
        pairs = [(e, o) for s, e, o in zip(*(t.tolist() for t in (scenes, entities, which)), strict=True) if s == scene]
        distances = torch.cdist(centres[scene].double(), objects[scene, :, 1:].double() + 1)  # centres are 2 from edges
        distances[~there[scene]] = torch.inf
        distances[:, objects[scene, :, 0] == 0] = torch.inf
        distances[distances > 2.5] = torch.inf
        ways = []
        for order in itertools.permutations(range(4), 3):
            near = [d for d in (distances[e, o].item() for o, e in enumerate(order)) if d < torch.inf]
            ways.append((-len(near), sum(near)))
        got = sum(distances[e, o].item() for e, o in pairs)
        assert (-len(pairs), pytest.approx(got, abs=1e-4)) == min(ways)
        assert len({e for e, _ in pairs}) == len({o for _, o in pairs}) == len(pairs)


class _Blind(_Known):
    """Finds nothing, and its loss has no rate."""

    class Terms(NamedTuple):
        loss: Tensor

    def entities(self, images: Tensor) -> Entities:
        found = super().entities(images)
        return found._replace(there=torch.zeros_like(found.there))

    def forward(self, images: Tensor) -> Any:
        return self.Terms(images.sum())


def test_of_a_model_that_finds_nothing() -> None:
    scenes = _scenes(200)
    results = evaluate.of_scenes(_Blind(scenes), scenes, scenes, images=150, seed=3)
    assert set(results) == {"squared_error", "count_accuracy", "count_error", "matched_objects"}
    assert results["matched_objects"] == 0 and results["count_error"] > 1 and results["squared_error"] > 1


def test_so_many_images_are_drawn() -> None:
    scenes = _scenes(200)
    errors = [
        evaluate.of_scenes(_Blind(scenes), scenes, scenes, images=150, seed=seed)["count_error"] for seed in (3, 3, 4)
    ]
    assert errors[0] == errors[1] != errors[2]


# Pictures, of models that are known.


def _rows(monkeypatch: pytest.MonkeyPatch, model: SceneModel, images: Tensor, path: Path) -> dict[str, Any]:
    """What is drawn, by the titles."""
    seen: dict[str, Any] = {}
    grid = plots._grid

    def note(figure: Any, title: str, rows: Any) -> Any:
        seen[title] = rows
        return grid(figure, title, rows)

    with monkeypatch.context() as patch:
        patch.setattr(plots, "_grid", note)
        plots.entities(model, images, path)
    return seen


def test_a_picture_of_entities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = _scenes()
    model = _Known(scenes)
    model.found.images[~model.found.there] = 0.5  # what is not there is not drawn
    images = scenes.images(range(11))
    seen = _rows(monkeypatch, model, images, tmp_path / "picture.png")
    ((title, rows),) = seen.items()
    assert title == "Entities" and [name for name, _ in rows] == [
        "image",
        "composition",
        *(f"entity {k}" for k in "123"),
    ]
    assert torch.equal(rows[0][1], images) and torch.equal(rows[1][1], images)
    assert torch.equal(torch.stack([row for _, row in rows[2:]]).amax(0), images)
    assert (rows[4][1].amax((1, 2, 3)) > 0).tolist() == (scenes.factors(range(11))[:, 0] == 3).tolist()


def test_boxes_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the edges of the axes' rectangles, in a picture of one image whose first pixel has its centre at 0."""
    model = AIR((1, 8, 8), most=2, hidden=8, window=4)
    with torch.no_grad():
        model.decide.bias[0] = 3.0  # so that there are some
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: drawn.append(figure))
    images = torch.rand(3, 1, 8, 8)
    plots.entities(model, images, tmp_path / "picture.png")
    found = model.entities(images)
    assert found.boxes is not None
    boxes = [axis.patches for axis in drawn[0].axes]
    assert [len(b) for b in boxes] == [0] * 3 + found.there.sum(1).tolist() + [0] * 6 and found.there.any()
    first = int(found.there.any(1).int().argmax())
    left, top, right, bottom = (found.boxes[first][found.there[first]][0] - 0.5).tolist()
    assert boxes[3 + first][0].get_bbox().extents.tolist() == pytest.approx([left, top, right, bottom])


def test_a_traversal_moves_one_dimension_of_one_entity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MultiEntityVAE((1, 16, 16), latent_dim=3, entities=2, width=4, hidden=16, threshold=0.0)
    images = torch.rand(5, 1, 16, 16)
    model.threshold = model.kl_of_dimensions(images).sum(2)[:, 1].sort().values[-2:].mean().item()
    found, kl = model.entities(images), model.kl_of_dimensions(images)
    assert found.there.all(1).sum() == 1  # of one image both are there
    full = int(found.there.all(1).int().argmax())
    seen = _rows(monkeypatch, model, images, tmp_path / "picture.png")
    assert [len(rows) for rows in seen.values()] == [3, 4] and len(seen) == 2
    rows = seen["Latent traversals of one entity, -3 to 3, by the KL of the dimension"]
    order = kl[full, 0].argsort(descending=True).tolist()
    assert [name for name, _ in rows] == [f"{kl[full, 0, d]:.2f} nats" for d in order]
    for (_, row), dimension in zip(rows, order, strict=True):
        for column, value in ((0, -3.0), (10, 3.0)):
            codes = found.codes[full].clone()
            codes[0, dimension] = value
            expected = 1 - (1 - model.decode(codes[None])[0]).prod(0)
            torch.testing.assert_close(row[column], expected)
    model.threshold = 1e9
    assert len(_rows(monkeypatch, model, images, tmp_path / "picture.png")) == 1  # no entity, no traversal


# A trained one, by its commands.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    options = {"dataset": "sprite-scenes-32", "width": 4, "hidden": 16, "steps": 2}
    train.run(Config.of({"model": "multi-entity-vae", **options}), folder)
    return folder


def test_of_a_trained_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(run / checkpoints.NAME), "--images=300", "--seed=1"]) == 0
    said = capsys.readouterr().out
    results = json.loads((run / "evaluation.json").read_text())
    assert results.pop("step") == 2 and {"distortion", "rate", "count_accuracy", "squared_error"} <= set(results)
    assert all(f"{name.replace('_', ' '):40}{value:12.4f}" in said for name, value in results.items())
    assert results == evaluate.run(run / checkpoints.NAME, images=300, seed=1)


def test_a_picture_of_a_trained_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", "entities", str(run)]) == 0
    assert f"Wrote {run / 'entities.png'}" in capsys.readouterr().out
    pixels = imread(run / "entities.png")
    assert pixels.ndim == 3 and min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.02


def test_other_models_and_other_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"dataset": "digits", "steps": 1, "hidden": 8}
    train.run(Config.of({"model": "vib", **options}), tmp_path / "vib")
    train.run(Config.of({"model": "multi-entity-vae", "entities": 1, **options}), tmp_path / "digits")
    assert cli.main(["plot", "entities", str(tmp_path / "vib")]) == 2
    assert "entities must be of a model of scenes, got vib in" in capsys.readouterr().err
    assert cli.main(["evaluate", str(tmp_path / "digits" / checkpoints.NAME)]) == 2
    assert "dataset must be of scenes, to evaluate a multi-entity-vae, got 'digits'" in capsys.readouterr().err


def test_codes_of_objects_of_which_one_factor_varies() -> None:
    """They have a gap, and no forests."""
    factors = torch.arange(200)[:, None] % torch.tensor([3, 1])
    codes = torch.randn(200, 2)
    results = of_scenes._disentanglement(codes, torch.zeros(200, 2), factors, ["label", "row"], 0)
    assert "mutual_information_gap" in results and "dci_disentanglement" not in results
