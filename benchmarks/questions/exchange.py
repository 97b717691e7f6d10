"""Byte lanes: N ranges of one octet, a bounce buffer, or words exchanged in place.

With a range per octet nothing needs to be copied: the octet for address x is sent to x ^ 1, and the
host's readv does the exchange. The other two ways are LEDMA's own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from benchmarks.questions.answer import Answer, Cell, Plot, Table
from benchmarks.questions.board import Board, file_in_memory
from benchmarks.questions.measure import Effort, crossing, progress, turn_about
from dma.scsi.endpoint import ImageFile
from dma.transfer import Direction, Lanes, Transfer

OCTETS: Final = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1518, 4096)
LENGTHS: Final = (60, 256, 512, 1024, 1514, 4096, 16384, 65536)  # bytes
ADDR: Final = 0x1000  # LANCE address

FROM_DEVICE: Final = Direction.FROM_DEVICE
TO_DEVICE: Final = Direction.TO_DEVICE


def one_octet_ranges(board: Board, image: ImageFile, size: int) -> Callable[[], None]:
    """A range per octet, at the place where the lanes put it."""

    def once() -> None:
        ranges = [(addr ^ 1, 1) for addr in range(ADDR, ADDR + size)]
        fill(board, image, Transfer(FROM_DEVICE, ranges))

    return once


def exchanged(board: Board, image: ImageFile, size: int) -> Callable[[], None]:
    """One range; LEDMA exchanges in its completion."""
    return lambda: fill(board, image, Transfer(FROM_DEVICE, ((ADDR, size),), lanes=Lanes.EXCHANGED))


def fill(board: Board, image: ImageFile, transfer: Transfer) -> None:
    image.read(0, board.ledma.open(transfer), lambda size, _error: transfer.complete(size))


def octets(effort: Effort) -> Answer:
    """N ranges of one octet, or copy and swap a block of N?"""
    rows: list[tuple[Cell, ...]] = []
    ratios = []
    sizes = effort.some(OCTETS)
    with ExitStack() as stack:
        bounce = stack.enter_context(Board(mode="bounce"))
        in_place = stack.enter_context(Board())
        path = stack.enter_context(file_in_memory(OCTETS[-1]))
        image = stack.enter_context(ImageFile(path))
        for size in sizes:
            progress(f"octets: {size}")
            ways = {
                "ranges": one_octet_ranges(in_place, image, size),
                "bounce": exchanged(bounce, image, size),
                "in place": exchanged(in_place, image, size),
            }
            left = set()
            for name, way in ways.items():
                way()
                board = bounce if name == "bounce" else in_place
                left.add(bytes(board.data(ADDR + size)[ADDR:]))
            assert len(left) == 1, "the three ways leave different octets"
            times = turn_about(ways, effort)
            ratios.append(times.ratio("ranges", "bounce"))
            rows.append((size, *map(times.us, ways), ratios[-1]))
    table = Table(
        (
            "N, octets",
            "N ranges, µs",
            "copy and swap, µs",
            "in place, µs",
            "ranges ÷ copying",
        ),
        rows,
    )
    even = crossing(sizes, ratios)
    where = Table(("N ranges and copy and swap cost the same at, octets",), [(even,)])
    plot = Plot.of(
        table,
        table.head[1:4],
        name="octets",
        title="A block with exchanged lanes, read from a file into guest memory",
        y_label="CPU time, µs",
    )
    return Answer((table, where), (plot,))


def lanes(effort: Effort) -> Answer:
    """Bounce, or exchange in place?"""
    rows: list[tuple[Cell, ...]] = []
    with Board(mode="bounce") as bounce, Board() as in_place:
        for size in effort.some(LENGTHS):
            progress(f"lanes: {size}")
            times = turn_about(
                {
                    "straight": passage(in_place, size, FROM_DEVICE, Lanes.STRAIGHT),
                    "in place": passage(in_place, size, FROM_DEVICE, Lanes.EXCHANGED),
                    "bounce": passage(bounce, size, FROM_DEVICE, Lanes.EXCHANGED),
                    "to device": passage(bounce, size, TO_DEVICE, Lanes.EXCHANGED),
                },
                effort,
            )
            us = [times.us(name) for name in ("straight", "in place", "bounce", "to device")]
            rows.append((size, *us, times.ratio("bounce", "in place")))
    table = Table(
        (
            "bytes",
            "lanes straight, µs",
            "in place, µs",
            "bounced, µs",
            "from the guest (always bounced), µs",
            "bounced ÷ in place",
        ),
        rows,
    )
    plot = Plot.of(
        table,
        table.head[1:4],
        name="lanes",
        title="LEDMA → IOMMU → memory and the completion, without the host's I/O",
        y_label="CPU time, µs",
    )
    return Answer((table,), (plot,))


def passage(board: Board, size: int, direction: Direction, order: Lanes) -> Callable[[], None]:
    """A transfer opened and completed, nobody's bytes in it."""

    def once() -> None:
        transfer = Transfer(direction, ((ADDR, size),), lanes=order)
        board.ledma.open(transfer)
        transfer.complete(size)

    return once
