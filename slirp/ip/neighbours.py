"""Neighbours: whom we have seen where on the virtual link.

A `Guest` is one address on the virtual wire: its family, the port it was seen at, its MAC, and the
Ethernet header of frames to it. Flows hold the guest itself, so a guest that comes back with
another MAC or at another port needs no change in its flows.

`Neighbours` remembers which MAC and port an address was last seen at. Every frame from a guest may
teach it, so these are refused, whatever kind of packet they came in:

- an address the stack owns, or one on which several listen (the network's broadcast address is
  for the caller to name): a guest cannot take the gateway's place;
- an address that no single host can have, or a MAC with the group bit (RFC 1812 §3.3.2);
- an address that another port was seen with less than HELD_FOR seconds ago: one guest cannot take
  over another's traffic while it is alive. On its own port a guest may change its MAC at any time,
  and from a port that says `is_down` (a virtual machine that was stopped, to go on elsewhere) its
  addresses may move at once, with their MAC.

The table is bounded per port (PORT_MAX), and a port at its bound loses its own oldest entry: a
flood of invented addresses harms only the guest that sends it.

Does not do: ask for an address (slirp.ip.resolution says when, the family how).
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterator
from typing import Any, Final

from slirp.address import is_host
from slirp.ip.family import Family
from slirp.wire.ethernet import EthernetHeader, is_group

PORT_MAX: Final = 256  # entries per port; at the bound the port's oldest is evicted
HELD_FOR: Final = 30.0  # seconds after which another port may take an address over


class Guest:
    """One address on the virtual wire."""

    __slots__ = ("addr", "attachment", "ethernet", "family", "mac", "seen_at")

    def __init__(
        self, family: Family, addr: bytes, mac: bytes, own_mac: bytes, attachment: Any, now: float
    ) -> None:
        self.family = family
        self.addr = addr
        self.seen_at = now
        self.move(mac, own_mac, attachment)

    def move(self, mac: bytes, own_mac: bytes, attachment: Any) -> None:
        """The address was seen with this MAC at this port."""
        self.mac = mac
        self.attachment = attachment
        self.ethernet = EthernetHeader(mac, own_mac, self.family.ethertype).emit()


class Neighbours:
    """The guests of a network by address; IPv4 and IPv6 alike.

    A guest that moves to another port or MAC stays the same object, so that its flows move too.
    """

    __slots__ = ("_by_addr", "_by_port", "_own_mac", "_refused", "evicted", "refused")

    def __init__(self, own_mac: bytes, refused: Container[bytes]) -> None:
        """`refused`: the stack's own addresses and the network's broadcast addresses."""
        self._own_mac = own_mac
        self._refused = refused
        self._by_addr: dict[bytes, Guest] = {}
        self._by_port: dict[Hashable, dict[bytes, Guest]] = {}
        self.evicted = 0  # count, for the statistics
        self.refused = 0

    def __len__(self) -> int:
        return len(self._by_addr)

    def __iter__(self) -> Iterator[Guest]:
        """All of them, as they are now."""
        return iter(list(self._by_addr.values()))

    def get(self, addr: bytes) -> Guest | None:
        """Who was last seen at the address."""
        return self._by_addr.get(addr)

    def learn(
        self, family: Family, addr: bytes, mac: bytes, port: Hashable, now: float
    ) -> Guest | None:
        """`addr` was seen as a source, with this MAC, on this port: its guest. None: refused."""
        guest = self._by_addr.get(addr)
        if guest is not None and guest.attachment is port and guest.mac == mac:
            guest.seen_at = now
            return guest
        if not self._believable(addr, mac, port, now, guest):
            self.refused += 1
            return None
        if guest is None:
            guest = Guest(family, addr, mac, self._own_mac, port, now)
        else:
            del self._by_port[guest.attachment][addr]
            guest.move(mac, self._own_mac, port)
            guest.seen_at = now
        self._insert(guest)
        return guest

    def forget_port(self, port: Hashable) -> None:
        """The port was detached."""
        for addr in self._by_port.pop(port, ()):
            del self._by_addr[addr]

    def _believable(
        self, addr: bytes, mac: bytes, port: Hashable, now: float, guest: Guest | None
    ) -> bool:
        if addr in self._refused or not is_host(addr) or is_group(mac):
            return False
        if guest is None or guest.attachment is port or now - guest.seen_at >= HELD_FOR:
            return True
        return guest.mac == mac and getattr(guest.attachment, "is_down", False)  # it has migrated

    def _insert(self, guest: Guest) -> None:
        of_port = self._by_port.setdefault(guest.attachment, {})
        if len(of_port) >= PORT_MAX:
            oldest = min(of_port, key=lambda known: of_port[known].seen_at)
            del of_port[oldest], self._by_addr[oldest]
            self.evicted += 1
        self._by_addr[guest.addr] = guest
        of_port[guest.addr] = guest
