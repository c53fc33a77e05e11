"""What is measured: the shapes of each operator, its contenders, and the work that no contender can avoid.

A contender runs forward and backward and returns the gradients by the inputs; in a case of the forward pass alone it
returns the outputs. `fastib` is the public function; `eager` the few lines of PyTorch that people copy; `torch.compile`
those same lines, compiled; `KeOps` the same by pykeops, where that is installed; `fastib <isa>` the public function on
an instruction set other than the one that serves; `fastib float32` beside a case of lower precision.

What an operator must do is counted for each pass, forward and backward:

`moved` counts the tensors that must pass through memory: each pass reads each of its inputs once and writes each of its
outputs once. A gradient that is the upstream one itself, or one number expanded, moves nothing.

`instructions` counts vector instructions per vector of float32, from the formulas in csrc/common: the arithmetic,
comparisons and selections, for AVX2; no loads, stores, shuffles or loops. It takes the noise twice, since keeping
nothing between the passes is what the operators promise.

For an operator on all pairs of a batch there is one exponential in each pass, per pair and dimension, and
`instructions` counts the multiplications and multiply-adds beside it: additions have ports of their own on some cores.
That is the direct algorithm's floor; the near-linear one, which large batches are given to, goes below it.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastib
from fastib import _backends

Contender = Callable[[], tuple[Tensor, ...]]

# Per normal: 10 rounds of 8 instructions on 64-bit lanes for 4 words; Box-Muller 29 for the radius, 23 for the sine and
# cosine, 2 products, for 2 normals.
NOISE = 10 * 8 * 2 // 4 + (29 + 23 + 2) // 2
# e^x: range check 4, reduction 4, polynomial 8, power of two 2, result 1. Two more for e^x - 1 (one less without e^x),
# and three for e^x - 1 - x.
EXP = 19
EXPM1 = EXP + 1
EXP_AND_EXPM1 = EXP + 2
EXPM1_MINUS_X = EXPM1 + 3


class Spec(NamedTuple):
    operator: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    backward: bool = True

    def __str__(self) -> str:
        return f"{self.label} {self.shape_name} {self.dtype_name}"

    @property
    def label(self) -> str:
        return self.operator if self.backward else f"{self.operator}, forward"

    @property
    def shape_name(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


class Case(NamedTuple):
    spec: Spec
    inputs: tuple[Tensor, ...]
    upstream: tuple[Tensor, ...]  # one gradient per output
    contenders: dict[str, Contender]
    bytes: int
    instructions: int  # times lanes: what one lane would need
    exponentials: int


class Operator(NamedTuple):
    fastib: Callable[..., Any]
    eager: Callable[..., Any]
    inputs: Callable[[tuple[int, ...]], tuple[Tensor, ...]]
    moved: tuple[int, int]
    instructions: tuple[int, int]
    keops: Callable[..., Any] | None = None  # for an operator on all pairs of the first dimension

    @property
    def pairs(self) -> bool:
        return self.keops is not None


def _eager_reparameterize(mu: Tensor, logvar: Tensor) -> Tensor:
    std = torch.exp(0.5 * logvar)
    return mu + std * torch.randn_like(std)


def _eager_gaussian_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / mu.shape[0]


def _eager_reparameterize_with_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    return _eager_reparameterize(mu, logvar), _eager_gaussian_kl(mu, logvar)


def _eager_log_variance_penalty(logvar: Tensor) -> Tensor:
    return -0.5 * logvar.sum() / logvar.shape[0]


def _eager_information_dropout(x: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    z = x * torch.exp(torch.exp(log_std) * torch.randn_like(x))
    return z, torch.where(x > 0, -log_std, 0.0).sum() / x.shape[0]


def _eager_aggregate_posterior(z: Tensor, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    log_density = -0.5 * ((z[:, None] - mu).pow(2) * torch.exp(-logvar) + logvar + math.log(2 * math.pi))
    log_batch = math.log(z.shape[0])
    return torch.logsumexp(log_density.sum(2), 1) - log_batch, torch.logsumexp(log_density, 1) - log_batch


def _aggregate_posterior(z: Tensor, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    return fastib.aggregate_posterior(z, mu, logvar, estimator="in_batch")


def _keops_aggregate_posterior(z: Tensor, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Symbolic pairs. KeOps sums exponentials of scalars, so each dimension of the marginals is a batch of its own."""
    from pykeops.torch import LazyTensor

    def log_density(z: Tensor, mu: Tensor, logvar: Tensor) -> Any:
        u = (LazyTensor(z) - LazyTensor(mu)) * LazyTensor(torch.exp(-0.5 * logvar))
        return (-0.5 * (u**2 + LazyTensor(logvar) + math.log(2 * math.pi))).sum(-1)

    log_batch = math.log(z.shape[0])
    joint = log_density(z[:, None], mu[None], logvar[None]).logsumexp(1).view(-1)
    by_dimension = z.t().contiguous(), mu.t().contiguous(), logvar.t().contiguous()
    z, mu, logvar = by_dimension[0][:, :, None, None], *(t[:, None, :, None] for t in by_dimension[1:])
    marginals = log_density(z, mu, logvar).logsumexp(2)
    return joint - log_batch, marginals.squeeze(-1).t() - log_batch


