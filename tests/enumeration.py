"""An oracle of its own for the estimators: every minibatch of a small data set, in exact arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations

Weight = Callable[[bool, int, int], Fraction]  # of a row's own component or another, for N and B

# From the papers, in words of their own: not the code under test.
WEIGHTS: dict[str, Weight] = {
    "mss": lambda own, n, b: Fraction(1, n) if own else Fraction(n - 1, n) / (b - 1),
    "mws": lambda own, n, b: Fraction(1, n * b),
    "in_batch": lambda own, n, b: Fraction(1, b),
    "leave_one_out": lambda own, n, b: Fraction(0) if own else Fraction(1, b - 1),
}


def minibatches(n: int, b: int, row: int) -> list[tuple[int, ...]]:
    """Every minibatch of `b` of `n` samples that has sample `row`; `row` comes first."""
    others = [j for j in range(n) if j != row]
    return [(row, *rest) for rest in combinations(others, b - 1)]


def estimate(estimator: str, densities: list[Fraction], batch: tuple[int, ...]) -> Fraction:
    """The estimated density of the batch's first sample under the aggregate posterior of all `densities`."""
    n, b = len(densities), len(batch)
    weight = WEIGHTS[estimator]
    return sum((weight(k == 0, n, b) * densities[j] for k, j in enumerate(batch)), Fraction(0))


def gaussian(z: float, mu: float, logvar: float) -> float:
    """The density of N(mu, exp(logvar)) at z, by the standard library alone."""
    return math.exp(-((z - mu) ** 2) * math.exp(-logvar) / 2 - logvar / 2) / math.sqrt(2 * math.pi)
