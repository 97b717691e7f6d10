"""Reassembly of datagrams that a guest sent in fragments (RFC 791 §3.2, RFC 815, RFC 8200 §4.5).

What a fragment says (`Fragment`) stands in other fields in each family, and so does what becomes of
its header: `slirp.ip.ipv4_fragments` and `slirp.ip.ipv6_fragments` say that, everything else is the
same. Each fragment's payload is copied once, because the guest wants its buffers back before the
last fragment comes: this is the one bounce on the way, and `copied_bytes` counts it. The pieces are
kept as they came, sorted by offset, and the whole datagram is a vector over them; nothing is
joined. Since no two pieces overlap, the datagram is complete when their lengths add up to where the
last one ends.

What is not a plain set of pieces is never guessed at:

- a fragment that overlaps what is there, or contradicts where the datagram ends, discards the whole
  datagram and every later fragment of it until its deadline (RFC 5722 §4; for IPv4 Linux does so
  too). Which of two overlapping pieces wins is the oldest way past a filter, and
  the trimming has been the source of other stacks' memory errors;
- an exact duplicate, byte by byte, is ignored: networks do duplicate;
- an empty fragment, one whose length is no multiple of 8 though more follow, and one that reaches
  beyond 65,535 bytes are refused on their own.

The header of the whole is that of the fragment at offset 0, whatever the others had (RFC 791 §3.2,
RFC 8200 §4.5).

Bounds, and what happens there: FRAGMENTS_MAX pieces in a datagram (discarded beyond), DATAGRAMS_MAX
datagrams and MEMORY_MAX bytes in all (the oldest datagram is evicted), TIMEOUT from the first
fragment to the last.

A Reassembler belongs to one port, so that guests cannot send each other's fragments.

Does not do: headers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Hashable
from typing import Final, Generic, NamedTuple, NoReturn, TypeVar

from dma.iovec import IoVec
from slirp.errors import MalformedPacket

LENGTH_MAX: Final = 65535  # bytes that a length field can count

TIMEOUT: Final = 30.0  # seconds from the first fragment, as Linux; RFC 1122 §3.3.2 has 60 to 120
DATAGRAMS_MAX: Final = 256
# A whole datagram at a link MTU of 148 or more, and still one sendmsg: IOV_MAX is 1,024.
FRAGMENTS_MAX: Final = 512
MEMORY_MAX: Final = 4 << 20  # bytes: payload, and FRAGMENT_COST for each piece
FRAGMENT_COST: Final = 128  # bytes charged for what a piece costs beside its payload

H = TypeVar("H")  # a family's header


class Fragment(NamedTuple):
    """What a fragment says of itself, in either family."""

    datagram: Hashable  # which one it is of
    offset: int  # bytes, a multiple of 8
    more: bool  # is it not the last?
    head_len: int  # bytes in front of the payload that the family's length field counts


class _Datagram(Generic[H]):
    """The pieces so far, sorted by offset and free of overlaps."""

    __slots__ = ("charge", "deadline", "discarded", "end", "header", "octets", "offsets", "pieces")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.header: H | None = None  # of the fragment at offset 0
        self.end: int | None = None  # bytes of payload in all, once the last fragment came
        self.octets = 0  # of payload that are here
        self.offsets: list[int] = []
        self.pieces: list[bytes] = []
        self.charge = 0
        self.discarded = False

    def is_duplicate(self, fragment: Fragment, payload: IoVec) -> bool:
        index = bisect_left(self.offsets, fragment.offset)
        if index == len(self.offsets) or self.offsets[index] != fragment.offset:
            return False
        piece = self.pieces[index]
        is_last = fragment.offset + len(piece) == self.end
        return fragment.more != is_last and bytes(payload) == piece

    def contradicts(self, start: int, stop: int, more: bool) -> bool:
        """Whether [start, stop) overlaps a piece or disagrees about the datagram's end."""
        index = bisect_left(self.offsets, start)
        if index and self.offsets[index - 1] + len(self.pieces[index - 1]) > start:
            return True
        if index < len(self.offsets) and (self.offsets[index] < stop or not more):
            return True
        return self.end is not None and (stop > self.end or not more)

    def insert(self, header: H, fragment: Fragment, payload: IoVec) -> None:
        start = fragment.offset
        index = bisect_left(self.offsets, start)
        piece = bytes(payload)
        self.offsets.insert(index, start)
        self.pieces.insert(index, piece)
        self.octets += len(piece)
        if start == 0:
            self.header = header
        if not fragment.more:
            self.end = start + len(piece)


