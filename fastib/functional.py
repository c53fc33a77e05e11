"""The losses as functions. Each is one pass of a compiled kernel where the device has one (see `fastib.backends`).

Conventions. Units are nats. Inputs are float16, bfloat16, float32 or float64, of any strides and any leading shape,
with the latent dimension last. Low precision is read as it is and computed in float32; losses come back in float32
(float64 for float64), samples and gradients in the dtype of the inputs.

`reduction` turns one loss per element into the result, for inputs of shape [B, ..., D]:
"none" keeps them; "sample" sums the last dimension; "sum" sums all; "mean" divides that by the number of elements;
"batchmean" divides it by B, the size of the first dimension, as `torch.nn.functional.kl_div` does.

Noise. A stochastic function takes at most one of `noise` (the noise itself, shaped like the input; it has a gradient
only if it requires one), `generator` (a `torch.Generator`), and `rng` (an int64 tensor [2], seed and offset, that fixes
the noise). With none of them the seed comes from PyTorch's own generator, so `torch.manual_seed` governs it. The noise
is a pure function of the seed and of the logical index of the element: it does not depend on strides, threads or
device. The backward pass draws it again instead of storing it.

Results of compiled kernels are the same bits on every run and for every number of threads. Non-finite inputs propagate
as in the plain expression; by a density of 0 the estimators have a gradient of 0, where plain PyTorch has NaN. Wrong
arguments raise before anything runs: TypeError for a wrong type or dtype, ValueError for a wrong shape, device or
value.

Under torch.autocast, tensors of several dtypes are promoted to the widest of them.

Derivatives. Gradients are compiled kernels'. Derivatives of gradients, and those forwards, are taken from the
expression in plain PyTorch, in the memory that it takes. `torch.func` has all its transforms but `functionalize`, which
knows no autograd.Function; `vmap` runs `gaussian_kl` and `log_variance_penalty` for all examples at once, and the
others for one after the other.

torch.compile. One graph serves all sizes of a batch, with the bits of the eager call; it refuses `generator`. Noise is
drawn anew in each call, and never again for a backward pass that recomputes to save memory, except at
`torch._functorch.config.activation_memory_budget = 0`, which repeats whatever has been drawn: pass `rng` there. Inside
a graph, `torch.func` differentiates the expression in plain PyTorch; where PyTorch compiles a broadcast anew for each
size of a batch, as in `jvp` and in `vmap` of `grad`, so it does. An exported model trains, by the same kernels.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from fastib import _arguments, _ops, _rng
from fastib._arguments import Reduction
from fastib._derivatives import apply
from fastib._formulas import number
from fastib._results import ELBODecomposition
from fastib.distributed import GlobalBatch, decompose_global


def reparameterize(
    mu: Tensor,
    logvar: Tensor,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng: Tensor | None = None,
) -> Tensor:
    """Draws from N(mu, exp(logvar)) so that gradients reach both::

        mu + torch.exp(logvar / 2) * torch.randn_like(mu)

    Args:
        mu: means, any shape.
        logvar: logarithms of the variances, like `mu`.
        noise: standard normal noise to use, like `mu`.
        generator: the generator to draw from, instead of PyTorch's own.
        rng: int64 [2] on the device of `mu`: fixes the noise, or repeats that of another call.

    Returns:
        The sample, with the shape, dtype and strides of `mu` (of `torch.empty_like(mu)`, if `mu` is not dense).

    Gradients: mu, logvar (g (z - mu) / 2, with the noise drawn again), and noise if it requires one.

    Raises:
        TypeError: for a tensor of a wrong dtype, or not a tensor.
        ValueError: if shapes or devices differ, or more than one source of noise is given.

    Source: Kingma & Welling 2014, "Auto-encoding variational Bayes", section 2.4.

    >>> import torch, fastib
    >>> mu, logvar = torch.zeros(4, 2), torch.zeros(4, 2)
    >>> fastib.reparameterize(mu, logvar).shape
    torch.Size([4, 2])
    """
    mu, logvar, noise = _arguments.check_noisy("mu", mu, "logvar", logvar, noise)
    rng = _rng.draw(mu, noise, generator, rng)
    z: Tensor = apply(_ops.Reparameterize, mu, logvar, noise, rng)
    return z


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    reduction: str = "batchmean",
    free_bits: float = 0.0,
    free_bits_per: str = "dimension",
) -> Tensor:
    """KL divergence of N(mu, exp(logvar)) to N(0, 1), or to N(prior_mu, exp(prior_logvar)), in nats::

        kl = (mu**2 + torch.expm1(logvar) - logvar) / 2
        # with a prior, where d = logvar - prior_logvar:
        kl = (torch.expm1(d) - d + (mu - prior_mu)**2 * torch.exp(-prior_logvar)) / 2
        kl.sum() / mu.shape[0]

    accurate to a few units in the last place also near logvar = 0, where exp(l) - 1 - l cancels.

    Args:
        mu: means, [B, ..., D].
        logvar: logarithms of the variances, like `mu`.
        prior_mu: means of the prior, broadcast to `mu`; 0 if not given.
        prior_logvar: logarithms of the variances of the prior, broadcast to `mu`; 0 if not given.
        reduction: "none" (per element), "sample" (summed over the last dimension), "sum", "mean", or "batchmean".
        free_bits: a floor in nats, applied before any scaling, below which the KL has no gradient.
        free_bits_per: what the floor holds for. "dimension": the mean over the batch of each latent dimension, that is
            of every entry but the first's (Kingma et al. 2016); "element": each element; "total": the sum over
            dimensions of those means. "dimension" and "total" need a reduction over the batch.

    Returns:
        The KL in float32 (float64 for float64): a scalar, or [B, ...] for "sample", or [B, ..., D] for "none".

    Gradients: all four tensors. For the unit prior: mu, and expm1(logvar) / 2.

    Raises:
        TypeError: for a tensor of a wrong dtype, or not a tensor, or `free_bits` not a number.
        ValueError: if shapes do not match or broadcast, devices differ, `reduction` or `free_bits_per` is unknown,
            `free_bits` is negative or not finite, or has no meaning for the reduction.

    Source: Kingma & Welling 2014, appendix B; free bits: Kingma et al. 2016, "Improving variational inference with
    inverse autoregressive flow", section on optimisation.

    >>> import torch, fastib
    >>> fastib.gaussian_kl(torch.ones(4, 2), torch.zeros(4, 2))
    tensor(1.)
    """
    mu, logvar, prior_mu, prior_logvar = _arguments.check_distributions(mu, logvar, prior_mu, prior_logvar)
    kind, divisor = _arguments.reduction_of(reduction, mu.shape)
    _arguments.check_free_bits(free_bits, free_bits_per, reduction, mu.dtype)
    if prior_mu is not None or prior_logvar is not None:
        zero = mu.new_zeros(())
        prior_mu, prior_logvar = (zero if prior is None else prior for prior in (prior_mu, prior_logvar))
    tensors = mu, logvar, prior_mu, prior_logvar
    kl: Tensor
    if free_bits == 0 or free_bits_per == "element":
        kl = apply(_ops.GaussianKL, *tensors, kind, divisor, free_bits)
        return kl
    batch = _arguments.batch_size(mu.shape)
    over = Reduction.BATCH if free_bits_per == "dimension" else Reduction.SUM
    means = apply(_ops.GaussianKL, *tensors, over, max(batch, 1), 0.0)
    kl = apply(_ops.FlooredSum, means, free_bits)
    if reduction == "batchmean" and batch > 0:
        return kl
    return kl / number(divisor, means) * number(batch, means)  # in this order it can't overflow on the way


def reparameterize_with_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    reduction: str = "batchmean",
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`reparameterize` and `gaussian_kl` to N(0, 1), in one pass over mu and logvar::

        z = mu + torch.exp(logvar / 2) * torch.randn_like(mu)
        kl = (mu**2 + torch.expm1(logvar) - logvar).sum() / 2 / mu.shape[0]

    Args:
        mu: means, [B, ..., D].
        logvar: logarithms of the variances, like `mu`.
        reduction: of the KL: "none", "sample" (summed over the last dimension), "sum", "mean", or "batchmean".
        noise: standard normal noise to use, like `mu`.
        generator: the generator to draw from, instead of PyTorch's own.
        rng: int64 [2] on the device of `mu`: fixes the noise, or repeats that of another call.

    Returns:
        (z, kl): the sample, with the shape, dtype and strides of `mu` (of `torch.empty_like(mu)`, if `mu` is not
        dense), and the KL in nats, in float32 (float64 for float64): a scalar, or [B, ...] for "sample", or
        [B, ..., D] for "none".

    Gradients: mu, logvar, through both results in one pass, and noise if it requires one. Between the passes only the
    inputs and the 16 bytes of `rng` are kept.

    Raises:
        TypeError: for a tensor of a wrong dtype, or not a tensor.
        ValueError: if shapes or devices differ, `reduction` is unknown, or more than one source of noise is given.

    Source: Kingma & Welling 2014, section 2.4 and appendix B.

    >>> import torch, fastib
    >>> z, kl = fastib.reparameterize_with_kl(torch.ones(4, 2), torch.zeros(4, 2))
    >>> z.shape, kl
    (torch.Size([4, 2]), tensor(1.))
    """
    mu, logvar, noise = _arguments.check_noisy("mu", mu, "logvar", logvar, noise)
    kind, divisor = _arguments.reduction_of(reduction, mu.shape)
    rng = _rng.draw(mu, noise, generator, rng)
    z, kl = apply(_ops.ReparameterizeWithKL, mu, logvar, noise, rng, kind, divisor)
    return z, kl


