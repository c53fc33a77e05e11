"""Arguments of any kind, made of bytes: `python tests/fuzz_boundary.py -runs=100000` (pip install atheris) looks for
bytes that reach new lines of fastib, and takes libFuzzer's options; test_fuzz.py tries random ones.

A public function and its twin in plain PyTorch must agree on any arguments: both give results of the same shapes and
dtypes, which are the same numbers but for roundings where the arguments are ordinary ones, or both raise the same
error. Neither changes what it was given, and no error is Python's own.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["fastib"]):  # before anything else imports them
        from fastib import reference
import fastib
from fastib import reference

ON_PAIRS = "aggregate_posterior", "aggregate_posterior_marginals", "elbo_decomposition", "total_correlation"
FUNCTIONS = (
    *("reparameterize", "gaussian_kl", "reparameterize_with_kl", "log_variance_penalty", "information_dropout"),
    *ON_PAIRS,
)
MOST_CHOICES = 40  # about, of a call
ERRORS = TypeError, ValueError, RuntimeError, NotImplementedError
SHAPES = ((4, 3), (4, 3), (1, 3), (5, 3), (3,), (), (0, 3), (4, 0), (4, 1), (2, 4, 3), (300, 17), (3, 5000))
SHAPES_OF_PAIRS = ((4, 3), (4, 3), (5, 3), (2, 1), (4, 0), (40, 17), (3, 500))
FLOATS = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
OTHERS = (torch.int64, torch.bool, torch.complex64)
# How far a function may be from its twin, loosely: their errors are the business of the operators' own tests.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


class Bytes:
    """Choices, of a byte each; of no bytes more, the first of all."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def below(self, count: int) -> int:
        return next(self._data, 0) % count

    def pick(self, values: Sequence[Any]) -> Any:
        return values[self.below(len(values))]


class Arguments:
    """Those of a call: tensors mostly of one shape and dtype, so that most calls come to the kernels."""

    def __init__(self, choices: Bytes, name: str) -> None:
        self.choices = choices
        self.shape = choices.pick(SHAPES_OF_PAIRS if name in ON_PAIRS else SHAPES)
        self.dtype = choices.pick(FLOATS)
        self.ordinary = True  # what has huge elements is a difference of what is huger, and all rounding

    def tensor(self) -> Any:
        odd = self.choices.below(64)
        shape = self.choices.pick(SHAPES) if odd == 1 else self.shape
        dtype = self.choices.pick(FLOATS + OTHERS) if odd == 2 else self.dtype
        if odd == 3:
            return self.choices.pick((None, 1.0, [[0.0]]))
        generator = torch.Generator().manual_seed(self.choices.below(256))
        scale = self.choices.pick((1.0, 1.0, 1.0, 1.0, 0.0, 1e-40, 30.0, math.inf))
        self.ordinary &= scale <= 1
        values = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
        layouts: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda t: t,
            lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
            lambda t: t[:1].expand(t.shape) if t.dim() > 0 and t.shape[0] > 0 else t,
            lambda t: t.to_sparse(),
        )
        return layouts[min(self.choices.below(32), 3) if odd == 4 else self.choices.below(3)](values)

    def maybe_tensor(self) -> Any:
        return self.tensor() if self.choices.below(8) == 1 else None

    def rng(self) -> Any:
        return self.choices.pick((torch.tensor([1, 2]),) * 28 + (None, torch.tensor([1.0, 2.0]), torch.tensor([1]), 5))

    def of(self, name: str) -> Any:
        if name in ("noise", "prior_mu", "prior_logvar", "log_weights"):
            return self.maybe_tensor()
        if name in ("generator", "group"):
            return None
        if name == "rng":
            return self.rng()
        if name in GOOD:
            return self.choices.pick(BAD[name] if self.choices.below(64) == 1 else GOOD[name])
        return self.tensor()


