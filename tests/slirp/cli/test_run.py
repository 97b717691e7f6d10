"""`slirp run`: real commands in real namespaces, as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slirp.cli import run as command
from slirp.cli import tap
from slirp.config import Config
from slirp.sight.pcapng import read_packets
from tests.kit.namespace import PATIENCE, ROOT, SLIRP, as_user, run
from tests.kit.need import missing, need_root, need_tool, need_tun
from tests.kit.ports import free_port
from tests.kit.web import WebServer

CONTENT = random.Random(7).randbytes(3_000_000)


@pytest.fixture(params=["root", "user"])
def who(request: pytest.FixtureRequest) -> tuple[str, ...]:
    need_tun()
    if request.param == "root":
        need_root()
        return ()
    return as_user()


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    with WebServer(CONTENT) as server:
        yield server


def slirp_run(*argv: str, who: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    need_tun()
    return run(*who, *SLIRP, "run", *argv)


def fetch(url: str) -> tuple[str, ...]:
    need_tool("curl")
    return ("--", "sh", "-c", f"curl -sS --max-time 20 {url} | sha256sum")


def test_download_from_the_hosts_loopback(who: tuple[str, ...], web: WebServer) -> None:
    result = slirp_run(*fetch(f"http://10.0.2.2:{web.port}/"), who=who)
    assert result.stderr == ""
    assert result.stdout.split()[0] == web.digest


@pytest.mark.parametrize("mtu", ["68", "576", "9000", "65521"])
def test_download_at_other_mtus(mtu: str, web: WebServer) -> None:
    result = slirp_run("--mtu", mtu, *fetch(f"http://10.0.2.2:{web.port}/"))
    assert result.stdout.split()[:1] == [web.digest], result.stderr


def test_upload_is_carried_even_when_the_command_ends_at_once(web: WebServer) -> None:
    """The command writes and leaves; what its kernel still has to send arrives all the same."""
    program = (
        "import socket; s = socket.create_connection(('10.0.2.2', {port})); "
        "s.setsockopt(1, 7, 1 << 24); s.setblocking(False)\n"
        "data = bytes(4_000_000); print(s.send(data))"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        received = []

        def take() -> None:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(65536):
                    received.append(len(data))

        thread = threading.Thread(target=take)
        thread.start()
        script = program.format(port=listener.getsockname()[1])
        result = slirp_run("--", "python3", "-c", script)
        thread.join(PATIENCE)
    assert sum(received) == int(result.stdout) > 0


def test_other_network(who: tuple[str, ...], web: WebServer) -> None:
    url = f"http://172.30.5.2:{web.port}/"
    script = f"ip -4 -o addr show dev tap0; curl -sS --max-time 20 {url} | sha256sum"
    result = slirp_run("--network", "172.30.5.0/24", "--", "sh", "-c", script, who=who)
    assert "inet 172.30.5.100/24" in result.stdout
    assert web.digest in result.stdout


def test_host_loopback_can_be_closed(web: WebServer) -> None:
    need_tool("curl")
    argv = ("curl", "-sS", "--max-time", "10", f"http://10.0.2.2:{web.port}/")
    result = slirp_run("--no-host-loopback", "--", *argv)
    assert result.returncode == 7  # could not connect
    assert slirp_run("--restrict", "--", *argv).returncode == 7


def test_names_are_answered(who: tuple[str, ...]) -> None:
    result = slirp_run("--", "getent", "ahostsv4", "host.slirp.internal", who=who)
    assert result.stdout.split()[0] == "10.0.2.2", result.stderr


@pytest.mark.parametrize("form", ["{}", "{}:{}", "{}#{}"])
def test_resolver_of_ones_own_choice(form: str) -> None:
    """A resolver on the host's loopback, which only the host can ask."""
    need_tool("dig")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        try:
            resolver.bind(("127.0.0.9", 53 if form == "{}" else 0))
        except PermissionError:
            missing("port 53 of 127.0.0.9: only root can have it")
        resolver.settimeout(PATIENCE)

        def reply() -> None:
            query, client = resolver.recvfrom(512)
            question = query[12 : query.index(b"\0", 12) + 5]
            answer = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04" + socket.inet_aton("192.0.2.77")
            head = query[:2] + b"\x81\x80\0\x01\0\x01\0\0\0\0"
            resolver.sendto(head + question + answer, client)

        thread = threading.Thread(target=reply)
        thread.start()
        argv = ("dig", "+short", "+tries=1", "+noedns", "example.test")
        result = slirp_run("--dns", form.format(*resolver.getsockname()), "--", *argv)
        thread.join()
    assert result.stdout == "192.0.2.77\n", result.stderr


