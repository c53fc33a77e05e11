"""What a mixture's densities and their gradients are, in long double, and how far roundings may move them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastib import _arguments, _formulas

Mixture = tuple[Tensor, Tensor, Tensor]  # z, mu, logvar


class Oracle:
    """The formulas in numpy's long double: float64 is to be held to more than its own rounding."""

    def __init__(self, inputs: Mixture, keywords: dict[str, Any]) -> None:
        z, mu, logvar = (_wide_floats(t) for t in inputs)
        log_w = _log_weights_of(inputs, keywords)
        self.std = np.exp(logvar / 2)
        self.u = (z[:, None] - mu) / self.std
        self.sizes = (self.u**2 + abs(logvar)) / 2  # of the exponents
        pairs = -(self.u**2 + logvar + np.log(8 * np.arctan(np.longdouble(1)))) / 2
        self.log_qz, self.joint = _normalised(pairs.sum(-1) + log_w)
        self.log_qz_marginals, self.marginals = _normalised(pairs + log_w[..., None])

    def values(self) -> tuple[Tensor, Tensor]:
        return _rounded(self.log_qz), _rounded(self.log_qz_marginals)

    def moved(self) -> tuple[Tensor, Tensor]:
        """What the values change by, at most, where all exponents do by a share of 1 of themselves."""
        of_joint = (self.joint * self.sizes.sum(-1)).sum(1)
        return _rounded(of_joint), _rounded((self.marginals * self.sizes).sum(1))

    def gradients(self, grads: tuple[Tensor, Tensor]) -> list[list[Tensor]]:
        """The joint's part of the gradients, and the marginals': each by z, mu and logvar. And each, in a tensor
        [3, ...], with the sum of the sizes of its terms, and what that sum changes by where all exponents do by a share
        of 1 of themselves, each as it likes."""
        joint, marginals = (_wide_floats(g)[:, None] for g in grads)
        of_joint = joint * self.joint, abs(joint) * _moved(self.joint, self.sizes.sum(-1))
        of_marginals = marginals * self.marginals, abs(marginals) * _moved(self.marginals, self.sizes)
        return [self._by_inputs(*(t[..., None] for t in of_joint)), self._by_inputs(*of_marginals)]

    def _by_inputs(self, weights: Any, moved: Any) -> list[Tensor]:
        u, square = self.u, self.u**2
        terms = weights * u / self.std, abs(weights * u) / self.std, moved * abs(u) / self.std
        by_mu = [t.sum(0) for t in terms]
        minus, *sizes = (t.sum(1) for t in terms)
        weights, moved = weights / 2, moved / 2
        by_logvar = [t.sum(0) for t in (weights * (square - 1), abs(weights) * (square + 1), moved * (square + 1))]
        return [_rounded(np.stack(t)) for t in ([-minus, *sizes], by_mu, by_logvar)]


def _wide_floats(t: Tensor) -> Any:
    return t.detach().double().cpu().numpy().astype(np.longdouble)


def _rounded(a: Any) -> Tensor:
    return torch.from_numpy(a.astype(np.float64)).to(torch.get_default_device())


def _log_weights_of(inputs: Mixture, keywords: dict[str, Any]) -> Any:
    z, mu, _ = inputs
    if "log_weights" in keywords:
        return _wide_floats(keywords["log_weights"])
    options = {"estimator": "mss", "dataset_size": None, "weights": None, "log_weights": None} | keywords
    offset = options.pop("row_offset", 0)
    kind, size, *given = _arguments.mixture_weights(z=z, mu=mu, **options)
    w_self, w_other = map(np.longdouble, _formulas.estimator_weights(kind, size, len(mu), tuple(given)))
    own = np.eye(len(z), len(mu), offset, dtype=bool)
    with np.errstate(divide="ignore"):
        return np.log(np.where(own, w_self, w_other))


def _normalised(terms: Any) -> tuple[Any, Any]:
    """The logarithm of the sum of e^terms over axis 1, and the share of each in it."""
    largest = terms.max(1, keepdims=True) if terms.size else terms.sum(1, keepdims=True)
    shares = np.exp(terms - largest)
    sums = shares.sum(1, keepdims=True)
    return (largest + np.log(sums)).squeeze(1), shares / sums


def _moved(shares: Any, sizes: Any) -> Any:
    """What shares change by, at most, where each exponent does by its own size."""
    of_all = (shares * sizes).sum(1, keepdims=True)
    return shares * (sizes * (1 - shares) + (of_all - shares * sizes))
