"""The host's two loopback addresses: what listens on one of them only is found by way of both.

Guests know "the host" by the gateway's address, which stands for 127.0.0.1 in IPv4 and for ::1 in
IPv6. Which of the two a program listens on is seldom its user's choice, so where one refuses the
other is tried. A TCP connection is told at once. A datagram comes back as an error; then the port
is remembered to be at the other address, and the datagram is sent there from the error's quotation
where that has all of it. A host without IPv6 has 127.0.0.1 only, and that stands for both.

Does not do: connecting or sending; a host that gets or loses its IPv6 later.
"""

from __future__ import annotations

import socket
from typing import Final

from slirp.ip.ipv4_nat import LOOPBACK4
from slirp.ip.ipv6_nat import LOOPBACK6

FOUND_MAX: Final = 256  # ports remembered; beyond it all are forgotten, and found anew
OTHER: Final = {LOOPBACK4: LOOPBACK6, LOOPBACK6: LOOPBACK4}


class Loopbacks:
    """Where the host's ports were found. `either` False: each address is what it is, no more."""

    def __init__(self, either: bool, has_ipv6: bool = True) -> None:
        self._other = OTHER if either and has_ipv6 else {}
        self._absent = {LOOPBACK6: LOOPBACK4} if either and not has_ipv6 else {}
        self._found: dict[tuple[bytes, int], bytes] = {}

    def present(self, addr: bytes) -> bytes:
        """The address that the host has in place of this one; else the same."""
        return self._absent.get(addr, addr)

    def other(self, addr: bytes) -> bytes | None:
        """The address to try where this one refuses."""
        return self._other.get(addr)

    def best(self, addr: bytes, port: int) -> bytes:
        """Where datagrams for `addr` and this port go."""
        return self._found.get((addr, port)) or self.present(addr)

    def refused(self, addr: bytes, at: bytes, port: int) -> bytes | None:
        """Nobody takes datagrams for `addr` at `at`: where to try next."""
        if at != addr:
            self._found.pop((addr, port), None)
            return None
        other = self._other.get(addr)
        if other is not None:
            if len(self._found) >= FOUND_MAX:
                self._found.clear()
            self._found[addr, port] = other
        return other


def has_loopback6() -> bool:
    """Is there ::1 on this host?"""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
