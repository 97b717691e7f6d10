"""What a host socket wants to be told differently in each address family.

One object per family (slirp.host.ipv4), made for a network, since a network may have an outbound
address of the host's in each. It knows the family's socket addresses and options, reads its error
queue, and knows how an echo passes a ping socket. Which one serves depends on the *host's* address
that a packet is for (`Sockets.of`), whatever family the guest speaks: the two are the same until
something translates.

Does not do: open sockets (slirp.host.descriptors lends them), or anything with packets.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from slirp.address import Endpoint, SockAddr
from slirp.flow import Cause

MSG_ERRQUEUE: Final = 0x2000
ERRORS_PER_EVENT: Final = 16

# What send and connect say, as the cause that a router in the host's place would name
LOCAL_CAUSES: Final[dict[int, Cause | None]] = {
    errno.EMSGSIZE: Cause.TOO_LONG,
    errno.ENETUNREACH: Cause.NO_ROUTE,
    errno.ENETDOWN: Cause.NO_ROUTE,
    errno.EAFNOSUPPORT: Cause.NO_ROUTE,  # the host's kernel has no such family
    errno.EADDRNOTAVAIL: Cause.NO_ROUTE,  # the outbound address is not the host's (any more)
    errno.EHOSTUNREACH: Cause.NO_HOST,  # a route of type "unreachable"; no answer to ARP
    errno.EHOSTDOWN: Cause.NO_HOST,
    errno.ETIMEDOUT: Cause.NO_HOST,
    errno.EACCES: Cause.PROHIBITED,  # a route of type "prohibit"
    errno.EPERM: Cause.PROHIBITED,  # a filter's verdict
    errno.EINVAL: None,  # a route of type "blackhole": silence is what it is for
}


class SocketError(NamedTuple):
    """One entry of a socket's error queue."""

    peer: SockAddr  # whom the packet was for
    quoted: bytes  # of the packet, from the transport's header or payload on
    mtu: int  # of the path, where the host itself found the packet too long for it; else 0
    kind: int  # of the ICMP error that came from outside; -1: it did not
    code: int
    rest: int  # its second word, where that means something
    offender: bytes | None  # who sent it


class SocketFamily(Protocol):
    """The sockets of one family, on one network."""

    family: socket.AddressFamily
    addr_len: int  # bytes
    icmp: int  # protocol number of ping sockets
    outbound: bytes | None  # the host's address that connections come from
    quoted_max: int  # bytes of a datagram that an error from the host itself has at most

    def sockaddr(self, addr: bytes, port: int) -> SockAddr:
        """As `socket` methods take it."""

    def leave(self, sock: socket.socket) -> None:
        """Bind to the outbound address, where there is one."""

    def prepare(self, sock: socket.socket) -> None:
        """Have errors reported, and let what is sent be fragmented: `hops` is 0 from here on."""

    def set_hops(self, sock: socket.socket, hops: int, before: int) -> None:
        """What goes out next has this hop limit and, with it, DONT_FRAGMENT or not."""

    def errors(self, sock: socket.socket) -> Iterator[SocketError]:
        """Take what the error queue has; the socket's pending error goes with it.

        A shortage that this meets is raised; what has not been taken stays in the queue.
        """

    def is_closed_port(self, error: SocketError) -> bool:
        """Does it say that nobody listens?"""

    def filter_echoes(self, sock: socket.socket) -> None:
        """Have a raw socket report echo replies only."""

    def echo_request(self, rest: int, payload: bytes) -> bytes:
        """A request as the kernel is given it; `rest`: identifier and sequence number."""

    def echo_reply(self, data: bytes, raw: bool) -> tuple[int, bytes] | None:
        """Identifier and sequence number, and payload, of what a socket received."""


class Sockets:
    """The families that a network's packets may leave in."""

    def __init__(self, families: Mapping[int, SocketFamily]) -> None:
        """`families`: by the length of their addresses."""
        self._by_length = families

    def of(self, addr: bytes) -> SocketFamily:
        """The family of this host address."""
        return self._by_length[len(addr)]

    def get(self, addr: bytes) -> SocketFamily | None:
        """As `of`; None where nobody's packets leave in it."""
        return self._by_length.get(len(addr))


def addr_of(peer: SockAddr) -> bytes:
    """The address of a peer, as the socket gave it."""
    return Endpoint.from_sockaddr(peer).addr
