"""The public functions in plain PyTorch: same names, same arguments, same results, no kernel.

They are the oracle of the tests, the baseline of the benches (with `noise=torch.randn_like(mu)`), and, at the end of
this file, the kernels of last resort, for devices that have no compiled ones. The formulas are documented in
`fastib.functional`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastib import _arguments, _rng
from fastib._arguments import Reduction, accumulate_dtype


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng: Tensor | None = None,
) -> Tensor:
    """See `fastib.reparameterize`."""
    _arguments.check_noisy("mu", mu, "logvar", logvar, noise)
    noise = _noise(mu, noise, generator, rng)
    m, lv, eps = _accumulate(mu, logvar, noise)
    return (m + torch.exp(lv / 2) * eps).to(mu.dtype)


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    reduction: str = "batchmean",
    free_bits: float = 0.0,
    free_bits_per: str = "dimension",
) -> Tensor:
    """See `fastib.gaussian_kl`."""
    _arguments.check_floating("mu", mu)
    _arguments.check_like("logvar", logvar, "mu", mu)
    for name, prior in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
        if prior is not None:
            _arguments.check_broadcast(name, prior, "mu", mu)
    kind, scale = _arguments.reduction_of(reduction, mu.shape)
    _arguments.check_free_bits(free_bits, free_bits_per, reduction)
    kl = _kl_elements(mu, logvar, prior_mu, prior_logvar)
    if free_bits == 0:
        return _reduce(kl, kind, scale)
    if free_bits_per == "element":
        return _reduce(kl.clamp(min=free_bits), kind, scale)
    batch = _arguments.batch_size(mu.shape)
    mean = _reduce(kl, Reduction.BATCH if free_bits_per == "dimension" else Reduction.SUM, 1 / max(batch, 1))
    return mean.clamp(min=free_bits).sum() * (scale * batch)


def reparameterize_with_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    reduction: str = "batchmean",
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `fastib.reparameterize_with_kl`."""
    kl = gaussian_kl(mu, logvar, reduction=reduction)
    return reparameterize(mu, logvar, noise=noise, generator=generator, rng=rng), kl


def log_variance_penalty(logvar: Tensor, *, reduction: str = "batchmean") -> Tensor:
    """See `fastib.log_variance_penalty`."""
    _arguments.check_floating("logvar", logvar)
    kind, scale = _arguments.reduction_of(reduction, logvar.shape)
    return _reduce(-logvar.to(accumulate_dtype(logvar.dtype)) / 2, kind, scale)


