"""The vector of a captured frame at each stage: named, written as a comment, and checked.

A frame passes the stages `ip`, `ethernet`, `lance`, `ledma`, `memory`, and at each of them it is a
list of ranges; in a virtual machine `ip`, `ethernet`, `virtio` or `pcnet`, `memory`. So do a
disk's bytes: `scsi` (bytes of the image), `esp` (positions in the request), `espdma` (DVMA),
`memory`. A `Vector` is that list with names: each part of the frame (ethernet, ipv4, tcp, payload,
pad, fcs …) with its address in the stage's own space and its length. At `ip` and `ethernet` an
address is the offset in the packet; at `lance` it has 24 bits, at `ledma` 32 (DVMA), at `virtio`,
`pcnet` and `memory` it is the guest's physical one. A part that a descriptor's or a page's end cuts
appears once for each piece. As a packet's comment it reads

    vector lance ethernet=0x001000+14 ipv4=0x00100e+20 tcp=0x001022+20 payload=0x001036+1460 …

with `lanes=exchanged` behind the stage where the bytes of each 16-bit word lie exchanged (the
chip's BSWP is 0: the byte of address x lies at x ^ 1), and `fcs=wire+4` where the chip itself made
the FCS on its way out. Exchanged bytes are moved in whole words; the byte that shares a word with
an odd end and is not the frame's is called `lane`, and counts in no comparison. A disk's vector has
the command in front of its one part: `vector scsi command=28000000001800001000 data=0x…+8192`.

For a frame towards the guest the lengths of the headers are those that the stack asked its claim
to be cut at; for a frame from the guest they are read from the headers. Which is why checking is
worth while: `check` compares the lengths in the bytes (IHL, data offset, total length, the FCS)
with the vector, and the vectors of one frame with each other:

- every stage holds the same parts of the same lengths in the same order, and the same bytes (the
  Ethernet header, the padding and the FCS from the stage on that adds them);
- LEDMA changes the top 8 bits of an address and nothing else;
- ESPDMA's addresses count up within 24 bits, under one top byte;
- the IOMMU keeps the low 12 bits, and cuts at the ends of 4 KiB pages and nowhere else.

Packets belong to one frame when they carry the same packet id. `frames` streams: it holds at most
`MAX_OPEN_FRAMES` unfinished frames, so a capture may have any length.

IPv6's extension headers are parts of their own, up to EXTENSIONS_MAX of them: `hopbyhop`,
`routing`, `fragment`, `destination`.

Does not do: header checksums (Wireshark does), drawing (see slirp/cli/layout.py).
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from dma.iovec import Range, Ranges, merge_ranges
from slirp.errors import MalformedPacket
from slirp.sight import scsi
from slirp.sight.pcapng import LINKTYPE_UPPER_PDU, Packet

STAGES: Final = ("ip", "ethernet", "lance", "ledma", "memory")  # from the stack towards RAM
VIRTIO_STAGES: Final = ("ip", "ethernet", "virtio", "memory")
PCNET_STAGES: Final = ("ip", "ethernet", "pcnet", "memory")
DISK_STAGES: Final = ("scsi", "esp", "espdma", "memory")  # from the disk towards RAM
DATA: Final = "data"  # the one part of a disk's vector
MAX_OPEN_FRAMES: Final = 1024  # frames that wait for packets of further stages

PAGE_LEN: Final = 4096  # bytes, the IOMMU's page
LANCE_MASK: Final = 0xFFFFFF  # the 24 bits that LEDMA passes on
DMA_MASK: Final = 0xFFFFFF  # the 24 bits that ESPDMA counts in
FCS_LEN: Final = 4
FRAME_MIN: Final = 60  # bytes without FCS: what the chip pads a frame to
LANE: Final = "lane"  # a byte of the word at an odd end that is not the frame's

_ADDRESS_DIGITS: Final = {"ip": 4, "ethernet": 4, "lance": 6, "ledma": 8, "memory": 9} | {
    "virtio": 9,
    "pcnet": 9,
    "scsi": 10,
    "esp": 4,
    "espdma": 8,
}
_ETHERNET_LEN: Final = 14
_NOWHERE: Final = (-1 << 62, 1 << 61)  # the range behind the last one
_NOT_YET: Final = {"ip": {"ethernet", "pad", "fcs"}, "ethernet": {"pad", "fcs"}}  # at that stage
_SUMMED: Final = ("ip", "ethernet")  # where a checksum is always complete
_CHECKSUM_AT: Final = {"tcp": 16, "udp": 6}
_ARP_LEN: Final = 28
_IPV6_LEN: Final = 40
_UDP_LEN: Final = 8
_ICMP_LEN: Final = 8
EXTENSIONS_MAX: Final = 8
_EXTENSIONS: Final = {0: "hopbyhop", 43: "routing", 44: "fragment", 60: "destination"}
_FRAGMENT: Final = 44
_NO_PROTOCOL: Final = -1  # of what is behind a later fragment's header
_TRANSPORTS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}

Part: TypeAlias = tuple[str, int]  # name, bytes
Segment: TypeAlias = tuple[str, int | None, int]  # name, address (None: on the wire only), bytes


def parts_of(
    frame: bytes, headers: Sequence[int] = (), *, raw_ip: bool = False, fcs_len: int = 0
) -> list[Part]:
    """What the frame is made of, in order; the lengths add up to the frame's.

    `headers`, where it names as many headers as the frame has, replaces the lengths that the
    headers give themselves.
    """
    names, lengths, datagram_len = _walk(frame[: len(frame) - fcs_len], raw_ip)
    if len(headers) == len(names):
        lengths = list(headers)
    left = len(frame) - fcs_len
    parts: list[Part] = []
    for name, length in zip(names, lengths, strict=True):
        parts.append((name, min(length, left)))
        left -= parts[-1][1]
    if datagram_len is not None:
        before = 0 if raw_ip else lengths[0]
        payload_len = max(0, min(left, datagram_len + before - sum(lengths)))
        parts += [("payload", payload_len), ("pad", left - payload_len)]
    else:
        parts.append(("payload", left))
    parts.append(("fcs", fcs_len))
    return [part for part in parts if part[1]]


def _walk(frame: bytes, raw_ip: bool) -> tuple[list[str], list[int], int | None]:
    """The headers' names and their own lengths, and the datagram's length where one tells it."""
    names: list[str] = []
    lengths: list[int] = []
    if raw_ip:
        ethertype = 0x86DD if frame[:1] and frame[0] >> 4 == 6 else 0x0800
        datagram = frame
    elif len(frame) < _ETHERNET_LEN:
        return names, lengths, None
    else:
        names.append("ethernet")
        lengths.append(_ETHERNET_LEN)
        ethertype = int.from_bytes(frame[12:14], "big")
        datagram = frame[_ETHERNET_LEN:]
    if ethertype == 0x0806 and len(datagram) >= _ARP_LEN:
        return [*names, "arp"], [*lengths, _ARP_LEN], _ARP_LEN
    if ethertype == 0x0800 and len(datagram) >= 20:
        header_len = (datagram[0] & 15) * 4
        datagram_len, fragment = struct.unpack_from("!H2xH", datagram, 2)
        protocol = 0 if fragment & 0x1FFF else datagram[9]
        name = "ipv4"
    elif ethertype == 0x86DD and len(datagram) >= _IPV6_LEN:
        header_len = _IPV6_LEN
        datagram_len = _IPV6_LEN + int.from_bytes(datagram[4:6], "big")
        protocol = datagram[6]
        name = "ipv6"
    else:
        return names, lengths, None
    names.append(name)
    lengths.append(header_len)
    if name == "ipv6":
        protocol, header_len = _walk_extensions(datagram, protocol, names, lengths)
    transport_len = _transport_len(protocol, datagram[header_len:])
    if transport_len:
        names.append(_TRANSPORTS[protocol])
        lengths.append(transport_len)
    return names, lengths, datagram_len


def _walk_extensions(
    datagram: bytes, protocol: int, names: list[str], lengths: list[int]
) -> tuple[int, int]:
    """Add IPv6's extension headers: what follows them, and where."""
    at = _IPV6_LEN
    for _ in range(EXTENSIONS_MAX):
        name = _EXTENSIONS.get(protocol)
        if name is None or len(datagram) < at + 8:
            break
        is_fragment = protocol == _FRAGMENT
        length = 8 if is_fragment else 8 + 8 * datagram[at + 1]
        is_later = is_fragment and int.from_bytes(datagram[at + 2 : at + 4], "big") > 7
        protocol = _NO_PROTOCOL if is_later else datagram[at]
        at += length
        if names[-1] == name:  # as one: so a vector tells them, whose parts may be cut
            lengths[-1] += length
        else:
            names.append(name)
            lengths.append(length)
    return protocol, at


