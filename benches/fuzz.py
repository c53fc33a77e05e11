"""What the fuzzers try in a night: `python -m benches.fuzz [--examples 10000]` adds it to `results/fuzz.json`.

Random inputs and random arguments, as `tests/test_fuzz.py` has them but drawn anew, so many of each. What fails is
printed, and then nothing is added: it is to be understood first, and told under "found".
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benches import provenance
from benches.provenance import RESULTS

NAME = "fuzz.json"
ROOT = Path(__file__).parents[1]


def add(examples: int, path: Path) -> None:
    """To all rows: each says what one kind of them is."""
    content = json.loads(path.read_text())
    header = provenance.header()
    run = {key: header[key] for key in ("date", "commit", "dirty", "torch", "isa")} | {"examples": examples}
    rows, runs = (",\n".join(map(json.dumps, lines)) for lines in (content["rows"], [*content["runs"], run]))
    path.write_text(f'{{"rows": [\n{rows}\n],\n"runs": [\n{runs}\n]}}\n')


def table(path: Path) -> str:
    content = json.loads(path.read_text())
    since, last = sum(run["examples"] for run in content["runs"]), max(run["date"] for run in content["runs"])
    lines = []
    for row in content["rows"]:
        guided = f", {row['guided']:,} of them guided by coverage" if "guided" in row else ""
        lines.append(f"* {row['what']}: {row['tried'] + since:,} tried until {last}{guided}. Found: {row['found']}.")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.fuzz", description="What the fuzzers try in a night.")
    parser.add_argument("--examples", type=int, default=10_000, help="of inputs, and of arguments (default: 10000)")
    arguments = parser.parse_args(argv)
    command = sys.executable, "-m", "pytest", "-q", "tests/test_fuzz.py", "-k", "random_inputs or random_arguments"
    tried = subprocess.run(command, cwd=ROOT, env=os.environ | {"FASTIB_FUZZ": str(arguments.examples)}, check=False)
    if tried.returncode == 0:
        add(arguments.examples, results / NAME)
    return tried.returncode


if __name__ == "__main__":
    sys.exit(main())
