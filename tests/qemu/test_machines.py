"""Machines that nobody here wrote, on a network that they get from the command line.

Each test boots Debian's kernel under QEMU (tests/kit/qemu.py): the installed one, and where it says
so the newest, from Debian testing. The guest's own programs judge:
udhcpc, ping, wget, sha256sum; from outside it is Python's sockets.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import select
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from slirp.sight.pcapng import read_packets
from tests.kit.need import need_tool
from tests.kit.ports import free_port
from tests.kit.qemu import MEMORY, Machine, command_line, need_kernel
from tests.kit.web import WebServer

pytestmark = pytest.mark.xdist_group("qemu")  # one machine's emulation fills a core

CONTENT = random.Random(7).randbytes(3_000_000)
MTU_1500, MTU_9000 = 1500, 9000
QEMUS = ("installed", "testing")


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    need_kernel()


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer(CONTENT) as server:
        yield server


class Listening:
    """`slirp listen`, as a process."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "slirp", "listen", *arguments], stderr=subprocess.PIPE
        )
        assert self.process.stderr is not None
        self._fd = self.process.stderr.fileno()
        self.said = ""

    def expect(self, text: str) -> None:
        until = time.monotonic() + 30
        while text not in self.said:
            ready = select.select([self._fd], [], [], max(0.0, until - time.monotonic()))[0]
            data = os.read(self._fd, 65536) if ready else b""
            assert data, f"no {text!r} in: {self.said}"
            self.said += data.decode()

    def end(self) -> int:
        self.process.terminate()
        rest = self.process.communicate(timeout=30)[1]
        self.said += rest.decode()
        return self.process.returncode


@contextlib.contextmanager
def listening(*arguments: str) -> Iterator[Listening]:
    server = Listening(*arguments)
    try:
        server.expect("listening on")
        yield server
    finally:
        if server.process.returncode is None:
            server.process.kill()
            rest = server.process.communicate()[1].decode()
            sys.stderr.write(server.said + rest)  # shown where the test has failed


def fetch(port: int) -> bytes:
    """What the guest's web server has, as soon as there is one."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/data", timeout=30) as answer:
        data: bytes = answer.read()
        return data


def script_for(port: int) -> str:
    """Ping, fetch, send, and serve until the host has fetched."""
    return f"""
ping -c 2 -W 5 10.0.2.2 | grep received
wget -q -O /www/data http://10.0.2.2:{port}/; sha256sum /www/data
base64 /www/data > /tmp/text; wget -q -O- --post-file=/tmp/text http://10.0.2.2:{port}/ && echo sent
httpd -p 80 -h /www -c /dev/null
echo serving
wget -q -O- http://10.0.2.2:{port}/wait > /dev/null
"""


def check_everything(machine: Machine, web: WebServer, forwarded: int) -> str:
    machine.expect("serving")
    assert hashlib.sha256(fetch(forwarded)).hexdigest() == web.digest
    web.release()
    output = machine.finish()
    assert "lease 10.0.2.15" in output
    assert "2 packets received" in output
    assert web.digest in output
    assert "sent\n" in output
    assert [base64.b64decode(text) == CONTENT for text in web.posted] == [True]
    return output


@pytest.mark.parametrize(
    ("mtu", "qemu"), [(MTU_1500, "installed"), (MTU_9000, "installed"), (MTU_9000, "testing")]
)
def test_a_machine_over_stream(tmp_path: Path, web: WebServer, mtu: int, qemu: str) -> None:
    path, capture, port = tmp_path / "net", tmp_path / "all.pcapng", free_port()
    options = ("--forward", f"tcp:{port}-80", "--capture", str(capture), "--mtu", str(mtu))
    with listening(*options, f"unix:{path}") as server:
        netdev = f"stream,id=n0,addr.type=unix,addr.path={path}"
        with Machine(tmp_path / "m", script_for(web.port), netdev, qemu=qemu) as machine:
            output = check_everything(machine, web, port)
        assert f"lease 10.0.2.15 mtu {mtu}" in output
        server.expect("machine 1 closed its connection")
        assert server.end() == 0
    assert f"machine 1 connected to unix:{path}" in server.said
    assert not path.exists()
    with capture.open("rb") as file:
        lengths = [len(p.data) for p in read_packets(file) if p.interface.name == "ethernet"]
    assert max(lengths) == mtu + 14


@pytest.mark.parametrize("qemu", QEMUS)
def test_a_machine_over_dgram(tmp_path: Path, web: WebServer, qemu: str) -> None:
    path, port = tmp_path / "net", free_port()
    with listening("--forward", f"tcp:{port}-80", f"dgram:{path}") as server:
        netdev = (
            f"dgram,id=n0,local.type=unix,local.path={tmp_path}/qemu,"
            f"remote.type=unix,remote.path={path}"
        )
        with Machine(tmp_path / "m", script_for(web.port), netdev, qemu=qemu) as machine:
            check_everything(machine, web, port)
        assert server.end() == 0
    assert "a machine is there" in server.said
    assert not path.exists()


def test_a_machine_over_udp(tmp_path: Path, web: WebServer) -> None:
    ours, theirs, port = free_port(), free_port(), free_port()
    with listening("--forward", f"tcp:{port}-80", f"udp:{ours},{theirs}"):
        netdev = (
            f"dgram,id=n0,local.type=inet,local.host=127.0.0.1,local.port={theirs},"
            f"remote.type=inet,remote.host=127.0.0.1,remote.port={ours}"
        )
        with Machine(tmp_path / "m", script_for(web.port), netdev) as machine:
            check_everything(machine, web, port)


A, B = "52:54:00:00:00:0a", "52:54:00:00:00:0b"


def two_machines(tmp_path: Path, web: WebServer, *options: str) -> tuple[str, str]:
    """One fetches from the host and serves it, the other fetches it from there."""
    path = tmp_path / "net"
    netdev = f"stream,id=n0,addr.type=unix,addr.path={path}"
    leases = ("--lease", f"{A}=10.0.2.20", "--lease", f"{B}=10.0.2.21")
    first = f"wget -q -O /www/data http://10.0.2.2:{web.port}/; httpd -p 80 -h /www; echo serving; "
    second = """