def _transport_len(protocol: int, segment: bytes) -> int:
    """Bytes of the transport header; 0 where there is none that can be read."""
    if protocol == 6 and len(segment) >= 20:
        return (segment[12] >> 4) * 4
    if protocol == 17 and len(segment) >= _UDP_LEN:
        return _UDP_LEN
    if protocol in (1, 58) and len(segment) >= _ICMP_LEN:
        return _ICMP_LEN
    return 0


def place(parts: Iterable[Part], ranges: Iterable[Range]) -> tuple[Segment, ...]:
    """The parts at the addresses of `ranges`, cut where a range ends.

    Parts beyond the last range have no address.
    """
    segments: list[Segment] = []
    source = iter(ranges)
    address, room = 0, 0
    for name, length in parts:
        while length:
            if not room:
                address, room = next(source, _NOWHERE)
            step = min(length, room)
            segments.append((name, None if address < 0 else address, step))
            address, room, length = address + step, room - step, length - step
    return tuple(segments)


def has_fcs(frame: bytes) -> bool:
    """Whether the last four bytes are the FCS of those before them."""
    if len(frame) <= FCS_LEN:
        return False
    return zlib.crc32(frame[:-FCS_LEN]) == int.from_bytes(frame[-FCS_LEN:], "little")


def exchange(words: bytes) -> bytes:
    """The bytes of each 16-bit word changed over; half a word at the end stays."""
    even = len(words) & ~1
    out = bytearray(words)
    out[0:even:2], out[1:even:2] = words[1:even:2], words[0:even:2]
    return bytes(out)


