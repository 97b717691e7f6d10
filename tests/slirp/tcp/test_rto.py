"""The retransmission timeout, by RFC 6298's own rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.tcp.rto import RTO_MAX, RTO_MIN, backed_off, rto_after


def test_the_first_measurement() -> None:
    assert rto_after(-1.0, 0.0, 2.0) == (2.0, 1.0, 6.0)  # §2.2: SRTT = R, RTTVAR = R/2


def test_a_later_measurement() -> None:
    srtt, rttvar, rto = rto_after(2.0, 1.0, 4.0)  # §2.3, with alpha 1/8 and beta 1/4
    assert rttvar == pytest.approx(0.75 * 1.0 + 0.25 * 2.0)
    assert srtt == pytest.approx(7 / 8 * 2.0 + 1 / 8 * 4.0)
    assert rto == pytest.approx(srtt + 4 * rttvar)


def test_a_memory_bus_gets_the_least_timeout() -> None:
    srtt, rttvar = -1.0, 0.0
    for _ in range(10):
        srtt, rttvar, rto = rto_after(srtt, rttvar, 0.00005)
        assert rto == RTO_MIN


def test_a_steady_round_trip_keeps_a_margin() -> None:
    srtt, rttvar, rto = -1.0, 0.0, 0.0
    for _ in range(200):
        srtt, rttvar, rto = rto_after(srtt, rttvar, 1.0)
    assert rto == pytest.approx(1.001, abs=0.0005)  # §2.3: never less than the clock's grain


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_always_between_the_bounds(rtts: list[float]) -> None:
    srtt, rttvar = -1.0, 0.0
    for rtt in rtts:
        srtt, rttvar, rto = rto_after(srtt, rttvar, rtt)
        assert RTO_MIN <= rto <= RTO_MAX
        assert min(rtts) * 0.999 <= srtt <= max(rtts) * 1.001


def test_backing_off() -> None:
    assert [backed_off(0.2, n) for n in range(5)] == [0.2, 0.4, 0.8, 1.6, 3.2]
    assert backed_off(0.2, 9) == RTO_MAX
    assert backed_off(0.2, 10_000) == RTO_MAX
    assert backed_off(50.0) == RTO_MAX
