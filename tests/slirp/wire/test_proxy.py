"""PROXY headers, as HAProxy's text has them. nginx and HAProxy read them in tests/kernel."""

from __future__ import annotations

from slirp.address import Endpoint, addr_from_text
from slirp.wire import proxy


def end(text: str, port: int) -> Endpoint:
    return Endpoint(addr_from_text(text), port)


FOUR = end("192.0.2.1", 40000), end("192.0.2.2", 80)
SIX = end("2001:db8::1", 40000), end("2001:db8::2", 80)


def test_version_1() -> None:
    assert proxy.emit(1, *FOUR) == b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 80\r\n"
    assert proxy.emit(1, *SIX) == b"PROXY TCP6 2001:db8::1 2001:db8::2 40000 80\r\n"
    assert proxy.emit(1, FOUR[0], SIX[1]) == b"PROXY UNKNOWN\r\n"
    assert proxy.emit(1, b"", b"/run/x") == b"PROXY UNKNOWN\r\n"


def test_version_2() -> None:
    head = proxy.SIGNATURE
    four = bytes((192, 0, 2, 1, 192, 0, 2, 2, 0x9C, 0x40, 0, 80))
    assert proxy.emit(2, *FOUR) == head + b"\x21\x11\0\x0c" + four
    six = proxy.emit(2, *SIX)
    assert six[:16] == head + b"\x21\x21\0\x24"
    assert len(six) == 16 + 36
    assert proxy.emit(2, FOUR[0], SIX[1]) == head + b"\x20\0\0\0"
    assert proxy.emit(2, FOUR[0], b"/run/x") == head + b"\x20\0\0\0"
    unix = proxy.emit(2, b"", b"/" + b"x" * 200)
    assert unix[:16] == head + b"\x21\x31\0\xd8"
    assert unix[16:] == bytes(108) + b"/" + b"x" * 107
