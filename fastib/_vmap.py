"""The operators under torch.vmap: each example is as if it were alone.

Elementwise operators on deterministic inputs take all examples at once; the others, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastib._arguments import Reduction

_Rule = Callable[..., Any]
_Dims = tuple[int | None, ...]  # of each argument: where its examples are, None where they share it


def rule(name: str, operator: Callable[..., Any]) -> _Rule:
    """What torch.library.register_vmap wants."""
    of: _Rule = _AT_ONCE.get(name, _one_by_one)

    def of_operator(info: Any, in_dims: _Dims, *args: Any) -> Any:
        return of(operator, info.batch_size, in_dims, *args)

    return of_operator


def _one_by_one(operator: Callable[..., Any], size: int, dims: _Dims, *args: Any) -> tuple[Any, Any]:
    pairs = list(zip(args, dims, strict=True))
    examples = [[a if dim is None else a.select(dim, i) for a, dim in pairs] for i in range(size)]
    if not examples:  # one of zeros says what shape no results have
        examples = [[a if dim is None else a.new_zeros(a.movedim(dim, 0).shape[1:]) for a, dim in pairs]]
    results = [operator(*example) for example in examples]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(each)[:size] for each in zip(*results, strict=True)), (0,) * len(results[0])
    return torch.stack(results)[:size], 0


def _examples(size: int, tensors: tuple[Any, ...], dims: _Dims) -> list[Any]:
    """With the examples as the first dimension."""
    return [
        t if t is None else t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, dims, strict=True)
    ]


def _log_variance_penalty(
    operator: Callable[..., Tensor],
    size: int,
    dims: _Dims,
    logvar: Tensor,
    reduction: int,
    divisor: int,
) -> tuple[Tensor, int]:
    (logvars,) = _examples(size, (logvar,), dims[:1])
    return _reduced(operator(logvars, Reduction.NONE, 1), reduction, divisor), 0


def _gaussian_kl(
    operator: Callable[..., Tensor],
    size: int,
    dims: _Dims,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    divisor: int,
    floor: float,
) -> tuple[Tensor, int]:
    distributions = _distributions(size, (mu, logvar, prior_mu, prior_logvar), dims)
    return _reduced(operator(*distributions, Reduction.NONE, 1, floor), reduction, divisor), 0


def _gaussian_kl_backward(
    operator: Callable[..., tuple[Tensor, ...]],
    size: int,
    dims: _Dims,
    grad: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    divisor: int,
    floor: float,
    wanted: int,
) -> tuple[tuple[Tensor, ...], _Dims]:
    tensors = mu, logvar, prior_mu, prior_logvar
    distributions = _distributions(size, tensors, dims[1:])
    (grads,) = _examples(size, (grad / divisor,), dims[:1])
    grads = _spread(grads, distributions[0].shape, reduction)
    results = list(operator(grads, *distributions, Reduction.NONE, 1, floor, wanted))
    for i in (2, 3):
        if wanted >> i & 1:
            (prior,) = _examples(size, (tensors[i],), dims[1 + i : 2 + i])
            results[i] = results[i].sum_to_size(_aligned(prior, results[i].dim()).shape).view(prior.shape)
    return tuple(results), tuple(0 if wanted >> i & 1 else None for i in range(4))


def _reduced(values: Tensor, kind: int, divisor: int) -> Tensor:
    """`_formulas.reduce` of each example."""
    if kind == Reduction.NONE:
        return values
    if kind == Reduction.SUM or values.dim() == 1:
        return (values if values.dim() == 1 else values.flatten(1).sum(1)) / divisor
    return values.sum(1 if kind == Reduction.BATCH else -1) / divisor


def _spread(grads: Tensor, shape: torch.Size, kind: int) -> Tensor:
    """`_formulas.spread` of each example."""
    if kind == Reduction.SUM:
        grads = grads.view(-1, *[1] * (len(shape) - 1))
    elif kind != Reduction.NONE and len(shape) > 1:
        grads = grads.unsqueeze(1 if kind == Reduction.BATCH else -1)
    return grads.expand(shape)


def _aligned(examples: Tensor, dims: int) -> Tensor:
    """With as many dimensions as what each example is broadcast to."""
    size, *shape = examples.shape
    return examples.view(size, *[1] * (dims - examples.dim()), *shape)


def _distributions(size: int, tensors: tuple[Any, ...], dims: _Dims) -> list[Any]:
    """mu, logvar and the priors of all examples, the priors as large as mu: what is broadcast over the first dimensions
    of an example isn't over those of all."""
    mu, logvar, *priors = _examples(size, tensors, dims[:4])
    return [mu, logvar, *(p if p is None else _aligned(p, mu.dim()).expand(mu.shape) for p in priors)]


_AT_ONCE: dict[str, _Rule] = {
    "gaussian_kl": _gaussian_kl,
    "gaussian_kl_backward": _gaussian_kl_backward,
    "log_variance_penalty": _log_variance_penalty,
}
