"""Whether each latent dimension carries one factor that the data were made from, and each factor has one dimension.

`codes` are the means of the encoder, [n, D], and `factors` the integers behind the same n samples, int64 [n, K], both
on one device. Factors and latent dimensions may come in any order and number. The scale of a dimension matters only to
whether it is active, or collapsed. A factor that has one value only is left out of every mean over the factors. Nothing
here has a gradient, and what is random is a function of `seed` alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from fastib import _arguments, functional
from fastib._extras import require
from fastib.metrics import _inputs
from fastib.metrics.exact import Encoder, encoded

_BATCH = 512  # images that are rendered at once
_ROWS_FOR_STD = 10_000
_COLLAPSED = 0.05  # standard deviation of a dimension that the encoder does not use
_TREES, _LEAF = 50, 5  # leaves of fewer rows are fitted to noise
_FEW_BINS = 20  # which any number of rows may have
FEWEST_FOR_TREES = 8  # a quarter of the rows is for testing


class MutualInformationGap(NamedTuple):
    """What `mutual_information_gap` finds. The tensors are float64, on the device of the codes, without gradients."""

    score: float
    """The mean of the gaps."""
    gaps: Tensor
    """For each factor, [K], as shares of its entropy; NaN for one of a single value."""
    information: Tensor
    """Of each latent dimension and each factor, [D, K], in nats."""


class DCI(NamedTuple):
    """What `dci` finds. Its scores are in [0, 1], and nothing has a gradient."""

    disentanglement: float
    """Whether each latent dimension is of importance for one factor alone."""
    completeness: float
    """Whether each factor needs one latent dimension alone."""
    informativeness: float
    """How well the codes predict the factors, R^2."""
    importance: Tensor
    """Of each latent dimension for each factor, float64 [D, K], on the CPU. Columns sum to 1, or to 0."""


class SeparatedAttributePredictability(NamedTuple):
    """What `sap` finds. The tensors are float64, on the device of the codes, without gradients."""

    score: float
    """The mean of the gaps."""
    gaps: Tensor
    """For each factor, [K]; NaN for one of a single value."""
    predictability: Tensor
    """Of each factor from each latent dimension, [D, K], in [0, 1]: R^2, or the balanced accuracy of a factor that is
    `categorical`."""


@runtime_checkable
class ImagesWithFactors(Protocol):
    """Images and the integers that they were made from, such as `fastib.datasets.Sprites`."""

    def __len__(self) -> int: ...

    def images(self, indices: Tensor, /) -> Tensor:
        """Those at `indices`, int64 [n] on the CPU: [n, ...], as an encoder takes them."""

    def factors(self, indices: Tensor, /) -> Tensor:
        """Those of the images at `indices`, int64 [n] on the CPU: int64 [n, K]."""


@torch.no_grad()
def mutual_information_gap(
    codes: Tensor, factors: Tensor, *, logvar: Tensor | None = None, bins: int = _FEW_BINS, seed: int = 0
) -> MutualInformationGap:
    """MIG: how much more the best latent dimension knows of a factor than the second best, as a share of its entropy::

        first, second = information.topk(2, dim=0).values  # information[j, k] = I(z_j; v_k)
        score = ((first - second) / entropy(factors)).mean()

    1 if each factor is known to one dimension, and to that alone.

    Without `logvar`, I(z_j; v_k) is that of the means in `bins` bins of equal width, as Locatello et al. have it. It is
    biased upward by about (bins - 1)(values - 1)/(2 n).

    With `logvar`, it is Chen et al.'s own, of samples z of the posteriors::

        z = fastib.reparameterize(codes, logvar, rng=torch.tensor([seed, 0]))
        information[j, k] = (log_q(z[:, j] | v[:, k]) - log_q(z[:, j])).mean()

    where q(z_j) is the mixture of the posteriors of all n rows and q(z_j | v_k) that of the rows with this v_k: with
    all rows of a data set nothing else is estimated. That is near-linear in n, seconds for the 737 280 rows of the
    sprites; float64 sums over all pairs. Values of a factor weigh as often as they occur.

    Args:
        codes: the means, [n, D], D >= 2.
        factors: int64 [n, K].
        logvar: logarithms of the variances, like `codes`.
        bins: how many, without `logvar`; at most the number of rows, or 20.
        seed: of the samples, with `logvar`.

    Returns:
        (score, gaps, information): a float, and float64 tensors [K] and [D, K], the latter in nats.

    Gradients: none.

    Raises:
        TypeError: for codes that are not of a floating dtype, factors that are not int64, a `bins` or `seed` that is
            not an integer.
        ValueError: if shapes or devices do not match, a code is not finite, there are fewer than two rows or latent
            dimensions, no factor varies, or `bins` is below 2 or too large.

    Source: Chen et al. 2018, "Isolating sources of disentanglement in VAEs", equation 6 and appendix B; Locatello et
    al. 2019, "Challenging common assumptions in the unsupervised learning of disentangled representations".

    >>> import torch
    >>> from fastib.metrics import mutual_information_gap
    >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(5))
    >>> codes = factors.flip(1).double()
    >>> round(mutual_information_gap(codes, factors).score, 3)
    1.0
    >>> round(mutual_information_gap(codes[:, [0, 1, 1]], factors).score, 3)  # the first factor has two dimensions
    0.5
    """
    _inputs.check_codes("codes", codes, dims=2)
    values, varying = _checked_factors("factors", factors, "codes", codes)
    _arguments.check_integer("bins", bins, 2)
    _arguments.check_integer("seed", seed, 0)
    if logvar is None:
        if bins > max(len(codes), _FEW_BINS):
            raise ValueError(f"bins must be at most the number of rows, {len(codes)}, got {bins}")
        information = _binned_information(_inputs.scaled(codes.double()), values, bins)
    else:
        _arguments.check_like("logvar", logvar, "codes", codes)
        _inputs.check_finite("logvar", logvar)
        information = _posterior_information(codes, logvar, values, seed)
    entropies = torch.stack([_entropy(v) for v in values.T])
    score, gaps = _gap_of_the_best(information / entropies, varying)
    return MutualInformationGap(score, gaps, information)


@torch.no_grad()
def factor_vae_score(
    encoder: Encoder,
    dataset: ImagesWithFactors,
    *,
    votes: int = 800,
    test_votes: int = 800,
    batch: int = 64,
    seed: int = 0,
) -> float:
    """How well the latent dimension that varies least tells which factor was held fixed::

        rows = rows of the data set with one value of factor k, at random
        mu, _ = encoder(dataset.images(rows))
        vote = ((mu / std).var(0).argmin(), k)  # std over the data set

    A classifier that takes for each dimension the factor with most of the `votes` is tested on other votes: 1 if each
    factor has a dimension of its own, about 1/K for codes that know nothing.

    Dimensions with a standard deviation below 0.05 are collapsed and do not vote; if all are, the score is 0. The
    standard deviations are those of 10 000 images, drawn at random, or of all if there are fewer.

    Args:
        encoder: what gives (mu, logvar), two of [n, D], for images; a module, or a method of one, runs in evaluation
            mode, on the device of its parameters.
        dataset: what has `len`, `images(indices)` and `factors(indices)`, such as `fastib.datasets.Sprites`.
        votes: how many teach the classifier.
        test_votes: how many test it.
        batch: images for each vote.
        seed: of all choices of images.

    Returns:
        The share of the test votes that the classifier predicts, a float.

    Gradients: none; the encoder runs without.

    Raises:
        TypeError: for a data set without these methods, an encoder that does not give two tensors, factors that are not
            int64, a number of votes or images that is not an integer.
        ValueError: if `batch` is below 2, another number below 1, no factor varies, or a mean is not finite.

    Source: Kim & Mnih 2018, "Disentangling by factorising", section 4; the threshold is that of Locatello et al. 2019.

    >>> import torch
    >>> from fastib.datasets import Sprites
    >>> from fastib.metrics import factor_vae_score
    >>> factor_vae_score(lambda images: (torch.zeros(len(images), 10),) * 2, Sprites())  # it has collapsed
    0.0
    """
    for name, number, fewest in (("votes", votes, 1), ("test_votes", test_votes, 1), ("batch", batch, 2)):
        _arguments.check_integer(name, number, fewest)
    _arguments.check_integer("seed", seed, 0)
    if not callable(encoder):
        raise TypeError(f"encoder must be a callable, got {type(encoder).__name__}")
    if not isinstance(dataset, ImagesWithFactors):
        raise TypeError(f"dataset must have len, images and factors, got {type(dataset).__name__}")
    rows = torch.arange(len(dataset))
    values, varying = _checked_factors("dataset.factors", dataset.factors(rows), "dataset", rows)
    generator = torch.Generator().manual_seed(seed)

    means = _means(encoder, dataset, torch.randperm(len(rows), generator=generator)[:_ROWS_FOR_STD])
    std = _inputs.scaled(means).std(0) * _inputs.scale_of(means)
    active = std > _COLLAPSED
    if not active.any():
        return 0.0
    fixed = varying[torch.randint(len(varying), (votes + test_votes,), generator=generator)]
    drawn = _rows_of_votes(values, fixed, batch, generator)
    codes = (_means(encoder, dataset, drawn)[:, active] / std[active]).unflatten(0, (-1, batch))
    least = codes.var(1).argmin(1)
    factor_of = _majority(least[:votes], fixed[:votes], codes.shape[2], values.shape[1])
    return float((factor_of[least[votes:]] == fixed[votes:]).double().mean())


@torch.no_grad()
def dci(codes: Tensor, factors: Tensor, *, seed: int = 0) -> DCI:
    """Disentanglement, completeness and informativeness, by regressing each factor on the codes::

        importance[:, k] = RandomForestRegressor().fit(codes, factors[:, k]).feature_importances_
        # for each latent dimension, with p = importance[j] / importance[j].sum():
        disentanglement[j] = 1 - entropy(p) / log(K)
        # for each factor, with p = importance[:, k] / importance[:, k].sum():
        completeness[k] = 1 - entropy(p) / log(D)

    weighted by the share of the importance that a dimension, or factor, has. Informativeness is the coefficient of
    determination R^2 on rows that the forest has not seen, or 0 where it is negative, as a mean over the factors.

    The forests are of 50 trees whose leaves have five rows or more, fitted to three quarters of the rows. They regress,
    as Eastwood & Williams have it: an order of the values helps, and needs not be there, as trees cut where they like.
    (Gradient boosting that classifies, as in Locatello et al., takes fifty times as long for factors of 32 values, and
    spends splits on noise.) 2000 rows of 10 dimensions and 5 factors take a second, and time is proportional to n D K.

    Args:
        codes: the means, [n, D], n >= 8, D >= 2.
        factors: int64 [n, K].
        seed: of the split and the forests.

    Returns:
        (disentanglement, completeness, informativeness, importance): floats, and a float64 tensor [D, K], whose columns
        sum to 1, or to 0 where the codes or the factor do not vary.

    Gradients: none.

    Raises:
        TypeError: for codes that are not of a floating dtype, factors that are not int64, a seed that is not an
            integer.
        ValueError: if shapes or devices do not match, a code is not finite, there are too few rows or latent
            dimensions, or less than two factors vary.
        ImportError: without scikit-learn, which the extra `models` installs.

    Source: Eastwood & Williams 2018, "A framework for the quantitative evaluation of disentangled representations".

    >>> import torch
    >>> from fastib.metrics import dci
    >>> factors = torch.cartesian_prod(torch.arange(6), torch.arange(9)).repeat(5, 1)
    >>> dci(factors.double(), factors)[:3]
    (1.0, 1.0, 1.0)
    """
    _inputs.check_codes("codes", codes, rows=FEWEST_FOR_TREES, dims=2)
    values, varying = _checked_factors("factors", factors, "codes", codes, fewest=2)
    _arguments.check_integer("seed", seed, 0)
    require("sklearn", "dci")
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import train_test_split

    seed %= 2**32  # NumPy takes no more
    x_train, x_test, y_train, y_test = train_test_split(
        _inputs.scaled(codes.double()).cpu().numpy(), values.cpu().numpy(), random_state=seed
    )
    importance = torch.zeros(codes.shape[1], values.shape[1], dtype=torch.float64)
    determination = []
    for k in varying.tolist():
        forest = RandomForestRegressor(_TREES, min_samples_leaf=_LEAF, random_state=seed)
        forest.fit(x_train, y_train[:, k])
        importance[:, k] = torch.from_numpy(forest.feature_importances_)
        determination.append(max(float(forest.score(x_test, y_test[:, k])), 0.0))
    used = importance[:, varying.cpu()]
    informativeness = sum(determination) / len(determination)
    return DCI(_concentration(used), _concentration(used.T), informativeness, importance)


@torch.no_grad()
def sap(codes: Tensor, factors: Tensor, *, categorical: Sequence[int] = ()) -> SeparatedAttributePredictability:
    """How much better the best latent dimension alone predicts a factor than the second best::

        predictability = corrcoef(codes, factors)**2  # R^2 of a linear regression: [D, K]
        first, second = predictability.topk(2, dim=0).values
        score = (first - second).mean()

    For a factor whose values have no order it is the balanced accuracy of the best thresholds on the dimension, one
    less than the factor has values (by a decision tree); by chance it is one over the number of values. A constant
    dimension predicts nothing: 0.

    Args:
        codes: the means, [n, D], D >= 2.
        factors: int64 [n, K].
        categorical: the columns of `factors` whose values have no order; [0], the shape, for the sprites.

    Returns:
        (score, gaps, predictability): a float, and float64 tensors [K] and [D, K].

    Gradients: none.

    Raises:
        TypeError: for codes that are not of a floating dtype, factors that are not int64, or `categorical` not
            integers.
        ValueError: if shapes or devices do not match, a code is not finite, there are fewer than two rows or latent
            dimensions, no factor varies, or `categorical` has a number that is no column.
        ImportError: with `categorical`, without scikit-learn, which the extra `models` installs.

    Source: Kumar et al. 2018, "Variational inference of disentangled latent concepts from unlabeled observations",
    section 3.

    >>> import torch
    >>> from fastib.metrics import sap
    >>> factors = torch.cartesian_prod(torch.arange(3), torch.arange(5))
    >>> round(sap(factors.double(), factors).score, 6)
    1.0
    """
    _inputs.check_codes("codes", codes, dims=2)
    values, varying = _checked_factors("factors", factors, "codes", codes)
    if not isinstance(categorical, Sequence):
        raise TypeError(f"categorical must be a sequence of integers, got {type(categorical).__name__} {categorical!r}")
    for k in categorical:
        _arguments.check_integer("categorical", k, 0)
        if k >= factors.shape[1]:
            raise ValueError(f"categorical must have columns of factors, below {factors.shape[1]}, got {k}")
    if categorical:
        require("sklearn", "sap")
    codes = _inputs.scaled(codes.double())
    predictability = (_inputs.standardized(codes).T @ _inputs.standardized(factors.double()) / len(codes)) ** 2
    for k in set(categorical).intersection(varying.tolist()):
        predictability[:, k] = _accuracy_of_thresholds(codes, values[:, k])
    score, gaps = _gap_of_the_best(predictability, varying)
    return SeparatedAttributePredictability(score, gaps, predictability)


def _checked_factors(name: str, factors: Any, other_name: str, other: Tensor, fewest: int = 1) -> tuple[Tensor, Tensor]:
    """The factors with their values counted from 0, and which of them vary."""
    _inputs.check_int64(name, factors, 2, other_name, other)
    varying = _inputs.varying(factors).nonzero()[:, 0]
    if len(varying) < fewest:
        raise ValueError(f"{name} must have at least {fewest} that vary, got {len(varying)}")
    return torch.stack([v.unique(return_inverse=True)[1] for v in factors.T], 1), varying


def _gap_of_the_best(matrix: Tensor, varying: Tensor) -> tuple[float, Tensor]:
    """Between the largest and the second largest number of each column: the mean of those that vary, and all."""
    first, second = matrix.topk(2, dim=0).values
    gaps = torch.full_like(first, math.nan)
    gaps[varying] = (first - second)[varying]
    return gaps[varying].mean().item(), gaps


def _entropy(labels: Tensor) -> Tensor:
    shares = labels.bincount().double() / len(labels)
    return -torch.xlogy(shares, shares).sum()


def _binned_information(codes: Tensor, values: Tensor, bins: int) -> Tensor:
    low, high = codes.aminmax(dim=0)
    width = torch.where(high > low, high - low, 1)
    binned = ((codes - low) / width * bins).long().clamp(max=bins - 1)
    joint = [[_entropy(v * bins + b) for v in values.T] for b in binned.T]
    of_codes, of_values = (torch.stack([_entropy(x) for x in labels.T]) for labels in (binned, values))
    return of_codes[:, None] + of_values - torch.tensor(joint, dtype=torch.float64, device=codes.device)


def _posterior_information(mu: Tensor, logvar: Tensor, values: Tensor, seed: int) -> Tensor:
    z = functional.reparameterize(mu, logvar, rng=torch.tensor([seed, 0], device=mu.device))

    def log_q(rows: Tensor | slice) -> Tensor:
        mixture = z[rows], mu[rows], logvar[rows]
        return functional.aggregate_posterior_marginals(*mixture, estimator="in_batch").double()

    marginal = log_q(slice(None))
    information = torch.empty(mu.shape[1], values.shape[1], dtype=torch.float64, device=mu.device)
    for k, v in enumerate(values.T):
        conditional = torch.empty_like(marginal)
        for rows in _rows_of_each_value(v):
            conditional[rows] = log_q(rows)
        information[:, k] = (conditional - marginal).mean(0)
    return information


def _rows_of_each_value(values: Tensor) -> tuple[Tensor, ...]:
    groups: tuple[Tensor, ...] = values.argsort(stable=True).split(values.bincount().tolist())
    return groups


def _rows_of_votes(values: Tensor, fixed: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """For each vote, so many rows that have one value of the factor that is fixed. Values weigh as often as they
    occur."""
    groups = {k: _rows_of_each_value(values[:, k]) for k in set(fixed.tolist())}
    like = torch.randint(len(values), fixed.shape, generator=generator)
    drawn = []
    for k, value in zip(fixed.tolist(), values[like, fixed].tolist(), strict=True):
        rows = groups[k][value]
        drawn.append(rows[torch.randint(len(rows), (count,), generator=generator)])
    return torch.cat(drawn)


def _means(encoder: Encoder, dataset: ImagesWithFactors, rows: Tensor) -> Tensor:
    mu, _ = encoded(encoder, (dataset.images(some) for some in rows.split(_BATCH)), False)
    _inputs.check_finite("the means of encoder", mu)
    return mu.double().cpu()


def _majority(dims: Tensor, factors: Tensor, dim_count: int, factor_count: int) -> Tensor:
    """For each dimension, the factor that it was seen with most often."""
    pairs = dims * factor_count + factors
    return pairs.bincount(minlength=dim_count * factor_count).view(dim_count, factor_count).argmax(1)


def _concentration(importance: Tensor) -> float:
    """1 less the entropy of each row, relative to the largest that it could have; rows weigh what they sum to."""
    tiny = torch.finfo(importance.dtype).tiny
    weights = importance.sum(1)
    shares = importance / weights.clamp(min=tiny)[:, None]
    concentrations = 1 - torch.special.entr(shares).sum(1) / math.log(importance.shape[1])
    return float((concentrations * weights).sum() / weights.sum().clamp(min=tiny))


def _accuracy_of_thresholds(codes: Tensor, values: Tensor) -> Tensor:
    """Of each latent dimension, [D]."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.tree import DecisionTreeClassifier

    y = values.cpu().numpy()
    accuracies = torch.zeros(codes.shape[1], dtype=torch.float64)
    for j, x in enumerate(codes.cpu().numpy().T):
        if x.min() < x.max():
            tree = DecisionTreeClassifier(max_leaf_nodes=int(y.max()) + 1, class_weight="balanced", random_state=0)
            accuracies[j] = balanced_accuracy_score(y, tree.fit(x[:, None], y).predict(x[:, None]))
    return accuracies
