"""DNS messages: RFC 1035 §4, EDNS of RFC 6891, and the length prefix of DNS over TCP (RFC 7766).

Names are tuples of labels (`(b"gateway", b"slirp", b"internal")`), the root is `()`, 255 bytes the
most (RFC 1035 §3.1). No compression pointer is ever followed, so there is no loop to fall into: the
question is the first name of a message and has nothing before it to point to, and the names of the
records behind it are only stepped over.

`DnsQuery.parse` reads the header, the one question and the OPT record of a message, which is all
that a relay needs; `Question.octets` keeps the question as it was sent, for the echo. Replies are
composed by `emit_message` from records.

Does not do: the data of records other than the name it carries (a relay passes them on), DNSSEC,
more than one question (RFC 9619: there is no such query).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from slirp.errors import MalformedPacket

LAYER: Final = "dns"

PORT: Final = 53
HEADER_LEN: Final = 12  # bytes
MESSAGE_MAX: Final = 0xFFFF  # bytes: what TCP's length prefix can say
UDP_SIZE_MIN: Final = 512  # bytes, RFC 1035 §4.2.1; smaller EDNS sizes mean this, RFC 6891 §6.2.3
NAME_MAX: Final = 255  # bytes on the wire, lengths and root included
LABEL_MAX: Final = 63  # bytes

QR: Final = 0x8000
OPCODE_MASK: Final = 0x7800
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
AD: Final = 0x0020
CD: Final = 0x0010
RCODE_MASK: Final = 0x000F

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
REFUSED: Final = 5
BADVERS: Final = 16  # RFC 6891 §6.1.3: its upper bits travel in the OPT record

TYPE_A: Final = 1
TYPE_CNAME: Final = 5
TYPE_SOA: Final = 6
TYPE_PTR: Final = 12
TYPE_SIG: Final = 24  # RFC 2931
TYPE_AAAA: Final = 28
TYPE_DNAME: Final = 39
TYPE_OPT: Final = 41
TYPE_TSIG: Final = 250  # RFC 8945
TYPE_AXFR: Final = 252
TYPE_ANY: Final = 255
CLASS_IN: Final = 1
CLASS_ANY: Final = 255
SOA_MIN: Final = 22  # bytes of an SOA's data: two names, five numbers
DNSSEC_OK: Final = 0x8000  # of EDNS's flags, RFC 3225
CLIENT_SUBNET: Final = 8  # an EDNS option, RFC 7871

Labels: TypeAlias = tuple[bytes, ...]

_HEADER: Final = struct.Struct("!6H")
_QUESTION_TAIL: Final = struct.Struct("!HH")
_RECORD_TAIL: Final = struct.Struct("!HHIH")
_OPTION_HEAD: Final = struct.Struct("!HH")
_POINTER: Final = 0xC0
_SPECIAL: Final = frozenset('.\\"();@$')  # what means something in a zone file
_POINTER_MAX: Final = 0x3FFF  # the furthest offset that a compression pointer can name


class DnsHeader(NamedTuple):
    """RFC 1035 §4.1.1.

    0        2        4        6        8        10       12
    +--------+--------+--------+--------+--------+--------+
    | ident  | flags  |qdcount |ancount |nscount |arcount |
    +--------+--------+--------+--------+--------+--------+
    """

    ident: int
    flags: int
    qdcount: int
    ancount: int
    nscount: int
    arcount: int

    @property
    def rcode(self) -> int:
        return self.flags & RCODE_MASK

    @classmethod
    def parse(cls, view: memoryview | bytes) -> DnsHeader:
        if len(view) < HEADER_LEN:
            raise MalformedPacket(LAYER, "truncated")
        return cls(*_HEADER.unpack_from(view))

    def emit(self) -> bytes:
        return _HEADER.pack(*self)


class Question(NamedTuple):
    name: Labels  # lower case: names compare without case, RFC 1035 §2.3.3
    qtype: int
    qclass: int
    octets: bytes  # as sent, its name uncompressed or not

    @property
    def key(self) -> tuple[Labels, int, int]:
        """What two questions have in common when they ask the same."""
        return self[:3]


class Edns(NamedTuple):
    """The OPT record, RFC 6891 §6.1.2."""

    udp_size: int  # bytes that its sender takes in one datagram
    version: int
    flags: int = 0
    options: tuple[int, ...] = ()  # their codes


class DnsQuery(NamedTuple):
    header: DnsHeader
    question: Question
    edns: Edns | None

    @classmethod
    def parse(cls, view: memoryview | bytes) -> DnsQuery:
        """A query: QR clear, one question, and sections that end within the message."""
        header = DnsHeader.parse(view)
        if header.flags & QR:
            raise MalformedPacket(LAYER, "response as query")
        data = bytes(view)
        question, offset = parse_question(header, data)
        return cls(header, question, _find_opt(header, data, offset))


class Record(NamedTuple):
    name: bytes  # on the wire: emit_name(…), or a pointer
    rtype: int
    rclass: int
    ttl: int  # seconds
    rdata: bytes

    def emit(self) -> bytes:
        tail = _RECORD_TAIL.pack(self.rtype, self.rclass, self.ttl, len(self.rdata))
        return self.name + tail + self.rdata


QUESTION_NAME: Final = bytes((_POINTER, HEADER_LEN))  # a pointer to the question's name


def parse_question(header: DnsHeader, data: bytes) -> tuple[Question, int]:
    """The one question after the header, and the offset of what follows it."""
    if header.qdcount != 1:
        raise MalformedPacket(LAYER, "question count")
    name, offset = parse_name(data, HEADER_LEN)
    if offset + _QUESTION_TAIL.size > len(data):
        raise MalformedPacket(LAYER, "truncated question")
    qtype, qclass = _QUESTION_TAIL.unpack_from(data, offset)
    offset += _QUESTION_TAIL.size
    lower = tuple(label.lower() for label in name)
    return Question(lower, qtype, qclass, data[HEADER_LEN:offset]), offset


def parse_name(data: bytes, offset: int) -> tuple[Labels, int]:
    """The uncompressed name at `offset` and the offset after it."""
    labels: list[bytes] = []
    size = 1  # the root's byte
    while length := _label_len(data, offset):
        if length >= _POINTER:
            raise MalformedPacket(LAYER, "compression pointer")
        size += 1 + length
        if size > NAME_MAX:
            raise MalformedPacket(LAYER, "name length")
        stop = offset + 1 + length
        labels.append(data[offset + 1 : stop])
        offset = stop
    return tuple(labels), offset + 1


def skip_name(data: bytes, offset: int) -> int:
    """The offset after the name at `offset`; a pointer ends it and is not followed."""
    while length := _label_len(data, offset):
        if length >= _POINTER:
            return offset + 2
        offset += 1 + length
    return offset + 1


def _label_len(data: bytes, offset: int) -> int:
    """The length byte at `offset`, when all that it announces is there (0xC0 up: a pointer)."""
    length = data[offset] if offset < len(data) else 0
    size = 2 if length >= _POINTER else 1 + length
    if offset + size > len(data):
        raise MalformedPacket(LAYER, "truncated name")
    if LABEL_MAX < length < _POINTER:
        raise MalformedPacket(LAYER, "label type")
    return length


class Place(NamedTuple):
    """A record within its message."""

    rtype: int
    rclass: int
    ttl: int
    start: int  # offsets
    ttl_at: int
    stop: int
    length: int  # bytes of its data, which end at `stop`


def places_of(header: DnsHeader, data: bytes, offset: int) -> list[Place]:
    """Where the records are that follow the question; each must end within the message.

    The walk is bounded by the message: a record is at least 11 bytes, whatever the counts say.
    """
    found = []
    for _ in range(header.ancount + header.nscount + header.arcount):
        start, tail = offset, skip_name(data, offset)
        if tail + _RECORD_TAIL.size > len(data):
            raise MalformedPacket(LAYER, "truncated record")
        rtype, rclass, ttl, length = _RECORD_TAIL.unpack_from(data, tail)
        offset = tail + _RECORD_TAIL.size + length
        if offset > len(data):
            raise MalformedPacket(LAYER, "truncated record")
        found.append(Place(rtype, rclass, ttl, start, tail + 4, offset, length))
    return found


def _find_opt(header: DnsHeader, data: bytes, offset: int) -> Edns | None:
    """The OPT record among those that follow the question."""
    edns = None
    for place in places_of(header, data, offset):
        if place.rtype == TYPE_OPT:
            if edns is not None or data[place.start]:
                raise MalformedPacket(LAYER, "OPT record")  # RFC 6891 §6.1.1
            options = _option_codes(data[place.stop - place.length : place.stop])
            edns = Edns(place.rclass, place.ttl >> 16 & 0xFF, place.ttl & 0xFFFF, options)
    return edns


def _option_codes(data: bytes) -> tuple[int, ...]:
    """Which options an OPT record has; one that does not end within it is the last."""
    codes = []
    while len(data) >= _OPTION_HEAD.size:
        code, length = _OPTION_HEAD.unpack_from(data)
        codes.append(code)
        data = data[_OPTION_HEAD.size + length :]
    return tuple(codes)


def labels_of(name: str) -> Labels:
    """The labels of a name in text; ValueError where it is none."""
    labels = tuple(label.encode("ascii") for label in name.rstrip(".").split(".") if name != ".")
    if not all(0 < len(label) <= LABEL_MAX for label in labels):
        raise ValueError(f"{name!r}: a label is 1 to {LABEL_MAX} bytes")
    if sum(map(len, labels)) + len(labels) + 1 > NAME_MAX:
        raise ValueError(f"{name!r}: a name is at most {NAME_MAX} bytes")
    return labels


def name_text(labels: Labels) -> str:
    """A name in text, RFC 1035 §5.1: printable ASCII without blanks, whatever is in its labels."""
    return ".".join("".join(map(_octet_text, label)) for label in labels) or "."


def _octet_text(octet: int) -> str:
    if not 0x20 < octet < 0x7F:
        return f"\\{octet:03}"
    letter = chr(octet)
    return f"\\{letter}" if letter in _SPECIAL else letter


def emit_name(labels: Labels, offset: int = 0, seen: dict[Labels, int] | None = None) -> bytes:
    """A name at `offset`; with `seen`, compressed against the names emitted before it."""
    out = bytearray()
    for index, label in enumerate(labels):
        rest = labels[index:]
        if seen is not None:
            if rest in seen:
                return bytes(out) + (_POINTER << 8 | seen[rest]).to_bytes(2)
            if offset + len(out) <= _POINTER_MAX:
                seen[rest] = offset + len(out)
        out.append(len(label))
        out += label
    return bytes(out) + b"\0"


def emit_names(names: Iterable[Labels]) -> bytes:
    """A list of names, compressed against each other: the value of DHCP option 119."""
    out = b""
    seen: dict[Labels, int] = {}
    for labels in names:
        out += emit_name(labels, len(out), seen)
    return out


def emit_opt(edns: Edns, rcode: int = NOERROR) -> bytes:
    """An OPT record without options; `rcode` gives the upper bits of an extended one."""
    ttl = rcode >> 4 << 24 | edns.version << 16 | edns.flags
    return Record(b"\0", TYPE_OPT, edns.udp_size, ttl, b"").emit()


def emit_message(
    ident: int, flags: int, question: bytes, answers: Sequence[Record] = (), opt: bytes = b""
) -> bytes:
    """A message with one question, answers, and the OPT record where there is one."""
    header = DnsHeader(ident, flags, 1, len(answers), 0, 1 if opt else 0)
    return header.emit() + question + b"".join(map(Record.emit, answers)) + opt


def frame_message(message: bytes) -> bytes:
    """A message as it goes over TCP: behind its length, RFC 1035 §4.2.2."""
    return len(message).to_bytes(2) + message


class MessageStream:
    """Messages out of a TCP stream that may be cut anywhere; holds at most one message."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def __len__(self) -> int:
        """Bytes of an unfinished message."""
        return len(self._held)

    def feed(self, data: memoryview | bytes) -> list[bytes]:
        """The messages that `data` completes. After MalformedPacket the stream is unusable."""
        stream = self._held + data
        messages: list[bytes] = []
        offset = 0
        while len(stream) - offset >= 2:
            stop = offset + 2 + int.from_bytes(stream[offset : offset + 2])
            if stop < offset + 2 + HEADER_LEN:
                raise MalformedPacket(LAYER, "length prefix")
            if stop > len(stream):
                break
            messages.append(stream[offset + 2 : stop])
            offset = stop
        self._held = stream[offset:]
        return messages
