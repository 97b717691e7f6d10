"""A TAP device as a port: the guest is a Linux network namespace.

With `IFF_VNET_HDR` each frame is preceded by a virtio-net header, and with `TUNSETOFFLOAD` the
kernel hands over, and takes, TCP super-frames of up to 64 KiB at any MTU (TSO), whose checksum
nobody has computed: a frame costs what a frame costs, however many segments it stands for.

One staging area lives as long as the port. A claim is four views of it (Ethernet, IP, TCP or UDP
header, payload); the stack receives the payload into the last and writes the headers into the
others; `commit` is one `writev` of the virtio-net header and the views. A TAP device takes a frame
when it is written, so there is at most one claim at a time and never a refusal. A claim that is
held keeps its staging area, and another one takes its place until it comes back. Frames from the
guest are read into another staging area. A frame is valid until it is released; whoever holds
several has them one behind the other there, so that none is moved.

A device that goes away shows as an error of `readv`; the port says so by raising `DeviceGone` out
of `frames()`. A namespace does not go away while its device is open: its descriptor keeps it, so
whoever serves one watches its processes.

Does not do: address configuration (see slirp.linux.netns), multi-queue.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from dma.iovec import Buffer, IoVec
from nic.port import VNET_LEN, VNET_NONE, DeviceGone, Frame, PortDefaults, Shortage
from nic.tun import open_tap as open_tap
from slirp.shortage import is_shortage

TUNSETOFFLOAD: Final = 0x400454D0
TUNSETVNETHDRSZ: Final = 0x400454D8
TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_USO4: Final = 0x20
TUN_F_USO6: Final = 0x40

_GONE: Final = (errno.EBADFD, errno.EBADF, errno.ENODEV)
FRAME_MAX: Final = 14 + 65535  # bytes: Ethernet header and the largest IP packet
FRAMES_PER_CALL: Final = 32  # frames that one frames() yields at the most
HEADER_AREA: Final = 256  # bytes of staging for the headers of one claim
SMALL: Final = 2048  # bytes: a frame up to this size says little about a backlog
FRAME_ROOM: Final = FRAME_MAX + 4
RX_AREA: Final = 4 * FRAME_ROOM  # bytes of staging for frames that are held together
RETRY_AFTER: Final = 0.002  # seconds until a frame is tried again that met a shortage
LAYOUTS_KEPT: Final = 512  # cut vectors kept for reuse


def set_offloads(fd: int, *, tso: bool = True, uso: bool = True) -> int:
    """Ask for checksum, TSO and USO, as many as the kernel has; the TUN_F_ bits in force."""
    wanted = [TUN_F_CSUM, 0]
    if tso:
        wanted.insert(0, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
    if tso and uso:
        wanted.insert(0, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO4 | TUN_F_USO6)
    for bits in wanted:
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, TUNSETOFFLOAD, bits)
            return bits
    return 0


class TapFrame(Frame):
    """A frame in the staging area, whose place is used again once the stack is done with it."""

    __slots__ = ("held",)

    def __init__(self, iov: IoVec, vnet: bytes) -> None:
        self.iov = iov
        self.vnet = vnet
        self.held = True

    def release(self) -> None:
        self.held = False


class TapClaim:
    """The one claim of a TAP port: views of its staging area."""

    __slots__ = ("_fd", "_vnet", "iov", "port", "size")

    def __init__(self, port: TapPort, fd: int, vnet: bool) -> None:
        self.port = port
        self._fd = fd
        self._vnet = vnet
        self.iov = IoVec()
        self.size = 0

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        iov = self.iov if size == self.size else self.iov.slice(0, size)
        pieces: tuple[Buffer, ...] = (vnet, *iov.segments) if self._vnet else iov.segments
        try:
            os.writev(self._fd, pieces)
        except OSError as error:
            self.port.refused(error, pieces)
        else:
            self.port.sent += 1

    def cancel(self) -> None:
        return

    def hold(self, withdraw: Callable[[], None]) -> HeldTapClaim:
        return self.port.hold(self.iov, self.size)


class HeldTapClaim(TapClaim):
    """A claim with a staging area of its own, until its bytes are there."""

    __slots__ = ("_staging",)

    def __init__(
        self, port: TapPort, fd: int, vnet: bool, iov: IoVec, size: int, staging: Staging
    ) -> None:
        super().__init__(port, fd, vnet)
        self.iov = iov
        self.size = size
        self._staging = staging

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        if self.port.is_free():
            super().commit(size, vnet)
        else:  # nothing overtakes a frame that waits, and there is room for one
            self.port.dropped += 1
        self.cancel()

    def cancel(self) -> None:
        self.port.take_back(self._staging)


class Staging(NamedTuple):
    """An area for one frame to the guest, and the ways in which it has been cut."""

    area: memoryview
    layouts: dict[tuple[int, Sequence[int]], IoVec]


class TapPort(PortDefaults):
    """A TAP device, by descriptor. `vnet`: it was opened with IFF_VNET_HDR.

    `tso`/`uso` switch the offloads off one by one; without `vnet` there are none.
    """

    holds_claims = True
    keeps_frames = True  # frames stay valid until they are released, however many there are

    def __init__(
        self, fd: int, *, mtu: int = 1500, vnet: bool = True, tso: bool = True, uso: bool = True
    ) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        if vnet:
            fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_LEN))
        self.offloads = set_offloads(fd, tso=tso, uso=uso) if vnet else 0
        self.offload = vnet
        self.max_frame = FRAME_MAX if self.offloads & TUN_F_TSO4 else 14 + mtu
        self.gso_udp = bool(self.offloads & TUN_F_USO4)
        self.sent = 0
        self.dropped = 0
        self.shortages = 0
        self._held = b""  # a frame that the kernel had no memory for; nothing overtakes it
        self._gone: DeviceGone | None = None
        self._rx = memoryview(bytearray(RX_AREA))
        self._rx_vnet = bytearray(VNET_LEN)
        self._claim = TapClaim(self, fd, vnet)
        self._spare: list[Staging] = []
        self._tx, self._layouts = _staging()
        self._backlog = False  # the last look found more than one frame
        self._calls = 0

    def fileno(self) -> int:
        return self._fd

    def claim(self, size: int, headers: Sequence[int] = ()) -> TapClaim | None:
        if size > self.max_frame:
            raise ValueError(f"a frame of {size} bytes; this device takes {self.max_frame}")
        if self._held and not self._retry():
            return None
        claim = self._claim
        claim.size = size
        key = (size, headers)
        iov = self._layouts.get(key)
        if iov is None:
            iov = self._cut(size, headers)
            if len(self._layouts) >= LAYOUTS_KEPT:
                self._layouts.clear()
            self._layouts[key] = iov
        claim.iov = iov
        return claim

    def _cut(self, size: int, headers: Sequence[int]) -> IoVec:
        # The payload always starts at the same, page-friendly place; headers end before it.
        views = []
        at = HEADER_AREA - sum(headers)
        for length in headers:
            views.append(self._tx[at : at + length])
            at += length
        if size > sum(headers):
            views.append(self._tx[at : at + size - sum(headers)])
        return IoVec(tuple(views))

    def hold(self, iov: IoVec, size: int) -> HeldTapClaim:
        """The claim that is open is held: it keeps the staging area."""
        staging = Staging(self._tx, self._layouts)
        self._tx, self._layouts = self._spare.pop() if self._spare else _staging()
        return HeldTapClaim(self, self._fd, self.offload, iov, size, staging)

    def take_back(self, staging: Staging) -> None:
        """The claim that held it is over."""
        self._spare.append(staging)

    def is_free(self) -> bool:
        """Does no frame wait for memory of the kernel's?"""
        return not self._held or self._retry()

    def frames(self) -> Iterator[Frame]:
        fd, area, header = self._fd, self._rx, self._rx_vnet
        into = (header, area) if self.offload else (area,)
        at = 0
        self._calls += 1
        look = self._backlog or not self._calls & 3
        for count in range(FRAMES_PER_CALL):
            try:
                size = os.readv(fd, into)
            except BlockingIOError:
                self._backlog = count > 1
                return
            except OSError as error:
                if error.errno in _GONE:
                    raise self._end(error) from None
                self.shortages += 1  # whatever it is, it may pass
                raise Shortage(error.errno, "no frame can be read") from None
            if self.offload:
                size -= VNET_LEN
            frame = TapFrame(IoVec((area[:size],)), bytes(header))
            yield frame
            if frame.held:
                at += size
                if at > RX_AREA - FRAME_ROOM:
                    break
                area = self._rx[at:]
                into = (header, area) if self.offload else (area,)
            if count == 0 and not look and size <= SMALL:
                return  # probably the only one; what is there after all is still readable
        self._backlog = True

    def refused(self, error: OSError, pieces: Sequence[Buffer]) -> None:
        """The kernel did not take a frame: kept where it had no memory, else lost as on a wire."""
        if is_shortage(error):
            self.shortages += 1
            self._held = b"".join(pieces)
            return
        self.dropped += 1
        if error.errno in _GONE:
            self._end(error)

    def _retry(self) -> bool:
        """The frame that is held, once more."""
        try:
            os.write(self._fd, self._held)
        except OSError as error:
            if is_shortage(error):
                self.shortages += 1
                return False
            self.dropped += 1
            if error.errno in _GONE:
                self._end(error)
        else:
            self.sent += 1
        self._held = b""
        return True

    def _end(self, error: OSError) -> DeviceGone:
        self._gone = DeviceGone(error.errno, "the TAP device or its namespace is gone")
        return self._gone

    def poll(self, now: float) -> float | None:
        """Try again what the kernel had no memory for."""
        if self._gone is not None:
            raise self._gone
        if self._held and not self._retry():
            return now + RETRY_AFTER
        return None

    def close(self) -> None:
        """Give the descriptor back; the device goes away unless it is persistent."""
        os.close(self._fd)


def _staging() -> Staging:
    return Staging(memoryview(bytearray(HEADER_AREA + FRAME_MAX)), {})
