"""Checks of arguments that the public functions and their plain-PyTorch twins share.

Everything is checked before anything runs, and an error names the argument and its value.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

LARGEST = sys.float_info.max
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
    if value.dtype != other.dtype:
        raise TypeError(f"{name} must have the dtype of {other_name}, {other.dtype}, got {value.dtype}")
    check_device(name, value, other_name, other)


def check_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {value.device}")


def check_noisy(name: str, x: Any, other_name: str, other: Any, noise: Any) -> None:
    """Checks the tensors of a stochastic function, before its noise is drawn."""
    check_floating(name, x)
    check_like(other_name, other, name, x)
    if noise is not None:
        check_like("noise", noise, name, x)


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
        raise TypeError(f"{name} must be a number or a tensor of one element, got {type(value).__name__}")
    check_number(name, value)
    return torch.tensor(float(value), dtype=accumulate_dtype(other.dtype), device=other.device)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def check_number(name: str, value: Any, minimum: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    # By comparison: math.isfinite refuses huge ints, and torch.compile its symbolic numbers.
    if not (-LARGEST <= value <= LARGEST and value >= minimum):
        bound = "" if minimum == -math.inf else f" of at least {minimum:g}"
        raise ValueError(f"{name} must be a finite number{bound}, got {value!r}")


REDUCTIONS = ("none", "sample", "sum", "mean", "batchmean")
_UNSCALED = {"none": Reduction.NONE, "sample": Reduction.SAMPLE, "sum": Reduction.SUM}


def reduction_of(reduction: Any, shape: torch.Size) -> tuple[int, float]:
    """The kind of reduction and the factor that `reduction` means for a loss of one value per element of `shape`."""
    check_choice("reduction", reduction, REDUCTIONS)
    if reduction in _UNSCALED:
        return _UNSCALED[reduction], 1.0
    count = shape.numel() if reduction == "mean" else batch_size(shape)
    return Reduction.SUM, 1.0 / count if count else math.nan


def batch_size(shape: torch.Size) -> int:
    """The size of the first dimension, as in torch.nn.functional.kl_div."""
    return shape[0] if shape else 1


FREE_BITS_PER = ("dimension", "element", "total")


def check_free_bits(free_bits: Any, per: Any, reduction: Any) -> None:
    check_number("free_bits", free_bits, minimum=0.0)
    check_choice("free_bits_per", per, FREE_BITS_PER)
    if free_bits > 0 and per != "element" and reduction in ("none", "sample"):
        raise ValueError(
            f"reduction must be 'sum', 'mean' or 'batchmean' with free_bits_per={per!r}, which floors the mean "
            f"over the batch, got {reduction!r}"
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
            raise ValueError(f"{name} must be None with prior='log_uniform', which has no parameters, got {value!r}")
    return None, None
