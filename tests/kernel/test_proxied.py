"""nginx and HAProxy in the namespace, told by the PROXY protocol who a connection is from."""

from __future__ import annotations

import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit.need import need_tool
from tests.kit.served import GUEST, Served, served

NGINX = """\
daemon off; pid {dir}/pid; error_log {dir}/error; worker_processes 1; user root;
events {{ }}
http {{
  access_log off;
  client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
  uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
  server {{
    listen {addr}:8080 proxy_protocol;
    location / {{ return 200 "$proxy_protocol_addr $proxy_protocol_port $remote_addr"; }}
  }}
}}
"""
HAPROXY = """\
defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 5s
frontend one
  bind {addr}:8080 accept-proxy
  http-request return status 200 content-type text/plain lf-string "%[src] %[src_port] %[dst_port]"
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Served]:
    with served() as running:
        yield running


@contextmanager
def running(guest: Served, *command: str) -> Iterator[None]:
    process = guest.start(*command, stdout=subprocess.DEVNULL)
    try:
        ready = f"until ss -Hltn 'sport = 8080' | grep -q 8080; do kill -0 {process.pid}; done"
        guest.run("timeout", "10", "sh", "-ec", ready)
        yield
    finally:
        process.terminate()
        process.wait(10)


def told(guest: Served, version: int, source: str) -> tuple[list[str], int, int]:
    """What the server said, from which port it was asked, at which one."""
    spec = f"0:{GUEST}:8080,proxy={version}"
    (forward,) = guest.call(lambda network: network.forward(spec))
    where = forward.host
    assert isinstance(where, tuple)
    with socket.create_connection(where, 10, source_address=(source, 0)) as peer:
        peer.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        answer = b""
        while data := peer.recv(4096):
            answer += data
        port = peer.getsockname()[1]
    return answer.partition(b"\r\n\r\n")[2].decode().split(), port, where[1]


@pytest.mark.parametrize("version", [1, 2])
def test_nginx(version: int, guest: Served, tmp_path: Path) -> None:
    program = need_tool("nginx")
    config = tmp_path / "nginx.conf"
    config.write_text(NGINX.format(dir=tmp_path, addr=GUEST))
    with running(guest, program, "-c", str(config)):
        said, port, _ = told(guest, version, "127.0.0.33")
    assert said == ["127.0.0.33", str(port), "10.0.2.2"]


@pytest.mark.parametrize("version", [1, 2])
def test_haproxy(version: int, guest: Served, tmp_path: Path) -> None:
    program = need_tool("haproxy")
    config = tmp_path / "haproxy.cfg"
    config.write_text(HAPROXY.format(addr=GUEST))
    with running(guest, program, "-f", str(config)):
        said, port, at = told(guest, version, "127.0.0.34")
    assert said == ["127.0.0.34", str(port), str(at)]


def test_a_large_file_through_a_pump(guest: Served, tmp_path: Path) -> None:
    """Whoever reads no header takes it for the request; Python's server has one line to skip."""
    content = os.urandom(8_000_000)
    (tmp_path / "data").write_bytes(content)
    program = f"""
import http.server, functools, socketserver
class Handler(http.server.SimpleHTTPRequestHandler):
    def handle(self):
        assert self.rfile.readline().startswith(b"PROXY TCP4 127.0.0.1 ")
        super().handle()
    def log_message(self, *args): pass
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
Server(("{GUEST}", 8080), functools.partial(Handler, directory="{tmp_path}")).serve_forever()
"""
    with running(guest, "python3", "-c", program):
        (forward,) = guest.call(lambda network: network.forward(f"0:{GUEST}:8080,proxy=1"))
        assert isinstance(forward.host, tuple)
        url = f"http://127.0.0.1:{forward.host[1]}/data"
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.read() == content
