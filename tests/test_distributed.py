"""The batch of all ranks is one batch: the loss and every gradient are one process's."""

from __future__ import annotations

import copy
import os
import pickle
import re
import signal
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from tolerance import assert_within_budget
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastib
from fastib import distributed, reference
from fastib.losses import BetaTCVAELoss
from fastib.schedules import Linear

N = 1000
EVEN, UNEVEN, EMPTY = (6, 6), (7, 2), (5, 0)
CASES = [
    *(("elbo", estimator, "mean", sizes, torch.float32) for estimator in ("mss", "mws", "in_batch", "leave_one_out")
      for sizes in (EVEN, UNEVEN)),
    *(("elbo", "mss", reduction, UNEVEN, torch.float32) for reduction in ("sum", "none")),
    *(("elbo", "mss", "mean", UNEVEN, dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)),
    ("elbo", "mss", "mean", EMPTY, torch.float32),
    ("elbo", "mss", "mean", (1, 1), torch.float32),
    ("tc", "mss", "mean", UNEVEN, torch.float32),
]  # fmt: skip


def _batch(sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(sum(sizes), 3, generator=generator).to(dtype) for _ in range(3))


def _values(module: Any, case: tuple[Any, ...], inputs: list[Tensor], **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The terms, and the gradients of a loss that weighs them apart."""
    what, estimator, reduction, *_ = case
    options |= {"dataset_size": N, "estimator": estimator, "reduction": reduction}
    if what == "tc":
        terms = module.total_correlation(*inputs, **options)[None]
    else:
        terms = torch.stack(tuple(module.elbo_decomposition(*inputs, **options)))
    weights = torch.arange(1.0, len(terms) + 1)[:, None] if reduction == "none" else torch.arange(1.0, len(terms) + 1)
    loss = (terms * weights.to(terms.dtype)).sum()
    return terms.detach(), list(torch.autograd.grad(loss, inputs))


def _of_rank(rank: int, cases: list[tuple[Any, ...]]) -> list[Any]:
    found = []
    for case in cases:
        *_, sizes, dtype = case
        parts = [t.split(sizes)[rank].clone().requires_grad_() for t in _batch(sizes, dtype)]
        found.append(_values(fastib, case, parts, group=dist.group.WORLD))
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_values_and_gradients_are_those_of_one_process(world: int) -> None:
    cases = [(*case[:3], (*case[3], *(4,) * (world - 2)), case[4]) for case in CASES]
    ranks = on_ranks(world, _of_rank, cases)
    assert all(isinstance(rank, list) for rank in ranks), ranks
    for i, case in enumerate(cases):
        *_, reduction, sizes, dtype = case
        batch = _batch(sizes, dtype)
        oracle, oracle_grads = _values(reference, case, [t.double().requires_grad_() for t in batch])
        plain, plain_grads = _values(reference, case, [t.clone().requires_grad_() for t in batch])
        terms = [rank[i][0] for rank in ranks]
        if reduction == "none":
            terms = [torch.cat(terms, 1)]
        for each in terms:
            assert_within_budget(each, plain, oracle, scale=oracle.abs().clamp(min=1), slack=64)
        for k in range(3):
            grad = torch.cat([rank[i][1][k] for rank in ranks])
            # Each rank's reduced loss counts as its own, and DDP averages; the values of single rows are counted once.
            ours = grad if reduction == "none" else grad.double().div(world).to(grad.dtype)
            largest = oracle_grads[k].abs().max().expand_as(oracle_grads[k])
            assert_within_budget(ours, plain_grads[k], oracle_grads[k], scale=largest, slack=64)


class _VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.encoder, self.decoder = nn.Linear(12, 8), nn.Linear(4, 12)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        mu, logvar = self.encoder(x).chunk(2, -1)
        z = fastib.reparameterize(mu, logvar, noise=noise)
        return self.decoder(z), z, mu, logvar


def _step(model: nn.Module, criterion: BetaTCVAELoss, x: Tensor, noise: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    output, *posteriors = model(x, noise)
    terms = criterion(output, x, *posteriors)
    terms.loss.backward()
    return [t.detach() for t in terms], [p.grad for p in model.parameters()]  # type: ignore[misc]


def _data(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(size, 12, generator=generator), torch.randn(size, 4, generator=generator)


def _ddp(rank: int, sizes: tuple[int, ...], likelihood: str) -> Any:
    x, noise = (t.split(sizes)[rank] for t in _data(sum(sizes)))
    criterion = BetaTCVAELoss(beta=6.0, dataset_size=N, likelihood=likelihood, group=dist.group.WORLD)
    return _step(DistributedDataParallel(_VAE()), copy.deepcopy(criterion), x, noise)


@pytest.mark.parametrize("likelihood, sizes", [("bernoulli", (8, 8)), ("gaussian", (9, 4)), ("bernoulli", (5, 5, 3))])
def test_distributed_data_parallel_is_one_process(likelihood: str, sizes: tuple[int, ...]) -> None:
    criterion = BetaTCVAELoss(beta=6.0, dataset_size=N, likelihood=likelihood)
    expected, gradients = _step(_VAE(), criterion, *_data(sum(sizes)))
    ranks = on_ranks(len(sizes), _ddp, sizes, likelihood)
    for rank in ranks:
        terms, grads = rank
        torch.testing.assert_close(terms, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(grads, gradients, rtol=1e-5, atol=1e-6)


def _counted(rank: int, sizes: tuple[int, ...], dtype: torch.dtype) -> list[tuple[str, int]]:
    """What is handed to the collectives."""
    counts: list[tuple[str, int]] = []

    def count(module: Any, name: str, argument: int) -> None:
        original = getattr(module, name)

        def counted(*args: Any, **options: Any) -> Any:
            counts.append((name, args[argument].numel() * args[argument].element_size()))
            return original(*args, **options)

        setattr(module, name, counted)

    count(distributed, "_gather", 1)
    count(distributed, "_reduce_scatter", 1)
    count(dist, "all_reduce", 0)
    parts = [t.split(sizes)[rank].clone().requires_grad_() for t in _batch(sizes, dtype)]
    _values(fastib, ("elbo", "mss", "mean"), parts, group=dist.group.WORLD)
    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bytes_that_are_sent(dtype: torch.dtype) -> None:
    """As `fastib.distributed` states them, for B = 6 and D = 3."""
    for counts in on_ranks(2, _counted, EVEN, dtype):
        assert counts == [
            ("_gather", 112),
            ("_gather", 2 * 6 * 3 * dtype.itemsize),
            ("all_reduce", 3 * 8),
            ("all_reduce", 3 * 8),
            ("_reduce_scatter", 2 * (2 * 6 * 3) * 4),  # of which half is this rank's own
        ]


# What goes wrong on one rank ends all, and none hangs.


def _disagree(rank: int) -> list[str]:
    """One error for each way to disagree, on the same group."""
    z = torch.randn(4, 3)
    trained = z.clone().requires_grad_()
    ways: list[dict[str, Any]] = [
        {"dataset_size": 1000 + rank},
        {"estimator": ("mss", "mws")[rank]},
        {"reduction": ("mean", "sum")[rank]},
        {"algorithm": ("auto", "direct")[rank]},
        {"row_offset": 0},
        {"z": z[:, : 3 - rank]},
        {"z": z.double() if rank else z},
        {"z": trained if rank else z},
        {"dataset_size": 7},
        {"estimator": "magic"} if rank else {},
        {"z": "z"} if rank else {},
    ]
    found = []
    for way in ways:
        x = way.pop("z", z)
        options = {"dataset_size": 1000} | way
        try:
            fastib.elbo_decomposition(x, x, x, **options, group=dist.group.WORLD)
            found.append("nothing")
        except (ValueError, TypeError, RuntimeError) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


def test_ranks_that_disagree() -> None:
    first, second = on_ranks(2, _disagree)
    expected = [
        "ValueError: dataset_size must be the same on all ranks of the group, got [1000, 1001]",
        "ValueError: estimator must be the same on all ranks of the group, got ['mss', 'mws']",
        "ValueError: reduction must be the same on all ranks of the group, got ['mean', 'sum']",
        "ValueError: algorithm must be the same on all ranks of the group, got ['auto', 'direct']",
        "ValueError: row_offset must be None with group, where it is that of the rank, got 0",
        "ValueError: the latent dimensions of mu must be the same on all ranks of the group, got [3, 2]",
        "ValueError: the dtype of mu must be the same on all ranks of the group, got [torch.float32, torch.float64]",
        "ValueError: requires_grad of z must be the same on all ranks of the group, got [False, True]",
        "ValueError: dataset_size must be at least the number of components, 8, got 7",
    ]
    assert first[:-2] == expected and second[:-2] == expected
    assert first[-2:] == ["RuntimeError: rank 1 of the group was given arguments that it refused: see its error"] * 2
    assert second[-2].startswith("ValueError: estimator must be one of") and second[-1].startswith(
        "TypeError: z must be"
    )


def _loss_with_a_wrong_target(rank: int) -> None:
    x, z = torch.rand(4, 5), torch.randn(4, 3)
    BetaTCVAELoss(dataset_size=N, group=dist.group.WORLD)(x, x[:, rank:], z, z, z)


def _other_losses(rank: int) -> list[str]:
    z, x, found = torch.randn(4, 3), torch.rand(4, 5), []
    moved = Linear(0.0, 1.0, 4)
    if rank:
        moved.step()
    for other in ({"beta": 6.0 + rank}, {"gamma": moved}, {"likelihood": ("bernoulli", "gaussian")[rank]}, {"beta": 2}):
        try:
            BetaTCVAELoss(dataset_size=N, group=dist.group.WORLD, **other)(x, x, z, z, z)
            found.append("nothing")
        except ValueError as error:
            found.append(str(error))
    return found


def test_ranks_that_have_other_losses() -> None:
    for said in on_ranks(2, _other_losses):
        assert said == [
            "beta must be the same on all ranks of the group, got [6.0, 7.0]",
            "gamma must be the same on all ranks of the group, got [0.0, 0.25]",
            "likelihood must be the same on all ranks of the group, got ['bernoulli', 'gaussian']",
            "nothing",
        ]


def _loss_leaves(rank: int, when: str) -> None:
    x, z = torch.rand(4, 5), torch.randn(4, 3, requires_grad=True)
    if rank == 1 and when == "before":
        raise ValueError("broken data")
    terms = BetaTCVAELoss(dataset_size=N, group=dist.group.WORLD)(x, x, z, z, z)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    terms.loss.backward()


@pytest.mark.parametrize("when", ["before", "killed"])
def test_a_rank_that_leaves_a_loss_ends_the_others(when: str) -> None:
    first, second = on_ranks(2, _loss_leaves, when)
    assert re.match("RuntimeError: rank 0 of 2 waited for a rank of its group that has failed or left: .", first)
    assert second is None if when == "killed" else second == "ValueError: broken data"


def _leaves(rank: int, when: str) -> None:
    z, mu, logvar = (torch.randn(4, 3, requires_grad=True) for _ in range(3))
    if rank == 1 and when == "before":
        raise ValueError("broken data")
    terms = fastib.elbo_decomposition(z, mu, logvar, N, group=dist.group.WORLD)
    if rank == 1 and when == "between":
        raise ValueError("broken decoder")
    if rank == 1 and when == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sum(terms).backward()  # type: ignore[union-attr]


def test_a_loss_refused_on_one_rank_is_refused_on_all() -> None:
    first, second = on_ranks(2, _loss_with_a_wrong_target)
    assert first == "RuntimeError: rank 1 of the group was given arguments that it refused: see its error"
    assert second.startswith("ValueError: output must have the shape of target")


@pytest.mark.parametrize("when", ["before", "between", "killed"])
def test_a_rank_that_leaves_ends_the_others(when: str) -> None:
    """Long before the group's timeout, of two minutes."""
    first, second = on_ranks(2, _leaves, when)
    assert re.match("RuntimeError: rank 0 of 2 waited for a rank of its group that has failed or left: .", first)
    assert second is None if when == "killed" else second.startswith("ValueError: broken")


def test_a_group_that_is_none() -> None:
    z = torch.randn(4, 3)
    for wrong in ("world", 1, torch):
        for call in (fastib.elbo_decomposition, lambda *_, group: BetaTCVAELoss(dataset_size=N, group=group)):
            with pytest.raises(
                TypeError, match=r"group must be a torch.distributed.ProcessGroup, got (str|int|module)"
            ):
                call(z, z, z, N, group=wrong)  # type: ignore[operator]


def _edges(rank: int) -> Any:
    """No latent dimensions, and what is refused: no rows anywhere, transforms, gradients of gradients."""
    group = dist.group.WORLD
    none = torch.randn(2 + rank, 0, requires_grad=True)
    terms = torch.stack(tuple(fastib.elbo_decomposition(none, none, none, N, group=group)))
    assert terms.abs().max() < 1e-6 and torch.autograd.grad(terms.sum(), none)[0].shape == none.shape
    said = []
    z = torch.randn(3, 2, requires_grad=True)

    def total(z: Tensor) -> Tensor:
        return fastib.total_correlation(z, z, z, N, group=group)

    def twice() -> None:
        (gradient,) = torch.autograd.grad(total(z), z, create_graph=True)
        gradient.sum().backward()

    for wrong in (lambda: total(z[:0]), lambda: torch.func.grad(total)(z.detach()), twice):
        try:
            wrong()
        except (ValueError, RuntimeError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def test_edges_of_a_global_batch() -> None:
    for said in on_ranks(2, _edges):
        assert len(said) == 3, said
        assert said[0] == "ValueError: mu must have at least one component on some rank of the group, got none"
        assert (
            said[1] == "RuntimeError: group is not for the transforms of torch.func: they do not know the other ranks"
        )
        assert "once_differentiable" in said[2]


def _alone(rank: int) -> Any:
    """One rank's group, and one that this process is not in; a loss with a group is copied, its state saved."""
    mine = [dist.new_group([i]) for i in range(2)]
    z = torch.randn(4, 3)
    ours = fastib.elbo_decomposition(z, z, z, N, group=mine[rank])
    expected = fastib.elbo_decomposition(z, z, z, N)
    assert torch.equal(torch.stack(tuple(ours)), torch.stack(tuple(expected)))
    assert ours.mutual_information_ceiling == expected.mutual_information_ceiling
    criterion = BetaTCVAELoss(dataset_size=N, group=mine[rank])
    assert (
        all(again(criterion).group is mine[rank] for again in (copy.copy, copy.deepcopy))
        and "group" not in criterion.state_dict()
    )
    with pytest.raises(TypeError, match="group"):
        pickle.dumps(criterion)
    fastib.elbo_decomposition(z, z, z, N, group=mine[1 - rank])


def test_groups_of_some_ranks() -> None:
    assert on_ranks(2, _alone) == ["ValueError: group must have this process among its ranks"] * 2
