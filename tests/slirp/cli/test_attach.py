"""`slirp attach`: what it has beyond slirp4netns-py; what they share is in test_slirp4netns.py."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slirp.sight.pcapng import read_packets
from tests.kit.namespace import PATIENCE, SLIRP, Holder, attached, holder, run
from tests.kit.need import need_tool
from tests.kit.web import WebServer

ATTACH = (*SLIRP, "attach")


@pytest.fixture
def held() -> Iterator[Holder]:
    with holder() as process:
        yield process


@pytest.mark.parametrize("by", ["process", "path"])
def test_target_is_told_by_its_form(held: Holder, by: str, tmp_path: Path) -> None:
    need_tool("curl")
    target = str(held.pid) if by == "process" else held.path
    capture = tmp_path / "attach.pcapng"
    options = ("--configure", "--capture", str(capture), "--stats")
    with WebServer(b"x" * 100_000) as web, attached(*ATTACH, *options, target, "guest0") as process:
        result = held.run_in("curl", "-sS", f"http://10.0.2.2:{web.port}/")
        assert result.stdout == "x" * 100_000
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    first, last = err.splitlines()
    assert first == (
        "slirp: 10.0.2.0/24 on guest0: gateway 10.0.2.2, DNS 10.0.2.3, guest 10.0.2.100"
    )
    assert json.loads(last)["tcp"]["octets_to_guest"] > 100_000
    with capture.open("rb") as file:
        assert {packet.interface.name for packet in read_packets(file)} == {"ip", "ethernet"}


def test_device_is_tap0_unless_named(held: Holder) -> None:
    with subprocess.Popen([*ATTACH, "-c", str(held.pid)], stderr=subprocess.PIPE, text=True) as one:
        assert one.stderr is not None
        assert " on tap0: " in one.stderr.readline()
        one.terminate()


def test_forward(held: Holder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    script = "import socket; s = socket.create_server(('', 80)); print(flush=True); s.accept()"
    options = ("-c", "--forward", f"tcp:127.0.0.1:{port}-80")
    serving = [*held.entering(), "python3", "-c", script]
    with (
        attached(*ATTACH, *options, str(held.pid), "tap0"),
        subprocess.Popen(serving, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        server.stdout.readline()
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
        assert server.wait(PATIENCE) == 0


def test_ends_with_the_last_process() -> None:
    """The one that was named ends first; another one keeps the namespace in use for a while."""
    with holder("cat & exec 0<&-; exec sleep 1000") as held:
        command = [*ATTACH, "-c", str(held.pid), "tap0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            process.stderr.readline()
            other = subprocess.Popen(
                [*held.entering(), "sh", "-c", "read x"], stdin=subprocess.PIPE
            )
            in_namespace(other.pid, held)
            held.process.kill()
            held.process.wait()
            assert process.poll() is None
            assert other.stdin is not None
            other.stdin.close()
            other.wait(PATIENCE)
            assert process.stderr.read() == (
                "slirp: the last process of the network namespace has ended\n"
            )
            assert process.wait(PATIENCE) == 0


def in_namespace(pid: int, held: Holder) -> None:
    """Wait until a process has arrived in the namespace."""
    here, there = Path(f"/proc/{pid}/ns/net"), Path(held.path)
    while here.stat().st_ino != there.stat().st_ino:
        pass


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ((), 2, "the following arguments are required"),
        (("4194305",), 1, "/proc/4194305/ns/net: No such file or directory"),
        (("/no/such/file",), 1, "/no/such/file: No such file or directory"),
        (("--macaddress", "02:00:00:00:00:01", "1"), 2, "--macaddress needs --configure"),
        (("-c", "--macaddress", "zz", "1"), 2, "--macaddress zz: write it as 02:"),
        (("-c", "--macaddress", "01:00:00:00:00:01", "1"), 2, "--macaddress 01:00:00:00:00:01: is"),
        (("--target-type", "bess", "-c", "/tmp/x"), 2, "--target-type bess takes none of"),
        (("--netns-type", "tapfd", "0"), 1, "descriptor 0 is no TAP device"),
        (("--netns-type", "tapfd", "99"), 2, "99: the TAP's descriptor must be open"),
        (("1", "a-name-that-is-too-long"), 2, "'a-name-that-is-too-long': a device's name has"),
        (("--cidr", "10.0.2.1/24", "1"), 2, "--cidr: 10.0.2.1/24 has host bits set"),
        (("--cidr", "240.0.0.0/24", "1"), 2, "--cidr 240.0.0.0/24: 240.0.0.0/4 is reserved"),
        (("--forward", "8080:x", "1"), 2, "--forward 8080:x: write "),
        (("--outbound-addr", "nowhere0", "1"), 2, "--outbound-addr nowhere0: no IPv4 address"),
        (("--mtu", "60", "1"), 2, "--mtu 60: must be 68"),
    ],
)
def test_mistakes_are_one_line(options: tuple[str, ...], status: int, words: str) -> None:
    result = run(*ATTACH, *options)
    assert result.returncode == status
    assert result.stderr.startswith(f"slirp: {words}")
    assert result.stderr.count("\n") == 1


def test_api_socket_that_cannot_be(held: Holder) -> None:
    result = run(*ATTACH, "-c", "--api-socket", "/no/such/folder/api", str(held.pid))
    assert result.returncode == 1
    assert result.stderr == "slirp: --api-socket /no/such/folder/api: No such file or directory\n"


def test_help_shows_a_line_to_paste() -> None:
    result = run(*ATTACH, "--help")
    assert result.returncode == 0
    assert "slirp attach --configure $!\n" in result.stdout


def test_bess_serves_user_mode_linux(tmp_path: Path) -> None:
    """A machine at the other end of a SOCK_SEQPACKET socket: one message, one frame."""
    path = tmp_path / "bess.sock"
    command = [*ATTACH, "--target-type", "bess", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as machine:
            connect(machine, path, process)
            machine.settimeout(PATIENCE)
            mac = bytes.fromhex("020000000007")
            request = bytes.fromhex("00010800060400010200000000070a0002640000000000000a000202")
            machine.send(b"\xff" * 6 + mac + b"\x08\x06" + request)
            reply = machine.recv(2000)
        assert reply[:6] == mac
        assert reply[20:22] == b"\0\2"  # an ARP reply: the gateway is there
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "slirp: bess: the machine at the BESS socket has gone"


def connect(machine: socket.socket, path: Path, process: subprocess.Popen[str]) -> None:
    while process.poll() is None:
        try:
            machine.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            continue
        return
    raise AssertionError(process.communicate())


def test_files_are_served_out_of_a_sandbox(tmp_path: Path) -> None:
    """The folder is opened before the sandbox hides where it is; so is all that serves it."""
    for tool in ("curl", "tftp", "ntpdate"):
        need_tool(tool)
    (tmp_path / "file").write_text("served\n")
    services = ("--http", str(tmp_path), "--tftp", str(tmp_path), "--ntp")
    with holder() as held:
        command = (*SLIRP, "attach", "-c", "--enable-sandbox", *services, str(held.pid), "tap0")
        with attached(*command):
            said = held.run_in("curl", "-sS", "--max-time", "10", "http://10.0.2.2/file")
            assert said.stdout == "served\n", said.stderr
            later = ("-H", "If-Modified-Since: Sun, 06 Nov 2094 08:49:37 GMT")
            told = ("-o", "/dev/null", "-w", "%{http_code}", "http://10.0.2.2/file")
            assert held.run_in("curl", "-sS", "--max-time", "10", *later, *told).stdout == "304"
            got = tmp_path / "got"
            held.run_in("tftp", "-m", "binary", "10.0.2.2", "-c", "get", "file", str(got))
            assert got.read_text() == "served\n"
            assert " s8 " in held.run_in("ntpdate", "-q", "10.0.2.2").stdout


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--forward", "auto", "--enable-sandbox"), "--enable-sandbox hides who listens"),
        (("--forward", "auto:x"), "--forward auto:x: write auto"),
        (("--forward", "auto", "--forward", "auto:80"), "auto is given twice"),
        (("--tftp", "/nowhere/at/all"), "--tftp /nowhere/at/all: No such file or directory"),
        (("--dns-record", "x"), "--dns-record x: write NAME=ADDR"),
        (("--guestfwd", "x"), "--guestfwd x: write ADDR:PORT=TARGET"),
        (("--dns", "x.test=ten"), "--dns ten: a resolver is given by its address"),
        (("--port-share", "2"), "--port-share 2.0: must be above 0"),
    ],
)
def test_options_that_run_has_too(options: tuple[str, ...], why: str) -> None:
    with holder() as held:
        result = run(*SLIRP, "attach", *options, str(held.pid), "tap0")
    assert result.returncode in (1, 2)
    assert why in result.stderr
    assert result.stderr.count("\n") == 1


def test_restricted_with_a_guest_forward(tmp_path: Path) -> None:
    need_tool("curl")
    with WebServer(b"content") as web, holder() as held:
        options = ("--restrict", "--guestfwd", f"192.0.2.80:80=127.0.0.1:{web.port}")
        with attached(*SLIRP, "attach", "-c", *options, str(held.pid), "tap0"):
            url = ("curl", "-sS", "--max-time", "10")
            assert held.run_in(*url, "http://192.0.2.80/").stdout == "content"
            assert held.run_in(*url, f"http://10.0.2.2:{web.port}/").returncode != 0
