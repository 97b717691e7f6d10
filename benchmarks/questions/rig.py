"""A Lance with a driver, and host sockets with bytes in them, for `output` and `room`.

Bytes are peeked at, as TCP's relay does, so that one waiting payload serves any number of frames.

Does not do: TCP or IP. The headers are constants; the chain with them is benchmarks/chain.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import termios
import time
from collections.abc import Iterator
from typing import Any, Final

from dma.closing import Closing
from nic.lance import FRAME_MAX
from slirp.guest.driver import MAC, LanceDriver
from slirp.guest.machine import Board, Wrap, sun4m_board
from slirp.host.attachment import payload_views, write_headers

LENGTHS: Final = (14, 20, 20)  # bytes of headers
HEADER_LEN: Final = sum(LENGTHS)
HEADERS: Final = (MAC + bytes(8), bytes(20), bytes(20))
MSG_PEEK: Final = int(socket.MSG_PEEK)
BATCH: Final = 8  # frames per turn of the loop
PATIENCE: Final = 10.0  # seconds until bytes must have come over loopback


def untouched(_stage: str, path: Any) -> Any:
    return path


class LanceRig(Closing):
    """Board, driver, and a port that may be something around the Lance."""

    def __init__(
        self, *, buffer: int = 1544, ring: int = 128, max_frame: int = FRAME_MAX,
        wrap: Wrap = untouched,
    ) -> None:  # fmt: skip
        self.board: Board = sun4m_board(wrap=wrap, max_frame=max_frame)
        self.driver = LanceDriver(
            self.board, self.board.lance, rx_count=ring, tx_count=ring,
            rx_buffer=buffer, tx_buffer=buffer, zero_copy=True,
        )  # fmt: skip
        self.driver.start()
        self.port: Any = self.board.lance
        self.last = b""  # the frame that the guest saw last, where somebody asks

    def hand_over(self, *, look: bool = False) -> None:
        """Completions, and the guest takes its frames."""
        self.board.lance.poll(0.0)
        self.driver.handle_interrupt()
        for views in self.driver.views():
            if look:
                self.last = bytes(views)

    def close(self) -> None:
        self.board.close()


def receive(sock: socket.socket, port: Any, size: int) -> None:
    """A frame for the guest, whose payload is received where it belongs; `size` is the most."""
    claim = port.claim(HEADER_LEN + size, LENGTHS)
    views = payload_views(claim.iov.segments, LENGTHS, HEADER_LEN + size)
    if len(views) == 1:  # as the relay does
        got = sock.recv_into(views[0], 0, MSG_PEEK)
    else:
        got = sock.recvmsg_into(views, 0, MSG_PEEK)[0]
    write_headers(claim.iov.segments, HEADERS, LENGTHS)
    claim.commit(HEADER_LEN + got)


@contextlib.contextmanager
def waiting(octets: bytes) -> Iterator[socket.socket]:
    """A TCP socket over loopback in whose queue these bytes wait."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * len(octets) + 65536)
        theirs = socket.create_connection(listener.getsockname())
        with theirs:
            ours, _ = listener.accept()
            with ours:
                theirs.sendall(octets)
                wait_for(ours, len(octets))
                ours.setblocking(False)
                yield ours


def wait_for(sock: socket.socket, size: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while queued(sock) < size:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{queued(sock)} of {size} bytes came")
        time.sleep(0.0005)


def queued(sock: socket.socket) -> int:
    """FIONREAD."""
    count: int = struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0]
    return count


@contextlib.contextmanager
def datagrams() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair that keeps the ends of what is sent."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        yield ours, theirs
