"""A QEMU machine under this network, beside QEMU's own user network, passt and the kernel's TAP.

    python -m benchmarks.qemu [--rounds N] [--bytes N] [--mtu N…] [--qemu installed] [-- NETWORK…]

The machine is that of the tests (tests/kit/qemu.py): Debian's kernel and busybox, emulated, since
QEMU's networks differ in what they cost the guest and the host, not in what a processor can do.
QEMU and passt are those of Debian testing (tools/testing-root), or with `--qemu installed` the
machine's own. Each network is booted in turn, as often as there are rounds; in each boot the guest
pings the gateway, fetches a file from the host by `wget`, and the host fetches one from the guest's
`httpd` through a forward. Over the kernel's TAP device, which needs root and forwards nothing, the
host's end is in the network namespace that the device is in: no network is in between at all. What
is not installed is left out, and with an MTU of one's own QEMU's network, which cannot be told one.
With several MTUs there is a table for each; each round has all of them.
A figure is the median of the rounds; throughput is what the host's end counted. The guest, the
network and that end share the machine, and the guest's own work is emulated, so these are no
figures of a guest under KVM.

Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.report import end_tidily, keep, number, show, table
from tests.kit.family import running
from tests.kit.namespace import as_user, holder
from tests.kit.qemu import Machine, need_kernel
from tests.kit.testing_root import newer

ROUNDS: Final = 3
OCTETS: Final = 64 << 20
MTU: Final = 1500
NETWORKS: Final = (
    *("slirp vhost-user", "slirp stream", "slirp dgram"),
    *("QEMU user", "passt vhost-user", "passt stream", "kernel TAP"),
)
PINGS: Final = 50
STARTS_FOR: Final = 10.0  # seconds
FETCH_FOR: Final = 120.0  # seconds
MEMORY: Final = 384  # MiB: the guest keeps its file there

INSTALLED: Final = "installed"
GATEWAY: Final = "10.0.2.2"
GUEST: Final = "10.0.2.15"

# The namespace of the kernel's TAP: an address, a DHCP server, and whoever is run in it.
TAP: Final = """
ip link set lo up
ip tuntap add tap0 mode tap vnet_hdr
ip link set tap0 mtu {mtu}
ip address add 10.0.2.2/24 dev tap0
ip link set tap0 up
exec busybox udhcpd -f {folder}/udhcpd.conf > /dev/null 2>&1
"""
UDHCPD: Final = """
start {guest}
end {guest}
interface tap0
lease_file {folder}/leases
opt subnet 255.255.255.0
opt router {gateway}
opt mtu {mtu}
"""

# The host's end of the way down: the bytes go out of a file that takes no memory.
END: Final = """
import os, socket, sys, time
bytes = int(sys.argv[1])
zeros = os.memfd_create("zeros")
os.truncate(zeros, bytes)
with socket.create_server((sys.argv[2], 0)) as server:
    print(server.getsockname()[1], flush=True)
    sock, _ = server.accept()
    with sock:
        sock.recv(4096)
        start = time.perf_counter()
        sock.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
        sock.sendfile(open(zeros, "rb", closefd=False))
        sock.shutdown(socket.SHUT_WR)
        try:
            sock.recv(1)
        except ConnectionError:  # the way some networks end a connection
            pass
        print(bytes * 8 / (time.perf_counter() - start), flush=True)
"""

# The host's end of the way up: bits per second from the guest's server.
FETCH: Final = """
import socket, sys, time
into = bytearray(1 << 20)
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    start, count = time.perf_counter(), 0
    sock.sendall(b"GET /zeros HTTP/1.0\\r\\n\\r\\n")
    while got := sock.recv_into(into):
        count += got
    taken = time.perf_counter() - start
print(count, count * 8 / taken)
"""

Figures = dict[str, list[float]]


class Setting(NamedTuple):
    """Where a machine is to be run, and the host's end."""

    netdev: str  # QEMU's argument
    port: int  # of the guest's server
    host: str = "127.0.0.1"  # … and its address, as the host has it
    end: str = "127.0.0.1"  # where the host's end listens
    who: tuple[str, ...] = ()  # in front of the command line of everything that is there


@contextlib.contextmanager
def network(name: str, folder: Path, mtu: int, qemu: str) -> Iterator[Setting]:
    """The network, while it runs."""
    if name == "kernel TAP":
        with _kernel_tap(folder, mtu) as setting:
            yield setting
        return
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    if name == "QEMU user":
        yield Setting(f"user,id=n0,hostfwd=tcp:127.0.0.1:{port}-{GUEST}:80", port)
        return
    path = folder / "net"
    netdev = {
        "vhost-user": f"vhost-user,path={path}",
        "stream": f"stream,id=n0,addr.type=unix,addr.path={path}",
        "dgram": f"dgram,id=n0,local.type=unix,local.path={folder}/qemu,"
        f"remote.type=unix,remote.path={path}",
    }[name.split()[1]]
    with running(_command(name, path, port, mtu, qemu)):
        _wait_for(path)
        yield Setting(netdev, port)


def _command(name: str, path: Path, port: int, mtu: int, qemu: str) -> list[str]:
    program, kind = name.split()
    if program == "slirp":
        socket_ = {
            "vhost-user": ["--vhost-user", str(path)],
            "stream": [f"unix:{path}"],
            "dgram": [f"dgram:{path}"],
        }[kind]
        slirp = [sys.executable, "-m", "slirp", "listen", "--forward", f"tcp:{port}-80"]
        return [*slirp, "--mtu", str(mtu), *socket_]
    root = () if qemu == INSTALLED else newer("passt", path.parent)[:-1]
    argv = [*root, *as_user(), "passt", "--foreground", "--socket", str(path)]
    argv += ["--address", GUEST, "--netmask", "24", "--gateway", GATEWAY]
    argv += ["--tcp-ports", f"127.0.0.1/{port}:80", "--mtu", str(mtu)]
    return [*argv, "--vhost-user"] if kind == "vhost-user" else argv


