"""ICMP errors of one family as the other says them: the numbers of RFC 7915 §4.2 and §5.2.

Where the host's side of a flow is of another family than its guest's (NAT64, or a service found at
the host's other loopback address), an error that comes back for it is of the wrong family. It is
said again in the guest's: type, code, and the second word, which holds the path's MTU or a pointer
into the header that was wrong. What has no equivalent is not passed on.

MTUs differ by the headers' difference of 20 bytes. An IPv4 router that names none (RFC 1191 §4) is
taken to mean the next lower plateau of RFC 1191 §7 that an IPv6 link may have.

Does not do: the packet that is quoted (its header is made anew from the flow), addresses.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from slirp.wire import icmp as icmp4
from slirp.wire import icmpv6 as icmp6
from slirp.wire.ipv4 import HEADER_LEN as LEN4
from slirp.wire.ipv6 import HEADER_LEN as LEN6
from slirp.wire.ipv6 import MIN_MTU as MIN_MTU6

Error: TypeAlias = tuple[int, int, int]  # type, code, second word

LONGER: Final = LEN6 - LEN4  # bytes
MIN_MTU4: Final = 68  # bytes, RFC 791 §3.2
UNNAMED_MTU: Final = 1492  # bytes, RFC 1191 §7.1: below Ethernet's 1500

UNREACHABLE4: Final = icmp4.DEST_UNREACHABLE
UNREACHABLE6: Final = icmp6.DEST_UNREACHABLE
PARAMETER_PROBLEM4: Final = 12  # RFC 792

# ICMP type 3: code → ICMPv6 type and code; RFC 7915 §4.2. Code 4 names an MTU, code 14 nothing.
_UNREACHABLE_TO_6: Final = {
    **dict.fromkeys((0, 1, 5, 6, 7, 8, 11, 12), (UNREACHABLE6, icmp6.NO_ROUTE)),
    **dict.fromkeys((9, 10, 13, 15), (UNREACHABLE6, icmp6.PROHIBITED)),
    2: (icmp6.PARAMETER_PROBLEM, 1),
    3: (UNREACHABLE6, icmp6.PORT_UNREACHABLE),
}
NEXT_HEADER_AT: Final = 6  # what a problem with the protocol points at in IPv6
# Where a field of IPv4's header is in IPv6's, figure 3; what is not here is nowhere.
_POINTERS_TO_6: Final = {
    0: 0, 1: 1, 2: 4, 3: 4, 8: 7, 9: 6, **dict.fromkeys(range(12, 16), 8),
    **dict.fromkeys(range(16, 20), 24),
}  # fmt: skip

# ICMPv6 type 1: code → code of ICMP type 3; §5.2
_UNREACHABLE_TO_4: Final = {
    icmp6.NO_ROUTE: 1,
    icmp6.PROHIBITED: 10,
    icmp6.BEYOND_SCOPE: 1,
    icmp6.ADDRESS_UNREACHABLE: 1,
    icmp6.PORT_UNREACHABLE: 3,
}
_POINTERS_TO_4: Final = {
    0: 0, 1: 1, 4: 2, 5: 2, 6: 9, 7: 8, **dict.fromkeys(range(8, 24), 12),
    **dict.fromkeys(range(24, 40), 16),
}  # fmt: skip


def translate(error: Error, size: int) -> Error | None:
    """The error in the family of addresses of `size` bytes, which is not its own."""
    return to_6(*error) if size == 16 else to_4(*error)


def mtu_of(mtu: int, here: int, there: int) -> int:
    """What the MTU of a path is to packets whose addresses have `there` bytes, where it was told of
    packets whose addresses have `here`. 0 stays: it is not known."""
    if not mtu or here == there:
        return mtu
    return max(mtu + LONGER, MIN_MTU6) if there == 16 else max(mtu - LONGER, MIN_MTU4)


def to_6(kind: int, code: int, rest: int) -> Error | None:
    """An ICMP error as ICMPv6; RFC 7915 §4.2."""
    if (kind, code) == (UNREACHABLE4, icmp4.FRAGMENTATION_NEEDED):
        return icmp6.PACKET_TOO_BIG, 0, mtu_of(rest & 0xFFFF or UNNAMED_MTU, 4, 16)
    if kind == UNREACHABLE4 and code in _UNREACHABLE_TO_6:
        found = _UNREACHABLE_TO_6[code]
        return *found, NEXT_HEADER_AT if found[0] == icmp6.PARAMETER_PROBLEM else 0
    if kind == icmp4.TIME_EXCEEDED:
        return icmp6.TIME_EXCEEDED, code, 0
    if kind == PARAMETER_PROBLEM4 and code in (0, 2):
        at = _POINTERS_TO_6.get(rest >> 24)
        return None if at is None else (icmp6.PARAMETER_PROBLEM, 0, at)
    return None


def to_4(kind: int, code: int, rest: int) -> Error | None:
    """An ICMPv6 error as ICMP; RFC 7915 §5.2."""
    if kind == UNREACHABLE6 and code in _UNREACHABLE_TO_4:
        return UNREACHABLE4, _UNREACHABLE_TO_4[code], 0
    if kind == icmp6.PACKET_TOO_BIG:
        return UNREACHABLE4, icmp4.FRAGMENTATION_NEEDED, min(mtu_of(rest, 16, 4), 0xFFFF)
    if kind == icmp6.TIME_EXCEEDED:
        return icmp4.TIME_EXCEEDED, code, 0
    if (kind, code) == (icmp6.PARAMETER_PROBLEM, 1):
        return UNREACHABLE4, 2, 0
    if (kind, code) == (icmp6.PARAMETER_PROBLEM, 0):
        at = _POINTERS_TO_4.get(rest)
        return None if at is None else (PARAMETER_PROBLEM4, 0, at << 24)
    return None
