"""A link between a `Mirror` and a `Peer` that loses, doubles and delays, by a seeded die."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Final, NamedTuple

from tests.kit.clock import Clock
from tests.kit.peer import Mirror, Peer

TURNS_MAX: Final = 50_000  # of one run; two ends that never rest are a bug


class Weather(NamedTuple):
    """Shares of segments, 0 to 1, and seconds."""

    loss: float = 0.0
    duplication: float = 0.0
    reorder: float = 0.0  # delayed ten times as long
    delay: float = 0.001


class LossyLink:
    """Runs both ends on one clock until they are quiet."""

    def __init__(self, mirror: Mirror, peer: Peer, clock: Clock, weather: Weather, seed: int):
        self.mirror = mirror
        self.peer = peer
        self.clock = clock
        self.weather = weather
        self.sent = [0, 0]  # segments: to the peer, to the mirror
        self._die = random.Random(seed)
        self._flying: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()

    def _launch(self, direction: int, arrive: Callable[[float], None]) -> None:
        self.sent[direction] += 1
        roll = self._die.random
        if roll() < self.weather.loss:
            return
        for _ in range(1 + (roll() < self.weather.duplication)):
            slow = 10 if roll() < self.weather.reorder else 1
            at = self.clock.now + self.weather.delay * slow
            heapq.heappush(self._flying, (at, next(self._order), arrive))

    def _launch_all(self) -> None:
        for emission, data in self.mirror.take_out():
            self._launch(0, lambda now, e=emission, d=data: self.peer.handle(e, d, now))  # type: ignore[misc]
        for seg, payload in self.peer.take_out():
            self._launch(1, lambda now, s=seg, p=payload: self._to_mirror(s, p, now))  # type: ignore[misc]

    def _to_mirror(self, seg: object, payload: bytes, now: float) -> None:
        self.mirror.receive(seg, payload, now)  # type: ignore[arg-type]
        self.mirror.end_batch(now)

    def run(self, seconds: float, each_turn: Callable[[float], None] | None = None) -> None:
        """Until nothing is due within so many seconds of now, or both ends are done."""
        end = self.clock.now + seconds
        for _ in range(TURNS_MAX):
            if self.peer.done and self.mirror.guest_closed and self.mirror.over:
                return
            self._launch_all()
            deadlines = [self.mirror.connection.poll_at(), self.peer.resend_at]
            if self._flying:
                deadlines.append(self._flying[0][0])
            nearest = min((at for at in deadlines if at is not None), default=None)
            if nearest is None or nearest > end:
                return
            now = self.clock.until(nearest)
            while self._flying and self._flying[0][0] <= now:
                heapq.heappop(self._flying)[2](now)
            if self.peer.resend_at is not None and self.peer.resend_at <= now:
                self.peer.timeout(now)
            self.mirror.timeout(now)
            if each_turn is not None:
                each_turn(now)
        raise AssertionError("the two ends never rest")
