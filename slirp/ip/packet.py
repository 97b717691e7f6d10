"""What passes between the edge, the families and the relays, as values.

A `Context` is what is known of a frame once its Ethernet header is read; a `Packet` is what a
family has made of its payload: whole, its options or extension headers behind it, in terms that are
the same for both. What is to be done about a packet is an action: something to send to a guest
(`Send`, `Unresolved`), or something for a relay, which has the host's sockets, with the payload as
views of the guest's memory.

Does not do: anything.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from dma.iovec import IoVec
from slirp.ip.neighbours import Guest
from slirp.wire.ethernet import EthernetHeader
from slirp.wire.tcp import TcpHeader, TcpOptions

DONT_FRAGMENT: Final = 0x100  # beside a hop limit: the packet is not to be fragmented
LINK_MTU: Final = 1500  # bytes of a packet, RFC 894: what is longer fits no link but our own


class Context(NamedTuple):
    """What the layers above Ethernet know of the frame they are in."""

    attachment: Any
    ethernet: EthernetHeader
    summed: bool  # the transport checksum needs no verification
    unlabelled: bool  # … or may, without a word, have been left to the wire
    gso_size: int
    now: float


class Packet(NamedTuple):
    """A guest's packet, whole."""

    context: Context
    guest: Guest | None  # None: the source is the unspecified address
    src: bytes
    dst: bytes
    protocol: int
    hops: int  # TTL or hop limit, as it came
    dont_fragment: bool
    whole: IoVec  # from the IP header on, without padding: what an ICMP error quotes
    payload: IoVec

    def fragmentable(self, size: int) -> int:
        """0, or DONT_FRAGMENT where it asks for that and, at `size` bytes, fits any link."""
        return DONT_FRAGMENT if self.dont_fragment and size <= LINK_MTU else 0


class Send(NamedTuple):
    """A frame for a guest: headers, a segment each, then payload."""

    attachment: Any
    headers: tuple[bytes, ...]
    payload: IoVec


class Unresolved(NamedTuple):
    """A packet of the network's own for an address whose guest is not known (any more)."""

    addr: bytes
    src: bytes
    protocol: int
    payload: IoVec


class TcpArrived(NamedTuple):
    key: bytes  # of the flow (slirp.flow)
    guest: Guest
    header: TcpHeader
    options: TcpOptions | None
    payload: IoVec
    packet: Packet


class UdpArrived(NamedTuple):
    guest: Guest
    src_port: int
    dst: bytes
    dst_port: int
    ttl: int
    payload: IoVec
    gso_size: int  # bytes per datagram where the payload is several of them; else 0
    dont_fragment: int = 0  # DONT_FRAGMENT, or 0

    @property
    def hops(self) -> int:
        """As it is to go out."""
        return self.ttl | self.dont_fragment


class EchoArrived(NamedTuple):
    guest: Guest
    dst: bytes
    ident: int
    sequence: int
    ttl: int
    payload: IoVec
    dont_fragment: int = 0  # DONT_FRAGMENT, or 0

    @property
    def hops(self) -> int:
        """As it is to go out."""
        return self.ttl | self.dont_fragment


class DnsArrived(NamedTuple):
    guest: Guest
    src_port: int
    payload: IoVec


Action: TypeAlias = Send | Unresolved | TcpArrived | UdpArrived | EchoArrived | DnsArrived
