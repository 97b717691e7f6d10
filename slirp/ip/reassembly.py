"""Reassembly of IPv4 datagrams that a guest sent in fragments (RFC 791 §3.2, RFC 815).

A datagram is known by source, destination, protocol and identification. Each fragment's payload is
copied once, because the guest wants its buffers back before the last fragment comes: this is the
one bounce on the way, and `copied_bytes` counts it. The pieces are kept as they came, sorted by
offset, and the whole datagram is a vector over them; nothing is joined. Since no two pieces
overlap, the datagram is complete when their lengths add up to where the last one ends.

What is not a plain set of pieces is never guessed at:

- a fragment that overlaps what is there, or contradicts where the datagram ends, discards the whole
  datagram and every later fragment of it until its deadline (RFC 5722 §4, written for IPv6; Linux
  does so for IPv4 too). Which of two overlapping pieces wins is the oldest way past a filter, and
  the trimming has been the source of other stacks' memory errors;
- an exact duplicate, byte by byte, is ignored: networks do duplicate;
- an empty fragment, one whose length is no multiple of 8 though more follow, and one that reaches
  beyond 65,535 bytes are refused on their own.

The header of the whole is that of the fragment at offset 0, options included, whatever options the
others had (RFC 791 §3.2); only total_len and the fragment fields are set anew. Reassembly says
nothing about DF: a fragment with it set was fragmented by its sender.

Bounds, and what happens there: FRAGMENTS_MAX pieces in a datagram (discarded beyond), DATAGRAMS_MAX
datagrams and MEMORY_MAX bytes in all (the oldest datagram is evicted), TIMEOUT from the first
fragment to the last.

A Reassembler belongs to one port, so that guests cannot send each other's fragments. Does not do:
IPv6, which carries its fragments in another header.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final, NoReturn

from dma.iovec import IoVec
from slirp.errors import MalformedPacket
from slirp.wire.ipv4 import MAX_PACKET, Ipv4Header

TIMEOUT: Final = 30.0  # seconds from the first fragment, as Linux; RFC 1122 §3.3.2 has 60 to 120
DATAGRAMS_MAX: Final = 256
# A whole datagram at a link MTU of 148 or more, and still one sendmsg: IOV_MAX is 1,024.
FRAGMENTS_MAX: Final = 512
MEMORY_MAX: Final = 4 << 20  # bytes: payload, and FRAGMENT_COST for each piece
FRAGMENT_COST: Final = 128  # bytes charged for what a piece costs beside its payload

_Key = tuple[bytes, bytes, int, int]  # source, destination, protocol, identification


class _Datagram:
    """The pieces so far, sorted by offset and free of overlaps."""

    __slots__ = ("charge", "deadline", "discarded", "end", "header", "octets", "offsets", "pieces")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.header: Ipv4Header | None = None  # of the fragment at offset 0
        self.end: int | None = None  # bytes of payload in all, once the last fragment came
        self.octets = 0  # of payload that are here
        self.offsets: list[int] = []
        self.pieces: list[bytes] = []
        self.charge = 0
        self.discarded = False

    def is_duplicate(self, header: Ipv4Header, payload: IoVec) -> bool:
        index = bisect_left(self.offsets, header.fragment_offset)
        if index == len(self.offsets) or self.offsets[index] != header.fragment_offset:
            return False
        piece = self.pieces[index]
        is_last = header.fragment_offset + len(piece) == self.end
        return header.more_fragments != is_last and bytes(payload) == piece

    def contradicts(self, start: int, stop: int, more_fragments: bool) -> bool:
        """Whether [start, stop) overlaps a piece or disagrees about the datagram's end."""
        index = bisect_left(self.offsets, start)
        if index and self.offsets[index - 1] + len(self.pieces[index - 1]) > start:
            return True
        if index < len(self.offsets) and (self.offsets[index] < stop or not more_fragments):
            return True
        return self.end is not None and (stop > self.end or not more_fragments)

    def insert(self, header: Ipv4Header, payload: IoVec) -> None:
        start = header.fragment_offset
        index = bisect_left(self.offsets, start)
        piece = bytes(payload)
        self.offsets.insert(index, start)
        self.pieces.insert(index, piece)
        self.octets += len(piece)
        if start == 0:
            self.header = header
        if not header.more_fragments:
            self.end = start + len(piece)


