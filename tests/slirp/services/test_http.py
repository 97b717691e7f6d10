"""The HTTP server of files, as values: requests in, responses out."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.services.http import HttpStream, Response

TIME = 1_700_000_000.25


class MemoryFile:
    fd = -1

    def __init__(self, size: int) -> None:
        self.size = size
        self.modified_at = TIME
        self.closed = False

    def close(self) -> None:
        self.closed = True


class MemoryFolder:
    def __init__(self, **sizes: int) -> None:
        self.sizes = sizes
        self.opened: list[MemoryFile] = []

    def open(self, name: bytes) -> MemoryFile:
        size = self.sizes.get(name.decode("latin-1"))
        if size is None:
            raise FileNotFoundError(name)
        self.opened.append(MemoryFile(size))
        return self.opened[-1]


def ask(*lines: str, method: str = "GET", path: str = "/file", minor: int = 1) -> Response:
    folder = MemoryFolder(file=100, empty=0, linux=5)
    text = "\r\n".join([f"{method} {path} HTTP/1.{minor}", "Host: a", *lines, "", ""])
    response = HttpStream(folder).feed(text.encode())
    assert response is not None
    still_open = [file for file in folder.opened if not file.closed]
    assert still_open == ([response.file] if response.file else [])
    return response


def fields(response: Response) -> dict[str, str]:
    lines = response.head.decode().split("\r\n")[1:-2]
    return dict(line.split(": ", 1) for line in lines)


def test_a_file() -> None:
    response = ask()
    assert response.head.startswith(b"HTTP/1.1 200 OK\r\n")
    told = fields(response)
    assert told["Content-Length"] == "100"
    assert told["Last-Modified"] == formatdate(TIME, usegmt=True)
    assert (response.offset, response.length, response.closes) == (0, 100, False)


def test_a_part_of_one() -> None:
    response = ask("Range: bytes=90-")
    assert response.status == 206
    assert fields(response)["Content-Range"] == "bytes 90-99/100"
    assert (response.offset, response.length) == (90, 10)
    response = ask("Range: bytes=100-")
    assert (response.status, fields(response)["Content-Range"]) == (416, "bytes */100")


def test_head_has_no_body() -> None:
    response = ask("Range: bytes=0-1", method="HEAD")
    assert (response.status, fields(response)["Content-Length"], response.file) == (
        200,
        "100",
        None,
    )


def test_an_empty_file() -> None:
    response = ask(path="/empty")
    assert (response.status, fields(response)["Content-Length"], response.file) == (200, "0", None)


def test_who_has_it_is_told_so() -> None:
    told = fields(ask())
    for line in (
        f"If-None-Match: {told['ETag']}",
        f'If-None-Match: "x", W/{told["ETag"]}',
        "If-None-Match: *",
        f"If-Modified-Since: {told['Last-Modified']}",
    ):
        assert ask(line).status == 304
    for line in (
        'If-None-Match: "x"',
        "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
        "If-Modified-Since: never",
    ):
        assert ask(line).status == 200


def test_a_range_of_another_file_is_all_of_this_one() -> None:
    tag = fields(ask())["ETag"]
    assert ask("Range: bytes=0-1", f"If-Range: {tag}").status == 206
    assert ask("Range: bytes=0-1", 'If-Range: "x"').status == 200


@pytest.mark.parametrize(
    ("lines", "options", "status", "closes"),
    [
        ((), {"path": "/nothing"}, 404, False),
        ((), {"path": "/"}, 404, False),
        ((), {"path": "*"}, 400, True),
        ((), {"method": "POST"}, 405, True),
        ((), {"method": "TRACE"}, 405, True),
        (("Content-Length: 5",), {}, 400, True),
        (("Transfer-Encoding: chunked",), {}, 400, True),
        (("Host: b",), {}, 400, True),
        (("X: " + "y" * 9000,), {}, 431, True),
        (("Connection: close",), {}, 200, True),
        ((), {"minor": 0}, 200, True),
    ],
)
def test_answers(
    lines: tuple[str, ...], options: dict[str, str], status: int, closes: bool
) -> None:
    response = ask(*lines, **options)  # type: ignore[arg-type]  # of several types
    assert (response.status, response.closes) == (status, closes)


def test_without_a_host() -> None:
    response = HttpStream(MemoryFolder()).feed(b"GET / HTTP/1.1\r\n\r\n")
    assert response is not None
    assert (response.status, response.closes) == (400, True)


def test_requests_ahead_of_their_turn() -> None:
    stream = HttpStream(MemoryFolder(a=1, b=2))
    one = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
    sizes = [stream.feed(one % b"a" + one % b"b" + one % b"a"), stream.feed(b""), stream.feed(b"")]
    assert [response.length for response in sizes if response] == [1, 2, 1]
    assert stream.feed(b"") is None


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_anything_may_come(pieces: list[bytes]) -> None:
    stream = HttpStream(MemoryFolder(a=1))
    over = False
    for piece in pieces:
        response = stream.feed(piece)
        assert response is None or not over
        over = over or (response is not None and response.closes)
