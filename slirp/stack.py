"""The stack's edge: one frame in, what is to be done about it out.

`handle_frame` takes a frame as the port gave it and walks down its headers: Ethernet, then ARP or
IPv4, reassembly where it is a fragment, then ICMP, UDP or TCP. What the network itself answers
(ARP, echo to its own addresses, DHCP, errors) comes back as `Send`; what needs a host socket comes
back as `TcpArrived`, `UdpArrived`, `EchoArrived` or `DnsArrived`, with the payload as views of the
guest's memory. The stack sends nothing, opens nothing and reads no clock.

What is refused is told by ICMP (`slirp.flow.Refusal` has the code), and so is what the host's
kernel refuses; a port gets so many errors per second (slirp.ip.limit).

Every parser below raises `MalformedPacket` and nothing else; it is caught here, once, and counted
by layer and reason. A frame that is well formed and leads nowhere is counted in `refused`.

Known TCP flows have a shorter way in (slirp.host.dispatch); what that does not know comes here.

Does not do: options of IP (read over, never acted on), IPv6, forwarding of multicast.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from dma.iovec import IoVec
from slirp.config import Config
from slirp.errors import MalformedPacket
from slirp.flow import ANY4, BROADCAST4, NO_DNS, NO_SERVICE, Guest, Nat, Refusal
from slirp.guard import is_forged
from slirp.ip import arp, fragments, icmp
from slirp.ip.limit import TokenBucket
from slirp.ip.neighbours import Neighbours
from slirp.ip.reassembly import Reassembler
from slirp.ip.template import TTL
from slirp.switch import LearningSwitch
from slirp.wire import checksum, ethernet
from slirp.wire import icmp as wire_icmp
from slirp.wire import ipv4 as wire_ipv4
from slirp.wire.arp import ArpPacket
from slirp.wire.ethernet import ETHERTYPE_ARP, ETHERTYPE_IPV4, EthernetHeader
from slirp.wire.icmp import IcmpHeader
from slirp.wire.ipv4 import PROTOCOL_ICMP, PROTOCOL_UDP, Ipv4Header
from slirp.wire.tcp import SYN, TcpHeader, TcpOptions, parse_options
from slirp.wire.udp import UdpHeader

if TYPE_CHECKING:
    from nic.port import Frame
    from slirp.services.dhcp import DhcpServer

HEADERS_MAX: Final = 14 + 60 + 60  # bytes that may be headers; the rest is payload for sure
DHCP_SERVER_PORT: Final = 67
DHCP_CLIENT_PORT: Final = 68
DNS_PORT: Final = 53
CHECKSUM_KNOWN: Final = 3  # virtio-net NEEDS_CSUM | DATA_VALID: nothing to verify
DONT_FRAGMENT: Final = 0x100  # beside a hop limit: the packet is not to be fragmented
LINK_MTU: Final = 1500  # bytes of a packet, RFC 894: what is longer fits no link but our own


class Context(NamedTuple):
    """What the layers above Ethernet know of the frame they are in."""

    attachment: Any
    ethernet: EthernetHeader
    packet: IoVec  # from the IP header on, without padding: what an ICMP error quotes
    summed: bool  # the transport checksum needs no verification
    gso_size: int
    now: float


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


class Switch(NamedTuple):
    """A frame that is for another guest's port, or for all other ones (`attachment` None)."""

    attachment: Any | None
    source: Any
    frame: Frame


class TcpArrived(NamedTuple):
    key: bytes  # source and destination address, source and destination port, as on the wire
    guest: Guest
    header: TcpHeader
    options: TcpOptions | None
    payload: IoVec
    ip: Ipv4Header
    context: Context


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


Action: TypeAlias = Send | Unresolved | Switch | TcpArrived | UdpArrived | EchoArrived | DnsArrived


