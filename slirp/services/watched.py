"""A file of the host's, read when it changed.

`look(now)` gives what the file says, as `parse` has it. The file is looked at once per LOOK_EVERY
at the most, and read when it is another one than before. Where it is missing or unreadable, what
`parse` has of nothing holds; where the host is short of something just now, what was known before.

Does not do: deciding what a file means.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from slirp.shortage import is_shortage

T = TypeVar("T")

LOOK_EVERY: Final = 1.0  # seconds between looks at the file


def read_file(path: str, size: int) -> bytes:
    """The file's first bytes; also where it is a pipe that nobody writes to. Raises OSError."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read(size) or b""


class Watched(Generic[T]):
    """One file. `stat` and `read` raise OSError as the originals do."""

    def __init__(
        self,
        path: str,
        parse: Callable[[str], T],
        *,
        size_max: int,
        stat: Callable[[str], os.stat_result] = os.stat,
        read: Callable[[str], bytes] | None = None,
    ) -> None:
        self.path = path
        self.changes = 0  # times that what the file says became different
        self._parse = parse
        self._size_max = size_max
        self._stat = stat
        self._read = read if read is not None else lambda name: read_file(name, size_max)
        self._look_at = float("-inf")
        self._seen: tuple[int, ...] | None = None
        self._said = parse("")

    def look(self, now: float) -> T:
        """What the file says."""
        if now < self._look_at:
            return self._said
        self._look_at = now + LOOK_EVERY
        try:
            status = self._stat(self.path)
            seen = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if seen == self._seen:
                return self._said
            octets = self._read(self.path)[: self._size_max]
            said = self._parse(octets.decode("utf-8", "replace"))
        except OSError as error:
            if is_shortage(error):  # it is there: what it said holds until it can be read again
                self._look_at = now
                return self._said
            seen, said = None, self._parse("")
        self._seen = seen
        if said != self._said:
            self._said = said
            self.changes += 1
        return self._said
