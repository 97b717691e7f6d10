"""What a network for a namespace still can, and cannot, once it has given up its rights.

The sandbox is slirp4netns's. Where slirp4netns is installed it stands beside ours: what the kernel
says of the one process (capabilities, directories) it says of the other.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.addresses import own_loopback
from tests.kit.control import add, ask
from tests.kit.host_files import HostFiles
from tests.kit.nameserver import Nameserver
from tests.kit.namespace import (
    PATIENCE,
    PYTHON,
    SLIRP,
    SLIRP4NETNS,
    Holder,
    as_user,
    attached,
    holder,
    run,
)
from tests.kit.need import need_root, need_tool
from tests.kit.ports import free_port
from tests.kit.web import WebServer

CONTENT = bytes(range(256)) * 4000
ATTACH = (*SLIRP, "attach")
COMMANDS = pytest.mark.parametrize(
    "command", [SLIRP4NETNS, ATTACH], ids=["slirp4netns-py", "attach"]
)


@pytest.fixture
def held() -> Iterator[Holder]:
    with holder() as process:
        yield process


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    with WebServer(CONTENT) as server:
        yield server


def fetched(held: Holder, web: WebServer) -> str:
    need_tool("curl")
    url = f"http://10.0.2.2:{web.port}/"
    return held.run_in("sh", "-c", f"curl -sS --max-time 20 {url} | sha256sum").stdout.split()[0]


def status_of(process: subprocess.Popen[str]) -> dict[str, str]:
    text = Path(f"/proc/{process.pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


# --- rights ---------------------------------------------------------------------------------------

SETS = ("CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
NET_BIND_SERVICE = "0000000000000400"  # capabilities(7): bit 10


@COMMANDS
def test_the_one_capability_is_for_low_ports(held: Holder, command: tuple[str, ...]) -> None:
    need_root()
    with attached(*command, "-c", "--enable-sandbox", str(held.pid), "tap0") as process:
        status = status_of(process)
    assert [status[name] for name in SETS] == [*[NET_BIND_SERVICE] * 3, "0" * 16, "1"]
    assert status["CapInh"] == "0" * 16  # there is nothing to pass it on to


def test_capabilities_and_directories_are_those_of_slirp4netns(held: Holder) -> None:
    need_root()
    seen = []
    for command in (SLIRP4NETNS, (need_tool("slirp4netns"),)):
        with attached(*command, "-c", "--enable-sandbox", str(held.pid), "tap0") as process:
            status = status_of(process)
            root = Path(f"/proc/{process.pid}/root")
            seen.append(
                (
                    [status[name] for name in SETS],
                    sorted(os.listdir(root)),
                    sorted(os.listdir(root / "etc")),
                    sorted(os.listdir(root / "run")),
                )
            )
    assert seen[0] == seen[1]


def test_sandbox_of_an_ordinary_user() -> None:
    inside = """
import os
from tests.kit.namespace import SLIRP4NETNS, attached, holder
from tests.kit.ports import free_port
with holder() as held, attached(*SLIRP4NETNS, "-c", "--enable-sandbox", str(held.pid), "tap0") as p:
    print(held.run_in("ping", "-c1", "-W5", "10.0.2.2").stdout)
    print(open(f"/proc/{p.pid}/status").read())
"""
    need_tool("ping")
    result = run(*as_user(), sys.executable, "-c", inside)
    assert "1 received" in result.stdout, result.stderr
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert f"{name}:\t{NET_BIND_SERVICE}" in result.stdout


@COMMANDS
def test_low_port_is_forwarded_after_the_sandbox_was_closed(
    held: Holder, tmp_path: Path, command: tuple[str, ...]
) -> None:
    need_root()
    path = tmp_path / "api.sock"
    options = ("-c", "--enable-sandbox", "-a", str(path))
    script = """
