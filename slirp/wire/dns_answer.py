"""DNS answers, read through: the records behind the question, their names written out.

A relay passes answers on as they are (slirp.wire.dns). Whoever changes a record shifts what follows
it, and with it the names that others point to; so an answer that is to be changed is read whole and
written anew. `DnsAnswer.parse` reads the answer section, and of the authority section how long the
SOA record lasts; `emit_records` writes records behind a question, their names compressed again.

A compression pointer must lead to before the name that it stands in (RFC 1035 §4.1.4: a *prior*
occurrence), each one further back than the last, so that every name ends. A name has 255 bytes at
the most and a message RECORDS_MAX records. Data is kept as it came, except where it is one name
alone (CNAME, DNAME, PTR): that is written out. Types whose data has names among other things (SOA,
MX …) keep their pointers, and are not for writing anew.

Does not do: the additional section, the authority section beyond its SOA.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket
from slirp.wire.dns import (
    HEADER_LEN,
    LABEL_MAX,
    LAYER,
    NAME_MAX,
    TYPE_CNAME,
    TYPE_DNAME,
    TYPE_PTR,
    TYPE_SOA,
    DnsHeader,
    Labels,
    Question,
    Record,
    emit_name,
    parse_question,
)

NAMES: Final = frozenset((TYPE_CNAME, TYPE_DNAME, TYPE_PTR))  # types whose data is one name

RECORDS_MAX: Final = 512  # records of one message that are read

_TAIL: Final = struct.Struct("!HHIH")
_POINTER: Final = 0xC0


class AnswerRecord(NamedTuple):
    name: Labels  # as spelled
    rtype: int
    rclass: int
    ttl: int  # seconds
    rdata: bytes | Labels  # a name where it is one (NAMES)


class DnsAnswer(NamedTuple):
    header: DnsHeader
    question: Question
    answers: tuple[AnswerRecord, ...]
    soa_ttl: int | None  # seconds, of the authority's SOA record, if it has one

    @classmethod
    def parse(cls, view: memoryview | bytes) -> DnsAnswer:
        """A whole message with one question."""
        data = bytes(view)
        header = DnsHeader.parse(data)
        question, offset = parse_question(header, data)
        if header.ancount + header.nscount > RECORDS_MAX:
            raise MalformedPacket(LAYER, "too many records")
        answers = []
        for _ in range(header.ancount):
            record, offset = _parse_record(data, offset)
            answers.append(record)
        soa_ttl = None
        for _ in range(header.nscount):
            record, offset = _parse_record(data, offset)
            if record.rtype == TYPE_SOA and soa_ttl is None:
                soa_ttl = record.ttl
        return cls(header, question, tuple(answers), soa_ttl)


def expand_name(data: bytes, offset: int) -> tuple[Labels, int]:
    """The name at `offset`, pointers followed, and the offset of what stands behind it."""
    labels: list[bytes] = []
    size, least, after = 1, offset, None  # `least`: where pointers must lead to before
    while True:
        length = data[offset] if offset < len(data) else None
        if length is None or offset + 1 + (length if length <= LABEL_MAX else 1) > len(data):
            raise MalformedPacket(LAYER, "truncated name")
        if not length:
            return tuple(labels), offset + 1 if after is None else after
        if length >= _POINTER:
            after = offset + 2 if after is None else after
            offset = int.from_bytes(data[offset : offset + 2]) & 0x3FFF
            if not HEADER_LEN <= offset < least:
                raise MalformedPacket(LAYER, "compression pointer")
            least = offset
            continue
        if length > LABEL_MAX:
            raise MalformedPacket(LAYER, "label type")
        size += 1 + length
        if size > NAME_MAX:
            raise MalformedPacket(LAYER, "name length")
        labels.append(data[offset + 1 : offset + 1 + length])
        offset += 1 + length


def _parse_record(data: bytes, offset: int) -> tuple[AnswerRecord, int]:
    name, offset = expand_name(data, offset)
    if offset + _TAIL.size > len(data):
        raise MalformedPacket(LAYER, "truncated record")
    rtype, rclass, ttl, length = _TAIL.unpack_from(data, offset)
    start, offset = offset + _TAIL.size, offset + _TAIL.size + length
    if offset > len(data):
        raise MalformedPacket(LAYER, "truncated record")
    rdata: bytes | Labels = data[start:offset]
    if rtype in NAMES:
        rdata, end = expand_name(data, start)
        if end != offset:
            raise MalformedPacket(LAYER, "record data")
    return AnswerRecord(name, rtype, rclass, ttl, rdata), offset


def emit_records(question: Question, records: Iterable[AnswerRecord]) -> list[Record]:
    """The records for a message that has this question, in their order (slirp.wire.dns)."""
    seen: dict[Labels, int] = {}
    emit_name(question.name, HEADER_LEN, seen)
    offset = HEADER_LEN + len(question.octets)
    found = []
    for record in records:
        rdata = record.rdata
        # RFC 1035 §4.1.4 lets names be compressed in data too; only owners are, here.
        octets = rdata if isinstance(rdata, bytes) else emit_name(rdata)
        name = emit_name(tuple(label.lower() for label in record.name), offset, seen)
        found.append(Record(name, record.rtype, record.rclass, record.ttl, octets))
        offset += len(found[-1].emit())
    return found
