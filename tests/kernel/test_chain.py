"""The third guest: Linux's TCP behind the chip. curl and iperf3 through every stage of the chain.

    namespace ⇄ TAP ⇄ Bridge ⇄ LanceDriver ⇄ Lance ⇄ LEDMA ⇄ IOMMU ⇄ memory ⇄ Network ⇄ sockets

The programs run in a namespace of their own; network, chip and driver are in this process and in
one loop, which turns until the program has ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from nic.init_block import PROM
from nic.tap import open_tap
from slirp import Network
from slirp.guest.bridge import Bridge
from slirp.guest.driver import LanceDriver
from slirp.guest.machine import Board, sun4m_board
from slirp.linux import netns
from tests.kit.namespace import Holder, holder
from tests.kit.need import need_tool, need_tun
from tests.kit.ports import free_port
from tests.kit.web import WebServer

MAC: Final = "08:00:20:01:02:03"
GUEST: Final = "10.0.2.15"
GATEWAY: Final = "10.0.2.2"
PATIENCE: Final = 60.0  # seconds that a program may take
PAGE: Final = random.Random(7990).randbytes((3 << 20) + 1)  # odd, and no multiple of a segment

Arrangement = dict[str, Any]

LANES: Final = [
    pytest.param({"bswp": 1}, id="bswp1"),
    pytest.param({"bswp": 0}, id="bswp0-in-place"),
    pytest.param({"bswp": 0, "lanes": "bounce"}, id="bswp0-bounce"),
]
RINGS: Final = [
    pytest.param({"bswp": 1, "rx_buffer": 64, "rx_count": 32}, id="bswp1-64-byte-buffers"),
    pytest.param({"bswp": 0, "rx_buffer": 64, "rx_count": 32}, id="bswp0-64-byte-buffers"),
    pytest.param(
        {"bswp": 0, "rx_buffer": 127, "rx_count": 16, "rx_offset": 1}, id="bswp0-odd-buffers"
    ),
    pytest.param({"bswp": 1, "rx_count": 1, "tx_count": 1}, id="one-descriptor"),
    pytest.param({"bswp": 0, "rx_buffer": 4096, "rx_count": 2, "scatter": True}, id="scattered"),
]


class Chain(NamedTuple):
    """A namespace behind the chip, and the loop that everything runs in."""

    network: Network
    board: Board
    driver: LanceDriver
    bridge: Bridge
    holder: Holder

    def run(self, *command: str) -> str:
        """Run a program in the namespace to its successful end, the loop turning; its output."""
        with subprocess.Popen(
            [*self.holder.entering(), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                self.turn(lambda: process.poll() is not None)
            finally:
                process.kill()
            out, err = process.communicate()
        assert process.returncode == 0, (command, out, err)
        return out

    def turn(self, until: Callable[[], bool]) -> None:
        stop_at = time.monotonic() + PATIENCE
        while not until():
            self.network.poll(0.02)
            assert time.monotonic() < stop_at, "did not end"

    def lost(self) -> dict[str, int]:
        """Whatever counts a frame that did not get where it was going."""
        chip = self.board.lance.stats
        found = {name: chip[name] for name in ("rx_miss", "rx_buff", "rx_off", "merr", "tx_babl")}
        found.update({name: self.driver.stats[name] for name in ("rx_errors", "tx_errors", "miss")})
        (port,) = self.network.stats()["ports"].values()
        return {**found, "port": port["lost"], "tap": self.bridge.refused}


@contextmanager
def chain(
    lanes: str = "in-place", scatter: bool = False, address: bool = True, **options: Any
) -> Iterator[Chain]:
    """The whole chain; `options` are the driver's."""
    need_tun()
    with ExitStack() as stack:
        inside = stack.enter_context(holder())
        tap = netns.tap_from(netns.Target.of_pid(inside.pid), lambda: make_tap(address))
        stack.callback(os.close, tap)
        network = stack.enter_context(Network(resolvers=(), names={"page.test": ["192.0.2.80"]}))
        board = stack.enter_context(sun4m_board(mode=lanes, scatter=scatter))  # type: ignore[arg-type]
        driver = LanceDriver(board, board.lance, check_fcs=True, **options)
        network.attach(board.lance, "lance")
        bridge = Bridge(network, board, driver, tap)
        stack.callback(bridge.close)
        driver.start()
        yield Chain(network, board, driver, bridge, inside)


