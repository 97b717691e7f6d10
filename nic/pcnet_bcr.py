"""The Am79C970A's bus configuration registers: how the chip sits on its board.

Most of them set something that a model has no use for (bursts, latencies, media) and are kept for
whoever reads them back. What matters here:

    BCR2    LEDPE: BCR4 to BCR7 can be written; APROMWE: the address PROM can
    BCR4-7  one LED each: bits 9:0 choose signals, LEDOUT (15) is whether one of them is there
    BCR9    FDEN: full duplex
    BCR18   DWIO: the ports are doublewords apart; set by the first doubleword write, and only
            H_RESET takes it back
    BCR20   the software style (nic/pcnet_memory.py); SSIZE32 and CSRPCNET follow from it

Of the LED's signals only two last: the link is up (LNKST), and it is up in full duplex (FDLS). The
others are pulses of a frame's length, which nobody could see.

Does not do: the EEPROM behind BCR19, which is said to be there and valid: its content is what the
address PROM shows, and it cannot be clocked out.
"""

from __future__ import annotations

from typing import Final

from nic.pcnet_memory import STYLES, Style

BCR_MASK: Final = 0x7F
MC: Final = 2
LED0: Final = 4
LED3: Final = 7
FDC: Final = 9
BSBC: Final = 18
EECAS: Final = 19
SWS: Final = 20

LEDPE: Final = 1 << 12  # BCR2
APROMWE: Final = 1 << 8
LEDOUT: Final = 1 << 15  # BCR4 to BCR7
LEDPOL: Final = 1 << 14
FDLSE: Final = 1 << 8
LNKSTE: Final = 1 << 6
FDEN: Final = 1 << 0  # BCR9
DWIO: Final = 1 << 7  # BCR18
PREAD: Final = 1 << 14  # BCR19

_RESET: Final = {
    0: 0x0005,  # MSRDA, MSWRA: reserved, with these values
    1: 0x0005,
    MC: 0x0002,  # ASEL
    LED0: 0x00C0,  # LNKSTE, PSE
    5: 0x0084,  # RCVE, PSE
    6: 0x0088,  # RXPOLE, PSE
    LED3: 0x0090,  # XMTE, PSE
    BSBC: 0x9001,
    EECAS: 0xA002,  # PVALID, EEDET
    SWS: 0x0200,
    22: 0xFF06,  # MAX_LAT, MIN_GNT
}
_WRITABLE: Final = {
    MC: 0x590A,
    **dict.fromkeys(range(LED0, LED3 + 1), 0x7FFF & ~0x0C00),
    FDC: 0x0003,
    16: 0xFFE0,
    17: 0xFFFF,
    BSBC: 0xFFFF & ~(DWIO | 0x001F),
    EECAS: 0x0017,
    21: 0xFFFF,
    22: 0xFFFF,
}


class BusRegisters:
    """BCR0 to 127; those past 22 do not exist, and read as zero."""

    def __init__(self) -> None:
        self.file = [0] * (BCR_MASK + 1)
        self.is_link_up = True
        self.reset()

    def reset(self) -> None:
        """H_RESET. S_RESET and STOP leave all of this as it is."""
        for number in range(BCR_MASK + 1):
            self.file[number] = _RESET.get(number, 0)

    @property
    def style(self) -> Style:
        return STYLES[self.file[SWS] & 0xFF]

    @property
    def is_dwio(self) -> bool:
        return bool(self.file[BSBC] & DWIO)

    def set_dwio(self) -> None:
        self.file[BSBC] |= DWIO

    def read(self, number: int) -> int:
        value = self.file[number]
        if LED0 <= number <= LED3:
            return value | LEDOUT if self._is_lit(value) else value
        return value

    def write(self, number: int, value: int, is_open: bool) -> None:
        """`is_open`: the chip is stopped or suspended."""
        if number == SWS:
            if is_open:
                self._set_style(value)
            return
        if LED0 <= number <= LED3 and not self.file[MC] & LEDPE:
            return
        mask = _WRITABLE.get(number, 0)
        self.file[number] = self.file[number] & ~mask | value & mask

    def _set_style(self, value: int) -> None:
        """A style that does not exist is the LANCE's (Linux's driver asks for 4, at its end)."""
        number = value & 0xFF
        style = STYLES[number if number < len(STYLES) else 0]
        self.file[SWS] = value & 0x0400 | style.bits | style.number

    def _is_lit(self, led: int) -> bool:
        """Is there a signal that this LED shows?"""
        shown = led & LNKSTE or (led & FDLSE and self.file[FDC] & FDEN)
        return self.is_link_up and bool(shown)
