"""What a result is held to: an error budget against the float64 oracle, and the same bits for any threads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def assert_within_budget(
    actual: Tensor,
    plain: Tensor,
    oracle: Tensor,
    *,
    scale: Tensor | None = None,
    slack: float = 4.0,
    unavoidable: Tensor | float = 0.0,
) -> None:
    """The largest error of `actual` is at most that of plain PyTorch in the same dtype, plus `slack` units.

    An error counts beyond what is `unavoidable`.

    Errors are relative to `scale`, by default the oracle's own size; a unit is the resolution of the dtype. Where the
    oracle is not finite, or too large for the dtype, `actual` must be the same infinity or NaN, or that of the plain
    expression (which overflows where float64 does not).
    """
    assert actual.shape == oracle.shape and plain.shape == oracle.shape
    assert actual.dtype == plain.dtype and oracle.dtype == torch.float64
    if actual.numel() == 0:
        return
    limits = torch.finfo(actual.dtype)
    expected = oracle.detach().to(actual.dtype)
    special = ~expected.isfinite()
    actual, plain, oracle = actual.detach().double(), plain.detach().double(), oracle.detach()
    as_plain = (actual == plain) | (actual.isnan() & plain.isnan())
    edge = special & ~as_plain
    torch.testing.assert_close(actual[edge], expected.double()[edge], rtol=0, atol=0, equal_nan=True)
    scale = (oracle.abs() if scale is None else scale.detach().double().abs()) + limits.smallest_normal
    counted = ~special & plain.isfinite()
    error = (((actual - oracle).abs() - unavoidable).clamp(min=0) / scale)[counted]
    allowed = ((plain - oracle).abs() / scale)[counted]
    if error.numel():
        worst, budget = error.max().item(), allowed.max().item() + slack * limits.eps
        assert worst <= budget, f"error {worst:.3g} exceeds {budget:.3g} (plain PyTorch: {allowed.max().item():.3g})"


def assert_same_bits_for_threads(run: Callable[[], tuple[Tensor, ...]]) -> None:
    """`run` gives the same bits on one thread, on two, and again. The fixture `threads` restores their number."""
    results = []
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        results.append(run())
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
