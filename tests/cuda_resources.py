"""What every CUDA kernel takes of a GPU, as nvcc compiled it into fastib._C_cuda: registers, shared memory, and stack,
where spills go.

`python tests/cuda_resources.py` prints the table. `python tests/cuda_resources.py --write` makes it the budget of this
version of nvcc, to which test_cuda_build.py holds what is compiled from then on.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

BUDGET = Path(__file__).with_name("cuda_budget.json")
_TYPES = {"c10", "Half", "BFloat16", "float", "double"}
Row = dict[str, int]


def module() -> Path:
    spec = importlib.util.find_spec("fastib._C_cuda")
    assert spec is not None and spec.origin is not None, "fastib._C_cuda is not built"
    return Path(spec.origin)


def dump(what: str) -> str:
    """What cuobjdump, of the toolkit or of Triton, says of the module."""
    triton = importlib.util.find_spec("triton")
    bundled = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else None
    command = shutil.which("cuobjdump") or bundled
    assert command is not None, "no cuobjdump: it comes with the CUDA toolkit and with Triton"
    text = subprocess.check_output([command, f"--dump-{what}", module()], text=True)
    return subprocess.check_output(["c++filt"], input=text, text=True)


def ptx_version() -> str:
    """That of the module's PTX, by which the release of its nvcc is known."""
    found = re.search(r"^\.version (\S+)", dump("ptx"), re.MULTILINE)
    assert found is not None
    return found[1]


def _group(name: str) -> str:
    """Whose variants share a budget: a kernel with its functors, on float64 or on anything narrower."""
    words = re.findall(r"[A-Za-z_]\w*", name.removeprefix("void ").split("(")[0].replace("fastib::cuda::", ""))
    functors = " ".join(word for word in words if word not in _TYPES)
    return functors + (" float64" if "double" in words else "")


def table() -> dict[str, Row]:
    """The most that any variant takes, by kernel and architecture."""
    most: dict[str, Row] = {}
    pattern = re.compile(
        r"arch = (sm_\d+)|Function (.+):$|REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.MULTILINE
    )
    architecture = name = ""
    for found in pattern.finditer(dump("resource-usage")):
        architecture, name = found[1] or architecture, found[2] or name
        if found[3] is None:
            continue
        registers, stack, shared, local = map(int, found.groups()[2:])
        row = most.setdefault(f"{_group(name)} {architecture}", {"variants": 0})
        row["variants"] += 1
        for key, value in ("registers", registers), ("shared", shared), ("spilled", stack + local):
            row[key] = max(row.get(key, 0), value)
    return most


def main() -> None:
    rows = dict(sorted(table().items()))
    columns = "variants", "registers", "shared", "spilled"
    print(f"{'kernel':<64}" + "".join(f"{column:>10}" for column in columns))
    for name, row in rows.items():
        print(f"{name:<64}" + "".join(f"{row[column]:>10}" for column in columns))
    if "--write" in sys.argv:
        budgets = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
        budgets[ptx_version()] = {name: [row["registers"], row["shared"]] for name, row in rows.items()}
        text = json.dumps(budgets, indent=1)
        BUDGET.write_text(re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text) + "\n")


if __name__ == "__main__":
    main()
