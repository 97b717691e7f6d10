"""From frames to relays: where the stack's actions are carried out.

`handle_port` takes one batch of frames from a port. A segment of a TCP flow that is known, in a
plain frame (no IP options, no fragment, contiguous headers), is recognised here by one look at its
fixed fields and goes to its flow; everything else goes through `Stack.handle_frame`, whose actions
are carried out below. Both ways check the same sums. How to look is the family's to say
(`slirp.ip.family.Plain`); a frame is first looked at as the one before it, since neighbours in a
batch are mostly of one family. When the batch is over, whoever waited for room at the port gets
another chance; what is sent once per batch is sent by the settlers.

Does not do: protocol decisions (slirp.stack, slirp.flow), waiting (slirp.host.loop).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from dma.iovec import IoVec
from nic.port import VNET_NONE, DeviceGone, Shortage
from slirp.config import Config
from slirp.errors import MalformedPacket
from slirp.flow import Cause, Refusal, ends_of
from slirp.host.attachment import Attachment, send_all
from slirp.host.descriptors import Descriptors
from slirp.host.dns import DnsRelay
from slirp.host.holding import Holding
from slirp.host.inside import Service
from slirp.host.ipv4 import Ipv4Sockets
from slirp.host.ipv6 import Ipv6Sockets
from slirp.host.loop import READABLE, RETRY_AFTER, Loop
from slirp.host.loopback import Loopbacks, has_loopback6
from slirp.host.ping import PingRelay
from slirp.host.socket_endpoint import AT_ONCE, SocketEndpoint
from slirp.host.sockets import LOCAL_CAUSES, Sockets
from slirp.host.tcp import TcpRelay
from slirp.host.tcp_flow import TcpFlow
from slirp.host.udp import UdpRelay
from slirp.ip.family import Plain
from slirp.ip.ipv4 import IPV4
from slirp.ip.ipv6 import IPV6
from slirp.ip.layer import Layer
from slirp.ip.neighbours import Guest
from slirp.ip.offload import finish
from slirp.ip.packet import (
    LINK_MTU,
    DnsArrived,
    EchoArrived,
    Send,
    TcpArrived,
    UdpArrived,
    Unresolved,
)
from slirp.ip.template import PROTOCOL_TCP, PROTOCOL_UDP
from slirp.stack import Action, Stack, Switch
from slirp.tcp import connection as tcp
from slirp.wire.checksum import left_undone, ones_sum
from slirp.wire.ethernet import HEADER_LEN as ETHERNET_LEN
from slirp.wire.tcp import ACK, RST, SYN, parse_options
from slirp.wire.udp import HEADER_LEN as UDP_LEN

if TYPE_CHECKING:
    from nic.port import Frame
    from slirp.services.dns import DnsService


LINK_END: Final = ETHERNET_LEN + LINK_MTU


class Dispatcher:
    """What ties ports, stack and relays together."""

    def __init__(
        self, loop: Loop, stack: Stack, dns: DnsService, config: Config,
        endpoint: SocketEndpoint = AT_ONCE,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.endpoint = endpoint
        self.stack = stack
        self.attachments: list[Attachment] = []
        self.visit: float | None = None
        # TCP that this process serves itself, by the guest's destination
        self.services: dict[tuple[bytes, int], Service] = {}
        self.on_gone: Callable[[Attachment, DeviceGone], None] = _raise
        self._plains = {
            found.layer.family.ethertype: found.layer.family.plain for found in stack.inputs
        }
        self._look = next(iter(self._plains.values()))  # at a port's first frame
        sockets = self.sockets = Sockets(
            {
                IPV4.addr_len: Ipv4Sockets(config.outbound),
                IPV6.addr_len: Ipv6Sockets(config.outbound6),
            }
        )
        loopbacks = Loopbacks(config.either_loopback, has_loopback6())
        self.descriptors = descriptors = Descriptors(self.attachments, config.port_share)
        self.tcp = TcpRelay(
            loop,
            descriptors,
            sockets,
            loopbacks,
            mtu=config.mtu,
            on_unreachable=self._tcp_unreachable,
        )
        self.udp = UdpRelay(loop, stack, descriptors, sockets, loopbacks)
        self.ping = PingRelay(loop, stack, descriptors, sockets)
        self.holding = Holding(loop, stack, self.attachments)
        self.dns = DnsRelay(loop, stack, dns, self.holding, descriptors, sockets)
        for lender in (self.udp, self.ping, self.dns, self.tcp):
            descriptors.add(lender)
        stack.link.on_guest = self.holding.guest_seen
        stack.link.is_answer = self.udp.is_answer
        stack.link.wake_at = partial(loop.visit_at, self)

    # Frames

    def handle_port(self, attachment: Attachment, now: float) -> None:
        """One batch of frames from this port."""
        flows, routes, outgoing = self.tcp.flows, self.udp.routes, self.udp.outgoing
        look = attachment.look or self._look
        # At once: an attribute of a tuple is dear, where it is asked for with each frame.
        unpack, mask, mark, kinds, base, least, data_at, hops_at, flags_at, *_ = look
        several = len(self._plains) > 1
        count = 0
        try:
            for frame in attachment.port.frames():
                count += 1
                segments = frame.iov.segments
                if segments and len(head := segments[0]) >= least:
                    word, length, kind, key, seq, ack, bits, window = unpack(head)
                    if word & mask == mark:
                        kind &= kinds
                        if kind == PROTOCOL_TCP and key in flows:
                            flow = flows[key]
                            if flow.guest.attachment is attachment and self._plain(
                                look, flow, frame, head, base + length, seq, ack, bits, window, now
                            ):
                                frame.release()
                                continue
                        elif kind == PROTOCOL_UDP and key in routes:
                            route, end = routes[key], base + length
                            if route.mapping.guest.attachment is attachment and is_plain_datagram(
                                look, frame, head, end, seq
                            ):
                                hops = head[hops_at] - 1
                                if end <= LINK_END:
                                    hops |= (head[flags_at] & 0x40) << 2  # DONT_FRAGMENT
                                outgoing.add(route, head[data_at:end], hops, frame, now)
                                if not attachment.keeps_frames:
                                    outgoing.flush(now)
                                continue
                if several:  # what follows is likely to be of this one's family
                    look = attachment.look = self._look_of(segments, look)
                    unpack, mask, mark, kinds, base, least, data_at, hops_at, flags_at, *_ = look
                outgoing.flush(now)  # what follows may be of the same flow
                self.perform_all(self.stack.handle_frame(frame, attachment, now))
                frame.release()
        except Shortage:
            attachment.shortages += 1
            self.loop.rest(attachment.port.fileno(), RETRY_AFTER)
        except DeviceGone as gone:
            outgoing.flush(now)
            self.on_gone(attachment, gone)
            return
        outgoing.flush(now)
        attachment.frames_in += count
        if self.stack.link.has_fragments:
            self.loop.visit_at(self, self.stack.poll_at())

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit: advertisements, datagrams that never became whole."""
        self.perform_all(self.stack.handle_timeout(now))
        return self.stack.poll_at()

    def _look_of(self, segments: tuple[memoryview, ...], look: Plain) -> Plain:
        """How to look at frames of this one's family; of a family without a look, as before."""
        head = bytes(IoVec(segments).slice(0, ETHERNET_LEN))
        return self._plains.get(int.from_bytes(head[12:], "big"), look)

    def _plain(
        self,
        look: Plain,
        flow: TcpFlow,
        frame: Frame,
        head: memoryview,
        end: int,
        seq: int,
        ack: int,
        bits: int,
        window: int,
        now: float,
    ) -> bool:
        """A plain segment of a known flow; False: the long way decides (and counts)."""
        at = look.transport_at
        data = at + (bits >> 10 & 60)
        if data < look.least:
            return False
        payload: tuple[memoryview, ...]
        views = frame.iov.segments
        if len(views) == 1:
            if end > len(head) or data > end:
                return False
            payload = (head[data:end],) if end > data else ()
        else:
            if data > len(head) or end > len(frame.iov) or data > end:
                return False
            payload = frame.iov.slice(data, end).segments
        if int.from_bytes(head[14 : look.summed_to], "big") % 0xFFFF:
            return False
        if not frame.vnet[0] & 3:
            pseudo = int.from_bytes(head[look.addrs_at : at], "big") % 0xFFFF + PROTOCOL_TCP
            pseudo += end - at
            if ones_sum((head[at:data], *payload), pseudo) != 0xFFFF and not (
                flow.guest.attachment.unlabelled
                and left_undone(int.from_bytes(head[at + 16 : at + 18], "big"), pseudo)
            ):
                return False
        options = None
        if data > look.least:
            try:
                options = parse_options(head[look.least : data])
            except MalformedPacket:
                return False
        flags = bits & 0x3F
        if flags & SYN or not flags & (ACK | RST):
            return False
        segment = tcp.Segment(seq, ack, flags, window, options)
        self.tcp.segment(flow, segment, payload, end - data, now)
        return True

    # Actions

    def perform_all(self, actions: Iterable[Action]) -> None:
        """Carry out what the stack decided."""
        now = self.loop.now
        for action in actions:
            match action:
                case Send(attachment, headers, payload):
                    attachment.send(headers, payload.segments, len(payload))
                case Unresolved():
                    self.holding.hold_packet(action, now)
                case TcpArrived():
                    self._tcp_arrived(action, now)
                case UdpArrived():
                    if not self.udp.answer(action, now):
                        target = self.stack.layer(action.dst).nat.outward(action.dst)
                        if not isinstance(target, Refusal):
                            self.udp.send(action, target, now)
                case DnsArrived(guest, port, payload):
                    self.dns.query(guest, port, payload, now)
                case EchoArrived():
                    target = self.stack.layer(action.dst).nat.outward(action.dst)
                    if not isinstance(target, Refusal):
                        self.ping.send(action, target, now)
                case Switch(attachment, source, frame):
                    self._switch(attachment, source, frame)

    def _switch(self, attachment: Attachment | None, source: Attachment, frame: Frame) -> None:
        """A guest's frame for another guest, or for all others."""
        targets = self.attachments if attachment is None else [attachment]
        iov, vnet = frame.iov, frame.vnet
        for target in targets:
            if target is source:
                continue
            if target.takes(vnet):
                self._pass_on(target, iov.segments, len(iov), vnet)
            else:  # a port without this offload: what the sender left to the wire is done here
                for whole in self._finish(frame):
                    self._pass_on(target, (memoryview(whole),), len(whole), VNET_NONE)

    def _pass_on(
        self, target: Attachment, segments: Iterable[memoryview], size: int, vnet: bytes
    ) -> None:
        if size > target.port.max_frame:
            target.lost += 1  # as a switch drops what the link behind it cannot carry
        else:
            target.send((), segments, size, vnet)

    def _finish(self, frame: Frame) -> list[bytes]:
        try:
            return finish(frame.iov, frame.vnet)
        except MalformedPacket as error:
            self.stack.malformed[error.layer, error.reason] += 1
            return []

    def _tcp_arrived(self, arrived: TcpArrived, now: float) -> None:
        header = arrived.header
        segment = tcp.Segment(header.seq, header.ack, header.flags, header.window, arrived.options)
        flow = self.tcp.flows.get(arrived.key)
        if (
            flow is not None
            and flow.conn.life.state is tcp.State.CLOSED
            and tcp.is_opening(segment)
        ):
            self.tcp.forget(flow)  # over since a segment before this one in the same batch
            flow = None
        if flow is not None:
            payload = arrived.payload.segments
            events = self.tcp.segment(flow, segment, payload, len(arrived.payload), now)
            if not events & tcp.REOPEN:
                return
            self.tcp.forget(flow)  # RFC 9293 §3.6.1: a new connection may reuse the pair
        if not tcp.is_opening(segment) or not self._tcp_open(arrived, segment, now):
            self._tcp_reset(arrived, segment)

    def _tcp_open(self, arrived: TcpArrived, syn: tcp.Segment, now: float) -> bool:
        dst, port = arrived.packet.dst, arrived.header.dst_port
        layer = self.stack.layer(dst)
        if layer.is_dns(dst, port):
            found = self.dns.accept(arrived.guest.attachment, now)
            if found is None:
                return False
            client, sock = found
            client.flow = self.tcp.serve(arrived.key, syn, sock, arrived.guest, now)
            if client.flow is None:
                sock.close()
                self.dns.drop(client)
                return False
            return True
        service = self.services.get((dst, port))
        if service is not None:
            return service(arrived.key, syn, arrived.guest, now)
        target = layer.outward(dst)
        if isinstance(target, Refusal):
            return self._tcp_refused(layer, arrived, target)
        return self.tcp.connect(arrived.key, syn, arrived.guest, target, port, now)

    def _tcp_refused(self, layer: Layer, arrived: TcpArrived, refusal: Refusal) -> bool:
        """Tell the guest, or keep silent as the refusal has it; False: a closed port is reset."""
        if refusal.cause is Cause.NO_PORT:
            self.stack.refused[refusal.reason] += 1
            return False
        send_all(layer.refuse(arrived.packet, refusal))
        return True

    def _tcp_reset(self, arrived: TcpArrived, segment: tcp.Segment) -> None:
        emission = tcp.refusal(segment, len(arrived.payload))
        if emission is None:
            return
        guest = arrived.guest
        template = guest.family.answering(arrived.key, PROTOCOL_TCP)
        guest.attachment.send((guest.ethernet, *template.tcp(emission, 0, 0)))

    def _tcp_unreachable(self, key: bytes, guest: Guest, seq: int, failure: int) -> None:
        """The host could not reach the destination: what a router would say about the SYN."""
        cause = LOCAL_CAUSES.get(failure)
        if cause is None:
            return
        dst, _ = ends_of(key)[1]
        quoted = key[-4:] + seq.to_bytes(4, "big")
        send_all(
            self.stack.layer(dst).unreachable_by_host(
                guest, cause, 0, PROTOCOL_TCP, dst, quoted, self.loop.now
            )
        )

    # Ports

    def settle_ports(self, now: float) -> None:
        """The end of a turn: completions run, deadlines are booked, waiters go on."""
        congested = []
        for attachment in list(self.attachments):  # one that is gone leaves it
            self._poll(attachment, now)
            if attachment.congested:
                attachment.room(now)
                congested.append(attachment)
        if not congested:
            return
        self.tcp.settle(now)
        for attachment in congested:
            self._poll(attachment, now)  # what those who had waited sent leaves in this turn
            if attachment.has_more:
                self.loop.again()

    def _poll(self, attachment: Attachment, now: float) -> None:
        try:
            at = attachment.port.poll(now)
        except DeviceGone as gone:
            self.on_gone(attachment, gone)
            return
        if at is not None:
            self.loop.visit_at(attachment, at)

    def serve_endpoint(self) -> None:
        """Have the endpoint tell what has arrived, and know when a turn is over. The last settler,
        since those before it ask it to begin."""
        bell = self.endpoint.fileno()
        if bell is not None:
            self.loop.register(bell, READABLE, lambda events, now: self.endpoint.poll(now))
            self.loop.add_settler(self.endpoint.settle)

    def drop_port(self, attachment: Attachment) -> None:
        """The port is gone: so are the flows of its guests."""
        self.tcp.drop_port(attachment)
        self.ping.drop_port(attachment)
        self.dns.drop_port(attachment)
        for mapping in list(self.udp.mappings.values()):
            if mapping.guest.attachment is attachment:
                self.udp.remove(mapping)
        attachment.leave(self.loop.now)

    def guest(self, addr: bytes) -> Guest | None:
        """The guest at this address, if it was seen."""
        return self.stack.guests.get(addr)

    def close(self) -> None:
        """End all flows."""
        self.holding.close()
        self.tcp.close()
        self.udp.close()
        self.ping.close()
        self.dns.close()
        bell = self.endpoint.fileno()
        if bell is not None:
            self.loop.unregister(bell)
            self.endpoint.close()


def _raise(attachment: Attachment, gone: DeviceGone) -> None:
    raise gone


def is_plain_datagram(look: Plain, frame: Frame, head: memoryview, end: int, word: int) -> bool:
    """Is this one whole, good UDP datagram in one piece? `word` is its length and checksum.

    False: the long way decides (and counts).
    """
    at = look.transport_at
    size = end - at
    if word >> 16 != size or size <= UDP_LEN or end > len(head) or frame.vnet[1]:
        return False
    if head[look.hops_at] <= 1:  # its TTL ends here
        return False
    if int.from_bytes(head[14 : look.summed_to], "big") % 0xFFFF:
        return False
    if frame.vnet[0] & 3:
        return True
    if not word & 0xFFFF:
        return look.sum_optional
    pseudo = int.from_bytes(head[look.addrs_at : at], "big") % 0xFFFF + PROTOCOL_UDP + size
    return ones_sum((head[at:end],), pseudo) == 0xFFFF
