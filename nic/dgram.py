"""A datagram socket as a port: the guest is a virtual machine, a frame is a datagram.

So QEMU has it (`-netdev dgram`), and libkrun, vfkit and gvproxy (`unixgram`), which may begin with
a datagram of four letters, `GREETING`: no frame, but it says where answers go.

Two kinds of socket. One that is *connected* (half of a socketpair, or UDP between two loopback
ports) has one peer for ever, and the kernel keeps others out. One that is *bound* to a path hears
from any machine that may open it, and a machine names its own path with each datagram: whoever
sent last is the peer. It is answered through a second socket, connected to its path: the kernel
then tells when a full queue over there has room again, which it cannot for a socket without peer,
and says at once when nobody is at that path any more. A machine that has *joined*, that is, has
connected its own socket to ours, as libkrun and vfkit do, takes datagrams from there only (EPERM
for others): it is sent to by name. The kernel puts no bound on its queue but our send buffer, and
tells when that has room. `keep` connects our socket to it as well. Then its frames meet no bound of
ten (net.unix.max_dgram_qlen) either, and no other machine can send here: slirp/machines.py makes
the next socket at the same path.

Back-pressure is one frame deep. A frame that the kernel does not take (EAGAIN: the peer's queue is
full) stays in the staging area; until it is sent `claim` says None, and `fileno()` tells when there
is room. ENOBUFS is no such promise, since a socket with room in its own queue is writable although
the kernel has no memory: then the next try comes RETRY_AFTER later, never at once. Where no machine
is there, a frame is lost as on an unplugged cable.

A datagram has its boundaries, so one that is no frame is dropped and counted, and the next one is
as good as ever.

Checksums that a machine's driver has left to its device are as in nic/stream.py.

`carried` and `resume` have another process go on with the same socket: whom it talks to, and the
frame that waits.

Does not do: offloads towards the guest; several machines behind one socket.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from dma.iovec import IoVec
from nic.port import VNET_NONE, Frame, PortDefaults, Shortage
from nic.readiness import Readiness
from nic.stream import FRAME_MAX, FRAME_MIN, PAD_TO
from slirp.shortage import is_shortage

FRAMES_PER_CALL: Final = 64  # frames that one frames() yields at the most
RETRY_AFTER: Final = 0.002  # seconds until the next try when the kernel has no memory
SEND_BUFFER: Final = 1 << 20  # bytes; the kernel's own bound (net.core.wmem_max) holds

GREETING: Final = b"VFKT"  # what vfkit sends first, and libkrun with NET_FLAG_VFKIT

_PADDING: Final = bytes(PAD_TO)
_NOBODY: Final = (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET, errno.ENOTCONN)
_NO_ROOM: Final = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)


class DgramClaim:
    """Room for one frame in the staging area."""

    __slots__ = ("_port", "iov")

    def __init__(self, port: DgramPort, iov: IoVec) -> None:
        self._port = port
        self.iov = iov

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        self._port.send(size)

    def cancel(self) -> None:
        return


class DgramPort(PortDefaults):
    """One machine behind a datagram socket, which the port owns from now on.

    `peer`: the only path that a bound socket talks to; without it, whoever sent last. `on_peer` is
    told the peer's path when a machine is heard first, and "" when it is gone; `on_stranger` the
    path of another machine, once, that sends to a socket that is kept for one.
    """

    unlabelled = True

    def __init__(
        self,
        sock: socket.socket,
        *,
        mtu: int = 1500,
        peer: str = "",
        on_peer: Callable[[str], None] | None = None,
        on_stranger: Callable[[str], None] = lambda path: None,
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SEND_BUFFER)
        self.max_frame = 14 + mtu
        self.gone = ""  # a datagram socket never is
        self.broken = False
        self.peer = ""  # whom we talk to
        self.lost = 0  # frames that nobody was there to take
        self.malformed = 0  # datagrams that are no frames
        self._only = peer
        self._sock = sock
        self._connected = _is_connected(sock)
        self._tx_sock: socket.socket | None = sock if self._connected else None
        self._by_name = False  # the peer takes datagrams from our path only
        self._on_peer = on_peer or (lambda path: None)
        self._on_stranger = on_stranger
        self._stranger = ""  # the last one
        self._readiness = Readiness(sock.fileno())
        self._rx = memoryview(bytearray(FRAME_MAX + 1))
        self._tx = memoryview(bytearray(max(self.max_frame, PAD_TO)))
        self._waiting = 0  # bytes of the frame that the kernel has not taken
        self._starved = False  # it has no memory, and will not say when it does
        self._retry_at: float | None = None

    def fileno(self) -> int:
        return self._readiness.fileno()

    @property
    def has_joined(self) -> bool:
        """Has the machine connected its socket to ours?"""
        return self._by_name

    def keep(self) -> None:
        """Have the socket for the machine alone that is there."""
        self._only = self.peer
        try:
            self._sock.connect(self.peer)
        except OSError:  # it has connected to another one of ours, or is gone: told when it matters
            return
        self._tx_sock = self._sock
        self._connected, self._by_name = True, False

    def is_there(self) -> bool:
        """False: the machine that is meant has ended. One of which nobody can tell is there."""
        if not self.peer:
            return False
        try:
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        except OSError:  # no descriptor, no memory
            return True
        with probe:
            return probe.connect_ex(self.peer) != errno.ECONNREFUSED  # a path may have gone before

    # Towards the guest

    def claim(self, size: int, headers: Sequence[int] = ()) -> DgramClaim | None:
        if size > self.max_frame:
            raise ValueError(f"a frame of {size} bytes; this port takes {self.max_frame}")
        if self._waiting:
            return None
        tx, at = self._tx, 0
        views = []
        for length in headers:
            views.append(tx[at : at + length])
            at += length
        if at < size:
            views.append(tx[at:size])
        return DgramClaim(self, IoVec(tuple(views)))

    def send(self, size: int) -> None:
        """The frame in the staging area has `size` bytes: send it, or have it wait."""
        if size < PAD_TO:
            self._tx[size:PAD_TO] = _PADDING[size:]
            size = PAD_TO
        self._waiting = size
        self._flush()

    def poll(self, now: float) -> float | None:
        """Try again where the kernel had no memory."""
        if not self._starved:
            return None
        if self._retry_at is None:
            self._retry_at = now + RETRY_AFTER
        elif now >= self._retry_at:
            self._flush()
            self._retry_at = now + RETRY_AFTER if self._starved else None
        return self._retry_at

    def _flush(self) -> None:
        self._starved = False
        failure = self._try()
        if failure in _NOBODY and self.peer and not self._connected:
            # A machine that was started again has the same path and another socket.
            self._reach(self.peer)
            failure = self._try()
        if failure == errno.EPERM and not self._connected and not self._by_name:
            self._drop_tx()
            self._by_name = True
            failure = self._try()
        if failure in _NO_ROOM:
            writer = self._sock if self._by_name else self._tx_sock
            self._starved = failure != errno.EAGAIN or writer is None
            if not self._starved and writer is not None:
                try:
                    self._readiness.await_room(writer.fileno())
                except OSError:  # epoll has no memory: then by the clock
                    self._starved = True
            return
        self._waiting = 0
        self._retry_at = None
        self._readiness.found_room()
        if failure:
            self._unheard(failure)

    def _try(self) -> int:
        """Send the frame that waits; the error number, or 0."""
        frame = self._tx[: self._waiting]
        try:
            if self._by_name:
                self._sock.sendto(frame, self.peer)
            elif self._tx_sock is not None:
                self._tx_sock.send(frame)
            else:
                return errno.ENOTCONN
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _unheard(self, failure: int) -> None:
        self.lost += 1
        if failure in _NOBODY and self.peer:
            self.peer = ""
            self._drop_tx()
            self._on_peer("")

    def _reach(self, path: str) -> bool:
        """Find a way to send to `path`."""
        self._drop_tx()
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:  # no descriptor is left
            return False
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            sock.connect(path)
        except OSError as error:
            sock.close()
            self._by_name = error.errno == errno.EPERM
            return self._by_name
        self._by_name = False
        self._tx_sock = sock
        return True

    def _drop_tx(self) -> None:
        if self._connected:
            return
        self._readiness.found_room()
        if self._tx_sock is None:
            return
        self._tx_sock.close()
        self._tx_sock = None

    # From the guest

    def frames(self) -> Iterator[Frame]:
        if self._readiness.blocked:
            self._flush()
        rx, receive = self._rx, self._sock.recvfrom_into
        for _ in range(FRAMES_PER_CALL):
            try:
                size, sender = receive(rx)
            except BlockingIOError:
                return
            except OSError as error:
                if is_shortage(error):
                    raise Shortage(error.errno, "no memory for a frame") from None
                if error.errno in _NOBODY:
                    self._unheard(error.errno)
                return
            if not FRAME_MIN <= size <= FRAME_MAX:
                if bytes(rx[:size]) == GREETING:
                    self._hear(sender)
                else:
                    self.malformed += 1
            elif self._hear(sender):
                yield Frame(IoVec((rx[:size],)))

    def _hear(self, sender: object) -> bool:
        """Is this datagram the machine's?"""
        if self._connected and not self._only:
            if not self.peer:
                self.peer = "machine"
                self._on_peer(self.peer)
            return True
        if sender == self.peer:
            return True
        if not isinstance(sender, str) or not sender:
            self.malformed += 1  # nobody who can be answered
            return False
        if self._only not in ("", sender):
            self.malformed += 1
            if sender != self._stranger:
                self._stranger = sender
                self._on_stranger(sender)
            return False
        if self._connected or not self._reach(sender):
            self.malformed += 1
            return False
        self._waiting = 0
        self.peer = sender
        self._on_peer(sender)
        return True

    # Another process

    def carried(self, place: Callable[[int], int]) -> dict[str, Any]:
        """What a port in another process needs; `place` notes a descriptor for it."""
        return {
            "sock": place(self._sock.fileno()),
            "peer": self.peer,
            "only": self._only,
            "unsent": bytes(self._tx[: self._waiting]).hex(),
        }

    def resume(self, values: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Go on from there, with the same socket. Raises ValueError, LookupError or TypeError."""
        unsent, peer = bytes.fromhex(values["unsent"]), str(values["peer"])
        self._only = str(values["only"])
        if len(unsent) > len(self._tx):
            raise ValueError("a frame that is longer than the network's")
        if self._connected or (peer and self._reach(peer)):
            self.peer = peer
        self._tx[: len(unsent)] = unsent
        self._waiting = len(unsent)
        self._starved = bool(unsent)  # the next poll() tries

    def abandon(self) -> None:
        """Another process goes on."""

    def close(self) -> None:
        """Close the sockets."""
        self._drop_tx()
        self._readiness.close()
        self._sock.close()


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