def _elbo_decomposition(z: Tensor, mu: Tensor, logvar: Tensor) -> tuple[Tensor, ...]:
    return fastib.elbo_decomposition(z, mu, logvar, estimator="in_batch")


def _decomposed(aggregate_posterior: Callable[..., Any]) -> Callable[..., Any]:
    """The three terms, from somebody's log densities."""

    def terms(z: Tensor, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_qz, log_qz_marginals = aggregate_posterior(z, mu, logvar)
        product = log_qz_marginals.sum(1)
        log_qz_x = -0.5 * ((z - mu).pow(2) * torch.exp(-logvar) + logvar + math.log(2 * math.pi)).sum(1)
        log_pz = -0.5 * (z.pow(2) + math.log(2 * math.pi)).sum(1)
        return (log_qz_x - log_qz).mean(), (log_qz - product).mean(), (product - log_pz).mean()

    return terms


def _gaussian(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return torch.randn(shape), torch.randn(shape)


def _posteriors(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    mu, logvar = torch.randn(shape), torch.randn(shape) - 1
    return mu + torch.exp(logvar / 2) * torch.randn(shape), mu, logvar


def _logvar(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return (torch.randn(shape),)


def _activation(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    return torch.randn(shape).relu_(), torch.randn(shape) / 10 - 1


OPERATORS = {
    "reparameterize": Operator(
        fastib.reparameterize,
        _eager_reparameterize,
        _gaussian,
        moved=(3, 3),  # mu, logvar -> z; g, logvar -> d_logvar
        instructions=(NOISE + EXP + 2, NOISE + EXP + 4),
    ),
    "gaussian_kl": Operator(
        fastib.gaussian_kl,
        _eager_gaussian_kl,
        _gaussian,
        moved=(2, 4),  # mu, logvar -> scalar; mu, logvar -> d_mu, d_logvar
        instructions=(EXPM1_MINUS_X + 3, EXPM1 + 2),
    ),
    "reparameterize_with_kl": Operator(
        fastib.reparameterize_with_kl,
        _eager_reparameterize_with_kl,
        _gaussian,
        moved=(3, 5),  # mu, logvar -> z; g, mu, logvar -> d_mu, d_logvar
        instructions=(NOISE + EXP_AND_EXPM1 + 3 + 7, NOISE + EXP_AND_EXPM1 + 8),
    ),
    "log_variance_penalty": Operator(
        fastib.log_variance_penalty,
        _eager_log_variance_penalty,
        _logvar,
        moved=(1, 0),  # logvar -> scalar
        instructions=(1, 0),
    ),
    "information_dropout": Operator(
        fastib.information_dropout,
        _eager_information_dropout,
        _activation,
        moved=(3, 5),  # x, log_std -> z; g, x, log_std -> d_x, d_log_std
        instructions=(NOISE + 2 * EXP + 5, NOISE + 2 * EXP + 7),
    ),
    "aggregate_posterior": Operator(
        _aggregate_posterior,
        _eager_aggregate_posterior,
        _posteriors,
        moved=(4, 8),  # z, mu, logvar -> log_qz_marginals; those, their gradient -> d_z, d_mu, d_logvar
        instructions=(3, 3 + 4),  # the exponent, twice; the gradients
        keops=_keops_aggregate_posterior,
    ),
    "elbo_decomposition": Operator(
        _elbo_decomposition,
        _decomposed(_eager_aggregate_posterior),
        _posteriors,
        moved=(3, 6),  # z, mu, logvar -> scalars; those -> d_z, d_mu, d_logvar
        instructions=(3, 3 + 4),
        keops=_decomposed(_keops_aggregate_posterior),
    ),
}

WITH_NOISE = "reparameterize", "reparameterize_with_kl", "information_dropout"

CALL_BOUND, CACHE, MEMORY = (128, 10), (1024, 1024), (4096, 4096)
CONVOLUTION = (128, 96, 16, 16)

PAIRS = ((64, 10), (256, 10), (1024, 10), (1024, 64), (2048, 32))
QUICK = (CALL_BOUND, PAIRS[0])

IN_FLOAT32 = "fastib float32"

SPECS = [
    *(
        Spec(operator, shape)
        for operator in ("reparameterize", "gaussian_kl", "reparameterize_with_kl", "log_variance_penalty")
        for shape in (CALL_BOUND, CACHE, MEMORY)
    ),
    Spec("reparameterize_with_kl", CACHE, torch.bfloat16),
    Spec("reparameterize_with_kl", MEMORY, torch.bfloat16),
    Spec("information_dropout", CALL_BOUND),
    Spec("information_dropout", CONVOLUTION),
    *(Spec("aggregate_posterior", shape) for shape in PAIRS),
    Spec("aggregate_posterior", PAIRS[-1], backward=False),
    *(Spec("elbo_decomposition", shape) for shape in PAIRS[:3]),
]
OF_EACH_ISA = [
    *(Spec("reparameterize_with_kl", shape) for shape in (CALL_BOUND, CACHE, MEMORY)),
    Spec("information_dropout", CONVOLUTION),
    *(Spec("aggregate_posterior", PAIRS[-1], backward=backward) for backward in (True, False)),
]
SPECS.sort(key=lambda spec: list(OPERATORS).index(spec.operator))


def isa() -> str:
    """The instruction set that serves, or "reference"."""
    return "reference" if _backends._cpu is None else str(_backends._cpu.isa())


def contenders(spec: Spec) -> list[str]:
    """The names of a case's contenders. Instruction sets compete in the cases whose speed is promised, and not in
    bfloat16."""
    others = [] if spec.dtype == torch.float32 else [IN_FLOAT32]
    if OPERATORS[spec.operator].pairs and importlib.util.find_spec("pykeops"):
        others = ["KeOps"]
    if _backends._cpu is not None and spec in OF_EACH_ISA:
        others += [f"fastib {name}" for name in _backends._cpu.supported_isas() if name != isa()]
    return ["fastib", "eager", "torch.compile", *others]


def build(spec: Spec, names: list[str]) -> Case:
    """The case with these of its contenders."""
    operator = OPERATORS[spec.operator]
    torch.manual_seed(0)
    inputs = tuple(t.to(spec.dtype).requires_grad_(spec.backward) for t in operator.inputs(spec.shape))
    upstream = tuple(torch.randn_like(output) for output in outputs(operator.fastib, inputs))
    passes = 2 if spec.backward else 1
    elements = inputs[0].numel() * (spec.shape[0] if operator.pairs else 1)
    return Case(
        spec,
        inputs,
        upstream,
        {name: _contender(name, operator, inputs, upstream) for name in names},
        sum(operator.moved[:passes]) * inputs[0].numel() * inputs[0].element_size(),
        sum(operator.instructions[:passes]) * elements,
        passes * elements if operator.pairs else 0,
    )


def outputs(function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    found = function(*inputs)
    return found if isinstance(found, tuple) else (found,)


def _contender(name: str, operator: Operator, inputs: tuple[Tensor, ...], upstream: tuple[Tensor, ...]) -> Contender:
    if name == "eager":
        return _passes(operator.eager, inputs, upstream)
    if name == "torch.compile":
        torch.compiler.reset()  # else the second shape of an operator would be compiled for any shape, and be slower
        return _passes(torch.compile(operator.eager), inputs, upstream)
    if name == "KeOps":
        assert operator.keops is not None
        return _passes(operator.keops, inputs, upstream)
    if name == IN_FLOAT32:
        inputs = tuple(t.detach().float().requires_grad_(t.requires_grad) for t in inputs)
        upstream = tuple(t.float() for t in upstream)
        return _passes(operator.fastib, inputs, upstream)
    call = _passes(operator.fastib, inputs, upstream)
    return call if name == "fastib" else _on_isa(name.removeprefix("fastib "), call)


def _passes(function: Callable[..., Any], inputs: tuple[Tensor, ...], upstream: tuple[Tensor, ...]) -> Contender:
    """Both passes; the forward one alone where the inputs want no gradient."""
    if not inputs[0].requires_grad:
        return lambda: outputs(function, inputs)
    return lambda: torch.autograd.grad(function(*inputs), inputs, upstream)


def _on_isa(name: str, call: Contender) -> Contender:
    module = _backends._cpu
    assert module is not None

    def on_isa() -> tuple[Tensor, ...]:
        before = module.isa()
        module.use_isa(name)
        try:
            return call()
        finally:
            module.use_isa(before)

    return on_isa
