"""States and their deadlines, without segments."""

from __future__ import annotations

import pytest

from slirp.tcp.lifecycle import (
    CLOSING_FOR,
    CLOSING_RETRIES,
    DATA_RETRIES,
    HALF_CLOSED_IDLE,
    HANDSHAKE_FOR,
    KEEPALIVE_INTERVAL,
    KEEPALIVE_PROBES,
    PERSIST_UNANSWERED_FOR,
    SYN_RETRIES,
    TIME_WAIT_FOR,
    Due,
    Lifecycle,
    State,
)

S = State


def life(state: State, keepalive: float = 7200.0) -> Lifecycle:
    it = Lifecycle(S.SYN_RECEIVED, 0.0, keepalive)
    it.become(state, 0.0)
    return it


@pytest.mark.parametrize(
    ("state", "seconds"),
    [
        (S.SYN_RECEIVED, HANDSHAKE_FOR), (S.ESTABLISHED, 7200.0), (S.FIN_WAIT_1, CLOSING_FOR),
        (S.FIN_WAIT_2, HALF_CLOSED_IDLE), (S.CLOSE_WAIT, HALF_CLOSED_IDLE),
        (S.CLOSING, CLOSING_FOR), (S.LAST_ACK, CLOSING_FOR), (S.TIME_WAIT, TIME_WAIT_FOR),
        (S.CLOSED, None),
    ],
)  # fmt: skip
def test_every_state_has_its_deadline(state: State, seconds: float | None) -> None:
    assert life(state).idle_at == seconds


@pytest.mark.parametrize(
    ("state", "ours", "guest"),
    [
        (S.ESTABLISHED, S.ESTABLISHED, S.CLOSE_WAIT),
        (S.FIN_WAIT_1, S.FIN_WAIT_2, S.CLOSING),
        (S.FIN_WAIT_2, S.FIN_WAIT_2, S.TIME_WAIT),
        (S.CLOSING, S.TIME_WAIT, S.CLOSING),
        (S.LAST_ACK, S.CLOSED, S.LAST_ACK),
        (S.CLOSE_WAIT, S.CLOSE_WAIT, S.CLOSE_WAIT),
    ],
)
def test_where_each_fin_leads(state: State, ours: State, guest: State) -> None:
    assert life(state).after_our_fin() is ours
    assert life(state).after_guest_fin() is guest


@pytest.mark.parametrize(
    ("state", "due"),
    [
        (S.SYN_RECEIVED, Due.GIVE_UP), (S.FIN_WAIT_1, Due.GIVE_UP), (S.LAST_ACK, Due.GIVE_UP),
        (S.TIME_WAIT, Due.OVER), (S.ESTABLISHED, Due.PROBE),
    ],
)  # fmt: skip
def test_what_a_deadline_asks_for(state: State, due: Due) -> None:
    it = life(state)
    assert it.idle_at is not None
    assert it.handle_idle(it.idle_at) is due


def test_a_guest_that_spoke_is_not_probed() -> None:
    it = life(S.ESTABLISHED, keepalive=100.0)
    it.heard_at = 60.0
    assert it.handle_idle(100.0) is Due.NOTHING
    assert it.idle_at == 160.0


def test_unanswered_probes_end_it_and_answered_ones_do_not() -> None:
    it = life(S.ESTABLISHED, keepalive=100.0)
    now = 100.0
    for _ in range(KEEPALIVE_PROBES):
        assert it.handle_idle(now) is Due.PROBE
        assert it.idle_at == now + KEEPALIVE_INTERVAL
        now = it.idle_at
    it.heard_at = now - 1.0
    assert it.handle_idle(now) is Due.NOTHING
    assert it.probes == 0
    now = it.heard_at + 100.0
    for _ in range(KEEPALIVE_PROBES):
        assert it.handle_idle(now) is Due.PROBE
        now += KEEPALIVE_INTERVAL
    assert it.handle_idle(now) is Due.GIVE_UP


def test_time_wait_begins_anew() -> None:
    it = life(S.TIME_WAIT)
    it.wait_again(1.5)
    assert it.idle_at == 1.5 + TIME_WAIT_FOR


@pytest.mark.parametrize(
    ("state", "retries"),
    [(S.SYN_SENT, SYN_RETRIES), (S.ESTABLISHED, DATA_RETRIES), (S.CLOSING, CLOSING_RETRIES)],
)
def test_how_often_a_state_tries(state: State, retries: int) -> None:
    assert life(state).retries_max() == retries


def test_a_closed_window_is_not_probed_for_ever_in_silence() -> None:
    it = life(S.ESTABLISHED)
    assert not it.silent_too_long(PERSIST_UNANSWERED_FOR)
    assert it.silent_too_long(PERSIST_UNANSWERED_FOR + 1)
