"""A port whose frames to the guest are shown to a test as they are committed.

Does not do: change anything, or look at what the guest sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dma.iovec import IoVec
from nic.port import VNET_NONE, Claim, Frame, Port

SEEN_LEN = 128  # bytes of a frame that are shown: its headers


class WatchedClaim:
    def __init__(self, inner: Claim, see: Callable[[bytes], None]) -> None:
        self.iov: IoVec = inner.iov
        self._inner = inner
        self._see = see

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        self._see(bytes(self.iov.slice(0, min(size, SEEN_LEN))))
        self._inner.commit(size, vnet)

    def cancel(self) -> None:
        self._inner.cancel()


class WatchedPort:
    """Is a Port, wraps a Port; `see` is called with the start of each frame."""

    def __init__(self, inner: Port, see: Callable[[bytes], None]) -> None:
        self._inner = inner
        self._see = see
        self.max_frame = inner.max_frame
        self.offload = inner.offload

    def claim(self, size: int, headers: Sequence[int] = ()) -> Claim | None:
        inner = self._inner.claim(size, headers)
        return None if inner is None else WatchedClaim(inner, self._see)

    def frames(self) -> Iterator[Frame]:
        return self._inner.frames()

    def fileno(self) -> int:
        return self._inner.fileno()

    def poll(self, now: float) -> float | None:
        return self._inner.poll(now)
