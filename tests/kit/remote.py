"""A guest made by hand at the far end of a socket: of a network in another process.

    machine = Remote(sock)                              # connected; a stream, or datagrams
    stream = machine.guest.connect((GATEWAY, port))
    assert stream.receive(4) == b"ping"

The guest is tests/kit/guest.py's, with all that it checks. A frame may be sent in two pieces, and
what comes stays in the socket until somebody reads (`turn`).

Does not do: retransmission; but a stream socket loses nothing.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

from nic.port import VNET_NONE
from nic.stream import PAD_TO
from tests.kit.guest import GUEST, GUEST_MAC, Guest

TURNS_FOR = 30.0  # seconds after which what a test waits for counts as never
READ_LEN = 1 << 18


class SocketPort:
    """What a Guest sends to and takes from."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._is_stream = sock.type == socket.SOCK_STREAM
        self._octets = bytearray()

    def framed(self, frame: bytes) -> bytes:
        """As it is on the wire."""
        return struct.pack("!I", len(frame)) + frame if self._is_stream else frame

    def give(self, frame: bytes, vnet: bytes = VNET_NONE) -> None:
        if self._is_stream:
            self.sock.sendall(self.framed(frame))
        else:
            self.sock.send(frame)

    def take(self) -> list[bytes]:
        """Whole frames that came."""
        found: list[bytes] = []
        while select.select([self.sock], [], [], 0)[0]:
            data = self.sock.recv(READ_LEN)
            assert data, "the connection was closed"
            if self._is_stream:
                self._octets += data
                found += self._whole()
            else:
                found.append(data)
        return [unpadded(frame) for frame in found]

    def _whole(self) -> Iterator[bytes]:
        at, octets = 0, self._octets
        while len(octets) - at >= 4:
            (length,) = struct.unpack_from("!I", octets, at)
            if len(octets) - at - 4 < length:
                break
            yield bytes(octets[at + 4 : at + 4 + length])
            at += 4 + length
        del octets[:at]


def unpadded(frame: bytes) -> bytes:
    """Without what makes an IPv4 packet as long as the shortest frame."""
    if len(frame) > PAD_TO or frame[12:14] != b"\x08\x00":
        return frame
    return frame[: 14 + int.from_bytes(frame[16:18], "big")]


class Remote:
    """One guest at one socket; as a Lab, as far as a Guest knows one."""

    def __init__(self, sock: socket.socket, address: str = GUEST, mac: bytes = GUEST_MAC) -> None:
        self.port = SocketPort(sock)
        self.guest = Guest(self, self.port, address, mac)  # type: ignore[arg-type] # are alike

    def turn(self, until: Callable[[], bool] | None = None) -> None:
        """Read what comes, until the condition holds; without one, what is there."""
        stop_at = time.monotonic() + TURNS_FOR
        while True:
            self.guest.read()
            if until is None or until():
                return
            assert time.monotonic() < stop_at, "what was waited for did not come"
            select.select([self.port.sock], [], [], 0.01)
