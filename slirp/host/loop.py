"""The loop: the only code that waits, reads a clock or calls epoll.

One turn is: wait until a descriptor is ready or a deadline is due; read the clock once; call the
handlers of what is ready with that `now`; run the deadlines that are due; then run the *settlers*,
which send what the turn has gathered (one ACK per flow and batch, however many frames came).

Deadlines are lazy. An object that has one keeps it to itself and asks for a visit no later than
that instant (`visit_at`); a visit that comes too early is answered with the next instant. So moving
a deadline into the future, which TCP does with every segment, costs nothing, and an idle flow costs
the loop nothing per turn.

A shortage of the kernel's (slirp.shortage) ends nothing here. A handler that meets one and has no
better way raises it: its descriptor is left alone for RETRY_AFTER and then reported again, so that
whoever it was for comes again and nobody spins meanwhile. A descriptor that epoll has no memory for
waits in the same way, and whoever registers it is not told.

Does not do: threads, signals, callbacks run from inside another handler.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import select
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeAlias

from nic.port import DeviceGone
from slirp.host import timerfd
from slirp.shortage import is_shortage, persist

Handler: TypeAlias = Callable[[int, float], None]  # epoll events, now

EVENTS_PER_TURN: Final = 256  # descriptors handled per turn; the rest come first in the next
BRISK_FOR: Final = 100e-6  # seconds: a wait that is expected to be shorter is spun, not slept
VISITS_PER_TURN: Final = 1024  # deadlines handled per turn; the rest are due at once in the next
REST_FOR: Final = 0.1  # seconds that a descriptor is left alone which cannot be served now
RETRY_AFTER: Final = 0.002  # seconds after which a call that met a shortage is made again
STALE_MIN: Final = 256  # bookings below which nobody looks for those that were replaced

READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT
EDGE: Final = select.EPOLLET
URGENT: Final = select.EPOLLPRI
RDHUP: Final = select.EPOLLRDHUP
HANGUP: Final = select.EPOLLHUP | select.EPOLLERR


class Timed(Protocol):
    """Something with a deadline of its own."""

    visit: float | None  # the instant of the visit that is booked; only the loop writes it

    def handle_timeout(self, now: float) -> float | None:
        """Do what is due; the next instant, or None."""


class Resting:
    """Descriptors that are left alone for a while: epoll does not have them."""

    def __init__(self, epoll: select.epoll, events: Mapping[int, int]) -> None:
        self._epoll = epoll
        self._events = events  # by descriptor: what it waits for
        self.until: dict[int, float] = {}
        self.shortages = 0
        self.visit: float | None = None

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit: those whose time is over go on."""
        for fd in [fd for fd, at in self.until.items() if at <= now]:
            try:
                try:
                    self._epoll.register(fd, self._events[fd])
                except FileExistsError:  # it could not be taken off
                    self._epoll.modify(fd, self._events[fd])
            except OSError as error:
                if not is_shortage(error):
                    raise
                self.shortages += 1
                self.until[fd] = now + REST_FOR
            else:
                del self.until[fd]
        return min(self.until.values(), default=None)


