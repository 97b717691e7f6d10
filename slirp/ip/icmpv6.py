"""ICMPv6, as a host and a router speak it: messages and errors built, errors kept back.

Every message has a checksum over a pseudo-header too (RFC 4443 §2.3), so unlike ICMP's it depends
on the addresses around it. An error quotes the packet that caused it, IPv6 header first, as much of
it as leaves the whole error packet within 1,280 bytes (§2.4 (c)).

`may_send_error` holds the rules of §2.4 (e) on what must never be answered by an error.

Does not do: rate limiting, extensions (RFC 4884).
"""

from __future__ import annotations

from typing import Final

from dma.iovec import IoVec
from slirp.address import is_host, is_multicast
from slirp.wire.checksum import checksum, pseudo_sum
from slirp.wire.ethernet import is_group
from slirp.wire.icmpv6 import CHECKSUM_OFFSET, FIRST_QUERY, HEADER_LEN, REDIRECT, Icmpv6Header
from slirp.wire.ipv6 import HEADER_LEN as IP_LEN
from slirp.wire.ipv6 import MIN_MTU, PROTOCOL_ICMPV6

QUOTE_MAX: Final = MIN_MTU - IP_LEN - HEADER_LEN  # bytes of the original: 1,232


def message(src: bytes, dst: bytes, kind: int, code: int, rest: int, payload: IoVec) -> IoVec:
    """A message with its checksum; the payload's views are shared."""
    return finished(src, dst, Icmpv6Header(kind, code, 0, rest).emit(), payload)


def finished(src: bytes, dst: bytes, head: bytes, payload: IoVec) -> IoVec:
    """A message that lacks its checksum only; `head` has the first 8 bytes at least."""
    octets = memoryview(bytearray(head))
    initial = pseudo_sum(src, dst, PROTOCOL_ICMPV6, len(octets) + len(payload))
    check = checksum((octets, *payload.segments), initial)
    octets[CHECKSUM_OFFSET : CHECKSUM_OFFSET + 2] = check.to_bytes(2, "big")
    return IoVec((octets, *payload.segments))


def error(src: bytes, dst: bytes, kind: int, code: int, rest: int, original: IoVec) -> IoVec:
    """An error about `original`, which starts with its IPv6 header and ends where its packet does.

    `rest` is the MTU in PACKET_TOO_BIG, the pointer in PARAMETER_PROBLEM, else 0.
    """
    return message(src, dst, kind, code, rest, original.slice(0, QUOTE_MAX))


def may_send_error(
    src: bytes, dst: bytes, protocol: int, payload: IoVec, link_dst: bytes
) -> bool:  # fmt: skip
    """Whether a packet with this payload may be answered by an error (RFC 4443 §2.4 (e)).

    `link_dst` is the frame's destination.
    """
    if is_group(link_dst) or is_multicast(dst) or not is_host(src):
        return False
    if protocol != PROTOCOL_ICMPV6:
        return True
    first = bytes(payload.slice(0, 1))
    return bool(first) and first[0] >= FIRST_QUERY and first[0] != REDIRECT
