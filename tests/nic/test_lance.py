from __future__ import annotations

import select
import zlib
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dma.iovec import IoVec
from dma.ledma import Ledma
from dma.memory import GuestMemory
from dma.transfer import DmaFault, Transfer
from nic import csr, init_block
from nic.lance import (
    ROOM_POLL_INTERVAL,
    TX_POLL_ACTIVE_FOR,
    TX_POLL_IDLE,
    TX_POLL_INTERVAL,
    Lance,
)
from nic.port import Port
from tests.kit.lance import BLOCK, ENP, ERR, OTHER, OWN, PADR, RX_RING, STP, Chip, frame_of

BUFFERS = 0x8000
FRAME = STP | ENP
INTERNAL = init_block.LOOP | init_block.INTL


def started(mode: int = 0, rx_buffer: int = 1544, **options: int) -> Chip:
    chip = Chip(mode=mode, **options)  # type: ignore[arg-type]
    for index in range(chip.block.rx_ring.entries):
        chip.give_rx(index, BUFFERS + 0x1000 * index, rx_buffer)
    chip.start()
    return chip


def is_readable(lance: Lance) -> bool:
    return bool(select.select([lance.fileno()], [], [], 0)[0])


def test_it_is_a_port() -> None:
    port: Port = Chip().lance
    assert (port.max_frame, port.offload) == (1514, False)


# Registers


def test_stop_reads_as_0004() -> None:
    chip = started()
    chip.csr0 = csr.STOP
    assert chip.csr0 == 0x0004
    chip.csr0 = 0x0007
    assert chip.csr0 == 0x0004


def test_init_then_strt_as_the_vectors_say() -> None:
    chip = Chip()
    chip.init()
    assert chip.csr0 == 0x0181
    chip.csr0 = 0x0100
    assert chip.csr0 == 0x0001
    chip.csr0 = 0x0042
    assert chip.csr0 == 0x0073


def test_init_with_inea_interrupts_at_idon() -> None:
    chip = Chip()
    chip.init()
    chip.csr0 = csr.STOP
    chip.csr0 = csr.INIT | csr.INEA
    assert chip.csr0 == 0x01C1
    assert chip.levels == [True]


def test_init_and_strt_in_one_write_are_done_in_this_order() -> None:
    chip = Chip()
    chip.init()
    chip.csr0 = csr.STOP
    chip.csr0 = csr.INIT | csr.STRT
    assert chip.csr0 == csr.INIT | csr.STRT | csr.RXON | csr.TXON | csr.IDON | csr.INTR


def test_strt_without_init_turns_nothing_on() -> None:
    chip = Chip()
    chip.csr0 = csr.STRT | csr.INEA
    assert chip.csr0 == csr.STRT | csr.INEA
    assert not chip.lance.receive(frame_of(60))
    assert chip.lance.claim(60) is None
    assert list(chip.lance.frames()) == []
    assert chip.poll() is None


@pytest.mark.parametrize(
    ("mode", "on"),
    [(0, 0x30), (init_block.DTX, 0x20), (init_block.DRX, 0x10), (0x0003, 0)],
)
def test_mode_keeps_either_side_off(mode: int, on: int) -> None:
    chip = started(mode)
    assert chip.csr0 & (csr.RXON | csr.TXON) == on
    chip.give_tx(0, 0x4000, frame_of(60))
    chip.csr0 = csr.INEA | csr.TDMD
    assert len(list(chip.lance.frames())) == (1 if on & csr.TXON else 0)
    assert chip.lance.receive(frame_of(60)) == bool(on & csr.RXON)


def test_other_offsets_are_no_registers() -> None:
    chip = started()
    before = chip.csr0
    for offset in (1, 3, 4, 6, 100, -2):
        chip.lance.write(offset, 0xFFFF)
        assert chip.lance.read(offset) == 0
    assert chip.csr0 == before


def test_rap_has_two_bits() -> None:
    chip = Chip()
    chip.lance.write(csr.RAP, 0xFFFE)
    assert chip.lance.read(csr.RAP) == 2


def test_a_bad_init_block_is_merr_and_no_idon() -> None:
    chip = Chip()
    chip.csr0 = csr.STOP
    chip.write_csr(2, 0x00FF)
    chip.csr0 = csr.INIT
    assert chip.csr0 == csr.INIT | csr.MERR | csr.ERR | csr.INTR
    chip.csr0 = csr.STRT
    assert not chip.csr0 & (csr.RXON | csr.TXON)


