"""The models of the papers, trained on this class of machine: `python -m benches.experiments [NAME ...]`.

Each run is a command of its own, `python -m fastib train` and `evaluate`, on one thread, so many side by side as the
machine has cores; but those of `quick` are alone on all cores. A finished run is a line of `results/experiments.jsonl`;
those that are there are not made again, and one that was stopped goes on. Failures are lines, too. With `--results` all
goes to another file, and to a folder of its name, so that runs can be repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastib
from benches import provenance
from benches.estimators import column_weights
from benches.provenance import RESULTS
from fastib import checkpoints, configs, evaluate, logs, plots, train
from fastib.configs import Config
from fastib.losses import BetaTCVAETerms
from fastib.models import BetaTCVAE

NAME = "experiments.jsonl"
FASHION = "/usr/share/datasets/fashion-mnist"  # where Debian's package dataset-fashion-mnist has it

Values = dict[str, Any]


class Experiment(NamedTuple):
    """Configurations, each to be run with so many seeds; alone on all cores, where the time is what matters."""

    runs: list[Values]
    seeds: int
    alone: bool = False


class ColumnTCVAE(BetaTCVAE):
    """The beta-TCVAE of several well-known libraries, whose weights meant for the diagonal lie in the first column."""

    def forward(self, images: Tensor, noise: Tensor | None = None) -> BetaTCVAETerms:
        mu, logvar = self.encode(images)
        z = fastib.reparameterize(mu, logvar, noise=noise)
        log_weights = column_weights(self.criterion.dataset_size, len(z)).log()
        log_qz, log_qz_d = fastib.aggregate_posterior(z, mu, logvar, log_weights=log_weights)
        log_qz_x = torch.distributions.Normal(mu, torch.exp(logvar / 2)).log_prob(z).sum(1)
        log_pz = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
        mi, tc, kl = (log_qz_x - log_qz).mean(), (log_qz - log_qz_d.sum(1)).mean(), (log_qz_d.sum(1) - log_pz).mean()
        reconstruction = self.criterion._reconstruction(self.network.decode(z), images)
        loss = reconstruction + self.criterion.alpha * mi + self.criterion.beta * tc + self.criterion.gamma * kl
        return BetaTCVAETerms(loss, *(term.detach() for term in (reconstruction, mi, tc, kl)))


_SPRITES = {"dataset": "sprites-32", "network": "mlp", "hidden": 400, "learning_rate": 1e-3, "log_every": 250}
_SWEEP = _SPRITES | {"batch": 128, "steps": 20_000}
_LARGE_BATCH = _SPRITES | {"batch": 256, "steps": 10_000}  # as many images as the sweep
_AIR = {"model": "air", "window": 16, "hidden": 128, "latent_dim": 20, "batch": 64, "learning_rate": 1e-3}
_AIR |= {"steps": 6000, "prior_steps": 3000, "decay": 0.1, "decay_steps": 4500, "log_every": 250}
_ENTITIES = {"model": "multi-entity-vae", "dataset": "sprite-scenes-32", "batch": 64, "learning_rate": 2e-3}
_ENTITIES |= {"beta": 0.5, "steps": 12_000, "decay": 0.1, "decay_steps": 9000, "log_every": 250}
_VIB = {"model": "vib", "learning_rate": 5e-4, "decay": 0.97, "average": 0.999, "log_every": 500}
_FASHION = {"dataset": "fashion-mnist", "data": FASHION, "hidden": 512, "latent_dim": 64, "batch": 100}
_DIGITS = {"dataset": "digits", "hidden": 256, "latent_dim": 32, "batch": 100}
_CNN = {"model": "information-dropout", "dataset": "occluded", "data": FASHION, "width": 16, "batch": 64}
_CNN |= {"steps": 3000, "learning_rate": 2e-3, "decay": 0.1, "decay_steps": 2250, "log_every": 250}
_WEIGHTS = {"model": "information-in-weights", "dataset": "digits", "examples": 1000, "learning_rate": 1e-2}
_WEIGHTS |= {"decay": 0.1, "log_every": 500}
_MEMORY = _WEIGHTS | {"hidden": 128, "noise": 1e-4, "batch": 1000, "steps": 8000, "decay_steps": 6000}
_BOUNDED = _WEIGHTS | {"posterior": "gaussian", "hidden": 64, "batch": 250, "steps": 4000, "decay_steps": 3000}
_BOUNDED |= {"warm_up": 1000, "random_labels": 0.2}
_CATCH = {"model": "catch", "dataset": "digits", "examples": 1024, "batch": 512, "noise": 1e-3, "learning_rate": 5e-3}
_CATCH |= {"steps": 8000, "decay": 0.1, "decay_steps": 6000, "log_every": 500}
BETAS_OF_VIB = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)

EXPERIMENTS = {
    "quick": Experiment([configs.presets(model)["quick"] for model in configs.MODELS], 1, alone=True),
    "beta-vae": Experiment([_SWEEP | {"model": "beta-vae", "beta": beta} for beta in (0.5, 1.0, 2.0, 4.0, 8.0)], 3),
    "annealed-vae": Experiment(
        [_SWEEP | {"model": "annealed-vae", "gamma": 100.0, "capacity": 15.0, "capacity_steps": 20_000}], 3
    ),
    "beta-tcvae": Experiment(
        [_LARGE_BATCH | {"model": "beta-tcvae", "beta": beta, "estimator": "mss"} for beta in (4.0, 8.0, 16.0)]
        + [_LARGE_BATCH | {"model": "beta-tcvae", "beta": 8.0, "estimator": "mws"}]
        + [_LARGE_BATCH | {"model": "column-tcvae", "beta": 8.0}],
        3,
    ),
    "air": Experiment(
        [
            _AIR | {"dataset": dataset, "presence": presence}
            for dataset in ("digit-scenes", "sprite-scenes")
            for presence in ("concrete", "score_function")
        ],
        5,
    ),
    "multi-entity-vae": Experiment([_ENTITIES], 3),
    "random-labels": Experiment(
        [_MEMORY | {"random_labels": 1.0, "beta": beta} for beta in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0)]
        + [_MEMORY | {"random_labels": fraction, "beta": 0.2} for fraction in (0.0, 0.25, 0.5, 0.75)],
        3,
    ),
    "weights-beta": Experiment(
        [_BOUNDED | {"beta": beta} for beta in (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)], 3
    ),
    "catch": Experiment([_CATCH | {"beta": beta} for beta in (0.0, 0.5, 1.0, 2.0)], 3),
    "vib-digits": Experiment(
        [_VIB | _DIGITS | {"steps": 5000, "decay_steps": 100, "beta": beta} for beta in BETAS_OF_VIB], 5
    ),
    "vib-fashion": Experiment(
        [_VIB | _FASHION | {"steps": 12_000, "decay_steps": 1200, "beta": beta} for beta in BETAS_OF_VIB], 3
    ),
    "information-dropout": Experiment(
        [
            *(_CNN | {"noise": "none", "pooling": pooling} for pooling in (False, True)),
            *(_CNN | {"noise": "dropout", "pooling": pooling} for pooling in (False, True)),
            *(_CNN | {"noise": "information", "beta": beta} for beta in (1e-5, 1e-4, 1e-3, 1e-2)),
            _CNN | {"noise": "information", "activation": "softplus", "beta": 1e-4},
        ],
        3,
    ),
}
DRAWN = {"air": "entities", "multi-entity-vae": "entities"}  # the first run, by this kind of `python -m fastib plot`


def runs(name: str) -> Iterator[Values]:
    """The configurations of an experiment, with their seeds; all of one seed before the next."""
    experiment = EXPERIMENTS[name]
    for seed in range(experiment.seeds):
        for values in experiment.runs:
            yield values | {"seed": seed}


_TOLD = "dataset", "random_labels", "beta", "estimator", "noise", "activation", "pooling", "presence", "seed"


def label(values: Values) -> str:
    """The name of a run's folder."""
    said = {k: v for k, v in values.items() if k in _TOLD}
    return "-".join([values["model"], *(f"{key}={value}" for key, value in said.items())])


