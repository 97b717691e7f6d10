"""The sandbox, in processes that may be spoilt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slirp.linux import lookup, sandbox
from tests.kit.host_files import HostFiles
from tests.kit.namespace import PYTHON, as_user, run
from tests.kit.need import need_netns, need_root, need_tool


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


def test_etc_and_run_are_left_and_stay_as_they_are(who: tuple[str, ...]) -> None:
    program = """
import os
from slirp.linux import sandbox
sandbox.enter_sandbox()
print(sorted(os.listdir("/")), os.getcwd(), os.path.exists("/etc/passwd"))
for path in ("/new", "/etc/new", "/run/new"):
    try:
        open(path, "w")
    except OSError as error:
        print(error.strerror)
try:
    os.chdir("..")
    os.mkdir("other")
except OSError as error:
    print(error.strerror)
"""
    assert in_process(program, who).splitlines() == [
        "['etc', 'run'] / True",
        *["Read-only file system"] * 4,
    ]


@pytest.mark.parametrize("has_mount_setattr", [True, False])
def test_what_is_mounted_below_is_read_only_too(has_mount_setattr: bool, tmp_path: Path) -> None:
    """As /run/user/1000 and /run/lock are; also before Linux 5.12."""
    need_root()
    need_tool("unshare")
    program = """
import errno, os, sys
from slirp.linux import sandbox, syscalls
os.makedirs("/run/lower/a b")
syscalls.mount("test", "/run/lower/a b", "tmpfs")
os.mkdir("/run/lower/a b/deeper")
syscalls.mount("test", "/run/lower/a b/deeper", "tmpfs")
def no_such_call(path, attributes):
    raise OSError(errno.ENOSYS, "Function not implemented")
if sys.argv[1] == "False":
    syscalls.mount_setattr = no_such_call
sandbox.enter_sandbox()
for path in ("/run/lower/x", "/run/lower/a b/x", "/run/lower/a b/deeper/x"):
    try:
        open(path, "w")
    except OSError as error:
        print(error.strerror)
"""
    host = HostFiles(tmp_path)
    result = run(*host.seen_by, *PYTHON, "-c", program, str(has_mount_setattr))
    assert result.stdout.splitlines() == ["Read-only file system"] * 3, result.stderr


def test_mounts_of_the_host_come_and_go(tmp_path: Path) -> None:
    """What the host unmounts is not kept from going, as a stick below /run/media would be."""
    need_root()
    need_tool("unshare")
    program = """
import os
from slirp.linux import sandbox, syscalls
syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_SHARED)
os.mkdir("/run/media")
syscalls.mount("test", "/run/media", "tmpfs")
open("/run/media/file", "w").close()
ready, told = os.pipe()
go, gone = os.pipe()
if os.fork() == 0:
    sandbox.enter_sandbox()
    before = os.listdir("/run/media")
    os.write(told, b".")
    os.read(go, 1)
    print(before, os.listdir("/run/media"), flush=True)
    os._exit(0)
os.read(ready, 1)
syscalls.umount("/run/media")
os.write(gone, b".")
os.wait()
"""
    host = HostFiles(tmp_path)
    result = run(*host.seen_by, *PYTHON, "-c", program)
    assert result.stdout == "['file'] []\n", result.stderr


def test_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    etc, run_, srv = (tmp_path / name for name in ("etc", "run", "srv"))
    for folder in (etc, run_, srv):
        folder.mkdir()
    monkeypatch.setattr(sandbox, "SHOWN", (str(etc), str(run_)))
    monkeypatch.setattr(lookup, "entries", within(tmp_path, lookup.entries))
    assert sandbox.is_shown(f"{etc}/no-such-file")
    (etc / "in").symlink_to(run_ / "file")
    (etc / "out").symlink_to(srv / "file")
    (srv / "back").symlink_to(run_)
    (etc / "through").symlink_to(srv / "back" / "file")
    assert sandbox.is_shown(f"{etc}/in")
    assert not sandbox.is_shown(f"{etc}/out")
    assert not sandbox.is_shown(f"{etc}/through")  # as /var/run/… would be


def within(top: Path, entries: Callable[[str], list[str]]) -> Callable[[str], list[str]]:
    return lambda path: [e for e in entries(path) if e.startswith(f"{top}/")]


RIGHTS = """
import os, socket
from slirp.linux import syscalls, sandbox
status = open("/proc/self/status")
sandbox.enter_sandbox()
status.seek(0)
print(*[line.split()[1] for line in status if line.startswith(("Cap", "NoNewPrivs"))])
status.close()
for wanted in (
    lambda: syscalls.mount("x", "/", "tmpfs"),
    lambda: syscalls.unshare(syscalls.CLONE_NEWNET),
    lambda: socket.create_server(("127.0.0.1", 1)).close(),
    lambda: socket.create_server(("127.0.0.1", 0)).close(),
):
    try:
        wanted()
        print("allowed")
    except PermissionError:
        print("refused")
