"""Checks of arguments that the public functions and their plain-PyTorch twins share.

Everything is checked before anything runs, and an error names the argument and its value.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LARGEST, LARGEST_FLOAT32 = sys.float_info.max, torch.finfo(torch.float32).max
LARGEST_INTEGER = 2**63 - 1  # what an operator takes
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Reduction:
    """What an operator does with the per-element loss. ReductionKind in csrc/cpu/cpu.h has the same numbers.

    Plain ints: an enum costs 5 us more to pass to an operator.
    """

    NONE = 0
    SAMPLE = 1  # sum over the last dimension
    SUM = 2
    BATCH = 3  # sum over the first dimension


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of losses and of everything accumulated."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def shown(value: Any) -> str:
    """`value` in a message: integers that Python refuses to write, of more than 4300 digits, in short."""
    try:
        return repr(value)
    except ValueError:
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__


def check_floating(name: str, value: Any) -> None:
    if isinstance(value, Tensor) and value.dtype in FLOATING and is_dense(value):
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}")
    check_dense(name, value)


def is_dense(value: Tensor) -> bool:
    return value.layout is torch.strided and not value.is_nested


def check_dense(name: str, value: Tensor) -> None:
    if not is_dense(value):
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {kind}")


def check_like(name: str, value: Any, other_name: str, other: Tensor) -> None:
    """Raises unless `value` has the shape, dtype and device of `other`, which has passed `check_floating`."""
    check_floating(name, value)
    if value.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name}, {tuple(other.shape)}, got {tuple(value.shape)}")
    check_dtype_and_device(name, value, other_name, other)


def check_dtype_and_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    # Under autocast the layers of one network give several dtypes: see `in_one_dtype`.
    if value.dtype != other.dtype and not torch.is_autocast_enabled(other.device.type):
        raise TypeError(f"{name} must have the dtype of {other_name}, {other.dtype}, got {value.dtype}")
    check_device(name, value, other_name, other)


def check_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {value.device}")


def _are_alike(a: Any, b: Any) -> bool:
    """Whether the checks below would find nothing to say, in the usual case: at a glance, which saves a microsecond."""
    return (
        isinstance(a, Tensor)
        and isinstance(b, Tensor)
        and a.layout is b.layout is torch.strided
        and not (a.is_nested or b.is_nested)
        and a.dtype in FLOATING
        and a.dtype == b.dtype
        and a.shape == b.shape
        and ((a.is_cpu and b.is_cpu) or a.device == b.device)
    )


def in_one_dtype(first: Tensor, *others: Any) -> tuple[Any, ...]:
    """What has passed the checks, where dtypes may differ under autocast alone: in the widest, as PyTorch promotes."""
    for other in others:
        if other is not None and other.dtype != first.dtype:
            break
    else:
        return first, *others
    tensors = [t for t in (first, *others) if t is not None]
    widest = functools.reduce(torch.promote_types, (t.dtype for t in tensors))
    return tuple(t if t is None else t.to(widest) for t in (first, *others))


def check_noisy(name: str, x: Any, other_name: str, other: Any, noise: Any) -> tuple[Any, ...]:
    """Checks the tensors of a stochastic function, before its noise is drawn, and gives them in one dtype."""
    if noise is None and _are_alike(x, other):
        return x, other, None
    check_floating(name, x)
    check_like(other_name, other, name, x)
    if noise is not None:
        check_like("noise", noise, name, x)
    return in_one_dtype(x, other, noise)


def check_distributions(mu: Any, logvar: Any, prior_mu: Any, prior_logvar: Any) -> tuple[Any, ...]:
    """Checks a posterior and its prior, if there is one, and gives them in one dtype."""
    if prior_mu is None and prior_logvar is None and _are_alike(mu, logvar):
        return mu, logvar, None, None
    check_floating("mu", mu)
    check_like("logvar", logvar, "mu", mu)
    for name, prior in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
        if prior is not None:
            check_broadcast(name, prior, "mu", mu)
    return in_one_dtype(mu, logvar, prior_mu, prior_logvar)


def check_broadcast(name: str, value: Any, other_name: str, other: Tensor) -> None:
    """Raises unless `value` broadcasts to the shape of `other`, whose dtype and device it must have."""
    check_floating(name, value)
    check_dtype_and_device(name, value, other_name, other)
    pairs = zip(value.shape[::-1], other.shape[::-1], strict=False)
    if value.dim() > other.dim() or not all(size == 1 or size == whole for size, whole in pairs):
        raise ValueError(
            f"{name} must broadcast to the shape of {other_name}, {tuple(other.shape)}, got {tuple(value.shape)}"
        )


def scalar(name: str, value: Any, other_name: str, other: Tensor) -> Tensor:
    """A number, or a tensor of one element, as a tensor on the device of `other`."""
    if isinstance(value, Tensor):
        check_floating(name, value)
        if value.numel() != 1:
            raise ValueError(f"{name} must have one element, got shape {tuple(value.shape)}")
        check_device(name, value, other_name, other)
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = type(value).__name__
        raise TypeError(f"{name} must be a number or a tensor of one element, got {kind} {shown(value)}")
    check_number(name, value, dtype=other.dtype)
    # torch.tensor would copy from the host: that waits for the GPU, and no CUDA graph can capture it.
    return torch.full((), float(value), dtype=accumulate_dtype(other.dtype), device=other.device)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__} {shown(value)}")


def check_number(name: str, value: Any, minimum: float = -math.inf, dtype: torch.dtype = torch.float64) -> None:
    """Raises unless `value` is a finite number, also in what is accumulated for tensors of `dtype`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__} {shown(value)}")
    # By comparison: math.isfinite refuses huge ints, and torch.compile its symbolic numbers.
    largest = LARGEST if dtype == torch.float64 else LARGEST_FLOAT32
    if not (-largest <= value <= largest and value >= minimum):
        bounds = [f"at least {minimum:g}"] if minimum > -math.inf else []
        bounds += [f"at most {largest:.3g}"] if largest < abs(value) < math.inf else []
        of = " of " + " and ".join(bounds) if bounds else ""
        raise ValueError(f"{name} must be a finite number{of}, got {shown(value)}")


