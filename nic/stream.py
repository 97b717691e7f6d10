"""A connected stream socket as a port: the guest is a virtual machine.

So QEMU has it (`-netdev stream`, and `-netdev socket` before), libkrun (`unixstream`) and passt.

On the wire each frame follows its length, four bytes in network order. A stream has no frame
boundaries of its own, so bytes arrive cut anywhere.

From the guest: one `recv_into` per wake-up fills what is free of one receive buffer, and every
frame that is whole is handed out as a view of it; nothing is copied but the head of a frame whose
rest has not come yet, and that only when the buffer's end is near. Views are valid until the next
frame is asked for. A length that no frame can have means that the two ends have lost each other:
there is no way to find the next boundary, so the connection is over, and since the buffer exists
before the length is read, nothing is ever allocated for it.

Towards the guest: claims are cut out of one staging area, one behind the other, each behind room
for its length. `commit` stores the length (and pads the frame to the Ethernet minimum) and `poll`,
at the end of the loop's turn, sends the whole batch with one call. If the kernel takes only a part,
the rest stays where it is, the port has no room (`claim` says None), and `fileno()` tells when
there is some again. So what waits here is bounded by the staging area, and everything else waits in
the host's sockets.

A machine that goes away, or is cut off, is reported to `on_gone` from within `frames()`; without
one, `frames()` raises `MachineGone`.

The framing has no room for a virtio-net header. QEMU finishes a frame before it sends it; libkrun
drops the header, so that a frame may lack its checksum or be far longer than the MTU, and nothing
says so (`unlabelled` in nic/port.py).

`carried` is what of the stream is here and no longer in the socket: a frame that has come in part,
frames that the kernel has taken in part. With it and the socket another process goes on (`resume`)
between any two bytes.

Does not do: listen, accept or reconnect (slirp/machines.py); offloads towards the guest.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from dma.iovec import IoVec
from nic.port import VNET_NONE, Frame, PortDefaults, Shortage
from nic.readiness import Readiness
from slirp.shortage import is_shortage

if TYPE_CHECKING:
    import socket

FRAME_MIN: Final = 14  # bytes: an Ethernet header; a shorter frame is none
FRAME_MAX: Final = 65550  # bytes: 14 and 65,536; a longer one is refused
PAD_TO: Final = 60  # bytes: the minimum frame without its FCS (IEEE 802.3 §4A.2.3.2.4)
LENGTH_LEN: Final = 4  # bytes of the length in front of each frame
RECEIVE_LEN: Final = 2 * (LENGTH_LEN + FRAME_MAX)  # bytes of the receive buffer
STAGING_LEN: Final = 4 * (LENGTH_LEN + FRAME_MAX)  # bytes that can wait for the kernel
BATCH_LEN: Final = 128 << 10  # bytes: a batch of this size is sent without waiting for the rest

_LENGTH: Final = struct.Struct("!I")
_PADDING: Final = bytes(PAD_TO)


class MachineGone(ConnectionError):
    """The machine closed its connection, or broke the framing."""


class StreamClaim:
    """The one claim of a port: room for a frame in the staging area, behind its length."""

    __slots__ = ("_port", "iov")

    def __init__(self, port: StreamPort) -> None:
        self._port = port
        self.iov = IoVec()

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        self._port.append(size)

    def cancel(self) -> None:
        return


class StreamPort(PortDefaults):
    """One machine behind a connected stream socket, which the port owns from now on."""

    unlabelled = True

    def __init__(
        self,
        sock: socket.socket,
        *,
        mtu: int = 1500,
        on_gone: Callable[[str], None] | None = None,
    ) -> None:
        sock.setblocking(False)
        self.max_frame = 14 + mtu
        self.gone = ""  # why the machine is no longer there
        self.broken = False  # it is, because it broke the framing
        self._sock = sock
        self._on_gone = on_gone
        self._readiness = Readiness(sock.fileno())
        self._rx = memoryview(bytearray(RECEIVE_LEN))
        self._rx_start = 0  # bytes before this one were handed out
        self._rx_end = 0  # bytes from this one on are free
        self._tx = memoryview(bytearray(STAGING_LEN))
        self._tx_start = 0  # bytes before this one were sent
        self._tx_end = 0  # bytes from this one on are free
        self._claim = StreamClaim(self)
        self._short = False  # the kernel had no memory for the last send

    def fileno(self) -> int:
        return self._readiness.fileno()

    # Towards the guest

    def claim(self, size: int, headers: Sequence[int] = ()) -> StreamClaim | None:
        if size > self.max_frame:
            raise ValueError(f"a frame of {size} bytes; this port takes {self.max_frame}")
        if self._readiness.blocked or self.gone:
            return None
        at = self._tx_end + LENGTH_LEN
        if at + size + PAD_TO > STAGING_LEN:
            self._flush()
            if self._tx_end:
                return None
            at = LENGTH_LEN
        tx, end = self._tx, at + size
        views = []
        for length in headers:
            views.append(tx[at : at + length])
            at += length
        if at < end:
            views.append(tx[at:end])
        claim = self._claim
        claim.iov = IoVec(tuple(views))
        return claim

    def append(self, size: int) -> None:
        """The frame at the end of the batch has `size` bytes."""
        tx, start = self._tx, self._tx_end + LENGTH_LEN
        if size < PAD_TO:
            tx[start + size : start + PAD_TO] = _PADDING[size:]
            size = PAD_TO
        _LENGTH.pack_into(tx, self._tx_end, size)
        self._tx_end = start + size
        if self._tx_end >= BATCH_LEN:
            self._flush()

    def poll(self, now: float) -> float | None:
        """Send what this turn has gathered."""
        if self._tx_end and not self._readiness.blocked and not self.gone:
            self._flush()
        return None

    def _flush(self) -> None:
        try:
            self._tx_start += self._sock.send(self._tx[self._tx_start : self._tx_end])
            self._short = False
        except OSError as error:
            self._short = is_shortage(error) and not isinstance(error, BlockingIOError)
            if not is_shortage(error):
                # frames() will hear of it too, and is where it can be told.
                self._tx_start = self._tx_end
        if self._tx_start < self._tx_end:
            self._readiness.await_room(self._sock.fileno())
            return
        self._tx_start = self._tx_end = 0
        self._readiness.found_room()

    # From the guest

    def frames(self) -> Iterator[Frame]:
        if self._readiness.blocked:
            self._flush()
            if self._short:
                raise Shortage(errno.ENOBUFS, "no memory for what is to be sent")
        if self.gone or not self._receive():
            return
        rx, unpack = self._rx, _LENGTH.unpack_from
        while self._rx_end - self._rx_start >= LENGTH_LEN:
            (length,) = unpack(rx, self._rx_start)
            if not FRAME_MIN <= length <= FRAME_MAX:
                self.broken = True
                self._end(f"sent a frame of {length} bytes, not {FRAME_MIN} to {FRAME_MAX}")
                return
            start = self._rx_start + LENGTH_LEN
            if start + length > self._rx_end:
                return
            self._rx_start = start + length
            yield Frame(IoVec((rx[start : start + length],)))

    def _receive(self) -> bool:
        """Fill what is free of the buffer; False: the machine is gone."""
        start, end = self._rx_start, self._rx_end
        if start == end:
            start = end = 0
        elif RECEIVE_LEN - start < LENGTH_LEN + FRAME_MAX:
            self._rx[: end - start] = self._rx[start:end]
            start, end = 0, end - start
        self._rx_start, self._rx_end = start, end
        if end == RECEIVE_LEN:
            return True  # full of frames that nobody has asked for yet
        try:
            got = self._sock.recv_into(self._rx[end:])
        except BlockingIOError:
            return True
        except OSError as error:
            if is_shortage(error):
                raise Shortage(error.errno, "no memory for what came") from None
            self._end(f"lost its connection: {error.strerror}")
            return False
        if not got:
            self._end("closed its connection" + (" inside a frame" if end > start else ""))
            return False
        self._rx_end += got
        return True

    def _end(self, why: str) -> None:
        self.gone = why
        self._tx_start = self._tx_end = 0
        self._readiness.rest()
        if self._on_gone is None:
            raise MachineGone(f"the machine {why}")
        self._on_gone(why)

    # Another process

    def carried(self, place: Callable[[int], int]) -> dict[str, Any]:
        """What a port in another process needs; `place` notes a descriptor for it."""
        return {
            "sock": place(self._sock.fileno()),
            "received": bytes(self._rx[self._rx_start : self._rx_end]).hex(),
            "unsent": bytes(self._tx[self._tx_start : self._tx_end]).hex(),
        }

    def resume(self, values: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Go on from there, with the same socket. Raises ValueError, LookupError or TypeError."""
        received, unsent = bytes.fromhex(values["received"]), bytes.fromhex(values["unsent"])
        if len(received) > RECEIVE_LEN or len(unsent) > STAGING_LEN:
            raise ValueError("more than a stream's port holds")
        self._rx[: len(received)] = received
        self._rx_start, self._rx_end = 0, len(received)
        self._tx[: len(unsent)] = unsent
        self._tx_start, self._tx_end = 0, len(unsent)
        if received or unsent:  # have frames() called, which sends first and then looks
            self._readiness.await_room(self._sock.fileno())

    def abandon(self) -> None:
        """Another process goes on."""

    def close(self) -> None:
        """Close the connection."""
        self._readiness.close()
        self._sock.close()