class Stack:
    """The virtual network's own side of the wire."""

    def __init__(self, config: Config, dhcp: DhcpServer | None = None) -> None:
        nat, mac = Nat(config), config.mac_addr
        self.nat = nat
        self.mac = mac
        self.mtu = config.mtu
        self.dhcp = dhcp
        self.dns_enabled = config.dns_enabled
        self.switch = LearningSwitch(mac)
        self.reassemblers: dict[Any, Reassembler] = {}
        self.malformed: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[str] = Counter()
        self._own = {nat.gateway: mac, nat.dns: mac}
        self.broadcasts = (BROADCAST4, nat.broadcast)
        self.guests = Neighbours(mac, {*self._own, *self.broadcasts})
        self.on_guest: Callable[[Guest, float], None] = lambda guest, now: None
        # Does this guest endpoint answer that peer, who wrote to it through a forward?
        self.is_answer: Callable[[bytes, int, bytes, int], bool] = lambda *endpoints: False
        self.isolated = config.isolate  # guests do not reach each other
        self.ports = 0  # attachments on this network
        self._allowances: dict[Any, TokenBucket] = {}  # by attachment: errors that it may be told
        self.errors = 0  # ICMP errors of the network's own, told …
        self.errors_withheld = 0  # … and not, beyond what the port is allowed

    # Ethernet

    def handle_frame(self, frame: Frame, attachment: Any, now: float) -> list[Action]:
        """What to do about one frame."""
        try:
            return self._handle_ethernet(frame, attachment, now)
        except MalformedPacket as error:
            self.malformed[error.layer, error.reason] += 1
            return []

    def _handle_ethernet(self, frame: Frame, attachment: Any, now: float) -> list[Action]:
        iov = frame.iov
        size = len(iov)
        ethernet.check_length(size, max(14 + self.mtu, attachment.port.max_frame))
        head, _ = iov.pull(min(size, HEADERS_MAX))
        header = EthernetHeader.parse(head)
        actions: list[Action] = []
        self.switch.learn(header.src, attachment)
        if self.ports > 1:
            actions = self._switch(header, head, frame, attachment)
        if header.dst != self.mac and not ethernet.is_group(header.dst):
            return actions  # another station's
        if header.ethertype == ETHERTYPE_IPV4:
            vnet = frame.vnet
            gso_size = int.from_bytes(vnet[4:6], "little") if vnet[1] else 0
            packet = iov.slice(14, size)
            context = Context(
                attachment, header, packet, bool(vnet[0] & CHECKSUM_KNOWN), gso_size, now
            )
            actions += self._handle_ipv4(context, head[14:], size - 14)
        elif header.ethertype == ETHERTYPE_ARP:
            actions += self._handle_arp(ArpPacket.parse(head[14:]), attachment, now)
        else:
            self.refused["ethertype"] += 1
        return actions

    def _switch(
        self, header: EthernetHeader, head: memoryview, frame: Frame, attachment: Any
    ) -> list[Action]:
        if header.dst == self.mac:
            return []
        if self.isolated:
            self.refused["isolated"] += not ethernet.is_group(header.dst)
            return []
        if is_forged(header, head, self.mac, self._own, self.dhcp is not None):
            self.refused["forged"] += 1
            return []
        target = self.switch.lookup(header.dst)  # None for a group: no source is one
        return [] if target is attachment else [Switch(target, attachment, frame)]

    def _handle_arp(self, packet: ArpPacket, attachment: Any, now: float) -> Sequence[Action]:
        self.learn(packet.sender_addr, packet.sender_mac, attachment, now)
        reply = arp.answer(packet, self._own)
        if reply is None:
            return []
        header = EthernetHeader(packet.sender_mac, self.mac, ETHERTYPE_ARP).emit()
        return [Send(attachment, (header, reply.emit()), IoVec())]

    def learn(self, addr: bytes, mac: bytes, attachment: Any, now: float) -> Guest | None:
        """The guest at this address, as it was just seen; None for an address no guest can have."""
        known = self.guests.get(addr)
        guest = self.guests.learn(addr, mac, attachment, now)
        if guest is not None and known is None:
            self.on_guest(guest, now)
        return guest

    def forget_port(self, attachment: Any) -> None:
        """The port was taken off the network."""
        self.ports -= 1
        self.guests.forget_port(attachment)
        self.reassemblers.pop(attachment, None)
        self._allowances.pop(attachment, None)
        self.switch.forget_port(attachment)

    def arp_request(self, addr: bytes) -> tuple[bytes, ...]:
        """The headers of a frame that asks who has `addr`."""
        header = EthernetHeader(ethernet.BROADCAST, self.mac, ETHERTYPE_ARP)
        return header.emit(), arp.request(self.mac, self.nat.gateway, addr).emit()

    # IPv4

    def _handle_ipv4(self, context: Context, head: memoryview, available: int) -> Sequence[Action]:
        header = Ipv4Header.parse(head, available)
        context = context._replace(packet=context.packet.slice(0, header.total_len))
        payload = context.packet.slice(header.ihl, header.total_len)
        guest = self.learn(header.src, context.ethernet.src, context.attachment, context.now)
        if guest is None and header.src != ANY4:
            raise MalformedPacket("ipv4", "source that no guest can have")
        if header.is_fragment:
            whole = self._reassemble(header, payload, context)
            if whole is None:
                return []
            header, payload = whole
            context = context._replace(
                packet=IoVec.of(header.emit()) + payload, summed=False, gso_size=0
            )
        match header.protocol:
            case wire_ipv4.PROTOCOL_TCP:
                return self._handle_tcp(context, header, payload, guest)
            case wire_ipv4.PROTOCOL_UDP:
                return self._handle_udp(context, header, payload, guest)
            case wire_ipv4.PROTOCOL_ICMP:
                return self._handle_icmp(context, header, payload, guest)
        self.refused["protocol"] += 1
        return self.unreachable(context, header, wire_icmp.PROTOCOL_UNREACHABLE)

    def _reassemble(
        self, header: Ipv4Header, payload: IoVec, context: Context
    ) -> tuple[Ipv4Header, IoVec] | None:
        reassembler = self.reassemblers.get(context.attachment)
        if reassembler is None:
            reassembler = self.reassemblers[context.attachment] = Reassembler()
        return reassembler.handle_fragment(header, payload, context.now)

    def poll_at(self) -> float | None:
        """When an incomplete datagram is given up."""
        due = [at for r in self.reassemblers.values() if (at := r.poll_at()) is not None]
        return min(due, default=None)

    def handle_timeout(self, now: float) -> list[Action]:
        """Give up incomplete datagrams; their senders are told (RFC 792)."""
        actions: list[Action] = []
        for attachment, reassembler in self.reassemblers.items():
            for header, first in reassembler.handle_timeout(now):
                if not self.nat.is_broadcast(header.dst) and self._may_tell(attachment, now):
                    packet = IoVec.of(header.emit(), first)
                    code = wire_icmp.REASSEMBLY_TIME_EXCEEDED
                    message = icmp.error(wire_icmp.TIME_EXCEEDED, code, 0, packet)
                    actions += self.packets_to(header.src, self.nat.gateway, PROTOCOL_ICMP, message)
        return actions

    def _verify(self, context: Context, header: Ipv4Header, payload: IoVec, layer: str) -> None:
        if context.summed:
            return
        pseudo = checksum.pseudo_sum(header.src, header.dst, header.protocol, len(payload))
        if not checksum.valid(payload.segments, pseudo):
            raise MalformedPacket(layer, "checksum")

    def unreachable(self, context: Context, header: Ipv4Header, code: int) -> list[Send]:
        """The ICMP error that says so, where one may be sent (RFC 1122 §3.2.2)."""
        return self._error(context, header, wire_icmp.DEST_UNREACHABLE, code)

    def _error(self, context: Context, header: Ipv4Header, kind: int, code: int) -> list[Send]:
        guest = self.guests.get(header.src)
        payload = context.packet.slice(header.ihl, header.total_len)
        if guest is None or not icmp.may_send_error(
            header, payload, context.ethernet.dst, self.broadcasts
        ):
            return []
        if not self._may_tell(context.attachment, context.now):
            return []
        message = icmp.error(kind, code, 0, context.packet)
        return self.packets(guest, self.nat.gateway, PROTOCOL_ICMP, message)

    def _may_tell(self, attachment: Any, now: float) -> bool:
        """One more error of our own for this port?"""
        allowance = self._allowances.get(attachment)
        if allowance is None:
            allowance = self._allowances[attachment] = TokenBucket(now)
        if not allowance.take(now):
            self.errors_withheld += 1
            return False
        self.errors += 1
        return True

    def packets_to(
        self, addr: bytes, src: bytes, protocol: int, payload: IoVec
    ) -> Sequence[Send | Unresolved]:
        """As `packets`, for an address whose guest may have been forgotten."""
        guest = self.guests.get(addr)
        if guest is None:
            return [Unresolved(addr, src, protocol, payload)]
        return self.packets(guest, src, protocol, payload)

    def packets(self, guest: Guest, src: bytes, protocol: int, payload: IoVec) -> list[Send]:
        """Frames that carry `payload` to the guest, in fragments where the MTU asks for it."""
        return self._to(guest.attachment, guest.ethernet, src, guest.addr, protocol, payload)

    def _to(
        self,
        attachment: Any,
        link: bytes,
        src: bytes,
        dst: bytes,
        protocol: int,
        payload: IoVec,
    ) -> list[Send]:
        whole = 20 + len(payload) <= self.mtu
        # RFC 6864 §4: only fragments need an identification
        ident = 0 if whole else int.from_bytes(os.urandom(2), "big")
        header = Ipv4Header(20, 0, 0, ident, whole, False, 0, TTL, protocol, 0, src, dst)
        return [
            Send(attachment, (link, ip), piece)
            for ip, piece in fragments.fragment(header, payload, self.mtu)
        ]

    def icmp_error(
        self,
        guest: Guest,
        offender: bytes,
        kind: int,
        code: int,
        rest: int,
        protocol: int,
        dst: bytes,
        quoted: bytes,
    ) -> list[Send]:
        """An ICMP error for a packet of the guest's that is no longer at hand.

        Its header is made again from the flow; `quoted` is what followed it.
        """
        total = 20 + len(quoted)
        header = Ipv4Header(20, 0, total, 0, True, False, 0, TTL, protocol, 0, guest.addr, dst)
        message = icmp.error(kind, code, rest, IoVec.of(header.emit(), quoted))
        return self.packets(guest, offender, PROTOCOL_ICMP, message)

    def unreachable_by_host(
        self,
        guest: Guest,
        code: int,
        mtu: int,
        protocol: int,
        dst: bytes,
        quoted: bytes,
        now: float,
    ) -> list[Send]:
        """What a router says where it has no way on: the host's kernel has refused a packet.

        `mtu`: of the path, with FRAGMENTATION_NEEDED; `quoted`: what followed the IP header.
        """
        if dst[0] >= 224 or self.nat.is_broadcast(dst):  # RFC 1122 §3.2.2
            return []
        if not self._may_tell(guest.attachment, now):
            return []
        kind = wire_icmp.DEST_UNREACHABLE
        return self.icmp_error(guest, self.nat.gateway, kind, code, mtu, protocol, dst, quoted)

    def outward(self, dst: bytes) -> bytes | Refusal:
        """The host address that a destination stands for, or why it stands for none."""
        target = self.nat.outward(dst)
        return NO_DNS if target is NO_SERVICE and not self.dns_enabled else target

    def refuse(self, context: Context, header: Ipv4Header, refusal: Refusal) -> list[Send]:
        """Count what is refused; the error that says so, if one is to."""
        self.refused[refusal.reason] += 1
        if refusal.code is None:
            return []
        return self.unreachable(context, header, refusal.code)

    # ICMP

    def _handle_icmp(
        self, context: Context, header: Ipv4Header, payload: IoVec, guest: Guest | None
    ) -> Sequence[Action]:
        head, data = payload.pull(min(len(payload), wire_icmp.HEADER_LEN))
        message = IcmpHeader.parse(head)
        if not checksum.valid(payload.segments):
            raise MalformedPacket("icmp", "checksum")
        if message.type != wire_icmp.ECHO_REQUEST or guest is None:
            self.refused["icmp type"] += 1
            return []
        if header.dst in self._own:
            return self.packets(guest, header.dst, PROTOCOL_ICMP, icmp.echo_reply(message, data))
        target = self.outward(header.dst)
        if isinstance(target, Refusal):
            return self.refuse(context, header, target)
        if self._expires_here(header):
            return self._error(context, header, wire_icmp.TIME_EXCEEDED, 0)
        return [
            EchoArrived(
                guest, header.dst, message.ident, message.sequence, header.ttl - 1, data,
                dont_fragment(header, header.total_len),
            )
        ]  # fmt: skip

    # UDP

    def _handle_udp(
        self, context: Context, header: Ipv4Header, payload: IoVec, guest: Guest | None
    ) -> Sequence[Action]:
        size = len(payload)
        head, _ = payload.pull(min(size, 8))
        datagram = UdpHeader.parse(head, size)
        payload = payload.slice(0, datagram.length)
        if datagram.checksum:
            self._verify(context, header, payload, "udp")
        data = payload.slice(8, datagram.length)
        if datagram.dst_port == DHCP_SERVER_PORT and (
            header.dst in (BROADCAST4, self.nat.gateway) or self.nat.is_broadcast(header.dst)
        ):
            return self._handle_dhcp(context, header, data)
        if guest is None:
            raise MalformedPacket("udp", "source address 0.0.0.0")
        if header.dst == self.nat.dns and datagram.dst_port == DNS_PORT and self.dns_enabled:
            return [DnsArrived(guest, datagram.src_port, data)]
        target = self.outward(header.dst)
        if isinstance(target, Refusal) and not self.is_answer(
            guest.addr, datagram.src_port, header.dst, datagram.dst_port
        ):
            return self.refuse(context, header, target)
        if self._expires_here(header):
            return self._error(context, header, wire_icmp.TIME_EXCEEDED, 0)
        return [
            UdpArrived(
                guest, datagram.src_port, header.dst, datagram.dst_port,
                max(1, header.ttl - 1), data, context.gso_size,
                dont_fragment(header, (context.gso_size or len(data)) + 28),
            )
        ]  # fmt: skip

    def _expires_here(self, header: Ipv4Header) -> bool:
        # What is for the gateway itself has arrived, whatever its TTL (RFC 1122 §3.2.1.7).
        return header.ttl <= 1 and header.dst not in self._own

    def _handle_dhcp(self, context: Context, header: Ipv4Header, data: IoVec) -> Sequence[Action]:
        if self.dhcp is None:
            self.refused["dhcp is off"] += 1
            return self.unreachable(context, header, wire_icmp.PORT_UNREACHABLE)
        reply = self.dhcp.handle_message(bytes(data), context.now, context.attachment)
        if reply is None:
            return []
        mac = reply.dst_mac or context.ethernet.src
        if reply.lease is not None:
            self.learn(reply.lease, context.ethernet.src, context.attachment, context.now)
        link = EthernetHeader(mac, self.mac, ETHERTYPE_IPV4).emit()
        message = IoVec.of(reply.payload)
        udp = udp_header(
            self.nat.gateway, reply.dst_addr, DHCP_SERVER_PORT, reply.dst_port, message
        )
        return self._to(
            context.attachment, link, self.nat.gateway, reply.dst_addr, PROTOCOL_UDP,
            IoVec.of(udp) + message,
        )  # fmt: skip

    # TCP

    def _handle_tcp(
        self, context: Context, header: Ipv4Header, payload: IoVec, guest: Guest | None
    ) -> Sequence[Action]:
        size = len(payload)
        head, _ = payload.pull(min(size, 60))
        segment = TcpHeader.parse(head, size)
        self._verify(context, header, payload, "tcp")
        if guest is None:
            raise MalformedPacket("tcp", "source address 0.0.0.0")
        if header.dst[0] >= 224 or self.nat.is_broadcast(header.dst):
            raise MalformedPacket("tcp", "destination is a group")
        if segment.flags & SYN and self._expires_here(header):
            return self._error(context, header, wire_icmp.TIME_EXCEEDED, 0)
        options = None
        if segment.data_offset > 20:
            options = parse_options(head[20 : segment.data_offset])
        key = header.src + header.dst + bytes(head[:4])
        data = payload.slice(segment.data_offset, size)
        return [TcpArrived(key, guest, segment, options, data, header, context)]


def dont_fragment(header: Ipv4Header, size: int) -> int:
    """DONT_FRAGMENT, where a packet of `size` bytes asks for it and could be carried whole."""
    return DONT_FRAGMENT if header.dont_fragment and size <= LINK_MTU else 0


def udp_header(src: bytes, dst: bytes, src_port: int, dst_port: int, payload: IoVec) -> bytes:
    """A UDP header over this payload, checksum included."""
    size = 8 + len(payload)
    bare = UdpHeader(src_port, dst_port, size, 0)
    initial = checksum.pseudo_sum(src, dst, PROTOCOL_UDP, size)
    total = checksum.checksum((memoryview(bare.emit()), *payload.segments), initial)
    return bare._replace(checksum=checksum.udp_field(total)).emit()
