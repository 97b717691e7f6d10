"""The life of a TCP connection: what the host and the clock do to it, and its state.

Every state is left by a deadline:

    CONNECTING, SYN-SENT, SYN-RECEIVED   HANDSHAKE_FOR, or the retries of the SYN
    ESTABLISHED                          unanswered keepalive probes, or the retries of octets
    CLOSE-WAIT, FIN-WAIT-2               the same; probes begin after HALF_CLOSED_IDLE already
    FIN-WAIT-1, CLOSING, LAST-ACK        CLOSING_FOR, or the retries of octets and FIN
    TIME-WAIT                            TIME_WAIT_FOR

A half-closed connection may live as long as it wants, but a guest that has forgotten it says so
when probed: this is where a host's socket would otherwise stay for days. `_become` is the only
place where the state changes.
"""

from __future__ import annotations

import enum
from typing import Final

from slirp.tcp.loss import Loss
from slirp.tcp.receive import WINDOW_MAX, Receiver
from slirp.tcp.rto import backed_off
from slirp.tcp.segment import CLOSED, CONTROL, GUEST_GONE, REWIND, Emission
from slirp.tcp.send import SEND_FIN, SEND_PROBE, SEND_REFUSAL, SEND_RST, SEND_SYN
from slirp.tcp.seq import MASK
from slirp.wire.tcp import ACK, FIN, RST, SYN, emit_options

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


RECEIVING: Final = (State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2)
_SENDING: Final = (State.ESTABLISHED, State.CLOSE_WAIT)
_HALF_CLOSED: Final = (State.FIN_WAIT_2, State.CLOSE_WAIT)
_KEPT_ALIVE: Final = (State.ESTABLISHED, State.FIN_WAIT_2, State.CLOSE_WAIT)
_HANDSHAKE: Final = (State.CONNECTING, State.SYN_SENT, State.SYN_RECEIVED)


class Lifecycle(Receiver):
    """The part of a Connection that opens, closes and waits."""

    __slots__ = (
        "_heard_at",
        "_idle_at",
        "_keepalive",
        "_probes",
        "_refuse_seq",
        "_wscale_on",
        "irs",
        "state",
    )

    def __init__(
        self,
        state: State,
        iss: int,
        rcv_nxt: int,
        mss: int,
        rcv_wscale: int,
        now: float,
        room: int,
        ts_offset: int,
        keepalive: float,
    ) -> None:
        super().__init__(iss, rcv_nxt, mss, rcv_wscale, room, ts_offset)
        self.irs = (rcv_nxt - 1) & MASK  # the guest's initial number
        self.state = state
        self._heard_at = now
        self._idle_at: float | None = now + HANDSHAKE_FOR
        self._keepalive = keepalive  # seconds of silence before the first probe
        self._probes = 0  # sent and not answered
        self._refuse_seq = 0
        self._wscale_on = False

    # What the host does

    def host_connected(self, now: float) -> None:
        """The host's connect succeeded: poll() gives the SYN|ACK."""
        if self.state is State.CONNECTING:
            self._become(State.SYN_RECEIVED, now)
            self._pending |= SEND_SYN

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

    def _check_fin(self, now: float) -> int:
        """Is our FIN due, and does the window take it?"""
        if not self._eof or self._fin_sent or self.state in _HANDSHAKE:
            return 0
        flight = (self.snd_max - self.snd_una) & MASK
        if flight < self.snd_wnd:
            self._pending |= SEND_FIN
            return CONTROL
        if not flight:
            self._persist(now)
        return 0

    def abort(self, now: float) -> None:
        """The host's side is gone: poll() gives the RST, the connection is over."""
        if self.state is State.CLOSED:
            return
        silent = self.state in (State.SYN_SENT, State.TIME_WAIT)
        self._refuse_seq = 0 if self.state is State.CONNECTING else self._rst_seq()
        self._become(State.CLOSED, now)
        self._pending = 0 if silent else SEND_RST
        self._settle()

    def _rst_seq(self) -> int:
        if (self.snd_max - self.snd_una) & MASK > self.snd_wnd and self.state not in _HANDSHAKE:
            return self._seq_in_window()
        return self.snd_max

    # Segments without payload

    def poll(self, now: float) -> list[Emission]:
        """The segments that are due; each is given once."""
        pending = self._pending
        if not pending:
            if self.update_due() and self.state in RECEIVING:
                return [self.emit_ack(now)]
            return []
        self._pending = 0
        out = []
        if pending & SEND_RST:
            return [Emission(self._refuse_seq, self.rcv_nxt, RST | ACK, 0, b"")]
        if pending & SEND_REFUSAL:
            out.append(Emission(self._refuse_seq, 0, RST, 0, b""))
        if pending & SEND_SYN:
            out.append(self._emit_syn(now))
        if pending & SEND_FIN and not (self._fin_sent and self.snd_una == self.snd_max):
            out.append(self._emit_fin(now))
        if pending & SEND_PROBE:
            probe = self.emit_ack(now)
            out.append(probe._replace(seq=(self.snd_una - 1) & MASK))
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
        if loss is not None and loss.is_untried(self.snd_una) and not self._fin_alone():
            self._rexmit_at = None  # the relay had no room for it: sending it sets the timer
            return REWIND
        self._retries += 1
        self._rto = backed_off(self._rto)  # until the next measurement
        self._timed_at = None
        self._arm(now)
        if self.state in _HANDSHAKE:
            self._pending |= SEND_SYN
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
        self._pending |= SEND_PROBE
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
        self._pending |= SEND_PROBE
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

    def _settle(self) -> None:
        """Recompute what the fast paths rely on, at the end of whatever may have changed it."""
        intact = self._loss is None and not self._persisting and not self._retries
        self._open = self._loss is None and not self._eof and self.state in _SENDING
        self._predicted = (
            intact
            and self._ahead is None
            and (self.state is State.ESTABLISHED or self.state is State.FIN_WAIT_2)
        )
