"""What a trained model is measured by, over a whole data set and without gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from fastib import _arguments, _formulas, functional
from fastib.reference import ELBODecomposition


@torch.no_grad()
def exact_elbo_decomposition(
    z: Tensor, mu: Tensor, logvar: Tensor, *, reduction: str = "mean", chunk_size: int = 4096
) -> ELBODecomposition:
    """The three parts of the KL of a VAE under the aggregate posterior of the whole data set: nothing is estimated::

        fastib.elbo_decomposition(z, mu, logvar, dataset_size=len(mu))  # the same number

    row by row against all N posteriors, `chunk_size` rows at a time: in memory O((N + chunk_size) D), and in time
    O(N^2 D).

    Args:
        z: one sample of each posterior, [N, D], as `fastib.reparameterize` draws it.
        mu: means of the posteriors of all N samples, [N, D].
        logvar: logarithms of their variances, [N, D].
        reduction: over the samples: "none", "sum" or "mean".
        chunk_size: the number of rows that are worked on at once.

    Returns:
        The named tuple of `fastib.elbo_decomposition`, in nats, with the ceiling ln N of the mutual information.

    Gradients: none.

    Raises:
        TypeError: for a tensor of a wrong dtype, or a `chunk_size` that is not an integer.
        ValueError: if shapes or devices do not match, `reduction` is unknown, or `chunk_size` is smaller than 1.

    Source: Hoffman & Johnson 2016, "ELBO surgery"; Chen et al. 2018, equation 2.

    >>> import torch
    >>> from fastib.metrics import exact_elbo_decomposition
    >>> z = torch.arange(100.0)[:, None]
    >>> terms = exact_elbo_decomposition(z, z, torch.full((100, 1), -20.0))  # every sample has a code of its own
    >>> round(terms.mutual_information.item(), 4), round(terms.mutual_information_ceiling, 4)
    (4.6052, 4.6052)
    """
    w_self, _, kind, scale = _arguments.decomposition(z, mu, logvar, None, "in_batch", reduction)
    _arguments.check_integer("chunk_size", chunk_size, 1)
    chunks = [_terms(z, mu, logvar, slice(begin, begin + chunk_size)) for begin in range(0, len(z), chunk_size)]
    dtype = _arguments.accumulate_dtype(z.dtype)
    terms = (_formulas.reduce(torch.cat(of_chunks), kind, scale).to(dtype) for of_chunks in zip(*chunks, strict=True))
    return ELBODecomposition.of(terms, w_self)


def _terms(z: Tensor, mu: Tensor, logvar: Tensor, rows: slice) -> tuple[Tensor, ...]:
    log_q, log_q_marginals = functional.aggregate_posterior(z[rows], mu, logvar, estimator="in_batch")
    return _formulas.decompose(*(t.double() for t in (z[rows], mu[rows], logvar[rows], log_q, log_q_marginals)))
