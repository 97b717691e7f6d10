"""`slirp listen` as a process: its messages, its socket, its end."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from slirp.sight.pcapng import read_packets
from tests.kit.guest import GATEWAY, GUEST, GUEST_MAC, OWN_MAC, arp

SAYS_FOR = 30.0  # seconds


class Process:
    """`slirp listen` and what it has said."""

    def __init__(self, *arguments: str, pass_fds: tuple[int, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "slirp", "listen", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=pass_fds,
        )
        self.said = ""

    def expect(self, text: str) -> None:
        assert self.process.stderr is not None
        fd = self.process.stderr.fileno()
        deadline = time.monotonic() + SAYS_FOR
        while text not in self.said:
            left = max(0.0, deadline - time.monotonic())
            data = os.read(fd, 65536) if select.select([fd], [], [], left)[0] else b""
            assert data, f"no {text!r} in {self.said!r}"
            self.said += data.decode()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=SAYS_FOR)
        self.said += rest.decode()
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def start() -> Iterator[type[Process]]:
    started: list[Process] = []

    class Started(Process):
        def __init__(self, *arguments: str, pass_fds: tuple[int, ...] = ()) -> None:
            super().__init__(*arguments, pass_fds=pass_fds)
            started.append(self)

    yield Started
    for process in started:
        process.close()


def ask(sock: socket.socket) -> bytes:
    """Send an ARP request for the gateway; the frame that answers it, whatever comes before."""
    request = arp(1, GUEST, GATEWAY)
    sock.settimeout(SAYS_FOR)
    if sock.type == socket.SOCK_DGRAM:
        sock.send(request)
        receive = partial(sock.recv, 70_000)
    else:
        sock.sendall(struct.pack("!I", len(request)) + request)
        receive = partial(read_framed, sock)
    while not is_answer(frame := receive()):
        pass
    return frame


def read_framed(sock: socket.socket) -> bytes:
    (length,) = struct.unpack("!I", sock.recv(4, socket.MSG_WAITALL))
    return sock.recv(length, socket.MSG_WAITALL)


def is_answer(frame: bytes) -> bool:
    assert frame, "the connection is closed"
    return frame[6:12] == OWN_MAC and frame[:6] == GUEST_MAC and frame[12:14] == b"\x08\x06"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_serves_until_it_is_told_to_stop(
    tmp_path: Path, start: type[Process], number: int
) -> None:
    path = tmp_path / "net"
    process = start(f"unix:{path}")
    process.expect("listening on")
    with socket.socket(socket.AF_UNIX) as machine:
        machine.connect(str(path))
        assert ask(machine)
    process.expect("closed its connection")
    assert process.end(number) == 0
    assert process.said.splitlines() == [
        f"slirp: listening on unix:{path}",
        f"slirp: machine 1 connected to unix:{path}",
        "slirp: machine 1 closed its connection",
    ]
    assert not path.exists()


def test_several_sockets_of_several_kinds(tmp_path: Path, start: type[Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ours, theirs = socket.socketpair()
    process = start(
        f"tcp:{port}", f"dgram:{tmp_path}/net", f"fd:{ours.fileno()}", pass_fds=(ours.fileno(),)
    )
    ours.close()
    process.expect("listening on")
    with socket.create_connection(("127.0.0.1", port)) as machine:
        assert ask(machine)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as machine:
        machine.bind(str(tmp_path / "qemu"))
        machine.connect(str(tmp_path / "net"))
        assert ask(machine)
    with theirs:
        assert ask(theirs)
    assert process.end() == 0


def test_it_ends_when_nobody_can_come_any_more(start: type[Process]) -> None:
    ours, theirs = socket.socketpair()
    process = start(f"fd:{ours.fileno()}", pass_fds=(ours.fileno(),))
    ours.close()
    with theirs:
        assert ask(theirs)
    assert process.process.wait(SAYS_FOR) == 0
    process.expect("machine 1 closed its connection")


def test_hostile_octets_end_one_connection(tmp_path: Path, start: type[Process]) -> None:
    process = start(f"unix:{tmp_path}/net")
    process.expect("listening on")
    with socket.socket(socket.AF_UNIX) as bad, socket.socket(socket.AF_UNIX) as good:
        for machine in (bad, good):
            machine.connect(f"{tmp_path}/net")
        bad.sendall(b"\xff" * 4)
        bad.settimeout(SAYS_FOR)
        assert bad.recv(1) == b""
        process.expect("sent a frame of 4294967295 bytes")
        assert ask(good)
    assert process.end() == 0


def test_capture_and_statistics(tmp_path: Path, start: type[Process]) -> None:
    capture = tmp_path / "all.pcapng"
    process = start("--stats", "--capture", str(capture), f"unix:{tmp_path}/net")
    process.expect("listening on")
    with socket.socket(socket.AF_UNIX) as machine:
        machine.connect(f"{tmp_path}/net")
        answer = ask(machine)
        assert process.end() == 0
    stats = json.loads(process.said.splitlines()[-1])
    assert stats["ports"]["machine 1"]["frames_in"] == 1
    with capture.open("rb") as file:
        frames = [p.data for p in read_packets(file)]
    assert frames[0] == arp(1, GUEST, GATEWAY)
    assert answer.startswith(frames[1])


def test_a_forward_that_cannot_be(tmp_path: Path, start: type[Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("--forward", f"tcp:{taken.getsockname()[1]}-80", f"unix:{tmp_path}/net")
        process.expect("\n")
    assert process.process.wait(SAYS_FOR) == 1
    assert "in use" in process.said
    assert not (tmp_path / "net").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("net",),
        ("--network", "10.0.2.0/99", "unix:{path}"),
        ("--mtu", "67", "unix:{path}"),
        ("--lease", "nonsense", "unix:{path}"),
        ("--lease", "52:54:00:00:00:0a=192.0.2.1", "unix:{path}"),
        ("--forward", "nonsense", "unix:{path}"),
        ("unix:{path}", "tcp:0.0.0.0:7000"),
        (),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, start: type[Process], arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "net"
    process = start(*(word.format(path=path) for word in arguments))
    out, said = process.process.communicate(timeout=SAYS_FOR)
    assert process.process.returncode == 2
    assert out == b""
    assert said.startswith(b"slirp: ")
    assert said.count(b"\n") == 1
    assert not path.exists()
