"""Opening a connection: by the guest, by the host, by both, and by neither in the end."""

from __future__ import annotations

import pytest

from slirp.tcp.connection import (
    ACK_NOW,
    CLOSED,
    CONTROL,
    ESTABLISHED,
    GUEST_GONE,
    NOTHING,
    REOPEN,
    RESET_RECEIVED,
    Connection,
    Segment,
    State,
    is_opening,
    refusal,
)
from slirp.wire.tcp import ACK, FIN, PSH, RST, SYN, URG, TcpOptions
from tests.kit.clock import Clock
from tests.kit.peer import Script, established, passive


def active(clock: Clock | None = None, *, iss: int = 0x5000, irs: int = 0x1000) -> Script:
    clock = clock or Clock()
    script = Script(Connection.active(iss, 1460, 7, clock.now), clock, irs=irs)
    script.mirror.pump(clock.now)
    script.sends(SYN, seq=0)
    return script


def test_the_syn_is_answered_when_the_host_has_answered() -> None:
    c = passive()
    c.is_in(State.CONNECTING)
    c.after(3.0)
    c.sends_nothing()
    c.connection.host_connected(c.clock.now)
    c.is_in(State.SYN_RECEIVED)
    c.mirror.pump(c.clock.now)
    c.sends(SYN | ACK, seq=0, ack=1)
    assert c.receives(ACK, seq=1, ack=1).events & ESTABLISHED
    c.is_in(State.ESTABLISHED)


def test_a_refused_connect_is_a_reset() -> None:
    c = passive()
    c.host_resets()
    reset = c.sends(RST | ACK, ack=1)
    assert reset.seq == 0  # RFC 9293 §3.10.7.1: the guest's SYN had no ACK
    c.is_in(State.CLOSED)
    assert c.connection.poll_at() is None
    assert c.receives(SYN) is NOTHING


def test_repeated_syns_do_not_disturb_a_connecting_flow() -> None:
    c = passive()
    for _ in range(5):
        c.after(1.0)
        assert c.receives(SYN) is NOTHING
    c.sends_nothing()
    c.connection.host_connected(c.clock.now)
    c.mirror.pump(c.clock.now)
    c.sends(SYN | ACK, seq=0, ack=1)
    c.receives(SYN)  # the answer was lost
    c.sends(SYN | ACK, seq=0, ack=1)
    c.receives(ACK, seq=1, ack=1)
    c.sends_nothing()
    c.is_in(State.ESTABLISHED)


def test_another_syn_while_connecting_is_another_connection() -> None:
    c = passive()
    outcome = c.receives(SYN, seq=77)
    assert outcome.events == REOPEN | CLOSED
    c.is_in(State.CLOSED)


def test_a_guest_that_gives_up_while_connecting() -> None:
    c = passive()
    assert c.receives(RST, seq=2) is NOTHING
    assert c.receives(RST, seq=1).events == RESET_RECEIVED | CLOSED


def test_a_host_that_never_answers_is_given_up() -> None:
    c = passive()
    events = c.after(180.0)
    assert events & CLOSED
    c.sends(RST | ACK, ack=1)


def test_syn_ack_is_repeated_and_then_given_up() -> None:
    c = passive()
    start = c.clock.now
    c.connection.host_connected(start)
    c.mirror.pump(start)
    c.sends(SYN | ACK, seq=0, ack=1)
    times = []
    for _ in range(6):
        at = c.connection.poll_at()
        assert at is not None
        c.after(at - c.clock.now)
        c.sends(SYN | ACK, seq=0, ack=1)
        times.append(c.clock.now - start)
    assert times == [1, 3, 7, 15, 31, 63]
    events = c.after(200.0)
    assert events & CLOSED
    assert events & GUEST_GONE
    c.sends(RST | ACK, seq=1, ack=1)
    c.sends_nothing()


