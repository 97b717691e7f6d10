"""TCP (RFC 9293) between the stack and a guest: a connection of numbers, which holds no payload.

The stack mirrors a guest's connection to a host socket. What the host sends stays in that socket's
receive queue until the guest has acknowledged it; what the guest sends goes to the host's kernel
from the guest's own memory. So a `Connection` decides on sequence numbers and lengths only:

- `handle_segment(segment, length, now)` takes the header of what the guest sent and the length of
  its payload. The `Outcome` says which part of the payload is wanted, how many of the host's octets
  are the guest's now, and what happened. Nearly every segment is the next one in order, so that
  case is decided first and in one function (header prediction).
- `plan` and `emit_data` send the host's octets (`slirp.tcp_send`), again where they were lost
  (`slirp.tcp_loss`). Octets ahead of their turn are the relay's to keep, by the ranges of
  `slirp.tcp_ahead`.
- `poll` gives the segments without payload that are due; `handle_timeout` and `poll_at` are the
  clock. The relay sends what is returned; nothing here sends.

`poll_at()` may move later without notice (each ACK pushes the timers); `handle_timeout` before the
deadline does nothing, so a relay may keep the earlier instant. It moves earlier only through
`plan`, `emit_data`, `poll`, `host_*` and events other than ACK_LATER and SENDABLE.

Every state is left by a deadline: the handshake after HANDSHAKE_FOR or its retries, a connection
whose guest is silent by keepalive probes (sooner once one side has closed, since that is where a
forgotten connection would stay for days), a closing one by the retries of its FIN and at the
latest after CLOSING_FOR, TIME-WAIT after TIME_WAIT_FOR.

Where it is more lenient than the RFCs: a segment that lacks the negotiated timestamps is taken
(RFC 7323 §3.2 would drop it), and the acknowledgement in an entirely old segment counts. The
backoff ends with any new acknowledgement, not only with the next measurement.

Does not do: urgent data (the pointer is ignored, RFC 6093), Fast Open, ECN, payload in a SYN,
keepalive to the host (the host's kernel has its own).
"""

from __future__ import annotations

import enum
from typing import Final

from slirp.rto import backed_off
from slirp.seq import HALF, MASK, distance
from slirp.tcp_ahead import Ahead
from slirp.tcp_loss import WATCHING, Loss
from slirp.tcp_segment import (
    ACK_LATER,
    ACK_NOW,
    CLOSED,
    CONTROL,
    ESTABLISHED,
    FIN_RECEIVED,
    GUEST_GONE,
    KEEP,
    NOTHING,
    REOPEN,
    RESET_RECEIVED,
    REWIND,
    SENDABLE,
    Emission,
    Outcome,
    Segment,
)
from slirp.tcp_send import TIMESTAMPS_LEN, Sender
from slirp.wire.tcp import ACK, FIN, PSH, RST, SYN, TcpOptions, emit_options

__all__ = [
    "ACK_LATER",
    "ACK_NOW",
    "CLOSED",
    "CONTROL",
    "ESTABLISHED",
    "FIN_RECEIVED",
    "GUEST_GONE",
    "KEEP",
    "NOTHING",
    "REOPEN",
    "RESET_RECEIVED",
    "REWIND",
    "SENDABLE",
    "Connection",
    "Emission",
    "Outcome",
    "Segment",
    "State",
    "is_opening",
    "refusal",
]

MSS_DEFAULT: Final = 536  # octets, RFC 9293 §3.7.1 (IPv4; IPv6 has 1220)
MSS_MIN: Final = 28  # octets: the smallest MTU of IPv4, 68 (RFC 791), less 40 of headers
WSCALE_MAX: Final = 14  # RFC 7323 §2.3
WINDOW_MAX: Final = 0xFFFF  # octets, unscaled
ROOM_INITIAL: Final = 0xFFFF  # octets, until set_room()

