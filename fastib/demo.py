"""The main job on real input: a VAE on sprites, trained with fused and with plain losses side by side.

Both trainings start from the same weights and see the same images and the same noise, so their curves must be the same
to rounding. What differs is the time of the loss, and beside a convolutional network that is a few thousandths.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fastib
from fastib import checkpoints, plots
from fastib._arguments import check_choice
from fastib._extras import require
from fastib._progress import progress_bar
from fastib.checkpoints import Checkpoint, Data, new_model
from fastib.configs import Config
from fastib.datasets import Sprites
from fastib.losses import BetaTCVAELoss, BetaVAELoss
from fastib.models import VAE, ConvVAE

BETA, TC_BETA = 4.0, 6.0
LOSSES = {"beta-vae": ("beta-VAE", BETA), "beta-tcvae": ("beta-TCVAE", TC_BETA)}
BATCH = 64
LATENT = 10
DATASET_SIZE = math.prod(Sprites.factor_sizes)
# Of the mean loss of the last LAST steps. Measured: 1e-9 to 9e-7 for the beta-VAE, over four seeds and 100 to 1500
# steps; for the beta-TCVAE, whose gradients are small differences of sums over all pairs, 3e-6 (300 steps of seed 0) to
# 9e-4 (150 of seed 3): it grows while latent dimensions come alive, which rounding may bring a step sooner, and
# shrinks.
TOLERANCE = {"beta-vae": 1e-5, "beta-tcvae": 1e-3}
LAST = 50


class Step(NamedTuple):
    """One step of one training: terms in nats, time in seconds."""

    loss: float
    reconstruction: float
    kl: float
    seconds: float


class DemoResult(NamedTuple):
    """What the two trainings came to. `difference` is the relative difference of their mean loss over the last
    steps."""

    fused: list[Step]
    plain: list[Step]
    fused_share: float
    plain_share: float
    difference: float
    tolerance: float
    picture: Path

    @property
    def agrees(self) -> bool:
        """Whether the two trainings ended at the same loss, to rounding."""
        return self.difference <= self.tolerance


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


def fused_tcvae_loss(model: ConvVAE, images: Tensor, rng: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, reconstruction and KL of the beta-TCVAE by fastib."""
    mu, logvar = model.encode(images)
    z = fastib.reparameterize(mu, logvar, rng=rng)
    terms = BetaTCVAELoss(beta=TC_BETA, dataset_size=DATASET_SIZE)(model.decode(z), images, z, mu, logvar)
    return terms.loss, terms.reconstruction, sum(terms[2:5], torch.zeros(()))


