"""What waits while an address is resolved (RFC 1122 §2.3.2.2), as numbers and queues.

Something is to go to a guest that has not been seen yet: a datagram or a connection of a forward,
an answer, an error. `hold` keeps it and says whether to ask for the address now; `resolved` gives
back what waited, oldest first, when the guest is there; `handle_timeout` says whom to ask for again
and what waited for too long, which its owner then calls unreachable. What an item is, is its
owner's business: here it has an address, a kind and a size. ARP asks for IPv4, neighbour discovery
for IPv6; both ask at most once per ASK_EVERY (RFC 1122 §2.3.2.1, RFC 4861 §7.2.2).

Bounded in number, bytes and time. Whoever has the most bytes waiting gives way, per address and
kind, and of those the oldest: a flood of datagrams displaces itself, and not a connection that
waits for the same guest.

Does not do: ask, send, remember who was seen (slirp.ip.neighbours).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Final, Generic, NamedTuple, TypeVar

HELD_MAX: Final = 512  # items, all addresses together; beyond it the oldest goes
HELD_BYTES: Final = 1 << 20  # bytes of what is held; beyond it the oldest goes
ADDRS_MAX: Final = 256  # addresses asked for; beyond it the one asked for first goes
HOLD_FOR: Final = 5.0  # seconds that an item waits; Linux gives a neighbour up after 3
ASK_EVERY: Final = 1.0  # seconds between requests for one address, RFC 1122 §2.3.2.1

T = TypeVar("T")


class Held(NamedTuple, Generic[T]):
    """One item in its queue."""

    number: int  # which one it was, of all
    until: float
    size: int  # bytes
    item: T


class Queue(Generic[T]):
    """What waits for one address and is of one kind, oldest first."""

    __slots__ = ("items", "size")

    def __init__(self) -> None:
        self.items: deque[Held[T]] = deque()
        self.size = 0


class Entry(Generic[T]):
    """An address that is being asked for. It outlives its items until it may be asked for again."""

    __slots__ = ("asked_at", "queues")

    def __init__(self, now: float) -> None:
        self.asked_at = now
        self.queues: dict[Hashable, Queue[T]] = {}

    @property
    def due_at(self) -> float:
        """When it is to be looked at."""
        first = (queue.items[0].until for queue in self.queues.values())
        return min((self.asked_at + ASK_EVERY, *first))


class Outcome(NamedTuple, Generic[T]):
    """What `hold` leaves to do."""

    ask: bool  # for the address, now
    displaced: list[T]  # had to give way


class Due(NamedTuple, Generic[T]):
    """What `handle_timeout` leaves to do."""

    ask: list[bytes]
    unreachable: list[T]  # waited for HOLD_FOR


class Resolution(Generic[T]):
    """Everything that waits for an address."""

    def __init__(self) -> None:
        self._entries: dict[bytes, Entry[T]] = {}  # in the order of their first item
        self._count = 0
        self.held = 0  # items now
        self.size = 0  # bytes of these
        self.displaced = 0
        self.unreachable = 0

    def hold(self, addr: bytes, kind: Hashable, item: T, size: int, now: float) -> Outcome[T]:
        """Keep an item of `size` bytes until `addr` is seen."""
        entry = self._entries.get(addr)
        ask = entry is None
        displaced: list[T] = []
        if entry is None:
            if len(self._entries) >= ADDRS_MAX:
                displaced += self.resolved(next(iter(self._entries)))
            entry = self._entries[addr] = Entry(now)
        queue = entry.queues.setdefault(kind, Queue())
        self._count += 1
        queue.items.append(Held(self._count, now + HOLD_FOR, size, item))
        self._account(queue, 1, size)
        while self.held > HELD_MAX or self.size > HELD_BYTES:
            displaced.append(self._displace())
        self.displaced += len(displaced)
        return Outcome(ask, displaced)

    def _account(self, queue: Queue[T], count: int, size: int) -> None:
        queue.size += size
        self.size += size
        self.held += count

    def _take(self, entry: Entry[T], kind: Hashable) -> Held[T]:
        queue = entry.queues[kind]
        held = queue.items.popleft()
        self._account(queue, -1, -held.size)
        if not queue.items:
            del entry.queues[kind]
        return held

    def _displace(self) -> T:
        _, entry, kind = max(
            ((queue.size, entry, kind) for entry, kind, queue in self._queues()),
            key=lambda found: found[0],
        )
        return self._take(entry, kind).item

    def _queues(self) -> Iterator[tuple[Entry[T], Hashable, Queue[T]]]:
        for entry in self._entries.values():
            for kind, queue in entry.queues.items():
                yield entry, kind, queue

    def resolved(self, addr: bytes) -> list[T]:
        """The address was seen (or nobody waits any more): what waited for it, oldest first."""
        entry = self._entries.pop(addr, None)
        if entry is None:
            return []
        found = [held for queue in entry.queues.values() for held in queue.items]
        for queue in entry.queues.values():
            self._account(queue, -len(queue.items), -queue.size)
        return [held.item for held in sorted(found, key=lambda held: held.number)]

    def poll_at(self) -> float | None:
        """When somebody is to be asked for again, or has waited for too long."""
        return min((entry.due_at for entry in self._entries.values()), default=None)

    def handle_timeout(self, now: float) -> Due[T]:
        """Give up what waited for HOLD_FOR; ask again for the rest."""
        due: Due[T] = Due([], [])
        for addr, entry in list(self._entries.items()):
            for kind in list(entry.queues):
                while kind in entry.queues and entry.queues[kind].items[0].until <= now:
                    due.unreachable.append(self._take(entry, kind).item)
            if now < entry.asked_at + ASK_EVERY:
                continue
            if entry.queues:
                entry.asked_at = now
                due.ask.append(addr)
            else:
                del self._entries[addr]
        self.unreachable += len(due.unreachable)
        return due

    def close(self) -> list[T]:
        """Nobody waits any more: whatever is left."""
        return [item for addr in list(self._entries) for item in self.resolved(addr)]