def information_dropout(
    x: Tensor,
    log_std: Tensor,
    *,
    prior: str = "log_uniform",
    prior_mean: Tensor | float | None = None,
    prior_log_std: Tensor | float | None = None,
    mask_zero: bool = True,
    mean_one: bool = False,
    reduction: str = "batchmean",
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See `fastib.information_dropout`."""
    _arguments.check_noisy("x", x, "log_std", log_std, noise)
    _arguments.check_flag("mask_zero", mask_zero)
    _arguments.check_flag("mean_one", mean_one)
    prior_mean, prior_log_std = _arguments.dropout_prior(prior, prior_mean, prior_log_std, x)
    kind, scale = _arguments.reduction_of(reduction, x.shape)
    noise = _noise(x, noise, generator, rng)
    f, a, eps = _accumulate(x, log_std, noise)
    z, kl = _dropout(f, a, eps, prior_mean, prior_log_std, prior == "log_normal", mask_zero, mean_one)
    return z.to(x.dtype), _reduce(kl, kind, scale)


def _noise(x: Tensor, noise: Any, generator: Any, rng: Any) -> Tensor:
    """The noise given, or drawn."""
    rng = _rng.draw(x, noise, generator, rng)
    return noise if rng is None else _rng.normal(rng, x.shape, accumulate_dtype(x.dtype))


def _accumulate(*tensors: Tensor) -> list[Tensor]:
    return [t.to(accumulate_dtype(t.dtype)) for t in tensors]


def _reduce(values: Tensor, kind: int, scale: float) -> Tensor:
    if kind == Reduction.NONE:
        return values
    if kind == Reduction.SUM or values.dim() == 0:
        return values.sum() * scale
    return values.sum(0 if kind == Reduction.BATCH else -1) * scale


def spread(grad: Tensor, shape: torch.Size, kind: int) -> Tensor:
    """The gradient of `_reduce`, but for the scale, as a view."""
    if kind == Reduction.SAMPLE and shape:
        grad = grad.unsqueeze(-1)
    return grad.expand(shape)


def _kl_elements(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None) -> Tensor:
    m, lv = _accumulate(mu, logvar)
    if prior_mu is not None:
        m = m - prior_mu.to(m.dtype)
    if prior_logvar is None:
        return (m**2 + torch.expm1(lv) - lv) / 2
    d = lv - prior_logvar.to(lv.dtype)
    return (torch.expm1(d) - d + m**2 * torch.exp(-prior_logvar.to(lv.dtype))) / 2


def _dropout(
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


# The kernels of last resort. Forward kernels repeat the expressions above on arguments that are already checked;
# backward kernels are the derivatives written out, since nothing records a graph inside an operator.


def _noise_kernel(noise: Tensor | None, rng: Tensor | None, like: Tensor) -> Tensor:
    dtype = accumulate_dtype(like.dtype)
    if noise is not None:
        return noise.to(dtype)
    assert rng is not None
    return _rng.normal(rng, like.shape, dtype)


def _check_reduction_with_noise(reduction: int) -> None:
    if reduction == Reduction.BATCH:  # as the compiled kernels, whose noise comes in groups of elements
        raise RuntimeError("fastib: noise with a reduction over the first dimension")


def _dense(values: Tensor, like: Tensor) -> Tensor:
    """`values` with the dtype and strides that the kernel's output has."""
    return torch.empty_like(like).copy_(values)


def _wanted(wanted: int, *gradients: tuple[Tensor | None, Tensor]) -> tuple[Tensor, ...]:
    """Of pairs of values and what the gradient is like: the gradient, summed where that is broadcast, or nothing."""
    return tuple(
        _dense(values.sum_to_size(like.shape), like) if wanted >> i & 1 and values is not None else like.new_empty(0)
        for i, (values, like) in enumerate(gradients)
    )


def _reparameterize_kernel(mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None) -> Tensor:
    m, lv = _accumulate(mu, logvar)
    return _dense(m + torch.exp(lv / 2) * _noise_kernel(noise, rng, mu), mu)


def _reparameterize_backward(grad_z: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None) -> Tensor:
    g, lv = _accumulate(grad_z, logvar)
    return _dense(g * torch.exp(lv / 2) * _noise_kernel(noise, rng, logvar) / 2, logvar)


def _gaussian_kl_kernel(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    scale: float,
    floor: float,
) -> Tensor:
    kl = _kl_elements(mu, logvar, prior_mu, prior_logvar)
    if floor > 0:
        kl = kl.clamp(min=floor)
    return (
        _dense(kl, torch.empty_like(mu, dtype=kl.dtype))
        if reduction == Reduction.NONE
        else _reduce(kl, reduction, scale)
    )


def _gaussian_kl_backward(
    grad: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    scale: float,
    floor: float,
    wanted: int,
) -> tuple[Tensor, ...]:
    m, lv = _accumulate(mu, logvar)
    g = spread(grad * scale, m.shape, reduction)
    if floor > 0:
        g = torch.where(_kl_elements(mu, logvar, prior_mu, prior_logvar) >= floor, g, 0.0)
    if prior_mu is None or prior_logvar is None:
        return _wanted(wanted, (g * m, mu), (g * (torch.expm1(lv) / 2), logvar), (None, mu), (None, mu))
    p, pl = _accumulate(prior_mu, prior_logvar)
    ratio, by_mu = torch.expm1(lv - pl), (m - p) * torch.exp(-pl)
    by_prior_logvar = -(ratio + (m - p) * by_mu) / 2
    return _wanted(
        wanted, (g * by_mu, mu), (g * (ratio / 2), logvar), (-g * by_mu, prior_mu), (g * by_prior_logvar, prior_logvar)
    )


def _reparameterize_with_kl_kernel(
    mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None, reduction: int, scale: float
) -> tuple[Tensor, Tensor]:
    _check_reduction_with_noise(reduction)
    kl = _gaussian_kl_kernel(mu, logvar, None, None, reduction, scale, 0.0)
    return _reparameterize_kernel(mu, logvar, noise, rng), kl


def _reparameterize_with_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    reduction: int,
    scale: float,
    wanted: int,
) -> tuple[Tensor, ...]:
    m, lv = _accumulate(mu, logvar)
    d_mu, d_logvar = torch.zeros_like(m), torch.zeros_like(lv)
    if grad_z is not None:
        gz = grad_z.to(m.dtype)
        d_mu = d_mu + gz
        d_logvar = d_logvar + gz * torch.exp(lv / 2) * _noise_kernel(noise, rng, mu) / 2
    if grad_kl is not None:
        gk = spread(grad_kl * scale, m.shape, reduction)
        d_mu = d_mu + gk * m
        d_logvar = d_logvar + gk * (torch.expm1(lv) / 2)
    return _wanted(wanted, (d_mu, mu), (d_logvar, logvar))


