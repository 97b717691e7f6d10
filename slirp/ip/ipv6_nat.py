"""The address decisions of one IPv6 network (slirp.flow says what a `Nat` is).

The gateway has two addresses: one in the network's prefix, and the link-local one that guests know
it by as a router. Both stand for the host's loopback, where that is on. What stands for an address
of the network itself, or of the link, leads nowhere outside; nor does an IPv4 address in IPv6's
clothes (RFC 4291 §2.5.5.2), which no wire should see. Everything else is what it says.

Does not do: IPv4 peers of the host's one by one: all of them appear as the gateway.
"""

from __future__ import annotations

from typing import Final

from slirp.address import (
    UNSPECIFIED_V6,
    is_link_local,
    is_loopback,
    is_multicast,
    unmapped,
)
from slirp.config import Config
from slirp.flow import (
    MARTIAN,
    NO_LISTENER,
    NO_LOOPBACK,
    NO_SERVICE,
    NOT_ROUTED,
    RESTRICTED,
    Refusal,
)

LOOPBACK6: Final = bytes(15) + b"\x01"


class Nat6:
    """IPv6 address decisions of one virtual network."""

    def __init__(self, config: Config) -> None:
        self.prefix = config.prefix6
        self.gateway = config.gateway6_addr
        self.router = config.router6_addr  # the gateway's link-local address
        self.dns = config.dns6_addr
        self.own = (self.gateway, self.router, self.dns, *config.guest_forward_addrs(16))
        self._host_loopback = config.host_loopback
        self._restrict = config.restrict

    def is_local(self, addr: bytes) -> bool:
        """Inside the virtual network's prefix?"""
        return self.prefix.covers(addr)

    def is_group(self, addr: bytes) -> bool:
        """A multicast address?"""
        return is_multicast(addr)

    def outward(self, dst: bytes) -> bytes | Refusal:
        """The host address that the guest's destination stands for."""
        if dst in (self.gateway, self.router):
            if self._restrict:
                return RESTRICTED
            return LOOPBACK6 if self._host_loopback else NO_LOOPBACK
        if dst == self.dns:
            return NO_SERVICE
        if dst in self.own:
            return NO_LISTENER
        if is_multicast(dst) or is_loopback(dst) or dst == UNSPECIFIED_V6 or unmapped(dst) != dst:
            return MARTIAN
        if self.is_local(dst) or is_link_local(dst):
            return NOT_ROUTED
        return RESTRICTED if self._restrict else dst

    def inward(self, peer: bytes) -> bytes:
        """As whom a host-side peer appears; one that speaks IPv4 has no address here."""
        if len(peer) != 16 or is_loopback(peer) or is_link_local(peer) or self.is_local(peer):
            return self.gateway
        return peer
