"""One batch over the ranks of torch.distributed: rows stay where they are, and all ranks' posteriors come to them.

What is sent for a step, of B posteriors of D dimensions on this rank, in a batch of all ranks' sizes B_r: 112 bytes and
the 2 B D numbers of mu and logvar, in their own dtype, to each other rank; in the backward pass 2 B_r D float32 numbers
(float64 for float64) to each; and sums of 1 to 3 float64 numbers. Rows are filled up to those of the largest part.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fastib import _arguments, _ops
from fastib._arguments import Reduction
from fastib._derivatives import apply, transforms_are_active
from fastib._results import ELBODecomposition

Agreement = Sequence[tuple[str, int, Any]]  # a name, and a value or the index of one of some choices
_LONGEST = 14  # integers that a rank says of its call
_FAILED = -1


def _gather(*args: Any, **options: Any) -> None:
    """all_gather_single, which PyTorch had under another name before 2.13."""
    getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(*args, **options)


def _reduce_scatter(*args: Any, **options: Any) -> None:
    getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)(*args, **options)


def check_group(group: Any) -> None:
    """Raises unless `group` is a group of torch.distributed (TypeError) and this process is in it (ValueError)."""
    if dist.is_available() and group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("group must have this process among its ranks")
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group must be a torch.distributed.ProcessGroup, got {type(group).__name__} {group!r}")


class _Numbers:
    """What an integer of 64 bits stands for, where all ranks must have the same number."""

    def __getitem__(self, bits: int) -> float:
        (number,) = struct.unpack("d", struct.pack("q", bits))
        return float(number)


def agree_on(name: str, number: float) -> tuple[str, int, Any]:
    """An entry of an `Agreement`, for a number that must be the same on all ranks, to the last bit: its name, its 64
    bits as an integer, and what makes the number of these again, for a message."""
    (bits,) = struct.unpack("q", struct.pack("d", number))
    return name, bits, _Numbers()


class GlobalBatch:
    """The batches of all ranks as one, in the order of the ranks.

    `check` raises what is wrong with this rank's arguments; else it gives the number of rows, and what must be the same
    on all ranks: names, and values or indices of choices. Where one rank fails all do, before anything else is sent.
    """

    def __init__(self, group: Any, check: Callable[[], tuple[int, Agreement]]) -> None:
        check_group(group)
        if transforms_are_active():
            raise RuntimeError("group is not for the transforms of torch.func: they do not know the other ranks")
        self.group, self.rank = group, dist.get_rank(group)
        try:
            rows, agreed = check()
        except Exception:
            self._exchange([_FAILED])
            raise
        found = self._exchange([rows, *(value for _, value, _ in agreed)])
        failed = [rank for rank, (first, *_) in enumerate(found) if first == _FAILED]
        if failed:
            raise RuntimeError(f"rank {failed[0]} of the group was given arguments that it refused: see its error")
        for i, (name, _, choices) in enumerate(agreed, 1):
            values = [each[i] if choices is None else choices[each[i]] for each in found]
            if len(set(values)) > 1:
                raise ValueError(f"{name} must be the same on all ranks of the group, got {values}")
        self.sizes = [each[0] for each in found]
        self.size, self.offset = sum(self.sizes), sum(self.sizes[: self.rank])

    def _exchange(self, numbers: list[int]) -> list[list[int]]:
        """Everyone's few integers."""
        # NCCL sends what is on a GPU alone.
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        mine = torch.tensor(numbers + [0] * (_LONGEST - len(numbers)), dtype=torch.int64, device=device)
        everyones = mine.new_empty(dist.get_world_size(self.group) * _LONGEST)
        with _told(self.group):
            _gather(everyones, mine, group=self.group)
        return everyones.view(-1, _LONGEST).tolist()

    def gathered(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows of all ranks in `dtype`, in which its gradient is summed over all ranks."""
        every: Tensor = _Gathered.apply(rows, dtype, self.sizes, self.group)
        return every

    def total(self, values: Tensor) -> Tensor:
        """Summed over all ranks. Each rank's loss is then the same number, and counts as its own: gradients are those
        that are to be averaged over the ranks, as DistributedDataParallel does."""
        every: Tensor = _Total.apply(values, self.group)
        return every


def decompose_global(
    batch: GlobalBatch,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None,
    estimator: str,
    reduction: str = "mean",
    algorithm: str = "auto",
) -> ELBODecomposition:
    """`elbo_decomposition` of the rows of a rank, whose arguments are checked, against the posteriors of all ranks."""
    z, mu, logvar = _arguments.in_one_dtype(z, mu, logvar)
    if batch.size == 0:
        raise ValueError("mu must have at least one component on some rank of the group, got none")
    weighting = _arguments.estimator_of(estimator, dataset_size, batch.size)
    # In what is accumulated, so that the gradients of all ranks are rounded once, after they are added.
    wide = _arguments.accumulate_dtype(z.dtype)
    columns, dims = batch.gathered(torch.cat([mu, logvar], 1), wide), mu.shape[1]
    posteriors = columns[:, :dims], columns[:, dims:]
    kind = Reduction.NONE if reduction == "none" else Reduction.SUM
    divisor = batch.size if reduction == "mean" else 1
    options = *weighting, batch.offset, kind, divisor, _arguments.algorithm_of(algorithm)
    *terms, _ = apply(_ops.ELBODecomposition, z.to(wide), *posteriors, *options)
    if kind == Reduction.SUM:
        terms = batch.total(torch.stack(terms)).unbind()
    return ELBODecomposition.of(terms, *weighting, batch.size)


@contextlib.contextmanager
def _told(group: dist.ProcessGroup) -> Iterator[None]:
    """Says which rank it is to whom another one has gone lost."""
    try:
        yield
    except RuntimeError as error:
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        raise RuntimeError(
            f"rank {rank} of {size} waited for a rank of its group that has failed or left: {error}"
        ) from error


def _padded(rows: Tensor, size: int) -> Tensor:
    """Collectives take the same number of rows from everyone."""
    if len(rows) == size:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros(size - len(rows), *rows.shape[1:])])


class _Gathered(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, dtype: torch.dtype, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.dtype, ctx.sizes, ctx.group = rows.dtype, sizes, group
        largest = max(sizes)
        every = rows.new_empty(len(sizes) * largest, *rows.shape[1:])
        with _told(group):
            _gather(every, _padded(rows, largest), group=group)
        if min(sizes) < largest:
            every = torch.cat([part[:size] for part, size in zip(every.split(largest), sizes, strict=True)])
        return every.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sizes, group = ctx.sizes, ctx.group
        largest, size = max(sizes), sizes[dist.get_rank(group)]
        parts = torch.cat([_padded(part, largest) for part in grad.split(sizes)])
        mine = grad.new_empty(largest, *grad.shape[1:])
        with _told(group):
            _reduce_scatter(mine, parts, group=group)
        return mine[:size].to(ctx.dtype), None, None, None


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _sum_of_all(values, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _sum_of_all(grad, ctx.group), None


def _sum_of_all(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = values.to(torch.float64, copy=True)
    with _told(group):
        dist.all_reduce(total, group=group)
    return total.to(values.dtype)
