"""One data frame out of many, to be shown: the vectors of a full TCP segment at every stage; and
one transfer of a disk.

A `FrameSample` takes packets as a capture file does. It looks for a frame towards the guest with a
lot of payload, best one that a page's end cuts in RAM, and tells when it has seen enough. Until
then the frames that are on their way wait here, at most `MAX_WAITING`. A `DiskSample` looks in the
same way for a transfer of blocks of which the pages are scattered.

`Tee` gives each packet to several.

Does not do: write anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from slirp.sight.layout import DISK_STAGES, STAGES, FrameLayout, Seen, Vector
from slirp.sight.pcapng import DIRECTION_UNKNOWN, INBOUND, Interface, PacketWriter

MAX_WAITING: Final = 256  # frames; twice the chip's largest ring
FULL: Final = 1024  # bytes of payload that make a frame worth showing
SCATTERED: Final = 2  # ranges in RAM that make a disk's transfer worth showing
FULL_FRAMES: Final = 64  # seen without one that is cut: take what there is


class FrameSample:
    """Keeps one frame."""

    def __init__(self, on_full: Callable[[], object] | None = None) -> None:
        self.on_full = on_full
        self.frame: FrameLayout | None = None
        self._rank = (-1, False)  # payload bytes up to FULL, cut in RAM: of the frame kept
        self._waiting: dict[int, dict[str, Seen]] = {}
        self._full_frames = 0
        self._done = False

    def write(
        self,
        interface: Interface,
        segments: Sequence[memoryview],
        *,
        comment: str = "",
        direction: int = DIRECTION_UNKNOWN,
        packet_id: int | None = None,
        fcs_len: int | None = None,
    ) -> None:
        if self._done or direction != INBOUND or packet_id is None:
            return
        vector = Vector.parse(comment)
        if vector is None or not any(name == "tcp" for name, _ in vector.parts()):
            return
        octets = b"".join(segments)
        if packet_id not in self._waiting and len(self._waiting) >= MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        seen = self._waiting.setdefault(packet_id, {})
        seen[vector.stage] = Seen(0, vector, vector.frame_in(octets), len(octets))
        if len(seen) == len(STAGES):
            del self._waiting[packet_id]
            ordered = tuple(seen[stage] for stage in STAGES)
            self._consider(FrameLayout(packet_id, direction, ordered))

    def _consider(self, frame: FrameLayout) -> None:
        lance, memory = (frame.seen[STAGES.index(stage)].vector for stage in ("lance", "memory"))
        payload_len = dict(memory.parts()).get("payload", 0)
        rank = min(payload_len, FULL), len(memory.runs()) > len(lance.runs())
        if rank > self._rank:
            self._rank, self.frame = rank, frame
        self._full_frames += payload_len >= FULL
        if self._rank == (FULL, True) or self._full_frames >= FULL_FRAMES:
            self._done = True
            self._waiting.clear()
            if self.on_full is not None:
                self.on_full()


class DiskSample:
    """Keeps one transfer of a disk."""

    def __init__(self, on_full: Callable[[], object] | None = None) -> None:
        self.on_full = on_full
        self.frame: FrameLayout | None = None
        self._rank = (-1, -1)  # ranges in RAM, bytes: of the transfer kept
        self._waiting: dict[int, dict[str, Seen]] = {}
        self._done = False

    def write(
        self,
        interface: Interface,
        segments: Sequence[memoryview],
        *,
        comment: str = "",
        direction: int = DIRECTION_UNKNOWN,
        packet_id: int | None = None,
        fcs_len: int | None = None,
    ) -> None:
        vector = None if self._done or packet_id is None else Vector.parse(comment)
        if vector is None or packet_id is None or not vector.command:
            return
        if packet_id not in self._waiting and len(self._waiting) >= MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        octets = bytes(segments[-1])  # behind the envelope
        seen = self._waiting.setdefault(packet_id, {})
        seen[vector.stage] = Seen(0, vector, octets, len(octets))
        if len(seen) == len(DISK_STAGES):
            del self._waiting[packet_id]
            ordered = tuple(seen[stage] for stage in DISK_STAGES)
            self._consider(FrameLayout(packet_id, direction, ordered))

    def _consider(self, frame: FrameLayout) -> None:
        rank = len(frame.seen[-1].vector.runs()), frame.octets
        if rank > self._rank:
            self._rank, self.frame = rank, frame
        if rank[0] >= SCATTERED:
            self._done = True
            self._waiting.clear()
            if self.on_full is not None:
                self.on_full()


class Tee:
    """Gives each packet to all of `writers`."""

    def __init__(self, *writers: PacketWriter) -> None:
        self._writers = writers

    def write(
        self,
        interface: Interface,
        segments: Sequence[memoryview],
        *,
        comment: str = "",
        direction: int = DIRECTION_UNKNOWN,
        packet_id: int | None = None,
        fcs_len: int | None = None,
    ) -> None:
        for writer in self._writers:
            writer.write(
                interface,
                segments,
                comment=comment,
                direction=direction,
                packet_id=packet_id,
                fcs_len=fcs_len,
            )
