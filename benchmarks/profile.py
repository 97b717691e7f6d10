"""Where the time of one frame goes.

    python -m benchmarks.profile [--quick]

First table: turns of the loop in this process, with a wire in memory (wire.py). `whole` is the time
of an operation's turns as they are; the stages are from another run with a clock around every
stage, exclusive of the stages below, so they sum up to more. "host socket" and "port" are mostly
the kernel's. Each figure is from the fastest of many batches, so other load hardly shows.

Second table: CPU time per operation of a network's process in a real namespace, user and system,
from /proc; this network and its peers that are installed. CPU time, unlike throughput, says
something on a busy machine too. Kernel work for a device that a peer's kernel thread does elsewhere
is not in it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, Final

from benchmarks.networks import HOST, NETWORKS, Guest
from benchmarks.report import end_tidily, keep, number, show, table
from benchmarks.side_by_side import compile_load, echo_server, iperf, udp_down, udp_up
from benchmarks.stages import Stopwatch
from benchmarks.wire import ACK, FIN, PSH, Rig
from slirp.ip.template import Template
from slirp.tcp import connection as tcp
from slirp.tcp.send import Send

BATCHES: Final = 40
BATCH: Final = 100  # operations
WARM_UP: Final = 300
SUPER: Final = 45 * 1448  # bytes of the super-frame that a guest's kernel sends
RUN: Final = 32  # datagrams that wait at once
DATAGRAM: Final = 1400

Operation = Callable[[Rig], Iterator[None]]


# Operations: what is between two yields is timed.


def round_trips(rig: Rig) -> Iterator[None]:
    """A byte from the guest, a byte from the host."""
    connection, host = rig.open()
    while True:
        rig.wire.give(connection.frame(PSH | ACK, b"x"))
        yield
        rig.turn()
        yield
        host.recv(1)
        host.send(b"y")
        connection.came(1)
        yield
        rig.turn()
        yield


def downloads(rig: Rig) -> Iterator[None]:
    """A super-frame to the guest and its ACK."""
    connection, host = rig.open()
    data = bytes(SUPER)
    while True:
        host.sendall(data)
        rig.wire.octets = 0
        yield
        while rig.wire.octets < SUPER:
            rig.turn()
        yield
        connection.came(SUPER)
        rig.wire.give(connection.frame(ACK))
        yield
        rig.turn()
        yield


def uploads(rig: Rig) -> Iterator[None]:
    """A super-frame from the guest."""
    connection, host = rig.open()
    data, room = bytes(SUPER), bytearray(SUPER)
    while True:
        rig.wire.give(connection.frame(PSH | ACK, data))
        yield
        rig.turn()
        yield
        left = SUPER
        while left:
            left -= host.recv_into(room, left)
        yield
        yield


def connections(rig: Rig) -> Iterator[None]:
    """Connect, a byte to and fro, close."""
    while True:
        connection = rig.syn()
        yield
        rig.turn_until_answered()
        yield
        rig.answered(connection)
        rig.wire.give(connection.frame(ACK), connection.frame(PSH | ACK, b"x"))
        yield
        rig.turn()
        yield
        host, _ = rig.listener.accept()
        host.recv(1)
        host.send(b"y")
        rig.wire.heads.clear()
        yield
        rig.turn_until_answered()
        yield
        connection.came(1)
        rig.wire.give(connection.frame(FIN | ACK))
        yield
        rig.turn()
        yield
        host.recv(1)
        host.close()
        rig.wire.heads.clear()
        yield
        while not any(head[47] & FIN for head in rig.wire.heads):
            rig.turn()
        yield
        connection.came(1)
        rig.wire.give(connection.frame(ACK))
        yield
        rig.turn()
        yield


def datagrams_up(rig: Rig) -> Iterator[None]:
    frame = rig.datagram(bytes(DATAGRAM))
    while True:
        rig.wire.give(*[frame] * RUN)
        yield
        rig.turn()
        yield
        for _ in range(RUN):
            rig.udp.recv(2000)
        yield
        yield


def datagrams_down(rig: Rig) -> Iterator[None]:
    rig.wire.give(rig.datagram(b"?" * 20))
    rig.turn()
    _, guest = rig.udp.recvfrom(100)
    payload = bytes(DATAGRAM)
    while True:
        for _ in range(RUN):
            rig.udp.sendto(payload, guest)
        yield
        rig.turn()
        yield


# Name, operation, yields per operation, of how much
OPERATIONS: Final[tuple[tuple[str, Operation, int, int], ...]] = (
    ("round trip", round_trips, 4, 1),
    ("64 KiB down", downloads, 4, 1),
    ("64 KiB up", uploads, 4, 1),
    ("open and close", connections, 12, 1),
    ("datagram up", datagrams_up, 4, RUN),
    ("datagram down", datagrams_down, 2, RUN),
)


def times(operation: Operation, yields: int, batches: int, rig: Rig) -> Iterator[list[float]]:
    """Batches of seconds per operation."""
    steps = operation(rig)
    for batch in range(batches + 1):
        took = []
        for _ in range(BATCH if batch else WARM_UP):
            total = 0.0
            for _ in range(yields // 2):
                next(steps)
                begun = perf_counter()
                next(steps)
                total += perf_counter() - begun
            took.append(total)
        if batch:
            yield took


def whole(operation: Operation, yields: int, batches: int) -> float:
    """Seconds per operation: the best batch's median."""
    rig = Rig()
    try:
        return min(map(statistics.median, times(operation, yields, batches, rig)))
    finally:
        rig.close()


