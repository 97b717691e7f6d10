"""The loop: descriptors, lazy deadlines, settlers, and being driven from somebody else's loop."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from slirp.host.loop import READABLE, REST_FOR, RETRY_AFTER, STALE_MIN, WRITABLE, Loop
from tests.kit.clock import Clock


class Alarm:
    """Something with a deadline, which may move; it notes when it was visited."""

    def __init__(self, at: float | None) -> None:
        self.at = at
        self.visit: float | None = None
        self.visits: list[float] = []
        self.rang: list[float] = []

    def handle_timeout(self, now: float) -> float | None:
        self.visits.append(now)
        if self.at is not None and now >= self.at:
            self.rang.append(now)
            self.at = None
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock) -> Iterator[Loop]:
    made = Loop(lambda: clock.now)
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_a_ready_descriptor_calls_its_handler(loop: Loop, pipe: tuple[int, int]) -> None:
    calls: list[tuple[int, float]] = []
    loop.register(pipe[0], READABLE, lambda events, now: calls.append((events, now)))
    assert loop.turn(0) == 0
    os.write(pipe[1], b"x")
    assert loop.turn(0) == 1
    assert calls == [(READABLE, loop.now)]
    loop.unregister(pipe[0])
    loop.unregister(pipe[0])  # unknown by now, and no error
    assert loop.turn(0) == 0


def test_what_was_unregistered_in_the_turn_is_not_called(loop: Loop) -> None:
    first, second = os.eventfd(1), os.eventfd(1)
    called: list[int] = []

    def handler(mine: int, other: int) -> None:
        called.append(mine)
        loop.unregister(other)

    loop.register(first, READABLE, lambda events, now: handler(first, second))
    loop.register(second, READABLE, lambda events, now: handler(second, first))
    loop.turn(0)
    assert len(called) == 1
    os.close(first)
    os.close(second)


def test_events_of_a_closed_descriptor_are_not_its_successors(loop: Loop) -> None:
    """Closed and opened again in one turn, a number stands for something else."""
    ready = [os.eventfd(1), os.eventfd(1)]
    heirs: list[int] = []
    misled: list[int] = []

    def replace(mine: int) -> None:
        (other,) = set(ready) - {mine}
        loop.unregister(other)
        os.close(other)
        heir = os.eventfd(0)
        assert heir == other
        heirs.append(heir)
        loop.register(heir, READABLE, lambda events, now: misled.append(heir))

    for fd in ready:
        loop.register(fd, READABLE, lambda events, now, fd=fd: replace(fd))  # type: ignore[misc]
    loop.turn(0)
    assert len(heirs) == 1
    assert not misled
    os.eventfd_write(heirs[0], 1)
    ready.clear()
    loop.unregister(heirs[0])
    loop.register(heirs[0], READABLE, lambda events, now: misled.append(now))  # type: ignore[arg-type]
    os.close(heirs[0])


def test_a_deadline_is_visited_once_due(loop: Loop, clock: Clock) -> None:
    alarm = Alarm(clock.now + 5)
    loop.visit_at(alarm, alarm.at)
    assert loop.deadline() == clock.now + 5
    clock.advance(4.9)
    loop.turn(0)
    assert not alarm.visits
    clock.advance(0.1)
    loop.turn(0)
    assert alarm.rang == [clock.now]
    assert loop.deadline() is None


def test_a_deadline_that_moved_on_costs_one_visit(loop: Loop, clock: Clock) -> None:
    alarm = Alarm(clock.now + 1)
    loop.visit_at(alarm, alarm.at)
    for _ in range(100):
        clock.advance(0.005)
        alarm.at = clock.now + 1  # as every segment moves TCP's: nobody tells the loop
        loop.turn(0)
    clock.advance(0.6)
    loop.turn(0)
    assert len(alarm.visits) == 1
    assert not alarm.rang
    clock.advance(0.4)
    loop.turn(0)
    assert alarm.rang == [clock.now]


def test_an_earlier_booking_counts_and_a_later_one_does_not(loop: Loop, clock: Clock) -> None:
    alarm = Alarm(None)
    start = clock.now
    for seconds in (5, 9, 2, 7):
        loop.visit_at(alarm, start + seconds)
    loop.visit_at(alarm, None)
    for _ in range(10):
        clock.advance(1)
        loop.turn(0)
    assert alarm.visits == [start + 2]


def test_a_dropped_booking_is_not_visited(loop: Loop, clock: Clock) -> None:
    alarm = Alarm(clock.now + 1)
    loop.visit_at(alarm, alarm.at)
    alarm.visit = None
    assert loop.deadline() is None
    clock.advance(2)
    loop.turn(0)
    assert not alarm.visits


def test_bookings_that_no_longer_count_do_not_pile_up(loop: Loop, clock: Clock) -> None:
    """A far deadline, again and again pushed aside by a near one: a connection that idles a bit."""
    alarm = Alarm(None)
    for _ in range(20 * STALE_MIN):
        loop.visit_at(alarm, clock.now + 7200)
        loop.visit_at(alarm, clock.now + 0.2)
        clock.advance(0.3)
        loop.turn(0)
    assert len(loop._visits) <= 3 * STALE_MIN


def test_what_was_dropped_is_not_held(loop: Loop, clock: Clock) -> None:
    """Connections that ended leave no trace, although their deadline was hours away."""
    last = [Alarm(None) for _ in range(10)]
    gone = []
    for _ in range(4 * STALE_MIN):
        alarm = Alarm(None)
        loop.visit_at(alarm, clock.now + 7200)
        alarm.visit = None
        gone.append(weakref.ref(alarm))
    del alarm
    for alarm in last:
        loop.visit_at(alarm, clock.now + 1)
    gc.collect()
    assert sum(ref() is not None for ref in gone) <= 2 * STALE_MIN
    clock.advance(2)
    loop.turn(0)
    assert all(alarm.visits for alarm in last)


def test_many_deadlines_in_order(loop: Loop, clock: Clock) -> None:
    seen: list[int] = []

    class Numbered(Alarm):
        def __init__(self, number: int) -> None:
            super().__init__(None)
            self.number = number

        def handle_timeout(self, now: float) -> float | None:
            seen.append(self.number)
            return None

    alarms = [Numbered(n) for n in range(3000)]
    for alarm in alarms:
        loop.visit_at(alarm, clock.now + 1 + alarm.number * 1e-3)
    clock.advance(10)
    while loop.deadline() is not None:
        loop.turn(0)
    assert seen == list(range(3000))


def test_settlers_run_every_turn_in_order(loop: Loop) -> None:
    ran: list[str] = []
    loop.add_settler(lambda now: ran.append("first"))
    loop.add_settler(lambda now: ran.append("second"))
    loop.turn(0)
    loop.turn(0)
    assert ran == ["first", "second"] * 2


def test_again_does_not_wait(loop: Loop) -> None:
    loop.again()
    before = time.monotonic()
    loop.turn(10)
    assert time.monotonic() - before < 5


def test_a_turn_waits_for_its_deadline_and_no_longer() -> None:
    loop = Loop()
    alarm = Alarm(time.monotonic() + 0.02)
    loop.visit_at(alarm, alarm.at)
    while not alarm.rang:
        loop.turn(None)
    assert loop.now - alarm.rang[0] == 0
    loop.close()


def test_an_outer_loop_sees_deadlines() -> None:
    """select(2) on the loop's descriptor wakes for what the loop itself waits for."""
    loop = Loop()
    fd = loop.fileno()
    assert not select.select([fd], [], [], 0)[0]
    alarm = Alarm(time.monotonic() + 0.01)
    loop.visit_at(alarm, alarm.at)
    loop.turn(0)  # sets the alarm
    assert select.select([fd], [], [], 5)[0]
    loop.turn(0)
    while not alarm.rang:
        assert select.select([fd], [], [], 5)[0]
        loop.turn(0)
    loop.turn(0)
    assert not select.select([fd], [], [], 0)[0], "the alarm is off once it rang"
    loop.close()


