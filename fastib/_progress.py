"""Progress bars, which the extra `models` installs."""

from __future__ import annotations

from typing import Any

from fastib._extras import require


def progress_bar(**options: Any) -> Any:
    """`tqdm.tqdm(**options)`."""
    require("tqdm", "the progress bar")
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
