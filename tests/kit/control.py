"""A caller of slirp4netns's control socket."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

from tests.kit.namespace import PATIENCE


def ask(path: Path, request: bytes) -> bytes:
    """The whole reply."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(path))
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        reply = b""
        with contextlib.suppress(ConnectionResetError):  # slirp4netns leaves the rest unread
            while data := client.recv(65536):
                reply += data
        return reply


def add(**arguments: object) -> bytes:
    """A request for a forward."""
    return json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode()
