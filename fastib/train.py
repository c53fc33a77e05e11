"""The demo's beta-TCVAE, trained on one process or, by torchrun, on several that share each batch.

All ranks draw the same batches and the same noise, and each takes its part, so that the curve is that of one process on
the whole batch, to rounding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastib
from fastib._arguments import check_integer
from fastib._progress import NoBar, progress_bar, require_tqdm
from fastib.datasets import Sprites
from fastib.decompose import save_model
from fastib.demo import DATASET_SIZE, LATENT, TC_BETA, noise_of
from fastib.losses import BetaTCVAELoss, BetaTCVAETerms
from fastib.models import ConvVAE


class Ranks(NamedTuple):
    """The processes that train together, and which of them this is; `group` is None for one alone."""

    group: dist.ProcessGroup | None
    rank: int
    size: int
    device: torch.device

    def part_of(self, batch: int) -> slice:
        """The rows of a batch that are this rank's: as many as another's, or one more."""
        return slice(batch * self.rank // self.size, batch * (self.rank + 1) // self.size)


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """Those that torchrun has started, by what it says in the environment."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if "WORLD_SIZE" not in os.environ:
        yield Ranks(None, 0, 1, device)
        return
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Ranks(dist.group.WORLD, dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


class _Loss(nn.Module):
    """The model and its loss as one module, whose gradients DistributedDataParallel averages."""

    def __init__(self, model: ConvVAE, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        self.model = model
        self.criterion = BetaTCVAELoss(beta=TC_BETA, dataset_size=DATASET_SIZE, group=group)

    def forward(self, images: Tensor, noise: Tensor) -> BetaTCVAETerms:
        mu, logvar = self.model.encode(images)
        z = fastib.reparameterize(mu, logvar, noise=noise)
        terms: BetaTCVAETerms = self.criterion(self.model.decode(z), images, z, mu, logvar)
        return terms


def run(steps: int = 300, *, batch: int = 64, output: Path = Path("fastib-train"), seed: int = 0) -> list[float]:
    """Trains, prints the terms of the last step, and writes the model to `model.pt` in the folder `output`.

    Args:
        steps: the number of optimiser steps.
        batch: the number of images of a step, of all ranks together.
        output: the folder for the model, as a checkpoint of `fastib.decompose`; it is made if it is missing.
        seed: of the weights, the order of the images and the noise.

    Returns:
        The loss of each step, which is the whole batch's, on every rank.

    Raises:
        ImportError: without tqdm, which the extra `models` installs.
        TypeError, ValueError: for `steps` or `batch` that is not an integer, or too small: each rank needs an image.
    """
    check_integer("steps", steps, 1)
    check_integer("batch", batch, 2)
    require_tqdm()
    with ranks() as all_ranks:
        if batch < all_ranks.size:
            raise ValueError(f"batch must have an image for each of the {all_ranks.size} ranks, got {batch}")
        torch.manual_seed(seed)
        model = ConvVAE(LATENT).to(all_ranks.device)
        losses, terms = _train(model, all_ranks, steps, batch, seed)
        if all_ranks.rank == 0:
            output.mkdir(parents=True, exist_ok=True)
            save_model(model, LATENT, output / "model.pt")
            print(_report(terms, all_ranks.size, output / "model.pt"))
    return losses


def _train(model: ConvVAE, of: Ranks, steps: int, batch: int, seed: int) -> tuple[list[float], BetaTCVAETerms]:
    loss: nn.Module = _Loss(model, of.group)
    if of.group is not None:
        loss = DistributedDataParallel(loss)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-4)
    sprites, generator, mine = Sprites(), torch.Generator().manual_seed(seed), of.part_of(batch)
    losses = []
    with progress_bar(total=steps, unit="step") if of.rank == 0 else NoBar() as bar:
        for _ in range(steps):
            indices = torch.randint(len(sprites), (batch,), generator=generator)
            rng = torch.randint(2**62, (2,), generator=generator)
            noise = noise_of(rng, torch.zeros(batch, LATENT))[mine].to(of.device)
            optimiser.zero_grad()
            terms: BetaTCVAETerms = loss(sprites.images(indices[mine]).to(of.device), noise)
            terms.loss.backward()
            optimiser.step()
            losses.append(terms.loss.item())
            bar.update(1)
    return losses, terms


def _report(terms: BetaTCVAETerms, size: int, path: Path) -> str:
    named = ", ".join(f"{name.replace('_', ' ')} {value.item():.3f}" for name, value in terms._asdict().items())
    return f"Trained on {size} rank{'s' * (size > 1)}. Last step, in nats: {named}.\nThe model: {path}"
