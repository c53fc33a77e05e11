"""What every Triton kernel takes of a GPU, compiled without one: registers, shared memory, and stack, where spills go.

`python tests/triton_resources.py` prints the table. `python tests/triton_resources.py --write` makes it the budget of
this version of Triton, to which test_triton.py holds what is compiled from then on.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton_calls
from fastib._triton import _launch, _tuning
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime import JITFunction
from triton.runtime.autotuner import Autotuner

from fastib import _triton

ARCHITECTURES = 80, 90, 100
BUDGET = Path(__file__).parent / "triton_budget.json"
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
}


class Variant(NamedTuple):
    """A kernel as it is launched: what decides its code."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[int, Any], ...]
    multiples_of_16: tuple[int, ...]  # of the arguments, pointers among them
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return f"{Path(self.kernel.fn.__code__.co_filename).stem}.{self.kernel.fn.__name__}"

    @property
    def group(self) -> str:
        """Whose variants share a budget: those of one kernel, on float64 or on anything narrower."""
        types = {kind for _, kind in self.signature}
        return self.name if types & {"*fp32", "*bf16", "*fp16"} else f"{self.name} float64"


def _variant(kernel: Any, args: tuple[Any, ...], meta: dict[str, Any]) -> Variant:
    options = tuple((name, meta.pop(name)) for name in ("num_warps", *_launch.OPTIONS) if name in meta)
    given = dict(zip(kernel.arg_names, args, strict=False)) | meta
    signature, constants, multiples = [], [], []
    for i, parameter in enumerate(kernel.params):
        value = given[parameter.name]
        specialized = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialized and type(value) is int and value == 1):
            constants.append((i, value))  # as the launcher takes a 1
            kind = "constexpr"
        elif isinstance(value, torch.Tensor):
            kind = _TYPES[value.dtype]
        else:
            kind = parameter.annotation_type or ("i32" if -(2**31) <= value < 2**31 else "i64")
        aligned = specialized and not parameter.do_not_specialize_on_alignment
        if kind.startswith("*") or (kind != "constexpr" and aligned and value % 16 == 0):
            multiples.append(i)
        signature.append((parameter.name, kind))
    return Variant(kernel, tuple(signature), tuple(constants), tuple(multiples), options)


def variants(dims: int = 40) -> list[Variant]:
    """Of all launches, for tensors of so many columns. Nothing is run, so this also shows that nothing on the device is
    read by the host."""
    found: dict[Variant, None] = {}

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **meta: Any) -> None:
        found[_variant(self, args, meta)] = None

    def launch_each(self: Any, *args: Any, grid: Any, warmup: bool, **meta: Any) -> None:
        for config in self.configs:
            launch(self.fn, *args, grid=grid, warmup=warmup, **meta, **config.all_kwargs())
            self.best_config = config

    JITFunction.run, Autotuner.run = launch, launch_each
    _tuning._chosen.clear()  # all tiles to choose from
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for name, arguments in triton_calls.calls(dtype, dims):
            _triton.KERNELS[name](*arguments)
    return list(found)


def compiled_anew(dims: int) -> set[str]:
    """Kernels on rows and components that are not the same for so many dimensions: none."""
    found = {v.name for v in set(variants(dims)) - set(variants())}
    return {name for name in found if name.startswith(("_joint", "_marginals", "_gradients", "_mixture", "elbo"))}


def kernels() -> set[str]:
    """All that there are: the functions of the package that no other of them calls."""
    sources = {}
    for file in Path(_triton.__file__).parent.glob("*.py"):
        if file.stem == "__init__":
            continue
        for value in vars(importlib.import_module(f"fastib._triton.{file.stem}")).values():
            function = value.fn if isinstance(value, Autotuner) else value
            if isinstance(function, JITFunction) and Path(function.fn.__code__.co_filename) == file:
                sources[f"{file.stem}.{function.fn.__name__}"] = function.src
    called = {name for source in sources.values() for name in re.findall(r"(?<!def )\b(\w+)\(", source)}
    return {name for name in sources if name.partition(".")[2] not in called}


def _compiled(variant: Variant, architectures: Sequence[int], folder: Path) -> Iterator[CompiledKernel]:
    aligned = {(i,): [["tt.divisibility", 16]] for i in variant.multiples_of_16}
    constants = {(i,): value for i, value in variant.constants}
    source: Any = ASTSource(variant.kernel, dict(variant.signature), constants, aligned)
    for architecture in architectures:
        target = GPUTarget("cuda", architecture, 32)
        compiled = triton.compile(source, target=target, options=dict(variant.options))
        yield compiled
        # What Triton makes of Python, a fifth of the time, is the same for all architectures.
        Path(source := str(folder / "kernel.ttir")).write_text(compiled.asm["ttir"])


def _resources(variant: Variant, architectures: Sequence[int]) -> list[dict[str, int]]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for compiled in _compiled(variant, architectures, Path(folder)):
            file = Path(folder, "kernel.cubin")
            file.write_bytes(compiled.asm["cubin"])
            usage = subprocess.check_output([_CUOBJDUMP, "--dump-resource-usage", file], text=True)
            registers, stack, local = (int(re.search(rf"\b{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
            found.append({"registers": registers, "shared": compiled.metadata.shared, "spilled": stack + local})
    return found


_tasks: list[tuple[Variant, Sequence[int]]] = []


def _resources_of(i: int) -> list[dict[str, int]]:
    return _resources(*_tasks[i])


def table() -> dict[str, dict[str, int]]:
    """The most that any variant takes, by kernel and architecture."""
    # float16 is bfloat16 but for a conversion: one architecture has it.
    _tasks[:] = [
        (variant, ARCHITECTURES[1:2] if "*fp16" in {kind for _, kind in variant.signature} else ARCHITECTURES)
        for variant in variants()
    ]
    most: dict[str, dict[str, int]] = {}
    gc.freeze()  # none of it goes, and each collection of each fork would go through it
    # More than there are cores: some wait for files. A kernel can't be pickled: forks have them all.
    with multiprocessing.get_context("fork").Pool(2 * (os.cpu_count() or 1)) as pool:
        for (variant, architectures), found in zip(_tasks, pool.imap(_resources_of, range(len(_tasks))), strict=True):
            for architecture, used in zip(architectures, found, strict=True):
                row = most.setdefault(f"{variant.group} sm_{architecture}", {"variants": 0})
                row["variants"] += 1
                for key, value in used.items():
                    row[key] = max(row.get(key, 0), value)
    return most


def main() -> None:
    rows = table()
    columns = "variants", "registers", "shared", "spilled"
    print(f"{'kernel':<56}" + "".join(f"{column:>10}" for column in columns))
    for name, row in sorted(rows.items()):
        print(f"{name:<56}" + "".join(f"{row[column]:>10}" for column in columns))
    missing = kernels() - {name.split()[0] for name in rows}
    assert not missing, f"kernels that no call runs: {missing}"
    for dims in (1, 16, 17):
        assert not (anew := compiled_anew(dims)), f"compiled anew for {dims} dimensions: {anew}"
    if "--write" in sys.argv:
        budgets = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
        budgets[triton.__version__] = {name: [row["registers"], row["shared"]] for name, row in sorted(rows.items())}
        text = json.dumps(budgets, indent=1, sort_keys=True)
        BUDGET.write_text(re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text) + "\n")
    if "--json" in sys.argv:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
