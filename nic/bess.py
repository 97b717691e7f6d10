"""A BESS socket as a port: the guest is User Mode Linux (`vec0:transport=bess,dst=PATH`).

A Unix socket of type SOCK_SEQPACKET: one message is one Ethernet frame, without any header of its
own, and the far end's leaving is an end of file. `listen` makes the socket that UML connects to;
one machine at a time, as in slirp4netns. The staging areas live as long as the port, as for a TAP
device. A machine that does not read fills the socket's queue; what comes after that is lost and
counted.

Does not do: offloads, more than one machine.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Final

from dma.iovec import IoVec
from nic.port import VNET_NONE, DeviceGone, Frame, PortDefaults, Shortage
from slirp.shortage import is_shortage

ETHERNET_LEN: Final = 14  # bytes
FRAME_MAX: Final = ETHERNET_LEN + 65535
FRAMES_PER_CALL: Final = 32  # frames that one frames() yields at the most
HEADER_AREA: Final = 256  # bytes of staging for the headers of one claim
GONE: Final = "the machine at the BESS socket has gone"


def listen(path: str) -> socket.socket:
    """The socket for one machine to connect to; a socket that is in the way is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o177)  # whoever may connect is on the network
    try:
        if os.path.exists(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


class BessClaim:
    """The one claim of a port: views of its staging area."""

    __slots__ = ("_port", "iov")

    def __init__(self, port: BessPort) -> None:
        self._port = port
        self.iov = IoVec()

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        self._port.send(self.iov.slice(0, size))

    def cancel(self) -> None:
        return


class BessPort(PortDefaults):
    """A machine that has connected."""

    def __init__(self, sock: socket.socket, mtu: int = 1500) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.max_frame = ETHERNET_LEN + mtu
        self.sent = 0
        self.dropped = 0
        self._rx = memoryview(bytearray(FRAME_MAX))
        self._tx = memoryview(bytearray(HEADER_AREA + FRAME_MAX))
        self._claim = BessClaim(self)

    def fileno(self) -> int:
        return self._sock.fileno()

    def claim(self, size: int, headers: Sequence[int] = ()) -> BessClaim | None:
        if size > self.max_frame:
            raise ValueError(f"a frame of {size} bytes; this port takes {self.max_frame}")
        views = []
        at = HEADER_AREA - sum(headers)
        for length in (*headers, size - sum(headers)):
            if length > 0:
                views.append(self._tx[at : at + length])
                at += length
        self._claim.iov = IoVec(tuple(views))
        return self._claim

    def send(self, frame: IoVec) -> None:
        """One frame to the machine; lost, and counted, where the socket's queue is full."""
        try:
            self._sock.sendmsg(frame.segments)
        except (BlockingIOError, InterruptedError):
            self.dropped += 1
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise DeviceGone(error.errno, GONE) from None
            self.dropped += 1
        else:
            self.sent += 1

    def frames(self) -> Iterator[Frame]:
        for _ in range(FRAMES_PER_CALL):
            try:
                size = self._sock.recv_into(self._rx)
            except BlockingIOError:
                return
            except OSError as error:
                if is_shortage(error):
                    raise Shortage(error.errno, "no memory for a frame") from None
                raise DeviceGone(error.errno, GONE) from None
            if size == 0:
                raise DeviceGone(errno.ECONNRESET, GONE)
            yield Frame(IoVec((self._rx[:size],)))

    def close(self) -> None:
        self._sock.close()
