"""A virtual machine of libkrun's, as far as its network goes: Linux behind libkrun's framings.

    python -m tests.kit.krun stream:PATH -- COMMAND…      krun_add_net_unixstream
    python -m tests.kit.krun unixgram:PATH -- COMMAND…    krun_add_net_unixgram
    python -m tests.kit.krun vfkit:PATH -- COMMAND…       … with NET_FLAG_VFKIT

The guest's Linux is that of a namespace which this makes for itself (`start`), and its virtio-net
device a TAP device: with `--features` the kernel leaves checksums and the cutting of large segments
to the device, as with COMPAT_NET_FEATURES, and the virtio-net header that says so is dropped here,
as libkrun drops it. COMMAND has eth0 with an address; its exit status is this program's.

What is sent to the network is what libkrun sends (src/devices/src/virtio/net, 2026): the sockets'
kinds, who binds and connects and in which order, buffer sizes, the greeting, the lengths.

Does not do: virtio, machines.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nic.tap import TUN_F_CSUM, TUN_F_TSO4, TUNSETOFFLOAD, TapPort
from nic.tun import open_tap
from tests.kit.family import TIED, end
from tests.kit.namespace import ROOT
from tests.kit.need import need_tool, need_tun

STREAM_SNDBUF = 16 << 20
GRAM_BUFFER = 7 << 20
FRAME_MAX = 65562
OWN = "krun-net-{}-0.sock"


def connect(kind: str, path: str) -> socket.socket:
    """The socket as libkrun makes it."""
    if kind == "stream":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, STREAM_SNDBUF)
        return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    own = Path(path).with_name(OWN.format(os.getpid()))
    own.unlink(missing_ok=True)
    sock.bind(str(own))
    sock.connect(path)
    if kind == "vfkit":
        sock.send(b"VFKT")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, GRAM_BUFFER)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, GRAM_BUFFER)
    return sock


class Device:
    """The TAP device on one side, the socket on the other."""

    def __init__(self, sock: socket.socket, features: bool) -> None:
        self.sock = sock
        fd, _ = open_tap("eth0")
        self.tap = TapPort(fd, tso=features, uso=False)
        if features:
            assert self.tap.offloads & (TUN_F_CSUM | TUN_F_TSO4)
        else:
            fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
        self.sock.setblocking(False)
        self.stream = sock.type == socket.SOCK_STREAM
        self._received = bytearray()
        self.largest = 0
        self.lost = 0

    def fileno(self) -> int:
        return self.tap.fileno()

    def send(self) -> None:
        """What the guest has sent, without its virtio-net header."""
        for frame in self.tap.frames():
            octets = bytes(frame.iov)
            frame.release()
            self.largest = max(self.largest, len(octets))
            if self.stream:
                self.sock.setblocking(True)
                self.sock.sendall(len(octets).to_bytes(4, "big") + octets)
                self.sock.setblocking(False)
                continue
            try:
                self.sock.send(octets)
            except BlockingIOError:
                self.lost += 1

    def receive(self) -> None:
        """What has come for the guest, with a virtio-net header of zeros."""
        try:
            data = self.sock.recv(FRAME_MAX)
        except BlockingIOError:
            return
        if not self.stream:
            self.give(data)
            return
        self._received += data
        while len(self._received) >= 4:
            size = int.from_bytes(self._received[:4], "big")
            if len(self._received) < 4 + size:
                break
            self.give(bytes(self._received[4 : 4 + size]))
            del self._received[: 4 + size]

    def give(self, frame: bytes) -> None:
        claim = self.tap.claim(len(frame))
        assert claim is not None
        claim.iov.copy_from(frame)
        claim.commit(len(frame))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", action="store_true")
    parser.add_argument("--address", default="10.0.2.15")
    parser.add_argument("where")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    kind, _, path = args.where.partition(":")
    device = Device(connect(kind, path), args.features)
    for line in ("link set lo up", "link set eth0 up", f"addr add {args.address}/24 dev eth0",
                 "route add default via 10.0.2.2"):  # fmt: skip
        subprocess.run(["ip", *line.split()], check=True)
    with subprocess.Popen([word for word in args.command if word != "--"]) as command:
        pidfd = os.pidfd_open(command.pid)
        sources = [device.fileno(), device.sock.fileno(), pidfd]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if device.fileno() in ready:
                device.send()
            if device.sock.fileno() in ready:
                device.receive()
            if pidfd in ready:
                break
    sys.stdout.write(f"largest frame {device.largest}, lost {device.lost}\n")
    return command.wait()


@contextmanager
def start(
    where: str, *command: str, features: bool = False, address: str = "10.0.2.15"
) -> Iterator[subprocess.Popen[str]]:
    """Such a machine that runs this command; ended with the block."""
    need_tun()
    for tool in ("unshare", "ip", TIED[0]):
        need_tool(tool)
    line = ["unshare", "--user", "--map-root-user", "--net", *TIED, sys.executable]
    options = ["--address", address, *(["--features"] if features else [])]
    with subprocess.Popen(
        [*line, "-m", "tests.kit.krun", *options, where, "--", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            end(process)


if __name__ == "__main__":
    sys.exit(main())
