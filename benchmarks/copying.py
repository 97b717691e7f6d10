"""The chain as it would be without vectors: bytes concatenated and copied at every stage.

`CopyingPort` stands between the stack and the chip. Towards the guest the payload is received into
a buffer of its own, and TCP, IPv4 and Ethernet each make a new string of their header and what they
were given; from the guest each takes its header off by copying the rest. `CopyingPath` stands in
front of a stage of the DMA path (LEDMA, IOMMU, memory) and hands a frame on as a copy; descriptors
and the init block pass as they are.

Does not do: more than a careful programmer would who has no vectors. Nothing is copied twice in one
stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dma.iovec import IoVec
from dma.transfer import Direction, DmaPath, Transfer
from nic.lance import Lance
from nic.port import VNET_NONE, Frame, PortDefaults

HEADER_LENGTHS = (14, 20, 20)


class CopyingPath:
    """A stage of the DMA path that hands frames on as copies."""

    def __init__(self, path: DmaPath) -> None:
        self._path = path
        self.copied = 0

    def open(self, transfer: Transfer) -> IoVec:
        views = self._path.open(transfer)
        if transfer.headers is None:
            return views
        if transfer.direction is Direction.TO_DEVICE:
            octets = bytes(views)
            self.copied += len(octets)
            return IoVec.of(octets)
        own = bytearray(len(views))

        def hand_on(size: int) -> None:
            self.copied += size
            views.copy_from(memoryview(own)[:size])

        transfer.completions.append(hand_on)
        return IoVec((memoryview(own),)).cut(map(len, views.segments))


class CopyingClaim:
    """Room for a frame in a buffer of its own."""

    def __init__(self, port: CopyingPort, inner: Any, size: int, headers: Sequence[int]) -> None:
        self._port = port
        self._inner = inner
        self.iov = IoVec.of(*map(bytearray, (*headers, size - sum(headers))))

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        *headers, payload = self.iov.slice(0, size).segments
        octets = bytes(payload)
        copied = len(octets)
        for header in reversed(headers):
            octets = bytes(header) + octets
            copied += len(octets)
        self._port.copied += copied
        self._inner.iov.copy_from(octets)
        self._inner.commit(size, vnet)

    def cancel(self) -> None:
        self._inner.cancel()


class CopyingPort(PortDefaults):
    """A Lance whose frames are strings."""

    def __init__(self, lance: Lance) -> None:
        self._lance = lance
        self.max_frame = lance.max_frame
        self.copied = 0

    def claim(self, size: int, headers: Sequence[int] = ()) -> CopyingClaim | None:
        inner = self._lance.claim(size)  # no header cuts: a frame is one string
        return None if inner is None else CopyingClaim(self, inner, size, headers)

    def fileno(self) -> int:
        return self._lance.fileno()

    def poll(self, now: float) -> float | None:
        return self._lance.poll(now)

    def frames(self) -> Iterator[Frame]:
        for frame in self._lance.frames():
            octets = rest = bytes(frame.iov)
            self.copied += len(octets)
            for length in HEADER_LENGTHS:
                rest = rest[length:]
                self.copied += len(rest)
            whole = Frame(IoVec.of(octets), frame.vnet)
            yield whole
            frame.release()
