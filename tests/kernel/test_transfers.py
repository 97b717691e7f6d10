"""Linux's TCP as the guest: programs that everybody uses, over a TAP device.

Nothing in the guest is ours. Every transfer is compared by digest.

Does not do: speed (that is benchmarks/).
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import random
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slirp.host import tcp_flow
from tests.kit.need import need_tool
from tests.kit.served import GATEWAY, GUEST, Served, served
from tests.kit.web import WebServer

RESET = struct.pack("ii", 1, 0)
SIZE = 24 << 20


def octets(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Host:
    """A listening socket on the host's loopback and what it does with its one connection."""

    def __init__(self, serve: Callable[[socket.socket], None], **buffers: int) -> None:
        self._listener = socket.socket()
        if "rcvbuf" in buffers:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers["rcvbuf"])
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self._listener.settimeout(20)
        self.port: int = self._listener.getsockname()[1]
        self.failure: OSError | None = None
        self._serve = serve
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            peer, _ = self._listener.accept()
            peer.settimeout(20)
            with peer:
                self._serve(peer)
        except OSError as error:
            self.failure = error

    def join(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._listener.close()


@contextlib.contextmanager
def host(serve: Callable[[socket.socket], None], **buffers: int) -> Iterator[Host]:
    made = Host(serve, **buffers)
    try:
        yield made
    finally:
        made.join()


def read_all(peer: socket.socket) -> bytes:
    return b"".join(iter(lambda: peer.recv(1 << 20), b""))


@pytest.fixture(scope="module", params=["SO_PEEK_OFF", "discard"])
def guest(request: pytest.FixtureRequest) -> Iterator[Served]:
    """On a kernel with a peek offset for TCP, and on one before 6.9."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "discard":
            patch.setattr(tcp_flow, "peek_offset_works", lambda family: False)
        with served() as running:
            yield running
            stats = running.stats()
            assert not stats["malformed"], "nothing that Linux sends is malformed"


@pytest.fixture(scope="module")
def content() -> bytes:
    return octets(SIZE)


# --- iperf3, curl, nc, ping -----------------------------------------------------------------------


@pytest.mark.parametrize("mtu", [1500, 65520])
def test_iperf3(mtu: int) -> None:
    """Both directions, one stream and several, and datagrams."""
    need_tool("iperf3")
    with served(mtu=mtu) as guest, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        with subprocess.Popen(
            ["iperf3", "-s", "-B", "127.0.0.1", "-p", port, "--forceflush"],
            stdout=subprocess.PIPE, text=True,
        ) as server:  # fmt: skip
            assert server.stdout is not None
            try:
                client = ("iperf3", "-c", GATEWAY, "-p", port, "-J")
                for options in (
                    ("-n", "200M"),
                    ("-n", "200M", "-R", "-P", "4"),
                    ("-u", "-b", "50M", "-t", "1"),
                ):
                    while "listening" not in server.stdout.readline():
                        pass
                    result = guest.run(*client, *options)
                    end = json.loads(result.stdout)["end"]
                    received = end.get("sum_received") or end.get("sum")
                    assert received, result.stdout
                    assert received["bytes"] > 1 << 20, options
            finally:
                server.kill()


def test_curl_get_and_put(guest: Served, content: bytes, tmp_path: Path) -> None:
    need_tool("curl")
    with WebServer(content) as web:
        got = tmp_path / "got"
        guest.run("curl", "-sS", "-o", str(got), f"http://{GATEWAY}:{web.port}/")
        assert digest(got.read_bytes()) == web.digest
        guest.run(
            "curl", "-sS", "-X", "POST", "-H", "Expect:", "--data-binary", f"@{got}",
            f"http://{GATEWAY}:{web.port}/",
        )  # fmt: skip
        (posted,) = web.posted
        assert digest(posted) == web.digest


@pytest.mark.parametrize("tso", [True, False], ids=["super-frames", "plain frames"])
@pytest.mark.parametrize("mtu", [68, 576, 9000, 65521])
def test_any_mtu(mtu: int, tso: bool, content: bytes, tmp_path: Path) -> None:
    need_tool("curl")
    data = content[: 20 * mtu + 12345]
    with served(mtu=mtu, tso=tso) as guest, WebServer(data) as web:
        url = f"http://{GATEWAY}:{web.port}/"
        got = tmp_path / "got"
        guest.run("curl", "-sS", "-o", str(got), url)
        guest.run("curl", "-sS", "-H", "Expect:", "--data-binary", f"@{got}", url)
        assert digest(web.posted[0]) == digest(got.read_bytes()) == web.digest


def test_a_hundred_downloads_at_once(guest: Served, tmp_path: Path) -> None:
    need_tool("curl")
    data = octets(300_000, 2)
    with WebServer(data) as web:
        guest.run(
            "curl", "-sS", "--parallel", "--parallel-immediate", "--parallel-max", "100",
            "-o", str(tmp_path / "#1"), f"http://{GATEWAY}:{web.port}/[1-100]",
        )  # fmt: skip
        files = list(tmp_path.iterdir())
        assert len(files) == 100
        assert {digest(file.read_bytes()) for file in files} == {web.digest}


def test_ping(guest: Served) -> None:
    need_tool("ping")
    result = guest.run("ping", "-c", "3", "-i", "0.02", "-s", "3000", GATEWAY)
    assert "3 received" in result.stdout


def test_a_hop_count_that_ends_at_the_gateway(guest: Served) -> None:
    """What traceroute lives on; the packet goes no further."""
    need_tool("ping")
    result = guest.run("ping", "-c", "1", "-t", "1", "192.0.2.1", ok=False)
    assert f"From {GATEWAY}" in result.stdout
    assert "Time to live exceeded" in result.stdout


DATAGRAMS = """
import random, socket, sys
die = random.Random(5)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.connect(("10.0.2.2", int(sys.argv[1])))
s.send(b"who has?")
s.recv(65536)
for turn in range(40):
    size = die.randrange(1, 1473)
    sizes = [size if die.random() < 0.8 else die.randrange(4000) for _ in range(20)]
    batch = [die.randbytes(n) for n in sizes]
    for data in batch:
        s.send(data)
    for data in batch:
        assert s.recv(65536) == data, turn
"""


@pytest.mark.parametrize("vnet", [True, False], ids=["offloads", "none"])
def test_datagrams_keep_their_borders_and_their_order(vnet: bool) -> None:
    """Whether they cross one by one, in runs or in fragments.

    The first goes alone: what Linux holds for an address that it asks for, it sends while others
    overtake it (neigh_update gives the lock back between two packets).
    """
    with served(vnet=vnet) as guest, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        done = threading.Event()

        def echo() -> None:
            while not done.is_set():
                data, peer = server.recvfrom(65536)
                server.sendto(data, peer)

        thread = threading.Thread(target=echo)
        thread.start()
        port = server.getsockname()[1]
        guest.run(sys.executable, "-c", DATAGRAMS, str(port))
        done.set()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", ("127.0.0.1", port))
        thread.join(10)
        assert not guest.stats()["malformed"]
        assert not guest.stats()["udp"]["failed"]


def test_nc_half_close(guest: Served) -> None:
    """The answer depends on the end of the question."""
    need_tool("nc")
    question = octets(3_000_000, 3)

    def answer(peer: socket.socket) -> None:
        peer.sendall(digest(read_all(peer)).encode())

    with host(answer) as server:
        result = subprocess.run(
            guest.argv(["nc", "-N", GATEWAY, str(server.port)]), input=question,
            capture_output=True, timeout=30, check=True,
        )  # fmt: skip
    assert result.stdout.decode() == digest(question)


def test_a_forward_leads_in(guest: Served) -> None:
    data = octets(2_000_000, 4)
    forward = guest.call(
        lambda network: network.forward("tcp", host=("127.0.0.1", 0), guest=(GUEST, 4000))
    )
    with guest.start("nc", "-l", "-p", "4000", stdout=subprocess.PIPE) as inside:
        assert inside.stdout is not None
        while "4000" not in guest.run("ss", "-Hltn", "sport = 4000").stdout:
            pass
        assert isinstance(forward.host, tuple)
        with socket.create_connection(forward.host, timeout=10) as peer:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            assert digest(inside.stdout.read()) == digest(data)
    guest.call(lambda network: network.remove_forward(forward.id))


# --- slow ends ------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process, the network's thread included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_host_that_reads_slowly(guest: Served, content: bytes, tmp_path: Path) -> None:
    """The guest is held back by its window; nothing piles up here."""
    source = tmp_path / "source"
    source.write_bytes(content)
    hashed = hashlib.sha256()
    grown: list[int] = []
    stalled = threading.Event()

    def dawdle(peer: socket.socket) -> None:
        before = resident()
        assert stalled.wait(20)
        while data := peer.recv(1 << 16):
            hashed.update(data)
            grown.append(resident() - before)

    with (
        host(dawdle, rcvbuf=1 << 16) as server,
        guest.start("sh", "-c", f"exec nc -N {GATEWAY} {server.port} < {source}") as sender,
    ):
        wait_until_still(guest, "octets_to_host")
        stalled.set()
        assert sender.wait(30) == 0
    assert hashed.hexdigest() == digest(content)
    assert max(grown) < 24 << 20


def test_a_guest_that_reads_slowly(guest: Served, content: bytes, tmp_path: Path) -> None:
    """Its window closes for good; the bytes stay in the host's sending kernel."""
    fifo, result = tmp_path / "gate", tmp_path / "digest"
    before = resident()
    sent: list[int] = []

    def send(peer: socket.socket) -> None:
        view = memoryview(content)
        while view:
            view = view[peer.send(view[: 1 << 16]) :]
            sent.append(resident() - before)

    script = f"mkfifo {fifo}; nc {GATEWAY} $0 | {{ read go < {fifo}; sha256sum > {result}; }}"
    with host(send) as server, guest.start("sh", "-c", script, str(server.port)) as reader:
        wait_until_still(guest, "octets_to_guest")
        fifo.write_text("go\n")
        assert reader.wait(30) == 0
    assert result.read_text().split()[0] == digest(content)
    assert max(sent) < 24 << 20


def wait_until_still(guest: Served, counter: str) -> None:
    """Until bytes came and then no more: whoever is slow has stalled the transfer."""
    seen, still = 0, 0
    wait = threading.Event()
    for _ in range(200):
        wait.wait(0.02)
        now = guest.stats()["tcp"][counter]
        still = still + 1 if now == seen else 0
        seen = now
        if seen and still > 10:
            return
    raise AssertionError("the transfer did not stall")


# --- resets ---------------------------------------------------------------------------------------


def test_a_reset_by_the_guest(guest: Served) -> None:
    """A program killed over unread bytes: its kernel sends RST, and so do we."""
    started = threading.Event()
    failures: list[OSError] = []

    def send(peer: socket.socket) -> None:
        try:
            while True:
                peer.sendall(bytes(1 << 16))
                started.set()
        except OSError as error:
            failures.append(error)

    with (
        host(send) as server,
        guest.start("nc", GATEWAY, str(server.port), stdout=subprocess.PIPE) as reader,
    ):
        assert started.wait(10)
        wait_until_still(guest, "octets_to_guest")  # nobody reads what nc prints
        reader.kill()
    assert isinstance(failures[0], ConnectionResetError | BrokenPipeError)


def test_a_reset_by_the_host(guest: Served) -> None:
    need_tool("curl")

    def cut(peer: socket.socket) -> None:
        peer.recv(1000)
        peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(100_000))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    with host(cut) as server:
        result = guest.run(
            "curl", "-sS", "-o", "/dev/null", f"http://{GATEWAY}:{server.port}/", ok=False
        )
    assert result.returncode == 56
    assert "reset" in result.stderr


