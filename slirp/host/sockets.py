"""What a host socket wants to be told differently in each address family.

One object per family (slirp.host.ipv4, slirp.host.ipv6), made for a network, since a network may
have an outbound address of the host's in each. It knows the family's socket addresses and options,
reads its error queue, and knows how an echo passes a ping socket. A socket that was prepared has
ICMP errors from outside in its error queue, with the address that sent them; of a datagram that is
too long the kernel itself tells the MTU of the path.

Which one serves depends on the *host's* address
that a packet is for (`Sockets.of`), whatever family the guest speaks: the two are the same until
something translates.

Does not do: open sockets (slirp.host.descriptors lends them), or anything with packets.
"""

from __future__ import annotations

import errno
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, NamedTuple

from slirp.address import Endpoint, SockAddr, addr_to_text
from slirp.flow import Cause
from slirp.ip.packet import DONT_FRAGMENT
from slirp.shortage import is_shortage, persist

MSG_ERRQUEUE: Final = 0x2000
ERRORS_PER_EVENT: Final = 16
EXTENDED_ERR: Final = struct.Struct("=IBBBxII")  # errno, origin, type, code, info, data
ORIGIN_LOCAL: Final = 1  # linux/errqueue.h: the host itself
CONTROL_LEN: Final = 512

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


class SocketFamily(ABC):
    """The sockets of one family, on one network."""

    family: ClassVar[socket.AddressFamily]
    addr_len: ClassVar[int]  # bytes
    icmp: ClassVar[int]  # protocol number of ping sockets
    quoted_max: ClassVar[int]  # bytes of a datagram that an error from the host has at most
    quote_len: ClassVar[int]  # bytes of the packet that the error queue is asked for

    # Level and options of setsockopt, and the values of MTU_DISCOVER that say no and yes
    level: ClassVar[int]
    hop_limit: ClassVar[int]
    recverr: ClassVar[int]
    mtu_discover: ClassVar[int]
    pmtudisc_dont: ClassVar[int]
    pmtudisc_do: ClassVar[int]

    # Who found an error, linux/errqueue.h, and what its ICMP types and codes are
    origin_icmp: ClassVar[int]
    offender: ClassVar[slice]  # of the sockaddr behind a sock_extended_err
    closed_port: ClassVar[tuple[int, int]]
    mtu_mask: ClassVar[int]  # bits of an MTU, as an ICMP error has it

    def __init__(self, outbound: bytes | None = None) -> None:
        """`outbound`: the host's address that connections come from."""
        self.outbound = outbound

    @abstractmethod
    def sockaddr(self, addr: bytes, port: int) -> SockAddr:
        """As `socket` methods take it."""

    def leave(self, sock: socket.socket) -> None:
        """Bind to the outbound address, where there is one."""
        if self.outbound is not None:
            persist(sock.bind, (addr_to_text(self.outbound), 0))

    def prepare(self, sock: socket.socket) -> None:
        """Have errors reported, and let what is sent be fragmented: `hops` is 0 from here on."""
        persist(sock.setsockopt, self.level, self.recverr, 1)
        persist(sock.setsockopt, self.level, self.mtu_discover, self.pmtudisc_dont)

    def set_hops(self, sock: socket.socket, hops: int, before: int) -> None:
        """What goes out next has this hop limit and, with it, DONT_FRAGMENT or not."""
        changed = hops ^ before
        if changed & 0xFF:
            persist(sock.setsockopt, self.level, self.hop_limit, hops & 0xFF)
        if changed & DONT_FRAGMENT:
            discover = self.pmtudisc_do if hops & DONT_FRAGMENT else self.pmtudisc_dont
            persist(sock.setsockopt, self.level, self.mtu_discover, discover)

    def errors(self, sock: socket.socket) -> Iterator[SocketError]:
        """Take what the error queue has; the socket's pending error goes with it.

        A shortage that this meets is raised; what has not been taken stays in the queue.
        """
        for _ in range(ERRORS_PER_EVENT):
            try:
                quoted, ancillary, _, peer = sock.recvmsg(self.quote_len, CONTROL_LEN, MSG_ERRQUEUE)
            except OSError as failure:
                if is_shortage(failure) and not isinstance(failure, BlockingIOError):
                    raise
                persist(sock.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
                return
            for level, kind, error in ancillary:
                if level == self.level and kind == self.recverr:
                    yield self.parse_error(peer, quoted, error)

    def parse_error(self, peer: SockAddr, quoted: bytes, error: bytes) -> SocketError:
        """A sock_extended_err, and the sockaddr of who sent it behind it (linux/errqueue.h)."""
        number, origin, kind, code, info, _ = EXTENDED_ERR.unpack_from(error)
        if origin != self.origin_icmp:
            too_long = origin == ORIGIN_LOCAL and number == errno.EMSGSIZE
            return SocketError(
                peer, quoted, info & self.mtu_mask if too_long else 0, -1, 0, 0, None
            )
        offender = error[self.offender]
        rest = info & self.mtu_mask if self.tells_mtu(kind, code) else 0
        return SocketError(peer, quoted, 0, kind, code, rest, offender if any(offender) else None)

    @abstractmethod
    def tells_mtu(self, kind: int, code: int) -> bool:
        """Does an ICMP error of this type and code have an MTU in its second word?"""

    def is_closed_port(self, error: SocketError) -> bool:
        """Does it say that nobody listens?"""
        return (error.kind, error.code) == self.closed_port

    @abstractmethod
    def filter_echoes(self, sock: socket.socket) -> None:
        """Have a raw socket report echo replies only."""

    @abstractmethod
    def echo_request(self, rest: int, payload: bytes) -> bytes:
        """A request as the kernel is given it; `rest`: identifier and sequence number."""

    @abstractmethod
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
