"""The operators: for each its schema, its fake, and its autograd.Function. The table of contents of the kernels.

Kernels register their implementation under these schemas: C++ ones when fastib._C is loaded, the plain-PyTorch
`reference.KERNELS` beneath them. Only this file calls torch.ops.fastib. `reduction` is a `Reduction`, and `scale`
multiplies what it gives; a `floor` above 0 holds for each element before that. Noise comes from `noise`, or else from `rng`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import Function

from fastib import reference
from fastib._arguments import Reduction, accumulate_dtype

_Fake = TypeVar("_Fake", bound=Callable[..., Any])


class _NoSecondDerivative(Function):
    """The identity of the first `count` tensors, as a function of them all, whose derivative raises."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Any) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("fastib's gradients are once differentiable: second derivatives are not offered")


def _once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Gives `backward(ctx, saved, *grads)` its saved tensors, and makes a second derivative raise.

    The guard is a function of all that the gradients depend on, so it lies on every path from them to an input. An
    incoming gradient that is handed on as it came needs none.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> Any:
        saved = ctx.saved_tensors  # once: activation checkpointing gives them out only once
        if not torch.is_grad_enabled():  # no graph of the gradients is asked for: the usual case
            return backward(ctx, saved, *grads)
        with torch.no_grad():
            results = backward(ctx, saved, *grads)
        bare = [t for t in results if t is not None and not any(t is grad for grad in grads)]
        guarded = _NoSecondDerivative.apply(len(bare), *bare, *saved, *grads) if bare else ()
        guard_of = dict(zip(map(id, bare), guarded, strict=True))
        return tuple(guard_of.get(id(t), t) for t in results)

    return wrapper


_library = torch.library.Library("fastib", "DEF")


def _operator(schema: str) -> Callable[[_Fake], _Fake]:
    """Defines an operator and stands for it: the decorated function is its fake, the reference its last resort."""
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, reference.KERNELS[name], "CompositeExplicitAutograd")
    # The autograd.Functions below do what the Autograd key would; without this, each call pays 8 us for its fallback.
    _library.impl(name, torch.library.fallthrough_kernel, "Autograd")

    def register(fake: _Fake) -> _Fake:
        torch.library.register_fake(f"fastib::{name}", fake, lib=_library)
        return cast(_Fake, getattr(torch.ops.fastib, name).default)

    return register


def _reduced(like: Tensor, reduction: int) -> Tensor:
    dtype = accumulate_dtype(like.dtype)
    if reduction == Reduction.NONE:
        return torch.empty_like(like, dtype=dtype)
    if reduction == Reduction.SUM or like.dim() == 0:
        return like.new_empty((), dtype=dtype)
    return like.new_empty(like.shape[1:] if reduction == Reduction.BATCH else like.shape[:-1], dtype=dtype)


@_operator("philox_words(Tensor rng, int start, int count) -> Tensor")
def philox_words(rng: Tensor, start: int, count: int) -> Tensor:
    return rng.new_empty((count, 4))


@_operator("reparameterize(Tensor mu, Tensor logvar, Tensor? noise, Tensor? rng) -> Tensor")
def reparameterize(mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None) -> Tensor:
    return torch.empty_like(mu)


@_operator("reparameterize_backward(Tensor grad_z, Tensor logvar, Tensor? noise, Tensor? rng) -> Tensor")
def reparameterize_backward(grad_z: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None) -> Tensor:
    return torch.empty_like(logvar)


class Reparameterize(Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None) -> Tensor:
        ctx.save_for_backward(logvar, noise, rng)
        return reparameterize(mu, logvar, noise, rng)

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, saved: tuple[Any, ...], grad_z: Tensor) -> tuple[Tensor | None, ...]:
        logvar, noise, rng = saved
        d_logvar = None
        if ctx.needs_input_grad[1]:
            d_logvar = reparameterize_backward(grad_z, logvar, noise, rng)
        d_noise = reference.noise_grad(grad_z, logvar) if ctx.needs_input_grad[2] else None
        return grad_z, d_logvar, d_noise, None


_DISTRIBUTIONS = "Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar"


@_operator(f"gaussian_kl({_DISTRIBUTIONS}, int reduction, float scale, float floor) -> Tensor")
def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    scale: float,
    floor: float,
) -> Tensor:
    return _reduced(mu, reduction)


@_operator(
    f"gaussian_kl_backward(Tensor grad, {_DISTRIBUTIONS}, int reduction, float scale, float floor, "
    "bool prior_needs_grad) -> (Tensor, Tensor, Tensor, Tensor)"
)
def gaussian_kl_backward(
    grad: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    scale: float,
    floor: float,
    prior_needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    unneeded = mu.new_empty(0), mu.new_empty(0)
    priors = (torch.empty_like(mu), torch.empty_like(mu)) if prior_needs_grad else unneeded
    return torch.empty_like(mu), torch.empty_like(logvar), *priors


class GaussianKL(Function):
    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None, *options: Any
    ) -> Tensor:
        ctx.save_for_backward(mu, logvar, prior_mu, prior_logvar)
        ctx.options = options
        return gaussian_kl(mu, logvar, prior_mu, prior_logvar, *options)

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, saved: tuple[Any, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
        prior_needs_grad = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        mu, logvar, prior_mu, prior_logvar = saved
        grads = gaussian_kl_backward(grad, mu, logvar, prior_mu, prior_logvar, *ctx.options, prior_needs_grad)
        nothing = (None,) * len(ctx.options)
        return *(g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=False)), *nothing


