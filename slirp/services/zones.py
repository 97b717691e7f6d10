"""The names that the network itself knows, in the order in which they count:

    names      the network's own and the configuration's
    hosts      files in the form of hosts(5), followed when they change
    leases     what guests call themselves, with DHCP: NAME, NAME.internal, NAME.DOMAIN

`lookup` gives the records of a name, or None where nobody here knows it: it is asked for outside
then. A name has its addresses of both families (A, AAAA), an address leads back to its first name
(PTR). A name that is known hides those of the same spelling further down and outside.

A hosts file is the host's word: its loopback addresses (but for `localhost`, which is everybody's
own) mean the host itself, and so the gateway where that leads there; else they are left out. What a
guest calls itself is not to be trusted: the first part of it counts, if it is a label, and a name
belongs to whoever had it first for as long as the lease lasts.

Does not do: wildcards, records other than addresses and their names, names for static leases whose
machine has not come yet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf
from typing import Final, NamedTuple, Protocol

from slirp.address import addr_from_text, is_loopback
from slirp.services.watched import Watched
from slirp.wire import dns as wire
from slirp.wire.dns import Labels, Record, emit_name, labels_of

LOCAL_TTL: Final = 30  # seconds
LEASED_DOMAIN: Final = (b"internal",)  # ICANN's for private use
HOSTS_MAX: Final = 1 << 20  # bytes that are read of a hosts file
LOCALHOST: Final = re.compile(r"localhost\b|ip6-|.*\.localhost$", re.IGNORECASE)
_LABEL: Final = re.compile(rb"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")

Records = dict[Labels, tuple[Record, ...]]


class Lease(Protocol):
    @property
    def addr(self) -> bytes: ...
    @property
    def hostname(self) -> bytes: ...
    @property
    def expires_at(self) -> float: ...


class Leases(Protocol):
    """A DHCP server, of either family."""

    changes: int  # grows with whatever may change a lease

    def leases(self, now: float) -> Sequence[Lease]: ...


class Zones:
    """Everything that one network knows by name."""

    def __init__(
        self,
        names: Mapping[str, Sequence[bytes]],
        *,
        hosts: Sequence[str] = (),
        here: Callable[[bytes], bytes | None] = lambda addr: None,
        leases: Sequence[Leases] = (),
        domain: str = "",
    ) -> None:
        """`hosts`: paths; `here`: as whom a loopback address of the host's appears."""
        self._names = records_of(names)
        domains = dict.fromkeys((*((labels_of(domain.lower()),) if domain else ()), LEASED_DOMAIN))
        self._sources: list[Hosts | LeasedNames] = [
            *(Hosts(path, here) for path in hosts),
            *(LeasedNames(source, (*domains, ())) for source in leases),
        ]

    def lookup(self, name: Labels, now: float) -> tuple[Record, ...] | None:
        """Its records; None: not known here."""
        found = self._names.get(name)
        if found is not None:
            return found
        for source in self._sources:
            found = source.records(now).get(name)
            if found is not None:
                return found
        return None


class Hosts:
    """One hosts file."""

    def __init__(self, path: str, here: Callable[[bytes], bytes | None]) -> None:
        self._file = Watched(
            path, lambda text: records_of(parse_hosts(text, here)), size_max=HOSTS_MAX
        )

    def records(self, now: float) -> Records:
        """What it says now."""
        return self._file.look(now)


class _Owner(NamedTuple):
    addr: bytes
    expires_at: float


class LeasedNames:
    """The names of one DHCP server's clients, made anew when a lease has changed or ended."""

    def __init__(self, source: Leases, domains: Sequence[Labels]) -> None:
        """`domains`: a client's name is in each of them; the first is what its address leads to."""
        self._source = source
        self._domains = domains
        self._changes = -1
        self._until = inf
        self._owners: dict[bytes, _Owner] = {}
        self._records: Records = {}

    def records(self, now: float) -> Records:
        """What clients are called now."""
        if self._source.changes != self._changes or now >= self._until:
            self._changes = self._source.changes
            self._look(now)
        return self._records

    def _look(self, now: float) -> None:
        claims: dict[bytes, list[_Owner]] = {}
        for lease in self._source.leases(now):
            label = label_of(lease.hostname)
            if label is not None:
                owner = _Owner(lease.addr, lease.expires_at)
                claims.setdefault(label, []).append(owner)
        before = self._owners
        self._owners = {label: _owner(before.get(label), who) for label, who in claims.items()}
        self._until = min((o.expires_at for who in claims.values() for o in who), default=inf)
        named = {
            (label, *domain): [owner.addr]
            for domain in self._domains
            for label, owner in self._owners.items()
        }
        self._records = records_by_labels(named)


def _owner(before: _Owner | None, claims: list[_Owner]) -> _Owner:
    """Of those that have one name: whoever had it before, else the first."""
    for claim in claims:
        if before is not None and claim.addr == before.addr:
            return claim
    return claims[0]


def label_of(hostname: bytes) -> bytes | None:
    """The name of a machine, out of what it calls itself; None: that is none."""
    label = hostname.rstrip(b"\0").partition(b".")[0].lower()
    return label if _LABEL.fullmatch(label) and label != b"localhost" else None


def parse_hosts(text: str, here: Callable[[bytes], bytes | None]) -> dict[str, list[bytes]]:
    """Addresses by name; a line that says nothing sensible is passed over, as the host does."""
    found: dict[str, list[bytes]] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) < 2:
            continue
        try:
            addr: bytes | None = addr_from_text(words[0])
        except ValueError:
            continue
        assert addr is not None
        if is_loopback(addr):
            addr = here(addr)
        for name in _sensible(words[1:]):
            if addr is not None and addr not in found.setdefault(name, []):
                found[name].append(addr)
    return {name: addrs for name, addrs in found.items() if addrs}


def _sensible(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        try:
            labels_of(name)
        except ValueError:
            continue
        if not LOCALHOST.match(name):
            yield name.rstrip(".").lower()


def records_of(names: Mapping[str, Sequence[bytes]]) -> Records:
    """A and AAAA of the names, and PTR of their addresses to the first name that has each."""
    return records_by_labels({labels_of(text.lower()): addrs for text, addrs in names.items()})


def records_by_labels(names: Mapping[Labels, Sequence[bytes]]) -> Records:
    """As `records_of`."""
    found: dict[Labels, list[Record]] = {}
    for name, addrs in names.items():
        for addr in addrs:
            rtype = wire.TYPE_A if len(addr) == 4 else wire.TYPE_AAAA
            found.setdefault(name, []).append(_record(rtype, addr))
            found.setdefault(reverse_name(addr), [_record(wire.TYPE_PTR, emit_name(name))])
    return {name: tuple(records) for name, records in found.items()}


def _record(rtype: int, rdata: bytes) -> Record:
    return Record(wire.QUESTION_NAME, rtype, wire.CLASS_IN, LOCAL_TTL, rdata)


def reverse_name(addr: bytes) -> Labels:
    """RFC 1035 §3.5, RFC 3596 §2.5."""
    if len(addr) == 4:
        return (*(b"%d" % octet for octet in reversed(addr)), b"in-addr", b"arpa")
    return (*(b"%c" % digit for digit in reversed(addr.hex().encode())), b"ip6", b"arpa")
