"""What a hostile or broken guest sends, in every state: ignored or answered once, never obeyed.

The rows are those that the history of other stacks has; see also the neighbours: options and
handshakes in test_tcp_open, resets and FINs in test_tcp_close, windows and acknowledgements in
test_tcp_recovery, bytes in test_tcp_stream, everything at random in test_tcp_any.
"""

from __future__ import annotations

import pytest

from slirp.tcp.connection import ACK_NOW, NOTHING, Connection, Segment, State
from slirp.tcp.seq import MASK
from slirp.wire.tcp import ACK, FIN, PSH, RST, SYN, URG, TcpOptions
from tests.kit.clock import Clock
from tests.kit.peer import Script, established, passive


def in_state(state: State) -> Script:
    """A connection in that state, with nothing waiting to be sent."""
    match state:
        case State.CONNECTING:
            c = passive()
        case State.SYN_SENT:
            clock = Clock()
            c = Script(Connection.active(0x5000, 1460, 8, clock.now), clock, irs=0x1000)
            c.connection.poll(clock.now)
        case State.SYN_RECEIVED:
            c = passive()
            c.connection.host_connected(c.clock.now)
            c.connection.poll(c.clock.now)
        case _:
            c = established()
    if state in (State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSING, State.TIME_WAIT):
        c.host_closes()
    if state in (State.FIN_WAIT_2, State.TIME_WAIT):
        c.receives(ACK, seq=1, ack=2)
    if state in (State.CLOSE_WAIT, State.LAST_ACK, State.CLOSING, State.TIME_WAIT):
        c.receives(FIN | ACK, seq=1, ack=2 if state is State.TIME_WAIT else 1)
    if state is State.LAST_ACK:
        c.host_closes()
    if state is State.CLOSED:
        c.host_resets()
    c.mirror.take_out()
    assert c.connection.state is state
    return c


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    "flags",
    [0, FIN, PSH, URG, FIN | PSH | URG, SYN | FIN, SYN | RST, SYN | FIN | ACK, SYN | RST | ACK, 63],
)
def test_flags_that_contradict_themselves(state: State, flags: int) -> None:
    c = in_state(state)
    at = c.connection.poll_at()
    for seq in (0, 1, 2, 100):
        assert c.receives(flags, seq=seq, ack=1, length=10) is NOTHING
    c.sends_nothing()
    assert c.connection.poll_at() == at
    c.is_in(state)


@pytest.mark.parametrize("state", State)
def test_a_flood_of_any_empty_segment_is_answered_sparingly(state: State) -> None:
    for flags in (ACK, RST, RST | ACK):
        c = in_state(state)
        for number in range(500):
            c.receives(flags, seq=-5 - number, ack=-70_000)
        refusals = 500 if state in (State.SYN_SENT, State.SYN_RECEIVED) and flags == ACK else 0
        assert len(c.mirror.out) <= 10 + refusals


@pytest.mark.parametrize(
    "state", [s for s in State if s not in (State.CONNECTING, State.SYN_SENT, State.CLOSED)]
)
def test_octets_far_outside_the_window_are_answered_and_not_taken(state: State) -> None:
    for seq in (70_000, 1 << 30, 1 << 31, -(1 << 30) - 5):
        c = in_state(state)
        outcome = c.receives(PSH | FIN | ACK, seq=seq, ack=1, length=100)
        assert outcome.take == 0
        assert outcome.events & ACK_NOW
        c.is_in(state)


def test_an_urgent_pointer_is_not_even_known() -> None:
    assert "urgent" not in Segment._fields
    c = established()
    assert c.receives(URG | ACK, seq=1, ack=1).take == 0
    assert c.receives(URG | ACK, seq=1, ack=1, length=1).take == 1


def test_a_guest_that_acknowledges_everything_always() -> None:
    c = established()
    for ack in range(0, 1 << 32, 1 << 24):
        c.receives(ACK, seq=1, ack=ack)
    c.is_in(State.ESTABLISHED)
    assert c.connection.send.una == c.connection.send.max


def test_octets_one_by_one_with_gaps_cost_a_bounded_amount() -> None:
    c = established(sack=True)
    for place in range(3000):
        c.receives(ACK, seq=2 + 2 * place, ack=1, length=1)
        c.mirror.take_out()
    assert len(c.mirror.kept) <= 32


def test_sack_blocks_one_by_one_cost_a_bounded_amount() -> None:
    c = established(sack=True, guest_mss=1000)
    c.host_writes(60_000)
    for place in range(1000):
        c.receives(ACK, seq=1, ack=1, sack=((2 + 2 * place, 3 + 2 * place),))
    assert c.connection.send.loss is not None
    assert len(c.connection.send.loss.ranges) <= 32


def test_acknowledging_octet_by_octet() -> None:
    c = established(guest_mss=1000)
    c.host_writes(2000)
    total = sum(c.receives(ACK, seq=1, ack=ack).acked for ack in range(2, 2002))
    assert total == 2000
    assert c.mirror.stream == b""


@pytest.mark.parametrize("window", [0, 1])
def test_a_window_that_flaps(window: int) -> None:
    c = established(guest_mss=1000, limit=1000)
    c.host_writes(5000)
    c.mirror.take_out()
    for _ in range(100):
        c.receives(ACK, seq=1, ack=1, window=window)
        c.receives(ACK, seq=1, ack=1, window=5000)
    for _ in range(100):
        c.after(1.0)
        sent = c.mirror.take_out()
        done = max(((e.seq + len(d) - c.iss) & MASK for e, d in sent if d), default=1)
        c.receives(ACK, seq=1, ack=done, window=5000)
        if not c.mirror.stream:
            break
    assert not c.mirror.stream


def test_an_option_of_a_syn_means_nothing_later() -> None:
    c = established()
    c.receives(ACK, seq=1, ack=1, options=TcpOptions(mss=1, wscale=14, sack_permitted=True))
    assert c.connection.send.mss == 1460
    assert c.connection.send.wscale == 0