def _log_variance_penalty_kernel(logvar: Tensor, reduction: int, scale: float) -> Tensor:
    penalty = -logvar.to(accumulate_dtype(logvar.dtype)) / 2
    if reduction == Reduction.NONE:
        return _dense(penalty, torch.empty_like(logvar, dtype=penalty.dtype))
    return _reduce(penalty, reduction, scale)


def _information_dropout_kernel(
    x: Tensor,
    log_std: Tensor,
    prior_mean: Tensor | None,
    prior_log_std: Tensor | None,
    noise: Tensor | None,
    rng: Tensor | None,
    log_normal: bool,
    mask_zero: bool,
    mean_one: bool,
    reduction: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    _check_reduction_with_noise(reduction)
    f, a = _accumulate(x, log_std)
    eps = _noise_kernel(noise, rng, x)
    z, kl = _dropout(f, a, eps, prior_mean, prior_log_std, log_normal, mask_zero, mean_one)
    if reduction == Reduction.NONE:
        return _dense(z, x), _dense(kl, torch.empty_like(x, dtype=kl.dtype))
    return _dense(z, x), _reduce(kl, reduction, scale)


def _information_dropout_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    x: Tensor,
    log_std: Tensor,
    prior_mean: Tensor | None,
    prior_log_std: Tensor | None,
    noise: Tensor | None,
    rng: Tensor | None,
    log_normal: bool,
    mask_zero: bool,
    mean_one: bool,
    reduction: int,
    scale: float,
    wanted: int,
) -> tuple[Tensor, ...]:
    f, a = _accumulate(x, log_std)
    eps = _noise_kernel(noise, rng, x)
    std = torch.exp(a)
    variance = std**2 if mean_one else torch.zeros_like(std)
    d_x, d_log_std = torch.zeros_like(f), torch.zeros_like(a)
    d_mean, d_prior_log_std = f.new_zeros(()), f.new_zeros(())
    if grad_z is not None:
        by_x = grad_z.to(f.dtype) * torch.exp(std * eps - variance / 2)
        d_x = d_x + by_x
        d_log_std = d_log_std + by_x * f * (std * eps - variance)
    if grad_kl is not None:
        g = spread(grad_kl * scale, f.shape, reduction)
        if log_normal:
            assert prior_mean is not None and prior_log_std is not None
            m, inverse = prior_mean.to(f.dtype).reshape(()), torch.exp(-prior_log_std.to(f.dtype).reshape(()))
            deviation, ratio = (torch.log(f) - variance / 2 - m) * inverse, std * inverse
            by_mean = deviation * inverse
            d_x = d_x + g * by_mean / f
            d_log_std = d_log_std + g * (ratio**2 - 1 - variance * by_mean)
            d_mean = -(g * by_mean).sum()
            d_prior_log_std = (g * (1 - ratio**2 - deviation**2)).sum()
        else:
            d_log_std = d_log_std - (torch.where(f > 0, g, 0.0) if mask_zero else g)
    return *_wanted(wanted, (d_x, x), (d_log_std, log_std)), d_mean, d_prior_log_std


# Noise that wants a gradient is rare, and not worth a compiled kernel.


def noise_grad(grad_z: Tensor, logvar: Tensor) -> Tensor:
    """The gradient by the noise of `reparameterize`: dz/dnoise is the standard deviation."""
    g, lv = _accumulate(grad_z, logvar)
    return (g * torch.exp(lv / 2)).to(logvar.dtype)


def dropout_noise_grad(grad_z: Tensor, x: Tensor, log_std: Tensor, noise: Tensor, mean_one: bool) -> Tensor:
    """The gradient by the noise of `information_dropout`."""
    g, f, a, eps = _accumulate(grad_z, x, log_std, noise)
    z, _ = _dropout(f, a, eps, None, None, False, False, mean_one)
    return (g * z * torch.exp(a)).to(noise.dtype)


KERNELS: dict[str, Callable[..., Any]] = {
    "philox_words": _rng.philox_words,
    "reparameterize": _reparameterize_kernel,
    "reparameterize_backward": _reparameterize_backward,
    "gaussian_kl": _gaussian_kl_kernel,
    "gaussian_kl_backward": _gaussian_kl_backward,
    "reparameterize_with_kl": _reparameterize_with_kl_kernel,
    "reparameterize_with_kl_backward": _reparameterize_with_kl_backward,
    "log_variance_penalty": _log_variance_penalty_kernel,
    "information_dropout": _information_dropout_kernel,
    "information_dropout_backward": _information_dropout_backward,
}
