"""Taps: every stage of the chain, seen as packets with their vectors.

A tap wears the interface of what it wraps, so the product knows nothing of it: where nobody asks
for a capture there is no tap, and nothing is spent.

    capture = Capture(writer)
    ledma = Ledma(capture.tap("ledma", Iommu(capture.tap("memory", ram))))
    lance = Lance(capture.tap("lance", ledma))
    network.attach(capture.port(lance))

- `CapturePort` is a Port and wraps one: interfaces `ip` and `ethernet`, both directions.
- `StageTap` is a DmaPath and wraps one. It stands in front of the stage that it is named for's
  output: `lance` sees what the chip drives (24-bit addresses, wire order, FCS), `ledma` what LEDMA
  drives (DVMA), `memory` physical ranges and the bytes as they lie in RAM, gathered. A virtual
  machine's frames pass `virtio`, or `pcnet` (with FCS), and `memory`, all with the guest's physical
  addresses. A disk's
  bytes pass `scsi`, `esp`, `espdma` and the same `memory` (slirp/sight/scsi.py has their packets).
  Only frames and disks' data are kept: a transfer whose `headers` is None is the chip's own
  business and passes.

When are the bytes right? A frame *from* the guest is there as soon as the path below is open. A
frame *to* the guest is there in the completions, and these run last added first: a tap adds its own
after the path below has been opened. LEDMA does the same with its lane exchange, so the tap above
it looks before the exchange and the taps below it after; and the chip's own completion, which
hands the descriptor over, was added before all of these and runs when all have looked.

With exchanged lanes (BSWP=0) LEDMA moves whole 16-bit words. Where a buffer or the frame ends odd,
the taps behind it keep the other lane's byte too, named `lane`; which bytes these are they learn
from the ranges that the outermost tap, `lance`, has seen.

The bytes of one frame carry the same packet id on all interfaces. Towards the guest the id is
drawn in `claim`, and the stages opened inside it take it; from the guest it is drawn by the
outermost tap, and the port finds it again by the bytes, among at most `MAX_SENT` frames. A frame
that the chip moves to other descriptors than it had claimed is opened again, under a new id.

Directions are the guest's: inbound is towards it. A frame that a port delivers with its checksum
left to be done (virtio-net's NEEDS_CSUM) is captured with the checksum in place.

Does not do: filtering, cutting frames short (snaplen), statistics.
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, cast

from dma.iovec import IoVec, Ranges, total_len
from dma.transfer import Direction, DmaPath, Lanes, Transfer
from nic.port import VNET_NONE, Claim, Frame, HoldableClaim, Port
from slirp.sight import scsi
from slirp.sight.layout import (
    DATA,
    FCS_LEN,
    Vector,
    from_words,
    has_fcs,
    in_words,
    parts_of,
    place,
    word_len,
)
from slirp.sight.pcapng import (
    INBOUND,
    LINKTYPE_ETHERNET,
    LINKTYPE_RAW,
    LINKTYPE_USER0,
    OUTBOUND,
    Interface,
    PacketWriter,
)
from slirp.wire.checksum import checksum

MAX_SENT: Final = 256  # frames of the guest that wait to be met at the port; the oldest is let go

_ETHERNET_LEN: Final = 14
_IP_ETHERTYPES: Final = (b"\x08\x00", b"\x86\xdd")
_NEEDS_CSUM: Final = 1  # virtio 1.2 §5.1.6, flags

IP: Final = Interface("ip", LINKTYPE_RAW, "IP datagrams, as the stack sees them")
ETHERNET: Final = Interface("ethernet", LINKTYPE_ETHERNET, "frames at the port, without FCS")
LANCE: Final = Interface(
    "lance", LINKTYPE_ETHERNET, "Am7990: wire order, with FCS; 24-bit addresses", FCS_LEN
)
PCNET: Final = Interface(
    "pcnet", LINKTYPE_ETHERNET, "Am79C970A: wire order, with FCS; physical addresses", FCS_LEN
)
_CHIPS: Final = {"lance": LANCE, "pcnet": PCNET}  # what they drive is in wire order
_BUS: Final = {
    "ledma": "behind LEDMA: bus order; DVMA addresses",
    "virtio": "frames in virtqueue buffers, without the virtio-net header; physical addresses",
    "memory": "guest RAM, gathered; physical addresses",
}


def _interface(stage: str, exchanged: bool) -> Interface:
    if stage in _CHIPS:
        return _CHIPS[stage]
    if not exchanged:
        return Interface(stage, LINKTYPE_ETHERNET, _BUS[stage])
    return Interface(stage, LINKTYPE_USER0, _BUS[stage] + "; byte pairs exchanged (BSWP=0)")


class Capture:
    """What the taps of one chain share: the writer and the packet ids."""

    def __init__(self, writer: PacketWriter) -> None:
        self.writer = writer
        self.claimed: int | None = None  # the id of the claim that is being made
        self.passage: Passage | None = None  # the transfer that is being opened
        self.has_port = False
        self._taps: list[CapturePort | StageTap] = []
        self._last_id = 0
        self._sent: deque[tuple[bytes, int]] = deque(maxlen=MAX_SENT)

    def port(self, inner: Port) -> CapturePort:
        """The same port, with what passes it kept as `ip` and `ethernet`."""
        self.has_port = True
        port = CapturePort(inner, self)
        self._taps.append(port)
        return port

    def tap(self, stage: str, inner: DmaPath) -> StageTap:
        """The same path, with the frames that pass it kept as `lance`, `ledma`, `memory` …"""
        tap = StageTap(inner, stage, self)
        self._taps.append(tap)
        return tap

    def end(self) -> None:
        """Keep nothing from here on: what the taps wrap takes their place, for as good as nothing.

        Frames that are on their way are still written.
        """
        for tap in self._taps:
            for name in tap.TAPPED:
                setattr(tap, name, getattr(tap.inner, name))

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def enter(self, ranges: Ranges) -> Passage:
        """A tap opens a transfer: the passage that it belongs to, or a new one."""
        if self.passage is None:
            self.passage = Passage(self.claimed or self.next_id(), ranges)
        return self.passage

    def sent(self, frame: bytes, packet_id: int) -> None:
        """The guest sent this frame; the port will see it next."""
        if self.has_port:
            self._sent.append((frame, packet_id))

    def id_of(self, frame: bytes) -> int:
        """The id of a frame that comes out of the port, and of no other one after that."""
        for position, (octets, packet_id) in enumerate(self._sent):
            if octets == frame:
                for _ in range(position + 1):
                    self._sent.popleft()
                return packet_id
        return self.next_id()


class CapturePort:
    """A Port that wraps one and keeps both directions."""

    TAPPED: Final = ("claim", "frames")

    def __init__(self, inner: Port, capture: Capture) -> None:
        self.inner = inner
        self.holds_claims: bool = getattr(inner, "holds_claims", False)
        self.unlabelled: bool = getattr(inner, "unlabelled", False)
        self._capture = capture
        if inner.offload:  # long sums need it: better now than between two frames
            import numpy  # noqa: F401

    @property
    def max_frame(self) -> int:
        return self.inner.max_frame

    @property
    def offload(self) -> bool:
        return self.inner.offload

    @property
    def is_down(self) -> bool:
        return getattr(self.inner, "is_down", False)

    @property
    def is_far(self) -> bool:
        return getattr(self.inner, "is_far", not self.inner.offload)

    @property
    def gso_tcp(self) -> bool:
        return getattr(self.inner, "gso_tcp", self.inner.offload)

    def claim(self, size: int, headers: Sequence[int] = ()) -> Claim | None:
        capture = self._capture
        packet_id = capture.claimed = capture.next_id()
        try:
            claim = self.inner.claim(size, headers)
        finally:
            capture.claimed = None
        return claim and CaptureClaim(claim, self, packet_id, headers)

    def frames(self) -> Iterator[Frame]:
        for frame in self.inner.frames():
            octets = bytes(frame.iov)
            self.keep(octets, frame.vnet, self._capture.id_of(octets), OUTBOUND)
            yield frame

    def fileno(self) -> int:
        return self.inner.fileno()

    def poll(self, now: float) -> float | None:
        return self.inner.poll(now)

    def belongs_to(self, capture: Capture) -> bool:
        """Is it a tap of this capture?"""
        return self._capture is capture

    def keep(
        self,
        octets: bytes,
        vnet: bytes,
        packet_id: int,
        direction: int,
        headers: Sequence[int] = (),
    ) -> None:
        """Write one frame, once as it is and once as the datagram that it carries."""
        if vnet[0] & _NEEDS_CSUM:
            octets = _with_checksum(octets, vnet)
        parts = parts_of(octets, headers)
        if octets[12:14] in _IP_ETHERTYPES and parts[1:]:
            inside = [part for part in parts[1:] if part[0] != "pad"]
            start = parts[0][1]
            datagram = octets[start : start + sum(length for _, length in inside)]
            self._write(IP, datagram, inside, packet_id, direction)
        self._write(ETHERNET, octets, parts, packet_id, direction)

    def _write(
        self,
        interface: Interface,
        octets: bytes,
        parts: Sequence[tuple[str, int]],
        packet_id: int,
        direction: int,
    ) -> None:
        vector = Vector(interface.name, False, place(parts, ((0, len(octets)),)))
        self._capture.writer.write(
            interface,
            (memoryview(octets),),
            comment=vector.emit(),
            direction=direction,
            packet_id=packet_id,
        )


class CaptureClaim:
    """A Claim that wraps one and keeps the frame when it is committed."""

    __slots__ = ("_headers", "_inner", "_packet_id", "_port", "iov")

    def __init__(
        self, inner: Claim, port: CapturePort, packet_id: int, headers: Sequence[int]
    ) -> None:
        self.iov = inner.iov
        self._inner = inner
        self._port = port
        self._packet_id = packet_id
        self._headers = headers

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        octets = bytes(self.iov.slice(0, size))
        self._port.keep(octets, vnet, self._packet_id, INBOUND, self._headers)
        self._inner.commit(size, vnet)

    def cancel(self) -> None:
        self._inner.cancel()

    def hold(self, withdraw: Callable[[], None]) -> CaptureClaim:
        """The claim that is wrapped is; only where the port says that it holds claims."""
        self._inner = cast(HoldableClaim, self._inner).hold(withdraw)
        return self


def _with_checksum(octets: bytes, vnet: bytes) -> bytes:
    """The frame with the checksum that its sender left to whoever puts it on a wire."""
    start, offset = struct.unpack_from("=HH", vnet, 6)
    if start + offset + 2 > len(octets):
        return octets
    field = checksum((memoryview(octets)[start:],)) or 0xFFFF
    at = start + offset
    return b"".join((octets[:at], field.to_bytes(2, "big"), octets[at + 2 :]))


class Passage(NamedTuple):
    """One transfer on its way down: whose it is, and the ranges that the outermost tap saw."""

    packet_id: int
    ranges: Ranges


class StageTap:
    """A DmaPath that wraps one and keeps the frames that pass."""

    TAPPED: Final = ("open",)

    def __init__(self, inner: DmaPath, stage: str, capture: Capture) -> None:
        self.inner = inner
        self.stage = stage
        self._capture = capture

    @property
    def epoch(self) -> object:
        """Of the path below: views of what is no frame may be kept while it stays the same."""
        return getattr(self.inner, "epoch", None)

    def open(self, transfer: Transfer) -> IoVec:
        if transfer.headers is None:
            return self.inner.open(transfer)
        ranges = tuple(transfer.ranges)  # in the space of this stage: the inner ones translate
        outer = self._capture.passage
        passage = self._capture.enter(ranges)
        try:
            views = self.inner.open(transfer)
        finally:
            self._capture.passage = outer
        sight = _Sight(self, transfer, passage, ranges, views)
        if transfer.direction is Direction.TO_DEVICE:
            sight.keep_sent()
        else:
            transfer.completions.append(sight.keep)
        return views

    def write(self, sight: _Sight, octets: bytes, size: int) -> None:
        """Keep a frame of `size` bytes, which lies in `octets` as this stage has it."""
        if sight.transfer.command:
            self._write_data(sight, octets)
            return
        outbound = sight.transfer.direction is Direction.TO_DEVICE
        exchanged = self.exchanges(sight.transfer)
        frame = from_words(octets, sight.passage.ranges, size) if exchanged else octets
        if outbound and self.stage == "virtio":
            self._capture.sent(frame, sight.passage.packet_id)
        if outbound and self.stage in _CHIPS:
            frame = octets = self._as_on_the_wire(frame, sight.passage.packet_id)
        fcs_len = FCS_LEN if has_fcs(frame) else 0
        parts = parts_of(frame, sight.transfer.headers or (), fcs_len=fcs_len)
        if exchanged:
            parts = in_words(parts, sight.passage.ranges)
        self._capture.writer.write(
            _interface(self.stage, exchanged),
            (memoryview(octets),),
            comment=Vector(self.stage, exchanged, place(parts, sight.ranges)).emit(),
            direction=OUTBOUND if outbound else INBOUND,
            packet_id=sight.passage.packet_id,
            fcs_len=fcs_len,
        )

    def _write_data(self, sight: _Sight, octets: bytes) -> None:
        """Keep bytes of a disk, with the command that moves them."""
        command = sight.transfer.command
        segments = place(((DATA, len(octets)),), sight.ranges)
        if segments:
            self._capture.writer.write(
                scsi.INTERFACES[self.stage],
                (memoryview(scsi.envelope(command)), memoryview(octets)),
                comment=Vector(self.stage, False, segments, command).emit(),
                direction=OUTBOUND if sight.transfer.direction is Direction.TO_DEVICE else INBOUND,
                packet_id=sight.passage.packet_id,
            )

    def exchanges(self, transfer: Transfer) -> bool:
        """Do the bytes lie in exchanged lanes where this tap looks?"""
        return transfer.lanes is Lanes.EXCHANGED and self.stage not in _CHIPS

    def _as_on_the_wire(self, frame: bytes, packet_id: int) -> bytes:
        """The guest's frame with the FCS that the chip puts behind it, unless it is there."""
        if has_fcs(frame):
            self._capture.sent(frame[:-FCS_LEN], packet_id)
            return frame
        self._capture.sent(frame, packet_id)
        return frame + zlib.crc32(frame).to_bytes(FCS_LEN, "little")


class _Sight(NamedTuple):
    """What a tap remembers of a transfer until the bytes are there."""

    tap: StageTap
    transfer: Transfer
    passage: Passage
    ranges: Ranges
    views: IoVec

    def keep(self, size: int) -> None:
        """The completion of a frame towards the guest."""
        room = size
        if self.tap.exchanges(self.transfer):
            room = word_len(self.passage.ranges, size)
        self.tap.write(self, bytes(self.views.slice(0, room)), size)

    def keep_sent(self) -> None:
        """A frame from the guest, all of it there."""
        self.tap.write(self, bytes(self.views), total_len(self.passage.ranges))
