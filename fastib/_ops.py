"""The operators: for each its schema, its fake, and its gradients. The table of contents of the kernels.

Kernels register their implementation under these schemas: C++ and CUDA ones when fastib._C and fastib._C_cuda are
loaded, Triton's where `_backends` says, the plain-PyTorch `_fallback.KERNELS` beneath them. Only this file calls
torch.ops.fastib. `reduction` is a `Reduction`, and `divisor` divides what it gives; a `floor` above 0 holds for each
element before that. Noise comes from `noise`, or else from `rng`. `wanted` has bit i set where gradient i is wanted;
the others are empty tensors.

Operators trust their callers: wrong shapes, dtypes or strides of theirs may crash the process. The boundary that is
checked is the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from fastib import _backends, _fallback, _formulas, _vmap
from fastib._arguments import Reduction, accumulate_dtype
from fastib._derivatives import Differentiable, Grads, Needed, Options, Tensors, differentiable

_Fake = TypeVar("_Fake", bound=Callable[..., Any])


_library = torch.library.Library("fastib", "DEF")


def _operator(schema: str) -> Callable[[_Fake], _Fake]:
    """Defines an operator and stands for it: the decorated function is its fake, the reference its last resort."""
    name = schema.partition("(")[0]
    _library.define(schema)
    for key in _backends.TRITON_KEYS if name in _fallback.KERNELS else ():
        _library.impl(name, _backends.triton_kernel(name), key)
    # The classes below do what the Autograd key would; without this, each call pays 8 us for its fallback.
    _library.impl(name, torch.library.fallthrough_kernel, "Autograd")

    def register(fake: _Fake) -> _Fake:
        operator = getattr(torch.ops.fastib, name).default
        kernel = _fallback.EVERYWHERE.get(name) or _filling(fake, _fallback.KERNELS[name])
        _library.impl(name, kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(operator, fake, lib=_library)
        torch.library.register_vmap(operator, _vmap.rule(name, operator), lib=_library)
        return cast(_Fake, operator)

    return register


def _filling(fake: Callable[..., Any], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, with results that lie in memory as the fake says."""

    def filled(*args: Any) -> Any:
        values, results = kernel(*args), fake(*args)
        if isinstance(results, Tensor):
            return results.copy_(values)
        return tuple(result.copy_(value) for result, value in zip(results, values, strict=True))

    return filled


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


@_operator("noise_grad(Tensor grad_z, Tensor logvar) -> Tensor")
def noise_grad(grad_z: Tensor, logvar: Tensor) -> Tensor:
    """An operator for the bits alone: torch.compile has an exponential of its own."""
    return _fallback.noise_grad(grad_z, logvar)


@_operator("dropout_noise_grad(Tensor grad_z, Tensor x, Tensor log_std, Tensor noise, bool mean_one) -> Tensor")
def dropout_noise_grad(grad_z: Tensor, x: Tensor, log_std: Tensor, noise: Tensor, mean_one: bool) -> Tensor:
    return _fallback.dropout_noise_grad(grad_z, x, log_std, noise, mean_one)


@differentiable(
    reparameterize, tensors=4, of_first=(2,), kept=lambda mu, logvar, noise, rng: (logvar, logvar, noise, rng)
)
class Reparameterize(Differentiable):
    @staticmethod
    def forward(mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None) -> Tensor:
        return reparameterize(mu, logvar, noise, rng)

    @staticmethod
    def gradients(needed: Needed, grads: Grads, tensors: Tensors, options: Options) -> Grads:
        _, logvar, noise, rng = tensors
        (grad_z,) = grads
        d_logvar = reparameterize_backward(grad_z, logvar, noise, rng) if needed[1] else None
        d_noise = noise_grad(grad_z, logvar) if needed[2] else None
        return grad_z, d_logvar, d_noise, None


_DISTRIBUTIONS = "Tensor mu, Tensor logvar, Tensor? prior_mu, Tensor? prior_logvar"


