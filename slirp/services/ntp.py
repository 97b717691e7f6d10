"""An SNTP server (RFC 4330, RFC 5905 §14) that knows what time the host thinks it is.

    answer(payload, unix_ns) ──► the reply, or None

One request, one reply of the same size; nothing is remembered, so there is nothing to bound. The
version is the client's. How well the host's own clock is set nobody here knows: the stratum says
that there is a clock in between, the dispersion that it may be off.

Does not do: modes other than client and server, kiss-o'-death, leap seconds ahead of time.
"""

from __future__ import annotations

from typing import Final

from slirp.wire import ntp as wire
from slirp.wire.ntp import NtpPacket

STRATUM: Final = 8  # behind whatever sets the host's clock; a client's own sources come first
PRECISION: Final = -20  # log2 seconds: a microsecond
ROOT_DISPERSION: Final = 1 << 12  # 2^-16 seconds: a sixteenth
REFERENCE_ID: Final = b"LOCL"


def answer(payload: memoryview | bytes, unix_ns: int) -> bytes | None:
    """The reply to a client at this instant of the host's clock. Raises MalformedPacket."""
    request = NtpPacket.parse(payload)
    if request.mode != wire.CLIENT:
        return None
    now = wire.timestamp(unix_ns)
    return NtpPacket(
        first=request.version << 3 | wire.SERVER,
        stratum=STRATUM,
        poll=request.poll,
        precision=PRECISION,
        root_delay=0,
        root_dispersion=ROOT_DISPERSION,
        reference_id=REFERENCE_ID,
        reference=now,
        origin=request.transmit,
        receive=now,
        transmit=now,
    ).emit()
