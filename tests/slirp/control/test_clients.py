"""Connections of a control socket: replies of any size, clients of any pace, what they may cost."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slirp.control import clients
from slirp.control.clients import Clients, listen
from slirp.control.slirp4netns import ApiSocket
from slirp.host.loop import REST_FOR
from slirp.linux.syscalls import raise_descriptor_limit
from slirp.network import Network
from tests.kit.addresses import own_loopback
from tests.kit.need import missing
from tests.kit.starved import starved

MORE_THAN_A_SOCKET_HOLDS = 8 << 20  # bytes
PATIENCE = 20.0  # seconds that any client here waits


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Served:
    """A socket that answers N, a number in ASCII, with so many bytes; "?" is no whole request."""

    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self.network = Network(clock=self.clock)
        self.path = str(path / "control.sock")
        self.clients = Clients(listen(self.path), self.network, self._respond)
        self.stats = self.clients.stats

    def _respond(self, request: bytes, ended: bool) -> bytes | None:
        if b"?" in request:
            return b"half a question" if ended else None
        return bytes(int(request)) if request else None

    def turns(self) -> None:
        """Turn the loop until nothing that is under way can go on by itself."""
        while self.network.poll(0.02):
            pass

    def connect(self, request: bytes = b"") -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(self.path)
        sock.sendall(request)
        self.turns()
        return sock

    def read_whole(self, sock: socket.socket) -> int:
        total = 0
        while True:
            self.turns()
            data = sock.recv(1 << 20)
            total += len(data)
            if not data:
                sock.close()
                return total

    def close(self) -> None:
        self.clients.close()
        self.network.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.close()


def is_open(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


@pytest.mark.parametrize("size", [0, 1, 1000, 200_000, MORE_THAN_A_SOCKET_HOLDS])
def test_reply_of_any_size_arrives_whole(served: Served, size: int) -> None:
    assert served.read_whole(served.connect(str(size).encode())) == size
    assert served.stats == {"answered": 1, "crowded_out": 0, "unread": 0, "shortages": 0}


def test_slow_reader_holds_nobody_up(served: Served) -> None:
    slow = served.connect(str(MORE_THAN_A_SOCKET_HOLDS).encode())
    assert served.read_whole(served.connect(b"300000")) == 300_000
    assert served.read_whole(slow) == MORE_THAN_A_SOCKET_HOLDS


def test_reader_that_goes_on_is_waited_for(served: Served) -> None:
    slow = served.connect(str(MORE_THAN_A_SOCKET_HOLDS).encode())
    got = 0
    while data := slow.recv(1 << 20):
        got += len(data)
        served.clock.now += clients.STILL_FOR * 0.9
        served.turns()
    slow.close()
    assert got == MORE_THAN_A_SOCKET_HOLDS
    assert served.stats["unread"] == 0


def test_reader_that_never_reads_is_dropped_and_counted(served: Served) -> None:
    still = served.connect(str(MORE_THAN_A_SOCKET_HOLDS).encode())
    served.clock.now += clients.STILL_FOR - 0.1
    served.turns()
    assert served.stats["unread"] == 0
    served.clock.now += 0.2
    served.turns()
    assert served.stats == {"answered": 0, "crowded_out": 0, "unread": 1, "shortages": 0}
    assert served.read_whole(still) < MORE_THAN_A_SOCKET_HOLDS


def test_octets_held_are_bounded(served: Served) -> None:
    size = clients.UNREAD_MAX // 2
    first, second, third = (served.connect(str(size).encode()) for _ in range(3))
    assert served.stats["unread"] == 1
    assert served.read_whole(second) == served.read_whole(third) == size
    assert served.read_whole(first) < size


def test_one_reply_may_be_larger_than_the_bound(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "UNREAD_MAX", 1000)
    assert served.read_whole(served.connect(b"3000000")) == 3_000_000


def test_reader_that_leaves(served: Served) -> None:
    served.connect(str(MORE_THAN_A_SOCKET_HOLDS).encode()).close()
    served.turns()
    assert served.read_whole(served.connect(b"7")) == 7
    assert served.stats == {"answered": 1, "crowded_out": 0, "unread": 0, "shortages": 0}


def test_who_is_still_longest_makes_room(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "CLIENTS_MAX", 3)
    first, second, third = (served.connect(b"?") for _ in range(3))
    first.sendall(b"?")  # now the second is the stillest
    served.turns()
    fourth = served.connect(b"?")
    assert [is_open(sock) for sock in (first, second, third, fourth)] == [True, False, True, True]
    assert served.stats["crowded_out"] == 1
    for sock in (first, second, third, fourth):
        sock.close()


def test_half_a_request(served: Served) -> None:
    sock = served.connect(b"?")
    sock.shutdown(socket.SHUT_WR)
    served.turns()
    assert sock.recv(100) == b"half a question"
    sock.close()


def test_no_request_at_all(served: Served) -> None:
    sock = served.connect()
    sock.shutdown(socket.SHUT_WR)
    served.turns()
    assert sock.recv(100) == b""
    sock.close()


def test_closing_drops_everybody(tmp_path: Path) -> None:
    served = Served(tmp_path)
    reading, asking = served.connect(b"9000000"), served.connect(b"?")
    served.close()
    assert not is_open(asking)
    reading.close()
    asking.close()


def test_dangling_link_in_the_way_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.symlink_to(tmp_path / "nowhere")
    listen(str(path)).close()
    assert path.is_socket()


# --- 1,500 forwards -------------------------------------------------------------------------------

MANY = 1500  # podman run -p 20000-21499:… makes one forward per port, one connection each


@contextmanager
def running_api(tmp_path: Path) -> Iterator[tuple[str, Network]]:
    if raise_descriptor_limit() < 2 * MANY:
        missing(f"fewer than {2 * MANY} descriptors are allowed")
    path = str(tmp_path / "api.sock")
    with Network() as network:
        listening = ApiSocket(path, network, "10.0.2.100")
        running = threading.Thread(target=network.run)
        running.start()
        try:
            yield path, network
        finally:
            network.stop()
            running.join()
            listening.close()


def ask(path: str, **request: object) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)  # as Go connects: a full backlog is an error, not a wait
        sock.connect(path)
        sock.settimeout(PATIENCE)
        sock.sendall(json.dumps(request).encode())
        sock.shutdown(socket.SHUT_WR)
        reply = b""
        while data := sock.recv(65536):
            reply += data
        return reply


@pytest.mark.parametrize("callers", [1, 64])
def test_many_forwards_over_the_socket(tmp_path: Path, callers: int) -> None:
    """One connection each, one after the other and many at once; none is turned away or lost."""
    replies: list[bytes] = []
    ports = iter(range(20_000, 20_000 + MANY))
    lock = threading.Lock()

    def add_some(path: str) -> None:
        while True:
            with lock:
                port = next(ports, None)
            if port is None:
                return
            arguments = {
                "proto": "tcp",
                "host_addr": own_loopback(1),
                "host_port": port,
                "guest_port": 80,
            }
            replies.append(ask(path, execute="add_hostfwd", arguments=arguments))

    with running_api(tmp_path) as (path, network):
        threads = [threading.Thread(target=add_some, args=(path,)) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(replies) == MANY
        assert all(b"return" in reply for reply in replies)
        listed = json.loads(ask(path, execute="list_hostfwd"))
        assert len(listed["entries"]) == len(listed["return"]["entries"]) == MANY
        for _ in range(500):  # an answer is counted a moment after it was sent
            if network.stats()["control"]["answered"] > MANY:
                break
            threading.Event().wait(0.01)
        assert network.stats()["control"]["answered"] == MANY + 1


@pytest.mark.parametrize(
    ("call", "every"), [("recv", 1), ("recv", 3), ("send", 1), ("send", 3), ("setblocking", 3)]
)
def test_a_client_that_meets_a_shortage_is_answered_later(
    call: str, every: int, tmp_path: Path
) -> None:
    """It was dropped without an answer; to ask again at once would be to ask for ever."""
    with starved(call, errno.ENOMEM, every) as starving:
        served = Served(tmp_path)
        try:
            for _ in range(3):
                client = served.connect(b"5")
                made = starving.made
                for _ in range(20):
                    served.network.poll(0.001)
                assert starving.made == made
                starving.every = 0
                served.clock.now += REST_FOR
                served.network.poll(0)  # and nothing is ready before the next turn
                assert served.read_whole(client) == 5
                starving.every = every
        finally:
            starving.every = 0
            served.close()
