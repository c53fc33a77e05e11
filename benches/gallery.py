"""Tables and pictures of the experiments: `python -m benches.gallery` writes `results/experiments.md` and PNG files."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benches import experiments
from benches.experiments import Values
from benches.provenance import RESULTS
from benches.tables import markdown
from fastib import plots

PAGE = "experiments.md"
OWN = {  # what tells the runs of an experiment apart, beside the seed
    "quick": ["model"],
    "beta-vae": ["beta"],
    "annealed-vae": ["capacity"],
    "beta-tcvae": ["model", "beta", "estimator"],
    "air": ["dataset", "presence"],
    "multi-entity-vae": ["beta"],
    "random-labels": ["random_labels", "beta"],
    "weights-beta": ["beta"],
    "catch": ["beta"],
    "vib-digits": ["beta"],
    "vib-fashion": ["beta"],
    "information-dropout": ["noise", "activation", "pooling", "beta"],
}
_VAE = {
    "distortion": "distortion",
    "rate": "rate",
    "MI": "mutual_information",
    "TC": "total_correlation",
    "dim. KL": "dimension_wise_kl",
    "active": "active_units",
    "MIG": "mutual_information_gap",
    "FactorVAE": "factor_vae_score",
    "DCI": "dci_disentanglement",
    "SAP": "separated_attribute_predictability",
}
_VIB = {
    "error": "error",
    "of 12 samples": "error_of_12_samples",
    "information": "information",
    "error at 0.01": "error_of_adversary_0.01",
    "at 0.03": "error_of_adversary_0.03",
    "at 0.1": "error_of_adversary_0.1",
}
LAYERS = "image", "layer_1", "layer_2", "layer_3"
_SCENES = {
    "count accuracy": "count_accuracy",
    "count error": "count_error",
    "squared error": "squared_error",
    "matched": "matched_objects",
    "distortion": "distortion",
    "rate": "rate",
    "MIG": "mutual_information_gap",
    "DCI": "dci_disentanglement",
}
_NUISANCE = {
    "error": "error",
    "information": "information",
    **{
        f"{what}, {layer.replace('_', ' ')}": f"{what}_information_{layer}"
        for what in ("label", "nuisance")
        for layer in LAYERS
    },
}
_WEIGHTS = {
    "error on training": "error_on_training",
    "cross-entropy on training": "cross_entropy_on_training",
    "information": "information",
    "error": "error",
}
_BOUNDED = _WEIGHTS | {"error of drawn weights": "error_of_drawn_weights", "PAC-Bayes bound": "pac_bayes_bound"}
_CATCH = {
    "error on training": "error_on_training",
    "error": "error",
    "right indices": "right_indices",
    "information in weights": "information_in_weights",
    **{
        f"{short}{of}": f"{name}{of.replace(' ', '_')}"
        for short, name in (("MI", "mutual_information"), ("TC", "total_correlation"))
        for of in ("", " by mss", " by in_batch", " by mws")
    },
}
COLUMNS: dict[str, Values] = {
    "quick": {"training, s": "training_seconds", "evaluation, s": "evaluation_seconds"},
    "beta-vae": _VAE,
    "annealed-vae": _VAE,
    "beta-tcvae": _VAE,
    "air": _SCENES,
    "multi-entity-vae": _SCENES,
    "random-labels": _WEIGHTS,
    "weights-beta": _BOUNDED,
    "catch": _CATCH,
    "vib-digits": _VIB,
    "vib-fashion": _VIB,
    "information-dropout": _NUISANCE,
}
TEXTS = {
    "quick": "Every model by its preset `quick`: the seconds that training and evaluation take, alone on both cores, "
    "without the start of Python.",
    "beta-vae": "beta-VAE on sprites of 32 x 32: rate and distortion, and the parts of the rate by the exact "
    "decomposition over all 737 280 images. Nats per image.",
    "annealed-vae": "beta-VAE with a capacity that grows to 15 nats, on the same sprites.",
    "beta-tcvae": "beta-TCVAE with the weights of MSS, of MWS, and with those of several well-known libraries "
    "(column-tcvae), in batches of 256, measured exactly, over all images; and the beta-VAE of the sweep above at the "
    "same rate, by interpolation between its betas. The aim was a MIG of 0.4: these miss it, since they spread "
    "position over three dimensions; the capacity that grows, above, reaches it.",
    "air": "Attend-Infer-Repeat on up to 2 digits and up to 3 sprites on 50 x 50, with 3 steps; over the scenes to "
    "test with. A success is a run that counts at least 95 % of them right (set before they were run); the marks of "
    "the literature are 98 %, and 10 successes in 10 for the relaxed decisions.",
    "multi-entity-vae": "Multi-Entity VAE on 0 to 3 sprites on 32 x 32, over the scenes to test with; MIG and DCI are "
    "those of the codes of matched entities.",
    "random-labels": "Information in the weights: 1000 of scikit-learn's digits, of whose labels this fraction is "
    "drawn at random, by log-normal noise on the weights. Error, cross-entropy and information (in nats per image) "
    "are those of drawn weights on the images trained on, with the labels that they had there; the last error is that "
    "of the mean weights on other images, with their own labels. Achille & Soatto have a transition at beta = 1, and "
    "about 3 nats an image for labels that are all random (ln 10 = 2.30 are in each): here they are given up little "
    "by little, over a decade of beta below 1, and what fitting them takes depends on its price. This information "
    "leaves out a constant, and what the means of the weights know, so that a nat of it is not one of the labels: "
    "what compares is one beta with another, and one fraction with another.",
    "weights-beta": "Gaussian weights and a fifth of the labels drawn at random, as the price of a nat grows. The "
    "errors of drawn weights, on training and on other images, are of one kind; `error` is that of the mean weights, "
    "which are better. The bound holds with probability 0.95 for drawn weights and images that are labelled as those "
    "trained on are, of which 18 % have a wrong label.",
    "catch": "A code that is to be the index of each of 1024 digits, of ln 1024 = 6.93 nats, without and with a price "
    "on the information in the weights (nats per image). Mutual information and total correlation of the code over all "
    "images, exactly and as batches of 64 estimate them.",
    "vib-digits": "Deep VIB on scikit-learn's digits. Information is the bound on I(Z; X) in nats; the last columns "
    "are errors after a step of that size along the sign of the gradient.",
    "vib-fashion": "The same on Fashion-MNIST.",
    "information-dropout": "Fashion-MNIST behind handwritten digits, which are the nuisance: what a linear probe reads "
    "of the label and of the nuisance in each layer with its noise, in nats (ln 10 = 2.30).",
}


INTRODUCTION = """# The models of the papers, on two cores

