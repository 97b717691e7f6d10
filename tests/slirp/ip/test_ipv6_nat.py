"""Where a guest's IPv6 packets go, and as whom the host's peers appear."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp import flow
from slirp.address import addr_from_text
from slirp.config import Config
from slirp.flow import Refusal
from slirp.ip.ipv6_nat import LOOPBACK6, Nat6

GATEWAY, DNS = addr_from_text("fd00::2"), addr_from_text("fd00::3")
ROUTER = addr_from_text("fe80::2")
FAR = addr_from_text("2001:db8::1")


def nat(*, host_loopback: bool = True, restrict: bool = False) -> Nat6:
    return Nat6(Config(host_loopback=host_loopback, restrict=restrict))


@pytest.mark.parametrize(
    ("dst", "plain", "no_loopback", "restricted"),
    [
        ("fd00::2", LOOPBACK6, flow.NO_LOOPBACK, flow.RESTRICTED),
        ("fe80::2", LOOPBACK6, flow.NO_LOOPBACK, flow.RESTRICTED),
        ("fd00::3", flow.NO_SERVICE, flow.NO_SERVICE, flow.NO_SERVICE),
        ("fd00::100", flow.NOT_ROUTED, flow.NOT_ROUTED, flow.NOT_ROUTED),
        ("fe80::3", flow.NOT_ROUTED, flow.NOT_ROUTED, flow.NOT_ROUTED),
        ("::", flow.MARTIAN, flow.MARTIAN, flow.MARTIAN),
        ("::1", flow.MARTIAN, flow.MARTIAN, flow.MARTIAN),
        ("ff02::1", flow.MARTIAN, flow.MARTIAN, flow.MARTIAN),
        ("::ffff:127.0.0.1", flow.MARTIAN, flow.MARTIAN, flow.MARTIAN),
        ("2001:db8::1", FAR, FAR, flow.RESTRICTED),
    ],
)
def test_outward(
    dst: str, plain: bytes | Refusal, no_loopback: bytes | Refusal, restricted: bytes | Refusal
) -> None:
    addr = addr_from_text(dst)
    assert nat().outward(addr) == plain
    assert nat(host_loopback=False).outward(addr) == no_loopback
    assert nat(restrict=True).outward(addr) == restricted


@given(st.binary(min_size=16, max_size=16))
def test_the_hosts_loopback_has_one_way_in(dst: bytes) -> None:
    if dst not in (GATEWAY, ROUTER):
        assert nat().outward(dst) != LOOPBACK6


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        ("::1", "fd00::2"), ("127.0.0.1", "fd00::2"), ("192.0.2.1", "fd00::2"),
        ("fd00::9", "fd00::2"), ("fe80::9", "fd00::2"), ("2001:db8::9", "2001:db8::9"),
    ],
)  # fmt: skip
def test_inward(peer: str, shown: str) -> None:
    assert nat().inward(addr_from_text(peer)) == addr_from_text(shown)


def test_another_prefix() -> None:
    found = Nat6(Config(network6="fd01:2:3::/64", gateway6="fd01:2:3::1", dns6="fd01:2:3::53"))
    assert found.outward(addr_from_text("fd01:2:3::1")) == LOOPBACK6
    assert found.outward(addr_from_text("fd01:2:3::2")) == flow.NOT_ROUTED
    assert found.outward(DNS) == DNS
    assert set(found.own) == {found.gateway, found.dns, ROUTER}
