"""The other side of vhost-user: a front-end and a virtio-net driver without a machine around them.

    front = FrontEnd(sock, turn=…)            # memory of its own, shared by descriptor
    front.negotiate(VERSION_1 | MRG_RXBUF)
    front.start()                             # both rings of a pair, their eventfds, enabled
    front.receive.post(2048)                  # a buffer for a frame
    front.transmit.send(frame)                # a frame, header in front, kicked
    front.receive.collect()                   # (virtio-net header, frame) that came
    front.keep_inflight()                     # before start(): buffers in flight are recorded
    front.reconnect(sock)                     # another back-end, for the rings as they are

Guest memory is one memfd at guest address 0 (or in the given pieces), which the front-end has at
`USER` in an address space of its own that nothing else uses. `turn` runs the back-end where it is
in the same thread; over a socket to another process there is nothing to run.

The rings are this file's own (`SplitDriver`, `PackedDriver`): each field can be written wrong, by
name or through `memory`.

Does not do: recycling of freed memory: a bump allocator goes round through the buffers' area, which
is far larger than what can be in use.
"""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from nic.virtio.fence import fence

USER = 0x7F5A_0000_0000  # the front-end's address of guest address 0
PAGE = 4096
HEADER = struct.Struct("=III")
NEED_REPLY = 8
REPLY_FOR = 10.0  # seconds

F_PROTOCOL = 1 << 30
P_ALL = sum(1 << bit for bit in (0, 1, 3, 4, 12, 13, 15, 16))

NEXT, WRITE, INDIRECT = 1, 2, 4
PACKED_AVAIL, PACKED_USED = 1 << 7, 1 << 15


class Used(NamedTuple):
    id: int
    length: int


