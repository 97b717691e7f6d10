"""The guest's console, line by line, and a progress bar under it where somebody is watching.

The bar is drawn on standard error, and only if that is a terminal. While it is there, lines for the
same terminal are printed above it; lines for a file or a pipe go there untouched.

What a guest writes is not trusted with a terminal: control characters are shown as `.`.

Does not do: input.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress

REDRAW_AFTER: Final = 0.1  # seconds


class Terminal:
    """Lines to `out`; progress towards `total` bytes."""

    def __init__(self, out: TextIO, total: int) -> None:
        self._out = out
        self._total = total
        self._bar: Progress | None = None
        self._redraw_at = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _bar(self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def print_line(self, line: str) -> None:
        text = "".join(c if c.isprintable() else "." for c in line)
        if self._bar is not None and self._out.isatty():
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._out.write(text + "\n")
            self._out.flush()

    def progress(self, octets: Callable[[], int]) -> None:
        """Ask how far it is and draw it, now and then."""
        if self._bar is None:
            return
        now = time.monotonic()
        if now >= self._redraw_at:
            self._redraw_at = now + REDRAW_AFTER
            self._bar.update(self._bar.task_ids[0], completed=octets(), refresh=True)


def _bar(total: int) -> Progress:
    from rich import progress
    from rich.console import Console

    bar = progress.Progress(
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar.add_task("", total=total)
    return bar
