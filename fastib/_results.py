"""What a decomposition returns: a tuple that knows more of its terms than their values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from fastib._arguments import Estimator


class _Terms(NamedTuple):
    mutual_information: Tensor
    total_correlation: Tensor
    dimension_wise_kl: Tensor


class InformationCeiling:
    """What a tuple that has the mutual information knows of it beside its value: plain numbers, without gradients."""

    inverse_weight: int | None = None
    """1 / w_self. An integer, since a graph of torch.compile returns those for a batch of any size. What rebuilds a
    tuple from its terms alone, as `torch.utils._pytree` does, leaves None, and the ceiling that always holds."""

    @property
    def mutual_information_ceiling(self) -> float:
        """-ln w_self, which no sample's mutual information exceeds, however much more the code may tell: a float, in
        nats; inf where there is no w_self, or where it isn't known."""
        return math.inf if self.inverse_weight is None else math.log(self.inverse_weight)


class ELBODecomposition(_Terms, InformationCeiling):
    """What `fastib.elbo_decomposition` returns: three terms, and beside the first its ceiling.

    The terms are in nats, float32 (float64 for float64): scalars, or for the reduction "none" [S], one for each sample.
    All three have gradients, by z, mu and logvar; those of `fastib.metrics.exact_elbo_decomposition` have none.

    Attributes:
        mutual_information: between the code and the index of the sample.
        total_correlation: of the dimensions of the code, under the aggregate posterior.
        dimension_wise_kl: of each dimension's aggregate posterior to the prior, summed over the dimensions.
        mutual_information_ceiling: a float, in nats: see `InformationCeiling`.
    """

    standard_errors: tuple[float, ...] | None = None
    """Of the three means, floats in nats, in `fastib.metrics.exact_elbo_decomposition`; else None: a minibatch's terms
    have none to speak of."""

    @classmethod
    def of(cls, terms: Iterable[Tensor], estimator: int, size: int, batch: int) -> ELBODecomposition:
        decomposition = cls(*terms)
        shares = {Estimator.MSS: size, Estimator.MWS: size * batch, Estimator.IN_BATCH: batch}
        decomposition.inverse_weight = shares.get(estimator)
        return decomposition

    def _replace(self, **terms: Tensor) -> ELBODecomposition:
        replaced = super()._replace(**terms)
        replaced.inverse_weight = self.inverse_weight
        replaced.standard_errors = self.standard_errors
        return replaced
