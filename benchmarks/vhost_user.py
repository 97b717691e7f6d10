"""What the vhost-user back-end itself carries: a front-end without a machine, and no emulation.

    python -m benchmarks.vhost_user [--rounds N] [--bytes N] [--packed] [--buffers N]

The front-end is that of the tests (tests/kit/frontend.py) with a TCP endpoint of a few lines: it
sends super-frames of 64 KiB from one place in its memory, or acknowledges what it gets. Three
processes: this one is the guest, `slirp listen --vhost-user` the network, and a third the host's
end of the connection, which throws away or makes up its bytes. Beside the throughput stands what a
gigabyte cost the network's process, and the time of a ping: a frame through an idle network and
back, both sides asleep before.

Nothing here fails because something is slow.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.report import end_tidily, keep, number, show, table
from nic.virtio.features import OFFERED, RING_PACKED
from tests.kit.family import running
from tests.kit.frontend import WRITE, FrontEnd
from tests.kit.guest import ACK, FIN, GATEWAY, GUEST, SYN, arp, icmp, tcp

ROUNDS: Final = 5
OCTETS: Final = 4 << 30
RING: Final = 1024  # descriptors; QEMU's largest
BUFFER: Final = 4096  # bytes of a receive buffer: a page, as Linux has them
PINGS: Final = 500
PAYLOAD: Final = 44 * 1448  # bytes of a super-frame
SHIFT: Final = 9  # of the window
MSS_OPTION: Final = struct.pack("!BBHBBBB", 2, 4, 1460, 1, 3, 3, SHIFT)
HEADERS: Final = 54  # bytes: Ethernet, IPv4, TCP
VNET: Final = struct.pack("<BBHHHHH", 1, 1, HEADERS, 1448, 34, 16, 0)  # TSO, checksum to be made
VNET_LEN: Final = 12
WAIT: Final = 5.0  # seconds for anything to come

END: Final = """
import os, socket, sys, time
size = int(sys.argv[1])
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        sock, _ = server.accept()
        with sock:
            if sock.recv(1) == b"u":
                into, count = bytearray(1 << 20), 0
                while got := sock.recv_into(into):
                    count += got
            else:
                zeros = os.memfd_create("zeros")
                os.truncate(zeros, size)
                sock.sendfile(open(zeros, "rb"))
