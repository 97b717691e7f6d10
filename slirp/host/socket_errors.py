"""What the kernel tells a host socket about its peer, as the ICMP error that the guest gets.

A socket with IP_RECVERR has an error queue. ICMP errors from outside are there with the address
that sent them, and become an error from that address, around the guest's own packet. Where the host
itself cannot send, the call fails, and LOCAL_CODES has what a router in its place would say; of a
datagram that is too long the queue also tells the MTU of the path.

Does not do: read the queue (each relay reads its own sockets'), rate limits (slirp.stack).
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from slirp.address import addr_from_text
from slirp.flow import Guest
from slirp.stack import Send, Stack
from slirp.wire.icmp import (
    ADMINISTRATIVELY_PROHIBITED,
    DEST_UNREACHABLE,
    FRAGMENTATION_NEEDED,
    HOST_UNREACHABLE,
    NET_UNREACHABLE,
)

IP_MTU_DISCOVER: Final = 10  # linux/in.h
IP_PMTUDISC_DONT: Final = 0
IP_PMTUDISC_DO: Final = 2
IP_RECVERR: Final = 11
MSG_ERRQUEUE: Final = 0x2000
EXTENDED_ERR: Final = struct.Struct("=IBBBxII")  # errno, origin, type, code, info, data
SO_EE_ORIGIN_LOCAL: Final = 1
SO_EE_ORIGIN_ICMP: Final = 2

# Codes of destination unreachable (RFC 792, RFC 1812 §5.2.7.1) for what send and connect say
LOCAL_CODES: Final[dict[int, int | None]] = {
    errno.EMSGSIZE: FRAGMENTATION_NEEDED,
    errno.ENETUNREACH: NET_UNREACHABLE,  # no route
    errno.ENETDOWN: NET_UNREACHABLE,
    errno.EADDRNOTAVAIL: NET_UNREACHABLE,  # the outbound address is not the host's (any more)
    errno.EHOSTUNREACH: HOST_UNREACHABLE,  # a route of type "unreachable"; no answer to ARP
    errno.EHOSTDOWN: HOST_UNREACHABLE,
    errno.ETIMEDOUT: HOST_UNREACHABLE,
    errno.EACCES: ADMINISTRATIVELY_PROHIBITED,  # a route of type "prohibit"
    errno.EPERM: ADMINISTRATIVELY_PROHIBITED,  # a filter's verdict
    errno.EINVAL: None,  # a route of type "blackhole": silence is what it is for
}


def icmp_from_error(
    stack: Stack, guest: Guest, error: bytes, protocol: int, peer: tuple[str, int], quoted: bytes
) -> list[Send]:
    """The ICMP error that the host's socket had, for the guest whose packet caused it."""
    _, origin, kind, code, info, _ = EXTENDED_ERR.unpack_from(error)
    if origin != SO_EE_ORIGIN_ICMP:
        return []
    offender = stack.nat.gateway
    if len(error) >= EXTENDED_ERR.size + 8:
        addr = error[EXTENDED_ERR.size + 4 : EXTENDED_ERR.size + 8]
        offender = stack.nat.inward(addr) if any(addr) else offender
    rest = info & 0xFFFF if (kind, code) == (DEST_UNREACHABLE, FRAGMENTATION_NEEDED) else 0
    dst = stack.nat.inward(addr_from_text(peer[0]))
    return stack.icmp_error(guest, offender, kind, code, rest, protocol, dst, quoted)


def local_mtu(error: bytes) -> int:
    """The MTU of the path, where the host refused a packet as too long for it; else 0."""
    number, origin, _, _, info, _ = EXTENDED_ERR.unpack_from(error)
    is_ours = origin == SO_EE_ORIGIN_LOCAL and number == errno.EMSGSIZE
    return info & 0xFFFF if is_ours else 0
