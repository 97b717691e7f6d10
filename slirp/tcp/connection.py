"""TCP (RFC 9293) between the stack and a guest: a connection of numbers, which holds no payload.

The stack mirrors a guest's connection to a host socket. What the host sends stays in that socket's
receive queue until the guest has acknowledged it; what the guest sends goes to the host's kernel
from the guest's own memory. So a `Connection` decides on sequence numbers and lengths only:

- `handle_segment(segment, length, now)` takes the header of what the guest sent and the length of
  its payload. The `Outcome` says which part of the payload is wanted, how many of the host's bytes
  are the guest's now, and what happened. Nearly every segment is the next one in order, so that
  case is decided first and in one function (header prediction).
- `send.plan` and `emit_data` send the host's bytes, again where they were lost. Bytes ahead of
  their turn are the relay's to keep, by the ranges of `slirp.tcp.ahead`; how many the host takes,
  it states with `receive.set_room`.
- `poll` gives the segments without payload that are due; `handle_timeout` and `poll_at` are the
  clock. The relay sends what is returned; nothing here sends.

A connection is made of its parts and adds what concerns more than one of them: `send` (what goes
to the guest, with its timer and, while something is lost, its loss recovery), `receive` (what comes
from the guest), `life` (state and deadlines) and `timestamps`. None of them knows another, or the
connection. `_settle`, at the end of whatever is not the plain case, recomputes what the fast paths
rely on.

`poll_at()` may move later without notice (each ACK pushes the timers); `handle_timeout` before the
deadline does nothing, so a relay may keep the earlier instant. It moves earlier only through
`send.plan`, `emit_data`, `poll`, `host_*` and events other than ACK_LATER and SENDABLE.

Where it is more lenient than the RFCs: a segment that lacks the negotiated timestamps is taken
(RFC 7323 §3.2 would drop it), and the acknowledgement in an entirely old segment counts.

Does not do: urgent data (the pointer is ignored, RFC 6093), Fast Open, ECN, payload in a SYN,
keepalive to the host (the host's kernel has its own).
"""

from __future__ import annotations

from typing import Final

from slirp.tcp.challenge import Challenges
from slirp.tcp.lifecycle import (
    HANDSHAKE,
    KEEPALIVE_IDLE,
    RECEIVING,
    SENDING,
    Due,
    Lifecycle,
    State,
)
from slirp.tcp.receive import WINDOW_MAX, Receive
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
    is_opening,
    refusal,
)
from slirp.tcp.send import (
    SEND_FIN,
    SEND_PROBE,
    SEND_REFUSAL,
    SEND_RST,
    SEND_SYN,
    Send,
)
from slirp.tcp.seq import HALF, MASK, distance
from slirp.tcp.timestamps import Timestamps
from slirp.wire.tcp import ACK, FIN, PSH, RST, SYN, TcpOptions, emit_options

