"""Forwards as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.address import addr_from_text, addr_to_text
from slirp.errors import ConfigError, shown
from slirp.forward import ForwardSpec, parse_forward

HERE = "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("8080:80", ForwardSpec("tcp", (HERE, 8080), None, 80)),
        ("8080", ForwardSpec("tcp", (HERE, 8080), None, 8080)),
        ("8080:80/udp", ForwardSpec("udp", (HERE, 8080), None, 80)),
        ("53/udp", ForwardSpec("udp", (HERE, 53), None, 53)),
        ("8080:80/tcp", ForwardSpec("tcp", (HERE, 8080), None, 80)),
        ("127.0.0.1:8080:80/udp", ForwardSpec("udp", (HERE, 8080), None, 80)),
        ("127.0.0.1:8080", ForwardSpec("tcp", (HERE, 8080), None, 8080)),
        (":8080:80", ForwardSpec("tcp", (HERE, 8080), None, 80)),
        ("localhost:8080:80", ForwardSpec("tcp", (HERE, 8080), None, 80)),
        ("*:8080:80", ForwardSpec("tcp", ("0.0.0.0", 8080), None, 80)),
        ("[::1]:8080:80", ForwardSpec("tcp", ("::1", 8080), None, 80)),
        ("[::]:53/udp", ForwardSpec("udp", ("::", 53), None, 53)),
        ("8080:10.0.2.15:80", ForwardSpec("tcp", (HERE, 8080), "10.0.2.15", 80)),
        ("192.0.2.1:1:10.0.2.15:2", ForwardSpec("tcp", ("192.0.2.1", 1), "10.0.2.15", 2)),
        ("8080:[fd00::100]:80", ForwardSpec("tcp", (HERE, 8080), "fd00::100", 80)),
        ("[::1]:1:[fd00:0::7]:2/udp", ForwardSpec("udp", ("::1", 1), "fd00::7", 2)),
        ("/run/x.sock:[fd00::7]:80", ForwardSpec("unix", "/run/x.sock", "fd00::7", 80)),
        ("unix:/run/x-[fd00::7]:80", ForwardSpec("unix", "/run/x", "fd00::7", 80)),
        ("tcp:[::1]:8080-[fd00::7]:80", ForwardSpec("tcp", ("::1", 8080), "fd00::7", 80)),
        ("tcp:[::1]:8080-80", ForwardSpec("tcp", ("::1", 8080), None, 80)),
        ("tcp:[::1]:8080:80", ForwardSpec("tcp", ("::1", 8080), None, 80)),
        ("tcp:8080:80", ForwardSpec("tcp", (HERE, 8080), None, 80)),
        ("udp:127.0.0.1:8080:80", ForwardSpec("udp", (HERE, 8080), None, 80)),
        ("/run/x.sock:80", ForwardSpec("unix", "/run/x.sock", None, 80)),
        ("/run/x:y.sock:10.0.2.7:80", ForwardSpec("unix", "/run/x:y.sock", "10.0.2.7", 80)),
        ("unix:/run/x.sock:80", ForwardSpec("unix", "/run/x.sock", None, 80)),
        ("tcp:127.0.0.1:8080-80", ForwardSpec("tcp", (HERE, 8080), None, 80)),
        ("tcp:8080-80", ForwardSpec("tcp", (HERE, 8080), None, 80)),
        ("tcp::8080-80", ForwardSpec("tcp", (HERE, 8080), None, 80)),
        ("tcp:localhost:8080-80", ForwardSpec("tcp", (HERE, 8080), None, 80)),
        ("tcp:*:8080-80", ForwardSpec("tcp", ("0.0.0.0", 8080), None, 80)),
        ("udp:0.0.0.0:53-5353", ForwardSpec("udp", ("0.0.0.0", 53), None, 5353)),
        ("udp:5353", ForwardSpec("udp", (HERE, 5353), None, 5353)),
        ("tcp:8080-10.0.2.15:80", ForwardSpec("tcp", (HERE, 8080), "10.0.2.15", 80)),
        ("tcp:192.0.2.1:1-10.0.2.15:2", ForwardSpec("tcp", ("192.0.2.1", 1), "10.0.2.15", 2)),
        ("unix:/tmp/a.sock-80", ForwardSpec("unix", "/tmp/a.sock", None, 80)),
        ("unix:/tmp/a-b-80", ForwardSpec("unix", "/tmp/a-b", None, 80)),
        ("unix:/run/web-1:80", ForwardSpec("unix", "/run/web-1", None, 80)),
        ("/run/web:1:80", ForwardSpec("unix", "/run/web:1", None, 80)),
        ("unix:/tmp/a-10.0.2.7:80", ForwardSpec("unix", "/tmp/a", "10.0.2.7", 80)),
    ],
)
def test_one_forward(text: str, spec: ForwardSpec) -> None:
    assert parse_forward(text) == [spec]


@pytest.mark.parametrize(
    "text",
    [
        "8000-8002:9000-9002",
        "8000-8002:9000",
        "127.0.0.1:8000-8002:9000-9002/tcp",
        "tcp:8000-8002-9000",
        "tcp:8000-8002-9000-9002",
        "tcp:127.0.0.1:8000-8002-9000",
    ],
)
def test_ranges(text: str) -> None:
    expected = [ForwardSpec("tcp", (HERE, 8000 + n), None, 9000 + n) for n in range(3)]
    assert parse_forward(text) == expected


def test_a_range_on_both_sides() -> None:
    expected = [ForwardSpec("tcp", (HERE, port), None, port) for port in range(8000, 8011)]
    assert parse_forward("8000-8010:8000-8010") == parse_forward("8000-8010") == expected


def test_range_to_a_guest() -> None:
    expected = [ForwardSpec("udp", (HERE, 80 + n), "10.0.2.9", 90 + n) for n in range(2)]
    assert parse_forward("udp:80-81-10.0.2.9:90") == expected
    assert parse_forward("udp:80-81-10.0.2.9:90-91") == expected


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "write "),
        ("8080-80", "FIRST-LAST"),
        ("8080:80/sctp", "tcp or udp"),
        ("8080:80/", "write "),
        ("tcp:8080:80/udp", "write "),
        ("::1:8080:80", "write "),
        ("[::1:8080:80", "write "),
        ("[10.0.0.1]:8080:80", "no IPv6 address"),
        ("8080:[10.0.2.15]:80", "no IPv6 address"),
        ("8080:fd00::100:80", "write "),
        ("8080:[fd00::100:80", "write "),
        ("8080:0", "a port is"),
        ("8000-8002:9000-9001", "of one length"),
        ("relative.sock:80", "no IPv4 address"),
        ("/run/x.sock", "write "),
        ("sctp:8080-80", "sctp is no IPv4 address"),
        ("tcp:", "write "),
        ("tcp:host:80:90", "no IPv4 address"),
        ("0", "a port is"),
        ("0-5:80", "a port is"),
        ("tcp:0", "a port is"),
        ("tcp:8080-65536", "a port is"),
        ("tcp:8080--80", "a port is"),
        ("tcp:999999999999999999999-80", "a port is"),
        ("8080:" + "9" * 5000, "a port is"),
        ("/run/x.sock:" + "9" * 5000, "a port is"),
        ("tcp:example.org:8080-80", "no IPv4 address"),
        ("tcp:1.2.3:8080-80", "no IPv4 address"),
        ("tcp:8080-10.0.2:80", "no IPv4 address"),
        ("tcp:8002-8000-9000", "FIRST-LAST"),
        ("tcp:1-65535-1", "at most 4096"),
        ("tcp:8000-8002-9000-9001", "of one length"),
        ("tcp:8000-8002-10.0.2.9:9000-9001-9002", "of one length"),
        ("tcp:8000-8002-65534", "above port"),
        ("tcp:1-2-3-4-5", "at most two ranges"),
        ("unix:relative-80", "write "),
        ("unix:/tmp/a", "write "),
    ],
)
def test_mistakes_are_named(text: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice) as caught:
        parse_forward(text)
    assert str(caught.value).startswith(f"forward {shown(text)}: ")
    assert caught.value.field == "forward"


def test_a_mistake_stays_in_its_line() -> None:
    with pytest.raises(ConfigError, match=r"forward '8080\\n:80': '8080\\n' is no ") as caught:
        parse_forward("8080\n:80")
    assert "\n" not in str(caught.value)


@given(st.text("tcpud:.-0123456789/x[]", max_size=40) | st.text(max_size=20))
def test_any_text_is_a_forward_or_a_failure(text: str) -> None:
    try:
        found = parse_forward(text)
    except ConfigError:
        return
    assert found
    assert all(0 < spec.guest_port <= 65535 for spec in found)
    assert [again for spec in found for again in parse_forward(str(spec))] == found


@given(
    st.sampled_from(["tcp", "udp"]),
    st.ip_addresses().map(str),
    st.none() | st.ip_addresses().map(str),
    st.integers(1, 65535),
)
def test_a_forward_reads_as_it_is_written(
    proto: str, host: str, guest: str | None, port: int
) -> None:
    host = addr_to_text(addr_from_text(host))  # "::127.0.0.1" and its like
    guest = guest and addr_to_text(addr_from_text(guest))
    spec = ForwardSpec(proto, (host, port), guest, 65536 - port)
    assert parse_forward(str(spec)) == [spec]


@given(st.text("/ab:-.10", max_size=12), st.sampled_from([None, "10.0.2.7", "fd00::7"]))
def test_a_path_reads_as_it_is_written(name: str, guest: str | None) -> None:
    spec = ForwardSpec("unix", f"/{name}x", guest, 80)
    assert parse_forward(str(spec)) == [spec]
