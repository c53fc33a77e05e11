"""What the codes of a data set tell by themselves: no factor is known. Nothing here has a gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastib import _arguments
from fastib.metrics import _inputs


@torch.no_grad()
def active_units(mu: Tensor, threshold: float = 0.01) -> int:
    """The number of latent dimensions whose mean depends on the data::

        (mu.var(0) > threshold).sum()

    Args:
        mu: the means, [n, D].
        threshold: of the variance over the data.

    Returns:
        The number, an int.

    Gradients: none.

    Raises:
        TypeError: if `mu` is not of a floating dtype, or `threshold` not a number.
        ValueError: if `mu` is not finite or has fewer than two rows, or `threshold` is negative or not finite.

    Source: Burda et al. 2016, "Importance weighted autoencoders", section 5.2.

    >>> import torch
    >>> from fastib.metrics import active_units
    >>> active_units(torch.tensor([[0.0, 0.0], [0.1, 1.0]]))
    1
    """
    _inputs.check_codes("mu", mu)
    _arguments.check_number("threshold", threshold, 0)
    return int((mu.var(0) > threshold).sum())


@torch.no_grad()
def gaussian_total_correlation(codes: Tensor) -> float:
    """The total correlation, in nats, of a Gaussian with the covariance of the codes::

        (torch.log(codes.var(0)).sum() - torch.logdet(codes.T.cov())) / 2

    computed in float64 from the correlations, which the scale of a dimension does not change. It is inf where a
    dimension is a linear function of others, as it must be with no more rows than dimensions. A dimension that is
    constant depends on no other, and adds nothing.

    Args:
        codes: the means or samples, [n, D].

    Returns:
        The total correlation, a float.

    Gradients: none.

    Raises:
        TypeError: if `codes` are not of a floating dtype.
        ValueError: if `codes` are not finite or have fewer than two rows.

    Source: Watanabe 1960, "Information theoretical analysis of multivariate correlation"; as a measure of codes,
    Locatello et al. 2019, "Challenging common assumptions in the unsupervised learning of disentangled
    representations".

    >>> import torch
    >>> from fastib.metrics import gaussian_total_correlation
    >>> codes = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    >>> abs(round(gaussian_total_correlation(codes), 6)), gaussian_total_correlation(codes[:, [0, 0]])
    (0.0, inf)
    """
    _inputs.check_codes("codes", codes)
    x = _inputs.standardized(codes.double())
    x = x[:, x.any(0)]
    correlations = x.T @ x / len(codes)
    if torch.linalg.matrix_rank(correlations, hermitian=True) < len(correlations):
        return math.inf
    return -torch.logdet(correlations).item() / 2
