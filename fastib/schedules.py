"""Annealing by optimiser step: of beta, or of the capacity.

A schedule has a `value`, a tensor that losses multiply by, and moves when `step()` is called, once after each step of
the optimiser: never by an evaluation of the loss, so validation does not advance it. It is a module, so that a
checkpoint of the loss or model that holds it holds its position, and a resumed run goes on where it stopped.
"""

from __future__ import annotations

import abc
import math
from typing import Any

import torch
from torch import Tensor, nn

from fastib._arguments import check_integer, check_number

__all__ = ["Cosine", "Cyclic", "Linear", "Schedule"]


class Schedule(nn.Module, abc.ABC):
    """A number that depends on the optimiser step. Subclasses say how, in `at`.

    `value` is float64, whatever dtype the module is cast to, and on the module's device. A CUDA graph sees it move only
    where that is the GPU: what is on the CPU is a constant of the graph, as any number is.

    `at(0)` is asked when the schedule is made: a subclass sets what `at` needs before it calls `super().__init__()`.

    Gradients: none. `value` requires none, and there is no parameter.

    Raises:
        TypeError: for a subclass without `at`. What `at` raises, `__init__` and `step` raise.

    >>> from fastib.schedules import Schedule
    >>> class Halving(Schedule):
    ...     def at(self, step):
    ...         return 0.5**step
    >>> beta = Halving()
    >>> beta.step()
    >>> float(beta.value)
    0.5
    """

    # Of one element: in a tensor of no dimensions, torch.compile loses what is written. The steps taken are in a
    # tensor, too, since a graph takes a number for a constant; on the CPU, where to read it waits for no GPU.
    _values: Tensor

    def __init__(self) -> None:
        super().__init__()
        with torch.inference_mode(False):  # a later step could not change what that mode has made
            self._steps = torch.zeros(1, dtype=torch.int64, device="cpu")
            self.register_buffer("_values", torch.tensor([self.at(0)], dtype=torch.float64), persistent=False)

    @property
    def steps(self) -> int:
        """The steps taken."""
        return int(self._steps)

    @property
    def value(self) -> Tensor:
        """The value at the present step: a scalar, float64."""
        return self._values[0]

    @abc.abstractmethod
    def at(self, step: int) -> float:
        """The value at an optimiser step. Where `step()` is in a graph of torch.compile, it is asked with a tensor of
        one float64 number, and answers with one."""

    def step(self) -> None:
        """Advances by one step of the optimiser."""
        self._steps.add_(1)
        if torch.compiler.is_compiling():
            self._values.copy_(self.at(self._steps.double()))  # type: ignore[arg-type]
        else:
            self._values.fill_(self.at(self.steps))

    def _apply(self, fn: Any, recurse: bool = True) -> Schedule:
        with torch.inference_mode(False):
            nn.Module._apply(self, fn, recurse)  # moves the buffer, and may have rounded it, or left it uninitialised
            self._values = self._values.to(torch.float64)
        self._values.fill_(self.at(self.steps))
        return self

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: Any) -> None:
        self._steps.fill_(int(state["steps"]))
        if self._values.is_meta:  # built there, to be given the tensors of a checkpoint, which hasn't this one
            self._values = torch.empty_like(self._values, device="cpu")
        self._values.fill_(self.at(self.steps))


# Of a number, or of a tensor of one.


def _at_most_one(x: Any) -> Any:
    return x.clamp(max=1.0) if isinstance(x, Tensor) else min(x, 1.0)


def _cosine(x: Any) -> Any:
    return x.cos() if isinstance(x, Tensor) else math.cos(x)


class _Ramp(Schedule):
    def __init__(self, start: float, end: float, steps: int) -> None:
        check_number("start", start)
        check_number("end", end)
        check_integer("steps", steps, 1)
        self.start, self.end, self.length = float(start), float(end), steps
        super().__init__()

    def extra_repr(self) -> str:
        return f"start={self.start}, end={self.end}, steps={self.length}"

    def _between(self, fraction: float) -> float:
        value = self.start + (self.end - self.start) * fraction  # whose rounding may miss the end
        if isinstance(fraction, Tensor):
            return torch.where(fraction == 1, self.end, value)
        return self.end if fraction == 1 else value


class Linear(_Ramp):
    """From `start` to `end` in equal parts over `steps` optimiser steps; `end` from then on::

        start + (end - start) * min(step / steps, 1)

    Args:
        start, end: the first and the last value.
        steps: the optimiser steps from the one to the other.

    Gradients: `value` has none.

    Raises:
        TypeError: if `start` or `end` is not a number, or `steps` not an integer.
        ValueError: if `start` or `end` is not finite, or `steps` is below 1.

    Source: Burgess et al. 2018, "Understanding disentangling in beta-VAE", section 5 (the capacity).

    >>> from fastib.schedules import Linear
    >>> capacity = Linear(0.0, 25.0, steps=100)
    >>> capacity.at(0), capacity.at(50), capacity.at(1000)
    (0.0, 12.5, 25.0)
    """

    def at(self, step: int) -> float:
        return self._between(_at_most_one(step / self.length))


def warmed_up(value: float, warm_up: int) -> float | Linear:
    """The value, or where `warm_up` is not 0 the schedule by which it grows to that from 0 in so many steps."""
    check_integer("warm_up", warm_up, 0)
    return value if warm_up == 0 else Linear(0.0, value, warm_up)


class Cosine(_Ramp):
    """From `start` to `end` along half a cosine over `steps` optimiser steps; `end` from then on::

        start + (end - start) * (1 - cos(pi * min(step / steps, 1))) / 2

    Args:
        start, end: the first and the last value.
        steps: the optimiser steps from the one to the other.

    Gradients: `value` has none.

    Raises:
        TypeError: if `start` or `end` is not a number, or `steps` not an integer.
        ValueError: if `start` or `end` is not finite, or `steps` is below 1.

    Source: the shape of Loshchilov & Hutter 2017, "SGDR", equation 5.

    >>> from fastib.schedules import Cosine
    >>> round(Cosine(0.0, 4.0, steps=100).at(50), 6)
    2.0
    """

    def at(self, step: int) -> float:
        return self._between((1 - _cosine(math.pi * _at_most_one(step / self.length))) / 2)


class Cyclic(_Ramp):
    """Repeats: from `start` to `end` over the first `ramp` of a period of `steps` optimiser steps, then stays::

        start + (end - start) * min((step % steps) / (ramp * steps), 1)

    Args:
        start, end: the first and the last value of a period.
        steps: the optimiser steps of a period.
        ramp: the part of it in which the value moves, above 0 and at most 1.

    Gradients: `value` has none.

    Raises:
        TypeError: if `start`, `end` or `ramp` is not a number, or `steps` not an integer.
        ValueError: if `start` or `end` is not finite, `steps` is below 1, or `ramp` is not above 0 and at most 1.

    Source: Fu et al. 2019, "Cyclical annealing schedule", section 4.

    >>> from fastib.schedules import Cyclic
    >>> beta = Cyclic(0.0, 1.0, steps=100)
    >>> beta.at(25), beta.at(75), beta.at(125)
    (0.5, 1.0, 0.5)
    """

    def __init__(self, start: float, end: float, steps: int, ramp: float = 0.5) -> None:
        check_number("ramp", ramp)
        if not 0 < ramp <= 1:
            raise ValueError(f"ramp must be above 0 and at most 1, got {ramp!r}")
        self.ramp = float(ramp)
        super().__init__(start, end, steps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ramp={self.ramp}"

    def at(self, step: int) -> float:
        return self._between(_at_most_one(step % self.length / (self.ramp * self.length)))
