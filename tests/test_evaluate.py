"""`python -m fastib evaluate` and `plot`: of trained models, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread
from torch import Tensor

from fastib import checkpoints, cli, evaluate, functional, metrics, plots, train
from fastib.configs import Config
from fastib.datasets import FactoredImages, LabelledImages, Occluded, Part, Scenes, Sprites, digits
from fastib.evaluate import classifiers
from fastib.metrics import exact_elbo_decomposition
from fastib.models import VIB, AllCNN, BetaVAE, Catch, Classifier, ClassifierTerms, VariationalClassifier

VAE_OPTIONS = {"dataset": "sprites-32", "network": "mlp", "hidden": 16, "latent_dim": 3, "steps": 4, "log_every": 2}


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    train.run(Config.of({"model": "beta-vae", **VAE_OPTIONS}), folder)
    return folder


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cnn")
    options = {"dataset": "digits", "width": 4, "steps": 2, "log_every": 1}
    train.run(Config.of({"model": "information-dropout", **options}), folder)
    return folder


def test_of_a_vae(vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(vae / checkpoints.NAME), "--images=600", "--seed=1"]) == 0
    said = capsys.readouterr().out
    results = json.loads((vae / "evaluation.json").read_text())
    assert results.pop("step") == 4
    assert f"Wrote {vae / 'evaluation.json'}" in said
    assert all(f"{name.replace('_', ' '):40}{value:12.4f}" in said for name, value in results.items())
    assert results == evaluate.run(vae / checkpoints.NAME, images=600, seed=1)
    terms = ("mutual_information", "total_correlation", "dimension_wise_kl")
    assert sum(results[name] for name in terms) == pytest.approx(results["rate"], abs=0.05)
    names = {"distortion", "mutual_information_gap", "gap_of_x", "factor_vae_score", "dci_disentanglement"}
    assert names | {"separated_attribute_predictability", "active_units"} <= set(results)


def test_the_terms_are_those_of_all_images(vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = checkpoints.trained_model(checkpoints.load(vae / checkpoints.NAME))
    assert isinstance(model, BetaVAE)
    some = _Some(Sprites(32), 300)
    results = evaluate.of_vae(model, some)
    images = some.images(torch.arange(300))
    with torch.no_grad():
        mu, logvar = model.encode(images)
        expected = exact_elbo_decomposition((mu, logvar), seed=0)
        distortion = torch.stack([model(images).reconstruction for _ in range(30)])
    assert results["total_correlation"] == pytest.approx(expected.total_correlation.item(), abs=1e-5)
    assert results["rate"] == pytest.approx(functional.gaussian_kl(mu, logvar).item(), rel=1e-5)
    assert abs(results["distortion"] - distortion.mean()) < 6 * distortion.std()


class _Some(FactoredImages):
    """The first images of another set."""

    def __init__(self, of: FactoredImages, count: int) -> None:
        self.of, self.count = of, count
        self.factor_names, self.factor_sizes, self.image_shape = of.factor_names, of.factor_sizes, of.image_shape

    def __len__(self) -> int:
        return self.count

    def _images(self, indices: Tensor) -> Tensor:
        return self.of.images(indices * 2003 % len(self.of))

    def _factors(self, indices: Tensor) -> Tensor:
        return self.of.factors(indices * 2003 % len(self.of))


class _Threshold(Classifier):
    """Tells whether the mean of an image is above a half, with logits as steep as asked."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def logits(self, images: Tensor) -> Tensor:
        score = self.scale * (images.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([-score, score], dim=1)

    def representations(self, images: Tensor) -> list[Tensor]:
        return [self.logits(images)]

    def forward(self, images: Tensor, labels: Tensor) -> Any:
        loss = F.cross_entropy(self.logits(images), labels)
        return ClassifierTerms(loss, loss, torch.tensor(2.5))


def test_of_a_classifier_that_is_known() -> None:
    means = torch.tensor([0.1, 0.4, 0.45, 0.48, 0.52, 0.55, 0.6, 0.9])
    images = means.view(-1, 1, 1, 1).expand(8, 1, 3, 3).clone()
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])  # of which the fourth is wrong
    data = LabelledImages(images, labels)
    results = evaluate.of_classifier(_Threshold(10.0), data, data)
    assert results["error"] == pytest.approx(1 / 8) and results["information"] == 2.5
    # A step moves every mean by its size: 0.03 takes 0.52 with it, 0.1 takes 0.45, 0.52, 0.55, and 0.4 to the edge.
    assert results["error_of_adversary_0.01"] == pytest.approx(1 / 8)
    assert results["error_of_adversary_0.03"] == pytest.approx(2 / 8)
    assert results["error_of_adversary_0.1"] >= 4 / 8
    expected = F.cross_entropy(_Threshold(10.0).logits(images), labels)
    assert results["cross_entropy"] == pytest.approx(expected.item(), rel=1e-6)


