"""Bad input: one clear error each, that names the argument and its value, before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import fastib
from fastib import losses, reference, schedules

F = torch.zeros(4, 3)
NOISY = ["reparameterize", "reparameterize_with_kl", "information_dropout"]
REDUCED = ["gaussian_kl", "reparameterize_with_kl", "log_variance_penalty", "information_dropout"]
FIRST = {name: "x" if name == "information_dropout" else "mu" for name in NOISY} | {"gaussian_kl": "mu"}
SECOND = {name: "log_std" if name == "information_dropout" else "logvar" for name in NOISY} | {"gaussian_kl": "logvar"}


def _inputs(name: str) -> tuple[torch.Tensor, ...]:
    return (F,) if name == "log_variance_penalty" else (F, F)


def _both(name: str, *args: Any, error: type[Exception], match: str, **kwargs: Any) -> None:
    """The public function and its twin raise the same."""
    for module in (fastib, reference):
        with pytest.raises(error, match=match):
            getattr(module, name)(*args, **kwargs)


@pytest.mark.parametrize("name", [*FIRST])
@pytest.mark.parametrize(
    "bad, shown",
    [
        (torch.zeros(4, 3, dtype=torch.int64), "torch.int64"),
        (torch.zeros(4, 3, dtype=torch.bool), "torch.bool"),
        (torch.zeros(4, 3, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(4, 3).to(torch.float8_e5m2), "torch.float8_e5m2"),
        (torch.zeros(4, 3).to_sparse(), "torch.sparse_coo"),
        ([[0.0]], "list"),
        (1.0, "float"),
        (None, "NoneType"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_a_floating_tensor(name: str, bad: Any, shown: str) -> None:
    _both(name, bad, F, error=TypeError, match=f"{FIRST[name]} must be .*{re.escape(shown)}")
    _both(name, F, bad, error=TypeError, match=f"{SECOND[name]} must be .*{re.escape(shown)}")


@pytest.mark.parametrize("name", [*FIRST])
def test_inputs_that_differ(name: str) -> None:
    second = SECOND[name]
    _both(name, F, torch.zeros(4, 2), error=ValueError, match=rf"{second} must have the shape .*\(4, 3\), got \(4, 2\)")
    _both(name, F, torch.zeros(3), error=ValueError, match=rf"{second} must have the shape .*\(4, 3\), got \(3,\)")
    _both(name, F, F.double(), error=TypeError, match=f"{second} must have the dtype .*float32, got torch.float64")
    _both(name, F, F.to("meta"), error=ValueError, match=f"{second} must be on the device .*cpu, got meta")


def test_log_variance_penalty_of_integers() -> None:
    _both("log_variance_penalty", F.long(), error=TypeError, match="logvar must be .*torch.int64")


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("reduction", ["avg", "SUM", "", None, 2, np.array(["sum", "mean"])], ids=repr)
def test_unknown_reduction(name: str, reduction: Any) -> None:
    _both(
        name,
        *_inputs(name),
        reduction=reduction,
        error=ValueError,
        match=f"reduction must be one of .*got {re.escape(repr(reduction))}",
    )


@pytest.mark.parametrize("name", NOISY)
def test_noise_and_its_sources(name: str) -> None:
    rng, generator = torch.tensor([1, 2]), torch.Generator()
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"noise": torch.zeros(3, 4)}, ValueError, r"noise must have the shape .*got \(3, 4\)"),
        ({"noise": F.double()}, TypeError, "noise must have the dtype .*got torch.float64"),
        ({"noise": 0.0}, TypeError, "noise must be a torch.Tensor, got float"),
        ({"noise": F, "rng": rng}, ValueError, "rng must be None where noise is given"),
        ({"noise": F, "generator": generator}, ValueError, "generator must be None where noise is given"),
        ({"rng": rng, "generator": generator}, ValueError, "generator must be None where rng is given"),
        ({"rng": torch.tensor([1.0, 2.0])}, TypeError, "rng must be an int64 tensor of shape .*torch.float32"),
        ({"rng": rng.to_sparse()}, TypeError, "rng must be a dense tensor, got layout torch.sparse_coo"),
        ({"rng": torch.tensor([1, 2, 3])}, ValueError, r"rng must be an int64 tensor of shape .*\(3,\)"),
        ({"rng": rng.to("meta")}, ValueError, "rng must be on the device .*meta"),
        ({"rng": 5}, TypeError, "rng must be a torch.Tensor, got int"),
        ({"generator": 5}, TypeError, "generator must be a torch.Generator, got int"),
    ]
    for kwargs, error, match in cases:
        _both(name, F, F, **kwargs, error=error, match=match)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", NOISY)
def test_nested_tensors(name: str) -> None:
    nested, rng = torch.nested.as_nested_tensor([F[0]] * 4), torch.nested.as_nested_tensor([torch.tensor([1, 2])])
    _both(name, nested, F, error=TypeError, match=f"{FIRST[name]} must be a dense tensor, got a nested tensor")
    _both(name, F, F, rng=rng, error=TypeError, match="rng must be a dense tensor, got a nested tensor")


def test_bad_input_does_not_advance_the_generator() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError):
        fastib.reparameterize_with_kl(F, F, reduction="bad")
    with pytest.raises(ValueError):
        fastib.information_dropout(F, F, prior="bad")
    for name in ("mask_zero", "mean_one"):
        with pytest.raises(TypeError):
            fastib.information_dropout(F, F, **{name: "no"})
    assert torch.equal(before, torch.get_rng_state())


def test_priors_of_the_kl() -> None:
    for index, name in enumerate(("prior_mu", "prior_logvar")):
        for bad, error, match in (
            (torch.zeros(5), ValueError, rf"{name} must broadcast to .*\(4, 3\), got \(5,\)"),
            (torch.zeros(2, 4, 3), ValueError, f"{name} must broadcast"),
            (F.double(), TypeError, f"{name} must have the dtype"),
            (F.to("meta"), ValueError, f"{name} must be on the device"),
            (0.0, TypeError, f"{name} must be a torch.Tensor, got float"),
            (F.long(), TypeError, f"{name} must be .*torch.int64"),
        ):
            priors = [None, None]
            priors[index] = bad
            _both("gaussian_kl", F, F, *priors, error=error, match=match)


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"free_bits": -0.1}, ValueError, "free_bits must be a finite number of at least 0, got -0.1"),
        ({"free_bits": float("nan")}, ValueError, "free_bits must be a finite number .*got nan"),
        ({"free_bits": float("inf")}, ValueError, "free_bits must be a finite number .*got inf"),
        ({"free_bits": 10**400}, ValueError, "free_bits must be a finite number .*got 1000"),
        ({"free_bits": 1e39}, ValueError, r"free_bits must be a finite number .*and at most 3.4e\+38, got 1e\+39"),
        ({"free_bits": "0.1"}, TypeError, "free_bits must be a number, got str '0.1'"),
        ({"free_bits": True}, TypeError, "free_bits must be a number, got bool"),
        ({"free_bits_per": "batch"}, ValueError, "free_bits_per must be one of .*got 'batch'"),
        ({"free_bits": 0.1, "reduction": "none"}, ValueError, "reduction must be .*got 'none'"),
        (
            {"free_bits": 0.1, "reduction": "sample", "free_bits_per": "total"},
            ValueError,
            "reduction must be .*got 'sample'",
        ),
    ],
)
def test_free_bits(kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    _both("gaussian_kl", F, F, **kwargs, error=error, match=match)


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"prior": "uniform"}, ValueError, "prior must be one of 'log_uniform', 'log_normal', got 'uniform'"),
        ({"prior": np.zeros(2)}, ValueError, r"prior must be one of .*got array\(\[0"),
        ({"prior_mean": 0.1}, ValueError, "prior_mean must be None with prior='log_uniform'.*got 0.1"),
        (
            {"prior": "log_normal", "prior_log_std": F},
            ValueError,
            r"prior_log_std must have one element, got shape \(4, 3\)",
        ),
        ({"mask_zero": "no"}, TypeError, "mask_zero must be a bool, got str"),
        ({"mask_zero": 1}, TypeError, "mask_zero must be a bool, got int"),
        ({"mean_one": None}, TypeError, "mean_one must be a bool, got NoneType"),
        ({"prior": "log_normal", "prior_mean": float("nan")}, ValueError, "prior_mean must be a finite .*got nan"),
        ({"prior": "log_normal", "prior_log_std": -float("inf")}, ValueError, "prior_log_std must be a .*got -inf"),
        ({"prior": "log_normal", "prior_mean": torch.tensor(1)}, TypeError, "prior_mean must be .*torch.int64"),
        (
            {"prior": "log_normal", "prior_mean": torch.zeros((), device="meta")},
            ValueError,
            "prior_mean must be on .*meta",
        ),
        ({"prior": "log_normal", "prior_mean": "0"}, TypeError, "prior_mean must be a number .*got str"),
    ],
)
def test_dropout_priors(kwargs: dict[str, Any], error: type[Exception], match: str) -> None:
    _both("information_dropout", F, F, **kwargs, error=error, match=match)


M, K = torch.zeros(4, 2), torch.zeros(4)
LOSS_CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"output": None}, TypeError, "output must be a torch.Tensor, got NoneType"),
    ({"output": F.long()}, TypeError, "output must be .*got torch.int64"),
    ({"output": F > 0}, TypeError, "output must be .*got torch.bool"),
    ({"output": F.to(torch.complex64)}, TypeError, "output must be .*got torch.complex64"),
    (
        {"output": torch.zeros(()), "target": torch.zeros(())},
        ValueError,
        r"output must have the batch .*got shape \(\)",
    ),
    ({"target": [[0.0]]}, TypeError, "target must be a torch.Tensor, got list"),
    ({"target": F.to(torch.complex64)}, TypeError, "target must be .*got torch.complex64"),
    ({"target": F.long().to_sparse()}, TypeError, "target must be"),
    ({"target": F.to("meta")}, ValueError, "target must be on the device of output, cpu, got meta"),
    ({"target": M}, ValueError, r"output must have the shape of target, \(4, 2\), got \(4, 3\)"),
    ({"mu": torch.zeros(5, 2)}, ValueError, r"mu must have the batch size of output, 4, got shape \(5, 2\)"),
    ({"mu": torch.zeros(())}, ValueError, r"mu must have the batch size of output, 4, got shape \(\)"),
    ({"mu": M.long()}, TypeError, "mu must be .*got torch.int64"),
    ({"mu": M.to("meta")}, ValueError, "mu must be on the device of output, cpu, got meta"),
    ({"logvar": torch.zeros(4, 5)}, ValueError, r"logvar must have the shape of mu, \(4, 2\), got \(4, 5\)"),
    ({"logvar": 0.0}, TypeError, "logvar must be a torch.Tensor, got float"),
    ({"kl": 1.0}, TypeError, "kl must be a torch.Tensor, got float"),
    ({"kl": torch.tensor(1)}, TypeError, "kl must be .*got torch.int64"),
    ({"kl": torch.tensor(1j)}, TypeError, "kl must be .*got torch.complex64"),
    ({"kl": torch.zeros((), device="meta")}, ValueError, "kl must be on the device of output, cpu, got meta"),
    ({"kl": torch.zeros(3)}, ValueError, r"kl must .*got shape \(3,\)"),
    ({"kl": F}, ValueError, r"kl must .*got shape \(4, 3\)"),
]


@pytest.mark.parametrize("kwargs, error, match", LOSS_CALLS)
@pytest.mark.parametrize(
    "criterion", [losses.BetaVAELoss(), losses.AnnealedVAELoss(), losses.AnnealedVAELoss(per="sample")]
)
def test_what_the_losses_are_called_with(
    criterion: torch.nn.Module, kwargs: dict[str, Any], error: type[Exception], match: str
) -> None:
    good = {"output": F, "target": F} | ({} if "kl" in kwargs else {"mu": M, "logvar": M})
    with pytest.raises(error, match=match):
        criterion(**{**good, **kwargs})


def test_a_kl_per_sample_is_not_that_of_the_batch() -> None:
    for criterion in (losses.BetaVAELoss(), losses.AnnealedVAELoss()):
        with pytest.raises(ValueError, match=r"kl must be a scalar, the mean of the batch, got shape \(4,\)"):
            criterion(F, F, kl=K)
    with pytest.raises(ValueError, match=r"kl must have one value per sample, 4, got shape \(\)"):
        losses.AnnealedVAELoss(per="sample")(F, F, kl=F.sum())


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: losses.BetaVAELoss(-1.0), ValueError, "beta must be .*got -1.0"),
        (lambda: losses.BetaVAELoss("4"), TypeError, "beta must be a number, got str"),
        (lambda: losses.BetaVAELoss(likelihood="poisson"), ValueError, "likelihood must be one of .*'poisson'"),
        (lambda: losses.BetaVAELoss(free_bits=-1), ValueError, "free_bits must be .*got -1"),
        (lambda: losses.AnnealedVAELoss(capacity=-1.0), ValueError, "capacity must be .*got -1.0"),
        (lambda: losses.AnnealedVAELoss(gamma=float("nan")), ValueError, "gamma must be .*got nan"),
        (lambda: losses.AnnealedVAELoss(per="epoch"), ValueError, "per must be one of .*'epoch'"),
        (
            lambda: losses.BetaVAELoss()(F, torch.zeros(4, 2), F, F),
            ValueError,
            r"output must have the shape .*\(4, 2\), got \(4, 3\)",
        ),
        (lambda: losses.BetaVAELoss()(F, F), ValueError, "mu and logvar must both be given"),
        (lambda: losses.BetaVAELoss()(F, F, F, F, kl=F.sum()), ValueError, "kl must be None where mu and logvar"),
        (lambda: losses.BetaVAELoss(free_bits=0.1)(F, F, kl=F.sum()), ValueError, "kl must be None with free_bits"),
        (lambda: losses.AnnealedVAELoss()(F, F, kl=F), ValueError, "kl must be a scalar"),
        (lambda: losses.AnnealedVAELoss(per="sample")(F, F, kl=F), ValueError, "kl must have one value per sample"),
        (lambda: schedules.Linear(0.0, 1.0, 0), ValueError, "steps must be at least 1, got 0"),
        (lambda: schedules.Linear(0.0, 1.0, 1.5), TypeError, "steps must be an integer, got float"),
        (lambda: schedules.Cosine(float("inf"), 1.0, 5), ValueError, "start must be .*got inf"),
        (lambda: schedules.Cyclic(0.0, 1.0, 5, ramp=0.0), ValueError, "ramp must be .*got 0.0"),
    ],
)
def test_losses_and_schedules(make: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


HUGE = 10**5000  # of which Python writes no digits
IN_SHORT = "got an integer of 16610 bits"


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: fastib.gaussian_kl(F, F, free_bits=HUGE), f"free_bits must be a finite number .*{IN_SHORT}"),
        (lambda: fastib.gaussian_kl(F, F, free_bits=-HUGE), f"free_bits must be a finite number .*{IN_SHORT}"),
        (lambda: fastib.gaussian_kl(F, F, reduction=HUGE), f"reduction must be one of .*{IN_SHORT}"),
        (lambda: fastib.elbo_decomposition(F, F, F, dataset_size=HUGE), f"dataset_size must be at most .*{IN_SHORT}"),
        (
            lambda: fastib.elbo_decomposition(F, F, F, dataset_size=4, row_offset=-HUGE),
            f"row_offset must be at least 0, {IN_SHORT}",
        ),
        (
            lambda: fastib.aggregate_posterior(F, F, F, weights=(1, HUGE)),
            rf"weights\[1\] must be a finite number .*{IN_SHORT}",
        ),
        (
            lambda: fastib.aggregate_posterior(F, F, F, weights=(1, 1), dataset_size=HUGE),
            f"dataset_size must be None with weights, .*{IN_SHORT}",
        ),
        (lambda: fastib.aggregate_posterior(F, F, F, weights=(HUGE,)), "weights must be two numbers, .*got tuple"),
        (lambda: losses.BetaVAELoss(HUGE), f"beta must be a finite number .*{IN_SHORT}"),
        (lambda: schedules.Linear(0.0, 1.0, HUGE), f"steps must be at most .*{IN_SHORT}"),
    ],
)
def test_integers_that_python_does_not_write(make: Callable[[], object], match: str) -> None:
    """They are named like any other value, in a message of one line."""
    with pytest.raises((TypeError, ValueError), match=match):
        make()
