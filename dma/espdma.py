"""ESPDMA: the SCSI half of the sun4m DMA2 chip, between an ESP's byte stream and SBus DVMA.

The ESP has no addresses: it asks for byte after byte (DREQ), and the channel supplies them from or
to D_ADDR, which advances. So a transfer comes in with offsets of the ESP's request and goes on with
DVMA addresses from D_ADDR on; its cuts stay. Only the low 24 bits of D_ADDR count, the top byte is
a latch, so a transfer that passes the top of its 16 MiB goes on at the bottom.

Before it opens a transfer, the ESP asks for `room(direction)`: how many bytes the channel would
move now. There is none while EN_DMA is off, no address is loaded, RESET or an error holds the
channel, or WRITE says the other direction. The ESP then waits, and `request()` tells it that
something has changed. Hence the order in which the ESP's command and EN_DMA come does not matter
(Linux sets EN_DMA first, NetBSD last).

Registers change when the bytes have come: the completion, pushed when the stage below has
answered, advances D_ADDR and counts D_BCNT down. A transfer on which software has meanwhile turned
its back (a new D_ADDR, RESET) no longer changes them.

With EN_CNT the channel moves D_BCNT bytes (0: 16 MiB) and then says TC. Chaining: with EN_NEXT,
D_BCNT and D_ADDR written while DMA_ON go to the next pair, in this order, and NA_LOADED says so; at
the end of the count the next pair is loaded, and without one A_LOADED and so DMA_ON go off until
software writes another address. One link of a chain is one transfer.

A `DmaFault` from below sets ERR_PEND and goes on up to the ESP, which moved nothing and waits. The
channel stays off until INVALIDATE or RESET. INT_PEND is the ESP's interrupt pin, or TC unless
TCI_DIS; the interrupt to the CPU is INT_EN with INT_PEND or ERR_PEND.

RESET is a level. Its rising edge clears errors, TC and what was loaded; the chip's `reset` runs at
both edges, so that nothing written to the chip while it was held survives.

Where the books at hand are silent (the DMA2 manual was not): TC is cleared by writing 1 to it and
by INVALIDATE, the next pair works as in the EBus DMA channel, which has the same register set
(Linux' ebus_dma.c writes count, then address, and refuses when NA_LOADED is set), and D_TST_CSR
reads the next address. INVALIDATE leaves what is loaded.

Differs from the chip in: no FIFO, as bytes go straight to memory, so DRAINING reads 0 and the
drain bits, burst sizes and clock choices are storage; no bit patterns of DIAG; a fault leaves no
byte moved, where the chip would have moved those up to the bad page.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from dma.iovec import Dvma, IoVec, Range, Ranges
from dma.transfer import Direction, DmaFault, DmaPath, Transfer

# Register offsets in the ESPDMA's own block of 16 bytes.
D_CSR: Final = 0x0
D_ADDR: Final = 0x4
D_BCNT: Final = 0x8
D_TST_CSR: Final = 0xC

# D_CSR
INT_PEND: Final = 1 << 0  # read-only: the ESP's interrupt pin, or TC
ERR_PEND: Final = 1 << 1  # read-only: a memory error on DVMA
DRAINING: Final = 3 << 2  # read-only
INT_EN: Final = 1 << 4
INVALIDATE: Final = 1 << 5  # write 1: clear ERR_PEND and TC; reads 0
SLAVE_ERR: Final = 1 << 6  # an access that was not 32 bits wide; write 1 to clear
RESET: Final = 1 << 7
WRITE: Final = 1 << 8  # to memory
EN_DMA: Final = 1 << 9
DRAIN: Final = 1 << 10  # write 1; done at once, so it reads 0
EN_CNT: Final = 1 << 13
TC: Final = 1 << 14  # D_BCNT ran out; write 1 to clear
DSBL_CSR_DRN: Final = 1 << 16
DSBL_SCSI_DRN: Final = 1 << 17
BURST_SIZE: Final = 3 << 18
DIAG: Final = 1 << 20
TWO_CYCLE: Final = 1 << 21
FASTER: Final = 1 << 22
TCI_DIS: Final = 1 << 23  # TC does not interrupt
EN_NEXT: Final = 1 << 24
DMA_ON: Final = 1 << 25  # read-only: DREQ would be answered
A_LOADED: Final = 1 << 26  # read-only
NA_LOADED: Final = 1 << 27  # read-only
DEV_ID: Final = 0xA << 28  # bits 31:28

STORAGE: Final = (
    INT_EN
    | RESET
    | WRITE
    | EN_DMA
    | EN_CNT
    | DSBL_CSR_DRN
    | DSBL_SCSI_DRN
    | BURST_SIZE
    | DIAG
    | TWO_CYCLE
    | FASTER
    | TCI_DIS
    | EN_NEXT
)
EVENTS: Final = ERR_PEND | SLAVE_ERR | TC | A_LOADED | NA_LOADED

ADDRESS_SPACE: Final = 1 << 24  # bytes that D_ADDR counts through
ADDRESS_MASK: Final = ADDRESS_SPACE - 1
COUNT_MASK: Final = (1 << 24) - 1  # D_BCNT has 24 bits

_FROM_DEVICE: Final = Direction.FROM_DEVICE


class Espdma:
    """One ESPDMA in front of `bus`; a DMA path for offsets of the ESP's request.

    `interrupt` is told the level of the interrupt output each time it changes; `reset` is called
    to reset the chip, `request` when there may be room that was not there before.
    """

    def __init__(
        self,
        bus: DmaPath,
        interrupt: Callable[[bool], None] | None = None,
        reset: Callable[[], None] | None = None,
        request: Callable[[], None] | None = None,
    ) -> None:
        self.interrupt = interrupt
        self.reset = reset
        self.request = request
        self._bus = bus
        self._asserted = False
        self._pin = False
        self.power_on()

    def power_on(self) -> None:
        """The machine's reset: every register at its first value. The chip is not reset."""
        self._stored = 0  # the bits of STORAGE and EVENTS
        self._addr = self._next_addr = 0
        self._count = self._next_count = 0
        self._active: Transfer | None = None  # whose bytes will move D_ADDR
        self._update_interrupt()

    # The CPU's side

    def read(self, offset: int, size: int = 4) -> int:
        """A register. The block repeats every 16 bytes; `size` other than 4 is a SLAVE_ERR."""
        if size != 4 or offset % 4:
            self._stored |= SLAVE_ERR
            return 0
        match offset & 0xC:
            case 0x0:
                pending = INT_PEND if self._is_pending() else 0
                return DEV_ID | self._stored | pending | (DMA_ON if self._is_on() else 0)
            case 0x4:
                return self._addr
            case 0x8:
                return self._count
        return self._next_addr

    def write(self, offset: int, value: int, size: int = 4) -> None:
        """A register; see read."""
        value &= 0xFFFFFFFF
        if size != 4 or offset % 4:
            self._stored |= SLAVE_ERR
        elif offset & 0xC == D_CSR:
            self._write_csr(value)
        elif offset & 0xC == D_ADDR:
            self._write_addr(value)
        elif offset & 0xC == D_BCNT:
            if self._is_chaining():
                self._next_count = value & COUNT_MASK
            else:
                self._count = value & COUNT_MASK

    def _write_csr(self, value: int) -> None:
        before = self._stored
        events = before & EVENTS & ~(value & (SLAVE_ERR | TC))
        if value & INVALIDATE:
            events &= ~(ERR_PEND | TC)
        edge = (value ^ before) & RESET
        if edge & value:
            events = 0
            self._active = None
        self._stored = value & STORAGE | events
        if edge and self.reset is not None:
            self.reset()
        self._update_interrupt()
        self._tell_if_on()

    def _write_addr(self, value: int) -> None:
        if self._is_chaining():
            self._next_addr = value
            self._stored |= NA_LOADED
        else:
            self._addr = value
            self._stored |= A_LOADED
            self._active = None
            self._tell_if_on()

    # The ESP's side

    def device_interrupt(self, level: bool) -> None:
        """The level of the ESP's interrupt pin."""
        self._pin = level
        self._update_interrupt()

    def room(self, direction: Direction) -> int:
        """How many bytes the channel would move this way now; 0: wait for `request`."""
        is_scatter = direction is _FROM_DEVICE
        if not self._is_on() or bool(self._stored & WRITE) is not is_scatter:
            return 0
        return (self._count or ADDRESS_SPACE) if self._stored & EN_CNT else ADDRESS_SPACE

    def to_dvma(self, offset: int) -> Dvma:
        """`offset` bytes from D_ADDR on, in its 24 bits below its top byte."""
        return Dvma(self._addr & ~ADDRESS_MASK | (self._addr + offset) & ADDRESS_MASK)

    def open(self, transfer: Transfer) -> IoVec:
        """Put the ESP's bytes at D_ADDR, and pass the transfer on; a fault sets ERR_PEND."""
        if not self._is_on():
            raise DmaFault("espdma", self._addr, "the channel is off")
        transfer.ranges = self._at_address(transfer.ranges)
        try:
            iov = self._bus.open(transfer)
        except DmaFault:
            self._stored |= ERR_PEND
            self._update_interrupt()
            raise
        self._active = transfer
        transfer.completions.append(partial(self._advance, transfer))
        return iov

    def _at_address(self, ranges: Ranges) -> list[Range]:
        out: list[Range] = []
        offset = 0
        for _, length in ranges:
            while length > 0:
                addr = self.to_dvma(offset)
                size = min(length, ADDRESS_SPACE - (addr & ADDRESS_MASK))
                out.append((addr, size))
                offset += size
                length -= size
        return out

    def _advance(self, transfer: Transfer, size: int) -> None:
        """Completion: the registers follow the bytes that really came."""
        if self._active is not transfer:
            return
        self._active = None
        self._addr = self.to_dvma(size)
        if self._stored & EN_CNT and size:
            self._count = (self._count - size) & COUNT_MASK
            if not self._count:
                self._end_of_count()

    def _end_of_count(self) -> None:
        self._stored |= TC
        if self._stored & EN_NEXT and self._stored & NA_LOADED:
            self._addr, self._count = self._next_addr, self._next_count
            self._stored &= ~NA_LOADED
        else:
            self._stored &= ~A_LOADED
        self._update_interrupt()

    # Derived state

    def _is_on(self) -> bool:
        """EN_DMA with an address, and nothing that holds the channel."""
        return self._stored & (EN_DMA | A_LOADED | RESET | ERR_PEND) == EN_DMA | A_LOADED

    def _is_chaining(self) -> bool:
        return bool(self._stored & EN_NEXT) and self._is_on()

    def _is_pending(self) -> bool:
        return self._pin or self._stored & (TC | TCI_DIS) == TC

    def _tell_if_on(self) -> None:
        if self._is_on() and self.request is not None:
            self.request()

    def _update_interrupt(self) -> None:
        pending = self._is_pending() or self._stored & ERR_PEND
        level = bool(self._stored & INT_EN and pending)
        if level != self._asserted:
            self._asserted = level
            if self.interrupt is not None:
                self.interrupt(level)
