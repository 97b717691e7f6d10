"""One object per address family: what IPv4 and IPv6 both have, each in its own numbers.

A `Family` is numbers and formats, without state: how long its header is, where the transport's
stands, what a path's MTU leaves for TCP and UDP, how an ICMP error says what (`slirp.flow.Cause`),
and how packets, messages and a flow's templates are made. Whoever works for both families asks the
guest's (`Guest.family`), and has no number of its own. What a family does on one network (who its
gateway is, what its packets lead to) is in its `slirp.ip.layer.Input` and `Layer`; what its sockets
need is in `slirp.host.sockets`.

A `Plain` says how a frame is recognised that needs no parsing: Ethernet, the IP header without
options or extension headers, TCP or UDP, in this order and in one piece. One `unpack` reads the
fields that decide; their layouts differ, but the eight values are the same for both families:

    word    ethertype, version and what follows: `word & mask == mark` for a plain header
    length  as the header has it; `length + base` is where the packet ends in the frame
    kind    `kind & kinds` is the transport's protocol, where the packet is no fragment
    key     addresses and ports (slirp.flow)
    then TCP's sequence and acknowledgment number, offset and flags, window; of UDP's header the
    first of these is length and checksum

Does not do: parsing beyond that, sending, addresses of a network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from typing import Any, Final, NamedTuple

from dma.iovec import IoVec
from slirp.flow import Cause
from slirp.ip.template import Template
from slirp.wire import ethernet
from slirp.wire import tcp as wire_tcp
from slirp.wire import udp as wire_udp
from slirp.wire.virtio_net import GSO_NONE, GSO_UDP_L4, NEEDS_CSUM, VnetHeader

SUPER_MAX: Final = 65535  # bytes of a packet that is several (Linux: GSO_LEGACY_MAX_SIZE)
TCP_HEADER_MAX: Final = wire_tcp.HEADER_LEN + wire_tcp.MAX_OPTIONS


class Plain(NamedTuple):
    """How a plain frame of one family is recognised and read; offsets from the frame's start."""

    unpack: Callable[[memoryview], tuple[Any, ...]]
    mask: int
    mark: int
    kinds: int
    base: int
    least: int  # bytes of the headers, TCP having no options: what such a frame has at least
    data_at: int  # what a datagram carries
    hops_at: int
    flags_at: int  # a byte whose bit 0x40 says that the packet is not to be fragmented
    transport_at: int
    summed_to: int  # end of a header that begins at 14 and has a checksum; 14: it has none
    addrs_at: int
    sum_optional: bool  # may a datagram have no checksum?


class Family(ABC):
    """IPv4 or IPv6."""

    name: str  # as MalformedPacket has it
    version: int
    ethertype: int
    addr_len: int  # bytes
    header_len: int  # bytes, without options or extension headers
    min_mtu: int  # bytes that every link carries
    udp_max: int  # bytes of payload of the longest datagram
    mss_default: int  # bytes, of a guest that names none
    icmp: int  # protocol number
    quote_max: int  # bytes of a packet that an error quotes, IP header included
    echo_request: int  # ICMP types
    echo_reply: int
    gso_tcp: int  # virtio-net's segmentation type
    causes: Mapping[Cause, tuple[int, int]]  # type and code of the error that says it
    plain: Plain

    def __init__(self) -> None:
        self.transport_at = ethernet.HEADER_LEN + self.header_len  # bytes in front of TCP, UDP
        self.udp_lengths = (ethernet.HEADER_LEN, self.header_len, wire_udp.HEADER_LEN)
        self.udp_headers = sum(self.udp_lengths)
        # Bytes of payload that a frame carries which is several (segments, datagrams) in one
        self.tcp_super_max = SUPER_MAX - self.header_len - TCP_HEADER_MAX
        self.udp_super_max = SUPER_MAX - self.header_len - wire_udp.HEADER_LEN
        self.udp_single = self.udp_vnet(0)

    def mss(self, mtu: int) -> int:
        """Bytes of a segment that a packet of `mtu` carries, RFC 9293 §3.7.1."""
        return mtu - self.header_len - wire_tcp.HEADER_LEN

    def udp_room(self, mtu: int) -> int:
        """Bytes of a datagram that a packet of `mtu` carries."""
        return mtu - self.header_len - wire_udp.HEADER_LEN

    def tcp_vnet(self, header_len: int, gso_size: int) -> bytes:
        """The virtio-net header of a frame with a segment, or with `gso_size` several of that."""
        gso = self.gso_tcp if gso_size else GSO_NONE
        at, field = self.transport_at, wire_tcp.CHECKSUM_OFFSET
        return VnetHeader(NEEDS_CSUM, gso, header_len, gso_size, at, field).emit()

    def udp_vnet(self, gso_size: int) -> bytes:
        """The same of a datagram."""
        gso = GSO_UDP_L4 if gso_size else GSO_NONE
        at, field = self.transport_at, wire_udp.CHECKSUM_OFFSET
        return VnetHeader(NEEDS_CSUM, gso, self.udp_headers, gso_size, at, field).emit()

    def answering(self, key: bytes, protocol: int) -> Template:
        """Headers of the flow that answers the one of this key (slirp.flow)."""
        size = self.addr_len
        src, dst = key[size : 2 * size], key[:size]
        return self.template(src, dst, key[-2:] + key[-4:-2], protocol)

    @abstractmethod
    def template(self, src: bytes, dst: bytes, ports: bytes, protocol: int) -> Template:
        """Headers of a flow from `src` to `dst`; `ports`: source and destination, 4 bytes."""

    @abstractmethod
    def header(self, src: bytes, dst: bytes, protocol: int, size: int) -> bytes:
        """The header of a guest's packet with `size` bytes of payload, to be quoted."""

    @abstractmethod
    def packets(
        self, src: bytes, dst: bytes, protocol: int, payload: IoVec, mtu: int
    ) -> list[tuple[bytes, IoVec]]:
        """Header and payload of each packet that it takes to carry `payload`."""

    @abstractmethod
    def message(
        self, src: bytes, dst: bytes, kind: int, code: int, rest: int, payload: IoVec
    ) -> IoVec:
        """An ICMP message with its checksum; `rest` is its second word. Views are shared."""

    @abstractmethod
    def error(
        self, src: bytes, dst: bytes, kind: int, code: int, rest: int, original: IoVec
    ) -> IoVec:
        """An ICMP error about `original`, which starts with its IP header and is cut to fit."""

    @abstractmethod
    def may_send_error(
        self, src: bytes, dst: bytes, protocol: int, payload: IoVec, link_dst: bytes,
        broadcasts: Container[bytes],
    ) -> bool:  # fmt: skip
        """May this packet, which is whole, be answered by an error?

        `link_dst` is its frame's destination, `broadcasts` the network's broadcast addresses.
        """