def make_tap(address: bool) -> int:
    """In the namespace: a device whose kernel has no offload to lean on."""
    fd, name = open_tap("le0", vnet=False)
    where = (GUEST, GATEWAY) if address else (None, None)
    netns.configure(netns.Interface(name, where[0], gateway=where[1], mac=MAC))
    return fd


def fetch(link: Chain, web: WebServer, tmp_path: Path) -> None:
    """curl a page; its digest must be the page's, and no frame may have been lost."""
    target = tmp_path / "page"
    link.run(need_tool("curl"), "-sS", "-o", str(target), f"http://{GATEWAY}:{web.port}/page")
    assert hashlib.sha256(target.read_bytes()).hexdigest() == web.digest
    assert not any(link.lost().values()), link.lost()


@pytest.mark.parametrize("arrangement", LANES + RINGS)
def test_curl_downloads_through_the_chain(arrangement: Arrangement, tmp_path: Path) -> None:
    with WebServer(PAGE) as web, chain(**arrangement) as link:
        fetch(link, web, tmp_path)
        assert link.driver.stats["rx_frames"] > len(PAGE) / 1460  # as frames of a wire
        assert link.network.stats()["tcp"]["octets_to_guest"] >= len(PAGE)


@pytest.mark.parametrize("arrangement", LANES + RINGS)
def test_curl_uploads_through_the_chain(arrangement: Arrangement, tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_bytes(PAGE)
    with WebServer(b"") as web, chain(**arrangement) as link:
        url = f"http://{GATEWAY}:{web.port}/"
        link.run(need_tool("curl"), "-sS", "-H", "Expect:", "--data-binary", f"@{page}", url)
        assert [hashlib.sha256(body).hexdigest() for body in web.posted] == [
            hashlib.sha256(PAGE).hexdigest()
        ]
        assert not any(link.lost().values()), link.lost()
        assert link.board.lance.stats["tx_frames"] > len(PAGE) / 1460


def test_a_ring_of_two_descriptors_holds_the_host_back_and_loses_nothing(tmp_path: Path) -> None:
    with WebServer(PAGE) as web, chain(rx_count=2) as link:
        fetch(link, web, tmp_path)
        assert link.board.lance.stats["rx_refused"] > 100  # room ran out, again and again
        assert link.board.lance.stats["rx_slid_octets"] == 0


def test_a_tx_ring_of_two_descriptors_holds_the_namespace_back(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.write_bytes(PAGE)
    with WebServer(b"") as web, chain(tx_count=2, tx_buffer=1544) as link:
        link.run(
            need_tool("curl"), "-sS", "-H", "Expect:", "-T", str(page), "-X", "POST",
            f"http://{GATEWAY}:{web.port}/",
        )  # fmt: skip
        assert web.posted == [PAGE]
        assert link.bridge.waits > 10
        assert not any(link.lost().values()), link.lost()


def test_many_downloads_at_once(tmp_path: Path) -> None:
    page = PAGE[: 300 << 10]
    with WebServer(page) as web, chain(rx_count=8) as link:
        url = f"http://{GATEWAY}:{web.port}/[1-20]"
        link.run(
            need_tool("curl"), "-sS", "--parallel", "--parallel-max", "20",
            "-o", str(tmp_path / "page#1"), url,
        )  # fmt: skip
        pages = list(tmp_path.glob("page*"))
        assert len(pages) == 20
        assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in pages} == {web.digest}
        assert not any(link.lost().values()), link.lost()


@pytest.mark.parametrize("bswp", [1, 0])
@pytest.mark.parametrize("reverse", [[], ["--reverse"]], ids=["up", "down"])
def test_iperf3_both_ways(bswp: int, reverse: list[str]) -> None:
    tool = need_tool("iperf3")
    port = free_port()
    server = [tool, "--server", "--one-off", "--bind", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(server, stdout=subprocess.DEVNULL) as serving:
        try:
            wait_for(port)
            with chain(bswp=bswp) as link:
                out = link.run(
                    tool, "--client", GATEWAY, "--port", str(port), "--bytes", "4M", "--json",
                    *reverse,
                )  # fmt: skip
                end = json.loads(out)["end"]
                assert end["sum_sent"]["bytes"] >= 4 << 20
                assert end["sum_received"]["bytes"] >= 1 << 20  # it stops counting at the last word
                assert not any(link.lost().values()), link.lost()
        finally:
            serving.kill()


def wait_for(port: int) -> None:
    """Until something listens there; looked up, since a connection would be served."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A"
    stop_at = time.monotonic() + PATIENCE
    while wanted not in Path("/proc/net/tcp").read_text():
        assert time.monotonic() < stop_at


def test_dig_over_udp_and_tcp() -> None:
    with chain() as link:
        for how in ("+notcp", "+tcp"):
            out = link.run(need_tool("dig"), "@10.0.2.3", how, "+short", "page.test")
            assert out.strip() == "192.0.2.80"


def test_ping_with_payloads_of_every_kind() -> None:
    with chain(bswp=0) as link:
        for size in (0, 1, 17, 18, 19, 1471, 1472, 4000):  # around the least frame and the MTU
            out = link.run(
                need_tool("ping"), "-c", "2", "-i", "0.05", "-W", "5", "-s", str(size), GATEWAY
            )
            assert " 0% packet loss" in out


def test_udhcpc_gets_a_lease(tmp_path: Path) -> None:
    tool = need_tool("udhcpc")
    script = tmp_path / "told"
    script.write_text("#!/bin/sh\nenv\n")
    script.chmod(0o755)
    with chain(address=False) as link:
        out = link.run(tool, "-i", "le0", "-n", "-q", "-f", "-s", str(script), "-t", "5")
        assert f"ip={GUEST}" in out
        assert f"router={GATEWAY}" in out
        assert [lease["address"] for lease in link.network.leases()] == [GUEST]


def test_half_closed_through_the_chain() -> None:
    tool = need_tool("nc")
    with socket.create_server(("127.0.0.1", 0)) as server, chain() as link:
        server.setblocking(False)
        port = server.getsockname()[1]
        command = [*link.holder.entering(), tool, "-N", GATEWAY, str(port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(b"question")
            process.stdin.close()
            process.stdin = None
            peer = accept(link, server)
            question = b""
            with peer:
                while piece := receive(link, peer):
                    question += piece
                assert question == b"question"  # and its end was seen, while the way back is open
                peer.sendall(b"answer")
            link.turn(lambda: process.poll() is not None)
            assert process.communicate()[0] == b"answer"
        link.turn(lambda: not link.network.flows())


def accept(link: Chain, server: socket.socket) -> socket.socket:
    found: list[socket.socket] = []

    def look() -> bool:
        try:
            found.append(server.accept()[0])
        except BlockingIOError:
            return False
        return True

    link.turn(look)
    found[0].setblocking(False)
    return found[0]


def receive(link: Chain, sock: socket.socket) -> bytes:
    found: list[bytes] = []

    def look() -> bool:
        try:
            found.append(sock.recv(65536))
        except BlockingIOError:
            return False
        return True

    link.turn(look)
    return found[0]


def test_a_frame_that_is_not_for_the_chip_is_filtered_and_a_promiscuous_one_takes_it(
    tmp_path: Path,
) -> None:
    with WebServer(PAGE[:1000]) as web:
        with chain(mac=bytes.fromhex("080020999999"), mode=PROM) as link:
            fetch(link, web, tmp_path)
        with chain(mac=bytes.fromhex("080020999999")) as link:
            with pytest.raises(AssertionError, match="curl"):
                link.run(
                    need_tool("curl"), "-sS", "--max-time", "1", f"http://{GATEWAY}:{web.port}/"
                )
            assert link.board.lance.stats["rx_filtered"] > 0
            assert link.driver.stats["rx_frames"] == 0
