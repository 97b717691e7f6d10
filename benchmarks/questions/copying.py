"""Copying against vectors: towards the guest, from it, at the system call, and from a disk.

`output` is a frame's way between a host socket and the guest's driver, by frame size: with vectors;
with one buffer between, which is one copy; and copied at every stage (benchmarks/copying.py).
`sources` is a read of a disk: the endpoint reads into guest memory, or the disk has a buffer whose
bytes the disk or memory copies on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Final

from benchmarks.copying import CopyingPath, CopyingPort
from benchmarks.questions.answer import Answer, Cell, Plot, Table
from benchmarks.questions.board import DVMA, Board, file_in_memory
from benchmarks.questions.measure import Effort, progress, turn_about
from benchmarks.questions.rig import (
    BATCH,
    HEADER_LEN,
    HEADERS,
    LanceRig,
    datagrams,
    receive,
    waiting,
)
from benchmarks.wire import Rig, Wire
from dma import espdma
from dma.iovec import Dvma, IoVec, Range, scatter_copy
from dma.scsi.endpoint import ImageFile
from dma.transfer import Direction, DmaPath, Transfer
from nic.port import VNET_NONE, Frame, PortDefaults

FRAMES: Final = (64, 128, 256, 512, 1024, 1514, 2048, 4000)  # bytes; MCNT has twelve bits
SUPERS: Final = (1514, 4096, 9014, 16384, 32768, 65000)  # bytes
SENDS: Final = (64, 256, 1024, 1514, 4096, 9014, 16384, 65000)  # bytes
READS: Final = (512, 4096, 8192, 65536, 262144, 1 << 20)  # bytes
FRAME_MAX: Final = 65549  # bytes of a super-frame
BUFFER: Final = 4096  # bytes, of a descriptor

FROM_DEVICE: Final = Direction.FROM_DEVICE


class OneCopyPort(PortDefaults):
    """A port with one buffer between it and the stack. Is also its one claim, as benchmarks.wire's.

    The buffer's cuts are made once for each size.
    """

    def __init__(self, port: Any) -> None:
        self.iov = IoVec()
        self._port = port
        self._own = memoryview(bytearray(FRAME_MAX))
        self._layouts: dict[tuple[int, Sequence[int]], IoVec] = {}
        self._inner: Any = None

    def claim(self, size: int, headers: Sequence[int] = ()) -> OneCopyPort | None:
        self._inner = self._port.claim(size)
        if self._inner is None:
            return None
        key = (size, headers)
        if key not in self._layouts:
            self._layouts[key] = IoVec((self._own[:size],)).cut(headers)
        self.iov = self._layouts[key]
        return self

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        """Copy to the guest."""
        self._inner.iov.copy_from(self._own[:size])
        self._inner.commit(size, vnet)

    def cancel(self) -> None:
        self._inner.cancel()

    def frames(self) -> Iterator[Frame]:
        for frame in self._port.frames():
            yield Frame(IoVec.of(bytes(frame.iov)))
            frame.release()


def copying_path(_stage: str, path: DmaPath) -> DmaPath:
    return CopyingPath(path)


def rigs(stack: ExitStack) -> dict[str, LanceRig]:
    """With vectors, with one copy, copied at every stage."""
    made = {
        "vectors": LanceRig(buffer=BUFFER, ring=32, max_frame=FRAMES[-1]),
        "one": LanceRig(buffer=BUFFER, ring=32, max_frame=FRAMES[-1]),
        "every": LanceRig(
            buffer=BUFFER,
            ring=32,
            max_frame=FRAMES[-1],
            wrap=copying_path,
        ),
    }
    for rig in made.values():
        stack.enter_context(rig)
    made["one"].port = OneCopyPort(made["one"].board.lance)
    made["every"].port = CopyingPort(made["every"].board.lance)
    return made


def output(effort: Effort) -> Answer:
    """What vectors gain over copying, by frame size."""
    down: list[tuple[Cell, ...]] = []
    up: list[tuple[Cell, ...]] = []
    with ExitStack() as stack:
        made = rigs(stack)
        for size in effort.some(FRAMES):
            progress(f"output: frames of {size}")
            down.append((size, *_down(made, size, effort)))
            up.append((size, *_up(made, size, effort)))
    head = (
        "frame, bytes",
        "vectors, µs",
        "one copy, µs",
        "copied at every stage, µs",
        "one copy ÷ vectors",
        "every stage ÷ vectors",
    )
    to_guest = Table(head, down, "To the guest: host socket, Lance, LEDMA, IOMMU, memory, driver")
    from_guest = Table(head, up, "From the guest: the same way back, `sendmsg` at its end")
    with contextlib.closing(Rig()) as wire_rig:
        supers = Table(
            ("frame, bytes", "vectors, µs", "one copy, µs", "one copy ÷ vectors"),
            [(size, *_super(wire_rig.wire, size, effort)) for size in effort.some(SUPERS)],
            "To a port in memory that takes super-frames, as a TAP device does",
        )
    sends = Table(
        ("bytes", "sendmsg of four views, µs", "joined and sent, µs", "joined ÷ views"),
        [(size, *_send(size, effort)) for size in effort.some(SENDS)],
        "The system call alone: three headers and payload to a datagram socket",
    )
    plot = Plot(
        "output",
        "What copying costs, as a multiple of vectors",
        "frame, bytes",
        "times the CPU time with vectors",
        {
            "to the guest, one copy": to_guest.points(head[4]),
            "super-frames to the guest, one copy": supers.points(supers.head[3]),
            "to the guest, every stage": to_guest.points(head[5]),
            "from the guest, one copy": from_guest.points(head[4]),
            "from the guest, every stage": from_guest.points(head[5]),
        },
        log="x",
        one=True,
    )
    return Answer((to_guest, supers, from_guest, sends), (plot,))


def _down(made: dict[str, LanceRig], size: int, effort: Effort) -> list[Cell]:
    payload = bytes(range(1, 11)) * 400
    with waiting(payload[: size - HEADER_LEN]) as sock:

        def turn(rig: LanceRig) -> Callable[[], None]:
            def once() -> None:
                for _ in range(BATCH):
                    receive(sock, rig.port, size - HEADER_LEN)
                rig.hand_over()

            return once

        seen = set()
        for rig in made.values():
            receive(sock, rig.port, size - HEADER_LEN)
            rig.hand_over(look=True)
            seen.add(rig.last)
        assert seen == {b"".join(HEADERS) + payload[: size - HEADER_LEN]}
        ways = {name: turn(rig) for name, rig in made.items()}
        times = turn_about(ways, effort, per_call=BATCH)
    return [*map(times.us, ways), *(times.ratio(name, "vectors") for name in ("one", "every"))]


def _super(wire: Wire, size: int, effort: Effort) -> list[Cell]:
    one_copy = OneCopyPort(wire)
    with waiting(bytes(size - HEADER_LEN)) as sock:

        def sent(port: Any) -> Callable[[], None]:
            def once() -> None:
                receive(sock, port, size - HEADER_LEN)
                wire.heads.clear()

            return once

        times = turn_about({"vectors": sent(wire), "one": sent(one_copy)}, effort)
    return [times.us("vectors"), times.us("one"), times.ratio("one", "vectors")]


def _up(made: dict[str, LanceRig], size: int, effort: Effort) -> list[Cell]:
    octets = bytes(size)
    with datagrams() as (ours, theirs):

        def turn(rig: LanceRig) -> Callable[[], None]:
            def once() -> None:
                for _ in range(BATCH):
                    rig.driver.send(octets, kick=False)
                rig.driver.kick()
                for frame in rig.port.frames():
                    ours.sendmsg(frame.iov.slice(HEADER_LEN, size).segments)
                    frame.release()
                    theirs.recv(1)
                rig.board.lance.poll(0.0)
                rig.driver.handle_interrupt()

            return once

        ways = {name: turn(rig) for name, rig in made.items()}
        times = turn_about(ways, effort, per_call=BATCH)
    return [*map(times.us, ways), *(times.ratio(name, "vectors") for name in ("one", "every"))]


def _send(size: int, effort: Effort) -> list[Cell]:
    views = [memoryview(part) for part in (*HEADERS, bytes(size - HEADER_LEN))]
    with datagrams() as (ours, theirs):

        def vectored() -> None:
            ours.sendmsg(views)
            theirs.recv(1)

        def joined() -> None:
            ours.send(b"".join(views))
            theirs.recv(1)

        times = turn_about({"views": vectored, "joined": joined}, effort)
    return [times.us("views"), times.us("joined"), times.ratio("joined", "views")]


# Who copies


def sources(effort: Effort) -> Answer:
    """A read of a disk: straight, copied by the disk, copied by memory with both lists at hand."""
    rows: list[tuple[Cell, ...]] = []
    with ExitStack() as stack:
        board = stack.enter_context(Board(is_scattered=True))
        image = stack.enter_context(ImageFile(stack.enter_context(file_in_memory(READS[-1]))))
        for size in effort.some(READS):
            progress(f"sources: {size}")
            ways = {
                "straight": straight(board, image, size),
                "disk": disk_copies(board, image, size),
                "memory": memory_copies(board, image, size),
            }
            left = set()
            for way in ways.values():
                way()
                left.add(b"".join(board.iommu.open(Transfer(FROM_DEVICE, ((DVMA, size),)))))
                wipe(board, size)
            assert len(left) == 1, "the three ways leave different bytes"
            times = turn_about(ways, effort)
            ratios = [times.ratio(name, "straight") for name in ("disk", "memory")]
            rows.append((size, *map(times.us, ways), *ratios))
    table = Table(
        (
            "bytes",
            "preadv into guest memory, µs",
            "the disk copies, µs",
            "memory copies, with source vectors, µs",
            "disk ÷ preadv",
            "memory ÷ preadv",
        ),
        rows,
        "A read from a file through ESPDMA, IOMMU and memory, no two pages beside each other",
    )
    plot = Plot.of(
        table,
        table.head[1:4],
        name="sources",
        title="A read of a disk: who moves the bytes",
        y_label="CPU time, µs",
    )
    return Answer((table,), (plot,))


def wipe(board: Board, size: int) -> None:
    for view in board.iommu.open(Transfer(FROM_DEVICE, ((DVMA, size),))):
        view[:] = bytes(len(view))


def opened(board: Board, size: int) -> tuple[Transfer, IoVec]:
    board.load_espdma(Dvma(DVMA), espdma.WRITE)
    transfer = Transfer(FROM_DEVICE, ((0, size),))
    return transfer, board.espdma.open(transfer)


def straight(board: Board, image: ImageFile, size: int) -> Callable[[], None]:
    """As it is."""

    def once() -> None:
        transfer, views = opened(board, size)
        image.read(0, views, lambda moved, _error: transfer.complete(moved))

    return once


def disk_copies(board: Board, image: ImageFile, size: int) -> Callable[[], None]:
    """The disk has a buffer, and the last word."""
    own = IoVec.of(bytearray(size))

    def once() -> None:
        transfer, views = opened(board, size)

        def done(moved: int, _error: int) -> None:
            scatter_copy(views.segments, own.slice(0, moved).segments)
            transfer.complete(moved)

        image.read(0, own, done)

    return once


def memory_copies(board: Board, image: ImageFile, size: int) -> Callable[[], None]:
    """The disk's buffer is filled first; its vector goes down with the other one to memory."""
    own = memoryview(bytearray(size))

    def once() -> None:
        image.read(0, IoVec((own,)), lambda moved, _error: copy(moved))

    def copy(moved: int) -> None:
        source: list[Range] = [(0, moved)]
        for _ in ("esp", "espdma", "iommu"):
            source = [(addr, length) for addr, length in source]  # unchanged, and handed on
        transfer, views = opened(board, size)
        pieces = [own[addr : addr + length] for addr, length in source]
        transfer.complete(scatter_copy(views.segments, pieces))

    return once
