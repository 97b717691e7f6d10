from __future__ import annotations

import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dma.iovec import IoVec
from dma.ledma import Ledma
from dma.memory import GuestMemory
from dma.transfer import DmaFault, DmaPath, Transfer
from nic import csr
from nic.receiver import RxClaim
from tests.kit.lance import OTHER, OWN, RX_RING, Chip, frame_of

BUFFERS = 0x3000
FRAME, STP, ENP = 0x0300, 0x0200, 0x0100


def chip_with(lengths: list[int], *, owned: int | None = None, pitch: int = 0x1000) -> Chip:
    """A started chip whose RX ring has one descriptor per length; the first `owned` are given."""
    chip = Chip(rx=len(lengths))
    for index, length in enumerate(lengths):
        flags = OWN if owned is None or index < owned else 0
        chip.give_rx(index, BUFFERS + pitch * index, length, flags)
    chip.start()
    return chip


def with_fcs(frame: bytes) -> bytes:
    frame += bytes(max(0, 60 - len(frame)))
    return frame + zlib.crc32(frame).to_bytes(4, "little")


def claimed(chip: Chip, size: int, headers: tuple[int, ...] = ()) -> RxClaim:
    claim = chip.lance.claim(size, headers)
    assert claim is not None
    return claim


def taken(chip: Chip) -> list[bytes]:
    """What a driver would read: frames by STP and ENP in the ring's order, FCS checked and off.

    Walks the ring once from its start, so for tests that receive at most one turn of it.
    """
    frames, octets = [], b""
    for index in range(chip.block.rx_ring.entries):
        low, flags, count, mcnt = chip.rmd(index)
        if flags & OWN or not (octets or flags & STP):
            break
        assert bool(flags & STP) == (octets == b"")
        octets += chip.get((flags & 0xFF) << 16 | low, 4096 - (count & 0xFFF))
        if flags & ENP:
            frame = octets[:mcnt]
            assert with_fcs(frame[:-4]) == frame
            frames.append(frame[:-4])
            octets = b""
    assert octets == b""
    return frames


# Unasked


def test_one_frame_in_one_buffer() -> None:
    chip = chip_with([1544, 1544])
    frame = frame_of(60)
    assert chip.lance.receive(frame)
    assert chip.rmd(0)[1] == OWN, "nothing happens before the loop polls"
    chip.poll()
    assert chip.rmd(0) == (0x3000, FRAME, 0xF9F8, 64)
    assert chip.get(BUFFERS, 64) == with_fcs(frame)
    assert chip.rmd(1)[1] == OWN
    assert chip.csr0 & (csr.RINT | csr.INTR | csr.ERR) == csr.RINT | csr.INTR
    assert chip.levels[-1]


def test_a_chain_of_three() -> None:
    chip = chip_with([64, 64, 64, 64])
    frame = frame_of(146)
    assert chip.lance.receive(frame)
    chip.poll()
    assert [chip.rmd(i)[1] for i in range(4)] == [STP, 0, ENP, OWN]
    assert [chip.rmd(i)[3] for i in range(3)] == [0, 0, 150]
    assert taken(chip) == [frame]
    assert chip.lance.stats["rx_frames"] == 1


def test_a_chain_that_runs_out() -> None:
    chip = chip_with([64, 64, 64, 64], owned=2)
    frame = frame_of(146)
    assert not chip.lance.receive(frame)
    chip.poll()
    assert [chip.rmd(i)[1] for i in range(3)] == [STP, 0x4400, 0]  # ERR and BUFF, no ENP
    assert chip.rmd(1)[3] == 0
    stored = chip.get(BUFFERS, 64) + chip.get(BUFFERS + 0x1000, 64)
    assert stored == with_fcs(frame)[:128]
    assert chip.csr0 & (csr.RINT | csr.MISS) == csr.RINT
    assert chip.lance.stats["rx_buff"] == 1


def test_buff_in_the_first_has_stp() -> None:
    chip = chip_with([64, 64], owned=1)
    assert not chip.lance.receive(frame_of(100))
    chip.poll()
    assert chip.rmd(0)[1] == 0x4400 | STP


