"""Interleaved timing: contenders take turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

from benches import floors
from benches.suites import Case, Contender

Row = dict[str, Any]
Turn = Callable[[Contender, int], float]  # seconds per call of so many calls

TURN_SECONDS = 0.002  # a turn repeats a call for about as long as this
WARM_UP_CALLS = 3
MIN_ROUNDS = 5


def measure(case: Case, budget_seconds: float) -> list[Row]:
    """One row for each contender of the case."""
    seconds = interleave(case.contenders | {"bytes": floors.copy(case), "call": floors.nothing(case)}, budget_seconds)
    floor = {kind: min(seconds.pop(kind)) for kind in ("bytes", "call")}
    floor["arithmetic"] = floors.arithmetic(case)
    kind = max(floor, key=lambda k: floor[k])
    fastib = median(seconds["fastib"])
    return [row(case, name, taken, fastib, kind, floor[kind]) for name, taken in seconds.items()]


def row(case: Case, name: str, seconds: list[float], fastib: float, floor_kind: str, floor: float) -> Row:
    p25, middle, p75 = quantiles(seconds, n=4, method="inclusive")
    return {
        "operator": case.spec.label,
        "shape": case.spec.shape_name,
        "dtype": case.spec.dtype_name,
        "contender": name,
        "median_ms": 1e3 * middle,
        "p25_ms": 1e3 * p25,
        "p75_ms": 1e3 * p75,
        "rounds": len(seconds),
        "ratio": middle / fastib,
        "bytes": case.bytes,
        "instructions": case.instructions,
        "exponentials": case.exponentials,
        "floor_kind": floor_kind,
        "floor_ms": 1e3 * floor,
        "time_over_floor": middle / floor,
    }


def interleave(calls: dict[str, Contender], budget_seconds: float, turn: Turn | None = None) -> dict[str, list[float]]:
    """Seconds per call, one number for each round. Each round starts with another contender."""
    turn = turn or _turn
    repeats = {name: _warm_up(call, turn) for name, call in calls.items()}
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    end = time.perf_counter() + budget_seconds
    collected = gc.isenabled()
    gc.disable()
    try:
        while len(seconds[names[-1]]) < MIN_ROUNDS or time.perf_counter() < end:
            for name in names:
                seconds[name].append(turn(calls[name], repeats[name]))
            names.append(names.pop(0))
    finally:
        if collected:
            gc.enable()
    return seconds


def _warm_up(call: Contender, turn: Turn) -> int:
    """Compiles what there is to compile, and sees how often a call fits a turn."""
    for _ in range(WARM_UP_CALLS):
        call()
    return max(1, round(TURN_SECONDS / turn(call, 1)))


def _turn(call: Contender, repeats: int) -> float:
    call()  # untimed: the contender before has left its own data in the caches
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
