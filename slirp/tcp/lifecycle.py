"""The life of a TCP connection: its state, and the deadline by which that state is left.

    CONNECTING, SYN-SENT, SYN-RECEIVED   HANDSHAKE_FOR, or the retries of the SYN
    ESTABLISHED                          unanswered keepalive probes, or the retries of bytes
    CLOSE-WAIT, FIN-WAIT-2               the same; probes begin after HALF_CLOSED_IDLE already
    FIN-WAIT-1, CLOSING, LAST-ACK        CLOSING_FOR, or the retries of bytes and FIN
    TIME-WAIT                            TIME_WAIT_FOR

A half-closed connection may live as long as it wants, but a guest that has forgotten it says so
when probed: this is where a host's socket would otherwise stay for days. `become` is the only
place where the state changes.

Does not do: the retransmission timer (slirp.tcp.timer), segments.
"""

from __future__ import annotations

import enum
from typing import Final

SYN_RETRIES: Final = 6  # RFC 9293 §3.8.3 asks for 3 minutes; 1 + 2 + … + 60 s come to 2
DATA_RETRIES: Final = 15  # 0.2 s doubling up to 60 s: nearly 8 minutes, RFC 9293 R2
CLOSING_RETRIES: Final = 8  # of a FIN that nobody waits for: 100 s
HANDSHAKE_FOR: Final = 180.0  # seconds; a host's connect(2) gives up after 130
KEEPALIVE_IDLE: Final = 7200.0  # seconds, RFC 9293 §3.8.4 (and no less by default)
KEEPALIVE_INTERVAL: Final = 75.0  # seconds between unanswered probes, as kernels have it
KEEPALIVE_PROBES: Final = 9
HALF_CLOSED_IDLE: Final = 60.0  # seconds to the first probe in CLOSE-WAIT and FIN-WAIT-2
CLOSING_FOR: Final = 7200.0  # seconds for the last window of bytes and the FIN
TIME_WAIT_FOR: Final = 2.0  # seconds: no byte lives for RFC 9293's 2 minutes on a memory bus
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
SENDING: Final = (State.ESTABLISHED, State.CLOSE_WAIT)
HANDSHAKE: Final = (State.CONNECTING, State.SYN_SENT, State.SYN_RECEIVED)
_HALF_CLOSED: Final = (State.FIN_WAIT_2, State.CLOSE_WAIT)
_KEPT_ALIVE: Final = (State.ESTABLISHED, State.FIN_WAIT_2, State.CLOSE_WAIT)
_CLOSING: Final = (State.CLOSING, State.LAST_ACK)


class Due(enum.Enum):
    """What the deadline of a state asks for."""

    NOTHING = enum.auto()
    PROBE = enum.auto()  # is the guest still there?
    OVER = enum.auto()  # TIME-WAIT has passed
    GIVE_UP = enum.auto()  # the guest is gone, as far as anyone can tell


class Lifecycle:
    """The state of one connection and when it was heard from."""

    __slots__ = ("_keepalive", "heard_at", "idle_at", "probes", "state")

    def __init__(self, state: State, now: float, keepalive: float) -> None:
        """`keepalive`: seconds of silence before the first probe."""
        self.state = state
        self.heard_at = now
        self.idle_at: float | None = now + HANDSHAKE_FOR
        self.probes = 0  # sent and not answered
        self._keepalive = keepalive

    def become(self, state: State, now: float) -> None:
        """The only place where the state changes, and with it the state's deadline."""
        self.state = state
        self.probes = 0
        if state in _KEPT_ALIVE:
            self.idle_at = now + self._idle_for()
        elif state is State.CLOSED:
            self.idle_at = None
        elif state is State.TIME_WAIT:
            self.idle_at = now + TIME_WAIT_FOR
        elif state is State.SYN_RECEIVED:
            self.idle_at = now + HANDSHAKE_FOR
        else:
            self.idle_at = now + CLOSING_FOR

    def after_our_fin(self) -> State:
        """The state once our FIN is acknowledged (RFC 9293 §3.3.2, figure 5)."""
        match self.state:
            case State.FIN_WAIT_1:
                return State.FIN_WAIT_2
            case State.CLOSING:
                return State.TIME_WAIT
            case State.LAST_ACK:
                return State.CLOSED
        return self.state

    def after_guest_fin(self) -> State:
        """The state once the guest's FIN is taken."""
        match self.state:
            case State.ESTABLISHED:
                return State.CLOSE_WAIT
            case State.FIN_WAIT_1:
                return State.CLOSING
            case State.FIN_WAIT_2:
                return State.TIME_WAIT
        return self.state

    def wait_again(self, now: float) -> None:
        """TIME-WAIT begins anew: the guest's FIN came once more."""
        self.idle_at = now + TIME_WAIT_FOR

    def retries_max(self) -> int:
        """Timeouts in a row after which the guest counts as gone."""
        if self.state in HANDSHAKE:
            return SYN_RETRIES
        return CLOSING_RETRIES if self.state in _CLOSING else DATA_RETRIES

    def silent_too_long(self, now: float) -> bool:
        """Has a guest whose window is closed said nothing at all for long enough?"""
        return now - self.heard_at > PERSIST_UNANSWERED_FOR

    def handle_idle(self, now: float) -> Due:
        """The deadline of the state has passed."""
        if self.state is State.TIME_WAIT:
            return Due.OVER
        if self.state not in _KEPT_ALIVE:
            return Due.GIVE_UP
        idle_for = self._idle_for()
        interval = min(KEEPALIVE_INTERVAL, idle_for)
        if self.idle_at is None or self.heard_at >= self.idle_at - interval:
            self.probes = 0  # the last probe was answered
        if now < self.heard_at + idle_for:
            self.idle_at = self.heard_at + idle_for
            return Due.NOTHING
        if self.probes >= KEEPALIVE_PROBES:
            return Due.GIVE_UP
        self.probes += 1
        self.idle_at = now + interval
        return Due.PROBE

    def _idle_for(self) -> float:
        if self.state in _HALF_CLOSED:
            return min(self._keepalive, HALF_CLOSED_IDLE)
        return self._keepalive
