"""What is received, without a connection around it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slirp.tcp.ahead import Shelf
from slirp.tcp.receive import WINDOW_MAX, Receive
from slirp.tcp.segment import ACK_LATER, ACK_NOW, KEEP
from slirp.tcp.seq import MASK

NXT = 0xFFFFFF00  # so that everything below wraps


def receiving(room: int = 10_000, wscale: int = 0) -> Receive:
    return Receive(NXT, 1000, wscale, room)


def at(offset: int) -> int:
    return (NXT + offset) & MASK


def test_bytes_in_order() -> None:
    r = receiving()
    assert r.take_in_order(0, 600, False) == (0, 600, ACK_LATER, False)
    assert r.take_in_order(100, 500, True) == (100, 400, ACK_LATER, True)
    assert r.nxt == at(1000)
    assert (r.unacknowledged(), r.window_left()) == (1000, 9000)


def test_a_gap_is_kept_and_closed() -> None:
    r = receiving()
    assert r.take_ahead(at(1000), 500, False) == (0, 500, ACK_NOW | KEEP)
    assert r.take_ahead(at(1200), 400, False) == (300, 100, ACK_NOW | KEEP)  # what is new of it
    skip, take, events, fin = r.take_in_order(0, 1000, False)
    assert (skip, take, fin) == (0, 1000, False)
    assert events & ACK_NOW
    assert r.nxt == at(1600)
    assert r.ahead is None


def test_a_fin_beyond_a_gap_waits_for_it() -> None:
    r = receiving()
    assert r.take_ahead(at(500), 10, True) == (0, 10, ACK_NOW | KEEP)
    assert r.take_in_order(0, 500, False)[3]
    r.take_fin()
    assert r.nxt == at(511)


def test_a_fin_at_the_end_of_the_window_moves_it() -> None:
    r = receiving(room=100)
    r.take_in_order(0, 100, True)
    r.take_fin()
    assert (r.nxt, r.adv) == (at(101), at(101))


def test_a_full_shelf_keeps_nothing() -> None:
    r = receiving()
    r.shelf = Shelf(0)
    assert r.take_ahead(at(1000), 500, False) == (0, 0, ACK_NOW)
    assert r.ahead is None


def test_the_window_opens_by_whole_segments() -> None:
    r = receiving(room=5000)
    r.take_in_order(0, 5000, False)
    r.set_room(900)
    assert r.window_left() == 0
    r.set_room(1000)
    assert r.window_left() == 1000
    r.set_room(0)
    assert r.window_left() == 1000  # the edge never moves left
    assert r.update_due()


def test_a_syn_s_window_is_not_scaled() -> None:
    r = receiving(room=1 << 20, wscale=8)
    assert r.window_left() == WINDOW_MAX
    assert r.syn_window() == WINDOW_MAX
    r.set_room(1 << 20)
    assert r.window_left() == 1 << 20
    r.start(irs=7)  # the guest's SYN came only now
    assert (r.nxt, r.window_left(), r.told) == (8, 1 << 20, r.adv)


@given(st.lists(st.integers(0, 1 << 22), max_size=30), st.integers(0, 14))
def test_the_edge_never_moves_left(rooms: list[int], wscale: int) -> None:
    r = receiving(wscale=wscale)
    for room in rooms:
        before = r.adv
        r.set_room(room)
        assert (r.adv - before) & MASK < 1 << 31
        assert r.window_left() <= max(WINDOW_MAX << wscale, 10_000)
        r.take_in_order(0, min(r.window_left(), 5000), False)
