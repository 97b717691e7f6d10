"""What slirp.tcp costs per segment, apart from sockets, frames and bytes.

    python -m benchmarks.tcp_numbers

Each row is one call on an established connection, with and without timestamps: the segments that
come with every frame of a transfer, then those that are rarer. `budget` is what the stack can
afford where a small frame is to cost under 12 µs in all. The last line is the memory of an idle
connection that has carried bytes both ways.

Times are the best of several runs, in µs per call; the results go to
benchmarks/out/tcp_numbers.json too.
"""

from __future__ import annotations

import gc
import sys
import time
import timeit
import tracemalloc
from collections.abc import Callable
from typing import Final

from benchmarks.report import keep, show, table
from slirp.tcp.connection import Connection, Segment, State
from slirp.tcp.seq import MASK
from slirp.wire.tcp import ACK, FIN, PSH, SYN, TcpOptions

CALLS: Final = 5_000
RUNS: Final = 7
IDLE: Final = 1000  # connections whose memory is measured
ISS: Final = 0x12345678
IRS: Final = 0x9ABCDEF0
MSS: Final = 1460


def established(timestamps: bool, seed: int = 0) -> Connection:
    """A connection that the guest opened."""
    ts = (3_000_000_000 + seed, 0) if timestamps else None
    syn = Segment((IRS + seed) & MASK, 0, SYN, 64240, TcpOptions(MSS, 7, True, (), ts))
    connection = Connection.passive(syn, (ISS + seed * 77) & MASK, MSS, 8, 1.0 + seed)
    connection.host_connected(1.5 + seed)
    connection.poll(1.5 + seed)
    guest_sends(connection, ACK, 0, 2.0 + seed)
    assert connection.state is State.ESTABLISHED
    connection.receive.set_room(16 << 20)
    return connection


def guest_sends(c: Connection, flags: int, length: int, now: float, ahead: int = 0) -> None:
    """The next segment of the guest, acknowledging everything."""
    options = TcpOptions(ts=(c.timestamps.recent, 0)) if c.timestamps.length else None
    seq = (c.receive.nxt + ahead) & MASK
    c.handle_segment(Segment(seq, c.send.max, flags, 60_000, options), length, now)


def per_call(setup: Callable[[], Callable[[], None]], base: Callable[[], None]) -> float:
    """µs of one call, less those of the loop around it."""
    best = min(cpu_time(setup()) for _ in range(RUNS))
    return (best - min(cpu_time(base) for _ in range(RUNS))) / CALLS * 1e6


def cpu_time(run: Callable[[], None]) -> float:
    """Seconds of this process, so that a busy machine disturbs less."""
    return timeit.timeit(run, number=1, timer=time.process_time)


def data_in(timestamps: bool) -> float:
    """handle_segment: bytes in order."""
    c = established(timestamps)
    options = TcpOptions(ts=(c.timestamps.recent, 0)) if timestamps else None
    ack, handle = c.send.max, c.handle_segment

    def run() -> None:
        for _ in range(CALLS):
            handle(Segment(c.receive.nxt, ack, PSH | ACK, 60_000, options), MSS, 2.0)
            c.receive.adv = (c.receive.nxt + (1 << 20)) & MASK

    def base() -> None:
        for _ in range(CALLS):
            Segment(c.receive.nxt, ack, PSH | ACK, 60_000, options)
            c.receive.adv = (c.receive.nxt + (1 << 20)) & MASK

    return per_call(lambda: run, base)


def ack_in(timestamps: bool) -> float:
    """handle_segment: an ACK of what is in flight."""
    c = established(timestamps)
    options = TcpOptions(ts=(c.timestamps.recent, 0)) if timestamps else None
    handle, seq = c.handle_segment, c.receive.nxt

    def setup() -> Callable[[], None]:
        while (c.send.max - c.send.una) & MASK < CALLS * 100:
            c.emit_data((c.send.max - c.send.una) & MASK, 100, False, 2.0)

        def run() -> None:
            ack = c.send.una
            for _ in range(CALLS):
                ack = (ack + 100) & MASK
                handle(Segment(seq, ack, ACK, 60_000, options), 0, 2.0)

        return run

    c.send.wscale = 12

    def base() -> None:
        ack = 0
        for _ in range(CALLS):
            ack = (ack + 100) & MASK
            Segment(seq, ack, ACK, 60_000, options)

    return per_call(setup, base)


