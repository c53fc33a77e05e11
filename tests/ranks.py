"""Several ranks of torch.distributed on this machine, for tests: processes that talk by gloo."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

multiprocessing.set_forkserver_preload(["fastib.losses", "torch._dynamo"])  # once, not in each rank: 3 s
_LONGEST = 120.0  # seconds that the ranks may take, all in all


def on_ranks(size: int, fn: Callable[..., Any], *args: Any) -> list[Any]:
    """What fn(rank, *args) gives on each rank, or "Type: message" of what it raised, or None if it left without."""
    with tempfile.TemporaryDirectory() as folder:
        processes = mp.start_processes(_run, (size, folder, fn, args), size, join=False, start_method="forkserver")
        for process in processes.processes:
            process.join(_LONGEST)
            hangs = process.is_alive()
            process.kill()
            assert not hangs, "a rank waits for ever"
        found = [Path(folder, str(rank)) for rank in range(size)]
        return [torch.load(path, weights_only=False) if path.exists() else None for path in found]


def _run(rank: int, size: int, folder: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=_LONGEST)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size, timeout=timeout)
    try:
        result = fn(rank, *args)
    except Exception as error:  # noqa: BLE001
        result = f"{type(error).__name__}: {error}"
        if not isinstance(error, (RuntimeError, ValueError, TypeError)):
            result = traceback.format_exc()
    torch.save(result, Path(folder, f"{rank}.new"))
    os.replace(Path(folder, f"{rank}.new"), Path(folder, str(rank)))
    os._exit(0)  # at once, as one that is killed: what it leaves to others is tested, too
