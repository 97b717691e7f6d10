"""By which names guests asked for addresses: what answers of our DNS have told them.

    learn(port, mac, answer, now)      an answer that goes to a guest, as it goes
    name(port, mac, addr, at)          what the guest had called this address last, at that instant

It is fed where answers leave and read when somebody looks at flows, so nothing of it is on a
packet's way. What counts is the name in the question, which is the one that the guest knows, and of
the records those that belong to it: addresses at that name, or at the end of a chain of CNAME
records that begins there. So an answer can call an address by a name that was asked for, and by no
other. An answer that cannot be read tells nothing.

One address may have many names (a content network's has thousands): the last EACH_MAX are kept with
their instants, so that a connection has the name that was asked before it was opened and not one
that was asked later. A machine is known by its MAC at its port, since it asks by IPv4 what it then
reaches by IPv6.

Bounded per port; what was not asked for longest gives way, of the same port.

Does not do: forget when a TTL is over (a connection outlives it), service records and their hints.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final, NamedTuple, TypeAlias

from slirp.errors import MalformedPacket
from slirp.wire import dns as wire
from slirp.wire.dns import DnsHeader, Labels, name_text
from slirp.wire.dns_answer import AnswerRecord, DnsAnswer

NAMES_MAX: Final = 1024  # addresses per port; at the bound the one that was not asked for longest
EACH_MAX: Final = 4  # names of one address
ANSWER_MAX: Final = 64  # addresses of one answer; resolvers of operating systems heed no more

ADDR_LENS: Final = {wire.TYPE_A: 4, wire.TYPE_AAAA: 16}

Known: TypeAlias = tuple[tuple[float, str], ...]  # since when, and the name; oldest first


class Carried(NamedTuple):
    """What is known of one address, for another process."""

    mac: bytes
    addr: bytes
    known: Known


class AskedNames:
    """Of one network."""

    def __init__(self, most: int = NAMES_MAX) -> None:
        """`most`: addresses per port."""
        self._most = most
        self._ports: dict[Hashable, dict[tuple[bytes, bytes], Known]] = {}

    def __len__(self) -> int:
        """Addresses that have a name."""
        return sum(map(len, self._ports.values()))

    def learn(self, port: Hashable, mac: bytes, answer: bytes, now: float) -> None:
        """This answer goes to the machine with this MAC, at this port."""
        name, addrs = addresses_of(answer)
        if not addrs:
            return
        text = name_text(name)
        of_port = self._ports.setdefault(port, {})
        for addr in addrs:
            known = of_port.pop((mac, addr), ())
            if not known or known[-1][1] != text:
                known = (*known, (now, text))[-EACH_MAX:]
            self._put(of_port, mac, addr, known)

    def _put(
        self, of_port: dict[tuple[bytes, bytes], Known], mac: bytes, addr: bytes, known: Known
    ) -> None:
        if len(of_port) >= self._most:
            del of_port[next(iter(of_port))]
        of_port[mac, addr] = known

    def name(self, port: Hashable, mac: bytes, addr: bytes, at: float) -> str | None:
        """By which name the machine had asked for the address last, at that instant."""
        known = self._ports.get(port, {}).get((mac, addr), ())
        return next((name for since, name in reversed(known) if since <= at), None)

    def forget_port(self, port: Hashable) -> None:
        """The port was taken off the network."""
        self._ports.pop(port, None)

    def carried(self, port: Hashable) -> Iterator[Carried]:
        """Everything about a port, for `resume`."""
        for (mac, addr), known in self._ports.get(port, {}).items():
            yield Carried(mac, addr, known)

    def resume(self, port: Hashable, carried: Carried) -> None:
        """What was known in the process before this one."""
        self._put(self._ports.setdefault(port, {}), *carried)


def addresses_of(answer: bytes) -> tuple[Labels, list[bytes]]:
    """The name that was asked for, and the addresses that an answer gives it."""
    try:
        header = DnsHeader.parse(answer)
        if not header.ancount or header.rcode != wire.NOERROR:
            return (), []
        read = DnsAnswer.parse(answer)
    except MalformedPacket:
        return (), []
    asked = read.question.name
    names = _chain(asked, read.answers)
    found = [
        record.rdata
        for record in read.answers
        if isinstance(record.rdata, bytes)
        and len(record.rdata) == ADDR_LENS.get(record.rtype)
        and record.rclass == wire.CLASS_IN
        and _lower(record.name) in names
    ]
    return asked, found[:ANSWER_MAX]


def _chain(asked: Labels, records: tuple[AnswerRecord, ...]) -> set[Labels]:
    """The name and what it stands for, by CNAME records in whatever order."""
    aliases = {
        _lower(record.name): _lower(record.rdata)
        for record in records
        if record.rtype == wire.TYPE_CNAME and not isinstance(record.rdata, bytes)
    }
    names, at = {asked}, asked
    while (at := aliases.get(at, asked)) not in names:
        names.add(at)
    return names


def _lower(name: Labels) -> Labels:
    return tuple(label.lower() for label in name)