def test_recovery_from_a_memory_error() -> None:
    chip = started()
    chip.words(RX_RING, 0, OWN | 0xFF, 0xF9F8, 0)
    assert not chip.lance.receive(frame_of(60))
    assert chip.csr0 & csr.MERR
    chip.csr0 = csr.MERR | csr.INEA
    assert not chip.csr0 & (csr.ERR | csr.RXON | csr.TXON)
    chip.give_rx(0, BUFFERS, 1544)
    chip.start()
    assert chip.lance.receive(frame_of(60))
    chip.poll()
    assert chip.rmd(0)[1] == FRAME


def test_init_starts_both_rings_over() -> None:
    chip = started()
    for _ in range(2):
        assert chip.lance.receive(frame_of(60))
        chip.poll()
        chip.give_rx(0, BUFFERS, 1544)
        chip.start()
    assert chip.rmd(1)[1] == OWN


def test_a_new_init_reads_a_new_block() -> None:
    chip = started()
    chip.block = chip.block._replace(padr=OTHER, mode=init_block.DTX)
    chip.start()
    assert chip.lance.receive(frame_of(60, OTHER))
    assert not chip.lance.receive(frame_of(60, PADR))
    assert not chip.csr0 & csr.TXON


def test_the_ring_in_the_block_is_not_read_again() -> None:
    chip = started()
    chip.put(BLOCK, bytes(24))
    assert chip.lance.receive(frame_of(60))
    chip.poll()
    assert chip.rmd(0)[1] == FRAME


def test_bswp_zero_exchanges_frames_and_nothing_else() -> None:
    ledma = Ledma(GuestMemory(4096))
    chip = Chip(path=ledma, bswp=False)
    ledma._bus = chip.memory
    ledma.write(0xC, 0)
    chip.give_rx(0, BUFFERS, 1544)
    chip.start()
    octets = PADR + bytes(range(54))
    assert chip.lance.receive(octets)
    chip.poll()
    assert chip.rmd(0) == (BUFFERS, FRAME, 0xF9F8, 64)
    assert chip.get(BUFFERS + 6, 4) == bytes([1, 0, 3, 2])
    fcs = zlib.crc32(octets).to_bytes(4, "little")
    assert chip.get(BUFFERS + 60, 4) == bytes([fcs[1], fcs[0], fcs[3], fcs[2]])
    chip.give_tx(0, 0x4000, bytes([1, 0, 3, 2]))
    chip.csr0 = csr.INEA | csr.TDMD
    (frame,) = chip.lance.frames()
    assert bytes(frame.iov) == bytes([0, 1, 2, 3])


# The doorbell and polling


def test_readable_while_frames_wait() -> None:
    chip = started()
    assert is_readable(chip.lance), "STRT polls"
    assert list(chip.lance.frames()) == []
    assert not is_readable(chip.lance)
    chip.give_tx(0, 0x4000, frame_of(60))
    assert not is_readable(chip.lance)
    chip.csr0 = csr.INEA | csr.TDMD
    assert is_readable(chip.lance)
    assert chip.csr0 & csr.TDMD
    assert len(list(chip.lance.frames())) == 1
    assert not is_readable(chip.lance)
    assert not chip.csr0 & csr.TDMD
    chip.lance.close()


def test_readable_while_more_wait_than_one_call_yields() -> None:
    chip = started(tx=128, memory=2 << 20)
    for index in range(128):
        chip.give_tx(index, 0x10000 + 0x1000 * index, frame_of(60))
    chip.csr0 = csr.INEA | csr.TDMD
    next(chip.lance.frames())
    assert is_readable(chip.lance)
    while frames := list(chip.lance.frames()):
        assert len(frames) <= 64
    assert not is_readable(chip.lance)
    chip.lance.close()


def test_polling_is_slow_until_frames_come_unannounced() -> None:
    chip = started()
    list(chip.lance.frames())
    assert chip.poll() == chip.clock.now + TX_POLL_IDLE
    chip.give_tx(0, 0x4000, frame_of(60))
    assert chip.poll(0.05) == chip.clock.now + TX_POLL_INTERVAL
    assert is_readable(chip.lance)
    (frame,) = chip.lance.frames()
    frame.release()
    assert chip.poll(0.01) == chip.clock.now + TX_POLL_INTERVAL
    assert chip.poll(TX_POLL_ACTIVE_FOR) == chip.clock.now + TX_POLL_IDLE
    chip.lance.close()


