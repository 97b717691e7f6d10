"""The Am79C970A's control and status registers: 128 of them behind RAP, the LANCE's four first.

CSR0 is the Am7990's. What is new there: an event is masked by its bit of CSR3, CSR4 and CSR5 have
events of their own, STOP leaves CSR3 as it is, and INEA can be written at any time. `_update` is
still the one author of ERR, INTR and the pin.

CSR1, CSR2 and most of the others can be written only while the chip is stopped or suspended
(CSR5.SPND); until then a write has no effect. CSR3 to CSR5 can always be written. In CSR4 and
CSR5 the events are written 1 to clear, like CSR0's, which driver code relies on when it writes back
what it has read.

CSR8 to CSR15 are the multicast filter, the address and MODE: INIT fills them from memory, and a
driver that has suspended the chip changes them.

Where reset values come from: QEMU's model and the drivers agree upon those of CSR4, 80, 88, 89 and
100; lengths (CSR76, 78) are two's complement and no reset changes them by AMD's data sheet (19436,
page 135). Not verified: CSR59, which the ISA members of the family have as the identity of an
interrupt register, 0105h. The page of this chip's could not be had, QEMU has that value in CSR103,
and no driver is known to read either.

Does not do: BCR20's alias CSR58 (nic/pcnet.py); counters and pointers of the chip's insides, which
read as what was last written.
"""

from __future__ import annotations

from typing import Final

from nic import csr
from nic.csr import Interrupt, Registers
from nic.pcnet_memory import LTINT

RAP_MASK: Final = 0x7F

# CSR3
BABLM: Final = 1 << 14
DXSUFLO: Final = 1 << 6
_CSR3_WRITABLE: Final = 0x5F7C

# CSR4
TXDPOLL: Final = 1 << 12
APAD_XMT: Final = 1 << 11
MFCO: Final = 1 << 9
UINTCMD: Final = 1 << 7
UINT: Final = 1 << 6
TXSTRT: Final = 1 << 3
_CSR4_EVENTS: Final = 0x026A  # MFCO, UINT, RCVCCO, TXSTRT, JAB
_CSR4_PLAIN: Final = 0xFD15
_CSR4_MASKS: Final = 0x0115  # each one bit below its event; set: masked
CSR4_RESET: Final = 0x0115

# CSR5
TOKINTD: Final = 1 << 15
LTINTEN: Final = 1 << 14
SINT: Final = 1 << 11
SPND: Final = 1 << 0
_CSR5_EVENTS: Final = 0x0A90  # SINT, SLPINT, EXDINT, MPINT
_CSR5_PLAIN: Final = 0xC56F
_CSR5_ENABLES: Final = 0x0048  # EXDINTE, MPINTE: each one bit below its event; set: enabled
_CSR5_SYSTEM: Final = 0x0500  # SINTE, SLPINTE: these ask nobody, INEA included

LADRF: Final = 8  # and the next three
PADR: Final = 12  # and the next two
MODE: Final = 15
RX_BASE: Final = 24  # low, and high in the next
TX_BASE: Final = 30
RX_LEN: Final = 76  # two's complement of the ring's length
TX_LEN: Final = 78
CHIP_ID: Final = 88  # low, and high in the next
MISSED: Final = 112  # frames

PART_LOW: Final = 0x1003  # Am79C970A: version 0, part 2621h, AMD
PART_HIGH: Final = 0x0262
_READ_ONLY: Final = frozenset({6, 7, 59, 88, 89, 94, 114})
_ALIASES: Final = {16: 1, 17: 2}
_RESET: Final = {4: CSR4_RESET, 59: 0x0105, 80: 0x1410, 100: 0x0200} | {
    CHIP_ID: PART_LOW,
    CHIP_ID + 1: PART_HIGH,
}
_S_RESET: Final = (3, 5, MODE, 80, 100, MISSED, 114, 122, 124)  # and CSR4