def test_without_dns() -> None:
    result = slirp_run("--dns", "none", "--", "cat", "/etc/resolv.conf")
    assert "nameserver" not in result.stdout


def test_hosts_search_list_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("# a comment\nnameserver 192.0.2.53\nsearch corp.example\noptions ndots:2\n")
    monkeypatch.setattr(command, "RESOLV_CONF", str(path))
    files = command.files_for(tap.places(Config()), dns=True)
    expected = "search corp.example\noptions ndots:2\nnameserver 10.0.2.3\n"
    assert files["resolv.conf"] == expected
    only = command.files_for(tap.places(Config(ipv6_only=True)), dns=True)
    assert only["resolv.conf"].endswith("\nnameserver fd00::3\n")


def test_a_command_with_one_family_or_with_both(web: WebServer) -> None:
    """By addresses, route, and the names in /etc/hosts."""
    script = "ip -o addr show dev tap0 scope global; getent ahosts _gateway"
    for option, has, hasnt in (
        ("--ipv4-only", "10.0.2.", "fd00:"),
        ("--ipv6-only", "fd00:", "10.0.2."),
        ("--mtu=1279", "10.0.2.", "fd00:"),
    ):
        result = slirp_run(option, "--", "sh", "-c", script)
        assert has in result.stdout, result.stderr
        assert hasnt not in result.stdout
    result = slirp_run("--network6", "fd12:3456::/48", "--", "sh", "-c", script)
    assert "inet 10.0.2.100/24" in result.stdout
    assert "inet6 fd12:3456::100/48 scope global nodad" in " ".join(result.stdout.split())
    url = f"http://[fd00::2]:{web.port}/"
    assert slirp_run("--ipv6-only", *fetch(url)).stdout.split()[0] == web.digest


# --- forwards -------------------------------------------------------------------------------------


class Running:
    """`slirp run` in the background, its command's first line read."""

    def __init__(self, *argv: str, who: tuple[str, ...] = ()) -> None:
        need_tun()
        self.process = subprocess.Popen(
            [*who, *SLIRP, "run", *argv],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *why: object) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


SERVER = """
import socket
s = socket.create_server(('', 80)); u = socket.socket(2, 2); u.bind(('', 81))
print('listening', flush=True)
c, peer = s.accept(); c.sendall(c.recv(100).upper()); c.close()
data, far = u.recvfrom(100); u.sendto(data.upper(), far)
print(peer[0])
"""


def ask_tcp(sock: socket.socket) -> bytes:
    sock.settimeout(PATIENCE)
    sock.sendall(b"hello")
    sock.shutdown(socket.SHUT_WR)
    return sock.recv(100, socket.MSG_WAITALL)


