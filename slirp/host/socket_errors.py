"""What the kernel tells a host socket about its peer, as the ICMP error that the guest gets.

A socket with IP_RECVERR has an error queue: ICMP errors from outside with the address that sent
them, and failures of the host itself (no route, too long for the link). Both become an error from
the address that reported it, around the guest's own packet.

Does not do: read the queue (each relay reads its own sockets'), rate limits.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from slirp.address import addr_from_text
from slirp.flow import Guest
from slirp.stack import Send, Stack
from slirp.wire.icmp import DEST_UNREACHABLE, FRAGMENTATION_NEEDED

IP_RECVERR: Final = 11
MSG_ERRQUEUE: Final = 0x2000
EXTENDED_ERR: Final = struct.Struct("=IBBBxII")  # errno, origin, type, code, info, data
SO_EE_ORIGIN_LOCAL: Final = 1
SO_EE_ORIGIN_ICMP: Final = 2

LOCAL_CODES: Final = {
    errno.EMSGSIZE: FRAGMENTATION_NEEDED,
    errno.ENETUNREACH: 0,
    errno.EHOSTUNREACH: 1,
    errno.EACCES: 13,
    errno.EPERM: 13,
}


def icmp_from_error(
    stack: Stack, guest: Guest, error: bytes, protocol: int, peer: tuple[str, int], quoted: bytes
) -> list[Send]:
    """The ICMP error that the host's socket had, for the guest whose packet caused it."""
    _, origin, kind, code, info, _ = EXTENDED_ERR.unpack_from(error)
    offender = stack.nat.gateway
    if origin == SO_EE_ORIGIN_ICMP:
        if len(error) >= EXTENDED_ERR.size + 8:
            addr = error[EXTENDED_ERR.size + 4 : EXTENDED_ERR.size + 8]
            offender = stack.nat.inward(addr) if any(addr) else offender
    elif origin == SO_EE_ORIGIN_LOCAL:
        number = int.from_bytes(error[:4], "little")
        kind, code = DEST_UNREACHABLE, LOCAL_CODES.get(number, 1)
    else:
        return []
    rest = info & 0xFFFF if (kind, code) == (DEST_UNREACHABLE, FRAGMENTATION_NEEDED) else 0
    dst = stack.nat.inward(addr_from_text(peer[0]))
    return stack.icmp_error(guest, offender, kind, code, rest, protocol, dst, quoted)
