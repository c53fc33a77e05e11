"""Random inputs: the tests of each operator hold for shapes, strides, values and arguments that nobody thought of.

500 examples in all, or as many as FASTIB_FUZZ says; `python -m benches.fuzz` tries more every night. And as many random
arguments, right ones and wrong ones: see fuzz_boundary.py.
"""

from __future__ import annotations

import collections
import functools
import inspect
import json
import os
import random
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fuzz_boundary
import pytest
import test_aggregate_posterior
import test_elbo_decomposition
import test_gaussian_kl
import test_information_dropout
import test_log_variance_penalty
import test_reparameterize
import test_reparameterize_with_kl
import torch
from cases import DTYPES, Make
from conftest import KERNELS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastib
from benches import fuzz
from fastib import _backends, reference
from fastib._arguments import ESTIMATORS, REDUCTIONS, SAMPLE_REDUCTIONS

MOST_ROUNDINGS = 5.0  # of an exponent, in any kernel
EXAMPLES = int(os.environ.get("FASTIB_FUZZ", "500"))

# What elements are drawn from: by a generator, how many there are, in float64.
INGREDIENTS: dict[str, Callable[[torch.Generator, int], Tensor]] = {
    "normal": lambda g, n: torch.randn(n, generator=g, dtype=torch.float64),
    "small": lambda g, n: torch.randn(n, generator=g, dtype=torch.float64) * 1e-6,
    "tens": lambda g, n: torch.randn(n, generator=g, dtype=torch.float64) * 40,
    "zeros": lambda g, n: torch.where(torch.rand(n, generator=g) < 0.5, 0.0, -0.0).double(),
    "subnormal": lambda g, n: torch.randn(n, generator=g, dtype=torch.float64) * 1e-40,
    "huge": lambda g, n: torch.randn(n, generator=g, dtype=torch.float64) * 1e15,
    "infinite": lambda g, n: torch.where(torch.rand(n, generator=g) < 0.5, torch.inf, -torch.inf).double(),
    "nan": lambda g, n: torch.full((n,), torch.nan, dtype=torch.float64),
}
TAME = "normal", "small", "zeros"  # of which the tests' bounds on gradients hold, too


LAYOUTS = "contiguous", "offset", "transposed", "expanded", "spaced"


