"""The losses as modules, for training loops: each returns the loss to minimise and, beside it, its named terms.

Reconstruction and KL are sums over a sample, averaged over the batch (B, the size of the first dimension), in nats.
Where a weight follows a schedule, call `step()` on the loss after each step of the optimiser.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from fastib import _ops
from fastib._arguments import (
    accumulate_dtype,
    check_choice,
    check_device,
    check_floating,
    check_like,
    check_number,
    decomposition_of_rank,
    estimator_of,
    is_dense,
    wants_gradient,
)
from fastib._derivatives import transforms_are_active
from fastib._formulas import number
from fastib._results import ELBODecomposition, InformationCeiling
from fastib.distributed import Agreement, GlobalBatch, agree_on, check_group, decompose_global
from fastib.functional import elbo_decomposition, gaussian_kl
from fastib.schedules import Linear, Schedule

__all__ = [
    "AnnealedVAELoss",
    "BetaTCVAELoss",
    "BetaTCVAETerms",
    "BetaVAELoss",
    "VAETerms",
]


class VAETerms(NamedTuple):
    """The loss of a VAE and what it is made of: scalars, float32 (float64 for float64), in nats, means of the batch.
    All but `loss` are detached: they are for the log."""

    loss: Tensor
    """What is to be minimised, and has the gradients."""
    reconstruction: Tensor
    """-log p(target | output), for "gaussian" without its constant."""
    kl: Tensor
    """Before it is weighed. Where it was an argument, it is of its own dtype."""


class _VAELoss(nn.Module):
    def __init__(self, likelihood: str) -> None:
        super().__init__()
        check_choice("likelihood", likelihood, _LIKELIHOODS)
        self.likelihood = likelihood

    def step(self) -> None:
        """Advances the schedules: call it once after each step of the optimiser."""
        for module in self.children():
            if isinstance(module, Schedule):
                module.step()

    def _reconstruction(self, output: Tensor, target: Tensor, batch: int | None = None) -> Tensor:
        """-log p(target | output) per sample, averaged over the batch, which may be larger than what is here of it."""
        wide = accumulate_dtype(output.dtype)
        if output.dtype == wide or torch.compiler.is_compiling() or transforms_are_active():
            total = _NEGATIVE_LOG_LIKELIHOODS[self.likelihood](output.to(wide), target.to(wide))
        else:
            total = _OfLowPrecision.apply(output, target, self.likelihood)  # type: ignore[no-untyped-call]
        return total / number(output.shape[0] if batch is None else batch, total)


def _bernoulli(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, target, reduction="sum")


def _gaussian(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target, reduction="sum") / 2


_NEGATIVE_LOG_LIKELIHOODS = {"bernoulli": _bernoulli, "gaussian": _gaussian}  # summed
_LIKELIHOODS = tuple(_NEGATIVE_LOG_LIKELIHOODS)
_PIECE = 2**16  # elements that are in float32 at once


class _OfLowPrecision(torch.autograd.Function):
    """A likelihood in float32 of an output that is not, without a copy of it: piece by piece, in both passes."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor, likelihood: str) -> Tensor:
        ctx.save_for_backward(output, target)
        ctx.likelihood = likelihood
        total = output.new_zeros((), dtype=torch.float32)
        for some, of_target in _pieces(output, target):
            total = total + _NEGATIVE_LOG_LIKELIHOODS[likelihood](some.float(), of_target.float())
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        output, target = ctx.saved_tensors
        by_output, by_target = [output.new_empty(0)], [target.new_empty(0)]
        for some, of_target in _pieces(output, target):
            x, y = some.float(), of_target.float()
            bernoulli = ctx.likelihood == "bernoulli"
            if ctx.needs_input_grad[0]:
                by_output.append((grad * ((torch.sigmoid(x) if bernoulli else x) - y)).to(output.dtype))
            if ctx.needs_input_grad[1]:
                by_target.append((grad * (-x if bernoulli else y - x)).to(target.dtype))
        needed = zip((by_output, by_target), ctx.needs_input_grad, strict=False)
        return *(torch.cat(parts).view(output.shape) if n else None for parts, n in needed), None


