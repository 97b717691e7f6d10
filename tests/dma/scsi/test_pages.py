"""INQUIRY, capacity and mode pages, byte by byte."""

from __future__ import annotations

import pytest

from dma.scsi import pages


def test_inquiry() -> None:
    octets = pages.inquiry(0)
    assert octets[:8] == bytes((0, 0, 2, 2, 31, 0, 0, 0))
    assert octets[8:] == b"SLIRP   IMAGE DISK      0100"
    assert pages.inquiry(3)[0] == 0x7F


def test_capacity_is_the_last_block() -> None:
    assert pages.capacity(1) == bytes.fromhex("00000000 00000200")
    assert pages.capacity(1 << 32) == bytes.fromhex("ffffffff 00000200")


def mode(page: int, blocks: int = 100, **options: bool) -> bytes:
    chosen = {"read_only": False, "brief": False, "changeable": False, **options}
    return pages.mode_sense(page, blocks, **chosen)


def test_mode_header_and_descriptor() -> None:
    octets = mode(0x08)
    assert octets == bytes((23, 0, 0x10, 8, 0, 0, 0, 100, 0, 0, 2, 0)) + bytes((8, 10, 4, *[0] * 9))
    assert octets[0] == len(octets) - 1
    assert mode(0x08, read_only=True)[2] == 0x90
    assert mode(0x08, brief=True)[:5] == bytes((15, 0, 0x10, 0, 8))
    assert mode(0x08, blocks=1 << 24)[5:8] == bytes(3), "too many to say"


def test_geometry_holds_the_blocks() -> None:
    page = mode(0x04, blocks=1009, brief=True)[4:]
    assert (page[:2], int.from_bytes(page[2:5], "big"), page[5]) == (b"\x04\x16", 2, 16)
    page = mode(0x03, brief=True)[4:]
    assert (page[10:14], len(page)) == (bytes((0, 63, 2, 0)), 24)


def test_nothing_can_be_changed() -> None:
    octets = mode(0x3F, brief=True, changeable=True)
    assert octets[4:] == bytes((3, 22, *[0] * 22, 4, 22, *[0] * 22, 8, 10, *[0] * 10))


@pytest.mark.parametrize("page", [0, 1, 2, 5, 0x3E])
def test_pages_that_are_not_there(page: int) -> None:
    assert mode(page) == b""
