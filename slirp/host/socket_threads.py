"""Receives from hosts' sockets in a pool of threads.

Each is one job (slirp.host.jobs), a recvmsg that does not wait: the kernel copies while the loop
does something else.

Does not do: order between sockets. One socket has one receive under way.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, TypeAlias

from slirp.address import SockAddr
from slirp.host.jobs import Jobs
from slirp.host.socket_endpoint import IN_FLIGHT_MAX, Receiving

THREADS: Final = 4

_Result: TypeAlias = tuple[int, int, SockAddr | None]  # bytes, errno, sender


class ThreadedSockets:
    """Is a SocketEndpoint."""

    def __init__(self, threads: int = THREADS) -> None:
        self._jobs: Jobs[_Result] = Jobs("sockets", threads)
        self._by_asker: dict[Receiving, Future[_Result]] = {}
        self._now = 0.0

    @property
    def under_way(self) -> int:
        return len(self._by_asker)

    def begin(
        self, sock: socket.socket, views: Sequence[memoryview], flags: int, who: Receiving
    ) -> bool:
        if len(self._by_asker) >= IN_FLIGHT_MAX:
            return False
        work = partial(receive, sock, views, flags)
        self._by_asker[who] = self._jobs.start(work, partial(self._tell, who))
        return True

    def withdraw(self, who: Receiving) -> None:
        job = self._by_asker.pop(who, None)
        if job is not None:
            self._jobs.withdraw((job,))

    def settle(self, now: float) -> None:
        """What was asked for has begun."""

    def fileno(self) -> int | None:
        return self._jobs.fileno()

    def poll(self, now: float) -> None:
        self._now = now
        self._jobs.poll()

    def close(self) -> None:
        self._by_asker.clear()
        self._jobs.close()

    def _tell(self, who: Receiving, result: _Result) -> None:
        del self._by_asker[who]
        who.arrived(*result, self._now)


def receive(sock: socket.socket, views: Sequence[memoryview], flags: int) -> _Result:
    """The job: whatever comes of it is a value."""
    try:
        size, _, _, peer = sock.recvmsg_into(views, 0, flags | socket.MSG_DONTWAIT)
    except OSError as error:
        return 0, error.errno or errno.EIO, None
    return size, 0, peer
