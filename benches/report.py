"""Writes the newest results into README.md: `python -m benches.report`; with --check, only says whether it is stale."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benches import calls, estimators, large_batches, training_step
from benches.tables import markdown, number

README = Path(__file__).parent.parent / "README.md"
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- benches:begin -->", "<!-- benches:end -->"
ESTIMATORS_BEGIN, ESTIMATORS_END = "<!-- estimators:begin -->", "<!-- estimators:end -->"
CALLS_BEGIN, CALLS_END = "<!-- calls:begin -->", "<!-- calls:end -->"
CARDS_BEGIN, CARDS_END = "<!-- cards:begin -->", "<!-- cards:end -->"
STEP_BEGIN, STEP_END = "<!-- training step:begin -->", "<!-- training step:end -->"
LARGE_BEGIN, LARGE_END = "<!-- large batches:begin -->", "<!-- large batches:end -->"


def main(argv: Sequence[str] | None = None, readme: Path = README, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.report", description="Writes the benches into README.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if README.md is stale")
    arguments = parser.parse_args(argv)

    text = readme.read_text()
    updated = splice(text, BEGIN, END, "\n\n".join(section(path) for path in newest(results)))
    if of_cards := newest(results, of_cards=True):
        updated = splice(updated, CARDS_BEGIN, CARDS_END, "\n\n".join(card_section(path) for path in of_cards))
    if (results / calls.NAME).exists():
        updated = splice(updated, CALLS_BEGIN, CALLS_END, calls_section(results / calls.NAME))
    if (results / estimators.NAME).exists():
        rows = json.loads((results / estimators.NAME).read_text())["rows"]
        updated = splice(updated, ESTIMATORS_BEGIN, ESTIMATORS_END, estimators.table(rows))
    if (results / training_step.NAME).exists():
        updated = splice(updated, STEP_BEGIN, STEP_END, step_section(results / training_step.NAME))
    if (results / large_batches.NAME).exists():
        updated = splice(updated, LARGE_BEGIN, LARGE_END, large_section(results / large_batches.NAME))
    if arguments.check:
        if updated != text:
            print("README.md is stale: run python -m benches.report", file=sys.stderr)
        return int(updated != text)
    readme.write_text(updated)
    return 0


def newest(results: Path, of_cards: bool = False) -> list[Path]:
    """The newest file of each CPU and instruction set, <date>-<cpu>-<isa>.jsonl, or of each GPU, <date>-<card>.jsonl,
    whose header names the card."""
    date = len("yyyy-mm-dd-")
    files = sorted({path.name[date:]: path for path in sorted(results.glob("[0-9]*.jsonl"))}.values())
    return [path for path in files if ("card" in json.loads(path.read_text().partition("\n")[0])) == of_cards]


def splice(text: str, begin: str, end: str, tables: str) -> str:
    """The text with what is between the two markers replaced."""
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"no {begin} and {end} to write between")
    return f"{before}{begin}\n{tables}\n{end}{after}"


def section(path: Path) -> str:
    header, *rows = map(json.loads, path.read_text().splitlines())
    return (
        f"Forward and backward, or forward alone where it says so, in ms (median of interleaved rounds), and in brackets "
        f"as a multiple of fastib: {_origin(header)}. The floor is the least time that the bytes, the call "
        f"or the arithmetic of the operator take (benches/floors.py).\n\n{table(rows)}"
    )


def calls_section(path: Path) -> str:
    content = json.loads(path.read_text())
    rows = content["rows"]
    return (
        f"Forward and backward in microseconds (median of interleaved rounds): {_origin(content['header'])}.\n\n"
        f"{calls.table(rows)}\n\n`reparameterize_with_kl` in other ways, without checks, options and the draw of a seed: "
        f"{calls.alternatives(rows)}."
    )


def step_section(path: Path) -> str:
    content = json.loads(path.read_text())
    return (
        f"A step of the demo's models with fused and with plain losses (median of interleaved rounds), the part of sample "
        f"and KL, or its decomposition, in it, and the most memory that it takes: {_origin(content['header'])}.\n\n"
        f"{training_step.table(content['rows'])}"
    )


def card_section(path: Path) -> str:
    header, *rows = map(json.loads, path.read_text().splitlines())
    rates = header["rates"]["cuda"]
    return (
        f"Forward and backward, or forward alone where it says so, in ms of a replay of a CUDA graph that finds nothing in "
        f"the cache, and in brackets as a multiple of cuda's; then MiB that a call takes beyond its inputs: "
        f"{header['card']}, driver {header['driver']}, CUDA {header['cuda']}, PyTorch {header['torch']}, Triton "
        f"{header['triton']}, commit {_commit(header)}, {header['date']}. The floor is the least time that the bytes or "
        f"the exponentials take at the rates of the same run: {number(rates['bytes_per_second'] / 1e12)} TB/s of a copy "
        f"and {number(rates['exponentials_per_second'] / 1e12)} * 10^12 exponentials per second.\n\n{card_table(rows)}"
    )


def card_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each case; fastib's contenders are its backends."""
    cases: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        who = row["backend"] if row["contender"] == "fastib" else row["contender"]
        cases.setdefault((row["operator"], row["shape"], row["dtype"]), {}).setdefault(who, row)
    names = list(dict.fromkeys(name for found in cases.values() for name in found))
    contenders = sorted(names, key=("cuda", "triton", *names).index)
    lines = [["operator", "shape", "dtype", *contenders, "floor", "MiB", *contenders[2:]]]
    for case, found in cases.items():
        times = [_time_on_card(found, name) for name in contenders]
        memory = [_mebibytes(found.get(name)) for name in ("cuda", *contenders[2:])]
        floor = f"{number(found['cuda']['floor_ms'])} {found['cuda']['floor_kind']}"
        lines.append([*case, *times, floor, *memory])
    return markdown(lines)