def by_stage(operation: Operation, yields: int, batches: int) -> dict[str, float]:
    """Seconds per operation and stage, of the fastest batch."""
    rig = Rig()
    watch = Stopwatch()
    undo = put_clocks(watch, rig)
    best: tuple[float, dict[str, float]] | None = None
    try:
        before = watch.exclusive()
        for took in times(operation, yields, batches, rig):
            after = watch.exclusive()
            if best is None or sum(took) < best[0]:
                spent = {stage: (after[stage] - before[stage]) / BATCH for stage in after}
                best = sum(took), spent
            before = after
    finally:
        undo()
        rig.close()
    assert best is not None
    return best[1]


def put_clocks(watch: Stopwatch, rig: Rig) -> Callable[[], None]:
    """Time the stages; returns what takes the clocks off the classes again."""
    loop, relays, wire = rig.network._loop, rig.network._dispatcher, rig.wire
    stages: list[tuple[str, Any, tuple[str, ...]]] = [
        ("epoll", loop, ("_wait", "register", "unregister", "modify")),
        ("frames in: parse and look up", relays, ("handle_port", "_plain")),
        ("frames in: the long way", relays.stack, ("handle_frame",)),
        ("TCP relay", relays.tcp, ("segment", "settle", "connect", "handle_ready")),
        ("host socket", relays.tcp.feeder, ("_peek", "drop", "offer")),
        ("host socket", relays.tcp.deliverer, ("deliver",)),
        ("host socket", relays.tcp, ("_shut",)),
        ("UDP relay", relays.udp, ("handle_ready", "send")),
        ("UDP relay", relays.udp.outgoing, ("add",)),
        ("host socket", relays.udp.outgoing, ("flush",)),
        ("port", wire, ("claim",)),
        ("port", wire._claim, ("commit",)),
    ]
    for stage, thing, names in stages:
        for name in filter(partial(hasattr, thing), names):
            setattr(thing, name, watch.timed(stage, getattr(thing, name)))
    classes: list[tuple[str, Any, tuple[str, ...]]] = [
        (
            "TCP numbers",
            tcp.Connection,
            ("handle_segment", "emit_data", "emit_ack", "poll"),
        ),
        ("TCP numbers", Send, ("plan",)),
        ("header templates", Template, ("tcp", "udp")),
    ]
    saved = []
    for stage, kind, names in classes:
        for name in names:
            saved.append((kind, name, kind.__dict__.get(name)))
            setattr(kind, name, watch.timed(stage, getattr(kind, name)))
    rig.turn = watch.timed("loop", rig.turn)  # type: ignore[method-assign]

    def undo() -> None:
        for kind, name, method in saved:
            if method is None:
                delattr(kind, name)
            else:
                setattr(kind, name, method)

    return undo


def in_process(batches: int) -> dict[str, dict[str, float]]:
    """µs per operation: whole, and by stage."""
    out = {}
    for name, operation, yields, count in OPERATIONS:
        spent = by_stage(operation, yields, batches)
        row = {"whole": whole(operation, yields, batches), **spent}
        out[name] = {stage: took * 1e6 / count for stage, took in row.items() if took}
    return out


# In a namespace


def real(load: str, seconds: float) -> dict[str, dict[str, tuple[float, float]]]:
    """µs of user and system time per operation, by operation and network."""
    out: dict[str, dict[str, tuple[float, float]]] = {}
    for network in NETWORKS:
        if not network.is_here():
            continue
        with network.guest(1500) as guest, echo_server(load) as port:
            for name, count in loads(guest, load, port, seconds):
                out.setdefault(name, {})[network.name] = count
    return out


def loads(
    guest: Guest, load: str, port: str, seconds: float
) -> Iterator[tuple[str, tuple[float, float]]]:
    trips = int(5000 * seconds)

    def open_and_close() -> float:
        return seconds * float(guest.run([load, "opens", HOST, port, str(seconds)]))

    def trip() -> float:
        guest.run([load, "trips", HOST, port, str(trips)])
        return trips

    works: list[tuple[str, Callable[[], float]]] = [
        ("round trip", trip),
        ("open and close", open_and_close),
        ("64 KiB down", lambda: iperf(guest, ["-R"], seconds) * seconds / 8 / 65536),
        ("64 KiB up", lambda: iperf(guest, [], seconds) * seconds / 8 / 65536),
        ("datagram down, delivered", lambda: seconds * udp_down(guest, load, seconds)),
        ("datagram up, delivered", lambda: seconds * udp_up(guest, load, seconds)),
    ]
    for name, work in works:
        before = guest.cost()
        try:
            count = work()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            show(f"left out, {name}: {error}")
            continue
        after = guest.cost()
        yield (
            name,
            (
                (after.user - before.user) * 1e6 / count,
                (after.system - before.system) * 1e6 / count,
            ),
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Where the time of one frame goes.")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--in-process", action="store_true", help="the first table only")
    args = parser.parse_args(argv)
    end_tidily()
    stages = in_process(BATCHES // 8 if args.quick else BATCHES)
    names = list(dict.fromkeys(stage for row in stages.values() for stage in row))
    show("µs per operation, in this process")
    table(["", *stages], [[n, *(number(row.get(n)) for row in stages.values())] for n in names])
    costs: dict[str, dict[str, tuple[float, float]]] = {}
    if not args.in_process and shutil.which("nsenter") and shutil.which("iperf3"):
        costs = real(compile_load(), 1.0 if args.quick else 3.0)
        networks = list(dict.fromkeys(name for row in costs.values() for name in row))
        show("\nCPU time of the network's process in a namespace, µs per operation: user + system")
        table(
            ["", *networks],
            [[name, *(pair(row.get(n)) for n in networks)] for name, row in costs.items()],
        )
    keep("profile", {"in_process_us": stages, "namespace_us": costs})


def pair(cost: tuple[float, float] | None) -> str:
    return "–" if cost is None else f"{number(cost[0])} + {number(cost[1])}"


if __name__ == "__main__":
    main()
