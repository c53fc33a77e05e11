"""What the losses are of a whole training step, fused and plain: `python -m benches.training_step`.

The step is the demo's: a convolutional VAE on 64 x 64 images, forward, backward and Adam. `loss` is the sample and its
KL, or its decomposition, forward and backward, at the shapes of the step, alone. The peak is the most memory that the
first step of a new process takes beyond model and images.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benches import harness, provenance
from benches.provenance import RESULTS
from benches.tables import markdown, number
from fastib import demo
from fastib.models import ConvVAE

Row = dict[str, Any]
NAME = "training_step.json"
BATCHES = 64, 512, 2048
MODELS = "beta-vae", "beta-tcvae"
KINDS = "fused", "plain"
_STEPS = {
    ("beta-vae", "fused"): demo.fused_loss,
    ("beta-vae", "plain"): demo.plain_loss,
    ("beta-tcvae", "fused"): demo.fused_tcvae_loss,
    ("beta-tcvae", "plain"): demo.plain_tcvae_loss,
}


def step(model: str, kind: str, batch: int) -> Callable[[], object]:
    """A whole step of a new model."""
    torch.manual_seed(0)
    training = demo.Training(ConvVAE(demo.LATENT), _STEPS[model, kind])
    images = torch.rand(batch, 1, 64, 64)
    return lambda: training.step(images, torch.randint(2**62, (2,)))


def loss(model: str, kind: str, batch: int) -> Callable[[], object]:
    """The sample and the terms of the loss alone."""
    mu, logvar = (torch.randn(batch, demo.LATENT, requires_grad=True) for _ in range(2))
    return lambda: demo.both_passes(model, kind, mu, logvar)


def peak(model: str, kind: str, batch: int) -> int:
    """Bytes that the first step takes, in this process (of Linux)."""
    run = step(model, kind, batch)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _memory("VmRSS")
    run()
    return _memory("VmHWM") - before


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def _peak_of_a_new_process(model: str, kind: str, batch: int) -> int:
    command = [sys.executable, "-m", "benches.training_step", "--peak", model, kind, str(batch)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(seconds: float, batches: Sequence[int] = BATCHES) -> list[Row]:
    rows = []
    for model in MODELS:
        for batch in batches:
            steps = harness.interleave({kind: step(model, kind, batch) for kind in KINDS}, seconds)
            losses = harness.interleave({kind: loss(model, kind, batch) for kind in KINDS}, seconds / 4)
            for kind in KINDS:
                row = {"model": model, "batch": batch, "losses": kind}
                row |= {"step_ms": 1e3 * median(steps[kind]), "loss_ms": 1e3 * median(losses[kind])}
                row |= {"rounds": len(steps[kind]), "peak_bytes": _peak_of_a_new_process(model, kind, batch)}
                rows.append(row)
                print(row, flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    """A line for each model and batch: the step, the share of the loss in it, and the peak, fused and plain."""
    lines = [["model", "B", "step, ms", "plain", "loss, ms", "plain", "loss of step", "plain", "peak, MiB", "plain"]]
    for fused, plain in zip(rows[::2], rows[1::2], strict=True):
        cells = [number(row[key]) for key in ("step_ms", "loss_ms") for row in (fused, plain)]
        cells += [f"{row['loss_ms'] / row['step_ms']:.2%}" for row in (fused, plain)]
        cells += [number(row["peak_bytes"] / 2**20) for row in (fused, plain)]
        lines.append([fused["model"], str(fused["batch"]), *cells])
    return markdown(lines)


def main(argv: Sequence[str] | None = None, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.training_step", description="The losses' part of a step.")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each model and batch (default: 20)")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.peak:
        model, kind, batch = arguments.peak
        print(peak(model, kind, int(batch)))
        return 0
    rows = measure(arguments.seconds)
    print(table(rows))
    provenance.write(results / NAME, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
