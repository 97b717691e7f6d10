"""What is sent, without a connection around it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.tcp.segment import CONTROL, REWIND, SENDABLE
from slirp.tcp.send import SEND_FIN, SEND_SYN, Send
from slirp.tcp.seq import MASK

ISS = 0xFFFFFF00  # so that everything below wraps


def sending(wnd: int = 10_000, mss: int = 1000) -> Send:
    """After the handshake, with this window."""
    s = Send(ISS)
    s.mss = mss
    s.due = SEND_SYN
    s.send_syn(0.0)
    s.established((ISS + 1) & MASK, wnd, 0.01)
    s.settle(True)
    return s


def at(offset: int) -> int:
    """The number of the host's byte at this offset."""
    return (ISS + 1 + offset) & MASK


def send(s: Send, length: int, now: float = 1.0) -> tuple[int, int]:
    """Send what may go of `length` bytes that the host has: its offset and length."""
    offset, planned = s.plan(1 << 30, now)
    length = min(planned, length)
    if length:
        s.account((s.una + offset) & MASK, (s.una + offset + length) & MASK, 0, now)
        if s.timer.at is None:
            s.timer.arm(now)
    return offset, length


def test_the_handshake_leaves_nothing_in_flight() -> None:
    s = sending()
    assert (s.flight, s.due, s.nxt, s.timer.at) == (0, 0, at(0), None)


def test_the_window_is_filled_by_whole_segments() -> None:
    s = sending(wnd=10_500)
    assert s.plan(65_000, 1.0) == (0, 10_000)
    assert s.plan(2_500, 1.0) == (0, 2_000)
    assert send(s, 700) == (0, 700)
    assert s.plan(65_000, 1.0) == (700, 9_000)


def test_a_sliver_of_window_waits_while_something_is_in_flight() -> None:
    s = sending(wnd=1_500)
    send(s, 1_000)
    assert s.plan(65_000, 1.0) == (1_000, 0)
    assert s.advance(at(1_000), (), None, 1.1) == (1_000, SENDABLE)
    s.take_window(500, 1.1)
    assert s.plan(65_000, 1.1) == (0, 500)


def test_a_closed_window_is_probed() -> None:
    s = sending()
    assert s.take_window(0, 1.0) == 0
    assert s.plan(65_000, 1.0) == (0, 0)
    assert s.timer.persisting
    assert not s.steady
    assert s.take_window(5_000, 2.0) == SENDABLE
    assert not s.timer.persisting


def test_three_duplicates_are_a_loss() -> None:
    s = sending()
    for _ in range(5):
        send(s, 1_000)
    events = [s.count_duplicate((), True) for _ in range(3)]
    assert [bool(e & REWIND) for e in events] == [False, False, True]
    s.settle(True)
    assert s.nxt == at(0)
    assert send(s, 5_000) == (0, 1_000)
    assert s.nxt == s.max


def test_sack_tells_what_is_lost() -> None:
    s = sending()
    for _ in range(6):
        send(s, 1_000)
    s.count_duplicate(((at(1_000), at(4_000)),), False)
    s.settle(True)
    assert send(s, 10_000) == (0, 1_000)
    s.advance(at(6_000), (), None, 1.2)
    assert s.flight == 0


def test_a_timeout_sends_all_again() -> None:
    s = sending()
    send(s, 4_000)
    assert s.timeout(2.0) == REWIND
    s.settle(True)
    assert (s.nxt, s.plan(65_000, 2.0)) == (at(0), (0, 1_000))  # slow start


def test_the_fin_comes_after_the_last_byte() -> None:
    s = sending()
    send(s, 500)
    s.eof = True
    assert s.check_fin(1.0) == CONTROL
    assert s.due == SEND_FIN
    assert s.send_fin(1.0) == at(500)
    assert (s.max, s.data_end()) == (at(501), at(500))
    assert s.advance(at(500), (), None, 1.1)[0] == 500
    assert s.fin_alone()
    assert s.timeout(2.0) == CONTROL  # the FIN alone
    assert s.advance(at(501), (), None, 2.1)[0] == 0
    assert s.fin_acked()


def test_a_fin_waits_for_the_window() -> None:
    s = sending(wnd=1_000)
    send(s, 1_000)
    s.eof = True
    assert s.check_fin(1.0) == 0
    s.advance(at(1_000), (), None, 1.1)
    s.take_window(0, 1.1)
    assert s.check_fin(1.1) == 0
    assert s.timer.persisting


def test_a_window_that_is_taken_back_is_no_congestion() -> None:
    s = sending()
    send(s, 5_000)
    s.take_window(0, 1.1)
    assert s.check_withdrawn(1.1) == REWIND
    assert s.seq_in_window() == at(0)
    s.take_window(10_000, 1.2)
    s.settle(True)
    assert s.plan(65_000, 1.2) == (0, 5_000)


@pytest.mark.parametrize("wscale", [0, 7])
def test_less_than_a_unit_of_the_scale_is_rounding(wscale: int) -> None:
    s = sending(wnd=1_000)
    s.wscale = wscale
    send(s, 1_000)
    s.wnd -= 100
    assert s.seq_in_window() == (at(1_000) if wscale else at(900))


@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 5_000)), max_size=40))
def test_nothing_is_sent_outside_the_window(steps: list[tuple[int, int]]) -> None:
    s = sending(wnd=4_000)
    now = 1.0
    for have, acked in steps:
        now += 0.01
        offset, length = send(s, have, now)
        assert offset + length <= s.wnd
        acked = min(acked, s.flight)
        if acked:
            assert s.advance((s.una + acked) & MASK, (), None, now)[0] == acked
        s.settle(True)
        assert s.flight == 0 or s.timer.at is not None
