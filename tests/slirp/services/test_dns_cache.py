"""Answers that are kept: which, for how long, and as scapy reads them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRROPT, DNSRRSOA, EDNS0TLV

from slirp.config_fields import Resolver
from slirp.services.dns import Answer, DnsService, SendToResolver
from slirp.services.dns_cache import ENTRY_MAX, NEGATIVE_MAX, POSITIVE_MAX, DnsCache, passes_by
from slirp.wire.dns import DnsQuery

AT = (Resolver("192.0.2.53"),)
GUEST = (bytes((10, 0, 2, 15)), 40000)


def question(name: str = "example.org", **fields: Any) -> bytes:
    kind = fields.pop("qtype", "A")
    return bytes(DNS(**{"id": 7, "rd": 1, "qd": [DNSQR(qname=name, qtype=kind)]} | fields))


def record(ttl: int, name: str = "example.org", rdata: str = "198.51.100.7") -> DNSRR:
    return DNSRR(rrname=name, ttl=ttl, rdata=rdata)


def soa(ttl: int, minimum: int) -> DNSRRSOA:
    return DNSRRSOA(rrname="org", ttl=ttl, mname="a.org", rname="b.org", minimum=minimum)


def said(asked: bytes, **fields: Any) -> bytes:
    """A resolver's answer."""
    query = DNS(asked)
    return bytes(DNS(id=query.id, qr=1, rd=1, ra=1, qd=query.qd, **fields))


def kept(answer: bytes, asked: bytes, now: float, first: bytes | None = None) -> DNS | None:
    """What comes for `asked` at `now`, where `answer` came for `first` at 0."""
    cache = DnsCache()
    cache.store(DnsQuery.parse(first or asked), answer, 0.0)
    found = cache.answer(DnsQuery.parse(asked), now)
    return None if found is None else DNS(found)


def test_an_answer_is_given_again_with_less_time() -> None:
    first = question()
    answer = said(
        first, an=[record(60), record(30, rdata="198.51.100.8")], ar=[record(90, "x.org")]
    )
    asked = question("EXAMPLE.org", id=99)
    found = kept(answer, asked, 10.9, first)
    assert found is not None
    assert (found.id, found.qd[0].qname, found.ra, found.aa) == (99, b"EXAMPLE.org.", 1, 0)
    assert [(r.ttl, r.rdata) for r in found.an] == [(50, "198.51.100.7"), (20, "198.51.100.8")]
    assert found.ar[0].ttl == 80
    assert kept(answer, asked, 29.9, first) is not None
    assert kept(answer, asked, 30.0, first) is None


@pytest.mark.parametrize("rcode", [0, 3])
def test_no_is_an_answer_for_as_long_as_the_soa_says(rcode: int) -> None:
    """RFC 2308 §5: the lesser of the SOA's TTL and its minimum."""
    asked = question()
    for ttl, minimum, until in ((100, 50, 50), (50, 100, 50), (10**6, 10**6, NEGATIVE_MAX)):
        answer = said(asked, rcode=rcode, ns=[soa(ttl, minimum)])
        found = kept(answer, asked, until - 0.5)
        assert found is not None
        assert (found.rcode, found.ancount) == (rcode, 0)
        assert kept(answer, asked, until) is None


def test_an_alias_of_nothing_is_kept_as_nothing() -> None:
    asked = question()
    alias = DNSRR(rrname="example.org", type="CNAME", ttl=1000, rdata="x.org")
    answer = said(asked, an=[alias], ns=[soa(500, 20)], rcode=3)
    assert kept(answer, asked, 19) is not None
    assert kept(answer, asked, 20) is None


def test_a_day_is_the_most() -> None:
    asked = question()
    answer = said(asked, an=[record(10**6)])
    assert kept(answer, asked, POSITIVE_MAX - 1) is not None
    assert kept(answer, asked, POSITIVE_MAX) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"an": [record(0)]},
        {"an": [record(60), record(0)]},
        {"an": [record(0x80000000)]},
        {"an": [record(60)], "tc": 1},
        {"rcode": 2, "ns": [soa(60, 60)]},
        {"rcode": 5, "ns": [soa(60, 60)]},
        {"rcode": 3},
        {},
        {"ns": [DNSRR(rrname="org", type="NS", ttl=60, rdata="a.org")]},
        {"an": [record(60)] * (ENTRY_MAX // 20)},
        {"an": [record(60)], "ar": [DNSRR(rrname="k", type=250, ttl=60, rdata=b"x")]},
        {"an": [record(60)], "ar": [DNSRROPT(rclass=4096), record(60)]},
        {"an": [record(60)], "ar": [DNSRROPT(rclass=4096, extrcode=1)]},
    ],
)
def test_what_is_not_kept(fields: dict[str, Any]) -> None:
    asked = question()
    assert kept(said(asked, **fields), asked, 0.0) is None