def _laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values, in other strides."""
    if values.dim() == 0 or layout == "contiguous":
        return values
    if layout == "offset":
        wide = values.new_zeros(values.numel() + 1)
        return wide[1:].view(values.shape).copy_(values)
    if layout == "transposed":
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "expanded":
        return values[:1].expand(values.shape)
    spaced = values.new_zeros(*values.shape[:-1], 3 * values.shape[-1])
    return spaced[..., 1::3].copy_(values)


@st.composite
def cases(draw: Any, ingredients: Sequence[str]) -> Make:
    """A (mu, logvar), as the tables of cases.py have them."""
    shape = draw(st.lists(st.integers(0, 40), max_size=3) | st.tuples(st.integers(1, 5), st.integers(1, 5000)))
    layout = draw(st.sampled_from(LAYOUTS))
    mixtures = [draw(st.lists(st.sampled_from(ingredients), min_size=1, max_size=3)) for _ in range(2)]
    seed = draw(st.integers(0, 2**32 - 1))

    def make(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(_laid_out(_mixed(generator, shape, mixture).to(dtype), layout) for mixture in mixtures)  # type: ignore[return-value]

    return make


def _mixed(generator: torch.Generator, shape: Sequence[int], mixture: Sequence[str]) -> Tensor:
    """Each element by one of the ingredients."""
    count = int(torch.Size(shape).numel())
    drawn = torch.stack([INGREDIENTS[name](generator, count) for name in mixture])
    which = torch.randint(len(mixture), (1, count), generator=generator)
    return drawn.gather(0, which).view(tuple(shape))


@st.composite
def mixtures(draw: Any) -> Callable[[torch.dtype], tuple[Tensor, Tensor, Tensor]]:
    """A (z, mu, logvar) of a mixture, as the cases of test_aggregate_posterior.py are."""
    rows, components, dims = draw(st.integers(0, 40)), draw(st.integers(2, 70)), draw(st.integers(1, 20))
    spread, log_scale = draw(st.sampled_from([0.1, 1.0, 30.0])), draw(st.sampled_from([-6.0, -1.0, 3.0]))
    layouts = [draw(st.sampled_from(LAYOUTS)) for _ in range(3)]
    seed = draw(st.integers(0, 2**32 - 1))

    def make(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        z, mu = (torch.randn(n, dims, generator=generator) * spread for n in (rows, components))
        logvar = torch.randn(components, dims, generator=generator) + log_scale
        return tuple(_laid_out(t.to(dtype), layout) for t, layout in zip((z, mu, logvar), layouts, strict=True))  # type: ignore[return-value]

    return make


@st.composite
def posteriors(draw: Any, ingredients: Sequence[str]) -> Callable[[torch.dtype], list[Tensor]]:
    """Of a minibatch, each of (z, mu, logvar) of its own ingredients and strides."""
    shape = draw(st.integers(2, 40)), draw(st.integers(1, 20))
    mixed = [draw(st.lists(st.sampled_from(ingredients), min_size=1, max_size=3)) for _ in range(3)]
    layouts = [draw(st.sampled_from(LAYOUTS)) for _ in range(3)]
    seed = draw(st.integers(0, 2**32 - 1))

    def make(dtype: torch.dtype) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [
            _laid_out(_mixed(generator, shape, names).to(dtype), layout)
            for names, layout in zip(mixed, layouts, strict=True)
        ]

    return make


def _prior_holds(kernels: str, make: Make, dtype: torch.dtype) -> None:
    """The prior is where the posterior is not."""
    signs = iter((1, -1))

    def both(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        sign = next(signs)
        mu, logvar = make(dtype)
        return (mu, logvar) if sign == 1 else (-mu, -logvar)

    test_gaussian_kl.test_between_two_gaussians(kernels, both, dtype)


def _mixture_holds(kernels: str, make: Any, dtype: torch.dtype, kind: str) -> None:
    test_aggregate_posterior.check(make, dtype, kind, MOST_ROUNDINGS, MOST_ROUNDINGS)


def _as_plain(found: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
    """The same NaN and infinities, and the same numbers in a few digits."""
    for ours, theirs in zip(found, plain, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2, equal_nan=True)


def _pairs_are_as_plain(kernels: str, make: Any, dtype: torch.dtype, kind: str) -> None:
    inputs = make(dtype)
    keywords = test_aggregate_posterior._weightings(inputs[0], inputs[1])[kind]
    _as_plain(*(module.aggregate_posterior(*inputs, **keywords) for module in (fastib, reference)))


def _marginals_are_those_of_both(kernels: str, make: Any, dtype: torch.dtype, kind: str, algorithm: str) -> None:
    inputs = make(dtype)
    weightings = test_aggregate_posterior._weightings(inputs[0], inputs[1])
    keywords = weightings.get(kind, weightings["in_batch"])
    found = fastib.aggregate_posterior_marginals(*inputs, **keywords, algorithm=algorithm)
    _, both = fastib.aggregate_posterior(*inputs, **keywords, algorithm="direct")
    torch.testing.assert_close(found, both, rtol=1e-5, atol=1e-4)


def _terms_are_as_plain(kernels: str, make: Any, dtype: torch.dtype, estimator: str, reduction: str) -> None:
    options = {"dataset_size": 1000, "estimator": estimator, "reduction": reduction}
    _as_plain(*(module.elbo_decomposition(*make(dtype), **options) for module in (fastib, reference)))


def _is_a_term(kernels: str, make: Any, dtype: torch.dtype, estimator: str, reduction: str) -> None:
    """The total correlation and its gradients are those of the decomposition, bit for bit."""
    inputs = [t.requires_grad_() for t in make(dtype)]
    options = {"dataset_size": 1000, "estimator": estimator, "reduction": reduction}
    alone = fastib.total_correlation(*inputs, **options)
    term = fastib.elbo_decomposition(*inputs, **options).total_correlation
    assert torch.equal(alone, term)
    for a, b in zip(*(torch.autograd.grad(t.sum(), inputs) for t in (alone, term)), strict=True):
        assert torch.equal(a, b)


WILD = tuple(INGREDIENTS)
# Without those whose derivatives overflow where the gradients, which they are factors of, do not.
BUT_TENS = tuple(name for name in WILD if name != "tens")
OF_PAIRS = tuple(name for name in WILD if name not in ("tens", "huge"))  # whose differences are all rounding
of_estimators = {
    "dtype": st.sampled_from(DTYPES),
    "estimator": st.sampled_from([*ESTIMATORS]),
    "reduction": st.sampled_from([*SAMPLE_REDUCTIONS]),
}
dtypes, reductions = st.sampled_from(DTYPES), st.sampled_from(REDUCTIONS)
# Each test of a case, and what it is given.
PROPERTIES: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "reparameterize": (
        test_reparameterize.test_values_and_gradients,
        {"make": cases(WILD), "dtype": dtypes},
    ),
    "gaussian_kl": (
        test_gaussian_kl.test_elements_and_gradients,
        {"make": cases(WILD), "dtype": dtypes},
    ),
    "gaussian_kl, reductions": (
        test_gaussian_kl.test_reductions,
        {"make": cases(WILD), "dtype": dtypes, "reduction": reductions},
    ),
    "gaussian_kl, prior": (
        test_gaussian_kl.test_unit_prior_given_as_tensors,
        {"make": cases(WILD)},
    ),
    "gaussian_kl, another prior": (
        _prior_holds,
        {"make": cases(BUT_TENS), "dtype": dtypes},
    ),
    "reparameterize_with_kl": (
        test_reparameterize_with_kl.test_values,
        {"make": cases(WILD), "dtype": dtypes},
    ),
    "reparameterize_with_kl, gradients": (
        test_reparameterize_with_kl.test_gradients,
        {
            "make": cases((*TAME, "subnormal", "nan")),
            "dtype": dtypes,
            "reduction": reductions,
            "used": st.sampled_from(["both", "z", "kl"]),
        },
    ),
    "log_variance_penalty": (
        test_log_variance_penalty.test_values_and_gradients,
        {"make": cases(WILD), "dtype": dtypes, "reduction": reductions},
    ),
    "information_dropout": (
        test_information_dropout.test_values_and_gradients,
        {
            "make": cases((*TAME, "subnormal")),
            "dtype": dtypes,
            "options": st.sampled_from(test_information_dropout.OPTIONS),
        },
    ),
    "aggregate_posterior": (
        _mixture_holds,
        {
            "make": mixtures(),
            "dtype": dtypes,
            "kind": st.sampled_from(test_aggregate_posterior.WEIGHTINGS),
        },
    ),
    "aggregate_posterior, any values": (
        _pairs_are_as_plain,
        {
            "make": posteriors(OF_PAIRS),
            "dtype": dtypes,
            "kind": st.sampled_from(test_aggregate_posterior.WEIGHTINGS),
        },
    ),
    "aggregate_posterior_marginals": (
        _marginals_are_those_of_both,
        {
            "make": mixtures(),
            "dtype": dtypes,
            "kind": st.sampled_from(test_aggregate_posterior.WEIGHTINGS),
            "algorithm": st.sampled_from(["auto", "direct", "near_linear"]),
        },
    ),
    "elbo_decomposition": (
        test_elbo_decomposition.test_values_and_gradients,
        {"shape": st.tuples(st.integers(2, 60), st.integers(1, 20)), **of_estimators},
    ),
    "elbo_decomposition, any values": (
        _terms_are_as_plain,
        {"make": posteriors(OF_PAIRS), **of_estimators},
    ),
    "total_correlation": (
        _is_a_term,
        {"make": posteriors(TAME), **of_estimators},
    ),
}


@contextmanager
def _running(kernels: str, threads: int) -> Iterator[None]:
    """By these kernels, on so many threads."""
    module, before = _backends._cpu, torch.get_num_threads()
    isa = module.isa() if module is not None else None
    if module is not None:
        module.use_isa(kernels)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if module is not None:
            module.use_isa(isa)


@pytest.mark.parametrize("name", PROPERTIES)
def test_random_inputs(name: str) -> None:
    holds, arguments = PROPERTIES[name]

    @settings(
        max_examples=-(-EXAMPLES // len(PROPERTIES)),
        deadline=None,
        derandomize=EXAMPLES == 500,
        suppress_health_check=list(HealthCheck),
    )
    @given(kernels=st.sampled_from(KERNELS), threads=st.sampled_from([1, 2, 5]), given=st.fixed_dictionaries(arguments))
    def check(kernels: str, threads: int, given: dict[str, Any]) -> None:
        torch.manual_seed(0)
        with _running(kernels, threads):
            holds(kernels, **given)

    check()


def test_every_function_has_a_property() -> None:
    public = {name for name in fastib.__all__ if inspect.isfunction(getattr(fastib, name))} - {"backends"}
    assert {name.partition(",")[0] for name in PROPERTIES} == set(fuzz_boundary.FUNCTIONS) == public


def test_random_arguments() -> None:
    """Most of which come to the kernels. What fails is said with its bytes, which `try_one` takes again."""
    numbers = random.Random(None if EXAMPLES != 500 else 0)
    tried = [fuzz_boundary.try_one(numbers.randbytes(fuzz_boundary.MOST_CHOICES)) for _ in range(EXAMPLES)]
    succeeded = collections.Counter(name for name, gave_results in tried if gave_results)
    if EXAMPLES < 500:  # of so few, chance decides
        return
    assert sum(succeeded.values()) > EXAMPLES / 2
    assert all(succeeded[name] >= EXAMPLES // 50 for name in fuzz_boundary.FUNCTIONS), succeeded


def test_what_random_arguments_must_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number, a twin that lets pass what the function refuses, and a function that writes to its arguments."""
    gaussian_kl = fastib.gaussian_kl
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="not the same numbers"):
        patch.setattr(fastib, "gaussian_kl", functools.wraps(gaussian_kl)(lambda *a, **k: 3 * gaussian_kl(*a, **k) + 1))
        test_random_arguments()
    monkeypatch.setattr(reference, "log_variance_penalty", lambda logvar, reduction: logvar.sum())
    with pytest.raises(AssertionError, match="and its twin"):
        test_random_arguments()
    for module in (fastib, reference):
        monkeypatch.setattr(module, "log_variance_penalty", _writing)
    with pytest.raises(AssertionError, match="changed logvar"):
        test_random_arguments()


def _writing(logvar: Any, *, reduction: str) -> Tensor:
    if not isinstance(logvar, Tensor) or logvar.is_sparse:
        raise TypeError
    with torch.no_grad():
        return logvar.copy_(torch.ones(())).sum() if logvar.is_contiguous() else logvar.sum()


def test_a_night_is_added_to_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / fuzz.NAME
    path.write_text('{"rows": [{"what": "inputs", "tried": 1000, "found": "nothing"}], "runs": []}')
    for failed, examples in ((0, 500), (1, 600), (0, 700)):
        monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=failed, stdout=""))  # noqa: B023
        assert fuzz.main(["--examples", str(examples)], tmp_path) == failed
    assert [run["examples"] for run in json.loads(path.read_text())["runs"]] == [500, 700]
    assert re.fullmatch(r"\* inputs: 2,200 tried until \d{4}-\d\d-\d\d. Found: nothing.", fuzz.table(path))
