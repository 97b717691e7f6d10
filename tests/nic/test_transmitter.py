from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic import csr, init_block
from nic.lance import FRAMES_PER_CALL
from nic.port import Frame
from nic.ring import bcnt
from tests.kit.lance import ENP, ERR, OWN, STP, TX_RING, Chip, frame_of

BUFFERS = 0x8000
SENT = STP | ENP


def started(**options: int) -> Chip:
    chip = Chip(**options)  # type: ignore[arg-type]
    chip.start()
    return chip


def chain(chip: Chip, lengths: list[int], first: int = 0) -> bytes:
    """Descriptors for one frame in buffers of these lengths; its bytes."""
    octets = frame_of(sum(lengths))
    start = 0
    for number, length in enumerate(lengths):
        flags = OWN | (STP if number == 0 else 0) | (ENP if number == len(lengths) - 1 else 0)
        addr = BUFFERS + 0x1000 * (first + number)
        index = (first + number) % chip.block.tx_ring.entries
        chip.give_tx(index, addr, octets[start : start + length], flags)
        start += length
    return octets


def sent(chip: Chip) -> list[Frame]:
    chip.csr0 = csr.INEA | csr.TDMD
    return list(chip.lance.frames())


def finish(chip: Chip, frames: list[Frame]) -> None:
    for frame in frames:
        frame.release()
    chip.poll()


def test_a_frame_is_views_of_guest_memory_until_released() -> None:
    chip = started()
    octets = chain(chip, [60])
    (frame,) = sent(chip)
    assert bytes(frame.iov) == octets
    chip.put(BUFFERS + 20, b"changed")
    assert bytes(frame.iov)[20:27] == b"changed"
    frame.release()
    assert chip.tmd(0)[1] & OWN, "completions are the loop's business"
    chip.poll()
    assert chip.tmd(0) == (BUFFERS, SENT, bcnt(60), 0)
    assert chip.csr0 & (csr.TINT | csr.INTR) == csr.TINT | csr.INTR


def test_a_chain_is_one_frame_and_one_interrupt() -> None:
    chip = started()
    octets = chain(chip, [100, 1, 47])
    (frame,) = sent(chip)
    assert bytes(frame.iov) == octets
    assert len(frame.iov.segments) == 3
    levels = len(chip.levels)
    finish(chip, [frame])
    assert [chip.tmd(i)[1] for i in range(4)] == [STP, 0, ENP, 0]
    assert chip.levels[levels:] == [True]


@settings(max_examples=60)
@given(st.integers(0, 7), st.data())
def test_chains_of_any_length_round_rings_of_every_size(tlen: int, data: st.DataObject) -> None:
    entries = 1 << tlen
    chip = started(tx=entries, memory=4 << 20)
    position = 0
    for _ in range(3):
        lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=entries))
        octets = chain(chip, lengths, position % entries)
        (frame,) = sent(chip)
        assert bytes(frame.iov) == octets
        finish(chip, [frame])
        for number in range(len(lengths)):
            assert not chip.tmd((position + number) % entries)[1] & OWN
        position += len(lengths)


def test_frames_are_given_back_in_the_rings_order() -> None:
    chip = started()
    for index in range(3):
        chain(chip, [60], index)
    frames = sent(chip)
    assert len(frames) == 3
    finish(chip, [frames[2], frames[1]])
    assert [bool(chip.tmd(i)[1] & OWN) for i in range(3)] == [True] * 3
    finish(chip, [frames[0]])
    assert [bool(chip.tmd(i)[1] & OWN) for i in range(3)] == [False] * 3


def test_a_frame_is_released_once() -> None:
    chip = started(tx=2)
    chain(chip, [60])
    (frame,) = sent(chip)
    finish(chip, [frame, frame])
    chain(chip, [60], 1)
    (second,) = sent(chip)
    finish(chip, [frame])
    assert chip.tmd(1)[1] & OWN
    finish(chip, [second])
    assert not chip.tmd(1)[1] & OWN