def _word_runs(ranges: Ranges, size: int) -> Iterator[tuple[int, int, int]]:
    """For each run of addresses that holds the first `size` bytes: those of other lanes in front
    of it in its first word, its own, those behind it in its last word."""
    for address, length in merge_ranges(ranges):
        own = min(length, size)
        if not own:
            return
        yield address & 1, own, (address + own) & 1
        size -= own


def word_len(ranges: Ranges, size: int) -> int:
    """Bytes of the whole words that hold the first `size` bytes of `ranges`."""
    return sum(map(sum, _word_runs(ranges, size)))


def from_words(words: bytes, ranges: Ranges, size: int) -> bytes:
    """The first `size` bytes of `ranges` in wire order, out of the words that they lie in."""
    straight = exchange(words)
    out = bytearray()
    at = 0
    for before, own, after in _word_runs(ranges, size):
        out += straight[at + before : at + before + own]
        at += before + own + after
    return bytes(out)


def in_words(parts: Sequence[Part], ranges: Ranges) -> list[Part]:
    """The parts as whole words hold them: with the bytes of other lanes at odd ends."""
    out: list[Part] = []
    left = list(reversed(parts))
    for before, own, after in _word_runs(ranges, sum(length for _, length in parts)):
        out.append((LANE, before))
        while own:
            name, length = left.pop()
            step = min(length, own)
            out.append((name, step))
            own -= step
            if length > step:
                left.append((name, length - step))
        out.append((LANE, after))
    return [part for part in out if part[1]]


