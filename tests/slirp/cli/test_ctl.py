"""`slirp ctl` and `slirp ps` on networks that run in other processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slirp.control.client import Connection, ControlError, Unreachable
from slirp.control.running import _is_network, _option, running
from slirp.sight.pcapng import read_packets
from tests.kit.family import TIED, end
from tests.kit.namespace import PATIENCE, ROOT, SLIRP, as_user, run
from tests.kit.need import need_tool, need_tun
from tests.kit.ports import free_port


@contextmanager
def listening(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A `slirp listen` that nobody has connected to, and the path of its control socket."""
    path = str(folder / "control.sock")
    command = [*TIED, *SLIRP, "listen", "--control", path, *options, f"unix:{folder / 'net.sock'}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    try:
        assert "listening" in process.stderr.readline()
        yield path, process
    finally:
        end(process)
        process.stderr.close()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[str]:
    with listening(tmp_path) as (path, _):
        yield path


def ctl(path: str, *words: str) -> subprocess.CompletedProcess[str]:
    return run(*SLIRP, "ctl", path, *words)


def asked(path: str, *words: str) -> Any:
    result = ctl(path, *words, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_status_for_people_and_for_programs(control: str) -> None:
    assert asked(control, "status")["network"] == "10.0.2.0/24"
    text = ctl(control, "status").stdout
    assert "10.0.2.2" in text
    assert "slirp listen" in text


def test_hello_for_people_and_for_programs(control: str) -> None:
    assert asked(control, "hello")["versions"] == [1]
    lines = dict(line.split(maxsplit=1) for line in ctl(control, "hello").stdout.splitlines())
    assert lines["versions"] == "1"
    assert {"flows", "forwards.add"} <= set(lines["verbs"].split())


def test_forwards_from_the_shell(control: str) -> None:
    port = free_port()
    table = ctl(control, "forwards", "add", f"{port}:80").stdout.splitlines()
    assert table[0].split() == ["ID", "PROTO", "HOST", "GUEST"]
    assert table[1].split() == ["1", "tcp", f"127.0.0.1:{port}", "10.0.2.15:80"]
    (listed,) = asked(control, "forwards", "list")
    assert listed["id"] == 1
    with socket.create_connection(("127.0.0.1", port), PATIENCE):
        pass
    again = ctl(control, "forwards", "add", f"{port}:80")
    assert again.returncode == 1
    assert again.stderr.startswith("slirp: ")
    assert again.stderr.count("\n") == 1
    assert ctl(control, "forwards", "add", "nonsense").returncode == 2
    assert ctl(control, "forwards", "remove", "1").stdout == ""
    assert asked(control, "forwards", "list") == []


def test_capture_is_written_where_the_caller_is(control: str, tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    started = asked(control, "capture", "start", str(path), "--filter", "tcp port 80")
    assert started["file"] == str(path)
    assert "packets    0" in ctl(control, "capture", "status").stdout
    assert asked(control, "capture", "stop")["packets"] == 0
    with path.open("rb") as file:
        assert list(read_packets(file)) == []
    assert "no capture" in ctl(control, "capture", "status").stdout


@pytest.mark.parametrize(
    "verb", ["guests", "leases", "flows", "stats", "metrics", "config", "hello"]
)
def test_every_listing_has_both_forms(control: str, verb: str) -> None:
    assert asked(control, verb) is not None
    assert ctl(control, verb).returncode == 0


def test_events_as_they_come(control: str) -> None:
    command = [*SLIRP, "ctl", control, "events", "--json", "forward-added", "stopping"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        with Connection(control) as network:
            while not network.ask("stats")["stats"]["control"]["connected"] >= 2:
                pass
            while network.ask("forwards.list")["forwards"] == []:
                network.ask("forwards.add", spec=f"{free_port()}:80")
            seen = None
            for _ in range(100):
                network.ask("forwards.add", spec=f"{free_port()}:80")
                if seen is None:
                    seen = json.loads(watcher.stdout.readline())
                    break
            assert seen is not None
            assert seen["kind"] == "forward-added"
            network.ask("stop")
        assert json.loads(watcher.stdout.read().splitlines()[-1])["kind"] == "stopping"
        assert watcher.wait(PATIENCE) == 0


def test_stop_ends_the_network_with_success(tmp_path: Path) -> None:
    with listening(tmp_path) as (path, process):
        assert ctl(path, "stop").returncode == 0
        assert process.wait(PATIENCE) == 0
    assert not os.path.exists(path)


def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        result = ctl(str(path), "status")
        assert result.returncode == 1
        assert result.stderr.startswith(f"slirp: {path}: ")
        assert result.stderr.count("\n") == 1


def test_another_programs_socket_is_found_out(tmp_path: Path) -> None:
    path = str(tmp_path / "echo.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with Connection(path) as client:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"220 mail.test ESMTP\n")
                with pytest.raises(Unreachable, match="is it a slirp's"):
                    client.ask("status")


def test_client_raises_what_the_network_answers(control: str) -> None:
    with Connection(control) as network:
        with pytest.raises(ControlError) as caught:
            network.ask("kill", flow="t1")
        assert caught.value.code == "missing"
        assert network.ask("hello")["versions"] == [1]


def test_control_socket_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "no" / "folder"
    result = run(*SLIRP, "listen", "--control", str(path), f"unix:{tmp_path / 'net'}")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"slirp: --control {path}: ")


# --- ps -------------------------------------------------------------------------------------------


def test_ps_finds_networks(tmp_path: Path) -> None:
    with listening(tmp_path) as (path, process):
        found = {n["pid"]: n for n in json.loads(run(*SLIRP, "ps", "--json").stdout)}
        network = found[process.pid]
        assert network["control"] == path
        assert network["status"]["gateway"] == "10.0.2.2"
        assert network["command"].startswith("slirp listen")
        assert path in run(*SLIRP, "ps").stdout
    found = {n["pid"]: n for n in json.loads(run(*SLIRP, "ps", "--json").stdout)}
    assert process.pid not in found


LIAR = """\
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[-1])
listener.listen()
print(flush=True)
while True:
    client, _ = listener.accept()
    client.recv(1000)
    client.sendall(os.environb[b"ANSWER"] + b"\\n")
"""


@pytest.mark.parametrize("words", [["slirp", "listen", "--control"], ["-m", "slirp.cli.successor"]])
@pytest.mark.parametrize(
    "answer",
    ['{"result": {}}', '{"result": 7}', '{"result": {"pid": 1, "name": "x", "up": "a day"}}',
     '{"result": {"pid": 1, "name": [], "up": 1}}', '{"result": {"pid": [], "name": "", "up": 1}}',
     '{"error": 7}', '{"error": {}}', '{"event": 7}'],
)  # fmt: skip
def test_ps_lists_the_others_whatever_one_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], answer: str
) -> None:
    """Anybody may run a process that is called as a network is."""
    monkeypatch.setenv("ANSWER", answer)
    command = [sys.executable, "-c", LIAR, *words, str(tmp_path / "c.sock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as liar:
        assert liar.stdout is not None
        liar.stdout.readline()
        try:
            (found,) = (network for network in running() if network.pid == liar.pid)
        finally:
            liar.kill()
    assert found.status is None


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        ("python3 /usr/bin/slirp run -- curl", True),
        ("python3.11 -W error -m slirp attach 17", True),
        ("/usr/bin/python3 /usr/bin/slirp4netns-py 17 tap0", True),
        ("python3 -m slirp.cli.slirp4netns --version", False),
        ("python3 /usr/bin/slirp ctl x status", False),
        ("vim slirp run", False),
        ("grep slirp run", False),
        ("python3 -m slirp", False),
    ],
)
def test_command_lines_of_networks(words: str, is_one: bool) -> None:
    assert _is_network(words.split()) is is_one


def test_options_of_the_command_that_is_run_are_not_ours() -> None:
    assert _option(["slirp", "run", "--control=a", "--", "x", "--control", "b"], "--control") == "a"
    assert _option(["slirp", "run", "--", "x", "--control", "b"], "--control") is None


# --- beside a command -----------------------------------------------------------------------------


def test_flows_of_a_command_and_their_owners(tmp_path: Path) -> None:
    """A program in the namespace talks to one on the host; both are found, then cut off."""
    need_tun()
    nc, path = need_tool("nc"), str(tmp_path / "c.sock")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = [
            *TIED,
            *as_user(),
            *SLIRP,
            "run",
            "--control",
            path,
            "--dns-record",
            "web.test=10.0.2.2",
            "--",
            nc,
            "-4",
            "web.test",
            str(port),
        ]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True)
        try:
            listener.settimeout(PATIENCE)
            peer, _ = listener.accept()
            with peer:
                (flow,) = asked(path, "flows", "--proto", "tcp")
                assert flow["state"] == "ESTABLISHED"
                assert flow["remote_name"] == "web.test"
                heading, line = ctl(path, "flows", "--proto", "tcp").stdout.splitlines()
                assert "REMOTE NAME" in heading
                assert f"10.0.2.2:{port}  web.test" in line
                assert "nc" in asked(path, "status")["name"]
                owners(path, port)
                assert ctl(path, "kill", flow["id"]).returncode == 0
                peer.settimeout(PATIENCE)
                with pytest.raises(ConnectionResetError):
                    peer.recv(1)
            assert process.wait(PATIENCE) == 0 or process.returncode == 1
        finally:
            end(process)
            assert process.stdin is not None
            process.stdin.close()


def owners(path: str, port: int) -> None:
    try:
        import psutil  # noqa: F401
    except ImportError:
        return
    (flow,) = asked(path, "flows", "--owners")
    assert flow["guest_owner"].startswith("nc"), flow
    assert flow["host_owner"].endswith(f"({os.getpid()})")


def test_owners_without_psutil_is_one_line(control: str, tmp_path: Path) -> None:
    (tmp_path / "psutil.py").write_text("raise ImportError('as if it were not there')")
    where = f"PYTHONPATH={tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    result = run("env", where, *SLIRP, "ctl", control, "flows", "--owners")
    assert result.returncode == 1
    assert "pip install" in result.stderr
    assert result.stderr.count("\n") == 1


def test_stop_ends_the_command_in_order(tmp_path: Path) -> None:
    need_tun()
    path = str(tmp_path / "c.sock")
    command = [*TIED, *as_user(), *SLIRP, "run", "--control", path, "--", "sleep", "1000"]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        while not os.path.exists(path):
            assert process.poll() is None
        assert ctl(path, "stop").returncode == 0
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    finally:
        end(process)


def test_command_itself_is_a_guest_and_not_let_in(tmp_path: Path) -> None:
    need_tun()
    nc, path = need_tool("nc"), str(tmp_path / "c.sock")
    program = f'echo \'{{"verb":"hello"}}\' | {nc} -NU {path}; echo =$?'
    result = run(*as_user(), *SLIRP, "run", "--control", path, "--", "sh", "-c", program)
    assert "versions" not in result.stdout
    assert "=" in result.stdout