@_operator(f"gaussian_kl({_DISTRIBUTIONS}, int reduction, SymInt divisor, float floor) -> Tensor")
def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    divisor: int,
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
    f"gaussian_kl_backward(Tensor grad, {_DISTRIBUTIONS}, int reduction, SymInt divisor, float floor, int wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
def gaussian_kl_backward(
    grad: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    reduction: int,
    divisor: int,
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
    reduction, divisor, floor = options
    mu, prior = distributions[0], distributions[which]
    full = prior.reshape((1,) * (mu.dim() - prior.dim()) + prior.shape)
    order = [d for d in range(mu.dim()) if full.shape[d] == 1] + [d for d in range(mu.dim()) if full.shape[d] != 1]
    grad = _formulas.spread(grad / divisor, mu.shape, reduction).permute(order)
    mu, logvar, prior_mu, prior_logvar = (
        full.permute(order) if t is prior else t.expand(mu.shape).permute(order) for t in distributions
    )
    wanted = 1 << which
    result = gaussian_kl_backward(grad, mu, logvar, prior_mu, prior_logvar, Reduction.NONE, 1, floor, wanted)[which]
    return result.permute([order.index(d) for d in range(mu.dim())]).reshape(prior.shape)


@differentiable(gaussian_kl, tensors=4)
class GaussianKL(Differentiable):
    @staticmethod
    def forward(
        mu: Tensor,
        logvar: Tensor,
        prior_mu: Tensor | None,
        prior_logvar: Tensor | None,
        reduction: int,
        divisor: int,
        floor: float,
    ) -> Tensor:
        return gaussian_kl(mu, logvar, prior_mu, prior_logvar, reduction, divisor, floor)

    @staticmethod
    def gradients(needed: Needed, grads: Grads, tensors: Tensors, options: Options) -> Grads:
        mu, logvar, prior_mu, prior_logvar = tensors
        (grad,), (reduction, divisor, floor) = grads, options
        if prior_mu is None:  # the usual case, and short
            wanted = needed[0] + 2 * needed[1]
            d_mu, d_logvar, *_ = gaussian_kl_backward(grad, mu, logvar, None, None, reduction, divisor, floor, wanted)
            return d_mu if needed[0] else None, d_logvar if needed[1] else None, None, None
        elsewhere = [i for i in (2, 3) if needed[i] and not _over_leading(tensors[i].shape, mu.shape)]
        wanted = sum(1 << i for i in range(4) if needed[i] and i not in elsewhere)
        results = list(
            gaussian_kl_backward(grad, mu, logvar, prior_mu, prior_logvar, reduction, divisor, floor, wanted)
        )
        for i in elsewhere:
            results[i] = _gradient_of_broadcast(i, grad, tensors, options)
        return tuple(g if n else None for g, n in zip(results, needed, strict=True))


@_operator("floored_sum(Tensor values, float floor) -> Tensor")
def floored_sum(values: Tensor, floor: float) -> Tensor:
    """An operator for the bits alone: torch.compile would sum in an order of its own."""
    return values.new_empty(())


@differentiable(floored_sum, tensors=1)
class FlooredSum(Differentiable):
    @staticmethod
    def forward(values: Tensor, floor: float) -> Tensor:
        return floored_sum(values, floor)

    @staticmethod
    def gradients(needed: Needed, grads: Grads, tensors: Tensors, options: Options) -> Grads:
        (values,), (grad,), (floor,) = tensors, grads, options
        return (torch.where(values >= floor, grad, 0.0),)


@_operator("snapshot(Tensor value) -> Tensor")
def snapshot(value: Tensor) -> Tensor:
    """A copy that torch.compile doesn't make again in the backward pass, when the original may have changed."""
    return torch.empty_like(value)


_NOISE = "Tensor? noise, Tensor? rng"


@_operator(
    f"reparameterize_with_kl(Tensor mu, Tensor logvar, {_NOISE}, int reduction, SymInt divisor) -> (Tensor, Tensor)"
)
def reparameterize_with_kl(
    mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None, reduction: int, divisor: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mu), _reduced(mu, reduction)


@_operator(
    "reparameterize_with_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, "
    f"{_NOISE}, int reduction, SymInt divisor, int wanted) -> (Tensor, Tensor)"
)
def reparameterize_with_kl_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    rng: Tensor | None,
    reduction: int,
    divisor: int,
    wanted: int,
) -> tuple[Tensor, ...]:
    return _gradients(wanted, mu, logvar)


