"""An image whose reads and writes run in a pool of threads, so that the loop waits for no disk.

Each request is one job: the whole of a preadv, pwritev or fsync, which let go of Python's lock
while the kernel works. A job that is over rings an eventfd; the loop then calls `poll`, which calls
`done` in the loop's own thread. So nothing but the I/O itself ever runs elsewhere.

`withdraw` cancels jobs that no thread has begun, and waits for the others: a system call that fills
guest memory cannot be taken back, only waited for, and it ends when the host's disk has answered.

Does not do: order. Two requests that touch the same blocks may run at once; a SCSI target without
tags has one under way at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from types import TracebackType
from typing import Final, TypeAlias

from dma.iovec import IoVec
from dma.scsi.endpoint import Done, ImageFile, read_file, sync_file, write_file

THREADS: Final = 4

_Job: TypeAlias = "Future[tuple[int, int]]"


class ThreadedImage:
    """Is an Endpoint."""

    def __init__(
        self, path: str | os.PathLike[str], *, read_only: bool = False, threads: int = THREADS
    ) -> None:
        self._file = ImageFile(path, read_only=read_only)
        self.fd, self.size, self.read_only = self._file.fd, self._file.size, read_only
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._pool = ThreadPoolExecutor(threads, "image")
        self._under_way: dict[_Job, Done] = {}
        self._over: deque[_Job] = deque()

    def read(self, offset: int, iov: IoVec, done: Done) -> None:
        self._start(partial(read_file, self.fd, iov, offset), done)

    def write(self, offset: int, iov: IoVec, done: Done) -> None:
        self._start(partial(write_file, self.fd, iov, offset), done)

    def sync(self, done: Done) -> None:
        self._start(lambda: (0, sync_file(self.fd)), done)

    def withdraw(self) -> None:
        for job in self._under_way:
            job.cancel()
        wait(self._under_way)
        self._under_way.clear()
        self.poll()  # what has rung is forgotten

    def fileno(self) -> int | None:
        return self._bell

    def poll(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        for _ in range(len(self._over)):
            job = self._over.popleft()
            done = self._under_way.pop(job, None)
            if done is not None:
                done(*job.result())

    def close(self) -> None:
        if self._file.fd >= 0:
            self.withdraw()
            self._pool.shutdown()
            os.close(self._bell)
            self._file.close()

    def __enter__(self) -> ThreadedImage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, work: Callable[[], tuple[int, int]], done: Done) -> None:
        job = self._pool.submit(work)
        self._under_way[job] = done
        job.add_done_callback(self._ring)

    def _ring(self, job: _Job) -> None:
        """In the job's thread, or in ours if it was over before."""
        self._over.append(job)
        os.eventfd_write(self._bell, 1)
