"""The operators: for each its schema, its fake, and its autograd.Function. The table of contents of the kernels.

Kernels register their implementation under these schemas: C++ and CUDA ones when fastib._C and fastib._C_cuda are
loaded, Triton's where `_backends` says, the plain-PyTorch `_fallback.KERNELS` beneath them. Only this file calls
torch.ops.fastib. `reduction` is a `Reduction`, and `scale` multiplies what it gives; a `floor` above 0 holds for each
element before that. Noise comes from `noise`, or else from `rng`. `wanted` has bit i set where gradient i is wanted; the
others are empty tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import Function

from fastib import _backends, _fallback, _formulas
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
    _library.impl(name, _fallback.KERNELS[name], "CompositeExplicitAutograd")
    for key in _backends.TRITON_KEYS:
        _library.impl(name, _backends.triton_kernel(name), key)
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
        d_noise = _fallback.noise_grad(grad_z, logvar) if ctx.needs_input_grad[2] else None
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


def _gradients(wanted: int, *like: Tensor | None) -> tuple[Tensor, ...]:
    """The fakes of gradients like those of `like` that are wanted."""
    return tuple(
        torch.empty_like(cast(Tensor, t)) if wanted >> i & 1 else cast(Tensor, like[0]).new_empty(0)
        for i, t in enumerate(like)
    )


@_operator(
    f"gaussian_kl_backward(Tensor grad, {_DISTRIBUTIONS}, int reduction, float scale, float floor, int wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
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
    wanted: int,
) -> tuple[Tensor, ...]:
    return _gradients(wanted, mu, logvar, prior_mu, prior_logvar)


def _over_leading(shape: torch.Size, of: torch.Size) -> bool:
    """Whether a tensor of `shape` broadcasts to `of` over leading dimensions alone."""
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape == of[len(of) - len(shape) :]


def _gradient_of_broadcast(which: int, grad: Tensor, distributions: Sequence[Any], options: Sequence[Any]) -> Tensor:
    """The gradient by a prior broadcast over any dimensions: the operator's, after those became the leading ones."""
    reduction, scale, floor = options
    mu, prior = distributions[0], distributions[which]
    full = prior.reshape((1,) * (mu.dim() - prior.dim()) + prior.shape)
    order = [d for d in range(mu.dim()) if full.shape[d] == 1] + [d for d in range(mu.dim()) if full.shape[d] != 1]
    grad = _formulas.spread(grad, mu.shape, reduction).permute(order)
    mu, logvar, prior_mu, prior_logvar = (
        full.permute(order) if t is prior else t.expand(mu.shape).permute(order) for t in distributions
    )
    wanted = 1 << which
    result = gaussian_kl_backward(grad, mu, logvar, prior_mu, prior_logvar, Reduction.NONE, scale, floor, wanted)[which]
    return result.permute([order.index(d) for d in range(mu.dim())]).reshape(prior.shape)


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
        mu, logvar, prior_mu, prior_logvar = saved
        reduction, scale, floor = ctx.options
        needed = ctx.needs_input_grad[:4]
        if prior_mu is None:  # the usual case, and short
            wanted = needed[0] + 2 * needed[1]
            d_mu, d_logvar, *_ = gaussian_kl_backward(grad, mu, logvar, None, None, reduction, scale, floor, wanted)
            return d_mu if needed[0] else None, d_logvar if needed[1] else None, None, None, None, None, None
        elsewhere = [i for i in (2, 3) if needed[i] and not _over_leading(saved[i].shape, mu.shape)]
        wanted = sum(1 << i for i in range(4) if needed[i] and i not in elsewhere)
        grads = list(gaussian_kl_backward(grad, mu, logvar, prior_mu, prior_logvar, reduction, scale, floor, wanted))
        for i in elsewhere:
            grads[i] = _gradient_of_broadcast(i, grad, saved, ctx.options)
        return *(g if n else None for g, n in zip(grads, needed, strict=True)), None, None, None


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
    f"{_NOISE}, int reduction, float scale, int wanted) -> (Tensor, Tensor)"
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
    wanted: int,
) -> tuple[Tensor, ...]:
    return _gradients(wanted, mu, logvar)


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
        by_mu, by_logvar, by_noise, *_ = ctx.needs_input_grad
        d_mu, d_logvar = reparameterize_with_kl_backward(
            grad_z, grad_kl, mu, logvar, noise, rng, ctx.reduction, ctx.scale, by_mu + 2 * by_logvar
        )
        d_noise = None
        if by_noise and grad_z is not None:
            d_noise = _fallback.noise_grad(grad_z, logvar)
        return d_mu if by_mu else None, d_logvar if by_logvar else None, d_noise, None, None, None


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
    f"information_dropout_backward(Tensor? grad_z, Tensor? grad_kl, {_DROPOUT}, int wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
