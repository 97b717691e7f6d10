"""The Am7990's control and status registers: names, access rules, derived bits, interrupt pin.

Two 16-bit ports lead to four registers: RAP chooses one, RDP reads or writes it. CSR0 commands and
reports; CSR1 and CSR2 hold the address of the init block; CSR3 says how bytes lie on the bus.
CSR1..3 can be written only while STOP is set; until then a write has no effect. A read never has
one, and it answers what is stored (the datasheet leaves reads of CSR1..3 undefined while STOP=0).

Bits of CSR0 come in four kinds: written 1 to clear (the events), written 1 to set (INIT, STRT,
STOP, TDMD: only STOP takes them back), plain (INEA), and read-only. ERR and INTR are derived:
`_update` is their one author, and that of the pin, which is INTR while INEA is set.

Plain ints, not an IntFlag: CSR0 changes on each frame, and an IntFlag's `|` costs a microsecond.

Does not do: what the commands ask for. `write_csr0` returns the commands that take effect and the
chip (nic/lance.py) obeys them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

RDP: Final = 0  # offsets of the ports
RAP: Final = 2

# CSR0
ERR: Final = 1 << 15
BABL: Final = 1 << 14
CERR: Final = 1 << 13
MISS: Final = 1 << 12
MERR: Final = 1 << 11
RINT: Final = 1 << 10
TINT: Final = 1 << 9
IDON: Final = 1 << 8
INTR: Final = 1 << 7
INEA: Final = 1 << 6
RXON: Final = 1 << 5
TXON: Final = 1 << 4
TDMD: Final = 1 << 3
STOP: Final = 1 << 2
STRT: Final = 1 << 1
INIT: Final = 1 << 0

WRITE_1_TO_CLEAR: Final = BABL | CERR | MISS | MERR | RINT | TINT | IDON
ERR_CAUSES: Final = BABL | CERR | MISS | MERR
INTR_CAUSES: Final = BABL | MISS | MERR | RINT | TINT | IDON  # not CERR

# CSR3
BSWP: Final = 1 << 2
ACON: Final = 1 << 1
BCON: Final = 1 << 0

Interrupt = Callable[[bool], None]


def _ignore(level: bool) -> None:
    pass


class Registers:
    """CSR0..3 and RAP."""

    __slots__ = ("_interrupt", "_line", "csr0", "csr1", "csr2", "csr3", "rap")

    def __init__(self, interrupt: Interrupt | None = None) -> None:
        self._interrupt: Interrupt = interrupt or _ignore
        self._line = False
        self.rap = 0
        self.csr0 = STOP
        self.csr1 = 0
        self.csr2 = 0
        self.csr3 = 0

    @property
    def init_block_addr(self) -> int:
        """IADR: 24 bits, even."""
        return (self.csr2 & 0xFF) << 16 | self.csr1

    def reset(self) -> None:
        """The RESET pin: as STOP, and RAP is cleared."""
        self.rap = 0
        self.stop()

    def stop(self) -> None:
        """STOP clears every other bit of CSR0, and CSR3; CSR1 and CSR2 keep their values."""
        self.csr0 = STOP
        self.csr3 = 0
        self._update()

    def read(self) -> int:
        """What RDP shows."""
        return (self.csr0, self.csr1, self.csr2, self.csr3)[self.rap]

    def write_address(self, value: int) -> None:
        """A write of CSR1..3, whichever RAP selects (it is not 0); without effect while STOP is 0.

        The reserved high byte of CSR2 is stored: the NMOS LANCE does, and a diagnostic wants it.
        """
        if not self.csr0 & STOP:
            return
        if self.rap == 1:
            self.csr1 = value & 0xFFFE
        elif self.rap == 2:
            self.csr2 = value
        else:
            self.csr3 = value & (BSWP | ACON | BCON)

    def write_csr0(self, value: int) -> int:
        """A write of CSR0. Returns those of STOP, INIT, STRT and TDMD that take effect.

        Am7990 datasheet, CSR0: STOP must be set before STRT, and INIT clears STOP. Both cannot
        hold. Drivers set STRT after INIT and IDON: the drivers win.
        """
        if value & STOP:
            self.stop()
            return STOP
        commands = value & (INIT | STRT) & ~self.csr0
        csr0 = self.csr0 & ~(value & WRITE_1_TO_CLEAR) & ~INEA | commands
        if commands:
            csr0 &= ~STOP
        if not csr0 & STOP:
            csr0 |= value & INEA
        if value & TDMD and csr0 & TXON:
            csr0 |= TDMD
            commands |= TDMD
        self.csr0 = csr0
        self._update()
        return commands

    def raise_status(self, bits: int) -> None:
        """Set events (or RXON, TXON)."""
        self.csr0 |= bits
        self._update()

    def frame_sent(self, status: int, tmd3: int, babble: bool) -> None:
        """A frame's descriptors are given back: the last one's status as it was, and its errors."""
        self.raise_status(TINT | BABL if babble else TINT)

    def clear(self, bits: int) -> None:
        """Clear read-only bits that the chip itself takes back: RXON, TXON, TDMD."""
        self.csr0 &= ~bits

    def _update(self) -> None:
        csr0 = self.csr0 & ~(ERR | INTR)
        if csr0 & ERR_CAUSES:
            csr0 |= ERR
        if csr0 & INTR_CAUSES:
            csr0 |= INTR
        self.csr0 = csr0
        line = csr0 & (INTR | INEA) == INTR | INEA
        if line != self._line:
            self._set_line(line)

    @property
    def line(self) -> bool:
        """The pin."""
        return self._line

    @line.setter
    def line(self, level: bool) -> None:
        """As it was in another process: nobody is told."""
        self._line = level

    def _set_line(self, line: bool) -> None:
        self._line = line
        self._interrupt(line)
