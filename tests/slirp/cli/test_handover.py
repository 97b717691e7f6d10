"""`slirp ctl SOCKET handover`: another process goes on, and nobody's connection notices."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scapy.layers.dns import DNS, DNSQR

from slirp.control import heritage
from slirp.control.client import Connection
from tests.kit.control import ask as slirp4netns
from tests.kit.family import TIED, end
from tests.kit.guest import GATEWAY, GUEST, arp, icmp, udp
from tests.kit.namespace import PATIENCE, ROOT, SLIRP, as_user, holder, run
from tests.kit.need import need_root, need_tool, need_tun
from tests.kit.ports import free_port
from tests.kit.remote import Remote
from tests.slirp.cli.test_ctl import asked, ctl
from tests.slirp.cli.test_restore import attached

PIECE = os.urandom(1 << 20)
PIECES = 60  # MiB in all, given slowly, so that the handover is in the middle


def handed_over(path: str) -> dict[str, Any]:
    result = ctl(path, "handover", "--json")
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def ended(pid: int) -> None:
    """End a successor, which is nobody's child, and wait until it is gone."""
    with going(pid):
        os.kill(pid, signal.SIGTERM)


@pytest.mark.parametrize("upload", [False, True])
def test_transfer_in_progress_ends_with_its_digest_right(tmp_path: Path, upload: bool) -> None:
    need_tun()
    nc, control, port = need_tool("nc"), str(tmp_path / "c.sock"), free_port()
    whole = hashlib.sha256()
    with holder() as held, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        there = str(listener.getsockname()[1])
        with attached(held, "--control", control, "--forward", f"{port}:80") as old:
            client = subprocess.Popen(
                [*held.entering(), nc, "-N", "10.0.2.2", there],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            assert client.stdin is not None
            assert client.stdout is not None
            peer, _ = listener.accept()
            peer.settimeout(PATIENCE)
            reports = []
            successors: list[int] = []
            with peer:
                got = hashlib.sha256()
                for number in range(PIECES):
                    whole.update(PIECE)
                    if upload:
                        client.stdin.write(PIECE)
                        client.stdin.flush()
                        got.update(received(peer, len(PIECE)))
                    else:
                        peer.sendall(PIECE)
                        got.update(client.stdout.read(len(PIECE)))
                    if number in (20, 40):  # twice: a successor has one of its own
                        reports.append(handed_over(control))
                        successors.append(reports[-1]["pid"])
                assert got.digest() == whole.digest()
                assert old.wait(PATIENCE) == 0
                assert [(r["tcp"], r["forwards"]) for r in reports] == [(1, 1), (1, 1)]
                (flow,) = asked(control, "flows")
                assert flow["octets_to_host" if upload else "octets_to_guest"] == PIECES << 20
                assert asked(control, "status")["pid"] == successors[1]
                assert asked(control, "forwards", "list")[0]["host"] == f"127.0.0.1:{port}"
            client.stdin.close()
            client.stdout.close()
            assert client.wait(PATIENCE) == 0
            ended(successors[1])


def received(peer: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = peer.recv(size - len(data))
        assert part
        data += part
    return bytes(data)


def test_bytes_that_flow_while_it_happens(tmp_path: Path) -> None:
    """curl downloads from a server that does not care: the handover is between any two segments."""
    need_tun()
    curl, control = need_tool("curl"), str(tmp_path / "c.sock")
    big = tmp_path / "big"
    with big.open("wb") as file:
        for _ in range(PIECES * 7):
            file.write(PIECE)
    web = subprocess.Popen(
        [*TIED, "python3", "-u", "-m", "http.server", "0", "-b", "127.0.0.1", "-d", str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert web.stdout is not None
    port = web.stdout.readline().split()[5]
    with holder() as held, attached(held, "--control", control) as old:
        out = tmp_path / "out"
        client = subprocess.Popen(
            [
                *held.entering(),
                curl,
                "-sf",
                "--limit-rate",
                "80M",
                "-o",
                str(out),
                f"http://10.0.2.2:{port}/big",
            ]
        )
        while not out.exists() or out.stat().st_size < 50 << 20:
            assert client.poll() is None
        report = handed_over(control)
        assert client.poll() is None, "it was too quick to be in the middle"
        assert report["tcp"] == 1
        assert client.wait(PATIENCE) == 0
        assert old.wait(PATIENCE) == 0
        with big.open("rb") as sent, out.open("rb") as got:
            assert hashlib.file_digest(sent, "sha256").digest() == (
                hashlib.file_digest(got, "sha256").digest()
            )
        ended(report["pid"])
    web.terminate()
    web.wait()
    web.stdout.close()


def test_command_goes_on_and_its_status_comes_back(tmp_path: Path) -> None:
    need_tun()
    nc, control = need_tool("nc"), str(tmp_path / "c.sock")
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        port = str(listener.getsockname()[1])
        process = subprocess.Popen(
            [*TIED, *as_user(), *SLIRP, "run", "--control", control, "--", "sh", "-c",
             f"{nc} -N 10.0.2.2 {port} </dev/null; exit 7"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            peer, _ = listener.accept()
            report = handed_over(control)
            assert (report["tcp"], process.poll()) == (1, None)
            successor = stack.enter_context(pidfd(report["pid"]))
            peer.sendall(b"after")
            peer.close()
            assert process.stdout.read() == b"after"
            assert process.wait(PATIENCE) == 7
            assert select.select([successor], [], [], PATIENCE)[0], "it follows the namespace"
            assert not os.path.exists(control)
        finally:
            end(process)
            if process.stdout is not None:
                process.stdout.close()


@contextmanager
def command_of_run(control: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`slirp run` with these options and this command."""
    process = subprocess.Popen(
        [*TIED, *as_user(), *SLIRP, "run", "--control", control, *words],
        cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        while not os.path.exists(control):
            assert process.poll() is None
        yield process
    finally:
        end(process)


def test_slirp4netns_socket_goes_on_too(tmp_path: Path) -> None:
    need_tun()
    control, api = str(tmp_path / "c.sock"), tmp_path / "api.sock"
    with holder() as held, attached(held, "--control", control, "--api-socket", str(api)) as old:
        for _ in range(2):
            pid = handed_over(control)["pid"]
            answer = json.loads(slirp4netns(api, b'{"execute": "list_hostfwd"}'))
            assert answer["return"] == {"entries": []}
        assert old.wait(PATIENCE) == 0
        assert json.loads(slirp4netns(api, b'{"execute": "list_hostfwd"}')) == answer
        ended(pid)
        assert not api.exists()


def test_stop_and_signals_reach_the_command(tmp_path: Path) -> None:
    need_tun()
    for how in ("stop", "signal"):
        control = str(tmp_path / f"{how}.sock")
        with command_of_run(control, "--", "sleep", "1000") as process:
            with going(handed_over(control)["pid"]):
                if how == "stop":
                    assert ctl(control, "stop").returncode == 0
                else:
                    process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_automatic_forwards_go_on(tmp_path: Path) -> None:
    need_tun()
    nc, control, port = need_tool("nc"), str(tmp_path / "c.sock"), free_port()

    def listed() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = asked(control, "forwards", "list")
        return found

    command = ["sh", "-c", f"{nc} -l {port} >/dev/null; cat"]
    with command_of_run(control, "--forward", f"auto:{port}", "--", *command):
        while not listed():
            pass
        pid = handed_over(control)["pid"]
        assert [(at["host"], at["automatic"]) for at in listed()] == [(f"127.0.0.1:{port}", True)]
        assert [found["pid"] for found in networks(control)] == [pid], "and not who waits"
        socket.create_connection(("127.0.0.1", port)).close()
        while listed():
            pass  # the program has ended, and with it its forward


@pytest.mark.parametrize("how", ["dies", "nonsense"])
def test_successor_that_fails_leaves_the_network_as_it_was(tmp_path: Path, how: str) -> None:
    need_tun()
    control = str(tmp_path / "c.sock")
    with holder() as held, attached(held, "--control", control) as old:
        with Connection(control) as connection:
            answer = connection.ask_alone("handover")
            if how == "nonsense":
                _, fds = heritage.take(connection.sock, answer["fds"], answer["bytes"])
                for fd in fds:
                    os.close(fd)
                connection.sock.sendall(b"nonsense")
        assert asked(control, "status")["pid"] == old.pid
        ping = held.run_in(need_tool("ping"), "-c1", "-W5", "10.0.2.2")
        assert ping.returncode == 0


# --- networks of machines -------------------------------------------------------------------------

DOWNLOAD = os.urandom(1 << 20) * 6  # bytes: more than the sockets on the way hold


IMPOSTOR = """\
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.setuid(65534)
listener.listen()
print(flush=True)
idle, _ = listener.accept()  # the command's own; its successor asks
client, _ = listener.accept()
heard = client.recv(1000)
heard and client.sendall(b'{"result": {"fds": 0, "bytes": 2}}\\n{}')
sys.exit(bool(heard))
"""


def test_network_of_another_user_is_not_gone_on_with(tmp_path: Path) -> None:
    """What it says are files to serve, paths to remove and processes to end: with whose rights?"""
    need_root()
    path = str(tmp_path / "c.sock")
    command = [sys.executable, "-c", IMPOSTOR, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as impostor:
        assert impostor.stdout is not None
        impostor.stdout.readline()
        result = ctl(path, "handover")
        assert result.returncode == 1
        assert "user 65534" in result.stderr
        assert impostor.wait(PATIENCE) == 0, "it was asked for nothing"


class Place(NamedTuple):
    """A socket of `slirp listen`, and how a machine comes to it."""

    option: str
    connect: Callable[[], socket.socket]


def place(kind: str, folder: Path) -> Place:
    net, ours, theirs = str(folder / "net"), free_port(), free_port()

    def unix() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(net)
        return sock

    def dgram() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(folder / "machine"))
        sock.connect(net)
        return sock

    def udp() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", theirs))
        sock.connect(("127.0.0.1", ours))
        return sock

    return {
        "unix": Place(f"unix:{net}", unix),
        "tcp": Place(f"tcp:{ours}", lambda: socket.create_connection(("127.0.0.1", ours))),
        "dgram": Place(f"dgram:{net}", dgram),
        "udp": Place(f"udp:{ours},{theirs}", udp),
    }[kind]


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`slirp listen` with these sockets; its successors end with the block."""
    path = str(folder / "control.sock")
    process = subprocess.Popen(
        [*TIED, *SLIRP, "listen", "--control", path, *options],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        assert "listening" in process.stderr.readline()
        yield path, process
    finally:
        if os.path.exists(path):
            ctl(path, "stop")
        end(process)
        process.stderr.close()


@contextmanager
def sending(data: bytes) -> Iterator[int]:
    """A server that gives everybody this and closes; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)

        def give() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as peer:
                peer.sendall(data)

        thread = threading.Thread(target=give)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("kind", ["unix", "tcp", "dgram", "udp"])
def test_download_of_a_machine_ends_with_its_digest_right(tmp_path: Path, kind: str) -> None:
    """Twice handed over: while nobody reads, with half a frame on its way in."""
    where, forwarded = place(kind, tmp_path), free_port()
    with (
        serving(tmp_path, "--forward", f"{forwarded}:80", where.option) as (path, process),
        sending(DOWNLOAD) as port,
        where.connect() as sock,
    ):
        machine = Remote(sock)
        machine.guest.give(arp(1, GUEST, GATEWAY))
        stream = machine.guest.connect((GATEWAY, port), options=b"\x02\x04\x05\xb4\x01\x03\x03\x00")
        got = bytearray()
        pids: list[int] = []
        for most in (len(DOWNLOAD) // 3, 2 * len(DOWNLOAD) // 3):
            got += stream.receive(most - len(got))
            request = machine.port.framed(icmp(8, 0, 1 << 16 | len(pids), b"half", GATEWAY))
            cut = len(request) // 2 if sock.type == socket.SOCK_STREAM else len(request)
            sock.sendall(request[:cut])
            report = handed_over(path)
            assert (report["tcp"], report["guests"], report["forwards"]) == (1, 1, 1)
            pids.append(report["pid"])
            if request[cut:]:
                sock.sendall(request[cut:])
            machine.turn(lambda: any(i.type == 0 for i in machine.guest.icmps()))
        got += stream.receive(len(DOWNLOAD) - len(got))
        assert hashlib.sha256(got).digest() == hashlib.sha256(DOWNLOAD).digest()
        assert process.wait(PATIENCE) == 0
        status = asked(path, "status")
        ports = 2 if kind == "dgram" else 1  # who has connected has one; another waits for the next
        assert (status["pid"], status["ports"]) == (pids[1], ports)
        assert status["name"].startswith("slirp listen")
        assert [found["pid"] for found in networks(path)] == [pids[1]]
        comes_by_forward(machine, forwarded)
        if kind == "unix":  # others come, and are others
            with where.connect() as second:
                other = Remote(second, "10.0.2.16", bytes.fromhex("525400123457"))
                greet(other)
            assert Path(where.option.partition(":")[2]).exists()
        with going(pids[1]):
            assert ctl(path, "stop").returncode == 0
        assert kind not in ("unix", "dgram") or not (tmp_path / "net").exists()


def greet(machine: Remote) -> None:
    """Ask for the gateway, and hear it."""
    guest = machine.guest
    guest.give(arp(1, guest.addr, GATEWAY, sender_mac=guest.mac))
    machine.turn(lambda: bool(guest.inbox))


def networks(path: str) -> list[dict[str, Any]]:
    """What `slirp ps` finds with this control socket."""
    result = run(*SLIRP, "ps", "--json")
    return [found for found in json.loads(result.stdout) if found["control"] == path]


def comes_by_forward(machine: Remote, port: int) -> None:
    streams = machine.guest.listen(80)
    with socket.create_connection(("127.0.0.1", port)) as peer:
        machine.turn(lambda: bool(streams))
        peer.sendall(b"in")
        assert streams[0].receive(2) == b"in"


@contextmanager
def pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def going(pid: int) -> Iterator[None]:
    """What is done in the block ends this process, which is nobody's child."""
    with pidfd(pid) as fd:
        yield
        assert select.select([fd], [], [], PATIENCE)[0]


def test_machines_that_joined_a_datagram_socket(tmp_path: Path) -> None:
    """Each has a socket to itself; the path has another one for the next, here as there."""
    net = str(tmp_path / "net")

    def join(number: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(tmp_path / f"machine{number}"))
        sock.connect(net)
        return sock

    with serving(tmp_path, f"dgram:{net}") as (path, _), join(1) as first:
        one = Remote(first)
        greet(one)
        for number in (2, 3):
            report = handed_over(path)
            one.guest.inbox.clear()
            greet(one)
            with join(number) as sock:
                other = Remote(sock, f"10.0.2.{20 + number}", bytes((2, 0, 0, 0, 0, number)))
                greet(other)
                ports = {guest["address"]: guest["port"] for guest in asked(path, "guests")}
                assert ports[GUEST] == "machine 1"
                assert ports[other.guest.addr] == f"machine {number}"
        with going(report["pid"]):
            assert ctl(path, "stop").returncode == 0
        assert not os.path.exists(net)


def test_two_machines_keep_their_places(tmp_path: Path) -> None:
    where = place("unix", tmp_path)
    with (
        serving(tmp_path, where.option) as (path, _),
        where.connect() as first,
        where.connect() as second,
    ):
        one, two = Remote(first), Remote(second, "10.0.2.16", bytes.fromhex("525400123457"))
        for machine in (one, two):
            greet(machine)
        report = handed_over(path)
        ports = {guest["address"]: guest["port"] for guest in asked(path, "guests")}
        assert ports == {"10.0.2.15": "machine 1", "10.0.2.16": "machine 2"}
        two.guest.inbox.clear()
        two.guest.answers_arp = False
        one.guest.give(arp(1, "10.0.2.15", "10.0.2.16"))  # by the switch
        two.turn(lambda: arp(1, "10.0.2.15", "10.0.2.16") in [f[:42] for f in two.guest.inbox])
        with where.connect():
            second.close()
            while len(asked(path, "guests")) > 1:
                pass
        assert asked(path, "status")["pid"] == report["pid"]


def test_metrics_and_names_go_along(tmp_path: Path) -> None:
    where, port = place("unix", tmp_path), free_port()
    with (
        serving(
            tmp_path, "--metrics", str(port), "--dns-record", f"web.test={GATEWAY}", where.option
        ) as (path, old),
        where.connect() as sock,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        machine = Remote(sock)
        query = bytes(DNS(id=7, rd=1, qd=[DNSQR(qname="web.test")]))
        machine.guest.give(udp(query, "10.0.2.3", 53))
        machine.turn(lambda: bool(machine.guest.datagrams()))
        for is_last in (False, False, True):  # which is number 3
            stream = machine.guest.connect((GATEWAY, listener.getsockname()[1]))
            if not is_last:
                stream.reset()
        machine.guest.give(udp(b"x", GATEWAY, listener.getsockname()[1]))
        before = {flow["id"]: flow["age"] for flow in asked(path, "flows")}
        assert "t3" in before
        for _ in range(2):
            handed_over(path)
            flows = {flow["id"]: flow for flow in asked(path, "flows")}
            assert flows.keys() == before.keys(), "they are called as they were"
            assert all(flows[name]["age"] > age for name, age in before.items())
            (flow,) = (flow for flow in flows.values() if flow["proto"] == "tcp")
            assert flow["remote_name"] == "web.test"
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                assert b"slirp_tcp_flows 1" in answer.read()
        assert old.wait(PATIENCE) == 0


def test_successor_of_machines_that_fails_leaves_them_as_they_were(tmp_path: Path) -> None:
    where = place("unix", tmp_path)
    with (
        serving(tmp_path, where.option) as (path, process),
        sending(DOWNLOAD) as port,
        where.connect() as sock,
    ):
        machine = Remote(sock)
        stream = machine.guest.connect((GATEWAY, port), options=b"\x02\x04\x05\xb4\x01\x03\x03\x00")
        got = stream.receive(len(DOWNLOAD) // 3)
        for how in ("dies", "nonsense"):
            with Connection(path) as connection:
                answer = connection.ask_alone("handover")
                if how == "nonsense":
                    _, fds = heritage.take(connection.sock, answer["fds"], answer["bytes"])
                    for fd in fds:
                        os.close(fd)
                    connection.sock.sendall(b"nonsense")
        got += stream.receive(len(DOWNLOAD) - len(got))
        assert got == DOWNLOAD
        assert asked(path, "status")["pid"] == process.pid
        assert Path(where.option.partition(":")[2]).exists()