def ask_udp(port: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", port))
        sock.send(b"datagram")
        return sock.recv(100)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_forwards_lead_inside(who: tuple[str, ...], kind: str, tmp_path: Path) -> None:
    tcp, udp, path = free_port(), free_port(), str(tmp_path / "web.sock")
    spec = f"tcp:127.0.0.1:{tcp}-80" if kind == "tcp" else f"unix:{path}-80"
    options = ("--forward", spec, "--forward", f"udp:127.0.0.1:{udp}-81")
    with Running(*options, "--", "python3", "-c", SERVER, who=who) as running:
        assert running.first_line == "listening\n"
        family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
        with socket.socket(family) as sock:
            sock.connect(path if kind == "unix" else ("127.0.0.1", tcp))
            assert ask_tcp(sock) == b"HELLO"
        assert ask_udp(udp) == b"DATAGRAM"
        status, out, err = running.end()
    assert (status, out, err) == (0, "10.0.2.2\n", "")
    assert not os.path.exists(path)


def test_forwarded_range() -> None:
    first = next(p for p in range(20000, 30000, 7) if all(map(is_free, range(p, p + 3))))
    options = ("--forward", f"tcp:{first}-{first + 2}-79")
    with Running(*options, "--", "python3", "-c", SERVER) as running:
        assert running.first_line == "listening\n"
        with socket.create_connection(("127.0.0.1", first + 1)) as sock:
            assert ask_tcp(sock) == b"HELLO"


LISTENS = """
import socket, sys
port = int(sys.argv[1])
with socket.create_server(("", port)) as server:
    peer, _ = server.accept()
    peer.sendall(b"first")
    peer.close()
with socket.create_server(("", port)) as server:  # and once more, when the first has gone
    server.accept()[0].sendall(b"second")
"""


def test_a_program_that_listens_is_forwarded_by_itself() -> None:
    port = free_port()
    command = ("--", "python3", "-c", LISTENS, str(port))
    with subprocess.Popen(
        [*SLIRP, "run", "--forward", f"auto:{port}", *command],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith(f"slirp: forward 127.0.0.1:{port}:10.0.2.100:{port}")
        for expected in (b"first", b"second"):
            got = b""
            until = time.monotonic() + 20
            while got != expected and time.monotonic() < until:
                with (
                    contextlib.suppress(OSError),  # refused or reset: it is between the two
                    socket.create_connection(("127.0.0.1", port), 5) as sock,
                ):
                    got = sock.recv(100)
            assert got == expected
        assert process.wait(20) == 0


def test_machines_ports_are_not_forwarded_by_themselves() -> None:
    result = run(*SLIRP, "listen", "--forward", "auto", "unix:/nowhere/at/all")
    assert result.returncode == 2
    assert "--forward auto: machines do not say" in result.stderr


def test_a_port_that_is_free_is_told() -> None:
    result = slirp_run("--forward", "0:80", "--", "true")
    assert result.returncode == 0
    assert re.fullmatch(r"slirp: forward 127\.0\.0\.1:\d+:10\.0\.2\.100:80\n", result.stderr)


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_forward_of_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = slirp_run("--forward", f"tcp:{port}-80", "--", "echo", "never")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"slirp: --forward 127.0.0.1:{port}: Address already in use\n"


# --- the command and its life ---------------------------------------------------------------------


def test_status_is_the_commands(who: tuple[str, ...]) -> None:
    assert slirp_run("--", "sh", "-c", "exit 42", who=who).returncode == 42
    assert slirp_run("true", who=who).returncode == 0
    assert slirp_run("--", "no-such-command", who=who).returncode == 127


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo {name}; exit 9' {name}; echo ready; while :; do sleep 0.02; done"
    with Running("--", "sh", "-c", script) as running:
        assert running.first_line == "ready\n"
        running.process.send_signal(number)
        status, out, _ = running.end()
    assert (status, out) == (9, f"{name}\n")


def test_signal_that_ends_the_command() -> None:
    with Running("--", "sh", "-c", "echo ready; exec sleep 1000") as running:
        running.process.terminate()
        assert running.end()[0] == 128 + signal.SIGTERM


def test_command_dies_with_slirp() -> None:
    with Running("--", "sh", "-c", "echo ready; exec sleep 1000") as running:
        running.process.kill()
        out, err = running.process.communicate(timeout=PATIENCE)  # ends when nobody writes
    assert (out, err) == ("", "")


def test_input_and_folder_are_the_commands() -> None:
    with Running("--", "sh", "-c", "pwd; cat") as running:
        assert running.first_line == f"{ROOT}\n"
        out, _ = running.process.communicate("typed\n", timeout=PATIENCE)
    assert out == "typed\n"


def test_ctrl_c_reaches_the_command_once() -> None:
    """On a terminal of its own: the terminal signals the whole group, slirp adds nothing."""
    need_tun()
    script = "trap 'n=$((n+1))' INT; echo ready; read x; read y; echo heard $n"
    terminal, inner = pty.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", "--wait", *SLIRP, "run", "--", "sh", "-c", script],
        cwd=ROOT,
        stdin=inner,
        stdout=inner,
        stderr=inner,
    ) as process:
        os.close(inner)
        read_until(terminal, b"ready")
        os.write(terminal, b"\x03")
        read_until(terminal, b"^C")
        os.write(terminal, b"a\nb\n")
        read_until(terminal, b"heard 1")
        assert process.wait(PATIENCE) == 0
    os.close(terminal)


def read_until(terminal: int, words: bytes) -> None:
    heard = b""
    while words not in heard:
        try:
            heard += os.read(terminal, 1000)
        except OSError:  # EIO: the other end has closed
            break
    assert words in heard, heard


def test_device_that_goes_away_ends_the_run() -> None:
    need_tool("ip")
    result = slirp_run("--map-root", "--", "sh", "-c", "ip link del tap0; exec sleep 1000")
    assert result.returncode == 1
    assert result.stderr.startswith("slirp: tap0: ")
    assert result.stderr.count("\n") == 1
    assert "gone" in result.stderr


def limited(limits: str, *argv: str) -> subprocess.CompletedProcess[str]:
    need_tun()
    return run("sh", "-c", f'ulimit {limits}; exec "$@"', "sh", *SLIRP, "run", *argv)


def test_descriptor_limit_is_raised_for_slirp_and_not_for_the_command() -> None:
    """The command sees its own limit, and its parent's in /proc."""
    script = "ulimit -Sn; grep 'open files' /proc/$PPID/limits"
    result = limited("-Sn 500; ulimit -Hn 12000", "--", "sh", "-c", script)
    own, parents = result.stdout.splitlines()
    assert own == "500"
    assert parents.split()[3:5] == ["12000", "12000"]
    assert result.stderr == ""


def test_low_descriptor_limit_is_told() -> None:
    result = limited("-n 400", "--", "true")
    assert result.returncode == 0
    assert result.stderr.startswith("slirp: warning: only 400 descriptors are allowed")


QUESTIONS = """
import socket, sys
answered = 0
for _ in range(300):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect(("10.0.2.2", int(sys.argv[1])))
        sock.send(b"?")
        answered += sock.recv(9) == b"?"
with socket.create_connection(("10.0.2.2", int(sys.argv[2])), 5) as sock:
    print(answered, sock.recv(9))
"""


def test_idle_mappings_give_way_and_statistics_are_printed() -> None:
    """Each would have kept a descriptor for minutes, and none would have been left."""

    def echo() -> None:
        while (question := udp.recvfrom(9))[0]:
            udp.sendto(*question)

    def page() -> None:
        with tcp.accept()[0] as sock:
            sock.sendall(b"page")

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.create_server(("127.0.0.1", 0)) as tcp,
    ):
        udp.bind(("127.0.0.1", 0))
        threads = [threading.Thread(target=serve, daemon=True) for serve in (echo, page)]
        for thread in threads:
            thread.start()
        ports = (str(sock.getsockname()[1]) for sock in (udp, tcp))
        argv = ("--stats", "--", sys.executable, "-c", QUESTIONS, *ports)
        result = limited("-n 128", *argv)
        udp.sendto(b"", udp.getsockname())
        socket.create_connection(tcp.getsockname()).close()
        for thread in threads:
            thread.join()
    assert result.stdout == "300 b'page'\n", result.stderr
    stats = json.loads(result.stderr.splitlines()[-1])
    assert stats["descriptors"]["displaced"] > 100
    assert stats["descriptors"]["refused"] == 0
    assert 0 < stats["ports"]["tap0"]["sockets"] < 128


