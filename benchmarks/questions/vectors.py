"""Vectors: what a range costs on its way, and what could be saved.

`ranges` has guest memory in blocks that do not touch, bound for a file. Either each block is a
range, or they are copied together first, and one range is left. The copy is numpy's, in one call,
which is what C would take; and block by block in Python, which is what it takes here.

`allocation` has the stages as they are beside three that do the same without new lists: lists that
are written over, one step from LANCE address to view, and bytes that are copied at every stage.
"""

from __future__ import annotations

import ctypes
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Final

from benchmarks.questions.answer import Answer, Cell, Plot, Table
from benchmarks.questions.board import DVMA, Board, file_in_memory
from benchmarks.questions.measure import Effort, crossing, progress, slope, turn_about
from dma.iommu import PAGE_SHIFT, TLBFLUSH
from dma.iovec import IoVec, Range, merge_ranges
from dma.ledma import LANCE_MASK
from dma.memory import PAGE_LEN
from dma.scsi.endpoint import ImageFile
from dma.transfer import Direction, Transfer

TOTAL: Final = 65536  # bytes that `ranges` moves
BLOCKS: Final = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # bytes
FEW: Final = 1024  # ranges
COUNTS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PIECES: Final = (2, 4, 8, 16, 32, 64, 128)
FRAME_LEN: Final = 1514  # bytes
STAGES: Final = 3  # LEDMA, IOMMU, memory: each would copy

FROM_DEVICE: Final = Direction.FROM_DEVICE
TO_DEVICE: Final = Direction.TO_DEVICE


# What a range costs