def test_an_adversary_stays_near_and_makes_it_worse() -> None:
    model, data = VIB((1, 8, 8), 10, hidden=32, latent_dim=4), digits(train=False)
    images, labels = data.images(range(50)), data.factors(range(50))[:, 0]
    attacked = evaluate.adversarial(model, images, labels, 0.05)
    assert (attacked - images).abs().max() <= 0.05 + 1e-6 and attacked.min() >= 0 and attacked.max() <= 1
    before, after = (F.cross_entropy(model.logits(x), labels) for x in (images, attacked))
    assert after > before + 0.01 and all(p.grad is None for p in model.parameters())


def _dim(data: LabelledImages) -> LabelledImages:
    indices = torch.arange(len(data))
    return LabelledImages(data.images(indices) / 10, data.factors(indices)[:, 0], 10)


def test_nuisance_of_images_and_layers() -> None:
    model = AllCNN((1, 8, 8), 10, width=4).eval()
    train_, test = (Occluded(_dim(digits(part)), digits(part), side=8) for part in (True, False))
    results = evaluate.of_nuisance(model, train_, test)
    names = {
        f"{what}_{kind}_{layer}"
        for what in ("label", "nuisance")
        for kind in ("information", "accuracy")
        for layer in ("image", "layer_1", "layer_2", "layer_3")
    }
    assert set(results) == names
    assert results["nuisance_accuracy_image"] > 0.5 > results["label_accuracy_image"]  # it is in front
    assert evaluate.of_nuisance(model, digits(), digits(False)) == {}


def test_probes_of_several_models_see_the_same_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "PROBED", 300)
    monkeypatch.setattr(classifiers, "PROBED_TEST", 100)
    train_, test = (Occluded(_dim(digits(part)), digits(part), side=8) for part in (True, False))
    found = [
        evaluate.of_classifier(AllCNN((1, 8, 8), 10, width=4, noise=noise), train_, test, seed=3)
        for noise in ("none", "dropout", "information")
    ]
    read = [{name: value for name, value in results.items() if name.endswith("_image")} for results in found]
    assert len(read[0]) == 4 and read[0] == read[1] == read[2]


@pytest.mark.parametrize("posterior", ["gaussian", "log_normal"])
def test_of_weights(posterior: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"dataset": "digits", "hidden": 8, "steps": 3, "batch": 20, "examples": 200, "posterior": posterior}
    train.run(Config.of({"model": "information-in-weights", **options}), tmp_path)
    assert cli.main(["evaluate", str(tmp_path / checkpoints.NAME), "--images=100"]) == 0
    results = evaluate.evaluation(tmp_path)
    assert {"error", "information", "error_on_training", "cross_entropy_on_training"} <= set(results)
    assert ("pac_bayes_bound" in results) == (posterior == "gaussian")  # the other has no prior that is a distribution
    if posterior == "gaussian":
        error, information = results["error_on_training"], results["information"] * 200
        # Each image has draws of its own, and the prior's width is one of eight.
        bound = metrics.pac_bayes_bound(error, information, 200, 0.05 / 8, draws=100 * 200)
        assert results["pac_bayes_bound"] == bound and error < bound <= 1


