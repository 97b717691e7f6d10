from __future__ import annotations

import pytest

from slirp.tcp.rto import RTO_AFTER_SYN_LOSS, RTO_INITIAL, RTO_MAX, RTO_MIN
from slirp.tcp.timer import Timer


def test_it_goes_off_one_rto_after_it_was_armed() -> None:
    timer = Timer()
    timer.arm(10.0)
    assert timer.at == 10.0 + RTO_INITIAL
    timer.stop()
    assert timer.at is None


def test_one_segment_a_round_trip_is_timed() -> None:
    timer = Timer()
    timer.start_timing(100, 1.0)
    timer.start_timing(200, 1.5)
    assert not timer.take_ack(99, 2.0)
    assert timer.take_ack(200, 2.0)
    assert timer.srtt == 1.0  # of the first one
    assert not timer.take_ack(300, 3.0)


def test_numbers_wrap() -> None:
    timer = Timer()
    timer.start_timing(5, 1.0)  # the segment began at 0xfffffff0
    assert not timer.take_ack(0xFFFFFFF8, 1.1)
    assert timer.take_ack(5, 1.1)


def test_what_is_sent_twice_says_nothing() -> None:
    timer = Timer()
    timer.start_timing(100, 1.0)
    timer.forget_timing()
    assert not timer.take_ack(100, 2.0)
    assert timer.srtt < 0


def test_a_timeout_doubles_until_the_next_measurement() -> None:
    timer = Timer()
    timer.measure(0.05)
    assert timer.rto == RTO_MIN
    timer.back_off(10.0)
    assert (timer.rto, timer.at, timer.retries) == (2 * RTO_MIN, 10.0 + 2 * RTO_MIN, 1)
    for _ in range(20):
        timer.back_off(10.0)
    assert timer.rto == RTO_MAX
    timer.measure(0.05)
    assert timer.rto == RTO_MIN


@pytest.mark.parametrize(("lost", "rto"), [(False, RTO_MIN), (True, RTO_AFTER_SYN_LOSS)])
def test_the_first_rto_after_the_handshake(lost: bool, rto: float) -> None:
    timer = Timer()
    timer.start_timing(1, 0.0)
    timer.arm(0.0)
    if lost:
        timer.back_off(1.0)
    timer.established(1.01 if lost else 0.01)
    assert (timer.rto, timer.at, timer.retries) == (rto, None, 0)


def test_probes_of_a_closed_window_come_at_growing_distance() -> None:
    timer = Timer()
    timer.measure(0.05)
    timer.persist(0.0)
    assert timer.persisting
    waits = []
    for _ in range(3):
        assert timer.at is not None
        now = timer.at
        timer.probe_again(now)
        waits.append(timer.at - now)
    assert waits == pytest.approx([2 * RTO_MIN, 4 * RTO_MIN, 8 * RTO_MIN])
    assert timer.rto == RTO_MIN  # a closed window is no congestion
    timer.stop()
    assert not timer.persisting