class Reassembler(ABC, Generic[H]):
    """Of one port, in one family."""

    __slots__ = ("_charged", "_datagrams", "copied_bytes", "discarded", "evicted", "timed_out")

    name: str  # as MalformedPacket has it
    patience = TIMEOUT  # seconds from the first fragment

    @abstractmethod
    def describe(self, header: H) -> Fragment | None:
        """What the packet with this header says; None: it is no fragment."""

    @abstractmethod
    def joined(self, header: H, size: int) -> H:
        """The first fragment's header as that of the whole, `size` bytes of payload."""

    def __init__(self) -> None:
        # In order of arrival, which is that of the deadlines.
        self._datagrams: dict[Hashable, _Datagram[H]] = {}
        self._charged = 0
        self.copied_bytes = 0
        self.discarded = 0  # datagrams, for contradictions or too many pieces
        self.evicted = 0  # datagrams, for room
        self.timed_out = 0  # datagrams

    def __len__(self) -> int:
        """Datagrams that wait for more."""
        return len(self._datagrams)

    @property
    def memory(self) -> int:
        """Bytes charged against MEMORY_MAX."""
        return self._charged

    def handle_fragment(self, header: H, payload: IoVec, now: float) -> tuple[H, IoVec] | None:
        """Header and payload of the whole datagram when this fragment completes it."""
        fragment = self.describe(header)
        if fragment is None:
            return header, payload
        self._check_alone(fragment, len(payload))
        key, start = fragment.datagram, fragment.offset
        datagram = self._datagrams.get(key) or self._start(key, now)
        if datagram.discarded:
            raise MalformedPacket(self.name, "fragment of a discarded datagram")
        if datagram.is_duplicate(fragment, payload):
            return None
        if datagram.contradicts(start, start + len(payload), fragment.more):
            self._discard(datagram, "overlapping fragments")
        if len(datagram.pieces) >= FRAGMENTS_MAX:
            self._discard(datagram, "too many fragments")
        self._insert(datagram, header, fragment, payload)
        if datagram.octets != datagram.end:
            return None
        self._remove(key)
        return self._whole(datagram)

    def poll_at(self) -> float | None:
        for datagram in self._datagrams.values():
            return datagram.deadline
        return None

    def handle_timeout(self, now: float) -> list[tuple[H, bytes]]:
        """Header and payload of the first fragment, of each datagram given up that has one.

        Those are to be told TIME_EXCEEDED, REASSEMBLY_TIME_EXCEEDED; without the fragment at
        offset 0 nobody is (RFC 792, RFC 1122 §3.2.2.4).
        """
        quotes: list[tuple[H, bytes]] = []
        for key, datagram in list(self._datagrams.items()):
            if datagram.deadline > now:
                break
            self._remove(key)
            if datagram.discarded:
                continue
            self.timed_out += 1
            if datagram.header is not None:
                quotes.append((datagram.header, datagram.pieces[0]))
        return quotes

    def _start(self, key: Hashable, now: float) -> _Datagram[H]:
        if len(self._datagrams) >= DATAGRAMS_MAX:
            self._evict(next(iter(self._datagrams)))
        datagram = self._datagrams[key] = _Datagram(now + self.patience)
        return datagram

    def _insert(
        self, datagram: _Datagram[H], header: H, fragment: Fragment, payload: IoVec
    ) -> None:
        size = len(payload)
        charge = size + FRAGMENT_COST
        while self._charged + charge > MEMORY_MAX:
            self._evict(next(k for k, d in self._datagrams.items() if d is not datagram))
        datagram.insert(header, fragment, payload)
        datagram.charge += charge
        self._charged += charge
        self.copied_bytes += size

    def _discard(self, datagram: _Datagram[H], reason: str) -> NoReturn:
        """Keep only the knowledge that the datagram is not to be completed."""
        self._charged -= datagram.charge
        datagram.charge = 0
        datagram.pieces.clear()
        datagram.offsets.clear()
        datagram.discarded = True
        self.discarded += 1
        raise MalformedPacket(self.name, reason)

    def _evict(self, key: Hashable) -> None:
        self._remove(key)
        self.evicted += 1

    def _remove(self, key: Hashable) -> None:
        self._charged -= self._datagrams.pop(key).charge

    def _check_alone(self, fragment: Fragment, size: int) -> None:
        """The rules that a fragment keeps or breaks by itself."""
        if not size:
            raise MalformedPacket(self.name, "empty fragment")
        if fragment.more and size % 8:
            raise MalformedPacket(self.name, "fragment length")
        if fragment.head_len + fragment.offset + size > LENGTH_MAX:
            raise MalformedPacket(self.name, "fragment beyond 65535 bytes")

    def _whole(self, datagram: _Datagram[H]) -> tuple[H, IoVec]:
        header = datagram.header
        assert header is not None  # the pieces cover [0, end) without overlap, so one is at 0
        first = self.describe(header)
        assert first is not None
        if first.head_len + datagram.octets > LENGTH_MAX:  # the last one's header was shorter
            raise MalformedPacket(self.name, "fragment beyond 65535 bytes")
        return self.joined(header, datagram.octets), IoVec.of(*datagram.pieces)
