from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.ip.ipv4 import IPV4
from slirp.ip.neighbours import HELD_FOR, PORT_MAX, Guest, Neighbours
from slirp.wire.ethernet import EthernetHeader

GATEWAY = bytes([10, 0, 2, 2])
DNS = bytes([10, 0, 2, 3])
BROADCAST = bytes([10, 0, 2, 255])
GUEST = bytes([10, 0, 2, 15])
OTHER = bytes([10, 0, 2, 16])
OUR_MAC = bytes.fromhex("525500000202")
MAC = bytes.fromhex("080020010203")
MAC_2 = bytes.fromhex("080020040506")
OWN = {GATEWAY: OUR_MAC, DNS: OUR_MAC}


def neighbours() -> Neighbours:
    return Neighbours(OWN[GATEWAY], {*OWN, BROADCAST})


def where(table: Neighbours, addr: bytes) -> tuple[bytes, object] | None:
    guest = table.get(addr)
    return None if guest is None else (guest.mac, guest.attachment)


def test_what_was_learned_is_found() -> None:
    table = neighbours()
    assert table.learn(IPV4, GUEST, MAC, 1, now=0.0)
    assert where(table, GUEST) == (MAC, 1)
    assert where(table, OTHER) is None
    assert table.learn(IPV4, bytes([0x20, 1] + [0] * 13 + [5]), MAC, 1, now=0.0)  # any family


@pytest.mark.parametrize(
    ("addr", "mac"),
    [
        (GATEWAY, MAC), (DNS, MAC), (BROADCAST, MAC),  # the gateway's place, or everyone's
        (bytes(4), MAC), (b"\xff" * 4, MAC), (bytes([224, 0, 0, 1]), MAC),
        (bytes([127, 0, 0, 1]), MAC), (bytes(16), MAC), (b"\xff\x02" + bytes(14), MAC),
        (GUEST, b"\xff" * 6), (GUEST, bytes.fromhex("01005e000001")),
    ],
)  # fmt: skip
def test_what_is_not_believed(addr: bytes, mac: bytes) -> None:
    table = neighbours()
    assert not table.learn(IPV4, addr, mac, 1, now=0.0)
    assert where(table, addr) is None
    assert table.refused == 1


def test_a_guest_may_change_its_mac() -> None:
    table = neighbours()
    table.learn(IPV4, GUEST, MAC, 1, now=0.0)
    first = table.get(GUEST)
    assert table.learn(IPV4, GUEST, MAC_2, 1, now=0.1) is first  # flows hold on to it
    assert first is not None
    assert first.ethernet[:6] == MAC_2
    assert where(table, GUEST) == (MAC_2, 1)
    assert len(table) == 1


def test_another_port_takes_an_address_over_only_after_silence() -> None:
    table = neighbours()
    table.learn(IPV4, GUEST, MAC, 1, now=0.0)
    table.learn(IPV4, GUEST, MAC, 1, now=10.0)
    assert not table.learn(IPV4, GUEST, MAC_2, 2, now=9.0 + HELD_FOR)
    assert where(table, GUEST) == (MAC, 1)
    assert table.learn(IPV4, GUEST, MAC_2, 2, now=10.0 + HELD_FOR)
    assert where(table, GUEST) == (MAC_2, 2)


class Machine:
    """A port whose guest may have gone elsewhere."""

    is_down = False


def test_a_machine_that_migrated_has_its_address_at_once() -> None:
    before, after = Machine(), Machine()
    table = neighbours()
    guest = table.learn(IPV4, GUEST, MAC, before, now=0.0)
    assert not table.learn(IPV4, GUEST, MAC, after, now=1.0)
    before.is_down = True
    assert not table.learn(IPV4, GUEST, MAC_2, after, now=1.0)  # somebody else
    assert table.learn(IPV4, GUEST, MAC, after, now=1.0) is guest
    assert where(table, GUEST) == (MAC, after)


def test_a_detached_port_is_forgotten() -> None:
    table = neighbours()
    table.learn(IPV4, GUEST, MAC, 1, now=0.0)
    table.learn(IPV4, OTHER, MAC_2, 2, now=0.0)
    table.forget_port(1)
    table.forget_port(7)
    assert where(table, GUEST) is None
    assert table.learn(IPV4, GUEST, MAC_2, 2, now=0.0)
    assert len(table) == 2


def test_a_flood_evicts_only_its_own_port() -> None:
    table = neighbours()
    table.learn(IPV4, GUEST, MAC, 1, now=0.0)
    for n in range(3 * PORT_MAX):
        assert table.learn(IPV4, bytes([10, 1, n >> 8, n & 255]), MAC_2, 2, now=1.0 + n)
    assert len(table) == 1 + PORT_MAX
    assert table.evicted == 2 * PORT_MAX
    assert where(table, GUEST) == (MAC, 1)
    assert where(table, bytes([10, 1, 2, 255])) is not None  # the newest
    assert where(table, bytes([10, 1, 0, 0])) is None


def test_an_address_in_use_outlives_the_flood_of_its_own_port() -> None:
    table = neighbours()
    table.learn(IPV4, GUEST, MAC, 1, now=0.0)
    for n in range(2 * PORT_MAX):
        table.learn(IPV4, bytes([10, 1, n >> 8, n & 255]), MAC, 1, now=1.0 + n)
        table.learn(IPV4, GUEST, MAC, 1, now=1.5 + n)
    assert where(table, GUEST) == (MAC, 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([GATEWAY, BROADCAST, GUEST, OTHER, bytes(4), bytes(16)]),
            st.sampled_from([MAC, MAC_2, b"\xff" * 6]),
            st.integers(1, 3),
            st.sampled_from([0.0, 1.0, HELD_FOR]),
        )
    )
)
def test_whatever_is_said_the_gateway_keeps_its_place(
    steps: list[tuple[bytes, bytes, int, float]],
) -> None:
    table = neighbours()
    now = 0.0
    for addr, mac, port_id, later in steps:
        now += later
        before = where(table, addr)
        believed = table.learn(IPV4, addr, mac, port_id, now)
        assert where(table, addr) == ((mac, port_id) if believed else before)
        assert table.get(GATEWAY) is table.get(BROADCAST) is None
    assert len(table) <= 2


def test_a_guest_that_moves() -> None:
    own, first, second = b"\x52gate.", b"\x02first", b"\x02secnd"
    guest = Guest(IPV4, GUEST, first, own, "port 1", 1.0)
    assert EthernetHeader.parse(guest.ethernet) == (first, own, 0x0800)
    guest.move(second, own, "port 2")
    assert EthernetHeader.parse(guest.ethernet) == (second, own, 0x0800)
    assert (guest.mac, guest.attachment) == (second, "port 2")