def information_dropout_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, x: Tensor, log_std: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    dtype = accumulate_dtype(x.dtype)
    return *_gradients(rest[-1], x, log_std), x.new_empty((), dtype=dtype), x.new_empty((), dtype=dtype)


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
        by_x, by_log_std, *_ = ctx.needs_input_grad
        d_x, d_log_std, d_mean, d_prior_log_std = information_dropout_backward(
            grad_z, grad_kl, *saved, *ctx.options, by_x + 2 * by_log_std
        )
        x, log_std, prior_mean, prior_log_std, noise, _ = saved
        d_noise = None
        if ctx.needs_input_grad[4] and grad_z is not None:
            d_noise = _fallback.dropout_noise_grad(grad_z, x, log_std, noise, mean_one=ctx.options[2])
        return (
            d_x if by_x else None,
            d_log_std if by_log_std else None,
            None if prior_mean is None else d_mean.to(prior_mean.dtype).reshape(prior_mean.shape),
            None if prior_log_std is None else d_prior_log_std.to(prior_log_std.dtype).reshape(prior_log_std.shape),
            d_noise,
            *nothing,
        )


_MIXTURE = "Tensor z, Tensor mu, Tensor logvar"
_WEIGHTS = "float w_self, float w_other"
_SUMMATION = "int row_offset, int algorithm, bool joint"


def _saved(z: Tensor) -> Tensor:
    """What the backward wants to know of each row and dimension, and of each row's joint. Each backend has its own."""
    return z.new_empty((z.shape[0], 2 * z.shape[1] + 2), dtype=accumulate_dtype(z.dtype))


@_operator(
    f"aggregate_posterior({_MIXTURE}, Tensor? log_weights, {_WEIGHTS}, {_SUMMATION}) -> (Tensor, Tensor, Tensor)"
)
def aggregate_posterior(z: Tensor, mu: Tensor, logvar: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulate_dtype(z.dtype)
    rows = z.shape[0] if rest[-1] else 0
    return z.new_empty(rows, dtype=dtype), z.new_empty(z.shape, dtype=dtype), _saved(z)


@_operator(
    f"aggregate_posterior_backward(Tensor? grad_log_qz, Tensor? grad_log_qz_marginals, {_MIXTURE}, "
    f"Tensor? log_weights, Tensor saved, {_WEIGHTS}, {_SUMMATION}) -> (Tensor, Tensor, Tensor)"
)
def aggregate_posterior_backward(
    grad_log_qz: Tensor | None, grad_log_qz_marginals: Tensor | None, z: Tensor, mu: Tensor, logvar: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(z), torch.empty_like(mu), torch.empty_like(logvar)


class AggregatePosterior(Function):
    """Without `joint` the first result is empty."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, mu: Tensor, logvar: Tensor, log_weights: Tensor | None, *options: Any
    ) -> tuple[Tensor, Tensor]:
        log_qz, log_qz_marginals, saved = aggregate_posterior(z, mu, logvar, log_weights, *options)
        ctx.save_for_backward(z, mu, logvar, log_weights, saved)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return log_qz, log_qz_marginals

    @staticmethod
    @_once_differentiable
    def backward(
        ctx: Any, saved: tuple[Any, ...], grad_log_qz: Tensor | None, grad_marginals: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        nothing = (None,) * (1 + len(ctx.options))
        if grad_log_qz is None and grad_marginals is None:
            return None, None, None, *nothing
        grads = aggregate_posterior_backward(grad_log_qz, grad_marginals, *saved, *ctx.options)
        return *grads, *nothing


@_operator(
    f"elbo_decomposition({_MIXTURE}, {_WEIGHTS}, int row_offset, int reduction, float scale, int algorithm) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
def elbo_decomposition(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    w_self: float,
    w_other: float,
    row_offset: int,
    reduction: int,
    scale: float,
    algorithm: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape, dtype = z.shape[:1] if reduction == Reduction.NONE else (), accumulate_dtype(z.dtype)
    mi, tc, kl = (z.new_empty(shape, dtype=dtype) for _ in range(3))
    return mi, tc, kl, _saved(z)


@_operator(
    f"elbo_decomposition_backward(Tensor? grad_mi, Tensor? grad_tc, Tensor? grad_kl, {_MIXTURE}, Tensor saved, "
    f"{_WEIGHTS}, int row_offset, int reduction, float scale, int algorithm) -> (Tensor, Tensor, Tensor)"
)
def elbo_decomposition_backward(
    grad_mi: Tensor | None,
    grad_tc: Tensor | None,
    grad_kl: Tensor | None,
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(z), torch.empty_like(mu), torch.empty_like(logvar)


class ELBODecomposition(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, mu: Tensor, logvar: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
        mi, tc, kl, saved = elbo_decomposition(z, mu, logvar, *options)
        ctx.save_for_backward(z, mu, logvar, saved)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return mi, tc, kl

    @staticmethod
    @_once_differentiable
    def backward(ctx: Any, saved: tuple[Any, ...], *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * len(ctx.options)
        if all(grad is None for grad in grads):
            return None, None, None, *nothing
        mi, tc, kl = grads
        return *elbo_decomposition_backward(mi, tc, kl, *saved, *ctx.options), *nothing
