"""Small random edits of the CUDA kernels, each of which the operators' tests on the emulation should see.

`python tests/mutation.py --count 50 --seed 0` makes them one by one in a copy of csrc, builds what they touch, runs its
tests, and prints which edits were seen; those that were not are to be read: a test is missing, or the edit changes
nothing. An edit that does not compile is replaced by the next.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from devices import ELEMENTWISE, ON_PAIRS, ONE_THREAD, OPERATORS, TESTS, WHERE_EMULATED
from emulation.build import COUNTED, build
from modules import ROOT, SANITIZERS, sanitized
from test_cuda import EACH_KERNEL

KERNELS = ROOT / "csrc" / "cuda"
# What includes the headers.
SUMMED = ["gaussian_kl", "information_dropout", "log_variance_penalty", "reparameterize_with_kl"]
TOUCHED = {
    "elements.cuh": ELEMENTWISE,
    "reduce.cuh": SUMMED,
    "mixture.cuh": ON_PAIRS,
    "mixture_forward.cuh": ON_PAIRS,
    "mixture_backward.cuh": ON_PAIRS,
    "pairs.cu": ON_PAIRS,
}
EDITS = [
    (r"(?<![-+<>=&|*/(,!] )(?<=[\w)\]] )\+(?= )", ["-"]),
    (r"(?<=[\w)\]] )-(?= )", ["+"]),
    (r"(?<=[\w)\]] )\*(?= )", ["+"]),
    (r"(?<=[\w)\]] )/(?= )", ["*"]),
    (r"(?<= )%(?= )", ["/"]),
    (r"(?<= )<(?= )", ["<=", ">"]),
    (r"(?<= )>(?= )", [">=", "<"]),
    (r"(?<= )<=(?= )", ["<"]),
    (r"(?<= )>=(?= )", [">"]),
    (r"(?<= )==(?= )", ["!="]),
    (r"(?<= )!=(?= )", ["=="]),
    (r"(?<= )&&(?= )", ["||"]),
    (r"(?<= )\|\|(?= )", ["&&"]),
    (r"(?<= )\+=(?= )", ["-=", "="]),
    (r"(?<=std::)min\b", ["max"]),
    (r"(?<=std::)max\b", ["min"]),
    (r"(?<![\w.])-(?=[a-z(])", [""]),
    (r"(?<![\w.])!(?=[a-z(])", [""]),
    (r"(?<![\w.])0(?![\w.])", ["1"]),
    (r"(?<![\w.])1(?![\w.])", ["0", "2"]),
    (r"(?<![\w.])2(?![\w.])", ["1", "3"]),
    (r"(?<![\w.])0\.5(?!\w)", ["0.25"]),
    (r"__syncthreads\(\);", [""]),
    (r"\b(?:continue|return);", [";"]),
    (r"\btrue\b", ["false"]),
    (r"\bfalse\b", ["true"]),
]
# Nothing of the kernels' own: what is told to compilers, and how fast it is.
NO_CODE = re.compile(r"^\s*(//|#|template|static_assert|using|namespace)|__launch_bounds__|STD_TORCH_CHECK|TORCH_BOX")


# What test_cuda.py runs, the cheapest first.
RUNS = [
    (COUNTED, WHERE_EMULATED, {}),
    *((COUNTED, EACH_KERNEL, {"EMULATED_ORDER": order, "EMULATED_PERTURBATION": order}) for order in ("1", "2")),
    *((flags, EACH_KERNEL, sanitized(name)) for name, (_, flags) in SANITIZERS.items()),
]


class Edit(NamedTuple):
    file: str
    line: int
    before: str
    after: str

    @property
    def operators(self) -> list[str]:
        stem = self.file.partition(".")[0]
        return [stem] if stem in OPERATORS else list(TOUCHED.get(self.file, OPERATORS))

    def __str__(self) -> str:
        return f"{self.file}:{self.line}\n  - {self.before.strip()}\n  + {self.after.strip()}"


def edits() -> list[Edit]:
    """All that there are."""
    found = []
    for path in sorted(KERNELS.glob("*.cu*")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.partition("//")[0]
            if NO_CODE.search(line):
                continue
            for pattern, others in EDITS:
                for match in re.finditer(pattern, code):
                    for other in others:
                        after = code[: match.start()] + other + code[match.end() :]
                        found.append(Edit(path.name, number, line, after))
    return found


def fate(edit: Edit) -> str | None:
    """How the tests saw an edit: "" where they did not, None where it does not compile."""
    with tempfile.TemporaryDirectory() as copy:
        csrc = Path(copy, "csrc")
        for part in ("cuda", "common"):
            shutil.copytree(ROOT / "csrc" / part, csrc / part)
        path = csrc / "cuda" / edit.file
        lines = path.read_text().splitlines(keepends=True)
        lines[edit.line - 1] = edit.after + "\n"
        path.write_text("".join(lines))
        built = set()
        try:
            for flags, selection, env in RUNS:
                module = build(flags, csrc, edit.operators)
                built.add(module.parent)
                if seen := _seen_by(module, edit.operators, selection, env):
                    return seen
            return ""
        except RuntimeError:
            return None
        finally:
            for folder in built:
                shutil.rmtree(folder)


def _seen_by(module: Path, operators: list[str], selection: str, env: dict[str, str]) -> str:
    emulated = {"FASTIB_BACKEND": "reference", "FASTIB_EMULATED": str(module), "CI": "", "PYTHONPATH": str(TESTS)}
    options = "-q", "-x", "-p", "no:warnings", "-p", "no:cacheprovider", "--tb=no", "-k", selection
    command = [sys.executable, "-m", "pytest", "-m", "", *options, *(str(OPERATORS[name]) for name in operators)]
    try:
        result = subprocess.run(
            command,
            env={**os.environ, **ONE_THREAD, **emulated, **env},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no end in 400 s"
    if result.returncode == 0:
        return ""
    said = re.findall(r"^FAILED tests/(\S+)|(deadlock[^\n]*)", result.stdout + result.stderr, re.MULTILINE)
    return next(filter(None, said[0])) if said else f"exit status {result.returncode}"


def mutants(count: int, seed: int) -> Iterator[tuple[Edit, str]]:
    """So many edits that compile, in random order, with their fates."""
    chosen = edits()
    random.Random(seed).shuffle(chosen)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        left = iter(chosen)
        while count > 0:
            some = [edit for edit, _ in zip(left, range(count), strict=False)]
            for edit, seen in zip(some, pool.map(fate, some), strict=True):
                if seen is not None:
                    count -= 1
                    yield edit, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    survivors = []
    for number, (edit, seen) in enumerate(mutants(arguments.count, arguments.seed), 1):
        print(f"{number}. {edit}\n  {'seen by ' + seen if seen else 'NOT SEEN'}", flush=True)
        if not seen:
            survivors.append(edit)
    print(f"{arguments.count - len(survivors)} of {arguments.count} were seen")


if __name__ == "__main__":
    main()