__all__ = [  # with this module, a relay has all that it needs
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

MSS_DEFAULT: Final = 536  # bytes, RFC 9293 §3.7.1 (IPv4; IPv6 has 1220)
MSS_MIN: Final = 28  # bytes: the smallest MTU of IPv4, 68 (RFC 791), less 40 of headers
WSCALE_MAX: Final = 14  # RFC 7323 §2.3
ROOM_INITIAL: Final = 0xFFFF  # bytes, until set_room()

_PSH_ACK: Final = PSH | ACK
_new: Final = tuple.__new__  # half the time of Outcome(...) and Emission(...)


class Connection:
    """One TCP connection with a guest."""

    __slots__ = (
        "_challenges",
        "_in_order",
        "_own_mss",
        "_refuse_seq",
        "_sack_on",
        "_wscale_on",
        "life",
        "receive",
        "send",
        "timestamps",
    )

    def __init__(
        self, send: Send, receive: Receive, life: Lifecycle, timestamps: Timestamps, own_mss: int
    ) -> None:
        """Use passive() or active()."""
        self.send = send
        self.receive = receive
        self.life = life
        self.timestamps = timestamps
        self._own_mss = own_mss  # bytes, as offered to the guest
        self._in_order = False  # the next segment may be judged by header prediction
        self._sack_on = False
        self._wscale_on = False
        self._refuse_seq = 0  # of the RST that is due
        self._challenges: Challenges | None = None  # until the first

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
        ts_offset: int = 0,
        keepalive: float = KEEPALIVE_IDLE,
    ) -> Connection:
        """The guest opened it; nothing is answered until host_connected() or abort().

        `mss` is what we offer, and the most that we send.
        """
        connection = cls(
            Send(iss & MASK),
            Receive((syn.seq + 1) & MASK, mss, rcv_wscale, room),
            Lifecycle(State.CONNECTING, now, keepalive),
            Timestamps(ts_offset),
            mss,
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
        ts_offset: int = 0,
        keepalive: float = KEEPALIVE_IDLE,
    ) -> Connection:
        """The host opened it (a forward); poll() gives the SYN."""
        connection = cls(
            Send(iss & MASK),
            Receive(0, mss, rcv_wscale, room),
            Lifecycle(State.SYN_SENT, now, keepalive),
            Timestamps(ts_offset, on=True),
            mss,
        )
        connection.send.mss = mss_default  # the guest's default, until its SYN names another
        connection._sack_on = connection._wscale_on = True
        connection.send.due = SEND_SYN
        return connection

    def _negotiate(self, syn: Segment, mss_default: int) -> None:
        """Take over the options of the guest's SYN; what it does not name is off."""
        send = self.send
        options = syn.options or TcpOptions()
        self._wscale_on = options.wscale is not None
        if options.wscale is None:
            self.receive.wscale = 0
        else:
            send.wscale = min(options.wscale, WSCALE_MAX)
        self._sack_on = options.sack_permitted
        self.timestamps.turn(None if options.ts is None else options.ts[0])
        offered = mss_default if options.mss is None else options.mss
        send.mss = max(MSS_MIN, min(offered, self._own_mss)) - self.timestamps.length
        send.wnd = send.max_wnd = syn.window

    @property
    def state(self) -> State:
        """Where it is in its life."""
        return self.life.state

    # What the guest sent

    def handle_segment(self, seg: Segment, length: int, now: float) -> Outcome:
        """One segment with `length` bytes of payload (RFC 9293 §3.10.7)."""
        seq, ack, flags, window, options = seg
        send, receive = self.send, self.receive
        if not send.steady or not self._in_order or seq != receive.nxt or flags | PSH != _PSH_ACK:
            return self._arrive(seg, length, now)
        una = send.una
        acked = (ack - una) & MASK
        flight = (send.max - una) & MASK
        wnd = window << send.wscale
        if acked > flight or length > (receive.adv - seq) & MASK or wnd < flight - acked:
            return self._arrive(seg, length, now)
        if options is not None:
            _, _, _, sack, ts = options
            if ts is not None and self.timestamps.length:
                tsval = ts[0]
                if (tsval - self.timestamps.recent) & MASK >= HALF:
                    return self._arrive(seg, length, now)
                if seq == receive.last_ack:
                    self.timestamps.recent = tsval
            if sack:
                return self._arrive(seg, length, now)
        events = 0
        if wnd != send.wnd:
            if wnd > send.wnd:
                events = SENDABLE
                if wnd > send.max_wnd:
                    send.max_wnd = wnd
            send.wnd = wnd
        elif not acked and not length and flight:
            return self._arrive(seg, length, now)  # a duplicate ACK
        if acked:
            events = SENDABLE
            send.una = ack
            timer = send.timer
            timer.at = None if acked == flight else now + timer.rto
            timed_at = timer.timed_at
            if timed_at is not None and (ack - timer.timed_seq) & MASK < HALF:
                timer.timed_at = None
                timer.measure(now - timed_at)
        self.life.heard_at = now
        if length:
            receive.nxt = (seq + length) & MASK
            return _new(Outcome, (acked, 0, length, events | ACK_LATER))
        return _new(Outcome, (acked, 0, 0, events))

    def _arrive(self, seg: Segment, length: int, now: float) -> Outcome:
        """handle_segment() without prediction."""
        flags = seg.flags
        state = self.life.state
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
            return self._reset_by_guest() if seg.seq == self.receive.nxt else NOTHING
        if is_opening(seg) and (seg.seq + 1) & MASK != self.receive.nxt:
            self._become(State.CLOSED, self.life.heard_at)
            return Outcome(0, 0, 0, REOPEN | CLOSED)
        return NOTHING

    def _arrive_syn_sent(self, seg: Segment, now: float) -> Outcome:
        """RFC 9293 §3.10.7.3."""
        flags = seg.flags
        if flags & ACK and not self._acks_our_syn(seg):
            return NOTHING if flags & RST else self._refuse(seg.ack)
        if flags & RST:
            return self._reset_by_guest() if flags & ACK else NOTHING
        if not flags & SYN:
            return NOTHING
        self._negotiate(seg, self.send.mss)
        self.receive.start(seg.seq)
        self.life.heard_at = now
        if flags & ACK:
            return self._establish(seg, ACK_NOW, now)
        self._become(State.SYN_RECEIVED, now)  # simultaneous open
        self.send.due |= SEND_SYN
        return Outcome(0, 0, 0, CONTROL)

    def _acks_our_syn(self, seg: Segment) -> bool:
        return seg.ack == self.send.max != self.send.una

    def _establish(self, seg: Segment, events: int, now: float) -> Outcome:
        """Our SYN is acknowledged."""
        wnd = seg.window if seg.flags & SYN else seg.window << self.send.wscale
        self.send.established(seg.ack, wnd, now)
        self._become(State.ESTABLISHED, now)
        events |= ESTABLISHED | SENDABLE
        if self.send.eof:
            events |= self._close(now)
        return Outcome(0, 0, 0, events)

    def _arrive_rst(self, seg: Segment, now: float) -> Outcome:
        """RFC 5961 §3.2: only the very next number resets; one in the window is challenged."""
        ahead = (seg.seq - self.receive.nxt) & MASK
        if ahead == 0:
            return self._reset_by_guest()
        return self._challenge(now) if ahead < self.receive.window_left() else NOTHING

    def _reset_by_guest(self) -> Outcome:
        was_over = self.life.state is State.TIME_WAIT
        self._become(State.CLOSED, self.life.heard_at)
        return Outcome(0, 0, 0, CLOSED if was_over else RESET_RECEIVED | CLOSED)

    def _arrive_syn(self, seg: Segment, now: float) -> Outcome:
        """A SYN where none is due (RFC 9293 §3.10.7.4, RFC 5961 §4.2)."""
        state = self.life.state
        if state is State.SYN_RECEIVED and (seg.seq + 1) & MASK == self.receive.nxt:
            if seg.flags & ACK and self._acks_our_syn(seg):
                return self._establish(seg, ACK_NOW, now)
            self.send.due |= SEND_SYN
            return Outcome(0, 0, 0, CONTROL)
        if state is State.TIME_WAIT and is_opening(seg) and self._is_newer(seg):
            self._become(State.CLOSED, now)
            return Outcome(0, 0, 0, REOPEN | CLOSED)
        return self._challenge(now)

    def _is_newer(self, syn: Segment) -> bool:
        """Whether a SYN in TIME-WAIT is of a new incarnation (RFC 9293 §3.6.1, RFC 6191)."""
        ts = syn.options.ts if syn.options is not None and self.timestamps.length else None
        if ts is not None and distance(ts[0], self.timestamps.recent) > 0:
            return True
        return distance(syn.seq, self.receive.nxt) > 0

    def _arrive_ordinary(self, seg: Segment, length: int, now: float) -> Outcome:
        """A segment with ACK and without SYN or RST, in SYN-RECEIVED or later."""
        receive, life = self.receive, self.life
        offset = distance(seg.seq, receive.nxt)
        reaches = -(WINDOW_MAX << WSCALE_MAX) <= offset <= receive.window_left()
        if not self._passes_paws(seg, offset, now) or not reaches:
            return self._challenge(now) if not length else Outcome(0, 0, 0, ACK_NOW)
        established = 0
        if life.state is State.SYN_RECEIVED:
            if not self._acks_our_syn(seg):
                return self._refuse(seg.ack)
            established = self._establish(seg, 0, now).events
        life.heard_at = now
        acked, events = self._take_ack(seg, length, offset, now)
        if acked < 0 or life.state is State.CLOSED:
            return Outcome(max(acked, 0), 0, 0, events)
        skip, take, more = self._take_text(seg, length, offset, now)
        return Outcome(acked, skip, take, established | events | more)

    def _passes_paws(self, seg: Segment, offset: int, now: float) -> bool:
        """RFC 7323 §5.3, R1 and R3."""
        ts = seg.options.ts if seg.options is not None and self.timestamps.length else None
        if ts is None:
            return True
        if self.timestamps.is_old(ts[0], now - self.life.heard_at):
            return False
        if distance(seg.seq, self.receive.last_ack) <= 0 and offset <= 0:
            self.timestamps.recent = ts[0]
        return True

    def _take_ack(self, seg: Segment, length: int, offset: int, now: float) -> tuple[int, int]:
        """(bytes of host data acknowledged, events); -1 where the segment is to be dropped."""
        send = self.send
        flight = (send.max - send.una) & MASK
        acked = (seg.ack - send.una) & MASK
        if acked > flight:
            if (send.una - seg.ack) & MASK <= max(send.max_wnd, WINDOW_MAX):
                return 0, 0  # an old duplicate
            return -1, self._challenge(now).events  # RFC 5961 §5.2, or of what was never sent
        if self.life.state is State.TIME_WAIT:
            return 0, 0
        wnd = seg.window << send.wscale
        repeats = not acked and not length and not seg.flags & FIN and wnd == send.wnd
        duplicate = repeats and flight > 0
        events = 0
        # In place of SND.WL1 and SND.WL2: old segments do not change the window.
        if acked or offset >= 0:
            events |= send.take_window(wnd, now)
        sack = seg.options.sack if seg.options is not None and self._sack_on else ()
        if acked:
            echo = None if send.loss is None else self._echo(seg, now)
            acked, more = send.advance(seg.ack, sack, echo, now)
            events |= more
            if send.fin_sent and send.una == send.max:
                events |= self._fin_acked(now)
        elif sack or (duplicate and not self._sack_on):
            events |= send.count_duplicate(sack, duplicate and offset == 0)
        if not wnd:
            events |= send.check_withdrawn(now)
        return acked, events | (self._check_fin(now) if send.eof else 0)

    def _echo(self, seg: Segment, now: float) -> tuple[int, float | None] | None:
        """What the echoed timestamp says to loss recovery."""
        ts = seg.options.ts if seg.options is not None and self.timestamps.length else None
        return None if ts is None else (ts[1], self.timestamps.round_trip(ts[1], now))

    def _fin_acked(self, now: float) -> int:
        state = self.life.after_our_fin()
        if state is self.life.state:
            return 0
        self._become(state, now)
        return CLOSED if state is State.CLOSED else 0

    def _take_text(
        self, seg: Segment, length: int, offset: int, now: float
    ) -> tuple[int, int, int]:
        """(skip, take, events) of the payload and FIN (RFC 9293 §3.10.7.4, seventh and eighth)."""
        fin = bool(seg.flags & FIN)
        if not length and not fin:
            return 0, 0, self._challenge(now).events if offset < 0 else 0
        if self.life.state not in RECEIVING:
            if self.life.state is State.TIME_WAIT and fin:
                self.life.wait_again(now)
            return 0, 0, ACK_NOW
        skip = max(0, -offset)
        if skip >= length + fin:
            return 0, 0, ACK_NOW
        wanted = self.receive.window_left() - offset  # bytes up to the right edge
        stop = min(length, wanted)
        fin = fin and length <= wanted
        if offset > 0:
            return self.receive.take_ahead(seg.seq, stop, fin)
        skip, take, events, fin = self.receive.take_in_order(skip, stop, fin and stop == length)
        return skip, take, events | (self._receive_fin(now) if fin else 0)

    def _receive_fin(self, now: float) -> int:
        self.receive.take_fin()
        self._become(self.life.after_guest_fin(), now)
        return FIN_RECEIVED | ACK_LATER

    def _challenge(self, now: float) -> Outcome:
        """An ACK for a segment that may be forged or old; a bounded number of them."""
        if self._challenges is None:
            self._challenges = Challenges(now)
        return Outcome(0, 0, 0, ACK_NOW) if self._challenges.allow(now) else NOTHING

    def _refuse(self, seq: int) -> Outcome:
        """A RST for this segment alone: it belongs to an earlier connection."""
        self._refuse_seq = seq
        self.send.due |= SEND_REFUSAL
        return Outcome(0, 0, 0, CONTROL)

    # What the host does

    def host_connected(self, now: float) -> None:
        """The host's connect succeeded: poll() gives the SYN|ACK."""
        if self.life.state is State.CONNECTING:
            self._become(State.SYN_RECEIVED, now)
            self.send.due |= SEND_SYN

    def host_eof(self, now: float) -> None:
        """The host has no more bytes than were emitted once already: poll() gives the FIN."""
        state = self.life.state
        if self.send.eof or state in (State.CLOSED, State.TIME_WAIT):
            return
        self.send.eof = True
        if state in SENDING:
            self._close(now)
        self._settle()

    def _close(self, now: float) -> int:
        """RFC 9293 §3.10.4."""
        opened = self.life.state is State.ESTABLISHED
        self._become(State.FIN_WAIT_1 if opened else State.LAST_ACK, now)
        return self._check_fin(now)

    def _check_fin(self, now: float) -> int:
        return 0 if self.life.state in HANDSHAKE else self.send.check_fin(now)

    def abort(self, now: float) -> None:
        """The host's side is gone: poll() gives the RST, the connection is over."""
        state = self.life.state
        if state is State.CLOSED:
            return
        self._refuse_seq = 0 if state is State.CONNECTING else self._rst_seq()
        self._become(State.CLOSED, now)
        if state not in (State.SYN_SENT, State.TIME_WAIT):
            self.send.due = SEND_RST
        self._settle()

    def _rst_seq(self) -> int:
        return self.send.max if self.life.state in HANDSHAKE else self.send.seq_in_window()

    # Segments to the guest

    def emit_data(self, offset: int, length: int, push: bool, now: float) -> Emission:
        """Those bytes go out now."""
        send, receive = self.send, self.receive
        seq = (send.una + offset) & MASK
        end = (seq + length) & MASK
        timer = send.timer
        if send.open and seq == send.max:
            send.max = end
            if timer.timed_at is None:
                timer.timed_at = now
                timer.timed_seq = end
        else:
            send.account(seq, end, self.timestamps.clock(now), now)
        if timer.at is None:
            timer.at = now + timer.rto
        ack = receive.last_ack = receive.nxt
        edge = receive.told = receive.adv
        flags = _PSH_ACK if push else ACK
        window = ((edge - ack) & MASK) >> receive.wscale
        options = self.timestamps.option(now) if self.timestamps.length else b""
        return _new(Emission, (seq, ack, flags, window, options))

    def emit_ack(self, now: float) -> Emission:
        """An ACK with no payload, and with SACK blocks where bytes are ahead."""
        send, receive = self.send, self.receive
        ack = receive.last_ack = receive.nxt
        edge = receive.told = receive.adv
        if receive.ahead is None:
            options = self.timestamps.option(now)
        else:
            options = emit_options(
                ts=self.timestamps.pair(now),
                sack=receive.ahead.ranges if self._sack_on else (),
            )
        seq = send.max
        if (seq - send.una) & MASK > send.wnd:
            seq = send.seq_in_window()
        window = ((edge - ack) & MASK) >> receive.wscale
        return _new(Emission, (seq, ack, ACK, window, options))

    def poll(self, now: float) -> list[Emission]:
        """The segments without payload that are due; each is given once."""
        send = self.send
        due = send.due
        if not due:
            if self.receive.update_due() and self.life.state in RECEIVING:
                return [self.emit_ack(now)]
            return []
        send.due = 0
        if due & SEND_RST:
            return [Emission(self._refuse_seq, self.receive.nxt, RST | ACK, 0, b"")]
        out = []
        if due & SEND_REFUSAL:
            out.append(Emission(self._refuse_seq, 0, RST, 0, b""))
        if due & SEND_SYN:
            out.append(self._emit_syn(now))
        if due & SEND_FIN and not send.fin_acked():
            seq = send.send_fin(now)
            out.append(self.emit_ack(now)._replace(seq=seq, flags=FIN | ACK))
        if due & SEND_PROBE:
            out.append(self.emit_ack(now)._replace(seq=(send.una - 1) & MASK))
        return out

    def _emit_syn(self, now: float) -> Emission:
        """SYN or SYN|ACK."""
        options = emit_options(
            mss=self._own_mss,
            wscale=self.receive.wscale if self._wscale_on else None,
            sack_permitted=self._sack_on,
            ts=self.timestamps.pair(now),
        )
        self.send.send_syn(now)
        window = self.receive.syn_window()
        if self.life.state is State.SYN_SENT:
            return Emission(self.send.una, 0, SYN, window, options)
        return Emission(self.send.una, self.receive.nxt, SYN | ACK, window, options)

    # Time

    def poll_at(self) -> float | None:
        """The next deadline; handle_timeout() before it does nothing."""
        rexmit_at, idle_at = self.send.timer.at, self.life.idle_at
        if rexmit_at is None:
            return idle_at
        return rexmit_at if idle_at is None or rexmit_at < idle_at else idle_at

    def handle_timeout(self, now: float) -> int:
        """Deadlines that have passed; events."""
        events = 0
        rexmit_at = self.send.timer.at
        if rexmit_at is not None and now >= rexmit_at:
            events = self._rexmit_timeout(now)
        idle_at = self.life.idle_at
        if idle_at is not None and now >= idle_at:
            events |= self._idle_timeout(now)
        self._settle()
        return events

    def _rexmit_timeout(self, now: float) -> int:
        send, timer = self.send, self.send.timer
        if timer.persisting:
            return self._persist_timeout(now)
        if timer.retries >= self.life.retries_max():
            return self._give_up(now)
        if send.has_untried():
            timer.at = None  # the relay had no room for it: sending it sets the timer
            return REWIND
        if self.life.state in HANDSHAKE:
            timer.back_off(now)
            send.due |= SEND_SYN
            return CONTROL
        return send.timeout(now)

    def _persist_timeout(self, now: float) -> int:
        """Probe the closed window; as long as the guest answers, for ever (RFC 9293 §3.8.6.1)."""
        if self.life.silent_too_long(now):
            return self._give_up(now)
        self.send.timer.probe_again(now)
        self.send.due |= SEND_PROBE
        return CONTROL

    def _idle_timeout(self, now: float) -> int:
        """The deadline of the state itself."""
        match self.life.handle_idle(now):
            case Due.OVER:
                self._become(State.CLOSED, now)
                return CLOSED
            case Due.GIVE_UP:
                return self._give_up(now)
            case Due.PROBE:
                self.send.due |= SEND_PROBE
                return CONTROL
        return 0

    def _give_up(self, now: float) -> int:
        """The guest is gone, as far as anyone can tell."""
        self.abort(now)
        return CLOSED | GUEST_GONE | (CONTROL if self.send.due else 0)

    # State

    def _become(self, state: State, now: float) -> None:
        self.life.become(state, now)
        if state is State.CLOSED:
            self.send.stop()
            self.receive.ahead = None
        elif state is State.TIME_WAIT:
            self.send.timer.at = None

    def settle(self) -> None:
        """Its numbers were set from outside (slirp.tcp.carry)."""
        self._settle()

    def _settle(self) -> None:
        state = self.life.state
        opened = state is State.ESTABLISHED
        self.send.settle(opened or state is State.CLOSE_WAIT)
        self._in_order = self.receive.ahead is None and (opened or state is State.FIN_WAIT_2)
