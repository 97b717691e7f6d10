"""At once or later, on disks and sockets; and zero-copy and async, alone and together.

Endpoints are the project's own: in the call (`epoll`), in a pool of threads, by io_uring. CPU time
is the whole process's, threads included. How long the loop is held is the time that it spends in
the endpoint's calls, `read` and `poll`, and not in waiting for its descriptor: what a loop that
serves others meanwhile cannot give them.

A read that the kernel has in memory is a copy. For one that it has not, the file is on a disk and
the kernel is made to forget it before each turn.

io_uring is left out where it cannot be had.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from statistics import median
from typing import TYPE_CHECKING, Final

from benchmarks.questions.answer import Answer, Cell, Plot, Table
from benchmarks.questions.board import DVMA, Board, file_in_memory, file_on_disk, forget
from benchmarks.questions.measure import Effort, Times, progress, turn_about
from benchmarks.questions.rig import MSG_PEEK, waiting
from dma.iovec import IoVec, scatter_copy
from dma.scsi.endpoint import Done, Endpoint
from dma.transfer import Direction, Transfer
from slirp.address import SockAddr
from slirp.host import endpoints, uring
from slirp.host.socket_endpoint import SocketEndpoint

if TYPE_CHECKING:
    from slirp.host.endpoints import Image

CACHED: Final = (512, 4096, 65536, 1 << 20)  # bytes
UNCACHED: Final = (4096, 65536, 1 << 20)  # bytes
RECEIVES: Final = (64, 1460, 16384, 65536)  # bytes
SOCKETS: Final = 16  # readable in one turn of the loop
DISKS: Final = 4  # requests under way at once, in `both`
TOGETHER: Final = (4096, 65536, 1 << 20)  # bytes of each of these
TRIES: Final = 31  # per way, where a disk is waited for
PATIENCE: Final = 10.0  # seconds

LABELS: Final = {endpoints.THREADS: "threads", endpoints.URING: "io_uring"}

FROM_DEVICE: Final = Direction.FROM_DEVICE


@cache
def kinds() -> tuple[str, ...]:
    """The endpoints that can be had here."""
    later = () if uring.why_not() else (endpoints.URING,)
    return (endpoints.EPOLL, endpoints.THREADS, *later)


def opened(stack: ExitStack, kind: str, path: str) -> Image:
    image = endpoints.images(kind)(path)
    stack.callback(image.close)
    return image


def cells(figures: dict[str, float]) -> list[Cell]:
    """By kind; None for one that cannot be had."""
    return [figures.get(kind) for kind in (endpoints.EPOLL, endpoints.THREADS, endpoints.URING)]


def ratios(times: Times) -> list[Cell]:
    names = (endpoints.THREADS, endpoints.URING)
    return [times.ratio(name, endpoints.EPOLL) if name in kinds() else None for name in names]


class Reader:
    """A loop that asks an endpoint for reads and waits until all are done."""

    def __init__(self, image: Endpoint) -> None:
        self._image = image
        self._left = 0
        self.held = 0.0  # seconds that the loop was in the endpoint
        self.longest = 0.0  # at a time

    def read(self, requests: Sequence[tuple[int, IoVec]]) -> None:
        self._left = len(requests)
        image = self._image
        for offset, iov in requests:
            self._within(partial(image.read, offset, iov, self._done))
        bell = image.fileno()
        while self._left:
            if bell is not None and not select.select([bell], [], [], PATIENCE)[0]:
                raise TimeoutError("the endpoint does not complete")
            self._within(image.poll)

    def _within(self, call: Callable[[], None]) -> None:
        begun = time.perf_counter()
        call()
        took = time.perf_counter() - begun
        self.held += took
        self.longest = max(self.longest, took)

    def _done(self, size: int, error: int) -> None:
        if error or not size:
            raise OSError(error, "a read of the image")
        self._left -= 1


# Readiness and completion


def completion(effort: Effort) -> Answer:
    """Readiness against completion, for small and large transfers of a disk and of sockets."""
    cached, uncached, received = _cached(effort), _uncached(effort), _received(effort)
    plot = Plot(
        "completion",
        "Completing later: CPU time against doing it at once",
        "bytes",
        "times the CPU time of doing it at once",
        {
            f"{what}, {way}": table.points(f"{way} ÷ at once")
            for what, table in (("a read of a file", cached), ("a receive", received))
            for way in ("threads", "io_uring")
            if table.points(f"{way} ÷ at once")
        },
        log="x",
        one=True,
    )
    held = Plot.of(
        uncached,
        uncached.head[4:7],
        name="completion-held",
        title="A read that waits for the disk: how long the loop is held",
        y_label="µs",
    )
    return Answer((cached, uncached, received), (plot, held))


HEAD: Final = ("bytes", "at once, µs", "threads, µs", "io_uring, µs")
AGAINST: Final = ("threads ÷ at once", "io_uring ÷ at once")


def _cached(effort: Effort) -> Table:
    rows: list[tuple[Cell, ...]] = []
    with ExitStack() as stack:
        path = stack.enter_context(file_in_memory(CACHED[-1]))
        images = {kind: opened(stack, kind, path) for kind in kinds()}
        room = memoryview(bytearray(CACHED[-1]))
        for size in effort.some(CACHED):
            progress(f"completion: reads of {size}")
            request = [(0, IoVec((room[:size],)))]
            ways = {kind: partial(Reader(image).read, request) for kind, image in images.items()}
            times = turn_about(ways, effort)
            us = {kind: times.us(kind) for kind in ways}
            rows.append((size, *cells(us), *ratios(times)))
    return Table((*HEAD, *AGAINST), rows, "A read that the kernel has in memory, CPU time")


def _uncached(effort: Effort) -> Table:
    rows: list[tuple[Cell, ...]] = []
    with ExitStack() as stack:
        path = stack.enter_context(file_on_disk(UNCACHED[-1]))
        images = {kind: opened(stack, kind, path) for kind in kinds()}
        room = memoryview(bytearray(UNCACHED[-1]))
        for size in effort.some(UNCACHED):
            progress(f"completion: reads of {size} from the disk")
            took: dict[str, list[float]] = {kind: [] for kind in images}
            held: dict[str, list[float]] = {kind: [] for kind in images}
            for _ in range(effort.rounds if effort.is_tiny else TRIES):
                for kind, image in images.items():
                    forget(image.fd)
                    reader = Reader(image)
                    begun = time.perf_counter()
                    reader.read([(0, IoVec((room[:size],)))])
                    took[kind].append((time.perf_counter() - begun) * 1e6)
                    held[kind].append(reader.held * 1e6)
            middle = [{k: median(v) for k, v in way.items()} for way in (took, held)]
            rows.append((size, *cells(middle[0]), *cells(middle[1])))
    head = (*HEAD, *(f"the loop is held: {name}" for name in HEAD[1:]))
    return Table(head, rows, "A read that waits for the disk, time that passes")


class Asker:
    """Whoever asked a socket's endpoint for bytes."""

    def __init__(self) -> None:
        self.size = 0

    def arrived(self, size: int, failure: int, peer: SockAddr | None, now: float) -> None:
        self.size = size


