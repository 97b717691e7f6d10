"""An image whose reads and writes run in a pool of threads, so that the loop waits for no disk.

Each request is one job (slirp.host.jobs): the whole of a preadv, pwritev or fsync. `withdraw` waits
for a system call that has begun: it ends when the host's disk has answered.

Does not do: order. Two requests that touch the same blocks may run at once; a SCSI target without
tags has one under way at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

from dma.closing import Closing
from dma.iovec import IoVec
from dma.scsi.endpoint import Done, ImageFile, read_file, sync_file, write_file
from slirp.host.jobs import Jobs

THREADS: Final = 4

_Result: TypeAlias = tuple[int, int]  # bytes that moved; errno, or 0


class ThreadedImage(Closing):
    """Is an Endpoint."""

    def __init__(
        self, path: str | os.PathLike[str], *, read_only: bool = False, threads: int = THREADS
    ) -> None:
        self._file = ImageFile(path, read_only=read_only)
        self.fd, self.size, self.read_only = self._file.fd, self._file.size, read_only
        self._jobs: Jobs[_Result] = Jobs("image", threads)

    def read(self, offset: int, iov: IoVec, done: Done) -> None:
        self._start(partial(read_file, self.fd, iov, offset), done)

    def write(self, offset: int, iov: IoVec, done: Done) -> None:
        self._start(partial(write_file, self.fd, iov, offset), done)

    def sync(self, done: Done) -> None:
        self._start(lambda: (0, sync_file(self.fd)), done)

    def withdraw(self) -> None:
        self._jobs.withdraw()

    def fileno(self) -> int | None:
        return self._jobs.fileno()

    def poll(self) -> None:
        self._jobs.poll()

    def close(self) -> None:
        if self._file.fd >= 0:
            self._jobs.close()
            self._file.close()

    def _start(self, work: Callable[[], _Result], done: Done) -> None:
        self._jobs.start(work, lambda result: done(*result))