def test_what_a_bound_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few steps it is 1, whatever it was told."""
    told = []
    monkeypatch.setattr(metrics, "pac_bayes_bound", lambda *args, **options: told.append((args, options)) or 0.5)
    model = VariationalClassifier((1, 8, 8), 10, 200, posterior="gaussian", hidden=8)
    results = evaluate.of_weights(model, Part(digits(), 200), digits(False), images=100)
    information = model(digits().images(range(2)), torch.tensor([0, 1])).information.item() * 200
    [((error, of_weights, *rest), options)] = told
    assert error == results["error_on_training"] and rest == [200, 0.05 / 8] and options == {"draws": 100 * 200}
    assert of_weights == pytest.approx(information, rel=1e-5)


def test_a_bound_of_draws_that_images_share(tmp_path: Path) -> None:
    options = {"network": "conv", "hidden": 8, "steps": 2, "batch": 20, "examples": 60, "posterior": "gaussian"}
    train.run(Config.of({"model": "information-in-weights", "dataset": "digits", **options}), tmp_path)
    assert cli.main(["evaluate", str(tmp_path / checkpoints.NAME), "--images=100"]) == 0
    results = evaluate.evaluation(tmp_path)
    error, information = results["error_on_training"], results["information"] * 60
    assert results["pac_bayes_bound"] == metrics.pac_bayes_bound(error, information, 60, 0.05 / 8, draws=100)


def test_no_bound_of_fewer_examples_than_it_is_proven_for(tmp_path: Path) -> None:
    options = {"hidden": 8, "steps": 2, "batch": 5, "examples": 7, "posterior": "gaussian"}
    train.run(Config.of({"model": "information-in-weights", "dataset": "digits", **options}), tmp_path)
    assert cli.main(["evaluate", str(tmp_path / checkpoints.NAME), "--images=100"]) == 0
    assert "pac_bayes_bound" not in evaluate.evaluation(tmp_path)


class _Index(Catch):
    """Knows the index of every image, which its pixel says, and takes the index for the label."""

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        bits = self.bits(self._index(images))
        return 2 * bits - 1, torch.full_like(bits, -8.0)

    def logits(self, images: Tensor) -> Tensor:
        return F.one_hot(self._index(images) % 4, 4).float()

    def _index(self, images: Tensor) -> Tensor:
        return (images[:, 0, 0, 0] * self.examples).long()


def test_of_the_catch() -> None:
    indices = torch.arange(512)
    pixels = (indices / 512).view(-1, 1, 1).expand(512, 2, 2)
    train_, test = (LabelledImages(pixels, labels % 4, 4) for labels in (indices, indices + (indices % 4 > 0)))
    model = _Index((1, 2, 2), 4, 512, hidden=4, noise=1e-3)
    results = evaluate.of_catch(model, train_, test)
    assert results["error_on_training"] == 0 and results["error"] == 0.75 and results["right_indices"] == 1
    assert evaluate.of_catch(model, train_, test, images=100)["error"] == pytest.approx(0.75, abs=0.2)
    assert results["mutual_information_ceiling"] == pytest.approx(math.log(512))
    assert results["mutual_information"] == pytest.approx(math.log(512), abs=1e-3)
    assert results["total_correlation"] == pytest.approx(0, abs=1e-3)
    # Of minibatches of 64, "mss" is right, and "in_batch" takes those images for all that there are.
    assert results["mutual_information_by_mss"] == pytest.approx(math.log(512), abs=0.01)
    assert results["total_correlation_by_mss"] == pytest.approx(0, abs=0.2)
    assert results["mutual_information_by_in_batch"] == pytest.approx(math.log(64), abs=0.01)
    assert results["total_correlation_by_in_batch"] == pytest.approx(math.log(512 / 64), abs=0.2)
    assert results["total_correlation_by_mws"] > 10
    weights = (5 * 4 + 5 * 4 + 5 * 9) + (10 * 4 + 5 * 4)
    assert results["information_in_weights"] == pytest.approx(-math.log(1e-3) / 2 * weights / 512)


def test_of_a_trained_catch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"dataset": "digits", "examples": 130, "hidden": 8, "steps": 2, "batch": 20}
    train.run(Config.of({"model": "catch", **options}), tmp_path)
    assert cli.main(["evaluate", str(tmp_path / checkpoints.NAME)]) == 0
    results = evaluate.evaluation(tmp_path)
    assert 0 < results["error"] <= 1 and results["mutual_information_ceiling"] == pytest.approx(math.log(130))


def test_of_a_vib_with_samples() -> None:
    torch.manual_seed(0)
    model = VIB((1, 8, 8), 10, hidden=32, latent_dim=4)
    results = evaluate.of_classifier(model, digits(), digits(False))
    assert 0 < results["error_of_12_samples"] <= 1
    model.encoder[-1].bias.data[4:] = -50  # no noise: all samples are the mean
    results = evaluate.of_classifier(model, digits(), digits(False))
    assert results["error_of_12_samples"] == results["error"]


def test_statistics_without_noise() -> None:
    """A network that was trained with noise is evaluated with the statistics that it has without."""
    torch.manual_seed(0)
    model = AllCNN((1, 8, 8), 10, width=4, noise="dropout")
    for _ in range(30):
        model(digits().images(range(64)), digits().factors(range(64))[:, 0])
    model.eval()
    before = model.last[0].norm.running_var.clone()
    model.update_batch_norm([digits().images(range(500, 1000))])
    x = digits().images(range(500, 1000))
    for body, end in zip(model.bodies, model.ends, strict=True):
        x = end(body(x))
    maps = model.last[0].convolution(x)
    torch.testing.assert_close(model.last[0].norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert (model.last[0].norm.running_var - before).abs().max() > 1e-3
    assert not model.training and model.last[0].norm.momentum == 0.1
    evaluate.of_classifier(model, digits(), digits(False))


@pytest.mark.parametrize("latent", [1, 2])
def test_of_few_dimensions(latent: int) -> None:
    model = BetaVAE((1, 32, 32), network="mlp", hidden=8, latent_dim=latent)
    results = evaluate.of_vae(model, _Some(Sprites(32), 200))
    assert ("mutual_information_gap" in results) == (latent > 1) and results["rate"] > 0


@pytest.mark.parametrize("size", [1, 2, 32, 40])
def test_of_few_factors_that_vary(size: int) -> None:
    """Of the first 32 sprites one does, and of 40 two."""
    model = BetaVAE((1, 32, 32), network="mlp", hidden=8, latent_dim=2)
    results = evaluate.of_vae(model, Part(Sprites(32), size))
    assert ("active_units" in results) == ("mutual_information_gap" in results) == (size > 1)
    assert ("dci_disentanglement" in results) == (size == 40) and results["rate"] > 0


def test_of_too_few_labels_for_a_probe() -> None:
    train_, test = (Occluded(_dim(digits(part)), digits(part), side=8) for part in (True, False))
    results = evaluate.of_nuisance(AllCNN((1, 8, 8), 10, width=4).eval(), Part(train_, 20), test)
    assert results == {}


def test_which_factors_have_no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the objects of scenes, too."""
    seen: list[Any] = []
    right = metrics.sap
    monkeypatch.setattr(metrics, "sap", lambda *codes, categorical: seen.append(categorical) or right(*codes))
    scenes = Scenes(LabelledImages(torch.rand(2, 4, 4), torch.arange(2)), scenes=50, side=16, size=4, most=2)
    evaluate.of_vae(BetaVAE(scenes.image_shape, network="mlp", hidden=8, latent_dim=2), scenes)
    assert [[scenes.factor_names[i] for i in columns] for columns in seen] == [["label_1", "label_2"]]