def test_edns_is_the_links_not_the_answers() -> None:
    plain, with_edns = question(), question(ar=[DNSRROPT(rclass=4096, z=0)])
    answer = said(with_edns, an=[record(60)], ar=[DNSRROPT(rclass=512, z=0)])
    without = kept(answer, plain, 0.0, with_edns)
    assert without is not None
    assert without.arcount == 0
    found = kept(answer, with_edns, 0.0)
    assert found is not None
    assert (found.arcount, found.ar[0].rclass) == (1, 1232)


def test_who_wants_signatures_gets_another_answer() -> None:
    plain, signed = question(), question(ar=[DNSRROPT(rclass=4096, z=0x8000)])
    answer = said(plain, an=[record(60)])
    assert kept(answer, signed, 0.0, plain) is None
    assert kept(answer, question(cd=1), 0.0, plain) is None
    found = kept(said(signed, an=[record(60)]), signed, 0.0)
    assert found is not None
    assert found.ar[0].z == 0x8000


def test_what_passes_by() -> None:
    subnet = DNSRROPT(rclass=4096, rdata=[EDNS0TLV(optcode=8, optdata=b"\0\1\x18\0\xc0\0\2")])
    cookie = DNSRROPT(rclass=4096, rdata=[EDNS0TLV(optcode=10, optdata=b"12345678")])
    several: tuple[dict[str, Any], ...] = ({"ar": [subnet]}, {"qtype": "ALL"}, {"opcode": 4})
    for fields in several:
        assert passes_by(DnsQuery.parse(question(**fields)))
    assert passes_by(DnsQuery.parse(bytes(DNS(qd=[DNSQR(qname="a", qclass="CH")]))))
    assert not passes_by(DnsQuery.parse(question(ar=[cookie])))
    assert not passes_by(DnsQuery.parse(question()))


def test_the_bound() -> None:
    cache = DnsCache(2)

    def has(name: str) -> bool:
        return cache.answer(DnsQuery.parse(question(name)), 0.0) is not None

    for name in ("a.test", "b.test"):
        cache.store(DnsQuery.parse(question(name)), said(question(name), an=[record(9, name)]), 0.0)
    assert has("a.test")
    cache.store(DnsQuery.parse(question("c.test")), said(question("c.test"), an=[record(9)]), 0.0)
    assert (has("a.test"), has("b.test"), has("c.test")) == (True, False, True)
    assert len(cache) == 2


def resolve(target: DnsService, asked: bytes, now: float) -> tuple[bytes, bool]:
    """The answer, and whether a resolver was asked for it."""
    (action,) = target.handle_query(asked, GUEST, False, now)
    if isinstance(action, Answer):
        return action.payload, False
    assert isinstance(action, SendToResolver)
    answer = said(action.payload, an=[record(60)])
    actions = target.handle_answer(action.resolver, answer, action.token, now)
    assert isinstance(actions[0], Answer)
    return actions[0].payload, True


def test_the_service_asks_once() -> None:
    target = DnsService({}, AT, cache=DnsCache())
    assert resolve(target, question(), 0.0)[1]
    payload, was_asked = resolve(target, question(id=8), 20.0)
    assert not was_asked
    assert DNS(payload).an[0].ttl == 40
    assert resolve(target, question(), 61.0)[1]
    assert target.stats["cached"] == 1


def test_without_a_cache_it_asks_each_time() -> None:
    target = DnsService({}, AT)
    assert resolve(target, question(), 0.0)[1]
    assert resolve(target, question(), 0.0)[1]


def test_other_resolvers_may_say_otherwise() -> None:
    current = [Resolver("192.0.2.53")]
    target = DnsService({}, lambda now: current, cache=DnsCache())
    assert resolve(target, question(), 0.0)[1]
    assert not resolve(target, question(), 0.0)[1]
    current = [Resolver("192.0.2.54")]
    assert resolve(target, question(), 0.0)[1]


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("corp.test", "192.0.2.1"),
        ("x.CORP.test", "192.0.2.1"),
        ("x.lab.corp.test", "192.0.2.2"),
        ("xcorp.test", "192.0.2.53"),
        ("test", "192.0.2.53"),
        ("a.blocked.test", None),
    ],
)
def test_a_domain_may_have_resolvers_of_its_own(name: str, asked: str | None) -> None:
    domains = {
        "corp.test": [Resolver("192.0.2.1")],
        "Lab.corp.test": [Resolver("192.0.2.2")],
        "blocked.test": [],
    }
    target = DnsService({}, AT, domains=domains)
    (action,) = target.handle_query(question(name), GUEST, False, 0.0)
    if asked is None:
        assert isinstance(action, Answer)
        assert DNS(action.payload).rcode == 2
    else:
        assert isinstance(action, SendToResolver)
        assert action.resolver.address == asked


@given(st.binary(max_size=200), st.booleans())
def test_no_answer_raises_anything(octets: bytes, with_question: bool) -> None:
    asked = question()
    answer = (
        asked[:2] + b"\x81\x80" + asked[4:12] + asked[12:] + octets if with_question else octets
    )
    cache = DnsCache()
    cache.store(DnsQuery.parse(asked), answer, 0.0)
    cache.answer(DnsQuery.parse(asked), 0.0)