def _time_on_card(found: dict[str, dict[str, Any]], name: str) -> str:
    if name not in found:
        return ""
    time, cuda = found[name]["median_ms"], found["cuda"]["median_ms"]
    return number(time) + ("" if name == "cuda" else f" ({number(time / cuda)}x)")


def _mebibytes(row: dict[str, Any] | None) -> str:
    return "" if row is None else number(row["peak_bytes"] / 2**20)


def large_section(path: Path) -> str:
    content = json.loads(path.read_text())
    return (
        f"Forward and backward in ms (median of interleaved rounds, or one call where it is long), and in brackets as a "
        f"multiple of auto: {_origin(content['header'])}. Errors are the largest against float64, on 256 rows "
        f"and in units of max(1, |value|): of log q(z_d), or of a sample's terms.\n\n"
        f"{large_batches.table(content['rows'])}"
    )


def _origin(header: dict[str, Any]) -> str:
    """Where and of what rows were measured."""
    return (
        f"{header['cpu']}, {header['threads']} threads, {header['isa']}, PyTorch {header['torch']}, "
        f"commit {_commit(header)}, {header['date']}"
    )


def _commit(header: dict[str, Any]) -> str:
    return header["commit"][:9] + (" with changes" if header["dirty"] else "")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of one line per case, padded so that it also reads as it is."""
    cases: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        cases.setdefault((row["operator"], row["shape"], row["dtype"]), {})[row["contender"]] = row
    contenders = list(dict.fromkeys(row["contender"] for row in rows))
    lines = [["operator", "shape", "dtype", *contenders, "floor", "time / floor"]]
    for case, found in cases.items():
        fastib = found["fastib"]
        times = [_time(found.get(name)) for name in contenders]
        floor = f"{number(fastib['floor_ms'])} {fastib['floor_kind']}"
        lines.append([*case, *times, floor, number(fastib["time_over_floor"])])
    return markdown(lines)


def _time(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    ratio = "" if row["contender"] == "fastib" else f" ({number(row['ratio'])}x)"
    return number(row["median_ms"]) + ratio


if __name__ == "__main__":
    sys.exit(main())
