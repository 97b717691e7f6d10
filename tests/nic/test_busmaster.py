from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dma.iovec import total_len
from dma.memory import GuestMemory
from dma.transfer import Direction, Transfer
from nic.busmaster import ADDRESS_SPACE, BusMaster, cut, fold

LENGTHS = st.lists(st.integers(1, 100), max_size=8)


@given(LENGTHS, st.lists(st.integers(0, 100), max_size=8))
def test_cut_keeps_order_and_octets(buffers: list[int], lengths: list[int]) -> None:
    ranges = [(1000 * i, length) for i, length in enumerate(buffers)]
    pieces = cut(ranges, lengths)
    octets = [addr + i for addr, length in ranges for i in range(length)]
    assert [addr + i for addr, n in pieces for i in range(n)] == octets[: sum(lengths)]
    ends = {sum(lengths[: i + 1]) for i in range(len(lengths))}
    ends |= {sum(buffers[: i + 1]) for i in range(len(buffers))}
    position = 0
    for _, length in pieces:
        assert length > 0
        assert not any(position < end < position + length for end in ends)
        position += length


def test_cut_of_a_frame_in_one_buffer() -> None:
    assert cut([(0x1000, 1544)], (14, 20, 20, 1460, 4)) == [
        (0x1000, 14),
        (0x100E, 20),
        (0x1022, 20),
        (0x1036, 1460),
        (0x15EA, 4),
    ]


def test_cut_goes_on_at_zero() -> None:
    assert cut([(0xFFFFF0, 0x30), (0x1000, 8)], (4, 0x30, 100)) == [
        (0xFFFFF0, 4),
        (0xFFFFF4, 12),
        (0, 0x20),
        (0x1000, 4),
        (0x1004, 4),
    ]


@given(st.lists(st.tuples(st.integers(0, ADDRESS_SPACE - 1), st.integers(1, 4096)), max_size=4))
def test_fold_stays_within_24_bits(ranges: list[tuple[int, int]]) -> None:
    folded = fold(ranges)
    assert total_len(folded) == total_len(ranges)
    for addr, length in folded:
        assert 0 <= addr < addr + length <= ADDRESS_SPACE


def test_fold_goes_on_at_zero() -> None:
    assert fold([(0xFFFFF0, 0x30)]) == [(0xFFFFF0, 0x10), (0, 0x20)]


def test_a_fault_is_told_once_and_is_no_exception() -> None:
    told: list[int] = []
    master = BusMaster(GuestMemory(4096), lambda: told.append(1))
    assert master.open(Transfer(Direction.TO_DEVICE, [(4096, 1)])) is None
    assert master.load(5000, 24) is None
    assert told == [1, 1]
    assert master.load(0, 24) == bytes(24)
