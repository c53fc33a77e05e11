"""`python -m fastib evaluate`: what a trained model is worth, by the metrics of its kind."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from fastib import _files, checkpoints
from fastib._arguments import check_integer
from fastib._extras import require
from fastib.checkpoints import Checkpoint
from fastib.datasets import Scenes
from fastib.evaluate.catch import of_catch
from fastib.evaluate.classifiers import EPSILONS, adversarial, of_classifier, of_nuisance
from fastib.evaluate.common import Results, seeded
from fastib.evaluate.scenes import of_scenes
from fastib.evaluate.vaes import of_vae
from fastib.evaluate.weights import of_weights
from fastib.models import VAE, Catch, Classifier, SceneModel, VariationalClassifier

__all__ = [
    "EPSILONS",
    "adversarial",
    "evaluation",
    "of_catch",
    "of_classifier",
    "of_nuisance",
    "of_scenes",
    "of_vae",
    "of_weights",
    "report",
    "run",
    "seeded",
]

NAME = "evaluation.json"  # in the folder of the checkpoint


def run(checkpoint: Path, *, images: int | None = None, seed: int = 0, data: str | None = None) -> Results:
    """Measures the model of a checkpoint, prints the results, and writes them beside it as `evaluation.json`.

    For a VAE: distortion (the reconstruction) and rate, exact mutual information, total correlation and dimension-wise
    KL, active units and the Gaussian total correlation and, where there are several factors, the mutual information
    gap, the FactorVAE score, DCI and SAP, over the images that it was trained on. For a classifier, over the images to
    test with: error, cross-entropy and information; the error after a step of the size `EPSILONS` along the sign of the
    gradient; and, where there is a nuisance, what a probe reads of it and of the label, in nats, from the image and
    from each layer. Where the information is in the weights, also error and cross-entropy of drawn weights on all
    images that were trained on, and the PAC-Bayes bound of a Gaussian posterior. For the catch: errors, the share of
    the images that have their own index, and MI and TC of the codes, exactly and as each estimator has them. For a
    model of scenes, over those to test with: distortion and rate, squared error, how often the count is right and by
    how much it is wrong, the share of the objects that are matched with an entity, and MIG and DCI of the codes of
    those.

    Args:
        checkpoint: a file of `python -m fastib train`, or of the demo.
        images: so many, drawn at random, instead of all; at least 100.
        seed: of whatever is drawn.
        data: the folder of the data set's files, where it is no longer that of the training.

    Raises:
        ImportError: without scikit-learn and tqdm, which the extra `models` installs.
        ValueError: if the file is no checkpoint, its data is missing or not that of the training, a model of scenes was
            trained on other images, or the results can't be written.
    """
    require("tqdm", "the progress bar")
    require("sklearn", "evaluate")
    if images is not None:
        check_integer("images", images, 100)
    check_integer("seed", seed, 0)
    trained = checkpoints.load(checkpoint)
    model = checkpoints.trained_model(trained)
    open_ = partial(checkpoints.images, trained, data)
    if isinstance(model, VAE):
        results = of_vae(model, open_(), images, seed)
    elif isinstance(model, VariationalClassifier):
        results = of_weights(model, open_(), open_(train=False), images, seed)
    elif isinstance(model, Catch):
        results = of_catch(model, open_(), open_(train=False), images, seed)
    elif isinstance(model, Classifier):
        results = of_classifier(model, open_(), open_(train=False), images, seed)
    elif isinstance(model, SceneModel):
        train, test = (_scenes(trained, which, data) for which in (True, False))
        results = of_scenes(model, train, test, images, seed)
    print(report(results))
    path = checkpoint.with_name(NAME)
    finite = {name: value if math.isfinite(value) else None for name, value in results.items()}
    text = json.dumps({"step": trained.step, **finite}, indent=1) + "\n"
    with _files.writing("checkpoint", "in a folder", checkpoint):
        _files.replace(path, lambda new: new.write_text(text, encoding="utf-8"))
    print(f"Wrote {path}")
    return results


def _scenes(trained: Checkpoint, train: bool, data: str | None) -> Scenes:
    config, images = trained.config, checkpoints.images(trained, data, train)
    if isinstance(images, Scenes):
        return images
    raise ValueError(f"dataset must be of scenes, to evaluate a {config.model}, got {config.dataset!r}")


def evaluation(folder: Path) -> dict[str, Any]:
    """What `run` wrote in the folder of a checkpoint, with the step of the training."""
    text = _files.text("run", folder / NAME)
    try:
        results = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"run must have a whole {NAME}, got {folder}: {error}") from None
    if isinstance(results, dict):
        return results
    raise ValueError(f"run must have a whole {NAME}, got {folder}: {results!r:.40}")


def report(results: Results) -> str:
    """The results, a line each."""
    return "\n".join(f"{name.replace('_', ' '):40}{value:12.4f}" for name, value in results.items())
