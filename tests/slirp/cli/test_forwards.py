"""The notation of --forward."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.cli.failure import Failure
from slirp.cli.forwards import ForwardSpec, parse_forward

HERE = "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
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
        ("unix:/tmp/a-10.0.2.7:80", ForwardSpec("unix", "/tmp/a", "10.0.2.7", 80)),
    ],
)
def test_one_forward(text: str, spec: ForwardSpec) -> None:
    assert parse_forward(text) == [spec]


@pytest.mark.parametrize(
    "text",
    [
        "tcp:8000-8002-9000",
        "tcp:8000-8002-9000-9002",
        "tcp:127.0.0.1:8000-8002-9000",
    ],
)
def test_ranges(text: str) -> None:
    expected = [ForwardSpec("tcp", (HERE, 8000 + n), None, 9000 + n) for n in range(3)]
    assert parse_forward(text) == expected


def test_range_to_a_guest() -> None:
    expected = [ForwardSpec("udp", (HERE, 80 + n), "10.0.2.9", 90 + n) for n in range(2)]
    assert parse_forward("udp:80-81-10.0.2.9:90") == expected
    assert parse_forward("udp:80-81-10.0.2.9:90-91") == expected


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "write tcp"),
        ("8080-80", "write tcp"),
        ("sctp:8080-80", "write tcp"),
        ("tcp:", "write tcp"),
        ("tcp:host:80:90", "write tcp"),
        ("tcp:0-80", "a port is"),
        ("tcp:8080-65536", "a port is"),
        ("tcp:8080--80", "a port is"),
        ("tcp:999999999999999999999-80", "a port is"),
        ("tcp:example.org:8080-80", "no IPv4 address"),
        ("tcp:1.2.3:8080-80", "no IPv4 address"),
        ("tcp:8080-10.0.2:80", "no IPv4 address"),
        ("tcp:8002-8000-9000", "FIRST-LAST"),
        ("tcp:1-65535-1", "at most 4096"),
        ("tcp:8000-8002-9000-9001", "of one length"),
        ("tcp:8000-8002-10.0.2.9:9000-9001-9002", "of one length"),
        ("tcp:8000-8002-65534", "above port"),
        ("tcp:1-2-3-4-5", "at most two ranges"),
        ("unix:relative-80", "write tcp"),
        ("unix:/tmp/a", "write tcp"),
    ],
)
def test_mistakes_are_named(text: str, advice: str) -> None:
    with pytest.raises(Failure, match=advice) as caught:
        parse_forward(text)
    assert caught.value.status == 2
    assert str(caught.value).startswith(f"--forward {text}: ")


@given(st.text("tcpud:.-0123456789/x", max_size=40) | st.text(max_size=20))
def test_any_text_is_a_forward_or_a_failure(text: str) -> None:
    try:
        found = parse_forward(text)
    except Failure:
        return
    assert found
    assert all(0 < spec.guest_port <= 65535 for spec in found)
