"""A port's place taken by another, as a process takes the place of one before it.

    heir = moved(port, lambda sock: StreamPort(sock))

Descriptors are duplicated, as the kernel does it with those that are sent, and the values go
through JSON. The first port is abandoned and closed: what it still does to anybody is a mistake.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

P = TypeVar("P")


def moved(port: Any, make: Callable[[socket.socket], P]) -> P:
    """`make` has the same socket."""
    fds: list[int] = []

    def place(fd: int) -> int:
        fds.append(os.dup(fd))
        return len(fds) - 1

    values = json.loads(json.dumps(port.carried(place)))
    heir: Any = make(socket.socket(fileno=fds[values["sock"]]))
    heir.resume(values, fds)
    port.abandon()
    port.close()
    kept: P = heir
    return kept
