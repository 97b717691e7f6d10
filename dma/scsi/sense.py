"""Sense data: why the last command ended in CHECK CONDITION, in the fixed format of SCSI-2 §8.2.14.

Does not do: deferred errors, field pointers, vendor bytes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

SENSE_LEN: Final = 18  # bytes
_VALID: Final = 0x80
_CURRENT: Final = 0x70  # error code: this command, fixed format


class Sense(NamedTuple):
    """Sense key, additional sense code and qualifier; the block, where one is to blame."""

    key: int
    asc: int = 0
    ascq: int = 0
    information: int | None = None

    def at(self, block: int) -> Sense:
        return self._replace(information=block & 0xFFFFFFFF)

    def emit(self) -> bytes:
        valid = 0 if self.information is None else _VALID
        information = (self.information or 0).to_bytes(4, "big")
        head = bytes((valid | _CURRENT, 0, self.key)) + information + bytes((SENSE_LEN - 8,))
        return head + bytes(4) + bytes((self.asc, self.ascq)) + bytes(4)


NO_SENSE: Final = Sense(0x0)
NOT_READY_STOPPED: Final = Sense(0x2, 0x04, 0x02)  # initializing command required
NO_MEDIUM: Final = Sense(0x2, 0x3A)
UNRECOVERED_READ: Final = Sense(0x3, 0x11)
WRITE_FAILED: Final = Sense(0x3, 0x0C, 0x02)  # write error, reallocation failed
INVALID_OPCODE: Final = Sense(0x5, 0x20)
LBA_OUT_OF_RANGE: Final = Sense(0x5, 0x21)
INVALID_FIELD: Final = Sense(0x5, 0x24)
LUN_NOT_SUPPORTED: Final = Sense(0x5, 0x25)
NOT_SAVED: Final = Sense(0x5, 0x39)  # saving parameters not supported
POWER_ON_OR_RESET: Final = Sense(0x6, 0x29)  # unit attention
WRITE_PROTECTED: Final = Sense(0x7, 0x27)
MISCOMPARE: Final = Sense(0xE, 0x1D)
