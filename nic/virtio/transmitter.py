"""A transmit ring: frames are views of guest memory until they are released.

`next_frame` takes a buffer, reads the virtio-net header in front of it once, and opens the rest as
one transfer: the views are the frame. When it is released the queue completes it, in the ring's
order whatever the order of releases, and `publish` shows the driver a turn's buffers at once.

A buffer that is shorter than its header and an Ethernet header, or longer than any frame, is given
back and counted. While the ring is disabled its frames are dropped: the driver gets its buffers
back, and nobody sees what was in them.

Bounds: `next_frame` gives up after `SKIPS_MAX` buffers that were no frames, or `PIECES_MAX` pieces
of such; `pieces` is how many it looked at. At most the ring's size is out at once.

Does not do: judge what is in a frame.
"""

from __future__ import annotations

from typing import Final

from dma.iovec import IoVec, PhysAddr
from dma.transfer import CompletionQueue, Direction, DmaPath, Transfer
from nic.port import VNET_LEN, Frame
from nic.virtio.chain import PIECES_MAX, Chain, Opener, Ring
from nic.virtio.features import FRAME_MAX, Features
from nic.virtio.ranges import behead

FRAME_MIN: Final = 14  # bytes: an Ethernet header
SKIPS_MAX: Final = 64  # buffers without a frame, looked at in one call
RUN_MAX: Final = 1 << 16  # completions of one run: more than a ring can have


class TxFrame(Frame):
    """A frame of the guest's; `release()` lets it have its buffer back."""

    __slots__ = ("_transmitter", "chain", "is_held", "transfer")

    def __init__(self, transmitter: Transmitter, chain: Chain, transfer: Transfer) -> None:
        super().__init__(IoVec())
        self._transmitter = transmitter
        self.chain = chain
        self.transfer = transfer
        self.is_held = True
        transfer.completions.append(self.give_back)

    def release(self) -> None:
        if self.is_held:
            self.is_held = False
            self._transmitter.finish(self)

    def give_back(self, _size: int) -> None:
        self._transmitter.ring.push(self.chain, 0)


class Transmitter:
    """A transmit ring that is started."""

    def __init__(
        self, ring: Ring, features: Features, bus: DmaPath, opener: Opener, stats: dict[str, int]
    ) -> None:
        self.ring = ring
        self._opener = opener
        self.is_enabled = True
        self.pieces = 0  # of guest memory that the last next_frame() looked at
        self._bus = bus
        self._queue = CompletionQueue()
        self._header_len = features.header_len
        self._stats = stats
        self._held: dict[int, Chain] = {}  # by number: what was not given back

    def next_frame(self) -> TxFrame | None:
        """The next frame; None: there is none, or nothing but rubbish so far."""
        self.pieces = 0
        for _ in range(SKIPS_MAX):
            chain = self.ring.take()
            if chain is None:
                return None
            self.pieces += len(chain.ranges)
            size = chain.room - self._header_len
            if self.is_enabled and FRAME_MIN <= size <= FRAME_MAX:
                return self._frame(chain, size)
            self._drop(chain)
            if self.pieces >= PIECES_MAX:
                return None
        return None

    def _frame(self, chain: Chain, size: int) -> TxFrame:
        head, rest = behead(chain.ranges, self._header_len)
        header = [self._opener.view(PhysAddr(addr), length) for addr, length in head]
        transfer = Transfer(Direction.TO_DEVICE, rest, headers=())
        frame = TxFrame(self, chain, transfer)
        frame.vnet = b"".join(header)[:VNET_LEN]
        frame.iov = self._bus.open(transfer)
        self._start(frame)
        self._stats["tx_frames"] += 1
        self._stats["tx_octets"] += size
        return frame

    def _drop(self, chain: Chain) -> None:
        """Give a buffer back in its turn, without a look at what is in it."""
        frame = TxFrame(self, chain, Transfer(Direction.TO_DEVICE, ()))
        self._start(frame)
        frame.release()
        self._stats["tx_dropped"] += 1

    def _start(self, frame: TxFrame) -> None:
        self._queue.start(frame.transfer)
        self._held[frame.chain.number] = frame.chain

    def finish(self, frame: TxFrame) -> None:
        if self._held.pop(frame.chain.number, None) is not None:
            self._queue.finish(frame.transfer, 0)

    def publish(self) -> bool:
        """Run what is complete and show it to the driver; is it to be interrupted?"""
        if self._queue.pending:
            self._queue.run(RUN_MAX)
        return self.ring.publish()

    def stop(self) -> bool:
        """Nothing is touched from now on; is the driver to be interrupted?

        Frames that are still out are as if they had never been taken, with all that follow them.
        """
        self._queue.run(RUN_MAX)
        self._queue.clear()
        if self._held:
            self.ring.rewind(min(self._held.values()))
            self._held.clear()
        return self.ring.publish()
