"""`slirp4netns-py` in slirp4netns's place: the same words, the same socket, the same life.

It is run beside two slirp4netns: the one that is installed (Debian 12's is 1.2) and the newest,
1.3.3 or later, from the root of Debian testing. What is compared is what a caller can see (the
first line of a mistake, the exit status, the replies of the control socket). Where the two differ,
ours is like the newer one; `SINCE_1_3` has those command lines.
"""

from __future__ import annotations

import functools
import getopt
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.cli import slirp4netns as command
from slirp.cli.slirp4netns import Mistake, parse
from tests.kit.control import add, ask
from tests.kit.namespace import (
    PATIENCE,
    SLIRP4NETNS,
    Holder,
    attached,
    holder,
    run,
)
from tests.kit.need import need_ipv6, need_tool
from tests.kit.ports import free_port
from tests.kit.testing_root import newer
from tests.kit.web import WebServer

CONTENT = bytes(range(256)) * 4000

# --- slirp4netns itself ---------------------------------------------------------------------------


class Judge:
    """A slirp4netns that nobody here wrote."""

    def __init__(self, where: str) -> None:
        self.where = where

    def program(self, name: str, *shown: Path) -> tuple[str, ...]:
        """The start of a command line."""
        if self.where == "testing":
            return newer(name, *shown)
        need_tool(name)
        return (name,)  # not the path: complaints begin with what was typed

    def argv(self, *shown: Path) -> tuple[str, ...]:
        return self.program("slirp4netns", *shown)

    @functools.cached_property
    def version(self) -> tuple[int, ...]:
        said = run(*self.argv(), "--version").stdout
        match = re.match(r"slirp4netns version ([0-9.]+)", said)
        assert match, said
        return tuple(map(int, match[1].split(".")))

    def would_say(self, text: str) -> str:
        """Our words as this version has them: before 1.3 a descriptor is no target."""
        return text if self.version >= (1, 3) else text.replace("PID|PATH|FD", "PID|PATH")


JUDGES = {where: Judge(where) for where in ("installed", "testing")}


@pytest.fixture(params=JUDGES)
def judge(request: pytest.FixtureRequest) -> Judge:
    return JUDGES[request.param]


def test_the_newer_one_is_new() -> None:
    assert JUDGES["testing"].version >= (1, 3, 3)


# --- the command line -----------------------------------------------------------------------------

MISTAKES = [
    "--foo",
    "",
    "-x",
    "-m 70000 1 tap0",
    "-m 0 1 tap0",
    "-m x 1 tap0",
    "-m",
    "--mtu",
    "--configure=3",
    "--enable-s 1 tap0",
    "--cidr=10.0.2.1/24 1 tap0",
    "--cidr=10.0.2.0/26 1 tap0",
    "--cidr=10.0.2.0/30 1 tap0",
    "--cidr=10.0.2.0/0 1 tap0",
    "--cidr=127.0.0.1/8 1 tap0",
    "--cidr=foo 1 tap0",
    "--cidr=10.0.2.0 1 tap0",
    "--macaddress=02:00:00:00:00:01 1 tap0",
    "-c --macaddress=zz 1 tap0",
    "--netns-type=foo 1 tap0",
    "-c abc tap0",
    "-c 0 tap0",
    "-c 4194305 tap0",
    "-c 1",
    "-c",
    "--target-type=foo x",
    "--target-type=bess -c /tmp/x",
    "--target-type=bess --netns-type=path /tmp/x",
    "--netns-type=path /nonexistent tap0",
    "-e x 1 tap0",
    "-r x 1 tap0",
    "-r -1 1 tap0",
    "--userns-path=/nonexistent 1 tap0",
    "--userns-path= 1 tap0",
    "--target-type=bess",
    "--target-type=bess --userns-path=/ /tmp/x",
    "--cidr= 1 tap0",
    "--cidr=10.0.2.0/33 1 tap0",
    "-m -5 1 tap0",
    "-c --macaddress= 1 tap0",
    "--no-host-loopback=1 1 tap0",
]
SINCE_1_3 = [
    "--netns-type=tapfd",
    "--netns-type=tapfd x",
    "--netns-type=tapfd 1x tap0",
    "--netns-type=tapfd -- -1",
]


def first_line(*argv: str) -> tuple[str, int]:
    result = run(*argv)
    return (result.stderr + result.stdout).partition("\n")[0], result.returncode


@functools.cache
def our_first_line(line: str) -> tuple[str, int]:
    return first_line(*SLIRP4NETNS, *line.split())


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_told_in_slirp4netns_words(line: str, judge: Judge) -> None:
    theirs = first_line(*judge.argv(), *line.split())
    ours, status = our_first_line(line)
    assert (judge.would_say(ours), status) == theirs