REDUCTIONS = ("none", "sample", "sum", "mean", "batchmean")
_UNDIVIDED = {"none": Reduction.NONE, "sample": Reduction.SAMPLE, "sum": Reduction.SUM}


def reduction_of(reduction: Any, shape: torch.Size) -> tuple[int, int]:
    """The kind of reduction and the divisor that `reduction` means for a loss of one value per element of `shape`.

    Operators take it instead of its inverse, as an integer: one graph of torch.compile then serves all batches.
    """
    if isinstance(reduction, str) and reduction == "batchmean":  # an array would be compared one by one
        return Reduction.SUM, batch_size(shape)
    check_choice("reduction", reduction, REDUCTIONS)
    if reduction == "mean":
        return Reduction.SUM, math.prod(shape)  # torch.export takes what shape.numel() gives for a constant
    return _UNDIVIDED[reduction], 1


def batch_size(shape: torch.Size) -> int:
    """The size of the first dimension, as in torch.nn.functional.kl_div."""
    return shape[0] if shape else 1


FREE_BITS_PER = ("dimension", "element", "total")


def check_free_bits(free_bits: Any, per: Any, reduction: Any, dtype: torch.dtype) -> None:
    check_number("free_bits", free_bits, minimum=0.0, dtype=dtype)
    check_choice("free_bits_per", per, FREE_BITS_PER)
    if free_bits > 0 and per != "element" and reduction in ("none", "sample"):
        raise ValueError(
            f"reduction must be 'sum', 'mean' or 'batchmean' with free_bits_per={per!r}, which floors the mean "
            f"over the batch, got {shown(reduction)}"
        )


