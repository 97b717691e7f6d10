"""The scoreboard, against a set of bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slirp.tcp.loss import FAST, SACKED_RANGES_MAX, TIMEOUT, WATCHING, Loss
from slirp.tcp.seq import MASK

FLIGHT = 400
blocks = st.lists(
    st.tuples(st.integers(-50, FLIGHT + 50), st.integers(-5, 80)), min_size=1, max_size=12
)
origins = st.sampled_from([0, 7777, MASK - 150, MASK])


def noted(loss: Loss, una: int, spans: list[tuple[int, int]]) -> set[int]:
    """Enter the blocks; the bytes that are lawfully covered."""
    loss.note_sack(
        [((una + at) & MASK, (una + at + size) & MASK) for at, size in spans],
        una,
        (una + FLIGHT) & MASK,
    )
    return {
        place
        for at, size in spans
        if 0 < at < at + size <= FLIGHT
        for place in range(at, at + size)
    }


@given(blocks, origins)
def test_sacked_octets(spans: list[tuple[int, int]], una: int) -> None:
    loss = Loss(una)
    covered = noted(loss, una, spans)
    assert loss.sacked == len(covered)
    assert len(loss.ranges) <= SACKED_RANGES_MAX


@given(blocks, origins, st.integers(1, 60))
def test_every_hole_is_sent_again_once(spans: list[tuple[int, int]], una: int, piece: int) -> None:
    loss = Loss(una)
    noted(loss, una, spans)
    snd_max = (una + FLIGHT) & MASK
    loss.start_timeout(una, snd_max, snd_max, 10)
    covered = noted(loss, una, spans)  # the guest reports anew
    resent: list[int] = []
    while (hole := loss.hole(una)) is not None:
        start, stop = (hole[0] - una) & MASK, (hole[1] - una) & MASK
        assert start < stop
        stop = min(stop, start + piece)
        resent += range(start, stop)
        loss.sent_again((una + stop) & MASK, snd_max, 0)
        missing = set(range(FLIGHT)) - covered - set(resent)
        assert loss.pipe(una, snd_max) == FLIGHT - len(covered) - len(missing)
    assert resent == sorted(set(range(FLIGHT)) - covered)


@given(blocks, origins)
def test_fast_recovery_takes_what_lies_below_the_highest_block_as_lost(
    spans: list[tuple[int, int]], una: int
) -> None:
    loss = Loss(una)
    covered = noted(loss, una, spans)
    snd_max = (una + FLIGHT) & MASK
    loss.start_fast(una, snd_max, snd_max, 10)
    lost: list[int] = []
    while (hole := loss.hole(una)) is not None:
        lost += range((hole[0] - una) & MASK, (hole[1] - una) & MASK)
        loss.sent_again(hole[1], snd_max, 0)
    assert set(lost).isdisjoint(covered)
    if covered:
        assert lost == [n for n in range(max(covered)) if n not in covered]
    else:
        assert lost == list(range(10))


@given(blocks, origins, st.integers(1, FLIGHT))
def test_what_is_acknowledged_is_forgotten(
    spans: list[tuple[int, int]], una: int, acked: int
) -> None:
    loss = Loss(una)
    covered = noted(loss, una, spans)
    loss.trim((una + acked) & MASK)
    assert loss.sacked == len({place for place in covered if place >= acked})
    assert all((left - una) & MASK >= acked for left, _ in loss.ranges)


def test_recovery_ends_with_what_was_in_flight() -> None:
    loss = Loss(0)
    loss.start_fast(0, 100_000, 100_000, 1000)
    assert loss.mode == FAST
    assert loss.cwnd == loss.ssthresh == 50_000
    assert loss.on_ack(40_000, 40_000, 100_000, 1000)
    assert loss.mode == FAST
    assert loss.on_ack(60_000, 100_000, 100_000, 1000) is False
    assert loss.mode == WATCHING
    assert loss.cwnd == 50_000
    assert not loss.is_over(60_000)
    assert loss.is_over(50_000)


def test_a_second_timeout_does_not_halve_again() -> None:
    loss = Loss(0)
    loss.start_timeout(0, 100_000, 100_000, 1000)
    assert (loss.mode, loss.cwnd, loss.ssthresh) == (TIMEOUT, 1000, 50_000)
    loss.start_timeout(0, 100_000, 100_000, 1000)
    assert loss.ssthresh == 50_000


def test_a_few_segments_may_always_be_in_flight() -> None:
    loss = Loss(0)
    loss.start_fast(0, 2000, 2000, 1000)
    assert loss.cwnd == 10_000


def test_slow_start_and_then_an_eighth() -> None:
    loss = Loss(0)
    loss.start_timeout(0, 16_000, 16_000, 1000)
    una = 0
    windows: list[int] = []
    while loss.mode == TIMEOUT or len(windows) < 8:
        una += loss.cwnd
        loss.on_ack(loss.cwnd, una, 16_000, 1000)
        windows.append(loss.cwnd)
    assert windows[:6] == [2000, 4000, 8000, 16_000, 18_000, 20_250]
