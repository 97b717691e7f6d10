"""The retransmission timeout, RFC 6298, as a function of numbers.

The link to a guest is a memory bus: its round trip is tens of microseconds, so the timeout is its
lower bound nearly always. RFC 6298 §2.4 asks for 1 second there and lets an implementation that
knows better use less; 200 ms is what kernels use, and longer than any delayed acknowledgement
that they make.
"""

from __future__ import annotations

from typing import Final

RTO_INITIAL: Final = 1.0  # seconds, RFC 6298 §2.1
RTO_AFTER_SYN_LOSS: Final = 3.0  # seconds, RFC 6298 §5.7
RTO_MIN: Final = 0.2  # seconds; see above
RTO_MAX: Final = 60.0  # seconds, RFC 6298 §2.5
CLOCK_GRANULARITY: Final = 0.001  # seconds, G of RFC 6298


def rto_after(srtt: float, rttvar: float, rtt: float) -> tuple[float, float, float]:
    """SRTT, RTTVAR and RTO after one more measurement; srtt < 0 means that it is the first."""
    if srtt < 0.0:
        srtt = rtt
        rttvar = rtt / 2
    else:
        rttvar += (abs(srtt - rtt) - rttvar) / 4
        srtt += (rtt - srtt) / 8
    rto = srtt + max(CLOCK_GRANULARITY, 4 * rttvar)
    return srtt, rttvar, RTO_MIN if rto < RTO_MIN else min(rto, RTO_MAX)


def backed_off(rto: float, times: int = 1) -> float:
    """The timeout after so many more unanswered transmissions (RFC 6298 §5.5)."""
    return min(rto * (1 << min(times, 16)), RTO_MAX)
