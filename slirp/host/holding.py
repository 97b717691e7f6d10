"""What waits for a guest that has not been seen: asked for, delivered when it answers.

What may wait, how much and for how long is slirp.ip.resolution's; here its decisions become
requests on every port, visits of the loop, and calls to whoever had something held. An item gets
exactly one of `deliver` and `fail`: it is delivered as soon as the guest was seen, by whatever
frame that was; it fails when nobody answered in time, when it had to give way, or when the network
ends.

Does not do: deciding who waits. A relay that finds no guest asks to have its item held.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol

from dma.iovec import IoVec
from slirp.host.attachment import send_all
from slirp.ip.resolution import Resolution

if TYPE_CHECKING:
    from slirp.host.attachment import Attachment
    from slirp.host.loop import Loop
    from slirp.ip.neighbours import Guest
    from slirp.ip.packet import Unresolved
    from slirp.stack import Stack

PACKETS: Final = "packets"  # the kind of what the network itself has to say


class Item(Protocol):
    """Something that is for a guest."""

    def deliver(self, guest: Guest, now: float) -> None:
        """The guest is there."""

    def fail(self, now: float) -> None:
        """It is not, or there was no room to wait."""


class HeldPacket:
    """A packet of the network's own: an answer or an error."""

    __slots__ = ("_packet", "_stack")

    def __init__(self, stack: Stack, packet: Unresolved) -> None:
        self._stack = stack
        self._packet = packet._replace(payload=IoVec.of(bytes(packet.payload)))

    def deliver(self, guest: Guest, now: float) -> None:
        """Send it."""
        addr, src, protocol, payload = self._packet
        send_all(self._stack.layer(addr).packets(guest, src, protocol, payload))

    def fail(self, now: float) -> None:
        """Errors and answers beget no errors (RFC 1122 §3.2.2)."""
        return


class Holding:
    """Everything of one network that waits for a guest."""

    def __init__(self, loop: Loop, stack: Stack, attachments: Iterable[Attachment]) -> None:
        """`attachments`: the network's, as they are when somebody is asked for."""
        self._loop = loop
        self._stack = stack
        self._attachments = attachments
        self._resolution: Resolution[Item] = Resolution()
        self._requests = 0
        self._delivered = 0
        self.visit: float | None = None

    def hold(self, addr: bytes, kind: str, item: Item, size: int, now: float) -> None:
        """Keep `item`, of `size` bytes, until the guest at `addr` is seen."""
        ask, displaced = self._resolution.hold(addr, kind, item, size, now)
        if ask:
            self._ask(addr)
            self._loop.visit_at(self, self._resolution.poll_at())
        for gone in displaced:
            gone.fail(now)

    def hold_packet(self, packet: Unresolved, now: float) -> None:
        """The network has something to say to a guest that it does not know (any more)."""
        held = HeldPacket(self._stack, packet)
        self.hold(packet.addr, PACKETS, held, len(packet.payload), now)

    def _ask(self, addr: bytes) -> None:
        self._requests += 1
        headers = self._stack.solicit(addr)
        for attachment in self._attachments:
            attachment.send(headers)

    def guest_seen(self, guest: Guest, now: float) -> None:
        """A guest is known now: what waited for it goes on."""
        for item in self._resolution.resolved(guest.addr):
            self._delivered += 1
            item.deliver(guest, now)

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit: ask again, or give up."""
        due = self._resolution.handle_timeout(now)
        for addr in due.ask:
            self._ask(addr)
        for item in due.unreachable:
            item.fail(now)
        return self._resolution.poll_at()

    def stats(self) -> dict[str, int]:
        """Counters, as JSON has them."""
        found = self._resolution
        return {
            "waiting": found.held,
            "requests": self._requests,
            "delivered": self._delivered,
            "displaced": found.displaced,
            "unreachable": found.unreachable,
        }

    def close(self) -> None:
        """Nobody waits any more."""
        for item in self._resolution.close():
            item.fail(self._loop.now)
