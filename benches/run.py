"""Runs the benches, prints their table, and saves the rows: `python -m benches.run`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benches import harness, provenance, report, suites
from benches.harness import Row
from benches.suites import Spec


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.run", description="Times fastib against plain PyTorch.")
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds, nothing that compiles")
    parser.add_argument("--operator", choices=suites.OPERATORS, help="run this operator only")
    parser.add_argument("--no-save", action="store_true", help="do not write benches/results")
    arguments = parser.parse_args(argv)

    rows = measure(select(arguments.operator, arguments.quick), arguments.quick)
    print(report.table(rows))
    # A results file is one whole run: parts of one are for looking at.
    if not (arguments.no_save or arguments.quick or arguments.operator):
        print(f"saved benches/results/{save(rows, report.RESULTS).name}")
    return 0


def select(operator: str | None, quick: bool) -> list[Spec]:
    return [
        spec for spec in suites.SPECS if operator in (None, spec.operator) and (not quick or spec.shape in suites.QUICK)
    ]


def measure(specs: Sequence[Spec], quick: bool) -> list[Row]:
    rows: list[Row] = []
    for number, spec in enumerate(specs, 1):
        print(f"[{number}/{len(specs)}] {spec}", file=sys.stderr, flush=True)
        names = [name for name in suites.contenders(spec) if not (quick and name in ("torch.compile", "KeOps"))]
        rows += harness.measure(suites.build(spec, names), budget_seconds=0.05 if quick else 8)
    return rows


def save(rows: Sequence[Row], results: Path) -> Path:
    header = provenance.header()
    return write(header, f"{header['cpu']} {header['isa']}", rows, results)


def write(header: Row, name: str, rows: Sequence[Row], results: Path) -> Path:
    """JSON Lines: first where and of what the rows are, then the rows."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{header['date']}-{slug}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [header, *rows]))
    return path


if __name__ == "__main__":
    sys.exit(main())
