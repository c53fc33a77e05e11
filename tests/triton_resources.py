"""What every Triton kernel takes of a GPU, compiled without one: registers, shared memory, and stack, which is spills.

`python tests/triton_resources.py` prints the table; with a file name, it writes the budget that the test holds it to.
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction
from triton.runtime.autotuner import Autotuner

from fastib import _triton

ARCHITECTURES = 80, 90, 100
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.int64: "*i64"}

_OPTIONAL = "prior_mu", "log_weights", "kl", "kl_sums", "information"
_OPTIONS = "REDUCTION", "LOG_NORMAL", "OF_MEAN"


class Variant(NamedTuple):
    """A kernel as it is launched: what decides its code."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[tuple[int], Any]
    aligned: tuple[int, ...]
    warps: int


def _variant(kernel: Any, args: tuple[Any, ...], meta: dict[str, Any]) -> Variant:
    warps = meta.pop("num_warps", 4)
    given = dict(zip(kernel.arg_names, args, strict=False)) | meta
    signature, constants, aligned = {}, {}, []
    for i, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
            aligned.append(i)
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
    tile = "x".join(str(meta[k]) for k in ("OUTER", "LANES", "OUTPUTS", "TERMS", "BLOCK") if k in meta)
    file = Path(kernel.fn.__code__.co_filename).stem
    pointers = sorted({t[1:] for t in signature.values() if t.startswith("*")} - {"i64"})
    absent = [name for name in _OPTIONAL if name in given and given[name] is None]
    options = [f"{k}={v:d}" for k, v in meta.items() if k in _OPTIONS]
    parts = [f"{file}.{kernel.fn.__name__}", "+".join(pointers), tile, *options, *(f"no_{n}" for n in absent)]
    return Variant(" ".join(parts), kernel, signature, constants, tuple(aligned), warps)


def _launches(run: Any) -> list[Variant]:
    """What `run` would launch: nothing is run, so no kernel's result may be read on the host."""
    found: list[Variant] = []

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **meta: Any) -> None:
        found.append(_variant(self, args, meta))

    def launch_each(self: Any, *args: Any, grid: Any, warmup: bool, **meta: Any) -> None:
        found.extend(_variant(self.fn, args, meta | config.all_kwargs()) for config in self.configs)

    before = JITFunction.run, Autotuner.run
    JITFunction.run, Autotuner.run = launch, launch_each
    try:
        run()
    finally:
        JITFunction.run, Autotuner.run = before
    return found


def _elementwise(dtype: torch.dtype) -> None:
    k, rng = _triton.KERNELS, torch.zeros(2, dtype=torch.int64)
    x, wide = torch.zeros(400, 10, dtype=dtype), torch.promote_types(dtype, torch.float32)
    scalar, sample = torch.zeros((), dtype=wide), torch.zeros(400, dtype=wide)
    k["reparameterize"](x, x, None, rng)
    k["reparameterize_backward"](x, x, None, rng)
    k["log_variance_penalty"](x, 0, 1.0)
    for priors in ((None, None), (x, x[0])):
        for reduction in (0, 2, 3):
            k["gaussian_kl"](x, x, *priors, reduction, 1.0, 0.5)
        k["gaussian_kl_backward"](scalar, x, x, *priors, 2, 1.0, 0.5, 15 if priors[0] is not None else 3)
    k["gaussian_kl_backward"](sample, x, x, None, None, 1, 1.0, 0.0, 3)
    for reduction in (0, 1, 2):
        k["reparameterize_with_kl"](x, x, None, rng, reduction, 1.0)
    k["reparameterize_with_kl_backward"](x, scalar, x, x, None, rng, 2, 1.0, 3)
    for log_normal in (False, True):
        arguments = x, x, scalar, scalar, None, rng, log_normal, True, True
        for reduction in (1, 2):
            k["information_dropout"](*arguments, reduction, 1.0)
        k["information_dropout_backward"](x, scalar, *arguments, 2, 1.0, 3)


def _pairs(dtype: torch.dtype) -> None:
    k = _triton.KERNELS
    x, row, all_pairs = (
        torch.zeros(500, 64, dtype=dtype),
        torch.zeros(500, dtype=dtype),
        torch.zeros(500, 500, dtype=dtype),
    )
    saved = torch.zeros(500, 130, dtype=dtype)
    k["elbo_decomposition"](x, x, x, 0.1, 0.2, 0, 2, 1.0, 0)
    k["elbo_decomposition_backward"](row[0], row[0], row[0], x, x, x, saved, 0.1, 0.2, 0, 2, 1.0, 0)
    if dtype == torch.float32:
        k["aggregate_posterior"](x, x, x, all_pairs, 1.0, 1.0, 0, 0, True)
        k["aggregate_posterior_backward"](row, x, x, x, x, all_pairs, saved, 1.0, 1.0, 0, 0, True)


def variants() -> dict[str, Variant]:
    """By name; every kernel of every operator is among them."""
    found = _launches(lambda: _triton.KERNELS["philox_words"](torch.zeros(2, dtype=torch.int64), 0, 1000))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        found += _launches(lambda dtype=dtype: _elementwise(dtype))
    for dtype in (torch.float32, torch.float64):
        found += _launches(lambda dtype=dtype: _pairs(dtype))
    return {variant.name: variant for variant in found}


def kernels() -> set[str]:
    """All that there are: the functions of the package that no other of them calls."""
    files = Path(_triton.__file__).parent.glob("[!_]*.py"), Path(_triton.__file__).parent.glob("_[!_]*.py")
    functions = {}
    for file in itertools.chain(*files):
        for name, value in vars(importlib.import_module(f"fastib._triton.{file.stem}")).items():
            function = value.fn if isinstance(value, Autotuner) else value
            if isinstance(function, JITFunction) and Path(function.fn.__code__.co_filename).stem == file.stem:
                functions[f"{file.stem}.{name}"] = function.src
    called = {name for source in functions.values() for name in re.findall(r"(?<!def )\b(\w+)\(", source)}
    return {name for name in functions if name.partition(".")[2] not in called}


def _resources(variant: Variant, architecture: int) -> dict[str, int]:
    attributes = {(i,): [["tt.divisibility", 16]] for i in variant.aligned}
    source = ASTSource(variant.kernel, variant.signature, variant.constants, attributes)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": variant.warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.check_output([_CUOBJDUMP, "--dump-resource-usage", file.name], text=True)
    numbers = {key: int(re.search(rf"\b{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")}
    return {
        "registers": numbers["REG"],
        "shared": compiled.metadata.shared,
        "spilled": numbers["STACK"] + numbers["LOCAL"],
    }


def table() -> Iterator[tuple[str, int, dict[str, int]]]:
    for (name, variant), architecture in itertools.product(variants().items(), ARCHITECTURES):
        yield name, architecture, _resources(variant, architecture)


def main() -> None:
    budget: dict[str, dict[str, list[int]]] = {}
    print(f"{'kernel':<100} sm    registers  shared  spilled")
    for name, architecture, used in table():
        print(
            f"{name:<100} {architecture:<4}{used['registers']:>10}{used['shared']:>8}{used['spilled']:>9}", flush=True
        )
        budget.setdefault(name, {})[f"sm_{architecture}"] = [used["registers"], used["shared"]]
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(budget, indent=1) + "\n")


if __name__ == "__main__":
    main()
