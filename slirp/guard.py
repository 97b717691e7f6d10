"""What one guest may not say to another: that it is the network.

The switch between guests passes on frames of any kind, as a switch does. Without a look at them one
guest could take the gateway's place for the others, by ARP, by answering DNS under the server's
address, or as a second DHCP server or router. A frame that does so is not passed on. How a frame of
some ethertype would say so is for its family to know. Whom a frame claims to come from among the
guests themselves is not looked at, except that nobody advertises another port's IPv6 address: for
the stack's own view of who is where, slirp.ip.neighbours decides.

Does not do: families that the network does not speak, VLAN tags, fragments behind the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from slirp.wire.ethernet import EthernetHeader


def is_forged(
    header: EthernetHeader,
    head: memoryview,
    attachment: Any,
    own_mac: bytes,
    claims: Mapping[int, Callable[[memoryview, Any], bool]],
) -> bool:
    """Does this frame of that port's, of which `head` is the start, speak in the network's name?

    `claims` says so of a frame of its ethertype.
    """
    if header.src == own_mac:
        return True
    claim = claims.get(header.ethertype)
    return claim is not None and claim(head, attachment)
