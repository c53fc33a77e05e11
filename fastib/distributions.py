"""`torch.distributions.Normal` with fastib's sample and KL: for programs that are written in distributions.

Change `from torch.distributions import Normal, kl_divergence` to `from fastib.distributions import ...`; what else
PyTorch has, such as `Independent`, goes with it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, register_kl

from fastib._formulas import upcast
from fastib.functional import gaussian_kl, reparameterize

__all__ = ["Normal", "kl_divergence"]


class Normal(torch.distributions.Normal):
    """A normal distribution, as PyTorch's own::

        posterior = Normal(mu, torch.exp(logvar / 2))
        z = posterior.rsample()                       # mu + scale * noise, the noise of fastib.reparameterize
        kl = kl_divergence(posterior, Normal(0, 1))   # fastib.gaussian_kl(mu, logvar, reduction="none")

    Args:
        loc, scale: mean and standard deviation: tensors that broadcast together, or numbers.
        validate_args: whether to check them, as in `torch.distributions.Normal`.

    Dtypes are promoted, and `loc` and `scale` may be as small or large, as in PyTorch's own. A model that has the
    logarithm of the variance saves time and memory with fastib's own functions, which need no `scale`.

    Gradients: loc and scale, through both.

    Raises:
        TypeError, ValueError: as PyTorch's own, and as `fastib.reparameterize` and `fastib.gaussian_kl` do.

    Source: Kingma & Welling 2014, section 2.4 and appendix B.

    >>> import torch
    >>> from fastib.distributions import Normal, kl_divergence
    >>> kl_divergence(Normal(torch.ones(2), torch.ones(2)), Normal(0.0, 1.0))
    tensor([0.5000, 0.5000])
    """

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """A sample, drawn so that gradients reach loc and scale::

            loc + scale * torch.randn([*sample_shape, *loc.shape])

        in the dtype that loc and scale are promoted to. `torch.manual_seed` governs the noise.

        >>> import torch
        >>> from fastib.distributions import Normal
        >>> Normal(torch.zeros(2), torch.ones(2)).rsample((3,)).shape
        torch.Size([3, 2])
        """
        zero = self.loc.new_zeros(()).expand(self._extended_shape(torch.Size(sample_shape)))
        return self.loc + self.scale * reparameterize(zero, zero)


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """The KL of p to q, element by element, in nats::

        torch.distributions.kl_divergence(p, q)

    Between two normals it is fastib's, in float32 (float64 for float64); every other pair is PyTorch's business.

    Args:
        p, q: distributions whose parameters broadcast together.

    Returns:
        The KL of each element, with the shape that they broadcast to.

    Gradients: loc and scale of both.

    Raises:
        NotImplementedError: for a pair whose KL PyTorch does not know.
        RuntimeError: if the parameters do not broadcast.

    Source: Kingma & Welling 2014, appendix B.

    >>> import torch
    >>> from fastib.distributions import Normal, kl_divergence
    >>> kl_divergence(Normal(torch.tensor([0.0, 2.0]), 1.0), Normal(0.0, 1.0))
    tensor([0., 2.])
    """
    if isinstance(p, Normal) and isinstance(q, torch.distributions.Normal):
        kl: Tensor = _between_normals(p, q)  # directly: torch.compile can't trace how PyTorch looks for it
        return kl
    found: Tensor = torch.distributions.kl_divergence(p, q)
    return found


@register_kl(Normal, torch.distributions.Normal)  # type: ignore[untyped-decorator]
def _between_normals(p: Normal, q: torch.distributions.Normal) -> Tensor:
    # In units of q's scale, whose square may be too small for a number.
    loc, scale, of_loc, of_scale = upcast(p.loc, p.scale, q.loc, q.scale)
    distance, ratio = (loc - of_loc) / of_scale, scale / of_scale
    dtype = torch.promote_types(distance.dtype, ratio.dtype)
    return gaussian_kl(distance.to(dtype), 2 * ratio.to(dtype).log(), reduction="none")
