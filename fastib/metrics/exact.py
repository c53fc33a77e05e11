"""The KL of a VAE in its three parts, of a whole data set: exact."""

from __future__ import annotations

import glob
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fastib import _arguments, _files, functional
from fastib._arguments import Estimator
from fastib._extras import require
from fastib._progress import NoBar, progress_bar
from fastib._results import ELBODecomposition

Encoder = Callable[[Any], tuple[Tensor, Tensor]]
Posteriors = tuple[Tensor, ...]

_BATCH = 512  # samples that an encoder sees at once
_PAIRS_AT_ONCE = 2**34  # of rows and posteriors: a few seconds' work
_FEWEST_ROWS, _MOST_ROWS = 4096, 65_536  # at once
_SECONDS_BETWEEN_SAVES = 20.0


@torch.no_grad()
def exact_elbo_decomposition(
    encoder: Encoder | Posteriors | Tensor,
    dataset: Any = None,
    logvar: Tensor | None = None,
    *,
    rows: int | None = None,
    seed: int = 0,
    reduction: str = "mean",
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> ELBODecomposition:
    """The three parts of the KL of a VAE under the aggregate posterior of the whole data set: nothing is estimated::

        mu, logvar = (torch.cat(p) for p in zip(*map(encoder, dataset)))
        z = fastib.reparameterize(mu, logvar, rng=torch.tensor([seed, 0]))
        fastib.elbo_decomposition(z, mu, logvar, dataset_size=len(mu))

    without its gradients. Each row meets all N posteriors, a few thousand rows at a time: in memory O(N D), and in time
    O(N^2 D), less what is provably negligible.

    Args:
        encoder: what gives (mu, logvar), two of [batch, D], for a batch of samples; a module, or a method of one, runs
            in evaluation mode, on the device of its parameters. Or the posteriors themselves: (mu, logvar), or
            (z, mu, logvar) with one sample of each, all [N, D]. The three may be given as three arguments, too.
        dataset: the data that an encoder is to see: a tensor of samples, a `torch.utils.data.Dataset`, or an iterable
            of batches, such as a `DataLoader`. The first element of a sample or batch that is a tuple is the encoder's.
        rows: so many of the N samples, drawn without replacement, instead of all; each still meets all N posteriors.
        seed: of the samples z and of the choice of rows.
        reduction: over the rows: "none" (in the order of the data set), "sum" or "mean".
        state: a file that keeps what is done, once the encoder has seen all: a call that was interrupted goes on from
            there when it is made again, by the weights of a module and the samples of a tensor; that another encoder,
            or the samples of another data set, are the same is taken on trust. It is removed at the end.
        progress: whether to show a bar with an estimate of the time left.

    Returns:
        The named tuple of `fastib.elbo_decomposition`, in nats, with the ceiling ln N of the mutual information and,
        for "mean", `standard_errors`: of the three means over samples of the data and of z, s / sqrt(rows).

    Gradients: none.

    Raises:
        TypeError: for a tensor of a wrong dtype, an encoder that does not give two tensors, an argument of a wrong
            type.
        ValueError: if shapes or devices do not match, `reduction` is unknown, `rows` is below 1 or above N, a data set
            comes without an encoder or an encoder without, or `state` is the file of another call.
        ImportError: with `progress` but without tqdm, which the extra `models` installs.

    Source: Hoffman & Johnson 2016, "ELBO surgery"; Chen et al. 2018, equation 2.

    >>> import torch
    >>> from fastib.metrics import exact_elbo_decomposition
    >>> mu = torch.arange(100.0)[:, None]
    >>> terms = exact_elbo_decomposition((mu, torch.full((100, 1), -20.0)))  # every sample has a code of its own
    >>> round(terms.mutual_information.item(), 4), round(terms.mutual_information_ceiling, 4)
    (4.6052, 4.6052)
    """
    path = None if state is None else Path(state)
    _check(rows, seed, reduction, path, progress)
    source: Any = encoder
    if isinstance(encoder, Tensor):
        source, dataset = (encoder, dataset, logvar), None
    elif logvar is not None:
        raise ValueError("logvar must be None, unless z and mu come before it")
    work = _Decomposition.begin(source, dataset, rows, seed, path, progress)
    work.run(progress)
    terms = work.terms.to(work.mu.device)
    return _reduced(terms, reduction, len(work.mu), _arguments.accumulate_dtype(work.mu.dtype))


def _check(rows: Any, seed: Any, reduction: Any, path: Path | None, progress: Any) -> None:
    if rows is not None:
        _arguments.check_integer("rows", rows, 1)
    _arguments.check_integer("seed", seed, 0)
    _arguments.check_choice("reduction", reduction, _arguments.SAMPLE_REDUCTIONS)
    _arguments.check_flag("progress", progress)
    if path is not None and not path.parent.is_dir():
        raise ValueError(f"state must be in a folder that exists, got {path}")
    if progress:
        require("tqdm", "the progress bar")


class _Decomposition:
    """Rows against posteriors, and how far they have come. The rows' own posteriors are the first ones, in order."""

    def __init__(self, z: Tensor, mu: Tensor, logvar: Tensor, call: dict[str, Any], path: Path | None) -> None:
        self.z, self.mu, self.logvar, self.call, self.path = z, mu, logvar, call, path
        self.terms = torch.empty(3, len(z), dtype=torch.float64)
        self.done = 0
        self.saved_at = time.monotonic()

    @classmethod
    def begin(
        cls, encoder: Any, dataset: Any, rows: int | None, seed: int, path: Path | None, progress: bool
    ) -> _Decomposition:
        """What the arguments ask for: from the beginning, or from where the file has it."""
        call: dict[str, Any] = {"rows": rows, "seed": seed}
        if callable(encoder):
            if dataset is None:
                raise ValueError("dataset must be given with an encoder")
            call["samples"] = len(dataset) if hasattr(dataset, "__len__") else None
            if path is not None:
                call["digest"] = _digest(encoder, dataset)
            saved = _load(path, call)
            if saved is None:
                work = cls._of(encoded(encoder, dataset, progress), call, path)
                work.save()
                return work
            z, mu, logvar = saved["posteriors"]
            work = cls(z, mu, logvar, call, path)
        else:
            if dataset is not None:
                raise ValueError("dataset must be None with posteriors: it is for an encoder")
            work = cls._of(_given(encoder), call, path)
            saved = _load(path, call)
            if saved is None:
                return work
            if not all(map(torch.equal, (work.z, work.mu, work.logvar), saved["posteriors"])):
                raise ValueError(f"state must be the file of the same call, got {path}, of other posteriors")
        work.terms, work.done = saved["terms"], saved["done"]
        return work

    @classmethod
    def _of(cls, posteriors: Posteriors, call: dict[str, Any], path: Path | None) -> _Decomposition:
        *given_z, mu, logvar = posteriors
        size, rows, seed = len(mu), call["rows"], call["seed"]
        if rows is not None and rows > size:
            raise ValueError(f"rows must be at most the number of posteriors, {size}, got {rows}")
        rng = torch.tensor([seed, 0], device=mu.device)
        z = given_z[0] if given_z else functional.reparameterize(mu, logvar, rng=rng)
        if rows is not None and rows < size:
            order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
            order = torch.cat([order[:rows].sort().values, order[rows:]]).to(mu.device)
            z, mu, logvar = z[order[:rows]], mu[order], logvar[order]
        return cls(z, mu, logvar, call, path)

    def save(self) -> None:
        if self.path is None:
            return
        posteriors = [t.contiguous() for t in (self.z, self.mu, self.logvar)]
        content = {"call": self.call, "posteriors": posteriors, "terms": self.terms, "done": self.done}
        _files.save(content, self.path)
        self.saved_at = time.monotonic()

    def run(self, progress: bool) -> None:
        at_once = max(_FEWEST_ROWS, min(_PAIRS_AT_ONCE // len(self.mu), _MOST_ROWS))
        options = {"total": len(self.z), "initial": self.done, "unit": "row", "desc": "decomposing"}
        with progress_bar(**options) if progress else NoBar() as bar:
            try:
                while self.done < len(self.z):
                    end = min(self.done + at_once, len(self.z))
                    terms = functional.elbo_decomposition(
                        self.z[self.done : end],
                        self.mu,
                        self.logvar,
                        estimator="in_batch",
                        row_offset=self.done,
                        reduction="none",
                    )
                    self.terms[:, self.done : end] = torch.stack(terms)
                    bar.update(end - self.done)
                    self.done = end
                    if time.monotonic() - self.saved_at > _SECONDS_BETWEEN_SAVES:
                        self.save()
            except BaseException:
                self.save()
                raise
        if self.path is not None:
            for left in (self.path, *self.path.parent.glob(f"{glob.escape(self.path.name)}.*.new")):  # by one killed
                left.unlink(missing_ok=True)


def _load(path: Path | None, call: dict[str, Any]) -> dict[str, Any] | None:
    """What the file has, which must be of the same call."""
    if path is None or not path.exists():
        return None
    saved: dict[str, Any] = _files.load("state", path)
    found = saved.get("call") if isinstance(saved, dict) else None
    if found != call:
        raise ValueError(f"state must be the file of the same call, got {path}, of {found} and not of {call}")
    return saved


def _module_of(encoder: Any) -> nn.Module | None:
    """The module that an encoder is, or is a method of."""
    module = encoder if isinstance(encoder, nn.Module) else getattr(encoder, "__self__", None)
    return module if isinstance(module, nn.Module) else None


def _digest(encoder: Any, dataset: Any) -> str:
    """Of the weights and the samples, where they are there to be looked at."""
    module = _module_of(encoder)
    state = {} if module is None else module.state_dict()
    samples = dataset if isinstance(dataset, Tensor) else None
    return _files.digest([_contiguous(value) for value in (*state.values(), samples)])


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, Tensor) else value


def _given(posteriors: Any) -> Posteriors:
    """(mu, logvar) or (z, mu, logvar), checked."""
    if not isinstance(posteriors, (tuple, list)) or len(posteriors) not in (2, 3):
        raise TypeError(
            f"encoder must be a callable, (mu, logvar) or (z, mu, logvar), got {type(posteriors).__name__}"
            + (f" of {len(posteriors)}" if isinstance(posteriors, (tuple, list)) else "")
        )
    z, mu, logvar = posteriors if len(posteriors) == 3 else (posteriors[0], *posteriors)
    if len(posteriors) == 2:
        _arguments.check_floating("mu", mu)
    _arguments.check_posteriors(z, mu, logvar)
    if len(z) != len(mu):
        raise ValueError(f"z must have one row for each row of mu, {len(mu)}, got {len(z)}")
    return tuple(posteriors)


def encoded(encoder: Encoder, dataset: Any, progress: bool) -> Posteriors:
    """The posteriors of a whole data set."""
    module = _module_of(encoder)
    if module is None:
        return _concatenated(encoder, dataset, None, progress)
    parameter = next(module.parameters(), None)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        return _concatenated(encoder, dataset, None if parameter is None else parameter.device, progress)
    finally:
        for part, training in modes:
            part.training = training


def _concatenated(encoder: Encoder, dataset: Any, device: torch.device | None, progress: bool) -> Posteriors:
    mus, logvars = [], []
    total = len(dataset) if isinstance(dataset, (Tensor, Dataset)) and hasattr(dataset, "__len__") else None
    with progress_bar(total=total, unit="sample", desc="encoding") if progress else NoBar() as bar:
        for samples in _batches(dataset):
            posterior = encoder(samples.to(device) if isinstance(samples, Tensor) else samples)
            if not isinstance(posterior, (tuple, list)) or len(posterior) != 2:
                raise TypeError(f"encoder must give (mu, logvar), got {type(posterior).__name__}")
            mu, logvar = _given(posterior)
            mus.append(mu)
            logvars.append(logvar)
            bar.update(len(mu))
    if not mus:
        raise ValueError("dataset must have at least one sample, got none")
    return torch.cat(mus), torch.cat(logvars)


def _batches(dataset: Any) -> Iterator[Any]:
    if isinstance(dataset, Tensor):
        yield from dataset.split(_BATCH)
        return
    batches: Iterable[Any] = DataLoader(dataset, _BATCH) if isinstance(dataset, Dataset) else dataset
    if not isinstance(batches, Iterable):
        raise TypeError(f"dataset must be a tensor, a Dataset or an iterable, got {type(dataset).__name__}")
    for batch in batches:
        yield batch[0] if isinstance(batch, (tuple, list)) else batch


def _reduced(terms: Tensor, reduction: str, size: int, dtype: torch.dtype) -> ELBODecomposition:
    """Terms of rows as the caller wants them; `size` is that of the data set."""
    count = terms.shape[1]
    values = terms if reduction == "none" else terms.sum(1) if reduction == "sum" else terms.mean(1)
    result = ELBODecomposition.of(values.to(dtype), Estimator.IN_BATCH, size, size)
    if reduction == "mean":
        errors = terms.std(1) / math.sqrt(count) if count > 1 else torch.full((3,), math.nan)
        result.standard_errors = tuple(errors.tolist())
    return result
