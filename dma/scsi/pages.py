"""What a disk says of itself: INQUIRY data, capacity, mode pages (SCSI-2 §8.2.5, §9.2.7, §9.3.3).

The geometry is invented, as every disk's is by now: 16 heads and 63 sectors, and as many cylinders
as hold the blocks.

Does not do: vital product data, pages that software can change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BLOCK_LEN: Final = 512  # bytes

DIRECT_ACCESS: Final = 0x00  # INQUIRY byte 0: connected, a disk
NO_SUCH_UNIT: Final = 0x7F  # never was, no type
VENDOR: Final = b"SLIRP   "
PRODUCT: Final = b"IMAGE DISK      "
REVISION: Final = b"0100"

ALL_PAGES: Final = 0x3F
WRITE_PROTECT: Final = 0x80  # device-specific parameter of the mode header
DPO_FUA: Final = 0x10

HEADS: Final = 16
SECTORS: Final = 63  # per track
ROTATION_RATE: Final = 5400  # per minute
CYLINDERS_MAX: Final = 0xFFFFFF


def inquiry(lun: int) -> bytes:
    first = NO_SUCH_UNIT if lun else DIRECT_ACCESS
    # not removable, SCSI-2, response format 2, 31 more bytes, no option
    head = bytes((first, 0, 2, 2, 31, 0, 0, 0))
    return head + VENDOR + PRODUCT + REVISION


def capacity(blocks: int) -> bytes:
    return (blocks - 1).to_bytes(4, "big") + BLOCK_LEN.to_bytes(4, "big")


def mode_sense(page: int, blocks: int, *, read_only: bool, brief: bool, changeable: bool) -> bytes:
    """MODE SENSE(6): header, block descriptor unless `brief`, pages; empty if there is no such."""
    if page != ALL_PAGES and page not in _PAGES:
        return b""
    wanted = _PAGES.values() if page == ALL_PAGES else (_PAGES[page],)
    pages = b""
    for make in wanted:
        octets = make(blocks)
        pages += octets[:2] + bytes(len(octets) - 2) if changeable else octets
    descriptor = b"" if brief else _block_descriptor(blocks)
    specific = DPO_FUA | (WRITE_PROTECT if read_only else 0)
    header = bytes((3 + len(descriptor) + len(pages), 0, specific, len(descriptor)))
    return header + descriptor + pages


def _block_descriptor(blocks: int) -> bytes:
    count = blocks if blocks <= 0xFFFFFF else 0  # 0: all that there are
    return b"\0" + count.to_bytes(3, "big") + b"\0" + BLOCK_LEN.to_bytes(3, "big")


def _format_device(_blocks: int) -> bytes:
    page = bytearray(24)
    page[0:2] = 0x03, 22
    page[10:12] = SECTORS.to_bytes(2, "big")
    page[12:14] = BLOCK_LEN.to_bytes(2, "big")
    page[14:16] = (1).to_bytes(2, "big")  # interleave
    page[20] = 0x40  # hard sectors
    return bytes(page)


def _rigid_geometry(blocks: int) -> bytes:
    page = bytearray(24)
    page[0:2] = 0x04, 22
    cylinders = -(-blocks // (HEADS * SECTORS))
    page[2:5] = min(cylinders, CYLINDERS_MAX).to_bytes(3, "big")
    page[5] = HEADS
    page[20:22] = ROTATION_RATE.to_bytes(2, "big")
    return bytes(page)


def _caching(_blocks: int) -> bytes:
    page = bytearray(12)
    page[0:3] = 0x08, 10, 0x04  # the write cache is on: SYNCHRONIZE CACHE empties it
    return bytes(page)


_PAGES: Final[dict[int, Callable[[int], bytes]]] = {
    0x03: _format_device,
    0x04: _rigid_geometry,
    0x08: _caching,
}