@contextlib.contextmanager
def _kernel_tap(folder: Path, mtu: int) -> Iterator[Setting]:
    config = UDHCPD.format(guest=GUEST, gateway=GATEWAY, folder=folder, mtu=mtu)
    (folder / "udhcpd.conf").write_text(config)
    with holder(TAP.format(folder=folder, mtu=mtu)) as namespace:
        _wait_for_address(namespace.entering())
        netdev = "tap,id=n0,ifname=tap0,script=no,downscript=no"
        yield Setting(netdev, 80, GUEST, GATEWAY, namespace.entering())


def _wait_for_address(who: tuple[str, ...]) -> None:
    """Until whoever sets the namespace up has come to the device's address."""
    until = time.monotonic() + STARTS_FOR
    argv = [*who, "ip", "-o", "address", "show", "dev", "tap0", "up"]
    while time.monotonic() < until:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if GATEWAY in done.stdout:
            return
        time.sleep(0.01)
    raise SystemExit("benchmarks: no address on the TAP device")


def _wait_for(path: Path) -> None:
    until = time.monotonic() + STARTS_FOR
    while time.monotonic() < until:
        if path.exists():
            return
        time.sleep(0.01)
    raise SystemExit(f"benchmarks: nothing at {path}")


def measure(name: str, octets: int, mtu: int, qemu: str) -> dict[str, float]:
    """One boot."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        there = stack.enter_context(network(name, folder, mtu, qemu))
        argv = [*there.who, sys.executable, "-c", END, str(octets), there.end]
        end = stack.enter_context(running(argv, stdout=subprocess.PIPE, stderr=None))
        assert end.stdout is not None
        script = f"""
ping -q -c {PINGS} -i 0.02 -W 1 10.0.2.2 | tail -n 1
wget -q -O /dev/null http://10.0.2.2:{int(end.stdout.readline())}/
dd if=/dev/zero of=/www/zeros bs=64k count={octets >> 16} 2> /dev/null
httpd -p 80 -h /www; echo serving; sleep 600
"""
        machine = stack.enter_context(
            Machine(
                folder / "machine", script, there.netdev, memory=MEMORY, qemu=qemu, who=there.who,
                device="vectors=0" if qemu == INSTALLED and "vhost" in name else "",
            )
        )  # fmt: skip
        trip = re.search(r"min/avg/max = [\d.]+/([\d.]+)/", machine.expect("serving"))
        figures = {"trip": float(trip[1])} if trip is not None else {}
        figures["down"] = float(end.stdout.readline())
        figures["up"] = fetch(there, octets)
        return figures


def fetch(there: Setting, octets: int) -> float:
    """Bits per second from the guest's server."""
    argv = [*there.who, sys.executable, "-c", FETCH, there.host, str(there.port)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=FETCH_FOR)
    count, rate = done.stdout.split()
    assert int(count) > octets, "the guest's file did not arrive"
    return float(rate)


def is_there(name: str, mtu: int, qemu: str) -> bool:
    """With this QEMU, and passt of the same release."""
    if name == "QEMU user":
        return mtu == MTU
    if name == "kernel TAP":
        return os.geteuid() == 0 and shutil.which("busybox") is not None
    if qemu != INSTALLED or not name.startswith("passt"):
        return True
    return name == "passt stream" and shutil.which("passt") is not None


LINES: Final[tuple[tuple[str, str, Callable[[float], float]], ...]] = (
    ("down", "TCP to the guest, Mbit/s", lambda bits: bits / 1e6),
    ("up", "TCP from the guest, Mbit/s", lambda bits: bits / 1e6),
    ("trip", "ping of the gateway, ms", lambda ms: ms),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.qemu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--bytes", type=int, default=OCTETS)
    parser.add_argument("--mtu", type=int, nargs="+", default=[MTU])
    parser.add_argument("--qemu", choices=("testing", INSTALLED), default="testing")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    args = parser.parse_args()
    end_tidily()
    need_kernel()
    wanted = args.networks or NETWORKS
    unknown = set(wanted) - set(NETWORKS)
    if unknown:
        parser.error(f"no such network: {', '.join(sorted(unknown))}")
    names = {
        mtu: [name for name in NETWORKS if name in wanted and is_there(name, mtu, args.qemu)]
        for mtu in args.mtu
    }
    figures: dict[int, dict[str, Figures]] = {
        mtu: {name: {} for name in there} for mtu, there in names.items()
    }
    for round_number in range(args.rounds):
        for mtu, there in names.items():
            for name in there:
                for what, value in measure(name, args.bytes, mtu, args.qemu).items():
                    figures[mtu][name].setdefault(what, []).append(value)
                show(f"round {round_number + 1}, MTU {mtu}: {name}")
    for mtu, found in figures.items():
        tell(mtu, found)
        kept = {"rounds": args.rounds, "octets": args.bytes, "medians": medians_of(found)}
        keep(f"qemu-{mtu}", kept)


def medians_of(found: dict[str, Figures]) -> dict[str, dict[str, float]]:
    return {
        name: {what: statistics.median(values) for what, values in figures.items()}
        for name, figures in found.items()
    }


def tell(mtu: int, found: dict[str, Figures]) -> None:
    """The table for one MTU."""
    medians = medians_of(found)
    rows = [
        [line, *(number(convert(m[what])) if what in m else "–" for m in medians.values())]
        for what, line, convert in LINES
    ]
    show()
    table([f"MTU {mtu}", *found], rows)


if __name__ == "__main__":
    main()
