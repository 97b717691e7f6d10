"""A virtio network device: receive and transmit rings in pairs, and what passes between them.

Ring 0 receives (what the guest receives), ring 1 transmits, 2 receives, and so on. A ring is
started with where it lies and stopped; a started one may be disabled: then nothing is received in
it, and what is sent in it is dropped. What the driver's features allow (checksums, super-frames) is
asked here by the port that the network sees.

Frames from the guest: a transmit ring is looked at after a kick (`kicked`) until it is empty, then
the driver is asked to kick again. A call of `frames` takes at most `FRAMES_PER_CALL` frames from a
ring, and looks at `RANGES_PER_CALL` pieces of guest memory, of all rings together; what is left
makes `has_more`, and rings that were not looked at come first then.

Frames to the guest go to the receive ring of the first pair that is enabled, however many there
are, so that no frame overtakes another. A guest with several processors may spread them (RPS).

Does not do: the control queue, which is the emulator's; RSS, or following the guest's choice of
ring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from dma.transfer import DmaPath
from nic.virtio.chain import WRITE, Opener, Ring
from nic.virtio.features import Features
from nic.virtio.receiver import Logger, Receiver, RxClaim
from nic.virtio.transmitter import Transmitter, TxFrame

FRAMES_PER_CALL: Final = 64  # frames of one ring in one call of frames()
RANGES_PER_CALL: Final = 4096  # pieces of guest memory that they, and what is none, are made of
COUNTERS: Final = (
    *("rx_frames", "rx_octets", "rx_too_long"),
    *("tx_frames", "tx_octets", "tx_dropped"),
)


def receives(index: int) -> bool:
    """Is this a receive ring?"""
    return not index & 1


def way_of(index: int) -> int:
    """The direction of a ring's buffers, as descriptors have it."""
    return WRITE if receives(index) else 0


class NetDevice:
    """One device. `bus` is where the driver's addresses lead; `memory` is the same without whoever
    watches, for what is the device's own: headers and rings."""

    def __init__(self, bus: DmaPath, memory: Opener) -> None:
        self.stats = dict.fromkeys(COUNTERS, 0)
        self.features = Features()
        self.bus = bus
        self.memory = memory
        self._receivers: dict[int, Receiver] = {}
        self._transmitters: dict[int, Transmitter] = {}
        self._disabled: set[int] = set()
        self._receiver: Receiver | None = None  # where frames go
        self._active: dict[int, None] = {}  # transmit rings to look at
        self._left = 0  # pieces that this call of frames() may look at
        self._log: Logger | None = None

    # Rings

    def start(self, index: int, ring: Ring) -> None:
        """A ring is there."""
        parts = self.features, self.bus, self.memory, self.stats
        if receives(index):
            self._receivers[index] = receiver = Receiver(ring, *parts)
            receiver.log = self._log
        else:
            self._transmitters[index] = Transmitter(ring, *parts)
            self._active[index] = None
        self._choose()

    def stop(self, index: int) -> bool:
        """A ring is not to be touched any more; is the driver to be interrupted?"""
        self._active.pop(index, None)
        half = self._receivers.pop(index, None) or self._transmitters.pop(index, None)
        self._choose()
        return half is not None and half.stop()

    def forget(self, index: int) -> None:
        """Another device goes on with a ring: nothing is given back or told."""
        self._active.pop(index, None)
        self._receivers.pop(index, None)
        self._transmitters.pop(index, None)
        self._choose()

    def enable(self, index: int, on: bool) -> None:
        """A ring's buffers are for use, or not."""
        if on:
            self._disabled.discard(index)
        else:
            self._disabled.add(index)
        self._choose()

    def _choose(self) -> None:
        usable = sorted(self._receivers.keys() - self._disabled)
        self._receiver = self._receivers[usable[0]] if usable else None
        for index, transmitter in self._transmitters.items():
            transmitter.is_enabled = index not in self._disabled

    def use_log(self, log: Logger | None) -> None:
        """Tell this of frames that are written into guest memory."""
        self._log = log
        for receiver in self._receivers.values():
            receiver.log = log

    # Frames

    def claim(self, size: int, headers: Sequence[int] = ()) -> RxClaim | None:
        """Room for a frame towards the guest; None: not now."""
        receiver = self._receiver
        return None if receiver is None else receiver.claim(size, headers)

    def kicked(self, index: int) -> None:
        """The driver says that there is something in this ring."""
        if index in self._transmitters:
            self._active[index] = None

    @property
    def has_more(self) -> bool:
        """Is there more to look at, though nobody kicks?"""
        return bool(self._active)

    def frames(self) -> Iterator[TxFrame]:
        """What the guest sent."""
        self._left = RANGES_PER_CALL
        for index in list(self._active):
            transmitter = self._transmitters.get(index)
            if transmitter is None:
                continue
            yield from self._frames_of(index, transmitter)
            if self._left <= 0:
                return

    def _frames_of(self, index: int, transmitter: Transmitter) -> Iterator[TxFrame]:
        ring = transmitter.ring
        ring.waive_kick()
        for _ in range(FRAMES_PER_CALL):
            frame = transmitter.next_frame()
            self._left -= transmitter.pieces
            if frame is None:
                if not ring.want_kick():
                    self._active.pop(index, None)
                    return
                break
            yield frame
            if self._left <= 0:
                break
        if index in self._active:  # it was not stopped meanwhile
            del self._active[index]
            self._active[index] = None  # behind the others

    def publish(self) -> list[int]:
        """Show the driver what was done since the last time; the rings to interrupt it for."""
        told = [index for index, half in self._receivers.items() if half.publish()]
        told += [index for index, half in self._transmitters.items() if half.publish()]
        return told
