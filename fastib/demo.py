"""The main job on real input: a beta-VAE on sprites, trained with fused and with plain losses side by side.

Both trainings start from the same weights and see the same images and the same noise, so their curves must be the same
to rounding. What differs is the time of the loss, and beside a convolutional network that is a few thousandths.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fastib
from fastib import plots
from fastib.datasets import Sprites
from fastib.losses import BetaVAELoss
from fastib.models import ConvVAE

BETA = 4.0
BATCH = 64
LATENT = 10
# Of the mean loss of the last LAST steps. Measured: 1e-9 to 9e-7, over four seeds and 100 to 1500 steps.
TOLERANCE = 1e-5
LAST = 50


class Step(NamedTuple):
    """One step of one training: terms in nats, time in seconds."""

    loss: float
    reconstruction: float
    kl: float
    seconds: float


class DemoResult(NamedTuple):
    """What the two trainings came to. `difference` is the relative difference of their mean loss over the last steps."""

    fused: list[Step]
    plain: list[Step]
    fused_share: float
    plain_share: float
    difference: float
    agrees: bool
    picture: Path


Loss = Callable[[ConvVAE, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def fused_loss(model: ConvVAE, images: Tensor, rng: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, reconstruction and KL by fastib."""
    z, kl = fastib.reparameterize_with_kl(*model.encode(images), rng=rng)
    loss, reconstruction, kl = BetaVAELoss(BETA)(model.decode(z), images, kl=kl)
    return loss, reconstruction, kl