def _received(effort: Effort) -> Table:
    rows: list[tuple[Cell, ...]] = []
    with ExitStack() as stack:
        made = {kind: endpoints.sockets(kind) for kind in kinds()}
        for endpoint in made.values():
            stack.callback(endpoint.close)
        for size in effort.some(RECEIVES):
            progress(f"completion: receives of {size}")
            with ExitStack() as connections:
                socks = [connections.enter_context(waiting(bytes(size))) for _ in range(SOCKETS)]
                rooms = [(memoryview(bytearray(size)),) for _ in socks]
                ways = {
                    kind: partial(receive_all, endpoint, socks, rooms)
                    for kind, endpoint in made.items()
                }
                times = turn_about(ways, effort, per_call=SOCKETS)
            us = {kind: times.us(kind) for kind in ways}
            rows.append((size, *cells(us), *ratios(times)))
    caption = f"A receive, {SOCKETS} sockets readable in one turn of the loop, CPU time"
    return Table((*HEAD, *AGAINST), rows, caption)


def receive_all(
    endpoint: SocketEndpoint,
    socks: Sequence[socket.socket],
    rooms: Sequence[tuple[memoryview, ...]],
) -> None:
    """One turn: ask, settle, and hear of all."""
    askers = [Asker() for _ in socks]
    for sock, views, asker in zip(socks, rooms, askers, strict=True):
        if not endpoint.begin(sock, views, MSG_PEEK, asker):
            asker.size = sock.recvmsg_into(views, 0, MSG_PEEK)[0]
    endpoint.settle(0.0)
    bell = endpoint.fileno()
    while endpoint.under_way:
        assert bell is not None
        if not select.select([bell], [], [], PATIENCE)[0]:
            raise TimeoutError("the endpoint does not complete")
        endpoint.poll(0.0)
    assert all(asker.size for asker in askers)