# --- what is printed ------------------------------------------------------------------------------


def test_capture_and_statistics(web: WebServer, tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    url = f"http://10.0.2.2:{web.port}/"
    result = slirp_run("--capture", str(path), "--stats", *fetch(url))
    assert result.stdout.split()[0] == web.digest
    stats = json.loads(result.stderr)
    assert stats["tcp"]["octets_to_guest"] > len(CONTENT)
    with path.open("rb") as file:
        names = {packet.interface.name for packet in read_packets(file)}
    assert names == {"ip", "ethernet"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "no command to run"),
        (("--mtu", "67", "true"), "--mtu 67: must be 68 to 65521"),
        (("--mtu", "65522", "true"), "--mtu 65522: must be 68 to 65521"),
        (("--network", "10.0.2.1/24", "true"), "--network: 10.0.2.1/24 has host bits set"),
        (("--network", "10.0.2.0/31", "true"), "--network 10.0.2.0/31: must leave room"),
        (("--dns", "example.org", "true"), "--dns example.org: a resolver is given"),
        (("--dns", "127.0.0.1:", "true"), "--dns 127.0.0.1:: a port is a number from 1 to 65535"),
        (("--dns", "[::1]53", "true"), "--dns [::1]53: write [ADDR]:PORT"),
        (("--forward", "8080:10.0.2.2:80", "true"), "--forward 10.0.2.2: is the network's own"),
        (("--outbound-addr", "nowhere0", "true"), "--outbound-addr nowhere0: no IPv4 address"),
        (("--forward", "tcp", "true"), "--forward tcp: write [HOST:]PORT[:GUESTPORT]"),
        (("--split", "true"), "--split needs --capture"),
    ],
)
def test_mistakes_are_one_line(options: tuple[str, ...], words: str) -> None:
    result = slirp_run(*options)
    assert result.returncode == 2
    assert result.stderr.startswith(f"slirp: {words}")
    assert result.stderr.count("\n") == 1


