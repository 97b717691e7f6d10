"""System calls in a pool of threads, so that the loop waits for none of them.

A job is one call that lets go of Python's lock while the kernel works. When it is over it rings an
eventfd; the loop then calls `poll`, which tells what came of it in the loop's own thread. So
nothing but the call itself ever runs elsewhere.

`withdraw` cancels jobs that no thread has begun, and waits for the others: a call that fills guest
memory cannot be taken back, only waited for. What they came to is forgotten.

Does not do: order. Jobs that are under way together end in any.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Jobs(Generic[Result]):
    """A pool of threads, and what is under way in it."""

    def __init__(self, name: str, threads: int) -> None:
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._pool = ThreadPoolExecutor(threads, name)
        self._under_way: dict[Future[Result], Callable[[Result], None]] = {}
        self._over: deque[Future[Result]] = deque()

    def __len__(self) -> int:
        return len(self._under_way)

    def start(self, work: Callable[[], Result], tell: Callable[[Result], None]) -> Future[Result]:
        """Run `work` in a thread; `poll` calls `tell` with what it returns."""
        job = self._pool.submit(work)
        self._under_way[job] = tell
        job.add_done_callback(self._ring)
        return job

    def _ring(self, job: Future[Result]) -> None:
        """In the job's thread, or in ours if it was over before."""
        self._over.append(job)
        os.eventfd_write(self._bell, 1)

    def withdraw(self, jobs: Iterable[Future[Result]] | None = None) -> None:
        """End these, or all; nothing is told of them."""
        ending = list(self._under_way if jobs is None else jobs)
        for job in ending:
            job.cancel()
        wait(ending)
        for job in ending:
            self._under_way.pop(job, None)

    def fileno(self) -> int:
        """Readable when `poll` has something to tell."""
        return self._bell

    def poll(self) -> None:
        """Tell what is over."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        try:
            for _ in range(len(self._over)):
                job = self._over.popleft()
                tell = self._under_way.pop(job, None)
                if tell is not None:
                    tell(job.result())
        finally:  # whoever is told may raise: the others are told next time
            if self._over:
                os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """End everything, and the threads."""
        self.withdraw()
        self._pool.shutdown()
        os.close(self._bell)
