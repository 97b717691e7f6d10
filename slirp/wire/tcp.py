"""TCP headers (RFC 9293 §3.1) and options (also RFC 7323 and, for SACK, RFC 2018).

     0        2        4            8            12  13   14       16       18       20
    +--------+--------+------------+------------+---+----+--------+--------+--------+---
    |src_port|dst_port|    seq     |    ack     |off|flag| window |checksum| urgent | options
    +--------+--------+------------+------------+---+----+--------+--------+--------+---

`parse` refuses what no TCP sends: port 0, a data offset out of the segment, and combinations of
flags that ask for two things at once or for nothing (SYN with FIN or RST; none of SYN, ACK and
RST). The urgent pointer is read as a number and used by nobody: RFC 6093 advises so, and pointers
past the data have cost other stacks dear. The ECN bits are left out of `flags`: it is never
negotiated.

Options with an unlawful length make the segment malformed (RFC 9293 MUST-7 expects no less than
being prepared for them); unknown ones are skipped by their length. Values are given as sent: MSS 0
or a shift of 200 are for the connection to clamp.

Does not do: checksums (`slirp.wire.checksum`), authentication options, Fast Open.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket

HEADER_LEN: Final = 20  # bytes without options
MAX_OPTIONS: Final = 40  # bytes
CHECKSUM_OFFSET: Final = 16

FIN: Final = 1
SYN: Final = 2
RST: Final = 4
PSH: Final = 8
ACK: Final = 16
URG: Final = 32
_FLAGS: Final = 0x3F

# Kinds of option
_END: Final = 0
_NOP: Final = 1
_MSS: Final = 2
_WSCALE: Final = 3
_SACK_PERMITTED: Final = 4
_SACK: Final = 5
_TIMESTAMPS: Final = 8

_HEADER: Final = Struct("!HHIIBBHHH")
_MSS_OPTION: Final = Struct("!BBH")
_TIMESTAMPS_ALIGNED: Final = Struct("!III")
_TIMESTAMPS_HEAD: Final = 0x0101080A  # NOP NOP, kind 8, length 10
_TWO_NUMBERS: Final = Struct("!II")


def _lawful(flags: int) -> bool:
    if flags & SYN:
        return not flags & (FIN | RST)
    return bool(flags & (ACK | RST))


_LAWFUL: Final = tuple(_lawful(flags) for flags in range(64))


class TcpHeader(NamedTuple):
    src_port: int
    dst_port: int
    seq: int
    ack: int
    data_offset: int  # bytes, options included
    flags: int  # FIN to URG
    window: int  # as sent, before scaling
    checksum: int
    urgent: int

    @classmethod
    def parse(cls, view: memoryview | bytes, available: int | None = None) -> TcpHeader:
        """The first 20 bytes of `view`; the segment has `available` (default: the view's)."""
        size = len(view)
        if size < HEADER_LEN:
            raise MalformedPacket("tcp", "truncated")
        (
            src_port, dst_port, seq, ack, offset, flags, window, check, urgent,
        ) = _HEADER.unpack_from(view)  # fmt: skip
        data_offset = offset >> 4 << 2
        if data_offset < HEADER_LEN:
            raise MalformedPacket("tcp", "data offset below 20")
        if data_offset > (size if available is None else available):
            raise MalformedPacket("tcp", "data offset beyond the segment")
        flags &= _FLAGS
        if not _LAWFUL[flags]:
            raise MalformedPacket("tcp", "flags")
        if not src_port or not dst_port:
            raise MalformedPacket("tcp", "port 0")
        return cls(src_port, dst_port, seq, ack, data_offset, flags, window, check, urgent)

    def emit(self, options: bytes = b"") -> bytes:
        """The header as its fields say, then `options`; `data_offset` is to count them."""
        return (
            _HEADER.pack(
                self.src_port, self.dst_port, self.seq, self.ack, self.data_offset << 2,
                self.flags, self.window, self.checksum, self.urgent,
            )
            + options
        )  # fmt: skip


class TcpOptions(NamedTuple):
    mss: int | None = None  # bytes of payload
    wscale: int | None = None  # shift, as sent
    sack_permitted: bool = False
    sack: tuple[tuple[int, int], ...] = ()  # [left, right) in sequence space
    ts: tuple[int, int] | None = None  # TSval, TSecr

    def emit(self) -> bytes:
        return emit_options(*self)


NO_OPTIONS: Final = TcpOptions()


def parse_options(view: memoryview | bytes) -> TcpOptions:
    """The bytes between the header's 20 and its data offset."""
    if len(view) == 12:
        head, tsval, tsecr = _TIMESTAMPS_ALIGNED.unpack(view)
        if head == _TIMESTAMPS_HEAD:
            return TcpOptions(None, None, False, (), (tsval, tsecr))
    return _parse_any_options(bytes(view))


def _parse_any_options(octets: bytes) -> TcpOptions:
    found = NO_OPTIONS
    at = 0
    while at < len(octets):
        kind = octets[at]
        if kind == _END:
            break
        if kind == _NOP:
            at += 1
            continue
        length = octets[at + 1] if at + 1 < len(octets) else 0
        if length < 2 or at + length > len(octets):
            raise MalformedPacket("tcp", "option length")
        found = _with_option(found, kind, octets[at + 2 : at + length])
        at += length
    return found


def _with_option(found: TcpOptions, kind: int, value: bytes) -> TcpOptions:
    """`found` and one more; a repeated option counts as it came last."""
    size = len(value)
    match kind:  # by number: a bare name would be a capture
        case 2 if size == 2:
            return found._replace(mss=int.from_bytes(value, "big"))
        case 3 if size == 1:
            return found._replace(wscale=value[0])
        case 4 if size == 0:
            return found._replace(sack_permitted=True)
        case 5 if size and size % 8 == 0:
            return found._replace(sack=tuple(_TWO_NUMBERS.iter_unpack(value)))
        case 8 if size == 8:
            return found._replace(ts=_TWO_NUMBERS.unpack(value))
        case 2 | 3 | 4 | 5 | 8:
            raise MalformedPacket("tcp", "option length")
    return found


def emit_options(
    mss: int | None = None,
    wscale: int | None = None,
    sack_permitted: bool = False,
    sack: Sequence[tuple[int, int]] = (),
    ts: tuple[int, int] | None = None,
) -> bytes:
    """Options padded to words of 4 bytes, at most 40; of `sack` as many blocks as fit."""
    out = b""
    if mss is not None:
        out = _MSS_OPTION.pack(_MSS, 4, mss)
    if ts is not None:
        out += _TIMESTAMPS_ALIGNED.pack(_TIMESTAMPS_HEAD, *ts)
    if sack_permitted:
        out += bytes((_NOP, _NOP, _SACK_PERMITTED, 2))
    if wscale is not None:
        out += bytes((_NOP, _WSCALE, 3, wscale))
    if sack:
        blocks = sack[: (MAX_OPTIONS - len(out) - 4) // 8]  # one at least: the others take 24
        out += bytes((_NOP, _NOP, _SACK, 2 + 8 * len(blocks)))
        out += b"".join(_TWO_NUMBERS.pack(left, right) for left, right in blocks)
    return out
