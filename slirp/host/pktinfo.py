"""Which of its addresses a socket was asked at, and answers from there.

A socket that is bound to a wildcard address (0.0.0.0, ::) stands for every address of the host. A
client that asked one of them takes an answer from no other: its socket is connected (dig,
WireGuard, QUIC). IP_PKTINFO and IPV6_RECVPKTINFO have the kernel tell with each datagram where it
was sent to, and the same structure with an answer chooses its source (ip(7), RFC 3542 §6). The
interface is left to routing, but for link-local addresses, which mean nothing without one. What
came to a group is answered from whatever address the kernel takes.

A socket that is bound to one address has no need of it, and does not pay for it.

Does not do: sockets.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

IP_PKTINFO: Final = 8  # linux/in.h
IPV6_RECVPKTINFO: Final = 49  # linux/in6.h
IPV6_PKTINFO: Final = 50
_PKTINFO4: Final = struct.Struct("=i4s4s")  # interface, local address, destination in the header
_PKTINFO6: Final = struct.Struct("=16si")
WILDCARDS: Final = ("0.0.0.0", "::")
LINK_LOCAL4: Final = b"\xa9\xfe"  # 169.254.0.0/16, RFC 3927
LINK_LOCAL6: Final = b"\xfe\x80"  # fe80::/64, RFC 4291 §2.5.6

Control: TypeAlias = Sequence[tuple[int, int, bytes]]  # ancillary data, as recvmsg and sendmsg have


class PacketInfo(NamedTuple):
    """One family's way of telling."""

    room: int  # bytes of ancillary data that a receive has to have room for
    level: int
    kind: int

    def asked(self, control: Control) -> bytes:
        """Where a datagram was sent to: the same bytes for the same address."""
        for level, kind, data in control:
            if level == self.level and kind == self.kind:
                if level == socket.IPPROTO_IP:
                    return data if data[4:6] == LINK_LOCAL4 else data[4:8]
                return data if data[:2] == LINK_LOCAL6 else data[:16]
        return b""

    def source(self, asked: bytes) -> Control:
        """Ancillary data of an answer from the address that was `asked`."""
        if not asked:
            return ()
        if self.level == socket.IPPROTO_IP:
            scope = int.from_bytes(asked[:4], "little") if len(asked) > 4 else 0
            packed = _PKTINFO4.pack(scope, asked[4:8] if len(asked) > 4 else asked, bytes(4))
        elif asked[0] == 0xFF:
            return ()
        else:
            scope = int.from_bytes(asked[16:20], "little")
            packed = _PKTINFO6.pack(asked[:16], scope)
        return ((self.level, self.kind, packed),)


NONE: Final = PacketInfo(0, 0, 0)
INFO4: Final = PacketInfo(socket.CMSG_SPACE(_PKTINFO4.size), socket.IPPROTO_IP, IP_PKTINFO)
INFO6: Final = PacketInfo(socket.CMSG_SPACE(_PKTINFO6.size), socket.IPPROTO_IPV6, IPV6_PKTINFO)


def enable(sock: socket.socket) -> PacketInfo:
    """Have the kernel tell, where the socket's address is a wildcard."""
    if sock.getsockname()[0] not in WILDCARDS:
        return NONE
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
        return INFO6
    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    return INFO4
