"""The configuration: what it holds, what follows from it, and what it refuses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import slirp
from slirp.address import addr_from_text
from slirp.config import _CONVERSIONS, Config, Fields, Resolver
from slirp.errors import ConfigError


def attempt(make: Callable[[], Config]) -> Config | ConfigError:
    try:
        return make()
    except ConfigError as error:
        return error


def addr(text: str) -> bytes:
    return addr_from_text(text)


def test_the_usual_addresses() -> None:
    config = Config()
    assert config.gateway_addr == addr("10.0.2.2")
    assert config.dns_addr == addr("10.0.2.3")
    assert config.first_lease_addr == addr("10.0.2.15")
    assert config.mac_addr == bytes.fromhex("52550a000202")
    assert slirp.Config is Config


@pytest.mark.parametrize(
    ("network", "gateway", "dns", "first"),
    [
        ("192.168.0.0/16", "192.168.0.2", "192.168.0.3", "192.168.0.15"),
        ("10.0.2.0/28", "10.0.2.2", "10.0.2.3", "10.0.2.4"),
        ("10.0.2.0/29", "10.0.2.2", "10.0.2.3", "10.0.2.4"),
        ("10.0.2.0/30", "10.0.2.2", "10.0.2.2", "10.0.2.1"),
        ("10.0.2.8/255.255.255.248", "10.0.2.10", "10.0.2.11", "10.0.2.12"),
    ],
)
def test_addresses_of_other_networks(network: str, gateway: str, dns: str, first: str) -> None:
    config = Config(network)
    found = (config.gateway_addr, config.dns_addr, config.first_lease_addr)
    assert found == (addr(gateway), addr(dns), addr(first))


def test_a_value_that_cannot_be_changed() -> None:
    config = Config("10.0.5.0/24", mtu=9000, search=["a.test"])
    with pytest.raises(AttributeError):
        config.mtu = 1500  # type: ignore[misc]
    assert config == Config(network="10.0.5.0/24", search=("a.test",), mtu=9000)
    assert config != Config()
    assert repr(config) == "Config(network='10.0.5.0/24', mtu=9000, search=('a.test',))"
    assert repr(Config()) == "Config()"


def test_a_change_is_checked_and_defaults_follow() -> None:
    config = Config(mtu=9000).replace(network="10.9.0.0/16", restrict=True)
    assert (config.mtu, config.restrict, config.gateway_addr) == (9000, True, addr("10.9.0.2"))
    with pytest.raises(ConfigError, match="gateway"):
        Config(gateway="10.0.2.9").replace(network="10.9.0.0/16")


def test_the_keywords_are_the_fields() -> None:
    assert set(Fields.__annotations__) == set(Config._fields) == set(_CONVERSIONS)


def test_a_network_takes_a_config_or_its_fields() -> None:
    config = Config("10.0.5.0/24", mtu=9000)
    for made in (
        slirp.Network(config),
        slirp.Network("10.0.5.0/24", mtu=9000),
        slirp.Network(network="10.0.5.0/24", mtu=9000),
        slirp.Network(Config("10.0.5.0/24"), mtu=9000),
    ):
        with made:
            assert made.config == config
            assert made.gateway == "10.0.5.2"


def test_no_constructor_passes_twenty_keywords_on() -> None:
    for kind in (slirp.Network, slirp.Config):
        assert len(inspect.signature(kind).parameters) <= 4


@pytest.mark.parametrize(
    ("text", "resolver"),
    [
        ("192.0.2.1", Resolver("192.0.2.1", 53)),
        ("192.0.2.1:5353", Resolver("192.0.2.1", 5353)),
        ("192.0.2.1#5353", Resolver("192.0.2.1", 5353)),
        ("::1", Resolver("::1", 53)),
        ("[::1]", Resolver("::1", 53)),
        ("[::1]:5353", Resolver("::1", 5353)),
        ("::1#5353", Resolver("::1", 5353)),
        ("fe80::1%eth0", Resolver("fe80::1%eth0", 53)),
        ("[fe80::1%eth0]:5353", Resolver("fe80::1%eth0", 5353)),
    ],
)
def test_resolvers_with_and_without_a_port(text: str, resolver: Resolver) -> None:
    assert Config(resolvers=[text]).resolvers == (resolver,)
    assert Resolver.from_text(str(resolver)) == resolver
    assert Config(resolvers=[resolver]).resolvers == (resolver,)


def test_no_resolvers_and_those_of_the_host_are_two_things() -> None:
    assert Config().resolvers is None
    assert Config(resolvers=[]).resolvers == ()


MAC = "02:00:00:00:00:01"


@pytest.mark.parametrize(
    ("field", "values"),
    [
        (
            "network",
            [
                "nonsense", "10.0.2.1/24", "10.0.2.0/31", "10.0.2.0/32", "10.0.2.0", "10.0.2.0/33",
                "10.0.2.0/255.0.255.0", "fd00::/64", "", 5,
                # no kernel routes to these
                "0.0.0.0/0", "0.0.0.0/1", "0.0.0.0/8", "127.0.0.0/8", "127.5.0.0/24", "64.0.0.0/2",
                "224.0.0.0/24", "239.0.0.0/8", "240.0.0.0/4", "255.255.255.0/24", "128.0.0.0/1",
            ],
        ),
        ("gateway", ["10.0.3.2", "10.0.2.0", "10.0.2.255", "name", "::1", 3]),
        ("dns", ["10.0.3.2", "10.0.2.2", "name"]),
        ("first_lease", ["10.0.3.1", "10.0.2.2", "10.0.2.3", "10.0.2.255", "first"]),
        ("mtu", [67, 65522, 0, -1, "1500", 1500.0, True, None]),
        ("mac", ["01:02:03:04:05:06", "02:03", "", 7]),
        ("host_loopback", [1, "yes", None]),
        ("restrict", [0]),
        ("isolate", [""]),
        ("outbound_addr", ["eth0", "::1", 5]),
        ("dns_enabled", ["no"]),
        ("dhcp_enabled", [None]),
        ("resolv_conf", [None, 3]),
        (
            "resolvers",
            [
                "192.0.2.1", ["dns.example"], [".."], ["192.0.2.1:"], ["192.0.2.1:0"],
                ["192.0.2.1:65536"], ["192.0.2.1#x"], ["[::1"], ["[::1]5"], 5, [5],
            ],
        ),
        ("names", [{"a..b": ["10.0.2.2"]}, {"a": ["nowhere"]}, {"a": [5]}, {5: []}, 3, {"a": 5}]),
        ("hostname", [5, None]),
        ("domain", ["a..b", "x" * 64, "x." * 127 + "x", "ä.test", 5]),
        ("search", ["a.test", ("x" * 64,), ("",), 5, (5,)]),
        (
            "static_leases",
            [
                {MAC: "10.0.2.2"}, {MAC: "10.0.2.3"}, {MAC: "10.0.2.255"}, {MAC: "ten"},
                {"02:00": "10.0.2.20"}, {MAC: "10.0.2.20", "02:00:00:00:00:02": "10.0.2.20"}, 5,
                {MAC: "10.0.3.20"}, {5: "10.0.2.20"}, {MAC: 5},
            ],
        ),
        ("port_share", [0, -0.5, 1.5, "half", True, None]),
        ("nonsense", [1]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_name(field: str, values: list[Any]) -> None:
    for value in values:
        changes: Any = {field: value}
        with pytest.raises(ConfigError) as caught:
            Config(**changes)
        assert caught.value.field == field, value
        assert str(caught.value).startswith(field), value
        assert "\n" not in str(caught.value)


def test_a_refusal_says_why() -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.0/8 is every host's own loopback"):
        Config("127.0.0.0/8")
    with pytest.raises(ConfigError, match=r"224\.0\.0\.0/4 is multicast"):
        Config("224.0.0.0/24")


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-10, 70_000), st.text(max_size=20),
    st.sampled_from(["10.0.2.9", "10.0.2.0/24", "fd00::1", MAC, "192.0.2.1:53"]),
    st.lists(st.text(max_size=8) | st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=2),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(Config._fields), ANYTHING, max_size=4))
def test_any_values_are_a_config_or_a_refusal_that_names_a_field(values: dict[str, Any]) -> None:
    config = attempt(lambda: Config(**values))
    if isinstance(config, ConfigError):
        assert config.field in values
        return
    assert config == Config(**config._asdict())
    assert config.prefix.has_host(config.gateway_addr)
    assert config.prefix.has_host(config.first_lease_addr)
