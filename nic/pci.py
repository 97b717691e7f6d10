"""A PCI function's configuration space: 256 bytes, some of which can be written.

A byte has a mask of the bits that a write changes, and one of the bits that a write of ones clears.
That is all the mechanism there is: a base address register is sized by writing ones to it, and
shows zeros where its mask has none (PCI 2.1 §6.2.5.1).

`ConfigSpace.build` makes the first 64 bytes, which every function has. Registers are little-endian.

Does not do: capabilities, expansion ROMs, bridges; deciding what an address decodes to.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Self

CONFIG_LEN: Final = 256  # bytes

# Offsets
VENDOR: Final = 0x00
DEVICE: Final = 0x02
COMMAND: Final = 0x04
STATUS: Final = 0x06
REVISION: Final = 0x08
CLASS: Final = 0x09
LATENCY: Final = 0x0D
BAR0: Final = 0x10
SUBSYSTEM: Final = 0x2C
INTERRUPT_LINE: Final = 0x3C
INTERRUPT_PIN: Final = 0x3D
MIN_GNT: Final = 0x3E

# Command
IO_ENABLE: Final = 1 << 0
MEMORY_ENABLE: Final = 1 << 1
MASTER_ENABLE: Final = 1 << 2

# Status
MASTER_ABORT: Final = 1 << 13

IO_SPACE: Final = 1  # bit 0 of a base address register


class Bar(NamedTuple):
    """One base address register."""

    size: int  # bytes, a power of two
    is_io: bool


class Identity(NamedTuple):
    """What a function says of itself."""

    vendor: int
    device: int
    class_code: int  # 24 bits
    revision: int
    subsystem: int  # 32 bits: device and vendor
    status: int  # what it can do
    min_gnt: int  # and MAX_LAT above
    command_writable: int
    status_clearable: int


class ConfigSpace:
    """What the function shows, and what of it can be written."""

    def __init__(self) -> None:
        self._octets = bytearray(CONFIG_LEN)
        self._writable = bytearray(CONFIG_LEN)
        self._clearable = bytearray(CONFIG_LEN)

    @classmethod
    def build(cls, identity: Identity, bars: tuple[Bar, ...]) -> Self:
        space = cls()
        space.put(VENDOR, 2, identity.vendor)
        space.put(DEVICE, 2, identity.device)
        space.put(COMMAND, 2, 0, writable=identity.command_writable)
        space.put(STATUS, 2, identity.status, clearable=identity.status_clearable)
        space.put(REVISION, 1, identity.revision)
        space.put(CLASS, 3, identity.class_code)
        space.put(LATENCY, 1, 0, writable=0xFF)
        for index, bar in enumerate(bars):
            mask = -bar.size & 0xFFFFFFFF
            space.put(BAR0 + 4 * index, 4, IO_SPACE if bar.is_io else 0, writable=mask)
        space.put(SUBSYSTEM, 4, identity.subsystem)
        space.put(INTERRUPT_LINE, 1, 0, writable=0xFF)
        space.put(INTERRUPT_PIN, 1, 1)  # INTA#
        space.put(MIN_GNT, 2, identity.min_gnt)
        return space

    def put(
        self, offset: int, size: int, value: int, *, writable: int = 0, clearable: int = 0
    ) -> None:
        """The function's own hand: no mask applies."""
        for octets, number in (
            (self._octets, value),
            (self._writable, writable),
            (self._clearable, clearable),
        ):
            octets[offset : offset + size] = number.to_bytes(size, "little")

    def reset(self) -> None:
        """RST#: what can be written is zero again."""
        for at in range(CONFIG_LEN):
            self._octets[at] &= ~(self._writable[at] | self._clearable[at]) & 0xFF

    def set_bits(self, offset: int, bits: int) -> None:
        """Raise bits of a 16-bit register."""
        value = self.word(offset) | bits
        self._octets[offset : offset + 2] = value.to_bytes(2, "little")

    def word(self, offset: int) -> int:
        return int.from_bytes(self._octets[offset : offset + 2], "little")

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._octets[offset : offset + size])

    def put_all(self, octets: bytes) -> None:
        """As `read(0, CONFIG_LEN)` told it, in another process."""
        if len(octets) != CONFIG_LEN:
            raise ValueError(f"a configuration space of {len(octets)} bytes")
        self._octets[:] = octets

    def write(self, offset: int, data: bytes) -> None:
        """The host's hand."""
        for at, octet in enumerate(data, offset):
            old, writable = self._octets[at], self._writable[at]
            kept = old & ~writable & ~(octet & self._clearable[at])
            self._octets[at] = kept | octet & writable
