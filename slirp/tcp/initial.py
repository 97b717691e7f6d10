"""Where a connection's numbers begin: ISS (RFC 6528) and timestamp offset (RFC 7323 §5.4).

Both grow across connections, since the other end may remember the last one: a guest that closed
first holds it in TIME-WAIT, and lets a new one in at once only if its SYN is newer, by sequence
number or by timestamp (RFC 6191). A number from nowhere is older half of the time, and then a
second is lost. And both must be unguessable for whoever is not the other end, so what they grow
from is a keyed hash: of the four-tuple for the ISS, of the two hosts for timestamps, so that every
connection of the pair reads one clock.

    ISS = M + F(local address, local port, remote address, remote port, secret)

M ticks every 4 µs. The secret is a network's own and lives as long as it does.

Does not do: remember connections.
"""

from __future__ import annotations

from typing import Final

from slirp.tcp.seq import MASK

try:
    from _blake2 import blake2s  # hashlib's own; hashlib would load OpenSSL, 2.6 ms and 3.6 MB
except ImportError:  # where it is not CPython's
    from hashlib import blake2s

TICKS: Final = 250_000  # per second: M of RFC 6528 §3
SECRET_LEN: Final = 32  # bytes
OFFSETS_KEPT: Final = 1024
PORTS_LEN: Final = 4  # bytes at the end of a four-tuple


class InitialNumbers:
    """The initial numbers of one network's connections."""

    __slots__ = ("_isn", "_offsets", "_stamps")

    def __init__(self, secret: bytes) -> None:
        """`secret`: SECRET_LEN bytes that nobody else knows."""
        self._isn = blake2s(key=secret, digest_size=4, person=b"isn")
        self._stamps = blake2s(key=secret, digest_size=4, person=b"stamps")
        self._offsets: dict[bytes, int] = {}  # of pairs of hosts; worked out again when dropped

    def iss(self, tuple4: bytes, now: float) -> int:
        """The ISS of a connection; `tuple4` is both addresses, then both ports."""
        digest = self._isn.copy()
        digest.update(tuple4)
        return (int(now * TICKS) + int.from_bytes(digest.digest())) & MASK

    def ts_offset(self, tuple4: bytes) -> int:
        """What the timestamp clock of the two hosts is ahead of ours, in milliseconds."""
        hosts = tuple4[:-PORTS_LEN]
        offset = self._offsets.get(hosts)
        if offset is None:
            digest = self._stamps.copy()
            digest.update(hosts)
            if len(self._offsets) >= OFFSETS_KEPT:
                self._offsets.clear()
            offset = self._offsets[hosts] = int.from_bytes(digest.digest())
        return offset
