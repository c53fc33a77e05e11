"""Markdown tables that also read as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the heading; columns are padded to one width."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in ruled
    )


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"
