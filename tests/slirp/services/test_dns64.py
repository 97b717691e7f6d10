"""DNS64 through the DNS service, clause by clause of RFC 6147; scapy is the other side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRROPT, DNSRRSOA

from slirp.address import Prefix, addr_from_text
from slirp.config_fields import Resolver
from slirp.ip.nat64 import Nat64
from slirp.services import dns as service
from slirp.services.dns import Action, Answer, DnsService, Forget, SendToResolver
from slirp.services.dns64 import IPV4ONLY, IPV4ONLY_ADDRS, Dns64
from slirp.services.zones import Zones

RESOLVER = Resolver("192.0.2.53")
SECOND = Resolver("192.0.2.54")
GUEST = "guest"
NAMES = {
    IPV4ONLY: IPV4ONLY_ADDRS,
    "four.slirp.internal": [addr_from_text("10.0.2.2")],
    "both.slirp.internal": [addr_from_text("10.0.2.3"), addr_from_text("fd00::3")],
}


def target(*resolvers: Resolver, prefix: str = "64:ff9b::/96") -> DnsService:
    dns64 = Dns64(Nat64(Prefix.from_text(prefix)))
    return DnsService(NAMES, resolvers or (RESOLVER,), lambda size: b"\1\1", dns64=dns64)


def query(name: str = "example.org", qtype: str = "AAAA", **fields: Any) -> bytes:
    return bytes(DNS(id=7, rd=1, qd=DNSQR(qname=name, qtype=qtype), **fields))


def ask(to: DnsService, payload: bytes, over_tcp: bool = False) -> list[Action]:
    return to.handle_query(payload, GUEST, over_tcp, 0.0)


def sent(actions: Sequence[Action]) -> SendToResolver:
    (found,) = [action for action in actions if isinstance(action, SendToResolver)]
    return found


def asked(actions: Sequence[Action]) -> tuple[bytes, int]:
    """Name and type of the question that goes out."""
    question = DNS(sent(actions).payload).qd[0]
    return question.qname, question.qtype


def answered(actions: Sequence[Action]) -> DNS:
    (found,) = [action for action in actions if isinstance(action, Answer)]
    return DNS(found.payload)


def reply(actions: Sequence[Action], *records: DNSRR, **fields: Any) -> bytes:
    out = DNS(sent(actions).payload)
    return bytes(DNS(id=out.id, qr=1, rd=1, ra=1, qd=out.qd, **{"an": list(records), **fields}))


def answer(
    to: DnsService, actions: Sequence[Action], *records: DNSRR, **fields: Any
) -> list[Action]:
    out = sent(actions)
    return to.handle_answer(out.resolver, reply(actions, *records, **fields), out.token, 1.0)


def a(name: str = "example.org", rdata: str = "192.0.2.1", ttl: int = 60) -> DNSRR:
    return DNSRR(rrname=name, type="A", rdata=rdata, ttl=ttl)


def aaaa(rdata: str, name: str = "example.org") -> DNSRR:
    return DNSRR(rrname=name, type="AAAA", rdata=rdata, ttl=60)


def soa(ttl: int) -> DNSRRSOA:
    return DNSRRSOA(rrname="example.org", mname="ns.example.org", rname="root", ttl=ttl)


def addrs(seen: DNS) -> list[str]:
    return [record.rdata for record in seen.an if record.type == 28]


def resolved(*records: DNSRR, payload: bytes = b"", **fields: Any) -> DNS:
    """The answer to AAAA where there is none, and A has these records."""
    to = target()
    out = answer(to, ask(to, payload or query()))
    assert asked(out) == (b"example.org.", 1)
    return answered(answer(to, out, *records, **fields))


# Synthesis


def test_a_host_without_ipv6_gets_an_address() -> None:
    seen = resolved(a(rdata="192.0.2.1"), a(rdata="192.0.2.2"))
    assert addrs(seen) == ["64:ff9b::c000:201", "64:ff9b::c000:202"]
    assert (seen.id, seen.qr, seen.rd, seen.ra, seen.rcode, seen.aa, seen.ad) == (
        7,
        1,
        1,
        1,
        0,
        0,
        0,
    )
    assert (seen.qd[0].qname, seen.qd[0].qtype) == (b"example.org.", 28)
    assert seen.an[0].rrname == b"example.org."


def test_the_question_comes_back_as_it_was_spelled() -> None:
    to = target()
    out = answer(to, ask(to, query("EXAMPLE.org")))
    seen = answered(answer(to, out, a("EXAMPLE.org")))
    assert seen.qd[0].qname == b"EXAMPLE.org."
    assert addrs(seen) == ["64:ff9b::c000:201"]


def test_another_prefix() -> None:
    to = target(prefix="2001:db8::/32")
    seen = answered(answer(to, answer(to, ask(to, query())), a()))
    assert addrs(seen) == ["2001:db8:c000:201::"]


def test_a_query_for_a_is_relayed_as_ever() -> None:
    to = target()
    out = ask(to, query(qtype="A"))
    assert answered(answer(to, out, a())).an[0].rdata == "192.0.2.1"


def test_each_attempt_is_forgotten_once() -> None:
    to = target()
    first = ask(to, query())
    second = answer(to, first)
    last = answer(to, second, a())
    forgotten = [x.token for x in (*second, *last) if isinstance(x, Forget)]
    assert forgotten == [sent(first).token, sent(second).token]
    assert to.pending == 0
    assert to.stats["synthesized"] == 1


# Existing addresses, §5.1.1 and §5.1.4


def test_what_there_is_is_the_answer() -> None:
    to = target()
    out = ask(to, query())
    octets = reply(out, aaaa("2001:db8::1"))
    (found,) = [
        x.payload
        for x in to.handle_answer(RESOLVER, octets, sent(out).token, 1.0)
        if isinstance(x, Answer)
    ]
    assert found[2:] == octets[2:]


def test_addresses_that_are_ipv4_inside_do_not_count() -> None:
    to = target()
    out = answer(to, ask(to, query()), aaaa("::ffff:192.0.2.9"))
    assert asked(out) == (b"example.org.", 1)
    assert addrs(answered(answer(to, out, a()))) == ["64:ff9b::c000:201"]


def test_among_others_they_are_left_out() -> None:
    to = target()
    out = ask(to, query())
    seen = answered(answer(to, out, aaaa("::ffff:192.0.2.9"), aaaa("2001:db8::1")))
    assert addrs(seen) == ["2001:db8::1"]


def nowhere() -> DnsService:
    """On a host without IPv6."""
    dns64 = Dns64(Nat64(), reaches_ipv6=lambda: False)
    return DnsService({}, (RESOLVER,), lambda size: b"\1\1", dns64=dns64)


def test_addresses_that_lead_nowhere_do_not_count() -> None:
    to = nowhere()
    out = answer(to, ask(to, query()), aaaa("2001:db8::1"))
    assert asked(out) == (b"example.org.", 1)
    assert addrs(answered(answer(to, out, a()))) == ["64:ff9b::c000:201"]


@pytest.mark.parametrize("rcode", [0, 2])
def test_where_there_is_nothing_better_they_are_the_answer(rcode: int) -> None:
    to = nowhere()
    out = answer(to, ask(to, query()), aaaa("2001:db8::1"))
    seen = answered(answer(to, out, rcode=rcode))
    assert (addrs(seen), seen.rcode, seen.id) == (["2001:db8::1"], 0, 7)


# Errors, §5.1.2, §5.1.3, §5.1.6


def test_a_name_that_does_not_exist_does_not() -> None:
    to = target()
    assert answered(answer(to, ask(to, query()), rcode=3, ns=[soa(90)])).rcode == 3


@pytest.mark.parametrize("rcode", [1, 2, 4, 5])
def test_an_error_of_aaaa_is_an_empty_answer(rcode: int) -> None:
    to = target()
    out = answer(to, ask(to, query()), rcode=rcode)
    assert addrs(answered(answer(to, out, a()))) == ["64:ff9b::c000:201"]


def test_silence_is_an_empty_answer() -> None:
    to = target()
    ask(to, query())
    for now in (service.ATTEMPT_FOR, 2 * service.ATTEMPT_FOR):
        to.handle_timeout(now)
    out = to.handle_timeout(service.QUERY_FOR)
    assert asked(out) == (b"example.org.", 1)
    assert addrs(answered(answer(to, out, a()))) == ["64:ff9b::c000:201"]


def test_silence_on_both_is_servfail() -> None:
    to = target()
    ask(to, query())
    now, last = 0.0, []
    while to.pending:
        now = to.poll_at() or now
        last = to.handle_timeout(now)
    assert answered(last).rcode == 2
    assert answered(last).qd[0].qtype == 28
    assert now == 2 * service.QUERY_FOR


def test_the_next_resolver_is_asked_before_a_is() -> None:
    to = target(RESOLVER, SECOND)
    out = answer(to, ask(to, query()), rcode=2)
    assert (sent(out).resolver, asked(out)) == (SECOND, (b"example.org.", 28))
    out = answer(to, out)
    assert (sent(out).resolver, asked(out)) == (RESOLVER, (b"example.org.", 1))


@pytest.mark.parametrize("rcode", [2, 3, 5])
def test_an_error_of_a_is_the_answer(rcode: int) -> None:
    seen = resolved(rcode=rcode)
    assert (seen.rcode, seen.ancount, seen.qd[0].qtype) == (rcode, 0, 28)


def test_a_host_with_no_address_at_all() -> None:
    seen = resolved()
    assert (seen.rcode, seen.ancount) == (0, 0)


def test_an_answer_that_cannot_be_read_is_an_error() -> None:
    to = target()
    out = answer(to, ask(to, query()))
    octets = reply(out, a())[:-3]
    assert answered(to.handle_answer(RESOLVER, octets, sent(out).token, 1.0)).rcode == 2


def test_what_does_not_fit_is_asked_again_over_tcp() -> None:
    assert resolved(tc=1).tc == 1
    to = target()
    assert answered(answer(to, ask(to, query()), tc=1)).tc == 1  # and no A is asked for


# Lifetimes, §5.1.7


@pytest.mark.parametrize(
    ("authority", "ttl", "expected"),
    [([90], 300, 90), ([90], 60, 60), ([], 60, 60), ([], 3600, 600)],
)
def test_how_long_it_lasts(authority: list[int], ttl: int, expected: int) -> None:
    to = target()
    out = answer(to, ask(to, query()), ns=[soa(seconds) for seconds in authority])
    seen = answered(answer(to, out, a(ttl=ttl)))
    assert seen.an[0].ttl == expected


# Chains, §5.1.5


def test_a_chain_goes_in_front() -> None:
    seen = resolved(
        DNSRR(rrname="example.org", type="CNAME", rdata="www.example.net", ttl=300),
        DNSRR(rrname="www.example.net", type="CNAME", rdata="cdn.example.net", ttl=300),
        a("cdn.example.net"),
    )
    assert [(r.rrname, r.type) for r in seen.an] == [
        (b"example.org.", 5),
        (b"www.example.net.", 5),
        (b"cdn.example.net.", 28),
    ]
    assert seen.an[1].rdata == b"cdn.example.net."


def test_a_chain_that_aaaa_led_along_is_no_address() -> None:
    to = target()
    alias = DNSRR(rrname="example.org", type="CNAME", rdata="cdn.example.net", ttl=300)
    out = answer(to, ask(to, query()), alias)
    assert asked(out) == (b"example.org.", 1)
    assert addrs(answered(answer(to, out, alias, a("cdn.example.net")))) == ["64:ff9b::c000:201"]


# DNSSEC, §5.5


def edns(do: int) -> list[DNSRROPT]:
    return [DNSRROPT(rclass=1232, z=do << 15)]


def test_who_validates_by_himself_gets_what_there_is() -> None:
    to = target()
    out = ask(to, query(cd=1, ar=edns(1)))
    seen = answered(answer(to, out))
    assert (seen.ancount, seen.rcode) == (0, 0)


@pytest.mark.parametrize(("cd", "do"), [(0, 1), (1, 0), (0, 0)])
def test_who_leaves_it_to_others_gets_an_address(cd: int, do: int) -> None:
    signature = DNSRR(rrname="example.org", type=46, rdata=bytes(40), ttl=60)
    seen = resolved(a(), signature, payload=query(cd=cd, ar=edns(do)), ad=1)
    assert addrs(seen) == ["64:ff9b::c000:201"]
    assert (seen.ancount, seen.ad) == (1, 0)
    assert seen.ar[0].rclass == service.LOCAL_UDP_SIZE


# Names of the network's own, RFC 7050


def local(name: str, qtype: str = "AAAA") -> DNS:
    return answered(ask(target(), query(name, qtype)))


def test_the_prefix_is_found_by_the_name_that_has_ipv4_only() -> None:
    assert addrs(local("ipv4only.arpa")) == ["64:ff9b::c000:aa", "64:ff9b::c000:ab"]
    assert [r.rdata for r in local("ipv4only.arpa", "A").an] == ["192.0.0.170", "192.0.0.171"]
    assert local("170.0.0.192.in-addr.arpa", "PTR").an[0].rdata == b"ipv4only.arpa."


@pytest.mark.parametrize("name", ["x.ipv4only.arpa", "a.b.IPv4only.ARPA"])
@pytest.mark.parametrize("qtype", ["A", "AAAA", "TXT"])
def test_there_is_nothing_below_it(name: str, qtype: str) -> None:
    """RFC 8880 §7.1: nobody is asked."""
    dns64 = Dns64(Nat64(Prefix.from_text("64:ff9b::/96")))
    to = DnsService(Zones(NAMES, closed=[IPV4ONLY]), (RESOLVER,), dns64=dns64)
    seen = answered(ask(to, query(name, qtype)))
    assert (seen.rcode, seen.ancount, seen.aa) == (3, 0, 1)
    nothing = answered(ask(to, query("ipv4only.arpa", "TXT")))
    assert (nothing.rcode, nothing.ancount, nothing.aa) == (0, 0, 1)
    assert asked(ask(to, query(f"not-{IPV4ONLY}", qtype)))[0] == b"not-ipv4only.arpa."


def test_a_name_of_ones_own_without_ipv6() -> None:
    assert addrs(local("four.slirp.internal")) == ["64:ff9b::a00:202"]
    assert addrs(local("both.slirp.internal")) == ["fd00::3"]


def test_without_dns64_the_name_is_nobodys() -> None:
    to = DnsService({}, (RESOLVER,))
    assert asked(ask(to, query("ipv4only.arpa"))) == (b"ipv4only.arpa.", 28)


# PTR, §5.3.1


def reverse(text: str) -> str:
    return ".".join(reversed(addr_from_text(text).hex())) + ".ip6.arpa"


def test_an_address_leads_to_the_name_of_the_one_inside() -> None:
    to = target()
    name = reverse("64:ff9b::192.0.2.1")
    out = ask(to, query(name, "PTR"))
    assert asked(out) == (b"1.2.0.192.in-addr.arpa.", 12)
    pointer = DNSRR(rrname="1.2.0.192.in-addr.arpa", type="PTR", rdata="example.org", ttl=60)
    seen = answered(answer(to, out, pointer))
    assert seen.qd[0].qname == name.encode() + b"."
    assert [(r.rrname, r.type, r.rdata) for r in seen.an] == [
        (name.encode() + b".", 5, b"1.2.0.192.in-addr.arpa."),
        (b"1.2.0.192.in-addr.arpa.", 12, b"example.org."),
    ]


def test_an_address_of_ones_own_inside() -> None:
    to = DnsService(
        {"four": [addr_from_text("10.0.2.2")], "six": [addr_from_text("fd00::2")]},
        (RESOLVER,),
        dns64=Dns64(Nat64()),
    )
    seen = answered(ask(to, query(reverse("64:ff9b::10.0.2.2"), "PTR")))
    assert seen.an[-1].rdata == b"four."


def test_a_name_that_is_not_there() -> None:
    to = target()
    out = ask(to, query(reverse("64:ff9b::192.0.2.1"), "PTR"))
    seen = answered(answer(to, out, rcode=3))
    assert (seen.rcode, seen.ancount) == (3, 1)
    out = ask(to, query(reverse("64:ff9b::192.0.2.1"), "PTR"))
    assert answered(answer(to, out, rcode=2)).ancount == 0


@pytest.mark.parametrize(
    "name",
    [
        reverse("fd00::192.0.2.1"),
        reverse("64:ff9b::192.0.2.1").replace("1", "g", 1),
        "1.0.ip6.arpa",
        "x." + reverse("64:ff9b::192.0.2.1"),
        reverse("64:ff9b::192.0.2.1")[2:],
    ],
)
def test_other_names_are_asked_for_as_they_are(name: str) -> None:
    assert asked(ask(target(), query(name, "PTR"))) == (name.encode() + b".", 12)


@given(st.lists(st.tuples(st.sampled_from("aAcx"), st.binary(max_size=60)), max_size=6))
def test_whatever_resolvers_say_one_answer_comes(said: list[tuple[str, bytes]]) -> None:
    """One answer for each question, and nothing is left behind."""
    to = target()
    actions, answers = ask(to, query()), 0
    for kind, junk in said:
        answers += sum(isinstance(action, Answer) for action in actions)
        if answers:
            break
        out = sent(actions)
        octets = reply(actions, *({"a": [a()], "A": [aaaa("::ffff:1.2.3.4")]}.get(kind, [])))
        octets = octets[: len(octets) - len(junk)] if kind == "c" else octets + junk
        actions = to.handle_answer(out.resolver, octets, out.token, 1.0) or actions
    else:
        answers += sum(isinstance(action, Answer) for action in actions)
    now = 1.0
    while to.pending:
        now = max(now, to.poll_at() or now)
        actions = to.handle_timeout(now)
        answers += sum(isinstance(action, Answer) for action in actions)
    assert answers == 1
