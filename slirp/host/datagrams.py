"""Services of the network's own that guests reach by UDP at the gateway: TFTP and NTP.

What to answer is slirp.services's; here a service gets the datagrams to its ports and the network
sends what it answers, from the gateway's address of the guest's family. The first datagram of a
TFTP transfer comes to the well-known port, all others to one that the server chose: it is served
while the transfer lasts.

Does not do: sockets; nothing of this touches the host's network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dma.iovec import IoVec
from slirp.errors import MalformedPacket
from slirp.host.attachment import send_all
from slirp.ip.layer import Layer, udp_datagram
from slirp.ip.packet import Action, Packet, Unresolved
from slirp.ip.template import PROTOCOL_UDP
from slirp.services import ntp, tftp
from slirp.wire import ntp as wire_ntp
from slirp.wire import tftp as wire_tftp
from slirp.wire.udp import UdpHeader

if TYPE_CHECKING:
    from slirp.host.attachment import Attachment
    from slirp.host.holding import Holding
    from slirp.host.loop import Loop
    from slirp.stack import Stack


class TftpRelay:
    """The TFTP server of one network, at the gateway."""

    def __init__(self, loop: Loop, stack: Stack, holding: Holding, server: tftp.TftpServer) -> None:
        self._loop = loop
        self._stack = stack
        self._holding = holding
        self._server = server
        self.visit: float | None = None
        self._serve(wire_tftp.PORT)

    def _serve(self, port: int) -> None:
        for found in self._stack.inputs:
            found.layer.services[port] = partial(self._handle, found.layer, port)

    def _handle(
        self, layer: Layer, at: int, packet: Packet, datagram: UdpHeader, data: IoVec
    ) -> Sequence[Action] | None:
        if packet.dst != layer.nat.gateway:
            return None
        client = (_source(packet), datagram.src_port)
        room = layer.family.udp_room(layer.link.mtu)
        now, port = packet.context.now, packet.context.attachment
        self._perform(
            self._server.handle_datagram(bytes(data), client, at, now, room=room, port=port)
        )
        return ()

    def _perform(self, actions: Sequence[tftp.Action]) -> None:
        for action in actions:
            match action:
                case tftp.Reply((addr, port), tid, payload):
                    self._send(addr, port, tid, payload)
                case tftp.Opened(tid):
                    self._serve(tid)
                case tftp.Closed(tid):
                    for found in self._stack.inputs:
                        del found.layer.services[tid]
        self._loop.visit_at(self, self._server.poll_at())

    def _send(self, addr: bytes, port: int, tid: int, payload: bytes) -> None:
        layer = self._stack.layer(addr)
        src = layer.nat.gateway
        datagram = udp_datagram(src, addr, tid, port, IoVec.of(payload))
        for frame in layer.packets_to(addr, src, PROTOCOL_UDP, datagram):
            if isinstance(frame, Unresolved):
                self._holding.hold_packet(frame, self._loop.now)
            else:
                send_all((frame,))

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit."""
        self._perform(self._server.handle_timeout(now))
        return self._server.poll_at()

    def drop_port(self, attachment: Attachment) -> None:
        """The port is gone."""
        self._perform(self._server.forget_port(attachment))

    def close(self) -> None:
        """End every transfer."""
        self._server.close()


def serve_ntp(stack: Stack, wall_clock: Callable[[], int]) -> None:
    """Answer NTP at the gateway; `wall_clock` gives nanoseconds since 1970."""
    for found in stack.inputs:
        handler = partial(_handle_ntp, found.layer, wall_clock)
        found.layer.services[wire_ntp.PORT] = handler


def _handle_ntp(
    layer: Layer, wall_clock: Callable[[], int], packet: Packet, datagram: UdpHeader, data: IoVec
) -> Sequence[Action] | None:
    gateway = layer.nat.gateway
    if packet.dst != gateway:
        return None
    addr = _source(packet)
    reply = ntp.answer(bytes(data), wall_clock())
    if reply is None:
        return ()
    message = udp_datagram(gateway, addr, wire_ntp.PORT, datagram.src_port, IoVec.of(reply))
    return layer.packets_to(addr, gateway, PROTOCOL_UDP, message)


def _source(packet: Packet) -> bytes:
    if packet.guest is None:
        raise MalformedPacket("udp", "source address unspecified")
    return packet.src
