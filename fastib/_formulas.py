"""The formulas in plain PyTorch, on arguments that are already checked: what `reference` and `_fallback` are made of.

They are documented, with their sources, in `fastib.functional`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastib._arguments import Estimator, Reduction, accumulate_dtype


def upcast(*tensors: Tensor) -> list[Tensor]:
    """Each in the dtype in which it is summed."""
    return [t.to(accumulate_dtype(t.dtype)) for t in tensors]


def reduce(values: Tensor, kind: int, divisor: int) -> Tensor:
    if kind == Reduction.NONE:
        return values
    if kind == Reduction.SUM or values.dim() == 0:
        return values.sum() / number(divisor, values)
    return values.sum(0 if kind == Reduction.BATCH else -1) / number(divisor, values)


def number(n: int, like: Tensor) -> int | Tensor:
    """n, to multiply or divide `like` by: in a graph of torch.compile, torch.vmap knows no symbolic integers."""
    if torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return like.new_full((), n)
    return n


def scale_of(divisor: int) -> float:
    """What kernels multiply by instead."""
    return 1.0 / divisor if divisor else math.nan


def spread(grad: Tensor, shape: torch.Size, kind: int) -> Tensor:
    """The gradient of `reduce`, but for the divisor, as a view."""
    if kind == Reduction.SAMPLE and shape:
        grad = grad.unsqueeze(-1)
    return grad.expand(shape)


def kl_elements(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None) -> Tensor:
    m, lv = upcast(mu, logvar)
    if prior_mu is not None:
        m = m - prior_mu.to(m.dtype)
    if prior_logvar is None:
        return (m**2 + torch.expm1(lv) - lv) / 2
    d = lv - prior_logvar.to(lv.dtype)
    return (torch.expm1(d) - d + m**2 * torch.exp(-prior_logvar.to(lv.dtype))) / 2


def dropout(
    x: Tensor,
    log_std: Tensor,
    noise: Tensor,
    prior_mean: Tensor | None,
    prior_log_std: Tensor | None,
    log_normal: bool,
    mask_zero: bool,
    mean_one: bool,
) -> tuple[Tensor, Tensor]:
    std = torch.exp(log_std)
    shift = std**2 / 2 if mean_one else torch.zeros_like(std)
    z = x * torch.exp(std * noise - shift)
    if not log_normal:
        return z, torch.where(x > 0, -log_std, 0.0) if mask_zero else -log_std
    assert prior_mean is not None and prior_log_std is not None
    m, s = prior_mean.to(x.dtype).reshape(()), prior_log_std.to(x.dtype).reshape(())
    kl = ((std / torch.exp(s)) ** 2 + ((torch.log(x) - shift - m) / torch.exp(s)) ** 2 - 1) / 2 + s - log_std
    return z, kl


_LOG_2PI = math.log(2 * math.pi)


def gaussian_log_density(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """ln N(z; mu, exp(logvar)), element by element."""
    u = (z - mu) * torch.exp(-logvar / 2)
    return -(u**2 + logvar + _LOG_2PI) / 2


def pairs(z: Tensor, mu: Tensor, logvar: Tensor) -> Tensor:
    """ln N(z_id; mu_jd, exp(logvar_jd)), [S, N', D]."""
    return gaussian_log_density(z[:, None], mu, logvar)


def estimator_weights(
    estimator: int, size: int, batch: int, given: tuple[float, float] = (1.0, 1.0)
) -> tuple[float, float]:
    """(w_self, w_other): what a row's own component weighs in its mixture, and what each of the others does."""
    if estimator == Estimator.GIVEN:
        return given
    if estimator == Estimator.LEAVE_ONE_OUT:
        return 0.0, 1 / (batch - 1)
    if estimator == Estimator.MWS:
        return 1 / (size * batch), 1 / (size * batch)
    if estimator == Estimator.IN_BATCH or size == batch:  # equal: no row needs a component of its own
        return 1 / batch, 1 / batch
    return 1 / size, (size - 1) / (size * (batch - 1))


def log_weights(
    z: Tensor, mu: Tensor, log_weights: Tensor | None, weights: tuple[float, float], row_offset: int
) -> Tensor:
    """The logarithms of the weights, [S, N']."""
    if log_weights is not None:
        return log_weights.to(z.dtype)
    w_self, w_other = weights
    own = torch.arange(z.shape[0], device=z.device)[:, None] + row_offset
    is_own = own == torch.arange(mu.shape[0], device=z.device)
    return torch.log(torch.where(is_own, z.new_full((), w_self), z.new_full((), w_other)))


def mixture(pairs: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    return (
        torch.logsumexp(pairs.sum(-1) + log_weights, 1),
        torch.logsumexp(pairs + log_weights[:, :, None], 1),
    )


def decompose(
    z: Tensor, mu: Tensor, logvar: Tensor, row_offset: int, log_q: Tensor, log_q_marginals: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mutual information, total correlation and dimension-wise KL of each sample."""
    own = slice(row_offset, row_offset + z.shape[0])
    marginals = log_q_marginals.sum(-1)
    log_q_given_x = gaussian_log_density(z, mu[own], logvar[own]).sum(-1)
    log_p = -(z**2 + _LOG_2PI).sum(-1) / 2
    return log_q_given_x - log_q, log_q - marginals, marginals - log_p
