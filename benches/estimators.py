"""How far each estimator of MI and TC is from the truth, where that is known: `python -m benches.estimators`.

Each data set is N posteriors and one sample of each; its truth is known in closed form, and "exact" is the
decomposition over the whole of it, which differs only where the samples are few for a Gaussian. A trial draws a
minibatch and estimates the mean of its samples. Rows have the mean of the trials and their standard deviation: bias and
spread. "column" is the widespread code, whose weights meant for the diagonal lie in the first column and those for one
other component of each row in the second.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastib
from benches import provenance
from benches.provenance import RESULTS
from benches.tables import markdown
from fastib._extras import require
from fastib.metrics import exact_elbo_decomposition

Row = dict[str, Any]
NAME = "estimators.json"
BATCHES = (16, 64, 256)
ESTIMATORS = ("mss", "mws", "in_batch", "column")
DIMS = 10
N = 2**DIMS


class DataSet(NamedTuple):
    z: Tensor
    mu: Tensor
    logvar: Tensor
    truth: tuple[float, float]  # MI and TC

    @classmethod
    def of(cls, mu: Tensor, logvar: Tensor, truth: tuple[float, float]) -> DataSet:
        return cls(mu + torch.exp(logvar / 2) * torch.randn_like(mu), mu, logvar, truth)


def collapse() -> DataSet:
    """Every posterior is the prior."""
    return DataSet.of(torch.zeros(N, DIMS), torch.zeros(N, DIMS), (0.0, 0.0))


def separated() -> DataSet:
    """Every posterior is far from all others in every dimension."""
    mu = torch.stack([torch.randperm(N) for _ in range(DIMS)], 1).float()
    return DataSet.of(mu, torch.full_like(mu, -10.0), (math.log(N), (DIMS - 1) * math.log(N)))


def hash_code() -> DataSet:
    """An index of the samples in binary: all is known of each, and the dimensions are independent."""
    mu = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * DIMS)
    return DataSet.of(mu, torch.full_like(mu, -10.0), (math.log(N), 0.0))


def correlated() -> DataSet:
    """The aggregate posterior is a Gaussian of two dimensions with correlation 0.9, but for the finite N."""
    correlation, variance = 0.9, 0.05
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]]) - variance * torch.eye(2)
    mu = torch.distributions.MultivariateNormal(torch.zeros(2), covariance).sample((N,))
    tc = -math.log(1 - correlation**2) / 2
    return DataSet.of(mu, torch.full_like(mu, math.log(variance)), (-math.log(variance) - tc, tc))


DATA_SETS: dict[str, Callable[[], DataSet]] = {
    "collapse": collapse,
    "separated": separated,
    "hash code": hash_code,
    "correlated": correlated,
}


def column_weights(dataset_size: int, batch: int) -> Tensor:
    """The weights of the widespread code: a flat index with stride B, where the diagonal needs B + 1."""
    others = batch - 1
    stratified = (dataset_size - others) / (dataset_size * others)
    weights = torch.full((batch, batch), 1 / others)
    weights[:, 0] = 1 / dataset_size
    weights[:, 1] = stratified
    weights[others - 1, 0] = stratified
    return weights


def estimate(estimator: str, data: DataSet, rows: Tensor) -> tuple[float, float]:
    """MI and TC of one minibatch."""
    z, mu, logvar = data.z[rows], data.mu[rows], data.logvar[rows]
    if estimator != "column":
        terms = fastib.elbo_decomposition(z, mu, logvar, N, estimator=estimator)
        return terms.mutual_information.item(), terms.total_correlation.item()
    log_qz, log_qz_marginals = fastib.aggregate_posterior(z, mu, logvar, log_weights=column_weights(N, len(rows)).log())
    log_qz_x = torch.distributions.Normal(mu, torch.exp(logvar / 2)).log_prob(z).sum(1)
    return (log_qz_x - log_qz).mean().item(), (log_qz - log_qz_marginals.sum(1)).mean().item()


def measure(trials: int) -> Iterator[Row]:
    for name, make in DATA_SETS.items():
        torch.manual_seed(0)
        data = make()
        exact = exact_elbo_decomposition(data.z, data.mu, data.logvar)[:2]
        for batch in BATCHES:
            minibatches = [torch.randperm(N)[:batch] for _ in range(trials)]
            for estimator in ESTIMATORS:
                estimates = torch.tensor([estimate(estimator, data, rows) for rows in minibatches]).double()
                for k, term in enumerate(("MI", "TC")):
                    yield {
                        "data_set": name,
                        "term": term,
                        "truth": data.truth[k],
                        "exact": exact[k].item(),
                        "batch": batch,
                        "estimator": estimator,
                        "mean": estimates[:, k].mean().item(),
                        "std": estimates[:, k].std().item(),
                        "trials": trials,
                    }


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of one line per data set, term and batch size: mean ± standard deviation of each estimator."""
    lines = [["data set", "term", "truth", "exact", "B", *ESTIMATORS]]
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row["data_set"], row["term"], row["batch"]), {})[row["estimator"]] = row
    for (name, term, batch), found in cases.items():
        cells = [f"{found[e]['mean']:.2f} ± {found[e]['std']:.2f}" for e in ESTIMATORS]
        truth, exact = (f"{found['mss'][key]:.2f}" for key in ("truth", "exact"))
        lines.append([name, term, truth, exact, str(batch), *cells])
    return markdown(lines)


def picture(path: Path, rows: Sequence[Row]) -> None:
    """Mean and spread against the batch size, one panel per data set and term, with the truth as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(DATA_SETS), 5.6), layout="constrained")
    panels = figure.subplots(2, len(DATA_SETS), squeeze=False)
    for line, term in zip(panels, ("MI", "TC"), strict=True):
        for axis, name in zip(line, DATA_SETS, strict=True):
            found = [row for row in rows if row["data_set"] == name and row["term"] == term]
            axis.axhline(found[0]["truth"], color="black", linewidth=1, linestyle="--", label="truth")
            for offset, estimator in enumerate(ESTIMATORS):
                of_estimator = [row for row in found if row["estimator"] == estimator]
                batches = [row["batch"] * 1.06**offset for row in of_estimator]  # beside each other, not on top
                means, spreads = ([row[key] for row in of_estimator] for key in ("mean", "std"))
                axis.errorbar(batches, means, yerr=spreads, marker="o", markersize=3, capsize=2, label=estimator)
            axis.set_xscale("log", base=2)
            axis.set(title=f"{name}: {term}", xlabel="batch size", ylabel="nats")
    panels[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=90, format="png")


def main(argv: Sequence[str] | None = None, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.estimators", description="Bias and spread of estimators.")
    parser.add_argument("--trials", type=int, default=200, help="minibatches of each size (default: 200)")
    arguments = parser.parse_args(argv)
    require("matplotlib", "a picture")
    if arguments.trials < 2:
        parser.error(f"argument --trials: must be at least 2, got {arguments.trials}")
    rows = list(measure(arguments.trials))
    print(table(rows))
    provenance.write(results / NAME, rows, dataset_size=N)
    picture(results / "estimators.png", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