def test_polling_looks_no_more_often_than_that() -> None:
    chip = started()
    list(chip.lance.frames())
    deadline = chip.poll()
    chip.give_tx(0, 0x4000, frame_of(60))
    assert chip.poll(TX_POLL_IDLE / 2) == deadline
    assert not is_readable(chip.lance)
    chip.poll(TX_POLL_IDLE / 2)
    assert is_readable(chip.lance)
    chip.lance.close()


def test_polling_stays_slow_for_drivers_that_say_so() -> None:
    chip = started()
    list(chip.lance.frames())
    chip.give_tx(0, 0x4000, frame_of(60))
    chip.csr0 = csr.INEA | csr.TDMD
    assert chip.poll() == chip.clock.now + TX_POLL_IDLE


def test_a_stopped_chip_has_no_deadline() -> None:
    chip = started()
    chip.csr0 = csr.STOP
    assert chip.poll() is None
    assert chip.lance.claim(60) is None
    assert chip.poll() is None


def test_a_chip_with_dtx_is_not_polled() -> None:
    assert started(init_block.DTX).poll() is None


def filled(chip: Chip) -> None:
    """All of the RX ring is the guest's."""
    for index in range(chip.block.rx_ring.entries):
        chip.give_rx(index, BUFFERS + 0x1000 * index, 1544, flags=0)
    list(chip.lance.frames())


def test_room_is_noticed_by_poll() -> None:
    chip = started()
    filled(chip)
    assert chip.lance.claim(1514) is None
    begin = chip.clock.now
    assert chip.poll() == begin + ROOM_POLL_INTERVAL
    assert not is_readable(chip.lance)
    chip.give_rx(0, BUFFERS, 1544)
    assert chip.poll(0.001) == begin + TX_POLL_IDLE
    assert is_readable(chip.lance)
    assert list(chip.lance.frames()) == []
    assert not is_readable(chip.lance)
    assert chip.lance.claim(1514) is not None
    chip.lance.close()


@pytest.mark.parametrize("access", ["read", "write"])
def test_room_is_noticed_at_a_register_access(access: str) -> None:
    chip = started()
    filled(chip)
    assert chip.lance.claim(1514) is None
    chip.csr0 = csr.INEA
    assert not is_readable(chip.lance)
    chip.give_rx(0, BUFFERS, 1544)
    if access == "read":
        chip.lance.read(csr.RDP)
    else:
        chip.lance.write(csr.RDP, csr.INEA)
    assert is_readable(chip.lance)
    chip.lance.close()


def test_room_for_the_smallest_refused_claim_is_enough() -> None:
    chip = started(rx_buffer=128)
    filled(chip)
    assert chip.lance.claim(1000) is None
    assert chip.lance.claim(60) is None
    chip.give_rx(0, BUFFERS, 128)
    chip.poll()
    assert is_readable(chip.lance)
    chip.lance.close()


def test_room_that_a_cancelled_claim_gives_back() -> None:
    chip = started(rx=1)
    list(chip.lance.frames())
    claim = chip.lance.claim(60)
    assert claim is not None
    assert chip.lance.claim(60) is None
    claim.cancel()
    chip.poll()
    assert is_readable(chip.lance)
    chip.lance.close()


def test_a_claim_refused_by_a_stopped_chip_is_told_at_strt() -> None:
    chip = Chip()
    assert chip.lance.claim(60) is None
    chip.give_rx(0, BUFFERS, 1544)
    chip.start()
    assert is_readable(chip.lance)
    assert chip.lance.claim(60) is not None
    chip.lance.close()


def test_flow_goes_on_by_itself() -> None:
    """A loop that only waits for the descriptor and the deadline moves everything."""
    chip = started(rx=4)
    list(chip.lance.frames())
    waiting = [frame_of(60)[:59] + bytes([i]) for i in range(40)]
    got: list[int] = []
    index = 0
    while len(got) < 40:
        while waiting and (claim := chip.lance.claim(60)):
            claim.iov.copy_from(waiting.pop(0))
            claim.commit(60)
        deadline = chip.poll()
        assert deadline is not None
        for _ in range(3):  # the guest is slow, and touches no register
            if not chip.rmd(index)[1] & OWN:
                got.append(chip.get(BUFFERS + 0x1000 * index + 59, 1)[0])
                chip.give_rx(index, BUFFERS + 0x1000 * index, 1544)
                index = (index + 1) % 4
        chip.clock.until(deadline)
        list(chip.lance.frames())
    assert got == list(range(40))


