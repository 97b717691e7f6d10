"""Bytes from the guest: in order, ahead, twice, beyond the window; what is acknowledged, when."""

from __future__ import annotations

import pytest

from slirp.tcp.ahead import AHEAD_OCTETS_MAX, AHEAD_RANGES_MAX, AHEAD_SEGMENTS_MAX
from slirp.tcp.connection import ACK_LATER, ACK_NOW, KEEP, State
from slirp.tcp.seq import MASK
from slirp.wire.tcp import ACK, FIN, PSH, URG, TcpOptions
from tests.kit.peer import established, guest_octets


def test_one_ack_at_the_end_of_a_batch() -> None:
    c = established()
    for seq in (1, 1001, 2001):
        outcome = c.receives(ACK, seq=seq, ack=1, length=1000, batch_ends=False)
        assert outcome[1:] == (0, 1000, ACK_LATER)
    c.sends_nothing()
    c.receives(PSH | ACK, seq=3001, ack=1, length=10)
    c.sends(ACK, seq=1, ack=3011)
    c.sends_nothing()
    assert c.mirror.received == guest_octets(1, 3010)


def test_what_waits_for_an_acknowledgement() -> None:
    c = established(room=10_000)
    receive = c.connection.receive
    assert (receive.unacknowledged(), receive.window_left()) == (0, 10_000)
    c.receives(ACK, seq=1, ack=1, length=1000, batch_ends=False)
    c.receives(FIN | ACK, seq=1001, ack=1, length=500, batch_ends=False)
    assert (receive.unacknowledged(), receive.window_left()) == (1501, 8499)
    c.mirror.end_batch(c.clock.now)
    assert receive.unacknowledged() == 0


def test_octets_carry_the_acknowledgement() -> None:
    c = established()
    c.receives(PSH | ACK, seq=1, ack=1, length=1000, batch_ends=False)
    c.host_writes(10)
    c.sends(PSH | ACK, seq=1, ack=1001, length=10)


def test_octets_ahead_are_kept_and_acknowledged_at_once() -> None:
    c = established()
    outcome = c.receives(ACK, seq=1001, ack=1, length=1000, batch_ends=False)
    assert outcome == (0, 0, 1000, ACK_NOW | KEEP)
    c.sends(ACK, ack=1)
    outcome = c.receives(ACK, seq=1, ack=1, length=1000)
    assert outcome.take == 1000
    assert outcome.events & ACK_NOW  # RFC 5681 §4.2: the gap is closed
    c.sends(ACK, ack=2001)
    assert c.mirror.received == guest_octets(1, 2000)
    assert c.mirror.kept == {}


def test_sack_blocks_name_the_latest_first() -> None:
    c = established(sack=True, ts=1)
    c.receives(ACK, seq=1001, ack=1, length=1000)
    c.sends(ACK, ack=1)
    assert c.sack == [(1001, 2001)]
    c.receives(ACK, seq=5001, ack=1, length=1000)
    c.sends(ACK, ack=1)
    assert c.sack == [(5001, 6001), (1001, 2001)]
    c.receives(ACK, seq=3001, ack=1, length=1000)
    c.sends(ACK, ack=1)
    assert c.sack == [(3001, 4001), (5001, 6001), (1001, 2001)]
    c.receives(ACK, seq=7001, ack=1, length=1000)
    c.sends(ACK, ack=1)
    assert c.sack == [(7001, 8001), (3001, 4001), (5001, 6001)]  # three fit beside timestamps
    c.receives(ACK, seq=5501, ack=1, length=100)  # a duplicate: its range comes first again
    c.sends(ACK, ack=1)
    assert c.sack[0] == (5001, 6001)
    c.receives(ACK, seq=2001, ack=1, length=1000)
    c.sends(ACK, ack=1)
    assert c.sack[:2] == [(1001, 4001), (5001, 6001)]
    c.receives(ACK, seq=1, ack=1, length=1000)
    c.sends(ACK, ack=4001)
    assert c.sack == [(5001, 6001), (7001, 8001)]


def test_a_guest_without_sack_gets_no_blocks() -> None:
    c = established(sack=False)
    c.receives(ACK, seq=1001, ack=1, length=1000)
    c.sends(ACK, ack=1)
    assert c.last.options == b""


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (0, 2, 1, 3), (1, 3, 0, 2), (3, 1, 2, 0)])
def test_any_order(order: tuple[int, ...]) -> None:
    c = established(irs=MASK - 2000)
    for place in order:
        c.receives(ACK, seq=1 + place * 1000, ack=1, length=1000)
    assert c.mirror.received == guest_octets(1, 4000)
    assert c.mirror.take_out()[-1][0].ack == (c.irs + 4001) & MASK


