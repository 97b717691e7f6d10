"""A network under machines that run goes on in another process, in the middle of their downloads.

Debian's kernel fetches from a server of ours; by and by the network is handed over while bytes
flow, and what the guest has in the end has the right digest. Over a stream, vhost-user (split and
packed rings) and vfio-user, and where `slirp qemu` has QEMU as its child.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.kit.namespace import PATIENCE, ROOT, SLIRP
from tests.kit.pcnet_machine import booting, card
from tests.kit.pcnet_machine import machine as pcnet_machine
from tests.kit.qemu import BOOT_FOR, GENERIC, Machine, command_line, need_kernel
from tests.qemu.test_machines import listening
from tests.slirp.cli.test_ctl import asked, ctl
from tests.slirp.cli.test_handover import going, handed_over

pytestmark = pytest.mark.xdist_group("qemu")

CONTENT = random.Random(5).randbytes(1 << 20) * 16
PIECE = 1 << 18  # bytes
TIMES = (8, 26, 44)  # pieces that were sent when it is handed over
AHEAD = 12  # pieces that are sent meanwhile, and then no more


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    need_kernel()


class Server:
    """Sends CONTENT over HTTP to whoever comes. `reached` tells how far it is, and AHEAD pieces
    later it waits for `done`: so there is no end before all is handed over."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.reached = {count: threading.Event() for count in TIMES}
        self.done = {count + AHEAD: threading.Event() for count in TIMES}
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                with peer:
                    self._answer(peer)

    def _answer(self, peer: socket.socket) -> None:
        peer.recv(65536)
        head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(CONTENT)}\r\n\r\n"
        peer.sendall(head.encode())
        for count, at in enumerate(range(0, len(CONTENT), PIECE)):
            peer.sendall(CONTENT[at : at + PIECE])
            if count in self.reached:
                self.reached[count].set()
            if count in self.done:
                self.done[count].wait(PATIENCE)

    def close(self) -> None:
        for event in self.done.values():
            event.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


DIGEST = hashlib.sha256(CONTENT).hexdigest()


def script(port: int) -> str:
    return f"""
wget -q -O- http://10.0.2.2:{port}/ | sha256sum
ping -c 2 -W 5 10.0.2.2 | grep received
"""


def hand_over_at(server: Server, path: str) -> list[dict[str, Any]]:
    """While the first download goes on."""
    reports = []
    for reached, done in zip(server.reached.values(), server.done.values(), strict=True):
        assert reached.wait(BOOT_FOR)
        reports.append(handed_over(path))
        assert reports[-1]["tcp"] == 1
        done.set()
    return reports


def check(output: str) -> None:
    assert DIGEST in output, output
    assert "2 packets received" in output


def over(
    folder: Path, server: Server, options: Sequence[str], start: Callable[[], Any]
) -> list[dict[str, Any]]:
    """A machine of `slirp listen`, whose network changes hands."""
    path = str(folder / "c.sock")
    with listening("--control", path, *options) as first:
        with start() as running:
            reports = hand_over_at(server, path)
            output = running.finish()
            assert first.process.wait(PATIENCE) == 0
        check(output)
        (pid,) = {asked(path, "status")["pid"]} - {first.process.pid}
        assert pid == reports[-1]["pid"]
        with going(pid):
            ctl(path, "stop")
        assert first.end() == 0  # it has ended long ago; what is read is what successors said
    return reports


def test_a_machine_over_stream(tmp_path: Path, server: Server) -> None:
    net = tmp_path / "net"
    netdev = f"stream,id=n0,addr.type=unix,addr.path={net}"
    over(
        tmp_path,
        server,
        [f"unix:{net}"],
        lambda: Machine(tmp_path / "m", script(server.port), netdev),
    )
    assert not net.exists()


@pytest.mark.parametrize("device", ["", "packed=on"])
def test_a_machine_over_vhost_user(tmp_path: Path, server: Server, device: str) -> None:
    net = tmp_path / "net"
    netdev = f"vhost-user,path={net}"
    qemu = "testing"
    over(
        tmp_path,
        server,
        ["--vhost-user", str(net)],
        lambda: Machine(tmp_path / "m", script(server.port), netdev, qemu=qemu, device=device),
    )


def test_a_machine_with_a_card_of_ours(tmp_path: Path, server: Server) -> None:
    need_kernel(GENERIC)
    path = tmp_path / "card"
    over(
        tmp_path,
        server,
        ["--vfio-user", str(path)],
        lambda: pcnet_machine(tmp_path, *card(path), *booting(tmp_path, script(server.port))),
    )


@pytest.mark.parametrize("how", ["stream", "vhost-user"])
def test_qemu_stays_the_old_process_child(tmp_path: Path, server: Server, how: str) -> None:
    path, folder = str(tmp_path / "c.sock"), tmp_path / "m"
    folder.mkdir()
    line = command_line(folder, script(server.port))
    option = ["--vhost-user"] if how == "vhost-user" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "slirp", "qemu", "--control", path, *option, "--", *line],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        reports = hand_over_at(server, path)
        with going(reports[-1]["pid"]):  # the network ends with QEMU
            output = process.stdout.read().decode(errors="replace")
        assert process.wait(PATIENCE) == 0
        check(output)
        assert not os.path.exists(path)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_signals_and_stop_reach_qemu_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    line = command_line(folder, "echo up; sleep 600")
    for how in ("signal", "stop"):
        path = str(tmp_path / f"{how}.sock")
        process = subprocess.Popen(
            [*SLIRP, "qemu", "--control", path, "--", *line],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            while b"up" not in process.stdout.readline():
                assert process.poll() is None
            report = handed_over(path)
            with going(report["pid"]):
                if how == "signal":
                    process.send_signal(signal.SIGTERM)
                else:
                    assert ctl(path, "stop").returncode == 0
                assert select.select([process.stdout], [], [], PATIENCE)
                process.stdout.read()
            assert process.wait(PATIENCE) in (0, 128 + signal.SIGTERM)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
