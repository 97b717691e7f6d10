"""Telling a service manager that we are ready, or about to end (sd_notify(3)).

Where `$NOTIFY_SOCKET` names a socket, `notify("READY=1")` sends it a datagram; elsewhere nothing
happens. A manager that is gone is no reason to fail.

Does not do: watchdogs, stored descriptors.
"""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> bool:
    """Send it; False: nobody asked to be told, or nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.sendto(state.encode(), address)
        return True
    return False
