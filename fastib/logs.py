"""The log of a training: a CSV file and, if wanted, the same for TensorBoard."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastib import _files
from fastib._extras import require

NAME = "log.csv"  # in the folder of a run


class Log:
    """Rows of a training that goes on after `step` steps; later ones, of a run that was lost, are dropped.

    Args:
        path: the CSV file. Its columns are step, seconds (of this process) and what the first row has.
        step: the steps that are done.
        tensorboard: whether to write events, too, into the folder of the file.

    Raises:
        ImportError: without TensorBoard, where it is wanted.
    """

    def __init__(self, path: Path, step: int, tensorboard: bool = False) -> None:
        if tensorboard:
            require("tensorboard", "tensorboard = true")
        self.path, self.start = path, time.perf_counter()
        kept = [row for row in _rows(path) if int(row["step"]) <= step] if path.exists() else []
        _files.replace(path, lambda new: _write(new, kept))
        self._file = path.open("a", newline="", encoding="utf-8")
        self._events = _events(path.parent, step) if tensorboard else None

    def close(self) -> None:
        """Closes the files: nothing more can be written."""
        self._file.close()
        if self._events is not None:
            self._events.close()

    @property
    def files(self) -> list[Path]:
        """The files that there are."""
        return [self.path, *sorted(self.path.parent.glob("events.out.tfevents.*"))]

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Adds a row, at once."""
        line = {"step": step, "seconds": round(time.perf_counter() - self.start, 3), **row}
        writer = csv.DictWriter(self._file, list(line))
        if self._file.tell() == 0:
            writer.writeheader()
        writer.writerow(line)
        self._file.flush()
        if self._events is not None:
            for name, value in row.items():
                self._events.add_scalar(name, value, step)


def read(path: Path) -> list[dict[str, float]]:
    """The rows of a log.

    Raises:
        ValueError: if the file is none, or has rows that no training writes.
    """
    return [{name: float(value) for name, value in row.items()} for row in _rows(path)]


def _rows(path: Path) -> list[dict[str, str]]:
    whole, _, _ = _files.text("log", path).rpartition("\n")  # the last row may have been cut short
    rows = [row for row in csv.DictReader(whole.splitlines(), restval=None) if None not in row.values()]
    for row in rows:
        try:
            int(row["step"]), [float(value) for value in row.values()]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"log must be that of a training, got {path}, with {row}") from None
    return rows


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        if rows:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _events(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)
