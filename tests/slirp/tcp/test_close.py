"""Ending a connection: half and whole, at once, by reset, and when nobody answers any more."""

from __future__ import annotations

import pytest

from slirp.tcp.connection import (
    ACK_NOW,
    CLOSED,
    FIN_RECEIVED,
    GUEST_GONE,
    NOTHING,
    REOPEN,
    RESET_RECEIVED,
    State,
)
from slirp.wire.tcp import ACK, FIN, PSH, RST, SYN, TcpOptions
from tests.kit.peer import Script, established


def test_the_guest_closes_first() -> None:
    c = established()
    assert c.receives(FIN | ACK, seq=1, ack=1).events & FIN_RECEIVED
    c.is_in(State.CLOSE_WAIT)
    c.sends(ACK, seq=1, ack=2)
    c.host_writes(100)
    c.sends(PSH | ACK, seq=1, ack=2, length=100)
    c.receives(ACK, seq=2, ack=101)
    c.host_closes()
    c.sends(FIN | ACK, seq=101, ack=2)
    c.is_in(State.LAST_ACK)
    assert c.receives(ACK, seq=2, ack=102).events & CLOSED
    c.is_in(State.CLOSED)
    assert c.connection.poll_at() is None
    c.sends_nothing()


def test_the_host_closes_first() -> None:
    c = established()
    c.host_closes()
    c.sends(FIN | ACK, seq=1, ack=1)
    c.is_in(State.FIN_WAIT_1)
    c.receives(ACK, seq=1, ack=2)
    c.is_in(State.FIN_WAIT_2)
    outcome = c.receives(PSH | ACK, seq=1, ack=2, length=100)  # the other half goes on
    assert outcome.take == 100
    c.sends(ACK, seq=2, ack=101)
    c.receives(FIN | ACK, seq=101, ack=2)
    c.sends(ACK, seq=2, ack=102)
    c.is_in(State.TIME_WAIT)
    assert c.after(2.0) == CLOSED
    c.sends_nothing()


def test_octets_go_before_the_fin() -> None:
    c = established(window=1000)
    c.host_writes(1500)
    c.host_closes()
    c.sends(ACK, seq=1, length=1000)
    c.sends_nothing()
    c.receives(ACK, seq=1, ack=1001)
    c.sends(PSH | ACK, seq=1001, length=500)
    c.receives(ACK, seq=1, ack=1501)
    c.sends(FIN | ACK, seq=1501, ack=1)


def test_the_acknowledged_octets_do_not_count_the_fin() -> None:
    c = established()
    c.host_writes(10)
    c.host_closes()
    assert c.receives(ACK, seq=1, ack=12).acked == 10
    c.is_in(State.FIN_WAIT_2)


def test_nothing_new_follows_the_end() -> None:
    c = established()
    c.host_writes(10)
    c.connection.host_eof(c.clock.now)
    assert c.connection.send.plan(1000, c.clock.now) == (10, 0)
    c.host_resets()
    assert c.connection.send.plan(1000, c.clock.now)[1] == 0


def test_both_close_at_once() -> None:
    c = established()
    c.host_closes()
    c.sends(FIN | ACK, seq=1, ack=1)
    c.receives(FIN | ACK, seq=1, ack=1)
    c.is_in(State.CLOSING)
    c.sends(ACK, seq=2, ack=2)
    c.receives(ACK, seq=2, ack=2)
    c.is_in(State.TIME_WAIT)
    assert c.after(2.0) == CLOSED


def test_fin_and_its_acknowledgement_in_one() -> None:
    c = established()
    c.host_closes()
    c.sends(FIN | ACK, seq=1, ack=1)
    c.receives(FIN | ACK, seq=1, ack=2)
    c.is_in(State.TIME_WAIT)
    c.sends(ACK, seq=2, ack=2)


def test_a_lost_fin_is_sent_again() -> None:
    c = established()
    c.host_closes()
    c.sends(FIN | ACK, seq=1, ack=1)
    c.after(0.3)
    c.sends(FIN | ACK, seq=1, ack=1)
    c.receives(ACK, seq=1, ack=2)
    c.is_in(State.FIN_WAIT_2)
    c.after(30.0)
    c.sends_nothing()


def test_lost_octets_and_a_lost_fin_are_sent_again_in_order() -> None:
    c = established(limit=1000)
    c.host_writes(2000)
    c.host_closes()
    c.mirror.take_out()
    c.after(0.3)
    c.sends(ACK, seq=1, length=1000)
    c.sends_nothing()  # slow start
    c.receives(ACK, seq=1, ack=1001)
    c.sends(PSH | ACK, seq=1001, length=1000)
    c.receives(ACK, seq=1, ack=2001)
    c.sends(FIN | ACK, seq=2001)
    c.receives(ACK, seq=1, ack=2002)
    c.is_in(State.FIN_WAIT_2)


