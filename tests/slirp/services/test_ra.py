"""When router advertisements go out, and what scapy reads in one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_RA,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPREF64,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
)

from slirp.address import Prefix, addr_from_text
from slirp.errors import MalformedPacket
from slirp.services import ra
from slirp.services.ra import ALL_NODES, Advertiser, RaConfig
from slirp.wire.ndp import RouterSolicitation

GATEWAY_MAC = bytes.fromhex("52550a000202")
MAC = bytes.fromhex("525400123456")
HOST = addr_from_text("fe80::5054:ff:fe12:3456")
NOBODY = bytes(16)
ASKS = RouterSolicitation(None)


def config(**changes: Any) -> RaConfig:
    values: dict[str, Any] = {"mac": GATEWAY_MAC, "prefix": Prefix.from_text("fd00::/64")}
    return RaConfig(**values | changes)


class Dice:
    """Every choice at one place between the bounds."""

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, least: float, most: float) -> float:
        return least + self.share * (most - least)


def advertiser(share: float = 1.0) -> Advertiser:
    return Advertiser(config(), Dice(share))


def times(target: Advertiser, until: float) -> list[float]:
    """When one goes to all."""
    found = []
    while (at := target.poll_at()) is not None and at <= until:
        found += [at for sent in target.handle_timeout(at) if sent.dst == ALL_NODES]
    return found


# What it says


def test_everything_as_scapy_reads_it() -> None:
    octets = config(
        mtu=1400, dns=(addr_from_text("fd00::3"),), search=("slirp.internal", "example."),
        managed=True, other=True, nat64=Prefix.from_text("64:ff9b::/96"),
    ).message()  # fmt: skip
    read = ICMPv6ND_RA(octets)
    assert (read.chlim, read.M, read.O, read.routerlifetime) == (64, 1, 1, 1800)
    assert (read.reachabletime, read.retranstimer) == (0, 0)
    assert read[ICMPv6NDOptSrcLLAddr].lladdr == "52:55:0a:00:02:02"
    assert read[ICMPv6NDOptMTU].mtu == 1400
    prefix = read[ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("fd00::", 64, 1, 1)
    assert (prefix.validlifetime, prefix.preferredlifetime) == (86400, 14400)
    assert read[ICMPv6NDOptRDNSS].dns == ["fd00::3"]
    assert read[ICMPv6NDOptRDNSS].lifetime == 1800
    assert read[ICMPv6NDOptDNSSL].searchlist == ["slirp.internal.", "example."]
    nat64 = read[ICMPv6NDOptPREF64]
    assert (nat64.prefix, nat64.plc, nat64.scaledlifetime) == ("64:ff9b::", 0, 225)


def test_only_what_there_is() -> None:
    read = ICMPv6ND_RA(config(routes=False).message())
    assert (read.M, read.O, read.routerlifetime) == (0, 0, 0)
    for option in (ICMPv6NDOptMTU, ICMPv6NDOptRDNSS, ICMPv6NDOptDNSSL, ICMPv6NDOptPREF64):
        assert option not in read


@pytest.mark.parametrize(
    ("changes", "autonomous"),
    [
        ({}, 1),
        ({"autonomous": False}, 0),
        ({"prefix": Prefix.from_text("fd00::/80")}, 0),  # no address is made from such a one
    ],
)
def test_whether_guests_make_their_own_addresses(changes: dict[str, Any], autonomous: int) -> None:
    read = ICMPv6ND_RA(config(**changes).message())
    assert (1, autonomous) == (read[ICMPv6NDOptPrefixInfo].L, read[ICMPv6NDOptPrefixInfo].A)


def test_the_longest_one_fits_every_link() -> None:
    names = tuple(f"{number}.{'a' * 60}.example" for number in range(100))
    octets = config(
        mtu=1280, dns=(bytes(16),), search=names, nat64=Prefix.from_text("64:ff9b::/96")
    ).message()
    assert len(octets) <= 1280 - 40
    assert len(ICMPv6ND_RA(octets)[ICMPv6NDOptDNSSL].searchlist) == 13


# When, RFC 4861 §6.2.4


def test_three_soon_and_then_rarely() -> None:
    target = advertiser(share=1.0)
    target.add_port("a", 100.0)
    assert times(target, 2000.0) == [100.5, 116.5, 132.5, 732.5, 1332.5, 1932.5]


def test_no_sooner_than_a_third() -> None:
    target = advertiser(share=0.0)
    target.add_port("a", 0.0)
    assert times(target, 700.0) == [0.0, 16.0, 32.0, 230.0, 428.0, 626.0]


def test_without_ports_nothing_is_due() -> None:
    target = advertiser()
    assert target.poll_at() is None
    target.add_port("a", 0.0)
    target.forget_port("a")
    assert target.handle_timeout(1.0) == []
    assert target.poll_at() is None


def test_each_port_has_its_own_times() -> None:
    target = advertiser()
    target.add_port("a", 0.0)
    target.add_port("b", 10.0)
    assert [sent.port for sent in target.handle_timeout(0.5)] == ["a"]
    assert [sent.port for sent in target.handle_timeout(10.5)] == ["b"]


# Solicited, RFC 4861 §6.2.6


def quiet(share: float = 1.0) -> Advertiser:
    """One port, which had its first three."""
    target = advertiser(share)
    target.add_port("a", 0.0)
    times(target, 40.0)
    return target


def test_who_asks_gets_an_answer_of_his_own() -> None:
    target = quiet()
    target.handle_solicitation(ASKS, HOST, MAC, "a", 50.0)
    assert target.poll_at() == 50.5
    assert target.handle_timeout(50.4) == []
    (sent,) = target.handle_timeout(50.5)
    assert sent == ("a", HOST, MAC, target.message)
    assert target.handle_timeout(60.0) == []


def test_his_own_word_on_his_address_counts() -> None:
    target = quiet()
    target.handle_solicitation(RouterSolicitation(GATEWAY_MAC), HOST, MAC, "a", 50.0)
    assert target.handle_timeout(51.0)[0].mac == GATEWAY_MAC


def test_who_has_no_address_is_answered_with_all_others() -> None:
    target = quiet()
    target.handle_solicitation(ASKS, NOBODY, MAC, "a", 50.0)
    (sent,) = target.handle_timeout(50.5)
    assert (sent.dst, sent.mac) == (ALL_NODES, None)


def test_no_two_to_all_within_three_seconds() -> None:
    target = quiet()
    for number in range(100):
        target.handle_solicitation(ASKS, NOBODY, MAC, "a", 50.0 + number / 10)
        target.handle_timeout(50.0 + number / 10)
    sent = times(target, 70.0)
    again = quiet()
    again.handle_solicitation(ASKS, NOBODY, MAC, "a", 50.0)
    again.handle_timeout(50.5)
    again.handle_solicitation(ASKS, NOBODY, MAC, "a", 50.6)
    assert again.poll_at() == 53.5
    assert len(sent) <= 1


def test_who_asks_twice_is_answered_once() -> None:
    target = quiet()
    target.handle_solicitation(ASKS, HOST, MAC, "a", 50.0)
    target.handle_solicitation(ASKS, HOST, MAC, "a", 50.3)
    assert len(target.handle_timeout(50.5)) == 1
    assert target.handle_timeout(51.0) == []


def test_beyond_the_bound_all_get_one_answer() -> None:
    target = quiet()
    for number in range(100):
        src = HOST[:15] + bytes((number,))
        target.handle_solicitation(ASKS, src, MAC, "a", 50.0)
    sent = target.handle_timeout(51.0)
    assert len(sent) == ra.PENDING_MAX + 1
    assert [s.dst for s in sent].count(ALL_NODES) == 1


def test_one_that_is_due_sooner_is_the_answer() -> None:
    target = advertiser()
    target.add_port("a", 0.0)
    target.handle_solicitation(ASKS, NOBODY, MAC, "a", 0.1)
    assert times(target, 16.4) == [0.5]


def test_who_has_no_address_has_no_hardware_address_either() -> None:
    with pytest.raises(MalformedPacket, match="link-layer address of nobody"):
        quiet().handle_solicitation(RouterSolicitation(MAC), NOBODY, MAC, "a", 50.0)


def test_a_port_that_is_gone_is_not_answered() -> None:
    target = quiet()
    target.forget_port("a")
    target.handle_solicitation(ASKS, HOST, MAC, "a", 50.0)
    assert target.handle_timeout(60.0) == []


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.sampled_from([NOBODY, HOST, HOST[:15] + b"\1"])), max_size=40
    ),
    st.randoms(use_true_random=False),
)
def test_the_bounds_hold_whoever_asks(asked: list[tuple[float, bytes]], dice: Any) -> None:
    """Nobody waits for longer than 3.5 s, none goes to all within 3 s of the last."""
    target = Advertiser(config(), dice.uniform)
    target.add_port("a", 0.0)
    now = 0.0
    to_all: list[float] = []
    waiting: dict[bytes, float] = {}
    for later, src in asked:
        now += later
        while (at := target.poll_at()) is not None and at <= now:
            for sent in target.handle_timeout(at):
                if sent.dst == ALL_NODES:
                    to_all.append(at)
                    waiting.pop(NOBODY, None)
                else:
                    assert at - waiting.pop(sent.dst) <= ra.DELAY_MAX + 1e-9
        target.handle_solicitation(ASKS, src, MAC, "a", now)
        waiting.setdefault(src, now)
        assert now - waiting.get(NOBODY, now) <= ra.SPACING + ra.DELAY_MAX + 1e-9
    assert all(b - a >= ra.SPACING - 1e-9 for a, b in pairwise(to_all))
