"""ICMP errors between the families: a host's in one, for a guest that speaks the other (RFC 7915).

What an error says is a `Cause`; its numbers in the guest's family are that family's own. Errors of
a kind that has no counterpart say nothing to the guest, as §4.2 and §5.2 of the RFC want.

Does not do: the packets that errors quote, which are made again from the flow.
"""

from __future__ import annotations

from typing import Final

from slirp.flow import Cause
from slirp.ip.family import Family
from slirp.ip.ipv4 import IPV4
from slirp.ip.ipv6 import IPV6

FAMILIES: Final[dict[int, Family]] = {family.addr_len: family for family in (IPV4, IPV6)}


def translated(
    kind: int, code: int, rest: int, theirs: Family, guests: Family
) -> tuple[int, int, int] | None:
    """Type, code and second word of an error of `theirs` family, in the guest's; None: no such."""
    if theirs is guests:
        return kind, code, rest
    cause = cause_of(theirs, kind, code)
    if cause is None:
        return None
    if cause is Cause.TOO_LONG and rest:
        rest += guests.header_len - theirs.header_len  # what else is in the packet stays as long
    return *guests.causes[cause], rest


def cause_of(family: Family, kind: int, code: int) -> Cause | None:
    """What an error of this type and code says; of an unknown code, that there is no such host."""
    unreachable, _ = family.causes[Cause.NO_HOST]
    for cause, numbers in family.causes.items():
        if numbers == (kind, code):
            return cause
    return Cause.NO_HOST if kind == unreachable else None