def test_a_ring_wholly_in_use_is_not_looked_at_again() -> None:
    chip = started(tx=2)
    chain(chip, [60], 0)
    chain(chip, [60], 1)
    frames = sent(chip)
    assert len(frames) == 2
    assert sent(chip) == []
    finish(chip, frames)
    chain(chip, [60], 0)
    assert len(sent(chip)) == 1


def test_many_frames_are_bounded_per_call() -> None:
    chip = started(tx=128, memory=2 << 20)
    for index in range(128):
        chain(chip, [60], index)
    first = sent(chip)
    assert len(first) == FRAMES_PER_CALL
    assert len(list(chip.lance.frames())) == 128 - FRAMES_PER_CALL


def test_leftovers_are_given_back_until_a_frame_starts() -> None:
    chip = started()
    chip.give_tx(0, BUFFERS, frame_of(60), OWN)
    chip.give_tx(1, BUFFERS, frame_of(60), OWN | ENP)
    octets = chain(chip, [60], 2)
    (frame,) = sent(chip)
    assert bytes(frame.iov) == octets
    chip.poll()
    assert [chip.tmd(i)[1] for i in range(3)] == [0, ENP, OWN | SENT]
    assert chip.csr0 & csr.TINT


def test_a_ring_of_leftovers_ends() -> None:
    chip = started()
    for index in range(4):
        chip.give_tx(index, BUFFERS, frame_of(60), OWN)
    assert sent(chip) == []
    chip.poll()
    assert [chip.tmd(i)[1] for i in range(4)] == [0] * 4


@pytest.mark.parametrize("owned", [1, 2, 3])
def test_a_chain_that_the_guest_did_not_finish_underflows(owned: int) -> None:
    chip = started()
    chain(chip, [100] * 4)
    for index in range(owned, 4):
        chip.give_tx(index, BUFFERS, b"\0" * 100, 0)
    assert sent(chip) == []
    chip.poll()
    assert chip.tmd(owned - 1)[1] == ERR | (STP if owned == 1 else 0)
    assert chip.tmd(owned - 1)[3] == 0xC000
    assert all(not chip.tmd(i)[1] & (OWN | ERR) for i in range(owned - 1))
    assert chip.csr0 & (csr.TINT | csr.TXON | csr.RXON) == csr.TINT | csr.RXON
    chain(chip, [60], owned)
    assert sent(chip) == []
    chip.put(TX_RING, bytes(32))
    chip.start()
    chain(chip, [60])
    assert len(sent(chip)) == 1


def test_an_underflow_waits_for_the_frames_before_it() -> None:
    chip = started()
    chain(chip, [60])
    chip.give_tx(1, BUFFERS, frame_of(60), OWN | STP)
    (frame,) = sent(chip)
    chip.poll()
    assert chip.tmd(1)[1] & OWN
    assert chip.csr0 & csr.TXON
    finish(chip, [frame])
    assert chip.tmd(0)[1] == SENT
    assert chip.tmd(1)[1] == ERR | STP
    assert not chip.csr0 & csr.TXON


@pytest.mark.parametrize("entries", [1, 2, 128])
def test_a_ring_that_is_one_endless_chain(entries: int) -> None:
    chip = started(tx=entries)
    for index in range(entries):
        chip.give_tx(index, BUFFERS, frame_of(60), OWN | STP)
    assert sent(chip) == []
    chip.poll()
    assert chip.tmd(entries - 1)[1] == ERR | STP
    assert chip.tmd(entries - 1)[3] == 0xC000


def test_a_bcnt_of_zero_is_4096() -> None:
    chip = started()
    chip.words(TX_RING, BUFFERS, OWN | SENT, 0x0000, 0)
    (frame,) = sent(chip)
    assert len(frame.iov) == 4096


@pytest.mark.parametrize(("size", "babbles"), [(1514, False), (1515, True)])
def test_babble_begins_at_octet_1519(size: int, babbles: bool) -> None:
    chip = started()
    octets = chain(chip, [size])
    (frame,) = sent(chip)
    assert bytes(frame.iov) == octets
    finish(chip, [frame])
    assert bool(chip.csr0 & csr.BABL) == babbles
    assert bool(chip.csr0 & csr.ERR) == babbles
    assert chip.lance.stats["tx_babl"] == babbles
    assert chip.tmd(0)[1] == SENT