class Loop:
    """Descriptors, deadlines and settlers. `fileno()` makes it part of any other event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._visits: list[tuple[float, int, Timed]] = []
        self._booked = 0
        self._swept_at = 0
        self._sweep_over = STALE_MIN
        self._gone: set[int] = set()  # unregistered in this turn: their events are another's
        self._events: dict[int, int] = {}  # by descriptor: what it waits for
        self._resting = Resting(self._epoll, self._events)
        self._settlers: list[Callable[[float], None]] = []
        self._again = False
        self._turning = False
        self._shortages = 0
        self._brisk = False  # the last wait was so short that the next is worth spinning for
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.register(self._bell, READABLE, self._handle_bell)
        self._timerfd = -1  # only where somebody else waits for us
        self.now = clock()

    def fileno(self) -> int:
        """The epoll descriptor: readable when a descriptor is ready or a deadline is due."""
        if self._timerfd < 0:
            self._timerfd = timerfd.create()
            self.register(self._timerfd, READABLE, self._handle_alarm)
            self._set_alarm()
        return self._epoll.fileno()

    def _handle_alarm(self, events: int, now: float) -> None:
        timerfd.clear(self._timerfd)

    def _set_alarm(self) -> None:
        at = 0.0 if self._again else self.deadline()
        timerfd.set_at(self._timerfd, at)

    @property
    def shortages(self) -> int:
        """Calls of the loop's own, and of handlers that know no better, that met a shortage."""
        return self._shortages + self._resting.shortages

    def register(self, fd: int, events: int, handler: Handler) -> None:
        """Call `handler(events, now)` whenever `fd` is ready."""
        try:
            self._epoll.register(fd, events)
        except OSError as error:
            if not is_shortage(error):
                raise
            self._shortages += 1
            self._put_off(fd, RETRY_AFTER)
        else:
            self._resting.until.pop(fd, None)
        self._events[fd] = events
        self._handlers[fd] = handler

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events on `fd`."""
        self._events[fd] = events
        if fd in self._resting.until:
            return
        try:
            self._epoll.modify(fd, events)
        except OSError as error:
            if not is_shortage(error):
                raise
            self._shortages += 1
            self.rest(fd, RETRY_AFTER)

    def rest(self, fd: int, seconds: float = REST_FOR) -> None:
        """Leave `fd` alone for so long.

        For a listening socket when no descriptor is left to accept with: it stays readable, and
        whoever looks again at once looks for ever.
        """
        if fd not in self._resting.until:
            self._forget(fd)
        self._put_off(fd, seconds)

    def _put_off(self, fd: int, seconds: float) -> None:
        at = self._resting.until[fd] = self._clock() + seconds
        self.visit_at(self._resting, at)

    def unregister(self, fd: int) -> None:
        """Forget `fd`; call before it is closed. A descriptor that is not known is no error."""
        if self._handlers.pop(fd, None) is not None:
            if self._resting.until.pop(fd, None) is None:
                self._forget(fd)
            del self._events[fd]
            self._gone.add(fd)

    def _forget(self, fd: int) -> None:
        try:
            persist(self._epoll.unregister, fd)
        except OSError as error:  # to take something off needs no memory; should it all the same:
            if not is_shortage(error):
                raise
            self._shortages += 1  # it goes when it is closed

    def forget_all(self) -> None:
        """Call nobody any more: another process goes on, and nothing may be read twice."""
        self._handlers.clear()
        self._visits.clear()
        self._settlers.clear()

    def add_settler(self, settler: Callable[[float], None]) -> None:
        """Call `settler(now)` at the end of every turn, in the order of adding."""
        self._settlers.append(settler)

    def visit_at(self, timed: Timed, at: float | None) -> None:
        """Visit `timed` at `at` or before; an earlier booking stands."""
        if at is None:
            return
        if timed.visit is None or at < timed.visit:
            timed.visit = at
            self._booked += 1
            heapq.heappush(self._visits, (at, self._booked, timed))
            if self._booked - self._swept_at > self._sweep_over:
                self._sweep()
            self._wake_outer()

    def _sweep(self) -> None:
        # Bookings that were replaced or dropped would lie here until their instant, hours perhaps,
        # and hold what they were for. One sweep per as many bookings as it looks at.
        self._visits[:] = {id(v[2]): v for v in self._visits if v[2].visit == v[0]}.values()
        heapq.heapify(self._visits)
        self._swept_at = self._booked
        self._sweep_over = max(len(self._visits), STALE_MIN)

    def wake(self) -> None:
        """End a wait at once; may be called from a signal handler or another thread."""
        persist(os.eventfd_write, self._bell, 1)

    def _handle_bell(self, events: int, now: float) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def again(self) -> None:
        """There is more to do at once: the next turn does not wait."""
        self._again = True
        self._wake_outer()

    def _wake_outer(self) -> None:
        # A turn sets the alarm at its end; what is booked between turns must set it at once.
        if self._timerfd >= 0 and not self._turning:
            self._set_alarm()

    def deadline(self) -> float | None:
        """The instant of the next visit, or None."""
        visits = self._visits
        while visits and visits[0][2].visit != visits[0][0]:
            heapq.heappop(visits)  # replaced by an earlier booking, or dropped
        return visits[0][0] if visits else None

    def turn(self, timeout: float | None) -> int:
        """One turn, waiting for at most `timeout` seconds (None: for ever); events handled."""
        deadline = self.deadline()
        if self._again:
            self._again = False
            timeout = 0.0
        elif deadline is not None:
            left = deadline - self._clock()
            if timeout is None or left < timeout:
                timeout = left if left > 0.0 else 0.0
        ready = self._wait(timeout)
        self._turning = True
        self.now = now = self._clock()
        handlers, gone = self._handlers, self._gone
        gone.clear()
        for fd, events in ready:
            handler = handlers.get(fd)
            # A handler before it in this turn may have closed it; its number may be another's now.
            if handler is not None and fd not in gone:
                try:
                    handler(events, now)
                except OSError as error:
                    self._bear(error)
                    if fd in handlers and fd not in gone:
                        self.rest(fd, RETRY_AFTER)
        if self._visits and self._visits[0][0] <= now:
            self._visit(now)
        for settle in self._settlers:
            try:
                settle(now)
            except OSError as error:
                self._bear(error)
                self.visit_at(self._resting, now + RETRY_AFTER)  # and so another turn
        self._turning = False
        if self._timerfd >= 0:
            self._set_alarm()
        return len(ready)

    def _bear(self, error: OSError) -> None:
        """A handler met a shortage where it has no way of its own to go on: whoever it was for
        comes again (a descriptor is reported anew, a frame is lost as on a wire). Others go on."""
        if not is_shortage(error) or isinstance(error, DeviceGone):
            raise error
        self._shortages += 1

    def _wait(self, timeout: float | None) -> list[tuple[int, int]]:
        poll = self._epoll.poll
        try:
            if timeout == 0.0:
                return poll(0.0, EVENTS_PER_TURN)
            clock = time.monotonic  # spinning costs real time, whatever the network takes for time
            begun = clock()
            if self._brisk:
                until = begun + BRISK_FOR
                while clock() < until:
                    ready = poll(0.0, EVENTS_PER_TURN)
                    if ready:
                        return ready
                    os.sched_yield()  # whoever is to answer may need this processor
            ready = poll(timeout, EVENTS_PER_TURN)
            self._brisk = clock() - begun < BRISK_FOR
            return ready
        except OSError as error:
            self._bear(error)
            time.sleep(RETRY_AFTER)
            return []

    def _visit(self, now: float) -> None:
        visits = self._visits
        for _ in range(VISITS_PER_TURN):
            if not visits or visits[0][0] > now:
                return
            at, _, timed = heapq.heappop(visits)
            if timed.visit == at:
                timed.visit = None
                try:
                    next_at = timed.handle_timeout(now)
                except OSError as error:
                    self._bear(error)
                    next_at = now + RETRY_AFTER
                self.visit_at(timed, next_at)

    def close(self) -> None:
        """Give the epoll descriptor back."""
        self._handlers.clear()
        self._resting.until.clear()
        self._visits.clear()
        if self._timerfd >= 0:
            os.close(self._timerfd)
        os.close(self._bell)
        self._epoll.close()
