"""What is sent to the guest: which of the host's bytes may go, and under which numbers.

The bytes lie in the host socket's receive queue; offset 0 there is SND.UNA. `plan` says which of
them go next, by offset and length; the relay peeks at them there, as many as the host has, and
`account` enters those that really go. Sending again is the same with a smaller offset.

A planned length may exceed the MSS, up to the relay's limit: the port or the guest cuts it (GSO).
It is a whole number of segments unless the limit, the window or the data end it.

While nothing is lost, only the guest's window limits the flight (see `slirp.tcp.loss`). A window
smaller than a segment is not filled while something is in flight (RFC 9293 §3.8.6.2.1); a window
with no room and nothing in flight starts the persist timer (RFC 9293 §3.8.6.1).

The fields are RFC 9293's variables without their SND: `una` is SND.UNA, `wnd` SND.WND; `max` is
what BSD calls SND.MAX, and SND.NXT follows from it. What is due beside payload (SYN, FIN, RST, a
probe) is a bit in `due`; the connection makes the segment.

Does not do: Nagle's algorithm, since the host application's writes come as they are; headers,
states.
"""

from __future__ import annotations

from typing import Final

from slirp.tcp.loss import BURSTS_MIN, WATCHING, Loss, Span
from slirp.tcp.segment import CONTROL, REWIND, SENDABLE
from slirp.tcp.seq import MASK
from slirp.tcp.timer import Timer

# What is due beside payload
SEND_SYN: Final = 1
SEND_FIN: Final = 2
SEND_RST: Final = 4
SEND_PROBE: Final = 8
SEND_REFUSAL: Final = 16  # a RST for one bad segment; the connection stays


