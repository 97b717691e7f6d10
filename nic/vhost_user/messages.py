"""The messages of vhost-user on its socket: docs/interop/vhost-user.rst in QEMU.

     0         4         8        12
    +---------+---------+---------+------------------+
    | request |  flags  |  size   | payload          |   the host's byte order
    +---------+---------+---------+------------------+

Flags: bits 0 and 1 the version, 1; bit 2 a reply; bit 3 a reply is wanted (where REPLY_ACK was
agreed upon, and the request has none of its own): zero for success. Descriptors travel beside a
message's first byte, at most eight. The socket is nic/vhost_user/channel.py.

A payload that is shorter than its request's is `BadMessage`, as is everything else that no
front-end may send; a longer one is cut, as front-ends send room for more than there is.

Does not do: what the messages mean (nic/vhost_user/backend.py).
"""

from __future__ import annotations

import enum
from struct import Struct
from typing import Final, NamedTuple, Self

VERSION: Final = 1
VERSION_MASK: Final = 3
REPLY: Final = 4
NEED_REPLY: Final = 8
PAYLOAD_MAX: Final = 4096  # bytes; the longest that is known has 268
FDS_MAX: Final = 8
REGIONS_MAX: Final = 8  # in one message

HEADER: Final = Struct("=III")
U64: Final = Struct("=Q")
STATE: Final = Struct("=II")  # index, number
ADDRESS: Final = Struct("=IIQQQQ")  # index, flags, descriptors, used, available, log
REGION: Final = Struct("=QQQQ")
LOG: Final = Struct("=QQ")  # size, offset
INFLIGHT: Final = Struct("=QQHH")  # size, offset, queues, queue size
CONFIG: Final = Struct("=III")  # offset, size, flags; then so many bytes
CONFIG_MAX: Final = 256  # bytes of a configuration space

INDEX_MASK: Final = 0xFF  # of the u64 of SET_VRING_KICK, CALL, ERR
NO_FD: Final = 0x100
VRING_F_LOG: Final = 1  # flags of SET_VRING_ADDR


class Request(enum.IntEnum):
    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    NET_SET_MTU = 20
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BadMessage(Exception):
    """The front-end sent something that none may send."""


class Header(NamedTuple):
    request: int
    flags: int
    size: int  # bytes of payload

    @classmethod
    def parse(cls, data: bytes) -> Self:
        header = cls(*HEADER.unpack(data))
        if header.flags & VERSION_MASK != VERSION or header.flags & REPLY:
            raise BadMessage(f"sent a message with flags {header.flags:#x}")
        if header.size > PAYLOAD_MAX:
            raise BadMessage(f"sent a message of {header.size} bytes")
        return header


class Message:
    """A request. Descriptors that nobody takes are closed by whoever received it."""

    __slots__ = ("fds", "header", "payload")

    def __init__(self, header: Header, payload: bytes, fds: list[int]) -> None:
        self.header = header
        self.payload = payload
        self.fds = fds

    def fields(self, layout: Struct, offset: int = 0) -> tuple[int, ...]:
        """The payload from `offset` on."""
        if len(self.payload) < offset + layout.size:
            raise BadMessage(f"sent request {self.header.request} with {len(self.payload)} bytes")
        return layout.unpack_from(self.payload, offset)

    def number(self) -> int:
        """A payload that is one number of 64 bits."""
        return self.fields(U64)[0]

    def take_fd(self) -> int:
        """The next descriptor, whose owner is now the caller."""
        if not self.fds:
            raise BadMessage(f"sent request {self.header.request} without its descriptor")
        return self.fds.pop(0)


class MemoryRegion(NamedTuple):
    """Part of a file that is guest RAM."""

    start: int  # guest physical address
    size: int  # bytes
    user_start: int  # the same place in the front-end's address space
    offset: int  # in the file


def reply(request: int, payload: bytes) -> bytes:
    """The answer to a request."""
    return HEADER.pack(request, VERSION | REPLY, len(payload)) + payload
