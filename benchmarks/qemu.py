"""A QEMU machine under this network, beside QEMU's own user network and passt.

    python -m benchmarks.qemu [--rounds N] [--bytes N] [--mtu N]

The machine is that of the tests (tests/kit/qemu.py): Debian's kernel and busybox, emulated, since
QEMU's networks differ in what they cost the guest and the host, not in what a processor can do.
Each network is booted in turn, as often as there are rounds; in each boot the guest pings the
gateway, fetches a file from the host by `wget`, and the host fetches one from the guest's `httpd`
through a forward. What is not installed is left out, and with an MTU of one's own QEMU's network,
which cannot be told one. A figure is the median of the rounds;
throughput is what the host's end counted. The guest, the network and that end share the machine,
and the guest's own work is emulated, so these are no figures of a guest under KVM.

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
from typing import Final

from benchmarks.report import end_tidily, keep, number, show, table
from tests.kit.family import running
from tests.kit.qemu import Machine, need_kernel

ROUNDS: Final = 3
OCTETS: Final = 64 << 20
MTU: Final = 1500
NETWORKS: Final = ("slirp stream", "slirp dgram", "QEMU user", "passt")
PINGS: Final = 50
STARTS_FOR: Final = 10.0  # seconds
CHUNK: Final = 1 << 20
MEMORY: Final = 384  # MiB: the guest keeps its file there

# The host's end of the way down: the bytes go out of a file that takes no memory.
END: Final = """
import os, socket, sys, time
bytes = int(sys.argv[1])
zeros = os.memfd_create("zeros")
os.truncate(zeros, bytes)
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    sock, _ = server.accept()
    with sock:
        sock.recv(4096)
        start = time.perf_counter()
        sock.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n")
        sock.sendfile(open(zeros, "rb", closefd=False))
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
        print(bytes * 8 / (time.perf_counter() - start), flush=True)
"""

Figures = dict[str, list[float]]


@contextlib.contextmanager
def network(name: str, folder: Path, port: int, mtu: int) -> Iterator[str]:
    """QEMU's -netdev argument for this network, while it runs; `port` leads to the guest's 80."""
    if name == "QEMU user":
        yield f"user,id=n0,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:80"
        return
    path = folder / "net"
    stream = f"stream,id=n0,addr.type=unix,addr.path={path}"
    slirp = [sys.executable, "-m", "slirp", "listen", "--forward", f"tcp:{port}-80"]
    slirp += ["--mtu", str(mtu)]
    match name:
        case "slirp stream":
            argv, netdev = [*slirp, f"unix:{path}"], stream
        case "slirp dgram":
            argv = [*slirp, f"dgram:{path}"]
            netdev = (
                f"dgram,id=n0,local.type=unix,local.path={folder}/qemu,"
                f"remote.type=unix,remote.path={path}"
            )
        case _:
            argv = ["passt", "--foreground", "--socket", str(path), "--runas", str(os.geteuid())]
            argv += ["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2"]
            argv += ["--tcp-ports", f"127.0.0.1/{port}:80", "--mtu", str(mtu)]
            netdev = stream
    with running(argv):
        _wait_for(path)
        yield netdev


def _wait_for(path: Path) -> None:
    until = time.monotonic() + STARTS_FOR
    while time.monotonic() < until:
        if path.exists():
            return
        time.sleep(0.01)
    raise SystemExit(f"benchmarks: nothing at {path}")


def measure(name: str, octets: int, mtu: int) -> dict[str, float]:
    """One boot."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        argv = [sys.executable, "-c", END, str(octets)]
        end = stack.enter_context(running(argv, stdout=subprocess.PIPE, stderr=None))
        assert end.stdout is not None
        script = f"""
ping -q -c {PINGS} -i 0.02 -W 1 10.0.2.2 | tail -n 1
wget -q -O /dev/null http://10.0.2.2:{int(end.stdout.readline())}/
dd if=/dev/zero of=/www/zeros bs=64k count={octets >> 16} 2> /dev/null
httpd -p 80 -h /www; echo serving; sleep 600
"""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
        netdev = stack.enter_context(network(name, folder, port, mtu))
        machine = stack.enter_context(Machine(folder / "machine", script, netdev, memory=MEMORY))
        trip = re.search(r"min/avg/max = [\d.]+/([\d.]+)/", machine.expect("serving"))
        figures = {"trip": float(trip[1])} if trip is not None else {}
        figures["down"] = float(end.stdout.readline())
        figures["up"] = fetch(port, octets)
        return figures


def fetch(port: int, octets: int) -> float:
    """Bits per second from the guest's server."""
    into = bytearray(CHUNK)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        start, count = time.perf_counter(), 0
        sock.sendall(b"GET /zeros HTTP/1.0\r\n\r\n")
        while got := sock.recv_into(into):
            count += got
        taken = time.perf_counter() - start
    assert count > octets, "the guest's file did not arrive"
    return count * 8 / taken


def is_there(name: str, mtu: int) -> bool:
    if name == "QEMU user":
        return mtu == MTU
    return name != "passt" or shutil.which("passt") is not None


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
    parser.add_argument("--mtu", type=int, default=MTU)
    args = parser.parse_args()
    end_tidily()
    need_kernel()
    names = [name for name in NETWORKS if is_there(name, args.mtu)]
    figures: dict[str, Figures] = {name: {} for name in names}
    for round_number in range(args.rounds):
        for name in names:
            for what, value in measure(name, args.octets, args.mtu).items():
                figures[name].setdefault(what, []).append(value)
            show(f"round {round_number + 1}: {name}")
    medians = {
        name: {what: statistics.median(values) for what, values in found.items()}
        for name, found in figures.items()
    }
    show()
    rows = [
        [line, *(number(convert(medians[n][what])) if what in medians[n] else "–" for n in names)]
        for what, line, convert in LINES
    ]
    table(["", *names], rows)
    keep(f"qemu-{args.mtu}", {"rounds": args.rounds, "octets": args.octets, "medians": medians})


if __name__ == "__main__":
    main()
