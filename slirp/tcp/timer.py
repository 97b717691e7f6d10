"""The clock of what is sent: retransmission (RFC 6298) and the persist timer, never both.

`at` is the one instant that either is due. One segment per round trip is timed (`start_timing`),
and its acknowledgement gives the next RTO; a segment that was sent twice says nothing (Karn), so
whoever sends again calls `forget_timing`. `retries` counts timeouts since something new was
acknowledged.

Does not do: decide what is sent again (slirp.tcp.send, slirp.tcp.loss), or when to give up.
"""

from __future__ import annotations

from slirp.tcp.rto import RTO_AFTER_SYN_LOSS, RTO_INITIAL, backed_off, rto_after
from slirp.tcp.seq import HALF, MASK


class Timer:
    """When the oldest unacknowledged byte, or a probe of a closed window, goes out again."""

    __slots__ = (
        "at",
        "persisting",
        "retries",
        "rto",
        "rttvar",
        "srtt",
        "timed_at",
        "timed_seq",
    )

    def __init__(self) -> None:
        self.at: float | None = None
        self.persisting = False  # `at` times a zero-window probe
        self.retries = 0  # timeouts since the guest last acknowledged something new
        self.rto = RTO_INITIAL  # seconds; doubled by each timeout until the next measurement
        self.srtt = -1.0  # seconds; negative: not measured yet
        self.rttvar = 0.0
        self.timed_at: float | None = None  # when the timed segment left (one per round trip)
        self.timed_seq = 0

    def arm(self, now: float) -> None:
        """One RTO from now."""
        self.at = now + self.rto

    def stop(self) -> None:
        """Nothing is unacknowledged, nothing is to be probed."""
        self.at = None
        self.persisting = False

    def start_timing(self, seq: int, now: float) -> None:
        """A segment that ends at `seq` leaves; time it, unless one is timed already."""
        if self.timed_at is None:
            self.timed_at = now
            self.timed_seq = seq

    def forget_timing(self) -> None:
        """What was timed is sent again."""
        self.timed_at = None

    def take_ack(self, ack: int, now: float) -> bool:
        """An acknowledgement: did it end a measurement?"""
        timed_at = self.timed_at
        if timed_at is None or (ack - self.timed_seq) & MASK >= HALF:
            return False
        self.timed_at = None
        self.measure(now - timed_at)
        return True

    def measure(self, rtt: float) -> None:
        """One round trip of so many seconds."""
        self.srtt, self.rttvar, self.rto = rto_after(self.srtt, self.rttvar, rtt)

    def established(self, now: float) -> None:
        """Our SYN was acknowledged (RFC 6298 §5.7)."""
        if self.retries:
            self.rto = RTO_AFTER_SYN_LOSS
        elif self.timed_at is not None:
            self.measure(now - self.timed_at)
        self.timed_at = None
        self.retries = 0
        self.at = None

    def back_off(self, now: float) -> None:
        """It went off with nothing acknowledged (RFC 6298 §5.5, §5.6)."""
        self.retries += 1
        self.rto = backed_off(self.rto)  # until the next measurement
        self.timed_at = None
        self.arm(now)

    def persist(self, now: float) -> None:
        """Probe a closed window from now on (RFC 9293 §3.8.6.1)."""
        self.persisting = True
        self.retries = 0
        self.arm(now)

    def probe_again(self, now: float) -> None:
        """A probe goes out; the next one waits longer."""
        self.retries += 1
        self.at = now + backed_off(self.rto, self.retries)