@pytest.mark.parametrize("fin_first", [True, False])
def test_reverse_order_fully_overlapping_with_an_empty_fin(fin_first: bool) -> None:
    c = established()
    if fin_first:
        c.receives(FIN | ACK, seq=4001, ack=1)
    for seq, length in [(3001, 1000), (2001, 2000), (1001, 3000), (2501, 10), (1001, 3000)]:
        c.receives(ACK, seq=seq, ack=1, length=length)
    if not fin_first:
        c.receives(FIN | ACK, seq=4001, ack=1)
    c.receives(ACK, seq=1, ack=1, length=4000)
    c.receives(ACK, seq=1, ack=1, length=4000)
    assert c.mirror.received == guest_octets(1, 4000)
    assert c.mirror.guest_closed
    c.is_in(State.CLOSE_WAIT)


def test_octets_never_come_twice() -> None:
    c = established()
    c.receives(ACK, seq=1, ack=1, length=1000)
    outcome = c.receives(ACK, seq=501, ack=1, length=1000)
    assert (outcome.skip, outcome.take) == (500, 500)
    outcome = c.receives(ACK, seq=1, ack=1, length=1500)
    assert outcome[1:] == (0, 0, ACK_NOW)
    assert c.mirror.received == guest_octets(1, 1500)


def test_a_segment_over_a_kept_range_is_taken_up_to_it() -> None:
    c = established()
    c.receives(ACK, seq=1001, ack=1, length=500)
    outcome = c.receives(ACK, seq=1, ack=1, length=3000)
    assert (outcome.skip, outcome.take) == (0, 1000)
    assert c.mirror.received == guest_octets(1, 1500)
    assert c.connection.receive.nxt == (c.irs + 1501) & MASK  # the rest comes again


@pytest.mark.parametrize(("length", "fin"), [(0, False), (1, False), (0, True)])
def test_a_keep_alive_probe_is_answered_and_ignored(length: int, fin: bool) -> None:
    c = established()
    c.receives(ACK, seq=1, ack=1, length=10)
    c.sends(ACK, ack=11)
    outcome = c.receives(ACK | FIN * fin, seq=10 - fin, ack=1, length=length)
    assert outcome[:3] == (0, 0, 0)
    assert outcome.events == ACK_NOW
    c.sends(ACK, seq=1, ack=11)
    assert c.mirror.received == guest_octets(1, 10)


def test_octets_beyond_the_window_are_trimmed() -> None:
    c = established(room=1000)
    outcome = c.receives(PSH | ACK, seq=1, ack=1, length=1500)
    assert (outcome.skip, outcome.take) == (0, 1000)
    c.sends(ACK, ack=1001, window=0)
    outcome = c.receives(PSH | ACK, seq=1001, ack=1, length=1)  # a window probe
    assert outcome[1:] == (0, 0, ACK_NOW)
    c.sends(ACK, ack=1001, window=0)
    outcome = c.receives(PSH | ACK, seq=1500, ack=1, length=100)
    assert outcome[1:] == (0, 0, ACK_NOW)
    assert c.mirror.received == guest_octets(1, 1000)


def test_the_ack_of_a_probe_counts_though_its_octet_does_not() -> None:
    c = established(room=1000)
    c.host_writes(500)
    c.receives(ACK, seq=1, ack=1, length=1000)
    assert c.receives(PSH | ACK, seq=1001, ack=501, length=1).acked == 500


def test_the_window_opens_by_segments_not_by_octets() -> None:
    c = established(room=5000)
    c.receives(ACK, seq=1, ack=1, length=5000)
    c.sends(ACK, ack=5001, window=0)
    c.has_room(100)  # RFC 9293 §3.8.6.2.2
    c.sends_nothing()
    c.has_room(1400)
    c.sends_nothing()
    c.has_room(1460)
    c.sends(ACK, ack=5001, window=1460)
    c.has_room(1500)
    c.sends_nothing()
    c.has_room(3000)
    c.sends(ACK, ack=5001, window=3000)


def test_a_tiny_buffer_opens_by_halves() -> None:
    c = established(room=500)
    c.receives(ACK, seq=1, ack=1, length=500)
    c.sends(ACK, ack=501, window=0)
    c.has_room(249)
    c.sends_nothing()
    c.has_room(250)
    c.sends(ACK, ack=501, window=250)


def test_the_right_edge_never_moves_left() -> None:
    c = established(room=10_000)
    c.has_room(0)
    c.receives(ACK, seq=1, ack=1, length=1000)
    c.sends(ACK, ack=1001, window=9000)
    c.has_room(10)
    assert c.receives(ACK, seq=1001, ack=1, length=9000).take == 9000


def test_a_wide_window_reaches_sixteen_mebioctets() -> None:
    c = established(wscale=7, rcv_wscale=8)
    c.has_room(1 << 40)
    c.sends(ACK, ack=1, window=65535)
    c.receives(ACK, seq=1, ack=1, length=1)
    c.sends(ACK, ack=2, window=65534)
    assert c.receives(ACK, seq=2, ack=1, length=65535 << 7).take == 65535 << 7


def test_urgent_octets_are_octets() -> None:
    c = established()
    assert c.receives(URG | PSH | ACK, seq=1, ack=1, length=10).take == 10
    c.sends(ACK, ack=11)
    assert c.receives(URG | ACK, seq=11, ack=1).take == 0


