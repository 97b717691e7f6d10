"""A UDP mapping: one guest endpoint, and the host socket that its datagrams leave from.

It acts through its relay only; the loop and the port call it, since they hold one object per
descriptor, deadline or waiter. A `Replier` is what a forward offers the relay: guests that answer
the forward's peers answer through the forward's socket, whatever mapping they have.

Does not do: anything by itself.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from slirp.address import SockAddr
from slirp.host.attachment import Attachment
from slirp.host.socket_endpoint import SocketEndpoint
from slirp.host.sockets import SocketFamily
from slirp.ip.layer import Layer
from slirp.ip.neighbours import Guest
from slirp.ip.template import Template

if TYPE_CHECKING:
    from nic.port import Claim

MAPPING_FOR: Final = 300.0  # seconds without traffic, RFC 4787 REQ-5 recommends five minutes


class Owner(Protocol):
    """The relay that a mapping belongs to."""

    def remove(self, mapping: Mapping) -> None: ...
    def handle_ready(self, mapping: Mapping, events: int, now: float) -> None: ...
    def watch(self, mapping: Mapping) -> None: ...
    def receive(self, mapping: Mapping, now: float) -> None: ...
    def arrived(
        self, mapping: Mapping, size: int, failure: int, peer: SockAddr | None, now: float
    ) -> None: ...
    def withdraw(self, mapping: Mapping) -> None: ...


class Incoming(NamedTuple):
    """A receive that is under way, and the claim that it goes into."""

    endpoint: SocketEndpoint
    claim: Claim
    views: tuple[memoryview, ...]
    overflow: memoryview  # behind them, for what is longer than the guest's MTU


class Replier(Protocol):
    """A forward's socket that knows the peer which a guest's datagram is for."""

    def knows(self, peer: bytes, port: int) -> bool:
        """Has this peer written to the forward?"""

    def send_to(
        self, peer: bytes, port: int, payload: tuple[memoryview, ...], gso_size: int
    ) -> int | None:
        """Send to a peer that wrote to the forward: 0, or the failure; None: none of its peers."""

    def dropped(self) -> int:
        """Datagrams that the kernel had no room for."""


class Mapping:
    """One guest endpoint and its host socket."""

    __slots__ = (
        "attachment", "family", "from_addr", "guest", "hops", "layer", "number", "opened_at",
        "port", "queued_at", "receiving", "relay", "sock", "takes_runs", "template", "to_addr",
        "to_key", "used_at", "visit",
    )  # fmt: skip

    def __init__(
        self, relay: Owner, layer: Layer, guest: Guest, port: int, family: SocketFamily,
        sock: socket.socket,
    ) -> None:  # fmt: skip
        self.relay = relay
        self.layer = layer  # the guest's
        self.family = family  # the socket's
        self.guest = guest
        self.attachment: Attachment = guest.attachment  # that its socket is charged to
        self.port = port
        self.sock = sock
        self.hops = 0  # as the socket is set: its TTL, and DONT_FRAGMENT or not (slirp.ip.packet)
        self.takes_runs = True  # UDP_SEGMENT was not refused yet
        self.to_key: tuple[bytes, int] | None = None  # the last destination …
        self.to_addr: SockAddr = ("", 0)  # … as a socket address
        self.from_addr: SockAddr | None = None  # the last sender …
        self.template: Template | None = None  # … and the headers of what it sends
        self.receiving: Incoming | None = None
        self.used_at = 0.0
        self.queued_at = 0.0  # used_at when it took its place among those that may have to go
        self.number = 0  # as mappings are called by whoever looks; the relay counts them
        self.opened_at = 0.0
        self.visit: float | None = None

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit: expired, or used since."""
        if now - self.used_at >= MAPPING_FOR:
            self.relay.remove(self)
            return None
        return self.used_at + MAPPING_FOR

    def handle_ready(self, events: int, now: float) -> None:
        """The host socket has a datagram or an error."""
        self.relay.handle_ready(self, events, now)

    def arrived(self, size: int, failure: int, peer: SockAddr | None, now: float) -> None:
        """A datagram that was to be received is there, or this errno is."""
        self.relay.arrived(self, size, failure, peer, now)

    def withdraw(self) -> None:
        """The port takes back the room that a receive is under way into."""
        self.relay.withdraw(self)

    def resume(self, now: float) -> None:
        """The guest has room again."""
        if self.sock.fileno() >= 0:
            self.relay.watch(self)
            self.relay.receive(self, now)
