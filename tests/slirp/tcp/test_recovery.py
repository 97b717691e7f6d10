"""Bytes to the guest: what may go, what is lost, what is sent again and when."""

from __future__ import annotations

import pytest

from slirp.tcp.connection import ACK_NOW, REWIND, SENDABLE, State
from slirp.tcp.seq import MASK
from slirp.wire.tcp import ACK, PSH, TcpOptions
from tests.kit.peer import Script, established

MSS = 1000


def sending(count: int = 10, **how: object) -> Script:
    """So many segments of 1,000 bytes are in flight."""
    offered = MSS + 12 if "ts" in how else MSS  # timestamps take their part of each segment
    c = established(guest_mss=offered, limit=MSS, **how)  # type: ignore[arg-type]
    c.host_writes(count * MSS)
    for place in range(count):
        push = PSH if place == count - 1 else 0
        c.sends(push | ACK, seq=1 + place * MSS, ack=1, length=MSS)
    c.sends_nothing()
    return c


def test_the_window_is_filled_at_once() -> None:
    c = sending(60, window=60_000)
    c.host_writes(5000)
    c.sends_nothing()
    outcome = c.receives(ACK, seq=1, ack=1001, window=60_000)
    assert outcome == (1000, 0, 0, SENDABLE)
    c.sends(ACK, seq=60_001, length=1000)
    c.sends_nothing()


def test_super_segments_end_at_whole_segments() -> None:
    c = established(guest_mss=MSS, limit=65_483)
    c.host_writes(100_000)
    c.sends(ACK, seq=1, length=65_000)
    c.receives(ACK, seq=1, ack=30_501)  # in the middle of a segment
    c.sends(ACK, seq=65_001, length=31_000)
    c.receives(ACK, seq=1, ack=96_001)
    c.sends(PSH | ACK, seq=96_001, length=4_000)