import socket
server = socket.create_server(("", 8080))
print(flush=True)
connection, _ = server.accept()
connection.sendall(b"from port 80")
"""
    serving = [*held.entering(), sys.executable, "-c", script]
    with (
        attached(*command, *options, str(held.pid), "tap0"),
        subprocess.Popen(serving, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        server.stdout.readline()
        host = own_loopback(3)
        request = add(proto="tcp", host_addr=host, host_port=80, guest_port=8080)
        assert ask(path, request) == b'{"return":{"id":1}}'
        with socket.create_connection((host, 80), PATIENCE) as client:
            assert client.recv(100) == b"from port 80"


# --- files ----------------------------------------------------------------------------------------


@COMMANDS
def test_etc_and_run_are_seen_read_only_and_nothing_else(
    held: Holder, tmp_path: Path, command: tuple[str, ...]
) -> None:
    host = HostFiles(tmp_path)
    with attached(
        *host.seen_by, *command, "-c", "--enable-sandbox", str(held.pid), "tap0"
    ) as process:
        root = Path(f"/proc/{process.pid}/root")
        assert sorted(os.listdir(root)) == ["etc", "run"]
        host.etc("new").write_text("seen")
        host.path("/run/new").write_text("seen too")
        assert (root / "etc" / "new").read_text() == "seen"
        assert (root / "run" / "new").read_text() == "seen too"
        for place in ("new", "etc/new", "run/other"):
            with pytest.raises(OSError, match="Read-only file system"):
                (root / place).write_text("x")


def test_no_process_stays_outside(held: Holder) -> None:
    """resolv.conf is read from inside."""
    need_root()
    with attached(*SLIRP4NETNS, "-c", "--enable-sandbox", str(held.pid), "tap0") as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    assert children == ""


# --- the host's resolvers -------------------------------------------------------------------------

BEFORE, AFTER = own_loopback(1), own_loopback(2)


def names(server: str) -> str:
    return f"nameserver {server}\n"


def plain_file(host: HostFiles) -> Callable[[], None]:
    host.etc("resolv.conf").write_text(names(BEFORE))
    return lambda: host.replace("/etc/resolv.conf", names(AFTER))


def written_in_place(host: HostFiles) -> Callable[[], None]:
    host.etc("resolv.conf").write_text(names(BEFORE))

    def change() -> None:
        host.etc("resolv.conf").write_text(names(AFTER))

    return change


def link_into_run(host: HostFiles) -> Callable[[], None]:
    """As systemd-resolved has it: the file that the link leads to is another."""
    host.replace("/run/systemd/resolve/stub-resolv.conf", names(BEFORE))
    host.etc("resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    return lambda: host.replace("/run/systemd/resolve/stub-resolv.conf", names(AFTER))


def chain_of_links(host: HostFiles) -> Callable[[], None]:
    """A link in the middle leads elsewhere."""
    host.replace("/run/one/resolv.conf", names(BEFORE))
    host.replace("/run/two/resolv.conf", names(AFTER))
    host.path("/run/current").symlink_to("one")
    host.etc("resolv.conf").symlink_to("resolvconf/link")
    host.etc("resolvconf").mkdir()
    host.etc("resolvconf/link").symlink_to("/run/current/resolv.conf")
    return lambda: host.replace_by_link("/run/current", "two")


def file_becomes_a_link(host: HostFiles) -> Callable[[], None]:
    host.etc("resolv.conf").write_text(names(BEFORE))
    host.replace("/run/resolv.conf", names(AFTER))
    return lambda: host.replace_by_link("/etc/resolv.conf", "/run/resolv.conf")


def link_that_dangled(host: HostFiles) -> Callable[[], None]:
    """A resolver's program starts after the network."""
    host.etc("resolv.conf").symlink_to("/run/late/resolv.conf")
    return lambda: host.replace("/run/late/resolv.conf", names(AFTER))


def link_out_of_sight(host: HostFiles) -> Callable[[], None]:
    """Below /srv, which the sandbox hides."""
    host.replace("/srv/resolv.conf", names(BEFORE))
    host.etc("resolv.conf").symlink_to("/srv/resolv.conf")
    return lambda: host.replace("/srv/resolv.conf", names(AFTER))


CHANGES = [
    plain_file,
    written_in_place,
    link_into_run,
    chain_of_links,
    file_becomes_a_link,
    link_that_dangled,
    link_out_of_sight,
]


