"""What configures guests over IPv6, on the wire: router advertisements, and DHCPv6.

The services themselves (slirp.services.ra, slirp.services.dhcpv6) know messages; here these get
their addresses. All of it comes from the gateway's link-local address, as guests know their router.
An advertisement goes to all or to who asked, with a hop limit of 255; a DHCPv6 server's answer to
port 546 of who asked, which is a link-local address too (RFC 8415 §7.1). An address that is leased
is learned as its guest's at once, as far as it may be (slirp.ip.neighbours), so that what is
forwarded to it need not ask.

Advertisements are due of themselves: `Link.wake_at` has somebody come back in time.

Does not do: which guest gets what.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from dma.iovec import IoVec
from slirp.errors import MalformedPacket
from slirp.flow import Cause
from slirp.ip import ndp
from slirp.ip.ipv6_nat import Nat6
from slirp.ip.layer import Layer, udp_datagram
from slirp.ip.link import Link
from slirp.ip.packet import Action, Packet, Send
from slirp.ip.template import PROTOCOL_UDP
from slirp.wire.ndp import RouterSolicitation
from slirp.wire.udp import UdpHeader

SERVER_PORT: Final = 547  # RFC 8415 §7.2
CLIENT_PORT: Final = 546
SERVERS: Final = bytes.fromhex("ff020000000000000000000000010002")  # RFC 8415 §7.1


class Dhcpv6Reply(Protocol):
    """What the DHCPv6 service answers."""

    @property
    def payload(self) -> bytes: ...
    @property
    def leases(self) -> tuple[bytes, ...]: ...


class Dhcpv6(Protocol):
    """The DHCPv6 service."""

    def handle_message(
        self, payload: bytes, mac: bytes, now: float, port: Any, *, to_group: bool
    ) -> Dhcpv6Reply | None: ...
    def forget_port(self, port: Any) -> None: ...


class Advertisement(Protocol):
    """A router advertisement that is due."""

    @property
    def port(self) -> Any: ...
    @property
    def dst(self) -> bytes: ...
    @property
    def mac(self) -> bytes | None: ...
    @property
    def message(self) -> bytes: ...


class Router(Protocol):
    """The service that advertises."""

    def add_port(self, port: Any, now: float) -> None: ...
    def forget_port(self, port: Any) -> None: ...
    def handle_solicitation(
        self, solicitation: RouterSolicitation, src: bytes, mac: bytes, port: Any, now: float
    ) -> None: ...
    def poll_at(self) -> float | None: ...
    def handle_timeout(self, now: float) -> Iterable[Advertisement]: ...


class Ipv6Services:
    """Both of one network; each may be missing."""

    def __init__(self, link: Link, layer: Layer, nat: Nat6) -> None:
        self._link = link
        self._layer = layer
        self._nat = nat
        self.router: Router | None = None
        self.dhcp: Dhcpv6 | None = None
        layer.services[SERVER_PORT] = self._handle_dhcp

    # Router advertisements

    def add_port(self, attachment: Any, now: float) -> None:
        """A port was put on the network."""
        if self.router is not None:
            self.router.add_port(attachment, now)
            self._link.wake_at(self.router.poll_at())

    def forget_port(self, attachment: Any) -> None:
        """The port was taken off the network."""
        for service in (self.router, self.dhcp):
            if service is not None:
                service.forget_port(attachment)

    def handle_solicitation(self, packet: Packet, message: RouterSolicitation) -> None:
        """A guest asks for a router."""
        if self.router is None:
            self._link.refused["router advertisements are off"] += 1
            return
        context = packet.context
        self.router.handle_solicitation(
            message, packet.src, context.ethernet.src, context.attachment, context.now
        )
        self._link.wake_at(self.router.poll_at())

    def poll_at(self) -> float | None:
        """When an advertisement is due."""
        return None if self.router is None else self.router.poll_at()

    def handle_timeout(self, now: float) -> Iterable[Send]:
        """The advertisements that are."""
        for due in () if self.router is None else self.router.handle_timeout(now):
            mac = ndp.group_mac(due.dst) if due.mac is None else due.mac
            message = ndp.Message(self._nat.router, due.dst, due.message)
            yield Send(due.port, message.headers(self._link.mac, mac), IoVec())

    # DHCPv6

    def _handle_dhcp(
        self, packet: Packet, datagram: UdpHeader, data: IoVec
    ) -> Sequence[Action] | None:
        guest, context = packet.guest, packet.context
        if packet.dst != SERVERS and packet.dst not in (self._nat.router, self._nat.gateway):
            return None
        if self.dhcp is None:
            self._link.refused["dhcp is off"] += 1
            return self._layer.tell(packet, Cause.NO_PORT)
        if guest is None:
            raise MalformedPacket("dhcpv6", "source address unspecified")
        reply = self.dhcp.handle_message(
            bytes(data), context.ethernet.src, context.now, context.attachment,
            to_group=packet.dst == SERVERS,
        )  # fmt: skip
        if reply is None:
            return []
        for addr in reply.leases:
            self._layer.learn(addr, context)
        src = self._nat.router
        message = udp_datagram(src, guest.addr, SERVER_PORT, CLIENT_PORT, IoVec.of(reply.payload))
        return self._layer.packets(guest, src, PROTOCOL_UDP, message)
