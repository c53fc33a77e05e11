"""Progress bars, which the extra `models` installs."""

from __future__ import annotations

import importlib.util
from typing import Any


def require_tqdm() -> None:
    """Raises ImportError, naming the extra, where there is no tqdm: before long work, not after it."""
    if importlib.util.find_spec("tqdm") is None:
        raise ImportError("the progress bar needs tqdm: pip install 'fastib[models]'")


def progress_bar(**options: Any) -> Any:
    """`tqdm.tqdm(**options)`."""
    require_tqdm()
    from tqdm import tqdm

    return tqdm(**options)


class NoBar:
    """A bar that is not shown."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, count: int) -> None:
        pass