def test_a_relay_with_little_room_gets_little() -> None:
    c = established(guest_mss=MSS)
    for limit in (1, 999, 1000, 1001, 1999, 2000):
        assert c.connection.send.plan(limit, c.clock.now) == (0, limit // MSS * MSS or limit)


def test_a_sliver_of_window_is_not_filled() -> None:
    c = established(guest_mss=MSS, limit=MSS, window=5500)
    c.host_writes(6000)
    for place in range(5):
        c.sends(ACK, seq=1 + place * MSS, length=MSS)
    c.sends_nothing()  # 500 bytes of window are left: RFC 9293 §3.8.6.2.1
    c.receives(ACK, seq=1, ack=1001, window=5000)
    c.sends(PSH | ACK, seq=5001, length=MSS)


def test_a_small_window_is_filled_when_nothing_is_in_flight() -> None:
    c = established(guest_mss=MSS, window=300)
    c.host_writes(500)
    c.sends(ACK, seq=1, length=300)
    c.receives(ACK, seq=1, ack=301, window=300)
    c.sends(PSH | ACK, seq=301, length=200)


def test_a_guest_whose_window_is_always_small() -> None:
    c = established(guest_mss=MSS, window=300)
    c.connection.send.max_wnd = 300
    c.host_writes(1000)
    c.sends(ACK, seq=1, length=300)
    c.receives(ACK, seq=1, ack=151, window=300)
    c.sends(ACK, seq=301, length=150)  # half of the largest window


def test_timeout_sends_again_from_the_front_in_slow_start() -> None:
    c = sending(8)
    assert c.after(0.2) & REWIND
    c.sends(ACK, seq=1, length=MSS)
    c.sends_nothing()
    c.receives(ACK, seq=1, ack=1001)
    c.sends(ACK, seq=1001, length=MSS)
    c.sends(ACK, seq=2001, length=MSS)
    c.sends_nothing()
    c.receives(ACK, seq=1, ack=3001)
    for seq in (3001, 4001, 5001, 6001):
        c.sends(ACK, seq=seq, length=MSS)
    c.sends_nothing()
    c.receives(ACK, seq=1, ack=8001)
    assert c.connection.send.una == c.connection.send.max
    assert not c.mirror.stream


def test_the_timeout_doubles_until_the_next_measurement() -> None:
    c = sending(1)
    start = c.clock.now
    times = []
    for _ in range(6):
        at = c.connection.poll_at()
        assert at is not None
        c.after(at - c.clock.now)
        c.sends(PSH | ACK, seq=1, length=MSS)
        times.append(round(c.clock.now - start, 3))
    assert times == [0.2, 0.6, 1.4, 3.0, 6.2, 12.6]
    c.receives(ACK, seq=1, ack=1001)  # of which transmission? RFC 6298 §5.5 keeps the timeout
    c.host_writes(MSS)
    c.sends(PSH | ACK, seq=1001, length=MSS)
    assert c.connection.poll_at() == c.clock.now + 0.2 * 64
    c.receives(ACK, seq=1, ack=2001)
    c.host_writes(MSS)
    assert c.connection.poll_at() == c.clock.now + 0.2


def test_a_guest_that_delays_its_acks_is_not_sent_everything_twice() -> None:
    c = established(guest_mss=MSS, limit=MSS)
    again = 0
    for place in range(20):
        c.host_writes(MSS)
        c.mirror.take_out()
        c.after(0.25)
        again += len(c.mirror.take_out())
        c.receives(ACK, seq=1, ack=1 + (place + 1) * MSS)
    assert again <= 1


def test_a_guest_that_stood_still_is_not_sent_everything_twice() -> None:
    c = sending(8, ts=100, window=60_000)
    c.tsval = None
    sent = c.connection.timestamps.clock(c.clock.now)
    c.after(0.7)
    for _ in range(2):
        c.sends(ACK, seq=1, length=MSS)
    c.receives(ACK, seq=1, ack=2001, options=TcpOptions(ts=(101, sent)))  # RFC 3522
    c.sends_nothing()
    assert c.connection.send.loss is None
    c.host_writes(20 * MSS)
    assert len(c.mirror.out) == 20
    assert c.mirror.out[0][0].seq == c.connection.send.max - 20 * MSS


@pytest.mark.parametrize("iss", [0, 0x1000, 0x2000, 0x3000, 0x4000])  # the clock's offset too
def test_a_timeout_that_was_one_is_not_undone(iss: int) -> None:
    c = sending(8, ts=100, iss=iss)
    c.after(0.2)
    c.sends(ACK, seq=1, length=MSS)
    sent = c.connection.timestamps.clock(c.clock.now)
    c.clock.advance(0.001)
    c.receives(ACK, seq=1, ack=1001, options=TcpOptions(ts=(101, sent)))
    c.sends(ACK, seq=1001, length=MSS)
    c.sends(ACK, seq=2001, length=MSS)
    c.sends_nothing()


def test_no_timer_runs_while_a_retransmission_waits_for_room() -> None:
    c = sending(2)
    assert c.connection.handle_timeout(c.clock.advance(0.2)) == REWIND
    assert c.connection.handle_timeout(c.clock.advance(0.4)) == REWIND
    assert c.connection.handle_timeout(c.clock.advance(600.0)) == 0  # the guest took no frame
    c.mirror.pump(c.clock.now)
    c.sends(ACK, seq=1, length=MSS)
    assert c.connection.poll_at() == c.clock.now + 0.4


def test_three_duplicate_acks() -> None:
    c = sending(10)
    for _ in range(2):
        assert not c.receives(ACK, seq=1, ack=1).events & REWIND
        c.sends_nothing()
    assert c.receives(ACK, seq=1, ack=1).events & REWIND
    c.sends(ACK, seq=1, length=MSS)
    c.sends_nothing()
    c.receives(ACK, seq=1, ack=10_001)
    c.sends_nothing()
    assert c.after(10.0) == 0


def test_partial_acks_without_sack_resend_one_hole_each() -> None:
    c = sending(10)
    for _ in range(3):
        c.receives(ACK, seq=1, ack=1)
    c.sends(ACK, seq=1, length=MSS)
    c.receives(ACK, seq=1, ack=4001)  # RFC 6582
    c.sends(ACK, seq=4001, length=MSS)
    c.sends_nothing()
    c.receives(ACK, seq=1, ack=7001)
    c.sends(ACK, seq=7001, length=MSS)
    c.sends_nothing()
    c.receives(ACK, seq=1, ack=10_001)
    c.sends_nothing()


def test_sack_resends_only_the_holes() -> None:
    c = sending(10, sack=True)
    c.receives(ACK, seq=1, ack=1001, sack=((2001, 3001),))
    c.receives(ACK, seq=1, ack=1001, sack=((4001, 5001), (2001, 3001)))
    c.sends_nothing()
    outcome = c.receives(ACK, seq=1, ack=1001, sack=((4001, 9001), (2001, 3001)))
    assert outcome.events & REWIND
    c.sends(ACK, seq=1001, length=MSS)
    c.sends(ACK, seq=3001, length=MSS)
    c.sends_nothing()
    c.receives(ACK, seq=1, ack=3001, sack=((4001, 9001),))
    c.sends_nothing()
    c.receives(ACK, seq=1, ack=10_001)
    c.sends_nothing()
    assert c.connection.poll_at() is not None
    assert c.after(30.0) == 0


def test_a_hole_that_shows_during_recovery_is_sent_too() -> None:
    c = sending(40, sack=True, window=60_000)
    c.receives(ACK, seq=1, ack=1, sack=((1001, 30_001),))
    c.sends(ACK, seq=1, length=MSS)
    c.sends_nothing()
    c.receives(ACK, seq=1, ack=1, sack=((32_001, 40_001), (1001, 30_001)))
    c.sends(ACK, seq=30_001, length=MSS)
    c.sends(ACK, seq=31_001, length=MSS)
    c.sends_nothing()


def test_plain_duplicates_of_a_guest_with_sack_report_nothing() -> None:
    c = sending(10, sack=True)
    for _ in range(10):
        c.receives(ACK, seq=1, ack=1)
    c.sends_nothing()
    assert c.connection.send.loss is None


def test_sack_counts_octets_not_acks() -> None:
    c = sending(60, sack=True, window=60_000)
    assert c.receives(ACK, seq=1, ack=1, sack=((1001, 40_001),)).events & REWIND
    c.sends(ACK, seq=1, length=MSS)


def test_a_hole_may_be_a_super_segment() -> None:
    c = established(guest_mss=MSS, limit=64_000, sack=True)
    c.host_writes(60_000)
    c.sends(PSH | ACK, seq=1, length=60_000)
    c.receives(ACK, seq=1, ack=1, sack=((10_001, 60_001),))
    c.sends(ACK, seq=1, length=7_000)  # a quarter of the congestion window
    c.sends(ACK, seq=7_001, length=3_000)
    c.sends_nothing()
    c.receives(ACK, seq=1, ack=60_001)
    c.sends_nothing()


def test_what_was_sent_again_may_be_lost_again() -> None:
    c = sending(20, sack=True)
    c.receives(ACK, seq=1, ack=1, sack=((1001, 20_001),))
    c.sends(ACK, seq=1, length=MSS)
    c.host_writes(3000)
    for seq in (20_001, 21_001, 22_001):
        c.sends(ACK | PSH * (seq == 22_001), seq=seq, length=MSS)
    c.receives(ACK, seq=1, ack=1, sack=((1001, 20_001),))
    c.sends_nothing()  # it may still be under way
    c.receives(ACK, seq=1, ack=1, sack=((1001, 21_001),))
    c.sends(ACK, seq=1, length=MSS)  # it is not: what was sent after it has arrived
    c.sends_nothing()
    c.receives(ACK, seq=1, ack=1, sack=((1001, 23_001),))
    c.sends_nothing()


def test_what_the_guest_has_reneged_on_is_sent_after_a_timeout() -> None:
    c = sending(4, sack=True)
    c.receives(ACK, seq=1, ack=1, sack=((1001, 4001),))
    c.sends(ACK, seq=1, length=MSS)
    c.after(0.2)
    c.sends(ACK, seq=1, length=MSS)
    c.receives(ACK, seq=1, ack=1001)  # no more blocks: RFC 2018 §8
    c.sends(ACK, seq=1001, length=MSS)
    c.sends(ACK, seq=2001, length=MSS)


def test_the_window_halves_and_grows_back() -> None:
    c = sending(40, sack=True, window=60_000)
    c.receives(ACK, seq=1, ack=1, sack=((1001, 10_001),))
    c.sends(ACK, seq=1, length=MSS)
    c.sends_nothing()
    c.host_writes(200_000)
    c.receives(ACK, seq=1, ack=40_001, window=60_000)
    assert len(c.mirror.out) == 20  # half the flight
    una = 40_001
    flights = []
    while c.connection.send.loss is not None:
        flights.append(len(c.mirror.take_out()))
        una += flights[-1] * MSS
        c.receives(ACK, seq=1, ack=una, window=60_000)
        c.host_writes(flights[-1] * MSS)
    assert flights == [20, 22, 25, 28, 31, 35, 40, 45, 50, 57, 60]


def test_a_burst_of_duplicate_acks_makes_one_recovery() -> None:
    c = sending(10)
    for _ in range(1000):
        c.receives(ACK, seq=1, ack=1)
    sent = c.mirror.take_out()
    assert [len(data) for _, data in sent] == [MSS]


def test_duplicate_acks_with_nothing_in_flight_are_nothing() -> None:
    c = established()
    for _ in range(1000):
        assert c.receives(ACK, seq=1, ack=1) == (0, 0, 0, 0)
    c.sends_nothing()
    assert c.connection.send.loss is None


def test_window_updates_are_no_duplicate_acks() -> None:
    c = sending(10)
    for window in range(20_000, 20_010):
        c.receives(ACK, seq=1, ack=1, window=window)
    c.sends_nothing()
    assert c.connection.send.loss is None


@pytest.mark.parametrize(
    "blocks",
    [
        ((0, 1),),
        ((1, 1),),
        ((3001, 2001),),
        ((1, 1 << 31),),
        ((-5000, -4000),),
        ((10_001, 11_001),),
        ((5001, 11_002),),
    ],
)
def test_nonsense_in_sack_is_left_out(blocks: tuple[tuple[int, int], ...]) -> None:
    c = sending(10, sack=True)
    for _ in range(5):
        c.receives(ACK, seq=1, ack=1, sack=blocks)
    c.sends_nothing()
    assert c.connection.send.loss is None


def test_sack_that_was_not_negotiated_is_nothing() -> None:
    c = sending(10, sack=False)
    c.receives(ACK, seq=1, ack=1, sack=((1001, 10_001),))
    c.sends_nothing()


def test_an_ack_of_what_was_never_sent_is_answered() -> None:
    c = sending(2)
    outcome = c.receives(ACK, seq=1, ack=2002)
    assert outcome == (0, 0, 0, ACK_NOW)
    c.sends(ACK, seq=2001, ack=1)
    outcome = c.receives(PSH | ACK, seq=1, ack=5000, length=10)
    assert outcome.take == 0  # dropped whole
    assert c.connection.send.una == (c.iss + 1) & MASK


def test_an_old_ack_changes_nothing() -> None:
    c = sending(2)
    c.receives(ACK, seq=1, ack=2001)
    outcome = c.receives(PSH | ACK, seq=1, ack=1001, length=10)
    assert (outcome.acked, outcome.take) == (0, 10)
    assert c.connection.send.una == (c.iss + 2001) & MASK


def test_a_forged_old_ack_is_challenged() -> None:
    c = established()
    assert c.receives(ACK, seq=1, ack=-100_000).events == ACK_NOW  # RFC 5961 §5.2


def test_challenges_are_bounded() -> None:
    c = established()
    answered = sum(bool(c.receives(ACK, seq=1, ack=5000).events & ACK_NOW) for _ in range(1000))
    assert answered == 10
    for _ in range(2):
        c.after(1.0)
        assert sum(bool(c.receives(ACK, seq=1, ack=5000).events) for _ in range(100)) == 10


# The guest's window closes


def test_a_closed_window_is_probed() -> None:
    c = established(guest_mss=MSS, limit=MSS, window=1000)
    c.host_writes(2000)
    c.sends(ACK, seq=1, length=MSS)
    c.receives(ACK, seq=1, ack=1001, window=0)
    c.sends_nothing()
    start = c.clock.now
    times = []
    for _ in range(12):
        at = c.connection.poll_at()
        assert at is not None
        c.after(at - c.clock.now)
        c.sends(ACK, seq=1000, ack=1)
        times.append(round(c.clock.now - start, 1))
        c.receives(ACK, seq=1, ack=1001, window=0)
    assert times == [0.2, 0.6, 1.4, 3.0, 6.2, 12.6, 25.4, 51.0, 102.2, 162.2, 222.2, 282.2]
    c.receives(ACK, seq=1, ack=1001, window=1000)
    c.sends(PSH | ACK, seq=1001, length=MSS)
    c.receives(ACK, seq=1, ack=2001)
    assert c.after(60.0) == 0


def test_a_closed_window_is_probed_for_days_while_the_guest_answers() -> None:
    c = established(window=0)
    c.host_writes(10)
    for _ in range(3000):
        c.after(60.0)
        c.mirror.take_out()
        c.receives(ACK, seq=1, ack=1, window=0)
    c.is_in(State.ESTABLISHED)
    c.receives(ACK, seq=1, ack=1, window=10)
    c.sends(PSH | ACK, seq=1, length=10)


def test_a_guest_that_answers_no_probe_is_given_up() -> None:
    c = established(window=0)
    c.host_writes(10)
    c.after(700.0)
    c.is_in(State.CLOSED)


def test_a_window_taken_back_mid_flight_rewinds_and_probes() -> None:
    c = sending(4)
    outcome = c.receives(ACK, seq=1, ack=1001, window=0)
    assert outcome.acked == 1000
    assert outcome.events & REWIND
    c.sends_nothing()
    c.after(0.2)
    c.sends(ACK, seq=1000, ack=1)
    c.receives(ACK, seq=1, ack=1001, window=5000)
    for seq in (1001, 2001):
        c.sends(ACK, seq=seq, length=MSS)
    c.sends(PSH | ACK, seq=3001, length=MSS)
    c.receives(ACK, seq=1, ack=4001)
    c.host_writes(30_000)
    assert len(c.mirror.out) == 30  # it was no congestion


def test_a_window_taken_back_though_the_octets_arrived() -> None:
    c = sending(4)
    c.receives(ACK, seq=1, ack=1001, window=0)
    c.receives(ACK, seq=1, ack=4001, window=5000)
    c.sends_nothing()
    assert c.connection.send.nxt == c.connection.send.max
    c.host_writes(1000)
    c.sends(PSH | ACK, seq=4001, length=MSS)


def test_a_window_that_closes_while_the_congestion_window_regrows() -> None:
    c = sending(10)
    c.after(0.2)
    c.sends(ACK, seq=1, length=MSS)
    c.receives(ACK, seq=1, ack=10_001, window=0)
    assert c.connection.send.loss is not None
    c.host_writes(MSS)
    c.sends_nothing()
    c.after(0.4)
    c.sends(ACK, seq=10_000)  # the probe
    c.receives(ACK, seq=1, ack=10_001, window=5000)
    c.sends(PSH | ACK, seq=10_001, length=MSS)


def test_an_ack_stays_in_a_window_taken_back() -> None:
    c = sending(4)
    c.receives(ACK, seq=1, ack=1001, window=0)
    c.receives(PSH | ACK, seq=1, ack=1001, length=10, window=0)
    c.sends(ACK, seq=1001, ack=11)  # a guest drops what lies beyond its window


def test_a_window_that_shrinks_but_stays_open() -> None:
    c = sending(4)
    c.receives(ACK, seq=1, ack=1, window=1500)
    c.sends_nothing()
    c.after(0.2)
    c.sends(ACK, seq=1, length=MSS)
    c.receives(ACK, seq=1, ack=1001, window=1500)
    c.sends(ACK, seq=1001, length=MSS)
    c.sends_nothing()


# The round trip


def test_the_timeout_follows_the_round_trip() -> None:
    c = established(guest_mss=MSS, limit=MSS)
    for place in range(20):
        c.host_writes(MSS)
        c.after(0.15)
        c.receives(ACK, seq=1, ack=1 + (place + 1) * MSS)
    c.host_writes(MSS)
    at = c.connection.poll_at()
    assert at is not None
    assert 0.2 <= at - c.clock.now < 0.4
    assert c.connection.send.timer.srtt == pytest.approx(0.15, abs=0.05)


@pytest.mark.parametrize("iss", [0, 0x40000000, 0x90000000])
def test_half_an_answer_is_no_measurement(iss: int) -> None:
    c = sending(1, iss=iss)
    srtt = c.connection.send.timer.srtt
    c.clock.advance(0.1)
    c.receives(ACK, seq=1, ack=501)
    assert c.connection.send.timer.srtt == srtt
    c.receives(ACK, seq=1, ack=1001)
    assert c.connection.send.timer.srtt == pytest.approx(0.1 / 8)


def test_what_was_sent_twice_is_not_measured() -> None:
    c = sending(1)
    srtt = c.connection.send.timer.srtt
    c.after(0.3)
    c.receives(ACK, seq=1, ack=1001)  # Karn: an answer to which?
    assert c.connection.send.timer.srtt == srtt


def test_timestamps_measure_what_was_sent_twice() -> None:
    c = established(guest_mss=MSS + 12, limit=MSS, ts=7)
    c.host_writes(MSS)
    c.after(0.2)
    c.mirror.take_out()
    sent = c.connection.timestamps.clock(c.clock.now)
    c.clock.advance(0.1)
    c.receives(ACK, seq=1, ack=1001, options=TcpOptions(ts=(8, sent)))
    assert c.connection.send.timer.srtt == pytest.approx(0.1 / 8, abs=0.001)


def test_a_timestamp_from_nowhere_does_not_stretch_the_timeout() -> None:
    c = established(guest_mss=MSS + 12, limit=MSS, ts=7)
    c.host_writes(MSS)
    c.after(0.2)
    c.receives(ACK, seq=1, ack=1001, options=TcpOptions(ts=(8, 12345)))
    assert c.connection.send.timer.rto == 0.4