@pytest.mark.parametrize("max_frame", [59, 4092])
def test_a_frame_length_that_cannot_work(max_frame: int) -> None:
    with pytest.raises(ValueError, match="60 to 4091"):
        Chip(max_frame=max_frame)


def test_longer_frames_by_choice() -> None:
    chip = Chip(max_frame=4000)
    chip.give_rx(0, BUFFERS, 4096)
    chip.start()
    claim = chip.lance.claim(4000)
    assert claim is not None
    claim.iov.copy_from(frame_of(4000))
    claim.commit(4000)
    chip.poll()
    assert chip.rmd(0)[3] == 4004


def test_more_completions_than_one_poll_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nic.engine.COMPLETIONS_PER_POLL", 2)
    chip = started(rx=4)
    for _ in range(3):
        assert chip.lance.receive(frame_of(60))
    assert chip.poll() == chip.clock.now
    assert [chip.rmd(i)[1] for i in range(3)] == [FRAME, FRAME, OWN]
    chip.poll()
    assert chip.rmd(2)[1] == FRAME


# Loopback


def looped(mode: int, octets: bytes, **options: int) -> Chip:
    chip = started(mode, **options)
    chip.give_tx(0, 0x4000, octets)
    chip.csr0 = csr.INEA | csr.TDMD
    return chip


def test_internal_loopback_appends_the_fcs() -> None:
    octets = frame_of(32)
    chip = looped(INTERNAL, octets)
    while chip.poll() == chip.clock.now:
        pass
    assert chip.tmd(0)[1] == FRAME
    assert chip.rmd(0)[1] == FRAME
    assert chip.rmd(0)[3] == 36
    assert chip.get(BUFFERS, 36) == octets + zlib.crc32(octets).to_bytes(4, "little")
    assert chip.csr0 & (csr.RINT | csr.TINT) == csr.RINT | csr.TINT


def test_internal_loopback_is_cut_off_from_the_wire() -> None:
    chip = looped(INTERNAL, frame_of(32))
    assert list(chip.lance.frames()) == []
    assert chip.lance.claim(60) is None
    assert not chip.lance.receive(frame_of(60))


@pytest.mark.parametrize(("fcs", "flags"), [(None, FRAME), (b"nope", FRAME | ERR | 0x0800)])
def test_internal_loopback_with_dtcr_checks_the_guests_fcs(fcs: bytes | None, flags: int) -> None:
    octets = frame_of(28)
    octets += fcs or zlib.crc32(octets).to_bytes(4, "little")
    chip = looped(INTERNAL | init_block.DTCR, octets)
    while chip.poll() == chip.clock.now:
        pass
    assert chip.rmd(0)[1] == flags
    assert chip.rmd(0)[3] == 32
    assert chip.get(BUFFERS, 32) == octets


def test_internal_loopback_filters() -> None:
    chip = looped(INTERNAL, frame_of(32, OTHER))
    while chip.poll() == chip.clock.now:
        pass
    assert chip.tmd(0)[1] == FRAME
    assert chip.rmd(0)[1] == OWN


def test_internal_loopback_chains_into_small_buffers_and_never_misses() -> None:
    chip = looped(INTERNAL, frame_of(32), rx_buffer=32, rx=4)
    while chip.poll() == chip.clock.now:
        pass
    assert [chip.rmd(i)[1] for i in range(3)] == [STP, ENP, OWN]
    assert chip.rmd(1)[3] == 36
    chip = looped(INTERNAL, frame_of(32))
    filled(chip)
    while chip.poll() == chip.clock.now:
        pass
    assert not chip.csr0 & csr.MISS
    assert chip.tmd(0)[1] == FRAME
    chip = looped(INTERNAL | init_block.DRX, frame_of(32))
    while chip.poll() == chip.clock.now:
        pass
    assert [chip.tmd(0)[1], chip.rmd(0)[1]] == [FRAME, OWN]


def test_forced_collision() -> None:
    chip = looped(INTERNAL | init_block.COLL, frame_of(32))
    while chip.poll() == chip.clock.now:
        pass
    assert chip.tmd(0)[1] == FRAME | ERR
    assert chip.tmd(0)[3] == 0x0400
    assert chip.rmd(0)[1] == OWN
    assert chip.csr0 & (csr.TINT | csr.TXON) == csr.TINT | csr.TXON


def test_external_loopback_goes_both_ways() -> None:
    octets = frame_of(60)
    chip = looped(init_block.LOOP, octets)
    (frame,) = chip.lance.frames()
    assert bytes(frame.iov) == octets
    frame.release()
    assert chip.lance.receive(frame_of(60, b"\xff" * 6)), "others are heard too"
    chip.poll()
    assert [chip.rmd(i)[1] for i in range(2)] == [FRAME, FRAME]
    assert chip.get(BUFFERS, 60) == octets