def test_help_shows_a_line_to_paste() -> None:
    result = run(*SLIRP, "run", "--help")
    assert result.returncode == 0
    assert "  slirp run -- curl https://example.org/\n" in result.stdout


HERE = """\
import socket
s = socket.create_server(('', 80))
print(flush=True)
while 1:
    c = s.accept()[0]
    c.sendall(b'here')
    c.close()
"""


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


# --- networks -------------------------------------------------------------------------------------


def test_the_smallest_network_has_a_gateway_a_guest_and_names() -> None:
    show = "ip -4 -o addr show dev tap0; cat /etc/resolv.conf; getent ahostsv4 host.slirp.internal"
    result = slirp_run("--network", "10.0.9.0/30", "--", "sh", "-c", show)
    assert result.returncode == 0, result.stderr
    assert "inet 10.0.9.1/30" in result.stdout
    assert "nameserver 10.0.9.2" in result.stdout
    assert "10.0.9.2        STREAM host.slirp.internal" in result.stdout


def test_the_smallest_network_reaches_the_host_and_is_reached(web: WebServer) -> None:
    """Ports of the gateway's lead to the host, but for DNS's; forwards lead to the one guest."""
    port = free_port()
    result = slirp_run("--network", "10.0.9.0/30", *fetch(f"http://10.0.9.2:{web.port}/"))
    assert result.stdout.split()[0] == web.digest, result.stderr
    specs = ("--network", "10.0.9.0/30", "--forward", f"{port}:80")
    with Running(*specs, "--", sys.executable, "-c", HERE), connected(port) as client:
        assert client.recv(10) == b"here"


@pytest.mark.parametrize(
    "network", ["0.0.0.0/0", "224.0.0.0/24", "127.0.0.0/8", "10.0.0.0/31", "240.0.0.0/4"]
)
def test_a_network_that_cannot_work_is_refused_in_one_line(network: str) -> None:
    result = slirp_run("--network", network, "--", "true")
    assert result.returncode == 2
    assert result.stderr.startswith(f"slirp: --network {network}: ")
    assert result.stderr.count("\n") == 1


def test_forwards_as_people_type_them(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "web.sock"
    specs = ("--forward", f"{port}:80", "--forward", f"{path}:80")
    with Running(*specs, "--", sys.executable, "-c", HERE):
        for family, address in ((socket.AF_INET, ("127.0.0.1", port)), (socket.AF_UNIX, str(path))):
            with socket.socket(family) as client:
                client.settimeout(10)
                client.connect(address)
                assert client.recv(10) == b"here"
