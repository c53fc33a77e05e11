"""Layers with noise on their weights, and what the weights know of the data that they were trained with."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastib
from fastib._arguments import accumulate_dtype, check_choice, check_integer, check_number

PRIOR_STD = 3.0  # in units of 1 / sqrt(fan_in): of 1 to 8, where scikit-learn's digits cost a hidden layer least
PRIORS_COVERED = 8  # the whole numbers of these: a bound must hold for each, since the data had a say in the choice


class _Posterior(nn.Module, abc.ABC):
    """The distribution of all weights of a layer, [out, fan_in + 1]: the last column is the biases."""

    def __init__(self, outputs: int, fan_in: int) -> None:
        super().__init__()
        mean = torch.randn(outputs, fan_in + 1) / math.sqrt(fan_in)
        mean[:, -1] = 0
        self.mean = nn.Parameter(mean)

    @abc.abstractmethod
    def draw(self) -> tuple[Tensor, Tensor]:
        """Weights, and the information in all of them, in nats."""


class LogNormal(_Posterior):
    """Weights times noise whose mean is 1 and whose logarithm has the variance a, of each weight its own, below 1::

        a = torch.sigmoid(rho)
        weights = mean * torch.exp(a.sqrt() * torch.randn_like(mean) - a / 2)
        information = -torch.log(a).sum() / 2

    The information is the KL to a log-uniform prior up to a constant, which is chosen so that a = 1 costs nothing: no
    prior that integrates to 1 has it, and neither the sign of a weight nor its size costs anything.

    Source: Achille & Soatto 2018, "Emergence of invariance and disentanglement in deep representations", section 4; the
    a is their alpha, a variance, where that of "Information Dropout" is a standard deviation.
    """

    def __init__(self, outputs: int, fan_in: int, noise: float) -> None:
        super().__init__(outputs, fan_in)
        self.rho = nn.Parameter(torch.full_like(self.mean, math.log(noise / (1 - noise))))

    def draw(self) -> tuple[Tensor, Tensor]:
        log_std = F.logsigmoid(self.rho) / 2
        return fastib.information_dropout(self.mean, log_std, mask_zero=False, mean_one=True, reduction="sum")


class Gaussian(_Posterior):
    """Weights from a Gaussian, against a prior whose width is one of `PRIORS_COVERED`, and no parameter::

        weights = mean + torch.exp(logvar / 2) * torch.randn_like(mean)
        information = KL(N(mean, exp(logvar)), N(0, PRIOR_STD**2 / fan_in)).sum()

    Source: Blundell et al. 2015, "Weight uncertainty in neural networks", section 3.
    """

    prior_logvar: Tensor

    def __init__(self, outputs: int, fan_in: int, noise: float) -> None:
        super().__init__(outputs, fan_in)
        variance = PRIOR_STD**2 / fan_in
        self.register_buffer("prior_logvar", torch.tensor(math.log(variance)))
        self.logvar = nn.Parameter(torch.full_like(self.mean, math.log(noise * variance)))

    def draw(self) -> tuple[Tensor, Tensor]:
        return fastib.reparameterize(self.mean, self.logvar), self.information()

    def information(self) -> Tensor:
        """The KL of all weights to the prior, in nats: a scalar, with gradients by `mean` and `logvar`."""
        return fastib.gaussian_kl(self.mean, self.logvar, prior_logvar=self.prior_logvar, reduction="sum")


POSTERIORS: dict[str, type[LogNormal | Gaussian]] = {"log_normal": LogNormal, "gaussian": Gaussian}


class VariationalLayer(nn.Module, abc.ABC):
    """A layer whose weights and biases are drawn anew in each call, which gives the outputs, and the information in the
    weights in nats; `mean` has the outputs of the mean weights.

    Args:
        outputs: the number of output features or channels.
        fan_in: the number of weights of each.
        posterior: "log_normal" or "gaussian".
        noise: the variance that the noise has at first: of the logarithm, or as a fraction of the prior's.
    """

    def __init__(self, outputs: int, fan_in: int, posterior: str, noise: float) -> None:
        super().__init__()
        check_choice("posterior", posterior, tuple(POSTERIORS))
        check_number("noise", noise)
        if not 0 < noise < 1:
            raise ValueError(f"noise must be between 0 and 1, got {noise}")
        self.posterior = POSTERIORS[posterior](outputs, fan_in, noise)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, information = self.posterior.draw()
        return self.apply_weights(x, weights), information

    def mean(self, x: Tensor) -> Tensor:
        """The outputs of the mean weights, without noise."""
        return self.apply_weights(x, self.posterior.mean)

    @abc.abstractmethod
    def apply_weights(self, x: Tensor, weights: Tensor) -> Tensor:
        """The outputs for weights [out, fan_in + 1], of which the last column is the biases."""


class VariationalLinear(VariationalLayer):
    """A linear layer with noise on its weights::

        weights, information = posterior.draw()
        y = F.linear(x.flatten(1), weights[:, :-1], weights[:, -1])

    Each sample of a batch has weights of its own where they are Gaussian: then its outputs are independent Gaussians,
    and drawn as such, which costs as little as one draw for all and makes the gradients less noisy. Sums of log-normal
    variables are no such thing, so these weights are drawn once for the batch.

    Args:
        in_features, out_features: the numbers of inputs and outputs.
        posterior: "log_normal" or "gaussian", of the weights and biases: see `LogNormal` and `Gaussian`.
        noise: the variance that the noise has at first: of the logarithm, or as a fraction of the prior's.

    Call it with inputs [B, ...], flattened, for outputs [B, out_features] and the information in nats, of all weights
    together; `mean` gives the outputs of the mean weights, for evaluation.

    Gradients: of the outputs, by the inputs, the means of the weights and the size of their noise; of the information,
    by these two, where that by the means of log-normal weights is 0.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    Source: Achille & Soatto 2018, section 4; Kingma et al. 2015, "Variational dropout and the local reparameterization
    trick", section 2.3.

    >>> import torch
    >>> from fastib.models import VariationalLinear
    >>> layer = VariationalLinear(3, 2, noise=0.1)
    >>> outputs, information = layer(torch.ones(5, 3))
    >>> outputs.shape, information  # 8 weights of -log(0.1) / 2 each
    (torch.Size([5, 2]), tensor(9.2103, grad_fn=<InformationDropoutBackward>))
    """

    def __init__(
        self, in_features: int, out_features: int, *, posterior: str = "log_normal", noise: float = 0.01
    ) -> None:
        check_integer("in_features", in_features, 1)
        check_integer("out_features", out_features, 1)
        super().__init__(out_features, in_features, posterior, noise)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(self.posterior, Gaussian):
            return super().forward(x)
        mean, wide = self.mean(x), accumulate_dtype(x.dtype)
        with torch.autocast(x.device.type, enabled=False):  # float16 has no variances below 1e-7
            variance = self.apply_weights(x.to(wide) ** 2, self.posterior.logvar.to(wide).exp())
        # The log of 0 has no gradient; the biases' variance is above it, unless it underflows.
        logvar = variance.clamp(min=torch.finfo(wide).tiny).log().to(mean)
        return fastib.reparameterize(mean, logvar), self.posterior.information()

    def apply_weights(self, x: Tensor, weights: Tensor) -> Tensor:
        return F.linear(x.flatten(1), weights[:, :-1], weights[:, -1])


class VariationalConv2d(VariationalLayer):
    """A convolution with noise on its weights::

        weights, information = posterior.draw()
        y = F.conv2d(x, weights[:, :-1].unflatten(1, (-1, kernel_size, kernel_size)), weights[:, -1], stride, padding)

    The outputs of an image share the weights, so they aren't independent, and can't be drawn in their place: the
    weights are drawn, once for the batch.

    Args:
        in_channels, out_channels: the numbers of channels.
        kernel_size, stride, padding: of both directions.
        posterior, noise: as of `VariationalLinear`.

    Call it with inputs [B, in_channels, H, W] for outputs [B, out_channels, H', W'] and the information in nats, of all
    weights together; `mean` gives the outputs of the mean weights.

    Gradients: as of `VariationalLinear`.

    Raises:
        TypeError, ValueError: for arguments of a wrong type or value, naming the argument.

    Source: as of `VariationalLinear`.

    >>> import torch
    >>> from fastib.models import VariationalConv2d
    >>> layer = VariationalConv2d(1, 4, 3, stride=2, padding=1, noise=0.1)
    >>> outputs, information = layer(torch.ones(5, 1, 8, 8))
    >>> outputs.shape, round(information.item(), 3)  # 40 weights of -log(0.1) / 2 each
    (torch.Size([5, 4, 4, 4]), 46.052)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        posterior: str = "log_normal",
        noise: float = 0.01,
    ) -> None:
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size, "stride": stride}
        for name, size in sizes.items():
            check_integer(name, size, 1)
        check_integer("padding", padding, 0)
        super().__init__(out_channels, in_channels * kernel_size**2, posterior, noise)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def apply_weights(self, x: Tensor, weights: Tensor) -> Tensor:
        kernels = weights[:, :-1].unflatten(1, (-1, self.kernel_size, self.kernel_size))
        return F.conv2d(x, kernels, weights[:, -1], self.stride, self.padding)


class VariationalNetwork(nn.Module):
    """Layers with SiLUs between them. A call gives what each layer says, the last without a SiLU, and the information
    in the weights of all, in nats; `mean` has what the last says with the mean weights."""

    def __init__(self, *layers: VariationalLayer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        said: list[Tensor] = []
        information = x.new_zeros(())
        for i, layer in enumerate(self.layers, 1):
            x, of_layer = layer(x)
            x = F.silu(x) if i < len(self.layers) else x
            said.append(x)
            information = information + of_layer
        return said, information

    def mean(self, x: Tensor) -> Tensor:
        """What the last layer says with the mean weights, without noise."""
        for i, layer in enumerate(self.layers, 1):
            assert isinstance(layer, VariationalLayer)
            x = layer.mean(x)
            x = F.silu(x) if i < len(self.layers) else x
        return x


def variational_mlp(sizes: Sequence[int], posterior: str, noise: float) -> VariationalNetwork:
    """Linear layers from each of the sizes to the next."""
    layers = [VariationalLinear(i, o, posterior=posterior, noise=noise) for i, o in itertools.pairwise(sizes)]
    return VariationalNetwork(*layers)