class PcnetRegisters(Registers):
    """CSR0 to 127 and RAP."""

    __slots__ = ("csr4", "csr5", "file")

    def __init__(self, interrupt: Interrupt | None = None) -> None:
        super().__init__(interrupt)
        self.csr4 = CSR4_RESET
        self.csr5 = 0
        self.file = [0] * (RAP_MASK + 1)  # 6 and up; those below have names
        for number, value in _RESET.items():
            self.file[number] = value

    @property
    def init_block_addr(self) -> int:
        """IADR: 32 bits, even."""
        return self.csr2 << 16 | self.csr1

    @property
    def is_open(self) -> bool:
        """Stopped or suspended: most registers can be written."""
        return bool(self.csr0 & csr.STOP or self.csr5 & SPND)

    def address(self, number: int) -> int:
        """Two registers as one address, the low half first."""
        return self.file[number + 1] << 16 | self.file[number]

    def set_address(self, number: int, value: int) -> None:
        self.file[number], self.file[number + 1] = value & 0xFFFF, value >> 16

    def count(self, number: int) -> int:
        """A ring's length, 1 to 65,536."""
        return -self.file[number] & 0xFFFF or 0x10000

    def set_count(self, number: int, entries: int) -> None:
        self.file[number] = -entries & 0xFFFF

    # Resets

    def reset(self) -> None:
        """S_RESET: what a read of the RESET port does."""
        self.rap = 0
        self.csr3 = 0
        for number in _S_RESET:
            self.file[number] = _RESET.get(number, 0)
        self.csr4 = CSR4_RESET
        self.csr5 = 0
        self.stop()

    def stop(self) -> None:
        """STOP: CSR0 as after RESET; the events of CSR4 and CSR5, and SPND, go too."""
        self.csr0 = csr.STOP
        self.csr4 &= ~_CSR4_EVENTS
        self.csr5 &= ~(_CSR5_EVENTS | SPND)
        self._update()

    # Access

    def read(self) -> int:
        return self.read_csr(self.rap)

    def read_csr(self, number: int) -> int:
        number = _ALIASES.get(number, number)
        if number < 6:
            return (self.csr0, self.csr1, self.csr2, self.csr3, self.csr4, self.csr5)[number]
        return self.file[number]

    def write_csr(self, number: int, value: int) -> None:
        """A write of any but CSR0."""
        number = _ALIASES.get(number, number)
        if number == 3:
            self.csr3 = value & _CSR3_WRITABLE
        elif number == 4:
            self.csr4 = self.csr4 & _CSR4_EVENTS & ~value | value & _CSR4_PLAIN
            if value & UINTCMD:
                self.csr4 |= UINT
        elif number == 5:
            self.csr5 = self.csr5 & _CSR5_EVENTS & ~value | value & _CSR5_PLAIN
        elif number == 0 or number in _READ_ONLY or not self.is_open:
            return
        elif number == 1:
            self.csr1 = value & 0xFFFE
        elif number == 2:
            self.csr2 = value
        else:
            self.file[number] = value
        self._update()

    def write_csr0(self, value: int) -> int:
        commands = super().write_csr0(value)
        if value & csr.INEA and not commands & csr.STOP:
            self.csr0 |= csr.INEA
            self._update()
        return commands

    # Events

    def raise_status(self, bits: int) -> None:
        if bits & csr.MISS:
            self.file[MISSED] = self.file[MISSED] + 1 & 0xFFFF
            if not self.file[MISSED]:
                self.csr4 |= MFCO
        super().raise_status(bits)

    def raise_system(self) -> None:
        """SINT: the bus has refused a cycle."""
        self.csr5 |= SINT
        self._update()

    def frame_sent(self, status: int, tmd3: int, babble: bool) -> None:
        """TINT, unless the driver wants to hear of errors only, or of the frames that it marks."""
        csr5 = self.csr5
        self.csr4 |= TXSTRT
        is_silent = not status & LTINT if csr5 & LTINTEN else bool(csr5 & TOKINTD)
        bits = csr.BABL if babble else 0
        if tmd3 or not is_silent:
            bits |= csr.TINT
        self.raise_status(bits)

    def _update(self) -> None:
        csr0 = self.csr0 & ~(csr.ERR | csr.INTR)
        if csr0 & csr.ERR_CAUSES:
            csr0 |= csr.ERR
        csr4, csr5 = self.csr4, self.csr5
        is_system = csr5 >> 1 & csr5 & _CSR5_SYSTEM
        if (
            csr0 & csr.INTR_CAUSES & ~self.csr3
            or csr4 >> 1 & ~csr4 & _CSR4_MASKS
            or csr4 & UINT
            or csr5 >> 1 & csr5 & _CSR5_ENABLES
            or is_system
        ):
            csr0 |= csr.INTR
        self.csr0 = csr0
        line = csr0 & (csr.INTR | csr.INEA) == csr.INTR | csr.INEA or bool(is_system)
        if line != self._line:
            self._set_line(line)