def test_of_too_few_images(vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(vae / checkpoints.NAME), "--images=5"]) == 2
    assert "images must be at least 100, got 5" in capsys.readouterr().err


def _mnist(folder: Path, shift: int = 0, width: int = 8) -> Path:
    """A folder of 120 images of 8 x 8 for training, and as many to test with, of another width."""
    folder.mkdir(exist_ok=True)
    for part, columns in (("train", 8), ("t10k", width)):
        pixels = (torch.arange(120 * 8 * columns) + shift).byte().numpy().tobytes()
        header = bytes([0, 0, 8, 3, 0, 0, 0, 120, 0, 0, 0, 8, 0, 0, 0, columns])
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + pixels)
        labels = bytes([0, 0, 8, 1, 0, 0, 0, 120] + [i % 10 for i in range(120)])
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return folder


def test_data_that_has_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _mnist(tmp_path / "data")
    options = {
        "dataset": "mnist",
        "data": str(folder),
        "network": "mlp",
        "hidden": 8,
        "latent_dim": 2,
        "steps": 2,
        "batch": 8,
    }
    train.run(Config.of({"model": "beta-vae", **options}), tmp_path / "run")
    moved = folder.rename(tmp_path / "moved")
    for command in (
        ["evaluate", "run/checkpoint.pt"],
        ["decompose", "run/checkpoint.pt"],
        ["plot", "traversals", "run"],
    ):
        arguments = [command[0], *command[1:-1], str(tmp_path / command[-1])]
        assert cli.main(arguments) == 2
        assert f"data must be the folder of the files of mnist, got '{folder}'" in capsys.readouterr().err
        assert cli.main([*arguments, f"--data={moved}"]) == 0
        for other, message in (
            (_mnist(tmp_path / "other", shift=1), "data must be that of the training, got '{}', with other images"),
            (_mnist(tmp_path / "wide", width=9), "data must have images to test with of shape (1, 8, 8), "),
        ):
            if command[0] == "plot" or "test with" not in message:  # the others look at what was trained on alone
                assert cli.main([*arguments, f"--data={other}"]) == 2
                assert message.format(other) in capsys.readouterr().err


