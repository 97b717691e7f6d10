"""What the network knows by name: its own, hosts files, leases; and which of them counts."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.services import zones
from slirp.services.dhcp import DhcpServer
from slirp.services.zones import LeasedNames, Zones, label_of, parse_hosts
from slirp.wire import dhcp as wire_dhcp
from slirp.wire import dns as wire
from slirp.wire.dns import labels_of
from tests.slirp.services.test_dhcp import MAC, OTHER, Client, addr, config

GATEWAY = addr(2)


def here(address: bytes) -> bytes | None:
    return GATEWAY if len(address) == 4 else None


def addresses(target: Zones, name: str, now: float = 0.0) -> list[str] | None:
    records = target.lookup(labels_of(name), now)
    if records is None:
        return None
    return [
        socket.inet_ntop(socket.AF_INET if r.rtype == wire.TYPE_A else socket.AF_INET6, r.rdata)
        for r in records
    ]


def reverse(target: Zones, address: bytes, now: float = 0.0) -> bytes | None:
    records = target.lookup(zones.reverse_name(address), now)
    return records[0].rdata if records else None


HOSTS = """\
# the usual
127.0.0.1   localhost
127.0.1.1   this.host.test this   # as Debian has it
::1         localhost ip6-localhost ip6-loopback
192.0.2.1   One.Test one
192.0.2.2   one.test
2001:db8::1 one.test
0.0.0.0     nothing.test
ten         not.an.address
192.0.2.3
192.0.2.4   ..bad ok.test
"""


def test_a_hosts_file() -> None:
    assert parse_hosts(HOSTS, here) == {
        "this.host.test": [GATEWAY],
        "this": [GATEWAY],
        "one.test": [
            bytes((192, 0, 2, 1)),
            bytes((192, 0, 2, 2)),
            bytes.fromhex("20010db8" + "00" * 11 + "01"),
        ],
        "one": [bytes((192, 0, 2, 1))],
        "nothing.test": [bytes(4)],
        "ok.test": [bytes((192, 0, 2, 4))],
    }


def test_names_are_the_same_in_any_case(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(HOSTS)
    target = Zones({}, hosts=[str(file)], here=here)
    assert addresses(target, "one.test") == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    assert reverse(target, bytes((192, 0, 2, 1))) == b"\3one\4test\0"


def test_a_host_that_is_not_reached_has_no_names_of_its_loopback() -> None:
    assert "this" not in parse_hosts(HOSTS, lambda address: None)


def test_a_hosts_file_is_followed(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    target = Zones({}, hosts=[str(file)], here=here)
    assert addresses(target, "one.test") is None
    file.write_text("192.0.2.1 one.test\n")
    assert addresses(target, "one.test", 0.5) is None  # looked at once a second
    assert addresses(target, "one.test", 1.0) == ["192.0.2.1"]
    file.write_text("192.0.2.9 one.test\n")
    os.utime(file, (1, 1))
    assert addresses(target, "one.test", 2.0) == ["192.0.2.9"]
    file.unlink()
    assert addresses(target, "one.test", 3.0) is None


@given(st.text(max_size=200))
def test_whatever_a_hosts_file_says(text: str) -> None:
    for name, found in parse_hosts(text, here).items():
        labels_of(name)
        assert found


def leasing(target: DhcpServer, mac: bytes, hostname: bytes, last: int, now: float = 0.0) -> None:
    options = {
        wire_dhcp.HOST_NAME: hostname,
        wire_dhcp.LEASE_TIME: (100).to_bytes(4),
        wire_dhcp.REQUESTED_ADDRESS: addr(last),
    }
    assert Client(target, mac).send(wire_dhcp.REQUEST, now, options) is not None


def test_guests_have_names_forward_and_back() -> None:
    dhcp = DhcpServer(config())
    target = Zones({}, leases=[LeasedNames([dhcp], "Corp.test")])
    assert addresses(target, "web") is None
    leasing(dhcp, MAC, b"Web", 15)
    for name in ("web", "web.internal", "web.corp.test"):
        assert addresses(target, name) == ["10.0.2.15"]
    assert reverse(target, addr(15)) == b"\3web\4corp\4test\0"
    leasing(dhcp, MAC, b"www", 15, 1.0)
    assert addresses(target, "web", 1.0) is None
    assert addresses(target, "www", 1.0) == ["10.0.2.15"]
    assert addresses(target, "www", 100.9) == ["10.0.2.15"]
    assert addresses(target, "www", 101.0) is None  # the lease has ended
    assert reverse(target, addr(15), 101.0) is None


def test_a_name_is_whose_it_was_first() -> None:
    dhcp = DhcpServer(config())
    target = Zones({}, leases=[LeasedNames([dhcp])])
    leasing(dhcp, OTHER, b"other", 16)
    leasing(dhcp, MAC, b"web", 17)
    assert addresses(target, "web") == ["10.0.2.17"]
    leasing(dhcp, OTHER, b"web", 16, 1.0)
    assert addresses(target, "web", 1.0) == ["10.0.2.17"]
    assert addresses(target, "web", 100.5) == ["10.0.2.16"]  # the first one's lease has ended


def test_what_is_the_networks_own_no_guest_can_have() -> None:
    dhcp = DhcpServer(config())
    target = Zones({"host.internal": [GATEWAY]}, leases=[LeasedNames([dhcp])])
    leasing(dhcp, MAC, b"host", 15)
    assert addresses(target, "host.internal") == ["10.0.2.2"]


def test_a_hosts_file_comes_before_leases(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("192.0.2.1 web\n")
    dhcp = DhcpServer(config())
    target = Zones({}, hosts=[str(file)], leases=[LeasedNames([dhcp])])
    leasing(dhcp, MAC, b"web", 15)
    assert addresses(target, "web") == ["192.0.2.1"]
    assert addresses(target, "web.internal") == ["10.0.2.15"]


@pytest.mark.parametrize(
    ("hostname", "label"),
    [
        (b"Web-1", b"web-1"),
        (b"web.corp.test", b"web"),
        (b"web\0", b"web"),
        (b"", None),
        (b".", None),
        (b"-x", None),
        (b"a b", None),
        (b"\xff\xfe", None),
        (b"x" * 64, None),
        (b"localhost", None),
        (b"a\nb", None),
    ],
)
def test_what_a_guest_may_call_itself(hostname: bytes, label: bytes | None) -> None:
    assert label_of(hostname) == label


def test_nothing_is_made_anew_while_nothing_changes() -> None:
    dhcp = DhcpServer(config())
    leasing(dhcp, MAC, b"web", 15)
    names = LeasedNames([dhcp])
    records = names.records(0.0)
    assert names.records(50.0) is records
    leasing(dhcp, MAC, b"web", 15, 50.0)
    assert names.records(50.0) is not records
