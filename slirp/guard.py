"""What one guest may not say to another: that it is the network.

The switch between guests passes on frames of any kind, as a switch does. Without a look at them one
guest could take the gateway's place for the others, by ARP, by answering DNS under the server's
address, or as a second DHCP server. A frame that does so is not passed on. Whom a frame claims to
come from among the guests themselves is not looked at: for the stack's own view of who is where,
slirp.ip.neighbours decides.

Does not do: IPv6 (router advertisements), VLAN tags, fragments behind the first.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from slirp.wire.ethernet import ETHERTYPE_ARP, ETHERTYPE_IPV4, HEADER_LEN, EthernetHeader
from slirp.wire.ipv4 import PROTOCOL_UDP

DHCP_SERVER_PORT: Final = (67).to_bytes(2, "big")
ARP_SENDER: Final = HEADER_LEN + 14  # bytes before the sender's protocol address
IPV4_SRC: Final = HEADER_LEN + 12
IPV4_PROTOCOL: Final = HEADER_LEN + 9


def is_forged(
    header: EthernetHeader,
    head: memoryview,
    own_mac: bytes,
    own: Container[bytes],
    serves_dhcp: bool,
) -> bool:
    """Does this frame, of which `head` is the start, speak in the network's name?

    `own`: the network's addresses; `serves_dhcp`: it is the DHCP server of its guests.
    """
    if header.src == own_mac:
        return True
    if header.ethertype == ETHERTYPE_ARP:
        return bytes(head[ARP_SENDER : ARP_SENDER + 4]) in own
    if header.ethertype != ETHERTYPE_IPV4:
        return False
    if bytes(head[IPV4_SRC : IPV4_SRC + 4]) in own:
        return True
    if not serves_dhcp or bytes(head[IPV4_PROTOCOL : IPV4_PROTOCOL + 1]) != bytes((PROTOCOL_UDP,)):
        return False
    ports = HEADER_LEN + (head[HEADER_LEN] & 15) * 4
    return bytes(head[ports : ports + 2]) == DHCP_SERVER_PORT
