"""`python -m fastib train`: trains a model, on one process or, by torchrun, on several that share each batch.

What a step does is a function of the configuration, the step's number and the weights: the images, the noise and the
learning rate are drawn from the seed and the number anew. So a run that was stopped goes on bit for bit (with as many
threads: PyTorch's sums depend on them), and several ranks train what one does, to rounding.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastib
from fastib import _files, checkpoints, logs
from fastib._arguments import check_integer
from fastib._extras import require
from fastib._progress import NoBar, progress_bar
from fastib.checkpoints import Checkpoint, Data, new_model
from fastib.configs import Config, read
from fastib.datasets import FactoredImages
from fastib.logs import Log
from fastib.models import BetaTCVAE
from fastib.schedules import Schedule

CONFIG = "config.toml"
ENDS = "SIGINT", "SIGTERM", "SIGHUP"  # Ctrl-C, the system, a terminal that was closed; not all systems have all
MAY_DIFFER = "steps", "log_every", "save_seconds", "tensorboard", "data"  # from the run that is gone on with


class Ranks(NamedTuple):
    """The processes that train together, and which of them this is."""

    rank: int
    size: int
    device: torch.device

    @property
    def group(self) -> dist.ProcessGroup | None:
        """None for one process alone that torchrun did not start."""
        return dist.group.WORLD if dist.is_initialized() else None

    def part_of(self, batch: int) -> slice:
        """The rows of a batch that are this rank's: as many as another's, or one more."""
        return slice(batch * self.rank // self.size, batch * (self.rank + 1) // self.size)


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """Those that torchrun has started, by what it says in the environment."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if "WORLD_SIZE" not in os.environ:
        yield Ranks(0, 1, device)
        return
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), device)
    finally:
        # Of gloo's threads, one may be about to let go of a Python object: if Python ends first, it aborts the process.
        # They are waited for where the last reference to the group goes, so that none may be left to the end.
        gc.collect()
        dist.destroy_process_group()