def command(values: Values) -> str:
    """What repeats a run."""
    if values["model"] == "column-tcvae":
        return "python -m benches.experiments beta-tcvae --results again.jsonl"
    flags = [f"--{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in values.items() if k != "model"]
    train = shlex.join(["python", "-m", "fastib", "train", values["model"], *flags, "--output=run"])
    return f"{train} && python -m fastib evaluate run/{checkpoints.NAME}"


def make(values: Values, folder: Path) -> Values:
    """Trains and evaluates, in this process; returns what is measured, and how long either took."""
    configs.MODELS["column-tcvae"] = ColumnTCVAE
    config, started = Config.of(values), time.monotonic()
    steps = train.run(config, folder).steps
    if steps < config.steps:  # a signal ends a training, and raises nothing
        raise SystemExit(f"the training was stopped after {steps} of {config.steps} steps")
    trained = time.monotonic()
    evaluate.run(folder / checkpoints.NAME)
    seconds = {"training_seconds": trained - started, "evaluation_seconds": time.monotonic() - trained}
    return evaluate.evaluation(folder) | {key: round(value, 1) for key, value in seconds.items()}


def start(name: str, values: Values, work: Path, results: Path, threads: int) -> bool:
    """Makes a run in a process of its own, and writes its line; says whether it was finished."""
    folder, started = work / name / label(values), time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "benches.experiments", "--make", json.dumps(values), "--work", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    row: Values = {"experiment": name, "config": values, "command": command(values), "threads": threads}
    row["seconds"] = round(time.monotonic() - started)
    if process.returncode == 0:
        row["results"] = json.loads(process.stdout.splitlines()[-1])
        if name == "annealed-vae":  # of which there is a picture
            row["log"] = logs.read(folder / logs.NAME)
    else:
        said = process.stderr.strip().splitlines() or [f"ended with status {process.returncode}"]
        row["failure"] = said[-1]
    header = provenance.header()
    row["origin"] = {key: header[key] for key in ("date", "cpu", "torch", "commit", "dirty")}
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{folder.name}: {row.get('failure', 'done')}, {row['seconds']} s", flush=True)
    if name in DRAWN and values == next(runs(name)) and "failure" not in row:
        plots.run(DRAWN[name], [folder], results.with_name(f"{name}.png"))
    return "failure" not in row


def done(results: Path) -> list[Values]:
    """The lines that are there."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def _name(text: str) -> str:
    if text not in EXPERIMENTS:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(EXPERIMENTS)}, got {text!r}")
    return text


def main(argv: Sequence[str] | None = None, results: Path = RESULTS / NAME) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.experiments", description="Trains the papers' models.")
    parser.add_argument("names", nargs="*", type=_name, metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--work", type=Path, help="folder of the runs (default: fastib-train, or that of --results)")
    parser.add_argument("--results", type=Path, help="file of the lines (default: the repository's)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs side by side (default: cores)")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        parser.error(f"argument --workers: must be at least 1, got {arguments.workers}")
    if arguments.make:
        print(json.dumps(make(json.loads(arguments.make), arguments.work)))
        return 0
    work = arguments.work or (arguments.results or Path("fastib-train")).with_suffix("")
    results = arguments.results or results
    results.parent.mkdir(parents=True, exist_ok=True)
    made = [(row["experiment"], row["config"]) for row in done(results) if "failure" not in row]
    wanted = [(name, values) for name in arguments.names or EXPERIMENTS for values in runs(name)]
    wanted = [run for run in wanted if run not in made]
    ended = [start(*run, work, results, os.cpu_count() or 1) for run in wanted if EXPERIMENTS[run[0]].alone]
    with ThreadPoolExecutor(arguments.workers) as workers:
        others = [run for run in wanted if not EXPERIMENTS[run[0]].alone]
        ended += workers.map(lambda run: start(*run, work, results, 1), others)
    return int(not all(ended))


if __name__ == "__main__":
    sys.exit(main())