SYN_RETRIES: Final = 6  # RFC 9293 §3.8.3 asks for 3 minutes; 1 + 2 + … + 60 s come to 2
DATA_RETRIES: Final = 15  # 0.2 s doubling up to 60 s: nearly 8 minutes, RFC 9293 R2
CLOSING_RETRIES: Final = 8  # of a FIN that nobody waits for: 100 s
HANDSHAKE_FOR: Final = 180.0  # seconds; a host's connect(2) gives up after 130
KEEPALIVE_IDLE: Final = 7200.0  # seconds, RFC 9293 §3.8.4 (and no less by default)
KEEPALIVE_INTERVAL: Final = 75.0  # seconds between unanswered probes, as kernels have it
KEEPALIVE_PROBES: Final = 9
HALF_CLOSED_IDLE: Final = 60.0  # seconds to the first probe in CLOSE-WAIT and FIN-WAIT-2
CLOSING_FOR: Final = 7200.0  # seconds for the last window of octets and the FIN
TIME_WAIT_FOR: Final = 2.0  # seconds: no octet lives for RFC 9293's 2 minutes on a memory bus
PERSIST_UNANSWERED_FOR: Final = 480.0  # seconds without any segment before probing ends
CHALLENGES_PER_SECOND: Final = 10  # ACKs that answer segments without payload, RFC 5961 §7
PAWS_IDLE: Final = 24 * 86400.0  # seconds after which TS.Recent says nothing, RFC 7323 §5.5

_FLAGS: Final = FIN | SYN | RST | ACK
_PSH_ACK: Final = PSH | ACK
_outcome = tuple.__new__  # half the time of Outcome(...)

# What poll() is to send
_SEND_SYN: Final = 1
_SEND_FIN: Final = 2
_SEND_RST: Final = 4
_SEND_PROBE: Final = 8
_SEND_REFUSAL: Final = 16  # a RST for one bad segment; the connection stays


class State(enum.Enum):
    """RFC 9293 §3.3.2. CONNECTING is SYN-RECEIVED before the host's connect has an answer."""

    CONNECTING = "CONNECTING"
    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"
    CLOSED = "CLOSED"


_RECEIVING: Final = (State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2)
_SENDING: Final = (State.ESTABLISHED, State.CLOSE_WAIT)
_HALF_CLOSED: Final = (State.FIN_WAIT_2, State.CLOSE_WAIT)
_KEPT_ALIVE: Final = (State.ESTABLISHED, State.FIN_WAIT_2, State.CLOSE_WAIT)
_HANDSHAKE: Final = (State.CONNECTING, State.SYN_SENT, State.SYN_RECEIVED)
_BEFORE_SYN: Final = (State.CONNECTING, State.SYN_SENT)


def is_opening(segment: Segment) -> bool:
    """Whether the segment asks for a new connection."""
    return segment.flags & _FLAGS == SYN


def refusal(segment: Segment, length: int) -> Emission | None:
    """The RST that answers a segment of no connection (RFC 9293 §3.10.7.1); none for a RST."""
    if segment.flags & RST:
        return None
    if segment.flags & ACK:
        return Emission(segment.ack, 0, RST, 0, b"")
    extent = length + bool(segment.flags & SYN) + bool(segment.flags & FIN)
    return Emission(0, (segment.seq + extent) & MASK, RST | ACK, 0, b"")


