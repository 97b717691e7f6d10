"""Ports of the host that a test can give away and still find free: `free_port()`.

The kernel's own choice (bind to port 0) comes from the range of outgoing connections
(net.ipv4.ip_local_port_range, 32768 and up), so between the probe and its use any connection of
another test can take it. These lie below that range, each worker of a parallel run has its own
stretch of them, and none is given twice.

Does not do: keep what a process outside of the tests takes meanwhile.
"""

from __future__ import annotations

import itertools
import os
import socket

FIRST = 10_000
STRETCH = 1_000  # of each worker; up to ten of them, below what test_network.py takes in a row
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10

_next = itertools.count()


def free_port() -> int:
    """A port that nobody on 127.0.0.1 has, neither for TCP nor for UDP."""
    for _ in range(STRETCH):
        port = FIRST + STRETCH * WORKER + next(_next) % STRETCH
        if _free(port, socket.SOCK_STREAM) and _free(port, socket.SOCK_DGRAM):
            return port
    raise AssertionError(f"none of {STRETCH} ports from {FIRST + STRETCH * WORKER} is free")


def _free(port: int, kind: int) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
