"""Sample inputs, each with the reason why it is here. A case gives (mu, logvar) in a dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Make = Callable[[torch.dtype], tuple[Tensor, Tensor]]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def _normal(*shape: int) -> Make:
    return lambda dtype: (torch.randn(shape).to(dtype), torch.randn(shape).to(dtype))


def _viewed(view: Callable[[Tensor], Tensor], *shape: int) -> Make:
    def make(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        mu, logvar = _normal(*shape)(dtype)
        return view(mu), view(logvar)

    return make


def _values(mu: list[float], logvar: list[float]) -> Make:
    """Every pair of a mu and a logvar, [len(mu), len(logvar)]."""

    def make(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        m, lv = torch.meshgrid(torch.tensor(mu).double(), torch.tensor(logvar).double(), indexing="ij")
        return m.to(dtype).contiguous(), lv.to(dtype).contiguous()

    return make


_LAYOUTS: list[tuple[str, str, Make]] = [
    ("0d", "no dimension at all", _normal()),
    ("1d", "one dimension: B is its size", _normal(7)),
    ("one", "a single element", _normal(1, 1)),
    ("empty_batch", "no samples", _normal(0, 4)),
    ("empty_latent", "no dimensions", _normal(4, 0)),
    ("vae", "the common shape, and no multiple of a vector", _normal(128, 10)),
    ("vector", "one vector of the widest instruction set and one more element", _normal(1, 17)),
    ("block", "one element short of, and beyond, a block of the kernels", _normal(3, 511)),
    ("chunk", "rows that cross the chunks that threads take", _normal(5, 3001)),
    ("long_row", "one row over many chunks", _normal(1, 40000)),
    ("whole_chunks", "rows that end with chunks", _normal(4, 8192)),
    ("wide_batch", "more rows than one column sum takes at once", _normal(700, 70)),
    ("sequence", "leading dimensions", _normal(4, 9, 11)),
    ("many_dims", "more dimensions than anyone has", _normal(2, 1, 3, 1, 2, 2, 1, 2, 3, 2)),
    ("sliced_rows", "a stride between rows", _viewed(lambda t: t[::2], 10, 33)),
    ("sliced_columns", "a stride between elements", _viewed(lambda t: t[:, 1::3], 30, 100)),
    ("transposed", "the last dimension is not the fastest", _viewed(lambda t: t.t(), 130, 70)),
    ("expanded", "elements that share memory", _viewed(lambda t: t.expand(40, 25), 1, 25)),
    ("offset", "not aligned to a vector", _viewed(lambda t: t.flatten()[1:].view(5, 200), 1, 1001)),
    (
        "channels_last",
        "an image in NHWC",
        _viewed(lambda t: t.contiguous(memory_format=torch.channels_last), 2, 5, 8, 9),
    ),
]

_VALUES: list[tuple[str, str, Make]] = [
    (
        "near_zero",
        "expm1(l) - l cancels near 0",
        _values([0.0, 1e-4], [s * 10.0**-k for k in range(8) for s in (1, -1, 3)] + [0.0]),
    ),
    ("wide", "variances over many decades", _values([-1e3, -1.0, 0.0, 0.5, 60.0], [float(x) for x in range(-80, 81)])),
    (
        "extreme",
        "e^logvar under- and overflows",
        _values([0.0, 1e-30, 1e15], [-3e4, -200.0, -110.0, 88.5, 89.0, 170.0, 200.0]),
    ),
    ("signed_zero", "negative zero and subnormals", _values([-0.0, 0.0, 1e-40, -1e-45], [-0.0, 0.0, 1e-40])),
    (
        "non_finite",
        "NaN and infinities propagate",
        _values(
            [0.0, float("nan"), float("inf"), -float("inf")], [0.0, float("nan"), float("inf"), -float("inf"), -1.0]
        ),
    ),
]

LAYOUTS = [pytest.param(make, id=name) for name, _, make in _LAYOUTS]
VALUES = [pytest.param(make, id=name) for name, _, make in _VALUES]
CASES = LAYOUTS + VALUES
