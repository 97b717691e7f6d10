"""A web server on the host's loopback that guests fetch from.

with WebServer(b"...") as web: … web.port … web.digest
"""

from __future__ import annotations

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.path == "/wait":
            self.server.released.wait(60)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.server.posted.append(self.rfile.read(length))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a hundred guests may come at once

    def __init__(self, content: bytes, host: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, 0), _Handler)
        self.content = content
        self.posted: list[bytes] = []
        self.released = threading.Event()


class WebServer:
    """Answers each GET with `content`, one of /wait after `release()`; keeps what is POSTed."""

    def __init__(self, content: bytes, host: str = "127.0.0.1") -> None:
        self._server = _Server(content, host)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.port: int = self._server.server_address[1]
        self.digest = hashlib.sha256(content).hexdigest()

    @property
    def posted(self) -> list[bytes]:
        return self._server.posted

    def release(self) -> None:
        """Whoever waits may go on."""
        self._server.released.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *why: object) -> None:
        self.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
