"""The Am7990's transmitter: frames are views of guest memory until they are released.

`next_frame` looks at the descriptor where the chip waits. Owned and STP: the buffers up to ENP
become one transfer, the bus answers with host views, and that is the frame. Nothing is written
until the frame is released; then the queue completes it, in the ring's order whatever the order of
releases: each descriptor gets OWN=0, the last one its errors (TMD3 first), then TINT once.

Owned but not STP is a leftover (of a frame that was cut short, or of a confused guest): it is
given back with TINT. A chain whose next descriptor is not owned is an underflow: BUFF and UFLO in
the last that there was, nothing sent, the transmitter off until the next INIT. A frame of more
than 1,518 bytes is BABL and goes out all the same, up to where a transceiver's jabber timer cuts
the line.

Later chips of the family do more for a frame, or less, as its descriptors say: `TxRules`.

With DTCR=0 the chip makes the FCS; no byte of it ever lies in memory, and nobody behind the port
asks, so it is not computed. With DTCR=1 the last four bytes are the guest's FCS: taken off, and
the frame dropped where they are wrong, as any receiver would.

Bounds: a descriptor is looked at only once until it was given back, so a frame has at most 128
buffers and `next_frame` skips at most 128 leftovers. Where a ring can be longer (nic/pcnet.py) a
chain of more than BUFFERS_MAX buffers is taken for one without an end.

Does not do: TDMD or the polling interval (nic/lance.py), collisions, or anything that takes time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from dma.iovec import IoVec, total_len
from dma.transfer import CompletionQueue, Direction, Lanes, Transfer
from nic import csr
from nic.busmaster import BusMaster, fold
from nic.csr import Registers
from nic.filter import FCS_LEN, FCS_RESIDUE, crc_of
from nic.port import Frame
from nic.ring import ENP, ERR, STP, TMD3_BUFF, TMD3_UFLO, Descriptor, DescriptorRing

WIRE_MAX: Final = 1518  # bytes with FCS; one more is babble
JABBER: Final = (
    25_000  # bytes: 20 ms at 10 Mbit/s, the least that IEEE 802.3 lets a jabber timer run
)

BUFFERS_MAX: Final = 512  # of one frame
PAD_TO: Final = 60  # bytes without FCS
_KEPT: Final = STP | ENP  # what stays of the guest's status byte


class TxRules(NamedTuple):
    """What is done with each frame. The defaults are the Am7990's; the bits are of its status."""

    has_fcs: bool  # MODE.DTCR: the guest's frames end with it
    pads: bool = False  # frames of less than 60 bytes are made as long
    makes_fcs: int = 0  # in the first descriptor: make the FCS all the same
    no_fcs: int = 0  # in the last: do not make it
    kept: int = _KEPT  # what stays in a descriptor that is given back
    survives_underflow: bool = False
    error: int = 0  # TMD3 of every frame: it is not sent


class TxFrame(Frame):
    """A frame of the guest's; `release()` lets it have its buffers back."""

    __slots__ = ("_transmitter", "buffers", "has_fcs", "is_held", "length", "tmd3", "transfer")

    def __init__(
        self, transmitter: Transmitter, buffers: list[Descriptor], transfer: Transfer
    ) -> None:
        super().__init__(IoVec())
        self._transmitter = transmitter
        self.buffers = buffers
        self.transfer = transfer
        self.length = 0  # bytes fetched from memory
        self.has_fcs = False  # the guest's, at the end
        self.tmd3 = 0  # errors, for the last descriptor
        self.is_held = True
        transfer.completions.append(self.give_back)

    def release(self) -> None:
        if self.is_held:
            self.is_held = False
            self._transmitter.finish(self)

    def give_back(self, _size: int) -> None:
        self._transmitter.give_back(self)