def test_a_frame_that_fills_its_buffer_leaves_the_next_alone() -> None:
    chip = chip_with([64, 64], owned=1)
    assert chip.lance.receive(frame_of(60))
    chip.poll()
    assert [chip.rmd(i)[1] for i in range(2)] == [FRAME, 0]


def test_miss() -> None:
    chip = chip_with([64, 64], owned=0)
    assert not chip.lance.receive(frame_of(60))
    assert chip.csr0 & 0x9080 == 0x9080
    assert not chip.csr0 & csr.RINT
    chip.give_rx(0, BUFFERS, 64)
    assert chip.lance.receive(frame_of(60))
    chip.poll()
    assert taken(chip) == [frame_of(60)]


def test_the_chip_waits_at_its_descriptor_and_does_not_search() -> None:
    chip = chip_with([64, 64], owned=0)
    chip.give_rx(1, BUFFERS, 64)
    assert not chip.lance.receive(frame_of(60))
    assert chip.lance.stats["rx_miss"] == 1


def test_a_ring_of_one() -> None:
    chip = chip_with([64])
    assert not chip.lance.receive(frame_of(100))
    chip.poll()
    assert chip.rmd(0)[1] == 0x4400 | STP
    chip.give_rx(0, BUFFERS, 64)
    assert chip.lance.receive(frame_of(60))
    chip.poll()
    assert chip.rmd(0)[1] == FRAME


@settings(max_examples=30)
@given(st.integers(0, 7), st.lists(st.integers(60, 1514), min_size=1, max_size=12))
def test_frames_round_rings_of_every_size(rlen: int, sizes: list[int]) -> None:
    entries = 1 << rlen
    chip = chip_with([1600] * entries, pitch=0x700)
    for turn, size in enumerate(sizes):
        assert chip.lance.receive(frame_of(size))
        chip.poll()
        index = turn % entries
        assert chip.rmd(index)[1] & 0xFF00 == FRAME
        assert chip.rmd(index)[3] == size + 4
        assert chip.get(BUFFERS + 0x700 * index, size) == frame_of(size)
        chip.give_rx(index, BUFFERS + 0x700 * index, 1600)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 4096), min_size=128, max_size=128), st.integers(60, 4091))
def test_any_buffers_hold_any_frame(lengths: list[int], size: int) -> None:
    chip = Chip(rx=128, memory=2 << 20)
    for index, length in enumerate(lengths):
        chip.give_rx(index, 0x10000 + 0x1000 * index, length)
    chip.start()
    room = 0
    count = next(i for i, n in enumerate(lengths, 1) if (room := room + n) >= size + 4)
    assert chip.lance.receive(frame_of(size))
    chip.poll()
    assert taken(chip) == [frame_of(size)]
    assert [bool(chip.rmd(i)[1] & OWN) for i in range(128)] == [i >= count for i in range(128)]


def test_short_frames_are_padded() -> None:
    chip = chip_with([64, 64])
    assert chip.lance.receive(frame_of(42))
    chip.poll()
    assert taken(chip) == [frame_of(42) + bytes(18)]


def test_bad_fcs_is_received_with_crc_and_err() -> None:
    chip = chip_with([64, 64])
    assert chip.lance.receive(frame_of(60), fcs=b"nope")
    chip.poll()
    assert chip.rmd(0)[1] == FRAME | 0x4800
    assert chip.rmd(0)[3] == 64
    assert chip.get(BUFFERS + 60, 4) == b"nope"


def test_right_fcs_is_kept() -> None:
    chip = chip_with([64, 64])
    frame = frame_of(60)
    assert chip.lance.receive(frame, fcs=with_fcs(frame)[-4:])
    chip.poll()
    assert taken(chip) == [frame]


@pytest.mark.parametrize(
    ("frame", "fcs", "counter"),
    [
        (frame_of(59), b"abcd", "rx_runt"),
        (frame_of(13), None, "rx_runt"),
        (b"", None, "rx_runt"),
        (frame_of(4092), None, "rx_giant"),
        (frame_of(60, OTHER), None, "rx_filtered"),
        (frame_of(60, bytes.fromhex("01005e000001")), None, "rx_filtered"),
    ],
)
def test_frames_that_are_not_for_this_chip(frame: bytes, fcs: bytes | None, counter: str) -> None:
    chip = chip_with([1544, 1544])
    before = chip.csr0
    assert not chip.lance.receive(frame, fcs)
    chip.poll()
    assert chip.lance.stats[counter] == 1
    assert chip.rmd(0)[1] == OWN
    assert chip.csr0 == before


