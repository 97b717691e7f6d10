"""The DNS service of the virtual network: its own names, and a relay to the host's resolvers.

`handle_query` takes one message from a guest (UDP payload, or a message out of a TCP stream) and
returns actions; so do `handle_answer`, `handle_failure` and `handle_timeout`. Nothing is sent from
here and no clock is read.

    handle_query ──► Answer                      a name of the network's own, or nobody to ask
                 └─► SendToResolver(token)       one attempt: a host socket of its own, fresh port
    handle_answer(token) / handle_failure(token) / handle_timeout
                 ├─► SendToResolver(token')      the next resolver
                 └─► Answer, Forget(token) …     over: close the sockets of these attempts

Every SendToResolver is ended by exactly one Forget, and not before. The message goes out and comes
back unchanged but for its id, which is random per attempt; an answer counts only from the resolver
that was asked, with that id and the same question (RFC 5452 §9.1). SERVFAIL and REFUSED send the
query to the next resolver at once, silence after seconds, while the first may still answer. When
all have failed, the guest gets what the last of them said, or SERVFAIL: never NXDOMAIN, which would
be a claim about the name. A query from UDP is asked over UDP (a truncated answer makes the guest
come back over TCP); one from TCP over TCP, and last over UDP, for resolvers that have no TCP.

Names of the network's own (slirp.services.zones) are answered here with AA set and a small TTL; a
type that they do not have is "no data", not "no name" (RFC 2308 §2.2). They hide names of the same
spelling outside. What a resolver said is kept (slirp.services.dns_cache) until its time is over or
the resolvers become others.

A domain may have resolvers of its own: then they alone are asked for the names in it, and the
longest domain that fits counts. Where there are none, nobody is asked.

A guest that repeats its query while it is pending starts nothing new. Pending queries are bounded;
beyond the bound the answer is SERVFAIL.

With DNS64 (slirp.services.dns64) a question may lead to another one: AAAA to A, PTR of one address
to PTR of the other. The second is asked like the first, with a deadline of its own, and its answer
is written anew for the question that the guest asked. What is kept is what resolvers said.

Does not do: DNSSEC validation, DNS over TLS (853), names below the network's own, zone transfers
(AXFR gets REFUSED: its answer is a stream of messages, not one).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from enum import Enum
from math import inf
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from slirp.config_fields import Resolver
from slirp.errors import MalformedPacket
from slirp.services.dns64 import TTL_MAX, Dns64
from slirp.services.dns_cache import DnsCache, passes_by
from slirp.services.zones import LOCAL_TTL, Zones
from slirp.wire import dns as wire
from slirp.wire.dns import DnsHeader, DnsQuery, Edns, Labels, Record, emit_name, labels_of

PENDING_MAX: Final = 256  # queries; beyond them one is answered SERVFAIL, of whoever has most
SENDS_MAX: Final = 3  # datagrams per query, over all resolvers
RESOLVERS_MAX: Final = 3  # of the list, as resolv.conf(5)
ATTEMPT_FOR: Final = 1.5  # seconds until the next resolver is asked as well
QUERY_FOR: Final = (
    4.5  # seconds until SERVFAIL: before the guest asks again, resolv.conf(5) timeout
)
SUSPECT_FOR: Final = 30.0  # seconds that a resolver which failed is asked after the others
SUSPECTS_MAX: Final = 16  # resolvers remembered as such; beyond them all are forgotten
LOCAL_UDP_SIZE: Final = 1232  # bytes, what our own EDNS answers offer
UDP_SIZE_MAX: Final = 0xFFFF - 28  # bytes that fit an IPv4 datagram, whatever EDNS says


class SendToResolver(NamedTuple):
    resolver: Resolver
    payload: bytes  # without TCP's length prefix
    token: int
    over_tcp: bool
    port: Hashable = None  # of the guest that asks


class Answer(NamedTuple):
    client: Hashable
    payload: bytes  # without TCP's length prefix
    over_tcp: bool


class Forget(NamedTuple):
    """Nothing that comes for this attempt is wanted any more: close its socket."""

    token: int


Action: TypeAlias = SendToResolver | Answer | Forget


class _Purpose(Enum):
    """What the answer to a query's present question is for."""

    RELAY = "it is the guest's answer"
    AAAA = "it is the guest's answer where it has addresses"
    A = "the guest's answer is made of it"
    PTR = "the guest's answer leads to it"


class _Attempt(NamedTuple):
    query: _Query
    resolver: Resolver
    ident: bytes
    over_tcp: bool