# Zero-copy and async


class BufferedImage:
    """A disk with buffers of its own, from which it copies: around any endpoint."""

    def __init__(self, inner: Endpoint) -> None:
        self._inner = inner
        self.fileno, self.poll = inner.fileno, inner.poll
        self.sync, self.withdraw, self.close = inner.sync, inner.withdraw, inner.close
        self.size, self.read_only = inner.size, inner.read_only
        self._free: dict[int, list[bytearray]] = {}  # by length: made once, used again

    def read(self, offset: int, iov: IoVec, done: Done) -> None:
        length = len(iov)
        free = self._free.setdefault(length, [])
        buffer = free.pop() if free else bytearray(length)

        def arrived(size: int, error: int) -> None:
            scatter_copy(iov.segments, (memoryview(buffer)[:size],))
            free.append(buffer)
            done(size, error)

        self._inner.read(offset, IoVec.of(buffer), arrived)

    def write(self, offset: int, iov: IoVec, done: Done) -> None:
        self._inner.write(offset, IoVec.of(bytes(iov)), done)


def both(effort: Effort) -> Answer:
    """What zero-copy brings, what async does, and what both."""
    tables = []
    plots = []
    for is_cached, label in ((True, "in the kernel's memory"), (False, "on the disk")):
        rows: list[tuple[Cell, ...]] = []
        for size in effort.some(TOGETHER):
            progress(f"both: {DISKS} reads of {size}, {label}")
            rows += _together(size, is_cached, effort)
        tables.append(
            Table(
                (
                    "bytes",
                    "way",
                    "CPU per read, µs",
                    "until all are there, µs",
                    "longest hold of the loop, µs",
                    "CPU ÷ neither",
                    "hold ÷ neither",
                ),
                rows,
                f"{DISKS} reads at once into scattered guest memory, {label}",
            )
        )
    on_disk = tables[1]
    plots.append(
        Plot(
            "both",
            f"{DISKS} reads from the disk at once: how long the loop is held at most",
            "bytes of each",
            "µs",
            {
                way: [(_figure(row[0]), _figure(row[4])) for row in on_disk.rows if row[1] == way]
                for way in dict.fromkeys(str(row[1]) for row in on_disk.rows)
            },
        )
    )
    return Answer(tuple(tables), tuple(plots))


def _figure(cell: Cell) -> float:
    assert isinstance(cell, float | int)
    return cell


def _together(size: int, is_cached: bool, effort: Effort) -> list[tuple[Cell, ...]]:
    file = file_in_memory if is_cached else file_on_disk
    with ExitStack() as stack:
        board = stack.enter_context(Board(is_scattered=True))
        path = stack.enter_context(file(DISKS * size))
        at_once = opened(stack, endpoints.EPOLL, path)
        ways: dict[str, tuple[Image, Endpoint]] = {
            "neither": (at_once, BufferedImage(at_once)),
            "zero-copy": (at_once, at_once),
        }
        for kind in kinds()[1:]:
            later = opened(stack, kind, path)
            ways[f"async, {LABELS[kind]}"] = later, BufferedImage(later)
            ways[f"both, {LABELS[kind]}"] = later, later
        cpu: dict[str, list[float]] = {way: [] for way in ways}
        took: dict[str, list[float]] = {way: [] for way in ways}
        held: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(effort.rounds if effort.is_tiny else TRIES):
            for way, (image, endpoint) in ways.items():
                if not is_cached:
                    forget(image.fd)
                reader = Reader(endpoint)
                cpu_begun, begun = time.process_time(), time.perf_counter()
                requests = []
                for index in range(DISKS):
                    transfer = Transfer(FROM_DEVICE, ((DVMA + index * size, size),))
                    requests.append((index * size, board.iommu.open(transfer)))
                reader.read(requests)
                cpu[way].append((time.process_time() - cpu_begun) * 1e6 / DISKS)
                took[way].append((time.perf_counter() - begun) * 1e6)
                held[way].append(reader.longest * 1e6)
    base_cpu, base_held = cpu["neither"], held["neither"]
    return [
        (
            size,
            way,
            median(cpu[way]),
            median(took[way]),
            median(held[way]),
            median(a / b for a, b in zip(cpu[way], base_cpu, strict=True)),
            median(a / b for a, b in zip(held[way], base_held, strict=True)),
        )
        for way in ways
    ]
