"""The ledger of a DHCPv6 server: which address is whose, and until when.

A *binding* ties an address to a client and ends at an instant. An offer is a binding that ends
after seconds, so that a flood of solicitations under invented names fills the pool for as long as
the flood lasts. There is at most one binding per address and the pool is bounded, so memory is too.
A binding that has ended is kept until its address is needed: the client that comes back gets the
same one.

A client's name is anybody's to write, and copies of one disk image write the same. So a client is
its name at its port: whoever says the same name at another port is another client, and neither
renews, releases nor declines what the first one has. When a port is taken off the network its
bindings stay, for whoever says the name next: the machine that comes back is given a new port.

Invented clients hold addresses for as long as a lease lasts. So when the pool is used up, a lease
is taken from a port that is gone, or else from the port with the most leases, for a client at
another port: the oldest of those that `holder` sees nobody use.

Does not do: messages, addresses that the configuration ties to a client (their server knows those,
and calls `bind` with them).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Final, TypeAlias

FREE: Final = "free"  # states of a binding: remembered, not held
OFFERED: Final = "offered"
BOUND: Final = "bound"
DECLINED: Final = "declined"

Client: TypeAlias = tuple[bytes, int]  # its DUID, and the association of its that is meant


class Binding:
    """One address."""

    __slots__ = ("addr", "client", "expires_at", "hostname", "mac", "port", "state")

    def __init__(
        self, addr: bytes, client: Client | None, mac: bytes, port: Hashable, state: str,
        expires_at: float, hostname: bytes,
    ) -> None:  # fmt: skip
        self.addr = addr
        self.client = client  # None: nobody's, since the address is somebody else's
        self.mac = mac
        self.port = port  # where its client was heard; None: a port that is gone
        self.state = state
        self.expires_at = expires_at
        self.hostname = hostname

    def is_live(self, now: float) -> bool:
        """Does the client hold it, or may it have it next?"""
        return self.state in (OFFERED, BOUND) and self.expires_at > now

    def is_of(self, client: Client, port: Hashable) -> bool:
        return self.client == client and (self.port is port or self.port is None)


class Ledger:
    """Bindings of one network. `holder(addr)` is the hardware address seen using it, or None."""

    def __init__(self, pool: Iterable[bytes], holder: Callable[[bytes], bytes | None]) -> None:
        self.pool = dict.fromkeys(pool)
        self.reclaimed = 0  # count, for the statistics
        self._holder = holder
        self._bindings: dict[bytes, Binding] = {}  # by address

    def get(self, addr: bytes) -> Binding | None:
        return self._bindings.get(addr)

    def find(self, client: Client, port: Hashable) -> Binding | None:
        """The client's binding, live or remembered; one at its own port before an orphan."""
        found = [b for b in self._bindings.values() if b.is_of(client, port)]
        return min(found, key=lambda binding: binding.port is None, default=None)

    def bound(self, now: float) -> list[Binding]:
        """What is leased at this instant, by address."""
        held = [b for b in self._bindings.values() if b.state == BOUND and b.expires_at > now]
        return sorted(held, key=lambda binding: binding.addr)

    def choose(
        self, client: Client, mac: bytes, port: Hashable, wanted: Iterable[bytes], now: float
    ) -> bytes | None:
        """An address of the pool: the client's own, one that it asks for, any."""
        current = self.find(client, port)
        own = [] if current is None else [current.addr]
        for addr in (*own, *wanted):
            if addr in self.pool and self.is_free(addr, client, mac, port, now):
                return addr
        return self._oldest(client, mac, port, now) or self._reclaim(port, now)

    def is_free(self, addr: bytes, client: Client, mac: bytes, port: Hashable, now: float) -> bool:
        """Whether this client may have this address now."""
        binding = self._bindings.get(addr)
        if binding is not None and binding.expires_at > now:
            return binding.is_of(client, port)
        # Who had it by us and let it go is no reason to keep it from others.
        earlier = binding.mac if binding is not None else None
        return self._holder(addr) in (None, mac, earlier)

    def is_used(self, addr: bytes) -> bool:
        """Was somebody seen lately who uses it?"""
        return self._holder(addr) is not None

    def bind(
        self, addr: bytes, client: Client, mac: bytes, port: Hashable, state: str,
        expires_at: float, hostname: bytes = b"",
    ) -> None:  # fmt: skip
        """Tie the address to this client, which gives up any other."""
        old = self.find(client, port)
        if old is not None:
            del self._bindings[old.addr]
        self._bindings[addr] = Binding(addr, client, mac, port, state, expires_at, hostname)

    def free(self, binding: Binding, now: float) -> None:
        """The address may go to others; it is remembered for the client that had it."""
        binding.state, binding.expires_at = FREE, now

    def decline(self, binding: Binding, until: float) -> None:
        """Somebody else has the address: leave it alone, and give its client another."""
        binding.state, binding.expires_at, binding.client = DECLINED, until, None

    def forget_port(self, port: Hashable) -> None:
        """The port was taken off the network."""
        for binding in self._bindings.values():
            if binding.port is port:
                binding.port = None

    def _oldest(self, client: Client, mac: bytes, port: Hashable, now: float) -> bytes | None:
        """The first address that nobody ever had, else the one whose binding ended first."""
        ended: list[tuple[float, bytes]] = []
        for addr in self.pool:
            binding = self._bindings.get(addr)
            if binding is not None and binding.expires_at <= now:
                ended.append((binding.expires_at, addr))
            elif binding is None and self.is_free(addr, client, mac, port, now):
                return addr
        free = [a for _, a in sorted(ended) if self.is_free(a, client, mac, port, now)]
        return free[0] if free else None

    def _reclaim(self, port: Hashable, now: float) -> bytes | None:
        """The oldest lease that nobody uses, of a port that is gone or has the most."""
        leased = Counter(b.port for b in self.bound(now) if b.addr in self.pool)
        if not leased:
            return None
        greediest = None if None in leased else leased.most_common(1)[0][0]
        if greediest is port:
            return None
        for binding in sorted(self.bound(now), key=lambda binding: binding.expires_at):
            unused = binding.addr in self.pool and not self.is_used(binding.addr)
            if unused and binding.port is greediest:
                del self._bindings[binding.addr]
                self.reclaimed += 1
                return binding.addr
        return None
