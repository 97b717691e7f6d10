"""The sandbox and the filter, each in a process that may be spoilt."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from slirp.errors import ConfigError
from slirp.linux import sandbox
from tests.kit.namespace import PYTHON, as_user, run
from tests.kit.need import missing, need_netns, need_root


@pytest.fixture(params=["root", "user"])
def who(request: pytest.FixtureRequest) -> tuple[str, ...]:
    need_netns()
    if request.param == "root":
        need_root()
        return ()
    return as_user()


def in_process(program: str, who: tuple[str, ...] = ()) -> str:
    result = run(*who, *PYTHON, "-c", program)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_file_system_is_empty_and_stays_so(who: tuple[str, ...]) -> None:
    program = """
import os
from slirp.linux import sandbox
sandbox.enter_sandbox()
print(os.listdir("/"), os.getcwd())
try:
    open("/new", "w")
except OSError as error:
    print(error.strerror)
try:
    os.chdir("..")
    os.mkdir("other")
except OSError as error:
    print(error.strerror)
"""
    assert in_process(program, who).splitlines() == [
        "[] /",
        "Read-only file system",
        "Read-only file system",
    ]


def test_rights_are_gone(who: tuple[str, ...]) -> None:
    program = """
import os, socket
from slirp.linux import syscalls, sandbox
status = open("/proc/self/status")
sandbox.enter_sandbox()
status.seek(0)
print(*[line.split()[1] for line in status if line.startswith(("Cap", "NoNewPrivs"))])
status.close()
for forbidden in (
    lambda: socket.create_server(("127.0.0.1", 1)),
    lambda: syscalls.mount("x", "/", "tmpfs"),
    lambda: syscalls.unshare(syscalls.CLONE_NEWNET),
):
    try:
        forbidden()
    except PermissionError:
        print("refused")
socket.create_server(("127.0.0.1", 0)).close()
"""
    words = in_process(program, who).split()
    assert words == ["0000000000000000"] * 5 + ["1"] + ["refused"] * 3


def test_late_imports_work_inside(who: tuple[str, ...]) -> None:
    """What the network imports when it is first used: long sums, a codec, a traceback."""
    program = """
from slirp.linux import sandbox
sandbox.enter_sandbox()
from slirp.wire import checksum
print(checksum.fold(checksum.ones_sum([memoryview(b"ab" * 100_000)])))
"name".encode("idna"), b"x".decode("latin-1")
import traceback
traceback.format_stack()
"""
    expected = (0x6162 * 100_000) % 0xFFFF
    assert int(in_process(program, who)) % 0xFFFF == expected


def test_threads_would_keep_their_rights() -> None:
    program = """
import threading
from slirp.linux import netns, sandbox
stop = threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
try:
    sandbox.enter_sandbox()
except netns.NamespaceError as error:
    print(error)
stop.set()
"""
    assert in_process(program).startswith("2 threads run")


def test_keeper_reports_changes(tmp_path: Path) -> None:
    program = f"""
import os, select
from slirp.linux.sandbox import ResolvKeeper
path = {str(tmp_path)!r} + "/resolv.conf"
open(path, "w").close()
keeper = ResolvKeeper(path)
print(keeper.read())
with open(path + ".new", "w") as file:
    file.write("nameserver 192.0.2.1\\n")
os.rename(path + ".new", path)
print(keeper.read())
os.unlink(path)
print(keeper.read())
assert not select.select([keeper], [], [], 0)[0]
keeper.close()
"""
    assert in_process(program).splitlines() == [
        r"b'\n'",
        r"b'nameserver 192.0.2.1\n'",
        r"b'\n'",
    ]


def test_keeper_holds_no_descriptor_open() -> None:
    """Whoever waits for a pipe of the network's to close must not wait for the keeper."""
    program = """
import os
from slirp.linux.sandbox import ResolvKeeper
reader, writer = os.pipe()
keeper = ResolvKeeper()
keeper.read()
os.close(writer)
print(os.read(reader, 1))
os.close(reader)
keeper.close()
"""
    assert in_process(program) == "b''\n"


def test_keeper_ends_with_the_network() -> None:
    program = """
import os, select, signal
from slirp.linux.sandbox import ResolvKeeper
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    keeper = ResolvKeeper()
    os.write(writer, str(keeper.pid).encode())
    signal.pause()
keeper = os.pidfd_open(int(os.read(reader, 20)))
os.kill(child, signal.SIGKILL)
assert select.select([keeper], [], [], 10)[0]
print("ended")
"""
    assert in_process(program) == "ended\n"


def test_filter_refuses_and_lets_through(who: tuple[str, ...]) -> None:
    if not sandbox.seccomp_available():
        missing("neither seccomp nor pyseccomp is installed")
    program = """
import os, socket
from slirp.linux import syscalls, sandbox
calls = sandbox.seccomp_loader()()
assert {"execve", "ptrace", "mount", "kexec_load", "bpf"} <= set(calls)
for forbidden in (
    lambda: os.execv("/bin/true", ["true"]),
    lambda: syscalls.unshare(syscalls.CLONE_NEWUSER),
    lambda: syscalls.mount("x", "/", "tmpfs"),
    lambda: os.pidfd_open(os.getpid()),
):
    try:
        forbidden()
    except PermissionError:
        print("refused")
socket.create_server(("127.0.0.1", 0)).close()
"""
    assert in_process(program, who).split() == ["refused"] * 4


def test_every_refused_call_is_known() -> None:
    if not sandbox.seccomp_available():
        missing("neither seccomp nor pyseccomp is installed")
    names = " ".join(sandbox.REFUSED_CALLS).split()
    program = "from slirp.linux import sandbox; print(*sandbox.seccomp_loader()())"
    assert in_process(program).split() == names
    assert len(set(names)) == len(names)


def test_filter_without_a_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("seccomp", "pyseccomp"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not sandbox.seccomp_available()
    assert sandbox.seccomp_version() is None
    with pytest.raises(ConfigError, match="apt-get install python3-seccomp"):
        sandbox.seccomp_loader()