"""


class Guest:
    """A driver and a TCP endpoint, for one connection at a time."""

    def __init__(self, path: Path, packed: bool, buffer: int) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        self.front = FrontEnd(sock, memory=64 << 20, size=RING)
        self.front.negotiate(OFFERED if packed else OFFERED & ~RING_PACKED)
        self.front.start()
        self.buffer = buffer
        self.port = 40000
        front = self.front
        self.area = front.allocate(PAYLOAD)
        base = front.allocate(128 * RING)
        self.slots = [base + 128 * n for n in range(RING)]
        self.slot = 0
        for _ in range(min(RING, (32 << 20) // buffer)):
            front.receive.add([(front.allocate(buffer), buffer)], WRITE)
        front.receive.kick()
        self.send(arp(1, GUEST, GATEWAY))
        self.get()

    # Frames

    def send(self, frame: bytes, vnet: bytes = bytes(VNET_LEN), payload: int = 0) -> None:
        """A frame whose first bytes are these."""
        transmit, slot = self.front.transmit, self.slots[self.slot]
        self.slot = (self.slot + 1) % RING
        self.front.memory[slot : slot + VNET_LEN + len(frame)] = vnet + frame
        ranges = [(slot, VNET_LEN + len(frame))]
        if payload:
            ranges.append((self.area, payload))
        while transmit.room < 4:
            if not transmit.used():
                time.sleep(0)
        transmit.add(ranges)
        if transmit.must_kick():
            transmit.kick()

    def look(self) -> Iterator[tuple[bytes, int]]:
        """The first 128 bytes of each frame that came, and its length; its buffers are free."""
        receive, memory = self.front.receive, self.front.memory
        left = total = 0
        head = b""
        came = [(used.length, receive.buffers.pop(used.id)[0]) for used in receive.used()]
        for length, where in came:
            if not left:
                head = bytes(memory[where[0] : where[0] + 128])
                left = int.from_bytes(head[10:12], "little")
                total = -VNET_LEN
            total += length
            left -= 1
            receive.add([where], WRITE)
            if not left:
                yield head[VNET_LEN:], total
        if receive.must_kick():
            receive.kick()

    def wait(self) -> None:
        """Until there is an interrupt."""
        call = self.front.calls[0]
        if not select.select([call], [], [], WAIT)[0]:
            raise SystemExit("benchmarks: nothing came for 5 s")
        os.eventfd_read(call)

    def get(self) -> list[tuple[bytes, int]]:
        """What came, at least one frame."""
        while not (found := list(self.look())):
            self.wait()
        return found

    # TCP

    def open(self, port: int, word: bytes) -> tuple[int, int, int]:
        """Connect and say which way; our next number, theirs, and the window."""
        self.port += 1
        self.send(
            tcp(SYN, GATEWAY, port, src_port=self.port, seq=0, options=MSS_OPTION, window=65535)
        )
        head = self.answer()
        ack = int.from_bytes(head[38:42], "big") + 1
        self.send(tcp(ACK, GATEWAY, port, src_port=self.port, seq=1, ack=ack, data=word))
        return 1 + len(word), ack, int.from_bytes(head[48:50], "big")

    def answer(self) -> bytes:
        while True:
            for head, _ in self.segments():
                return head

    def segments(self) -> list[tuple[bytes, int]]:
        """What came for this connection."""
        port = self.port.to_bytes(2, "big")
        return [found for found in self.get() if found[0][23] == 6 and found[0][36:38] == port]

    def upload(self, port: int, octets: int) -> float:
        """Bits per second until all is acknowledged."""
        seq, ack, window = self.open(port, b"u")
        una = first = seq
        start = time.perf_counter()
        bare = tcp(ACK, GATEWAY, port, src_port=self.port, total=40 + PAYLOAD, checksum=0)
        prefix, suffix = bare[:38], bare[46:50] + self.pseudo() + bytes(2)
        while una - first < octets:
            while seq + PAYLOAD <= una + window and seq - first < octets:
                numbers = struct.pack("!II", seq & 0xFFFFFFFF, ack & 0xFFFFFFFF)
                self.send(prefix + numbers + suffix, VNET, PAYLOAD)
                seq += PAYLOAD
            for head, _ in self.segments():
                got = int.from_bytes(head[42:46], "big")
                una += (got - una) & 0xFFFFFFFF if (got - una) & 0xFFFFFFFF < 1 << 31 else 0
                window = int.from_bytes(head[48:50], "big") << self.scale
        taken = time.perf_counter() - start
        self.send(tcp(FIN | ACK, GATEWAY, port, src_port=self.port, seq=seq, ack=ack))
        return (una - first) * 8 / taken

    @property
    def scale(self) -> int:
        return 8  # what the stack offers; slirp.tcp

    def pseudo(self) -> bytes:
        """The sum that a checksum begins with."""
        ends = socket.inet_aton(GUEST) + socket.inet_aton(GATEWAY)
        total = sum(struct.unpack("!4H", ends)) + 6 + PAYLOAD + 20
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        return bytes((total >> 8, total & 0xFF))

    def download(self, port: int, octets: int) -> float:
        """Bits per second until all has come."""
        seq, ack, _ = self.open(port, b"d")
        count = 0
        start = time.perf_counter()
        while count < octets:
            for head, length in self.segments():
                if int.from_bytes(head[38:42], "big") != ack & 0xFFFFFFFF:
                    continue  # sent again, since we had no processor for too long
                size = min(length, int.from_bytes(head[16:18], "big") + 14) - 34 - (head[46] >> 2)
                ack += size
                count += size
            self.send(tcp(ACK, GATEWAY, port, src_port=self.port, seq=seq, ack=ack, window=16384))
        taken = time.perf_counter() - start
        self.send(tcp(4, GATEWAY, port, src_port=self.port, seq=seq, ack=ack))
        return count * 8 / taken

    def ping(self) -> float:
        """Microseconds there and back, the median."""
        times = []
        for n in range(PINGS):
            start = time.perf_counter()
            self.send(icmp(8, 0, n, bytes(56), GATEWAY))
            self.get()
            times.append(time.perf_counter() - start)
            time.sleep(0.0005)
        return statistics.median(times) * 1e6


def spent(pid: int) -> float:
    """Seconds of processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(octets: int, packed: bool, buffer: int) -> dict[str, float]:
    """One network, both ways."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        argv = [sys.executable, "-c", END, str(octets)]
        end = stack.enter_context(running(argv, stdout=subprocess.PIPE, stderr=None))
        assert end.stdout is not None
        port = int(end.stdout.readline())
        slirp = [sys.executable, "-m", "slirp", "listen", "--vhost-user", str(folder / "net")]
        network = stack.enter_context(running(slirp))
        until = time.monotonic() + WAIT
        while not (folder / "net").exists() and time.monotonic() < until:
            time.sleep(0.01)
        guest = Guest(folder / "net", packed, buffer)
        stack.callback(guest.front.close)
        figures = {"ping": guest.ping()}
        for name, transfer in (("up", guest.upload), ("down", guest.download)):
            before = spent(network.pid)
            figures[name] = transfer(port, octets)
            figures[f"{name} cost"] = (spent(network.pid) - before) / octets * 1e9
        return figures


LINES: Final = (
    ("up", "TCP from the guest, Gbit/s", 1e-9),
    ("up cost", "… processor seconds per GB", 1),
    ("down", "TCP to the guest, Gbit/s", 1e-9),
    ("down cost", "… processor seconds per GB", 1),
    ("ping", "ping of the gateway, µs", 1),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vhost_user", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--bytes", type=int, default=OCTETS)
    parser.add_argument("--buffers", type=int, default=BUFFER, metavar="N", help="bytes of each")
    args = parser.parse_args()
    end_tidily()
    kinds = {"split rings": False, "packed rings": True}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in kinds}
    for round_number in range(args.rounds):
        for name, packed in kinds.items():
            for what, value in measure(args.bytes, packed, args.buffers).items():
                found[name].setdefault(what, []).append(value)
            show(f"round {round_number + 1}: {name}")
    medians = {
        name: {what: statistics.median(values) for what, values in figures.items()}
        for name, figures in found.items()
    }
    show()
    rows = [
        [line, *(number(medians[name][what] * scale) for name in kinds)]
        for what, line, scale in LINES
    ]
    table(["", *kinds], rows)
    keep("vhost_user", {"rounds": args.rounds, "octets": args.bytes, "medians": medians})


if __name__ == "__main__":
    main()