@pytest.mark.parametrize("line", SINCE_1_3)
def test_mistakes_that_only_a_newer_slirp4netns_knows(line: str) -> None:
    theirs = first_line(*JUDGES["testing"].argv(), *line.split())
    assert our_first_line(line) == theirs


def test_zero_is_a_descriptor() -> None:
    options = parse(["--netns-type=tapfd", "0"])
    assert not isinstance(options, str)
    assert (options.netns_type, options.target) == ("tapfd", "0")


@pytest.mark.parametrize("cidr", ["0.0.0.0/1", "0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/24"])
def test_a_network_that_the_kernel_refuses_is_refused_before(cidr: str, held: Holder) -> None:
    need_tool("slirp4netns")
    argv = ("-c", f"--cidr={cidr}", str(held.pid), "tap0")
    ours, theirs = run(*SLIRP4NETNS, *argv), run("slirp4netns", *argv)
    assert ours.returncode == theirs.returncode == 1
    assert ours.stderr.startswith(f"--cidr {cidr}: ")
    assert ours.stderr.endswith("; take a private one, as 10.0.2.0/24\n")
    assert (ours.stderr.count("\n"), ours.stdout) == (1, "")


def test_outbound_addr_is_checked() -> None:
    text, status = first_line(*SLIRP4NETNS, "--outbound-addr=nowhere0", "1", "tap0")
    assert text == "outbound-addr has to be valid ipv4 address or interface name."
    assert status == 1


def fields(text: str) -> list[str]:
    """What stands before the value in each line."""
    return [re.split(r" version|: ", line)[0] for line in text.splitlines()]


@pytest.mark.parametrize("option", ["-v", "--version", "--vers", "-cv"])
def test_version_lines_have_slirp4netns_form(option: str, judge: Judge) -> None:
    ours = run(*SLIRP4NETNS, option)
    assert (ours.returncode, ours.stderr) == (0, "")
    theirs = run(*judge.argv(), option)
    assert fields(ours.stdout) == fields(theirs.stdout)
    assert re.match(r"slirp4netns version 1\.3\.\d+\n", ours.stdout)


def options_in(text: str) -> set[str]:
    return set(re.findall(r"--[a-z0-9-]+", text))


def test_help_names_what_slirp4netns_names(judge: Judge) -> None:
    ours, theirs = run(*SLIRP4NETNS, "--help"), run(*judge.argv(), "--help")
    assert (ours.returncode, theirs.returncode) == (0, 0)
    assert options_in(ours.stdout) == options_in(theirs.stdout)  # callers look before they use one


def test_seccomp_is_named_only_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("seccomp", "pyseccomp"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "--enable-seccomp" not in command.usage()
    assert "libseccomp: none" in command.version()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("12 tap0", {"target": "12", "tap_name": "tap0", "netns_type": "pid", "mtu": 1500}),
        ("12 -c tap0 -m 9000", {"configure": True, "mtu": 9000}),
        ("-cr3 -e4 12 tap0", {"configure": True, "ready_fd": 3, "exit_fd": 4}),
        ("--conf --no-host-loop 12 tap0", {"configure": True, "disable_host_loopback": True}),
        ("--create-sandbox --enable-sec 12 tap0", {"sandbox": True, "seccomp": True}),
        ("-6 --outbound-addr6=::1 12 tap0", {"ipv6": True, "outbound_addr6": "::1"}),
        ("--netns-type path / tap0", {"netns_type": "path", "target": "/"}),
        ("--netns-type=tapfd 7", {"netns_type": "tapfd", "target": "7"}),
        ("--target-type=bess /tmp/b", {"target_type": "bess", "target": "/tmp/b"}),
        ("-c --mac=02:00:00:00:00:01 12 tap0", {"macaddress": "02:00:00:00:00:01"}),
        ("--disable-dns --outbound-addr=lo 12 t", {"disable_dns": True, "outbound_addr": "lo"}),
        ("-a /tmp/api --cidr 10.1.0.0/16 12 t", {"api_socket": "/tmp/api", "cidr": "10.1.0.0/16"}),
    ],
)
def test_options_are_understood(line: str, expected: dict[str, Any]) -> None:
    options = parse(line.split())
    assert not isinstance(options, str)
    assert {name: getattr(options, name) for name in expected} == expected
    assert not options.follow


def test_more_than_two_arguments_are_only_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    parse(["1", "tap0", "more"])
    assert capsys.readouterr().err == "WARNING: too many arguments\n"


