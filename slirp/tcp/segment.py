"""What goes in and out of a TCP connection: numbers only.

A `Segment` is what the guest sent, without its payload; an `Outcome` says what is to be done with
that payload and which events it caused; an `Emission` holds all that the header of one outgoing
segment needs. Events are one bitmask, because a segment often causes several.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from slirp.tcp.seq import MASK
from slirp.wire.tcp import ACK, FIN, RST, SYN, TcpOptions

_FLAGS: Final = FIN | SYN | RST | ACK


class Segment(NamedTuple):
    seq: int
    ack: int
    flags: int
    window: int  # as sent, before scaling
    options: TcpOptions | None  # None: none present


class Outcome(NamedTuple):
    acked: int  # bytes of host data that are the guest's now: drop them from the host's queue
    skip: int  # bytes at the front of the payload that are known already
    take: int  # bytes after those that are wanted
    events: int


class Emission(NamedTuple):
    seq: int
    ack: int
    flags: int
    window: int  # as sent, after scaling
    options: bytes


ACK_LATER: Final = 1  # acknowledge at the end of this batch of frames
ACK_NOW: Final = 2  # one ACK for this very segment: it was duplicate, out of order or refused
FIN_RECEIVED: Final = 4  # the guest's FIN is in order: after the bytes, shut the host's side
RESET_RECEIVED: Final = 8  # the guest reset the connection: reset the host's side
REWIND: Final = 16  # a retransmission is due: plan() starts at older bytes now
SENDABLE: Final = 32  # bytes were acknowledged or the window opened: call plan()
ESTABLISHED: Final = 64  # this segment completed the handshake
CLOSED: Final = 128  # the connection is over: send what poll() still gives, then forget it
KEEP: Final = 256  # payload[skip:skip+take) is ahead: keep a copy under seq + skip; not in order
CONTROL: Final = 512  # poll() has segments to send
REOPEN: Final = 1024  # with CLOSED: the segment is a SYN that opens anew; give it to passive()
GUEST_GONE: Final = 2048  # with CLOSED: the guest stopped answering: reset the host's side

NOTHING: Final = Outcome(0, 0, 0, 0)


def is_opening(segment: Segment) -> bool:
    """Whether the segment asks for a new connection."""
    return segment.flags & _FLAGS == SYN


def refusal(segment: Segment, length: int) -> Emission | None:
    """The RST that answers a segment of no connection (RFC 9293 §3.10.7.1); none for a RST."""
    if segment.flags & RST:
        return None
    if segment.flags & ACK:
        return Emission(segment.ack, 0, RST, 0, b"")
    extent = length + bool(segment.flags & SYN) + bool(segment.flags & FIN)
    return Emission(0, (segment.seq + extent) & MASK, RST | ACK, 0, b"")