def test_a_repeated_fin_is_acknowledged_again() -> None:
    c = established()
    for _ in range(3):
        c.receives(FIN | ACK, seq=1, ack=1)
        c.sends(ACK, seq=1, ack=2)
    c.host_closes()
    c.sends(FIN | ACK, seq=1, ack=2)
    c.receives(FIN | ACK, seq=1, ack=1)
    c.sends(ACK, seq=2, ack=2)
    c.is_in(State.LAST_ACK)


def test_time_wait_acknowledges_a_repeated_fin_and_starts_over() -> None:
    c = in_time_wait()
    c.after(1.5)
    c.receives(FIN | ACK, seq=1, ack=2)
    c.sends(ACK, seq=2, ack=2)
    assert c.after(1.5) == 0
    assert c.after(0.5) == CLOSED


def in_time_wait(**how: object) -> Script:
    c = established(**how)  # type: ignore[arg-type]
    c.host_closes()
    c.receives(FIN | ACK, seq=1, ack=2)
    c.mirror.take_out()
    c.is_in(State.TIME_WAIT)
    return c


def test_a_new_syn_in_time_wait_opens_anew() -> None:
    c = in_time_wait()
    assert c.receives(SYN, seq=100_000).events == REOPEN | CLOSED
    c.is_in(State.CLOSED)
    c.sends_nothing()


def test_an_old_syn_in_time_wait_does_not() -> None:
    c = in_time_wait()
    c.receives(SYN, seq=-5)
    c.sends(ACK, seq=2, ack=2)
    c.is_in(State.TIME_WAIT)


def test_a_later_timestamp_tells_a_new_syn_too() -> None:
    c = in_time_wait(ts=1000)
    syn = TcpOptions(mss=1460, ts=(1001, 0))
    assert c.receives(SYN, seq=-5, options=syn).events == REOPEN | CLOSED  # RFC 6191


def test_a_reset_in_time_wait_ends_it() -> None:
    c = in_time_wait()
    assert c.receives(RST, seq=2).events == CLOSED


@pytest.mark.parametrize("seq", [0, 3, 1 << 17, -1])
def test_a_fin_with_another_number_is_no_fin(seq: int) -> None:
    c = established(room=2)
    c.receives(FIN | ACK, seq=seq, ack=1)
    c.is_in(State.ESTABLISHED)
    assert not c.mirror.guest_closed
    c.sends(ACK, seq=1, ack=1)


def test_octets_after_the_fin_are_ignored() -> None:
    c = established()
    c.receives(FIN | ACK, seq=1, ack=1)
    c.sends(ACK, ack=2)
    for seq in (1, 2, 3):
        outcome = c.receives(PSH | ACK, seq=seq, ack=1, length=10)
        assert outcome.take == 0
        c.sends(ACK, ack=2)
    assert c.mirror.received == b""
    c.is_in(State.CLOSE_WAIT)


def test_a_fin_fits_into_a_closed_window() -> None:
    c = established(room=10)
    c.receives(PSH | ACK, seq=1, ack=1, length=10)
    c.sends(ACK, ack=11, window=0)
    c.receives(FIN | ACK, seq=11, ack=1)
    c.is_in(State.CLOSE_WAIT)
    c.sends(ACK, ack=12, window=0)


def test_an_early_fin_waits_for_the_octets() -> None:
    c = established()
    c.receives(FIN | ACK, seq=101, ack=1)  # a FIN alone, its bytes lost
    c.sends(ACK, ack=1)
    c.is_in(State.ESTABLISHED)
    assert c.receives(PSH | ACK, seq=1, ack=1, length=100).events & FIN_RECEIVED
    c.sends(ACK, ack=102)
    c.is_in(State.CLOSE_WAIT)


def test_reset_both_ways() -> None:
    c = established()
    assert c.receives(RST, seq=1).events == RESET_RECEIVED | CLOSED
    c.is_in(State.CLOSED)
    c = established()
    c.host_writes(100)
    c.mirror.take_out()
    c.host_resets()
    c.sends(RST | ACK, seq=101, ack=1)
    c.is_in(State.CLOSED)
    assert c.connection.poll_at() is None
    assert c.receives(ACK, seq=1, ack=101) is NOTHING


