"""The messages of vfio-user on its socket: docs/interop/vfio-user.rst in QEMU, version 0.0.

     0        2         4        8         12        16
    +--------+---------+--------+---------+---------+---------+
    |   id   | command |  size  |  flags  |  errno  | payload |   the host's byte order
    +--------+---------+--------+---------+---------+---------+

`size` counts the header. Flags: bits 3:0 the type (0 a command, 1 a reply), bit 4 no reply is
wanted, bit 5 an error, whose number is in `errno`. Descriptors travel beside a message.

What no client may send is `BadMessage`, and its connection is over; what it may ask for and cannot
have is an error reply (nic/vfio_user/server.py).

Does not do: what the messages mean, or the socket (nic/vfio_user/channel.py).
"""

from __future__ import annotations

import enum
import json
from struct import Struct
from typing import Any, Final, NamedTuple, Self

MAJOR: Final = 0
MINOR: Final = 0
MESSAGE_MAX: Final = 8192  # bytes, header included; the longest that is known is VERSION's
DATA_MAX: Final = 4096  # bytes of a register access; regions are no longer
FDS_MAX: Final = 16  # beside one message

HEADER: Final = Struct("=HHIII")
VERSION: Final = Struct("=HH")
DMA_MAP: Final = Struct("=IIQQQ")  # argsz, flags, offset, address, size
DMA_UNMAP: Final = Struct("=IIQQ")  # argsz, flags, address, size
DEVICE_INFO: Final = Struct("=IIII")  # argsz, flags, regions, interrupt types
REGION_INFO: Final = Struct("=IIIIQQ")  # argsz, flags, index, capabilities, size, offset
IRQ_INFO: Final = Struct("=IIII")  # argsz, flags, index, count
IRQ_SET: Final = Struct("=IIIII")  # argsz, flags, index, start, count
ACCESS: Final = Struct("=QII")  # offset, region, count
COUNT: Final = Struct("=Q")
POSTED: Final = Struct("=QII8s")  # one of REGION_WRITE_MULTI's

TYPE_MASK: Final = 0xF
COMMAND: Final = 0
REPLY: Final = 1
NO_REPLY: Final = 1 << 4
ERROR: Final = 1 << 5


class Command(enum.IntEnum):
    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    GET_REGION_INFO = 5
    GET_REGION_IO_FDS = 6
    GET_IRQ_INFO = 7
    SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15


class BadMessage(Exception):
    """The client broke the protocol. Says what it did, after "the machine"."""


class Header(NamedTuple):
    id: int
    command: int
    size: int  # bytes, of header and payload
    flags: int
    errno: int

    @classmethod
    def parse(cls, octets: memoryview) -> Self:
        header = cls(*HEADER.unpack_from(octets))
        if not HEADER.size <= header.size <= MESSAGE_MAX:
            raise BadMessage(f"sent a message of {header.size} bytes")
        if header.flags & TYPE_MASK != COMMAND:
            raise BadMessage(f"sent a message of type {header.flags & TYPE_MASK}, not a command")
        return header

    @property
    def wants_reply(self) -> bool:
        return not self.flags & NO_REPLY


class Message(NamedTuple):
    header: Header
    payload: bytes
    fds: list[int]  # whoever takes one removes it; the others are closed

    def fields(self, form: Struct, at: int = 0) -> tuple[Any, ...]:
        """The payload's fields, which must be there."""
        if len(self.payload) < at + form.size:
            raise BadMessage(
                f"sent command {self.header.command} with {len(self.payload)} bytes,"
                f" not {at + form.size}"
            )
        return form.unpack_from(self.payload, at)


def reply_to(header: Header, payload: bytes) -> bytes:
    size = HEADER.size + len(payload)
    return HEADER.pack(header.id, header.command, size, REPLY, 0) + payload


def error_to(header: Header, errno: int) -> bytes:
    """An error has no payload."""
    return HEADER.pack(header.id, header.command, HEADER.size, REPLY | ERROR, errno)


def capabilities_of(octets: bytes) -> dict[str, Any]:
    """What VERSION's JSON proposes; nothing where there is none."""
    text = octets.partition(b"\0")[0]
    if not text:
        return {}
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or nested to no end
        raise BadMessage("proposed capabilities that are no JSON") from None
    found = document.get("capabilities", {}) if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise BadMessage("proposed capabilities that are no object")
    return found


def emit_version(capabilities: dict[str, Any]) -> bytes:
    text = json.dumps({"capabilities": capabilities})
    return VERSION.pack(MAJOR, MINOR) + text.encode() + b"\0"
