"""From a network to its successor: values and descriptors over the control socket.

    successor → {"verb": "handover"}                     a line, as every request
    network   → {"result": {"fds": 3, "bytes": 9120}}    its answer
              → one byte with up to 250 descriptors (SCM_RIGHTS), and again, until all are there
              → so many bytes of JSON
    successor → "ready\\n"                                everything is set up; nothing is read yet
    network   → "go\\n"                                   and lets go of everything

While this lasts the network stands still: what guests send waits in their device, what hosts send
in their sockets. Until "ready" it may go on as if nothing had been asked, and does so when the
successor says nothing for PATIENCE, says something else, or dies. From "ready" on it is the
successor's, who goes on at "go" or when the connection ends.

Does not do: know what the values mean (slirp.host.handover).
"""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

PATIENCE: Final = 10.0  # seconds that the other side may take for the next step
BATCH: Final = 250  # descriptors of one message; the kernel takes 253 (SCM_MAX_FD)
VALUES_MAX: Final = 256 << 20  # bytes of JSON
FDS_MAX: Final = 1 << 20
READY: Final = b"ready\n"
GO: Final = b"go\n"


class Broken(Exception):
    """The other side did not keep to this, or is gone."""


def announced(values: Mapping[str, Any], fds: Sequence[int]) -> dict[str, int]:
    """The answer to the request."""
    return {"fds": len(fds), "bytes": len(_text(values))}


def give(sock: socket.socket, values: Mapping[str, Any], fds: Sequence[int]) -> None:
    """Send everything, and wait until the successor is ready. Raises Broken."""
    sock.settimeout(PATIENCE)
    try:
        for at in range(0, len(fds), BATCH):
            batch = array.array("i", fds[at : at + BATCH])
            sock.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, batch)])
        sock.sendall(_text(values))
        if _exactly(sock, len(READY)) != READY:
            raise Broken("the successor gave up")
    except OSError as error:
        raise Broken(f"the successor is gone: {error}") from None


def take(sock: socket.socket, fd_count: int, size: int) -> tuple[dict[str, Any], list[int]]:
    """What `give` sends. Raises Broken; descriptors that came are closed then."""
    sock.settimeout(PATIENCE)
    fds = array.array("i")
    try:
        if not (0 <= fd_count <= FDS_MAX and 0 <= size <= VALUES_MAX):
            raise Broken("more was announced than can be")
        while len(fds) < fd_count:
            fds.extend(_some_fds(sock))
        values = json.loads(_exactly(sock, size))
        if not isinstance(values, dict):
            raise Broken("no values came")
    except (Broken, OSError, ValueError) as error:
        for fd in fds:
            socket.close(fd)
        raise Broken(str(error)) from None
    return values, list(fds)


def _some_fds(sock: socket.socket) -> array.array[int]:
    fds = array.array("i")
    room = socket.CMSG_SPACE(BATCH * fds.itemsize)
    byte, ancillary, flags, _ = sock.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if byte != b"f" or flags & socket.MSG_CTRUNC or not fds:
        for fd in fds:
            socket.close(fd)
        raise Broken("descriptors were lost on the way: more are open than this process may have?")
    return fds


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(min(size - len(data), 1 << 20))
        if not part:
            raise Broken("the connection ended")
        data += part
    return bytes(data)


def _text(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


def wait_for_go(sock: socket.socket) -> None:
    """We are ready; return when the network has let go. Raises Broken where that is not certain."""
    sock.settimeout(PATIENCE)
    try:
        sock.sendall(READY)
        if sock.recv(len(GO)) not in (GO, b""):
            raise Broken("the network does not let go")
    except OSError as error:
        raise Broken(f"the network does not let go: {error}") from None
