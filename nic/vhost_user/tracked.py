"""Rings that note what is in flight, so that the next back-end can go on where this one died.

A tracked ring is the ring that it is named for, with a record (nic/vhost_user/inflight.py): each
buffer is noted when it is taken and crossed out once the driver can see that it was used. When it
is bound for the first time it asks the record. Buffers that an earlier back-end had taken come
first, oldest first, from `take` and `take_room` like any other; the ring goes on behind them. Where
that is follows from the record: what was used, and what is in flight. The base that the front-end
gives may be as old as its last start.

What is taken and `rewind` gives up is not in flight any more, save what came from the record: the
ring has no place for it, so it stays there for whoever binds the ring next.

A driver that makes a buffer available again before it was used has broken the ring: a record has
one line for each.

Rings without a record are the plain ones, which know nothing of this.

Does not do: remember how far a buffer had been filled or sent. It is used once, from the start.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from nic.vhost_user.inflight import Held, PackedRecord, SplitRecord
from nic.virtio.chain import INDIRECT, Areas, BrokenRing, Chain, Opener, check_pieces, room_of
from nic.virtio.features import Features
from nic.virtio.packed import FLAGS_AT, ID_AT, PackedRing
from nic.virtio.split import IDX, WRAP, SplitRing


class TrackedSplitRing(SplitRing):
    """A split ring with a record."""

    __slots__ = ("_again", "_is_bound", "_out", "_record", "_resubmitted")

    def __init__(
        self, size: int, features: Features, opener: Opener, way: int, region: memoryview
    ) -> None:
        super().__init__(size, features, opener, way)
        self._record = SplitRecord(region, size)
        self._again: deque[int] = deque()  # heads that an earlier back-end had taken
        self._out: dict[int, int] = {}  # heads that are taken, and their numbers
        self._resubmitted = 0  # the highest number of one that came from the record
        self._is_bound = False

    def bind(self, areas: Areas | None) -> None:
        super().bind(areas)
        if areas is not None and not self._is_bound:
            self._is_bound = True
            used = self._used[IDX]
            self._again.extend(self._record.recover(used))
            self._next = self._seen = used + len(self._again) & WRAP

    def take(self) -> Chain | None:
        if self._again and self._table:
            return self._take_again()
        chain = super().take()
        if chain is not None:
            self._note(chain)
        return chain

    def take_room(self, need: int, least: int) -> list[Chain]:
        chains: list[Chain] = []
        pieces = 0
        while need > 0 and self._again and self._table:
            chain = self._take_again()
            if chain.room < least:
                raise BrokenRing(f"has a receive buffer of {chain.room} bytes")
            chains.append(chain)
            need -= chain.room
            pieces += len(chain.ranges)
            check_pieces(pieces)
        if need > 0:
            fresh = super().take_room(need, least)
            for chain in fresh:
                self._note(chain)
            chains += fresh
        return chains

    def _take_again(self) -> Chain:
        head = self._again.popleft()
        ranges = self._chain(head)
        self._number = self._resubmitted = self._number + 1
        self._out[head] = self._number
        return Chain(self._number, self._next, head, 1, ranges, room_of(ranges))

    def _note(self, chain: Chain) -> None:
        if chain.id in self._out:
            raise BrokenRing(f"has buffer {chain.id} available twice")
        self._out[chain.id] = chain.number
        self._record.take(chain.id)

    def rewind(self, chain: Chain) -> None:
        super().rewind(chain)
        given_up = sorted((n, head) for head, n in self._out.items() if n >= chain.number)
        for number, head in reversed(given_up):
            del self._out[head]
            if number > self._resubmitted:
                self._record.untake(head)
            else:
                self._again.appendleft(head)

    def push(self, chain: Chain, length: int) -> None:
        if self._out.pop(chain.id, None) is not None:
            self._record.give(chain.id)
        super().push(chain, length)

    def push_filled(self, chains: Sequence[Chain], stored: int) -> None:
        for chain in chains:
            self.push(chain, min(chain.room, stored))
            stored -= chain.room

    def publish(self) -> bool:
        before = self._published
        told = super().publish()
        if self._published != before:
            self._record.given(self._published)
        return told

    def want_kick(self) -> bool:
        return super().want_kick() or bool(self._again)


class TrackedPackedRing(PackedRing):
    """A packed ring with a record."""

    __slots__ = ("_again", "_entries", "_is_bound", "_record", "_resubmitted")

    def __init__(
        self, size: int, features: Features, opener: Opener, way: int, base: int, region: memoryview
    ) -> None:
        super().__init__(size, features, opener, way, base)
        self._record = PackedRecord(region, size)
        self._again: deque[Held] = deque()
        self._entries: dict[int, Held] = {}  # by number
        self._resubmitted = 0
        self._is_bound = False

    def bind(self, areas: Areas | None) -> None:
        super().bind(areas)
        if areas is not None and not self._is_bound:
            self._is_bound = True
            used, wrap, held = self._record.recover(self._table, (self._used, self._used_wrap))
            self._again.extend(held)
            self._used, self._used_wrap = used, wrap
            self._out = sum([len(buffer.entries) for buffer in held])
            turns, self._next = divmod(used + self._out, self.size)
            self._wrap = wrap ^ turns & 1

    def take(self) -> Chain | None:
        if self._again and self._table:
            return self._take_again()
        at = self._next
        chain = super().take()
        if chain is not None:
            self._note(at, chain)
        return chain

    def take_room(self, need: int, least: int) -> list[Chain]:
        chains: list[Chain] = []
        pieces = 0
        while need > 0:
            chain = self.take()
            if chain is None:
                break
            if chain.room < least:
                raise BrokenRing(f"has a receive buffer of {chain.room} bytes")
            chains.append(chain)
            need -= chain.room
            pieces += len(chain.ranges)
            check_pieces(pieces)
        return chains

    def _note(self, at: int, chain: Chain) -> None:
        table, size = self._table, self.size
        words: list[int] = []
        for place in range(at, at + chain.span):
            place %= size
            words += (table[2 * place], table[2 * place + 1])
        self._entries[chain.number] = Held(self._record.take(words), words)

    def _take_again(self) -> Chain:
        held = self._again.popleft()
        words, self._number = held.words, self._number + 1
        self._resubmitted = self._number
        flags = words[1] >> FLAGS_AT
        if flags & INDIRECT:
            ranges = self._indirect(words[0], words[1])
        else:
            ranges = []
            for n in range(0, len(words), 2):
                if words[n + 1] >> FLAGS_AT & INDIRECT:
                    raise BrokenRing("has an indirect descriptor in a chain")
                self._collect(ranges, words[n], words[n + 1])
        self._entries[self._number] = held
        at, identity = self._next | self._wrap << 15, words[-1] >> ID_AT & 0xFFFF
        return Chain(self._number, at, identity, len(held.entries), ranges, room_of(ranges))

    def rewind(self, chain: Chain) -> None:
        super().rewind(chain)
        for number in sorted((n for n in self._entries if n >= chain.number), reverse=True):
            held = self._entries.pop(number)
            if number > self._resubmitted:
                self._record.untake(held.entries)
            else:
                self._again.appendleft(held)

    def publish(self) -> bool:
        if not self._pushed or not self._table:
            return False
        used = self._used
        numbers = [chain.number for chain, _ in self._pushed]
        for chain, _ in self._pushed:
            self._record.give(self._entries[chain.number].entries)
            used += chain.span
        turns, used = divmod(used, self.size)
        wrap = self._used_wrap ^ turns & 1
        self._record.giving(used, wrap)
        told = super().publish()
        self._record.given(used, wrap)
        for number in numbers:
            del self._entries[number]
        return told