def loop(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            call()

    return run


def plain(call: Callable[[], object]) -> float:
    """A call that leaves the connection as it was."""
    return per_call(lambda: loop(call), loop(lambda: None))


def data_out(timestamps: bool) -> float:
    c = established(timestamps)

    def send() -> None:
        c.emit_data(0, 100, True, 2.0)
        c.send.una = c.send.max

    return plain(send)


def recovery(timestamps: bool) -> float:
    """handle_segment: an ACK with SACK blocks, during recovery."""
    c = established(timestamps)
    c.send.wscale = 12
    for _ in range(100):
        c.emit_data((c.send.max - c.send.una) & MASK, MSS, False, 2.0)
    una = c.send.una
    ts = (c.timestamps.recent, 0) if timestamps else None
    blocks = tuple(
        ((una + a * MSS) & MASK, (una + (a + 2) * MSS) & MASK) for a in range(1, 100, 10)
    )
    for block in blocks:
        c.handle_segment(
            Segment(c.receive.nxt, una, ACK, 60, TcpOptions(sack=(block,), ts=ts)), 0, 2.0
        )
    seg = Segment(c.receive.nxt, una, ACK, 60, TcpOptions(sack=blocks[-3:], ts=ts))
    return plain(lambda: c.handle_segment(seg, 0, 2.0))


def ahead(timestamps: bool) -> float:
    """handle_segment: bytes ahead of their turn that are kept already."""
    c = established(timestamps)
    guest_sends(c, ACK, MSS, 2.0, ahead=MSS)
    return plain(lambda: guest_sends(c, ACK, MSS, 2.0, ahead=MSS))


def whole_connection(timestamps: bool) -> float:
    """From the guest's SYN to TIME-WAIT's end: a request, an answer, both FINs."""

    def once() -> None:
        c = established(timestamps)
        guest_sends(c, PSH | ACK, 100, 2.0)
        c.emit_ack(2.0)
        c.send.plan(65_160, 2.0)
        c.emit_data(0, 500, True, 2.0)
        c.send.plan(65_160, 2.0)
        c.host_eof(2.0)
        c.poll(2.0)
        guest_sends(c, ACK, 0, 2.0)
        guest_sends(c, FIN | ACK, 0, 2.0)
        c.emit_ack(2.0)
        c.handle_timeout(9.0)
        assert c.state is State.CLOSED

    return plain(once)


ROWS: Final = (
    ("handle_segment: bytes in order", 1.5, data_in),
    ("handle_segment: ACK", 1.5, ack_in),
    ("plan", 0.5, lambda on: plain_on(on, lambda c: c.send.plan(65_160, 2.0))),
    ("emit_data", 1.0, data_out),
    ("emit_ack", 0.7, lambda on: plain_on(on, lambda c: c.emit_ack(2.0))),
    ("set_room", None, lambda on: plain_on(on, lambda c: c.receive.set_room(1 << 20))),
    ("poll, nothing due", None, lambda on: plain_on(on, lambda c: c.poll(2.0))),
    ("poll_at", None, lambda on: plain_on(on, lambda c: c.poll_at())),
    ("handle_segment: SACK during recovery", None, recovery),
    ("handle_segment: bytes ahead, kept", None, ahead),
    ("a whole connection, SYN to TIME-WAIT's end", None, whole_connection),
)


def plain_on(timestamps: bool, call: Callable[[Connection], object]) -> float:
    c = established(timestamps)
    return plain(lambda: call(c))


def idle_memory() -> float:
    """Bytes of one idle connection that has carried some both ways."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    connections = []
    for seed in range(IDLE):
        c = established(True, seed)
        guest_sends(c, PSH | ACK, 1000 + seed, 3.0 + seed)
        c.emit_data(0, 300 + seed, True, 3.1 + seed)
        guest_sends(c, ACK, 0, 3.2 + seed)
        c.emit_ack(3.3 + seed)
        connections.append(c)
    c = connections[0]
    gc.collect()
    octets = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return octets / IDLE


def main() -> int:
    """Measure, print, keep."""
    rows = []
    results = {}
    for name, budget, measure in ROWS:
        without, with_ts = measure(False), measure(True)
        results[name] = {"plain": without, "timestamps": with_ts, "budget": budget}
        limit = "" if budget is None else f"{budget}"
        rows.append((name, f"{without:.2f}", f"{with_ts:.2f}", limit))
    table(("µs per call", "plain", "timestamps", "budget"), rows)
    memory = idle_memory()
    show(f"\nan idle connection: {memory:.0f} bytes")
    keep("tcp_numbers", {"microseconds": results, "idle_octets": memory})
    return 0


if __name__ == "__main__":
    sys.exit(main())
