"""The configuration: what it holds, what follows from it, and what it refuses."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import slirp
from slirp.address import addr_from_text, addr_to_text
from slirp.cli.attach import configure
from slirp.cli.commands import make_parser
from slirp.cli.early import Options
from slirp.cli.options import OPTIONS
from slirp.config import Config, Fields
from slirp.config_fields import CONVERSIONS, Resolver
from slirp.errors import ConfigError
from slirp.forward import ForwardSpec

DOCUMENT = Path(__file__).parent.parent.parent / "docs/library.md"


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
        ("10.0.2.240/28", "10.0.2.242", "10.0.2.243", "10.0.2.244"),
    ],
)
def test_addresses_of_other_networks(network: str, gateway: str, dns: str, first: str) -> None:
    config = Config(network)
    found = (config.gateway_addr, config.dns_addr, config.first_lease_addr)
    assert found == (addr(gateway), addr(dns), addr(first))


@pytest.mark.parametrize(
    ("fields", "first"),
    [
        ({"gateway": "10.0.2.15"}, "10.0.2.16"),
        ({"gateway": "10.0.2.15", "dns": "10.0.2.16"}, "10.0.2.17"),
        ({"network": "10.0.2.0/29", "gateway": "10.0.2.6"}, "10.0.2.1"),
        ({"network": "10.0.2.0/29", "gateway": "10.0.2.1", "dns": "10.0.2.6"}, "10.0.2.2"),
        ({"network": "10.0.2.0/30", "gateway": "10.0.2.1"}, "10.0.2.2"),
        ({"network": "10.0.2.0/27", "gateway": "10.0.2.30", "dns": "10.0.2.29"}, "10.0.2.15"),
    ],
)
def test_the_first_machine_finds_a_free_address(fields: Any, first: str) -> None:
    assert Config(**fields).first_lease_addr == addr(first)


def test_the_gateway_may_answer_for_names_too() -> None:
    config = Config(dns="10.0.2.2")
    assert config.dns_addr == config.gateway_addr
    assert Config("10.0.2.0/30", gateway="10.0.2.1").dns_addr == addr("10.0.2.1")


def test_a_value_that_cannot_be_changed() -> None:
    config = Config("10.0.5.0/24", mtu=9000, search=["a.test"])
    with pytest.raises(AttributeError):
        config.mtu = 1500  # type: ignore[misc]
    with pytest.raises(AttributeError):
        config.colour = 1  # type: ignore[attr-defined]
    with pytest.raises(TypeError):
        config.names["a"] = ()  # type: ignore[index]
    for way_around in (config._replace, config.replace):
        with pytest.raises(ConfigError, match="mtu 5: must be"):
            way_around(mtu=5)
    values = config._asdict() | {"mtu": 5}
    with pytest.raises(ConfigError, match="mtu 5: must be"):
        Config._make(values.values())


def test_equal_is_what_says_the_same() -> None:
    config = Config("10.0.5.0/24", mtu=9000, search=["a.test"])
    assert config == Config(network="10.0.5.0/24", search=("a.test",), mtu=9000)
    assert config != Config()
    assert config != tuple(config)
    one = Config(names={"a": ["10.0.2.9"], "b": []}, static_leases={MAC: "10.0.2.20"})
    two = Config(static_leases={MAC: "10.0.2.20"}, names={"b": (), "a": ("10.0.2.9",)})
    assert one == two
    assert hash(one) == hash(two)
    assert {config: 1}[config.replace()] == 1


FULL = Config(
    "10.0.5.0/24",
    mtu=9000,
    search=["a.test"],
    names={"web.test": ["10.0.5.9"]},
    static_leases={"02:00:00:00:00:01": "10.0.5.20"},
    resolvers=["127.0.0.1:5353", "::1"],
    forwards=["8080-8081:80", "/run/x.sock:22"],
    tftp="/srv/tftp",
    hosts=["/etc/hosts"],
    auto_forward="auto:!22",
    guest_forwards=["10.0.5.200:80=127.0.0.1:8080", ":7=cmd:cat", "[fd00::9]:1=/run/x"],
    domain_resolvers={"corp.test": ["10.0.5.53", "::1#54"], "test": []},
    bootfiles={"": "pxelinux.0", "ipxe": "http://10.0.5.2/boot.ipxe"},
)


def test_it_reads_as_it_is_written() -> None:
    assert repr(Config()) == "Config()"
    assert repr(Config("10.0.5.0/24", resolvers=["::1#53", "::1#54"], names={"a": []})) == (
        "Config(network='10.0.5.0/24', resolvers=['::1', '[::1]:54'], names={'a': []})"
    )
    assert eval(repr(FULL), {"Config": Config}) == FULL
    assert Config(**json.loads(json.dumps(FULL.plain()))) == FULL


def test_it_can_be_copied_and_sent() -> None:
    for made in (copy.copy(FULL), copy.deepcopy(FULL), pickle.loads(pickle.dumps(FULL))):
        assert made == FULL
        assert type(made) is Config


def test_a_change_is_checked_and_defaults_follow() -> None:
    config = Config(mtu=9000).replace(network="10.9.0.0/16", restrict=True)
    assert (config.mtu, config.restrict, config.gateway_addr) == (9000, True, addr("10.9.0.2"))
    with pytest.raises(ConfigError, match="gateway"):
        Config(gateway="10.0.2.9").replace(network="10.9.0.0/16")


def test_the_keywords_are_the_fields() -> None:
    assert set(Fields.__annotations__) == set(Config._fields) == set(CONVERSIONS)


def table() -> Mapping[str, list[str]]:
    """The documented fields: type, default, meaning, option."""
    lines = DOCUMENT.read_text(encoding="utf-8").split("| field |")[1].splitlines()[2:]
    rows = [line.strip("|").split("|") for line in lines[: lines.index("")]]
    return {name.strip(" `"): [cell.strip(" `") for cell in cells] for name, *cells in rows}


def test_every_field_is_documented_with_its_default_and_option() -> None:
    rows = table()
    assert list(rows) == list(Config._fields)
    for name, (kind, default, meaning, option) in rows.items():
        value = getattr(Config(), name)
        assert kind.replace("list of `", "").startswith(("str", type(value).__name__)), name
        assert len(meaning) > 20, name
        assert option.split()[:1] == ([OPTIONS[name]] if name in OPTIONS else []), name
        if value:
            assert str(value) in default, name


def test_what_starts_before_the_config_is_there_has_its_defaults() -> None:
    config = Config()
    assert (Options.cidr, Options.mtu) == (config.network, config.mtu)
    assert Options.network6 == config.network6
    parser = make_parser("attach")
    configure(parser)
    args = parser.parse_args(["1"])
    assert (args.cidr, args.mtu) == (config.network, config.mtu)
    assert args.network6 == config.network6


def test_a_network_takes_a_config_or_its_fields() -> None:
    config = Config("10.0.5.0/24", mtu=9000)
    for made in (
        slirp.Network(config),
        slirp.Network(config=config),
        slirp.Network("10.0.5.0/24", mtu=9000),
        slirp.Network(network="10.0.5.0/24", mtu=9000),
        slirp.Network(Config("10.0.5.0/24"), mtu=9000),
    ):
        with made:
            assert made.config == config
            assert made.gateway == "10.0.5.2"


def test_a_prefix_is_given_once() -> None:
    with pytest.raises(
        ConfigError, match=r"network 10\.0\.6\.0/24: 10\.0\.5\.0/24 is given as well"
    ):
        Config("10.0.5.0/24", network="10.0.6.0/24")
    with pytest.raises(ConfigError, match="network"):
        slirp.Network("10.0.5.0/24", network="10.0.6.0/24")


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


def test_forwards_are_what_they_stand_for() -> None:
    spec = ForwardSpec("udp", ("::1", 53), "10.0.2.9", 5353)
    config = Config(forwards=["8080-8081:80", spec, "/run/x.sock:80"])
    assert [str(spec) for spec in config.forwards] == [
        "127.0.0.1:8080:80",
        "127.0.0.1:8081:81",
        "[::1]:53:10.0.2.9:5353/udp",
        "unix:/run/x.sock-80",
    ]
    assert Config(forwards=config.forwards) == config


def test_a_path_may_be_an_object() -> None:
    assert Config(resolv_conf=Path("/tmp/resolv.conf")).resolv_conf == "/tmp/resolv.conf"


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
                "10.0.2.0/255.0.255.0", "fd00::/64", "", 5, None, "10.0.2.0/2\n4", "1" * 5000,
                "10.0.2.0/" + "9" * 5000,
                # no kernel routes to these
                "0.0.0.0/0", "0.0.0.0/1", "0.0.0.0/8", "127.0.0.0/8", "127.5.0.0/24", "64.0.0.0/2",
                "224.0.0.0/24", "239.0.0.0/8", "240.0.0.0/4", "255.255.255.0/24", "128.0.0.0/1",
            ],
        ),
        ("gateway", ["10.0.3.2", "10.0.2.0", "10.0.2.255", "name", "::1", 3]),
        ("dns", ["10.0.3.2", "name", "10.0.2.255", 5]),
        ("first_lease", ["10.0.3.1", "10.0.2.2", "10.0.2.3", "10.0.2.255", "first", 15]),
        ("mtu", [67, 65522, 0, -1, "1500", 1500.0, True, None]),
        ("mac", ["01:02:03:04:05:06", "00:00:00:00:00:00", "02:03", "", 7]),
        ("host_loopback", [1, "yes", None]),
        ("restrict", [0]),
        ("isolate", [""]),
        ("outbound_addr", ["eth0", "::1", 5, "224.0.0.1", "255.255.255.255", ""]),
        ("dns_enabled", ["no"]),
        ("dhcp_enabled", [None]),
        ("resolv_conf", [None, 3, "/etc/\0", b"/etc/resolv.conf"]),
        (
            "resolvers",
            [
                "192.0.2.1", ["dns.example"], [".."], ["192.0.2.1:"], ["192.0.2.1:0"],
                ["192.0.2.1:65536"], ["192.0.2.1#x"], ["[::1"], ["[::1]5"], 5, [5],
                [("192.0.2.1", 53)], ["192.0.2.1:" + "9" * 5000], [Resolver("nowhere")], [None],
                [Resolver("192.0.2.1", 0)],
                ["192.0.2.1%eth0"], ["fe80::1%"], ["fe80::1%\n"],
                [Resolver("192.0.2.1", -1)], {"192.0.2.1:x": 1}, b"::1",
            ],
        ),
        (
            "names",
            [
                {"a": "10.0.2.2"}, {"a": ["nowhere"]}, {"a": [5]}, {"a": 5}, 3,
                {"a b": []}, {"a..b": ["10.0.2.2"]}, {5: []},
            ],
        ),
        ("hostname", [5, None, "a b", "a\nb", "x" * 64, "ä"]),
        ("domain", ["a..b", "x" * 64, "x." * 127 + "x", "ä.test", 5]),
        ("search", ["a.test", ["a.test b.test"], ["a\nb"], ("x" * 64,), ("",), 5, (5,)]),
        (
            "static_leases",
            [
                {MAC: "10.0.2.2"}, {MAC: "10.0.2.3"}, {MAC: "10.0.2.255"}, {MAC: "ten"},
                {"02:00": "10.0.2.20"}, {MAC: "10.0.2.20", "02:00:00:00:00:02": "10.0.2.20"}, 5,
                {MAC: "10.0.3.20"}, {5: "10.0.2.20"}, {MAC: 5}, {None: "10.0.2.20"},
                {MAC: None}, {"01:00:00:00:00:01": "10.0.2.20"}, {MAC: "fd00::2"},
                {MAC: "2001:db8::20"},
                {MAC: "10.0.2.20", MAC.replace(":", "-"): "10.0.2.21"}, [(MAC, "10.0.2.20")],
            ],
        ),
        (
            "forwards",
            [
                "8080:80", 8080, [8080], ["8080:x"], ["8080:80/sctp"], ["8080:10.0.3.15:80"],
                ["8080:10.0.2.2:80"], ["8080:10.0.2.3:80"], ["8080:10.0.2.255:80"], ["8080:\n80"],
                ["8080:" + "9" * 5000], [ForwardSpec("sctp", ("127.0.0.1", 80), None, 80)],
                [ForwardSpec("tcp", ("localhost.test", 80), None, 80)], [None],
                [ForwardSpec("udp", ("127.0.0.1", 80), "10.0.3.9", 80)],
            ],
        ),
        (
            "network6",
            [
                "10.0.2.0/24", "fd00::", "fd00::1/64", "fd00::/113", "fe80::/64", "ff00::/64",
                "::/64", "64:ff9b::/96", "::/0", 6, None,
            ],
        ),
        ("gateway6", ["10.0.2.2", "fd01::2", "fe80::2", 2]),
        ("dns6", ["fd00::2", "fd00::1:0:0:0:0:0", "10.0.2.3"]),
        ("outbound_addr6", ["127.0.0.1", "ff02::1", "eth0"]),
        ("ipv4_only", [1, None]),
        ("either_loopback", ["yes"]),
        ("port_share", [0, -0.5, 1.5, "half", True, None]),
        ("tftp", [5, "a\0b"]),
        ("http", [5, "a\0b"]),
        ("bootfiles", ["", "a b", "x" * 256, 5, {"palm": "x"}, {"bios": 5}, {5: "x"}, ["x"]]),
        ("next_server", ["ten", 5, "fd00::1"]),
        ("ntp", [1, "yes"]),
        ("hosts", ["/etc/hosts", 5, [5], ["a\0b"]]),
        ("domain_resolvers", ["x", {"a b": []}, {"a": "::1"}, {"a": ["ten"]}, {5: []}]),
        ("guest_forwards", ["x", ["x"], [5], [":53=/x", ":53=/x"]]),
        ("auto_forward", ["all", "auto:", "auto:x", "auto:0", "auto:9-8", "auto:1/sctp", 5]),
        ("dns_cache", [-1, 65537, True, "all"]),
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
        assert len(str(caught.value)) < 250, "what is quoted is cut"


def test_a_refusal_says_why() -> None:
    with pytest.raises(ConfigError, match=r"127\.0\.0\.0/8 is every host's own loopback"):
        Config("127.0.0.0/8")
    with pytest.raises(ConfigError, match=r"224\.0\.0\.0/4 is multicast"):
        Config("224.0.0.0/24")
    with pytest.raises(ConfigError, match=r"dns 10\.0\.2\.1: leaves no address of 10\.0\.2\.0/30 "):
        Config("10.0.2.0/30", dns="10.0.2.1")


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
    assert config == Config(**config._asdict()) == Config(**config.plain())
    assert config.prefix.has_host(config.gateway_addr)
    assert config.prefix.has_host(config.first_lease_addr)


@given(st.integers(28, 30), st.data())
def test_any_places_in_a_small_network(length: int, data: st.DataObject) -> None:
    """Wherever the network's own addresses are: there is one for a guest, or it is said."""
    places = st.none() | st.integers(0, 1 << 32 - length).map(lambda n: f"10.0.2.{n}")
    values: Any = {name: data.draw(places, name) for name in ("gateway", "dns", "first_lease")}
    found = attempt(lambda: Config(f"10.0.2.0/{length}", **values))
    if isinstance(found, ConfigError):
        assert found.field in values
        return
    first = found.first_lease_addr
    assert found.prefix.has_host(first)
    assert first not in (found.gateway_addr, found.dns_addr)
    assert found.guest_addr(addr_to_text(first)) == first
