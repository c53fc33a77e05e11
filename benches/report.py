"""Writes the newest results into README.md, in brief, and into results/tables.md, whole: `python -m benches.report`.

With --check, only says whether they are stale.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benches import calls, estimators, experiments, fuzz, gallery, large_batches, soak, training_step
from benches.provenance import RESULTS
from benches.tables import markdown, number

README = Path(__file__).parent.parent / "README.md"
PAGE = "tables.md"
INTRODUCTION = """# All tables

Written by `python -m benches.report` from the rows beside this file; the README has some of them in brief."""

Row = dict[str, Any]
BRIEF = {  # the cases of the README: large and small ones of each kind, where they say most
    ("reparameterize_with_kl", "128x10"),
    ("reparameterize_with_kl", "4096x4096"),
    ("information_dropout", "128x96x16x16"),
    ("elbo_decomposition", "64x10"),
    ("aggregate_posterior", "1024x10"),
    ("aggregate_posterior", "2048x32"),
    ("aggregate_posterior", "4096x64"),
}
BRIEF_CONTENDERS = "fastib", "eager", "torch.compile", "KeOps"


def main(argv: Sequence[str] | None = None, readme: Path = README, results: Path = RESULTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.report", description="Writes the benches into README.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything is stale")
    arguments = parser.parse_args(argv)

    brief = readme.read_text()
    parts = [INTRODUCTION]
    for title, section in SECTIONS.items():
        parts += [f"## {title}", whole] if (whole := section(results, False)) else []
        if title not in ON_PAGE_ALONE and (tables := section(results, True)):
            brief = splice(brief, *markers(title), tables)
    files = {readme: brief, results / PAGE: "\n\n".join(parts) + "\n"}
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if arguments.check:
            print(f"{path.name} is stale: run python -m benches.report", file=sys.stderr)
        else:
            path.write_text(files[path])
    return int(arguments.check and bool(stale))


def markers(title: str) -> tuple[str, str]:
    """What the tables of a section stand between."""
    return f"<!-- {title.lower()}:begin -->", f"<!-- {title.lower()}:end -->"


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


def cpus(results: Path, brief: bool) -> str:
    """A table for each CPU; in brief, one of the last day, and of AVX-512 if there is one."""
    paths = newest(results)
    chosen = [max(paths, key=lambda path: ("avx512" in path.name, path.name[:10]))] if brief and paths else paths
    return "\n\n".join(cpu(path, brief) for path in chosen)


def cpu(path: Path, brief: bool = False) -> str:
    header, *rows = map(json.loads, path.read_text().splitlines())
    if brief:
        rows = [row for row in in_brief(rows) if row["contender"] in BRIEF_CONTENDERS]
    return (
        f"Forward and backward, or forward alone where it says so, in ms (median of interleaved rounds), and in "
        f"brackets as a multiple of fastib: {_origin(header)}. The floor is what the counted bytes, the call, or the "
        f"counted instructions of AVX2 and exponentials take at rates measured in the same run: AVX-512 may go below "
        f"it (benches/floors.py).\n\n{table(rows)}"
    )


def in_brief(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if (row["operator"], row["shape"]) in BRIEF and row["dtype"] == "float32"]


def small_calls(results: Path, brief: bool) -> str:
    if not (path := results / calls.NAME).exists():
        return ""
    content = json.loads(path.read_text())
    rows = content["rows"]
    return (
        f"Forward and backward in microseconds (median of interleaved rounds): {_origin(content['header'])}. Of the "
        f"parts of a call, each below the one before, `nothing` is an autograd.Function that does nothing: an operator "
        f"in Python cannot be cheaper.\n\n"
        f"{calls.table(rows)}\n\n`reparameterize_with_kl` in other ways, without checks, options and the draw of a "
        f"seed: {calls.alternatives(rows)}."
    )


def training_steps(results: Path, brief: bool) -> str:
    if not (path := results / training_step.NAME).exists():
        return ""
    content = json.loads(path.read_text())
    return (
        f"A step of the demo's models with fused and with plain losses (median of interleaved rounds), the part of "
        f"sample and KL, or its decomposition, in it, and the most memory that it takes: "
        f"{_origin(content['header'])}.\n\n"
        f"{training_step.table(content['rows'])}"
    )


def cards(results: Path, brief: bool) -> str:
    """A table for each GPU."""
    return "\n\n".join(card(path, brief) for path in newest(results, of_cards=True))


def card(path: Path, brief: bool = False) -> str:
    header, *rows = map(json.loads, path.read_text().splitlines())
    left_out = header.get("failed_operators", [])  # no speed is reported of what is not right
    rows = [row for row in rows if row["operator"].partition(",")[0] not in left_out]
    if brief:
        rows = in_brief(rows)
    rates = header["rates"]["cuda"]
    failed = f"; in this run failed: {', '.join(header['failed'])}" if header["failed"] else ""
    failed += f", of {', '.join(left_out)}, which are left out" if left_out else ""
    return (
        f"Forward and backward, or forward alone where it says so, in ms of a replay of a CUDA graph that finds "
        f"nothing in the cache, and in brackets as a multiple of cuda's; then MiB that a call takes beyond its inputs: "
        f"{header['card']}, driver {header['driver']}, CUDA {header['cuda']}, PyTorch {header['torch']}, Triton "
        f"{header['triton']}, commit {_commit(header)}, {header['date']}{failed}. The floor is what the counted bytes "
        f"or exponentials take at rates measured in the same run: {number(rates['bytes_per_second'] / 1e12)} TB/s of a "
        f"copy and {number(rates['exponentials_per_second'] / 1e12)} * 10^12 exponentials per second.\n\n"
        f"{card_table(rows)}"
    )


def card_table(rows: Sequence[Row]) -> str:
    """A line for each case; fastib's contenders are its backends."""
    cases: dict[tuple[str, ...], dict[str, Row]] = {}
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