def log_variance_penalty(logvar: Tensor, *, reduction: str = "batchmean") -> Tensor:
    """The log-variance penalty E[-log |Sigma(x)|] / 2 of a diagonal Gaussian encoder, in nats::

        -logvar.sum() / 2 / logvar.shape[0]

    Up to a constant it is the information that a code with that noise keeps of its input, under an improper flat prior.
    For multiplicative noise with standard deviation std it is -log(std): pass logvar = 2 * log_std.

    Args:
        logvar: logarithms of the variances, [B, ..., D].
        reduction: "none", "sample" (summed over the last dimension), "sum", "mean", or "batchmean".

    Returns:
        The penalty in float32 (float64 for float64): a scalar, or [B, ...] for "sample", or [B, ..., D] for "none".
        It is negative where the variance exceeds 1.

    Gradients: logvar; a constant, returned as an expanded tensor that takes no memory.

    Raises:
        TypeError: if `logvar` is not a tensor of a floating dtype.
        ValueError: if `reduction` is unknown.

    Source: Achille & Soatto 2018, "Information Dropout", section 4.

    >>> import torch, fastib
    >>> fastib.log_variance_penalty(torch.full((4, 2), -1.0))
    tensor(1.)
    """
    _arguments.check_floating("logvar", logvar)
    kind, divisor = _arguments.reduction_of(reduction, logvar.shape)
    penalty: Tensor = apply(_ops.LogVariancePenalty, logvar, kind, divisor)
    return penalty


