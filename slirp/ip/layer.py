"""IP on one network, in one family: packets to guests, and what their packets lead to.

A family's way in (`Input`, such as slirp.ip.ipv4_input) makes a `Packet` of a frame; `handle` walks
on through TCP or UDP, `echo` answers or passes on an echo request. What the network itself answers
comes back as `Send`, what needs a host socket as an arrival (slirp.ip.packet). All of this is the
same for both families, but for the numbers, which are the family's (slirp.ip.family), and for the
addresses, about which the network's `Nat` of this family decides.

What is refused is told by ICMP, and so is what the host's kernel refuses; a port gets so many
errors per second (slirp.ip.limit). A service of the network's own takes the datagrams to its port.

Does not do: parsing below TCP, UDP and echo; routing between guests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from dma.iovec import IoVec
from slirp.config_fields import DNS_PORT
from slirp.errors import MalformedPacket
from slirp.flow import NO_DNS, NO_SERVICE, Cause, Nat, Refusal
from slirp.ip.family import Family
from slirp.ip.link import Link
from slirp.ip.neighbours import Guest
from slirp.ip.packet import (
    Action,
    Context,
    DnsArrived,
    EchoArrived,
    Packet,
    Send,
    TcpArrived,
    UdpArrived,
    Unresolved,
)
from slirp.ip.template import PROTOCOL_TCP, PROTOCOL_UDP
from slirp.wire import checksum
from slirp.wire import tcp as wire_tcp
from slirp.wire import udp as wire_udp
from slirp.wire.tcp import SYN, TcpHeader, parse_options
from slirp.wire.udp import UdpHeader

TCP_HEADER_MAX: Final = wire_tcp.HEADER_LEN + wire_tcp.MAX_OPTIONS

# Of the network's own: the actions, or None for a datagram that is not for it.
Service: TypeAlias = Callable[[Packet, UdpHeader, IoVec], Sequence[Action] | None]


class Layer:
    """One family on one network."""

    def __init__(
        self, link: Link, family: Family, nat: Nat, broadcasts: Collection[bytes] = ()
    ) -> None:
        self.link = link
        self.family = family
        self.nat = nat
        self.own = frozenset(nat.own)
        self.services: dict[int, Service] = {}  # by UDP port
        self._broadcasts = broadcasts
        link.reserve((*self.own, *broadcasts))

    def learn(self, addr: bytes, context: Context) -> Guest | None:
        """The guest at this address, as it was just seen; None for an address no guest can have."""
        mac = context.ethernet.src
        return self.link.learn(self.family, addr, mac, context.attachment, context.now)

    # To guests

    def packets(self, guest: Guest, src: bytes, protocol: int, payload: IoVec) -> list[Send]:
        """Frames that carry `payload` to the guest, in fragments where the MTU asks for it."""
        return self.frames(guest.attachment, guest.ethernet, src, guest.addr, protocol, payload)

    def packets_to(
        self, addr: bytes, src: bytes, protocol: int, payload: IoVec
    ) -> Sequence[Send | Unresolved]:
        """As `packets`, for an address whose guest may have been forgotten."""
        guest = self.link.guests.get(addr)
        if guest is None:
            return [Unresolved(addr, src, protocol, payload)]
        return self.packets(guest, src, protocol, payload)

    def frames(
        self, attachment: Any, ethernet: bytes, src: bytes, dst: bytes, protocol: int,
        payload: IoVec,
    ) -> list[Send]:  # fmt: skip
        """As `packets`, for whoever is at that port."""
        return [
            Send(attachment, (ethernet, ip), piece)
            for ip, piece in self.family.packets(src, dst, protocol, payload, self.link.mtu)
        ]

    # Errors

    def refuse(self, packet: Packet, refusal: Refusal) -> list[Send]:
        """Count what is refused; the error that says so, if one is to."""
        self.link.refused[refusal.reason] += 1
        return [] if refusal.cause is None else self.tell(packet, refusal.cause)

    def tell(self, packet: Packet, cause: Cause) -> list[Send]:
        """The ICMP error that says why, where one may be sent."""
        return self.say(packet, *self.family.causes[cause])

    def say(self, packet: Packet, kind: int, code: int, rest: int = 0) -> list[Send]:
        """An ICMP error about this packet, where one may be sent; `rest` is its second word."""
        guest = self.link.guests.get(packet.src)
        context = packet.context
        if guest is None or not self.family.may_send_error(
            packet.src, packet.dst, packet.protocol, packet.payload, context.ethernet.dst,
            self._broadcasts,
        ):  # fmt: skip
            return []
        if not self.link.may_tell(context.attachment, context.now):
            return []
        src = self.nat.gateway
        message = self.family.error(src, guest.addr, kind, code, rest, packet.whole)
        return self.packets(guest, src, self.family.icmp, message)

    def pass_on_error(
        self, guest: Guest, offender: bytes, kind: int, code: int, rest: int, protocol: int,
        dst: bytes, quoted: bytes,
    ) -> list[Send]:  # fmt: skip
        """An ICMP error from `offender` for a packet of the guest's that is no longer at hand.

        Its header is made again from the flow; `quoted` is what followed it.
        """
        header = self.family.header(guest.addr, dst, protocol, len(quoted))
        original = IoVec.of(header, quoted)
        message = self.family.error(offender, guest.addr, kind, code, rest, original)
        return self.packets(guest, offender, self.family.icmp, message)

    def unreachable_by_host(
        self, guest: Guest, cause: Cause, mtu: int, protocol: int, dst: bytes, quoted: bytes,
        now: float,
    ) -> list[Send]:  # fmt: skip
        """What a router says where it has no way on: the host's kernel has refused a packet.

        `mtu`: of the path, with TOO_LONG; `quoted`: what followed the IP header.
        """
        if self.nat.is_group(dst):  # RFC 1122 §3.2.2
            return []
        if not self.link.may_tell(guest.attachment, now):
            return []
        kind, code = self.family.causes[cause]
        return self.pass_on_error(guest, self.nat.gateway, kind, code, mtu, protocol, dst, quoted)

    # From guests

    def handle(self, packet: Packet) -> Sequence[Action]:
        """A packet of TCP or UDP, or of what nobody here knows."""
        if packet.protocol == PROTOCOL_TCP:
            return self._handle_tcp(packet)
        if packet.protocol == PROTOCOL_UDP:
            return self._handle_udp(packet)
        self.link.refused["protocol"] += 1
        return self.tell(packet, Cause.NO_PROTOCOL)

    def outward(self, dst: bytes) -> bytes | Refusal:
        """The host address that a destination stands for, or why it stands for none."""
        target = self.nat.outward(dst)
        return NO_DNS if target is NO_SERVICE and not self.link.dns_enabled else target

    def is_dns(self, dst: bytes, port: int) -> bool:
        """Is this where the network's DNS service is?"""
        return dst == self.nat.dns and port == DNS_PORT and self.link.dns_enabled

    def _verify(self, packet: Packet, payload: IoVec, layer: str, field: int) -> None:
        if packet.context.summed:
            return
        pseudo = checksum.pseudo_sum(packet.src, packet.dst, packet.protocol, len(payload))
        if checksum.valid(payload.segments, pseudo):
            return
        if packet.context.unlabelled and checksum.left_undone(field, pseudo):
            return
        raise MalformedPacket(layer, "checksum")

    def _expires_here(self, packet: Packet) -> bool:
        # What is for the gateway itself has arrived, whatever its TTL (RFC 1122 §3.2.1.7).
        return packet.hops <= 1 and packet.dst not in self.own

    def echo(self, packet: Packet, guest: Guest, rest: int, data: IoVec) -> Sequence[Action]:
        """An echo request; `rest` is its identifier and sequence number, as on the wire."""
        family, dst = self.family, packet.dst
        if dst in self.own:
            reply = family.message(dst, guest.addr, family.echo_reply, 0, rest, data)
            return self.packets(guest, dst, family.icmp, reply)
        target = self.outward(dst)
        if isinstance(target, Refusal):
            return self.refuse(packet, target)
        if self._expires_here(packet):
            return self.tell(packet, Cause.EXPIRED)
        unfragmented = packet.fragmentable(len(packet.whole))
        return [
            EchoArrived(guest, dst, rest >> 16, rest & 0xFFFF, packet.hops - 1, data, unfragmented)
        ]

    def _handle_udp(self, packet: Packet) -> Sequence[Action]:
        payload, dst, guest = packet.payload, packet.dst, packet.guest
        size = len(payload)
        head, _ = payload.pull(min(size, wire_udp.HEADER_LEN))
        datagram = UdpHeader.parse(head, size)
        payload = payload.slice(0, datagram.length)
        if datagram.checksum:
            self._verify(packet, payload, "udp", datagram.checksum)
        elif not self.family.plain.sum_optional:
            raise MalformedPacket("udp", "no checksum")
        data = payload.slice(wire_udp.HEADER_LEN, datagram.length)
        service = self.services.get(datagram.dst_port)
        if service is not None and (actions := service(packet, datagram, data)) is not None:
            return actions
        if guest is None:
            raise MalformedPacket("udp", "source address unspecified")
        if self.is_dns(dst, datagram.dst_port):
            return [DnsArrived(guest, datagram.src_port, data)]
        target = self.outward(dst)
        if isinstance(target, Refusal) and not self.link.is_answer(
            guest.addr, datagram.src_port, dst, datagram.dst_port
        ):
            return self.refuse(packet, target)
        if self._expires_here(packet):
            return self.tell(packet, Cause.EXPIRED)
        gso_size = packet.context.gso_size
        each = self.family.header_len + wire_udp.HEADER_LEN + (gso_size or len(data))
        return [
            UdpArrived(
                guest, datagram.src_port, dst, datagram.dst_port, max(1, packet.hops - 1), data,
                gso_size, packet.fragmentable(each),
            )
        ]  # fmt: skip

    def _handle_tcp(self, packet: Packet) -> Sequence[Action]:
        payload, guest = packet.payload, packet.guest
        size = len(payload)
        head, _ = payload.pull(min(size, TCP_HEADER_MAX))
        segment = TcpHeader.parse(head, size)
        self._verify(packet, payload, "tcp", segment.checksum)
        if guest is None:
            raise MalformedPacket("tcp", "source address unspecified")
        if self.nat.is_group(packet.dst):
            raise MalformedPacket("tcp", "destination is a group")
        if segment.flags & SYN and self._expires_here(packet):
            return self.tell(packet, Cause.EXPIRED)
        options = None
        if segment.data_offset > wire_tcp.HEADER_LEN:
            options = parse_options(head[wire_tcp.HEADER_LEN : segment.data_offset])
        key = packet.src + packet.dst + bytes(head[:4])
        data = payload.slice(segment.data_offset, size)
        return [TcpArrived(key, guest, segment, options, data, packet)]


