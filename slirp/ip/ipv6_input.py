"""IPv6's way in: frames of its ethertype, on one network.

A packet's header is parsed, its source learned, its extension headers are walked, its fragments
joined; then it is ICMPv6, or goes on to what both families share (slirp.ip.layer). What RFC 8200
wants answered is: an option or a header that nobody knows, and fragments that cannot be, by a
Parameter Problem that points at them.

Neighbour discovery asks for guests' addresses and answers for the network's own. A message of it
counts only with a hop limit of 255, so that it comes from this link, and never in fragments
(RFC 6980). An advertisement is believed as any other frame's source is: slirp.ip.neighbours decides
whose an address may be. What configures guests is slirp.ip.ipv6_services.

Guests must not speak in the network's name (slirp.guard): `claims` knows a packet from one of its
addresses, an advertisement of one or of an address that another port's guest has, a router's
advertisement or redirect, and a DHCPv6 server's message. Where a chain of headers hides what a
packet is (RFC 7113), it counts as that.

Does not do: forwarding of multicast, group membership (MLD is read over), redirects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from dma.iovec import IoVec
from slirp.address import UNSPECIFIED_V6, is_multicast
from slirp.config import Config
from slirp.errors import MalformedPacket
from slirp.flow import Cause
from slirp.ip import ndp
from slirp.ip.ipv6 import IPV6
from slirp.ip.ipv6_fragments import Ipv6Reassembler, Piece, joined
from slirp.ip.ipv6_nat import Nat6
from slirp.ip.ipv6_services import SERVER_PORT, Ipv6Services
from slirp.ip.layer import Claim, Handler, Layer
from slirp.ip.link import Link
from slirp.ip.packet import Action, Context, Packet, Send
from slirp.ip.template import PROTOCOL_TCP, PROTOCOL_UDP
from slirp.wire import checksum, ethernet
from slirp.wire import icmpv6 as wire_icmpv6
from slirp.wire import tcp as wire_tcp
from slirp.wire import udp as wire_udp
from slirp.wire.ethernet import ETHERTYPE_IPV6
from slirp.wire.icmpv6 import (
    MLD2_REPORT,
    MLD_DONE,
    MLD_QUERY,
    MLD_REPORT,
    NEIGHBOUR_ADVERTISEMENT,
    NEIGHBOUR_SOLICITATION,
    PARAMETER_PROBLEM,
    REDIRECT,
    ROUTER_ADVERTISEMENT,
    ROUTER_SOLICITATION,
    Icmpv6Header,
)
from slirp.wire.ipv6 import (
    ERRONEOUS_FIELD,
    FRAGMENT_LEN,
    HEADER_LEN,
    INCOMPLETE_CHAIN,
    MAX_PAYLOAD,
    MIN_MTU,
    NO_NEXT_HEADER,
    PROTOCOL_ICMPV6,
    UNKNOWN_NEXT_HEADER,
    Chain,
    Ipv6Header,
    Problem,
    walk,
)
from slirp.wire.ndp import SOLICITED, NeighbourMessage, RouterSolicitation

CHAIN_MAX: Final = MIN_MTU  # bytes that headers may take: what a first fragment has to hold
PAYLOAD_LEN_AT: Final = 4  # bytes into the header, and into a fragment header
OFFSET_AT: Final = 2
TARGET_AT: Final = 8  # bytes into a neighbour advertisement
SILENT: Final = (MLD_QUERY, MLD_REPORT, MLD_DONE, MLD2_REPORT)
LEAST: Final = {  # bytes of a transport's header, which a first fragment holds (RFC 7112)
    PROTOCOL_TCP: wire_tcp.HEADER_LEN,
    PROTOCOL_UDP: wire_udp.HEADER_LEN,
    PROTOCOL_ICMPV6: wire_icmpv6.HEADER_LEN,
}


class Ipv6Input:
    """IPv6 on one network."""

    def __init__(self, link: Link, config: Config) -> None:
        self._link = link
        self._nat = Nat6(config)
        self.layer = Layer(link, IPV6, self._nat)
        self.services = Ipv6Services(link, self.layer, self._nat)
        self.handlers: Mapping[int, Handler] = {ETHERTYPE_IPV6: self._handle_packet}
        self.claims: Mapping[int, Claim] = {ETHERTYPE_IPV6: self._claims}
        self._messages: Mapping[int, Callable[[Packet, memoryview], Sequence[Action]]] = {
            NEIGHBOUR_SOLICITATION: self._handle_solicitation,
            NEIGHBOUR_ADVERTISEMENT: self._handle_advertisement,
            ROUTER_SOLICITATION: self._handle_router_solicitation,
        }
        self.reassemblers: dict[Any, Ipv6Reassembler] = {}  # by attachment

    # Packets

    def _handle_packet(self, context: Context, frame: IoVec, head: memoryview) -> Sequence[Action]:
        at = ethernet.HEADER_LEN
        header = Ipv6Header.parse(head[at:], len(frame) - at)
        whole = frame.slice(at, at + HEADER_LEN + header.payload_len)
        guest = self.layer.learn(header.src, context)
        if guest is None and header.src != UNSPECIFIED_V6:
            raise MalformedPacket("ipv6", "source that no guest can have")
        packet = Packet(
            context, guest, header.src, header.dst, header.next_header, header.hop_limit, True,
            whole, IoVec(),
        )  # fmt: skip
        return self._walk(packet, header)

    def _walk(self, packet: Packet, header: Ipv6Header) -> Sequence[Action]:
        """Past the extension headers; what they lead to."""
        whole = packet.whole
        view, _ = whole.pull(min(len(whole), CHAIN_MAX))
        found = walk(header, view)
        if isinstance(found, Problem):
            return self._problem(packet, found.code, found.pointer, to_group=found.to_group)
        if found.fragment is not None:
            return self._handle_fragment(packet, found, view)
        packet = packet._replace(
            protocol=found.protocol, payload=whole.slice(found.start, len(whole))
        )
        if found.protocol == PROTOCOL_ICMPV6:
            return self._handle_icmp(packet)
        if found.protocol in (PROTOCOL_TCP, PROTOCOL_UDP):
            return self.layer.handle(packet)
        if found.protocol == NO_NEXT_HEADER:
            return []
        return self._problem(packet, UNKNOWN_NEXT_HEADER, found.named_at)

    def _problem(
        self, packet: Packet, code: int, pointer: int, *, to_group: bool = False
    ) -> Sequence[Action]:
        self._link.refused["parameter problem"] += 1
        if to_group:  # owed whatever the packet's destination
            packet = packet._replace(
                dst=self._nat.gateway,
                context=packet.context._replace(
                    ethernet=packet.context.ethernet._replace(dst=self._link.mac)
                ),
            )
        return self.layer.say(packet, PARAMETER_PROBLEM, code, pointer)

    # ICMPv6

    def _handle_icmp(self, packet: Packet) -> Sequence[Action]:
        payload = packet.payload
        head, data = payload.pull(min(len(payload), wire_icmpv6.HEADER_LEN))
        message = Icmpv6Header.parse(head)
        pseudo = checksum.pseudo_sum(packet.src, packet.dst, PROTOCOL_ICMPV6, len(payload))
        if not packet.context.summed and not checksum.valid(payload.segments, pseudo):
            raise MalformedPacket("icmpv6", "checksum")
        if message.type == wire_icmpv6.ECHO_REQUEST and packet.guest is not None:
            return self.layer.echo(packet, packet.guest, message.rest, data)
        handler = self._messages.get(message.type)
        if handler is not None:
            if not packet.dont_fragment:
                raise MalformedPacket("ndp", "in fragments")
            view, _ = payload.pull(len(payload))
            return handler(packet, view)
        if message.type not in SILENT:
            self._link.refused["icmpv6 type"] += 1
        return []

    def _handle_solicitation(self, packet: Packet, view: memoryview) -> Sequence[Action]:
        message = NeighbourMessage.parse(view, packet.hops)
        context, probe = packet.context, packet.src == UNSPECIFIED_V6
        if probe and (message.link_addr or packet.dst != ndp.solicited_node(message.target)):
            raise MalformedPacket("ndp", "probe for an address")
        if not probe and message.link_addr is not None:
            self._learn(packet.src, message.link_addr, context)
        if message.target not in self.layer.own:
            return []
        reply = ndp.answer(message, packet.src, self._link.mac)
        mac = ndp.group_mac(reply.dst) if probe else message.link_addr or context.ethernet.src
        return [Send(context.attachment, reply.headers(self._link.mac, mac), IoVec())]

    def _handle_advertisement(self, packet: Packet, view: memoryview) -> Sequence[Action]:
        message = NeighbourMessage.parse(view, packet.hops)
        if message.flags & SOLICITED and is_multicast(packet.dst):
            raise MalformedPacket("ndp", "answer to nobody's question")
        mac = message.link_addr or packet.context.ethernet.src
        self._learn(message.target, mac, packet.context)
        return []

    def _handle_router_solicitation(self, packet: Packet, view: memoryview) -> Sequence[Action]:
        message = RouterSolicitation.parse(view, packet.hops)
        if packet.src == UNSPECIFIED_V6 and message.link_addr is not None:
            raise MalformedPacket("ndp", "link-layer address of nobody")
        if message.link_addr is not None:
            self._learn(packet.src, message.link_addr, packet.context)
        self.services.handle_solicitation(packet, message)
        return []

    def _learn(self, addr: bytes, mac: bytes, context: Context) -> None:
        self._link.learn(IPV6, addr, mac, context.attachment, context.now)

    def solicit(self, addr: bytes) -> tuple[bytes, ...]:
        """The headers of a frame that asks who has `addr`."""
        local = not self._nat.is_local(addr)
        asked = ndp.request(addr, self._nat.router if local else self._nat.gateway, self._link.mac)
        return asked.headers(self._link.mac, ndp.group_mac(asked.dst))

    # What one guest may not say to another

    def _claims(self, head: memoryview, attachment: Any) -> bool:
        view = head[ethernet.HEADER_LEN :]
        try:
            header = Ipv6Header.parse(view, HEADER_LEN + MAX_PAYLOAD)
        except MalformedPacket:
            return False  # nobody's IPv6
        try:
            found = walk(header, view)
        except MalformedPacket:
            return True
        if header.src in self.layer.own or isinstance(found, Problem):
            return True
        protocol, start = found.protocol, found.start
        if found.fragment is not None:
            if found.fragment.offset:
                return False
            protocol, start = found.fragment.next_header, start + FRAGMENT_LEN
        message = view[start:]
        if protocol == PROTOCOL_UDP:
            return bytes(message[:2]) == SERVER_PORT.to_bytes(2, "big")
        if protocol == PROTOCOL_ICMPV6:
            return self._message_claims(message, attachment)
        return found.fragment is not None and protocol not in LEAST

    def _message_claims(self, message: memoryview, attachment: Any) -> bool:
        kind = message[0] if message else ROUTER_ADVERTISEMENT
        if kind != NEIGHBOUR_ADVERTISEMENT:
            return kind in (ROUTER_ADVERTISEMENT, REDIRECT)
        target = bytes(message[TARGET_AT : TARGET_AT + IPV6.addr_len])
        holder = self._link.guests.get(target)
        return target in self.layer.own or (
            holder is not None and holder.attachment is not attachment
        )

    # Fragments

    def _handle_fragment(self, packet: Packet, chain: Chain, view: memoryview) -> Sequence[Action]:
        fragment, start = chain.fragment, chain.start
        assert fragment is not None
        if not packet.dont_fragment:
            raise MalformedPacket("ipv6", "fragment of a fragment")
        payload = packet.whole.slice(start + FRAGMENT_LEN, len(packet.whole))
        size = len(payload)
        if fragment.more and size % 8:
            return self._problem(packet, ERRONEOUS_FIELD, PAYLOAD_LEN_AT)
        if start - HEADER_LEN + fragment.offset + size > MAX_PAYLOAD:
            return self._problem(packet, ERRONEOUS_FIELD, start + OFFSET_AT)
        piece = Piece(bytes(view[:start]), chain.named_at, packet.src, packet.dst, fragment)
        if fragment.more and not fragment.offset and not _holds_chain(piece, payload):
            return self._problem(packet, INCOMPLETE_CHAIN, 0)
        if piece.atomic:
            found = joined(piece, size), payload
        else:
            reassembler = self._reassembler(packet.context.attachment)
            complete = reassembler.handle_fragment(piece, payload, packet.context.now)
            if complete is None:
                return []
            found = complete
        head, data = found[0].head, found[1]
        whole = IoVec.of(head) + data
        context = packet.context._replace(summed=False, gso_size=0)
        packet = packet._replace(context=context, dont_fragment=False, whole=whole)
        return self._walk(packet, Ipv6Header.parse(head, len(whole)))

    def _reassembler(self, attachment: Any) -> Ipv6Reassembler:
        found = self.reassemblers.get(attachment)
        if found is None:
            found = self.reassemblers[attachment] = Ipv6Reassembler()
            self._link.has_fragments = True
        return found

    def poll_at(self) -> float | None:
        """When an incomplete datagram is given up, or an advertisement is due."""
        due = [self.services.poll_at(), *(r.poll_at() for r in self.reassemblers.values())]
        return min((at for at in due if at is not None), default=None)

    def handle_timeout(self, now: float) -> Iterable[Action]:
        """Advertise; give up incomplete datagrams, whose senders are told (RFC 8200 §4.5)."""
        yield from self.services.handle_timeout(now)
        for attachment, reassembler in self.reassemblers.items():
            for piece, first in reassembler.handle_timeout(now):
                if is_multicast(piece.dst) or not self._link.may_tell(attachment, now):
                    continue
                assert piece.fragment is not None
                kind, code = IPV6.causes[Cause.INCOMPLETE]
                src = self._nat.gateway
                original = IoVec.of(piece.head, piece.fragment.emit(), first)
                message = IPV6.error(src, piece.src, kind, code, 0, original)
                yield from self.layer.packets_to(piece.src, src, PROTOCOL_ICMPV6, message)

    def add_port(self, attachment: Any, now: float) -> None:
        """A port was put on the network."""
        self.services.add_port(attachment, now)

    def forget_port(self, attachment: Any) -> None:
        """The port was taken off the network."""
        self.reassemblers.pop(attachment, None)
        self.services.forget_port(attachment)


def _holds_chain(piece: Piece, payload: IoVec) -> bool:
    """Does a first fragment have all headers, the transport's included (RFC 7112)?"""
    head = joined(piece, len(payload)).head
    whole = IoVec.of(head) + payload
    view, _ = whole.pull(min(len(whole), CHAIN_MAX))
    try:
        found = walk(Ipv6Header.parse(head, len(whole)), view)
    except MalformedPacket:
        return False
    return isinstance(found, Problem) or len(whole) - found.start >= LEAST.get(found.protocol, 0)