class Reassembler:
    __slots__ = ("_charged", "_datagrams", "copied_bytes", "discarded", "evicted", "timed_out")

    def __init__(self) -> None:
        # In order of arrival, which is that of the deadlines.
        self._datagrams: dict[_Key, _Datagram] = {}
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

    def handle_fragment(
        self, header: Ipv4Header, payload: IoVec, now: float
    ) -> tuple[Ipv4Header, IoVec] | None:
        """Header and payload of the whole datagram when this fragment completes it."""
        if not header.is_fragment:
            return header, payload
        _check_alone(header, len(payload))
        key = (header.src, header.dst, header.protocol, header.ident)
        datagram = self._datagrams.get(key) or self._start(key, now)
        if datagram.discarded:
            raise MalformedPacket("ipv4", "fragment of a discarded datagram")
        if datagram.is_duplicate(header, payload):
            return None
        start = header.fragment_offset
        if datagram.contradicts(start, start + len(payload), header.more_fragments):
            self._discard(datagram, "overlapping fragments")
        if len(datagram.pieces) >= FRAGMENTS_MAX:
            self._discard(datagram, "too many fragments")
        self._insert(datagram, header, payload)
        if datagram.octets != datagram.end:
            return None
        self._remove(key)
        return _whole(datagram)

    def poll_at(self) -> float | None:
        for datagram in self._datagrams.values():
            return datagram.deadline
        return None

    def handle_timeout(self, now: float) -> list[tuple[Ipv4Header, bytes]]:
        """Header and payload of the first fragment, of each datagram given up that has one.

        Those are to be told TIME_EXCEEDED, REASSEMBLY_TIME_EXCEEDED; without the fragment at
        offset 0 nobody is (RFC 792, RFC 1122 §3.2.2.4).
        """
        quotes: list[tuple[Ipv4Header, bytes]] = []
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

    def _start(self, key: _Key, now: float) -> _Datagram:
        if len(self._datagrams) >= DATAGRAMS_MAX:
            self._evict(next(iter(self._datagrams)))
        datagram = self._datagrams[key] = _Datagram(now + TIMEOUT)
        return datagram

    def _insert(self, datagram: _Datagram, header: Ipv4Header, payload: IoVec) -> None:
        size = len(payload)
        charge = size + FRAGMENT_COST
        while self._charged + charge > MEMORY_MAX:
            self._evict(next(k for k, d in self._datagrams.items() if d is not datagram))
        datagram.insert(header, payload)
        datagram.charge += charge
        self._charged += charge
        self.copied_bytes += size

    def _discard(self, datagram: _Datagram, reason: str) -> NoReturn:
        """Keep only the knowledge that the datagram is not to be completed."""
        self._charged -= datagram.charge
        datagram.charge = 0
        datagram.pieces.clear()
        datagram.offsets.clear()
        datagram.discarded = True
        self.discarded += 1
        raise MalformedPacket("ipv4", reason)

    def _evict(self, key: _Key) -> None:
        self._remove(key)
        self.evicted += 1

    def _remove(self, key: _Key) -> None:
        self._charged -= self._datagrams.pop(key).charge


def _check_alone(header: Ipv4Header, size: int) -> None:
    """The rules that a fragment keeps or breaks by itself."""
    if not size:
        raise MalformedPacket("ipv4", "empty fragment")
    if header.more_fragments and size % 8:
        raise MalformedPacket("ipv4", "fragment length")
    if header.ihl + header.fragment_offset + size > MAX_PACKET:
        raise MalformedPacket("ipv4", "fragment beyond 65535 bytes")


def _whole(datagram: _Datagram) -> tuple[Ipv4Header, IoVec]:
    header = datagram.header
    assert header is not None  # the pieces cover [0, end) without overlap, so one is at 0
    total_len = header.ihl + datagram.octets
    if total_len > MAX_PACKET:  # the first header is longer than the last fragment's was
        raise MalformedPacket("ipv4", "fragment beyond 65535 bytes")
    whole = header._replace(total_len=total_len, more_fragments=False, fragment_offset=0)
    return whole, IoVec.of(*datagram.pieces)
