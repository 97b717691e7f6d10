"""The sending half of a TCP connection: what may go to the guest, and under which numbers.

The octets lie in the host socket's receive queue; offset 0 there is SND.UNA. `plan` says which of
them go next, by offset and length; the relay peeks at them there, as many as the host has, and
`emit_data` accounts for those that really go. Sending again is the same with a smaller offset.

A planned length may exceed the MSS, up to the relay's limit: the port or the guest cuts it (GSO).
It is a whole number of segments unless the limit, the window or the data end it.

While nothing is lost, only the guest's window limits the flight (see `slirp.tcp.loss`). A window
smaller than a segment is not filled while something is in flight (RFC 9293 §3.8.6.2.1); a window
with no room and nothing in flight starts the persist timer (RFC 9293 §3.8.6.1).

Does not do: Nagle's algorithm. The host application's writes come as they are.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from slirp.tcp.ahead import Ahead
from slirp.tcp.loss import BURSTS_MIN, WATCHING, Loss
from slirp.tcp.rto import RTO_INITIAL, rto_after
from slirp.tcp.segment import CONTROL, REWIND, SENDABLE, Emission, Segment
from slirp.tcp.seq import HALF, MASK
from slirp.wire.tcp import ACK, PSH, emit_options

_emission = tuple.__new__  # half the time of Emission(...)
_pack_timestamps: Final = Struct("!III").pack  # RFC 7323 appendix A: two NOPs, then the option
_TIMESTAMPS_HEAD: Final = 0x0101080A
TIMESTAMPS_LEN: Final = 12  # octets of options in every segment, once negotiated
_PSH_ACK: Final = PSH | ACK

# What poll() is to send
SEND_SYN: Final = 1
SEND_FIN: Final = 2
SEND_RST: Final = 4
SEND_PROBE: Final = 8
SEND_REFUSAL: Final = 16  # a RST for one bad segment; the connection stays


class Sender:
    """The half of a Connection that sends."""

    __slots__ = (
        "_ahead",
        "_eof",
        "_fin_sent",
        "_last_ack",
        "_loss",
        "_max_wnd",
        "_open",
        "_pending",
        "_persisting",
        "_predicted",
        "_retries",
        "_rexmit_at",
        "_rto",
        "_rttvar",
        "_sack_on",
        "_srtt",
        "_timed_at",
        "_timed_seq",
        "_told",
        "_ts_offset",
        "_ts_on",
        "_ts_recent",
        "mss",
        "options_len",
        "rcv_adv",
        "rcv_nxt",
        "rcv_wscale",
        "snd_max",
        "snd_nxt",
        "snd_una",
        "snd_wnd",
        "snd_wscale",
    )

    def __init__(self, iss: int, rcv_nxt: int, room: int, ts_offset: int) -> None:
        self.snd_una = iss
        self.snd_nxt = iss  # next to send; below SND.MAX while octets are to be sent again
        self.snd_max = iss  # beyond everything ever sent, FIN included
        self.snd_wnd = 0  # octets
        self.snd_wscale = 0
        self.mss = 0  # octets of payload per segment to the guest, options deducted (RFC 6691)
        self.options_len = 0  # octets of options in a segment with payload
        self.rcv_nxt = rcv_nxt
        self.rcv_adv = (rcv_nxt + room) & MASK  # right edge of the window; never moves left
        self.rcv_wscale = 0
        self._ahead: Ahead | None = None
        self._eof = False  # the host has no more octets than SND.MAX covers
        self._fin_sent = False
        self._last_ack = rcv_nxt  # Last.ACK.sent, RFC 7323 §4.3
        self._loss: Loss | None = None
        self._max_wnd = 0  # octets, the largest window that the guest offered
        self._open = False  # plan() may give new octets, and nothing is lost
        self._pending = 0  # SEND_* bits: what poll() is to send
        self._persisting = False  # _rexmit_at times a zero-window probe
        self._predicted = False  # the next segment may be judged by header prediction
        self._retries = 0  # timeouts since the guest last acknowledged something new
        self._rexmit_at: float | None = None
        self._rto = RTO_INITIAL  # seconds; doubled by each timeout until the next measurement
        self._srtt = -1.0  # seconds; negative: not measured yet
        self._rttvar = 0.0
        self._sack_on = False
        self._timed_at: float | None = None  # when the timed segment left (one per round trip)
        self._timed_seq = iss
        self._told = self.rcv_adv  # right edge that the guest was last told
        self._ts_offset = ts_offset
        self._ts_on = False
        self._ts_recent = 0  # TS.Recent

    def plan(self, limit: int, now: float) -> tuple[int, int]:
        """Host octets to send next: (offset from SND.UNA, length up to `limit`); length 0: none."""
        if not self._open:
            return self._plan_recovery(limit, now)
        flight = (self.snd_max - self.snd_una) & MASK
        usable = self.snd_wnd - flight
        if usable < limit:
            limit = self._narrowed(usable, limit, flight)
            if not limit and not flight:
                self._persist(now)
        mss = self.mss
        if limit > mss:
            limit -= limit % mss
        return flight, limit

    def _narrowed(self, usable: int, limit: int, flight: int) -> int:
        """Octets that go into a window smaller than `limit` (RFC 9293 §3.8.6.2.1)."""
        if usable >= limit:
            return limit
        if usable >= self.mss or not flight or 2 * usable >= self._max_wnd > 0:
            return max(usable, 0)
        return 0

    def _plan_recovery(self, limit: int, now: float) -> tuple[int, int]:
        """plan() while something is lost, or no new octets may go."""
        una = self.snd_una
        flight = (self.snd_max - una) & MASK
        loss = self._loss
        if loss is None:
            return flight, 0
        pipe = loss.pipe(una, self.snd_max)
        credit = loss.cwnd - pipe
        hole = loss.hole(una)
        if hole is not None:
            if loss.forced:
                credit = max(credit, self.mss)
            flight = (hole[0] - una) & MASK
            limit = min(limit, (hole[1] - hole[0]) & MASK)
        elif self._eof:
            return flight, 0
        usable = min(self.snd_wnd - flight, credit)
        limit = min(limit, max(self.mss, loss.cwnd // BURSTS_MIN))
        limit = self._narrowed(usable, limit, pipe)
        if not limit and not flight and hole is None:
            self._persist(now)
        if limit > self.mss:
            limit -= limit % self.mss
        return flight, limit

    def emit_data(self, offset: int, length: int, push: bool, now: float) -> Emission:
        """Those octets go out now."""
        seq = (self.snd_una + offset) & MASK
        end = (seq + length) & MASK
        if self._open and seq == self.snd_max:
            self.snd_nxt = self.snd_max = end
            if self._timed_at is None:
                self._timed_at = now
                self._timed_seq = end
        else:
            self._account_recovery(seq, end, now)
        if self._rexmit_at is None:
            self._rexmit_at = now + self._rto
        ack = self._last_ack = self.rcv_nxt
        edge = self._told = self.rcv_adv
        return _emission(
            Emission,
            (
                seq,
                ack,
                _PSH_ACK if push else ACK,
                ((edge - ack) & MASK) >> self.rcv_wscale,
                _pack_timestamps(
                    _TIMESTAMPS_HEAD, (int(now * 1000) + self._ts_offset) & MASK, self._ts_recent
                )
                if self._ts_on
                else b"",
            ),
        )

    def _account_recovery(self, seq: int, end: int, now: float) -> None:
        """emit_data() while something is lost."""
        if seq == self.snd_max:
            self.snd_max = end
            if self._timed_at is None:
                self._timed_at = now
                self._timed_seq = end
        else:
            self._timed_at = None  # Karn: an answer to octets sent twice says nothing
            if self._loss is not None:
                self._loss.sent_again(end, self.snd_max, self._tsval(now))
        self._point_snd_nxt()

    def _point_snd_nxt(self) -> None:
        hole = None if self._loss is None else self._loss.hole(self.snd_una)
        self.snd_nxt = self.snd_max if hole is None else hole[0]

    def emit_ack(self, now: float) -> Emission:
        """An ACK with no payload, and with SACK blocks where octets are ahead."""
        ack = self._last_ack = self.rcv_nxt
        edge = self._told = self.rcv_adv
        if self._ahead is not None:
            options = self._sack_options(now)
        elif self._ts_on:
            options = _pack_timestamps(
                _TIMESTAMPS_HEAD, (int(now * 1000) + self._ts_offset) & MASK, self._ts_recent
            )
        else:
            options = b""
        seq = self.snd_max
        if (seq - self.snd_una) & MASK > self.snd_wnd:
            seq = self._seq_in_window()
        return _emission(
            Emission, (seq, ack, ACK, ((edge - ack) & MASK) >> self.rcv_wscale, options)
        )

    def _seq_in_window(self) -> int:
        """A sequence number that the guest accepts, when it took its window back.

        Less than one unit of its scale is rounding, and no withdrawal (RFC 7323 §2.4).
        """
        edge = (self.snd_una + self.snd_wnd) & MASK
        return self.snd_max if (self.snd_max - edge) & MASK < 1 << self.snd_wscale else edge

    def _sack_options(self, now: float) -> bytes:
        ahead = self._ahead
        return emit_options(
            ts=(self._tsval(now), self._ts_recent) if self._ts_on else None,
            sack=ahead.ranges if self._sack_on and ahead is not None else (),
        )

    def _tsval(self, now: float) -> int:
        """The timestamp clock: milliseconds from an offset of this connection's own."""
        return (int(now * 1000) + self._ts_offset) & MASK

    def _data_end(self) -> int:
        """Beyond the last octet ever sent: SND.MAX without an unacknowledged FIN."""
        if self._fin_sent and self.snd_una != self.snd_max:
            return (self.snd_max - 1) & MASK
        return self.snd_max

    def _fin_alone(self) -> bool:
        """Nothing but our FIN is unacknowledged."""
        return self._fin_sent and (self.snd_max - self.snd_una) & MASK == 1

    def _measure(self, rtt: float) -> None:
        self._srtt, self._rttvar, self._rto = rto_after(self._srtt, self._rttvar, rtt)

    def _arm(self, now: float) -> None:
        self._rexmit_at = now + self._rto

    def _persist(self, now: float) -> None:
        """Start to probe the guest's closed window, unless a timer runs already."""
        if self._rexmit_at is None:
            self._persisting = True
            self._predicted = False
            self._retries = 0
            self._arm(now)

    # What the guest acknowledges

    def _take_window(self, wnd: int, now: float) -> int:
        """The guest's window as it is now."""
        opened = wnd > self.snd_wnd
        self.snd_wnd = wnd
        self._max_wnd = max(self._max_wnd, wnd)
        if not wnd or not self._persisting:
            return SENDABLE if opened else 0
        self._persisting = False
        self._retries = 0
        self._rexmit_at = None
        if self.snd_una == self.snd_max:
            return SENDABLE
        self._arm(now)
        return SENDABLE | self._resend_fin()

    def _resend_fin(self) -> int:
        """The FIN again, where it alone is missing."""
        if not self._fin_alone():
            return 0
        self._pending |= SEND_FIN
        return CONTROL

    def _advance(
        self, seg: Segment, acked: int, sack: tuple[tuple[int, int], ...], now: float
    ) -> tuple[int, int]:
        """SND.UNA moves on by `acked` numbers: (octets among them, events)."""
        una = self.snd_una = seg.ack
        self._retries = 0
        self._take_rtt(seg, now)
        events = SENDABLE
        loss = self._loss
        octets = acked
        if loss is not None and self._ts_on and seg.options is not None and seg.options.ts:
            loss.check_spurious(seg.options.ts[1])
        if loss is not None:
            events |= self._resend_fin() if loss.mode != WATCHING else 0
            if loss.on_ack(acked, una, self._data_end(), self.mss):
                events |= REWIND
            if sack:
                loss.note_sack(sack, una, self.snd_max)
            if loss.is_over(self._max_wnd):
                self._loss = None
        if una == self.snd_max:
            self._rexmit_at = None
            self._persisting = False
            octets -= self._fin_sent
        elif not self._persisting:
            self._arm(now)
        self._point_snd_nxt()
        return octets, events

    def _take_rtt(self, seg: Segment, now: float) -> None:
        """One measurement of the round trip, where this ACK allows it (RFC 6298 §3)."""
        timed_at = self._timed_at
        if timed_at is not None:
            if (seg.ack - self._timed_seq) & MASK < HALF:
                self._timed_at = None
                self._measure(now - timed_at)
        elif self._loss is not None and self._ts_on and seg.options is not None and seg.options.ts:
            elapsed = (self._tsval(now) - seg.options.ts[1]) & MASK  # milliseconds
            if elapsed < 60_000:
                self._measure(elapsed / 1000)

    def _count_duplicate(self, sack: tuple[tuple[int, int], ...], duplicate: bool) -> int:
        """The guest misses something: watch, and begin recovery when it is certain."""
        if self._persisting:
            return 0
        loss = self._loss
        if loss is None:
            loss = self._loss = Loss(self.snd_una)
        news = loss.note_sack(sack, self.snd_una, self.snd_max) if sack else duplicate
        if not news:
            if loss.is_over(self._max_wnd) and not loss.dup_acks:
                self._loss = None
            return 0
        loss.dup_acks += 1
        if not loss.ranges:
            flight = (self.snd_max - self.snd_una) & MASK
            loss.sacked = min(loss.dup_acks * self.mss, flight)
        events = SENDABLE
        # RFC 6582 §3.2 step 2: what a recovery sent twice must not start another one.
        if loss.mode == WATCHING and loss.lost_enough(self.mss):
            loss.start_fast(self.snd_una, self._data_end(), self.snd_max, self.mss)
            self._timed_at = None
            events |= REWIND | self._resend_fin()
        self._point_snd_nxt()
        return events

    def _check_withdrawn(self, now: float) -> int:
        """Did the guest close its window over octets in flight? Then they are to be sent again."""
        if self.snd_wnd or self.snd_una == self.snd_max or self._persisting:
            return 0
        if self._loss is None:
            self._loss = Loss(self.snd_una)
        self._loss.start_withdrawn(self.snd_una, self._data_end(), self.snd_max)
        self._timed_at = None
        self._rexmit_at = None
        self._persist(now)
        self._point_snd_nxt()
        return REWIND
