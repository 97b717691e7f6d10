from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma.iovec import IoVec
from slirp.wire import checksum as module
from slirp.wire.checksum import checksum, fold, left_undone, ones_sum, pseudo_sum, udp_field, valid
from tests.kit.cuts import cuts


def flat_sum(octets: bytes) -> int:
    """RFC 1071 §4.1 as it stands there: word by word, carries folded in."""
    total = 0
    for at in range(0, len(octets), 2):
        total += int.from_bytes(octets[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_the_example_of_rfc_1071() -> None:
    octets = bytes.fromhex("0001f203f4f5f6f7")
    assert ones_sum((memoryview(octets),)) == 0xDDF2
    assert checksum((memoryview(octets),)) == 0x220D


def test_the_same_octets_cut_at_odd_places() -> None:
    octets = memoryview(bytes.fromhex("0001f203f4f5f6f7"))
    assert ones_sum((octets[:3], octets[3:4], octets[4:])) == 0xDDF2


@given(cuts(empty=True, strided=True), st.integers(0, 0xFFFFF))
def test_cuts_are_invisible(data: tuple[bytes, IoVec], initial: int) -> None:
    flat, iov = data
    want = flat_sum(flat)
    assert ones_sum(iov.segments) == want
    assert ones_sum(iov, initial) == fold(want + initial)


@pytest.mark.parametrize("size", [1023, 1024, 1025, 1460, 2047, 2048, 2049, 2051, 4097, 65535])
@pytest.mark.parametrize("fill", [b"\x00", b"\xff", b"\x01", b"\xfe\x7f\x80"])
def test_long_pieces_agree_with_short_ones(size: int, fill: bytes) -> None:
    octets = (fill * size)[:size]
    view = memoryview(octets)
    want = flat_sum(octets)
    assert ones_sum((view,)) == want
    assert ones_sum((view[:1], view[1:])) == want
    assert ones_sum((view[: size // 3], view[size // 3 :])) == want


@pytest.mark.parametrize("size", [100, 2048, 5001])
def test_a_strided_view_is_summed_as_what_it_shows(size: int) -> None:
    buffer = bytes(range(256)) * 40
    strided = memoryview(buffer)[1 : 2 * size + 1 : 2]
    assert ones_sum((strided,)) == flat_sum(bytes(strided))


def test_a_long_piece_at_an_unaligned_address() -> None:
    buffer = memoryview(bytearray(range(256)) * 20)
    for start in range(4):
        assert ones_sum((buffer[start:4003],)) == flat_sum(bytes(buffer[start:4003]))


def test_zero_only_where_all_octets_are() -> None:
    assert ones_sum((memoryview(bytes(10)),)) == 0
    assert ones_sum((memoryview(b"\xff\xff"),)) == 0xFFFF
    assert ones_sum((memoryview(b"\xff\xfe\x00\x01"),)) == 0xFFFF
    assert ones_sum((), 65535 * 7) == 0xFFFF
    assert fold(0) == 0


def test_nothing_but_zeros_is_not_valid() -> None:
    assert not valid((memoryview(bytes(8)),))
    assert valid((memoryview(b"\xff\xff" + bytes(8)),))


@given(st.binary(max_size=64).filter(lambda octets: len(octets) % 2 == 0), st.integers(0, 0xFFFF))
def test_what_is_emitted_is_valid_and_one_flipped_bit_is_not(octets: bytes, seed: int) -> None:
    view = memoryview(octets)
    whole = bytearray(octets + checksum((view,)).to_bytes(2, "big"))
    assert valid((memoryview(whole),))
    bit = seed % (8 * len(whole))
    whole[bit // 8] ^= 1 << bit % 8
    assert not valid((memoryview(whole),))


def test_a_computed_zero_of_udp_goes_out_as_ones() -> None:
    assert udp_field(0) == 0xFFFF
    assert udp_field(0x1234) == 0x1234


def test_pseudo_header_of_ipv4() -> None:
    src, dst = bytes([10, 0, 2, 15]), bytes([192, 168, 7, 9])
    assert pseudo_sum(src, dst, 17, 33) == flat_sum(
        src + dst + b"\x00\x11" + (33).to_bytes(2, "big")
    )


def test_pseudo_header_of_ipv6_with_a_length_of_32_bits() -> None:
    src, dst = bytes(range(16)), bytes(range(200, 216))
    octets = src + dst + (70000).to_bytes(4, "big") + b"\0\0\0\x06"
    assert pseudo_sum(src, dst, 6, 70000) == flat_sum(octets)


def test_numpy_stays_out_until_a_long_piece_comes() -> None:
    script = (
        "import sys; from slirp.wire.checksum import ones_sum, LONG\n"
        "ones_sum((memoryview(bytes(LONG - 1)),)); assert 'numpy' not in sys.modules\n"
        "ones_sum((memoryview(bytes(LONG)),)); assert 'numpy' in sys.modules\n"
    )
    assert module.LONG > 1500
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@given(st.binary(min_size=12, max_size=12), st.integers(0, 0xFFFF))
def test_a_field_that_was_left_undone_holds_the_pseudo_header(addrs: bytes, length: int) -> None:
    pseudo = pseudo_sum(addrs[:4], addrs[4:8], 6, length)
    assert left_undone(fold(pseudo), pseudo)
    assert not left_undone(fold(pseudo) ^ 1, pseudo)
