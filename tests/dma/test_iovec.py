"""Segment boundaries are invisible: every verb gives for any cuts what it gives for flat bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma.iovec import IoVec, Range, merge_ranges, scatter_copy, total_len
from tests.kit.cuts import cuts

offsets = st.integers(-10, 210)


@given(cuts(empty=True))
def test_length_and_bytes(data: tuple[bytes, IoVec]) -> None:
    flat, iov = data
    assert len(iov) == len(flat)
    assert bytes(iov) == flat
    assert b"".join(iov) == flat


@given(cuts(empty=True), st.integers(0, 210), offsets)
def test_slice(data: tuple[bytes, IoVec], start: int, stop: int) -> None:
    flat, iov = data
    part = iov.slice(start, stop)
    assert bytes(part) == flat[start : max(stop, 0)]
    assert all(part.segments), "no empty segments"


def test_slice_from_before_the_front_starts_at_the_front() -> None:
    assert bytes(IoVec.of(b"abc", b"def").slice(-4, 4)) == b"abcd"


@given(cuts(empty=True), st.integers(0, 210))
def test_pull(data: tuple[bytes, IoVec], size: int) -> None:
    flat, iov = data
    if size > len(flat):
        with pytest.raises(ValueError, match=f"pull {size} of {len(flat)} bytes"):
            iov.pull(size)
        return
    head, rest = iov.pull(size)
    assert head.contiguous
    assert bytes(head) == flat[:size]
    assert bytes(rest) == flat[size:]


def test_pull_of_a_header_in_one_segment_is_a_view() -> None:
    guest = bytearray(b"headpayload")
    head, rest = IoVec.of(guest).pull(4)
    guest[:] = b"HEADPAYLOAD"
    assert (bytes(head), bytes(rest)) == (b"HEAD", b"PAYLOAD")


def test_pull_of_nothing() -> None:
    head, rest = IoVec().pull(0)
    assert (len(head), len(rest)) == (0, 0)
    with pytest.raises(ValueError, match="pull 1 of 0 bytes"):
        IoVec().pull(1)


@given(cuts(empty=True), st.lists(st.integers(0, 60), max_size=8))
def test_cut(data: tuple[bytes, IoVec], lengths: list[int]) -> None:
    flat, iov = data
    pieces = iov.cut(lengths)
    assert bytes(pieces) == flat
    ends = set()
    end = 0
    for segment in pieces:
        end += len(segment)
        ends.add(end)
    wanted = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    assert {end for end in wanted if 0 < end <= len(flat)} <= ends


def test_cut_names_the_headers_of_one_buffer() -> None:
    assert repr(IoVec.of(bytes(1514)).cut((14, 20, 20))) == "IoVec(14, 20, 20, 1460)"


@given(cuts(empty=True), cuts())
def test_add(first: tuple[bytes, IoVec], second: tuple[bytes, IoVec]) -> None:
    assert bytes(first[1] + second[1]) == first[0] + second[0]


def test_of_leaves_empty_buffers_out() -> None:
    assert repr(IoVec.of(b"", b"ab", bytearray(), b"c")) == "IoVec(2, 1)"
    assert len(IoVec()) == 0


def writable(sizes: list[int]) -> IoVec:
    return IoVec(tuple(memoryview(bytearray(b"\xee" * size)) for size in sizes))


@given(cuts(empty=True, strided=False), st.lists(st.integers(0, 60), max_size=8))
def test_scatter_copy(data: tuple[bytes, IoVec], sizes: list[int]) -> None:
    flat, iov = data
    room = writable(sizes)
    copied = scatter_copy(room.segments, iov.segments)
    assert copied == min(len(flat), len(room))
    assert bytes(room) == flat[:copied] + b"\xee" * (len(room) - copied)


@given(st.binary(max_size=200), st.lists(st.integers(0, 60), max_size=8))
def test_copy_from(flat: bytes, sizes: list[int]) -> None:
    room = writable(sizes)
    copied = room.copy_from(flat)
    assert copied == min(len(flat), len(room))
    assert bytes(room) == flat[:copied] + b"\xee" * (len(room) - copied)


# A small space, so that ranges touch, overlap and repeat.
ranges_lists = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=12)


def octets(ranges: list[Range]) -> list[int]:
    """The address of each byte, in data order."""
    return [addr + i for addr, length in ranges for i in range(length)]


@given(ranges_lists)
def test_merge_keeps_order_and_length(ranges: list[Range]) -> None:
    merged = merge_ranges(ranges)
    assert octets(merged) == octets(ranges)
    assert total_len(merged) == total_len(ranges)


@given(ranges_lists)
def test_merged_ranges_do_not_touch(ranges: list[Range]) -> None:
    merged = merge_ranges(ranges)
    assert all(length for _, length in merged)
    for (addr, length), (following, _) in pairwise(merged):
        assert following != addr + length


def test_merge_joins_the_headers_of_a_frame() -> None:
    assert merge_ranges([(0x1000, 14), (0x100E, 20), (0x1022, 20), (0x1036, 1460)]) == [
        (0x1000, 1514)
    ]


def test_merge_leaves_ranges_that_touch_the_other_way_round() -> None:
    assert merge_ranges([(0x2000, 4), (0x1FFC, 4), (0x9000, 0)]) == [(0x2000, 4), (0x1FFC, 4)]
