"""A server of the files of one folder over HTTP/1.1, for boot programs: GET and HEAD, with ranges.

`HttpStream` is one connection: `feed(data)` takes what came from the client and gives the response
that is due, a head and the stretch of a file that follows it. The caller writes it, closes the
file, and asks with `feed(b"")` for the next one; it closes the connection after one that says so.
It stops reading while a response is under way: what is held is at most a head and one read's bytes.

Answers are RFC 9110's: 200, 206 (one range), 304 (If-None-Match, If-Modified-Since), 400, 404, 405,
416, 431. What has a body, or a Transfer-Encoding, is refused and the connection closed: nobody
reads the body. A validator is an ETag of size and time.

Does not do: TLS, listings, index files, compression, several ranges, anything but files.
"""

from __future__ import annotations

from email.utils import formatdate, parsedate_to_datetime
from typing import Final, NamedTuple, Protocol

from slirp.errors import MalformedPacket
from slirp.wire.http import Request, emit_head, parse_request

REASONS: Final = {
    200: "OK",
    206: "Partial Content",
    304: "Not Modified",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    416: "Range Not Satisfiable",
    431: "Request Header Fields Too Large",
}
TYPES: Final = {  # what firmware looks at; UEFI 2.10 §24.7.3 and IANA
    b"efi": "application/efi",
    b"iso": "application/vnd.efi-iso",
    b"img": "application/vnd.efi-img",
    b"ipxe": "text/plain",
    b"cfg": "text/plain",
    b"txt": "text/plain",
    b"json": "application/json",
}
PLAIN: Final = "application/octet-stream"


class File(Protocol):
    size: int  # bytes
    modified_at: float  # seconds since 1970
    fd: int

    def close(self) -> None: ...


class Folder(Protocol):
    def open(self, name: bytes) -> File:
        """A regular file by its path in the folder. Raises OSError."""


class Response(NamedTuple):
    status: int
    head: bytes
    file: File | None = None  # the caller's to close
    offset: int = 0
    length: int = 0  # bytes of the file that follow the head
    closes: bool = False


class HttpStream:
    """One connection."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._held = b""
        self._is_over = False

    def feed(self, data: memoryview | bytes) -> Response | None:
        """The next response, as far as what came asks for one; call again with nothing after it."""
        if self._is_over:
            return None
        self._held += data
        try:
            found = parse_request(self._held)
        except MalformedPacket as error:
            long = error.reason in ("head too long", "too many fields")
            return self._final(431 if long else 400)
        if found is None:
            return None
        request, size = found
        self._held = self._held[size:]
        return self._answer(request)

    def _final(self, status: int, head: bool = True) -> Response:
        """The last response: who sends such things is not listened to any longer."""
        self._is_over = True
        self._held = b""
        fields = {"Content-Length": "0", "Connection": "close"}
        if status == 405:
            fields["Allow"] = "GET, HEAD"
        return Response(status, emit_head(status, REASONS[status], fields), closes=True)

    def _answer(self, request: Request) -> Response:
        fields = request.fields
        if request.method not in (b"GET", b"HEAD"):
            return self._final(405)
        if fields.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in fields:
            return self._final(400)
        if request.minor == 1 and b"host" not in fields:
            return self._final(400)
        path = request.path
        if path is None:
            return self._final(400)
        try:
            file = self._folder.open(path)
        except OSError:  # whatever stands in the way, a guest is not told
            return self._response(request, 404, {"Content-Length": "0"})
        return self._with_file(request, path, file)

    def _with_file(self, request: Request, path: bytes, file: File) -> Response:
        tag = f'"{file.size:x}-{int(file.modified_at * 1e6):x}"'
        fields = {
            "ETag": tag,
            "Last-Modified": formatdate(file.modified_at, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        if _is_fresh(request, tag, file.modified_at):
            file.close()
            return self._response(request, 304, fields)
        fields["Content-Type"] = TYPES.get(path.rpartition(b".")[2].lower(), PLAIN)
        status, first, last = 200, 0, file.size - 1
        try:
            part = request.range_of(file.size) if _range_holds(request, tag, fields) else None
        except ValueError:
            fields["Content-Range"] = f"bytes */{file.size}"
            file.close()
            return self._response(request, 416, fields | {"Content-Length": "0"})
        if part is not None:
            status, (first, last) = 206, part
            fields["Content-Range"] = f"bytes {first}-{last}/{file.size}"
        length = last - first + 1
        fields["Content-Length"] = str(length)
        response = self._response(request, status, fields)
        if request.method == b"HEAD" or not length:
            file.close()
            return response
        return response._replace(file=file, offset=first, length=length)

    def _response(self, request: Request, status: int, fields: dict[str, str]) -> Response:
        closes = not request.keeps_alive
        self._is_over = closes
        told = {"Server": "slirp", **fields}
        if closes:
            told["Connection"] = "close"
        elif request.minor == 0:
            told["Connection"] = "keep-alive"
        return Response(status, emit_head(status, REASONS[status], told), closes=closes)


def _is_fresh(request: Request, tag: str, modified_at: float) -> bool:
    """Has the client this very file (RFC 9110 §13.2.2)?"""
    tags = request.fields.get(b"if-none-match")
    if tags is not None:
        listed = [word.strip().removeprefix(b"W/") for word in tags.split(b",")]
        return tag.encode() in listed or tags.strip() == b"*"
    since = request.fields.get(b"if-modified-since")
    if since is None:
        return False
    try:
        return int(modified_at) <= parsedate_to_datetime(since.decode("ascii")).timestamp()
    except (ValueError, OverflowError):
        return False


def _range_holds(request: Request, tag: str, fields: dict[str, str]) -> bool:
    """Is the range of this file, by If-Range (RFC 9110 §13.1.5)? HEAD has none (§14.2)."""
    condition = request.fields.get(b"if-range")
    wanted = (tag.encode(), fields["Last-Modified"].encode())
    return request.method == b"GET" and (condition is None or condition in wanted)
