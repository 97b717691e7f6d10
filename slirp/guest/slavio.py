"""SLAVIO, as far as the guest needs it: a serial line to write to, and a counter to read time from.

The serial line is channel A of a Z8530 whose transmitter is always ready. What is written comes out
as lines of text. The counter is a processor counter in its user-timer setting: 64 bits, counting
500 ns in bit 9; reading the upper word latches the lower one, so that a double-word load is
consistent.

Differs from the chip in: the serial line does not receive, and its registers but the data are
fixed; the counter cannot be set, stopped, or made to interrupt; nothing else of SLAVIO is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

SERIAL_CONTROL: Final = 4  # channel A; channel B is at 0 and 2
SERIAL_DATA: Final = 6
RR0_TX_EMPTY: Final = 0x04
LINE_MAX: Final = 4096  # characters; a longer line comes out in pieces

COUNTER_UPPER: Final = 0
COUNTER_LOWER: Final = 4
TICKS_PER_SECOND: Final = 2_000_000
TICK_SHIFT: Final = 9


class SerialLine:
    """Console output, line by line."""

    def __init__(self, write_line: Callable[[str], None] | None) -> None:
        self._write_line = write_line
        self._pending = bytearray()

    def read(self, offset: int, size: int) -> int:
        return RR0_TX_EMPTY if offset == SERIAL_CONTROL else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset != SERIAL_DATA:
            return
        octet = value & 0xFF
        if octet == 0x0A or len(self._pending) >= LINE_MAX:
            self.flush()
        if octet not in (0x0A, 0x0D):
            self._pending.append(octet)

    def flush(self) -> None:
        line = self._pending.decode("utf-8", "replace")
        self._pending.clear()
        if self._write_line is not None:
            self._write_line(line)

    def close(self) -> None:
        """A last line may have no end."""
        if self._pending:
            self.flush()


class Counter:
    """Time since power on. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_at = clock()
        self._lower = 0

    def read(self, offset: int, size: int) -> int:
        if offset == COUNTER_UPPER:
            count = int((self._clock() - self._started_at) * TICKS_PER_SECOND) << TICK_SHIFT
            self._lower = count & 0xFFFFFFFF
            return count >> 32
        return self._lower if offset == COUNTER_LOWER else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Limits and modes: nothing that the guest could see."""