def test_every_option_is_offered_back() -> None:
    c = passive(wscale=7, sack=True, ts=500, rcv_wscale=8, guest_mss=9000)
    c.connection.host_connected(c.clock.now)
    c.mirror.pump(c.clock.now)
    c.sends(SYN | ACK, window=65535)
    assert c.options.mss == 1460
    assert c.options.wscale == 8
    assert c.options.sack_permitted
    assert c.options.ts is not None
    assert c.options.ts[1] == 500
    assert c.connection.send.mss == 1448  # ours, less the timestamps of each segment
    assert c.connection.timestamps.length == 12


def test_an_option_that_the_guest_does_not_name_is_off() -> None:
    c = passive(wscale=None, sack=False, ts=None, rcv_wscale=8, guest_mss=None)
    c.connection.host_connected(c.clock.now)
    c.mirror.pump(c.clock.now)
    c.sends(SYN | ACK)
    assert c.options == TcpOptions(mss=1460)
    assert c.connection.send.mss == 536  # RFC 9293 §3.7.1
    assert c.connection.timestamps.length == 0
    c.receives(ACK, seq=1, ack=1, window=1000)
    assert c.connection.send.wnd == 1000
    c.has_room(1 << 20)
    c.sends_nothing()
    c.receives(PSH | ACK, seq=1, ack=1, length=1)
    c.sends(ACK, ack=2, window=65534)  # the window cannot be scaled


@pytest.mark.parametrize(("offered", "mss"), [(0, 28), (1, 28), (27, 28), (29, 29), (65535, 1460)])
def test_an_absurd_mss_is_clamped(offered: int, mss: int) -> None:
    assert passive(guest_mss=offered).connection.send.mss == mss


@pytest.mark.parametrize("shift", [15, 16, 200, 255])
def test_an_absurd_shift_is_clamped(shift: int) -> None:
    c = passive(wscale=shift)
    assert c.connection.send.wscale == 14  # RFC 7323 §2.3


def test_the_window_of_a_syn_is_not_scaled() -> None:
    c = passive(wscale=7)
    assert c.connection.send.wnd == 65535
    c = active()
    c.receives(SYN | ACK, seq=0, ack=1, window=1000, options=TcpOptions(mss=1460, wscale=7))
    assert c.connection.send.wnd == 1000
    c.sends(ACK, seq=1, ack=1)
    c.receives(ACK, seq=1, ack=1, window=1000)
    assert c.connection.send.wnd == 128_000


def test_the_host_opens() -> None:
    c = active()
    assert c.options.mss == 1460
    assert c.options.wscale == 7
    assert c.options.sack_permitted
    assert c.options.ts is not None
    outcome = c.receives(SYN | ACK, seq=0, ack=1, options=TcpOptions(mss=1000))
    assert outcome.events & ESTABLISHED
    c.sends(ACK, seq=1, ack=1)
    assert c.connection.send.mss == 1000
    assert c.connection.receive.irs == c.irs
    c.host_writes(10)
    c.sends(PSH | ACK, seq=1, ack=1, length=10)


def test_room_for_a_guest_that_cannot_scale() -> None:
    c = active()
    c.connection.receive.set_room(1 << 20)
    c.receives(SYN | ACK, seq=0, ack=1, options=TcpOptions(mss=1460))
    c.sends(ACK, window=65535)
    assert c.connection.receive.window_left() == 65535


def test_the_guest_refuses() -> None:
    c = active()
    assert c.receives(RST | ACK, ack=1).events == RESET_RECEIVED | CLOSED
    c.is_in(State.CLOSED)


@pytest.mark.parametrize(
    ("flags", "ack"), [(RST, 0), (RST | ACK, 0), (RST | ACK, 2), (FIN, 0), (PSH, 0)]
)
def test_a_refusal_must_acknowledge_the_syn(flags: int, ack: int) -> None:
    c = active()
    assert c.receives(flags, ack=ack) is NOTHING
    c.sends_nothing()
    c.is_in(State.SYN_SENT)


