"""DNS64: addresses for guests without IPv4 of hosts without IPv6, RFC 6147 and RFC 7050.

A guest asks for AAAA. Where the answer has none that counts, its A records are asked for, and each
becomes the address that NAT64 leads there (slirp.ip.nat64). The functions here work on messages;
who is asked and when is the DNS service's (slirp.services.dns):

    applies(query)        is this a question that may be answered so?
    look_at(answer)       of AAAA: pass it on, as it is or without records that do not count, or
                          ask for A
    question_for_a        what to ask then
    synthesize(answer)    of A: the records of the answer to AAAA

What §5 wants heeded:

- Existing AAAA records are the answer, and nothing is added to them. Those of ::ffff:0:0/96 do not
  count (§5.1.4): what is inside is an IPv4 address that no IPv6-only guest can use.
- Where the host has no way to the IPv6 world (`reaches_ipv6`), AAAA records count only if there are
  no A records: a guest that has nothing but IPv6 would reach nothing by them. This is an exclusion
  set of ::/0 (§5.1.4), but that what there is stays the answer where nothing better is.
- NXDOMAIN is the answer, since it is about the name. Any other error of AAAA is as good as an empty
  answer, and so is silence (§5.1.2, §5.1.3): servers exist that fail at AAAA alone.
- A chain of CNAME and DNAME records goes in front of the synthesized ones (§5.1.5).
- A synthesized record lasts no longer than the A record, and than the SOA record with which the
  absence of AAAA came, or 600 s where none came (§5.1.7).
- A client that sets both DO and CD validates by itself, and gets what there is (§5.5). What is
  synthesized has no signature: RRSIG records are left out, AD is clear.
- PTR under the prefix is a CNAME to the name under in-addr.arpa, and what that has (§5.3.1).

`ipv4only.arpa` has the two addresses of RFC 7050 §8.2 by definition. They and what is made of them
are answered by the network itself, as RFC 8880 §7.1 wants of a DNS64 resolver (IPV4ONLY): nobody
else is asked for it, and below it there are no names. Names of the network's own are answered so,
too, as far as they have no address of IPv6.

Does not do: validation, the authority and additional sections of a synthesized answer (a stub
resolver reads neither).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from slirp.address import Prefix
from slirp.errors import MalformedPacket
from slirp.ip.nat64 import Nat64
from slirp.wire import dns as wire
from slirp.wire.dns import DnsHeader, DnsQuery, Labels, Record
from slirp.wire.dns_answer import AnswerRecord, DnsAnswer, emit_records

EXCLUDED: Final = (Prefix.from_text("::ffff:0:0/96"),)  # RFC 6147 §5.1.4
TTL_MAX: Final = 600  # seconds, where no SOA record says less, RFC 6147 §5.1.7
PTR_TTL: Final = 600  # seconds, of a CNAME under ip6.arpa
IPV4ONLY: Final = "ipv4only.arpa"  # RFC 7050 §8.2
IPV4ONLY_ADDRS: Final = (bytes((192, 0, 0, 170)), bytes((192, 0, 0, 171)))  # idem

CHAIN: Final = (wire.TYPE_CNAME, wire.TYPE_DNAME)
IP6_ARPA: Final = (b"ip6", b"arpa")
IN_ADDR_ARPA: Final = (b"in-addr", b"arpa")
DIGITS: Final = tuple(b"%x" % digit for digit in range(16))
NIBBLES: Final = 32  # labels of an address under ip6.arpa, RFC 3596 §2.5


class Outcome(NamedTuple):
    """What an answer of AAAA comes to: it is passed on, as it is or with `records` instead of its
    own; or A is to be asked for."""

    final: bool
    records: list[Record] | None = None
    second_best: bool = False  # the answer counts where there is no A
    ttl: int = 0  # seconds that a synthesized record may last


class Dns64:
    """The rules of one network."""

    def __init__(
        self,
        nat64: Nat64,
        excluded: Sequence[Prefix] = EXCLUDED,
        reaches_ipv6: Callable[[], bool] = lambda: True,
    ) -> None:
        self.nat64 = nat64
        self._excluded = excluded
        self._reaches_ipv6 = reaches_ipv6

    def embedded(self, records: Iterable[Record]) -> list[Record]:
        """AAAA of the A records of a name that the network itself knows."""
        return [
            record._replace(rtype=wire.TYPE_AAAA, rdata=self.nat64.embed(record.rdata))
            for record in records
            if record.rtype == wire.TYPE_A
        ]

    def applies(self, query: DnsQuery) -> bool:
        """Is this a query for AAAA that may be answered with a synthesized one?"""
        return _is_plain(query, wire.TYPE_AAAA) and not _validates(query)

    def question_for_a(self, query: DnsQuery, payload: bytes) -> bytes:
        """The same query for A."""
        at = wire.HEADER_LEN + len(query.question.octets) - 4
        return payload[:at] + wire.TYPE_A.to_bytes(2) + payload[at + 2 :]

    def look_at(self, answer: bytes) -> Outcome:
        """What the answer of a resolver to AAAA comes to. One that cannot be read is passed on."""
        try:
            header = DnsHeader.parse(answer)
            if header.rcode == wire.NXDOMAIN or header.flags & wire.TC:
                return Outcome(final=True)
            if header.rcode != wire.NOERROR:
                return Outcome(final=False, ttl=TTL_MAX)
            read = DnsAnswer.parse(answer)
        except MalformedPacket:
            return Outcome(final=True)
        found = [record for record in read.answers if record.rtype == wire.TYPE_AAAA]
        kept = [record for record in found if self._counts(record)]
        if not kept:
            return Outcome(final=False, ttl=TTL_MAX if read.soa_ttl is None else read.soa_ttl)
        if not self._reaches_ipv6():
            return Outcome(final=False, second_best=True, ttl=TTL_MAX)
        if len(kept) == len(found):
            return Outcome(final=True)
        whole = [record for record in read.answers if record.rtype in CHAIN or record in kept]
        return Outcome(final=True, records=emit_records(read.question, whole))

    def synthesize(self, query: DnsQuery, answer: bytes, ttl: int) -> tuple[int, list[Record]]:
        """Response code and records for `query`, which asked for AAAA, of an answer to A."""
        header = DnsHeader.parse(answer)
        if header.rcode != wire.NOERROR:
            return header.rcode, []
        records = []
        for record in DnsAnswer.parse(answer).answers:
            if record.rtype == wire.TYPE_A and isinstance(record.rdata, bytes):
                if len(record.rdata) != 4:
                    raise MalformedPacket(wire.LAYER, "record data")
                addr = self.nat64.embed(record.rdata)
                record = record._replace(rtype=wire.TYPE_AAAA, rdata=addr, ttl=min(record.ttl, ttl))
                records.append(record)
            elif record.rtype in CHAIN:
                records.append(record)
        return wire.NOERROR, emit_records(query.question, records)

    # PTR

    def target_of(self, query: DnsQuery) -> Labels | None:
        """The name under in-addr.arpa that a query for PTR under the prefix is about."""
        name = query.question.name
        if not _is_plain(query, wire.TYPE_PTR) or name[NIBBLES:] != IP6_ARPA or _validates(query):
            return None
        digits = b"".join(label for label in reversed(name[:NIBBLES]) if label in DIGITS)
        if len(digits) != NIBBLES:
            return None
        inner = self.nat64.extract(bytes.fromhex(digits.decode()))
        if inner is None:
            return None
        return (*(b"%d" % octet for octet in reversed(inner)), *IN_ADDR_ARPA)

    def question_for_target(self, query: DnsQuery, payload: bytes, target: Labels) -> bytes:
        """The query for PTR of that name."""
        rest = wire.HEADER_LEN + len(query.question.octets) - 4
        return payload[: wire.HEADER_LEN] + wire.emit_name(target) + payload[rest:]

    def lead_to(self, query: DnsQuery, target: Labels, answer: bytes) -> tuple[int, list[Record]]:
        """Response code and records for `query`: the CNAME, and what its target has."""
        read = DnsAnswer.parse(answer)
        alias = AnswerRecord(query.question.name, wire.TYPE_CNAME, wire.CLASS_IN, PTR_TTL, target)
        if read.header.rcode not in (wire.NOERROR, wire.NXDOMAIN):
            return read.header.rcode, []
        wanted = (*CHAIN, wire.TYPE_PTR)
        records = [alias, *(record for record in read.answers if record.rtype in wanted)]
        return read.header.rcode, emit_records(query.question, records)

    def _counts(self, record: AnswerRecord) -> bool:
        return not any(
            isinstance(record.rdata, bytes) and prefix.covers(record.rdata)
            for prefix in self._excluded
        )


def _is_plain(query: DnsQuery, qtype: int) -> bool:
    header, question = query.header, query.question
    return (question.qtype, question.qclass) == (qtype, wire.CLASS_IN) and not (
        header.flags & wire.OPCODE_MASK
    )


def _validates(query: DnsQuery) -> bool:
    """Does its client validate by itself? RFC 6147 §5.5."""
    return bool(
        query.header.flags & wire.CD
        and query.edns is not None
        and query.edns.flags & wire.DNSSEC_OK
    )
