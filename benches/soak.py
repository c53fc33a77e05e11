"""Training-like calls for an hour: `python -m benches.soak [--minutes 60]` writes `results/soak.json`.

A round is a forward and a backward pass of every function, of shapes that change from one to the next: on one thread,
on all, on four threads of Python at once, in two processes at once, and in a child that was forked. All must have the
bits of the first round on one thread. The memory of the process is noted after each round: it must not grow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastib
from benches import provenance
from benches.provenance import RESULTS
from fastib.losses import AnnealedVAELoss, BetaTCVAELoss, BetaVAELoss

NAME = "soak.json"
SHAPES = ((64, 10), (2, 3), (257, 33), (1500, 10), (96, 64))  # rows, dimensions
SETTLED = 0.2  # of the rounds, after which memory is to stay as it is
MOST_GROWTH = 8.0  # MiB, from the most of the first half of those to that of the last, which an allocator may keep
Digests = list[str]


def _functions(z: Tensor, mu: Tensor, logvar: Tensor, seed: int) -> list[Any]:
    rng, images = torch.tensor([seed, 0]), torch.sigmoid(z.detach())
    kl = fastib.gaussian_kl(mu, logvar)
    return [
        fastib.reparameterize(mu, logvar, rng=rng),
        *fastib.reparameterize_with_kl(mu, logvar, rng=rng),
        kl,
        fastib.log_variance_penalty(logvar),
        *fastib.information_dropout(mu.relu(), logvar, rng=rng),
        *fastib.aggregate_posterior(z, mu, logvar, estimator="in_batch"),
        *fastib.elbo_decomposition(z, mu, logvar, 10_000),
        fastib.total_correlation(z, mu, logvar, 10_000),
        fastib.aggregate_posterior_marginals(z, mu, logvar, estimator="in_batch"),
        BetaVAELoss(4.0)(z, images, mu, logvar).loss,
        AnnealedVAELoss(10.0, 5.0)(z, images, mu, logvar).loss,
        BetaTCVAELoss(dataset_size=10_000)(z, images, z, mu, logvar).loss,
    ]


def digest(seed: int) -> str:
    """Of the bits of all results and gradients; a function of the seed."""
    rows, dims = SHAPES[seed % len(SHAPES)]
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(rows, dims, generator=generator).requires_grad_() for _ in range(3)]
    outputs = _functions(*inputs, seed)
    gradients = torch.autograd.grad(sum(output.sum() for output in outputs), inputs)
    said = hashlib.sha256()
    for t in (*outputs, *gradients):
        said.update(t.detach().numpy().tobytes())
    return said.hexdigest()


def digests() -> Digests:
    return [digest(seed) for seed in range(2 * len(SHAPES))]


def on_one_thread() -> Digests:
    return _with_threads(1)


def on_all_threads() -> Digests:
    return _with_threads(os.cpu_count() or 1)


def _with_threads(count: int) -> Digests:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return digests()
    finally:
        torch.set_num_threads(before)


def _at_once(pool: Executor, count: int) -> list[Digests]:
    return [job.result() for job in [pool.submit(on_one_thread) for _ in range(count)]]


def forked() -> Digests:
    """In a child of this process, whose threads it hasn't."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(on_one_thread).result()


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def soak(seconds: float) -> dict[str, Any]:
    """Rounds for so long, and what came of them."""
    expected, begin = on_one_thread(), time.monotonic()
    memory: list[float] = []
    with (
        ThreadPoolExecutor(4) as threads,
        ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes,
    ):
        rounds: dict[str, Callable[[], list[Digests]]] = {
            "one thread": lambda: [on_one_thread()],
            "all threads": lambda: [on_all_threads()],
            "four threads at once": lambda: _at_once(threads, 4),
            "two processes at once": lambda: _at_once(processes, 2),
            "a forked child": lambda: [forked()],
        }
        differing = dict.fromkeys(rounds, 0)
        while time.monotonic() < begin + seconds or len(memory) < 5:
            for name, found in rounds.items():
                differing[name] += sum(digests != expected for digests in found())
            memory.append(resident())
    return {
        "minutes": (time.monotonic() - begin) / 60,
        "rounds": len(memory),
        "differing": differing,
        "resident_mib": [round(mib, 1) for mib in memory],
    }


def halves(memory: Sequence[float]) -> tuple[float, float]:
    """The most memory in the first and in the last half of the rounds, after it has settled."""
    settled = memory[int(SETTLED * len(memory)) :]
    middle = len(settled) // 2
    return max(settled[:middle]), max(settled[middle:])


def failures(found: dict[str, Any]) -> list[str]:
    differing = [f"{count} times other bits on {name}" for name, count in found["differing"].items() if count > 0]
    first, last = halves(found["resident_mib"])
    grown = last - first
    return [*differing, *([f"memory has grown by {grown:.1f} MiB"] if grown > MOST_GROWTH else [])]


def said(found: dict[str, Any]) -> str:
    """What the README has of it."""
    kinds = f"in all {found['rounds']} rounds of {found['minutes']:.0f} minutes"
    differing = sum(found["differing"].values())
    bits = f"{kinds} the bits were the same" if differing == 0 else f"{kinds} the bits differed {differing} times"
    first, last = halves(found["resident_mib"])
    return f"{bits}; the process had {first:.0f} MiB at most in the first half of the rounds, {last:.0f} in the last"


def main(argv: Sequence[str] | None = None, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.soak", description="Calls for an hour.")
    parser.add_argument("--minutes", type=float, default=60.0)
    found = soak(60 * parser.parse_args(argv).minutes)
    text = json.dumps({"header": provenance.header(), **found}, indent=1)
    print(text)
    for failure in failures(found):
        print(failure, file=sys.stderr)
    (results / NAME).write_text(text + "\n")
    return int(bool(failures(found)))


if __name__ == "__main__":
    sys.exit(main())
