"""LEDMA: the Ethernet half of the sun4m DMA2 chip, between a LANCE's 24-bit bus and SBus DVMA.

Three jobs. It puts the top byte of E_BASE_ADDR in front of the LANCE's 24 address bits. It is the
LANCE's interrupt and reset wire, and tells the CPU of a memory error (ERR_PEND). And it is where
the exchange of byte lanes happens, for a LANCE whose CSR3.BSWP is 0.

A transfer with straight lanes passes through with its addresses changed and nothing else. The
LANCE counts in 24 bits: a range that passes the top of its window goes on at the bottom.

Exchanged lanes. The LANCE puts frame byte n of a buffer on the lane that memory holds at
(buffer + n) ^ 1. Seen from here: the byte for address x belongs at x ^ 1, whatever the range
begins or ends with. Of a word at an odd end only that one lane is written: the byte for an even
last address x is stored at x + 1, and what memory holds at x stays. x and x + 1 are in one word,
hence in one page and in one descriptor's memory; the next descriptor's bytes cannot meet it unless
its buffer shares the word, and then each has a lane of its own. Two ways to do it:

- In place (`mode="in-place"`, where every stretch of the transfer begins and ends even): the host
  fills guest memory straight, and the completion exchanges the words there. If the frame turns out
  to end odd, its last byte moves to its lane and the other lane gets back what the guest had
  there, which is why the memory's old content is noted when the transfer opens.
- Bounced (`mode="bounce"`, or an odd end): the host fills a buffer of ours; the completion
  exchanges its words and stores them, single lanes at odd ends.

In both, ranges that touch are merged before they are translated: header cuts mean nothing to lanes,
may be odd, and come back as cuts of the views. And in both, guest memory is translated when the
transfer opens, not when it completes: a fault is known before any byte is taken from the host.

Both leave every byte of guest memory the same. Towards the device the bytes are always bounced:
gathering must leave no trace in guest memory. `copied_bytes` counts the frames' bytes that went
through a bounce buffer.

A `DmaFault` from below sets ERR_PEND, its LANCE address can be read in E_TST_CSR, and it goes on up
to the LANCE, which makes MERR of it. ERR_PEND does not stop later transfers: MERR stops the LANCE.

RESET is a level. Its rising edge clears the error bits; the chip's `reset` runs at both edges, so
that nothing written to the chip while it was held survives; while it is set every transfer faults.
The other registers keep their values (as in QEMU; drivers reload E_BASE_ADDR anyway).

Differs from the chip in: no E-cache, so DRAINING reads 0, DRAIN and E_VLD do nothing, and burst
sizes and the write-back options are storage; no choice of twisted pair or AUI; E_TST_CSR holds only
the address of the last fault; ILACC is storage, the chip behind is a LANCE. Where a guest gives two
buffers of one frame the same words, in place exchanges them twice; a chip would store them twice.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, Literal, TypeAlias

from dma.iovec import Dvma, IoVec, LanceAddr, Range, Ranges, merge_ranges, total_len
from dma.lanes import exchange_lanes, word_buffer
from dma.transfer import Direction, DmaFault, DmaPath, Lanes, Transfer

Mode: TypeAlias = Literal["in-place", "bounce"]

# Register offsets in the LEDMA's own block of 16 bytes.
E_CSR: Final = 0x0
E_TST_CSR: Final = 0x4
E_VLD: Final = 0x8
E_BASE_ADDR: Final = 0xC

# E_CSR
INT_PEND: Final = 1 << 0  # read-only: the LANCE's INTR pin
ERR_PEND: Final = 1 << 1  # read-only: a memory error on DVMA
DRAINING: Final = 3 << 2  # read-only
INT_EN: Final = 1 << 4
INVALIDATE: Final = 1 << 5  # write 1: clear ERR_PEND, empty the cache; reads 0
SLAVE_ERR: Final = 1 << 6  # an access that was not 32 bits wide; write 1 to clear
RESET: Final = 1 << 7
DRAIN: Final = 1 << 10  # write 1; done at once, so it reads 0
DSBL_WR_DRN: Final = 1 << 11
DSBL_RD_DRN: Final = 1 << 12
ILACC: Final = 1 << 15
DSBL_BUF_WR: Final = 1 << 16
DSBL_WR_INVAL: Final = 1 << 17
BURST_SIZE: Final = 3 << 18
LOOP_TEST: Final = 1 << 21
TP_AUI: Final = 1 << 22
DEV_ID: Final = 0xA << 28  # bits 31:28

STORAGE: Final = (
    INT_EN
    | RESET
    | DSBL_WR_DRN
    | DSBL_RD_DRN
    | ILACC
    | DSBL_BUF_WR
    | DSBL_WR_INVAL
    | BURST_SIZE
    | LOOP_TEST
    | TP_AUI
)

LANCE_LIMIT: Final = 1 << 24  # bytes that the LANCE can address
LANCE_MASK: Final = LANCE_LIMIT - 1
BASE_MASK: Final = 0xFF000000
BASE_AT_POWER_ON: Final = 0xFF000000  # as sun4c had it: DVMA at the top

_EXCHANGED: Final = Lanes.EXCHANGED


class Ledma:
    """One LEDMA in front of `bus`; a DMA path for LANCE ranges.

    `interrupt` is told the level of the interrupt output each time it changes; `reset` is called
    to reset the chip.
    """

    def __init__(
        self,
        bus: DmaPath,
        mode: Mode = "in-place",
        interrupt: Callable[[bool], None] | None = None,
        reset: Callable[[], None] | None = None,
    ) -> None:
        if mode not in ("in-place", "bounce"):
            raise ValueError(f'mode {mode!r}: choose "in-place" or "bounce"')
        self.mode = mode
        self.interrupt = interrupt
        self.reset = reset
        self.copied_bytes = 0
        self._bus = bus
        self._asserted = False
        self._pin = False
        self.power_on()

    def power_on(self) -> None:
        """The machine's reset: every register at its first value. The chip is not reset."""
        self._stored = 0  # the bits of STORAGE, ERR_PEND and SLAVE_ERR
        self._base = BASE_AT_POWER_ON
        self._fault_addr = 0
        self._update_interrupt()

    # The CPU's side

    def read(self, offset: int, size: int = 4) -> int:
        """A register. The block repeats every 16 bytes; `size` other than 4 is a SLAVE_ERR."""
        if size != 4 or offset % 4:
            self._stored |= SLAVE_ERR
            return 0
        match offset & 0xC:
            case 0x0:
                return DEV_ID | self._stored | (INT_PEND if self._pin else 0)
            case 0x4:
                return self._fault_addr
            case 0xC:
                return self._base
        return 0

    def write(self, offset: int, value: int, size: int = 4) -> None:
        """A register; see read."""
        if size != 4 or offset % 4:
            self._stored |= SLAVE_ERR
        elif offset & 0xC == E_CSR:
            self._write_csr(value)
        elif offset & 0xC == E_BASE_ADDR:
            self._base = value & BASE_MASK

    def _write_csr(self, value: int) -> None:
        before = self._stored
        errors = before & (ERR_PEND | SLAVE_ERR)
        if value & INVALIDATE:
            errors &= ~ERR_PEND
        if value & SLAVE_ERR:
            errors &= ~SLAVE_ERR
        edge = (value ^ before) & RESET
        if edge & value:
            errors = 0
        self._stored = value & STORAGE | errors
        if edge and self.reset is not None:
            self.reset()
        self._update_interrupt()

    # The LANCE's side

    def device_interrupt(self, level: bool) -> None:
        """The level of the LANCE's INTR pin."""
        self._pin = level
        self._update_interrupt()

    def to_dvma(self, addr: LanceAddr) -> Dvma:
        """The LANCE's 24 address lines below the base register's top byte."""
        return Dvma(self._base | addr & LANCE_MASK)

    def open(self, transfer: Transfer) -> IoVec:
        """Translate LANCE ranges, arrange for exchanged lanes, and pass the transfer on."""
        if transfer.lanes is not _EXCHANGED:
            return self._pass_on(transfer)
        lengths = [length for _, length in transfer.ranges]
        transfer.ranges = merged = merge_ranges(transfer.ranges)
        if transfer.direction is Direction.TO_DEVICE:
            iov = self._gather(transfer)
        elif self.mode == "in-place" and _all_even(merged):
            iov = self._scatter_in_place(transfer)
        else:
            iov = self._scatter_bounced(transfer)
        return iov.cut(lengths)

    def _pass_on(self, transfer: Transfer) -> IoVec:
        """Change the addresses, open the bus; a fault sets ERR_PEND."""
        if self._stored & RESET:
            first, _ = next(iter(transfer.ranges), (0, 0))
            raise DmaFault("ledma", first, "held in reset")
        base = self._base
        ranges: list[Range] = []
        for addr, length in transfer.ranges:
            addr &= LANCE_MASK
            if addr + length <= LANCE_LIMIT:
                ranges.append((base | addr, length))
            else:
                ranges += ((base | part, size) for part, size in _wrapped(addr, length))
        transfer.ranges = ranges
        try:
            return self._bus.open(transfer)
        except DmaFault as fault:
            self._fault_addr = fault.addr & LANCE_MASK
            self._stored |= ERR_PEND
            self._update_interrupt()
            raise

    # Exchanged lanes

    def _scatter_in_place(self, transfer: Transfer) -> IoVec:
        iov = self._pass_on(transfer)
        transfer.completions.append(partial(exchange_scattered, iov.segments, bytes(iov)))
        return iov

    def _scatter_bounced(self, transfer: Transfer) -> IoVec:
        transfer.ranges, stretches = whole_words(transfer.ranges)
        guest = self._pass_on(transfer)
        words, room = word_buffer(bytes(len(guest)))
        transfer.completions.append(partial(self._store_exchanged, guest, stretches, words, room))
        return IoVec(tuple([room[start:stop] for start, stop in stretches]))

    def _store_exchanged(
        self,
        guest: IoVec,
        stretches: Sequence[tuple[int, int]],
        words: array[int],
        room: memoryview,
        size: int,
    ) -> None:
        """Completion: the first `size` bytes of the bounce buffer, lane by lane, to the guest."""
        self.copied_bytes += size
        words.byteswap()  # now byte i of `room` is what byte i of the guest's words is to be
        for start, stop in stretches:
            stop = min(stop, start + size)
            size -= stop - start
            for first, last in exchanged_pieces(start, stop):
                guest.slice(first, last).copy_from(room[first:last])

    def _gather(self, transfer: Transfer) -> IoVec:
        size = total_len(transfer.ranges)
        transfer.ranges, stretches = whole_words(transfer.ranges)
        words, room = word_buffer(bytes(self._pass_on(transfer)))
        words.byteswap()
        self.copied_bytes += size
        return IoVec(tuple([room[start:stop] for start, stop in stretches]))

    # Derived state

    def _update_interrupt(self) -> None:
        pending = self._pin or self._stored & ERR_PEND
        level = bool(self._stored & INT_EN and pending)
        if level != self._asserted:
            self._asserted = level
            if self.interrupt is not None:
                self.interrupt(level)


