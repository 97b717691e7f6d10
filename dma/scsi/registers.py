"""The ESP's registers: names, access rules, FIFO, counter, derived bits, interrupt pin.

Sixteen registers of one byte; some are one thing to read and another to write. The count is
written to a latch, and a command with the DMA bit loads the counter from it, which clears TC; 0
means 65,536, or 16 Mi when CONFIG2.FENAB makes the third byte count. TC says that the counter has
come down to zero, until it is loaded again (a driver reads it after INTERRUPT too).

Reading INTERRUPT clears it, the sequence step and the error bits of STATUS, and takes the pin down.
So a handler reads STATUS and the step first. `raise_interrupt` adds bits to those that are pending:
none is lost. INT in STATUS and the pin follow INTERRUPT; `_update` is their one author.

Register E reads the chip's id from a reset until it is written (or the counter's third byte, with
FENAB). Id 4 is what the driver of Linux calls a FAS100A.

Plain ints, like the LANCE's (nic/csr.py). `read` and `write` are the storage; what a write of the
command register and a read of INTERRUPT start is the chip's business (dma/scsi/esp.py).

Does not do: parity and test bits, which are stored and mean nothing; synchronous transfer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

# Registers, read or written
TCLOW: Final = 0x0
TCMID: Final = 0x1
FIFO: Final = 0x2
COMMAND: Final = 0x3
STATUS: Final = 0x4  # read
BUS_ID: Final = 0x4  # write
INTERRUPT: Final = 0x5  # read
TIMEOUT: Final = 0x5  # write
STEP: Final = 0x6  # read
SYNC_PERIOD: Final = 0x6  # write
FIFO_FLAGS: Final = 0x7  # read
SYNC_OFFSET: Final = 0x7  # write
CONFIG1: Final = 0x8
CLOCK: Final = 0x9  # write
TEST: Final = 0xA  # write
CONFIG2: Final = 0xB
CONFIG3: Final = 0xC
TCHIGH: Final = 0xE  # or the chip's id

# STATUS
INT: Final = 1 << 7
GROSS_ERROR: Final = 1 << 6
PARITY_ERROR: Final = 1 << 5
TC: Final = 1 << 4
PHASE: Final = 7

# INTERRUPT
SCSI_RESET: Final = 1 << 7
ILLEGAL: Final = 1 << 6
DISCONNECTED: Final = 1 << 5
BUS_SERVICE: Final = 1 << 4
FUNCTION_COMPLETE: Final = 1 << 3

CONFIG1_ID: Final = 7
CONFIG1_NO_RESET_INTERRUPT: Final = 1 << 6
CONFIG2_FENAB: Final = 1 << 6

DMA: Final = 1 << 7  # of a command

FIFO_LEN: Final = 16  # bytes
CHIP_ID: Final = 0x04

Interrupt = Callable[[bool], None]


def _ignore(level: bool) -> None:
    pass


class EspRegisters:
    """What the chip keeps, with the rules above."""

    __slots__ = (
        "_interrupt",
        "_is_id_visible",
        "_latch",
        "_line",
        "_written",
        "bus_id",
        "command",
        "config1",
        "counter",
        "errors",
        "fifo",
        "pending",
        "step",
        "tc",
    )

    def __init__(self, interrupt: Interrupt | None = None) -> None:
        self._interrupt: Interrupt = interrupt or _ignore
        self._line = False
        self.pending = 0
        self.config1 = 0
        self.reset()

    def reset(self) -> None:
        """Chip reset: everything but the id of the initiator."""
        self.fifo = bytearray()
        self.counter = 0
        self.command = 0
        self.bus_id = 0
        self.step = 0
        self.tc = False
        self.errors = 0
        self.config1 &= CONFIG1_ID
        self.pending = 0
        self._latch = bytearray(3)
        self._is_id_visible = True
        self._written: dict[int, int] = {}  # what is stored and read back
        self._update()

    def read(self, offset: int, phase: int) -> int:
        """A register, with `phase` on the lines of the bus; nothing changes but by FIFO."""
        match offset:
            case 0x0 | 0x1:
                return self.counter >> 8 * offset & 0xFF
            case 0x2:
                return self.fifo.pop(0) if self.fifo else 0
            case 0x3:
                return self.command
            case 0x4:
                line = INT if self.pending else 0
                return line | self.errors | (TC if self.tc else 0) | phase
            case 0x5:
                return self.pending
            case 0x6:
                return self.step
            case 0x7:
                return self.step << 5 | len(self.fifo)
            case 0x8:
                return self.config1
            case 0xE:
                return CHIP_ID if self._is_id_visible else self.counter >> 16 & 0xFF
        return self._written.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """A register; COMMAND is only stored."""
        match offset:
            case 0x0 | 0x1:
                self._latch[offset] = value
            case 0x2:
                self.push(bytes((value,)))
            case 0x3:
                self.command = value
            case 0x4:
                self.bus_id = value & 7
            case 0x8:
                self.config1 = value
            case 0xB | 0xC:
                self._written[offset] = value
            case 0xE:
                self._latch[2] = value
                self._is_id_visible = False

    def push(self, octets: bytes) -> None:
        """Into the FIFO; what does not fit is a gross error."""
        room = FIFO_LEN - len(self.fifo)
        self.fifo += octets[:room]
        if len(octets) > room:
            self.errors |= GROSS_ERROR

    def load_counter(self) -> None:
        """A command with the DMA bit."""
        is_long = self._written.get(CONFIG2, 0) & CONFIG2_FENAB
        size = 3 if is_long else 2
        self.counter = int.from_bytes(self._latch[:size], "little") or 1 << 8 * size
        self.tc = False

    def count_down(self, size: int) -> None:
        self.counter = max(0, self.counter - size)
        self.tc = not self.counter

    def raise_interrupt(self, bits: int, step: int = 0) -> None:
        self.pending |= bits
        self.step = step
        self._update()

    def acknowledge(self) -> None:
        """INTERRUPT was read."""
        self.pending = 0
        self.step = 0
        self.errors = 0
        self._update()

    def _update(self) -> None:
        line = bool(self.pending)
        if line != self._line:
            self._line = line
            self._interrupt(line)
