"""The guest on our own network: from a host's HTTP server through every stage, and back."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from slirp.guest.board import Board
from slirp.guest.prom import Parameters
from slirp.guest.runner import fetch, run_on
from slirp.network import Network
from tests.slirp.guest.bench import need_unicorn

BODY = random.Random(4).randbytes(400_000)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(BODY), 30_000):
                piece = BODY[at : at + 30_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def network() -> Iterator[Network]:
    need_unicorn()
    with Network() as network:
        yield network


@pytest.mark.parametrize("bswp", [0, 1])
@pytest.mark.parametrize("rx_buffer", [64, 128, 1544, 4096])
def test_fetch(server: str, network: Network, bswp: int, rx_buffer: int) -> None:
    parameters = fetch(f"{server}/file", Parameters(bswp=bswp, rx_buffer=rx_buffer))
    with Board(parameters) as board:
        result = run_on(network, board)
        assert result.ok
        assert result.sha256 == hashlib.sha256(BODY).hexdigest()
        assert (result.router, result.dns) == (network.gateway, network.dns)
        assert result.counters["ping_received"] == 3
        assert board.lance.stats["rx_miss"] == 0
        if bswp:
            assert board.ledma.copied_bytes == 0


@pytest.mark.parametrize("path", ["/chunked", "/file"])
def test_smallest_rings_only_slow_it_down(server: str, network: Network, path: str) -> None:
    rings = Parameters(rx_entries=1, tx_entries=1, scatter=True, window=8192)
    with Board(fetch(server + path, rings)) as board:
        result = run_on(network, board)
        assert result.sha256 == hashlib.sha256(BODY).hexdigest()
        assert result.counters["tcp_retransmits"] == 0


def test_mtu_of_the_network_is_the_guests() -> None:
    need_unicorn()
    with Network(mtu=700) as network, Board(Parameters()) as board:
        assert run_on(network, board).mtu == 700


def test_progress_can_be_watched_and_ended(server: str, network: Network) -> None:
    with Board(fetch(f"{server}/file", Parameters(window=8192))) as board:
        seen: list[int] = []

        def each_turn() -> None:
            seen.append(board.result().octets)
            if seen[-1] > 100_000:
                board.stop()

        result = run_on(network, board, each_turn=each_turn)
    assert result.status == "running"
    assert seen == sorted(seen)
    assert 100_000 < result.octets < len(BODY)


def test_refused_by_the_host(network: Network) -> None:
    with Board(fetch("http://127.0.0.1:1/")) as board:
        assert run_on(network, board).status == "refused"


def test_a_network_without_way_to_the_host(server: str) -> None:
    need_unicorn()
    with Network(restrict=True) as network, Board(fetch(f"{server}/file")) as board:
        assert not run_on(network, board).ok


@pytest.mark.parametrize(
    ("url", "connect_host"),
    [
        ("http://127.0.0.1:80/", "gateway.slirp.internal"),
        ("http://localhost/", "gateway.slirp.internal"),
        ("http://192.0.2.1/", ""),
        ("http://example.com/", ""),
    ],
)
def test_the_hosts_loopback_is_the_gateway(url: str, connect_host: str) -> None:
    assert fetch(url).connect_host == connect_host
    assert fetch(url, Parameters(connect_host="x")).connect_host == "x"