Handler: TypeAlias = Callable[[Context, IoVec, memoryview], Sequence[Action]]
Claim: TypeAlias = Callable[[memoryview, Any], bool]


class Input(Protocol):
    """A family's way in, on one network."""

    layer: Layer
    handlers: Mapping[int, Handler]  # by ethertype: the frame, and its start in one piece
    # By ethertype: does a frame of this port's speak in the network's name?
    claims: Mapping[int, Claim]

    def solicit(self, addr: bytes) -> tuple[bytes, ...]:
        """The headers of a frame that asks who has `addr`."""

    def poll_at(self) -> float | None:
        """When there is something to give up."""

    def handle_timeout(self, now: float) -> Iterable[Action]:
        """Give it up."""

    def add_port(self, attachment: Any, now: float) -> None:
        """A port was put on the network."""

    def forget_port(self, attachment: Any) -> None:
        """The port was taken off the network."""


def udp_datagram(src: bytes, dst: bytes, src_port: int, dst_port: int, payload: IoVec) -> IoVec:
    """A whole datagram around this payload, checksum included."""
    size = wire_udp.HEADER_LEN + len(payload)
    bare = UdpHeader(src_port, dst_port, size, 0)
    initial = checksum.pseudo_sum(src, dst, PROTOCOL_UDP, size)
    total = checksum.checksum((memoryview(bare.emit()), *payload.segments), initial)
    return IoVec.of(bare._replace(checksum=checksum.udp_field(total)).emit()) + payload
