"""`slirp qemu` around a QEMU of a few lines: what it is told, its end, its signals.

The real one is in tests/qemu. This one says the version and the kinds of network that a test gives
it, finds the descriptor in its `-netdev` argument, asks for the gateway by ARP over it, and reports
what it saw on standard output. How the two are joined is in test_qemu_ways.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from slirp.cli.qemu import arguments

ROOT = Path(__file__).parent.parent.parent.parent

QEMU = """\
#!{python}
import json, os, signal, socket, struct, sys, time
sys.path.insert(0, {root!r})
arguments = sys.argv[1:]
if "--version" in arguments:
    print("QEMU emulator version " + os.environ.get("VERSION", "7.2.22 (Debian)"))
    sys.exit(0)
netdev = arguments[arguments.index("-netdev") + 1]
if netdev == "help":
    print("Available netdev backend types:\\n" + os.environ.get("KINDS", "socket\\nstream\\ndgram"))
    sys.exit(0)
fd = int(netdev.rpartition("=")[2])
from tests.kit.guest import GATEWAY, GUEST, arp
with socket.socket(fileno=fd) as sock:
    request = arp(1, GUEST, GATEWAY)
    framed = struct.pack("!I", len(request)) + request
    framed = request if sock.type == socket.SOCK_DGRAM else framed
    sock.sendall(os.environ.get("GARBAGE", "").encode() or framed)
    answer = sock.recv(4096)
    said = dict(
        arguments=arguments, answered=len(answer), stdin=sys.stdin.read(),
        blocked=[int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        fds=sorted(int(n) for n in os.listdir("/proc/self/fd")), fd=fd,
    )
    print(json.dumps(said), flush=True)
    if "-wait" in arguments:
        signal.signal(signal.SIGTERM, lambda *why: sys.exit(33))
        print("waiting", flush=True)
        while True:  # what comes just before a pause() is not heard in it
            time.sleep(0.05)
if "-killed" in arguments:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(os.environ.get("STATUS", "0")))
"""


@pytest.fixture
def qemu(tmp_path: Path) -> str:
    path = tmp_path / "qemu-system-tiny"
    path.write_text(QEMU.format(python=sys.executable, root=str(ROOT)))
    path.chmod(0o755)
    return str(path)


def slirp_qemu(
    *arguments: str, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slirp", "qemu", *arguments],
        env={**os.environ, **environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def said(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.stdout, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[0])
    return found


def test_the_machine_is_told_of_its_network(qemu: str) -> None:
    done = slirp_qemu("--no-ra", "--", qemu, "-m", "1G", stdin="typed")
    assert (done.returncode, done.stderr) == (
        0, "slirp: QEMU 7.2 is joined by -netdev stream: this QEMU 7.2 has no vhost-user\n",
    )  # fmt: skip
    told = said(done)
    assert told["arguments"] == [
        "-m", "1G", "-netdev", f"stream,id=slirp0,addr.type=fd,addr.str={told['fd']}",
        "-device", "virtio-net-pci,netdev=slirp0",
    ]  # fmt: skip
    assert told["answered"] == 64
    assert told["stdin"] == "typed"
    assert told["blocked"] == []


def test_the_machine_has_no_other_descriptor_of_ours(qemu: str) -> None:
    told = said(slirp_qemu("--", qemu))
    listing = {3, 4}  # one is for the listing itself, one is the script's file
    assert set(told["fds"]) <= {0, 1, 2, told["fd"], *listing}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "arguments", "device"),
    [
        (("--device", "e1000"), (), "e1000,netdev=slirp0"),
        (("--device", "virtio-net-pci,mac=52:54:00:00:00:01"), (),
         "virtio-net-pci,mac=52:54:00:00:00:01,netdev=slirp0"),
        (("--mtu", "9000"), (), "virtio-net-pci,netdev=slirp0,host_mtu=9000"),
        (("--mtu", "9000", "--device", "e1000"), (), "e1000,netdev=slirp0"),
        (("--device", "none"), (), None),
        ((), ("-device", "rtl8139,netdev=slirp0,mac=52:54:00:00:00:01"), None),
    ],
)  # fmt: skip
def test_the_device(
    qemu: str, options: tuple[str, ...], arguments: tuple[str, ...], device: str | None
) -> None:
    told = said(slirp_qemu(*options, "--", qemu, *arguments))["arguments"]
    assert isinstance(told, list)
    added = told[len(arguments) + 2 :]
    assert added == ([] if device is None else ["-device", device])


VHOST = [
    "-chardev",
    "socket,id=slirp0,path=/x/net",
    "-netdev",
    "vhost-user,id=slirp0,chardev=slirp0",
]
PCI = ["-device", "virtio-net-pci,netdev=slirp0"]


def shared(size: str) -> list[str]:
    backend = f"memory-backend-memfd,id=slirp-memory,size={size},share=on"
    return ["-object", backend, "-machine", "memory-backend=slirp-memory"]


@pytest.mark.parametrize(
    ("line", "version", "added"),
    [
        ("", (11, 0), [*shared("128M"), *PCI]),
        ("-m 1G", (11, 0), [*shared("1G"), *PCI]),
        ("-m 512", None, [*shared("512M"), *PCI]),
        ("-m size=2G,slots=2,maxmem=4G -smp 2", (8, 0), [*shared("2G"), *PCI]),
        ("-m 1G,slots=2", (8, 0), [*shared("1G"), *PCI]),
        ("-object memory-backend-file,id=m,share=on -machine q35,memory-backend=m", (8, 0), PCI),
        ("-numa node,memdev=m", (8, 0), PCI),
        ("", (7, 2), [*shared("128M"), "-device", f"{PCI[1]},vectors=0"]),
        ("-enable-kvm", (7, 2), [*shared("128M"), *PCI]),
        ("-accel kvm", (7, 2), [*shared("128M"), *PCI]),
        ("-device virtio-net-device,netdev=slirp0", (7, 2), shared("128M")),
    ],
)
def test_a_machine_that_shares_its_memory(
    line: str, version: tuple[int, int] | None, added: list[str]
) -> None:
    args = Namespace(device="virtio-net-pci", mtu=1500)
    assert arguments(line.split(), "vhost-user", "/x/net", args, version) == [*VHOST, *added]


def test_only_virtio_devices_share_memory() -> None:
    done = slirp_qemu("--vhost-user", "--device", "e1000", "--", "qemu-system-x86_64")
    assert done.returncode == 2
    assert "--vhost-user works with virtio-net devices, not with e1000" in done.stderr


def test_the_exit_status_is_the_machines(qemu: str) -> None:
    assert slirp_qemu("--", qemu, STATUS="42").returncode == 42
    assert slirp_qemu("--", qemu, "-killed").returncode == 128 + signal.SIGKILL


def test_signals_are_passed_on(qemu: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "slirp", "qemu", "--", qemu, "-wait"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        assert process.stdout.readline() == b"waiting\n"
        process.terminate()
        assert process.wait(30) == 33


@pytest.mark.parametrize("version", ["7.1.0", "5.2.0", "2.11.1 (Debian)"])
def test_an_old_qemu_has_a_socket(qemu: str, version: str) -> None:
    done = slirp_qemu("--no-ra", "--", qemu, VERSION=version, KINDS="socket\nuser\nvhost-user")
    short = ".".join(version.split(".")[:2])
    assert done.stderr == (
        f"slirp: QEMU {short} is joined by -netdev socket: QEMU {short} is older than 7.2\n"
    )
    told = said(done)
    arguments = told["arguments"]
    assert isinstance(arguments, list)
    assert arguments[:2] == ["-netdev", f"socket,id=slirp0,fd={told['fd']}"]
    assert told["answered"] == 64


def test_dgram_if_asked_for(qemu: str) -> None:
    done = slirp_qemu("--no-ra", "--netdev", "dgram", "--", qemu)
    assert done.stderr == "slirp: QEMU 7.2 is joined by -netdev dgram: as asked\n"
    told = said(done)
    arguments = told["arguments"]
    assert isinstance(arguments, list)
    assert arguments[1] == f"dgram,id=slirp0,local.type=fd,local.str={told['fd']}"
    assert told["answered"] == 60


@pytest.mark.parametrize(
    ("options", "line", "why"),
    [
        (("--netdev", "stream"), (), "is QEMU 7.1, which has no -netdev stream"),
        (("--vhost-user",), (), "is QEMU 7.1, which has no -netdev vhost-user"),
        ((), ("-netdev", "user,id=slirp0"), "the id slirp0 is the network's own"),
    ],
)
def test_what_cannot_be(
    qemu: str, options: tuple[str, ...], line: tuple[str, ...], why: str
) -> None:
    done = slirp_qemu(*options, "--", qemu, *line, VERSION="7.1.0", KINDS="socket")
    assert done.returncode == 1
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("version", ["7.2.0", "8.0.0", "10.1.2", "of nobody knows what"])
def test_a_qemu_that_may_do(qemu: str, version: str) -> None:
    assert slirp_qemu("--", qemu, VERSION=version).returncode == 0


def test_a_machine_that_breaks_the_framing_is_told_of(qemu: str) -> None:
    done = slirp_qemu("--no-ra", "--", qemu, GARBAGE="garbage")
    assert done.returncode == 0
    assert said(done)["answered"] == 0
    assert "it had no network from then on" in done.stderr


def test_statistics(qemu: str) -> None:
    done = slirp_qemu("--stats", "--", qemu)
    assert json.loads(done.stderr.partition("\n")[2])["malformed"] == {}


def test_what_cannot_be_started(tmp_path: Path, qemu: str) -> None:
    missing = slirp_qemu("--", str(tmp_path / "missing"))
    assert (missing.returncode, missing.stderr.count("\n")) == (127, 2)
    os.chmod(qemu, 0o644)
    plain = slirp_qemu("--", qemu)
    assert (plain.returncode, plain.stderr.count("\n")) == (126, 2)


@pytest.mark.parametrize("arguments", [(), ("--",), ("--", "qemu", "-daemonize"), ("--mtu", "x")])
def test_mistakes_are_one_line(arguments: tuple[str, ...]) -> None:
    done = slirp_qemu(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("slirp: ")
    assert done.stderr.count("\n") == 1