@contextlib.contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Says whether the user, or the system, has asked for the end, so that a step in flight is finished first, and then
    all is kept. A second Ctrl-C doesn't wait."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    in_main_thread = threading.current_thread() is threading.main_thread()  # no other one may handle signals
    numbers = [number for name in ENDS if (number := getattr(signal, name, None)) and in_main_thread]
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, ask) for number in heard}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Order:
    """The images of each step: all of them once an epoch, in another order in each."""

    def __init__(self, images: int, batch: int, seed: int) -> None:
        self.images, self.batch, self.seed = images, batch, seed
        self._permutation = lru_cache(maxsize=2)(self._new_permutation)

    def indices(self, step: int) -> Tensor:
        """int64 [batch]."""
        positions = torch.arange(step * self.batch, (step + 1) * self.batch)
        epochs = positions // self.images
        parts = [self._permutation(int(e))[positions[epochs == e] % self.images] for e in epochs.unique()]
        return torch.cat(parts)

    def _new_permutation(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(mixed(self.seed, 1, epoch))
        return torch.randperm(self.images, generator=generator)


def mixed(*numbers: int) -> int:
    """One seed of several numbers, of 32 bits, since PyTorch's generator for the CPU looks at no more."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class Training:
    """A model, its optimiser and its data, after some steps."""

    def __init__(self, config: Config, dataset: FactoredImages, of: Ranks) -> None:
        self.config, self.dataset, self.ranks, self.step = config, dataset, of, 0
        self.order = Order(len(dataset), config.batch, config.seed)
        torch.manual_seed(mixed(config.seed, 0))
        self.model = new_model(config, Data.of(dataset), of.group).to(of.device)
        betas = config.beta1, 0.999
        self.optimiser = torch.optim.Adam(self.model.parameter_groups(), lr=config.learning_rate, betas=betas)
        self.average: AveragedModel | None = None
        if config.average > 0:
            self.average = AveragedModel(
                self.model, multi_avg_fn=get_ema_multi_avg_fn(config.average), use_buffers=True
            )
        self._shared = self.model if of.group is None else DistributedDataParallel(self.model)

    def take_step(self) -> tuple[Any, Tensor]:
        """One step of the optimiser: the terms of the loss, and this rank's images."""
        indices = self.order.indices(self.step)[self.ranks.part_of(self.config.batch)]
        images = self.dataset.images(indices).to(self.ranks.device)
        torch.manual_seed(mixed(self.config.seed, 2, self.step))
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.learning_rate_at(self.step) * group.get("factor", 1.0)
        self.optimiser.zero_grad()
        terms = self._shared(images, **self._beside(indices))
        terms.loss.backward()
        self.optimiser.step()
        self.model.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
            _follow(self.average.module, self.model)
        self.step += 1
        return terms, images

    def _beside(self, indices: Tensor) -> dict[str, Tensor]:
        """What the model is given beside the images."""
        if isinstance(self.model, BetaTCVAE) and self.ranks.group is not None:
            # The noise that one process would draw for the whole batch, of which these rows are some.
            zero = torch.zeros(self.config.batch, self.model.latent_dim, device=self.ranks.device)
            return {"noise": fastib.reparameterize(zero, zero)[self.ranks.part_of(self.config.batch)]}
        known = {"labels": self.dataset.factors(indices)[:, 0], "indices": indices}
        return {name: known[name].to(self.ranks.device) for name in self.model.beside}

    @torch.no_grad()
    def row(self, terms: Any, images: Tensor) -> dict[str, float]:
        """What the log says of a step."""
        return {name: value.item() for name, value in terms._asdict().items()} | self.model.measures(images)

    def checkpoint(self) -> Checkpoint:
        """What is to be saved. Its tensors are those of the training, which the next step changes."""
        average = None if self.average is None else self.average.module.state_dict()
        states = self.model.state_dict(), self.optimiser.state_dict(), average
        return Checkpoint(self.config, Data.of(self.dataset), self.step, *states)

    def load(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of the same configuration and data: the caller has checked that they are."""
        self.step = checkpoint.step
        self.model.load_state_dict(checkpoint.model)
        self.optimiser.load_state_dict(checkpoint.optimiser)
        if self.average is not None and checkpoint.average is not None:
            self.average.module.load_state_dict(checkpoint.average)
            self.average.n_averaged.fill_(checkpoint.step)


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module) -> None:
    """What has no average: numbers that are whole, and where schedules are."""
    for of_average, buffer in zip(average.buffers(), model.buffers(), strict=True):
        if not buffer.is_floating_point():
            of_average.copy_(buffer)
    for averaged, module in zip(average.modules(), model.modules(), strict=True):
        if isinstance(averaged, Schedule) and isinstance(module, Schedule):
            averaged.set_extra_state(module.get_extra_state())


class Trained(NamedTuple):
    """What came of a run: the steps that are done, and the files that it wrote."""

    steps: int
    files: list[Path]


def run(config: Config, output: Path) -> Trained:
    """Trains, with a progress bar, and writes a log and checkpoints; goes on with the run that is in the folder.

    Args:
        config: what to do.
        output: the folder for `config.toml`, `log.csv`, `checkpoint.pt` and, if wanted, the events of TensorBoard; it
            is made if it is missing. If it has a checkpoint of the same configuration, though maybe of fewer steps,
            that run is gone on with, and ends with the weights, bit for bit, of one that was not interrupted.

    Returns:
        What came of it. Ctrl-C, SIGTERM or SIGHUP end the run after the step in flight, and nothing is lost; after any
        other end, what was done since the last checkpoint is done again.

    Raises:
        ImportError: without tqdm, which the extra `models` installs, or without TensorBoard, if it is wanted.
        ValueError: if the data is missing or unfit for the model, a step doesn't fit into memory, the folder has
            another run or other files of these names, another training is at work in it, it can't be written or there
            is no room on its disk, or several ranks are to train another model than a beta-TCVAE.
        FloatingPointError: if the loss or a weight is no longer finite; the last checkpoint is from before that.
    """
    require("tqdm", "the progress bar")
    if config.tensorboard:
        require("tensorboard", "tensorboard = true")
    with ranks() as all_ranks, torch.random.fork_rng(range(torch.cuda.device_count())):
        return _run(config, output, all_ranks)


def _run(config: Config, output: Path, all_ranks: Ranks) -> Trained:
    _check_ranks(config, all_ranks)
    training = Training(config, _dataset(config), all_ranks)
    with _files.writing("output", "a folder", output):
        _go_on(training, output)
    if all_ranks.rank > 0:
        _train(training, None, output)
        return Trained(training.step, [])
    with _files.writing("output", "a folder", output):
        trained = _written(training, output)
    print(report(trained, config, all_ranks.size))
    return trained


def _check_ranks(config: Config, of: Ranks) -> None:
    if of.group is not None and config.model != "beta-tcvae":
        raise ValueError(f"model must be beta-tcvae on several ranks, got {config.model}")
    if config.model == "beta-tcvae":
        check_integer("batch", config.batch, 2)
    if config.batch < of.size:
        raise ValueError(f"batch must have an image for each of the {of.size} ranks, got {config.batch}")


def _dataset(config: Config) -> FactoredImages:
    dataset = config.images()
    if config.batch > len(dataset):
        raise ValueError(f"batch must be at most {len(dataset)}, the images of {config.dataset}, got {config.batch}")
    return dataset


def _go_on(training: Training, output: Path) -> None:
    """Takes the place of the run that is in the folder, if there is one; refuses other files that would be written
    to."""
    config, path = training.config, output / checkpoints.NAME
    if path.exists():
        checkpoint = checkpoints.load(path)
        _check_same(checkpoint.config, config, output)
        if checkpoint.data != Data.of(training.dataset):
            raise ValueError(f"data must be that of the run in {output}, got {config.data!r}, with other images")
        if config.steps < checkpoint.step:
            raise ValueError(
                f"steps must be at least those of the run in {output}, {checkpoint.step}, got {config.steps}"
            )
        training.load(checkpoint)
    elif (output / CONFIG).exists():  # of a run that ended before its first checkpoint
        _check_same(Config.of({"model": config.model, **read(output / CONFIG)}), config, output)
    elif (output / logs.NAME).exists():
        raise ValueError(f"output must be a folder without the {logs.NAME} of something else, got {output}")


def _check_same(before: Config, now: Config, output: Path) -> None:
    for key, value in before.values().items():
        if key not in MAY_DIFFER and now.values().get(key) != value:
            raise ValueError(f"{key} must be that of the run in {output}, {value!r}, got {now.values().get(key)!r}")


def _written(training: Training, output: Path) -> Trained:
    """Trains, and writes what is to be written."""
    config, path = training.config, output / CONFIG
    _check_room(training, output)
    output.mkdir(parents=True, exist_ok=True)
    with _alone_in(output):
        # else it may be the user's own
        if not path.exists() or Config.of({"model": config.model, **read(path)}) != config:
            _files.replace(path, lambda new: new.write_text(config.toml(), encoding="utf-8"))
        with contextlib.closing(Log(output / logs.NAME, training.step, config.tensorboard)) as log:
            _train(training, log, output)
    return Trained(training.step, [output / checkpoints.NAME, path, *log.files])


@contextlib.contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Keeps other trainings out of a folder, until the end of the block or of the process."""
    descriptor = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"output must not be in use by another training, got {output}") from None
        except OSError:  # a file system that locks no folders, as some over a network
            pass
        for name in (checkpoints.NAME, CONFIG, logs.NAME):
            for left in output.glob(f"{name}.*.new"):  # by one that was killed
                left.unlink()
        yield
    finally:
        os.close(descriptor)


def _check_room(training: Training, output: Path) -> None:
    weights = sum(p.numel() * p.element_size() for p in training.model.parameters())
    needed = 8 * weights + 2**20  # two checkpoints of weights and two moments
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    if shutil.disk_usage(there).free < needed:
        raise ValueError(f"output must be on a disk with {needed / 2**20:.0f} MiB left, got {output}")


def _train(training: Training, log: Log | None, output: Path) -> None:
    config, saved_at = training.config, time.monotonic()
    with interruptions() as asked, _bar(training, log) as bar:
        while training.step < config.steps and not _on_any(asked(), training.ranks):
            with _room_in_memory(config):
                terms, images = training.take_step()
            if log is not None and (training.step % config.log_every == 0 or training.step == config.steps):
                _check_finite(terms.loss.item(), training.step)
                log.write(training.step, training.row(terms, images))
            if log is not None and time.monotonic() - saved_at >= config.save_seconds:
                checkpoints.save(training.checkpoint(), output / checkpoints.NAME)
                saved_at = time.monotonic()
            bar.update(1)
        if log is not None:
            checkpoints.save(training.checkpoint(), output / checkpoints.NAME)


@contextlib.contextmanager
def _room_in_memory(config: Config) -> Iterator[None]:
    """Names the batch, on which the memory of a step depends, where a step finds none."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        out_of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError))  # of a GPU, and Python's and NumPy's
        if out_of_memory or "allocate memory" in str(error):  # of a CPU, and fastib's of both
            raise ValueError(f"batch must leave room in memory, got {config.batch}: {error}") from None
        raise


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} in step {step}: try a lower learning_rate")


def _bar(training: Training, log: Log | None) -> Any:
    if log is None:
        return NoBar()
    return progress_bar(initial=training.step, total=training.config.steps, unit="step")


def _on_any(asked: bool, of: Ranks) -> bool:
    """Whether any rank was asked to stop: they stop after the same step."""
    if of.group is None:
        return asked
    count = torch.tensor(float(asked), device=of.device)
    dist.all_reduce(count)
    return count.item() > 0


def report(trained: Trained, config: Config, size: int) -> str:
    """What came of a run, in a few lines of text."""
    on = f"on {size} rank{'s' * (size > 1)}"
    if trained.steps < config.steps:
        lines = [f"Stopped {on} after {trained.steps} of {config.steps} steps: the same command goes on from here."]
    else:
        lines = [f"Trained {on}."]
    rows = logs.read(next(path for path in trained.files if path.name == logs.NAME))
    if rows:
        last = rows[-1]
        terms = [f"{name.replace('_', ' ')} {last[name]:.3f}" for name in last if name not in ("step", "seconds")]
        lines.append(f"Step {last['step']:.0f}, in nats: {', '.join(terms)}.")
    return "\n".join([*lines, *(f"Wrote {path}" for path in trained.files)])