class Vector(NamedTuple):
    """A frame's ranges at one stage, with names."""

    stage: str
    exchanged: bool  # the bytes of each aligned 16-bit word have changed places
    segments: tuple[Segment, ...]
    command: bytes = b""  # a disk's; none for a frame

    def emit(self) -> str:
        digits = _ADDRESS_DIGITS.get(self.stage, 1)
        words = ["vector", self.stage]
        if self.exchanged:
            words.append("lanes=exchanged")
        if self.command:
            words.append(f"command={self.command.hex()}")
        for name, address, length in self.segments:
            where = "wire" if address is None else f"0x{address:0{digits}x}"
            words.append(f"{name}={where}+{length}")
        return " ".join(words)

    @classmethod
    def parse(cls, comment: str) -> Vector | None:
        """The vector that a comment holds; None for a comment about something else."""
        words = comment.split()
        if words[:1] != ["vector"]:
            return None
        if len(words) < 2 or not _STAGE.fullmatch(words[1]):
            raise MalformedPacket("vector", "stage")
        del words[0]
        stage = words.pop(0)
        exchanged = words[:1] == ["lanes=exchanged"]
        del words[:exchanged]
        command = _COMMAND.fullmatch(words[0]) if words else None
        segments = tuple(map(_parse_segment, words[1:] if command else words))
        if not segments:
            raise MalformedPacket("vector", "no segments")
        return cls(stage, exchanged, segments, bytes.fromhex(command[1]) if command else b"")

    def parts(self) -> list[Part]:
        """The frame's parts, the cuts inside them undone."""
        merged: list[Part] = []
        for name, _, length in self.segments:
            if name == LANE:
                continue
            if merged and merged[-1][0] == name:
                merged[-1] = (name, merged[-1][1] + length)
            else:
                merged.append((name, length))
        return merged

    def runs(self) -> list[tuple[int, int, int]]:
        """(offset in the frame, address, bytes) of each run of consecutive addresses."""
        out: list[tuple[int, int, int]] = []
        offset = 0
        for name, address, length in self.segments:
            if name == LANE:
                continue
            if address is not None:
                if out and sum(out[-1][::2]) == offset and sum(out[-1][1:]) == address:
                    out[-1] = (*out[-1][:2], out[-1][2] + length)
                else:
                    out.append((offset, address, length))
            offset += length
        return out

    def frame_in(self, data: bytes) -> bytes:
        """The frame's bytes in wire order, out of a packet's."""
        straight = exchange(data) if self.exchanged else data
        out = bytearray()
        at = 0
        for name, _, length in self.segments:
            if name != LANE:
                out += straight[at : at + length]
            at += length
        return bytes(out)


_STAGE = re.compile(r"[a-z]{1,16}")
_COMMAND = re.compile(r"command=((?:[0-9a-f]{2}){1,16})")
_SEGMENT = re.compile(r"([a-z0-9]{1,16})=(?:wire|0x([0-9a-f]{1,16}))\+([1-9][0-9]{0,7})")


def _parse_segment(word: str) -> Segment:
    match = _SEGMENT.fullmatch(word)
    if match is None:
        raise MalformedPacket("vector", "segment")
    name, address, length = match.groups()
    return name, None if address is None else int(address, 16), int(length)


class Seen(NamedTuple):
    """One packet of a frame: where in the file, its vector, the frame's bytes in wire order."""

    number: int
    vector: Vector
    data: bytes
    captured_len: int  # bytes of the packet, those of other lanes included


class FrameLayout(NamedTuple):
    """One frame at every stage that saw it, from the stack towards RAM."""

    packet_id: int | None
    direction: int
    seen: tuple[Seen, ...]

    @property
    def octets(self) -> int:
        """The longest form: with the Ethernet header, and the FCS where a stage saw it."""
        return max(len(one.data) for one in self.seen)


class Disagreement(NamedTuple):
    """Where a vector and the bytes, or two vectors, tell different stories."""

    number: int  # of the packet
    stage: str
    reason: str

    def __str__(self) -> str:
        return f"packet {self.number}, stage {self.stage}: {self.reason}"


def seen_in(packet: Packet) -> Seen | None:
    """The packet with its vector; None where it carries none. Raises MalformedPacket."""
    for comment in packet.comments:
        vector = Vector.parse(comment)
        if vector is not None:
            data = packet.data
            if packet.interface.linktype == LINKTYPE_UPPER_PDU:
                data = scsi.octets_of(data)
            return Seen(packet.number, vector, vector.frame_in(data), len(data))
    return None


