"""Which lines of the CUDA kernels were run by modules that were built with `COUNTED`, in any process until now."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from modules import BUILT


def forget() -> None:
    """Begins anew."""
    for counts in BUILT.glob("*/*.gcda"):
        counts.unlink()


def run() -> tuple[float, list[str]]:
    """The share of lines with code in csrc/cuda that were run, and those that were not."""
    times: dict[str, int] = {}
    for counts in BUILT.glob("*/*.gcda"):
        command = ["gcov", "--json-format", "--stdout", str(counts)]
        found = subprocess.run(command, cwd=counts.parent, capture_output=True, text=True, check=True).stdout
        for file in json.loads(found)["files"]:
            path = Path(file["file"])
            if path.parent.name != "cuda" or path.suffix not in (".cu", ".cuh"):
                continue
            for line in file["lines"]:
                place = f"{path.name}:{line['line_number']}"
                times[place] = times.get(place, 0) + line["count"]
    never = [place for place, count in times.items() if count == 0]
    return 1 - len(never) / len(times), never
