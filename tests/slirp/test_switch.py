"""The learning switch, against a flat model of what it may know."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slirp.switch import MACS_PER_PORT, LearningSwitch

OWN = b"\x52\x55\x0a\0\x02\x02"


def mac(number: int) -> bytes:
    return b"\x52\x54\0" + number.to_bytes(3, "big")


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc"))), st.sampled_from("abc"))
def test_an_address_is_where_it_was_seen_last(seen: list[tuple[int, str]], gone: str) -> None:
    switch = LearningSwitch(OWN)
    model = {}
    for number, port in seen:
        switch.learn(mac(number), port)
        model[mac(number)] = port
    assert {address: switch.lookup(address) for address in model} == model
    assert len(switch) == len(model)
    switch.forget_port(gone)
    left = {address: port for address, port in model.items() if port != gone}
    assert {address: switch.lookup(address) for address in left} == left
    assert len(switch) == len(left)


def test_nobody_takes_the_networks_own_address() -> None:
    switch = LearningSwitch(OWN)
    switch.learn(OWN, "a")
    assert switch.lookup(OWN) is None


def test_a_flood_pushes_out_only_its_own() -> None:
    switch = LearningSwitch(OWN)
    switch.learn(mac(0), "a")
    for number in range(1, 10 * MACS_PER_PORT):
        switch.learn(mac(number), "b")
    assert switch.lookup(mac(0)) == "a"
    assert len(switch) == 1 + MACS_PER_PORT
    assert switch.lookup(mac(1)) is None
    assert switch.lookup(mac(10 * MACS_PER_PORT - 1)) == "b"