def test_a_letter_that_is_no_option() -> None:
    with pytest.raises(Mistake, match="invalid option -- 'q'"):
        parse(["-q"])


WHOLE = ("--", "-", "-c", "-ce3", "-e", "3", "tap0", "--mtu=9", "--configure=1", "-6c", "")
IN_PART = ("--conf", "--en", "--enable-s", "--m", "--user", "-x", "--foo", "-ax", "--mt=")
WORDS = st.sampled_from([*command.OPTIONS, *WHOLE, *IN_PART])
LETTERS = "".join(n[1] + ":" * v for n, v in command.OPTIONS.items() if not n.startswith("--"))
NAMES = [n[2:] + "=" * v for n, v in command.OPTIONS.items() if n.startswith("--")]


@given(st.lists(WORDS, max_size=6))
def test_words_are_told_from_options_as_getopt_does(arguments: list[str]) -> None:
    """Python's own `getopt` is the judge; it is only too slow to be imported."""
    try:
        expected = getopt.gnu_getopt(arguments, LETTERS, NAMES)
    except getopt.GetoptError:
        with pytest.raises(Mistake, match="slirp4netns: "):
            list(command.split(arguments))
        return
    found = list(command.split(arguments))
    words = [value for option, value in found if not option]
    assert ([pair for pair in found if pair[0]], words) == expected


# --- a namespace ----------------------------------------------------------------------------------


@pytest.fixture
def held() -> Iterator[Holder]:
    with holder() as process:
        yield process


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    with WebServer(CONTENT) as server:
        yield server


@pytest.fixture(scope="module")
def web6() -> Iterator[WebServer]:
    with WebServer(CONTENT, need_ipv6()) as server:
        yield server


def fetched(held: Holder, web: WebServer, host: str = "10.0.2.2") -> str:
    need_tool("curl")
    url = f"http://{host}:{web.port}/"
    result = held.run_in("sh", "-c", f"curl -sS --max-time 20 {url} | sha256sum")
    assert result.stderr == ""
    return result.stdout.split()[0]


def test_namespace_by_process(held: Holder, web: WebServer) -> None:
    options = ("--configure", "--mtu=65520", "--macaddress=02:00:00:00:00:09")
    with attached(*SLIRP4NETNS, *options, str(held.pid), "tap5"):
        shown = held.run_in("ip", "-o", "addr", "show", "dev", "tap5").stdout
        assert "inet 10.0.2.100/24" in shown
        link = held.run_in("ip", "-o", "link", "show", "dev", "tap5").stdout
        assert "mtu 65520" in link
        assert "link/ether 02:00:00:00:00:09" in link
        assert "state UNKNOWN" in held.run_in("ip", "-o", "link", "show", "dev", "lo").stdout
        assert fetched(held, web) == web.digest


@pytest.mark.parametrize("userns", [False, True])
def test_namespace_by_path(held: Holder, web: WebServer, userns: bool) -> None:
    options = ["-c", "--netns-type=path", "--cidr=192.168.77.0/25"]
    if userns:
        options.append(f"--userns-path=/proc/{held.pid}/ns/user")
    with attached(*SLIRP4NETNS, *options, held.path, "tap0"):
        assert fetched(held, web, "192.168.77.2") == web.digest


def test_what_is_said_at_the_start(held: Holder, judge: Judge) -> None:
    """Line by line what slirp4netns says, where both say it."""

    def said(*program: str) -> list[str]:
        argv = ("-c", "--cidr=10.7.0.0/16", str(held.pid), "tap0")
        with attached(*program, *argv) as process:
            process.terminate()
            out, _ = process.communicate(timeout=PATIENCE)
        return out.splitlines()

    ours = said(*SLIRP4NETNS)
    theirs = said(*judge.program("stdbuf"), "-oL", "slirp4netns")
    assert ours == [line for line in theirs if "DHCP" not in line]


def test_device_that_the_caller_has_prepared(web: WebServer) -> None:
    """As RootlessKit does: a persistent TAP device, configured by the caller; no --configure."""
    script = "ip tuntap add name tap0 mode tap; ip link set tap0 up; exec sleep 1000"
    with holder(f"{script}") as held:
        held.run_in("sh", "-c", "until ip -o link show dev tap0 up | grep -q tap0; do :; done")
        with attached(*SLIRP4NETNS, "--mtu", "65520", str(held.pid), "tap0"):
            setup = "ip addr add 10.0.2.100/24 dev tap0; ip route add default via 10.0.2.2"
            assert held.run_in("sh", "-c", setup).returncode == 0
            assert fetched(held, web) == web.digest


