"""The sun4m IOMMU: DVMA addresses of SBus masters become physical addresses, page by page.

One transfer: each of its ranges is looked up page by page in the IOTLB; a page that is not there is
read from the table of IOPTEs in guest memory (BASE + 4 · index within the window) and remembered.
Pages that follow each other in physical memory as well stay one range, so a range leaves as several
only where guest memory makes it so; ranges of different origin are never joined, since their cuts
mean something to the device. Then the transfer goes on to memory.

The IOTLB is what software believes it is: nothing but TLBFLUSH, PGFLUSH or replacement drops an
entry. A driver that changes an IOPTE and forgets to flush gets the old page, as on the machine; a
change of CTRL or BASE drops nothing either. Invalid IOPTEs are never remembered. Replacement is
crude: at IOTLB_ENTRIES the whole of it is dropped, which the hardware may do entry by entry.

A fault is all or nothing. Every page of a transfer is looked up before a single view is handed out,
so a fault in the middle leaves no byte moved, no completion pushed and no range changed: only
AFSR, AFAR and the interrupt tell of it (and the pages looked up before it are in the IOTLB). The
machine would have moved the bytes up to the bad page; since no driver may believe in them after a
memory error, nobody misses them. The first fault since AFSR was last written stays in AFSR and
AFAR, later ones add ME. The same fault goes to the master as a `DmaFault` with the DVMA address,
because hardware answers the master with an error acknowledge.

Where the books are silent or disagree:
- Real AFSR/AFAR belong to the CPU's buffered writes; QEMU logs DVMA faults there with LE. We do as
  QEMU does, and use TO where a translation ends outside RAM (nobody acknowledged).
- DVMA outside the window, or with ENAB clear, is a fault. (QEMU ignores ENAB and lets such an
  address alias into the table.)
- IOPTE bits that must be zero are not looked at, nor is CACHE: there are no caches here.

Differs from the chip in: no CPU writes pass through, so only DVMA faults are logged; arbitration,
slot configuration and parity registers are storage without effect; no timing; the table walk reads
all 36 bits of BASE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dma.iovec import Dvma, IoVec, Range, Ranges
from dma.transfer import Direction, DmaFault, DmaPath, Transfer

# Register offsets; all are 32 bits wide.
CTRL: Final = 0x0000
BASE: Final = 0x0004  # PA[35:14] of the table in bits 31:10
TLBFLUSH: Final = 0x0014
PGFLUSH: Final = 0x0018
AFSR: Final = 0x1000
AFAR: Final = 0x1004
AER: Final = 0x1008
SBCFG: Final = (0x1010, 0x1014, 0x1018, 0x101C)
MFSR: Final = 0x1020
MFAR: Final = 0x1024
ARBEN: Final = 0x2000
MASK_ID: Final = 0x3018

CTRL_ENAB: Final = 1 << 0
CTRL_DE: Final = 1 << 1  # diagnostic enable
CTRL_RNGE: Final = 7 << 2  # window of 16 MiB << RNGE at the top of the 32-bit space
CTRL_ID: Final = 0xFF << 24  # implementation, version; read-only

AFSR_ERR: Final = 1 << 31
AFSR_LE: Final = 1 << 30  # late error
AFSR_TO: Final = 1 << 29  # timeout
AFSR_BE: Final = 1 << 28  # bus error acknowledge
AFSR_ME: Final = 1 << 19  # more errors came after the one described
AFSR_RD: Final = 1 << 18  # it was a read
AFSR_FAV: Final = 1 << 17  # AFAR is valid
AFSR_RESV: Final = 8 << 20  # bits 23:20 always read 8

IOPTE_WRITE: Final = 1 << 2
IOPTE_VALID: Final = 1 << 1
IOPTE_PPN: Final = 0xFFFFFF00  # PA[35:12]

PAGE_LEN: Final = 4096  # bytes
PAGE_MASK: Final = PAGE_LEN - 1
PAGE_SHIFT: Final = 12
DVMA_LIMIT: Final = 1 << 32
IOTLB_ENTRIES: Final = 4096  # 16 MiB of DVMA; beyond, the IOTLB starts afresh

# What software can change in each register; the rest of a register is fixed (see _FIXED).
_WRITABLE: Final = {
    CTRL: CTRL_RNGE | CTRL_DE | CTRL_ENAB,
    BASE: 0xFFFFFC00,
    AFSR: 0xFF0FFFFF,
    AFAR: 0xFFFFFFFF,
    AER: 0x801F000E,  # asynchronous writes, F, slots 3-0, CPUs 3-1
    **dict.fromkeys(SBCFG, 0x00010007),  # SAB30, BA16, BA8, BYPASS
    ARBEN: 0x001F0000,
}
_FIXED: Final = {
    AFSR: AFSR_RESV,
    AER: 0x00000001,  # CPU 0 always arbitrates
    ARBEN: 0x00000008,  # module id
    MFSR: 0,
    MFAR: 0,
}

_FROM_DEVICE: Final = Direction.FROM_DEVICE


class Iommu:
    """One IOMMU in front of `memory`; a DMA path for DVMA ranges.

    `interrupt` is told the level of the interrupt line each time it changes.
    """

    def __init__(
        self,
        memory: DmaPath,
        version: int = 0x05000000,
        interrupt: Callable[[bool], None] | None = None,
        mask_id: int = 0x26000000,
    ) -> None:
        self.interrupt = interrupt
        self._memory = memory
        self._fixed = {**_FIXED, CTRL: version & CTRL_ID, MASK_ID: mask_id}
        self._asserted = False
        # Page number → what to add to a DVMA address to get the physical one. `_readable` has every
        # entry of the IOTLB, `_writable` those whose IOPTE had WRITE when it was read.
        self._readable: dict[int, int] = {}
        self._writable: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """Power-on: registers, IOTLB and interrupt line."""
        self._registers = dict.fromkeys(_WRITABLE, 0) | self._fixed
        self._apply_ctrl()
        self._readable.clear()
        self._writable.clear()
        self._set_interrupt(False)

    # The CPU's side

    def read(self, offset: int) -> int:
        """A register; 0 where there is none."""
        if offset in (AFSR, AFAR):
            self._set_interrupt(False)
        return self._registers.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """A register; nothing where there is none."""
        if offset == TLBFLUSH:
            self._readable.clear()
            self._writable.clear()
        elif offset == PGFLUSH:
            page = (value & 0xFFFFFFFF) >> PAGE_SHIFT
            self._readable.pop(page, None)
            self._writable.pop(page, None)
        elif offset in _WRITABLE:
            self._registers[offset] = value & _WRITABLE[offset] | self._fixed.get(offset, 0)
            if offset == CTRL:
                self._apply_ctrl()
            elif offset in (AFSR, AFAR):
                self._set_interrupt(False)

    # The SBus side

    def open(self, transfer: Transfer) -> IoVec:
        """Translate DVMA ranges and pass the transfer on to memory."""
        dvma_ranges = transfer.ranges
        direction = transfer.direction
        known = self._writable if direction is _FROM_DEVICE else self._readable
        if not self._enabled:
            known = {}
        ranges: list[Range] = []
        for addr, length in dvma_ranges:
            step = known.get(addr >> PAGE_SHIFT)
            if step is not None and (addr & PAGE_MASK) + length <= PAGE_LEN:
                ranges.append((addr + step, length))
            else:
                ranges += self.translate(Dvma(addr), length, direction)
        transfer.ranges = ranges
        try:
            return self._memory.open(transfer)
        except DmaFault as fault:
            transfer.ranges = dvma_ranges
            addr = self._dvma_of(fault.addr, dvma_ranges, direction)
            raise self._fault(addr, direction, AFSR_TO, f"no RAM at {fault.addr:#x}") from fault

    def translate(self, addr: Dvma, length: int, direction: Direction) -> list[Range]:
        """Physical ranges of [addr, addr + length) in order; rights are checked page by page."""
        ranges: list[Range] = []
        position, stop = int(addr), addr + length
        phys = size = 0  # the range being grown
        while position < stop:
            here = position + self._step(position, direction)
            page_end = (position | PAGE_MASK) + 1
            piece = min(stop, page_end) - position
            if here == phys + size:
                size += piece
            else:
                if size:
                    ranges.append((phys, size))
                phys, size = here, piece
            position += piece
        if size:
            ranges.append((phys, size))
        return ranges

    def _step(self, addr: int, direction: Direction) -> int:
        """What to add to `addr`, from the IOTLB or the table. Raises DmaFault."""
        if not self._enabled:
            raise self._fault(addr, direction, AFSR_LE, "translation is off")
        if not self._window_start <= addr < DVMA_LIMIT:
            raise self._fault(addr, direction, AFSR_LE, "outside the window")
        page = addr >> PAGE_SHIFT
        if page not in self._readable:
            self._load(page, addr, direction)
        known = self._writable if direction is _FROM_DEVICE else self._readable
        if page not in known:
            raise self._fault(addr, direction, AFSR_LE, "read-only page")
        return known[page]

    def _load(self, page: int, addr: int, direction: Direction) -> None:
        """Read the page's IOPTE into the IOTLB."""
        index = page - (self._window_start >> PAGE_SHIFT)
        entry = (self._registers[BASE] << 4) + 4 * index
        walk = Transfer(Direction.TO_DEVICE, ((entry, 4),))
        try:
            iopte = int.from_bytes(bytes(self._memory.open(walk)), "big")
        except DmaFault as fault:
            raise self._fault(addr, direction, AFSR_TO, f"no RAM at {entry:#x}") from fault
        if not iopte & IOPTE_VALID:
            raise self._fault(addr, direction, AFSR_LE, "invalid page")
        if len(self._readable) >= IOTLB_ENTRIES:
            self._readable.clear()
            self._writable.clear()
        step = ((iopte & IOPTE_PPN) << 4) - (page << PAGE_SHIFT)
        self._readable[page] = step
        if iopte & IOPTE_WRITE:
            self._writable[page] = step

    def _dvma_of(self, phys: int, dvma_ranges: Ranges, direction: Direction) -> int:
        """Which DVMA address of these became `phys`; the first one, if memory blames another."""
        for addr, length in dvma_ranges:
            for start, size in self.translate(Dvma(addr), length, direction):
                if start <= phys < start + size:
                    return addr + phys - start
                addr += size
        return dvma_ranges[0][0]

    def _fault(self, addr: int, direction: Direction, cause: int, reason: str) -> DmaFault:
        """Latch AFSR and AFAR, raise the interrupt; the exception for the master."""
        registers = self._registers
        if registers[AFSR] & AFSR_ERR:
            registers[AFSR] |= AFSR_ME
        else:
            read = 0 if direction is _FROM_DEVICE else AFSR_RD
            registers[AFSR] = AFSR_ERR | cause | AFSR_RESV | read | AFSR_FAV
            registers[AFAR] = addr & 0xFFFFF000
        self._set_interrupt(True)
        return DmaFault("iommu", addr, reason)

    # Derived state

    def _apply_ctrl(self) -> None:
        ctrl = self._registers[CTRL]
        self._enabled = bool(ctrl & CTRL_ENAB)
        self._window_start = DVMA_LIMIT - (16 << 20 << ((ctrl & CTRL_RNGE) >> 2))

    def _set_interrupt(self, level: bool) -> None:
        if level != self._asserted:
            self._asserted = level
            if self.interrupt is not None:
                self.interrupt(level)