# What arguments are usually, and what they may be.
GOOD: dict[str, tuple[Any, ...]] = {
    "reduction": ("mean", "sum", "none", "mean", "sum", "none", "batchmean", "sample"),  # estimators have the first
    "estimator": ("mss", "mws", "in_batch", "leave_one_out"),
    "algorithm": ("auto", "direct", "near_linear"),
    "free_bits_per": ("dimension", "element", "total"),
    "prior": ("log_uniform", "log_normal"),
    "weights": (None, None, None, (0.1, 0.2)),
    "dataset_size": (1000, 1000, 100_000, None),
    "row_offset": (0, 0, 0, 0, 0, 0, 0, 1),
    "free_bits": (0.0, 0.5),
    "prior_mean": (None, None, None, None, 0.5, torch.tensor(0.5)),
    "prior_log_std": (None, None, None, None, 0.1, torch.tensor(0.5)),
    "mask_zero": (True, False),
    "mean_one": (False, True),
}
NUMBERS = (-1, -1.0, 0, 1, 3, 2.5, True, "1", None, 2**40, 2**63, 1e300, 10**30, math.nan, math.inf, torch.zeros(2))
TEXTS = ("", "avg", "given", "exact", None, 2, b"mss")
BAD = {
    name: TEXTS if isinstance(good[0], str) else NUMBERS + (0.5, (0.0, 0.0), (1, 2, 3), (math.nan, 1.0), (-1.0, 1.0))
    for name, good in GOOD.items()
}


Outcome = list[Tensor] | tuple[type[Exception], str]


def outcome(function: Callable[..., Any], arguments: dict[str, Any]) -> Outcome:
    """The results, or the error."""
    torch.manual_seed(0)  # the twin draws the same noise
    try:
        found = function(**arguments)
    except ERRORS as error:
        return type(error), str(error)
    return list(found) if isinstance(found, tuple) else [found]


def difference(found: Outcome, expected: Outcome, ordinary: bool, size: int) -> str | None:
    """In what they differ, beyond roundings of something of that size."""
    if isinstance(found, tuple) or isinstance(expected, tuple):
        return None if found == expected else "not the same"
    if [(t.shape, t.dtype) for t in found] != [(t.shape, t.dtype) for t in expected]:
        return "not of the same shapes and dtypes"
    return "not the same numbers" if ordinary and not all(map(_close, found, expected, [size] * len(found))) else None


def _close(found: Tensor, expected: Tensor, size: int) -> bool:
    finite = found.isfinite() & expected.isfinite()
    told = ~expected.isnan()  # where the plain expression has NaN, a zero under noise that overflows stays zero
    if found[told].isnan().any() or not torch.equal(found[told].isinf(), expected[told].isinf()):
        return False
    a, b, tolerance = found[finite].double(), expected[finite].double(), TOLERANCES[found.dtype]
    return bool(((a - b).abs() <= tolerance * (b.abs() + size)).all())


def try_one(data: bytes) -> tuple[str, bool]:
    """The function, and whether it gave results."""
    choices = Bytes(data)
    name = choices.pick(FUNCTIONS)
    function, twin = getattr(fastib, name), getattr(reference, name)
    made = Arguments(choices, name)
    # None is no value of those that have another by default: most calls leave them out.
    arguments = {key: made.of(key) for key in inspect.signature(function).parameters}
    before = {key: value.clone() for key, value in arguments.items() if isinstance(value, Tensor)}
    found = outcome(function, arguments)
    accepted = inspect.signature(twin).parameters
    expected = outcome(twin, {key: value for key, value in arguments.items() if key in accepted})
    size = max((1, *made.shape[-1:])) if name in ON_PAIRS else 1  # of differences between sums of all dimensions
    different = difference(found, expected, made.ordinary, size)
    assert different is None, f"{name}({arguments}) of {data.hex()}: {found}, and its twin: {expected}: {different}"
    for key, value in before.items():
        assert torch.equal(value.to_dense().nan_to_num(), arguments[key].to_dense().nan_to_num()), (
            f"{name} of {data.hex()} changed {key}"
        )
    return name, not isinstance(found, tuple)


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_one)
    atheris.Fuzz()