def _all_even(ranges: Ranges) -> bool:
    bits = 0
    for addr, length in ranges:
        bits |= addr | length
    return not bits & 1


def _wrapped(addr: int, length: int) -> Iterator[Range]:
    """A range cut wherever the LANCE's address counter passes from its top to 0."""
    while length > 0:
        size = min(length, LANCE_LIMIT - addr)
        yield addr, size
        addr, length = 0, length - size


def whole_words(ranges: Ranges) -> tuple[list[Range], list[tuple[int, int]]]:
    """The ranges widened to whole 16-bit words; and where, in a buffer of those words, the bytes
    [start, stop) of each lie."""
    widened: list[Range] = []
    stretches: list[tuple[int, int]] = []
    offset = 0
    for addr, length in ranges:
        start = offset + (addr & 1)
        stop = start + length
        end = (stop + 1) & ~1
        widened.append((addr & ~1, end - offset))
        stretches.append((start, stop))
        offset = end
    return widened, stretches


def exchanged_pieces(start: int, stop: int) -> list[tuple[int, int]]:
    """Where the bytes [start, stop) are once the lanes of their words are exchanged."""
    pieces: list[tuple[int, int]] = []
    if start < stop and start & 1:
        pieces.append((start - 1, start))
        start += 1
    if start < stop & ~1:
        pieces.append((start, stop & ~1))
    if start < stop and stop & 1:
        pieces.append((stop, stop + 1))
    return pieces


def exchange_scattered(views: tuple[memoryview, ...], before: bytes, size: int) -> None:
    """Completion: exchange the lanes of the first `size` bytes, which lie straight in `views`.

    `before` is what the views held when the transfer was opened. Each view is whole words.
    """
    offset = 0
    for view in views:
        length = len(view)
        if offset + length <= size:
            exchange_lanes(view)
        else:
            _exchange_part(view, before[offset : offset + length], size - offset)
            return
        offset += length


def _exchange_part(view: memoryview, before: bytes, came: int) -> None:
    even = came & ~1
    exchange_lanes(view[:even])
    if came & 1:
        view[came] = view[even]
        view[even] = before[even]