@differentiable(reparameterize_with_kl, tensors=4, of_first=(2,))
class ReparameterizeWithKL(Differentiable):
    @staticmethod
    def forward(
        mu: Tensor, logvar: Tensor, noise: Tensor | None, rng: Tensor | None, reduction: int, divisor: int
    ) -> tuple[Tensor, Tensor]:
        return reparameterize_with_kl(mu, logvar, noise, rng, reduction, divisor)

    @staticmethod
    def gradients(needed: Needed, grads: Grads, tensors: Tensors, options: Options) -> Grads:
        mu, logvar, noise, rng = tensors
        (grad_z, grad_kl), (reduction, divisor) = grads, options
        by_mu, by_logvar, by_noise, _ = needed
        d_mu, d_logvar = reparameterize_with_kl_backward(
            grad_z, grad_kl, mu, logvar, noise, rng, reduction, divisor, by_mu + 2 * by_logvar
        )
        d_noise = noise_grad(grad_z, logvar) if by_noise else None
        return d_mu if by_mu else None, d_logvar if by_logvar else None, d_noise, None


@_operator("log_variance_penalty(Tensor logvar, int reduction, SymInt divisor) -> Tensor")
def log_variance_penalty(logvar: Tensor, reduction: int, divisor: int) -> Tensor:
    return _reduced(logvar, reduction)


@_operator("log_variance_penalty_backward(Tensor grad, Tensor logvar, int reduction, SymInt divisor) -> Tensor")
def log_variance_penalty_backward(grad: Tensor, logvar: Tensor, reduction: int, divisor: int) -> Tensor:
    """Constant along what was reduced: no memory. An operator for torch.compile alone, which loses a size on the
    way."""
    return _formulas.spread(grad.to(logvar.dtype, copy=True), logvar.shape, reduction)


def _of_shape(t: Tensor) -> Tensor:
    """What has the shape of `t` and no memory."""
    return t.new_empty_strided(t.shape, (0,) * t.dim())


@differentiable(log_variance_penalty, tensors=1, kept=lambda logvar: (_of_shape(logvar),))
class LogVariancePenalty(Differentiable):
    @staticmethod
    def forward(logvar: Tensor, reduction: int, divisor: int) -> Tensor:
        return log_variance_penalty(logvar, reduction, divisor)

    @staticmethod
    def gradients(needed: Needed, grads: Grads, tensors: Tensors, options: Options) -> Grads:
        compiling = torch.compiler.is_compiling()
        backward = log_variance_penalty_backward if compiling else _fallback.log_variance_penalty_backward
        return (backward(*grads, *tensors, *options),)