def _pieces(output: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(output.reshape(-1).split(_PIECE), target.reshape(-1).split(_PIECE), strict=True)


_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _check(output: Any, target: Any, mu: Any, logvar: Any, kl: Any, per: str, free_bits: float = 0.0) -> None:
    """Checks all that a loss is given, before anything runs."""
    check_floating("output", output)
    if not (isinstance(target, Tensor) and target.dtype in _INTEGERS and is_dense(target)):
        check_floating("target", target)
    if output.shape != target.shape:
        raise ValueError(f"output must have the shape of target, {tuple(target.shape)}, got {tuple(output.shape)}")
    if output.dim() == 0:
        raise ValueError("output must have the batch as its first dimension, got shape ()")
    check_device("target", target, "output", output)
    batch = output.shape[0]
    if kl is None:
        if mu is None or logvar is None:
            raise ValueError("mu and logvar must both be given where kl is not")
        check_floating("mu", mu)
        check_device("mu", mu, "output", output)
        if mu.shape[:1] != output.shape[:1]:
            raise ValueError(f"mu must have the batch size of output, {batch}, got shape {tuple(mu.shape)}")
        check_like("logvar", logvar, "mu", mu)
        return
    if mu is not None or logvar is not None:
        raise ValueError("kl must be None where mu and logvar are given")
    if free_bits > 0:
        raise ValueError(f"kl must be None with free_bits={free_bits}, which needs mu and logvar")
    check_floating("kl", kl)
    check_device("kl", kl, "output", output)
    if per == "batch" and kl.dim() != 0:
        raise ValueError(f"kl must be a scalar, the mean of the batch, got shape {tuple(kl.shape)}")
    if per == "sample" and kl.shape != output.shape[:1]:
        raise ValueError(f"kl must have one value per sample, {batch}, got shape {tuple(kl.shape)}")


def _value(schedule: Schedule, kl: Tensor) -> Tensor:
    """In the precision of the loss, which the exact value in float64 would raise. A copy: a step may come before the
    backward pass."""
    value = _ops.snapshot(schedule.value) if torch.compiler.is_compiling() else schedule.value
    return value.to(accumulate_dtype(kl.dtype), copy=True)


def _weighted(weight: float | Schedule, term: Tensor) -> Tensor:
    return (_value(weight, term) if isinstance(weight, Schedule) else weight) * term


def _number(weight: float | Schedule) -> float:
    return weight.at(weight.steps) if isinstance(weight, Schedule) else weight


def _kl_of_samples(mu: Tensor, logvar: Tensor) -> Tensor:
    """Summed over all dimensions but the first."""
    mu, logvar = (t.flatten(1) if t.dim() > 1 else t.unsqueeze(1) for t in (mu, logvar))
    return gaussian_kl(mu, logvar, reduction="sample")


class BetaVAELoss(_VAELoss):
    """Reconstruction + beta KL::

        F.binary_cross_entropy_with_logits(output, target, reduction="sum") / B \\
            + beta * (mu**2 + torch.expm1(logvar) - logvar).sum() / 2 / B

    Args:
        beta: the weight of the KL: a number, or a `Schedule` (beta = 1 is the evidence lower bound).
        likelihood: "bernoulli" (output is logits, target in [0, 1]) or "gaussian" (unit variance: half the squared
            error, constants left out). A target of integers or bool is converted.
        free_bits: floor for the batch mean of each latent dimension's KL, in nats; see `fastib.gaussian_kl`.

    Call it with `(output, target, mu, logvar)`, or with `(output, target, kl=kl)` where `kl` is the batch mean that
    `fastib.reparameterize_with_kl` returned. It returns `VAETerms(loss, reconstruction, kl)`, three scalars.

    Gradients: of the loss, by output, target, mu and logvar, or kl.

    Raises:
        TypeError, ValueError: for arguments of a wrong type, dtype or value, naming the argument.

    Source: Higgins et al. 2017, "beta-VAE", equation 4.

    >>> import torch
    >>> from fastib.losses import BetaVAELoss
    >>> criterion = BetaVAELoss(beta=4.0)
    >>> output, target, mu, logvar = torch.zeros(8, 3), torch.ones(8, 3), torch.ones(8, 2), torch.zeros(8, 2)
    >>> loss, reconstruction, kl = criterion(output, target, mu, logvar)
    >>> kl
    tensor(1.)
    """

    def __init__(self, beta: float | Schedule = 1.0, *, likelihood: str = "bernoulli", free_bits: float = 0.0) -> None:
        super().__init__(likelihood)
        if not isinstance(beta, Schedule):
            check_number("beta", beta, minimum=0.0)
        check_number("free_bits", free_bits, minimum=0.0)
        self.beta = beta
        self.free_bits = free_bits

    def extra_repr(self) -> str:
        beta = "" if isinstance(self.beta, Schedule) else f"beta={self.beta}, "
        return f"{beta}likelihood={self.likelihood!r}, free_bits={self.free_bits}"

    def forward(
        self,
        output: Tensor,
        target: Tensor,
        mu: Tensor | None = None,
        logvar: Tensor | None = None,
        *,
        kl: Tensor | None = None,
    ) -> VAETerms:
        _check(output, target, mu, logvar, kl, "batch", self.free_bits)
        if mu is not None and logvar is not None:
            kl = gaussian_kl(mu, logvar, free_bits=self.free_bits)
        assert kl is not None
        reconstruction = self._reconstruction(output, target)
        return VAETerms(reconstruction + _weighted(self.beta, kl), reconstruction.detach(), kl.detach())


class AnnealedVAELoss(_VAELoss):
    """Reconstruction + gamma |KL - C|, with a capacity C that grows with the optimiser step::

        kl = (mu**2 + torch.expm1(logvar) - logvar).flatten(1).sum(1) / 2
        reconstruction + gamma * (kl.mean() - C).abs()      # per="batch"
        reconstruction + gamma * (kl - C).abs().mean()      # per="sample"

    Args:
        gamma: the weight of the constraint.
        capacity: C in nats: the number that it grows to, linearly from 0 over `steps` steps of the optimiser, or a
            `Schedule` of its own (then `steps` has no meaning).
        steps: the number of optimiser steps over which C grows.
        per: what C constrains: the mean KL of the "batch", or the KL of each "sample", whose loss has another value
            and another gradient.
        likelihood: "bernoulli" or "gaussian", as in `BetaVAELoss`.

    Call it with `(output, target, mu, logvar)`, or with `(output, target, kl=kl)` where `kl` came from
    `fastib.reparameterize_with_kl` with `reduction="batchmean"` for "batch", "sample" for "sample". It returns
    `VAETerms(loss, reconstruction, kl)`, three scalars, kl being the batch mean. Call `step()` after each step of the
    optimiser: C moves then, and only then.

    Gradients: of the loss, by output, target, mu and logvar, or kl; by a KL that equals C, 0.

    Raises:
        TypeError, ValueError: for arguments of a wrong type, dtype or value, naming the argument.

    Source: Burgess et al. 2018, "Understanding disentangling in beta-VAE", equation 8; gamma = 1000 and C from 0 to 25
    nats over 100 000 steps are its values for dSprites.

    >>> import torch
    >>> from fastib.losses import AnnealedVAELoss
    >>> loss, logits, mu = AnnealedVAELoss(gamma=10.0, capacity=1.0, steps=2), torch.zeros(4, 3), torch.ones(4, 2)
    >>> loss(logits, torch.ones(4, 3), mu, torch.zeros(4, 2)).kl  # of which C is 0 yet
    tensor(1.)
    >>> loss.step()
    >>> float(loss.capacity.value)
    0.5
    """

    def __init__(
        self,
        gamma: float = 1000.0,
        capacity: float | Schedule = 25.0,
        steps: int = 100_000,
        *,
        per: str = "batch",
        likelihood: str = "bernoulli",
    ) -> None:
        super().__init__(likelihood)
        check_number("gamma", gamma, minimum=0.0)
        check_choice("per", per, ("batch", "sample"))
        if not isinstance(capacity, Schedule):
            check_number("capacity", capacity, minimum=0.0)
            capacity = Linear(0.0, capacity, steps)
        self.gamma = gamma
        self.capacity = capacity
        self.per = per

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, per={self.per!r}, likelihood={self.likelihood!r}"

    def forward(
        self,
        output: Tensor,
        target: Tensor,
        mu: Tensor | None = None,
        logvar: Tensor | None = None,
        *,
        kl: Tensor | None = None,
    ) -> VAETerms:
        _check(output, target, mu, logvar, kl, self.per)
        if mu is not None and logvar is not None:
            kl = gaussian_kl(mu, logvar) if self.per == "batch" else _kl_of_samples(mu, logvar)
        assert kl is not None
        reconstruction = self._reconstruction(output, target)
        constraint = torch.abs(kl - _value(self.capacity, kl)).mean()
        return VAETerms(reconstruction + self.gamma * constraint, reconstruction.detach(), kl.detach().mean())


class _TCTerms(NamedTuple):
    loss: Tensor
    reconstruction: Tensor
    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor


class BetaTCVAETerms(_TCTerms, InformationCeiling):
    """The loss of a beta-TCVAE and what it is made of: scalars, float32 (float64 for float64), in nats, means of the
    batch. All but `loss` are detached: they are for the log.

    Attributes:
        loss: what is to be minimised, and has the gradients.
        reconstruction: -log p(target | output), for "gaussian" without its constant.
        mutual_information, total_correlation, dimension_wise_kl: as in `fastib.ELBODecomposition`, before they are
            weighed.
        mutual_information_ceiling: a float, in nats: what no sample's mutual information exceeds.
    """

    def _replace(self, **terms: Tensor) -> BetaTCVAETerms:
        replaced = super()._replace(**terms)
        replaced.inverse_weight = self.inverse_weight
        return replaced


# Else torch.export.save refuses a model that returns them.
for _result in (VAETerms, BetaTCVAETerms, ELBODecomposition):
    _register_namedtuple(_result, serialized_type_name=f"fastib.{_result.__name__}")


class BetaTCVAELoss(_VAELoss):
    """Reconstruction + alpha MI + beta TC + gamma DWKL, the three parts of the KL of a VAE weighed apart::

        terms = fastib.elbo_decomposition(z, mu, logvar, dataset_size)
        reconstruction + alpha * terms.mutual_information + beta * terms.total_correlation \\
            + gamma * terms.dimension_wise_kl

    Args:
        alpha, beta, gamma: the weights: each a number, or a `Schedule`. With all of them 1 the loss is the negative
            evidence lower bound, whatever the estimator.
        dataset_size: N, the number of training samples. "mss" and "mws" need it; it is never guessed.
        estimator: "mss", "mws", "in_batch" or "leave_one_out": see `fastib.aggregate_posterior`.
        likelihood: "bernoulli" or "gaussian", as in `BetaVAELoss`.
        group: ranks of torch.distributed that each have a part of one batch, of any size: the loss and its terms are
            those of the whole batch, on each rank, and their gradients are to be averaged over the ranks, as
            DistributedDataParallel does. See `fastib.elbo_decomposition`.

    Call it with `(output, target, z, mu, logvar)`, where z [B, D] is the sample that was decoded. It returns
    `BetaTCVAETerms`: loss, reconstruction and the three terms, all scalars, with the attribute
    `mutual_information_ceiling`. Call `step()` after each step of the optimiser where a weight is a `Schedule`.

    Gradients: of the loss, by output, target, z, mu and logvar.

    Raises:
        TypeError, ValueError: for arguments of a wrong type, dtype or value, naming the argument; at the call also for
            a batch of one sample, where the estimator divides by B - 1.

    Source: Chen et al. 2018, "Isolating sources of disentanglement in VAEs", equation 4; alpha = gamma = 1 and beta = 6
    are its values for dSprites.

    >>> import torch
    >>> from fastib.losses import BetaTCVAELoss
    >>> criterion = BetaTCVAELoss(beta=6.0, dataset_size=1000)
    >>> output, target = torch.zeros(8, 3), torch.ones(8, 3)
    >>> z, mu, logvar = torch.randn(8, 2), torch.zeros(8, 2), torch.zeros(8, 2)
    >>> terms = criterion(output, target, z, mu, logvar)
    >>> round(terms.mutual_information_ceiling, 4)
    6.9078
    """

    def __init__(
        self,
        alpha: float | Schedule = 1.0,
        beta: float | Schedule = 6.0,
        gamma: float | Schedule = 1.0,
        *,
        dataset_size: int | None = None,
        estimator: str = "mss",
        likelihood: str = "bernoulli",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(likelihood)
        for name, weight in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if not isinstance(weight, Schedule):
                check_number(name, weight, minimum=0.0)
        if group is not None:
            check_group(group)
        estimator_of(estimator, dataset_size)  # what it raises for any batch, before the first one
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.dataset_size, self.estimator, self.group = dataset_size, estimator, group

    def extra_repr(self) -> str:
        weights = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
        shown = [f"{name}={weight}" for name, weight in weights.items() if not isinstance(weight, Schedule)]
        shown += [f"dataset_size={self.dataset_size}", f"estimator={self.estimator!r}"]
        return ", ".join([*shown, f"likelihood={self.likelihood!r}"])

    def forward(self, output: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor) -> BetaTCVAETerms:
        of_batch = self._of_batch if self.group is None else self._of_global_batch
        reconstruction, terms = of_batch(output, target, z, mu, logvar)
        mi, tc, kl = terms
        loss = reconstruction + _weighted(self.alpha, mi) + _weighted(self.beta, tc) + _weighted(self.gamma, kl)
        result = BetaTCVAETerms(loss, reconstruction.detach(), mi.detach(), tc.detach(), kl.detach())
        result.inverse_weight = terms.inverse_weight
        return result

    def _of_batch(
        self, output: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor
    ) -> tuple[Tensor, ELBODecomposition]:
        _check(output, target, mu, logvar, None, "batch")
        terms = elbo_decomposition(z, mu, logvar, self.dataset_size, estimator=self.estimator)
        return self._reconstruction(output, target), terms

    def _of_global_batch(
        self, output: Tensor, target: Tensor, z: Tensor, mu: Tensor, logvar: Tensor
    ) -> tuple[Tensor, ELBODecomposition]:
        def check() -> tuple[int, Agreement]:
            _check(output, target, mu, logvar, None, "batch")
            rows, agreed = decomposition_of_rank(z, mu, logvar, self.dataset_size, self.estimator)
            wanted = wants_gradient(output, target)
            weights = {"alpha": self.alpha, "beta": self.beta, "gamma": self.gamma}
            return rows, [
                *agreed,
                ("requires_grad of output or target", int(wanted), (False, True)),
                ("likelihood", _LIKELIHOODS.index(self.likelihood), _LIKELIHOODS),
                *(agree_on(name, _number(weight)) for name, weight in weights.items()),
            ]

        batch = GlobalBatch(self.group, check)
        terms = decompose_global(batch, z, mu, logvar, self.dataset_size, self.estimator)
        return batch.total(self._reconstruction(output, target, batch.size)), terms

    def __getstate__(self) -> dict[str, Any]:
        if self.group is not None:
            raise TypeError(
                "group is this process's own, and a loss that has one is not for pickle: save its state_dict()"
            )
        return self.__dict__

    def __copy__(self) -> BetaTCVAELoss:
        copied = type(self).__new__(type(self))
        copied.__dict__ = self.__dict__.copy()
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> BetaTCVAELoss:
        memo[id(self.group)] = self.group  # which is not for copying
        copied = copy.copy(self)
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied
