"""What a guest can write into a ring: nothing of it raises, hangs, or leaves its memory."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic.vhost_user.memory import SLOTS_MAX
from nic.virtio.chain import CHAIN_MAX, BrokenRing, follow
from nic.virtio.device import RANGES_PER_CALL
from nic.virtio.features import (
    EVENT_IDX,
    INDIRECT_DESC,
    MRG_RXBUF,
    OFFERED,
    RING_PACKED,
    VERSION_1,
)
from tests.kit.frontend import INDIRECT, NEXT, WRITE, PackedDriver, SplitDriver
from tests.nic.vhost_user.test_port import ALL, FRAME, Wire, wired

SPLIT = {"split": ALL, "split, no events": ALL & ~EVENT_IDX, "legacy": 0}
PACKED = {"packed": OFFERED, "packed, plain": VERSION_1 | RING_PACKED}
BOTH = SPLIT | PACKED


def split_of(wire: Wire, index: int) -> SplitDriver:
    ring = wire.front.rings[index]
    assert isinstance(ring, SplitDriver)
    return ring


def packed_of(wire: Wire, index: int) -> PackedDriver:
    ring = wire.front.rings[index]
    assert isinstance(ring, PackedDriver)
    return ring


# One mistake each


def loop(ring: SplitDriver) -> None:
    ring.describe(0, 0x10000, 100, NEXT, 1)
    ring.describe(1, 0x10000, 100, NEXT, 0)
    ring.offer(0)


def loop_of_one(ring: SplitDriver) -> None:
    ring.describe(0, 0x10000, 100, NEXT, 0)
    ring.offer(0)


def head_outside(ring: SplitDriver) -> None:
    ring.offer(ring.size)


def next_outside(ring: SplitDriver) -> None:
    ring.describe(0, 0x10000, 100, NEXT, ring.size)
    ring.offer(0)


def too_far_ahead(ring: SplitDriver) -> None:
    ring.avail[1] = ring.size + 1


def behind(ring: SplitDriver) -> None:
    ring.avail[1] = 0xFFFF


def outside_memory(ring: SplitDriver) -> None:
    ring.describe(0, 1 << 40, 100, 0)
    ring.offer(0)


def end_outside_memory(ring: SplitDriver) -> None:
    ring.describe(0, len(ring.memory) - 50, 100, 0)
    ring.offer(0)


def address_wraps(ring: SplitDriver) -> None:
    ring.describe(0, (1 << 64) - 50, 100, 0)
    ring.offer(0)


def other_direction(ring: SplitDriver) -> None:
    ring.describe(0, 0x10000, 100, WRITE)
    ring.offer(0)


def other_direction_later(ring: SplitDriver) -> None:
    ring.describe(0, 0x10000, 100, NEXT, 1)
    ring.describe(1, 0x10000, 100, WRITE)
    ring.offer(0)


def table(ring: SplitDriver, *entries: tuple[int, int, int, int], length: int = 0) -> None:
    at = ring.front.allocate(16 * len(entries))
    for n, entry in enumerate(entries):
        ring.write(at + 16 * n, struct.pack("<QIHH", *entry))
    ring.describe(0, at, length or 16 * len(entries), INDIRECT)
    ring.offer(0)


def table_in_a_table(ring: SplitDriver) -> None:
    table(ring, (0x10000, 16, INDIRECT, 0))


def table_that_loops(ring: SplitDriver) -> None:
    table(ring, (0x10000, 100, NEXT, 0))


def table_that_leads_out(ring: SplitDriver) -> None:
    table(ring, (0x10000, 100, NEXT, 1))


def table_of_odd_length(ring: SplitDriver) -> None:
    table(ring, (0x10000, 100, 0, 0), length=17)


def table_too_long(ring: SplitDriver) -> None:
    table(ring, (0x10000, 100, 0, 0), length=16 * (CHAIN_MAX + 1))


def table_of_nothing(ring: SplitDriver) -> None:
    ring.describe(0, 0x10000, 0, INDIRECT)
    ring.offer(0)


def table_with_a_next(ring: SplitDriver) -> None:
    ring.describe(0, 0x10000, 16, INDIRECT | NEXT, 1)
    ring.offer(0)


def table_outside_memory(ring: SplitDriver) -> None:
    ring.describe(0, 1 << 40, 16, INDIRECT)
    ring.offer(0)


MISTAKES: dict[Callable[[SplitDriver], None], str] = {
    loop: "a chain that does not end",
    loop_of_one: "a chain that does not end",
    head_outside: "has head 256 in a ring of 256",
    next_outside: "has descriptor 256 in a table of 256",
    too_far_ahead: "is 257 buffers ahead in a ring of 256",
    behind: "is 65535 buffers ahead",
    outside_memory: "0x10000000000: outside RAM",
    end_outside_memory: "0x800000: outside RAM",
    address_wraps: "outside RAM",
    other_direction: "a buffer for the other direction",
    other_direction_later: "a buffer for the other direction",
    table_in_a_table: "an indirect table inside another",
    table_that_loops: "a chain that does not end",
    table_that_leads_out: "has descriptor 1 in a table of 1",
    table_of_odd_length: "an indirect table of 17 bytes",
    table_too_long: "an indirect table of 16400 bytes",
    table_of_nothing: "without a table",
    table_with_a_next: "with a next one",
    table_outside_memory: "0x10000000000: outside RAM",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_broken_transmit_ring_ends_its_connection(mistake: Callable[[SplitDriver], None]) -> None:
    with wired(ALL) as wire, wired(ALL) as other:
        ring = split_of(wire, 1)
        mistake(ring)
        ring.kick()
        wire.turn()
        assert len(wire.gone) == 1
        assert MISTAKES[mistake] in wire.gone[0]
        assert wire.port.broken
        assert wire.sent == []
        other.front.transmit.send(FRAME)
        other.turn()
        assert other.sent == [FRAME]


def test_a_broken_ring_rings_the_error_descriptor() -> None:
    with wired(ALL) as wire:
        ring = split_of(wire, 1)
        head_outside(ring)
        ring.kick()
        wire.turn()
        assert os.eventfd_read(wire.front.errors[0]) == 1


@pytest.mark.parametrize(
    "mistake", [m for m in MISTAKES if m is not other_direction], ids=lambda m: m.__name__
)
def test_a_broken_receive_ring_is_told_of_when_it_may_be(
    mistake: Callable[[SplitDriver], None],
) -> None:
    """claim() says no more than None; the end comes from poll()."""
    with wired(ALL) as wire:
        mistake(split_of(wire, 0))
        assert wire.port.claim(1000) is None
        assert wire.gone == []
        assert wire.readable
        wire.turn()
        assert len(wire.gone) == 1
        assert wire.port.broken


@pytest.mark.parametrize("room", [0, 1, 11, 12])
def test_a_receive_buffer_without_room_breaks_the_ring(room: int) -> None:
    with wired(ALL) as wire:
        wire.front.receive.post(room)
        assert wire.port.claim(60) is None
        wire.port.poll(0.0)
        assert wire.gone == [f"has a receive buffer of {room} bytes"]


def test_indirect_has_to_be_agreed_upon() -> None:
    for features in (VERSION_1, VERSION_1 | RING_PACKED):
        with wired(features) as wire:
            wire.front.transmit.send(FRAME, indirect=True)
            wire.turn()
            assert wire.gone == ["has an indirect descriptor, which was not agreed upon"]


# Packed rings


def flags_of(ring: PackedDriver) -> int:
    return 1 << 7 if ring.wrap else 1 << 15


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([(0x10000, 100, NEXT)] * 8, "a chain that does not end"),
        ([(0x10000, 100, WRITE)], "the other direction"),
        ([(0x10000, 100, NEXT), (0x10000, 16, INDIRECT)], "an indirect descriptor in a chain"),
        ([(0x10000, 16, INDIRECT | NEXT), (0, 0, 0)], "with a next one"),
        ([(0x10000, 15, INDIRECT)], "an indirect table of 15 bytes"),
        ([(0x10000, 0, INDIRECT)], "an indirect table of 0 bytes"),
        ([(1 << 40, 16, INDIRECT)], "outside RAM"),
        ([(1 << 40, 100, 0)], "outside RAM"),
    ],
)
def test_a_broken_packed_ring(entries: list[tuple[int, int, int]], why: str) -> None:
    with wired(OFFERED, size=8) as wire:
        ring = packed_of(wire, 1)
        for n, (addr, length, flags) in enumerate(entries):
            struct.pack_into("<QIH", ring.table, 16 * n, addr, length, 0)
            ring.set_flags(n, flags | flags_of(ring))
        ring.kick()
        wire.turn()
        assert len(wire.gone) == 1
        assert why in wire.gone[0]


def test_a_packed_table_in_a_table() -> None:
    with wired(OFFERED, size=8) as wire:
        ring = packed_of(wire, 1)
        at = wire.front.allocate(16)
        ring.write(at, struct.pack("<QIHH", 0x10000, 16, 0, INDIRECT))
        struct.pack_into("<QIH", ring.table, 0, at, 16, 0)
        ring.set_flags(0, INDIRECT | flags_of(ring))
        ring.kick()
        wire.turn()
        assert wire.gone == ["has an indirect table inside another"]


def test_a_packed_ring_has_no_more_than_it_holds() -> None:
    """The driver makes descriptors available again that were not given back."""
    with wired(OFFERED, size=4) as wire:
        ring = packed_of(wire, 0)
        for _ in range(4):
            ring.post(40)
        assert wire.port.claim(14 * 10) is not None
        for n in range(4):
            ring.set_flags(n, WRITE | 1 << 15)
        assert wire.port.claim(60) is None
        wire.port.poll(0.0)
        assert wire.gone == ["has more descriptors out than there are in a ring of 4"]


@pytest.mark.parametrize("base", [0xFFFF, 0x8100, 0x8000 | 0x8100 << 16])
def test_a_packed_ring_begins_inside(base: int) -> None:
    with wired(OFFERED, started=False) as wire:
        wire.front.negotiate(OFFERED)
        wire.front.start([base, base])
        assert len(wire.gone) == 1
        assert "goes on at" in wire.gone[0]


# Anything at all


def words_of(choice: random.Random) -> bytes:
    """Length, id and flags, or length, flags and next."""
    flags = choice.choice((0, NEXT, WRITE, INDIRECT, 0x80, 0x82, 0x8000, 0x8002))
    words = [choice.randrange(8), flags]
    choice.shuffle(words)
    return struct.pack("<IHH", choice.randrange(4096), *words)


NONSENSE: list[Callable[[random.Random], bytes]] = [
    lambda choice: choice.randbytes(8),
    lambda choice: bytes(8),
    words_of,
    lambda choice: struct.pack("<HHHH", 0, choice.randrange(9), 0, choice.randrange(9)),
    lambda choice: struct.pack("<Q", choice.randrange(1 << 20)),
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(BOTH)), st.integers(0, 1 << 32), st.integers(1, 200))
def test_any_bytes_in_any_ring(kind: str, seed: int, count: int) -> None:
    """Rings that are overwritten while they run: the port goes on, or is gone with a word."""
    choice = random.Random(seed)
    with wired(BOTH[kind], size=8, memory=1 << 20) as wire:
        front = wire.front
        for _ in range(4):
            front.receive.post(2000)
        area = len(front.rings) * front.rings[1].at
        for _ in range(count):
            at = choice.randrange(area // 8) * 8
            front.memory[at : at + 8] = choice.choice(NONSENSE)(choice)
            front.transmit.kick()
            claim = wire.port.claim(choice.choice((60, 1514)))
            if claim is not None and choice.random() < 0.8:
                claim.commit(60)
            for _ in range(3):  # not until it rests: a ring of nonsense may never
                for frame in wire.port.frames():
                    bytes(frame.iov)
                    frame.release()
                wire.port.poll(0.0)
            if wire.gone:
                assert len(wire.gone) == 1
                break


def sizes() -> st.SearchStrategy[list[tuple[int, list[int], bool]]]:
    piece = st.tuples(
        st.integers(14, 1500), st.lists(st.integers(1, 1500), max_size=5), st.booleans()
    )
    return st.lists(piece, min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(BOTH)), sizes(), st.integers(0, 1 << 32), st.integers(3, 6))
def test_any_traffic_arrives(
    kind: str, frames: list[tuple[int, list[int], bool]], seed: int, log2: int
) -> None:
    """Frames in any pieces, rings of any size, stops and starts: all arrive, in order."""
    features = BOTH[kind]
    choice = random.Random(seed)
    expected: list[bytes] = []
    received: list[bytes] = []
    with wired(features, size=1 << log2) as wire:
        front = wire.front
        for length, cuts, indirect in frames:
            frame = choice.randbytes(length)
            front.transmit.send(
                frame, cuts=cuts, indirect=indirect and bool(features & INDIRECT_DESC)
            )
            expected.append(frame)
            if features & MRG_RXBUF:
                for _ in range(3):
                    if len(front.receive.free) > 4:
                        front.receive.post(600)
            elif len(front.receive.free) > 4:
                front.receive.post(front.header_len, 1514)
            if choice.random() < 0.1:
                bases = [front.stop_ring(index) for index in (0, 1)]
                for index in (0, 1):
                    front.start_ring(index, bases[index])
            wire.turn()
            front.transmit.used()
            if choice.random() < 0.3:
                claim = wire.port.claim(1514)
                if claim is not None:
                    claim.cancel()
            if wire.give(frame, claimed=choice.choice((length, 1514))):
                received.append(frame)
            got = [octets for _, octets in front.receive.collect()]
            assert got == received
            received.clear()
        assert wire.gone == []
        assert wire.sent == expected


# Reading once


class Watched:
    """Words that change after they were read."""

    def __init__(self, words: list[int]) -> None:
        self.words = words
        self.reads = [0] * len(words)

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, at: int) -> int:
        self.reads[at] += 1
        word = self.words[at]
        self.words[at] = 0xFFFF_FFFF_FFFF_FFFF
        return word


def test_each_word_of_a_chain_is_read_once() -> None:
    words = Watched([1000, 100 | NEXT << 32 | 2 << 48, 0, 0, 2000, 200 | 9 << 48])
    assert follow(words, 0, 0, 8) == [(1000, 100), (2000, 200)]  # type: ignore[arg-type]
    assert words.reads == [1, 1, 0, 0, 1, 1]


def test_a_chain_has_a_most() -> None:
    words = [0, 1 | NEXT << 32 | 1 << 48] * 10
    for n in range(10):
        words[2 * n + 1] = 1 | NEXT << 32 | (n + 1) % 10 << 48
    with pytest.raises(BrokenRing, match="does not end"):
        follow(words, 0, 0, 10)


# More than its share


def table_of(ring: SplitDriver | PackedDriver, entries: list[tuple[int, int]], flags: int) -> None:
    """Buffers of these, by one indirect table, as many as the ring has."""
    at = ring.front.allocate(16 * len(entries))
    is_packed = isinstance(ring, PackedDriver)
    for n, (addr, length) in enumerate(entries):
        more = NEXT if n + 1 < len(entries) and not is_packed else 0
        words = (0, flags) if is_packed else (flags | more, n + 1)
        ring.write(at + 16 * n, struct.pack("<QIHH", addr, length, *words))
    for n in range(ring.size):
        if isinstance(ring, PackedDriver):
            struct.pack_into("<QIH", ring.table, 16 * n, at, 16 * len(entries), n)
            ring.set_flags(n, INDIRECT | flags_of(ring))
            ring.spans[n] = 1
        else:
            ring.describe(n, at, 16 * len(entries), INDIRECT)
            ring.offer(n)
    ring.kick()


@pytest.mark.parametrize("features", [ALL, OFFERED], ids=["split", "packed"])
@pytest.mark.parametrize("length", [64, 70_000], ids=["frames", "no frames"])
def test_a_turn_looks_at_a_bounded_number_of_pieces(features: int, length: int) -> None:
    """Of all rings together, and whether a frame comes of it or not; each has its turn."""
    with wired(features, size=64, pairs=4, memory=64 << 20) as wire:
        rings = wire.front.rings[1::2]
        for ring in rings:
            table_of(ring, [(0x10000, length)] * CHAIN_MAX, 0)
        looked = 0
        turns = 0
        while not all(len(ring.used()) for ring in rings) and turns < 100:
            before = dict(wire.port.stats)
            for frame in wire.port.frames():
                frame.release()
            wire.port.poll(0.0)
            turns += 1
            after = wire.port.stats
            looked = max(looked, sum(after[k] - before[k] for k in ("tx_frames", "tx_dropped")))
        assert looked <= RANGES_PER_CALL // CHAIN_MAX + 1
        assert turns < 30
        assert wire.gone == []


@pytest.mark.parametrize("index", [0, 1], ids=["receive", "transmit"])
@pytest.mark.parametrize("features", [ALL, OFFERED], ids=["split", "packed"])
@pytest.mark.parametrize("indirect", [False, True])
def test_a_descriptor_of_no_bytes_breaks_the_ring(
    features: int, index: int, indirect: bool
) -> None:
    """As in QEMU; a thousand of them would cost as much as if they were something."""
    with wired(features) as wire:
        ring = wire.front.rings[index]
        addr = wire.front.allocate(100)
        ranges = [(addr, 12), (addr, 0), (addr + 12, 60)]
        ring.add(ranges, WRITE if index == 0 else 0, indirect=indirect)
        ring.kick()
        wire.port.claim(60)
        wire.turn()
        assert wire.gone == ["has a descriptor of no bytes"]


def test_a_buffer_that_was_not_given_back_is_not_taken_again_and_again() -> None:
    """A driver has as many as its ring, and one that claims more cannot fill our memory."""
    with wired(ALL, size=8) as wire:
        ring = split_of(wire, 1)
        ring.send(FRAME)
        held = []
        for _ in range(20):
            held += list(wire.port.frames())
            wire.port.poll(0.0)
            ring.offer(0)
            ring.kick()
        assert len(held) == 8
        assert wire.gone == ["has 9 buffers out in a ring of 8"]


@pytest.mark.parametrize("features", [ALL, OFFERED], ids=["split", "packed"])
@pytest.mark.parametrize("pieces", [1, 40])
def test_receive_buffers_that_no_call_could_fill(features: int, pieces: int) -> None:
    """The kernel takes 1,024 pieces at once."""
    with wired(features, size=4096, memory=64 << 20) as wire:
        for _ in range(4000 // pieces):
            wire.front.receive.post(*((16,) if pieces == 1 else (1,) * pieces))
        assert wire.port.claim(65_000) is None
        wire.turn()
        assert wire.gone == ["has receive buffers in more than 1024 pieces for one frame"]


@pytest.mark.parametrize("features", [ALL, OFFERED], ids=["split", "packed"])
def test_what_is_used_while_a_ring_is_nowhere_is_shown_when_it_is_back(features: int) -> None:
    with wired(features) as wire:
        front = wire.front
        heads = [front.receive.post(100) for _ in range(3)]
        claims = [wire.port.claim(60) for _ in range(2)]
        front.share_memory([(len(front.memory) - 4096, 4096)])
        for claim in claims:
            assert claim is not None
            claim.commit(60)
            wire.port.poll(0.0)
        front.share_memory()
        wire.port.poll(0.0)
        assert wire.give(FRAME)
        used = front.receive.used()
        assert [(u.id, u.length) for u in used] == [(head, 72) for head in heads]
        assert wire.gone == []


# Memory that is taken back

LOST = ["took back memory that it had lent"]


@pytest.mark.parametrize("features", [ALL, OFFERED], ids=["split", "packed"])
@pytest.mark.parametrize("size", [0, 4096])
def test_a_file_that_is_truncated_ends_its_machine_and_no_other(features: int, size: int) -> None:
    with wired(features, sealable=False) as wire, wired(features) as other:
        front = wire.front
        for _ in range(4):
            front.receive.post(100)
        front.transmit.send(FRAME, kick=False)
        held = wire.port.claim(60)
        assert held is not None
        os.ftruncate(front.fd, size)
        front.transmit.kick()
        held.commit(60)
        wire.turn()
        assert wire.gone == LOST
        assert wire.port.broken
        other.front.transmit.send(FRAME)
        other.turn()
        assert other.sent == [FRAME]
        assert not other.gone


def test_a_record_that_is_truncated() -> None:
    with wired(started=False) as wire:
        front = wire.front
        front.negotiate(ALL)
        fd = os.memfd_create("record")
        os.ftruncate(fd, 16384)
        front.send(32, struct.pack("=QQHH", 16384, 0, 2, 256), [fd])
        front.start()
        front.receive.post(100)
        os.ftruncate(fd, 0)
        os.close(fd)
        assert wire.port.claim(60) is not None
        wire.turn()
        assert wire.gone == LOST


def test_a_log_that_is_truncated() -> None:
    with wired(started=False) as wire:
        front = wire.front
        front.negotiate(ALL | 1 << 26)
        fd = os.memfd_create("log")
        os.ftruncate(fd, 4096)
        assert front.ask_number(6, struct.pack("=QQ", 4096, 0), [fd]) == 0
        front.start()
        front.receive.post(100)
        os.ftruncate(fd, 0)
        os.close(fd)
        assert wire.give(FRAME)
        wire.turn()
        assert wire.gone == LOST


def test_so_many_regions_and_no_more() -> None:
    with wired(started=False) as wire:
        front = wire.front
        front.negotiate(ALL)
        for n in range(SLOTS_MAX):
            region = struct.pack("=QQQQ", n * 4096, 4096, n * 4096, 0)
            assert front.acknowledged(37, struct.pack("=Q", 0) + region, [front.fd]) == 0
        front.send(37, struct.pack("=QQQQQ", 0, 1 << 40, 4096, 0, 0), [front.fd])
        assert wire.gone == [f"has more than {SLOTS_MAX} regions of memory"]


@pytest.mark.parametrize("start", [(1 << 64) - 4096, (1 << 64) - 1, 1 << 63])
def test_a_region_at_the_end_of_all_addresses(start: int) -> None:
    """The last page is one; what would go round is none. Rings lead nowhere else by it."""
    with wired(started=False) as wire:
        front = wire.front
        front.negotiate(ALL)
        size = 4096 if start & 4095 == 0 else 2
        message = struct.pack("=QQQQQ", 0, start, size, start, 0)
        front.send(37, message, [front.fd])
        if start + size > 1 << 64:
            assert len(wire.gone) == 1
            assert "cannot be mapped" in wire.gone[0]
            return
        front.send(8, struct.pack("=II", 1, 8))
        front.send(9, struct.pack("=IIQQQQ", 1, 0, start + 4090, start, start, 0))
        front.send(12, struct.pack("=Q", 1), [front.kicks[1]])
        os.eventfd_write(front.kicks[1], 1)
        wire.turn()
        assert wire.gone == []  # it rests
