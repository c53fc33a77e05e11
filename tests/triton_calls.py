"""Calls of every operator that run every kernel, on a few rows of an odd size, in all ways that change its code."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fastib._arguments import Estimator, Reduction

Call = tuple[str, tuple[Any, ...]]
_ROWS = 301  # more than any program of the kernels on pairs has, and no multiple of anything
_REDUCTIONS = Reduction.NONE, Reduction.SAMPLE, Reduction.SUM


def _gradient(kind: int, dims: int, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    shape = {Reduction.NONE: (_ROWS, dims), Reduction.SAMPLE: (_ROWS,), Reduction.SUM: (), Reduction.BATCH: (dims,)}
    return torch.randn(shape[kind], dtype=wide)


def _elementwise(dtype: torch.dtype, dims: int) -> Iterator[Call]:
    a, b, c, d, grad = (torch.randn(_ROWS, dims).to(dtype) for _ in range(5))
    rng = torch.tensor([1, 2])
    for noise in ((None, rng), (c, None)):
        yield "reparameterize", (a, b, *noise)
        yield "reparameterize_backward", (grad, b, *noise)
    wholes, parts, none = (c, d), (c[0], d[:, :1]), (None, None)
    for kind in range(4):
        yield "log_variance_penalty", (b, kind, 3)
        for priors, floor in ((none, 0.0), (wholes, 0.4), (parts, 0.0)):
            yield "gaussian_kl", (a, b, *priors, kind, 3, floor)
        yield "gaussian_kl_backward", (_gradient(kind, dims, dtype), a, b, *none, kind, 3, 0.0, 3)
    scalars = c[0, 0], d[0, 0]
    for kind, priors in zip(range(4), (parts, wholes, scalars, parts), strict=True):
        wanted = 7 if priors is parts else 15  # d[:, :1] is not over leading dimensions
        yield "gaussian_kl_backward", (_gradient(kind, dims, dtype), a, b, *priors, kind, 3, 0.4, wanted)
    for kind in _REDUCTIONS:
        yield "reparameterize_with_kl", (a, b, None, rng, kind, 3)
        yield "reparameterize_with_kl_backward", (grad, _gradient(kind, dims, dtype), a, b, None, rng, kind, 3, 3)
    for grads in ((grad, None), (None, _gradient(Reduction.SUM, dims, dtype))):
        yield "reparameterize_with_kl_backward", (*grads, a, b, None, rng, Reduction.SUM, 3, 3)
    prior = torch.tensor(0.1), torch.tensor(-0.2)
    for kind, log_normal in product(_REDUCTIONS, (False, True)):
        mean_one = log_normal != (kind == Reduction.NONE)
        tail = a.abs() + 0.1, b, *(prior if log_normal else none), None, rng, log_normal, True, mean_one, kind
        yield "information_dropout", (*tail, 3)
        yield "information_dropout_backward", (grad, _gradient(kind, dims, dtype), *tail, 3, 3)


def _pairs(dtype: torch.dtype, dims: int) -> Iterator[Call]:
    rows, wide = 290, torch.promote_types(dtype, torch.float32)
    z, mu, logvar = (torch.randn(n, dims).to(dtype) for n in (rows, _ROWS, _ROWS))
    z[::7] += 60  # far from all components
    saved, terms = torch.rand(rows, 2 * dims + 2, dtype=wide), torch.randn(rows, dtype=wide)
    by_joint, by_marginals = torch.randn(rows, dtype=wide), torch.randn(rows, dims, dtype=wide)
    for log_weights in (None, torch.randn(rows, _ROWS, dtype=wide)):
        tail = (0, 0, 0.01, 0.003, 5, 0, True) if log_weights is None else (0, 0, 1.0, 1.0, 0, 0, True)
        yield "aggregate_posterior", (z, mu, logvar, log_weights, *tail)
        yield "aggregate_posterior_backward", (by_joint, by_marginals, z, mu, logvar, log_weights, saved, *tail)
    yield "aggregate_posterior", (z, mu, logvar, None, 0, 0, 0.01, 0.003, 5, 0, False)
    yield (
        "aggregate_posterior_backward",
        (None, by_marginals, z, mu, logvar, None, saved, 0, 0, 0.01, 0.003, 5, 0, False),
    )
    for kind in (Reduction.NONE, Reduction.SUM):
        tail = Estimator.MSS, 1000, 5, kind, 3 if kind == Reduction.SUM else 1, 0
        grads = (terms if kind == Reduction.NONE else terms[0],) * 3
        yield "elbo_decomposition", (z, mu, logvar, *tail)
        yield "elbo_decomposition_backward", (*grads, z, mu, logvar, saved, *tail)


def calls(dtype: torch.dtype, dims: int) -> Iterator[Call]:
    yield "philox_words", (torch.tensor([1, 2]), 2**34 + 1, _ROWS)
    yield from _elementwise(dtype, dims)
    yield from _pairs(dtype, dims)
