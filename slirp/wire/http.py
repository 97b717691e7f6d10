"""Heads of HTTP/1.1 requests and responses (RFC 9112), as far as a server of files needs them.

`parse_request` takes what came so far and gives a request once its head is whole. It is strict
where laxness lets two readers see two requests: a field name followed by a blank, a folded line, a
second Host, a bare CR or a zero byte are malformed. Lines may end in LF alone (RFC 9112 §2.2).

Does not do: bodies, chunks, trailers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from slirp.errors import MalformedPacket

LAYER: Final = "http"

PORT: Final = 80
HEAD_MAX: Final = 8192  # bytes of a request's head
FIELDS_MAX: Final = 64

_END: Final = re.compile(rb"\r?\n\r?\n")
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_LINE: Final = re.compile(rb"(" + _TOKEN + rb") (\S+) HTTP/1\.([01])")
_FIELD: Final = re.compile(rb"(" + _TOKEN + rb"):[ \t]*(.*?)[ \t]*", re.DOTALL)
_RANGE: Final = re.compile(rb"bytes=(\d{0,15})-(\d{0,15})")


class Request(NamedTuple):
    method: bytes
    target: bytes  # as it came
    minor: int  # of the version: 0 or 1
    fields: dict[bytes, bytes]  # by lower-case name; several of one name are joined by commas

    @property
    def path(self) -> bytes | None:
        """The target's path, decoded, without its first slash; None: it has none."""
        target = self.target.partition(b"?")[0]
        if target.lower().startswith(b"http://"):  # RFC 9112 §3.2.2
            target = b"/" + target[7:].partition(b"/")[2]
        return unquote_to_bytes(target[1:]) if target.startswith(b"/") else None

    @property
    def keeps_alive(self) -> bool:
        """Does the client want the connection to go on (RFC 9112 §9.3)?"""
        words = {word.strip() for word in self.fields.get(b"connection", b"").lower().split(b",")}
        return b"close" not in words and (self.minor == 1 or b"keep-alive" in words)

    def range_of(self, size: int) -> tuple[int, int] | None:
        """First and last byte of the one range asked for (RFC 9110 §14.1.2), within `size`.

        None: no range, several, or one that means nothing: all of it is sent. ValueError: none of
        its bytes are there.
        """
        match = _RANGE.fullmatch(self.fields.get(b"range", b""))
        if match is None or match[0] == b"bytes=-":
            return None
        if not match[1]:
            count = min(int(match[2]), size)
            first, last = size - count, size - 1
        else:
            first = int(match[1])
            last = min(int(match[2] or size - 1), size - 1)
            if match[2] and int(match[2]) < first:
                return None
        if first > last:
            raise ValueError("range not satisfiable")
        return first, last


def parse_request(data: bytes) -> tuple[Request, int] | None:
    """The request at the start of `data` and the length of its head; None: it is not whole yet.

    Raises MalformedPacket.
    """
    start = len(data) - len(data.lstrip(b"\r\n"))  # RFC 9112 §2.2: before a request, passed over
    end = _END.search(data, start)
    if end is None:
        if len(data) > HEAD_MAX:
            raise MalformedPacket(LAYER, "head too long")
        return None
    if end.end() > HEAD_MAX:
        raise MalformedPacket(LAYER, "head too long")
    lines = [line.removesuffix(b"\r") for line in data[start : end.start()].split(b"\n")]
    match = _LINE.fullmatch(lines[0])
    if match is None:
        raise MalformedPacket(LAYER, "request line")
    if len(lines) > 1 + FIELDS_MAX:
        raise MalformedPacket(LAYER, "too many fields")
    fields: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, value = _field(line)
        if name == b"host" and name in fields:
            raise MalformedPacket(LAYER, "two hosts")
        fields[name] = fields[name] + b", " + value if name in fields else value
    return Request(match[1], match[2], int(match[3]), fields), end.end()


def _field(line: bytes) -> tuple[bytes, bytes]:
    match = _FIELD.fullmatch(line)
    if match is None or b"\r" in line or b"\0" in line:
        raise MalformedPacket(LAYER, "field")
    return match[1].lower(), match[2]


def emit_head(status: int, reason: str, fields: Mapping[str, str]) -> bytes:
    """A response's status line and fields."""
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
