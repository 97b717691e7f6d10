"""What listens on one of 127.0.0.1 and ::1 only is found at the gateway's address."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slirp.host.loopback import FOUND_MAX, Loopbacks
from slirp.ip.ipv4_nat import LOOPBACK4
from slirp.ip.ipv6_nat import LOOPBACK6

PORT = 53


def test_each_is_the_others_other() -> None:
    found = Loopbacks(either=True)
    assert (found.other(LOOPBACK4), found.other(LOOPBACK6)) == (LOOPBACK6, LOOPBACK4)
    assert found.other(bytes((192, 0, 2, 1))) is None


def test_a_port_is_remembered_where_it_was_not_refused() -> None:
    found = Loopbacks(either=True)
    assert found.best(LOOPBACK6, PORT) == LOOPBACK6
    assert found.refused(LOOPBACK6, LOOPBACK6, PORT) == LOOPBACK4
    assert found.best(LOOPBACK6, PORT) == LOOPBACK4
    assert found.best(LOOPBACK6, PORT + 1) == LOOPBACK6
    assert found.best(LOOPBACK4, PORT) == LOOPBACK4


def test_refused_at_both_it_is_looked_for_anew() -> None:
    found = Loopbacks(either=True)
    found.refused(LOOPBACK6, LOOPBACK6, PORT)
    assert found.refused(LOOPBACK6, LOOPBACK4, PORT) is None
    assert found.best(LOOPBACK6, PORT) == LOOPBACK6


def test_off_each_is_what_it_is() -> None:
    found = Loopbacks(either=False)
    assert found.other(LOOPBACK4) is None
    assert found.refused(LOOPBACK4, LOOPBACK4, PORT) is None
    assert found.best(LOOPBACK4, PORT) == LOOPBACK4


@given(st.lists(st.integers(1, 65535), max_size=3 * FOUND_MAX))
def test_what_is_remembered_is_bounded(ports: list[int]) -> None:
    found = Loopbacks(either=True)
    for port in ports:
        found.refused(LOOPBACK4, LOOPBACK4, port)
        assert found.best(LOOPBACK4, port) == LOOPBACK6
    assert len(found._found) <= FOUND_MAX