def _time_on_card(found: dict[str, Row], name: str) -> str:
    if name not in found:
        return ""
    time, cuda = found[name]["median_ms"], found["cuda"]["median_ms"]
    return number(time) + ("" if name == "cuda" else f" ({number(time / cuda)}x)")


def _mebibytes(row: Row | None) -> str:
    return "" if row is None else number(row["peak_bytes"] / 2**20)


def sizes(results: Path, brief: bool) -> str:
    if not (path := results / large_batches.NAME).exists():
        return ""
    content = json.loads(path.read_text())
    return (
        f"Forward and backward in ms (median of interleaved rounds, or one call where it is long), and in brackets as "
        f"a multiple of auto: {_origin(content['header'])}. Errors are the largest against float64, on 256 rows "
        f"and in units of max(1, |value|): of log q(z_d), or of a sample's terms.\n\n"
        f"{large_batches.table(content['rows'])}"
    )


def of_estimators(results: Path, brief: bool) -> str:
    if not (path := results / estimators.NAME).exists():
        return ""
    return estimators.table(json.loads(path.read_text())["rows"])


def fuzzed(results: Path, brief: bool) -> str:
    """What the runs of the fuzzers, of which CI has one of each, have tried and found."""
    if not (path := results / fuzz.NAME).exists():
        return ""
    return f"Random inputs, beside the 500 of each kind in every run of the tests:\n\n{fuzz.table(path)}"


def scenes(results: Path, brief: bool) -> str:
    return gallery.counted(experiments.done(results / experiments.NAME))


def soaked(results: Path, brief: bool) -> str:
    if not (path := results / soak.NAME).exists():
        return ""
    content = json.loads(path.read_text())
    return (
        f"Calls for about an hour (`python -m benches.soak`: on one thread, on all, on four of Python at once, in two "
        f"processes, in a forked child): {soak.said(content)}. {_origin(content['header'])}."
    )


def _origin(header: dict[str, Any]) -> str:
    """Where and of what rows were measured."""
    return (
        f"{header['cpu']}, {header['threads']} threads, {header['isa']}, PyTorch {header['torch']}, "
        f"commit {_commit(header)}, {header['date']}"
    )


def _commit(header: dict[str, Any]) -> str:
    return header["commit"][:9] + (" with changes" if header["dirty"] else "")


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of one line per case, padded so that it also reads as it is."""
    cases: dict[tuple[str, ...], dict[str, Row]] = {}
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


def _time(row: Row | None) -> str:
    if row is None:
        return ""
    ratio = "" if row["contender"] == "fastib" else f" ({number(row['ratio'])}x)"
    return number(row["median_ms"]) + ratio


# By title; a function of the folder of the rows, and of whether to be brief.
SECTIONS: dict[str, Callable[[Path, bool], str]] = {
    "CPU": cpus,
    "Small calls": small_calls,
    "GPU": cards,
    "Large batches": sizes,
    "Estimators": of_estimators,
    "Training step": training_steps,
    "Fuzz": fuzzed,
    "Soak": soaked,
    "Scenes": scenes,
}
ON_PAGE_ALONE = ("Small calls", "Large batches", "Estimators")


if __name__ == "__main__":
    sys.exit(main())
