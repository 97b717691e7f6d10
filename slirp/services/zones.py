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
from slirp.wire.dns import Labels, Record, emit_name, labels_of, name_text, parse_name

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
    def mac(self) -> bytes: ...
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
        leases: Sequence[LeasedNames] = (),
        closed: Sequence[str] = (),
    ) -> None:
        """`hosts`: paths; `here`: as whom a loopback address of the host's appears; `closed`: names
        below which there is nothing but what is known here."""
        self._names = records_of(names)
        self._closed = [labels_of(name) for name in closed]
        files = [Hosts(path, here) for path in hosts]
        self._sources: tuple[Hosts | LeasedNames, ...] = (*files, *leases)

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

    def denies(self, name: Labels) -> bool:
        """Is a name that is not known here known not to be?"""
        return any(name[-len(top) :] == top and len(name) > len(top) for top in self._closed)

    def name_of(self, addr: bytes, now: float) -> str | None:
        """The name that an address leads back to; None: not known here."""
        records = self.lookup(reverse_name(addr), now) or ()
        names = (parse_name(r.rdata, 0)[0] for r in records if r.rtype == wire.TYPE_PTR)
        return next(map(name_text, names), None)


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
    mac: bytes


class LeasedNames:
    """The names of DHCP's clients, made anew when a lease has changed or ended.

    A client of several servers has the addresses that all of them lease under its name.
    """

    def __init__(self, sources: Sequence[Leases], domain: str = "") -> None:
        """`domain`: of the configuration; what an address leads back to is in it."""
        own = (labels_of(domain.lower()),) if domain else ()
        self._sources = sources
        self._domains: tuple[Labels, ...] = (*dict.fromkeys((*own, LEASED_DOMAIN)), ())
        self._changes = -1
        self._until = -inf
        self._owners: list[dict[bytes, _Owner]] = [{} for _ in sources]
        self._records: Records = {}
        self._called: dict[bytes, str] = {}  # by address
        self._addrs: dict[bytes, list[bytes]] = {}  # leased to a MAC, those with a name

    def records(self, now: float) -> Records:
        """What clients are called now."""
        changes = sum(source.changes for source in self._sources)
        if changes != self._changes or now >= self._until:
            self._changes = changes
            self._look(now)
        return self._records

    def address(self, name: str, now: float) -> bytes | None:
        """The first address of whoever calls itself so now; None: nobody does."""
        try:
            records = self.records(now).get(labels_of(name.lower()), ())
        except ValueError:
            return None
        return next((r.rdata for r in records if r.rtype != wire.TYPE_PTR), None)

    def called(self, addr: bytes, now: float) -> str | None:
        """What whoever has the lease of this address is called."""
        self.records(now)
        return self._called.get(addr)

    def named_addresses(self, mac: bytes, now: float) -> Sequence[bytes]:
        """The leased addresses of a machine that have a name."""
        self.records(now)
        return self._addrs.get(mac, ())

    def _look(self, now: float) -> None:
        self._until = inf
        self._called, self._addrs = {}, {}
        found: dict[bytes, list[bytes]] = {}
        for index, source in enumerate(self._sources):
            owners = self._owners[index] = self._owners_of(source, self._owners[index], now)
            for label, owner in owners.items():
                found.setdefault(label, []).append(owner.addr)
                self._called[owner.addr] = label.decode()
                self._addrs.setdefault(owner.mac, []).append(owner.addr)
        self._records = records_by_labels(
            {(label, *domain): addrs for domain in self._domains for label, addrs in found.items()}
        )

    def _owners_of(
        self, source: Leases, before: dict[bytes, _Owner], now: float
    ) -> dict[bytes, _Owner]:
        claims: dict[bytes, list[_Owner]] = {}
        for lease in source.leases(now):
            self._until = min(self._until, lease.expires_at)
            label = label_of(lease.hostname)
            if label is not None:
                claims.setdefault(label, []).append(_Owner(lease.addr, lease.mac))
        return {label: _owner(before.get(label), who) for label, who in claims.items()}


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
