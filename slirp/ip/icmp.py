"""ICMP for IPv4, as a host and a router speak it: echoes answered, errors built or kept back.

An echo reply is a header of its own in front of the request's payload, which is not touched: the
reply's vector shares its views. An error message quotes the packet that caused it the same way, IP
header first, as much of it as leaves the whole error packet within 576 bytes (RFC 1812 §4.3.2.3).

`may_send_error` holds the rules of RFC 1122 §3.2.2 on what must never be answered by an error: they
keep errors from begetting errors and one broadcast from drawing many answers.

What is asked about is a whole packet. Only the first fragment of one that is not may be answered,
and only it is known by the time that reassembly gives up.

Messages start with the ICMP header; the IP header around them, and sending, are the caller's.

Does not do: rate limiting, extensions (RFC 4884), timestamp and address mask requests.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from dma.iovec import IoVec
from slirp.address import is_host, is_multicast, is_reserved
from slirp.wire.checksum import checksum
from slirp.wire.ethernet import is_group
from slirp.wire.icmp import (
    ADDRESS_MASK_REPLY,
    CHECKSUM_OFFSET,
    ECHO_REPLY,
    ECHO_REQUEST,
    HEADER_LEN,
    TIMESTAMP,
    IcmpHeader,
)
from slirp.wire.ipv4 import PROTOCOL_ICMP

ERROR_MAX: Final = 576  # bytes of a whole error packet, RFC 1812 §4.3.2.3
QUOTE_MAX: Final = ERROR_MAX - 20 - HEADER_LEN  # bytes of the original: 548

# Everything that is not known to be a query counts as an error, also types yet to be invented.
_QUERIES: Final = frozenset((ECHO_REPLY, ECHO_REQUEST, *range(TIMESTAMP, ADDRESS_MASK_REPLY + 1)))


def message(type_: int, code: int, rest: int, payload: IoVec) -> IoVec:
    """An ICMP message with its checksum; the payload's views are shared."""
    header = memoryview(bytearray(IcmpHeader(type_, code, 0, rest).emit()))
    check = checksum((header, *payload.segments))
    header[CHECKSUM_OFFSET : CHECKSUM_OFFSET + 2] = check.to_bytes(2, "big")
    return IoVec((header, *payload.segments))


def echo_reply(request: IcmpHeader, payload: IoVec) -> IoVec:
    """The answer to an echo request whose checksum was right."""
    return message(ECHO_REPLY, 0, request.rest, payload)


def error(type_: int, code: int, rest: int, original: IoVec) -> IoVec:
    """An error about `original`, which starts with its IP header and ends where its IP packet does.

    `rest` is the second word: the next hop's MTU in FRAGMENTATION_NEEDED, else 0.
    """
    return message(type_, code, rest, original.slice(0, QUOTE_MAX))


def may_send_error(
    src: bytes,
    dst: bytes,
    protocol: int,
    payload: IoVec,
    link_dst: bytes,
    broadcasts: Container[bytes] = (),
) -> bool:
    """Whether a packet with this payload may be answered by an error (RFC 1122 §3.2.2).

    `link_dst` is the frame's destination, `broadcasts` the network's broadcast addresses.
    """
    if is_group(link_dst):
        return False
    if src in broadcasts or not is_host(src):
        return False
    if dst in broadcasts or is_multicast(dst) or is_reserved(dst):
        return False
    if protocol != PROTOCOL_ICMP:
        return True
    first = bytes(payload.slice(0, 1))
    return bool(first) and first[0] in _QUERIES