class FrontEnd:
    """One connection, its memory and its rings."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        memory: int = 8 << 20,
        size: int = 256,
        pairs: int = 1,
        sealable: bool = True,
        turn: Callable[[], object] = lambda: None,
    ) -> None:
        self.sock = sock
        self.turn = turn
        self.size = size
        self.pairs = pairs
        sealing = os.MFD_ALLOW_SEALING if sealable else 0
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | sealing)
        os.ftruncate(self.fd, memory)
        self.memory = memoryview(mmap.mmap(self.fd, memory))
        self.features = 0
        self.protocol = 0
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2 * pairs)]
        self.calls = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2 * pairs)]
        self.errors = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2 * pairs)]
        self.rings: list[SplitDriver | PackedDriver] = []
        self.inflight = b""  # the record of buffers in flight, as the back-end described it
        self.inflight_fd = -1
        self._free = self._first = (2 * pairs + 1) * self._area()

    def _area(self) -> int:
        """Bytes that one ring lies in, and its indirect tables."""
        return -(-(16 * self.size + 6 + 2 * self.size + 6 + 8 * self.size + 8) // PAGE) * PAGE

    @property
    def receive(self) -> SplitDriver | PackedDriver:
        return self.rings[0]

    @property
    def transmit(self) -> SplitDriver | PackedDriver:
        return self.rings[1]

    def allocate(self, length: int) -> int:
        """A guest address with so many bytes behind it."""
        if self._free + length > len(self.memory):
            self._free = self._first
        addr = self._free
        self._free += -(-length // 64) * 64
        return addr

    # Messages

    def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 1
    ) -> None:
        ancillary = []
        if fds:
            ancillary.append(
                (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())
            )
        self.sock.sendmsg([HEADER.pack(request, flags, len(payload)), payload], ancillary)
        self.turn()

    def reply(self) -> tuple[int, bytes]:
        """The next message from the back-end: request and payload."""
        data, self.fds = self._read(HEADER.size)
        request, flags, size = HEADER.unpack(data)
        assert flags == 5, flags
        payload, fds = self._read(size)
        self.fds += fds
        return request, payload

    def _read(self, size: int) -> tuple[bytes, list[int]]:
        data, fds = b"", []
        while len(data) < size:
            assert select.select([self.sock], [], [], REPLY_FOR)[0], "no reply"
            got, new, _, _ = socket.recv_fds(self.sock, size - len(data), 8)
            assert got, "the back-end has closed the connection"
            data += got
            fds += new
        return data, fds

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """A request that is answered."""
        self.send(request, payload, fds)
        answered, data = self.reply()
        assert answered == request
        return data

    def ask_number(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        (number,) = struct.unpack("=Q", self.ask(request, payload, fds))
        return int(number)

    def acknowledged(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """A request with NEED_REPLY; the answer."""
        self.send(request, payload, fds, 1 | NEED_REPLY)
        answered, data = self.reply()
        assert answered == request
        (number,) = struct.unpack("=Q", data)
        return int(number)

    # Setting up

    def negotiate(self, features: int, protocol: int = P_ALL) -> None:
        offered = self.ask_number(1)
        assert features & ~offered == 0, hex(features & ~offered)
        self.protocol = protocol
        if protocol:
            assert offered & F_PROTOCOL
            assert protocol & ~self.ask_number(15) == 0
            self.send(16, struct.pack("=Q", protocol))
            features |= F_PROTOCOL
        self.send(3)
        self.send(2, struct.pack("=Q", features))
        self.features = features

    def share_memory(self, pieces: Sequence[tuple[int, int]] = ()) -> None:
        """SET_MEM_TABLE: all of it, or these (guest address, bytes)."""
        regions = list(pieces) or [(0, len(self.memory))]
        payload = struct.pack("=II", len(regions), 0)
        payload += b"".join(self.region(start, size) for start, size in regions)
        self.send(5, payload, [self.fd] * len(regions))

    def region(self, start: int, size: int) -> bytes:
        return struct.pack("=QQQQ", start, size, USER + start, start)

    def start(self, base: Sequence[int] | None = None, *, flags: int = 0) -> None:
        """Memory, then every ring."""
        self.share_memory()
        self.rings = [self.driver(index) for index in range(2 * self.pairs)]
        for index in range(2 * self.pairs):
            self.start_ring(index, None if base is None else base[index], flags)
        if self.features & F_PROTOCOL:
            for index in range(2 * self.pairs):
                self.send(18, struct.pack("=II", index, 1))

    def keep_inflight(self) -> None:
        """GET_INFLIGHT_FD, in QEMU's form with padding, and back with it."""
        asked = struct.pack("=QQHH4x", 0, 0, 2 * self.pairs, self.size)
        self.inflight = self.ask(31, asked)
        (self.inflight_fd,) = self.fds
        self.bring_inflight()

    def bring_inflight(self) -> None:
        self.send(32, self.inflight, [self.inflight_fd])

    def reconnect(self, sock: socket.socket) -> None:
        """As QEMU does after the back-end has died: split rings go on from what was used; where
        packed ones were is not known, so they get the base that they had first."""
        self.sock.close()
        self.sock = sock
        self.negotiate(self.features & ~F_PROTOCOL, self.protocol)
        if self.inflight:
            self.bring_inflight()
        self.share_memory()
        for index, ring in enumerate(self.rings):
            if self.protocol:  # first, or what waits in the ring would be dropped
                self.send(18, struct.pack("=II", index, 1))
            self.start_ring(index, ring.base_after_death)

    def driver(self, index: int) -> SplitDriver | PackedDriver:
        kind = PackedDriver if self.features & 1 << 34 else SplitDriver
        return kind(self, index, index * self._area())

    def start_ring(self, index: int, base: int | None = None, flags: int = 0) -> None:
        ring = self.rings[index]
        if base is None:
            base = ring.first_base
        self.send(8, struct.pack("=II", index, self.size))
        self.send(10, struct.pack("=II", index, base))
        self.send(9, self.place(index, flags))
        self.send(13, struct.pack("=Q", index), [self.calls[index]])
        self.send(14, struct.pack("=Q", index), [self.errors[index]])
        self.send(12, struct.pack("=Q", index), [self.kicks[index]])

    def place(self, index: int, flags: int = 0) -> bytes:
        desc, driver, device = self.rings[index].places
        return struct.pack(
            "=IIQQQQ", index, flags, USER + desc, USER + device, USER + driver, device
        )

    def stop_ring(self, index: int) -> int:
        """GET_VRING_BASE."""
        answer = self.ask(11, struct.pack("=II", index, 0))
        (ring, base) = struct.unpack("=II", answer)
        assert ring == index
        return int(base)

    def interrupts(self, index: int) -> int:
        """How often the back-end has called since the last time."""
        try:
            return os.eventfd_read(self.calls[index])
        except BlockingIOError:
            return 0

    @property
    def header_len(self) -> int:
        return 12 if self.features & (1 << 32 | 1 << 15) else 10

    def close(self) -> None:
        self.sock.close()
        for fd in (self.fd, *self.kicks, *self.calls, *self.errors):
            os.close(fd)
        if self.inflight_fd >= 0:
            os.close(self.inflight_fd)