def test_a_refused_connection(guest: Served) -> None:
    need_tool("curl")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        result = guest.run("curl", "-sS", f"http://{GATEWAY}:{port}/", ok=False)
    assert result.returncode == 7
    assert "refused" in result.stderr or "Couldn't connect" in result.stderr


# --- nothing is left ------------------------------------------------------------------------------

CLIENT = """
import socket, sys
for n in range(int(sys.argv[2])):
    with socket.create_connection(("10.0.2.2", int(sys.argv[1]))) as s:
        s.sendall(b"%d" % n)
        assert s.recv(10) == b"%d" % n
"""


def test_two_thousand_short_connections_leave_nothing() -> None:
    count = 2000
    with (
        served(ra_enabled=False) as guest,
        socket.create_server(("127.0.0.1", 0), backlog=512) as listener,
    ):

        def echo() -> None:
            for _ in range(count):
                peer, _ = listener.accept()
                with peer:
                    peer.sendall(peer.recv(100))

        server = threading.Thread(target=echo)
        server.start()
        before = descriptors()
        guest.run(sys.executable, "-c", CLIENT, str(listener.getsockname()[1]), str(count))
        server.join(10)
        wait = threading.Event()
        for _ in range(100):
            if not guest.stats()["tcp"]["flows"]:
                break
            wait.wait(0.05)
        stats = guest.stats()["tcp"]
        assert stats["opened"] == count
        assert stats["flows"] == 0
        assert descriptors() <= before  # fewer where a thread of an earlier test ended meanwhile
        assert guest.call(lambda network: network._loop.deadline()) is None


def descriptors() -> int:
    """How many are open, without those of earlier tests that only wait to be collected."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))