def test_the_longest_frame_that_mcnt_can_count() -> None:
    chip = chip_with([4096])
    assert chip.lance.receive(frame_of(4091))
    chip.poll()
    assert chip.rmd(0)[3] == 0x0FFF


def test_broadcast_and_chosen_groups() -> None:
    group = bytes.fromhex("01005e000001")
    chip = Chip(ladrf=(0, 0, 0, 0x0040))
    for index in range(4):
        chip.give_rx(index, BUFFERS + 64 * index, 64)
    chip.start()
    assert chip.lance.receive(frame_of(60, group))
    assert chip.lance.receive(frame_of(60, b"\xff" * 6))
    assert not chip.lance.receive(frame_of(60, bytes.fromhex("0180c2000000")))
    chip.poll()
    assert taken(chip) == [frame_of(60, group), frame_of(60, b"\xff" * 6)]


def test_a_bad_buffer_is_a_memory_error_and_gives_nothing_back() -> None:
    chip = chip_with([64, 64])
    chip.give_rx(0, 0xFFF000, 64)
    assert not chip.lance.receive(frame_of(60))
    assert chip.csr0 & (csr.MERR | csr.ERR | csr.INTR | csr.RXON | csr.TXON) == (
        csr.MERR | csr.ERR | csr.INTR
    )
    assert chip.rmd(0)[1] & OWN
    assert not chip.lance.receive(frame_of(60))
    assert chip.lance.claim(60) is None
    chip.start()
    assert chip.csr0 & csr.RXON


# Claimed


def test_ranges_are_cut_at_headers_and_the_fcs() -> None:
    seen: list[Transfer] = []

    class Watch:
        def __init__(self, path: DmaPath) -> None:
            self.path = path

        def open(self, transfer: Transfer) -> IoVec:
            if transfer.headers is not None:
                seen.append(Transfer(transfer.direction, list(transfer.ranges)))
            return self.path.open(transfer)

    watch = Watch(GuestMemory(4096))
    chip = Chip(path=watch)
    watch.path = chip.memory
    chip.give_rx(0, 0x001000 + 0x3000, 1544)
    chip.start()
    claim = claimed(chip, 1514, (14, 20, 20))
    assert seen[0].ranges == [(0x4000, 14), (0x400E, 20), (0x4022, 20), (0x4036, 1460), (0x45EA, 4)]
    assert [len(s) for s in claim.iov] == [14, 20, 20, 1460]


def test_a_claim_is_filled_and_committed() -> None:
    chip = chip_with([1544, 1544])
    frame = frame_of(1514)
    claim = claimed(chip, 1514, (14, 20, 32))
    assert chip.rmd(0) == (0x3000, OWN, 0xF9F8, 0)
    claim.iov.copy_from(frame)
    claim.commit(1514)
    assert chip.rmd(0)[1] == OWN, "completions are the loop's business"
    assert not chip.csr0 & csr.RINT
    chip.poll()
    assert chip.rmd(0) == (0x3000, FRAME, 0xF9F8, 1518)
    assert taken(chip) == [frame]
    assert chip.csr0 & csr.RINT


@given(st.integers(14, 200), st.data())
@settings(max_examples=60)
def test_fewer_octets_than_claimed(size: int, data: st.DataObject) -> None:
    chip = chip_with([64] * 8)
    claim = claimed(chip, size, (14,))
    assert len(claim.iov) == size
    came = data.draw(st.integers(14, size))
    frame = frame_of(came)
    claim.iov.copy_from(frame)
    claim.commit(came)
    chip.poll()
    assert taken(chip) == [frame + bytes(max(0, 60 - came))]


