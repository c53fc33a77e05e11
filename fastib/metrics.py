"""What a trained model is measured by, over a whole data set and without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from fastib import functional
from fastib.reference import ELBODecomposition


@torch.no_grad()
def exact_elbo_decomposition(z: Tensor, mu: Tensor, logvar: Tensor, *, reduction: str = "mean") -> ELBODecomposition:
    """The three parts of the KL of a VAE under the aggregate posterior of the whole data set: nothing is estimated::

        fastib.elbo_decomposition(z, mu, logvar, dataset_size=len(mu))

    without its gradients. Each row meets all N posteriors, a few rows at a time: in memory O(N D), and in time O(N^2 D).

    Args:
        z: one sample of each posterior, [N, D], as `fastib.reparameterize` draws it.
        mu: means of the posteriors of all N samples, [N, D].
        logvar: logarithms of their variances, [N, D].
        reduction: over the samples: "none", "sum" or "mean".

    Returns:
        The named tuple of `fastib.elbo_decomposition`, in nats, with the ceiling ln N of the mutual information.

    Gradients: none.

    Raises:
        TypeError: for a tensor of a wrong dtype.
        ValueError: if shapes or devices do not match, or `reduction` is unknown.

    Source: Hoffman & Johnson 2016, "ELBO surgery"; Chen et al. 2018, equation 2.

    >>> import torch
    >>> from fastib.metrics import exact_elbo_decomposition
    >>> z = torch.arange(100.0)[:, None]
    >>> terms = exact_elbo_decomposition(z, z, torch.full((100, 1), -20.0))  # every sample has a code of its own
    >>> round(terms.mutual_information.item(), 4), round(terms.mutual_information_ceiling, 4)
    (4.6052, 4.6052)
    """
    return functional.elbo_decomposition(z, mu, logvar, estimator="in_batch", reduction=reduction)