_NOISE = "Tensor? noise, Tensor? rng"


@_operator(
    f"reparameterize_with_kl(Tensor mu, Tensor logvar, {_NOISE}, int reduction, float scale) -> (Tensor, Tensor)"
)
def reparameterize_with_kl(
    mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None, reduction: int, scale: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mu), _reduced(mu, reduction)


@_operator(
    "reparameterize_with_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, "
    f"{_NOISE}, int reduction, float scale) -> (Tensor, Tensor)"
)
def reparameterize_with_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    reduction: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mu), torch.empty_like(logvar)


class ReparameterizeWithKL(Function):
    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        logvar: Tensor,
        noise: Tensor | None,
        rng: Tensor | None,
        reduction: int,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mu, logvar, noise, rng)
        ctx.reduction, ctx.scale = reduction, scale
        ctx.set_materialize_grads(False)
        return reparameterize_with_kl(mu, logvar, noise, rng, reduction, scale)

    @staticmethod
    @_once_differentiable
    def backward(
        ctx: Any, saved: tuple[Any, ...], grad_z: Tensor | None, grad_kl: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad_z is None and grad_kl is None:
            return (None,) * 6
        mu, logvar, noise, rng = saved
        d_mu, d_logvar = reparameterize_with_kl_backward(
            grad_z, grad_kl, mu, logvar, noise, rng, ctx.reduction, ctx.scale
        )
        d_noise = None
        if ctx.needs_input_grad[2] and grad_z is not None:
            d_noise = reference.noise_grad(grad_z, logvar)
        return d_mu, d_logvar, d_noise, None, None, None


@_operator("log_variance_penalty(Tensor logvar, int reduction, float scale) -> Tensor")
def log_variance_penalty(logvar: Tensor, reduction: int, scale: float) -> Tensor:
    return _reduced(logvar, reduction)


class LogVariancePenalty(Function):
    @staticmethod
    def forward(ctx: Any, logvar: Tensor, reduction: int, scale: float) -> Tensor:
        ctx.shape, ctx.dtype, ctx.reduction, ctx.scale = logvar.shape, logvar.dtype, reduction, scale
        return log_variance_penalty(logvar, reduction, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # linear: autograd differentiates it again
        grad = (grad * (-0.5 * ctx.scale)).to(ctx.dtype)
        if ctx.reduction == Reduction.SAMPLE and ctx.shape:
            grad = grad.unsqueeze(-1)
        return grad.expand(ctx.shape), None, None  # constant along what was reduced: no memory


_DROPOUT = (
    "Tensor x, Tensor log_std, Tensor? prior_mean, Tensor? prior_log_std, "
    f"{_NOISE}, bool log_normal, bool mask_zero, bool mean_one, int reduction, float scale"
)


@_operator(f"information_dropout({_DROPOUT}) -> (Tensor, Tensor)")
def information_dropout(x: Tensor, log_std: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _reduced(x, rest[-2])


@_operator(
    f"information_dropout_backward(Tensor? grad_z, Tensor? grad_kl, {_DROPOUT}) -> (Tensor, Tensor, Tensor, Tensor)"
)
def information_dropout_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, x: Tensor, log_std: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = accumulate_dtype(x.dtype)
    return torch.empty_like(x), torch.empty_like(log_std), x.new_empty((), dtype=dtype), x.new_empty((), dtype=dtype)


class InformationDropout(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_std: Tensor,
        prior_mean: Tensor | None,
        prior_log_std: Tensor | None,
        noise: Tensor | None,
        rng: Tensor | None,
        *options: Any,
    ) -> tuple[Tensor, Tensor]:
        tensors = x, log_std, prior_mean, prior_log_std, noise, rng
        ctx.save_for_backward(*tensors)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return information_dropout(*tensors, *options)

    @staticmethod
    @_once_differentiable
    def backward(
        ctx: Any, saved: tuple[Any, ...], grad_z: Tensor | None, grad_kl: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        nothing = (None,) * (1 + len(ctx.options))
        if grad_z is None and grad_kl is None:
            return None, None, None, None, None, *nothing
        d_x, d_log_std, d_mean, d_prior_log_std = information_dropout_backward(grad_z, grad_kl, *saved, *ctx.options)
        x, log_std, prior_mean, prior_log_std, noise, _ = saved
        d_noise = None
        if ctx.needs_input_grad[4] and grad_z is not None:
            d_noise = reference.dropout_noise_grad(grad_z, x, log_std, noise, mean_one=ctx.options[2])
        return (
            d_x,
            d_log_std,
            None if prior_mean is None else d_mean.to(prior_mean.dtype).reshape(prior_mean.shape),
            None if prior_log_std is None else d_prior_log_std.to(prior_log_std.dtype).reshape(prior_log_std.shape),
            d_noise,
            *nothing,
        )
