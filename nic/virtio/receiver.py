"""A receive ring: room is claimed in the driver's buffers before a frame has arrived.

A frame's way into the guest:

1. `claim(size)` takes buffers until they have room for the virtio-net header and the frame: one
   buffer, or with MRG_RXBUF as many as it takes. The frame's bytes become one transfer, cut at the
   header lengths and the ends of buffers; the bus answers with host views. Nothing in guest memory
   has changed.
2. Whoever claimed fills the views and commits, or cancels. At commit the virtio-net header is
   stored, and buffers that the frame does not reach are free again, for the next claim.
3. The queue completes in claim order: the path's own completions, then `hand_over`, which notes
   the buffers as used. `publish` shows all of a turn's frames to the driver at once.

Buffers that are free again wait in `_spare`, in the order in which they were made available, and
are used before the ring is looked at. So buffers are used in order, except where a claim is
cancelled while a later one is open; then `stop`, which tells from where another device may go on,
gives those that lie before a used one back without a byte in them.

A claim for which there is no room waits: None, and the driver is asked to kick. Where waiting would
not help, because the buffer, or with MRG_RXBUF the whole ring, is too small, the surplus goes to a
scratch buffer; a frame that turns out to need it is lost, and counted.

Bounds: a claim holds at most the ring's buffers, each of at most 1,024 descriptors.

Does not do: filtering by address (the network knows whose a frame is).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from dma.iovec import IoVec, PhysAddr, Range, Ranges
from dma.transfer import CompletionQueue, Direction, DmaPath, Transfer
from nic.port import VNET_LEN, VNET_NONE
from nic.virtio.chain import Chain, Opener, Ring
from nic.virtio.features import HEADER_LEN, Features
from nic.virtio.ranges import behead, cut

FRAME_MIN: Final = 14  # bytes: an Ethernet header
_NOTHING: Final = IoVec()
RUN_MAX: Final = 1 << 16  # completions of one run: more than a ring can have

Logger = Callable[[Ranges, int], None]  # ranges, how many bytes of them were written


class RxClaim:
    """Buffers held for one frame. Once the ring has stopped, nothing here has an effect."""

    __slots__ = (
        "_receiver", "chains", "claimed", "header", "iov", "is_open", "room", "size", "transfer",
        "withdraw",
    )  # fmt: skip

    def __init__(
        self, receiver: Receiver, chains: list[Chain], room: int, size: int, transfer: Transfer
    ) -> None:
        self._receiver = receiver
        self.chains = chains
        self.room = room  # bytes, the virtio-net header included
        self.claimed = size
        self.size = 0  # bytes of the frame, once committed
        self.is_open = True
        self.withdraw: Callable[[], None] | None = None  # has whoever fills it let go
        self.iov = _NOTHING
        self.header: list[memoryview] = []
        self.transfer = transfer
        transfer.completions.append(self.hand_over)

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        """The first `size` bytes are a frame."""
        if not FRAME_MIN <= size <= self.claimed:
            raise ValueError(f"commit of {size} bytes into a claim of {self.claimed}")
        if self.is_open:
            self._receiver.commit(self, size, vnet)

    def cancel(self) -> None:
        if self.is_open:
            self._receiver.cancel(self)

    def hold(self, withdraw: Callable[[], None]) -> RxClaim:
        """Buffers are held as long as it takes anyway; but bytes must not come after a stop."""
        self.withdraw = withdraw
        return self

    def hand_over(self, _size: int) -> None:
        self._receiver.hand_over(self)


class Receiver:
    """A receive ring that is started."""

    def __init__(
        self, ring: Ring, features: Features, bus: DmaPath, opener: Opener, stats: dict[str, int]
    ) -> None:
        self.ring = ring
        self._opener = opener
        self.log: Logger | None = None  # told of each frame that was written
        self._bus = bus
        self._queue = CompletionQueue()
        self._header_len = features.header_len
        self._least = features.header_len + 1  # bytes of a buffer: one with less is of no use
        self._has_count = features.header_len == HEADER_LEN
        self._mergeable = features.mergeable
        self._stats = stats
        self._spare: deque[Chain] = deque()
        self._spare_room = 0
        self._last = 0  # number of the buffer that was taken last
        self._is_asking = True  # the driver kicks when it makes buffers available
        self._open: dict[RxClaim, None] = {}

    # Claims

    def claim(self, size: int, headers: Sequence[int]) -> RxClaim | None:
        need = size + self._header_len
        chains = self._gather(need)
        if not chains:
            return None
        if self._is_asking:
            self._is_asking = False
            self.ring.waive_kick()
        ranges, room = _joined(chains)
        head, rest = behead(ranges, self._header_len)
        parts = cut(rest, headers, size, room - self._header_len)
        transfer = Transfer(Direction.FROM_DEVICE, parts, headers=headers)
        claim = RxClaim(self, chains, room, size, transfer)
        claim.header = [self._opener.view(PhysAddr(addr), length) for addr, length in head]
        iov = self._bus.open(transfer)
        claim.iov = iov if room >= need else iov + IoVec.of(bytearray(need - room))
        self._queue.start(transfer)
        self._open[claim] = None
        return claim

    def _gather(self, need: int) -> list[Chain]:
        """Buffers with room for so many bytes; none: not now."""
        if not self._mergeable:
            chain = self._take()
            return [] if chain is None else [chain]
        if not self._spare:
            chains = self.ring.take_room(need, self._least)
            if chains:
                self._last = chains[-1].number
                if sum([chain.room for chain in chains]) >= need:  # mostly
                    return chains
                self._keep(chains)
        while self._spare_room < need:
            if not self._fetch(need - self._spare_room):
                if len(self._spare) < self.ring.size:
                    return []
                break
        chains = []
        while need > 0 and self._spare:
            chain = self._spare.popleft()
            self._spare_room -= chain.room
            need -= chain.room
            chains.append(chain)
        return chains

    def _take(self) -> Chain | None:
        """The next buffer."""
        if not self._spare and not self._fetch(1):
            return None
        chain = self._spare.popleft()
        self._spare_room -= chain.room
        return chain

    def _fetch(self, need: int) -> bool:
        """Have more spare room. Where there is none, the driver is asked to kick."""
        chains = self.ring.take_room(need, self._least)
        if not chains:
            self._is_asking = True
            if self.ring.want_kick():
                chains = self.ring.take_room(need, self._least)
        self._keep(chains)
        return bool(chains)

    def _keep(self, chains: list[Chain]) -> None:
        if chains:
            self._last = chains[-1].number
            self._spare += chains
            self._spare_room += sum([chain.room for chain in chains])

    def commit(self, claim: RxClaim, size: int, vnet: bytes) -> None:
        stored = size + self._header_len
        if stored > claim.room:
            self._stats["rx_too_long"] += 1
            self.cancel(claim)
            return
        self._close(claim)
        claim.size = size
        held = 0
        for count, chain in enumerate(claim.chains, 1):
            held += chain.room
            if held >= stored:
                if count < len(claim.chains):
                    self._give_up(claim.chains[count:])
                    del claim.chains[count:]
                break
        if self._has_count:
            vnet = vnet[:VNET_LEN] + len(claim.chains).to_bytes(2, "little")
        if len(claim.header) == 1:
            claim.header[0][:] = vnet
        else:
            IoVec(tuple(claim.header)).copy_from(vnet)
        self._queue.finish(claim.transfer, size)

    def cancel(self, claim: RxClaim) -> None:
        self._close(claim)
        self._queue.cancel(claim.transfer)
        self._give_up(claim.chains)

    def _close(self, claim: RxClaim) -> None:
        claim.is_open = False
        del self._open[claim]

    def _give_up(self, chains: list[Chain]) -> None:
        """These were not needed: they are the next ones to be used."""
        spare = self._spare
        self._spare_room += sum([chain.room for chain in chains])
        if spare and spare[0].number < chains[-1].number:
            self._spare = deque(sorted((*chains, *spare)))
        else:
            spare.extendleft(reversed(chains))

    # Completions

    def hand_over(self, claim: RxClaim) -> None:
        """Runs last: the frame's buffers are used."""
        stored = claim.size + self._header_len
        self.ring.push_filled(claim.chains, stored)
        if self.log is not None:
            self.log(_joined(claim.chains)[0], stored)
        self._stats["rx_frames"] += 1
        self._stats["rx_octets"] += claim.size

    def publish(self) -> bool:
        """Run what is complete and show it to the driver; is it to be interrupted?"""
        if self._queue.pending:
            self._queue.run(RUN_MAX)
        return self.ring.publish()

    def stop(self) -> bool:
        """Nothing is touched from now on; is the driver to be interrupted?

        Claims that are open are void, and whoever fills one has let go when this returns: their
        buffers are as if they had never been looked at.
        """
        for claim in list(self._open):
            self.cancel(claim)
            if claim.withdraw is not None:
                claim.withdraw()
        self._queue.run(RUN_MAX)
        spare = sorted(self._spare)
        self._spare.clear()
        self._spare_room = 0
        # What is left at the end was never taken; what lies before a used one goes back empty.
        while spare and self._last - spare[0].number >= len(spare):
            self.ring.push(spare.pop(0), 0)
        if spare:
            self.ring.rewind(spare[0])
        return self.ring.publish()


def _joined(chains: list[Chain]) -> tuple[list[Range], int]:
    """The ranges of all, and their bytes."""
    if len(chains) == 1:
        return chains[0].ranges, chains[0].room
    ranges: list[Range] = []
    room = 0
    for chain in chains:
        ranges += chain.ranges
        room += chain.room
    return ranges, room