def test_of_a_checkpoint_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(tmp_path / "no.pt")]) == 2
    assert "checkpoint must be a file, got" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


# Pictures.


def _is_a_picture(path: Path) -> bool:
    pixels = imread(path)
    return bool(pixels.ndim == 3 and min(pixels.shape[:2]) > 100 and pixels[..., :3].std() > 0.02)


@pytest.mark.parametrize("kind", ["traversals", "dimensions"])
def test_pictures_of_a_vae(kind: str, vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", kind, str(vae)]) == 0
    assert f"Wrote {vae / kind}.png" in capsys.readouterr().out and _is_a_picture(vae / f"{kind}.png")


def test_a_picture_of_several_runs(vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rate in (("a", 3.0), ("b", 5.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps({"step": 4, "rate": rate, "distortion": 50 - rate}))
        (tmp_path / name / checkpoints.NAME).write_bytes((vae / checkpoints.NAME).read_bytes())
    picture = tmp_path / "picture.png"
    runs = [str(tmp_path / name) for name in ("a", "b")]
    assert cli.main(["plot", "rate-distortion", *runs, f"--output={picture}"]) == 0
    assert _is_a_picture(picture)
    whole = (tmp_path / "b" / "evaluation.json").read_text()
    for text, message in (
        (whole[:10], f"run must have a whole evaluation.json, got {tmp_path / 'b'}"),
        ("[]", f"run must have a whole evaluation.json, got {tmp_path / 'b'}: []"),
        (
            whole.replace('"rate": 5.0', '"rate": null'),
            f"run must be a VAE that was evaluated since it was trained, got {tmp_path / 'b'}",
        ),
        (whole.replace("4", "3"), f"run must be a VAE that was evaluated since it was trained, got {tmp_path / 'b'}"),
        (
            '{"step": 4, "error": 0.5}',
            f"run must be a VAE that was evaluated since it was trained, got {tmp_path / 'b'}",
        ),
    ):
        (tmp_path / "b" / "evaluation.json").write_text(text)
        assert cli.main(["plot", "rate-distortion", *runs]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "b" / "evaluation.json").unlink()
    assert cli.main(["plot", "rate-distortion", *runs]) == 2
    assert f"run must be a file of text, got {tmp_path / 'b' / 'evaluation.json'}" in capsys.readouterr().err


def test_a_picture_of_information(cnn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    for seed, name in (("0", "a"), ("0", "b"), ("1", "c")):
        assert cli.main(["plot", "information", str(cnn), f"--seed={seed}", f"--output={tmp_path / name}.png"]) == 0
        assert _is_a_picture(tmp_path / f"{name}.png")
    first, again, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == again != other and torch.equal(torch.get_rng_state(), before)


def test_baselines_have_no_information_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"dataset": "digits", "width": 4, "steps": 1, "noise": "dropout"}
    train.run(Config.of({"model": "information-dropout", **options}), tmp_path)
    assert cli.main(["plot", "information", str(tmp_path)]) == 2
    assert "information must be of Information Dropout, got information-dropout" in capsys.readouterr().err


def test_a_traversal_moves_one_dimension(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = checkpoints.trained_model(checkpoints.load(vae / checkpoints.NAME))
    assert isinstance(model, BetaVAE)
    images, seen = Sprites(32).images(range(0, 700_000, 10_000)), []
    monkeypatch.setattr(plots, "_grid", lambda figure, title, rows: seen.append(rows))
    plots.traversals(model, images, tmp_path / "picture.png")
    (original, reconstruction), rows = seen
    mu, logvar = model.encode(images)
    kl = functional.gaussian_kl(mu, logvar, reduction="none").mean(0)
    assert torch.equal(original[1], images[:11]) and torch.equal(reconstruction[1], model.decode(mu[:11]))
    assert [name for name, _ in rows] == [f"{value:.2f} nats" for value in kl.sort(descending=True).values.tolist()]
    code = mu[0].clone()
    code[kl.argmax()] = -3
    torch.testing.assert_close(rows[0][1][0], model.decode(code[None])[0])


@pytest.mark.parametrize(
    ("kind", "run", "message"),
    [
        ("traversals", "cnn", "traversals must be of a VAE, got information-dropout in"),
        ("information", "vae", "information must be of Information Dropout, got beta-vae in"),
        ("dimensions", "cnn", "dimensions must be of the log of a VAE, got that of"),
        ("traversals", "missing", "checkpoint must be a file, got"),
        ("dimensions", "missing", "log must be a file of text, got"),
    ],
)
def test_pictures_that_cannot_be(
    kind: str, run: str, message: str, vae: Path, cnn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = {"vae": vae, "cnn": cnn, "missing": tmp_path}[run]
    assert cli.main(["plot", kind, str(folder), f"--output={tmp_path / 'picture.png'}"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "picture.png").exists()


def test_pictures_in_colour(tmp_path: Path) -> None:
    model = BetaVAE((3, 8, 8), network="mlp", hidden=8, latent_dim=2)
    plots.traversals(model, torch.rand(12, 3, 8, 8), tmp_path / "picture.png")
    pixels = imread(tmp_path / "picture.png")
    assert (pixels[..., 0] - pixels[..., 1]).std() > 0.02


def test_results_that_cannot_be_written(vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", "dimensions", str(vae), f"--output={tmp_path}"]) == 2
    assert f"output must be a file that can be written, got {tmp_path}: Is a directory" in capsys.readouterr().err
    checkpoint, results = tmp_path / checkpoints.NAME, tmp_path / "evaluation.json"
    checkpoint.write_bytes((vae / checkpoints.NAME).read_bytes())
    results.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "of_vae", lambda *arguments: {"rate": 1.0})
        assert cli.main(["evaluate", str(checkpoint)]) == 2
    message = f"checkpoint must be in a folder that can be written, got {checkpoint}: Is a directory"
    assert message in capsys.readouterr().err and set(tmp_path.iterdir()) == {checkpoint, results}


def test_one_picture_is_of_one_run(vae: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plot", "traversals", str(vae), str(vae)]) == 2
    assert "traversals must be of one run, got 2" in capsys.readouterr().err