ping -c 2 -W 2 10.0.2.20 | grep received
timeout 5 wget -q -O- http://10.0.2.20/data | sha256sum
ping -c 2 -W 2 10.0.2.2 | grep received
"""
    with listening(*leases, *options, f"unix:{path}") as server:
        with Machine(tmp_path / "a", first + "sleep 600", netdev, mac=A) as a:
            served = a.expect("serving")
            with Machine(tmp_path / "b", second, netdev, mac=B) as b:
                fetched = b.finish()
        server.expect("machine 2 connected")
        assert server.end() == 0
    return served, fetched


def test_two_machines_reach_each_other(tmp_path: Path, web: WebServer) -> None:
    served, fetched = two_machines(tmp_path, web)
    assert "lease 10.0.2.20" in served
    assert "lease 10.0.2.21" in fetched
    assert fetched.count("2 packets received") == 2
    assert web.digest in fetched


def test_isolated_machines_reach_only_the_network(tmp_path: Path, web: WebServer) -> None:
    _, fetched = two_machines(tmp_path, web, "--isolate")
    assert "2 packets transmitted, 0 packets received" in fetched
    assert "2 packets transmitted, 2 packets received" in fetched
    assert web.digest not in fetched


def test_a_machine_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "net"
    netdev = f"stream,id=n0,addr.type=unix,addr.path={path}"
    with listening(f"unix:{path}") as server:
        for attempt in ("a", "b"):
            with Machine(tmp_path / attempt, "ping -c 1 10.0.2.2 | grep received", netdev) as one:
                output = one.finish()
            assert "lease 10.0.2.15" in output
            assert "1 packets received" in output
        server.expect("machine 2 closed its connection")


@pytest.mark.parametrize("way", ["unix", "dgram"])
def test_a_newer_qemu_connects_again_by_itself(tmp_path: Path, way: str) -> None:
    """docs/qemu.md: `reconnect-ms`, from QEMU 9.2 on; datagrams need nothing."""
    path = tmp_path / "net"
    netdev = f"stream,id=n0,addr.type=unix,addr.path={path},reconnect-ms=100"
    if way == "dgram":
        netdev = (
            f"dgram,id=n0,local.type=unix,local.path={tmp_path}/qemu,"
            f"remote.type=unix,remote.path={path}"
        )
    script = """
