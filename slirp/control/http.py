"""As much of HTTP/1.1 as a scrape needs: GET /metrics, one request per connection.

`answer_http` takes a request's head and gives the whole response. Whatever a client sends, the
answer is one of 200, 404 and 400, with Connection: close.

Does not do: bodies, keep-alive, TLS, compression.
"""

from __future__ import annotations

from collections.abc import Callable

from slirp.control.metrics import CONTENT_TYPE


def answer_http(head: bytes, metrics: Callable[[], str]) -> bytes:
    """The response to a request."""
    words = head.split(b"\n", 1)[0].strip().split()
    if len(words) != 3 or words[0] not in (b"GET", b"HEAD") or not words[2].startswith(b"HTTP/1."):
        return _response("400 Bad Request", "GET /metrics is all there is\n", "text/plain")
    if words[1].partition(b"?")[0] != b"/metrics":
        return _response("404 Not Found", "there is /metrics only\n", "text/plain")
    return _response("200 OK", metrics(), CONTENT_TYPE, body=words[0] == b"GET")


def _response(status: str, text: str, kind: str, *, body: bool = True) -> bytes:
    data = text.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (data if body else b"")