def test_host_loopback_can_be_closed(held: Holder, web: WebServer) -> None:
    need_tool("curl")
    with attached(*SLIRP4NETNS, "-c", "--disable-host-loopback", str(held.pid), "tap0"):
        url = f"http://10.0.2.2:{web.port}/"
        assert held.run_in("curl", "-sS", "--max-time", "10", url).returncode == 7


@pytest.mark.parametrize("disabled", [False, True])
def test_dns_can_be_disabled(held: Holder, disabled: bool) -> None:
    need_tool("dig")
    options = ["-c", "--disable-dns"] if disabled else ["-c"]
    with attached(*SLIRP4NETNS, *options, str(held.pid), "tap0"):
        query = ("dig", "@10.0.2.3", "+short", "+time=2", "+tries=1", "host.slirp.internal")
        assert (held.run_in(*query).stdout == "10.0.2.2\n") is not disabled


def test_outbound_address(held: Holder) -> None:
    """From an interface by name; the host's `lo` has an address that only it has."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        attached(*SLIRP4NETNS, "-c", "--outbound-addr=127.0.0.1", str(held.pid), "tap0"),
    ):
        server.settimeout(PATIENCE)
        port = server.getsockname()[1]
        script = f"exec 3<>/dev/tcp/10.0.2.2/{port}; cat <&3"
        with subprocess.Popen([*held.entering(), "bash", "-c", script]) as client:
            connection, peer = server.accept()
            connection.close()
            client.wait(PATIENCE)
    assert peer[0] == "127.0.0.1"


def test_descriptor_of_a_device(held: Holder, web: WebServer) -> None:
    """--netns-type=tapfd: the caller opened the device in the namespace and configures it."""
    program = """
import os, sys
from nic.tap import open_tap
from slirp.linux import netns
wanted = netns.Interface("tap0", "10.0.2.100", 24, "10.0.2.2")
def make():
    fd, _ = open_tap(wanted.name, vnet=False)
    netns.configure(wanted)
    return fd