def dropout_prior(prior: Any, mean: Any, log_std: Any, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The parameters of Information Dropout's prior as tensors: both for "log_normal", neither for "log_uniform"."""
    check_choice("prior", prior, ("log_uniform", "log_normal"))
    if prior == "log_normal":
        return (
            scalar("prior_mean", 0.0 if mean is None else mean, "x", x),
            scalar("prior_log_std", 0.0 if log_std is None else log_std, "x", x),
        )
    for name, value in (("prior_mean", mean), ("prior_log_std", log_std)):
        if value is not None:
            why = "prior='log_uniform', which has no parameters"
            raise ValueError(f"{name} must be None with {why}, got {shown(value)}")
    return None, None


class Algorithm:
    """How a mixture's densities are summed. Algorithm in csrc/cpu/near_linear.h has the same numbers."""

    AUTO = 0
    DIRECT = 1
    NEAR_LINEAR = 2


_ALGORITHMS = {"auto": Algorithm.AUTO, "direct": Algorithm.DIRECT, "near_linear": Algorithm.NEAR_LINEAR}


def algorithm_of(algorithm: Any) -> int:
    check_choice("algorithm", algorithm, tuple(_ALGORITHMS))
    return _ALGORITHMS[algorithm]


class Estimator:
    """Where the weights of a mixture come from. Estimator in csrc/common/mixture.h has the same numbers."""

    GIVEN = 0
    MSS = 1
    MWS = 2
    IN_BATCH = 3
    LEAVE_ONE_OUT = 4


ESTIMATORS = {
    "mss": Estimator.MSS,
    "mws": Estimator.MWS,
    "in_batch": Estimator.IN_BATCH,
    "leave_one_out": Estimator.LEAVE_ONE_OUT,
}


def check_posteriors(z: Any, mu: Any, logvar: Any, fewest: int = 1) -> tuple[Any, ...]:
    """Checks points [S, D] and the Gaussians [N', D] of a mixture, and gives them in one dtype."""
    for name, value in (("z", z), ("mu", mu)):
        check_floating(name, value)
        if value.dim() != 2:
            raise ValueError(f"{name} must have two dimensions, got shape {tuple(value.shape)}")
    check_like("logvar", logvar, "mu", mu)
    check_dtype_and_device("z", z, "mu", mu)
    if z.shape[1] != mu.shape[1]:
        raise ValueError(f"z must have the latent dimensions of mu, {mu.shape[1]}, got {z.shape[1]}")
    if mu.shape[0] < fewest:
        raise ValueError(f"mu must have at least one component, got shape {tuple(mu.shape)}")
    return in_one_dtype(z, mu, logvar)


def check_integer(name: str, value: Any, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__} {shown(value)}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {shown(value)}")
    if isinstance(value, int) and value > LARGEST_INTEGER:
        raise ValueError(f"{name} must be at most {LARGEST_INTEGER}, got {shown(value)}")


def estimator_of(estimator: Any, dataset_size: Any, components: int | None = None) -> tuple[int, int]:
    """The estimator and the size of the data set as operators take them: 0 where there is none. Checked as far as it
    can be where the number of components is yet to come."""
    check_choice("estimator", estimator, tuple(ESTIMATORS))
    if dataset_size is None and estimator in ("mss", "mws"):
        raise ValueError(f"dataset_size must be given with estimator={estimator!r}: it is never guessed")
    if dataset_size is not None:
        check_integer("dataset_size", dataset_size, 1)
        if components is not None and dataset_size < components:
            raise ValueError(
                f"dataset_size must be at least the number of components, {components}, got {dataset_size}"
            )
    if estimator in ("mss", "leave_one_out") and components == 1:
        raise ValueError(f"estimator={estimator!r} needs at least two components, mu has {components}")
    return ESTIMATORS[estimator], dataset_size or 0


SAMPLE_REDUCTIONS = ("none", "sum", "mean")


def decomposition(
    z: Any, mu: Any, logvar: Any, dataset_size: Any, estimator: Any, row_offset: Any, reduction: Any
) -> tuple[int, int, int, int, int]:
    """The estimator and its N, the offset, and the reduction of one value per sample as its kind and divisor."""
    if row_offset is None:
        check_rows(z, mu)
    else:
        check_part(row_offset, z, mu)
    weighting = estimator_of(estimator, dataset_size, mu.shape[0])
    check_choice("reduction", reduction, SAMPLE_REDUCTIONS)
    kind = Reduction.NONE if reduction == "none" else Reduction.SUM
    return *weighting, row_offset or 0, kind, z.shape[0] if reduction == "mean" else 1


def decomposition_of_rank(
    z: Any,
    mu: Any,
    logvar: Any,
    dataset_size: Any,
    estimator: Any,
    row_offset: Any = None,
    reduction: Any = "mean",
    algorithm: Any = "auto",
) -> tuple[int, list[tuple[str, int, Sequence[Any] | None]]]:
    """The rows of a rank, and what all ranks must agree on: for each its name, and its value or index of a choice."""
    z, mu, logvar = check_posteriors(z, mu, logvar, fewest=0)
    check_rows(z, mu)
    if row_offset is not None:
        raise ValueError(f"row_offset must be None with group, where it is that of the rank, got {shown(row_offset)}")
    code, size = estimator_of(estimator, dataset_size)
    check_choice("reduction", reduction, SAMPLE_REDUCTIONS)
    return z.shape[0], [
        ("the latent dimensions of mu", mu.shape[1], None),
        ("the dtype of mu", FLOATING.index(mu.dtype), FLOATING),
        ("dataset_size", size, None),
        ("estimator", code - 1, tuple(ESTIMATORS)),
        ("reduction", SAMPLE_REDUCTIONS.index(reduction), SAMPLE_REDUCTIONS),
        ("algorithm", algorithm_of(algorithm), tuple(_ALGORITHMS)),
        # Else some would wait in the backward pass for others that have none.
        ("requires_grad of z", int(wants_gradient(z)), (False, True)),
        ("requires_grad of mu or logvar", int(wants_gradient(mu, logvar)), (False, True)),
    ]


def wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def check_rows(z: Tensor, mu: Tensor) -> None:
    if z.shape[0] != mu.shape[0]:
        raise ValueError(f"z must have one row for each row of mu, {mu.shape[0]}, got {z.shape[0]}")


def mixture_weights(
    estimator: Any, dataset_size: Any, weights: Any, log_weights: Any, z: Tensor, mu: Tensor
) -> tuple[int, int, float, float]:
    """The estimator and its N, and the weights given, that the arguments of `aggregate_posterior` stand for."""
    given = [name for name, value in (("weights", weights), ("log_weights", log_weights)) if value is not None]
    if not given:
        return *estimator_of(estimator, dataset_size, mu.shape[0]), 1.0, 1.0
    if len(given) == 2 or estimator != "mss":
        other = "log_weights" if len(given) == 2 else f"estimator={estimator!r}"
        raise ValueError(f"{given[0]} must be None with {other}: each says what the components weigh")
    if dataset_size is not None:
        size = shown(dataset_size)
        raise ValueError(f"dataset_size must be None with {given[0]}, which it has no part in, got {size}")
    if log_weights is not None:
        check_floating("log_weights", log_weights)
        if log_weights.shape != (z.shape[0], mu.shape[0]):
            expected = z.shape[0], mu.shape[0]
            raise ValueError(f"log_weights must have shape {expected}, got {tuple(log_weights.shape)}")
        if log_weights.device != mu.device:
            raise ValueError(f"log_weights must be on the device of mu, {mu.device}, got {log_weights.device}")
        if log_weights.requires_grad:
            raise ValueError("log_weights must not require a gradient: it has none here, got requires_grad=True")
        return Estimator.GIVEN, 0, 1.0, 1.0
    if not isinstance(weights, (tuple, list)) or len(weights) != 2:
        raise TypeError(f"weights must be two numbers, (w_self, w_other), got {shown(weights)}")
    for name, weight in zip(("weights[0]", "weights[1]"), weights, strict=True):
        check_number(name, weight, minimum=0.0)
    if weights[0] == weights[1] == 0:
        raise ValueError(f"weights must not both be 0, got {shown(weights)}")
    return Estimator.GIVEN, 0, float(weights[0]), float(weights[1])


def check_row_offset(row_offset: Any, weighting: tuple[int, int, float, float], z: Tensor, mu: Tensor) -> None:
    """Row i's own component is i + row_offset, which must exist where it weighs more or less than the others."""
    check_integer("row_offset", row_offset, 0)
    if row_offset + z.shape[0] <= mu.shape[0]:
        return
    estimator, dataset_size, w_self, w_other = weighting
    if estimator == Estimator.MSS:
        weighs_as_others = dataset_size == mu.shape[0]
    else:
        weighs_as_others = estimator != Estimator.LEAVE_ONE_OUT and w_self == w_other
    if not weighs_as_others:
        check_part(row_offset, z, mu)


def check_part(row_offset: Any, z: Tensor, mu: Tensor) -> None:
    """Raises unless each row of z has a component of its own."""
    check_integer("row_offset", row_offset, 0)
    if row_offset + z.shape[0] > mu.shape[0]:
        raise ValueError(
            f"row_offset must leave each row of z its own component: row_offset={row_offset} and {z.shape[0]} rows "
            f"exceed the {mu.shape[0]} components"
        )