def test_a_half_open_connection_of_the_guest_is_cleared() -> None:
    c = active()
    outcome = c.receives(ACK, seq=500, ack=333)  # RFC 9293 figure 8
    assert outcome.events == CONTROL
    c.sends(RST, seq=333)
    c.is_in(State.SYN_SENT)
    c.after(1.0)
    c.sends(SYN, seq=0)
    c.receives(SYN | ACK, seq=0, ack=1)
    c.sends(ACK, seq=1, ack=1)


def test_a_syn_nobody_answers_is_given_up() -> None:
    c = active()
    events = c.after(130.0)
    assert [e.flags for e, _ in c.mirror.out] == [SYN] * 6
    assert events & CLOSED
    assert events & GUEST_GONE


def test_both_open_at_once() -> None:
    c = active()
    c.receives(SYN, seq=0, options=TcpOptions(mss=1000, wscale=2))
    c.is_in(State.SYN_RECEIVED)
    c.sends(SYN | ACK, seq=0, ack=1)
    outcome = c.receives(SYN | ACK, seq=0, ack=1)  # the guest did the same
    assert outcome.events & ESTABLISHED
    c.is_in(State.ESTABLISHED)
    c.sends(ACK, seq=1, ack=1)
    c.host_writes(5)
    c.sends(PSH | ACK, seq=1, ack=1, length=5)


def test_both_open_at_once_and_an_ack_suffices() -> None:
    c = active()
    c.receives(SYN, seq=0)
    c.sends(SYN | ACK, seq=0, ack=1)
    c.receives(ACK, seq=1, ack=1)
    c.is_in(State.ESTABLISHED)


def test_an_ack_that_does_not_fit_the_handshake_is_refused() -> None:
    c = passive()
    c.connection.host_connected(c.clock.now)
    c.mirror.pump(c.clock.now)
    c.sends(SYN | ACK)
    c.receives(ACK, seq=1, ack=9)
    c.sends(RST, seq=9)
    c.is_in(State.SYN_RECEIVED)
    c.receives(ACK, seq=1, ack=1)
    c.is_in(State.ESTABLISHED)


def test_octets_and_a_fin_may_come_with_the_last_ack() -> None:
    c = passive()
    c.connection.host_connected(c.clock.now)
    c.mirror.pump(c.clock.now)
    c.sends(SYN | ACK)
    outcome = c.receives(PSH | FIN | ACK, seq=1, ack=1, length=10)
    assert outcome.take == 10
    assert outcome.events & ESTABLISHED
    c.is_in(State.CLOSE_WAIT)
    c.sends(ACK, seq=1, ack=12)


def test_a_syn_for_an_established_connection_is_challenged() -> None:
    c = established()
    for seq in (0, 500, -70_000):  # RFC 5961 §4.2: whatever its number
        assert c.receives(SYN, seq=seq).events == ACK_NOW
        c.sends(ACK, seq=1, ack=1)
    c.is_in(State.ESTABLISHED)


def test_what_opens_a_connection() -> None:
    def segment(flags: int) -> Segment:
        return Segment(1, 0, flags, 0, None)

    assert is_opening(segment(SYN))
    assert is_opening(segment(SYN | URG | PSH))
    for flags in (0, ACK, SYN | ACK, SYN | FIN, SYN | RST, FIN | URG | PSH):
        assert not is_opening(segment(flags))


def test_a_segment_of_no_connection_is_refused() -> None:
    assert refusal(Segment(5, 0, RST, 0, None), 0) is None
    assert refusal(Segment(5, 9, RST | ACK, 0, None), 0) is None
    with_ack = refusal(Segment(5, 9, ACK, 0, None), 100)
    assert with_ack is not None
    assert with_ack[:3] == (9, 0, RST)
    without = refusal(Segment(0xFFFFFFFF, 0, SYN | FIN, 0, None), 3)
    assert without is not None
    assert without[:3] == (0, 4, RST | ACK)
