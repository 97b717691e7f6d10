"""The virtual link: what the families of one network share.

Who is on it (slirp.ip.neighbours), the network's own MAC, what a port may still be told, and what
was refused. Each family names the addresses that no guest can have.

Does not do: frames (slirp.stack), packets (slirp.ip.layer).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from slirp.ip.family import Family
from slirp.ip.limit import TokenBucket
from slirp.ip.neighbours import Guest, Neighbours


class Link:
    """One virtual link."""

    def __init__(self, mac: bytes, mtu: int, *, dns_enabled: bool = True) -> None:
        self.mac = mac
        self.mtu = mtu
        self.dns_enabled = dns_enabled
        self.refused: Counter[str] = Counter()
        self.has_fragments = False  # has anybody sent some, so that there may be deadlines?
        self.errors = 0  # ICMP errors of the network's own, told …
        self.errors_withheld = 0  # … and not, beyond what the port is allowed
        self.on_guest: Callable[[Guest, float], None] = lambda guest, now: None
        # Something is due at this instant (None: nothing): whoever has a loop, come back in time.
        self.wake_at: Callable[[float | None], None] = lambda at: None
        # Does this guest endpoint answer that peer, who wrote to it through a forward?
        self.is_answer: Callable[[bytes, int, bytes, int], bool] = lambda *endpoints: False
        self._reserved: set[bytes] = set()
        self.guests = Neighbours(mac, self._reserved)
        self._allowances: dict[Any, TokenBucket] = {}  # by attachment: errors that it may be told

    def reserve(self, addrs: Iterable[bytes]) -> None:
        """No guest can have these."""
        self._reserved.update(addrs)

    def learn(
        self, family: Family, addr: bytes, mac: bytes, attachment: Any, now: float
    ) -> Guest | None:
        """The guest at this address, as it was just seen; None for an address no guest can have."""
        known = self.guests.get(addr)
        guest = self.guests.learn(family, addr, mac, attachment, now)
        if guest is not None and known is None:
            self.on_guest(guest, now)
        return guest

    def may_tell(self, attachment: Any, now: float) -> bool:
        """One more error of our own for this port?"""
        allowance = self._allowances.get(attachment)
        if allowance is None:
            allowance = self._allowances[attachment] = TokenBucket(now)
        if not allowance.take(now):
            self.errors_withheld += 1
            return False
        self.errors += 1
        return True

    def forget_port(self, attachment: Any) -> None:
        """The port was taken off the network."""
        self.guests.forget_port(attachment)
        self._allowances.pop(attachment, None)
