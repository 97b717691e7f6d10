"""Answers of resolvers, kept for as long as their records say (RFC 1035 §3.2.1, RFC 2308).

`store` looks at an answer and keeps it where that is right; `answer` gives it again, under another
query's id and in its spelling of the name, with every TTL less by the time that has passed. So a
guest cannot tell it from the resolver's, but for EDNS, which belongs to a link and is made anew.

    kept                           until
    an answer with records         the smallest TTL of any of its records, a day at the most
    "no such name", "no data"      the same, and the SOA's minimum (RFC 2308 §5), at most 3 hours

Not kept: failures, truncated and signed messages (TSIG, SIG(0)), answers of more than ENTRY_MAX,
"no" without an SOA, anything with a TTL of 0, questions for ANY. A query that says where its client
is (RFC 7871) passes by the cache. DNSSEC's flags are part of the key: they change the answer.

Bounded by entries; the one that was not asked for longest gives way.

Does not do: prefetching, serving what has expired, cutting an answer into records.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket
from slirp.wire import dns as wire
from slirp.wire.dns import DnsHeader, DnsQuery, Edns, Place

ENTRIES: Final = 1024
ENTRY_MAX: Final = 4096  # bytes of one answer
POSITIVE_MAX: Final = 86_400  # seconds
NEGATIVE_MAX: Final = 10_800  # seconds, RFC 2308 §5
TTL_SIGN: Final = 1 << 31  # RFC 2181 §8: a TTL with this bit is 0
SIGNATURES: Final = (wire.TYPE_TSIG, wire.TYPE_SIG)
KEY_FLAGS: Final = wire.RD | wire.AD | wire.CD
UDP_SIZE: Final = 1232  # bytes, what EDNS offers in answers from here


class _Entry(NamedTuple):
    answer: bytes  # without its OPT
    ttls_at: tuple[int, ...]  # offsets
    stored_at: float
    expires_at: float
    rcode: int


class DnsCache:
    """Of one network."""

    def __init__(self, entries: int = ENTRIES) -> None:
        self._entries_max = entries
        self._entries: dict[Hashable, _Entry] = {}  # the one that was used last comes last

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Other resolvers may say otherwise."""
        self._entries.clear()

    def answer(self, query: DnsQuery, now: float) -> bytes | None:
        """The answer to this query, or None."""
        key = _key(query)
        entry = self._entries.pop(key, None)
        if entry is None or entry.expires_at <= now:
            return None
        self._entries[key] = entry
        out = bytearray(entry.answer)
        passed = int(now - entry.stored_at)
        for at in entry.ttls_at:
            ttl = int.from_bytes(out[at : at + 4])
            out[at : at + 4] = max(0, ttl - passed).to_bytes(4)
        question = query.question.octets
        out[:2] = query.header.ident.to_bytes(2)
        out[wire.HEADER_LEN : wire.HEADER_LEN + len(question)] = question
        if query.edns is None:
            return bytes(out)
        header = DnsHeader.parse(bytes(out[: wire.HEADER_LEN]))
        out[: wire.HEADER_LEN] = header._replace(arcount=header.arcount + 1).emit()
        return bytes(out) + wire.emit_opt(Edns(UDP_SIZE, 0, query.edns.flags & wire.DNSSEC_OK))

    def store(self, query: DnsQuery, answer: bytes, now: float) -> None:
        """Keep what a resolver said, where that may be kept."""
        try:
            entry = _entry(query, answer, now)
        except MalformedPacket:
            return
        if entry is None:
            return
        key = _key(query)
        self._entries.pop(key, None)
        if len(self._entries) >= self._entries_max:
            del self._entries[next(iter(self._entries))]
        self._entries[key] = entry


def passes_by(query: DnsQuery) -> bool:
    """Is this a query that no kept answer is for?"""
    return (
        bool(query.header.flags & wire.OPCODE_MASK)
        or query.question.qclass != wire.CLASS_IN
        or query.question.qtype == wire.TYPE_ANY
        or (query.edns is not None and query.edns.version != 0)
        or (query.edns is not None and wire.CLIENT_SUBNET in query.edns.options)
    )


def _key(query: DnsQuery) -> Hashable:
    edns = 0 if query.edns is None else query.edns.flags & wire.DNSSEC_OK
    return (*query.question.key, query.header.flags & KEY_FLAGS, edns)


def _entry(query: DnsQuery, answer: bytes, now: float) -> _Entry | None:
    header = DnsHeader.parse(answer)
    if header.rcode not in (wire.NOERROR, wire.NXDOMAIN) or header.flags & wire.TC:
        return None
    question, offset = wire.parse_question(header, answer)
    if len(answer) > ENTRY_MAX or len(question.octets) != len(query.question.octets):
        return None
    places = wire.places_of(header, answer, offset)
    answer, header, places = _without_opt(answer, header, places)
    kinds = {place.rtype for place in places}
    if wire.TYPE_OPT in kinds or kinds.intersection(SIGNATURES):
        return None
    seconds = _ttl(header, answer, places)
    if not seconds:
        return None
    flags = header.flags & ~wire.AA  # RFC 1035 §4.1.1: kept answers are nobody's own word
    answer = header._replace(ident=0, flags=flags).emit() + answer[wire.HEADER_LEN :]
    ttls_at = tuple(place.ttl_at for place in places)
    return _Entry(answer, ttls_at, now, now + seconds, header.rcode)


def _without_opt(
    answer: bytes, header: DnsHeader, places: list[Place]
) -> tuple[bytes, DnsHeader, list[Place]]:
    """The answer without an OPT record at its end, which is where everybody puts it."""
    if not places or places[-1].rtype != wire.TYPE_OPT or places[-1].stop != len(answer):
        return answer, header, places
    if places[-1].ttl >> 24:  # an extended error
        return answer, header, places
    header = header._replace(arcount=header.arcount - 1)
    return answer[: places[-1].start], header, places[:-1]


def _ttl(header: DnsHeader, answer: bytes, places: list[Place]) -> int:
    """Seconds that it may be kept; 0: not at all."""
    least = min((0 if p.ttl & TTL_SIGN else p.ttl for p in places), default=0)
    authority = places[header.ancount : header.ancount + header.nscount]
    soa = next((place for place in authority if place.rtype == wire.TYPE_SOA), None)
    if soa is not None and soa.length >= wire.SOA_MIN:
        minimum = int.from_bytes(answer[soa.stop - 4 : soa.stop])
        return min(least, 0 if minimum & TTL_SIGN else minimum, NEGATIVE_MAX)
    if header.rcode == wire.NXDOMAIN or not header.ancount:
        return 0
    return min(least, POSITIVE_MAX)
