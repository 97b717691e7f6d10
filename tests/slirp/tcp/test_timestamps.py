from __future__ import annotations

import pytest

from slirp.tcp.timestamps import OPTION_LEN, Timestamps
from slirp.wire.tcp import parse_options


def test_off_until_the_guest_has_them() -> None:
    timestamps = Timestamps(5)
    assert (timestamps.option(1.0), timestamps.pair(1.0), timestamps.length) == (b"", None, 0)
    timestamps.turn(77)
    assert timestamps.length == OPTION_LEN == len(timestamps.option(1.0))
    timestamps.turn(None)
    assert timestamps.option(1.0) == b""


def test_the_option_holds_our_clock_and_the_guest_s() -> None:
    timestamps = Timestamps(1000)
    timestamps.turn(77)
    assert parse_options(timestamps.option(2.5)).ts == (3500, 77) == timestamps.pair(2.5)


def test_the_clock_wraps() -> None:
    timestamps = Timestamps(0xFFFFFFFF, on=True)
    assert timestamps.clock(0.001) == 0


@pytest.mark.parametrize(("ago", "seconds"), [(0, 0.0), (40, 0.04), (59_999, 59.999)])
def test_an_echo_tells_the_round_trip(ago: int, seconds: float) -> None:
    timestamps = Timestamps(123, on=True)
    echo = (timestamps.clock(100.0) - ago) & 0xFFFFFFFF
    assert timestamps.round_trip(echo, 100.0) == pytest.approx(seconds)


@pytest.mark.parametrize("ago", [60_000, 1 << 31, -1])
def test_an_echo_of_what_was_never_sent_tells_nothing(ago: int) -> None:
    timestamps = Timestamps(123, on=True)
    assert timestamps.round_trip((timestamps.clock(100.0) - ago) & 0xFFFFFFFF, 100.0) is None
