"""Who is on the network, and where a guest's packets go.

A `Guest` is one address on the virtual wire: the port it was seen at, its MAC, and the Ethernet
header of frames to it. Flows hold the guest itself, so a guest that comes back with another MAC or
at another port needs no change in its flows.

`Nat` is the one place that decides about addresses: what host address a destination stands for, and
as whom a host-side peer appears to the guest. Refusals are values too; the caller turns them into
an ICMP error of the code they carry, whatever the protocol. Port unreachable is said to TCP by a
reset.

What configuration closes is whole networks, all of them or the host's own. Code 9 says just that:
communication with the network is administratively prohibited. Linux makes "Network is unreachable"
of it (ENETUNREACH), as of code 0, which stands for a route that is missing and may come. Of 10 and
13, RFC 1812's general code for filters, Linux makes "No route to host".

Does not do: ports (they pass unchanged outward), rules per destination.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from slirp.config import Config
from slirp.wire.ethernet import ETHERTYPE_IPV4, EthernetHeader

LOOPBACK4: Final = bytes((127, 0, 0, 1))
ANY4: Final = bytes(4)
BROADCAST4: Final = b"\xff" * 4


class Guest:
    """One address on the virtual wire."""

    __slots__ = ("addr", "attachment", "ethernet", "mac", "seen_at")

    def __init__(
        self, addr: bytes, mac: bytes, own_mac: bytes, attachment: Any, now: float
    ) -> None:
        self.addr = addr
        self.seen_at = now
        self.move(mac, own_mac, attachment)

    def move(self, mac: bytes, own_mac: bytes, attachment: Any) -> None:
        """The address was seen with this MAC at this port."""
        self.mac = mac
        self.attachment = attachment
        self.ethernet = EthernetHeader(mac, own_mac, ETHERTYPE_IPV4).emit()


class Refusal(NamedTuple):
    """Why a packet goes nowhere: an ICMP destination-unreachable code, or None for silence."""

    reason: str
    code: int | None


HOST_UNREACHABLE: Final = 1  # RFC 792
PORT_UNREACHABLE: Final = 3
NETWORK_PROHIBITED: Final = 9  # RFC 1122 §3.2.2.1: with this network, administratively
PROHIBITED: Final = 13  # RFC 1812 §5.2.7.1: communication administratively prohibited

NOT_ROUTED: Final = Refusal("no such host on the network", HOST_UNREACHABLE)
MARTIAN: Final = Refusal("destination that no packet may have", None)
RESTRICTED: Final = Refusal("restricted", NETWORK_PROHIBITED)
NO_LOOPBACK: Final = Refusal("host loopback is off", NETWORK_PROHIBITED)
NO_SERVICE: Final = Refusal("no such service at the DNS address", PORT_UNREACHABLE)
NO_DNS: Final = Refusal("DNS is off", None)  # as if nobody were there, as with slirp4netns


class Nat:
    """IPv4 address decisions of one virtual network."""

    def __init__(self, config: Config) -> None:
        self._mask = int.from_bytes(config.prefix.mask)
        self._net = int.from_bytes(config.prefix.addr)
        self.gateway = config.gateway_addr
        self.dns = config.dns_addr
        self.broadcast = config.prefix.last
        self._host_loopback = config.host_loopback
        self._restrict = config.restrict

    def is_local(self, addr: bytes) -> bool:
        """Inside the virtual network's prefix?"""
        return int.from_bytes(addr, "big") & self._mask == self._net

    def is_broadcast(self, addr: bytes) -> bool:
        """The limited or the subnet's broadcast address?"""
        return addr in (BROADCAST4, self.broadcast)

    def outward(self, dst: bytes) -> bytes | Refusal:
        """The host address that the guest's destination stands for."""
        if dst == self.gateway:  # which may be the DNS server's address too
            if self._restrict:
                return RESTRICTED
            return LOOPBACK4 if self._host_loopback else NO_LOOPBACK
        if dst == self.dns:
            return NO_SERVICE
        if dst[0] in (0, 127) or dst[0] >= 224 or self.is_broadcast(dst):
            return MARTIAN
        if self.is_local(dst):
            return NOT_ROUTED
        return RESTRICTED if self._restrict else dst

    def inward(self, peer: bytes) -> bytes:
        """As whom a host-side peer appears to the guest."""
        if peer[0] in (0, 127) or self.is_local(peer):
            return self.gateway
        return peer