def plain_loss(model: ConvVAE, images: Tensor, rng: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same by the lines that everyone copies, with the noise that the fused loss draws for the same `rng`."""
    mu, logvar = model.encode(images)
    z, kl = plain_sample(mu, logvar, noise_of(rng, mu))
    reconstruction = F.binary_cross_entropy_with_logits(model.decode(z), images, reduction="sum") / len(images)
    return reconstruction + BETA * kl, reconstruction, kl


def plain_sample(mu: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The sample and its KL in plain PyTorch."""
    z = mu + torch.exp(0.5 * logvar) * noise
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / mu.shape[0]
    return z, kl


def noise_of(rng: Tensor, like: Tensor) -> Tensor:
    """The noise that `rng` stands for: that of N(0, 1), since it is a function of `rng` alone."""
    zero = torch.zeros_like(like)
    return fastib.reparameterize(zero, zero, rng=rng)


class Training:
    """A model and its optimiser, stepped on one of the two losses."""

    def __init__(self, model: ConvVAE, loss: Loss) -> None:
        self.model, self.loss = model, loss
        self.optimiser = torch.optim.Adam(model.parameters(), lr=5e-4)
        self.steps: list[Step] = []

    def step(self, images: Tensor, rng: Tensor) -> float:
        """Trains on one batch; returns its loss."""
        start = time.perf_counter()
        self.optimiser.zero_grad()
        loss, reconstruction, kl = self.loss(self.model, images, rng)
        loss.backward()
        self.optimiser.step()
        values = loss.item(), reconstruction.item(), kl.item()
        self.steps.append(Step(*values, time.perf_counter() - start))
        return values[0]


def run(
    seconds: float = 60.0, *, steps: int | None = None, output: Path = Path("fastib-demo"), seed: int = 0
) -> DemoResult:
    """Trains both, prints what came of it, and writes `sprites.png` into the folder `output`.

    Args:
        seconds: time to train, for both together.
        steps: the number of steps of each, instead of a time.
        output: the folder for the picture; it is made if it is missing.
        seed: of the weights, the order of the images and the noise.

    Returns:
        The result. `agrees` is whether the two trainings ended at the same loss, to rounding.

    Raises:
        ImportError: without tqdm or matplotlib, which the extra `models` installs.
    """
    plots.require_matplotlib()
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = ConvVAE(LATENT)
    fused, plain = Training(model, fused_loss), Training(copy.deepcopy(model), plain_loss)
    sprites = Sprites()
    print(
        f"Training two beta-VAEs on {len(sprites)} sprites of 64 x 64, batch {BATCH}, {torch.get_num_threads()} threads."
    )
    _train(fused, plain, _batches(sprites, seed), seconds, steps)
    if not plain.steps or not fused.steps:
        raise KeyboardInterrupt  # before the first step of both there is nothing to report
    picture = output / "sprites.png"
    _draw(fused.model, sprites, picture, seed)
    result = _result(fused, plain, picture)
    print(report(result))
    return result


def _batches(sprites: Sprites, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images drawn at random, and the rng of their noise."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        indices = torch.randint(len(sprites), (BATCH,), generator=generator)
        yield sprites.images(indices), torch.randint(2**62, (2,), generator=generator)


def _train(
    fused: Training, plain: Training, batches: Iterator[tuple[Tensor, Tensor]], seconds: float, steps: int | None
) -> None:
    """Steps the two in turn, the first one first in every other round, until the time or the steps are used up."""
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("the progress bar needs tqdm: pip install 'fastib[models]'") from None

    end = time.perf_counter() + seconds
    total = {"total": steps} if steps else {"total": round(seconds), "unit": "s", "bar_format": _TIME_BAR}
    with tqdm(**total) as bar:
        try:
            for count, (images, rng) in enumerate(batches, 1):
                before = time.perf_counter()
                order = (fused, plain) if count % 2 else (plain, fused)
                losses = {training: training.step(images, rng) for training in order}
                bar.set_postfix_str(f"fused {losses[fused]:.2f}, plain {losses[plain]:.2f}", refresh=False)
                bar.update(1 if steps else min(time.perf_counter() - before, bar.total - bar.n))
                if count == steps or (not steps and time.perf_counter() >= end):
                    return
        except KeyboardInterrupt:
            bar.write("Stopped: here is what was done.")


_TIME_BAR = "{l_bar}{bar}| {n:.0f}/{total_fmt} s{postfix}"


def _result(fused: Training, plain: Training, picture: Path) -> DemoResult:
    count = min(len(fused.steps), len(plain.steps))
    fused_steps, plain_steps = fused.steps[:count], plain.steps[:count]
    a, b = (_mean_of_last("loss", steps) for steps in (fused_steps, plain_steps))
    times = _loss_seconds()
    fused_share, plain_share = (
        seconds / _median_seconds(steps) for seconds, steps in zip(times, (fused_steps, plain_steps), strict=True)
    )
    difference = abs(a - b) / abs(b)
    return DemoResult(fused_steps, plain_steps, fused_share, plain_share, difference, difference <= TOLERANCE, picture)


def _mean_of_last(term: str, steps: list[Step]) -> float:
    return statistics.fmean(getattr(step, term) for step in steps[-LAST:])


def _median_seconds(steps: list[Step]) -> float:
    return statistics.median(step.seconds for step in steps)


def _loss_seconds(repetitions: int = 300) -> tuple[float, float]:
    """The time of sample and KL, forward and backward, fused and plain, at the shapes of the training."""
    mu, logvar = (torch.randn(BATCH, LATENT, requires_grad=True) for _ in range(2))
    grads = torch.randn(BATCH, LATENT), torch.ones(())

    def both_passes(sample: Callable[..., Any], *noise: Tensor) -> float:
        start = time.perf_counter()
        torch.autograd.grad(sample(mu, logvar, *noise), (mu, logvar), grads)
        return time.perf_counter() - start

    times = [
        (both_passes(fastib.reparameterize_with_kl), both_passes(plain_sample, torch.randn_like(mu)))
        for _ in range(repetitions)
    ]
    fused, plain = (statistics.median(column) for column in zip(*times, strict=True))
    return fused, plain


def report(result: DemoResult) -> str:
    """The result as a few lines of text."""
    lines = [f"{'':8}{'reconstruction':>16}{'KL':>13}{'images/s':>12}{'loss of step':>14}"]
    for name, steps, share in (
        ("fused", result.fused, result.fused_share),
        ("plain", result.plain, result.plain_share),
    ):
        rate = BATCH / _median_seconds(steps)
        terms = f"{_mean_of_last('reconstruction', steps):11.2f} nats{_mean_of_last('kl', steps):8.2f} nats"
        lines.append(f"{name:8}{terms}{rate:12.0f}{share:14.2%}")
    first = next((i for i, (a, b) in enumerate(zip(result.fused, result.plain, strict=True)) if a.loss != b.loss), None)
    same = "every loss was the same" if first is None else f"the losses first differed in step {first + 1}"
    verdict = "they agree" if result.agrees else f"THEY DO NOT AGREE (limit {TOLERANCE:g})"
    lines.append(
        f"After {len(result.fused)} steps of each: {same}; the means of the last {LAST} differ by "
        f"{result.difference:.1e} of their value: {verdict}."
    )
    lines.append(
        "'loss of step': the share of sample and KL, forward and backward, in a training step: beside a conv net, small."
    )
    lines.append(f"Reconstructions and latent traversals: {result.picture}")
    return "\n".join(lines)


@torch.no_grad()
def _draw(model: ConvVAE, sprites: Sprites, path: Path, seed: int, columns: int = 11) -> None:
    generator = torch.Generator().manual_seed(seed + 1)
    images = sprites.images(torch.randint(len(sprites), (512,), generator=generator))
    mu, logvar = model.encode(images)
    kl = fastib.gaussian_kl(mu, logvar, reduction="none").mean(0)
    order = kl.argsort(descending=True)
    codes = mu[:1].expand(LATENT, columns, LATENT).clone()
    for row, dimension in enumerate(order):
        codes[row, :, dimension] = torch.linspace(-3, 3, columns)
    traversals = torch.sigmoid(model.decode(codes.view(-1, LATENT))).view(LATENT, columns, *images.shape[1:])
    plots.vae_picture(path, images[:columns], torch.sigmoid(model.decode(mu[:columns])), traversals, kl[order])
