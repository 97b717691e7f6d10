"""The address decisions of one IPv6 network (slirp.flow says what a `Nat` is).

The gateway has two addresses: one in the network's prefix, and the link-local one that guests know
it by as a router. Both stand for the host's loopback, where that is on. What stands for an address
of the network itself, or of the link, leads nowhere outside; nor does an IPv4 address in IPv6's
clothes (RFC 4291 §2.5.5.2), which no wire should see. Everything else is what it says.

With NAT64 (RFC 6146) there is a prefix whose addresses stand for IPv4 ones (slirp.ip.nat64). That
is all there is to it here: the host's side of a flow has the IPv4 address, and a socket of that
family, the guest's side the other, and whoever connects the two ends the flow on both sides anyway.
Inside such an address no packet may have what it may not have in IPv4 either; the host's loopback
is the gateway's address, and nothing else leads there.

Does not do: IPv4 peers of the host's one by one where there is no NAT64: all of them appear as the
gateway.
"""

from __future__ import annotations

from typing import Final

from slirp.address import (
    UNSPECIFIED_V6,
    is_host,
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
from slirp.ip.nat64 import Nat64

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
        prefix = config.nat64_prefix
        self._nat64 = None if prefix is None else Nat64(prefix)
        self._network4 = config.prefix if config.has_ipv4 else None

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
        inner = None if self._nat64 is None else self._nat64.extract(dst)
        return self._outward4(inner) if inner is not None else self._beyond(dst)

    def _beyond(self, addr: bytes) -> bytes | Refusal:
        return RESTRICTED if self._restrict else addr

    def _outward4(self, addr: bytes) -> bytes | Refusal:
        """The same of an IPv4 address inside one of NAT64's."""
        own = self._network4 is not None and self._network4.covers(addr)
        if own or not is_host(addr):  # the outer address is one that packets may have: say so
            return NOT_ROUTED
        return self._beyond(addr)

    def inward(self, peer: bytes) -> bytes:
        """As whom a host-side peer appears; without NAT64, one that speaks IPv4 has no address."""
        if len(peer) == 4 and self._nat64 is not None and is_host(peer):
            return self._nat64.embed(peer)
        if len(peer) != 16 or is_loopback(peer) or is_link_local(peer) or self.is_local(peer):
            return self.gateway
        return peer