ping -c 1 -W 5 10.0.2.2 > /dev/null && echo there
while ping -c 1 -W 1 10.0.2.2 > /dev/null; do :; done; echo gone
until ping -c 1 -W 1 10.0.2.2 > /dev/null; do :; done; echo there again
"""
    with ExitStack() as stack:
        first = stack.enter_context(listening(f"{way}:{path}"))
        machine = stack.enter_context(Machine(tmp_path / "m", script, netdev, qemu="testing"))
        machine.expect("there\n")
        assert first.end() == 0
        machine.expect("gone\n")
        stack.enter_context(listening(f"{way}:{path}"))
        assert "there again" in machine.finish()


def slirp_qemu(
    *line: str, options: tuple[str, ...] = (), folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`folder`: where paths are that QEMU is to see."""
    environment = dict(os.environ) if folder is None else {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "slirp", "qemu", "--stats", *options, "--", *line],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False,
        env=environment,
    )  # fmt: skip


def machine_line(folder: Path, script: str, qemu: str) -> list[str]:
    """A machine's command line that begins with a QEMU, be it in another root."""
    (folder / "m").mkdir()
    line = command_line(folder / "m", script, qemu=qemu)
    inside = line.index("-accel")
    program = folder / "qemu-system-x86_64"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(line[:inside])} "$@"\n')
    program.chmod(0o755)
    return [str(program), *line[inside:]]


FASTEST = "joined by -netdev vhost-user: the fastest"
JOINED = [
    *((qemu, (), (), FASTEST) for qemu in QEMUS),
    ("testing", ("--vhost-user",), (), "joined by -netdev vhost-user: as asked"),
    ("testing", ("--netdev", "stream"), (), "joined by -netdev stream: as asked"),
    ("installed", ("--netdev", "dgram"), (), "joined by -netdev dgram: as asked"),
    *((qemu, ("--netdev", "socket"), (), "joined by -netdev socket: as asked") for qemu in QEMUS),
    ("testing", ("--device", "e1000"), (), "stream: e1000 is no virtio-net device"),
    ("testing", (), ("-device", "virtio-net-pci,netdev=slirp0"), FASTEST),
    ("installed", (), ("-device", "virtio-net-pci,netdev=slirp0"),
     "stream: QEMU 7.2 without KVM takes a virtio-net-pci with vectors=0 for it"),
    ("installed", (), ("-object", f"memory-backend-memfd,id=ram,size={MEMORY}M", "-machine",
                       "q35,memory-backend=ram"), FASTEST),
    ("testing", (), ("-object", f"memory-backend-ram,id=ram,size={MEMORY}M", "-machine",
                     "memory-backend=ram"), "stream: the memory of memory-backend-ram"),
]  # fmt: skip


@pytest.mark.parametrize(("qemu", "options", "more", "said"), JOINED)
def test_slirp_qemu(
    tmp_path: Path,
    web: WebServer,
    qemu: str,
    options: tuple[str, ...],
    more: tuple[str, ...],
    said: str,
) -> None:
    if "e1000" in options:
        script = "echo machine up"  # Debian's kernel for clouds has no driver
    else:
        script = f"wget -q -O- http://10.0.2.2:{web.port}/ | sha256sum"
    line = machine_line(tmp_path, script, qemu)
    done = slirp_qemu(*line, *more, options=options, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told, _, rest = done.stderr.partition("\n")
    assert said in told
    if "e1000" in options:
        assert "machine up" in done.stdout
    else:
        assert web.digest in done.stdout
        assert json.loads(rest[rest.index("{") :])["dhcp"]["ack"] == 1
    assert sorted(os.listdir(tmp_path)) == ["m", "qemu-system-x86_64"]


def test_slirp_qemu_passes_the_exit_status_on() -> None:
    done = slirp_qemu(need_tool("qemu-system-x86_64"), "-no-such-option")
    assert done.returncode == 1
    assert "-no-such-option: invalid option" in done.stderr


def test_the_host_sees_signals_reach_qemu(tmp_path: Path) -> None:
    need_tool("qemu-system-x86_64")
    (tmp_path / "m").mkdir()
    line = command_line(tmp_path / "m", "echo up; sleep 600")
    process = subprocess.Popen(
        [sys.executable, "-m", "slirp", "qemu", "--", *line],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        output = b""
        while b"up" not in output:
            assert select.select([process.stdout], [], [], 90)[0]
            data = os.read(process.stdout.fileno(), 65536)
            assert data, output
            output += data
        process.terminate()
        rest = process.communicate(timeout=30)[0]
    finally:
        process.kill()
    assert process.returncode == 0  # QEMU shuts its machine down when it is told to end
    assert b"terminating on signal 15" in rest
