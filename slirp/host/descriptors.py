"""Who holds how many of the process's descriptors, and who gives way when there are no more.

Every flow, mapping and echo of a guest is a host socket, and a process may have only so many. A
relay asks here for a socket on behalf of a port. Where none is to be had, what has been idle
longest gives way, of whatever kind: each relay is a `Lender` that names its idlest and can close
it. So who asks is served, and what nobody uses is what is missed.

Each port may hold a share of the descriptors (`Config.port_share`) while there are other ports; at
its share a port displaces what is its own. The last RESERVE descriptors go to nobody's guest: with
them the control socket answers, a forward accepts and a module is imported, whatever guests do. The
kernel gives out the lowest number that is free, so a socket whose number is one of the last RESERVE
says that all others are taken. `take` makes a socket; `admit` is for one that is there already
(accepted, one of a pair): it is moved to the number that was made free, or the reserve would be
used up one by one.

What may be displaced: a UDP mapping, an echo, a DNS stream, at any time; a TCP connection only
after TCP_IDLE_MIN without a segment from the guest, or HALF_CLOSED_MIN where one side has closed,
or when it is over for the guest and waits for the host.
Where nothing may be, the request is refused with EMFILE, as the kernel would refuse it. A question
to a resolver does not give way: it lasts for seconds, and counts for the port that asks.

Does not do: flows without sockets, listening sockets (whoever opens a forward is told).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from slirp.shortage import is_shortage, persist

if TYPE_CHECKING:
    from slirp.host.attachment import Attachment

RESERVE: Final = 16  # descriptors that are not for guests
TCP_IDLE_MIN: Final = 300.0  # seconds, as long as a UDP mapping lives unused
HALF_CLOSED_MIN: Final = 30.0  # seconds; less than until it is probed, which counts as use
TRIES: Final = 4  # times that something is displaced for one request
LOOKS: Final = 64  # candidates that a lender looks at for one that is idle
LINGER_RESET: Final = struct.pack("ii", 1, 0)


class Idle(NamedTuple):
    """Something that may give way."""

    since: float  # when it was last used
    close: Callable[[], None]


class Lender(Protocol):
    """A relay whose sockets may be displaced."""

    def idlest(self, attachment: Attachment | None, now: float) -> Idle | None:
        """What has been idle longest, of this port or of any; None: nothing may go."""


class Descriptors:
    """The ledger of one network."""

    def __init__(self, attachments: Collection[Attachment], share: float) -> None:
        """`attachments`: the network's, as they are; `share`: of one port, above 0 and up to 1."""
        self._attachments = attachments
        self._share = share
        self._lenders: list[Lender] = []
        self.displaced = 0
        self.refused = 0
        self.look()

    def look(self) -> int:
        """Learn, and tell, up to which number descriptors are for guests.

        Looked at where it matters; whoever lowers the process's limit calls it.
        """
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVE
        return self._limit

    def add(self, lender: Lender) -> None:
        """Its sockets may be displaced from now on."""
        self._lenders.append(lender)

    def share_of(self, whole: int) -> int:
        """One port's part of something that all ports have `whole` of."""
        return whole if len(self._attachments) <= 1 else max(1, int(whole * self._share))

    def take(
        self, attachment: Attachment, family: int, kind: int, proto: int, now: float
    ) -> socket.socket:
        """A socket for a guest of this port, non-blocking. Raises OSError where there is none."""
        if not self._make_share(attachment, now):
            raise self._refuse()
        for _ in range(TRIES):
            try:
                sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, proto)
            except OSError as error:
                if not is_shortage(error):
                    raise
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    continue  # no memory just now; to take a socket from others would free little
                self.look()
            else:
                if self._is_for_guests(sock):
                    attachment.sockets += 1
                    return sock
                sock.close()
            if not self.make_room(now):
                break
        raise self._refuse()

    def admit(
        self, attachment: Attachment | None, sock: socket.socket, now: float
    ) -> socket.socket | None:
        """Enter a socket that is open already, for a guest of this port; None: for one that is not
        known yet, and it is admitted again when it is. What is returned is the same socket, under
        another number perhaps; None where there is no room, and then its peer is reset.
        """
        if attachment is None or self._make_share(attachment, now):
            for _ in range(TRIES):
                if not self._is_for_guests(sock):
                    sock = renumbered(sock)  # one may have become free since it was opened
                if self._is_for_guests(sock):
                    if attachment is not None:
                        attachment.sockets += 1
                    return sock
                if not self.make_room(now):
                    break
        reset(sock)
        self.refused += 1
        return None

    def _is_for_guests(self, sock: socket.socket) -> bool:
        """Is its number none of the reserve?"""
        number = sock.fileno()
        return number < self._limit or number < self.look()

    def make_room(self, now: float) -> bool:
        """Have whatever has been idle longest give way; False: nothing may."""
        return self._displace(None, now)

    def release(self, attachment: Attachment) -> None:
        """One of this port's sockets was closed."""
        attachment.sockets -= 1

    def _make_share(self, attachment: Attachment, now: float) -> bool:
        """Is there room in the port's share, or can there be?"""
        held = attachment.sockets
        if len(self._attachments) <= 1 or held < self.share_of(self._limit):
            return True
        return held < self.share_of(self.look()) or self._displace(attachment, now)

    def _refuse(self) -> OSError:
        self.refused += 1
        return OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _displace(self, attachment: Attachment | None, now: float) -> bool:
        """Close what has been idle longest; False: nothing may go."""
        found = [idle for lender in self._lenders if (idle := lender.idlest(attachment, now))]
        if not found:
            return False
        min(found, key=lambda idle: idle.since).close()
        self.displaced += 1
        return True


def renumbered(sock: socket.socket) -> socket.socket:
    """The same socket under the lowest number that is free; itself where none is."""
    try:
        lower = sock.dup()
    except OSError:
        return sock
    sock.close()
    return lower


def reset(sock: socket.socket) -> None:
    """Close, and have the peer told by RST (a Unix socket's peer sees the end)."""
    with contextlib.suppress(OSError):
        persist(sock.setsockopt, socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    sock.close()
