"""Cutting the buffers of a frame: the device's own header off the front, then at header lengths.

Both are mostly quick, since drivers give buffers whose first part holds all headers.

Does not do: open anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dma.iovec import Range


def behead(ranges: list[Range], length: int) -> tuple[list[Range], list[Range]]:
    """The first `length` bytes, and the rest; the whole where there are fewer."""
    if ranges and ranges[0][1] > length:  # mostly
        addr, first = ranges[0]
        rest = ranges.copy()
        rest[0] = (addr + length, first - length)
        return [(addr, length)], rest
    for index, (addr, size) in enumerate(ranges):
        if size > length:
            head = [*ranges[:index], (addr, length)] if length else ranges[:index]
            return head, [(addr + length, size - length), *ranges[index + 1 :]]
        length -= size
    return ranges, []


def cut(ranges: Sequence[Range], lengths: Sequence[int], total: int, room: int) -> list[Range]:
    """The first `total` of `room` bytes, cut after each of `lengths` as well."""
    first = sum(lengths)
    if not ranges or ranges[0][1] <= first or first > total or room < total or 0 in lengths:
        return _cut_slowly(ranges, lengths, total)
    addr, length = ranges[0]
    end = addr + length
    out: list[Range] = []
    for length in lengths:
        out.append((addr, length))
        addr += length
    out.append((addr, end - addr))
    out += ranges[1:]
    surplus = room - total
    while surplus:
        addr, length = out[-1]
        if length > surplus:
            out[-1] = (addr, length - surplus)
            break
        del out[-1]
        surplus -= length
    return out


def _cut_slowly(ranges: Sequence[Range], lengths: Iterable[int], total: int) -> list[Range]:
    out: list[Range] = []
    following = iter(ranges)
    addr = room = 0
    for length in (*lengths, total):
        wanted = min(length, total)
        total -= wanted
        while wanted:
            if not room:
                addr, room = next(following, (0, 0))
                if not room:
                    return out
            n = wanted if wanted < room else room
            out.append((addr, n))
            addr += n
            room -= n
            wanted -= n
    return out
