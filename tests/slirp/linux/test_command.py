"""A command in a namespace of its own, as root and as an ordinary user.

Each test runs a process of its own, since namespaces want one without threads.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.kit import namespace
from tests.kit.namespace import PYTHON, ROOT, as_user
from tests.kit.need import need_root, need_tool, need_tun

PROGRAM = """
import contextlib, sys
from nic.tap import open_tap
from slirp.linux import netns
from slirp.linux.command import Command
wanted = netns.Interface({interface})
def make():
    fd, name = open_tap(wanted.name)
    netns.configure(wanted)
    return fd
command = Command(sys.argv[1:], make, files=lambda: {files!r}, map_root={map_root})
with contextlib.closing(command):
    command.ready()
    {between}
    command.start()
    status = command.wait()
sys.exit(status)
"""
INTERFACE = '"tap0", "10.0.2.100", 24, "10.0.2.2", 1400, "02:00:00:00:00:05"'


@pytest.fixture(params=["root", "user"])
def who(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """What to put before a command line so that it runs as this kind of user."""
    need_tun()
    need_tool("ip")
    if request.param == "root":
        need_root()
        return ()
    return as_user()


def in_namespace(
    *argv: str,
    who: tuple[str, ...] = (),
    interface: str = INTERFACE,
    files: dict[str, str] | None = None,
    map_root: bool = False,
    between: str = "",
) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(
        interface=interface, files=files or {}, map_root=map_root, between=between
    )
    return namespace.run(*who, *PYTHON, "-c", program, *argv)


def output(*argv: str, who: tuple[str, ...], **options: bool) -> str:
    result = in_namespace(*argv, who=who, **options)  # type: ignore[arg-type]  # flags by name
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_interface_is_configured(who: tuple[str, ...]) -> None:
    script = "ip -4 -o addr show; ip -o link show; ip route; ip route get 192.0.2.1"
    text = output("sh", "-c", script, who=who)
    assert "inet 10.0.2.100/24 brd 10.0.2.255" in text
    assert "inet 127.0.0.1/8" in text
    assert "mtu 1400" in text
    assert "link/ether 02:00:00:00:00:05" in text
    assert "default via 10.0.2.2 dev tap0" in text
    assert "192.0.2.1 via 10.0.2.2 dev tap0 src 10.0.2.100" in text


def test_only_the_device_without_an_address(who: tuple[str, ...]) -> None:
    result = in_namespace("ip", "-4", "-o", "addr", "show", who=who, interface='"guest0"')
    assert "inet 127.0.0.1/8" in result.stdout
    assert "guest0" not in result.stdout


def test_identity_is_kept(who: tuple[str, ...]) -> None:
    expected = "1000" if who else str(os.geteuid())
    assert output("id", "-u", who=who).strip() == expected


def test_root_that_may_not_takes_a_user_namespace() -> None:
    """Root inside a container, without CAP_SYS_ADMIN."""
    need_tun()
    need_root()
    who = (need_tool("setpriv"), "--bounding-set", "-sys_admin")
    script = "readlink /proc/self/ns/user; id -u; ip -o -4 addr show dev tap0"
    inside, uid, address = output("sh", "-c", script, who=who).splitlines()
    assert inside != os.readlink("/proc/self/ns/user")
    assert uid == "0"
    assert "inet 10.0.2.100/24" in address


def test_identity_is_root_when_asked_for(who: tuple[str, ...]) -> None:
    script = "id -u; ip link set tap0 mtu 1300; ip -o link show tap0"
    text = output("sh", "-c", script, who=who, map_root=True)
    assert text.startswith("0\n")
    assert "mtu 1300" in text


def test_ping_needs_no_privilege(who: tuple[str, ...]) -> None:
    need_tool("ping")
    assert "1 received" in output("ping", "-c1", "-W5", "127.0.0.1", who=who)


def test_files_are_the_commands_own(who: tuple[str, ...]) -> None:
    files = {"resolv.conf": "nameserver 10.0.2.3\n", "hosts": "10.0.2.2 gate\n"}
    before = Path("/etc/resolv.conf").read_text()
    script = "cat /etc/resolv.conf /etc/hosts; pwd; ls /tmp | head -c 1"
    result = in_namespace("sh", "-c", script, who=who, files=files)
    lines = result.stdout.splitlines()
    assert lines[0] == "nameserver 10.0.2.3"
    assert lines[1] == "10.0.2.2 gate"
    assert lines[2] == str(ROOT)
    assert result.stderr == ""
    assert Path("/etc/resolv.conf").read_text() == before


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 128 + signal.SIGTERM)]
)
def test_exit_status(who: tuple[str, ...], script: str, status: int) -> None:
    assert in_namespace("sh", "-c", script, who=who).returncode == status


def test_command_not_found_and_not_executable(who: tuple[str, ...]) -> None:
    result = in_namespace("no-such-command", who=who)
    assert (result.returncode, result.stderr.count("\n")) == (127, 1)
    assert "no-such-command: No such file or directory" in result.stderr
    result = in_namespace("/etc", who=who)
    assert (result.returncode, result.stderr.count("\n")) == (126, 1)


def test_command_starts_with_default_signals(who: tuple[str, ...]) -> None:
    status = output("cat", "/proc/self/status", who=who)
    values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    of_libc = 0b11 << 31  # signals 32 and 33: the C library lets nobody change them
    assert int(values["SigIgn"], 16) & ~of_libc == int(values["SigBlk"], 16) == 0


def test_command_inherits_no_descriptor(who: tuple[str, ...]) -> None:
    assert output("ls", "/proc/self/fd", who=who).split() == ["0", "1", "2", "3"]  # 3: ls's own


def test_command_waits_for_its_network(tmp_path: Path) -> None:
    need_tun()
    between = "command.close(); sys.exit(3)"
    result = in_namespace("touch", str(tmp_path / "never"), between=between)
    assert result.returncode == 3
    assert list(tmp_path.iterdir()) == []


def test_command_dies_with_the_parent(who: tuple[str, ...]) -> None:
    between = "import os, signal; command.start(); os.kill(os.getpid(), signal.SIGKILL)"
    # The output ends when the last holder of the pipe is gone: `run` waits for that, bounded.
    result = in_namespace("sleep", "1000", who=who, between=between)
    assert result.returncode == -signal.SIGKILL


def test_error_inside_is_told_in_one_line(who: tuple[str, ...]) -> None:
    result = in_namespace("true", who=who, interface='"tap0", mtu=17000000')
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("NamespaceError: Invalid argument")