"""
NONE, LOW_PORTS = f"{0:016x}", f"{1 << 10:016x}"  # capabilities(7): CAP_NET_BIND_SERVICE is 10


def test_rights_are_gone_but_for_low_ports(who: tuple[str, ...]) -> None:
    words = in_process(RIGHTS, who).split()
    # inherited, permitted, effective, bounding, ambient; no new privileges
    assert words[:6] == [NONE, LOW_PORTS, LOW_PORTS, LOW_PORTS, NONE, "1"]
    # An ordinary user has it for a namespace of its own, and that is not the host's.
    low_port = "refused" if who else "allowed"
    assert words[6:] == ["refused", "refused", low_port, "allowed"]


def test_no_right_is_made_up() -> None:
    """Root of a container that may not have low ports."""
    need_root()
    without = (need_tool("setpriv"), "--bounding-set", "-net_bind_service")
    words = in_process(RIGHTS, without).split()
    assert words == [*[NONE] * 5, "1", *["refused"] * 3, "allowed"]


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


BEFORE_THE_SANDBOX = {
    "slirp.cli.options forward_auto slirp.control.auto",
    "slirp.linux.listening _psutil psutil",  # or never: there is no /proc for it to look at
    *(
        f"slirp.host.endpoints images {name}"
        for name in (  # the demo's, which has no sandbox
            "dma.scsi.endpoint",
            "slirp.host.image_uring",
            "slirp.host.image_threads",
        )
    ),
    "slirp.cli.capture_file _path pathlib",
    "slirp.cli.capture_file open_writer slirp.sight.pcapng",
    "slirp.cli.capture_file files_of slirp.sight.pcapng",
    "slirp.cli.control open_control slirp.control.verbs",
    "slirp.cli.control open_control slirp.control.server",
    "slirp.cli.control _open_metrics slirp.control.metrics_port",
    *(f"slirp.host.endpoints sockets slirp.host.socket_{name}" for name in ("uring", "threads")),
    "slirp.host.own open slirp.host.datagrams",
    "slirp.host.own _open_tftp slirp.host.datagrams",
    "slirp.host.own _open_tftp slirp.services.tftp",
    "slirp.host.own _open_http slirp.host.http",
    "slirp.host.own open_guest_forward slirp.host.guestforward",
    "slirp.linux.syscalls raise_descriptor_limit resource",
}


def test_whatever_is_imported_late_was_imported_before() -> None:
    """Every import inside a function of what runs in a sandbox, read from the source."""
    program = """
import ast, sys
from nic.tap import TapPort
from slirp.cli import netns_server
from slirp.control import slirp4netns
from slirp.linux import sandbox
from slirp.network import Network
sandbox.preload(sandbox.CONTROL_MODULES)
def late(function):
    for node in ast.walk(function):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
for name, module in sorted(sys.modules.items()):
    if name.partition(".")[0] in ("slirp", "nic", "dma"):
        for node in ast.walk(ast.parse(open(module.__file__).read())):
            if isinstance(node, ast.FunctionDef):
                for wanted in late(node):
                    if wanted not in sys.modules:
                        print(name, node.name, wanted)
"""
    assert set(in_process(program).splitlines()) <= BEFORE_THE_SANDBOX


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
