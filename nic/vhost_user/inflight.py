"""The record of buffers in flight: what a back-end had taken when it died (INFLIGHT_SHMFD).

The front-end keeps a file for the back-end (GET_INFLIGHT_FD makes it, SET_INFLIGHT_FD brings it
back), in which each ring has a region: which buffers were taken and not given back, and in which
order. The next back-end takes those first. Layout and procedure are those of "Inflight I/O
tracking" in QEMU's docs/interop/vhost-user.rst, so that the next one may be another program:

    split     features 64, version, desc_num, last_batch_head, used_idx 16 bits each
              for each descriptor: inflight 8, padding 40, next 16, counter 64
    packed    features 64, version, desc_num, free_head, old_free_head, used_idx, old_used_idx 16,
              used_wrap, old_used_wrap 8, padding
              for each entry: inflight 8, padding 8, next, last, num 16, counter 64,
              and the descriptor: id, flags 16, len 32, addr 64

in the host's order, each region a multiple of 64 bytes. A buffer counts as given back once the
driver can see it. Between that moment and the notes about it a back-end may die, so the region has
what was last (`used_idx`, or the `old_` values) and `recover` finishes or undoes the step.

The front-end can write here as well. So nothing is read but by `recover`, once, when a ring starts:
indices are checked, lists end, and what contradicts itself is `BrokenRing`. After that this side
writes, from numbers of its own. The file is sealed against shrinking (dma/shared.py).

Does not do: the rings (nic/vhost_user/tracked.py); regions whose features are not zero.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fcntl import F_ADD_SEALS, F_DUPFD_CLOEXEC, F_SEAL_GROW, F_SEAL_SHRINK, fcntl
from typing import Final, NamedTuple

from dma.shared import is_lost, map_whole
from nic.vhost_user.messages import INFLIGHT, BadMessage
from nic.virtio.chain import SIZE_MAX, BrokenRing

VERSION: Final = 1
ALIGNMENT: Final = 64  # bytes
WRAP: Final = 0xFFFF
SPLIT_HEADER: Final = 16  # bytes
SPLIT_ENTRY: Final = 16
PACKED_HEADER: Final = 32
PACKED_ENTRY: Final = 32
_AVAIL: Final = 1 << 7  # flags of a packed descriptor
_USED: Final = 1 << 15
_CONTRADICTION: Final = "has a record of buffers in flight that contradicts itself"


class Shape(NamedTuple):
    """What GET_INFLIGHT_FD asks for, and SET_INFLIGHT_FD brings."""

    size: int  # bytes
    offset: int  # in the file
    queues: int
    queue_size: int  # descriptors of the longest ring

    def check(self, queues_max: int) -> None:
        """Raises BadMessage where no device has such rings."""
        if not 0 < self.queues <= queues_max or not 0 < self.queue_size <= SIZE_MAX:
            raise BadMessage(
                f"has buffers in flight in {self.queues} rings of {self.queue_size} descriptors"
            )

    def pack(self) -> bytes:
        return INFLIGHT.pack(*self)


def region_len(queue_size: int, is_packed: bool) -> int:
    """Bytes of one ring's region."""
    header, entry = (PACKED_HEADER, PACKED_ENTRY) if is_packed else (SPLIT_HEADER, SPLIT_ENTRY)
    return -(-(header + entry * queue_size) // ALIGNMENT) * ALIGNMENT


def make_file(asked: Shape, is_packed: bool) -> tuple[int, Shape]:
    """A file for so many rings, which is the caller's, and what is in it. Raises OSError."""
    shape = asked._replace(size=asked.queues * region_len(asked.queue_size, is_packed), offset=0)
    fd = os.memfd_create("slirp-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, shape.size)
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd, shape


class InflightFile:
    """The file, mapped. The descriptor stays the caller's. One of the same file is kept, for a
    process that is to go on in this one's place."""

    def __init__(self, fd: int, shape: Shape) -> None:
        try:
            whole = map_whole(fd)
            self.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)  # owned
        except (ValueError, OSError) as error:
            raise BadMessage(f"has a record of buffers that cannot be mapped: {error}") from None
        if shape.size > len(whole) - shape.offset:
            self.close()
            raise BadMessage(
                f"has a record of {shape.size} bytes at {shape.offset} in {len(whole)}"
            )
        self._octets = whole[shape.offset : shape.offset + shape.size]
        self.shape = shape

    def close(self) -> None:
        """Let go of the descriptor; what is mapped stays for whoever notes."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    @property
    def is_lost(self) -> bool:
        """Has the file been truncated?"""
        return is_lost(self._octets)

    def region(self, index: int, size: int, is_packed: bool) -> memoryview | None:
        """Where a ring of `size` descriptors has its record; None: it has none."""
        shape = self.shape
        if index >= shape.queues:
            return None
        length = region_len(shape.queue_size, is_packed)
        if size > shape.queue_size or length * shape.queues > len(self._octets):
            raise BadMessage(
                f"has a ring of {size} descriptors, and a record of {len(self._octets)} bytes"
                f" for {shape.queues} of {shape.queue_size}"
            )
        return self._octets[index * length : (index + 1) * length]


def _begin(words: memoryview, size: int) -> bool:
    """Is there something in this region, of this version and for a ring of this size?"""
    version, count = words[4], words[5]
    if version == 0:
        return False
    if version != VERSION or count != size:
        raise BrokenRing(f"has a record of version {version} for {count} descriptors, not {size}")
    return True


class SplitRecord:
    """A split ring's region. Buffers are named by their heads."""

    def __init__(self, region: memoryview, size: int) -> None:
        self._size = size
        self._octets = region
        self._words = region.cast("H")
        self._quads = region.cast("Q")
        self._counter = 0
        self._batch: list[int] = []
        self._last_head = 0

    def recover(self, used: int) -> list[int]:
        """The heads that were in flight, oldest first; `used` is the used ring's index."""
        words, octets, size = self._words, self._octets, self._size
        in_flight: list[tuple[int, int]] = []
        if _begin(words, size):
            self._finish(used - words[7] & WRAP, words[6])
            in_flight += [
                (self._quads[3 + 2 * head], head)
                for head in range(size)
                if octets[SPLIT_HEADER + SPLIT_ENTRY * head]
            ]
        else:
            words[5], words[4] = size, VERSION
        words[7] = used
        heads = [head for _, head in sorted(in_flight)]
        for number, head in enumerate(heads, 1):  # anew, so that none overflows
            self._quads[3 + 2 * head] = number
        self._counter = len(heads)
        return heads

    def _finish(self, count: int, head: int) -> None:
        """The driver has seen the last batch, and its notes may not say so."""
        if count > self._size:
            raise BrokenRing(_CONTRADICTION)
        for _ in range(count):
            if head >= self._size:
                raise BrokenRing(_CONTRADICTION)
            self._octets[SPLIT_HEADER + SPLIT_ENTRY * head] = 0
            head = self._words[11 + 8 * head]

    def take(self, head: int) -> None:
        self._counter += 1
        self._quads[3 + 2 * head] = self._counter
        self._octets[SPLIT_HEADER + SPLIT_ENTRY * head] = 1

    def untake(self, head: int) -> None:
        self._octets[SPLIT_HEADER + SPLIT_ENTRY * head] = 0

    def give(self, head: int) -> None:
        """It is about to be shown to the driver."""
        self._words[11 + 8 * head] = self._last_head
        self._words[6] = self._last_head = head
        self._batch.append(head)

    def given(self, used: int) -> None:
        """It was shown, and all those before it: the used ring's index is `used`."""
        for head in self._batch:
            self._octets[SPLIT_HEADER + SPLIT_ENTRY * head] = 0
        self._batch.clear()
        self._words[7] = used


class Held(NamedTuple):
    """A buffer of a packed ring, in the region."""

    entries: list[int]  # the head first
    words: list[int]  # its descriptors, two words of 64 bits each


class PackedRecord:
    """A packed ring's region. Buffers are named by where their entries are.

    The free entries are a stack, linked by `next`; the link of the last leads out of the region.
    """

    def __init__(self, region: memoryview, size: int) -> None:
        self._size = size
        self._octets = region
        self._words = region.cast("H")
        self._quads = region.cast("Q")
        self._counter = 0
        self._free: list[int] = []  # the next one last
        self._batch: list[int] = []

    def recover(self, table: memoryview, base: tuple[int, int]) -> tuple[int, int, list[Held]]:
        """Used index, wrap counter, and what was in flight, oldest first.

        `table` is the ring, as words of 64 bits. In an empty region the ring begins at `base`.
        """
        words, octets, size = self._words, self._octets, self._size
        used, wrap = base
        held: list[Held] = []
        if _begin(words, size):
            used, wrap, free_head = self._settled(table)
            self._free = self._list(free_head, size)[::-1]
            for entry in self._free:
                octets[_at(entry)] = 0
            held = self._in_flight()
        else:
            for entry in range(size):
                words[_at(entry) // 2 + 1] = entry + 1
            self._free = list(range(size))[::-1]
            words[5], words[4] = size, VERSION
        for number, buffer in enumerate(held, 1):  # anew, so that none overflows
            self._quads[_at(buffer.entries[0]) // 8 + 1] = number
        self._counter = len(held)
        self._set_used(used, wrap)
        self._settle(used, wrap)
        return used, wrap, held

    def _settled(self, table: memoryview) -> tuple[int, int, int]:
        """Used index, wrap counter and first free entry, as the driver has seen them."""
        words, octets, size = self._words, self._octets, self._size
        used, wrap, free_head = words[9], octets[21] & 1, words[7]
        if used >= size:
            raise BrokenRing(_CONTRADICTION)
        if words[8] == used and octets[20] & 1 == wrap:
            return used, wrap, free_head
        flags = table[2 * used + 1] >> 48
        if flags & (_AVAIL | _USED) == (_AVAIL if wrap else _USED):  # it was not shown
            return used, wrap, free_head
        used, wrap, free_head = words[8], octets[20] & 1, words[6]
        if used >= size:
            raise BrokenRing(_CONTRADICTION)
        return used, wrap, free_head

    def _list(self, entry: int, most: int) -> list[int]:
        """Entries from this one on."""
        found: dict[int, None] = {}
        while entry < self._size and len(found) < most:
            if entry in found:
                raise BrokenRing(_CONTRADICTION)
            found[entry] = None
            entry = self._words[_at(entry) // 2 + 1]
        return list(found)

    def _in_flight(self) -> list[Held]:
        words, quads = self._words, self._quads
        taken = set(self._free)
        found: list[tuple[int, Held]] = []
        for head in range(self._size):
            if head in taken or not self._octets[_at(head)]:
                continue
            count = words[_at(head) // 2 + 3]
            entries = self._list(head, count)
            if not count or len(entries) != count or not taken.isdisjoint(entries):
                raise BrokenRing(_CONTRADICTION)
            taken.update(entries)
            held = Held(entries, [])
            for entry in entries:
                first, addr = quads[_at(entry) // 8 + 2], quads[_at(entry) // 8 + 3]
                held.words.extend((addr, first >> 32 | (first & 0xFFFFFFFF) << 32))
            found.append((quads[_at(head) // 8 + 1], held))
        if len(taken) != self._size:  # entries that are neither free nor a buffer's
            raise BrokenRing(_CONTRADICTION)
        return [held for _, held in sorted(found)]

    def take(self, ring: Sequence[int]) -> list[int]:
        """Note a buffer, whose descriptors these are, two words each; its entries."""
        words, quads, octets = self._words, self._quads, self._octets
        count = len(ring) // 2
        entries = self._free[-count:][::-1]
        head = entries[0]
        self._counter += 1
        words[_at(head) // 2 + 3] = count
        quads[_at(head) // 8 + 1] = self._counter
        words[_at(head) // 2 + 2] = entries[-1]
        octets[_at(head)] = 1
        for n, entry in enumerate(entries):
            second = ring[2 * n + 1]
            quads[_at(entry) // 8 + 2] = second >> 32 | (second & 0xFFFFFFFF) << 32
            quads[_at(entry) // 8 + 3] = ring[2 * n]
        del self._free[-count:]
        words[6] = words[7] = self._free_head
        return entries

    def untake(self, entries: list[int]) -> None:
        """The latest one that is noted was not taken after all."""
        self._push(entries)
        words = self._words
        words[6] = words[7] = self._free_head
        self._octets[_at(entries[0])] = 0

    @property
    def _free_head(self) -> int:
        return self._free[-1] if self._free else self._size

    def _push(self, entries: list[int]) -> None:
        self._words[_at(entries[-1]) // 2 + 1] = self._free_head
        self._free.extend(reversed(entries))

    def give(self, entries: list[int]) -> None:
        """It is about to be shown to the driver."""
        self._push(entries)
        self._words[6] = self._free_head
        self._batch.append(entries[0])

    def giving(self, used: int, wrap: int) -> None:
        """All of them are; then the used index is `used`."""
        self._set_used(used, wrap)

    def given(self, used: int, wrap: int) -> None:
        """They were shown."""
        for entry in self._batch:
            self._octets[_at(entry)] = 0
        self._batch.clear()
        self._settle(used, wrap)

    def _set_used(self, used: int, wrap: int) -> None:
        self._words[8], self._octets[20] = used, wrap

    def _settle(self, used: int, wrap: int) -> None:
        words = self._words
        words[6] = words[7] = self._free_head
        words[9], self._octets[21] = used, wrap


def _at(entry: int) -> int:
    return PACKED_HEADER + PACKED_ENTRY * entry
