"""TCP (RFC 9293) between the stack and a guest: a connection of numbers, which holds no payload.

The stack mirrors a guest's connection to a host socket. What the host sends stays in that socket's
receive queue until the guest has acknowledged it; what the guest sends goes to the host's kernel
from the guest's own memory. So a `Connection` decides on sequence numbers and lengths only:

- `handle_segment(segment, length, now)` takes the header of what the guest sent and the length of
  its payload. The `Outcome` says which part of the payload is wanted, how many of the host's octets
  are the guest's now, and what happened. Nearly every segment is the next one in order, so that
  case is decided first and in one function (header prediction).
- `plan` and `emit_data` send the host's octets (`slirp.tcp.send`), again where they were lost
  (`slirp.tcp.loss`). Octets ahead of their turn are the relay's to keep, by the ranges of
  `slirp.tcp.ahead`.
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
(RFC 7323 §3.2 would drop it), and the acknowledgement in an entirely old segment counts.

Does not do: urgent data (the pointer is ignored, RFC 6093), Fast Open, ECN, payload in a SYN,
keepalive to the host (the host's kernel has its own).
"""

from __future__ import annotations

from typing import Final

from slirp.tcp.lifecycle import (
    KEEPALIVE_IDLE,
    RECEIVING,
    TIME_WAIT_FOR,
    Lifecycle,
    State,
)
from slirp.tcp.receive import WINDOW_MAX
from slirp.tcp.rto import RTO_AFTER_SYN_LOSS
from slirp.tcp.segment import (
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
from slirp.tcp.send import SEND_REFUSAL, SEND_SYN, TIMESTAMPS_LEN
from slirp.tcp.seq import HALF, MASK, distance
from slirp.wire.tcp import ACK, FIN, PSH, RST, SYN, TcpOptions

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
ROOM_INITIAL: Final = 0xFFFF  # octets, until set_room()

CHALLENGES_PER_SECOND: Final = 10  # ACKs that answer segments without payload, RFC 5961 §7
PAWS_IDLE: Final = 24 * 86400.0  # seconds after which TS.Recent says nothing, RFC 7323 §5.5

_FLAGS: Final = FIN | SYN | RST | ACK
_PSH_ACK: Final = PSH | ACK
_outcome = tuple.__new__  # half the time of Outcome(...)


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


class Connection(Lifecycle):
    """One TCP connection with a guest."""

    __slots__ = ("_challenge_at", "_challenges")

    def __init__(
        self,
        state: State,
        iss: int,
        rcv_nxt: int,
        mss: int,
        rcv_wscale: int,
        now: float,
        room: int,
        ts_offset: int | None,
        keepalive: float,
    ) -> None:
        """Use passive() or active()."""
        if ts_offset is None:
            ts_offset = (iss * 0x9E3779B1) & MASK  # the ISS is random, so this is (RFC 7323 §7.1)
        super().__init__(
            state, iss & MASK, rcv_nxt, mss, rcv_wscale, now, room, ts_offset, keepalive
        )
        self._challenge_at = now
        self._challenges = 0

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
        rcv_nxt = (syn.seq + 1) & MASK
        connection = cls(
            State.CONNECTING, iss, rcv_nxt, mss, rcv_wscale, now, room, ts_offset, keepalive
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
        connection = cls(State.SYN_SENT, iss, 0, mss, rcv_wscale, now, room, ts_offset, keepalive)
        connection.mss = mss_default  # the guest's default, until its SYN names another
        connection._ts_on = connection._sack_on = connection._wscale_on = True
        connection._pending = SEND_SYN
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
        self._pending |= SEND_SYN
        return Outcome(0, 0, 0, CONTROL)

    def _establish(self, seg: Segment, events: int, now: float) -> Outcome:
        """Our SYN is acknowledged."""
        if self._retries:
            self._rto = RTO_AFTER_SYN_LOSS
        elif self._timed_at is not None:
            self._measure(now - self._timed_at)
        self._timed_at = None
        self._retries = 0
        self._rexmit_at = None
        self.snd_una = seg.ack
        self.snd_wnd = seg.window if seg.flags & SYN else seg.window << self.snd_wscale
        self._max_wnd = max(self._max_wnd, self.snd_wnd)
        self._pending &= ~SEND_SYN
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
            self._pending |= SEND_SYN
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
            if self._fin_sent and self.snd_una == self.snd_max:
                events |= self._fin_acked(now)
        elif sack or (duplicate and not self._sack_on):
            events |= self._count_duplicate(sack, duplicate and offset == 0)
        events |= self._check_withdrawn(now) | self._check_fin(now)
        return acked, events

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
        if self.state not in RECEIVING:
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
        skip, take, events, fin = self._take_in_order(skip, stop, fin and stop == length)
        return skip, take, events | (self._receive_fin(now) if fin else 0)

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
        self._pending |= SEND_REFUSAL
        return Outcome(0, 0, 0, CONTROL)
