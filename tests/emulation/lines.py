"""Which lines of the CUDA kernels were run by a module that was built with `COUNTED`, in any process until now."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


def forget(module: Path) -> None:
    """Begins anew."""
    for counts in module.parent.glob("*.gcda"):
        counts.unlink()


def run(module: Path) -> tuple[float, list[str]]:
    """The share of lines with code in csrc/cuda that were run, and those that were not."""
    times: dict[str, int] = {}
    for counts in module.parent.glob("*.gcda"):
        command = ["gcov", "--json-format", "--stdout", str(counts)]
        found = subprocess.run(command, cwd=module.parent, capture_output=True, text=True, check=True).stdout
        for file in json.loads(found)["files"]:
            path = Path(file["file"])
            if path.parent.name != "cuda" or path.suffix not in (".cu", ".cuh"):
                continue
            for line in file["lines"]:
                place = f"{path.name}:{line['line_number']}"
                times[place] = times.get(place, 0) + line["count"]
    never = [place for place, count in times.items() if count == 0]
    return 1 - len(never) / len(times), never
