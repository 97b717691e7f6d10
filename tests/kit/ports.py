"""Ports of the host that a test can give away and still find free: `free_port()`.

The kernel's own choice (bind to port 0) comes from the range of outgoing connections
(net.ipv4.ip_local_port_range, 32768 and up), so between the probe and its use any connection of
another test can take it. These lie below that range. Each process that runs tests has a stretch of
its own, whose name in the abstract socket namespace it holds for as long as it lives, so that
neither another worker nor another checkout's tests are given the same.

Does not do: keep what a process outside of the tests takes meanwhile.
"""

from __future__ import annotations

import errno
import functools
import socket
from dataclasses import dataclass

FIRST, END = 10_000, 32_000
STRETCH = 500


def free_port() -> int:
    """A port that nobody on the host's loopback has, neither for TCP nor for UDP."""
    return free_ports(1)[0]


def free_ports(count: int) -> tuple[int, int]:
    """The first and the last of so many ports in a row."""
    stretch = _own()
    for _ in range(STRETCH):
        ports = stretch.take(count)
        if all(_free(p, k) for p in ports for k in (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
            return ports[0], ports[-1]
    raise AssertionError(f"no {count} ports in a row are free from {stretch.first} on")


@dataclass(slots=True)
class Stretch:
    """Ports from `first` on, given out in turn; ours as long as `claim` is open."""

    first: int
    claim: socket.socket
    given: int = 0

    def take(self, count: int) -> range:
        if self.given + count > STRETCH:
            self.given = 0
        begin = self.first + self.given
        self.given += count
        return range(begin, begin + count)


@functools.cache
def _own() -> Stretch:
    """This process's own, until it ends."""
    for first in range(FIRST, END, STRETCH):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0slirp tests, ports from {first}")
        except OSError:
            claim.close()
            continue
        return Stretch(first, claim)
    raise AssertionError("every stretch of ports is taken by running tests")


def _free(port: int, kind: int) -> bool:
    return all(
        _binds(family, kind, (loopback, port))
        for family, loopback in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
    )


def _binds(family: socket.AddressFamily, kind: int, address: tuple[str, int]) -> bool:
    """Can it be bound? An address that the host does not have is nobody's."""
    try:
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError as error:
        return error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True