class Connection(Sender):
    """One TCP connection with a guest."""

    __slots__ = (
        "_challenge_at",
        "_challenges",
        "_heard_at",
        "_idle_at",
        "_keepalive",
        "_own_mss",
        "_pending",
        "_probes",
        "_refuse_seq",
        "_room_max",
        "_wscale_on",
        "irs",
        "state",
    )

    def __init__(
        self,
        state: State,
        *,
        iss: int,
        rcv_nxt: int,
        mss: int,
        rcv_wscale: int,
        now: float,
        room: int,
        ts_offset: int | None,
        keepalive: float,
    ) -> None:
        super().__init__(
            iss & MASK,
            rcv_nxt,
            min(room, WINDOW_MAX),
            (iss * 0x9E3779B1) & MASK if ts_offset is None else ts_offset,
        )
        self.rcv_wscale = rcv_wscale
        self.state = state
        self._challenge_at = now
        self._challenges = 0
        self._heard_at = now
        self._idle_at: float | None = now + HANDSHAKE_FOR
        self._keepalive = keepalive
        self._own_mss = mss
        self._pending = 0
        self._probes = 0
        self._refuse_seq = 0
        self._room_max = room  # octets, the most that set_room() ever said
        self._wscale_on = True
        self.irs = (rcv_nxt - 1) & MASK  # the guest's initial number

    @classmethod
    def passive(
        cls,
        syn: Segment,
        iss: int,
        mss: int,
        rcv_wscale: int,
        now: float,
        *,
        mss_default: int = MSS_DEFAULT,
        room: int = ROOM_INITIAL,
        ts_offset: int | None = None,
        keepalive: float = KEEPALIVE_IDLE,
    ) -> Connection:
        """The guest opened it; nothing is answered until host_connected() or abort().

        `mss` is what we offer, and the most that we send.
        """
        connection = cls(
            State.CONNECTING,
            iss=iss,
            rcv_nxt=(syn.seq + 1) & MASK,
            mss=mss,
            rcv_wscale=rcv_wscale,
            now=now,
            room=room,
            ts_offset=ts_offset,
            keepalive=keepalive,
        )
        connection._negotiate(syn, mss_default)
        return connection

    @classmethod
    def active(
        cls,
        iss: int,
        mss: int,
        rcv_wscale: int,
        now: float,
        *,
        mss_default: int = MSS_DEFAULT,
        room: int = ROOM_INITIAL,
        ts_offset: int | None = None,
        keepalive: float = KEEPALIVE_IDLE,
    ) -> Connection:
        """The host opened it (a forward); poll() gives the SYN."""
        connection = cls(
            State.SYN_SENT,
            iss=iss,
            rcv_nxt=0,
            mss=mss,
            rcv_wscale=rcv_wscale,
            now=now,
            room=room,
            ts_offset=ts_offset,
            keepalive=keepalive,
        )
        connection.mss = mss_default  # the guest's default, until its SYN names another
        connection._ts_on = connection._sack_on = True
        connection._pending = _SEND_SYN
        return connection

    def _negotiate(self, syn: Segment, mss_default: int) -> None:
        """Take over the options of the guest's SYN; what it does not name is off."""
        options = syn.options or TcpOptions()
        self._wscale_on = options.wscale is not None
        if options.wscale is None:
            self.rcv_wscale = 0
        else:
            self.snd_wscale = min(options.wscale, WSCALE_MAX)
        self._sack_on = options.sack_permitted
        self._ts_on = options.ts is not None
        if options.ts is not None:
            self._ts_recent = options.ts[0]
        offered = mss_default if options.mss is None else options.mss
        self.mss = max(MSS_MIN, min(offered, self._own_mss))
        self.options_len = TIMESTAMPS_LEN if self._ts_on else 0
        self.mss -= self.options_len
        self.snd_wnd = self._max_wnd = syn.window

    # What the guest sent

    def handle_segment(self, seg: Segment, length: int, now: float) -> Outcome:
        """One segment with `length` octets of payload (RFC 9293 §3.10.7)."""
        seq, ack, flags, window, options = seg
        if not self._predicted or seq != self.rcv_nxt or flags | PSH != _PSH_ACK:
            return self._arrive(seg, length, now)
        una = self.snd_una
        acked = (ack - una) & MASK
        flight = (self.snd_max - una) & MASK
        wnd = window << self.snd_wscale
        if acked > flight or length > (self.rcv_adv - seq) & MASK or wnd < flight - acked:
            return self._arrive(seg, length, now)
        events = 0
        if options is not None:
            _, _, _, sack, ts = options
            if ts is not None and self._ts_on:
                tsval = ts[0]
                if (tsval - self._ts_recent) & MASK >= HALF:
                    return self._arrive(seg, length, now)
                if seq == self._last_ack:
                    self._ts_recent = tsval
            if sack:
                return self._arrive(seg, length, now)
        if wnd != self.snd_wnd:
            if wnd > self.snd_wnd:
                events = SENDABLE
                if wnd > self._max_wnd:
                    self._max_wnd = wnd
            self.snd_wnd = wnd
        elif not acked and not length and flight:
            return self._arrive(seg, length, now)  # a duplicate ACK
        if acked:
            events = SENDABLE
            self.snd_una = ack
            self._rexmit_at = None if acked == flight else now + self._rto
            timed_at = self._timed_at
            if timed_at is not None and (ack - self._timed_seq) & MASK < HALF:
                self._timed_at = None
                self._measure(now - timed_at)
        self._heard_at = now
        if length:
            self.rcv_nxt = (seq + length) & MASK
            return _outcome(Outcome, (acked, 0, length, events | ACK_LATER))
        return _outcome(Outcome, (acked, 0, 0, events))

    def _arrive(self, seg: Segment, length: int, now: float) -> Outcome:
        """handle_segment() without prediction."""
        flags = seg.flags
        state = self.state
        if state is State.CLOSED or (flags & SYN and flags & (FIN | RST)):
            return NOTHING
        if state is State.CONNECTING:
            outcome = self._arrive_connecting(seg)
        elif state is State.SYN_SENT:
            outcome = self._arrive_syn_sent(seg, now)
        elif flags & RST:
            outcome = self._arrive_rst(seg, now)
        elif flags & SYN:
            outcome = self._arrive_syn(seg, now)
        elif flags & ACK:
            outcome = self._arrive_ordinary(seg, length, now)
        else:
            return NOTHING
        self._settle()
        return outcome

    def _arrive_connecting(self, seg: Segment) -> Outcome:
        """The host's connect has no answer yet: repeated SYNs are not answered either."""
        if seg.flags & RST:
            return self._reset_by_guest() if seg.seq == self.rcv_nxt else NOTHING
        if is_opening(seg) and (seg.seq + 1) & MASK != self.rcv_nxt:
            self._become(State.CLOSED, self._heard_at)
            return Outcome(0, 0, 0, REOPEN | CLOSED)
        return NOTHING

    def _arrive_syn_sent(self, seg: Segment, now: float) -> Outcome:
        """RFC 9293 §3.10.7.3."""
        flags = seg.flags
        acceptable = seg.ack == self.snd_max and self.snd_max != self.snd_una
        if flags & ACK and not acceptable:
            return NOTHING if flags & RST else self._refuse(seg.ack)
        if flags & RST:
            return self._reset_by_guest() if flags & ACK else NOTHING
        if not flags & SYN:
            return NOTHING
        room = (self.rcv_adv - self.rcv_nxt) & MASK
        self._negotiate(seg, self.mss)
        self.irs = seg.seq
        self.rcv_nxt = self._last_ack = (seg.seq + 1) & MASK
        room = min(room, WINDOW_MAX << self.rcv_wscale)
        self.rcv_adv = self._told = (self.rcv_nxt + room) & MASK
        self._heard_at = now
        if flags & ACK:
            return self._establish(seg, ACK_NOW, now)
        self._become(State.SYN_RECEIVED, now)  # simultaneous open
        self._pending |= _SEND_SYN
        return Outcome(0, 0, 0, CONTROL)

    def _establish(self, seg: Segment, events: int, now: float) -> Outcome:
        """Our SYN is acknowledged."""
        if self._timed_at is not None and not self._retries:
            self._measure(now - self._timed_at)
        self._timed_at = None
        self._retries = 0
        self._rexmit_at = None
        self.snd_una = seg.ack
        self.snd_wnd = seg.window if seg.flags & SYN else seg.window << self.snd_wscale
        self._max_wnd = max(self._max_wnd, self.snd_wnd)
        self._pending &= ~_SEND_SYN
        self._become(State.ESTABLISHED, now)
        events |= ESTABLISHED | SENDABLE
        if self._eof:
            events |= self._close(now)
        return Outcome(0, 0, 0, events)

    def _arrive_rst(self, seg: Segment, now: float) -> Outcome:
        """RFC 5961 §3.2: only the very next number resets; one in the window is challenged."""
        ahead = (seg.seq - self.rcv_nxt) & MASK
        if ahead == 0:
            return self._reset_by_guest()
        if ahead < (self.rcv_adv - self.rcv_nxt) & MASK:
            return self._challenge(now)
        return NOTHING

    def _reset_by_guest(self) -> Outcome:
        was_over = self.state is State.TIME_WAIT
        self._become(State.CLOSED, self._heard_at)
        return Outcome(0, 0, 0, CLOSED if was_over else RESET_RECEIVED | CLOSED)

    def _arrive_syn(self, seg: Segment, now: float) -> Outcome:
        """A SYN where none is due (RFC 9293 §3.10.7.4, RFC 5961 §4.2)."""
        repeated = (seg.seq + 1) & MASK == self.rcv_nxt
        if self.state is State.SYN_RECEIVED and repeated:
            if seg.flags & ACK and seg.ack == self.snd_max != self.snd_una:
                return self._establish(seg, ACK_NOW, now)
            self._pending |= _SEND_SYN
            return Outcome(0, 0, 0, CONTROL)
        if self.state is State.TIME_WAIT and is_opening(seg) and self._is_newer(seg):
            self._become(State.CLOSED, now)
            return Outcome(0, 0, 0, REOPEN | CLOSED)
        return self._challenge(now)

    def _is_newer(self, syn: Segment) -> bool:
        """Whether a SYN in TIME-WAIT is of a new incarnation (RFC 9293 §3.6.1, RFC 6191)."""
        ts = syn.options.ts if syn.options is not None and self._ts_on else None
        if ts is not None and distance(ts[0], self._ts_recent) > 0:
            return True
        return distance(syn.seq, self.rcv_nxt) > 0

    def _arrive_ordinary(self, seg: Segment, length: int, now: float) -> Outcome:
        """A segment with ACK and without SYN or RST, in SYN-RECEIVED or later."""
        offset = distance(seg.seq, self.rcv_nxt)
        if not self._passes_paws(seg, offset, now):
            return self._challenge(now) if not length else Outcome(0, 0, 0, ACK_NOW)
        wnd = (self.rcv_adv - self.rcv_nxt) & MASK
        if offset > wnd or offset < -(WINDOW_MAX << WSCALE_MAX):
            return self._challenge(now) if not length else Outcome(0, 0, 0, ACK_NOW)
        established = 0
        if self.state is State.SYN_RECEIVED:
            if seg.ack != self.snd_max or self.snd_max == self.snd_una:
                return self._refuse(seg.ack)
            established = self._establish(seg, 0, now).events
        self._heard_at = now
        acked, events = self._take_ack(seg, length, offset, now)
        if acked < 0 or self.state is State.CLOSED:
            return Outcome(max(acked, 0), 0, 0, events)
        skip, take, more = self._take_text(seg, length, offset, now)
        return Outcome(acked, skip, take, established | events | more)

    def _passes_paws(self, seg: Segment, offset: int, now: float) -> bool:
        """RFC 7323 §5.3, R1 and R3."""
        ts = seg.options.ts if seg.options is not None and self._ts_on else None
        if ts is None:
            return True
        if (ts[0] - self._ts_recent) & MASK >= HALF and now - self._heard_at < PAWS_IDLE:
            return False
        if distance(seg.seq, self._last_ack) <= 0 and offset <= 0:
            self._ts_recent = ts[0]
        return True

    # The guest's acknowledgements

    def _take_ack(self, seg: Segment, length: int, offset: int, now: float) -> tuple[int, int]:
        """(octets of host data acknowledged, events); -1 where the segment is to be dropped."""
        una = self.snd_una
        acked = (seg.ack - una) & MASK
        flight = (self.snd_max - una) & MASK
        if acked > flight:
            if (una - seg.ack) & MASK <= max(self._max_wnd, WINDOW_MAX):
                return 0, 0  # an old duplicate
            return -1, self._challenge(now).events  # RFC 5961 §5.2, or of what was never sent
        if self.state is State.TIME_WAIT:
            return 0, 0
        wnd = seg.window << self.snd_wscale
        duplicate = (
            not acked and not length and not seg.flags & FIN and flight > 0 and wnd == self.snd_wnd
        )
        events = 0
        # In place of SND.WL1 and SND.WL2: old segments do not change the window.
        if acked or offset >= 0:
            events |= self._take_window(wnd, now)
        sack = seg.options.sack if seg.options is not None and self._sack_on else ()
        if acked:
            acked, more = self._advance(seg, acked, sack, now)
            events |= more
        elif sack or (duplicate and not self._sack_on):
            events |= self._count_duplicate(sack, duplicate and offset == 0)
        events |= self._check_withdrawn(now) | self._check_fin(now)
        return acked, events

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
        if not self._fin_sent or self.snd_una != self._data_end():
            return 0
        self._pending |= _SEND_FIN
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
        if loss is not None:
            events |= self._resend_fin() if loss.mode != WATCHING else 0
            if loss.on_ack(acked, una, self._later(una), self.mss):
                events |= REWIND
            if sack:
                loss.note_sack(sack, una, self.snd_max)
            if loss.is_over(self._max_wnd):
                self._loss = None
        if una == self.snd_max:
            self._rexmit_at = None
            if self._fin_sent:
                octets -= 1
                events |= self._fin_acked(now)
        elif not self._persisting:
            self._arm(now)
        self._point_snd_nxt()
        return octets, events

    def _later(self, una: int) -> int:
        """The end of the data, or SND.UNA where the FIN is acknowledged too."""
        return una if una == self.snd_max else self._data_end()

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

    def _check_fin(self, now: float) -> int:
        """Is our FIN due, and does the window take it?"""
        if not self._eof or self._fin_sent or self.state in _HANDSHAKE:
            return 0
        flight = (self.snd_max - self.snd_una) & MASK
        if flight < self.snd_wnd:
            self._pending |= _SEND_FIN
            return CONTROL
        if not flight:
            self._persist(now)
        return 0

    def _fin_acked(self, now: float) -> int:
        match self.state:
            case State.FIN_WAIT_1:
                self._become(State.FIN_WAIT_2, now)
            case State.CLOSING:
                self._become(State.TIME_WAIT, now)
            case State.LAST_ACK:
                self._become(State.CLOSED, now)
                return CLOSED
        return 0

    # The guest's octets

    def _take_text(
        self, seg: Segment, length: int, offset: int, now: float
    ) -> tuple[int, int, int]:
        """(skip, take, events) of the payload and FIN (RFC 9293 §3.10.7.4, seventh and eighth)."""
        fin = bool(seg.flags & FIN)
        if not length and not fin:
            return 0, 0, self._challenge(now).events if offset < 0 else 0
        if self.state not in _RECEIVING:
            if self.state is State.TIME_WAIT and fin:
                self._idle_at = now + TIME_WAIT_FOR
            return 0, 0, ACK_NOW
        skip = max(0, -offset)
        if skip >= length + fin:
            return 0, 0, ACK_NOW
        wanted = ((self.rcv_adv - self.rcv_nxt) & MASK) - offset  # octets up to the right edge
        stop = min(length, wanted)
        fin = fin and length <= wanted
        if offset > 0:
            return self._take_ahead(seg, stop, fin)
        return self._take_in_order(seg, skip, stop, fin and stop == length, now)

    def _take_in_order(
        self, seg: Segment, skip: int, stop: int, fin: bool, now: float
    ) -> tuple[int, int, int]:
        """Octets from RCV.NXT on, up to what is kept already."""
        take = max(0, stop - skip)
        events = ACK_LATER if take else ACK_NOW
        ahead = self._ahead
        if ahead is not None:
            events |= ACK_NOW  # RFC 5681 §4.2: at once, when a gap closes
            gap = ahead.gap(self.rcv_nxt)
            if take > gap:
                take = gap
                fin = False
            if ahead.fin_seq is not None:
                take = min(take, (ahead.fin_seq - self.rcv_nxt) & MASK)
        nxt = (self.rcv_nxt + take) & MASK
        if ahead is not None:
            nxt = ahead.advance(nxt)
            fin = fin or nxt == ahead.fin_seq
            if not ahead.ranges and ahead.fin_seq is None:
                self._ahead = None
        self.rcv_nxt = nxt
        if fin:
            events |= self._receive_fin(now)
        return skip, take, events

    def _take_ahead(self, seg: Segment, stop: int, fin: bool) -> tuple[int, int, int]:
        """Octets beyond a gap: for the relay to keep, where the bounds allow."""
        ahead = self._ahead
        if ahead is None:
            ahead = self._ahead = Ahead()
        end = (seg.seq + stop) & MASK
        if ahead.fin_seq is not None:
            end = (self.rcv_nxt + min(
                (end - self.rcv_nxt) & MASK, (ahead.fin_seq - self.rcv_nxt) & MASK
            )) & MASK  # fmt: skip
        elif fin and not ahead.reaches_beyond(end, self.rcv_nxt):
            ahead.fin_seq = end
        span = None
        if stop > 0 and distance(end, seg.seq) > 0:
            span = ahead.add(seg.seq, end, self.rcv_nxt)
        if not ahead.ranges and ahead.fin_seq is None:
            self._ahead = None
        if span is None:
            return 0, 0, ACK_NOW
        return (span[0] - seg.seq) & MASK, (span[1] - span[0]) & MASK, ACK_NOW | KEEP

    def _receive_fin(self, now: float) -> int:
        self.rcv_nxt = (self.rcv_nxt + 1) & MASK
        if self.rcv_nxt == (self.rcv_adv + 1) & MASK:
            self.rcv_adv = self.rcv_nxt  # the FIN stood at the window's end
        self._ahead = None
        match self.state:
            case State.ESTABLISHED:
                self._become(State.CLOSE_WAIT, now)
            case State.FIN_WAIT_1:
                self._become(State.CLOSING, now)
            case State.FIN_WAIT_2:
                self._become(State.TIME_WAIT, now)
        return FIN_RECEIVED | ACK_LATER

    # Answers to what should not have come

    def _challenge(self, now: float) -> Outcome:
        """An ACK for a segment that may be forged or old; a bounded number of them."""
        if now - self._challenge_at >= 1.0:
            self._challenge_at = now
            self._challenges = 0
        self._challenges += 1
        return Outcome(0, 0, 0, ACK_NOW) if self._challenges <= CHALLENGES_PER_SECOND else NOTHING

    def _refuse(self, seq: int) -> Outcome:
        """A RST for this segment alone: it belongs to an earlier connection."""
        self._refuse_seq = seq
        self._pending |= _SEND_REFUSAL
        return Outcome(0, 0, 0, CONTROL)

    # What the host did

    def host_connected(self, now: float) -> None:
        """The host's connect succeeded: poll() gives the SYN|ACK."""
        if self.state is State.CONNECTING:
            self._become(State.SYN_RECEIVED, now)
            self._pending |= _SEND_SYN

    def host_eof(self, now: float) -> None:
        """The host has no more octets than were emitted once already: poll() gives the FIN."""
        if self._eof or self.state in (State.CLOSED, State.TIME_WAIT):
            return
        self._eof = True
        if self.state in _SENDING:
            self._close(now)
        self._settle()

    def _close(self, now: float) -> int:
        """RFC 9293 §3.10.4."""
        opened = self.state is State.ESTABLISHED
        self._become(State.FIN_WAIT_1 if opened else State.LAST_ACK, now)
        return self._check_fin(now)

    def abort(self, now: float) -> None:
        """The host's side is gone: poll() gives the RST, the connection is over."""
        if self.state is State.CLOSED:
            return
        silent = self.state in (State.SYN_SENT, State.TIME_WAIT)
        self._refuse_seq = 0 if self.state is State.CONNECTING else self._rst_seq()
        self._become(State.CLOSED, now)
        self._pending = 0 if silent else _SEND_RST

    def _rst_seq(self) -> int:
        if (self.snd_max - self.snd_una) & MASK > self.snd_wnd and self.state not in _HANDSHAKE:
            return self._seq_in_window()
        return self.snd_max

    def set_room(self, room: int) -> None:
        """Octets that the host's side takes now (RFC 9293 §3.8.6.2.2)."""
        room = min(room, WINDOW_MAX << self.rcv_wscale)
        if room > self._room_max:
            self._room_max = room
        more = room - ((self.rcv_adv - self.rcv_nxt) & MASK)
        if more >= self._own_mss or (more > 0 and 2 * more >= self._room_max):
            self.rcv_adv = (self.rcv_nxt + room) & MASK

    def update_due(self) -> bool:
        """Has the window opened so much that the guest must be told? At least twofold."""
        more = (self.rcv_adv - self._told) & MASK
        if not more or self.state not in _RECEIVING:
            return False
        told = max(0, distance(self._told, self.rcv_nxt))
        return more >= told and more >= min(self._own_mss, self._room_max // 2)

    # Segments without payload

    def poll(self, now: float) -> list[Emission]:
        """The segments that are due; each is given once."""
        pending = self._pending
        if not pending:
            return [self.emit_ack(now)] if self.update_due() else []
        self._pending = 0
        out = []
        if pending & _SEND_RST:
            return [Emission(self._refuse_seq, self.rcv_nxt, RST | ACK, 0, b"")]
        if pending & _SEND_REFUSAL:
            out.append(Emission(self._refuse_seq, 0, RST, 0, b""))
        if pending & _SEND_SYN:
            out.append(self._emit_syn(now))
        if pending & _SEND_FIN:
            out.append(self._emit_fin(now))
        if pending & _SEND_PROBE:
            probe = self.emit_ack(now)
            out.append(probe._replace(seq=(self.snd_una - 1) & MASK))
        self._settle()
        return out

    def _emit_syn(self, now: float) -> Emission:
        """SYN or SYN|ACK; its window is never scaled (RFC 7323 §2.2)."""
        options = emit_options(
            mss=self._own_mss,
            wscale=self.rcv_wscale if self._wscale_on else None,
            sack_permitted=self._sack_on,
            ts=(self._tsval(now), self._ts_recent) if self._ts_on else None,
        )
        if self.snd_max == self.snd_una:
            self.snd_max = self.snd_nxt = (self.snd_una + 1) & MASK
            self._timed_at = now
        if self._rexmit_at is None:
            self._arm(now)
        window = min((self.rcv_adv - self.rcv_nxt) & MASK, WINDOW_MAX)
        self._told = (self.rcv_nxt + window) & MASK
        if self.state is State.SYN_SENT:
            return Emission(self.snd_una, 0, SYN, window, options)
        return Emission(self.snd_una, self.rcv_nxt, SYN | ACK, window, options)

    def _emit_fin(self, now: float) -> Emission:
        if not self._fin_sent:
            self._fin_sent = True
            self.snd_max = (self.snd_max + 1) & MASK
        self._point_snd_nxt()
        if self._rexmit_at is None:
            self._arm(now)
        ack = self.emit_ack(now)
        return ack._replace(seq=self._data_end(), flags=FIN | ACK)

    # Time

    def poll_at(self) -> float | None:
        """The next deadline; handle_timeout() before it does nothing."""
        rexmit, idle = self._rexmit_at, self._idle_at
        if rexmit is None:
            return idle
        return rexmit if idle is None or rexmit < idle else idle

    def handle_timeout(self, now: float) -> int:
        """Deadlines that have passed; events."""
        events = 0
        if self._rexmit_at is not None and now >= self._rexmit_at:
            events = self._rexmit_timeout(now)
        if self._idle_at is not None and now >= self._idle_at:
            events |= self._idle_timeout(now)
        self._settle()
        return events

    def _rexmit_timeout(self, now: float) -> int:
        if self._persisting:
            return self._persist_timeout(now)
        if self._retries >= self._retries_max():
            return self._give_up(now)
        loss = self._loss
        fin_alone = self._fin_sent and self.snd_una == self._data_end()
        if loss is not None and loss.is_untried(self.snd_una) and not fin_alone:
            self._rexmit_at = None  # the relay had no room for it: sending it sets the timer
            return REWIND
        self._retries += 1
        self._timed_at = None
        self._arm(now)
        if self.state in _HANDSHAKE:
            self._pending |= _SEND_SYN
            return CONTROL
        if self._resend_fin():
            return CONTROL
        if loss is None:
            loss = self._loss = Loss(self.snd_una)
        loss.start_timeout(self.snd_una, self._data_end(), self.snd_max, self.mss)
        self._point_snd_nxt()
        return REWIND

    def _retries_max(self) -> int:
        if self.state in _HANDSHAKE:
            return SYN_RETRIES
        return CLOSING_RETRIES if self.state in (State.CLOSING, State.LAST_ACK) else DATA_RETRIES

    def _persist_timeout(self, now: float) -> int:
        """Probe the closed window; as long as the guest answers, for ever (RFC 9293 §3.8.6.1)."""
        if now - self._heard_at > PERSIST_UNANSWERED_FOR:
            return self._give_up(now)
        self._retries += 1
        self._rexmit_at = now + backed_off(self._rto, self._retries)
        self._pending |= _SEND_PROBE
        return CONTROL

    def _idle_timeout(self, now: float) -> int:
        """The deadline of the state itself."""
        if self.state is State.TIME_WAIT:
            self._become(State.CLOSED, now)
            return CLOSED
        if self.state not in _KEPT_ALIVE:
            return self._give_up(now)
        idle_for = self._idle_for()
        interval = min(KEEPALIVE_INTERVAL, idle_for)
        if self._idle_at is None or self._heard_at >= self._idle_at - interval:
            self._probes = 0  # the last probe was answered
        if now < self._heard_at + idle_for:
            self._idle_at = self._heard_at + idle_for
            return 0
        if self._probes >= KEEPALIVE_PROBES:
            return self._give_up(now)
        self._probes += 1
        self._idle_at = now + interval
        self._pending |= _SEND_PROBE
        return CONTROL

    def _idle_for(self) -> float:
        if self.state in _HALF_CLOSED:
            return min(self._keepalive, HALF_CLOSED_IDLE)
        return self._keepalive

    def _give_up(self, now: float) -> int:
        """The guest is gone, as far as anyone can tell."""
        self.abort(now)
        return CLOSED | GUEST_GONE | (CONTROL if self._pending else 0)

    # State

    def _become(self, state: State, now: float) -> None:
        """The only place where the state changes, and with it the state's deadline."""
        self.state = state
        self._probes = 0
        if state in _KEPT_ALIVE:
            self._idle_at = now + self._idle_for()
        elif state is State.CLOSED:
            self._idle_at = self._rexmit_at = None
            self._persisting = False
            self._pending = 0
            self._loss = self._ahead = None
        elif state is State.TIME_WAIT:
            self._idle_at = now + TIME_WAIT_FOR
            self._rexmit_at = None
        elif state is State.SYN_RECEIVED:
            self._idle_at = now + HANDSHAKE_FOR
        else:
            self._idle_at = now + CLOSING_FOR
        self._settle()

    def _settle(self) -> None:
        """Recompute what the fast paths rely on."""
        intact = self._loss is None and not self._persisting and not self._retries
        self._open = self._loss is None and not self._eof and self.state in _SENDING
        self._predicted = (
            intact
            and self._ahead is None
            and (self.state is State.ESTABLISHED or self.state is State.FIN_WAIT_2)
        )