@pytest.mark.parametrize("setup", CHANGES)
def test_change_of_resolver_is_followed(
    held: Holder, tmp_path: Path, setup: Callable[[HostFiles], Callable[[], None]]
) -> None:
    need_tool("dig")
    host = HostFiles(tmp_path, also=("/srv",))
    change = setup(host)
    dig = "dig @10.0.2.3 +short +time=1 +tries=1 example.test"
    with (
        Nameserver(BEFORE, "192.0.2.1"),
        Nameserver(AFTER, "192.0.2.2"),
        attached(*host.seen_by, *SLIRP4NETNS, "-c", "--enable-sandbox", str(held.pid), "tap0"),
    ):
        if setup is not link_that_dangled:
            assert held.run_in(*dig.split()).stdout == "192.0.2.1\n"
        change()
        until = f'until [ "$({dig})" = 192.0.2.2 ]; do :; done'
        assert held.run_in("sh", "-c", until).returncode == 0


# --- everything together --------------------------------------------------------------------------


def test_sandbox_and_seccomp_leave_a_working_network(
    held: Holder, web: WebServer, tmp_path: Path
) -> None:
    """Everything that is imported or opened late, with few files and rights left."""
    need_root()  # an ordinary user may not look at /proc/PID/root
    for tool in ("dig", "ping"):
        need_tool(tool)
    path, port = tmp_path / "api.sock", free_port()
    options = ("-c", "--enable-sandbox", "--enable-seccomp", "-a", str(path))
    with attached(*SLIRP4NETNS, *options, str(held.pid), "tap0") as process:
        status = status_of(process)
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        use_everything(held, web, path, port)
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
    assert err.startswith("seccomp refuses execve ")
    assert err.count("\n") == 1


def use_everything(held: Holder, web: WebServer, path: Path, port: int) -> None:
    """Every kind of traffic, and every request of the control socket."""
    assert fetched(held, web) == web.digest
    for transport in ("+notcp", "+tcp"):
        query = ("dig", "@10.0.2.3", "+short", "+time=3", transport, "host.slirp.internal")
        assert held.run_in(*query).stdout == "10.0.2.2\n"
    held.run_in("dig", "@10.0.2.3", "+time=1", "+tries=1", "example.test")
    assert "1 received" in held.run_in("ping", "-c1", "-W5", "-s", "4000", "10.0.2.2").stdout
    held.run_in("dig", "@10.0.2.99", "+time=1", "+tries=1")  # nobody there
    held.run_in("sh", "-c", "head -c 200000 /dev/zero | nc -u -w1 10.0.2.2 9")
    request = add(proto="udp", host_addr="127.0.0.1", host_port=port, guest_port=80)
    assert ask(path, request) == b'{"return":{"id":1}}'
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"to nobody", ("127.0.0.1", port))
    assert b"entries" in ask(path, b'{"execute": "list_hostfwd"}')
    assert ask(path, b'{"execute": "remove_hostfwd", "arguments": {"id": 1}}') == b'{"return":{}}'
    assert b"cannot parse JSON" in ask(path, b"nonsense")


def test_nothing_is_imported_after_the_sandbox_was_closed(
    held: Holder, web: WebServer, tmp_path: Path
) -> None:
    """Python's own record of its imports (-X importtime), from readiness on."""
    need_root()
    for tool in ("dig", "ping"):
        need_tool(tool)
    path, log = tmp_path / "api.sock", tmp_path / "imports"
    program = (PYTHON[0], "-X", "importtime", *PYTHON[1:], *SLIRP[len(PYTHON) :], "attach")
    options = ("-c", "--enable-sandbox", "--stats", "-a", str(path))
    into = ("sh", "-c", f'exec "$@" 2>{log}', "sh")
    with attached(*into, *program, *options, str(held.pid), "tap0") as process:
        before = log.read_text()
        use_everything(held, web, path, free_port())
        process.terminate()
        process.wait(PATIENCE)
    assert "import time:" in before
    late = log.read_text().removeprefix(before)
    assert [line for line in late.splitlines() if line.startswith("import time:")] == []
    assert '"tcp"' in late