class Transmitter:
    """What INIT makes of the init block's transmit half; a new INIT makes a new one."""

    def __init__(
        self,
        ring: DescriptorRing,
        lanes: Lanes,
        rules: TxRules,
        master: BusMaster,
        registers: Registers,
        stats: dict[str, int],
    ) -> None:
        self.queue = CompletionQueue()
        self.use(rules)
        self._ring = ring
        self._lanes = lanes
        self._master = master
        self._registers = registers
        self._stats = stats
        self._position = 0  # of the descriptor to look at next
        self._given_back = 0  # of the oldest descriptor in use
        self._is_halted = False
        self._has_underflowed = False
        self.left = 1 << 62  # descriptors that next_frame() may still use: see nic/engine.py

    def use(self, rules: TxRules) -> None:
        """These hold from the next frame on."""
        self._rules = rules
        self._kept = rules.kept
        self._is_plain = not (rules.has_fcs or rules.no_fcs or rules.pads or rules.error)

    def halt(self) -> None:
        """STOP or a memory error: frames that are out may be released, without effect."""
        self._is_halted = True
        self.queue.clear()

    def settle(self) -> dict[str, int]:
        """Give back what was sent; from where another process may go on.

        Frames that are still out are sent again.
        """
        self.queue.run(self.queue.pending)
        return {
            "position": self._given_back,
            "is_halted": self._is_halted,
            "has_underflowed": self._has_underflowed,
        }

    def go_on(self, values: Mapping[str, Any]) -> None:
        """From there."""
        self._position = self._given_back = int(values["position"])
        self._is_halted = bool(values["is_halted"])
        self._has_underflowed = bool(values["has_underflowed"])

    def is_waiting(self) -> bool:
        """Whether the descriptor where the chip waits is owned: what polling looks at."""
        return self._can_look() and self._ring.load(self._position) is not None

    def next_frame(self) -> TxFrame | None:
        """The next good frame; None when the chip would wait, or nothing is `left`."""
        while self._can_look() and self.left > 0:
            tmd = self._ring.load(self._position)
            if tmd is None:
                return None
            if not tmd.status & STP:
                self._use(TxFrame(self, [tmd], _nothing())).release()
                continue
            frame = self._gather(tmd)
            if frame is None or self._is_sendable(frame):
                return frame
            frame.release()
        return None

    def finish(self, frame: TxFrame) -> None:
        if not self._is_halted:
            self.queue.finish(frame.transfer, frame.length)

    def give_back(self, frame: TxFrame) -> None:
        """The completion: status words in the ring's order, then the interrupt."""
        kept = self._kept
        for tmd in frame.buffers[:-1]:
            tmd.store(tmd.status & kept)
        last = frame.buffers[-1]
        if frame.tmd3:
            last.store(last.status & kept | ERR, frame.tmd3)
        else:
            last.store(last.status & kept)
        self._given_back += len(frame.buffers)
        if frame.tmd3 & TMD3_UFLO and not self._rules.survives_underflow:
            self._registers.clear(csr.TXON)
        babble = frame.length + (0 if frame.has_fcs else FCS_LEN) > WIRE_MAX
        if babble:
            self._stats["tx_babl"] += 1
        self._registers.frame_sent(last.status, frame.tmd3, babble)

    def _can_look(self) -> bool:
        """On, and the ring not wholly in use by frames that are still out."""
        return (
            self._position < self._given_back + self._ring.entries
            and not self._has_underflowed
            and not self._is_halted
            and bool(self._registers.csr0 & csr.TXON)
        )

    def _gather(self, tmd: Descriptor) -> TxFrame | None:
        """The frame that begins here. None after a memory error, or when its chain has no end."""
        buffers = [tmd]
        if not tmd.status & ENP:
            stop = min(self._given_back + self._ring.entries, self._position + BUFFERS_MAX)
            for following in self._ring.walk(self._position + 1, stop):
                buffers.append(following)
                if following.status & ENP:
                    break
            else:  # not owned, or in use already
                if self._registers.csr0 & csr.TXON:
                    self._underflow(buffers)
                return None
        ranges = fold([(tmd.addr, tmd.length) for tmd in buffers], self._master.space)
        transfer = Transfer(Direction.TO_DEVICE, ranges, self._lanes, ())
        frame = TxFrame(self, buffers, transfer)
        views = self._master.open(transfer)
        if views is None:
            return None
        frame.iov = views
        frame.length = total_len(ranges)
        if not self._is_plain:
            frame.has_fcs = self._has_fcs(buffers)
        return self._use(frame)

    def _has_fcs(self, buffers: list[Descriptor]) -> bool:
        """Do these end with an FCS of the guest's?"""
        rules = self._rules
        if rules.has_fcs:
            return not buffers[0].status & rules.makes_fcs
        return bool(buffers[-1].status & rules.no_fcs)

    def _underflow(self, buffers: list[Descriptor]) -> None:
        frame = self._use(TxFrame(self, buffers, _nothing()))
        frame.tmd3 = TMD3_BUFF | TMD3_UFLO
        frame.release()
        self._has_underflowed = not self._rules.survives_underflow
        self._stats["tx_underflow"] += 1

    def _use(self, frame: TxFrame) -> TxFrame:
        """The frame's descriptors are in use, and it has its place in the order of completions."""
        self._position += len(frame.buffers)
        self.left -= len(frame.buffers)
        self.queue.start(frame.transfer)
        return frame

    def _is_sendable(self, frame: TxFrame) -> bool:
        """Count the frame; whether it gets anywhere."""
        if not self._is_plain and not self._dress(frame):
            return False
        if frame.length > JABBER:
            self._stats["tx_jabber"] += 1
            return False
        self._stats["tx_frames"] += 1
        self._stats["tx_octets"] += len(frame.iov)
        return True

    def _dress(self, frame: TxFrame) -> bool:
        """Take the guest's FCS off, pad; False: it does not get anywhere."""
        rules = self._rules
        if rules.error:
            frame.tmd3 = rules.error
            return False
        if frame.has_fcs:
            if crc_of(frame.iov.segments) != FCS_RESIDUE:
                self._stats["tx_bad_fcs"] += 1
                return False
            frame.iov = frame.iov.slice(0, frame.length - FCS_LEN)
        if rules.pads and len(frame.iov) < PAD_TO:
            frame.iov += IoVec.of(bytes(PAD_TO - len(frame.iov)))
        return True


def _nothing() -> Transfer:
    """A place in the queue for descriptors that are given back without their buffers."""
    return Transfer(Direction.TO_DEVICE, ())