def test_the_jabber_timer_cuts_the_line() -> None:
    chip = started(tx=8)
    for index in range(7):
        flags = OWN | (STP if index == 0 else 0) | (ENP if index == 6 else 0)
        chip.give_tx(index, BUFFERS, bytes(4096), flags)
    assert sent(chip) == []
    chip.poll()
    assert chip.csr0 & (csr.BABL | csr.TINT) == csr.BABL | csr.TINT
    assert chip.lance.stats["tx_jabber"] == 1


def test_short_frames_go_out_short() -> None:
    chip = started()
    chain(chip, [20])
    (frame,) = sent(chip)
    assert len(frame.iov) == 20


def test_dtcr_the_guests_fcs_is_taken_off() -> None:
    chip = started(mode=init_block.DTCR)
    octets = frame_of(60)
    chip.give_tx(0, BUFFERS, octets + zlib.crc32(octets).to_bytes(4, "little"))
    (frame,) = sent(chip)
    assert bytes(frame.iov) == octets


@pytest.mark.parametrize("octets", [frame_of(60) + b"nope", b"abc"])
def test_dtcr_a_wrong_fcs_is_lost_on_the_way(octets: bytes) -> None:
    chip = started(mode=init_block.DTCR)
    chip.give_tx(0, BUFFERS, octets)
    assert sent(chip) == []
    chip.poll()
    assert chip.tmd(0)[1] == SENT, "the chip has sent it and knows of nothing"
    assert chip.lance.stats["tx_bad_fcs"] == 1


def test_dtcr_babble_counts_the_fcs_once() -> None:
    chip = started(mode=init_block.DTCR)
    octets = frame_of(1514)
    chip.give_tx(0, BUFFERS, octets + zlib.crc32(octets).to_bytes(4, "little"))
    finish(chip, sent(chip))
    assert not chip.csr0 & csr.BABL


def test_a_bad_buffer_is_a_memory_error_and_gives_nothing_back() -> None:
    chip = started()
    chip.words(TX_RING, 0xF000, OWN | SENT | 0xFF, bcnt(60), 0)
    assert sent(chip) == []
    chip.poll()
    assert chip.csr0 & (csr.MERR | csr.RXON | csr.TXON | csr.TINT) == csr.MERR
    assert chip.tmd(0)[1] & OWN


def test_the_next_descriptor_may_fault() -> None:
    chip = Chip(tx=4, memory=0x3000)
    chip.block = chip.block._replace(tx_ring=chip.block.tx_ring.__class__(0x2FF8, 4))
    chip.put(0x2FF8, bytes.fromhex("1000 8200 ffc0 0000"))  # STP, no ENP, last in RAM
    chip.start()
    assert sent(chip) == []
    chip.poll()
    assert chip.csr0 & (csr.MERR | csr.TINT) == csr.MERR
    assert chip.lance.stats["tx_underflow"] == 0


def test_frames_out_when_the_chip_stops_may_be_released() -> None:
    chip = started()
    chain(chip, [60], 0)
    chain(chip, [60], 1)
    frames = sent(chip)
    frames[1].release()
    chip.csr0 = csr.STOP
    before = chip.get(TX_RING, 32)
    frames[0].release()
    chip.poll()
    assert chip.get(TX_RING, 32) == before
    chip.start()
    again = sent(chip)
    assert len(again) == 2
    frames[0].release()
    finish(chip, again)
    assert [chip.tmd(i)[1] for i in range(2)] == [SENT, SENT]


def test_stop_and_start_while_frames_are_walked() -> None:
    chip = started()
    for index in range(3):
        chain(chip, [60], index)
    walk = chip.lance.frames()
    next(walk)
    chip.start()
    assert len(list(walk)) == 3, "from the new ring's beginning"
    chip.poll()
