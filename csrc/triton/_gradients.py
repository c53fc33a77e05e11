"""The gradients by points and components: the sums over all others of _marginals.py and _joint.py, and what a row and
its own component give to each other, of which the shares are exact.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _joint, _marginals
from ._elements import store
from ._launch import block_of_rows, compiled_once, deliver, launch, target
from ._math import divide
from ._mixture import LN2, Mixture, Saved, exponent, own_deviation, own_squares, own_weights, weighed_or_nothing
from ._tuning import launch_pairs

_BLOCK = 128  # rows, or components, of one program of the kernels here
_DIMS = 32  # of one program of the joint's kernels


class RowGradients(NamedTuple):
    """Those of the loss by each row's log q(z), log q(z|x) - log q(z), log q(z_d) and log p(z); all in its dtype."""

    joint: Tensor | None  # [S]
    information: Tensor | None  # [S]
    marginals: Tensor | None  # [D, S], or [S] for all dimensions alike
    prior: Tensor | None  # [S]


@triton.jit
def _own_joint(
    z, mu, precision, joint, offsets, sums, by_joint, by_information, own, log2_own, i, j, pair, rows, components, dims
):
    """The gradient by the joint log density of pairs of rows and their own components."""
    none = tl.zeros_like(i).to(z.dtype.element_ty)
    own_weight, log2_own, _ = own_weights(own, log2_own, log2_own, none)
    total = tl.load(sums + i, mask=pair, other=0.0)
    t = tl.load(joint + j, mask=pair, other=float("-inf"))
    t = t - own_squares(z, mu, precision, i, j, pair, rows, components, dims) + log2_own
    density = tl.exp2(weighed_or_nothing(t, own_weight) - tl.load(offsets + i, mask=pair, other=0.0)) * own_weight
    share = divide(density, tl.where(total == 0.0, 1.0, total))
    gradient = none
    if by_joint is not None:
        gradient = share * tl.load(by_joint + i, mask=pair, other=0.0)
    if by_information is not None:
        gradient = (1.0 - share) * tl.load(by_information + i, mask=pair, other=0.0) + gradient
    return tl.where(total == 0.0, 0.0, gradient)


@triton.jit
def _own_marginal(c, offsets, sums, gradients, own, log2_own, v, i, j, pair):
    """The gradient by their log density in one dimension; the pointers are to that dimension."""
    own_weight, log2_own, _ = own_weights(own, log2_own, log2_own, v)
    total = tl.load(sums + i, mask=pair, other=0.0)
    t = exponent(v, tl.load(c + j, mask=pair, other=float("-inf"))) + log2_own
    density = tl.exp2(weighed_or_nothing(t, own_weight) - tl.load(offsets + i, mask=pair, other=0.0)) * own_weight
    share = divide(density, tl.where(total == 0.0, 1.0, total))
    return tl.where(total == 0.0, 0.0, share * tl.load(gradients + i, mask=pair, other=0.0))


@triton.jit
def _own_gradient(
    z, mu, precision, c, offsets, sums, gradients, stride, of_joint, own, log2_own, i, j, pair, d, rows, components
):
    """The gradient by the log density of pairs in dimension d, and v, 0 where that is: it may be infinite."""
    v = own_deviation(z + d * rows, mu + d * components, precision + d * components, i, j, pair)
    gradient = of_joint
    if gradients is not None:
        gradient = of_joint + _own_marginal(
            c + d * components,
            offsets + d * rows,
            sums + d * rows,
            gradients + d * stride,
            own,
            log2_own,
            v,
            i,
            j,
            pair,
        )
    return gradient, tl.where(gradient == 0.0, 0.0, v)