_DROPOUT = (
    "Tensor x, Tensor log_std, Tensor? prior_mean, Tensor? prior_log_std, "
    f"{_NOISE}, bool log_normal, bool mask_zero, bool mean_one, int reduction, SymInt divisor"
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


@differentiable(information_dropout, tensors=6, of_first=(4,))
class InformationDropout(Differentiable):
    @staticmethod
    def forward(
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
        divisor: int,
    ) -> tuple[Tensor, Tensor]:
        tensors = x, log_std, prior_mean, prior_log_std, noise, rng
        return information_dropout(*tensors, log_normal, mask_zero, mean_one, reduction, divisor)

    @staticmethod
    def gradients(needed: Needed, grads: Grads, tensors: Tensors, options: Options) -> Grads:
        by_x, by_log_std, by_mean, by_prior_log_std, by_noise, _ = needed
        d_x, d_log_std, d_mean, d_prior_log_std = information_dropout_backward(
            *grads, *tensors, *options, by_x + 2 * by_log_std
        )
        x, log_std, prior_mean, prior_log_std, noise, _ = tensors
        d_noise = None
        if by_noise:
            d_noise = dropout_noise_grad(grads[0], x, log_std, noise, options[2])
        return (
            d_x if by_x else None,
            d_log_std if by_log_std else None,
            d_mean.to(prior_mean.dtype).reshape(prior_mean.shape) if by_mean else None,
            d_prior_log_std.to(prior_log_std.dtype).reshape(prior_log_std.shape) if by_prior_log_std else None,
            d_noise,
            None,
        )


_MIXTURE = "Tensor z, Tensor mu, Tensor logvar"
_ESTIMATOR = "int estimator, SymInt dataset_size"  # an `Estimator`
_SUMMATION = f"{_ESTIMATOR}, float w_self, float w_other, SymInt row_offset, int algorithm, bool joint"
_DECOMPOSITION = f"{_ESTIMATOR}, SymInt row_offset, int reduction, SymInt divisor, int algorithm"


def _saved(z: Tensor) -> Tensor:
    """What the backward wants to know of each row and dimension, and of each row's joint. Each backend has its own."""
    return z.new_empty((z.shape[0], 2 * z.shape[1] + 2), dtype=accumulate_dtype(z.dtype))


@_operator(f"aggregate_posterior({_MIXTURE}, Tensor? log_weights, {_SUMMATION}) -> (Tensor, Tensor, Tensor)")
def aggregate_posterior(z: Tensor, mu: Tensor, logvar: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulate_dtype(z.dtype)
    rows = z.shape[0] if rest[-1] else 0
    return z.new_empty(rows, dtype=dtype), z.new_empty(z.shape, dtype=dtype), _saved(z)


@_operator(
    f"aggregate_posterior_backward(Tensor? grad_log_qz, Tensor? grad_log_qz_marginals, {_MIXTURE}, "
    f"Tensor? log_weights, Tensor saved, {_SUMMATION}) -> (Tensor, Tensor, Tensor)"
)
def aggregate_posterior_backward(
    grad_log_qz: Tensor | None, grad_log_qz_marginals: Tensor | None, z: Tensor, mu: Tensor, logvar: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(z), torch.empty_like(mu), torch.empty_like(logvar)


@differentiable(aggregate_posterior, tensors=4, results=2)
class AggregatePosterior(Differentiable):
    """Without `joint` the first result is empty."""

    @staticmethod
    def forward(
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
        joint: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = log_weights, estimator, dataset_size, w_self, w_other
        return aggregate_posterior(z, mu, logvar, *weights, row_offset, algorithm, joint)

    @staticmethod
    def gradients(needed: Needed, grads: Grads, tensors: Tensors, options: Options) -> Grads:
        return *aggregate_posterior_backward(*grads, *tensors, *options), None


@_operator(f"elbo_decomposition({_MIXTURE}, {_DECOMPOSITION}) -> (Tensor, Tensor, Tensor, Tensor)")
def elbo_decomposition(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    estimator: int,
    dataset_size: int,
    row_offset: int,
    reduction: int,
    divisor: int,
    algorithm: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape, dtype = z.shape[:1] if reduction == Reduction.NONE else (), accumulate_dtype(z.dtype)
    mi, tc, kl = (z.new_empty(shape, dtype=dtype) for _ in range(3))
    return mi, tc, kl, _saved(z)


@_operator(
    f"elbo_decomposition_backward(Tensor? grad_mi, Tensor? grad_tc, Tensor? grad_kl, {_MIXTURE}, Tensor saved, "
    f"{_DECOMPOSITION}) -> (Tensor, Tensor, Tensor)"
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


@differentiable(elbo_decomposition, tensors=3, results=3)
class ELBODecomposition(Differentiable):
    @staticmethod
    def forward(
        z: Tensor,
        mu: Tensor,
        logvar: Tensor,
        estimator: int,
        dataset_size: int,
        row_offset: int,
        reduction: int,
        divisor: int,
        algorithm: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        options = estimator, dataset_size, row_offset, reduction, divisor, algorithm
        return elbo_decomposition(z, mu, logvar, *options)

    @staticmethod
    def gradients(needed: Needed, grads: Grads, tensors: Tensors, options: Options) -> Grads:
        return elbo_decomposition_backward(*grads, *tensors, *options)
