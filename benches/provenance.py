"""Where and of what a result was measured. It never names a path or a host."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import fastib
from benches import suites

RESULTS = Path(__file__).parent / "results"


def header() -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": suites.isa(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "fastib": fastib.__version__,
        "os": platform.platform(),
        "commit": _git("rev-parse", "HEAD"),
        # But for the results, to which a run that goes on has already added.
        "dirty": _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benches/results")
        not in ("", "unknown"),
    }


def write(path: Path, rows: Sequence[dict[str, Any]], **beside: Any) -> None:
    """JSON: the header, with what is beside it, and a line for each row."""
    path.parent.mkdir(exist_ok=True)
    lines = ",\n".join(map(json.dumps, rows))
    path.write_text(f'{{"header": {json.dumps(header() | beside)},\n"rows": [\n{lines}\n]}}\n')


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git(*arguments: str) -> str:
    """What git says, or that nothing is known of files that are no repository."""
    command = ["git", *arguments]
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return result.stdout.strip()
