"""What the information in the weights says of the error on images that were not trained on."""

from __future__ import annotations

import math

from fastib._arguments import check_integer, check_number

FEWEST_EXAMPLES = 8  # for which Maurer's constant is proven


def pac_bayes_bound(
    error: float, information: float, examples: int, delta: float = 0.05, *, draws: int | None = None
) -> float:
    """The error that weights drawn from a posterior have, at most, where the training images come from::

        kl(p, q) = p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))
        bound = the largest q with kl(error, q) <= (information + log(2 * sqrt(examples) / delta)) / examples

    With probability 1 - delta over the draw of the training set it holds for all posteriors at once, so for one that
    was trained; but the prior must have been fixed before.

    Args:
        error: on the training images, the mean over weights from the posterior, in [0, 1].
        information: the KL of the posterior to the prior, in nats, of all weights together.
        examples: the number N of training images; at least 8.
        delta: the probability that the bound does not hold.
        draws: if `error` is an estimate, the mean of so many independent draws, whose own bound is then taken for it,
            the largest q with kl(error, q) <= log(2 / delta) / draws; each of the two has half of delta.

    Returns:
        The bound, a float in [error, 1]; near 1 it says nothing.

    Gradients: none: it takes and gives plain numbers.

    Raises:
        TypeError: for an argument that is not a number.
        ValueError: for an error outside [0, 1], a negative information, a delta that is not between 0 and 1, or fewer
            than 8 examples, or than one draw.

    Source: Maurer 2004, "A note on the PAC Bayesian theorem", theorem 5; the estimate: Langford & Caruana 2002, "(Not)
    bounding the true error", theorem 2.5; both: Dziugaite & Roy 2017, "Computing nonvacuous generalization bounds".

    >>> from fastib.metrics import pac_bayes_bound
    >>> round(pac_bayes_bound(0.02, 5000.0, 60_000), 3)
    0.134
    """
    for name, value in (("error", error), ("information", information), ("delta", delta)):
        check_number(name, value, minimum=0.0)
    if error > 1:
        raise ValueError(f"error must be in [0, 1], got {error}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, got {delta}")
    check_integer("examples", examples, FEWEST_EXAMPLES)
    if draws is not None:
        check_integer("draws", draws, 1)
        delta /= 2
        error = _largest(error, math.log(2 / delta) / draws)
    return _largest(error, (information + math.log(2 * math.sqrt(examples) / delta)) / examples)


def _largest(p: float, divergence: float) -> float:
    """The largest q with kl(p, q) <= divergence, from above, by bisection to the last bit: kl grows with q above p."""
    low, high = p, 1.0
    while low < (middle := (low + high) / 2) < high:
        if _kl(p, middle) <= divergence:
            low = middle
        else:
            high = middle
    return high


def _kl(p: float, q: float) -> float:
    """The KL in nats of two Bernoulli variables, where q is in (0, 1)."""
    return sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)