Mean ± standard deviation over seeds, where there are several; a run is on one thread, beside another, unless it says
otherwise. Made by `python -m benches.experiments` and `python -m benches.gallery`; the command and the results of every
run are in experiments.jsonl."""


def groups(rows: Sequence[Values], name: str) -> dict[tuple[str, ...], list[Values]]:
    """The runs of an experiment that differ by the seed alone, by what tells them from others; of what was run again,
    the last."""
    last = {json.dumps(row["config"], sort_keys=True): row for row in rows if row["experiment"] == name}
    found: dict[tuple[str, ...], list[Values]] = {}
    for row in last.values():
        found.setdefault(_own(row["config"], name), []).append(row)
    order = [_own(values, name) for values in experiments.EXPERIMENTS[name].runs]
    return {own: found[own] for own in order if own in found}


def _own(config: Values, name: str) -> tuple[str, ...]:
    return tuple(_said(config, key) for key in OWN[name])


def drawn(rows: Sequence[Values], name: str) -> dict[tuple[str, ...], list[Values]]:
    """Those of which a run was finished."""
    return {own: runs for own, runs in groups(rows, name).items() if any("results" in run for run in runs)}


def _said(config: Values, key: str) -> str:
    value = config.get(key, "")
    return f"{value:g}" if isinstance(value, float) else str(value)


def spread(runs: Sequence[Values], key: str) -> tuple[float, float]:
    """Mean and standard deviation of a result over the seeds."""
    values = [run["results"][key] for run in _finished(runs)]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _finished(runs: Sequence[Values]) -> list[Values]:
    return [run for run in runs if "failure" not in run]


def _cell(runs: Sequence[Values], key: str) -> str:
    """A result in the table, of those runs that have it. One seed has no standard deviation."""
    finished = _finished(runs)
    found = [run for run in finished if key in run["results"]]
    if not found:
        return ""
    mean_and_deviation = "{:.3g} ± {:.2g}" if len(found) > 1 else "{:.3g}"
    return mean_and_deviation.format(*spread(found, key)) + f" (of {len(found)})" * (len(found) < len(finished))


def _successes(rows: Sequence[Values], runs: Sequence[Values]) -> list[str]:
    """Of all seeds, those that a failure counts among, too."""
    counted = sum(run["results"]["count_accuracy"] >= SUCCESS for run in _finished(runs))
    return [f"{counted} of {len(runs)}"]


def _at_the_same_rate(rows: Sequence[Values], runs: Sequence[Values]) -> list[str]:
    """TC and MIG of the beta-VAE of the sweep, between the two betas whose rates are nearest on either side."""
    keys = "rate", "total_correlation", "mutual_information_gap"
    sweep = sorted(tuple(spread(found, key)[0] for key in keys) for found in drawn(rows, "beta-vae").values())
    rate = spread(runs, "rate")[0] if _finished(runs) else math.nan
    if not sweep or not sweep[0][0] <= rate <= sweep[-1][0]:
        return ["", ""]
    rates, *others = zip(*sweep, strict=True)
    return [f"{np.interp(rate, rates, values):.3g}" for values in others]


SUCCESS = 0.95
FITTED = "0.2"  # the beta of the runs with other fractions of random labels, at which all are fitted
Cells = Callable[[Sequence[Values], Sequence[Values]], list[str]]
FURTHER: dict[str, tuple[list[str], Cells]] = {  # columns that are not means over the seeds
    "air": (["success"], _successes),
    "beta-tcvae": (["beta-VAE: TC", "beta-VAE: MIG"], _at_the_same_rate),
}


def table(rows: Sequence[Values], name: str) -> str:
    """A line for each configuration: mean ± standard deviation over its seeds, and what failed."""
    headings, further = FURTHER.get(name, ([], lambda rows, runs: []))
    of_name = [row for row in rows if row["experiment"] == name]
    lines = [[*OWN[name], "seeds", *COLUMNS[name], *headings, "minutes"]]
    for own, runs in groups(rows, name).items():
        failed = len(runs) - len(_finished(runs))
        earlier = sum("failure" in row and row not in runs and _own(row["config"], name) == own for row in of_name)
        seeds = f"{len(runs)}" + f", {failed} failed" * (failed > 0) + f", {earlier} failed before" * (earlier > 0)
        cells = [_cell(runs, key) for key in COLUMNS[name].values()] + further(rows, runs)
        lines.append([*own, seeds, *cells, f"{statistics.fmean(run['seconds'] for run in runs) / 60:.1f}"])
    return markdown(lines)


DECISIONS = {"concrete": ", relaxed decisions", "score_function": ", sampled decisions"}


def counted(rows: Sequence[Values]) -> str:
    """What the README has of the models of scenes; nothing of those that have no finished run."""
    parts = []
    for name, model in (("air", "AIR"), ("multi-entity-vae", "Multi-Entity VAE")):
        for runs in drawn(rows, name).values():
            config, accuracies = runs[0]["config"], [run["results"]["count_accuracy"] for run in _finished(runs)]
            which = f"{model} on {config['dataset'].partition('-')[0]}s{DECISIONS.get(config.get('presence', ''), '')}"
            (successes,) = _successes(rows, runs)
            left = experiments.EXPERIMENTS[name].seeds - len(runs)
            successes += f" ({left} to be made)" if left > 0 else ""
            parts.append(f"{which}: {statistics.fmean(accuracies):.1%} ({min(accuracies):.1%}), {successes}")
    said = f"Scenes counted right, in the mean over the seeds (at least), and runs that reach {SUCCESS:.0%}: "
    return f"{said}{'; '.join(parts)}." if parts else ""


def page(rows: Sequence[Values]) -> str:
    """All tables, with the command of a run of each experiment."""
    parts = [INTRODUCTION]
    for name in experiments.EXPERIMENTS:
        of_name = [row for row in rows if row["experiment"] == name]
        if not of_name:
            continue
        parts += [f"## {name}\n\n{TEXTS[name]} {_origins(of_name)}.", table(rows, name)]
        parts.append(f"One of them: `{of_name[0]['command']}`")
        if name in PICTURES:
            parts.append(f"![{TEXTS[name]}]({PICTURES[name][0]})")
        if name in experiments.DRAWN:
            parts.append(f"![{TEXTS[name]}]({name}.png)")
            parts.append(
                f"The picture is of the first run: `python -m benches.experiments {name} --results again.jsonl`"
            )
    return "\n\n".join(parts) + "\n"


def _origins(rows: Sequence[Values]) -> str:
    """Where and when: of each, how many runs."""
    found = Counter(tuple(row["origin"][key] for key in ("cpu", "torch", "date")) for row in rows)
    return "; ".join(
        f"{count} run{'s' * (count > 1)}: {cpu}, PyTorch {torch}, {date}" for (cpu, torch, date), count in found.items()
    )


def _sweep(rows: Sequence[Values], path: Path) -> None:
    """Distortion against rate, and the parts of the rate against beta."""
    figure = plots.new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    found = drawn(rows, "beta-vae")
    rates, distortions = ([spread(runs, key) for runs in found.values()] for key in ("rate", "distortion"))
    _errorbar(left, [m for m, _ in rates], distortions, "beta-VAE", xerr=[s for _, s in rates])
    for (beta,), (rate, _), (distortion, _) in zip(found, rates, distortions, strict=True):
        left.annotate(f" beta {beta}", (rate, distortion), fontsize=8)
    left.set(xlabel="rate, nats", ylabel="distortion, nats")
    betas = [float(beta) for (beta,) in found]
    for label in ("rate", "MI", "TC", "dim. KL"):
        _errorbar(right, betas, [spread(runs, _VAE[label]) for runs in found.values()], label)
    right.set(xscale="log", xlabel="beta", ylabel="nats")
    right.legend(fontsize=8)
    plots.save_figure(figure, path)


def _dimensions(rows: Sequence[Values], path: Path) -> None:
    """The KL of each dimension, from the log of the first run."""
    plots.dimensions(next(row["log"] for row in rows if row["experiment"] == "annealed-vae" and "log" in row), path)


def _vib(name: str) -> Callable[[Sequence[Values], Path], None]:
    def draw(rows: Sequence[Values], path: Path) -> None:
        """Error, without and with an adversary, and information against beta."""
        figure = plots.new_figure(10, 4)
        left, right = figure.subplots(1, 2)
        found = drawn(rows, name)
        betas = [max(float(beta), 1e-5) for (beta,) in found]  # 0 is at the edge of the logarithmic axis
        for label, key in _VIB.items():
            axis = right if label == "information" else left
            _errorbar(axis, betas, [spread(runs, key) for runs in found.values()], label)
        left.set(xscale="log", xlabel="beta (at 1e-5: 0)", ylabel="error", ylim=(0, 1))
        right.set(xscale="log", xlabel="beta (at 1e-5: 0)", ylabel="bound on I(Z; X), nats", yscale="log")
        left.legend(fontsize=8)
        plots.save_figure(figure, path)

    return draw


def _nuisance(rows: Sequence[Values], path: Path) -> None:
    """What each layer tells of the label and of the nuisance."""
    figure = plots.new_figure(11, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, what in zip(axes, ("label", "nuisance"), strict=True):
        for (noise, activation, pooling, beta), runs in drawn(rows, "information-dropout").items():
            label = " ".join(filter(None, [noise, activation, "pooling" * (pooling == "True"), beta]))
            values = [spread(runs, f"{what}_information_{layer}") for layer in LAYERS]
            _errorbar(axis, range(len(LAYERS)), values, label)
        axis.set(
            title=f"information on the {what}, nats", xticks=range(len(LAYERS)), xticklabels=LAYERS, ylim=(0, None)
        )
    axes[1].legend(fontsize=8)
    plots.save_figure(figure, path)


def _errorbar(axis: Any, x: Sequence[float], y: Sequence[tuple[float, float]], label: str, **options: Any) -> None:
    means, spreads = zip(*y, strict=True)
    axis.errorbar(x, means, yerr=spreads, marker="o", markersize=3, capsize=2, label=label, **options)


def _disentangled(rows: Sequence[Values], path: Path) -> None:
    """Total correlation and MIG against the rate."""
    figure = plots.new_figure(10, 4)
    kinds: dict[str, list[list[Values]]] = {}
    for name in ("beta-vae", "beta-tcvae"):
        for runs in drawn(rows, name).values():
            config = runs[0]["config"]
            kind = " ".join(filter(None, [config["model"], config.get("estimator", "")]))
            kinds.setdefault(kind, []).append(runs)
    for axis, label in zip(figure.subplots(1, 2), ("TC", "MIG"), strict=True):
        for kind, found in kinds.items():
            points = sorted((spread(runs, "rate")[0], spread(runs, _VAE[label])) for runs in found)
            _errorbar(axis, [rate for rate, _ in points], [value for _, value in points], kind)
        axis.set(xlabel="rate, nats", ylabel=label)
    axis.legend(fontsize=8)
    plots.save_figure(figure, path)


def _random_labels(rows: Sequence[Values], path: Path) -> None:
    """Information and cross-entropy against the price of a nat, and against the fraction of random labels."""
    figure = plots.new_figure(10, 4)
    left, right = figure.subplots(1, 2, sharey=True)
    found = drawn(rows, "random-labels")
    for axis, same, value in ((left, 0, "1"), (right, 1, FITTED)):
        keys = [key for key in found if key[same] == value]
        keys.sort(key=lambda key: float(key[1 - same]))
        x = [float(key[1 - same]) for key in keys]
        for label in ("information", "cross-entropy on training"):
            _errorbar(axis, x, [spread(found[key], _WEIGHTS[label]) for key in keys], label)
        axis.axhline(math.log(10), color="grey", linewidth=0.8)  # the labels'
    left.axvline(1, color="grey", linewidth=0.8)
    left.set(xscale="log", xlabel="beta, all labels random", ylabel="nats per image", ylim=(0, None))
    right.set(xlabel=f"fraction of random labels, beta {FITTED}")
    left.legend(fontsize=8)
    plots.save_figure(figure, path)


def _bias_and_variance(rows: Sequence[Values], path: Path) -> None:
    """Errors and their bound against the price of a nat."""
    figure = plots.new_figure(6.5, 4)
    axis, found = figure.subplots(), drawn(rows, "weights-beta")
    betas = [float(beta) for (beta,) in found]
    for label in ("error on training", "error of drawn weights", "error", "PAC-Bayes bound"):
        _errorbar(axis, betas, [spread(runs, _BOUNDED[label]) for runs in found.values()], label)
    axis.set(xscale="log", xlabel="beta", ylabel="share of the images", ylim=(0, 1.02))
    axis.legend(fontsize=8)
    plots.save_figure(figure, path)


def _caught(rows: Sequence[Values], path: Path) -> None:
    """Errors against the price of a nat, and what estimators say of the code that costs nothing."""
    figure = plots.new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    found = drawn(rows, "catch")
    for label in ("error on training", "error"):
        _errorbar(left, range(len(found)), [spread(runs, _CATCH[label]) for runs in found.values()], label)
    left.set(xticks=range(len(found)), xticklabels=[beta for (beta,) in found], ylim=(0, 1))
    left.set(xlabel="beta, of information in the weights", ylabel="share of the images")
    left.legend(fontsize=8)
    kinds = "", " by mss", " by in_batch"
    for what, shift in (("MI", -0.2), ("TC", 0.2)):
        means, spreads = zip(*(spread(found["0",], _CATCH[what + kind]) for kind in kinds), strict=True)
        right.bar([i + shift for i in range(len(kinds))], means, 0.4, yerr=spreads, label=what)
    right.axhline(math.log(1024), color="grey", linewidth=0.8)  # ln N
    right.set(xticks=range(len(kinds)), xticklabels=["exactly", "mss", "in_batch"], ylabel="nats, beta 0")
    right.legend(fontsize=8)
    plots.save_figure(figure, path)


PICTURES: dict[str, tuple[str, Callable[[Sequence[Values], Path], None]]] = {
    "beta-vae": ("beta-sweep.png", _sweep),
    "annealed-vae": ("capacity.png", _dimensions),
    "beta-tcvae": ("disentanglement.png", _disentangled),
    "random-labels": ("random-labels.png", _random_labels),
    "weights-beta": ("weights-beta.png", _bias_and_variance),
    "catch": ("catch.png", _caught),
    "vib-digits": ("vib-digits.png", _vib("vib-digits")),
    "vib-fashion": ("vib-fashion.png", _vib("vib-fashion")),
    "information-dropout": ("nuisance.png", _nuisance),
}


def main(argv: Sequence[str] | None = None, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.gallery", description="Draws what the experiments gave.")
    parser.parse_args(argv)
    rows = experiments.done(results / experiments.NAME)
    (results / PAGE).write_text(page(rows))
    for name in {row["experiment"] for row in rows if "results" in row} & set(PICTURES):
        file, draw = PICTURES[name]
        draw(rows, results / file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
