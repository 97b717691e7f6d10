"""Receives from hosts' sockets by io_uring.

What was asked for in a turn of the loop is queued, and submitted at its end with one system call.
The kernel then fills the views, in guest memory, and rings the ring's eventfd.

A receive does not wait (MSG_DONTWAIT), so the kernel is mostly done when the submission returns,
and `withdraw` has nothing to cancel: it submits what is queued and takes completions until its own
is among them. Those of others are told in the next `poll`.

Does not do: what slirp.host.uring does not; multishot receives, which choose the buffer themselves.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Final

from slirp.address import SockAddr
from slirp.host.socket_endpoint import IN_FLIGHT_MAX, Receiving
from slirp.host.uring import NAME_LEN, Ring

_FAMILY: Final = struct.Struct("=H")
_INET: Final = struct.Struct("!2xH4s")
_INET6: Final = struct.Struct("!2xHI16s")  # and sin6_scope_id, which is not in network order
_SCOPE: Final = struct.Struct("=I")


class UringSockets:
    """Is a SocketEndpoint. OSError where the kernel has no io_uring."""

    def __init__(self) -> None:
        self._ring = Ring(IN_FLIGHT_MAX)
        self._askers: dict[int, tuple[Receiving, bytearray | None]] = {}  # by request
        self._by_asker: dict[Receiving, int] = {}
        self._over: deque[tuple[int, int]] = deque()  # completions taken while waiting for others

    @property
    def under_way(self) -> int:
        return len(self._by_asker)

    def begin(
        self, sock: socket.socket, views: Sequence[memoryview], flags: int, who: Receiving
    ) -> bool:
        if len(self._by_asker) >= IN_FLIGHT_MAX:
            return False
        name = bytearray(NAME_LEN) if sock.type == socket.SOCK_DGRAM else None
        flags |= socket.MSG_DONTWAIT
        request_id = self._ring.recvmsg(sock.fileno(), views, flags, name)
        self._askers[request_id] = who, name
        self._by_asker[who] = request_id
        return True

    def withdraw(self, who: Receiving) -> None:
        wanted = self._by_asker.pop(who, None)
        if wanted is None:
            return
        del self._askers[wanted]
        if any(request_id == wanted for request_id, _ in self._over):
            return
        self._ring.submit()
        while True:
            found = self._ring.take(wait=True)
            if found[0] == wanted:
                break
            self._over.append(found)
        if self._over:
            os.eventfd_write(self._ring.fileno(), 1)

    def settle(self, now: float) -> None:
        self._ring.submit()

    def fileno(self) -> int | None:
        return self._ring.fileno()

    def poll(self, now: float) -> None:
        self._ring.clear_bell()
        over = self._over
        over.extend(self._ring.take() for _ in range(self._ring.ready()))
        try:
            while over:
                request_id, result = over.popleft()
                asker = self._askers.pop(request_id, None)
                if asker is not None:
                    who, name = asker
                    del self._by_asker[who]
                    peer = None if name is None or result < 0 else peer_of(name)
                    who.arrived(max(result, 0), max(-result, 0), peer, now)
        finally:  # whoever is told may raise: the others are told next time
            if over:
                os.eventfd_write(self._ring.fileno(), 1)

    def close(self) -> None:
        for who in list(self._by_asker):
            self.withdraw(who)
        self._ring.close()


def peer_of(name: bytearray) -> SockAddr:
    """A struct sockaddr as `socket` gives it."""
    if _FAMILY.unpack_from(name)[0] == socket.AF_INET:
        port, addr = _INET.unpack_from(name)
        return socket.inet_ntop(socket.AF_INET, addr), port
    port, flow, addr = _INET6.unpack_from(name)
    return socket.inet_ntop(socket.AF_INET6, addr), port, flow, _SCOPE.unpack_from(name, 24)[0]
