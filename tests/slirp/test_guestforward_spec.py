"""Guest forwards as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.config import Config
from slirp.errors import ConfigError
from slirp.guestforward import GuestForward, parse_guest_forward

HERE = ("127.0.0.1", 8080)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("10.0.2.100:80=127.0.0.1:8080", GuestForward("10.0.2.100", 80, HERE)),
        ("10.0.2.100:80=localhost:8080", GuestForward("10.0.2.100", 80, HERE)),
        (":80=127.0.0.1:8080", GuestForward(None, 80, HERE)),
        ("[fd00::100]:80=[::1]:8080", GuestForward("fd00::100", 80, ("::1", 8080))),
        (":5000=/run/db.sock", GuestForward(None, 5000, "/run/db.sock")),
        (":5000=unix:/run/a=b:c", GuestForward(None, 5000, "/run/a=b:c")),
        ("10.0.2.100:7=cmd:cat -u", GuestForward("10.0.2.100", 7, command="cat -u")),
        ("10.0.2.100:7=cmd: sh -c 'a=b'", GuestForward("10.0.2.100", 7, command="sh -c 'a=b'")),
        ("tcp:10.0.2.100:7-cmd:cat -u", GuestForward("10.0.2.100", 7, command="cat -u")),
        ("tcp:10.0.2.100:7-tcp:127.0.0.1:8080", GuestForward("10.0.2.100", 7, HERE)),
        ("tcp:10.0.2.100:7-unix:/run/x", GuestForward("10.0.2.100", 7, "/run/x")),
    ],
)
def test_one(text: str, spec: GuestForward) -> None:
    assert parse_guest_forward(text) == spec
    assert parse_guest_forward(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "write "),
        ("80=127.0.0.1:80", "write "),
        ("10.0.2.100:80", "write "),
        ("10.0.2.100:0=/x", "a port is"),
        ("10.0.2.100:65536=/x", "a port is"),
        ("10.0.2:80=/x", "no IP address"),
        ("[10.0.2.100]:80=/x", "in brackets"),
        ("10.0.2.100:80=127.0.0.1", "write "),
        ("10.0.2.100:80=127.0.0.1:0", "a port is"),
        ("10.0.2.100:80=example.org:80", "write "),
        ("10.0.2.100:80=cmd:", "no command"),
        ("10.0.2.100:80=cmd:'", "No closing quotation"),
        ("10.0.2.100:80=relative", "write "),
        ("udp:10.0.2.100:80-cmd:cat", "write "),
    ],
)
def test_mistakes_are_named(text: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        parse_guest_forward(text)


@given(st.text("tcp:.=-0123456789/x[]md ' ", max_size=40) | st.text(max_size=20))
def test_any_text_is_one_or_a_failure(text: str) -> None:
    try:
        found = parse_guest_forward(text)
    except ConfigError:
        return
    assert parse_guest_forward(str(found)) == found


@pytest.mark.parametrize(
    "spec",
    [
        "10.0.2.3:53=/x", "10.0.2.15:80=/x", "10.0.2.255:80=/x", "10.0.2.0:80=/x",
        "127.0.0.1:80=/x", "224.0.0.1:80=/x", "0.0.0.0:80=/x", "nonsense", 5,
    ],
)  # fmt: skip
def test_where_none_can_be(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"^guest_forwards "):
        Config(guest_forwards=[spec])


def test_two_at_one_place() -> None:
    with pytest.raises(ConfigError, match="something is there already"):
        Config(guest_forwards=[":80=/x", "10.0.2.2:80=/y"])
    with pytest.raises(ConfigError, match="something is there already"):
        Config(guest_forwards=[":80=/x"], http="/srv")


def test_an_address_of_the_networks_own_is_no_guests() -> None:
    config = Config(guest_forwards=["10.0.2.16:80=/x", "192.0.2.1:80=/x", ":81=/x"])
    assert config.guest_forward_addrs(4) == (bytes((10, 0, 2, 16)),)
    with pytest.raises(ConfigError, match="network's own address"):
        config.replace(static_leases={"02:00:00:00:00:01": "10.0.2.16"})
    with pytest.raises(ConfigError, match="network's own address"):
        config.replace(forwards=["8080:10.0.2.16:80"])
