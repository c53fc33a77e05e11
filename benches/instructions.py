"""Instructions per element of each operator, forward and backward: `python -m benches.instructions`.

Callgrind counts them, which no other process disturbs, in calls of two sizes; the difference is what the elements take,
without the call. For operators on all pairs an element is a pair and a dimension. Valgrind knows no AVX-512: the
kernels run on AVX2. `--write` keeps the counts, which depend on the compiler, in `results/instructions.json`; `--check`
fails where one has grown by more than 3 % since then.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benches import large_batches, suites
from benches.floors import compiler
from benches.provenance import RESULTS
from benches.regimes import posteriors
from benches.tables import markdown

Counts = dict[str, float]
NAME = "instructions.json"
SIZES = ((32, 512), (544, 512))
SIZES_OF_A_SUM = ((32, 512), (4128, 512))  # which takes so little of each element
SIZES_OF_PAIRS = ((64, 16), (128, 16))
SIZES_OF_BATCHES = ((1024, 10), (2048, 10))
REPEATS = 3  # of which the least is free of what else Python does
MOST_GROWTH = 0.03
REQUESTS = """
#include <valgrind/callgrind.h>
void instrument(void) { CALLGRIND_START_INSTRUMENTATION; }
void begin(void) { CALLGRIND_ZERO_STATS; CALLGRIND_TOGGLE_COLLECT; }
void end(const char* name) { CALLGRIND_TOGGLE_COLLECT; CALLGRIND_DUMP_STATS_AT(name); }
"""


def cases() -> dict[str, list[tuple[int, suites.Contender]]]:
    """By name, the elements and the call of two sizes."""
    found = {}
    for name, operator in suites.OPERATORS.items():
        for dtype in (torch.float32, torch.bfloat16):
            sizes = SIZES_OF_PAIRS if operator.pairs else SIZES_OF_A_SUM if sum(operator.instructions) == 1 else SIZES
            built = [suites.build(suites.Spec(name, size, dtype), ["fastib"]) for size in sizes]
            found[f"{name} {built[0].spec.dtype_name}"] = [(_elements(c.spec), c.contenders["fastib"]) for c in built]
    for name in large_batches.OPERATORS:
        found[f"{name}, near-linear"] = [
            (rows * dims, _near_linear(name, rows, dims)) for rows, dims in SIZES_OF_BATCHES
        ]
    return found


def _elements(spec: suites.Spec) -> int:
    rows, columns = spec.shape
    return rows * columns * (rows if suites.OPERATORS[spec.operator].pairs else 1)


def _near_linear(name: str, rows: int, dims: int) -> suites.Contender:
    torch.manual_seed(0)
    inputs = [t.requires_grad_() for t in posteriors("mixture", rows, dims)]
    function = large_batches.contender("near_linear", name)
    upstream = torch.randn_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), inputs, upstream)


def count() -> Counts:
    """The instructions per element of each operator in each dtype."""
    with tempfile.TemporaryDirectory() as folder:
        requests = Path(folder, "requests.so")
        command = [*compiler(), "-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", str(requests)]
        subprocess.run(command, input=REQUESTS, text=True, check=True)
        options = "--instr-atstart=no", "--collect-atstart=no", f"--callgrind-out-file={folder}/counts"
        python = sys.executable, "-m", "benches.instructions", "--count", str(requests)
        subprocess.run(
            ["valgrind", "--quiet", "--tool=callgrind", *options, *python],
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "FASTIB_BACKEND": "cpu", "FASTIB_CPU_ISA": "avx2"},
            check=True,
        )
        texts = [path.read_text() for path in Path(folder).glob("counts.*[0-9]")]
    totals: dict[str, list[int]] = {}
    for name, total in map(_named, texts):
        totals.setdefault(name, []).append(total)
    return {
        name: (min(totals[f"{name} {many}"]) - min(totals[f"{name} {few}"])) / (many - few)
        for name, ((few, _), (many, _)) in cases().items()
    }


def _named(text: str) -> tuple[str, int]:
    """The name of what was counted, and the count."""
    name = re.findall(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)[0]
    return name, int(re.findall(r"^totals: (\d+)", text, re.MULTILINE)[0])


def run_under_callgrind(requests: str) -> None:
    """Each case a few times, of each of which callgrind writes a file that bears its name."""
    callgrind = ctypes.CDLL(requests)
    calls = {f"{name} {elements}": call for name, sizes in cases().items() for elements, call in sizes}
    for call in calls.values():
        call()
    gc.disable()
    callgrind.instrument()
    for name, call in REPEATS * list(calls.items()):
        callgrind.begin()
        call()
        callgrind.end(name.encode())


def compiler_version() -> str:
    """What decides, beside the source, on the instructions."""
    command = [*compiler(), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def grown(found: Counts, before: Counts) -> list[str]:
    """What has grown by more than it may."""
    return [
        f"{name}: {before[name]:.2f} -> {value:.2f} instructions per element"
        for name, value in found.items()
        if value > (1 + MOST_GROWTH) * before[name]
    ]


def table(found: Counts, before: Counts) -> str:
    rows = [
        [name, f"{value:.2f}", f"{value / before[name] - 1:+.2%}" if name in before else ""]
        for name, value in found.items()
    ]
    return markdown([["operator", "instructions per element", "since written"], *rows])


def main(argv: Sequence[str] | None = None, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.instructions", description="Counts instructions.")
    parser.add_argument("--write", action="store_true", help=f"keep the counts in {NAME}")
    parser.add_argument("--check", action="store_true", help="fail where a count has grown by more than 3 %%")
    parser.add_argument("--count", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.count:
        run_under_callgrind(arguments.count)
        return 0
    path, version = results / NAME, compiler_version()
    of_compilers: dict[str, Counts] = json.loads(path.read_text()) if path.exists() else {}
    before = of_compilers.get(version, {})
    if arguments.check and set(before) != set(cases()):
        print(f"{NAME} must have the counts of {version}: write them where they are to be trusted", file=sys.stderr)
        return 1
    found = count()
    print(table(found, before))
    if arguments.write:
        path.write_text(json.dumps(of_compilers | {version: found}, indent=1) + "\n")
    failures = grown(found, before) if arguments.check else []
    for failure in failures:
        print(failure, file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
