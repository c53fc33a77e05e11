"""Log densities of points under a mixture of diagonal Gaussians, jointly and for each dimension."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastib._arguments import accumulate_dtype
from fastib._formulas import estimator_weights

from . import _joint, _marginals
from ._gradients import RowGradients, gradients
from ._launch import bits
from ._mixture import Mixture, Saved, pack, saved_of
from ._tuning import launch_pairs


def joint(m: Mixture, saved: Saved, logs: Tensor | None, information: Tensor | None) -> None:
    tensors = m.z, m.mu, m.precision, m.joint, m.log_weights, m.largest
    logs_of = bits(m.log_base), bits(-0.5 * m.dims * math.log(2 * math.pi))
    outputs = *saved[:2], logs, information
    launch_pairs(_joint.forward, m.rows, m.components, 1, m.z, *tensors, *m.numbers(), *logs_of, *outputs, m.dims)


def marginals(m: Mixture, saved: Saved, logs: Tensor | None) -> None:
    inputs = *m.tensors(), *m.numbers(), bits(m.log_base)
    launch_pairs(_marginals.forward, m.rows, m.components, m.dims, m.z, *inputs, *saved[2:], logs, m.dims)


def aggregate_posterior(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    estimator: int,
    dataset_size: int,
    w_self: float,
    w_other: float,
    row_offset: int,
    algorithm: int,
    of_joint: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = estimator_weights(estimator, dataset_size, mu.shape[0], (w_self, w_other))
    m = pack(z, mu, logvar, log_weights, weights, row_offset)
    dtype = accumulate_dtype(z.dtype)
    log_qz = z.new_empty(m.rows if of_joint else 0, dtype=dtype)
    log_qz_marginals = torch.empty(z.shape, dtype=dtype, device=z.device)
    memory = z.new_empty((m.rows, 2 * m.dims + 2), dtype=dtype)
    saved = saved_of(memory)
    marginals(m, saved, log_qz_marginals)
    if of_joint:
        joint(m, saved, log_qz, None)
    else:
        saved.joint_offsets.zero_(), saved.joint_sums.zero_()
    return log_qz, log_qz_marginals, memory


def aggregate_posterior_backward(
    grad_log_qz: Tensor | None,
    grad_log_qz_marginals: Tensor | None,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    log_weights: Tensor | None,
    memory: Tensor,
    estimator: int,
    dataset_size: int,
    w_self: float,
    w_other: float,
    row_offset: int,
    algorithm: int,
    of_joint: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = estimator_weights(estimator, dataset_size, mu.shape[0], (w_self, w_other))
    m = pack(z, mu, logvar, log_weights, weights, row_offset)
    by_joint = grad_log_qz.contiguous() if of_joint and grad_log_qz is not None else None
    by_marginals = None if grad_log_qz_marginals is None else grad_log_qz_marginals.t().contiguous()
    return gradients(m, saved_of(memory), RowGradients(by_joint, None, by_marginals, None), z, mu, logvar)
