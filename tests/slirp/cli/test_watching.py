"""What a running command says of itself: lines with -v, JSON lines, readiness."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from slirp.linux.sd_notify import notify
from tests.kit.family import end
from tests.kit.namespace import PATIENCE, ROOT, SLIRP, as_user, run
from tests.kit.need import need_tool, need_tun


def test_sd_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "")
    assert not notify("READY=1")


def test_sd_notify_to_an_abstract_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0slirp-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@slirp-test-{os.getpid()}")
        assert notify("STOPPING=1")
        assert manager.recv(100) == b"STOPPING=1"


def test_listen_tells_a_service_manager_and_a_descriptor(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE)
        manager.bind(str(tmp_path / "notify"))
        process = subprocess.Popen(
            [*SLIRP, "listen", "--ready-fd", str(writer), f"unix:{tmp_path / 'net'}"],
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stderr=subprocess.DEVNULL,
            pass_fds=[writer],
            start_new_session=True,
        )
        os.close(writer)
        try:
            assert os.read(reader, 10) == b"1"
            assert os.read(reader, 10) == b""
            said = manager.recv(1000).decode().splitlines()
            assert said[:2] == ["READY=1", f"MAINPID={process.pid}"]
        finally:
            os.close(reader)
            end(process)


@pytest.mark.parametrize(("option", "flows"), [("-v", False), ("-vv", True)])
def test_lines_of_what_happens(option: str, flows: bool) -> None:
    need_tun()
    nc = need_tool("nc")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = run(*as_user(), *SLIRP, "run", option, "--", nc, "-z", "10.0.2.2", str(port))
    assert result.returncode == 0, result.stderr
    kinds = [line.split()[1] for line in result.stderr.splitlines()]
    assert "guest-seen" in kinds
    assert ("flow-opened" in kinds) is flows
    assert ("flow-closed" in kinds) is flows


def test_lines_as_json() -> None:
    need_tun()
    nc = need_tool("nc")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        command = (*as_user(), *SLIRP, "run", "-vv", "--log-json", "--", nc, "-z", "10.0.2.2", port)
        result = run(*command)
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    opened = next(line for line in lines if line["event"] == "flow-opened")
    assert opened["remote"] == f"10.0.2.2:{port}"
    assert opened["time"] > 1.7e9


def test_commands_own_lines_as_json(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*SLIRP, "listen", "--log-json", f"unix:{tmp_path / 'net'}"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert "listening" in json.loads(process.stderr.readline())["message"]
    finally:
        end(process)
        if process.stderr is not None:
            process.stderr.close()


def test_nothing_is_said_without_v() -> None:
    need_tun()
    result = run(*as_user(), *SLIRP, "run", "--", sys.executable, "-c", "pass")
    assert result.stderr == ""
