"""A port in memory, which behaves as badly as the contract allows.

Claims are cut where asked and, on request, in further places; their bytes are poison until they
are written, so a frame that goes out with a gap in it shows. A frame from the guest is valid until
it is released: then its bytes are overwritten, so a view that is kept too long shows as well.

    port = MemoryPort()
    port.give(frame)              # from the guest; the network's next turn takes it
    port.take()                   # what the network sent since, oldest first
    port.room = 0                 # no more claims …
    port.grant(3)                 # … three more, and the descriptor says so

Does not do: the other side. That is tests.kit.guest.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from dma.iovec import IoVec
from nic.port import VNET_NONE, Frame, PortDefaults

POISON = 0xDB  # what a claim holds before it is filled
SPENT = 0xEE  # what a frame holds after its release
FRAMES_PER_CALL = 64


class SpentFrame(Frame):
    """A frame whose memory is the guest's again at `release()`."""

    __slots__ = ("_memory",)

    def __init__(self, octets: bytes, vnet: bytes, piece: int) -> None:
        self._memory = bytearray(octets)
        view = memoryview(self._memory)
        step = piece or max(len(octets), 1)
        super().__init__(
            IoVec(tuple(view[at : at + step] for at in range(0, len(octets), step))), vnet
        )

    def release(self) -> None:
        self._memory[:] = bytes((SPENT,)) * len(self._memory)


class MemoryClaim:
    """Poisoned memory for one frame."""

    def __init__(self, port: MemoryPort, size: int, headers: Sequence[int]) -> None:
        self._port = port
        memory = memoryview(bytearray(bytes((POISON,)) * size))
        ends = [sum(headers[: n + 1]) for n in range(len(headers))]
        if port.piece:
            ends += range(port.piece, size, port.piece)
        cuts = sorted({0, size, *(end for end in ends if end < size)})
        self.iov = IoVec(tuple(memory[start:stop] for start, stop in pairwise(cuts)))
        port.open_claims += 1

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        assert size <= len(self.iov), "more bytes than were claimed"
        self._port.open_claims -= 1
        self._port.sent.append(bytes(self.iov.slice(0, size)))
        self._port.vnets.append(vnet)

    def cancel(self) -> None:
        self._port.open_claims -= 1
        self._port.cancelled += 1

    def hold(self, withdraw: Callable[[], None]) -> MemoryClaim:
        """A claim has memory of its own: it is held as it is."""
        return self


class MemoryPort(PortDefaults):
    """`piece`: cut claims and frames every so many bytes as well; 0: only where asked."""

    holds_claims = True

    def __init__(self, *, max_frame: int = 1514, offload: bool = False, piece: int = 0) -> None:
        self.max_frame = max_frame
        self.offload = offload
        self.piece = piece
        self.room: int | None = None  # claims that it still grants; None: no end of them
        self.sent: list[bytes] = []
        self.vnets: list[bytes] = []
        self.open_claims = 0
        self.cancelled = 0
        self.refused = 0
        self._frames: deque[SpentFrame] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def claim(self, size: int, headers: Sequence[int] = ()) -> MemoryClaim | None:
        assert 0 < size <= self.max_frame, f"a claim of {size} bytes"
        if self.room is not None:
            if not self.room:
                self.refused += 1
                return None
            self.room -= 1
        return MemoryClaim(self, size, headers)

    def frames(self) -> Iterator[Frame]:
        if self._frames or self._is_signalled():
            os.eventfd_read(self._event)
        for _ in range(min(len(self._frames), FRAMES_PER_CALL)):
            yield self._frames.popleft()
        if self._frames:
            os.eventfd_write(self._event, 1)

    def _is_signalled(self) -> bool:
        try:
            os.eventfd_write(self._event, os.eventfd_read(self._event))
        except BlockingIOError:
            return False
        return True

    def fileno(self) -> int:
        return self._event

    def close(self) -> None:
        os.close(self._event)

    # The guest's side

    def give(self, frame: bytes, vnet: bytes = VNET_NONE) -> None:
        """The guest sends a frame."""
        self._frames.append(SpentFrame(frame, vnet, self.piece))
        os.eventfd_write(self._event, 1)

    def grant(self, count: int | None) -> None:
        """The guest gives buffers back: so many claims (None: any number)."""
        self.room = count
        os.eventfd_write(self._event, 1)

    def take(self) -> list[bytes]:
        """The frames that came for the guest since the last call."""
        sent, self.sent = self.sent, []
        self.vnets = []
        return sent