def frames(packets: Iterable[Packet]) -> Iterator[FrameLayout]:
    """Packets with vectors, put together by their packet id."""
    open_frames: OrderedDict[int, FrameLayout] = OrderedDict()
    for packet in packets:
        seen = seen_in(packet)
        if seen is None:
            continue
        if packet.packet_id is None:
            yield FrameLayout(None, packet.direction, (seen,))
            continue
        frame = open_frames.get(packet.packet_id)
        if frame is None:
            if len(open_frames) == MAX_OPEN_FRAMES:
                yield open_frames.popitem(last=False)[1]
            frame = FrameLayout(packet.packet_id, packet.direction, ())
        ordered = sorted((*frame.seen, seen), key=lambda one: _rank(one.vector.stage))
        open_frames[packet.packet_id] = frame._replace(seen=tuple(ordered))
    yield from open_frames.values()


_ORDER: Final = (*DISK_STAGES[:-1], *VIRTIO_STAGES[:-1], "pcnet", *STAGES[2:])


def _rank(stage: str) -> int:
    return _ORDER.index(stage) if stage in _ORDER else len(_ORDER)


def check(frame: FrameLayout) -> Disagreement | None:
    """The first disagreement of a frame, or None."""
    for one in frame.seen:
        reason = _check_alone(one)
        if reason is None:
            is_virtio = any(seen.vector.stage == "virtio" for seen in frame.seen)
            for other in frame.seen[: frame.seen.index(one)]:
                reason = reason or _check_pair(other, one, is_virtio)
        if reason is not None:
            return Disagreement(one.number, one.vector.stage, reason)
    return None


def _check_alone(one: Seen) -> str | None:
    """The vector against the bytes, and the rules of its own stage."""
    vector, data = one.vector, one.data
    if vector.stage not in (DISK_STAGES if vector.command else (*STAGES, "virtio", "pcnet")):
        return "there is no such stage"
    total = sum(length for _, _, length in vector.segments)
    if total != one.captured_len:
        return f"the vector holds {total} bytes, the packet {one.captured_len}"
    parts = vector.parts()
    if vector.command:
        return _check_data(vector, parts)
    fcs_len = dict(parts).get("fcs", 0)
    expected = parts_of(data, raw_ip=vector.stage == "ip", fcs_len=fcs_len)
    if parts != expected:
        return _first_difference(parts, expected)
    reason = _check_fcs(data, fcs_len)
    if reason is not None:
        return reason
    if vector.stage in ("ip", "ethernet") and vector.runs() != [(0, 0, len(data))]:
        return "the offsets are not consecutive from 0"
    return None


def _check_data(vector: Vector, parts: Sequence[Part]) -> str | None:
    """A disk's bytes have no structure that tells their length: only their places can be wrong."""
    if [name for name, _ in parts] != [DATA]:
        return f"a disk's vector has one part, {DATA}"
    runs = vector.runs()
    if vector.stage in ("scsi", "esp") and len(runs) != 1:
        return "the addresses are not consecutive"
    if vector.stage == "espdma":
        ends = [(address + length) & DMA_MASK for _, address, length in runs]
        starts = [address & DMA_MASK for _, address, _ in runs]
        if ends[:-1] != starts[1:] or len({address >> 24 for _, address, _ in runs}) > 1:
            return "the addresses do not count up under one top byte"
    return None


def _first_difference(parts: Sequence[Part], expected: Sequence[Part]) -> str:
    """Both add up to the packet's bytes, so there is one within the shorter of them."""
    pairs = zip(parts, expected, strict=False)
    (name, length), (true_name, true_length) = next(pair for pair in pairs if pair[0] != pair[1])
    if name != true_name:
        return f"the vector has {name} where the bytes have {true_name}"
    return f"{name} has {length} bytes in the vector, {true_length} by its header"


