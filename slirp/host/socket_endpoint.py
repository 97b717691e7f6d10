"""How bytes come from hosts' sockets into a claim: at once, or later by somebody else's hand.

A relay that knows a socket to be readable claims room and asks the port's endpoint to `begin`.
False: receive yourself, now (readiness, with epoll). True: the endpoint receives into the views
when it likes, and calls `arrived` of whoever asked, once, from the loop and never inside `begin`
(completion: a thread, or io_uring). The relay then goes on where it would have gone on at once. So
there is one way through a relay, which may stop once in the middle.

Whatever the endpoint, nobody asks before the socket is readable. A receive that waits for bytes
would hold what it is to fill, and that is the guest's descriptors: a hundred idle connections would
own the whole ring, and what was claimed behind them could not be handed over. So the receive itself
does not wait (MSG_DONTWAIT), and is over as soon as somebody gets to it.

An endpoint takes IN_FLIGHT_MAX receives at once; beyond that it says False, as it does nothing that
a relay could not do without it. `withdraw` is for a port that takes its room back (a chip that is
stopped) and for a socket that is to be closed: when it returns, no view is touched any more and
`arrived` is not called.

Sends are made at once everywhere: one that does not wait is a copy into the kernel, which a thread
or a ring makes no cheaper, while the guest's frame would have to be kept and its ACK put off until
it is known what the kernel took.

Does not do: sockets without payload for guests' memory (accepting, ICMP, DNS, forwards of
datagrams, whose senders' addresses come with them): the loop serves these by readiness.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final, Protocol

from slirp.address import SockAddr

IN_FLIGHT_MAX: Final = 256  # receives of one endpoint at once; the next is made at once


class Receiving(Protocol):
    """Whoever asked for bytes."""

    def arrived(self, size: int, failure: int, peer: SockAddr | None, now: float) -> None:
        """So many bytes are in the views, from this peer; or there is this errno."""


class SocketEndpoint(Protocol):
    """Who receives."""

    @property
    def under_way(self) -> int:
        """Receives that have begun and have not been told."""

    def begin(
        self, sock: socket.socket, views: Sequence[memoryview], flags: int, who: Receiving
    ) -> bool:
        """Receive into the views, and tell `who` later; False: receive at once yourself."""

    def withdraw(self, who: Receiving) -> None:
        """Let go of the views; nothing will be told."""

    def settle(self, now: float) -> None:
        """The turn is over: let begin what was asked for in it."""

    def fileno(self) -> int | None:
        """Readable when `poll` has something to tell; None: everything is done at once."""

    def poll(self, now: float) -> None:
        """Tell what has arrived."""

    def close(self) -> None: ...


class AtOnce:
    """The relay itself receives. Is a SocketEndpoint."""

    under_way = 0

    def begin(
        self, sock: socket.socket, views: Sequence[memoryview], flags: int, who: Receiving
    ) -> bool:
        return False

    def withdraw(self, who: Receiving) -> None:
        """Nothing is ever under way."""

    def settle(self, now: float) -> None:
        """Nothing waits."""

    def fileno(self) -> int | None:
        return None

    def poll(self, now: float) -> None:
        """Nothing ever arrives later."""

    def close(self) -> None:
        """There is nothing to give back."""


AT_ONCE: Final = AtOnce()