class Send:
    """The send sequence space of one connection (RFC 9293 §3.3.1)."""

    __slots__ = (
        "due",
        "eof",
        "fin_sent",
        "iss",
        "loss",
        "max",
        "max_wnd",
        "mss",
        "open",
        "resent",
        "steady",
        "timer",
        "una",
        "wnd",
        "wscale",
    )

    def __init__(self, iss: int) -> None:
        self.iss = iss
        self.una = iss
        self.max = iss  # beyond everything ever sent, FIN included
        self.wnd = 0  # bytes
        self.max_wnd = 0  # bytes, the largest window that the guest offered
        self.wscale = 0
        self.mss = 0  # bytes of payload per segment to the guest, options deducted (RFC 6691)
        self.eof = False  # the host has no more bytes than `max` covers
        self.fin_sent = False
        self.resent = 0  # frames of payload that went out again, for whoever looks
        self.due = 0  # SEND_* bits
        self.loss: Loss | None = None
        self.open = False  # new bytes may go, and nothing is lost
        self.steady = False  # an ACK moves `una` and the window, and nothing else
        self.timer = Timer()

    @property
    def nxt(self) -> int:
        """SND.NXT: below `max` while bytes are to be sent again."""
        hole = None if self.loss is None else self.loss.hole(self.una)
        return self.max if hole is None else hole[0]

    @property
    def flight(self) -> int:
        """Sequence numbers sent and not acknowledged."""
        return (self.max - self.una) & MASK

    def settle(self, sending: bool) -> None:
        """Recompute what the fast paths rely on; `sending`: the state lets new bytes go."""
        timer = self.timer
        self.steady = self.loss is None and not timer.persisting and not timer.retries
        self.open = sending and self.loss is None and not self.eof

    def stop(self) -> None:
        """The connection is over."""
        self.timer.stop()
        self.loss = None
        self.due = 0

    # Payload

    def plan(self, limit: int, now: float) -> tuple[int, int]:
        """Host bytes to send next: (offset from SND.UNA, length up to `limit`); length 0: none."""
        if not self.open:
            return self._plan_recovery(limit, now)
        flight = (self.max - self.una) & MASK
        usable = self.wnd - flight
        if usable < limit:
            limit = self._narrowed(usable, limit, flight)
            if not limit and not flight:
                self.persist(now)
        mss = self.mss
        if limit > mss:
            limit -= limit % mss
        return flight, limit

    def _narrowed(self, usable: int, limit: int, flight: int) -> int:
        """Bytes that go into a window smaller than `limit` (RFC 9293 §3.8.6.2.1)."""
        if usable >= limit:
            return limit
        if usable >= self.mss or not flight or 2 * usable >= self.max_wnd > 0:
            return max(usable, 0)
        return 0

    def _plan_recovery(self, limit: int, now: float) -> tuple[int, int]:
        """plan() while something is lost, or no new bytes may go."""
        una, flight = self.una, self.flight
        loss = self.loss
        if loss is None:
            return flight, 0
        pipe = loss.pipe(una, self.max)
        credit = loss.cwnd - pipe
        hole = loss.hole(una)
        if hole is not None:
            if loss.forced:
                credit = max(credit, self.mss)
            flight = (hole[0] - una) & MASK
            limit = min(limit, (hole[1] - hole[0]) & MASK)
        elif self.eof:
            return flight, 0
        usable = min(self.wnd - flight, credit)
        limit = min(limit, max(self.mss, loss.cwnd // BURSTS_MIN))
        limit = self._narrowed(usable, limit, pipe)
        if not limit and not flight and hole is None:
            self.persist(now)
        if limit > self.mss:
            limit -= limit % self.mss
        return flight, limit

    def account(self, seq: int, end: int, tsval: int, now: float) -> None:
        """Bytes from `seq` up to `end` go out now, in the cases that are not plain: see
        Connection.emit_data."""
        timer = self.timer
        if seq == self.max:
            self.max = end
            timer.start_timing(end, now)
        else:
            timer.forget_timing()
            self.resent += 1
            if self.loss is not None:
                self.loss.sent_again(end, self.max, tsval)

    def data_end(self) -> int:
        """Beyond the last byte ever sent: `max` without an unacknowledged FIN."""
        if self.fin_sent and self.una != self.max:
            return (self.max - 1) & MASK
        return self.max

    def seq_in_window(self) -> int:
        """A number for a segment without payload that the guest accepts, also one that took its
        window back. Less than one unit of its scale is rounding (RFC 7323 §2.4)."""
        if (self.max - self.una) & MASK <= self.wnd:
            return self.max
        edge = (self.una + self.wnd) & MASK
        return self.max if (self.max - edge) & MASK < 1 << self.wscale else edge

    def persist(self, now: float) -> None:
        """Start to probe the guest's closed window, unless the timer runs already."""
        if self.timer.at is None:
            self.timer.persist(now)
            self.steady = False

    # SYN and FIN

    def send_syn(self, now: float) -> None:
        """Our SYN leaves, or leaves again."""
        if self.max == self.una:
            self.max = (self.una + 1) & MASK
            self.timer.start_timing(self.max, now)
        if self.timer.at is None:
            self.timer.arm(now)

    def established(self, ack: int, wnd: int, now: float) -> None:
        """Our SYN is acknowledged."""
        self.timer.established(now)
        self.una = ack
        self.wnd = wnd
        self.max_wnd = max(self.max_wnd, wnd)
        self.due &= ~SEND_SYN

    def check_fin(self, now: float) -> int:
        """Is our FIN due, and does the window take it? Events."""
        if not self.eof or self.fin_sent:
            return 0
        flight = self.flight
        if flight < self.wnd:
            self.due |= SEND_FIN
            return CONTROL
        if not flight:
            self.persist(now)
        return 0

    def send_fin(self, now: float) -> int:
        """Our FIN leaves, or leaves again: its sequence number."""
        if not self.fin_sent:
            self.fin_sent = True
            self.max = (self.max + 1) & MASK
        if self.timer.at is None:
            self.timer.arm(now)
        return self.data_end()

    def fin_acked(self) -> bool:
        """Everything is acknowledged, our FIN too."""
        return self.fin_sent and self.una == self.max

    def fin_alone(self) -> bool:
        """Nothing but our FIN is unacknowledged."""
        return self.fin_sent and self.flight == 1

    def _resend_fin(self) -> int:
        """The FIN again, where it alone is missing."""
        if not self.fin_alone():
            return 0
        self.due |= SEND_FIN
        return CONTROL

    # What the guest acknowledges

    def take_window(self, wnd: int, now: float) -> int:
        """The guest's window as it is now; events."""
        opened = wnd > self.wnd
        self.wnd = wnd
        self.max_wnd = max(self.max_wnd, wnd)
        timer = self.timer
        if not wnd or not timer.persisting:
            return SENDABLE if opened else 0
        timer.stop()
        timer.retries = 0
        if self.una == self.max:
            return SENDABLE
        timer.arm(now)
        return SENDABLE | self._resend_fin()

    def advance(
        self, ack: int, sack: tuple[Span, ...], echo: tuple[int, float | None] | None, now: float
    ) -> tuple[int, int]:
        """SND.UNA moves on to `ack`: (bytes of the host's among those acknowledged, events).

        `echo`, while something is lost: the TSecr that came with it, and the round trip it tells.
        """
        octets = (ack - self.una) & MASK
        self.una = ack
        timer = self.timer
        timer.retries = 0
        if timer.timed_at is not None:  # RFC 6298 §3
            timer.take_ack(ack, now)
        elif echo is not None and echo[1] is not None:
            timer.measure(echo[1])
        events = SENDABLE
        if self.loss is not None:
            events |= self._advance_recovery(self.loss, octets, sack, echo)
        if ack == self.max:
            timer.stop()
            octets -= self.fin_sent
        elif not timer.persisting:
            timer.arm(now)
        return octets, events

    def _advance_recovery(
        self,
        loss: Loss,
        octets: int,
        sack: tuple[Span, ...],
        echo: tuple[int, float | None] | None,
    ) -> int:
        """advance() while something is or was lost; events."""
        if echo is not None:
            loss.check_spurious(echo[0])
        events = self._resend_fin() if loss.mode != WATCHING else 0
        if loss.on_ack(octets, self.una, self.data_end(), self.mss):
            events |= REWIND
        if sack:
            loss.note_sack(sack, self.una, self.max)
        if loss.is_over(self.max_wnd):
            self.loss = None
        return events

    def count_duplicate(self, sack: tuple[Span, ...], duplicate: bool) -> int:
        """The guest misses something: watch, and begin recovery when it is certain. Events."""
        if self.timer.persisting:
            return 0
        loss = self.loss
        if loss is None:
            loss = self.loss = Loss(self.una)
        news = loss.note_sack(sack, self.una, self.max) if sack else duplicate
        if not news:
            if loss.is_over(self.max_wnd) and not loss.dup_acks:
                self.loss = None
            return 0
        loss.dup_acks += 1
        if not loss.ranges:
            loss.sacked = min(loss.dup_acks * self.mss, self.flight)
        # RFC 6582 §3.2 step 2: what a recovery sent twice must not start another one.
        if loss.mode == WATCHING and loss.lost_enough(self.mss):
            loss.start_fast(self.una, self.data_end(), self.max, self.mss)
            self.timer.forget_timing()
            return SENDABLE | REWIND | self._resend_fin()
        return SENDABLE

    def check_withdrawn(self, now: float) -> int:
        """Did the guest close its window over bytes in flight? Then they are to be sent again."""
        if self.wnd or self.una == self.max or self.timer.persisting:
            return 0
        if self.loss is None:
            self.loss = Loss(self.una)
        self.loss.start_withdrawn(self.una, self.data_end(), self.max)
        self.timer.forget_timing()
        self.timer.stop()
        self.persist(now)
        return REWIND

    # Time

    def has_untried(self) -> bool:
        """Has nothing been sent again since the last timeout, though something should have been?"""
        loss = self.loss
        return loss is not None and loss.is_untried(self.una) and not self.fin_alone()

    def timeout(self, now: float) -> int:
        """The retransmission timer went off: everything in flight is lost. Events."""
        self.timer.back_off(now)
        again = self._resend_fin()
        if again:
            return again
        if self.loss is None:
            self.loss = Loss(self.una)
        self.loss.start_timeout(self.una, self.data_end(), self.max, self.mss)
        return REWIND
