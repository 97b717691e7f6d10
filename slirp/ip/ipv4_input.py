"""IPv4's way in: frames of IPv4 and ARP, on one network.

A packet's header is parsed, its source learned, its fragments are joined; then it is ICMP, or goes
on to what both families share (slirp.ip.layer). ARP asks for guests' addresses and answers for the
network's own. Datagrams to the port of DHCP, broadcast or to the gateway, go to the DHCP service;
their source may be 0.0.0.0.

Guests must not speak in the network's name (slirp.guard): `claims` knows an ARP packet or an IPv4
packet from one of its addresses, and a DHCP server's where the network has its own.

Does not do: options of IP (read over, never acted on), forwarding of multicast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from dma.iovec import IoVec
from slirp.address import UNSPECIFIED_V4
from slirp.config import Config
from slirp.errors import MalformedPacket
from slirp.flow import Cause
from slirp.ip import arp
from slirp.ip.ipv4 import IPV4
from slirp.ip.ipv4_fragments import Ipv4Reassembler
from slirp.ip.ipv4_nat import Nat4
from slirp.ip.layer import Claim, Handler, Layer, udp_datagram
from slirp.ip.link import Link
from slirp.ip.packet import Action, Context, Packet, Send
from slirp.wire import checksum, ethernet
from slirp.wire import icmp as wire_icmp
from slirp.wire.arp import ArpPacket
from slirp.wire.ethernet import ETHERTYPE_ARP, ETHERTYPE_IPV4, EthernetHeader
from slirp.wire.icmp import IcmpHeader
from slirp.wire.ipv4 import PROTOCOL_ICMP, PROTOCOL_UDP, Ipv4Header
from slirp.wire.udp import UdpHeader

DHCP_SERVER_PORT: Final = 67
DHCP_CLIENT_PORT: Final = 68

# Bytes of a frame in front of what `claims` looks at
ARP_SENDER: Final = ethernet.HEADER_LEN + 14
SRC: Final = ethernet.HEADER_LEN + 12
PROTOCOL: Final = ethernet.HEADER_LEN + 9


class DhcpReply(Protocol):
    """What the DHCP service answers."""

    @property
    def payload(self) -> bytes: ...
    @property
    def dst_mac(self) -> bytes | None: ...
    @property
    def dst_addr(self) -> bytes: ...
    @property
    def dst_port(self) -> int: ...
    @property
    def lease(self) -> bytes | None: ...


class Dhcp(Protocol):
    """The DHCP service."""

    def handle_message(self, data: bytes, now: float, port: Any) -> DhcpReply | None: ...


class Ipv4Input:
    """IPv4 and ARP on one network."""

    def __init__(self, link: Link, config: Config, dhcp: Dhcp | None) -> None:
        self._link = link
        self._nat = Nat4(config)
        self._dhcp = dhcp
        self.layer = Layer(link, IPV4, self._nat, self._nat.broadcasts)
        self.layer.services[DHCP_SERVER_PORT] = self._handle_dhcp
        self.handlers: Mapping[int, Handler] = {
            ETHERTYPE_IPV4: self._handle_packet,
            ETHERTYPE_ARP: self._handle_arp,
        }
        self.claims: Mapping[int, Claim] = {
            ETHERTYPE_IPV4: self._packet_claims,
            ETHERTYPE_ARP: self._arp_claims,
        }
        self._own_macs = dict.fromkeys(self.layer.own, link.mac)
        self.reassemblers: dict[Any, Ipv4Reassembler] = {}  # by attachment

    # Who is where

    def solicit(self, addr: bytes) -> tuple[bytes, ...]:
        """The headers of a frame that asks who has `addr`."""
        header = EthernetHeader(ethernet.BROADCAST, self._link.mac, ETHERTYPE_ARP)
        return header.emit(), arp.request(self._link.mac, self._nat.gateway, addr).emit()

    def _handle_arp(self, context: Context, frame: IoVec, head: memoryview) -> Sequence[Action]:
        packet = ArpPacket.parse(head[ethernet.HEADER_LEN :])
        attachment = context.attachment
        self._link.learn(IPV4, packet.sender_addr, packet.sender_mac, attachment, context.now)
        reply = arp.answer(packet, self._own_macs)
        if reply is None:
            return []
        header = EthernetHeader(packet.sender_mac, self._link.mac, ETHERTYPE_ARP).emit()
        return [Send(attachment, (header, reply.emit()), IoVec())]

    # What one guest may not say to another

    def _arp_claims(self, head: memoryview, attachment: Any) -> bool:
        return bytes(head[ARP_SENDER : ARP_SENDER + 4]) in self.layer.own

    def _packet_claims(self, head: memoryview, attachment: Any) -> bool:
        if bytes(head[SRC : SRC + 4]) in self.layer.own:
            return True
        if self._dhcp is None or bytes(head[PROTOCOL : PROTOCOL + 1]) != bytes((PROTOCOL_UDP,)):
            return False
        ports = ethernet.HEADER_LEN + (head[ethernet.HEADER_LEN] & 15) * 4
        return bytes(head[ports : ports + 2]) == DHCP_SERVER_PORT.to_bytes(2, "big")

    # Packets

    def _handle_packet(self, context: Context, frame: IoVec, head: memoryview) -> Sequence[Action]:
        at = ethernet.HEADER_LEN
        header = Ipv4Header.parse(head[at:], len(frame) - at)
        whole = frame.slice(at, at + header.total_len)
        guest = self.layer.learn(header.src, context)
        if guest is None and header.src != UNSPECIFIED_V4:
            raise MalformedPacket("ipv4", "source that no guest can have")
        payload = whole.slice(header.ihl, header.total_len)
        if header.is_fragment:
            joined = self._reassemble(header, payload, context)
            if joined is None:
                return []
            header, payload = joined
            whole = IoVec.of(header.emit()) + payload
            context = context._replace(summed=False, gso_size=0)
        packet = Packet(
            context, guest, header.src, header.dst, header.protocol, header.ttl,
            header.dont_fragment, whole, payload,
        )  # fmt: skip
        if packet.protocol == PROTOCOL_ICMP:
            return self._handle_icmp(packet)
        return self.layer.handle(packet)

    def _handle_icmp(self, packet: Packet) -> Sequence[Action]:
        payload, guest = packet.payload, packet.guest
        head, data = payload.pull(min(len(payload), wire_icmp.HEADER_LEN))
        message = IcmpHeader.parse(head)
        if not checksum.valid(payload.segments):
            raise MalformedPacket("icmp", "checksum")
        if message.type != wire_icmp.ECHO_REQUEST or guest is None:
            self._link.refused["icmp type"] += 1
            return []
        return self.layer.echo(packet, guest, message.rest, data)

    def _handle_dhcp(
        self, packet: Packet, datagram: UdpHeader, data: IoVec
    ) -> Sequence[Action] | None:
        gateway, context = self._nat.gateway, packet.context
        if packet.dst != gateway and not self._nat.is_broadcast(packet.dst):
            return None
        if self._dhcp is None:
            self._link.refused["dhcp is off"] += 1
            return self.layer.tell(packet, Cause.NO_PORT)
        reply = self._dhcp.handle_message(bytes(data), context.now, context.attachment)
        if reply is None:
            return []
        if reply.lease is not None:
            self.layer.learn(reply.lease, context)
        mac = reply.dst_mac or context.ethernet.src
        message = udp_datagram(
            gateway, reply.dst_addr, DHCP_SERVER_PORT, reply.dst_port, IoVec.of(reply.payload)
        )
        return self.layer.frames(
            context.attachment, EthernetHeader(mac, self._link.mac, ETHERTYPE_IPV4).emit(),
            gateway, reply.dst_addr, PROTOCOL_UDP, message,
        )  # fmt: skip

    # Fragments

    def _reassemble(
        self, header: Ipv4Header, payload: IoVec, context: Context
    ) -> tuple[Ipv4Header, IoVec] | None:
        reassembler = self.reassemblers.get(context.attachment)
        if reassembler is None:
            reassembler = self.reassemblers[context.attachment] = Ipv4Reassembler()
            self._link.has_fragments = True
        return reassembler.handle_fragment(header, payload, context.now)

    def poll_at(self) -> float | None:
        """When an incomplete datagram is given up."""
        due = [at for r in self.reassemblers.values() if (at := r.poll_at()) is not None]
        return min(due, default=None)

    def handle_timeout(self, now: float) -> Iterable[Action]:
        """Give up incomplete datagrams; their senders are told (RFC 792)."""
        for attachment, reassembler in self.reassemblers.items():
            for header, first in reassembler.handle_timeout(now):
                if self._nat.is_broadcast(header.dst) or not self._link.may_tell(attachment, now):
                    continue
                kind, code = IPV4.causes[Cause.INCOMPLETE]
                src, original = self._nat.gateway, IoVec.of(header.emit(), first)
                message = IPV4.error(src, header.src, kind, code, 0, original)
                yield from self.layer.packets_to(header.src, src, PROTOCOL_ICMP, message)

    def add_port(self, attachment: Any, now: float) -> None:
        """A port was put on the network: nothing is said of ourselves."""

    def forget_port(self, attachment: Any) -> None:
        """The port was taken off the network."""
        self.reassemblers.pop(attachment, None)