class IovecOfC(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


def ranges(effort: Effort) -> Answer:
    """The cost of a range, and the block size below which copying wins."""
    sizes = effort.some(BLOCKS)
    rows: list[tuple[Cell, ...]] = []
    by_c, by_python, counts, opening, storing = [], [], [], [], []
    with ExitStack() as stack:
        board = stack.enter_context(Board())
        image = stack.enter_context(ImageFile(stack.enter_context(file_in_memory(TOTAL))))
        for block in sizes:
            progress(f"ranges: blocks of {block}")
            blocks = [(DVMA + at, block) for at in range(0, 2 * TOTAL, 2 * block)]
            views = board.iommu.open(Transfer(TO_DEVICE, blocks))
            times = turn_about(
                {
                    "ranges": vectored(board, image, blocks),
                    "by C": copied_together(board, image, block, numpy_copy),
                    "by Python": copied_together(board, image, block, python_copy),
                    "opening": opened(board, TO_DEVICE, blocks),
                    "storing": partial(image.write, 0, views, ignore),
                },
                effort,
            )
            by_c.append(times.ratio("ranges", "by C"))
            by_python.append(times.ratio("ranges", "by Python"))
            counts.append(float(len(blocks)))
            opening.append(times.us("opening"))
            storing.append(times.us("storing"))
            us = [times.us(name) for name in ("ranges", "by C", "by Python")]
            rows.append((block, len(blocks), *us, by_c[-1], by_python[-1]))
    table = Table(
        (
            "block, bytes",
            "ranges",
            "a range per block, µs",
            "copied together first, µs",
            "copied block by block, µs",
            "ranges ÷ copied",
            "ranges ÷ block by block",
        ),
        rows,
        f"{TOTAL // 1024} KiB of guest memory in blocks that do not touch, written to a file",
    )
    view = memoryview(bytearray(16))
    costs = Table(
        ("of one range", "figure"),
        [
            ("translation and view, µs", slope_of_few(counts, opening)),
            ("pwritev, µs", slope_of_few(counts, storing)),
            ("its tuple and two numbers, bytes", range_bytes()),
            ("its view, bytes", sys.getsizeof(view)),
            ("struct iovec in C, bytes", ctypes.sizeof(IovecOfC)),
            ("copying together costs the same at blocks of, bytes", crossing(sizes, by_c)),
            ("copying block by block does at, bytes", crossing(sizes, by_python)),
        ],
    )
    plot = Plot.of(
        table,
        table.head[2:5],
        name="ranges",
        title=f"{TOTAL // 1024} KiB in blocks, from guest memory to a file",
        y_label="CPU time, µs",
    )
    return Answer((table, costs), (plot,))


def slope_of_few(counts: Sequence[float], us: Sequence[float]) -> float:
    """Per range, as long as they fit the processor's caches."""
    few = [(count, took) for count, took in zip(counts, us, strict=True) if count <= FEW]
    return slope(*zip(*few, strict=True)) if len(few) > 1 else slope(counts, us)


def ignore(_size: int, _error: int) -> None:
    """Done."""


def range_bytes() -> int:
    """Of Python's memory: a tuple, an address and a length."""
    addr, length = DVMA + 4096, 1460
    return sum(map(sys.getsizeof, ((addr, length), addr, length)))


def opened(board: Board, direction: Direction, blocks: Sequence[Range]) -> Callable[[], IoVec]:
    return lambda: board.iommu.open(Transfer(direction, blocks))


def vectored(board: Board, image: ImageFile, blocks: Sequence[Range]) -> Callable[[], None]:
    return lambda: image.write(0, board.iommu.open(Transfer(TO_DEVICE, blocks)), ignore)


def copied_together(
    board: Board, image: ImageFile, block: int, copy: Callable[[memoryview, memoryview, int], None]
) -> Callable[[], None]:
    """The blocks copied to a place of their own in guest memory, and one range of that."""
    at = 4 * TOTAL
    source, staging = board.data(2 * TOTAL), board.data(at + TOTAL)[at:]
    whole = ((DVMA + at, TOTAL),)
    copy(source, staging, block)
    assert staging[block : 2 * block] == source[2 * block : 3 * block]

    def once() -> None:
        copy(source, staging, block)
        image.write(0, board.iommu.open(Transfer(TO_DEVICE, whole)), ignore)

    return once


def numpy_copy(source: memoryview, staging: memoryview, block: int) -> None:
    import numpy as np

    pairs = np.frombuffer(source, np.uint8).reshape(-1, 2, block)
    np.frombuffer(staging, np.uint8).reshape(-1, block)[:] = pairs[:, 0]


def python_copy(source: memoryview, staging: memoryview, block: int) -> None:
    for at in range(0, TOTAL, block):
        staging[at : at + block] = source[2 * at : 2 * at + block]


# Translation


def translation(effort: Effort) -> Answer:
    """The IOMMU by number of ranges and of pages."""
    counts = effort.some(COUNTS)
    rows: list[tuple[Cell, ...]] = []
    names = ("ranges", "in a row", "scattered", "cold")
    curves: dict[str, list[float]] = {name: [] for name in names}
    with Board() as in_row, Board(is_scattered=True) as scattered:
        for count in counts:
            progress(f"translation: {count}")
            in_a_page = [(DVMA + 16 * index, 8) for index in range(count)]
            pages = ((DVMA, count * PAGE_LEN),)
            times = turn_about(
                {
                    "ranges": opened(in_row, FROM_DEVICE, in_a_page),
                    "in a row": opened(in_row, FROM_DEVICE, pages),
                    "scattered": opened(scattered, FROM_DEVICE, pages),
                    "cold": flushed(scattered, pages),
                },
                effort,
            )
            for name in names:
                curves[name].append(times.us(name))
            rows.append((count, *map(times.us, names)))
    table = Table(
        (
            "n",
            "n ranges in one page, µs",
            "one range, n pages in a row, µs",
            "one range, n scattered pages, µs",
            "the same, IOTLB empty, µs",
        ),
        rows,
        "IOMMU and memory: DVMA ranges to host views",
    )
    xs = [float(count) for count in counts]
    each = Table(
        ("each further", "µs"),
        [
            (label, slope(xs, curves[name]))
            for label, name in zip(
                ("range", "page in a row", "scattered page", "page not in the IOTLB"),
                names,
                strict=True,
            )
        ],
    )
    plot = Plot.of(
        table,
        table.head[1:],
        name="translation",
        title="Translating through IOMMU and memory",
        y_label="CPU time, µs",
    )
    return Answer((table, each), (plot,))


def flushed(board: Board, pages: Sequence[Range]) -> Callable[[], None]:
    """The pages' IOPTEs are read from guest memory each time."""

    def once() -> None:
        board.iommu.write(TLBFLUSH, 0)
        board.iommu.open(Transfer(FROM_DEVICE, pages))

    return once


# Merging


def merging(effort: Effort) -> Answer:
    """A frame of ranges that touch: as they are, or merged before they are translated."""
    rows: list[tuple[Cell, ...]] = []
    with Board() as board:
        for count in effort.some(PIECES):
            progress(f"merging: {count}")
            cut = pieces_of_a_frame(count)
            lengths = [length for _, length in cut]
            ways: dict[str, Callable[[], IoVec]] = {
                "as they are": partial(through_ledma, board, cut),
                "cut": partial(merged_and_cut, board, cut, lengths),
                "merged": partial(merged, board, cut),
            }
            assert len({tuple(map(len, ways[name]())) for name in ("as they are", "cut")}) == 1
            times = turn_about(ways, effort)
            ratios = [times.ratio(name, "as they are") for name in ("cut", "merged")]
            rows.append((count, *map(times.us, ways), *ratios))
    table = Table(
        (
            "ranges that touch",
            "as they are, µs",
            "merged, views cut again, µs",
            "merged, one view, µs",
            "cut again ÷ as they are",
            "one view ÷ as they are",
        ),
        rows,
        f"{FRAME_LEN} bytes through LEDMA, IOMMU and memory",
    )
    plot = Plot.of(
        table,
        table.head[1:4],
        name="merging",
        title=f"{FRAME_LEN} bytes in ranges that touch, through LEDMA, IOMMU and memory",
        y_label="CPU time, µs",
    )
    return Answer((table,), (plot,))


def pieces_of_a_frame(count: int) -> list[Range]:
    """Ranges that touch, in LANCE addresses."""
    edges = [FRAME_LEN * index // count for index in range(count + 1)]
    return [(0x1000 + a, b - a) for a, b in pairwise(edges)]


def through_ledma(board: Board, cut: Sequence[Range]) -> IoVec:
    return board.ledma.open(Transfer(FROM_DEVICE, cut))


def merged_and_cut(board: Board, cut: Sequence[Range], lengths: Sequence[int]) -> IoVec:
    return merged(board, cut).cut(lengths)


def merged(board: Board, cut: Sequence[Range]) -> IoVec:
    return board.ledma.open(Transfer(FROM_DEVICE, merge_ranges(cut)))


# Allocation


def allocation(effort: Effort) -> Answer:
    """New lists at each stage, lists written over, one step, or bytes copied at each stage."""
    rows: list[tuple[Cell, ...]] = []
    with Board() as board:
        for count in effort.some((1, 2, 4, 8, 16, 32, 64, 128)):
            progress(f"allocation: {count}")
            cut = pieces_of_a_frame(count)
            ways: dict[str, Callable[[], IoVec]] = {
                "new lists": partial(through_ledma, board, cut),
                "written over": in_place_stages(board, cut),
                "one step": in_one_step(board, cut),
                "copying": copies(board),
            }
            assert len({bytes(ways[name]()) for name in ways}) == 1
            times = turn_about(ways, effort)
            lists = times.us("new lists") * (1 - times.ratio("written over", "new lists"))
            part = lists / times.us("copying")
            rows.append((count, *map(times.us, ways), lists, part))
        grown = bytes_allocated(board, pieces_of_a_frame(128)) / 128
    table = Table(
        (
            "ranges",
            "new lists at each stage, µs",
            "lists written over, µs",
            "one step, no lists between, µs",
            f"{FRAME_LEN} bytes copied {STAGES} times, µs",
            "so allocation is, µs",
            "allocation ÷ copying",
        ),
        rows,
        "LANCE address to host view",
    )
    parts = table.points("allocation ÷ copying")
    even = crossing(*zip(*parts, strict=True))
    sizes = Table(
        ("on the way", "figure"),
        [
            ("allocated at most per range, bytes", grown),
            ("ranges whose allocation costs as much as the copies", even),
        ],
    )
    plot = Plot.of(
        table,
        table.head[1:5],
        name="allocation",
        title=f"A frame of {FRAME_LEN} bytes from LANCE address to host view",
        y_label="CPU time, µs",
    )
    return Answer((table, sizes), (plot,))


def in_place_stages(board: Board, cut: Sequence[Range]) -> Callable[[], IoVec]:
    """Stages that write over one list, made once; only the views are new."""
    steps = steps_of(board)
    memory = board.data(0x100000).obj
    whole = memoryview(memory)
    addrs, lengths = [0] * len(cut), [0] * len(cut)
    views: list[memoryview] = [whole] * len(cut)

    def ledma() -> None:
        for index, addr in enumerate(addrs):
            addr &= LANCE_MASK
            if addr + lengths[index] > LANCE_MASK:
                raise ValueError("beyond the window")
            addrs[index] = DVMA | addr

    def iommu() -> None:
        for index, addr in enumerate(addrs):
            if (addr & 0xFFF) + lengths[index] > PAGE_LEN:
                raise ValueError("more than a page")
            addrs[index] = addr + steps[addr >> PAGE_SHIFT]

    def ram() -> IoVec:
        for index, addr in enumerate(addrs):
            views[index] = whole[addr : addr + lengths[index]]
        return IoVec(tuple(views))

    def once() -> IoVec:
        for index, (addr, length) in enumerate(cut):
            addrs[index], lengths[index] = addr, length
        ledma()
        iommu()
        return ram()

    return once


def in_one_step(board: Board, cut: Sequence[Range]) -> Callable[[], IoVec]:
    """All three stages in one loop."""
    steps = steps_of(board)
    whole = memoryview(board.data(0x100000).obj)

    def once() -> IoVec:
        views = []
        for addr, length in cut:
            addr = DVMA | addr & LANCE_MASK
            if (addr & 0xFFF) + length > PAGE_LEN:
                raise ValueError("more than a page")
            addr += steps[addr >> PAGE_SHIFT]
            views.append(whole[addr : addr + length])
        return IoVec(tuple(views))

    return once


def steps_of(board: Board) -> dict[int, int]:
    """What to add to an address of each page, as the IOTLB has it."""
    first = DVMA >> PAGE_SHIFT
    return {first + index: board.page(index) - DVMA - index * PAGE_LEN for index in range(0x100)}


def copies(board: Board) -> Callable[[], IoVec]:
    """What the stages would do without vectors: hand on a copy each."""
    source = board.data(0x2000)[0x1000 : 0x1000 + FRAME_LEN]

    def once() -> IoVec:
        octets = bytes(source)
        for _ in range(STAGES - 1):
            octets = bytes(memoryview(octets))
        return IoVec((memoryview(octets),))

    return once


def bytes_allocated(board: Board, cut: Sequence[Range]) -> int:
    """The most that was held at once while a transfer opened."""
    board.ledma.open(Transfer(FROM_DEVICE, cut))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        board.ledma.open(Transfer(FROM_DEVICE, cut))
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
