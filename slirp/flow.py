"""Where a guest's packets go, as values.

A flow is known by its key: source and destination address, source and destination port, as they are
on the wire, so that one look at a frame finds it. Keys of the two families differ in length.

`Nat` is what decides about addresses, one for each family: what host address a destination stands
for, and as whom a host-side peer appears to the guest. Refusals are values too; the caller turns
them into the ICMP error of their cause, whatever the protocol. Port unreachable is said to TCP by a
reset. A `Cause` is the same for both families; the number that says it is the family's to know
(slirp.ip.family).

What configuration closes is whole networks, all of them or the host's own, and that is what the
guest is told: that communication with the network is administratively prohibited. In IPv4 this is
code 9. Linux makes "Network is unreachable" of it (ENETUNREACH), as of code 0, which stands for a
route that is missing and may come. Of 10 and 13, RFC 1812's general code for filters, Linux makes
"No route to host".

Does not do: ports (they pass unchanged outward), rules per destination.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple, Protocol

from slirp.address import Endpoint


class Cause(Enum):
    """Why a packet does not reach its destination: what an ICMP error says about it."""

    NO_ROUTE = "no route to the network"
    NO_HOST = "no such host"
    NO_PROTOCOL = "no such protocol at the host"
    NO_PORT = "no such port at the host"
    TOO_LONG = "longer than the path takes, and not to be fragmented"
    NETWORK_PROHIBITED = "communication with the network is prohibited"
    PROHIBITED = "communication is prohibited"
    EXPIRED = "hop limit exceeded"
    INCOMPLETE = "reassembly time exceeded"


class Refusal(NamedTuple):
    """Why a packet goes nowhere: what the guest is told, or None for silence."""

    reason: str
    cause: Cause | None


NOT_ROUTED: Final = Refusal("no such host on the network", Cause.NO_HOST)
MARTIAN: Final = Refusal("destination that no packet may have", None)
RESTRICTED: Final = Refusal("restricted", Cause.NETWORK_PROHIBITED)
NO_LOOPBACK: Final = Refusal("host loopback is off", Cause.NETWORK_PROHIBITED)
NO_SERVICE: Final = Refusal("no such service at the DNS address", Cause.NO_PORT)
NO_LISTENER: Final = Refusal("no such service at an address of our own", Cause.NO_PORT)
NO_DNS: Final = Refusal("DNS is off", None)  # as if nobody were there, as with slirp4netns


class Nat(Protocol):
    """The address decisions of one virtual network, in one family."""

    gateway: bytes
    dns: bytes

    @property
    def own(self) -> tuple[bytes, ...]:
        """The network's own addresses, these among them."""

    def is_local(self, addr: bytes) -> bool:
        """Inside the virtual network's prefix?"""

    def is_group(self, addr: bytes) -> bool:
        """An address on which several listen, or none that a single host can have?"""

    def outward(self, dst: bytes) -> bytes | Refusal:
        """The host address, of either family, that the guest's destination stands for."""

    def inward(self, peer: bytes) -> bytes:
        """As whom a host-side peer, of either family, appears to the guest."""


def ends_of(key: bytes) -> tuple[Endpoint, Endpoint]:
    """Source and destination of a flow's key."""
    size = (len(key) - 4) // 2
    src_port, dst_port = int.from_bytes(key[-4:-2]), int.from_bytes(key[-2:])
    return Endpoint(key[:size], src_port), Endpoint(key[size : 2 * size], dst_port)
