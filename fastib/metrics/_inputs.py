"""Checks and scaling of codes that the measures share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastib import _arguments


def check_finite(name: str, value: Tensor) -> None:
    wrong = value[~value.isfinite()]
    if len(wrong) > 0:
        raise ValueError(f"{name} must be finite, got {wrong[0].item()}")


def check_codes(name: str, value: Any, rows: int = 2, dims: int = 1) -> None:
    """Raises unless `value` is finite, and has so many rows and latent dimensions at least."""
    _arguments.check_floating(name, value)
    if value.dim() != 2 or len(value) < rows or value.shape[1] < dims:
        raise ValueError(f"{name} must have shape (n, D), n >= {rows}, D >= {dims}, got {tuple(value.shape)}")
    check_finite(name, value)


def check_int64(name: str, value: Any, dims: int, other_name: str, other: Tensor) -> None:
    """Raises unless `value` is an int64 tensor of so many dimensions, with a row for each of `other`."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor, got {getattr(value, 'dtype', type(value).__name__)}")
    if value.dim() != dims or len(value) != len(other):
        shape = f"({len(other)}, K)" if dims == 2 else f"({len(other)},)"
        raise ValueError(
            f"{name} must have shape {shape}, as {other_name} has {len(other)} rows, got {tuple(value.shape)}"
        )
    _arguments.check_device(name, value, other_name, other)


def varying(factors: Tensor) -> Tensor:
    """Which columns have more than one value."""
    return (factors != factors[:1]).any(0)


def scale_of(x: Tensor) -> Tensor:
    """For each column, float64, the power of two by which to divide it so that its squares neither overflow nor vanish:
    about its largest magnitude. It costs no digit."""
    exponent = torch.frexp(x.abs().amax(0)).exponent.double()
    return torch.exp2(exponent - 1)


def scaled(x: Tensor) -> Tensor:
    """Columns, float64, whose largest magnitude is about 1, or which are of zeros."""
    return x / scale_of(x)


def standardized(x: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1; of zeros, where a column is constant."""
    x = scaled(x)
    centred = x - x.mean(0)
    low, high = x.aminmax(dim=0)
    return torch.where(high > low, centred / centred.square().mean(0).sqrt(), 0)