class Driver:
    """What both kinds of rings have."""

    first_base = 0

    def __init__(self, front: FrontEnd, index: int, at: int) -> None:
        self.front = front
        self.memory = front.memory
        self.index = index
        self.size = front.size
        self.at = at
        self.buffers: dict[int, list[tuple[int, int]]] = {}
        self.event_idx = bool(front.features & 1 << 29)

    @property
    def room(self) -> int:
        """Descriptors that nobody has."""
        raise NotImplementedError

    @property
    def base_after_death(self) -> int:
        """SET_VRING_BASE for a back-end whose predecessor did not say where it was."""
        return self.first_base

    def add(
        self, ranges: Sequence[tuple[int, int]], flags: int = 0, *, indirect: bool = False
    ) -> int:
        raise NotImplementedError

    def used(self) -> list[Used]:
        raise NotImplementedError

    def must_kick(self) -> bool:
        raise NotImplementedError

    def kick(self) -> None:
        os.eventfd_write(self.front.kicks[self.index], 1)

    def write(self, addr: int, data: bytes) -> None:
        self.memory[addr : addr + len(data)] = data

    def read(self, ranges: Sequence[tuple[int, int]], length: int) -> bytes:
        data = b"".join(bytes(self.memory[addr : addr + size]) for addr, size in ranges)
        return data[:length]

    # Receiving

    def post(self, *lengths: int, indirect: bool = False) -> int:
        """A buffer of so many bytes, in as many pieces as there are lengths."""
        ranges = [(self.front.allocate(length), length) for length in lengths]
        return self.add(ranges, WRITE, indirect=indirect)

    def collect(self) -> list[tuple[bytes, bytes]]:
        """The frames that came: each as its virtio-net header and its bytes."""
        size = self.front.header_len
        frames: list[tuple[bytes, bytes]] = []
        left = 0
        for used in self.used():
            data = self.read(self.buffers.pop(used.id), used.length)
            if left:
                frames[-1] = (frames[-1][0], frames[-1][1] + data)
                left -= 1
                continue
            assert len(data) >= size, "a used buffer without a header"
            frames.append((data[:size], data[size:]))
            left = int.from_bytes(data[10:12], "little") - 1 if size == 12 else 0
        assert not left, "a frame whose buffers did not all come"
        return frames

    # Transmitting

    def send(
        self,
        frame: bytes,
        vnet: bytes = b"",
        *,
        cuts: Sequence[int] = (),
        indirect: bool = False,
        kick: bool = True,
    ) -> int:
        """A frame, cut at these places (of header and frame together)."""
        data = vnet.ljust(self.front.header_len, b"\0") + frame
        ends = sorted({0, len(data), *(cut for cut in cuts if 0 < cut < len(data))})
        ranges = []
        for start, stop in pairwise(ends):
            addr = self.front.allocate(stop - start)
            self.write(addr, data[start:stop])
            ranges.append((addr, stop - start))
        head = self.add(ranges, indirect=indirect)
        if kick:
            self.kick()
        return head