fd = netns.tap_from(netns.Target(sys.argv[1]), make)
os.set_inheritable(fd, True)
os.execv(sys.executable, [*sys.argv[2:-1], str(fd)])
"""
    argv = (sys.executable, "-c", program, held.path, *SLIRP4NETNS, "--netns-type=tapfd")
    reader, writer = os.pipe()
    with subprocess.Popen([*argv, "-r", str(writer), "FD"], pass_fds=[writer]) as process:
        os.close(writer)
        assert os.read(reader, 1) == b"1"
        assert fetched(held, web) == web.digest
        process.terminate()
    os.close(reader)


def test_ipv6(held: Holder, web6: WebServer) -> None:
    """As Podman asks for it; the address is there at once."""
    need_tool("curl")
    url = f"http://[fd00::2]:{web6.port}/"
    with attached(*SLIRP4NETNS, "-c", "-6", str(held.pid), "tap0") as process:
        shown = held.run_in("ip", "-o", "-6", "addr", "show", "dev", "tap0").stdout
        assert "inet6 fd00::100/64 scope global nodad" in " ".join(shown.split())
        got = held.run_in("sh", "-c", f"curl -sS --max-time 20 {url} | sha256sum")
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert (err, got.stdout.split()[0]) == ("", web6.digest)


def test_no_ipv6_unless_asked_for(held: Holder) -> None:
    with attached(*SLIRP4NETNS, "-c", str(held.pid), "tap0"):
        shown = held.run_in("ip", "-o", "-6", "addr", "show", "dev", "tap0", "scope", "global")
        asked = held.run_in("ping", "-6", "-c1", "-W1", "fe80::2%tap0")
    assert shown.stdout == ""
    assert asked.returncode != 0


# --- the end --------------------------------------------------------------------------------------


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        for fd in (reader, writer):
            if fd in map(int, os.listdir("/proc/self/fd")):
                os.close(fd)


def test_exit_descriptor_ends_it(held: Holder) -> None:
    """The caller closes its end: the device goes, and the exit status is 0."""
    with pipe() as (ready, ready_writer), pipe() as (exit_reader, exit_writer):
        options = ("-c", "-r", str(ready_writer), "-e", str(exit_reader))
        with subprocess.Popen(
            [*SLIRP4NETNS, *options, str(held.pid), "tap0"], pass_fds=[ready_writer, exit_reader]
        ) as process:
            os.close(ready_writer)
            assert os.read(ready, 2) == b"1"
            assert not select.select([ready], [], [], 0)[0] or os.read(ready, 1) == b""
            os.close(exit_writer)
            assert process.wait(PATIENCE) == 0
    assert held.run_in("ip", "-o", "link", "show", "dev", "tap0").returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it(held: Holder, number: int, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with attached(*SLIRP4NETNS, "-c", "-a", str(path), str(held.pid), "tap0") as process:
        assert path.exists()
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
    assert not path.exists()


def test_device_that_goes_away_is_a_plain_message(held: Holder) -> None:
    with attached(*SLIRP4NETNS, "-c", str(held.pid), "tap0") as process:
        held.run_in("ip", "link", "del", "tap0")
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err == "tap0: the TAP device or its namespace is gone\n"


# --- the control socket ---------------------------------------------------------------------------


def conversation(port: int) -> list[bytes]:
    """Requests that slirp4netns survives."""
    here = {"host_addr": "127.0.0.1", "host_port": port}
    return [
        b'{"execute": "list_hostfwd"}',
        add(proto="tcp", **here, guest_port=80),
        add(proto="tcp", **here, guest_port=81),
        add(proto="udp", **here, guest_addr="10.0.2.77", guest_port=82),
        b'{"execute": "list_hostfwd"}',
        add(proto="sctp", **here, guest_port=80),
        add(proto="tcp", host_addr="zzz", host_port=1, guest_port=80),
        add(proto="tcp", host_port=0, guest_port=80),
        add(proto="tcp", host_port="80", guest_port=80),
        add(proto="tcp", host_port=port),
        add(proto="tcp", host_port=port, guest_addr="xx", guest_port=80),
        add(proto="tcp6", host_port=port, guest_port=80),
        add(proto="udp", host_addr="::1", host_port=port, guest_port=80),
        b'{"execute": "remove_hostfwd", "arguments": {"id": 7}}',
        b'{"execute": "remove_hostfwd", "arguments": {"id": 1}}',
        b'{"execute": "remove_hostfwd", "arguments": {"id": 1}}',
        b'{"execute": "remove_hostfwd", "arguments": {"id": "2"}}',
        b'{"execute": "remove_hostfwd"}',
        b'{"execute": "list_hostfwd"',
        b"",
        b'{"execute": "foo"}',
        b'{"execute": 7}',
        b'{"foo": 7}',
        b"[1]",
        b"17",
        b"nonsense",
        b'{"execute": "list_hostfwd"} and more',
        b'{"execute": "' + b"x" * 5000 + b'"}',
    ]


def test_control_socket_answers_as_slirp4netns(held: Holder, tmp_path: Path, judge: Judge) -> None:
    requests = conversation(free_port())

    def replies(*program: str) -> list[Any]:
        path = tmp_path / "api.sock"
        with attached(*program, "-c", "-a", str(path), str(held.pid), "tap0"):
            return [json.loads(ask(path, request)) for request in requests]

    ours = replies(*SLIRP4NETNS)
    for reply in ours:
        if "entries" in reply:  # the manual's form, which slirp4netns itself does not give
            assert reply.pop("return") == {"entries": reply["entries"]}
    assert ours == replies(*judge.argv(tmp_path))


SERVER = "import socket; s = socket.create_server(('', 80)); print(flush=True); "
SERVER += "c, peer = s.accept(); c.sendall(c.recv(100).upper()); print(peer[0])"


def test_forward_by_the_control_socket(held: Holder, tmp_path: Path) -> None:
    path, port = tmp_path / "api.sock", free_port()
    serving = [*held.entering(), "python3", "-c", SERVER]
    with (
        attached(*SLIRP4NETNS, "-c", "-a", str(path), str(held.pid), "tap0"),
        subprocess.Popen(serving, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        server.stdout.readline()
        request = add(proto="tcp", host_addr="127.0.0.1", host_port=port, guest_port=80)
        assert ask(path, request) == b'{"return":{"id":1}}'
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"HELLO"
        assert server.stdout.read() == "10.0.2.2\n"
        assert ask(path, b'{"execute": "remove_hostfwd", "arguments": {"id": 1}}') == (
            b'{"return":{}}'
        )
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), PATIENCE)


# --- giving up rights: see test_netns_server.py ---------------------------------------------------


def test_seccomp_without_its_library_is_refused(held: Holder) -> None:
    block = "import sys; sys.modules['seccomp'] = sys.modules['pyseccomp'] = None; "
    block += "from slirp.cli.slirp4netns import main; sys.exit(main(sys.argv[1:]))"
    result = run(sys.executable, "-c", block, "--enable-seccomp", str(held.pid), "tap0")
    assert result.returncode == 1
    assert "needs libseccomp's Python binding" in result.stderr