@compiled_once
def _rows(
    z, mu, precision, c, joint, rows, components, row_offset,
    own: tl.int64, log2_own: tl.int64,
    joint_offsets, joint_sums, sums, offsets, by_joint, by_information, by_marginals, stride, by_prior,
    others_joint, others_marginal, d_z, dims, HAS_OWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, j = i < rows, i + row_offset
    pair = inside & (j < components)
    of_joint = tl.zeros([BLOCK], joint.dtype.element_ty)
    if HAS_OWN and (by_joint is not None or by_information is not None):
        of_joint = _own_joint(
            z, mu, precision, joint, joint_offsets, joint_sums, by_joint, by_information, own, log2_own, i, j, pair,
            rows, components, dims,
        )  # fmt: skip
    d = tl.program_id(0).to(tl.int64) * 0
    while d < dims:
        total = tl.zeros([BLOCK], of_joint.dtype)
        if others_joint is not None:
            total += tl.load(others_joint + d * rows + i, mask=inside, other=0.0)
        if others_marginal is not None:
            total += tl.load(others_marginal + d * rows + i, mask=inside, other=0.0)
        if HAS_OWN:
            gradient, v = _own_gradient(
                z, mu, precision, c, offsets, sums, by_marginals, stride, of_joint, own, log2_own, i, j, pair, d,
                rows, components,
            )  # fmt: skip
            total += gradient * v * tl.load(precision + d * components + j, mask=pair, other=0.0)
        total = total * (-2.0 * LN2)
        if by_prior is not None:
            at = tl.load(z + d * rows + i, mask=inside, other=0.0)
            total += tl.load(by_prior + i, mask=inside, other=0.0) * at
        store(d_z + i * dims + d, total, inside)
        d += 1


@compiled_once
def _columns(
    z, mu, precision, c, joint, rows, components, row_offset,
    own: tl.int64, log2_own: tl.int64,
    joint_offsets, joint_sums, sums, offsets, by_joint, by_information, by_marginals, stride,
    joint_mean, joint_logvar, marginal_mean, marginal_logvar, d_mu, d_logvar, dims,
    HAS_OWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    j = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    near, i = j < components, j - row_offset
    pair = near & (i >= 0) & (i < rows)
    of_joint = tl.zeros([BLOCK], joint.dtype.element_ty)
    if HAS_OWN and (by_joint is not None or by_information is not None):
        of_joint = _own_joint(
            z, mu, precision, joint, joint_offsets, joint_sums, by_joint, by_information, own, log2_own, i, j, pair,
            rows, components, dims,
        )  # fmt: skip
    d = tl.program_id(0).to(tl.int64) * 0
    while d < dims:
        mean, by_logvar = tl.zeros([BLOCK], of_joint.dtype), tl.zeros([BLOCK], of_joint.dtype)
        if joint_mean is not None:
            mean += tl.load(joint_mean + d * components + j, mask=near, other=0.0)
            by_logvar += tl.load(joint_logvar + d * components + j, mask=near, other=0.0)
        if marginal_mean is not None:
            mean += tl.load(marginal_mean + d * components + j, mask=near, other=0.0)
            by_logvar += tl.load(marginal_logvar + d * components + j, mask=near, other=0.0)
        if HAS_OWN:
            gradient, v = _own_gradient(
                z, mu, precision, c, offsets, sums, by_marginals, stride, of_joint, own, log2_own, i, j, pair, d,
                rows, components,
            )  # fmt: skip
            mean += gradient * v
            by_logvar += gradient * v * v * LN2 - gradient * 0.5
        k = tl.load(precision + d * components + j, mask=near, other=0.0)
        store(d_mu + j * dims + d, mean * (2.0 * LN2) * k, near)
        store(d_logvar + j * dims + d, by_logvar, near)
        d += 1


def _others_of_marginals(m: Mixture, saved: Saved, gradients: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    of_rows, mean, by_logvar = torch.empty_like(m.z), torch.empty_like(m.mu), torch.empty_like(m.mu)
    inputs = *m.tensors(), *m.numbers(), saved.sums, saved.offsets, gradients, stride
    launch_pairs(_marginals.backward_rows, m.rows, m.components, m.dims, m.z, *inputs, of_rows, m.dims)
    launch_pairs(_marginals.backward_columns, m.components, m.rows, m.dims, m.z, *inputs, mean, by_logvar, m.dims)
    return of_rows, mean, by_logvar


def _others_of_joint(m: Mixture, saved: Saved, gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_rows, mean, by_logvar = torch.empty_like(m.z), torch.empty_like(m.mu), torch.empty_like(m.mu)
    blocks = triton.cdiv(m.dims, _DIMS)
    tensors = m.z, m.mu, m.precision, m.joint, m.log_weights, m.largest
    inputs = *tensors, *m.numbers(), saved.joint_offsets, saved.joint_sums, gradients
    launch_pairs(_joint.backward_rows, m.rows, m.components, blocks, m.z, *inputs, of_rows, m.dims, DIMS=_DIMS)
    launch_pairs(
        _joint.backward_columns, m.components, m.rows, blocks, m.z, *inputs, mean, by_logvar, m.dims, DIMS=_DIMS
    )
    return of_rows, mean, by_logvar


def gradients(
    m: Mixture, saved: Saved, by: RowGradients, z: Tensor, mu: Tensor, logvar: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the loss by z, mu and logvar, from those by what is of each row."""
    nothing = None, None, None
    stride = 0 if by.marginals is None or by.marginals.dim() == 1 else m.rows
    of_joint = by.joint
    if by.joint is not None and by.information is not None:
        of_joint = by.joint - by.information
    marginal = nothing if by.marginals is None else _others_of_marginals(m, saved, by.marginals, stride)
    joint = nothing if of_joint is None else _others_of_joint(m, saved, of_joint)
    outputs = torch.empty_like(z), torch.empty_like(mu), torch.empty_like(logvar)
    targets = [target(out) for out in outputs]
    block = block_of_rows(max(m.rows, m.components), _BLOCK)
    common = m.z, m.mu, m.precision, m.c, m.joint, m.rows, m.components, m.row_offset, m.own, m.log2_own, *saved
    own = *common, by.joint, by.information, by.marginals, stride
    meta = {"HAS_OWN": m.log_weights is None, "BLOCK": block}
    launch(_rows, (triton.cdiv(m.rows, block),), z, *own, by.prior, joint[0], marginal[0], targets[0], m.dims, **meta)
    grid = (triton.cdiv(m.components, block),)
    launch(_columns, grid, z, *own, *joint[1:], *marginal[1:], *targets[1:], m.dims, **meta)
    d_z, d_mu, d_logvar = (deliver(out, to) for out, to in zip(outputs, targets, strict=True))
    return d_z, d_mu, d_logvar