def information_dropout(
    x: Tensor,
    log_std: Tensor,
    *,
    prior: str = "log_uniform",
    prior_mean: Tensor | float | None = None,
    prior_log_std: Tensor | float | None = None,
    mask_zero: bool = True,
    mean_one: bool = False,
    reduction: str = "batchmean",
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    rng: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Multiplies activations by log-normal noise of a learned size, and gives the KL that it costs::

        std = torch.exp(log_std)
        shift = std**2 / 2 if mean_one else 0
        z = x * torch.exp(std * torch.randn_like(x) - shift)
        # prior="log_uniform", for ReLU activations:
        kl = torch.where(x > 0, -log_std, 0) if mask_zero else -log_std
        # prior="log_normal", for softplus activations, with prior_std = exp(prior_log_std):
        kl = ((std / prior_std)**2 + ((torch.log(x) - shift - prior_mean) / prior_std)**2 - 1) / 2
        kl = kl + prior_log_std - log_std
        kl.sum() / x.shape[0]

    Args:
        x: activations, [B, ..., D]: positive for the log-normal prior (at 0 its KL is infinite), not negative for the
            log-uniform one, or of any sign where `mask_zero` is False.
        log_std: logarithm of the standard deviation of the log noise, like `x`. (It is log(alpha) of the paper, whose
            alpha is a standard deviation. From a log-variance, pass half of it.)
        prior: "log_uniform" or "log_normal".
        prior_mean, prior_log_std: of the log-normal prior, on log z: numbers, or tensors of one element that may be
            trained; 0 if not given.
        mask_zero: an activation of 0 passes no information, whatever its noise, and costs a constant. False charges it
            as the others, which reproduces the authors' code; that also adds log(alpha_max + 0.001) to each element, a
            constant that is left out here.
        mean_one: shifts the log noise by -std**2 / 2, so that the noise has mean 1 and switching it off at test time
            keeps the mean of z. The log-uniform KL is unchanged; the log-normal one is that of the shifted mean.
        reduction: of the KL: "none", "sample" (summed over the last dimension), "sum", "mean", or "batchmean".
        noise: standard normal noise to use, like `x`.
        generator: the generator to draw from, instead of PyTorch's own.
        rng: int64 [2] on the device of `x`: fixes the noise, or repeats that of another call.

    Returns:
        (z, kl): the noisy activations, with the shape, dtype and strides of `x` (of `torch.empty_like(x)`, if `x` is
        not dense), and the KL in nats, in float32 (float64 for float64): a scalar, or [B, ...] for "sample", or
        [B, ..., D] for "none".

    The KL is per sample. The authors divide theirs by the number N of training samples and average the cross-entropy:
    their beta is N times ours (beta = 3 on CIFAR-10 is 6e-5 here).

    Gradients: x, log_std, prior_mean, prior_log_std, and noise if it requires one.

    Raises:
        TypeError: for a tensor of a wrong dtype, or not a tensor, or `mask_zero` or `mean_one` not a bool.
        ValueError: if shapes or devices differ, `prior` or `reduction` is unknown, the log-uniform prior is given
            parameters, a prior's parameter has more than one element or is a number that is not finite, or more than
            one source of noise is given.

    Source: Achille & Soatto 2018, "Information Dropout: learning optimal representations through noisy computation",
    propositions 2 and 3.

    >>> import torch, fastib
    >>> x, log_std = torch.tensor([[0.0, 2.0]]), torch.tensor([[-1.0, -1.0]])
    >>> z, kl = fastib.information_dropout(x, log_std)
    >>> z[0, 0], kl
    (tensor(0.), tensor(1.))
    """
    x, log_std, noise = _arguments.check_noisy("x", x, "log_std", log_std, noise)
    _arguments.check_flag("mask_zero", mask_zero)
    _arguments.check_flag("mean_one", mean_one)
    mean, std = _arguments.dropout_prior(prior, prior_mean, prior_log_std, x)
    kind, divisor = _arguments.reduction_of(reduction, x.shape)
    rng = _rng.draw(x, noise, generator, rng)
    options = prior == "log_normal", mask_zero, mean_one, kind, divisor
    z, kl = apply(_ops.InformationDropout, x, log_std, mean, std, noise, rng, *options)
    return z, kl


def aggregate_posterior(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    estimator: str = "mss",
    dataset_size: int | None = None,
    weights: tuple[float, float] | None = None,
    log_weights: Tensor | None = None,
    row_offset: int = 0,
    algorithm: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Log densities of points under the aggregate posterior, jointly and for each latent dimension, from a minibatch::

        l = torch.distributions.Normal(mu, torch.exp(logvar / 2)).log_prob(z[:, None])  # [S, N', D]
        log_w = ...  # [S, N']: log(w_self) where j == i + row_offset, log(w_other) elsewhere
        log_qz = torch.logsumexp(l.sum(-1) + log_w, 1)
        log_qz_marginals = torch.logsumexp(l + log_w[..., None], 1)

    in memory O((S + N') D), for S points and the N' Gaussians that the encoder gave for a batch.

    Args:
        z: the points, [S, D]; usually one sample of each Gaussian.
        mu: means, [N', D].
        logvar: logarithms of the variances, like `mu`.
        estimator: what a row's own Gaussian and each of the others weigh, (w_self, w_other), for a data set of size N:
            "mss": 1/N and (N - 1)/(N (N' - 1)), unbiased, and exact where the batch is the data set;
            "mws": 1/(N N') for both, minibatch weighted sampling, biased;
            "in_batch": 1/N' for both, the batch taken for the data set, biased;
            "leave_one_out": 0 and 1/(N' - 1).
        dataset_size: N, the number of training samples. "mss" and "mws" need it.
        weights: (w_self, w_other) themselves, instead of an estimator.
        log_weights: logarithms of arbitrary weights, [S, N'], instead of an estimator: finite, or -inf to leave a
            component out.
        row_offset: row i's own Gaussian is i + row_offset: for points that are a part of the batch.
        algorithm: "direct" sums over all pairs. "near_linear" reads each marginal from a grid, and leaves out of the
            joint what is provably less than 2**-24 of it; it takes float32 and below, and weights of an estimator,
            and sums what it is not sure of directly: float64, `log_weights`, numbers that are not finite or beyond
            2**60, and on any device but a CPU all. "auto" takes the faster one by the shapes alone.

    Returns:
        (log_qz, log_qz_marginals): log q(z_i), [S], and log q(z_id), [S, D], in nats, in float32 (float64 for float64).

    Gradients: z, mu, logvar, through both results in one pass.

    Raises:
        TypeError: for a tensor of a wrong dtype, a `dataset_size` or `row_offset` that is not an integer, or weights
            that are not two numbers.
        ValueError: if shapes or devices do not match; for an unknown estimator, N missing or smaller than N', fewer
            than two components where the estimator divides by N' - 1, negative weights, two sources of weights, rows
            without a component of their own where it has a weight of its own, `log_weights` that require a gradient, or
            an unknown `algorithm`.

    Source: Chen et al. 2018, "Isolating sources of disentanglement in VAEs", section 4.1 and appendix C. Their
    stratified sampling gives one random component of each row the weight (N - N' + 1)/(N (N' - 1)); spreading it over
    all but the row's own keeps the mean, lowers the variance, and is exact for N' = N.

    >>> import torch, fastib
    >>> z, mu, logvar = torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 2)
    >>> log_qz, log_qz_marginals = fastib.aggregate_posterior(z, mu, logvar, dataset_size=100)
    >>> log_qz.shape, log_qz_marginals.shape
    (torch.Size([4]), torch.Size([4, 2]))
    """
    weighting = estimator, dataset_size, weights, log_weights, row_offset
    return _log_densities(z, mu, logvar, *weighting, algorithm, joint=True)


def aggregate_posterior_marginals(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    estimator: str = "mss",
    dataset_size: int | None = None,
    weights: tuple[float, float] | None = None,
    log_weights: Tensor | None = None,
    row_offset: int = 0,
    algorithm: str = "auto",
) -> Tensor:
    """The second result of `aggregate_posterior` alone, in near-linear time::

        _, log_qz_marginals = fastib.aggregate_posterior(z, mu, logvar, dataset_size=N)

    Arguments, gradients and errors are those of `aggregate_posterior`.

    Returns:
        log q(z_id), [S, D], in nats, in float32 (float64 for float64).

    Source: Chen et al. 2018, "Isolating sources of disentanglement in VAEs", equation 2.

    >>> import torch, fastib
    >>> z, mu, logvar = torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 2)
    >>> fastib.aggregate_posterior_marginals(z, mu, logvar, dataset_size=100)[0]
    tensor([-0.9189, -0.9189])
    """
    weighting = estimator, dataset_size, weights, log_weights, row_offset
    return _log_densities(z, mu, logvar, *weighting, algorithm, joint=False)[1]


def _log_densities(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    estimator: str,
    dataset_size: int | None,
    weights: tuple[float, float] | None,
    log_weights: Tensor | None,
    row_offset: int,
    algorithm: str,
    *,
    joint: bool,
) -> tuple[Tensor, Tensor]:
    z, mu, logvar = _arguments.check_posteriors(z, mu, logvar)
    weighting = _arguments.mixture_weights(estimator, dataset_size, weights, log_weights, z, mu)
    _arguments.check_row_offset(row_offset, weighting, z, mu)
    kind = _arguments.algorithm_of(algorithm)
    if log_weights is not None:
        log_weights = log_weights.to(_arguments.accumulate_dtype(z.dtype))
    summation = *weighting, row_offset, kind, joint
    log_qz, log_qz_marginals, _ = apply(_ops.AggregatePosterior, z, mu, logvar, log_weights, *summation)
    return log_qz, log_qz_marginals


def elbo_decomposition(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None = None,
    *,
    estimator: str = "mss",
    row_offset: int | None = None,
    reduction: str = "mean",
    algorithm: str = "auto",
    group: dist.ProcessGroup | None = None,
) -> ELBODecomposition:
    """The three parts of the KL of a VAE: mutual information, total correlation, and dimension-wise KL::

        log_qz, log_qz_marginals = fastib.aggregate_posterior(z, mu, logvar, dataset_size=N)
        log_qz_x = Normal(mu, torch.exp(logvar / 2)).log_prob(z).sum(-1)
        log_pz = Normal(0, 1).log_prob(z).sum(-1)
        mutual_information = (log_qz_x - log_qz).mean()
        total_correlation = (log_qz - log_qz_marginals.sum(-1)).mean()
        dimension_wise_kl = (log_qz_marginals.sum(-1) - log_pz).mean()

    in one pass. Their sum is the Monte-Carlo KL, log q(z|x) - log p(z), whatever the weights.

    Args:
        z: one sample of each posterior, [B, D]; or of a part of them, [S, D], with a `row_offset`.
        mu: means, [B, D].
        logvar: logarithms of the variances, [B, D].
        dataset_size: N, the number of training samples. "mss" and "mws" need it; it is never guessed.
        estimator: "mss", "mws", "in_batch" or "leave_one_out": see `aggregate_posterior`. A short last batch has the
            weights of its own size.
        row_offset: z has samples of the posteriors from this one on: for a part of a batch against all of it.
        reduction: over the samples: "none", "sum" or "mean".
        algorithm: "direct", "near_linear", or "auto" for the faster one: see `aggregate_posterior`.
        group: ranks of torch.distributed, each of which calls this with its part of one batch, of any size: z and its
            posteriors stay there, and the posteriors of all ranks come to them (see `fastib.distributed` for what is
            sent). "sum" and "mean" are then over the samples of all ranks, and the same on each; their gradients are
            those to be averaged over the ranks, as DistributedDataParallel does, so that they are one process's on the
            whole batch. "none" gives this rank's samples, and gradients of the sum of all ranks' losses, not to be
            averaged. Under torch.compile it breaks the graph, and a derivative of its gradients is refused.

    Returns:
        A named tuple (mutual_information, total_correlation, dimension_wise_kl) in nats, in float32 (float64 for
        float64): scalars, or [S] for "none", one of each row of z. It has the attribute `mutual_information_ceiling`:
        -ln w_self, ln N for "mss". The mutual information of no sample exceeds it. Jensen biases the mutual information
        up; a small negative total correlation is legitimate.

    Gradients: z, mu, logvar, through all three terms in one pass.

    Raises:
        TypeError: for a tensor of a wrong dtype, or a `dataset_size` that is not an integer.
        ValueError: if shapes or devices do not match; for an unknown estimator, reduction or algorithm, N missing or
            smaller than B, B < 2 where the estimator divides by B - 1, or rows beyond the posteriors; with `group`, on
            all ranks, if what they pass does not agree.
        RuntimeError: with `group`, if another rank has wrong arguments, or fails or leaves, in either pass. For one
            that neither comes nor leaves, the ranks wait as long as the group's timeout says.

    Source: Chen et al. 2018, equation 2; Hoffman & Johnson 2016, "ELBO surgery".

    >>> import torch, fastib
    >>> z, mu, logvar = torch.randn(8, 2), torch.zeros(8, 2), torch.zeros(8, 2)
    >>> terms = fastib.elbo_decomposition(z, mu, logvar, dataset_size=1000)  # collapsed: nothing is known of x
    >>> [round(abs(term.item()), 4) for term in terms]
    [0.0, 0.0, 0.0]
    >>> round(terms.mutual_information_ceiling, 4)
    6.9078
    """
    if group is not None:
        check = _arguments.decomposition_of_rank
        of_rank = partial(check, z, mu, logvar, dataset_size, estimator, row_offset, reduction, algorithm)
        batch = GlobalBatch(group, of_rank)
        return decompose_global(batch, z, mu, logvar, dataset_size, estimator, reduction, algorithm)
    z, mu, logvar = _arguments.check_posteriors(z, mu, logvar)
    options = _arguments.decomposition(z, mu, logvar, dataset_size, estimator, row_offset, reduction)
    *terms, _ = apply(_ops.ELBODecomposition, z, mu, logvar, *options, _arguments.algorithm_of(algorithm))
    return ELBODecomposition.of(terms, *options[:2], mu.shape[0])


def total_correlation(
    z: Tensor,
    mu: Tensor,
    logvar: Tensor,
    dataset_size: int | None = None,
    *,
    estimator: str = "mss",
    row_offset: int | None = None,
    reduction: str = "mean",
    algorithm: str = "auto",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The total correlation of the aggregate posterior, KL(q(z) || prod_d q(z_d)), from a minibatch::

        log_qz, log_qz_marginals = fastib.aggregate_posterior(z, mu, logvar, dataset_size=N)
        (log_qz - log_qz_marginals.sum(-1)).mean()

    Arguments, gradients and errors are those of `elbo_decomposition`, of which this is the second term.

    Returns:
        The total correlation in nats, in float32 (float64 for float64): a scalar, or [S] for "none", one of each row of
        z.

    Source: Chen et al. 2018, equation 2; Watanabe 1960.

    >>> import torch, fastib
    >>> z = torch.arange(4.0)[:, None].expand(4, 3)  # three copies of one number that tells the sample
    >>> fastib.total_correlation(z, z, torch.full((4, 3), -20.0), dataset_size=4)
    tensor(2.7726)
    """
    decomposition = elbo_decomposition(
        z,
        mu,
        logvar,
        dataset_size,
        estimator=estimator,
        row_offset=row_offset,
        reduction=reduction,
        algorithm=algorithm,
        group=group,
    )
    return decomposition.total_correlation
