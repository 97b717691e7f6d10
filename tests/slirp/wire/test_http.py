"""Heads of HTTP requests: whole, cut, and made to be read in two ways."""

from __future__ import annotations

import http.client
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.errors import MalformedPacket
from slirp.wire import http as wire

HEAD = b"GET /a%20b?x=1 HTTP/1.1\r\nHost: 10.0.2.2\r\nAccept: a\r\naccept: b\r\n\r\n"


def test_a_request() -> None:
    found = wire.parse_request(HEAD + b"more")
    assert found is not None
    request, size = found
    assert size == len(HEAD)
    assert (request.method, request.path, request.minor) == (b"GET", b"a b", 1)
    assert request.fields == {b"host": b"10.0.2.2", b"accept": b"a, b"}
    assert request.keeps_alive


@given(st.integers(0, len(HEAD) - 1))
def test_a_part_of_one_is_none_yet(size: int) -> None:
    assert wire.parse_request(HEAD[:size]) is None


@pytest.mark.parametrize(
    ("line", "keeps"),
    [
        (b"GET / HTTP/1.1", True),
        (b"GET / HTTP/1.1\r\nConnection: Upgrade, Close", False),
        (b"GET / HTTP/1.0", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive", True),
        (b"\r\n\nGET / HTTP/1.1\n", True),
    ],
)
def test_whether_the_connection_goes_on(line: bytes, keeps: bool) -> None:
    found = wire.parse_request(line + b"\r\n\r\n")
    assert found is not None
    assert found[0].keeps_alive is keeps


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", b""),
        (b"/x/%2e%2e/y", b"x/../y"),
        (b"http://10.0.2.2/boot/linux?", b"boot/linux"),
        (b"http://10.0.2.2", b""),
        (b"*", None),
        (b"x", None),
        (b"/%zz%00", b"%zz\0"),
    ],
)
def test_paths(target: bytes, path: bytes | None) -> None:
    assert wire.Request(b"GET", target, 1, {}).path == path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"bytes=0-9", (0, 9)),
        (b"bytes=90-", (90, 99)),
        (b"bytes=90-1000", (90, 99)),
        (b"bytes=-10", (90, 99)),
        (b"bytes=-1000", (0, 99)),
        (b"bytes=9-3", None),
        (b"bytes=-", None),
        (b"bytes=0-1,5-6", None),
        (b"lines=0-1", None),
        (b"bytes=0-" + b"9" * 400, None),
        (b"", None),
    ],
)
def test_ranges(text: bytes, found: tuple[int, int] | None) -> None:
    assert wire.Request(b"GET", b"/", 1, {b"range": text}).range_of(100) == found


@pytest.mark.parametrize(
    ("text", "size"), [(b"bytes=100-", 100), (b"bytes=-0", 100), (b"bytes=0-", 0)]
)
def test_ranges_without_a_byte(text: bytes, size: int) -> None:
    with pytest.raises(ValueError, match="range"):
        wire.Request(b"GET", b"/", 1, {b"range": text}).range_of(size)


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"GET /\r\n\r\n", "request line"),
        (b"GET / HTTP/2.0\r\n\r\n", "request line"),
        (b"GET  / HTTP/1.1\r\n\r\n", "request line"),
        (b"G@T / HTTP/1.1\r\n\r\n", "request line"),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", "field"),
        (b"GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n", "field"),
        (b"GET / HTTP/1.1\r\nX: a\0\r\n\r\n", "field"),
        (b"GET / HTTP/1.1\r\nX: a\rY: b\r\n\r\n", "field"),
        (b"GET / HTTP/1.1\r\nnothing\r\n\r\n", "field"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "two hosts"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 65 + b"\r\n", "too many fields"),
        (b"x" * 8193, "head too long"),
        (b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\n\r\n", "head too long"),
    ],
)
def test_malformed(octets: bytes, reason: str) -> None:
    with pytest.raises(MalformedPacket, match=reason):
        wire.parse_request(octets)


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda b: b"GET " + b + b"\r\n\r\n"))
def test_parse_raises_only_malformed(octets: bytes) -> None:
    try:
        found = wire.parse_request(octets)
    except MalformedPacket:
        return
    if found is not None:
        assert found[0].path is None or isinstance(found[0].path, bytes)


def test_a_head_as_pythons_client_reads_it() -> None:
    class Wire:
        def makefile(self, mode: str) -> io.BytesIO:
            return io.BytesIO(
                wire.emit_head(206, "Partial Content", {"Content-Length": "3"}) + b"abc"
            )

    response = http.client.HTTPResponse(Wire())  # type: ignore[arg-type]  # all that it uses
    response.begin()
    assert (response.status, response.reason, response.read()) == (206, "Partial Content", b"abc")
