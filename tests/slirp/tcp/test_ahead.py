"""The ranges ahead of RCV.NXT, against a set of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slirp.tcp.ahead import AHEAD_RANGES_MAX, Ahead, Shelf
from slirp.tcp.seq import MASK
from slirp.wire.tcp import ACK
from tests.kit.peer import established, guest_octets

STREAM = 300
spans = st.tuples(st.integers(0, STREAM - 1), st.integers(1, 60))
origins = st.sampled_from([0, 1000, MASK - 100, MASK])


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 40)), max_size=40), origins)
def test_every_octet_is_kept_once(adds: list[tuple[int, int]], origin: int) -> None:
    ahead = Ahead()
    held: set[int] = set()
    for start, size in adds:
        new = set(range(start, start + size)) - held
        span = ahead.add((origin + start) & MASK, (origin + start + size) & MASK, origin)
        if span is None:
            assert not new or len(ahead.ranges) >= AHEAD_RANGES_MAX
            continue
        left, right = (span[0] - origin) & MASK, (span[1] - origin) & MASK
        got = set(range(left, right))
        assert got
        assert got <= new
        assert min(got) == min(new)
        held |= got
        first = (ahead.ranges[0][0] - origin) & MASK, (ahead.ranges[0][1] - origin) & MASK
        assert first[0] <= left < right <= first[1], "the latest range is not the first"
    covered = [
        place
        for left, right in ahead.ranges
        for place in range((left - origin) & MASK, (right - origin) & MASK)
    ]
    assert sorted(covered) == sorted(held)
    assert ahead.octets == len(held)
    assert ahead.gap(origin) == min(held, default=MASK)


@given(st.lists(spans, max_size=60), origins)
def test_any_cuts_in_any_order_make_the_stream(pieces: list[tuple[int, int]], irs: int) -> None:
    c = established(irs=irs)
    for start, size in [*pieces, *((place, 1) for place in range(STREAM))]:
        c.receives(ACK, seq=1 + start, ack=1, length=min(size, STREAM - start))
        assert c.mirror.received == guest_octets(1, len(c.mirror.received))
    assert len(c.mirror.received) == STREAM
    assert c.connection.receive.ahead is None
    assert c.mirror.kept == {}


@given(st.permutations([(0, 50), (50, 100), (100, 150), (150, 200)]), st.booleans())
def test_the_fin_is_last_whenever_it_comes(order: list[tuple[int, int]], alone: bool) -> None:
    c = established()
    for start, stop in order:
        last = stop == 200 and not alone
        c.receives(ACK | last, seq=1 + start, ack=1, length=stop - start)
        if stop == 200 and alone:
            c.receives(ACK | 1, seq=201, ack=1)
    assert c.mirror.received == guest_octets(1, 200)
    assert c.mirror.guest_closed
    assert c.connection.receive.nxt == (c.irs + 202) & MASK


def test_a_shelf_is_full_when_the_one_that_it_is_part_of_is() -> None:
    whole = Shelf(1000)
    ours, theirs = Shelf(500, whole), Shelf(500, whole)
    ours.charge(500)
    assert ours.is_full()
    assert not theirs.is_full()
    whole.charge(500)
    assert theirs.is_full()
    ours.charge(-500)
    whole.charge(-500)
    assert not ours.is_full()
    assert whole.left == 1000