def test_external_loopback_with_dtcr() -> None:
    octets = frame_of(60)
    chip = looped(init_block.LOOP | init_block.DTCR, octets + b"nope")
    (frame,) = chip.lance.frames()
    assert bytes(frame.iov) == octets
    chip.poll()
    assert chip.rmd(0)[1] == FRAME | ERR | 0x0800


# Garbage


class Hostile:
    """16 MiB that are one small page over and over; from some address on, faults."""

    def __init__(self, octets: bytes, faults_from: int) -> None:
        self.page = bytearray(octets)
        self.faults_from = faults_from
        self.opened = 0

    def open(self, transfer: Transfer) -> IoVec:
        views: list[memoryview] = []
        self.opened += 1
        for addr, length in transfer.ranges:
            assert 0 <= addr < addr + length <= 1 << 24
            if addr >= self.faults_from:
                raise DmaFault("hostile", addr, "nothing there")
            while length:
                start = addr % len(self.page)
                n = min(length, len(self.page) - start)
                views.append(memoryview(self.page)[start : start + n])
                addr += n
                length -= n
        return IoVec(tuple(views))


PAGE = 2048
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from([0, 0, 0, 2, 1]), st.integers(0, 0xFFFF)),
        st.tuples(
            st.just("command"),
            st.just(0),
            st.sampled_from([0x0004, 0x0001, 0x0003, 0x0042, 0x0043, 0x0048, 0x7F40]),
        ),
        st.tuples(st.just("read"), st.sampled_from([0, 2, 7]), st.just(0)),
        st.tuples(st.just("scribble"), st.integers(0, PAGE - 1), st.integers(0, 0xFF)),
        st.tuples(st.just("receive"), st.integers(0, 4200), st.just(0)),
        st.tuples(st.just("claim"), st.integers(14, 1514), st.just(0)),
        st.tuples(st.just("claim"), st.integers(14, 100), st.just(0)),
        st.tuples(st.just("commit"), st.integers(0, 5), st.integers(14, 1514)),
        st.tuples(st.just("commit"), st.integers(0, 5), st.integers(14, 100)),
        st.tuples(st.just("cancel"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("frames"), st.just(0), st.just(0)),
        st.tuples(st.just("release"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("poll"), st.just(0), st.just(0)),
    ),
    min_size=10,
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.integers(0, 255),
    st.sampled_from([1 << 24, 1 << 22, PAGE]),
    STEPS,
)
def test_no_garbage_raises_or_runs_away(
    seed: int, mode: int, faults_from: int, steps: list[tuple[str, int, int]]
) -> None:
    page = bytearray(Random(seed).randbytes(PAGE))
    for status in range(2, PAGE, 8):  # most descriptors are the chip's
        page[status] |= 0x80
    page[0:2] = bytes([0x80 if mode & 1 else 0, mode & 0x5C])
    memory = Hostile(bytes(page), faults_from)
    levels = [False]
    lance = Lance(memory, levels.append)
    claims, out = [], []
    for what, first, second in [("command", 0, 0x0001), ("command", 0, 0x0042), *steps]:
        before = memory.opened
        match what:
            case "write":
                lance.write(first, second)
            case "command":
                lance.write(csr.RAP, 0)
                lance.write(csr.RDP, second)
            case "read":
                assert 0 <= lance.read(first) <= 0xFFFF
            case "scribble":
                memory.page[first] = second
            case "receive":
                lance.receive(frame_of(first, b"\xff" * 6))
            case "claim" if (claim := lance.claim(first, (14,))) is not None:
                claim.iov.copy_from(frame_of(first, b"\xff" * 6))
                claims.append(claim)
            case "commit" if claims:
                claim = claims.pop(first % len(claims))
                claim.commit(min(second, len(claim.iov)))
            case "cancel" if claims:
                claims.pop(first % len(claims)).cancel()
            case "frames":
                for frame in lance.frames():
                    assert len(frame.iov) <= 25_000
                    out.append(frame)
            case "release" if out:
                out.pop(first % len(out)).release()
            case "poll":
                lance.poll(1.0)
        assert memory.opened - before <= 128 * 130 * 2
        lance.write(csr.RAP, 0)
        assert levels[-1] == (lance.read(csr.RDP) & 0xC0 == 0xC0)
