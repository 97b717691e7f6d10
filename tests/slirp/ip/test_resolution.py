"""What waits for an address: whom to ask, who gives way, and that nothing is lost or doubled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.ip import resolution
from slirp.ip.resolution import ASK_EVERY, HELD_BYTES, HELD_MAX, HOLD_FOR, Resolution

ONE, TWO = bytes((10, 0, 2, 15)), bytes((10, 0, 2, 16))


def test_the_first_item_asks_and_all_come_back_in_order() -> None:
    waiting: Resolution[str] = Resolution()
    assert waiting.hold(ONE, "udp", "a", 10, now=0.0) == (True, [])
    assert waiting.hold(ONE, "tcp", "b", 10, now=0.1) == (False, [])
    assert waiting.hold(ONE, "udp", "c", 10, now=0.2) == (False, [])
    assert waiting.hold(TWO, "udp", "elsewhere", 10, now=0.2) == (True, [])
    assert (waiting.held, waiting.size) == (4, 40)
    assert waiting.resolved(ONE) == ["a", "b", "c"]
    assert waiting.resolved(ONE) == []
    assert (waiting.held, waiting.size) == (1, 10)


def test_it_is_asked_for_once_a_second_until_it_is_given_up() -> None:
    """RFC 1122 §2.3.2.1."""
    waiting: Resolution[str] = Resolution()
    waiting.hold(ONE, "udp", "early", 10, now=0.0)
    waiting.hold(ONE, "udp", "late", 10, now=2.5)
    asked, unreachable = [], []
    while (at := waiting.poll_at()) is not None:
        due = waiting.handle_timeout(at)
        asked += [at for _ in due.ask]
        unreachable += [(at, item) for item in due.unreachable]
    assert asked == [n * ASK_EVERY for n in range(1, 8)]
    assert unreachable == [(HOLD_FOR, "early"), (2.5 + HOLD_FOR, "late")]
    assert waiting.unreachable == 2


def test_it_is_not_asked_for_more_often_because_everybody_gave_up() -> None:
    waiting: Resolution[str] = Resolution()
    waiting.hold(ONE, "udp", "a", 10, now=0.5)
    for tenth in range(60):
        waiting.handle_timeout(0.5 + tenth / 10)
    assert waiting.held == 0
    waiting.hold(TWO, "udp", "x", 10, now=0.0)
    waiting.hold(TWO, "udp", "y", HELD_BYTES, now=0.1)
    assert waiting.hold(TWO, "udp", "z", 10, now=0.2).ask is False


def test_the_oldest_gives_way_in_number_and_in_bytes() -> None:
    waiting: Resolution[int] = Resolution()
    for number in range(HELD_MAX):
        assert waiting.hold(ONE, "udp", number, 1, now=0.0).displaced == []
    assert waiting.hold(ONE, "udp", HELD_MAX, 1, now=0.0).displaced == [0]
    assert waiting.hold(ONE, "udp", -1, HELD_BYTES - 10, now=0.0).displaced == list(
        range(1, HELD_MAX - 9)
    )
    assert waiting.size == HELD_BYTES
    assert waiting.displaced == HELD_MAX - 9


def test_a_flood_displaces_itself() -> None:
    """Not the connection that waits for the same guest, nor what waits for another."""
    waiting: Resolution[object] = Resolution()
    waiting.hold(ONE, "tcp", "connection", 1024, now=0.0)
    waiting.hold(TWO, "udp", "datagram", 100, now=0.0)
    for number in range(2 * HELD_MAX):
        waiting.hold(ONE, "udp", number, 1000, now=0.0)
    assert waiting.resolved(TWO) == ["datagram"]
    assert waiting.resolved(ONE)[0] == "connection"


def test_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolution, "ADDRS_MAX", 2)
    waiting: Resolution[str] = Resolution()
    waiting.hold(ONE, "udp", "a", 1, now=0.0)
    waiting.hold(TWO, "udp", "b", 1, now=0.0)
    assert waiting.hold(bytes(4), "udp", "c", 1, now=0.0) == (True, ["a"])
    assert waiting.close() == ["b", "c"]
    assert waiting.held == waiting.size == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["hold", "hold", "hold", "seen", "wait"]),
            st.integers(0, 5),
            st.sampled_from(["tcp", "udp"]),
            st.integers(0, HELD_BYTES // 3),
        ),
        max_size=60,
    )
)
def test_every_item_comes_out_once(steps: list[tuple[str, int, str, int]]) -> None:
    waiting: Resolution[int] = Resolution()
    now, out = 0.0, []
    asked_at: dict[bytes, float] = {}
    held = 0

    def asked(addr: bytes) -> None:
        assert now - asked_at.get(addr, -9.0) >= ASK_EVERY
        asked_at[addr] = now

    for verb, number, kind, size in steps:
        addr = bytes((10, 0, 2, number))
        if verb == "hold":
            outcome = waiting.hold(addr, kind, held, size, now)
            held += 1
            out += outcome.displaced
            if outcome.ask:
                asked(addr)
        elif verb == "seen":
            out += waiting.resolved(addr)
            asked_at.pop(addr, None)  # it answered: the next look is another matter
        else:
            now += size / HELD_BYTES * 6
            due = waiting.handle_timeout(now)
            out += due.unreachable
            for one in due.ask:
                asked(one)
        assert waiting.held <= HELD_MAX
        assert waiting.size <= HELD_BYTES
        assert waiting.held == held - len(out)
        at = waiting.poll_at()
        assert at is None or at > now or verb != "wait"
    out += waiting.close()
    assert sorted(out) == list(range(held))
    assert waiting.size == 0