def test_an_outer_loop_is_woken_by_again(loop: Loop) -> None:
    fd = loop.fileno()
    loop.again()
    loop.turn(0)
    assert not select.select([fd], [], [], 0)[0]
    loop.add_settler(lambda now: loop.again())
    loop.turn(0)
    assert select.select([fd], [], [], 5)[0]


def test_an_outer_loop_is_woken_by_a_deadline_booked_between_turns() -> None:
    loop = Loop()
    fd = loop.fileno()
    alarm = Alarm(time.monotonic() + 0.01)
    loop.visit_at(alarm, alarm.at)
    assert select.select([fd], [], [], 5)[0]
    loop.close()


def test_asyncio_drives_it() -> None:
    async def main() -> list[float]:
        loop = Loop()
        alarm = Alarm(time.monotonic() + 0.01)
        done = asyncio.Event()

        def turn() -> None:
            loop.turn(0)
            if alarm.rang:
                done.set()

        asyncio.get_running_loop().add_reader(loop.fileno(), turn)
        loop.visit_at(alarm, alarm.at)
        turn()
        await asyncio.wait_for(done.wait(), 5)
        asyncio.get_running_loop().remove_reader(loop.fileno())
        loop.close()
        return alarm.rang

    assert asyncio.run(main())


class StarvedEpoll:
    """An epoll some of whose calls find no memory."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self.failures: dict[str, int] = {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._epoll, name)

        def sometimes(*args: Any) -> Any:
            self.calls.append(name)
            if self.failures.get(name):
                self.failures[name] -= 1
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            return found(*args)

        return sometimes


def starve(loop: Loop, **failures: int) -> StarvedEpoll:
    epoll = StarvedEpoll(loop._epoll)
    loop._epoll = loop._resting._epoll = epoll  # type: ignore[assignment]
    epoll.failures.update(failures)
    return epoll


def no_memory(events: int, now: float) -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_a_handler_that_meets_a_shortage_is_not_called_again_at_once(
    loop: Loop, clock: Clock, pipe: tuple[int, int]
) -> None:
    """It would be for ever: its descriptor stays ready."""
    calls: list[int] = []

    def handle(events: int, now: float) -> None:
        calls.append(events)
        if len(calls) < 3:
            no_memory(events, now)
        os.read(pipe[0], 9)

    loop.register(pipe[0], READABLE, handle)
    os.write(pipe[1], b"x")
    for visits in (1, 2, 3):
        for _ in range(5):
            loop.turn(0)
        assert len(calls) == visits
        clock.advance(RETRY_AFTER)
        loop.turn(0)
    assert loop.shortages == 2


def test_who_hangs_up_while_nobody_can_be_served_is_not_reported_for_ever(
    loop: Loop, clock: Clock
) -> None:
    """EPOLLHUP and EPOLLERR come whether they are asked for or not."""
    calls: list[int] = []
    ours, theirs = os.pipe()

    def handle(events: int, now: float) -> None:
        calls.append(events)
        no_memory(events, now)

    loop.register(ours, READABLE, handle)
    os.close(theirs)
    for _ in range(5):
        loop.turn(0)
    assert len(calls) == 1
    loop.unregister(ours)
    os.close(ours)
    clock.advance(RETRY_AFTER)
    loop.turn(0)
    assert len(calls) == 1


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_a_descriptor_that_epoll_has_no_memory_for_is_watched_later(
    failures: int, loop: Loop, clock: Clock, pipe: tuple[int, int]
) -> None:
    starve(loop, register=failures)
    calls: list[int] = []
    loop.register(pipe[0], READABLE, lambda events, now: calls.append(events))
    os.write(pipe[1], b"x")
    for _ in range(failures):
        assert loop.turn(0) == 0
        clock.advance(REST_FOR)
    loop.turn(0)
    loop.turn(0)
    assert calls == [READABLE]
    assert loop.shortages == failures


def test_what_waits_to_be_watched_may_change_its_mind_and_go(
    loop: Loop, clock: Clock, pipe: tuple[int, int]
) -> None:
    epoll = starve(loop, register=1)
    calls: list[int] = []
    loop.register(pipe[1], READABLE, lambda events, now: calls.append(events))
    loop.modify(pipe[1], WRITABLE)
    clock.advance(RETRY_AFTER)
    loop.turn(0)
    loop.turn(0)
    assert calls == [WRITABLE]
    epoll.failures["register"] = 1
    loop.register(pipe[0], READABLE, no_memory)
    loop.unregister(pipe[0])
    loop.register(pipe[0], READABLE, lambda events, now: None)
    clock.advance(RETRY_AFTER)
    loop.turn(0)


def test_a_settler_that_meets_a_shortage_has_another_turn(loop: Loop, clock: Clock) -> None:
    settled: list[float] = []

    def settle(now: float) -> None:
        settled.append(now)
        if len(settled) == 1:
            no_memory(0, now)

    loop.add_settler(settle)
    loop.turn(0)
    assert loop.deadline() == clock.now + RETRY_AFTER
    loop.turn(0)
    assert len(settled) == 2


def test_other_events_that_epoll_has_no_memory_for_are_waited_for_later(
    loop: Loop, clock: Clock, pipe: tuple[int, int]
) -> None:
    """Whoever asked would have to undo half of what it was doing."""
    calls: list[int] = []
    loop.register(pipe[1], READABLE, lambda events, now: calls.append(events))
    starve(loop, modify=1, unregister=3)
    loop.modify(pipe[1], WRITABLE)
    clock.advance(RETRY_AFTER)
    loop.turn(0)
    loop.turn(0)
    assert calls == [WRITABLE]