def test_the_ranges_ahead_are_bounded() -> None:
    c = established(sack=True)
    for place in range(AHEAD_RANGES_MAX + 20):
        c.receives(ACK, seq=3 + 2 * place, ack=1, length=1)
    assert len(c.mirror.kept) == AHEAD_RANGES_MAX
    c.receives(ACK, seq=1, ack=1, length=200)
    while c.connection.receive.ahead is not None:
        done = (c.connection.receive.nxt - c.irs) & MASK
        c.receives(ACK, seq=done, ack=1, length=201 - done)
    assert c.mirror.received == guest_octets(1, 200)[: len(c.mirror.received)]
    assert len(c.mirror.received) >= 2 * AHEAD_RANGES_MAX


def test_the_segments_ahead_are_bounded() -> None:
    c = established(sack=True)
    for place in range(AHEAD_SEGMENTS_MAX + 20):
        c.receives(ACK, seq=3 + place, ack=1, length=1)
    assert len(c.mirror.kept) == AHEAD_SEGMENTS_MAX


def test_the_octets_ahead_are_bounded() -> None:
    c = established(sack=True, wscale=7, rcv_wscale=8)
    c.has_room(16 << 20)
    for place in range(50):
        c.receives(ACK, seq=2 + 60_000 * place, ack=1, length=60_000)
    kept = sum(map(len, c.mirror.kept.values()))
    assert AHEAD_OCTETS_MAX - 60_000 < kept <= AHEAD_OCTETS_MAX


def test_sequence_numbers_wrap() -> None:
    c = established(irs=MASK - 500, iss=MASK - 300)
    assert c.receives(PSH | ACK, seq=1, ack=1, length=1000).take == 1000
    c.sends(ACK, seq=1, ack=1001)
    c.host_writes(1000)
    c.sends(PSH | ACK, seq=1, ack=1001, length=1000)
    assert c.receives(ACK, seq=1001, ack=1001).acked == 1000
    c.receives(ACK, seq=2001, ack=1001, length=100)
    c.receives(ACK, seq=1001, ack=1001, length=1000)
    assert c.connection.receive.nxt == 2101 - 501
    assert c.mirror.received == guest_octets(1, 2100)


# Timestamps


def ts(value: int) -> TcpOptions:
    return TcpOptions(ts=(value & MASK, 0))


def test_timestamps_are_echoed() -> None:
    c = established(ts=1000)
    c.receives(ACK, seq=1, ack=1, length=10, options=ts(1005), batch_ends=False)
    c.receives(ACK, seq=11, ack=1, length=10, options=ts(1007))
    c.sends(ACK, ack=21)
    assert c.options.ts is not None
    assert c.options.ts[1] == 1005  # of the segment that the last ACK had asked for: RFC 7323 §4.3
    first = c.options.ts[0]
    c.after(0.5)
    c.receives(ACK, seq=21, ack=1, length=10, options=ts(1500))
    c.sends(ACK, ack=31)
    assert c.options.ts is not None
    assert (c.options.ts[0] - first) & MASK == 500  # milliseconds
    assert c.options.ts[1] == 1500


def test_an_old_timestamp_is_an_old_segment() -> None:
    c = established(ts=1000)
    c.receives(ACK, seq=1, ack=1, length=10, options=ts(2000))
    c.sends(ACK, ack=11)
    outcome = c.receives(ACK, seq=11, ack=1, length=10, options=ts(1999))
    assert outcome[1:] == (0, 0, ACK_NOW)
    c.sends(ACK, ack=11)
    assert c.receives(ACK, seq=11, ack=1, length=10, options=ts(2000)).take == 10


def test_timestamps_wrap() -> None:
    c = established(ts=MASK - 1)
    assert c.receives(ACK, seq=1, ack=1, length=10, options=ts(3)).take == 10
    assert c.receives(ACK, seq=11, ack=1, length=10, options=ts(MASK)).take == 0


def test_a_timestamp_proves_nothing_after_weeks() -> None:
    c = established(ts=1000)
    c.clock.advance(25 * 86400.0)
    assert c.receives(ACK, seq=1, ack=1, length=10, options=ts(10)).take == 10
    assert c.receives(ACK, seq=11, ack=1, length=10, options=ts(11)).take == 10


def test_a_segment_without_the_timestamp_is_taken() -> None:
    c = established(ts=1000)
    c.tsval = None
    assert c.receives(ACK, seq=1, ack=1, length=10).take == 10
    c.sends(ACK, ack=11)
    assert c.options.ts is not None


def test_timestamps_that_were_not_negotiated_are_nothing() -> None:
    c = established(ts=None)
    assert c.receives(ACK, seq=1, ack=1, length=10, options=ts(5)).take == 10
    assert c.receives(ACK, seq=11, ack=1, length=10, options=ts(3)).take == 10
    c.sends(ACK, ack=11)
    assert c.last.options == b""


def test_a_reset_needs_no_timestamp() -> None:
    c = established(ts=1000)
    c.receives(4, seq=1, options=ts(1))
    c.is_in(State.CLOSED)