def plain_tcvae_loss(model: ConvVAE, images: Tensor, rng: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same in plain PyTorch, with a tensor of all pairs."""
    mu, logvar = model.encode(images)
    z, terms = plain_decomposition(mu, logvar, noise_of(rng, mu))
    reconstruction = F.binary_cross_entropy_with_logits(model.decode(z), images, reduction="sum") / len(images)
    return reconstruction + terms[0] + TC_BETA * terms[1] + terms[2], reconstruction, sum(terms, torch.zeros(()))


def fused_decomposition(mu: Tensor, logvar: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The sample, and mutual information, total correlation and dimension-wise KL, by fastib."""
    z = fastib.reparameterize(mu, logvar)
    return z, fastib.elbo_decomposition(z, mu, logvar, DATASET_SIZE)


def plain_decomposition(mu: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same in plain PyTorch."""
    z = mu + torch.exp(0.5 * logvar) * noise
    size, batch = DATASET_SIZE, len(z)
    log_density = -0.5 * ((z[:, None] - mu).pow(2) * torch.exp(-logvar) + logvar + math.log(2 * math.pi))
    log_weights = torch.full((batch, batch), math.log((size - 1) / (size * (batch - 1)))).fill_diagonal_(
        -math.log(size)
    )
    log_qz = torch.logsumexp(log_density.sum(2) + log_weights, 1)
    log_qz_marginals = torch.logsumexp(log_density + log_weights[..., None], 1).sum(1)
    log_qz_x = log_density.diagonal().sum(0)
    log_pz = -0.5 * (z.pow(2) + math.log(2 * math.pi)).sum(1)
    return z, ((log_qz_x - log_qz).mean(), (log_qz - log_qz_marginals).mean(), (log_qz_marginals - log_pz).mean())


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
    seconds: float = 60.0,
    *,
    loss: str = "beta-vae",
    steps: int | None = None,
    output: Path = Path("fastib-demo"),
    seed: int = 0,
) -> DemoResult:
    """Trains both, prints what came of it, and writes `sprites.png` and `model.pt` into the folder `output`.

    Args:
        seconds: time to train, for both together.
        loss: "beta-vae", or "beta-tcvae", which weighs the total correlation alone.
        steps: the number of steps of each, instead of a time.
        output: the folder for the picture, and for the fused model, a checkpoint; it is made if it is missing.
        seed: of the weights, the order of the images and the noise.

    Returns:
        The result. `agrees` is whether the two trainings ended at the same loss, to rounding.

    Raises:
        ImportError: without tqdm or matplotlib, which the extra `models` installs.
        ValueError: for an unknown `loss`.
    """
    check_choice("loss", loss, tuple(LOSSES))
    losses = (fused_loss, plain_loss) if loss == "beta-vae" else (fused_tcvae_loss, plain_tcvae_loss)
    require("tqdm", "the progress bar")
    require("matplotlib", "a picture")
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    sprites = Sprites()
    config = Config.of({"model": loss, "latent_dim": LATENT, "beta": LOSSES[loss][1], "batch": BATCH, "seed": seed})
    model = new_model(config, Data.of(sprites))
    assert isinstance(model, VAE) and isinstance(model.network, ConvVAE)
    fused, plain = Training(model.network, losses[0]), Training(copy.deepcopy(model.network), losses[1])
    print(
        f"Training two {LOSSES[loss][0]}s on {len(sprites)} sprites of 64 x 64, batch {BATCH}, "
        f"{torch.get_num_threads()} threads."
    )
    _train(fused, plain, _batches(sprites, seed), seconds, steps)
    if not plain.steps or not fused.steps:
        raise KeyboardInterrupt  # before the first step of both there is nothing to report
    states = model.state_dict(), fused.optimiser.state_dict(), None
    checkpoints.save(Checkpoint(config, Data.of(sprites), len(fused.steps), *states), output / "model.pt")
    picture = output / "sprites.png"
    generator = torch.Generator().manual_seed(seed + 1)
    plots.traversals(model, sprites.images(torch.randint(len(sprites), (512,), generator=generator)), picture)
    result = _result(fused, plain, loss, picture)
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
    end = time.perf_counter() + seconds
    total = {"total": steps} if steps else {"total": round(seconds), "unit": "s", "bar_format": _TIME_BAR}
    with progress_bar(**total) as bar:
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


def _result(fused: Training, plain: Training, loss: str, picture: Path) -> DemoResult:
    count = min(len(fused.steps), len(plain.steps))
    fused_steps, plain_steps = fused.steps[:count], plain.steps[:count]
    a, b = (_mean_of_last("loss", steps) for steps in (fused_steps, plain_steps))
    times = _loss_seconds(loss)
    fused_share, plain_share = (
        seconds / _median_seconds(steps) for seconds, steps in zip(times, (fused_steps, plain_steps), strict=True)
    )
    difference = abs(a - b) / abs(b)
    return DemoResult(fused_steps, plain_steps, fused_share, plain_share, difference, TOLERANCE[loss], picture)


def _mean_of_last(term: str, steps: list[Step]) -> float:
    return statistics.fmean(getattr(step, term) for step in steps[-LAST:])


def _median_seconds(steps: list[Step]) -> float:
    return statistics.median(step.seconds for step in steps)


def _loss_seconds(loss: str, repetitions: int = 300) -> tuple[float, float]:
    """The time of sample and KL, forward and backward, fused and plain, at the shapes of the training."""
    mu, logvar = (torch.randn(BATCH, LATENT, requires_grad=True) for _ in range(2))

    def seconds(kind: str) -> float:
        start = time.perf_counter()
        both_passes(loss, kind, mu, logvar)
        return time.perf_counter() - start

    times = [(seconds("fused"), seconds("plain")) for _ in range(repetitions)]
    fused_seconds, plain_seconds = (statistics.median(column) for column in zip(*times, strict=True))
    return fused_seconds, plain_seconds


def both_passes(loss: str, kind: str, mu: Tensor, logvar: Tensor) -> None:
    """Sample and KL of a "beta-vae" or a "beta-tcvae", forward and backward, "fused" or "plain"."""
    tcvae = loss == "beta-tcvae"
    sample: Callable[..., Any] = fused_decomposition if tcvae else _fused_sample
    if kind == "plain":
        sample = partial(plain_decomposition if tcvae else plain_sample, noise=torch.randn_like(mu))
    z, kl = sample(mu, logvar)
    total = z.sum() + (kl[0] + TC_BETA * kl[1] + kl[2] if tcvae else kl)
    torch.autograd.grad(total, (mu, logvar))


def _fused_sample(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    return fastib.reparameterize_with_kl(mu, logvar)


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
    verdict = "they agree" if result.agrees else f"THEY DO NOT AGREE (limit {result.tolerance:g})"
    lines.append(
        f"After {len(result.fused)} steps of each: {same}; the means of the last {LAST} differ by "
        f"{result.difference:.1e} of their value: {verdict}."
    )
    lines.append(
        "'loss of step': the share of sample and KL, forward and backward, in a training step: "
        "beside a conv net, small."
    )
    lines.append(f"Reconstructions and latent traversals: {result.picture}")
    lines.append(f"Its information, exactly: python -m fastib decompose {result.picture.with_name('model.pt')}")
    return "\n".join(lines)