class SplitDriver(Driver):
    """A split virtqueue from the driver's side: virtio 1.2 §2.7."""

    def __init__(self, front: FrontEnd, index: int, at: int) -> None:
        super().__init__(front, index, at)
        size = self.size
        self.avail_at = at + 16 * size
        self.used_at = at + 16 * size + -(-(6 + 2 * size) // 8) * 8
        self.places = (at, self.avail_at, self.used_at)
        self.table = self.memory[at : at + 16 * size]
        self.avail = self.memory[self.avail_at : self.avail_at + 6 + 2 * size].cast("H")
        self.used_area = self.memory[self.used_at : self.used_at + 6 + 8 * size]
        self.used_index = self.used_area[:4].cast("H")
        self.avail_event = self.used_area[4 + 8 * size :].cast("H")
        self.free = list(range(size))[::-1]
        self.heads: dict[int, list[int]] = {}
        self.seen = 0
        self.kicked = 0

    @property
    def room(self) -> int:
        return len(self.free)

    @property
    def base_after_death(self) -> int:
        return int(self.used_index[1])

    def describe(self, index: int, addr: int, length: int, flags: int, following: int = 0) -> None:
        struct.pack_into("<QIHH", self.table, 16 * index, addr, length, flags, following)

    def add(
        self, ranges: Sequence[tuple[int, int]], flags: int = 0, *, indirect: bool = False
    ) -> int:
        ranges = list(ranges)
        if indirect:
            table = self.front.allocate(16 * len(ranges))
            for n, (addr, length) in enumerate(ranges):
                more = NEXT if n + 1 < len(ranges) else 0
                self.write(table + 16 * n, struct.pack("<QIHH", addr, length, flags | more, n + 1))
            spots = [self.free.pop()]
            self.describe(spots[0], table, 16 * len(ranges), INDIRECT)
        else:
            spots = [self.free.pop() for _ in ranges]
            for n, (addr, length) in enumerate(ranges):
                last = n + 1 == len(ranges)
                following = 0 if last else spots[n + 1]
                self.describe(spots[n], addr, length, flags | (0 if last else NEXT), following)
        head = spots[0]
        self.heads[head] = spots
        self.buffers[head] = ranges
        self.offer(head)
        return head

    def offer(self, head: int) -> None:
        """Make it available, whatever it is."""
        index = self.avail[1]
        self.avail[2 + index % self.size] = head
        self.avail[1] = index + 1 & 0xFFFF

    def used(self) -> list[Used]:
        out = self.drain()
        if self.event_idx:
            self.avail[2 + self.size] = self.seen
            fence()
            while more := self.drain():  # what came before that was seen
                out += more
                self.avail[2 + self.size] = self.seen
                fence()
        return out

    def drain(self) -> list[Used]:
        out = []
        while self.seen != self.used_index[1]:
            entry = 4 + 8 * (self.seen % self.size)
            head, length = struct.unpack_from("<II", self.used_area, entry)
            self.free += self.heads.pop(head, [])
            out.append(Used(head, length))
            self.seen = self.seen + 1 & 0xFFFF
        return out

    def must_kick(self) -> bool:
        fence()
        new = self.avail[1]
        old, self.kicked = self.kicked, new
        if self.event_idx:
            return (new - self.avail_event[0] - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self.used_index[0] & 1


class PackedDriver(Driver):
    """A packed virtqueue from the driver's side: virtio 1.2 §2.8."""

    first_base = 1 << 15 | 1 << 31

    def __init__(self, front: FrontEnd, index: int, at: int) -> None:
        super().__init__(front, index, at)
        self.places = (at, at + 16 * self.size, at + 16 * self.size + 4)
        self.table = self.memory[at : at + 16 * self.size]
        self.events = self.memory[at + 16 * self.size : at + 16 * self.size + 8].cast("H")
        self.next = self.seen = 0
        self.wrap = self.seen_wrap = 1
        self.free = list(range(self.size))[::-1]
        self.spans: dict[int, int] = {}
        self.out = 0  # descriptors that the device has

    def add(
        self, ranges: Sequence[tuple[int, int]], flags: int = 0, *, indirect: bool = False
    ) -> int:
        ranges = list(ranges)
        number = self.free.pop()
        entries = [(addr, length, flags) for addr, length in ranges]
        if indirect:
            table = self.front.allocate(16 * len(ranges))
            for n, (addr, length) in enumerate(ranges):
                self.write(table + 16 * n, struct.pack("<QIHH", addr, length, 0, flags))
            entries = [(table, 16 * len(ranges), INDIRECT)]
        self.spans[number] = len(entries)
        self.out += len(entries)
        assert self.room >= 0, "more than the ring has"
        self.buffers[number] = ranges
        first: tuple[int, int] | None = None
        for n, (addr, length, kind) in enumerate(entries):
            kind |= NEXT if n + 1 < len(entries) else 0
            kind |= PACKED_AVAIL if self.wrap else PACKED_USED
            struct.pack_into("<QIH", self.table, 16 * self.next, addr, length, number)
            if first is None:
                first = self.next, kind
            else:
                self.set_flags(self.next, kind)
            self.next += 1
            if self.next == self.size:
                self.next, self.wrap = 0, self.wrap ^ 1
        assert first is not None
        self.set_flags(*first)
        return number

    @property
    def room(self) -> int:
        return self.size - self.out

    def set_flags(self, index: int, flags: int) -> None:
        struct.pack_into("<H", self.table, 16 * index + 14, flags)

    def used(self) -> list[Used]:
        out = self.drain()
        while self.event_idx:
            self.events[0] = self.seen | self.seen_wrap << 15
            self.events[1] = 2
            fence()
            more = self.drain()
            if not more:
                break
            out += more
        return out

    def drain(self) -> list[Used]:
        out = []
        while True:
            length, number, flags = struct.unpack_from("<IHH", self.table, 16 * self.seen + 8)
            state = bool(flags & PACKED_AVAIL), bool(flags & PACKED_USED)
            if state != (bool(self.seen_wrap),) * 2:
                break
            out.append(Used(number, length))
            self.free.append(number)
            self.out -= self.spans[number]
            self.seen += self.spans.pop(number)
            if self.seen >= self.size:
                self.seen, self.seen_wrap = self.seen - self.size, self.seen_wrap ^ 1
        return out

    def must_kick(self) -> bool:
        fence()
        return self.events[3] != 1
