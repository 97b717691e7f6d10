"""One vector type for host memory, and the ranges that name the same bytes by address.

An `IoVec` is one logical byte string scattered over host buffers: an immutable tuple of writable
or read-only `memoryview`s in data order. Nothing here copies, except `bytes()`, `copy_from`,
`scatter_copy` and the one bounce: `pull`, for a header that straddles segments.

A list of ranges is the same thing before it has host addresses: `(address, length)` tuples in data
order, in exactly one address space. The spaces are types, so that a mix-up is a type error:
`LanceAddr` (24 bits) → `Dvma` (32) → `PhysAddr` (36). A range is a bare tuple, because there are
four of them per frame and stage: a tuple costs a fifth of an object with the same two fields.

Where a vector is cut is a matter of speed and of display, never of meaning: every verb gives for
any cuts what it gives for the flat bytes (tests/dma/test_iovec.py proves it for arbitrary cuts).

Does not do: own memory, know what the bytes mean, or check that an address exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NewType, TypeAlias

LanceAddr = NewType("LanceAddr", int)  # 24 bits: what the Am7990 drives
Dvma = NewType("Dvma", int)  # 32 bits: SBus virtual, before the IOMMU
PhysAddr = NewType("PhysAddr", int)  # 36 bits: sun4m physical

Range: TypeAlias = tuple[int, int]  # (address, bytes)
Ranges: TypeAlias = Sequence[Range]
Buffer: TypeAlias = bytes | bytearray | memoryview


class IoVec:
    """One logical byte string scattered over host buffers."""

    __slots__ = ("segments",)

    def __init__(self, segments: tuple[memoryview, ...] = ()) -> None:
        self.segments = segments

    @classmethod
    def of(cls, *buffers: Buffer) -> IoVec:
        """A vector over these buffers, empty ones left out."""
        return cls(tuple(memoryview(b).cast("B") for b in buffers if len(b)))

    def __len__(self) -> int:
        return sum(map(len, self.segments))

    def __bytes__(self) -> bytes:
        return b"".join(self.segments)

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self.segments)

    def __add__(self, other: IoVec) -> IoVec:
        return IoVec(self.segments + other.segments)

    def __repr__(self) -> str:
        return f"IoVec({', '.join(str(len(s)) for s in self.segments)})"

    def slice(self, start: int, stop: int) -> IoVec:
        """The bytes [start, stop), as views."""
        out: list[memoryview] = []
        start = max(start, 0)
        for segment in self.segments:
            if start >= stop:
                break
            length = len(segment)
            if start < length:
                out.append(segment[start:stop])
                start = length
            start -= length
            stop -= length
        return IoVec(tuple(out))

    def cut(self, lengths: Iterable[int]) -> IoVec:
        """The same bytes with a segment boundary after each of these lengths in turn.

        Boundaries that are there already stay; what the lengths do not reach keeps its own.
        """
        out: list[memoryview] = []
        segments = iter(self.segments)
        piece = next(segments, None)
        start = 0  # of what is left of `piece`
        for length in lengths:
            while length and piece is not None:
                left = len(piece) - start
                if length < left:
                    out.append(piece[start : start + length])
                    start += length
                    break
                out.append(piece[start:] if start else piece)
                length -= left
                piece, start = next(segments, None), 0
        if piece is not None:
            out.append(piece[start:])
        return IoVec((*out, *segments))

    def pull(self, size: int) -> tuple[memoryview, IoVec]:
        """The first `size` bytes contiguous, and the rest.

        A view where the first segment holds them all, else a copy: the only bounce of headers.
        Raises ValueError when the vector is shorter.
        """
        segments = self.segments
        if segments:
            first = segments[0]
            length = len(first)
            if length > size:
                return first[:size], IoVec((first[size:], *segments[1:]))
            if length == size:
                return first, IoVec(segments[1:])
        head = self.slice(0, size)
        if len(head) != size:
            raise ValueError(f"pull {size} of {len(self)} bytes")
        return memoryview(bytes(head)), self.slice(size, len(self))

    def copy_from(self, data: Buffer) -> int:
        """Store `data` from the front; the bytes stored (fewer where the vector is shorter)."""
        source = memoryview(data)
        done = 0
        for segment in self.segments:
            piece = source[done : done + len(segment)]
            segment[: len(piece)] = piece
            done += len(piece)
        return done


def scatter_copy(dst: Iterable[memoryview], src: Iterable[memoryview]) -> int:
    """Copy bytes in order from one scatter to another; as many as the shorter holds."""
    total = 0
    sources = iter(src)
    piece = memoryview(b"")
    for room in dst:
        filled = 0
        while filled < len(room):
            if not len(piece):
                following = next(sources, None)
                if following is None:
                    return total
                piece = following
                continue
            n = min(len(piece), len(room) - filled)
            room[filled : filled + n] = piece[:n]
            piece = piece[n:]
            filled += n
            total += n
    return total


def total_len(ranges: Ranges) -> int:
    """Bytes that a list of ranges names."""
    return sum(length for _, length in ranges)


def merge_ranges(ranges: Iterable[Range]) -> list[Range]:
    """The same bytes in the same order in as few ranges as possible; empty ranges vanish.

    Only a range that begins where the one before it ends is joined to it: order is data order, so
    ranges that touch the other way round stay apart.
    """
    merged: list[Range] = []
    addr = length = 0
    for next_addr, next_length in ranges:
        if next_addr == addr + length:
            length += next_length
        elif next_length:
            if length:
                merged.append((addr, length))
            addr, length = next_addr, next_length
    if length:
        merged.append((addr, length))
    return merged
