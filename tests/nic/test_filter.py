from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma.iovec import IoVec
from nic.filter import (
    FCS_RESIDUE,
    AddressFilter,
    crc_of,
    fcs_of,
    hash_index,
    logical_address_filter,
)
from tests.kit.cuts import cuts
from tests.kit.lance import PADR

ALL_NODES = bytes.fromhex("01005e000001")


@pytest.mark.parametrize(
    ("address", "index", "word", "mask"),
    [
        ("01005e000001", 54, 3, 0x0040),
        ("0180c2000000", 58, 3, 0x0400),
        ("333300000001", 23, 1, 0x0080),
        ("01005e0000fb", 33, 2, 0x0002),
        ("ffffffffffff", 47, 2, 0x8000),
    ],
)
def test_hash_of_known_groups(address: str, index: int, word: int, mask: int) -> None:
    octets = bytes.fromhex(address)
    assert hash_index(octets) == index
    words = [0, 0, 0, 0]
    words[word] = mask
    assert logical_address_filter([octets]) == tuple(words)


def test_remainders_of_known_groups() -> None:
    assert zlib.crc32(ALL_NODES) ^ 0xFFFFFFFF == 0xD9B4C5FE
    assert zlib.crc32(bytes.fromhex("0180c2000000")) ^ 0xFFFFFFFF == 0xE8C31BE6


def test_the_published_mapping_table() -> None:
    first_octets = "85 A5 E5 C5 45 65 25 05 2B 0B 4B"
    for index, octet in enumerate(bytes.fromhex(first_octets)):
        assert hash_index(bytes([octet, 0, 0, 0, 0, 0])) == index


def test_only_its_own_individual_address() -> None:
    accepts = AddressFilter(PADR, (0xFFFF,) * 4).accepts
    assert accepts(PADR)
    assert not accepts(PADR[:5] + b"\x04")


def test_broadcast_needs_no_bit() -> None:
    assert AddressFilter(PADR, (0, 0, 0, 0)).accepts(b"\xff" * 6)


def test_promiscuous_takes_everything() -> None:
    accepts = AddressFilter(PADR, (0, 0, 0, 0), prom=True).accepts
    assert accepts(bytes(6))
    assert accepts(ALL_NODES)


@given(st.binary(min_size=6, max_size=6), st.sets(st.integers(0, 63)))
def test_a_group_passes_exactly_with_its_bit(dst: bytes, bits: set[int]) -> None:
    group = bytes([dst[0] | 1]) + dst[1:]
    ladrf = tuple(sum(1 << i for i in range(16) if 16 * w + i in bits) for w in range(4))
    expected = group == b"\xff" * 6 or hash_index(group) in bits
    assert AddressFilter(PADR, ladrf).accepts(group) == expected


def test_fcs_of_the_worked_frame() -> None:
    frame = b"\xff" * 6 + PADR + b"\x08\x06" + bytes(46)
    assert len(frame) == 60
    assert fcs_of([memoryview(frame)]) == bytes.fromhex("7f8a35d2")


@given(cuts())
def test_fcs_does_not_see_cuts(data: tuple[bytes, IoVec]) -> None:
    flat, iov = data
    fcs = fcs_of(iov.segments)
    assert fcs == fcs_of([memoryview(flat)])
    assert crc_of([*iov.segments, memoryview(fcs)]) == FCS_RESIDUE