class _Query:
    """One question of one client, from its arrival to its answer.

    Its attempts that are out at the same time, and so its host sockets, are at most
    QUERY_FOR / ATTEMPT_FOR: only silence adds one.
    """

    __slots__ = (
        "asked",
        "client",
        "deadline",
        "key",
        "next_at",
        "over_tcp",
        "parsed",
        "payload",
        "plan",
        "port",
        "purpose",
        "said",
        "second_best",
        "tokens",
        "ttl",
    )

    def __init__(
        self, parsed: DnsQuery, payload: bytes, client: Hashable, over_tcp: bool, now: float,
        port: Hashable,
    ) -> None:  # fmt: skip
        self.parsed = parsed  # what the guest asks
        self.asked = parsed  # what resolvers are asked …
        self.payload = payload  # … and the message that asks it
        self.purpose = _Purpose.RELAY
        self.ttl = 0  # seconds that a record made of another may last
        self.second_best: bytes | None = None  # the answer where nothing can be made
        self.client = client
        self.port = port
        self.over_tcp = over_tcp
        self.key = (client, over_tcp, parsed.header.ident, parsed.question.key)
        self.deadline = now + QUERY_FOR
        self.next_at = now
        self.plan: list[tuple[Resolver, bool]] = []  # what is still to be tried, next one last
        self.tokens: list[int] = []  # attempts that may still be answered, oldest first
        self.said: bytes | None = None  # the last failure that a resolver put into words


