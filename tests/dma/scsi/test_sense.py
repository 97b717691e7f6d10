"""Sense data, byte by byte."""

from __future__ import annotations

from dma.scsi import sense


def test_no_sense() -> None:
    octets = sense.NO_SENSE.emit()
    assert octets == bytes((0x70, 0, 0, 0, 0, 0, 0, 10)) + bytes(10)
    assert len(octets) == sense.SENSE_LEN


def test_a_block_that_is_to_blame_is_valid_information() -> None:
    octets = sense.UNRECOVERED_READ.at(0x12345678).emit()
    assert octets[:8] == bytes.fromhex("f0 00 03 12345678 0a")
    assert octets[12:14] == b"\x11\x00"