def _check_fcs(data: bytes, fcs_len: int) -> str | None:
    if not fcs_len:
        return "the bytes end with an FCS that the vector does not have" if has_fcs(data) else None
    if fcs_len != FCS_LEN:
        return f"{fcs_len} bytes of FCS"
    stored = int.from_bytes(data[-FCS_LEN:], "little")
    computed = zlib.crc32(data[:-FCS_LEN])
    return None if stored == computed else f"FCS {stored:#010x}, the bytes give {computed:#010x}"


def _check_pair(upper: Seen, lower: Seen, is_virtio: bool) -> str | None:
    """Two stages of one frame, `upper` nearer to the stack."""
    stages = upper.vector.stage, lower.vector.stage
    if stages[0] == stages[1]:
        return "the same stage twice for one frame"
    if upper.vector.command != lower.vector.command:
        return f"not the command of {stages[0]}"
    skipped = _NOT_YET.get(stages[0], {"fcs"})
    mine = [part for part in lower.vector.parts() if part[0] not in skipped]
    theirs = [part for part in upper.vector.parts() if part[0] not in skipped]
    if mine != theirs:
        return f"not the parts of {stages[0]}: {_compared(mine, theirs)}"
    start = _ETHERNET_LEN if stages[0] == "ip" else 0
    octets = _without_fcs(upper)
    below = lower.data[start : start + len(octets)]
    if is_virtio and stages[0] in _SUMMED:  # further down the sum may be left to the other side
        octets, below = (_unsummed(data, upper.vector.parts()) for data in (octets, below))
    if below != octets:
        return f"not the bytes of {stages[0]}"
    length = len(_without_fcs(lower))
    if stages[0] == "ethernet" and length not in (len(octets), FRAME_MIN):
        return f"padded to {length} bytes; the chip pads to {FRAME_MIN}"
    if stages == ("lance", "ledma"):
        return _check_ledma(upper.vector, lower.vector)
    if stages == ("ledma", "memory"):
        return _check_pages(upper.vector, lower.vector)
    if stages == ("pcnet", "memory") and upper.vector.runs() != lower.vector.runs():
        return "not the addresses of pcnet, though there is nothing between the two"
    if stages in (("lance", "memory"), ("espdma", "memory")):
        return _check_pages(upper.vector, lower.vector)
    return None


def _unsummed(data: bytes, parts: Sequence[Part]) -> bytes:
    """The bytes with zero in the transport's checksum."""
    at = 0
    for name, length in parts:
        if name in _CHECKSUM_AT:
            at += _CHECKSUM_AT[name]
            return b"".join((data[:at], bytes(2), data[at + 2 :]))
        at += length
    return data


def _without_fcs(one: Seen) -> bytes:
    return one.data[: len(one.data) - dict(one.vector.parts()).get("fcs", 0)]


def _compared(mine: Sequence[Part], theirs: Sequence[Part]) -> str:
    def words(parts: Sequence[Part]) -> str:
        return " ".join(f"{name}+{length}" for name, length in parts)

    return f"{words(mine)} against {words(theirs)}"


def _check_ledma(lance: Vector, ledma: Vector) -> str | None:
    """LEDMA puts its top 8 bits on, and cuts nothing."""
    below = [(offset, address & LANCE_MASK, length) for offset, address, length in ledma.runs()]
    if below != lance.runs():
        return "the low 24 bits of the addresses are not those of lance"
    if len({address >> 24 for _, address, _ in ledma.runs()}) > 1:
        return "more than one top byte"
    return None


def _check_pages(above: Vector, memory: Vector) -> str | None:
    """The IOMMU keeps the low 12 bits, and cuts only at the ends of pages."""
    starts = {offset for offset, _, _ in above.runs()}
    last = (0, 0, 0)
    for offset, address, length in memory.runs():
        expected = _address_at(above, offset)
        if expected is not None and (address ^ expected) % PAGE_LEN:
            return f"{address:#x} is not at the place in its page that {expected:#x} has"
        if offset not in starts and address % PAGE_LEN:
            end = last[1] + last[2]
            return f"cut at {end:#x}, which ends neither a page nor a descriptor's buffer"
        last = offset, address, length
    return None


def _address_at(vector: Vector, at: int) -> int | None:
    for offset, address, length in vector.runs():
        if offset <= at < offset + length:
            return address + at - offset
    return None
