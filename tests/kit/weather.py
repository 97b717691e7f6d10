"""A port under bad weather: frames are lost, doubled, late and out of order, by a seeded die.

What `tc netem` does where the kernel has it, for the same device and both directions: the frames of
real TCP and ours meet each other late, or not at all.

Does not do: corruption (checksums have their own tests).
"""

from __future__ import annotations

import heapq
import os
import random
import select
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dma.iovec import IoVec, scatter_copy
from nic.port import VNET_NONE, Claim, Frame, Port
from slirp.host import timerfd


class Forecast(NamedTuple):
    """Shares of frames, 0 to 1, and seconds."""

    loss: float = 0.0
    doubled: float = 0.0
    late: float = 0.0  # so many frames come `delay` late, and so out of order
    delay: float = 0.002


class WeatherPort:
    """Is a Port, wraps a Port."""

    def __init__(self, inner: Port, forecast: Forecast, seed: int) -> None:
        self._inner = inner
        self._forecast = forecast
        self._die = random.Random(seed)
        self.max_frame = inner.max_frame
        self.offload = inner.offload
        self.lost = 0
        self.late = 0
        self._to_guest: list[tuple[float, int, bytes, bytes]] = []
        self._to_host: list[tuple[float, int, bytes, bytes]] = []
        self._count = 0
        self._alarm = timerfd.create()
        self._epoll = select.epoll()
        self._epoll.register(inner.fileno(), select.EPOLLIN)
        self._epoll.register(self._alarm, select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        self._epoll.close()
        os.close(self._alarm)

    def fates(self) -> list[float]:
        """When the copies of one frame arrive: none, one or two of them, late or at once (0)."""
        weather, die = self._forecast, self._die
        if die.random() < weather.loss:
            self.lost += 1
            return []
        copies = 2 if die.random() < weather.doubled else 1
        fates = [weather.delay if die.random() < weather.late else 0.0 for _ in range(copies)]
        self.late += sum(map(bool, fates))
        return fates

    # Towards the guest

    def claim(self, size: int, headers: Sequence[int] = ()) -> Claim | None:
        inner = self._inner.claim(size, headers)
        return None if inner is None else WeatherClaim(self, inner)

    def hold(self, frame: bytes, vnet: bytes, delay: float) -> None:
        """Send it to the guest later."""
        self._count += 1
        heapq.heappush(self._to_guest, (time.monotonic() + delay, self._count, frame, vnet))

    def send(self, frame: bytes, vnet: bytes) -> None:
        """Send it to the guest now, in a claim of its own."""
        claim = self._inner.claim(len(frame))
        if claim is not None:
            scatter_copy(claim.iov.segments, (memoryview(frame),))
            claim.commit(len(frame), vnet)

    def poll(self, now: float) -> float | None:
        while self._to_guest and self._to_guest[0][0] <= now:
            _, _, frame, vnet = heapq.heappop(self._to_guest)
            self.send(frame, vnet)
        at = self._inner.poll(now)
        if self._to_guest:
            at = min(self._to_guest[0][0], at or self._to_guest[0][0])
        return at

    # From the guest

    def frames(self) -> Iterator[Frame]:
        timerfd.clear(self._alarm)
        now = time.monotonic()
        for frame in self._inner.frames():
            for delay in self.fates():
                if delay:
                    self._count += 1
                    late = (now + delay, self._count, bytes(frame.iov), frame.vnet)
                    heapq.heappush(self._to_host, late)
                else:
                    yield Frame(frame.iov, frame.vnet)
            frame.release()
        while self._to_host and self._to_host[0][0] <= now:
            _, _, octets, vnet = heapq.heappop(self._to_host)
            yield Frame(IoVec.of(octets), vnet)
        timerfd.set_at(self._alarm, self._to_host[0][0] if self._to_host else None)


class WeatherClaim:
    """A claim whose frame may not arrive."""

    def __init__(self, port: WeatherPort, inner: Claim) -> None:
        self._port = port
        self._inner = inner
        self.iov = inner.iov

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        fates = self._port.fates()
        frame = bytes(self.iov.slice(0, size)) if fates != [0.0] else b""
        if 0.0 in fates:
            self._inner.commit(size, vnet)
            fates.remove(0.0)
        else:
            self._inner.cancel()
        for delay in fates:
            if delay:
                self._port.hold(frame, vnet, delay)
            else:
                self._port.send(frame, vnet)

    def cancel(self) -> None:
        self._inner.cancel()
