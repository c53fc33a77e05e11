"""How much of something a representation gives away."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastib import _arguments
from fastib._extras import require
from fastib.metrics import _inputs

_STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # of the penalty, inverted, as scikit-learn counts it
_STEPS = 100
_FEWEST_OF_A_CLASS = 5  # a fifth of the rows chooses the penalty


class ProbeResult(NamedTuple):
    """What `probe` finds: floats, without gradients."""

    information: float
    """In nats, from 0 to the entropy of the test rows' classes."""
    accuracy: float
    """The share of test rows whose class is predicted, in [0, 1]."""


@torch.no_grad()
def probe(features_train: Tensor, targets_train: Tensor, features_test: Tensor, targets_test: Tensor) -> ProbeResult:
    """The information on a target that a linear classifier reads from features, on data that it has not seen::

        model = LogisticRegression().fit(standardized(features_train), targets_train)
        p = model.predict_proba(standardized(features_test))
        information = entropy(targets_test) - log_loss(targets_test, p)

    or 0 where that is negative: a guess reads as much. Up to the error of the test set it is a lower bound of the
    mutual information of target and features, and nuisance information where the target is a nuisance. For the
    information in each layer of a network, call it for each.

    The penalty of the multinomial logistic regression is chosen, from 1e-4 to 1e2 by tens, on a fifth of the training
    rows. The time is proportional to rows, features and classes: about 2 s on a core for 5000 rows of 2000 features and
    10 classes. Average or pool the maps of a convolution where they are larger.

    Args:
        features_train: [n, ...], flattened.
        targets_train: the classes, int64 [n], any integers.
        features_test: like `features_train`, of other rows.
        targets_test: like `targets_train`; only classes that are there, too.

    Returns:
        (information, accuracy): in nats, and the share of test rows whose class is predicted, as floats.

    Gradients: none. The result is the same in every call, and draws no random number of PyTorch or NumPy.

    Raises:
        TypeError: for features that are not of a floating dtype, or targets that are not int64.
        ValueError: if shapes or devices do not match, a feature is not finite, there are fewer than two classes or five
            rows of one of them in `targets_train`, or `targets_test` has a class of its own.
        ImportError: without scikit-learn, which the extra `models` installs.

    Source: Xu et al. 2020, "A theory of usable information under computational constraints", definition 2, for linear
    classifiers; Alain & Bengio 2017, "Understanding intermediate layers using linear classifier probes".

    >>> import torch
    >>> from fastib.metrics import probe
    >>> targets = torch.arange(400) % 2
    >>> information, accuracy = probe(targets[:300].double(), targets[:300], targets[300:].double(), targets[300:])
    >>> round(information, 2), accuracy  # ln 2 = 0.69
    (0.69, 1.0)
    """
    _check(features_train, targets_train, features_test, targets_test)
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    both = torch.cat([f.reshape(len(f), -1).double().cpu() for f in (features_train, features_test)])
    x_train, x_test = (x.numpy() for x in _inputs.scaled(both).tensor_split([len(features_train)]))
    y_train, y_test = targets_train.cpu().numpy(), targets_test.cpu().numpy()
    scaler = StandardScaler().fit(x_train)
    x_train, x_test = scaler.transform(x_train), scaler.transform(x_test)
    with threadpool_limits(1, "blas"):  # the products are thin: threads wait for each other longer than they work
        model = _fitted(x_train, y_train)
    shares = targets_test.unique(return_counts=True)[1].double() / len(targets_test)
    entropy = torch.special.entr(shares).sum().item()
    return ProbeResult(max(entropy - _cross_entropy(model, x_test, y_test), 0.0), float(model.score(x_test, y_test)))


def _fitted(x: Any, y: Any) -> Any:
    """The regression, fitted to all rows with the penalty that suits a fifth of them best when it has not seen these.

    From strong to weak, each begins where the one before ended, until they get worse: weak ones take most of the time.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    x_fit, x_other, y_fit, y_other = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    model = LogisticRegression(max_iter=_STEPS, warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # any classifier gives a lower bound
        best, lowest = _STRENGTHS[0], math.inf
        for strength in _STRENGTHS:
            loss = _cross_entropy(model.set_params(C=strength).fit(x_fit, y_fit), x_other, y_other)
            if loss >= lowest:
                break
            best, lowest = strength, loss
        return model.set_params(C=best).fit(x, y)


def _cross_entropy(model: Any, x: Any, y: Any) -> float:
    from sklearn.metrics import log_loss

    return float(log_loss(y, model.predict_proba(x), labels=model.classes_))


def _check(features_train: Any, targets_train: Any, features_test: Any, targets_test: Any) -> None:
    require("sklearn", "probe")
    for part, features, targets in (("train", features_train, targets_train), ("test", features_test, targets_test)):
        name = f"features_{part}"
        _arguments.check_floating(name, features)
        if features.dim() == 0 or features.numel() == 0:
            raise ValueError(f"{name} must have at least one row and one feature, got shape {tuple(features.shape)}")
        _inputs.check_finite(name, features)
        _inputs.check_int64(f"targets_{part}", targets, 1, name, features)
    if features_test.shape[1:] != features_train.shape[1:]:
        expected, got = (tuple(features.shape[1:]) for features in (features_train, features_test))
        raise ValueError(f"features_test must have the features of features_train, {expected}, got {got}")
    wrong = what_is_wrong(targets_train, targets_test)
    if wrong is not None:
        raise ValueError(wrong)


def what_is_wrong(targets_train: Tensor, targets_test: Tensor) -> str | None:
    """Why there is no probe of some classes, if there is none."""
    classes, counts = targets_train.unique(return_counts=True)
    if len(classes) < 2:
        return f"targets_train must have at least two classes, got {classes.tolist()}"
    if counts.min() < _FEWEST_OF_A_CLASS:
        rare = f"{counts.min().item()} of class {classes[counts.argmin()].item()}"
        return f"targets_train must have at least {_FEWEST_OF_A_CLASS} rows of each class, got {rare}"
    unknown = targets_test[~torch.isin(targets_test, classes)]
    if len(unknown) > 0:
        return f"targets_test must have no class that targets_train lacks, got {unknown[0].item()}"
    return None
