"""DNS messages, judged by scapy where we emit and by RFC 1035 and 6891 where we parse."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRROPT

from slirp.errors import MalformedPacket
from slirp.wire import dns
from slirp.wire.dns import DnsHeader, DnsQuery, Edns, MessageStream, Record

NAME = (b"gateway", b"slirp", b"internal")
QUESTION = dns.emit_name(NAME) + b"\0\1\0\1"
QUERY = DnsHeader(0x1234, dns.RD, 1, 0, 0, 0).emit() + QUESTION


def reason(data: bytes) -> str:
    with pytest.raises(MalformedPacket) as caught:
        DnsQuery.parse(data)
    assert caught.value.layer == "dns"
    return caught.value.reason


def counts(qd: int = 1, an: int = 0, ns: int = 0, ar: int = 0) -> bytes:
    return DnsHeader(1, 0, qd, an, ns, ar).emit()


def test_we_read_what_scapy_emits() -> None:
    sent = DNS(
        id=77,
        rd=1,
        qd=DNSQR(qname="Gateway.Slirp.INTERNAL", qtype="AAAA"),
        ar=DNSRROPT(rclass=4096),
    )
    seen = DnsQuery.parse(memoryview(bytes(sent)))
    assert (seen.header.ident, seen.header.flags) == (77, dns.RD)
    assert seen.question.key == (NAME, dns.TYPE_AAAA, dns.CLASS_IN)
    assert seen.question.octets == bytes(sent)[12 : 12 + len(QUESTION)]
    assert seen.edns == Edns(4096, 0, dns.DNSSEC_OK)  # as scapy has it by default
    assert DnsHeader.parse(bytes(DNS(qr=1, rcode=3))).rcode == dns.NXDOMAIN


def test_scapy_reads_what_we_emit() -> None:
    answers = [Record(dns.QUESTION_NAME, dns.TYPE_A, dns.CLASS_IN, 30, bytes((10, 0, 2, 2)))]
    opt = dns.emit_opt(Edns(1232, 0), dns.BADVERS)
    seen = DNS(dns.emit_message(5, dns.QR | dns.AA | dns.RA, QUESTION, answers, opt))
    assert (seen.id, seen.qr, seen.aa, seen.ra, seen.rcode) == (5, 1, 1, 1, 0)
    assert seen.qd[0].qname == b"gateway.slirp.internal."
    assert (seen.an[0].rrname, seen.an[0].rdata, seen.an[0].ttl) == (
        b"gateway.slirp.internal.",
        "10.0.2.2",
        30,
    )
    assert (seen.ar[0].type, seen.ar[0].rclass, seen.ar[0].extrcode) == (41, 1232, 1)


@settings(max_examples=300)
@given(st.binary(max_size=80), st.integers(0, 3))
def test_parse_raises_only_malformed_packet(tail: bytes, records: int) -> None:
    for data in (tail, counts(ar=records) + tail, counts(an=records) + QUESTION + tail):
        with suppress(MalformedPacket):
            DnsQuery.parse(data)


@given(st.integers(0, len(QUERY) - 1))
def test_a_query_cut_short_anywhere_is_malformed(size: int) -> None:
    assert reason(QUERY[:size]).startswith("truncated")


@pytest.mark.parametrize("count", [0, 2, 65535])
def test_there_is_one_question(count: int) -> None:
    assert reason(counts(qd=count) + QUESTION * min(count, 2)) == "question count"


def test_an_answer_is_no_query() -> None:
    assert reason(DnsHeader(1, dns.QR, 1, 0, 0, 0).emit() + QUESTION) == "response as query"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"\xc0\x0c", "compression pointer"),  # to itself
        (b"\1a\xc0\x0c", "compression pointer"),  # a loop
        (b"\xc0\0", "compression pointer"),  # into the header
        (b"\xc0", "truncated name"),
        (b"\x40abc\0", "truncated name"),
        (b"\x40" + b"a" * 64 + b"\0", "label type"),
        (b"\x80" + b"a" * 128 + b"\0", "label type"),
        (b"\x3fabc", "truncated name"),
        (b"\1a" * 128 + b"\0", "name length"),
    ],
)
def test_broken_names_are_malformed(name: bytes, expected: str) -> None:
    # Where the name ends the message, what is missing is missing from the name.
    assert reason(counts() + name) == expected


def test_the_longest_name_is_read() -> None:
    name = b"\x3f" + b"a" * 63 + b"\x3f" + b"b" * 63 + b"\x3f" + b"c" * 63 + b"\x3d" + b"d" * 61
    assert len(name) + 1 == dns.NAME_MAX
    labels, offset = dns.parse_name(name + b"\0", 0)
    assert (len(labels), offset) == (4, dns.NAME_MAX)


@pytest.mark.parametrize("size", [0, 511, 512, 4096, 65535])
def test_edns_size_is_what_the_client_says(size: int) -> None:
    data = counts(ar=1) + QUESTION + dns.emit_opt(Edns(size, 0))
    assert DnsQuery.parse(data).edns == Edns(size, 0)


def test_records_before_the_opt_record_are_stepped_over() -> None:
    plain = Record(b"\xc0\x0c", dns.TYPE_A, dns.CLASS_IN, 0, bytes(4)).emit()
    named = Record(dns.emit_name((b"a", b"b")), 16, dns.CLASS_IN, 0, b"").emit()
    pointed = Record(b"\1a\xc0\x0c", 16, dns.CLASS_IN, 0, b"").emit()
    records = plain + named + pointed + dns.emit_opt(Edns(700, 1))
    assert DnsQuery.parse(counts(an=1, ns=1, ar=2) + QUESTION + records).edns == Edns(700, 1)


@pytest.mark.parametrize(
    ("records", "count", "expected"),
    [
        (b"", 1, "truncated name"),
        (b"\0\0\1\0\1", 1, "truncated record"),
        (b"\0\0\1\0\1\0\0\0\0\0\5abcd", 1, "truncated record"),
        (dns.emit_opt(Edns(512, 0)) * 2, 2, "OPT record"),
        (Record(b"\1a\0", dns.TYPE_OPT, 512, 0, b"").emit(), 1, "OPT record"),
        (dns.emit_opt(Edns(512, 0)), 65535, "truncated name"),
    ],
)
def test_broken_records_are_malformed(records: bytes, count: int, expected: str) -> None:
    assert reason(counts(ar=count) + QUESTION + records) == expected


labels = st.lists(st.binary(min_size=1, max_size=20), max_size=6).map(tuple)


@settings(max_examples=60)
@given(labels)
def test_a_name_survives_emit_and_parse(name: tuple[bytes, ...]) -> None:
    emitted = dns.emit_name(name)
    assert dns.parse_name(b"xx" + emitted, 2) == (name, 2 + len(emitted))
    assert dns.skip_name(emitted, 0) == len(emitted)


def test_names_in_text() -> None:
    assert dns.labels_of("gateway.slirp.internal") == NAME
    assert dns.labels_of("gateway.slirp.internal.") == NAME
    assert dns.labels_of(".") == ()
    for wrong in ("", "a..b", ".a", "a" * 64, ".".join(["a" * 63] * 4), "é.internal"):
        with pytest.raises(ValueError):  # noqa: PT011
            dns.labels_of(wrong)


def test_a_search_list_is_compressed_as_in_rfc_3397() -> None:
    names = map(dns.labels_of, ("eng.apple.com.", "marketing.apple.com."))
    assert dns.emit_names(names) == (
        b"\3eng\5apple\3com\0" + b"\x09marketing\xc0\x04"  # RFC 3397 §2, its example
    )


def test_names_beyond_a_pointers_reach_are_not_pointed_to() -> None:
    seen: dict[tuple[bytes, ...], int] = {}
    first = dns.emit_name((b"a",), 0x4000, seen)
    assert first == b"\1a\0"
    assert dns.emit_name((b"a",), 0x4003, seen) == first


@settings(max_examples=60)
@given(st.lists(st.binary(min_size=12, max_size=40), max_size=5), st.data())
def test_cuts_of_a_stream_are_invisible(messages: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(dns.frame_message, messages))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    parser = MessageStream()
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += parser.feed(memoryview(stream)[start:stop])
    assert found == messages
    assert len(parser) == 0


def test_a_stream_byte_by_byte() -> None:
    parser = MessageStream()
    stream = dns.frame_message(QUERY)
    assert [m for octet in stream for m in parser.feed(bytes((octet,)))] == [QUERY]


@pytest.mark.parametrize("prefix", [0, 1, 11])
def test_a_length_that_holds_no_header_is_malformed(prefix: int) -> None:
    with pytest.raises(MalformedPacket, match="length prefix"):
        MessageStream().feed(prefix.to_bytes(2) + bytes(20))


def test_a_stream_holds_at_most_one_message() -> None:
    parser = MessageStream()
    assert parser.feed(b"\xff\xff" + bytes(0xFFFE)) == []
    assert len(parser) == 2 + 0xFFFE
    assert parser.feed(b"\0" + b"\0") == [bytes(0xFFFF)]
    assert len(parser) == 1
