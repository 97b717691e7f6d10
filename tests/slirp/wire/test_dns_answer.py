"""Answers read through and written anew; scapy is the other side of both."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRRSOA, dns_compress

from slirp.errors import MalformedPacket
from slirp.wire import dns as wire
from slirp.wire.dns import labels_of
from slirp.wire.dns_answer import AnswerRecord, DnsAnswer, emit_records, expand_name
from tests.kit.oracle import attempt

REASONS = {
    "truncated", "question count", "truncated question", "truncated name", "compression pointer",
    "label type", "name length", "truncated record", "record data", "too many records",
}  # fmt: skip
HEAD = bytes(12)


def answer(*records: DNSRR, **fields: object) -> bytes:
    question = DNSQR(qname="www.example.org", qtype="A")
    return bytes(DNS(id=7, qr=1, qd=question, an=list(records), **fields))


CHAIN = (
    DNSRR(rrname="www.example.org", type="CNAME", rdata="cdn.example.org", ttl=300),
    DNSRR(rrname="cdn.example.org", type="A", rdata="192.0.2.1", ttl=60),
)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_answer_of_scapys(compressed: bool) -> None:
    soa = DNSRRSOA(rrname="example.org", mname="ns.example.org", rname="root", ttl=90)
    octets = answer(*CHAIN, ns=[soa])
    if compressed:
        octets = bytes(dns_compress(DNS(octets)))
        assert b"\xc0\x0c" in octets
    read = DnsAnswer.parse(octets)
    www, cdn = labels_of("www.example.org"), labels_of("cdn.example.org")
    assert read.question.name == www
    assert read.soa_ttl == 90
    assert read.answers == (
        AnswerRecord(www, wire.TYPE_CNAME, 1, 300, cdn),
        AnswerRecord(cdn, wire.TYPE_A, 1, 60, bytes((192, 0, 2, 1))),
    )


def test_what_is_written_scapy_reads() -> None:
    read = DnsAnswer.parse(answer(*CHAIN))
    octets = wire.emit_message(
        7, wire.QR, read.question.octets, emit_records(read.question, read.answers)
    )
    seen = DNS(octets)
    assert [(r.rrname, r.rdata) for r in seen.an] == [
        (b"www.example.org.", b"cdn.example.org."),
        (b"cdn.example.org.", "192.0.2.1"),
    ]
    assert octets.count(b"example") == 2  # in the question and in the data
    assert DnsAnswer.parse(octets).answers == read.answers


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (HEAD, "truncated name"),
        (HEAD + b"\xc0", "truncated name"),
        (HEAD + b"\x05abcd", "truncated name"),
        (HEAD + b"\xc0\x0c", "compression pointer"),  # itself
        (HEAD + b"\xc0\x0e\0", "compression pointer"),  # what follows it
        (HEAD + b"\xc0\x00", "compression pointer"),  # the header
        (HEAD + b"\x40\0", "label type"),
        (HEAD + b"\x80\0", "label type"),
        (HEAD + (b"\x3f" + b"a" * 63) * 4 + b"\0", "name length"),
    ],
)
def test_names_that_lead_nowhere(octets: bytes, reason: str) -> None:
    found = attempt(expand_name, octets, 12)
    assert isinstance(found, MalformedPacket)
    if reason == "label type" and found.reason == "truncated name":
        return  # it would not have been all there either
    assert found.reason == reason


def test_two_names_that_point_to_each_other() -> None:
    octets = HEAD + b"\x01a\xc0\x10" + b"\x01b\xc0\x0c"
    with pytest.raises(MalformedPacket, match="compression pointer"):
        expand_name(octets, 16)


def test_a_name_that_grows_by_pointing_to_itself() -> None:
    octets = HEAD + b"\x01a\xc0\x0c"
    with pytest.raises(MalformedPacket, match="compression pointer"):
        expand_name(octets, 12)


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (answer(*CHAIN)[:-1], "truncated record"),
        (answer(*CHAIN)[:-12], "truncated record"),
        (answer(CHAIN[0])[:-19] + b"\x00\x12" + b"\0" * 18, "record data"),
        (answer()[:6] + b"\xff\xff" + answer()[8:], "too many records"),
    ],
)
def test_broken_records(octets: bytes, reason: str) -> None:
    with pytest.raises(MalformedPacket, match=reason):
        DnsAnswer.parse(octets)


names = st.lists(st.binary(min_size=1, max_size=10), max_size=4).map(
    lambda found: tuple(label.lower() for label in found)
)
seconds, data = st.integers(0, 9), st.binary(max_size=8)
records = st.lists(
    st.builds(AnswerRecord, names, st.just(wire.TYPE_A), st.just(1), seconds, data)
    | st.builds(AnswerRecord, names, st.just(wire.TYPE_CNAME), st.just(1), seconds, names),
    max_size=8,
)


@given(names, records)
def test_what_is_written_is_read(name: tuple[bytes, ...], sent: list[AnswerRecord]) -> None:
    octets = wire.emit_name(name) + b"\0\x01\0\x01"
    question = wire.Question(name, 1, 1, octets)
    message = wire.emit_message(7, wire.QR, octets, emit_records(question, sent))
    assert DnsAnswer.parse(message).answers == tuple(sent)


@given(st.binary(max_size=120), st.integers(0, 3), st.integers(0, 3))
def test_parse_raises_only_malformed(rest: bytes, answers: int, authority: int) -> None:
    octets = bytes((0, 7, 0x80, 0, 0, 1, 0, answers, 0, authority, 0, 0)) + b"\0\0\1\0\1" + rest
    found = attempt(DnsAnswer.parse, octets)
    if isinstance(found, MalformedPacket):
        assert (found.layer, found.reason in REASONS) == ("dns", True)


@given(st.data())
def test_damage_raises_only_malformed(data: st.DataObject) -> None:
    octets = bytearray(bytes(dns_compress(DNS(answer(*CHAIN)))))
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    found = attempt(DnsAnswer.parse, bytes(octets))
    if isinstance(found, MalformedPacket):
        assert found.reason in REASONS
