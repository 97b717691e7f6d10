"""What a network refuses to be configured as, and with which words."""

from __future__ import annotations

from typing import Any

import pytest

import slirp


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"network": "10.0.2.0"}, "must leave room"),
        ({"network": "10.0.2.0/33"}, "network"),
        ({"network": "10.0.2.1/24"}, "host bits"),
        ({"network": "fd00::/64"}, "network"),
        ({"mtu": 67}, "mtu 67"),
        ({"mtu": 65522}, "mtu 65522"),
        ({"mac": "01:00:5e:00:00:01"}, "group"),
        ({"mac": "52:55:0a"}, "mac"),
        ({"gateway": "10.0.3.2"}, "gateway 10.0.3.2"),
        ({"gateway": "10.0.2.255"}, "gateway 10.0.2.255"),
        ({"gateway": "two"}, "gateway"),
        ({"dns": "10.0.2.2"}, "two addresses"),
        ({"first_lease": "fifteen"}, "first_lease"),
        ({"first_lease": "10.0.3.15"}, "first_lease"),
        ({"static_leases": {"52:54": "10.0.2.20"}}, "static_leases"),
        ({"static_leases": {"52:54:00:12:34:56": "10.0.2.x"}}, "static_leases"),
        ({"static_leases": {"52:54:00:12:34:56": "10.9.9.9"}}, "static_leases"),
        ({"resolvers": ["dns.example"]}, "resolvers"),
        ({"names": {"printer.lan": ["up.the.stairs"]}}, "printer.lan"),
        ({"outbound_addr": "eth0"}, "outbound_addr"),
    ],
)
def test_a_configuration_that_cannot_work_is_named(options: dict[str, Any], word: str) -> None:
    with pytest.raises(slirp.ConfigError, match=word):
        slirp.Network(**options)


@pytest.mark.parametrize("guest", ["10.0.3.15", "10.0.2.0", "10.0.2.255", "guest", "::1"])
def test_a_forward_leads_into_the_network(guest: str) -> None:
    with slirp.Network() as net, pytest.raises(slirp.ConfigError, match="guest"):
        net.forward("tcp", host=("127.0.0.1", 0), guest=(guest, 80))


def test_resolvers_are_checked_when_they_change_too() -> None:
    with slirp.Network() as net:
        net.use_resolvers(["192.0.2.53", "2001:db8::53"])
        with pytest.raises(slirp.ConfigError, match="resolvers"):
            net.use_resolvers(["none"])