def test_a_cancelled_claim_leaves_no_trace() -> None:
    chip = chip_with([64] * 4)
    before, csr0 = chip.get(RX_RING, 32), chip.csr0
    for _ in range(3):
        claimed(chip, 150).cancel()
        chip.poll()
    assert (chip.get(RX_RING, 32), chip.csr0) == (before, csr0)
    assert chip.lance.receive(frame_of(146))
    chip.poll()
    assert taken(chip) == [frame_of(146)]


def test_a_frame_for_someone_else_is_a_cancelled_claim() -> None:
    chip = chip_with([64] * 4)
    before, csr0 = chip.get(RX_RING, 32), chip.csr0
    claim = claimed(chip, 60)
    claim.iov.copy_from(frame_of(60, OTHER))
    claim.commit(60)
    chip.poll()
    assert (chip.get(RX_RING, 32), chip.csr0) == (before, csr0)
    assert chip.lance.stats["rx_filtered"] == 1


def test_the_destination_may_lie_in_pieces() -> None:
    chip = chip_with([1] * 128)
    claim = claimed(chip, 60)
    claim.iov.copy_from(frame_of(60))
    claim.commit(60)
    chip.poll()
    assert taken(chip) == [frame_of(60)]


def test_committing_twice_or_after_cancel_is_without_effect() -> None:
    chip = chip_with([64] * 4)
    claim = claimed(chip, 60)
    claim.iov.copy_from(frame_of(60))
    claim.commit(60)
    claim.commit(60)
    claim.cancel()
    other = claimed(chip, 60)
    other.cancel()
    other.commit(60)
    chip.poll()
    assert [chip.rmd(i)[1] for i in range(2)] == [FRAME, OWN]


@pytest.mark.parametrize("size", [-1, 0, 13, 61])
def test_a_commit_of_what_was_not_claimed(size: int) -> None:
    claim = claimed(chip_with([64] * 4), 60)
    with pytest.raises(ValueError, match="bytes into a claim"):
        claim.commit(size)


