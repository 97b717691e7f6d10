"""Namespaces that exist, entered as root and as an ordinary user.

Each test runs a process of its own, since namespaces want one without threads.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.kit import namespace
from tests.kit.namespace import ORDINARY, PYTHON
from tests.kit.need import need_root

ENTER = """
import os, sys, subprocess
from nic.tap import open_tap
from slirp.linux import netns
pid, netns_path, userns_path = sys.argv[1:]
wanted = netns.Interface("tap7", "10.0.2.100", 24, "10.0.2.2")
def make():
    fd, _ = open_tap(wanted.name)
    netns.configure(wanted)
    return fd
before = os.readlink("/proc/self/ns/net")
try:
    fd = netns.tap_from(netns.Target(netns_path, userns_path or None), make)
except netns.NamespaceError as error:
    sys.exit(f"error: {error}")
assert os.readlink("/proc/self/ns/net") == before
assert not os.get_inheritable(fd)
print(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")), flush=True)
enter = ("nsenter", "--target", pid, "--user", "--preserve-credentials", "--net")
subprocess.run([*enter, "ip", "-o", "-4", "addr"], check=True)
"""


@pytest.fixture
def holder() -> Iterator[int]:
    with namespace.holder() as held:
        yield held.pid


def tap_from(
    pid: int, netns: str, userns: str = "", who: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return namespace.run(*who, *PYTHON, "-c", ENTER, str(pid), netns, userns)


@pytest.mark.parametrize("userns", ["", "/proc/{pid}/ns/user"])
def test_tap_from_another_processes_namespace(holder: int, userns: str) -> None:
    result = tap_from(holder, f"/proc/{holder}/ns/net", userns.format(pid=holder))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("tun\n")
    assert "tap7    inet 10.0.2.100/24" in result.stdout


def test_namespace_that_is_not_there(holder: int) -> None:
    result = tap_from(holder, "/no/such/namespace")
    assert result.stderr == "error: /no/such/namespace: No such file or directory\n"


def test_file_that_is_no_namespace(holder: int) -> None:
    result = tap_from(holder, "/etc/passwd")
    assert result.returncode == 1
    assert result.stderr.startswith("error: /etc/passwd: not a network namespace")


def test_namespace_that_is_somebody_elses(holder: int) -> None:
    need_root()  # else the holder is our own
    result = tap_from(holder, f"/proc/{holder}/ns/net", who=ORDINARY)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "ermi" in result.stderr  # permission denied, or operation not permitted
