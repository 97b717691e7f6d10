"""The address decisions of one IPv4 network (slirp.flow says what a `Nat` is).

The gateway's address stands for the host's loopback, where that is on; what stands for an address
of the network itself leads nowhere outside; everything else is what it says.

Does not do: IPv6 peers of the host's one by one: all of them appear as the gateway.
"""

from __future__ import annotations

from typing import Final

from slirp.address import LIMITED_BROADCAST
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

LOOPBACK4: Final = bytes((127, 0, 0, 1))


class Nat4:
    """IPv4 address decisions of one virtual network."""

    def __init__(self, config: Config) -> None:
        self._mask = int.from_bytes(config.prefix.mask)
        self._net = int.from_bytes(config.prefix.addr)
        self.gateway = config.gateway_addr
        self.dns = config.dns_addr
        self.own = (self.gateway, self.dns, *config.guest_forward_addrs(4))
        self.broadcasts = (LIMITED_BROADCAST, config.prefix.last)
        self._host_loopback = config.host_loopback
        self._restrict = config.restrict

    def is_local(self, addr: bytes) -> bool:
        """Inside the virtual network's prefix?"""
        return int.from_bytes(addr, "big") & self._mask == self._net

    def is_broadcast(self, addr: bytes) -> bool:
        """The limited or the subnet's broadcast address?"""
        return addr in self.broadcasts

    def is_group(self, addr: bytes) -> bool:
        """A broadcast or multicast address, or one of the reserved?"""
        return addr[0] >= 224 or addr in self.broadcasts

    def outward(self, dst: bytes) -> bytes | Refusal:
        """The host address that the guest's destination stands for."""
        if dst == self.gateway:  # which may be the DNS server's address too
            if self._restrict:
                return RESTRICTED
            return LOOPBACK4 if self._host_loopback else NO_LOOPBACK
        if dst == self.dns:
            return NO_SERVICE
        if dst in self.own:
            return NO_LISTENER
        if dst[0] in (0, 127) or self.is_group(dst):
            return MARTIAN
        if self.is_local(dst):
            return NOT_ROUTED
        return RESTRICTED if self._restrict else dst

    def inward(self, peer: bytes) -> bytes:
        """As whom a host-side peer appears; one that speaks IPv6 has no address here."""
        if len(peer) != 4 or peer[0] in (0, 127) or self.is_local(peer):
            return self.gateway
        return peer
