"""`slirp ctl SOCKET handover`: another process goes on, and nobody's connection notices."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from slirp.control import heritage
from slirp.control.client import Connection
from tests.kit.family import TIED, end
from tests.kit.namespace import PATIENCE, ROOT, SLIRP, as_user, holder, run
from tests.kit.need import need_tool, need_tun
from tests.kit.ports import free_port
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
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        import select

        assert select.select([fd], [], [], PATIENCE)[0]
    finally:
        os.close(fd)


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
    with socket.create_server(("127.0.0.1", 0)) as listener:
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
            peer.sendall(b"after")
            peer.close()
            assert process.stdout.read() == b"after"
            assert process.wait(PATIENCE) == 7
            gone_at = time.monotonic() + PATIENCE
            while os.path.exists(f"/proc/{report['pid']}/ns") and time.monotonic() < gone_at:
                pass  # it follows the command's namespace
            assert not os.path.exists(control)
        finally:
            end(process)
            if process.stdout is not None:
                process.stdout.close()


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


def test_network_of_machines_says_that_it_cannot(tmp_path: Path) -> None:
    from tests.slirp.cli.test_ctl import listening

    with listening(tmp_path) as (path, process):
        result = ctl(path, "handover")
        assert result.returncode == 1
        assert "only networks of namespaces" in result.stderr
        assert process.poll() is None
        assert run(*SLIRP, "ctl", path, "status").returncode == 0