def test_a_reset_inside_the_window_is_challenged() -> None:
    c = established()
    assert c.receives(RST, seq=2).events == ACK_NOW  # RFC 5961 §3.2
    c.sends(ACK, seq=1, ack=1)
    assert c.receives(RST, seq=1).events & RESET_RECEIVED


@pytest.mark.parametrize("seq", [0, -1, -70_000, 65536 + 1, 1 << 30, 1 << 31])
def test_a_reset_outside_the_window_is_nothing(seq: int) -> None:
    c = established()
    assert c.receives(RST, seq=seq) is NOTHING
    assert c.receives(RST | ACK, seq=seq, ack=1) is NOTHING
    c.is_in(State.ESTABLISHED)


def test_the_host_closes_before_the_handshake_is_over() -> None:
    c = established()
    c.host_closes()
    c.host_closes()  # said twice, done once
    c.sends(FIN | ACK, seq=1)
    c.sends_nothing()


def test_a_fin_that_nobody_answers_is_given_up() -> None:
    c = established()
    c.receives(FIN | ACK, seq=1, ack=1)
    c.host_closes()
    c.mirror.take_out()
    c.is_in(State.LAST_ACK)
    events = c.after(300.0)
    assert events & CLOSED
    assert events & GUEST_GONE
    assert [e.flags for e, _ in c.mirror.take_out()] == [FIN | ACK] * 8 + [RST | ACK]


def test_octets_that_nobody_answers_are_given_up() -> None:
    c = established()
    c.host_writes(100)
    events = c.after(700.0)
    assert events & GUEST_GONE
    flags = [e.flags for e, _ in c.mirror.take_out()]
    assert flags == [PSH | ACK] * 16 + [RST | ACK]
    c.is_in(State.CLOSED)


def test_a_guest_that_vanished_is_found_by_keepalive() -> None:
    c = established()
    assert c.after(7199.0) == 0
    c.after(1.0)
    c.sends(ACK, seq=0, ack=1)  # one below: it must be answered
    c.receives(ACK, seq=1, ack=1)
    assert c.after(7199.0) == 0
    events = c.after(1 + 9 * 75.0)
    assert events & CLOSED
    assert events & GUEST_GONE
    assert [e.flags for e, _ in c.mirror.take_out()] == [ACK] * 9 + [RST | ACK]


def test_a_guest_that_answers_is_kept_for_days() -> None:
    c = established()
    for _ in range(40):
        c.after(7200.0)
        c.sends(ACK, seq=0, ack=1)
        c.receives(ACK, seq=1, ack=1)
    c.is_in(State.ESTABLISHED)


def test_a_guest_that_forgot_a_half_closed_connection_says_so_soon() -> None:
    c = established()
    c.receives(FIN | ACK, seq=1, ack=1)
    c.sends(ACK, ack=2)
    c.after(60.0)
    c.sends(ACK, seq=0, ack=2)
    c.receives(RST, seq=2)
    assert c.mirror.reset


def test_a_guest_that_keeps_a_half_closed_connection_has_it() -> None:
    c = established()
    c.host_closes()
    c.receives(ACK, seq=1, ack=2)
    c.mirror.take_out()
    c.is_in(State.FIN_WAIT_2)
    for _ in range(100):
        c.after(60.0)
        c.sends(ACK, seq=1, ack=1)
        c.receives(ACK, seq=1, ack=2)
    assert c.receives(PSH | ACK, seq=1, ack=2, length=3).take == 3


def test_a_guest_with_a_closed_window_cannot_hold_a_closing_connection_for_ever() -> None:
    c = established(window=5000)
    c.host_writes(100)
    c.host_closes()
    c.receives(ACK, seq=1, ack=101, window=0)  # with our FIN in flight
    c.is_in(State.FIN_WAIT_1)
    c.mirror.take_out()
    for _ in range(200):
        if c.after(60.0) & CLOSED:
            break
        if c.mirror.take_out():
            c.receives(ACK, seq=1, ack=101, window=0)
    else:
        pytest.fail("still open")


def test_a_fin_waits_for_the_window() -> None:
    c = established(window=100)
    c.host_writes(100)
    c.connection.host_eof(c.clock.now)
    c.sends(PSH | ACK, seq=1, length=100)
    c.receives(ACK, seq=1, ack=101, window=0)
    c.sends_nothing()
    c.after(0.3)
    c.sends(ACK, seq=100, ack=1)  # the probe
    c.receives(ACK, seq=1, ack=101, window=100)
    c.sends(FIN | ACK, seq=101, ack=1)