@pytest.mark.parametrize("size", [0, 13, 1515])
def test_a_claim_that_no_frame_fits(size: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        chip_with([64] * 4).lance.claim(size)


def test_headers_longer_than_the_frame() -> None:
    with pytest.raises(ValueError, match="headers"):
        chip_with([64] * 4).lance.claim(60, (14, 60))


def test_no_room_is_none_and_not_miss() -> None:
    chip = chip_with([64] * 4, owned=2)
    before = chip.csr0
    assert chip.lance.claim(150) is None
    assert claimed(chip, 100)
    assert chip.lance.claim(60) is None
    assert chip.csr0 == before


def test_committed_in_any_order_completed_in_claim_order() -> None:
    chip = chip_with([64] * 4)
    claims = [claimed(chip, 60) for _ in range(4)]
    for number, claim in enumerate(claims):
        claim.iov.copy_from(frame_of(60)[:59] + bytes([number]))
    for number in (2, 1, 3):
        claims[number].commit(60)
        chip.poll()
    assert [chip.rmd(i)[1] for i in range(4)] == [OWN] * 4
    claims[0].commit(60)
    chip.poll()
    assert [frame[59] for frame in taken(chip)] == [0, 1, 2, 3]
    assert chip.lance.stats["rx_slid_octets"] == 0


def test_a_short_commit_frees_descriptors_for_the_next_claim() -> None:
    chip = chip_with([64] * 8)
    for size in (60, 100):
        claim = claimed(chip, 200)
        claim.iov.copy_from(frame_of(size))
        claim.commit(size)
    chip.poll()
    assert taken(chip) == [frame_of(60), frame_of(100)]
    assert chip.lance.stats["rx_slid_octets"] == 0


def test_a_later_claim_slides_into_the_gap() -> None:
    chip = chip_with([64] * 8)
    first, second, third = (claimed(chip, 100) for _ in range(3))
    for claim, size in ((first, 100), (second, 100), (third, 99)):
        claim.iov.copy_from(frame_of(size))
    third.commit(99)
    second.cancel()
    first.commit(100)
    chip.poll()
    assert taken(chip) == [frame_of(100), frame_of(99)]
    assert chip.lance.stats["rx_slid_octets"] == 103
    assert [bool(chip.rmd(i)[1] & OWN) for i in range(8)] == [False] * 4 + [True] * 4
    assert chip.lance.receive(frame_of(60))
    chip.poll()
    assert taken(chip)[2] == frame_of(60)


def test_the_guest_takes_its_descriptors_back_while_a_claim_is_to_slide() -> None:
    chip = chip_with([64] * 4)
    first, second = claimed(chip, 60), claimed(chip, 60)
    second.iov.copy_from(frame_of(60))
    second.commit(60)
    first.cancel()
    chip.give_rx(0, BUFFERS, 64, flags=0)
    chip.poll()
    assert chip.lance.stats["rx_miss"] == 1
    chip.give_rx(0, BUFFERS, 64)
    assert chip.lance.receive(frame_of(60))
    chip.poll()
    assert taken(chip) == [frame_of(60)]


@pytest.mark.parametrize("what", ["ring", "buffer"])
def test_memory_fails_under_a_claim_that_is_to_slide(what: str) -> None:
    class Failing:
        bad = range(0)

        def __init__(self, path: DmaPath) -> None:
            self.path = path

        def open(self, transfer: Transfer) -> IoVec:
            for addr, _ in transfer.ranges:
                if addr in self.bad:
                    raise DmaFault("test", addr, "gone")
            return self.path.open(transfer)

    path = Failing(GuestMemory(4096))
    chip = Chip(path=path)
    path.path = chip.memory
    for index in range(4):
        chip.give_rx(index, BUFFERS + 64 * index, 64)
    chip.start()
    first, second, third = (claimed(chip, 60) for _ in range(3))
    for claim in (second, third):
        claim.iov.copy_from(frame_of(60))
        claim.commit(60)
    first.cancel()
    path.bad = range(RX_RING, RX_RING + 8) if what == "ring" else range(BUFFERS, BUFFERS + 64)
    chip.poll()
    chip.poll()
    assert chip.csr0 & (csr.MERR | csr.RINT | csr.MISS) == csr.MERR
    assert all(chip.rmd(index)[1] == OWN for index in range(4))


class Plan:
    """What to do with one claim: how large, how much comes, whether it is cancelled."""

    def __init__(self, claim: int, came: int, is_cancelled: bool, order: int) -> None:
        self.claim, self.came = claim, min(claim, came)
        self.is_cancelled, self.order = is_cancelled, order

    def __repr__(self) -> str:
        return f"Plan({self.claim}, {self.came}, {self.is_cancelled}, {self.order})"


PLANS = st.lists(
    st.builds(
        Plan, st.integers(60, 600), st.integers(60, 600), st.booleans(), st.integers(0, 1000)
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150)
@given(PLANS, st.sampled_from([64, 100, 128, 4000]), st.sampled_from(["in-place", "bounce", None]))
def test_any_interleaving_gives_the_committed_frames_in_order(
    plans: list[Plan], length: int, mode: str | None
) -> None:
    chip = Chip(rx=128, bswp=mode is None)
    if mode is not None:
        ledma = Ledma(GuestMemory(4096), "bounce" if mode == "bounce" else "in-place")
        chip = Chip(rx=128, bswp=False, path=ledma)
        ledma._bus = chip.memory
        ledma.write(0xC, 0)
    for index in range(128):
        chip.give_rx(index, 0x4000 + length * index, length)
    chip.start()
    claims = [(plan, chip.lance.claim(plan.claim, (14, 20))) for plan in plans]
    held = [(plan, claim) for plan, claim in claims if claim is not None]
    for plan, claim in sorted(held, key=lambda pair: pair[0].order):
        claim.iov.copy_from(frame_of(plan.came))
        if plan.is_cancelled:
            claim.cancel()
        else:
            claim.commit(plan.came)
        chip.poll()
    if mode is not None:  # the guest sees the bytes of each word exchanged: undo it
        octets = bytearray(chip.get(0x4000, length * 128))
        octets[0::2], octets[1::2] = octets[1::2], octets[0::2]
        chip.put(0x4000, bytes(octets))
    assert taken(chip) == [frame_of(plan.came) for plan, _ in held if not plan.is_cancelled]


def test_a_ring_too_small_for_the_claim_ends_in_buff() -> None:
    chip = chip_with([64] * 4)
    claim = claimed(chip, 1514)
    assert len(claim.iov) == 1514
    claim.iov.copy_from(frame_of(1514))
    claim.commit(1514)
    chip.poll()
    assert [chip.rmd(i)[1] for i in range(4)] == [STP, 0, 0, 0x4400]
    assert chip.get(BUFFERS + 0x3000, 64) == frame_of(1514)[192:256]


def test_a_ring_too_small_for_the_claim_but_not_for_what_came() -> None:
    chip = chip_with([64] * 4)
    claim = claimed(chip, 1514)
    claim.iov.copy_from(frame_of(252))
    claim.commit(252)
    chip.poll()
    assert taken(chip) == [frame_of(252)]


def test_a_frame_unasked_goes_behind_open_claims() -> None:
    chip = chip_with([64] * 4)
    claim = claimed(chip, 60)
    assert chip.lance.receive(frame_of(60, b"\xff" * 6))
    chip.poll()
    assert chip.rmd(0)[1] == OWN
    claim.iov.copy_from(frame_of(60))
    claim.commit(60)
    chip.poll()
    assert taken(chip) == [frame_of(60), frame_of(60, b"\xff" * 6)]


def test_a_frame_unasked_slides_when_the_claim_before_it_is_cancelled() -> None:
    chip = chip_with([64] * 4)
    claim = claimed(chip, 60)
    assert chip.lance.receive(frame_of(60))
    claim.cancel()
    chip.poll()
    assert taken(chip) == [frame_of(60)]


@pytest.mark.parametrize("stop", ["stop", "reset", "merr"])
def test_claims_are_void_after_stop(stop: str) -> None:
    chip = chip_with([64] * 4)
    claims = [claimed(chip, 60) for _ in range(3)]
    for claim in claims:
        claim.iov.copy_from(frame_of(60))
    claims[1].commit(60)
    before = chip.get(RX_RING, 32)
    if stop == "stop":
        chip.csr0 = csr.STOP
    elif stop == "reset":
        chip.lance.reset()
    else:
        chip.give_tx(0, 0, b"")
        chip.words(0x2400, 0xF000, OWN | 0x0300 | 0xFF, 0xFFC0, 0)
        assert list(chip.lance.frames()) == []
        assert chip.csr0 & csr.MERR
    claims[0].commit(60)
    claims[2].cancel()
    chip.poll()
    assert chip.get(RX_RING, 32) == before
    chip.start()
    assert chip.lance.receive(frame_of(60))
    chip.poll()
    assert taken(chip) == [frame_of(60)]


def test_stop_from_within_the_interrupt() -> None:
    chip = chip_with([64] * 4)
    for _ in range(3):
        assert chip.lance.receive(frame_of(60))

    def on_interrupt(level: bool) -> None:
        if level:
            chip.csr0 = csr.STOP

    chip.lance._registers._interrupt = on_interrupt
    chip.poll()
    assert [chip.rmd(i)[1] for i in range(3)] == [FRAME, OWN, OWN]
    assert chip.csr0 == csr.STOP


def test_one_interrupt_for_a_batch() -> None:
    chip = chip_with([64] * 8)
    levels = len(chip.levels)
    for _ in range(5):
        assert chip.lance.receive(frame_of(60))
    chip.poll()
    assert chip.levels[levels:] == [True]
    assert len(taken(chip)) == 5


def test_status_bits_are_built_afresh_and_hadr_stays() -> None:
    chip = chip_with([64, 64])
    chip.words(RX_RING, 0x0000, OWN | 0x7F00 | 0x02, 0xFFC0, 0xFFFF)
    assert chip.lance.receive(frame_of(60))
    chip.poll()
    assert chip.rmd(0) == (0x0000, FRAME | 0x02, 0xFFC0, 64)


def test_line_changes_alternate() -> None:
    chip = chip_with([64] * 4)
    for _ in range(3):
        chip.lance.receive(frame_of(60))
        chip.poll()
        chip.csr0 = csr.RINT | csr.INEA
    assert all(a != b for a, b in pairwise(chip.levels))
