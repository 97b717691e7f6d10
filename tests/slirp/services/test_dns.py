"""The DNS service: own names, relay, failover; what it answers is read by scapy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRROPT

from slirp.config_fields import Resolver
from slirp.errors import MalformedPacket
from slirp.services import dns as service
from slirp.services import zones
from slirp.services.dns import Action, Answer, DnsService, Forget, SendToResolver
from slirp.wire import dns as wire
from slirp.wire.dns import DnsHeader

NAMES = {
    "gateway.slirp.internal": (bytes((10, 0, 2, 2)), bytes.fromhex("fec0" + "00" * 13 + "02")),
    "host.slirp.internal": (bytes((10, 0, 2, 2)),),
}
GUEST = (bytes((10, 0, 2, 15)), 40000)
OTHER = (bytes((10, 0, 2, 16)), 40000)
LATER = service.ATTEMPT_FOR  # seconds until a second resolver is asked
AT_ONCE = service.QUERY_FOR / service.ATTEMPT_FOR  # attempts of one query that are out together


def counting() -> Callable[[int], bytes]:
    """Ids 0x0100, 0x0101 …, so that a test can tell attempts apart."""
    numbers: Iterator[int] = iter(range(0x0100, 0x10000))
    return lambda size: next(numbers).to_bytes(size)


def at(address: str) -> Resolver:
    return Resolver(address)


def relay(*resolvers: Resolver) -> DnsService:
    return DnsService(NAMES, resolvers, counting())


def query(
    name: str = "example.org", qtype: str | int = "A", ident: int = 7, edns: int | None = None
) -> bytes:
    opt = [] if edns is None else [DNSRROPT(rclass=edns)]
    return bytes(DNS(id=ident, rd=1, qd=DNSQR(qname=name, qtype=qtype), ar=opt))


def ask(
    target: DnsService, payload: bytes, now: float = 0.0, over_tcp: bool = False
) -> list[Action]:
    return target.handle_query(memoryview(payload), GUEST, over_tcp, now)


def sent(actions: Sequence[Action]) -> SendToResolver:
    (found,) = [action for action in actions if isinstance(action, SendToResolver)]
    return found


def answered(actions: Sequence[Action]) -> DNS:
    (found,) = [action for action in actions if isinstance(action, Answer)]
    assert found.client == GUEST
    return DNS(found.payload)


def forgotten(actions: Sequence[Action]) -> set[int]:
    return {action.token for action in actions if isinstance(action, Forget)}


def reply(
    to: SendToResolver, rcode: int = 0, tc: int = 0, count: int = 1, **extra: object
) -> bytes:
    asked = DNS(to.payload)
    records = [DNSRR(rrname=asked.qd[0].qname, rdata="192.0.2.1", ttl=60)] * count
    fields = {"id": asked.id, "qr": 1, "rd": 1, "ra": 1, "rcode": rcode, "tc": tc} | extra
    return bytes(DNS(**{"qd": asked.qd, "an": records} | fields))


# Names of the network's own


def local(name: str, qtype: str | int = "A", **more: int) -> DNS:
    return answered(ask(relay(at("192.0.2.53")), query(name, qtype, **more)))


def test_the_gateways_name_has_an_address() -> None:
    seen = local("gateway.slirp.internal", ident=0xBEEF)
    assert (seen.id, seen.qr, seen.aa, seen.rd, seen.ra, seen.rcode) == (0xBEEF, 1, 1, 1, 1, 0)
    assert seen.qd[0].qname == b"gateway.slirp.internal."
    (record,) = seen.an
    assert (record.rdata, record.ttl) == ("10.0.2.2", zones.LOCAL_TTL)
    assert local("gateway.slirp.internal", "AAAA").an[0].rdata == "fec0::2"


def test_a_name_is_the_same_in_any_case_and_comes_back_as_asked() -> None:
    seen = local("GateWay.SLIRP.Internal")
    assert seen.qd[0].qname == b"GateWay.SLIRP.Internal."
    assert seen.an[0].rrname == b"GateWay.SLIRP.Internal."


@pytest.mark.parametrize("qtype", ["AAAA", "MX", "TXT", "HTTPS", 65280])
def test_a_type_that_a_name_has_not_is_no_data(qtype: str | int) -> None:
    seen = local("host.slirp.internal", qtype)
    assert (seen.rcode, seen.aa, seen.ancount) == (0, 1, 0)
    assert seen.qd[0].qname == b"host.slirp.internal."


def test_any_gets_everything() -> None:
    seen = local("gateway.slirp.internal", "ALL")
    assert [record.rdata for record in seen.an] == ["10.0.2.2", "fec0::2"]


def test_addresses_lead_back_to_their_first_name() -> None:
    seen = local("2.2.0.10.in-addr.arpa", "PTR")
    assert [record.rdata for record in seen.an] == [b"gateway.slirp.internal."]
    reverse = ".".join("2" + "0" * 27 + "0cef") + ".ip6.arpa"
    assert local(reverse, "PTR").an[0].rdata == b"gateway.slirp.internal."
    assert local("2.2.0.10.in-addr.arpa", "A").ancount == 0


def test_edns_is_answered_to_who_uses_it() -> None:
    assert local("host.slirp.internal").arcount == 0
    assert local("host.slirp.internal", edns=4096).ar[0].rclass == service.LOCAL_UDP_SIZE
    opt = DNSRROPT(rclass=4096, version=1)
    seen = answered(ask(relay(), bytes(DNS(id=1, qd=DNSQR(qname="host.slirp.internal"), ar=[opt]))))
    assert (seen.rcode, seen.ar[0].extrcode, seen.ancount) == (0, 1, 0)  # BADVERS


def test_many_addresses_are_cut_for_udp_and_whole_over_tcp() -> None:
    many = {"many": tuple(bytes((10, 0, 3, n)) for n in range(60))}
    target = DnsService(many)
    cut = answered(ask(target, query("many")))
    assert (cut.tc, cut.aa, cut.ancount, cut.qd[0].qname) == (1, 1, 0, b"many.")
    assert answered(ask(target, query("many", edns=1232))).ancount == 60
    assert answered(ask(target, query("many"), over_tcp=True)).ancount == 60


@pytest.mark.parametrize(
    "payload",
    [
        query("below.gateway.slirp.internal"),
        query("slirp.internal"),
        bytes(DNS(id=1, qd=DNSQR(qname="gateway.slirp.internal", qclass="CH"))),
        bytes(DNS(id=1, opcode=5, qd=DNSQR(qname="gateway.slirp.internal"))),
    ],
)
def test_what_is_not_ours_to_answer_is_relayed(payload: bytes) -> None:
    assert sent(ask(relay(at("192.0.2.53")), payload)).payload[2:] == payload[2:]


# The relay


def test_a_query_goes_out_and_comes_back_unchanged_but_for_its_id() -> None:
    target = relay(at("192.0.2.53"))
    payload = query("eXample.org", "SRV", ident=0xBEEF, edns=1400)
    out = sent(ask(target, payload))
    assert out == SendToResolver(at("192.0.2.53"), b"\1\0" + payload[2:], out.token, False)
    back = reply(out, count=3)
    actions = target.handle_answer(at("192.0.2.53"), memoryview(back), out.token, 0.1)
    assert actions == [Answer(GUEST, b"\xbe\xef" + back[2:], False), Forget(out.token)]
    assert target.pending == 0
    assert target.poll_at() is None
    assert target.stats == {"queries": 1, "relayed": 1}


def test_ids_are_random_by_default() -> None:
    target = DnsService({}, (at("192.0.2.53"),))
    idents = {sent(ask(target, query(ident=n))).payload[:2] for n in range(64)}
    assert len(idents) > 50


def test_nxdomain_is_passed_on() -> None:
    target = relay(at("192.0.2.53"), at("192.0.2.54"))
    out = sent(ask(target, query()))
    actions = target.handle_answer(out.resolver, reply(out, rcode=3, count=0), out.token, 0.1)
    assert answered(actions).rcode == 3


def test_an_answer_must_be_to_what_was_asked() -> None:
    target = relay(at("192.0.2.53"))
    out = sent(ask(target, query()))
    right = reply(out)
    header = DnsHeader.parse(right)
    empty = header._replace(qdcount=0, ancount=0).emit()
    for wrong in (
        b"",
        right[:11],
        right[:20],
        b"\1\1" + right[2:],
        out.payload,
        header._replace(flags=header.flags | 0x2800).emit() + right[12:],
        reply(out, qd=DNSQR(qname="example.com")),
        reply(out, qd=DNSQR(qname="example.org", qtype="AAAA")),
        reply(out, qd=[DNSQR(qname="example.org")] * 2),
        empty,
        header._replace(qdcount=0, ancount=0, flags=wire.QR | wire.NXDOMAIN).emit(),
        right[:12] + b"\xc0\x0c\0\1\0\1",
    ):
        assert target.handle_answer(at("192.0.2.53"), wrong, out.token, 0.1) == []
    assert target.handle_answer(at("192.0.2.54"), right, out.token, 0.1) == []
    assert target.handle_answer(at("192.0.2.53"), right, out.token + 1, 0.1) == []
    assert target.stats["mismatched"] == 14
    assert answered(target.handle_answer(at("192.0.2.53"), right, out.token, 0.1)).ancount == 1


def test_the_case_of_the_question_may_change() -> None:
    target = relay(at("192.0.2.53"))
    out = sent(ask(target, query("EXAMPLE.org")))
    back = reply(out, qd=DNSQR(qname="example.ORG"))
    assert answered(target.handle_answer(at("192.0.2.53"), back, out.token, 0.1)).ancount == 1


def test_a_resolver_that_could_not_read_the_question_may_leave_it_out() -> None:
    target = relay(at("192.0.2.53"))
    out = sent(ask(target, query(edns=4096)))
    bare = out.payload[:2] + DnsHeader(0, wire.QR | wire.FORMERR, 0, 0, 0, 0).emit()[2:]
    assert answered(target.handle_answer(at("192.0.2.53"), bare, out.token, 0.1)).rcode == 1


def test_a_repeated_query_starts_nothing_new() -> None:
    target = relay(at("192.0.2.53"))
    ask(target, query())
    assert ask(target, query(), 1.0) == []
    assert target.stats["repeated"] == 1
    sent(ask(target, query(ident=8), 1.0))
    sent(ask(target, query(qtype="AAAA"), 1.0))
    sent(target.handle_query(query(), "another client", False, 1.0))
    assert target.pending == 4


@pytest.mark.parametrize(("edns", "limit"), [(None, 512), (0, 512), (100, 512), (1232, 1232)])
def test_an_answer_that_a_client_cannot_take_is_cut(edns: int | None, limit: int) -> None:
    target = relay(at("192.0.2.53"))
    out = sent(ask(target, query("a.example.org", edns=edns)))
    base = len(reply(out, count=0))
    fits = reply(out, count=0) + bytes(limit - base)
    (whole, _) = target.handle_answer(out.resolver, fits, out.token, 0.1)
    assert isinstance(whole, Answer)
    assert whole.payload[2:] == fits[2:]
    out = sent(ask(target, query("a.example.org", edns=edns)))
    over = out.payload[:2] + fits[2:] + b"\0"
    actions = target.handle_answer(out.resolver, over, out.token, 0.1)
    seen = answered(actions)
    assert (seen.tc, seen.id, seen.rcode, seen.ancount) == (1, 7, 0, 0)
    assert seen.qd[0].qname == b"a.example.org."
    assert seen.arcount == (edns is not None)


def test_the_largest_edns_size_is_what_a_datagram_holds() -> None:
    target = relay(at("192.0.2.53"))
    out = sent(ask(target, query(edns=65535)))
    back = reply(out, count=0)
    actions = target.handle_answer(out.resolver, back.ljust(65507, b"\0"), out.token, 0.1)
    assert answered(actions).tc == 0
    out = sent(ask(target, query(edns=65535)))
    back = reply(out, count=0)
    actions = target.handle_answer(out.resolver, back.ljust(65508, b"\0"), out.token, 0.1)
    assert answered(actions).tc == 1


def test_a_truncated_answer_makes_the_guest_come_over_tcp() -> None:
    target = relay(at("192.0.2.53"))
    out = sent(ask(target, query()))
    back = reply(out, tc=1, count=0)
    assert answered(target.handle_answer(out.resolver, back, out.token, 0.1)).tc == 1
    out = sent(ask(target, query(), over_tcp=True))
    assert out.over_tcp
    (answer, _) = target.handle_answer(out.resolver, reply(out, count=100), out.token, 0.2)
    assert isinstance(answer, Answer)
    assert answer.over_tcp
    assert DNS(answer.payload).ancount == 100


# Failover, and the truth when nobody answers


def test_silence_asks_the_next_resolver_while_the_first_may_still_answer() -> None:
    target = relay(at("192.0.2.1"), at("192.0.2.2"))
    first = sent(ask(target, query(), 10.0))
    assert target.poll_at() == 10.0 + LATER
    assert target.handle_timeout(9.9 + LATER) == []
    actions = target.handle_timeout(10.0 + LATER)
    second = sent(actions)
    assert (first.resolver, second.resolver) == (at("192.0.2.1"), at("192.0.2.2"))
    assert first.payload[:2] != second.payload[:2]
    assert forgotten(actions) == set()
    actions = target.handle_answer(at("192.0.2.1"), reply(first), first.token, 12.0)
    assert answered(actions).ancount == 1
    assert forgotten(actions) == {first.token, second.token}
    assert target.handle_answer(at("192.0.2.2"), reply(second), second.token, 13.0) == []


def test_silence_of_all_ends_in_servfail() -> None:
    target = relay(at("192.0.2.1"), at("192.0.2.2"))
    actions = ask(target, query(ident=0xBEEF, edns=1232), 0.0)
    asked = [sent(actions)]
    while (deadline := target.poll_at()) is not None and deadline < service.QUERY_FOR:
        asked.append(sent(target.handle_timeout(deadline)))
    assert [out.resolver for out in asked] == [
        at("192.0.2.1"),
        at("192.0.2.2"),
        at("192.0.2.1"),
    ]
    actions = target.handle_timeout(service.QUERY_FOR)
    seen = answered(actions)
    assert (seen.id, seen.rcode, seen.qr, seen.aa, seen.ancount) == (0xBEEF, 2, 1, 0, 0)
    assert seen.qd[0].qname == b"example.org."
    assert forgotten(actions) == {out.token for out in asked}
    assert (target.pending, target.poll_at()) == (0, None)


def test_the_guest_hears_of_failure_before_it_asks_again() -> None:
    assert service.QUERY_FOR < 5.0  # resolv.conf(5): the default timeout of a stub resolver


def test_a_lone_resolver_is_asked_again() -> None:
    target = relay(at("192.0.2.1"))
    ask(target, query())
    for turn in range(1, service.SENDS_MAX):
        assert sent(target.handle_timeout(turn * LATER)).resolver == at("192.0.2.1")


@pytest.mark.parametrize("rcode", [wire.SERVFAIL, wire.REFUSED])
def test_a_resolver_that_fails_sends_the_query_on_at_once(rcode: int) -> None:
    target = relay(at("192.0.2.1"), at("192.0.2.2"))
    first = sent(ask(target, query()))
    actions = target.handle_answer(at("192.0.2.1"), reply(first, rcode, count=0), first.token, 0.1)
    second = sent(actions)
    assert forgotten(actions) == {first.token}
    assert second.resolver == at("192.0.2.2")
    actions = target.handle_answer(at("192.0.2.2"), reply(second), second.token, 0.2)
    assert answered(actions).ancount == 1
    # It keeps its place: the other one may not know the names of a private network.
    assert sent(ask(target, query(ident=8), 1.0)).resolver == at("192.0.2.1")


def test_when_all_fail_the_guest_hears_what_the_last_one_said() -> None:
    target = relay(at("192.0.2.1"), at("192.0.2.2"))
    first = sent(ask(target, query()))
    second = sent(target.handle_answer(at("192.0.2.1"), reply(first, 2, count=0), first.token, 0.1))
    actions = target.handle_answer(at("192.0.2.2"), reply(second, 5, count=0), second.token, 0.2)
    assert answered(actions).rcode == wire.REFUSED
    assert target.pending == 0


def test_unreachable_resolvers_end_in_servfail_at_once() -> None:
    target = relay(at("192.0.2.1"), at("::1"))
    first = sent(ask(target, query()))
    second = sent(target.handle_failure(first.token, 0.0))
    assert second.resolver == at("::1")
    actions = target.handle_failure(second.token, 0.0)
    assert answered(actions).rcode == wire.SERVFAIL
    assert forgotten(actions) == {second.token}
    assert target.handle_failure(second.token, 0.0) == []


def test_a_failure_waits_for_the_attempt_that_is_still_out() -> None:
    target = relay(at("192.0.2.1"), at("192.0.2.2"))
    first = sent(ask(target, query()))
    second = sent(target.handle_timeout(LATER))
    third = sent(target.handle_failure(second.token, LATER + 0.1))
    assert third.resolver == at("192.0.2.1")
    actions = target.handle_failure(third.token, LATER + 0.2)
    assert forgotten(actions) == {third.token}
    assert target.pending == 1
    assert target.handle_timeout(2 * LATER + 0.1) == []
    assert (
        answered(target.handle_answer(at("192.0.2.1"), reply(first), first.token, 4.0)).ancount == 1
    )


def test_a_query_with_nobody_left_to_ask_waits_for_its_end() -> None:
    target = relay(at("192.0.2.1"))
    first = sent(ask(target, query()))
    second = sent(target.handle_timeout(LATER))
    refused = reply(second, wire.REFUSED, count=0)  # so it will not be asked a third time
    assert forgotten(target.handle_answer(at("192.0.2.1"), refused, second.token, 2.0)) == {
        second.token
    }
    assert target.handle_timeout(2 * LATER) == []
    assert target.poll_at() == service.QUERY_FOR
    actions = target.handle_timeout(service.QUERY_FOR)
    assert (answered(actions).rcode, forgotten(actions)) == (wire.REFUSED, {first.token})


def test_no_resolver_is_servfail_not_nxdomain() -> None:
    target = relay()
    seen = answered(ask(target, query()))
    assert (seen.rcode, seen.qd[0].qname) == (2, b"example.org.")
    assert target.stats["no_resolver"] == 1


def test_a_silent_resolver_is_asked_last_for_a_while() -> None:
    target = relay(at("192.0.2.1"), at("192.0.2.2"))
    ask(target, query(), 0.0)
    second = sent(target.handle_timeout(LATER))
    target.handle_answer(at("192.0.2.2"), reply(second), second.token, LATER)
    assert sent(ask(target, query(ident=8), 2.2)).resolver == at("192.0.2.2")
    assert sent(ask(target, query(ident=9), LATER + service.SUSPECT_FOR)).resolver == Resolver(
        "192.0.2.1"
    )


def test_a_resolver_that_answers_after_all_is_trusted_again() -> None:
    target = relay(at("192.0.2.1"), at("192.0.2.2"))
    first = sent(ask(target, query(), 0.0))
    target.handle_timeout(LATER)
    target.handle_answer(at("192.0.2.1"), reply(first), first.token, 2.1)
    assert sent(ask(target, query(ident=8), 2.2)).resolver == at("192.0.2.1")


def test_the_memory_of_silent_resolvers_is_bounded() -> None:
    current: list[Resolver] = []
    target = DnsService({}, lambda now: current)
    for number in range(3 * service.SUSPECTS_MAX):
        current[:] = [at(f"192.0.2.{number}")]
        target.handle_failure(sent(ask(target, query())).token, 0.0)
    assert len(target._suspects) <= service.SUSPECTS_MAX


def test_resolvers_are_followed_when_they_change() -> None:
    by_time = {
        0.0: (at("192.0.2.1"),),
        1.0: (),
        2.0: (at("::1"), at("::1"), at("fe80::1%eth0")),
    }
    target = DnsService({}, lambda now: by_time[now])
    assert sent(ask(target, query(ident=1), 0.0)).resolver == at("192.0.2.1")
    assert answered(ask(target, query(ident=2), 1.0)).rcode == 2
    out = sent(ask(target, query(ident=3), 2.0))
    assert out.resolver == at("::1")
    assert sent(target.handle_failure(out.token, 2.0)).resolver == at("fe80::1%eth0")


def test_over_tcp_a_resolver_without_tcp_is_asked_over_udp_in_the_end() -> None:
    target = relay(at("192.0.2.1"), at("192.0.2.2"))
    out = sent(ask(target, query(), over_tcp=True))
    path = []
    for _ in range(3):
        path.append((out.resolver, out.over_tcp))
        out = sent(target.handle_failure(out.token, 0.0))
    path.append((out.resolver, out.over_tcp))
    assert path == [
        (at("192.0.2.1"), True),
        (at("192.0.2.2"), True),
        (at("192.0.2.1"), False),
        (at("192.0.2.2"), False),
    ]
    cut = reply(out, tc=1, count=0)  # half an answer is none to who came over TCP
    actions = target.handle_answer(at("192.0.2.2"), cut, out.token, 0.0)
    assert answered(actions).rcode == wire.SERVFAIL
    assert set(target._suspects) == {at("192.0.2.1")}  # which was silent over UDP


def test_zone_transfers_are_refused() -> None:
    seen = answered(ask(relay(at("192.0.2.1")), query(qtype="AXFR"), over_tcp=True))
    assert seen.rcode == wire.REFUSED


# Bounds


def test_pending_queries_are_bounded() -> None:
    target = relay(at("192.0.2.1"))
    for ident in range(service.PENDING_MAX):
        sent(ask(target, query(ident=ident)))
    assert answered(ask(target, query(ident=9999))).rcode == wire.SERVFAIL
    assert target.stats["too_many"] == 1
    answered(ask(target, query("host.slirp.internal")))
    actions = target.handle_timeout(service.QUERY_FOR)
    assert len(forgotten(actions)) == service.PENDING_MAX
    assert len(target._attempts) == target.pending == 0
    sent(ask(target, query(ident=9999), 11.0))


def test_whoever_has_most_pending_makes_room_for_others() -> None:
    target = relay(at("192.0.2.1"))
    for ident in range(service.PENDING_MAX):
        port = "greedy" if ident % 4 else "other"
        sent(target.handle_query(query(ident=ident), GUEST, False, 0.0, port))
    actions = target.handle_query(query(ident=9999), OTHER, False, 0.0, "modest")
    displaced = answered(actions)
    assert (displaced.id, displaced.rcode) == (1, wire.SERVFAIL)
    assert sent(actions).port == "modest"
    assert target.pending == service.PENDING_MAX
    again = target.handle_query(query(ident=9998), GUEST, False, 0.0, "greedy")
    assert (answered(again).id, target.pending) == (9998, service.PENDING_MAX)


def test_a_port_that_is_gone_has_no_queries() -> None:
    target = relay(at("192.0.2.1"))
    kept = sent(target.handle_query(query(ident=1), GUEST, False, 0.0, "port"))
    gone = sent(target.handle_query(query(ident=2), OTHER, False, 0.0, "other port"))
    assert target.forget_port("other port") == [Forget(gone.token)]
    assert target.pending == 1
    assert answered(target.handle_answer(kept.resolver, reply(kept), kept.token, 0.1)).rcode == 0


def test_a_client_that_is_gone_is_forgotten() -> None:
    target = relay(at("192.0.2.1"))
    mine = {sent(ask(target, query(ident=n))).token for n in range(3)}
    other = sent(target.handle_query(query(), "another client", True, 0.0))
    assert forgotten(target.forget_client(GUEST)) == mine
    assert target.pending == 1
    assert set(target._attempts) == {other.token}
    assert target.forget_client(GUEST) == []


def test_malformed_queries_reach_nobody() -> None:
    target = relay(at("192.0.2.1"))
    for payload in (b"", query()[:20], b"\0" * 12, reply(sent(ask(relay(at("a")), query())))):
        with pytest.raises(MalformedPacket):
            ask(target, payload)
    assert target.pending == 0
    assert target.stats == {}


events = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("answer"), st.integers(0, 30), st.sampled_from([0, 2, 3, 5])),
    st.tuples(st.just("fail"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("wait"), st.sampled_from([0, 2, 3, 4, 10]), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 1), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(events, max_size=40))
def test_every_query_is_answered_once_and_every_attempt_ends(
    happened: list[tuple[str, int, int]],
) -> None:
    target = relay(at("192.0.2.1"), at("192.0.2.2"), at("192.0.2.3"))
    now, asked, heard, left = 0.0, 0, 0, 0
    out: dict[int, SendToResolver] = {}
    seen: list[SendToResolver] = []

    def apply(actions: list[Action]) -> None:
        nonlocal heard
        for action in actions:
            match action:
                case SendToResolver():
                    assert action.token not in out
                    out[action.token] = action
                    seen.append(action)
                case Forget(token):
                    del out[token]
                case Answer():
                    heard += 1

    for what, number, detail in happened:
        if what == "ask":
            before = target.pending
            apply(target.handle_query(query(ident=number), number % 2, bool(detail), now))
            asked += target.pending - before
        elif what == "answer" and seen:
            to = seen[number % len(seen)]
            apply(target.handle_answer(to.resolver, reply(to, detail), to.token, now))
        elif what == "fail" and seen:
            apply(target.handle_failure(seen[number % len(seen)].token, now))
        elif what == "leave":
            before = target.pending
            apply(target.forget_client(number))
            left += before - target.pending
        now += number / 2 if what == "wait" else 0
        due = target.poll_at()
        assert due is None or target.pending
        apply(target.handle_timeout(now))
        assert len(out) <= AT_ONCE * target.pending
    apply(target.handle_timeout(now + service.QUERY_FOR))
    assert (asked, out, target.pending) == (heard + left, {}, 0)


@settings(max_examples=100)
@given(st.binary(max_size=64))
def test_no_octets_of_either_side_raise_anything_else(octets: bytes) -> None:
    target = relay(at("192.0.2.1"))
    with suppress(MalformedPacket):
        ask(target, octets)
    out = sent(ask(target, query(ident=77)))
    for wrong in (octets, out.payload[:2] + octets, reply(out)[:12] + octets):
        target.handle_answer(out.resolver, wrong, out.token, 0.0)