class DnsService:
    """`zones`: what is known here, or addresses by name; `resolvers`: asked at each query, best
    first; `domains`: those of some domains; `cache`: None for none."""

    def __init__(
        self,
        zones: Zones | Mapping[str, Sequence[bytes]],
        resolvers: Callable[[float], Sequence[Resolver]] | Sequence[Resolver] = (),
        urandom: Callable[[int], bytes] = os.urandom,
        *,
        domains: Mapping[str, Sequence[Resolver]] = MappingProxyType({}),
        cache: DnsCache | None = None,
        dns64: Dns64 | None = None,
    ) -> None:
        self._dns64 = dns64
        self.stats: Counter[str] = Counter()
        self._resolvers = resolvers if callable(resolvers) else lambda now: resolvers
        self._urandom = urandom
        self._zones = zones if isinstance(zones, Zones) else Zones(zones)
        self._domains = {labels_of(text.lower()): found for text, found in domains.items()}
        self._cache = cache
        self._asked: Sequence[Resolver] = ()  # the resolvers that what is kept came from
        self._queries: dict[Hashable, _Query] = {}
        self._held: Counter[Hashable] = Counter()  # queries by port
        self._attempts: dict[int, _Attempt] = {}
        self._suspects: dict[Resolver, float] = {}  # until when
        self._next_at = inf  # no query is due before; may be early, since ended ones are not undone
        self._token = 0

    def handle_query(
        self, payload: memoryview | bytes, client: Hashable, over_tcp: bool, now: float,
        port: Hashable = None,
    ) -> list[Action]:  # fmt: skip
        """A message from a guest. `client` comes back in the answer. Raises MalformedPacket.

        `port` is where the guest is on the network, to share what may be pending fairly.
        """
        parsed = DnsQuery.parse(payload)
        self.stats["queries"] += 1
        local = self._answer_locally(parsed, now) or self._lead_locally(parsed, now)
        if local is not None:
            self.stats["local"] += 1
            return [Answer(client, _fit(local, parsed, over_tcp), over_tcp)]
        if parsed.question.qtype == wire.TYPE_AXFR:
            return [Answer(client, _compose(parsed, wire.REFUSED), over_tcp)]
        query = _Query(parsed, bytes(payload), client, over_tcp, now, port)
        self._choose_question(query)
        kept = self._kept(query.asked, now)
        if kept is not None and query.purpose is _Purpose.RELAY:
            self.stats["cached"] += 1
            return [Answer(client, _fit(kept, parsed, over_tcp), over_tcp)]
        if query.key in self._queries:
            self.stats["repeated"] += 1
            return []
        query.plan = self._plan(query.asked.question.name, over_tcp, now)
        if not query.plan:
            self.stats["no_resolver"] += 1
            return [Answer(client, _servfail(parsed), over_tcp)]
        displaced: list[Action] = []
        if len(self._queries) >= PENDING_MAX:
            self.stats["too_many"] += 1
            most, count = self._held.most_common(1)[0]
            if self._held[port] >= count:
                return [Answer(client, _servfail(parsed), over_tcp)]
            given_up = next(q for q in self._queries.values() if q.port == most)
            self.stats["servfail"] += 1
            displaced = self._finish(given_up, _servfail(given_up.parsed))
        self._queries[query.key] = query
        self._held[port] += 1
        return displaced + self._begin(query, kept, now)

    def _begin(self, query: _Query, kept: bytes | None, now: float) -> list[Action]:
        """The present question: what is kept is its answer, else a resolver is asked."""
        if kept is None:
            return self._attempt(query, now)
        self.stats["cached"] += 1
        return self._answered(query, kept, now)

    def handle_answer(
        self, resolver: Resolver, payload: memoryview | bytes, token: int, now: float
    ) -> list[Action]:
        """What came for an attempt. Anything but its answer is counted and changes nothing."""
        attempt = self._attempts.get(token)
        answer = bytes(payload)
        if attempt is None or attempt.resolver != resolver or not _answers(answer, attempt):
            self.stats["mismatched"] += 1
            return []
        query = attempt.query
        header = DnsHeader.parse(answer)
        if header.rcode in (wire.SERVFAIL, wire.REFUSED):
            query.said = answer
            return self._fail(token, now)
        if header.flags & wire.TC and query.over_tcp and not attempt.over_tcp:
            return self._fail(token, now)
        self._suspects.pop(resolver, None)
        self.stats["relayed"] += 1
        if self._cache is not None and not passes_by(query.asked):
            self._cache.store(query.asked, answer, now)
        return self._answered(query, answer, now)

    def handle_failure(self, token: int, now: float) -> list[Action]:
        """An attempt's socket failed: refused, unreachable, closed, or not to be had at all."""
        if token not in self._attempts:
            return []
        self._suspect(token, now)
        return self._fail(token, now)

    def handle_timeout(self, now: float) -> list[Action]:
        if now < self._next_at:
            return []
        actions: list[Action] = []
        for query in [query for query in self._queries.values() if query.next_at <= now]:
            if now >= query.deadline:
                self.stats["timed_out"] += 1
                actions += self._give_up(query, now)
            else:
                self._suspect(query.tokens[-1], now)
                actions += self._attempt(query, now)
        self._next_at = min((query.next_at for query in self._queries.values()), default=inf)
        return actions

    def poll_at(self) -> float | None:
        return self._next_at if self._queries else None

    def forget_client(self, client: Hashable) -> list[Action]:
        """A client is gone (its TCP connection closed): drop its queries without an answer."""
        return self._forget(query for query in self._queries.values() if query.client == client)

    def forget_port(self, port: Hashable) -> list[Action]:
        """A port is gone: so are the queries of its guests."""
        return self._forget(query for query in self._queries.values() if query.port == port)

    def _forget(self, queries: Iterable[_Query]) -> list[Action]:
        return [forget for query in list(queries) for forget in self._close(query)]

    @property
    def pending(self) -> int:
        return len(self._queries)

    def _kept(self, parsed: DnsQuery, now: float) -> bytes | None:
        """What a resolver said to the same question not long ago."""
        if self._cache is None or passes_by(parsed):
            return None
        resolvers = tuple(self._resolvers(now))
        if resolvers != self._asked:
            self._asked = resolvers
            self._cache.clear()
        return self._cache.answer(parsed, now)

    def _resolvers_of(self, name: Labels, now: float) -> Sequence[Resolver]:
        for at in range(len(name) if self._domains else 0):
            found = self._domains.get(name[at:])
            if found is not None:
                return found
        return self._resolvers(now)

    def _plan(self, name: Labels, over_tcp: bool, now: float) -> list[tuple[Resolver, bool]]:
        """Whom to ask, last entry first; resolvers that were silent lately come after others."""
        usable = sorted(
            dict.fromkeys(self._resolvers_of(name, now)),
            key=lambda r: self._suspects.get(r, now) > now,
        )[:RESOLVERS_MAX]
        if over_tcp:
            return [(resolver, tcp) for tcp in (True, False) for resolver in usable][::-1]
        return [(resolver, False) for resolver in (usable * SENDS_MAX)[:SENDS_MAX]][::-1]

    def _attempt(self, query: _Query, now: float) -> list[Action]:
        """Ask the next resolver; with none left, wait for those that were asked."""
        actions: list[Action] = []
        query.next_at = query.deadline
        if query.plan:
            resolver, over_tcp = query.plan.pop()
            ident = self._urandom(2)
            self._token += 1
            self._attempts[self._token] = _Attempt(query, resolver, ident, over_tcp)
            query.tokens.append(self._token)
            payload = ident + query.payload[2:]
            actions.append(SendToResolver(resolver, payload, self._token, over_tcp, query.port))
            if query.plan:
                query.next_at = min(now + ATTEMPT_FOR, query.deadline)
        self._next_at = min(self._next_at, query.next_at)
        return actions

    def _fail(self, token: int, now: float) -> list[Action]:
        """This attempt will not be answered: ask on, or give up when nobody is left to wait for."""
        attempt = self._attempts[token]
        query = attempt.query
        self.stats["failed"] += 1
        actions: list[Action] = [self._drop(query, token)]
        failed = (attempt.resolver, attempt.over_tcp)  # says so again: only silence is asked twice
        query.plan = [planned for planned in query.plan if planned != failed]
        if query.plan:
            return actions + self._attempt(query, now)
        return actions if query.tokens else actions + self._give_up(query, now)

    def _give_up(self, query: _Query, now: float) -> list[Action]:
        if query.purpose is _Purpose.AAAA:  # RFC 6147 §5.1.2, §5.1.3: as good as an empty answer
            return self._ask_for_a(query, TTL_MAX, now)
        self.stats["servfail"] += 1
        return self._answered(query, query.said or _servfail(query.asked), now)

    # DNS64

    def _choose_question(self, query: _Query) -> None:
        """What resolvers are asked first."""
        dns64 = self._dns64
        if dns64 is None:
            return
        if dns64.applies(query.parsed):
            query.purpose = _Purpose.AAAA
        elif (target := dns64.target_of(query.parsed)) is not None:
            query.purpose = _Purpose.PTR
            self._ask(query, dns64.question_for_target(query.parsed, query.payload, target))

    def _ask(self, query: _Query, payload: bytes) -> None:
        query.payload, query.asked = payload, DnsQuery.parse(payload)

    def _answered(self, query: _Query, answer: bytes, now: float) -> list[Action]:
        """The present question has an answer, which may be that it has none."""
        dns64 = self._dns64
        if dns64 is None or query.purpose is _Purpose.RELAY:
            return self._finish(query, answer)
        if query.purpose is _Purpose.AAAA:
            outcome = dns64.look_at(answer)
            if outcome.second_best:
                query.second_best = answer
            if not outcome.final:
                return self._ask_for_a(query, outcome.ttl, now)
            if outcome.records is None:
                return self._finish(query, answer)
            rcode, records = wire.NOERROR, outcome.records
        elif DnsHeader.parse(answer).flags & wire.TC:
            return self._finish(query, _compose(query.parsed, wire.NOERROR, wire.TC))
        else:
            rcode, records = self._make(dns64, query, answer)
            if not records and query.second_best is not None:
                return self._finish(query, query.second_best)
        return self._finish(query, _compose(query.parsed, rcode, 0, records))

    def _make(self, dns64: Dns64, query: _Query, answer: bytes) -> tuple[int, list[Record]]:
        """The guest's answer of another question's."""
        try:
            if query.purpose is _Purpose.PTR:
                return dns64.lead_to(query.parsed, query.asked.question.name, answer)
            rcode, records = dns64.synthesize(query.parsed, answer, query.ttl)
        except MalformedPacket:
            return wire.SERVFAIL, []
        self.stats["synthesized"] += bool(records)
        return rcode, records

    def _ask_for_a(self, query: _Query, ttl: int, now: float) -> list[Action]:
        """The host has no AAAA that counts: what is its A?"""
        assert self._dns64 is not None
        forgotten: list[Action] = [self._drop(query, token) for token in query.tokens.copy()]
        query.purpose, query.ttl, query.said = _Purpose.A, ttl, None
        self._ask(query, self._dns64.question_for_a(query.parsed, query.payload))
        query.plan = self._plan(query.asked.question.name, query.over_tcp, now)
        query.deadline = now + QUERY_FOR
        return forgotten + self._begin(query, self._kept(query.asked, now), now)

    def _finish(self, query: _Query, answer: bytes) -> list[Action]:
        """Hand the answer over under the client's id."""
        answer = query.parsed.header.ident.to_bytes(2) + answer[2:]
        fitted = _fit(answer, query.parsed, query.over_tcp)
        return [Answer(query.client, fitted, query.over_tcp), *self._close(query)]

    def _close(self, query: _Query) -> list[Action]:
        del self._queries[query.key]
        self._held[query.port] -= 1
        if not self._held[query.port]:
            del self._held[query.port]
        return [self._drop(query, token) for token in query.tokens.copy()]

    def _drop(self, query: _Query, token: int) -> Forget:
        query.tokens.remove(token)
        del self._attempts[token]
        return Forget(token)

    def _suspect(self, token: int, now: float) -> None:
        """Nothing came. Who says SERVFAIL keeps its place: the others may not know the names of a
        private network. Who has no TCP keeps it too."""
        attempt = self._attempts[token]
        if attempt.over_tcp:
            return
        if len(self._suspects) >= SUSPECTS_MAX:
            self._suspects.clear()
        self._suspects[attempt.resolver] = now + SUSPECT_FOR

    def _answer_locally(self, parsed: DnsQuery, now: float) -> bytes | None:
        """The answer where the name is one of ours, else None."""
        header, question, edns = parsed
        in_class = question.qclass in (wire.CLASS_IN, wire.CLASS_ANY)
        if not in_class or header.flags & wire.OPCODE_MASK:
            return None
        records = self._zones.lookup(question.name, now)
        is_denied = records is None and self._zones.denies(question.name)
        if records is None and not is_denied:
            return None
        if edns is not None and edns.version != 0:
            return _compose(parsed, wire.BADVERS)
        if records is None:
            return _compose(parsed, wire.NXDOMAIN, wire.AA)
        answers = [r for r in records if question.qtype in (r.rtype, wire.TYPE_ANY)]
        if not answers and self._dns64 is not None and self._dns64.applies(parsed):
            answers = self._dns64.embedded(records)
        return _compose(parsed, wire.NOERROR, wire.AA, answers)

    def _lead_locally(self, parsed: DnsQuery, now: float) -> bytes | None:
        """The answer where an address under NAT64's prefix is, inside, one of ours."""
        target = self._dns64.target_of(parsed) if self._dns64 else None
        found = self._zones.lookup(target, now) if target else None
        if target is None or found is None:
            return None
        name = emit_name(target)
        alias = Record(wire.QUESTION_NAME, wire.TYPE_CNAME, wire.CLASS_IN, LOCAL_TTL, name)
        answers = [alias, *(record._replace(name=name) for record in found)]
        return _compose(parsed, wire.NOERROR, wire.AA, answers)


def _compose(parsed: DnsQuery, rcode: int, flags: int = 0, answers: Sequence[Record] = ()) -> bytes:
    """An answer of our own: the question echoed, EDNS only to who used it (RFC 6891 §7)."""
    header, question, edns = parsed
    flags |= wire.QR | wire.RA | rcode & wire.RCODE_MASK
    flags |= header.flags & (wire.OPCODE_MASK | wire.RD | wire.CD)
    opt = wire.emit_opt(Edns(LOCAL_UDP_SIZE, 0), rcode) if edns else b""
    return wire.emit_message(header.ident, flags, question.octets, answers, opt)


def _servfail(parsed: DnsQuery) -> bytes:
    return _compose(parsed, wire.SERVFAIL)


def _fit(answer: bytes, parsed: DnsQuery, over_tcp: bool) -> bytes:
    """The answer, or where the client's datagram cannot hold it, its header with TC set."""
    udp_size = parsed.edns.udp_size if parsed.edns else 0
    limit = min(max(udp_size, wire.UDP_SIZE_MIN), UDP_SIZE_MAX)
    if over_tcp or len(answer) <= limit:
        return answer
    header = DnsHeader.parse(answer)
    return _compose(parsed, header.rcode, header.flags & wire.AA | wire.TC)


def _answers(answer: bytes, attempt: _Attempt) -> bool:
    """Whether this is an answer to what was asked, RFC 5452 §9.1.

    Some resolvers leave out the question where they could not or would not read it; that passes
    where it says nothing about the name.
    """
    try:
        header = DnsHeader.parse(answer)
        asked = attempt.query.asked
        if answer[:2] != attempt.ident or not header.flags & wire.QR:
            return False
        if (header.flags ^ asked.header.flags) & wire.OPCODE_MASK:
            return False
        if header.qdcount == 0:
            claims_nothing = header.rcode not in (wire.NOERROR, wire.NXDOMAIN)
            return claims_nothing and len(answer) == wire.HEADER_LEN
        question, _ = wire.parse_question(header, answer)
    except MalformedPacket:
        return False
    return question.key == asked.question.key
