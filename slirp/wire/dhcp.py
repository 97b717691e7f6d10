"""DHCP and BOOTP messages: RFC 951, RFC 2131 §2, options of RFC 2132.

A message is 236 fixed bytes, the magic cookie, and options as code, length, bytes up to the END
option. An option that comes more than once is one option whose pieces are joined in order (RFC
3396), also over the `file` and `sname` fields where option 52 says that they hold options. A
message without the cookie is plain BOOTP: its vendor area means nothing to us, and it has no
options.

`parse` is strict where laxness has cost others a read past the end: a length that leaves the area,
a code without a length and a missing END are malformed. What an option means, and whether its
value is allowed, is the server's business (slirp/services/dhcp.py); only sizes are checked here, by
`octet`, `short`, `long` and `address`.

Does not do: the relay's sub-options (82 is opaque), authentication (90), DHCPv6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket

LAYER: Final = "dhcp"

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68
FIXED_LEN: Final = 236  # bytes before the options field, RFC 2131 §2
MAGIC_COOKIE: Final = b"\x63\x82\x53\x63"  # RFC 2132 §2
MESSAGE_MIN: Final = 300  # bytes: BOOTP's fixed size, which some clients still insist on
MESSAGE_MAX: Final = 4096  # bytes; a longer one is refused before its options are walked
CHADDR_LEN: Final = 16  # bytes

BOOTREQUEST: Final = 1
BOOTREPLY: Final = 2
HTYPE_ETHERNET: Final = 1
FLAG_BROADCAST: Final = 0x8000
NO_ADDR: Final = bytes(4)

DISCOVER: Final = 1
OFFER: Final = 2
REQUEST: Final = 3
DECLINE: Final = 4
ACK: Final = 5
NAK: Final = 6
RELEASE: Final = 7
INFORM: Final = 8

PAD: Final = 0
SUBNET_MASK: Final = 1
ROUTER: Final = 3
DNS_SERVER: Final = 6
HOST_NAME: Final = 12
DOMAIN_NAME: Final = 15
INTERFACE_MTU: Final = 26
BROADCAST_ADDRESS: Final = 28
NTP_SERVER: Final = 42
REQUESTED_ADDRESS: Final = 50
LEASE_TIME: Final = 51
OVERLOAD: Final = 52
MESSAGE_TYPE: Final = 53
SERVER_IDENTIFIER: Final = 54
PARAMETER_LIST: Final = 55
MESSAGE: Final = 56
MAX_MESSAGE_SIZE: Final = 57
RENEWAL_TIME: Final = 58
REBINDING_TIME: Final = 59
VENDOR_CLASS: Final = 60
CLIENT_IDENTIFIER: Final = 61
TFTP_SERVER: Final = 66
BOOT_FILE: Final = 67
USER_CLASS: Final = 77  # RFC 3004
RAPID_COMMIT: Final = 80  # RFC 4039
RELAY_INFORMATION: Final = 82  # RFC 3046
CLIENT_ARCHITECTURE: Final = 93  # RFC 4578
CLIENT_UUID: Final = 97  # RFC 4578
DOMAIN_SEARCH: Final = 119  # RFC 3397
CLASSLESS_ROUTES: Final = 121  # RFC 3442
IPXE: Final = 175  # iPXE's own, with options inside
END: Final = 255

OVERLOAD_FILE: Final = 1  # bits of option 52: the field holds options
OVERLOAD_SNAME: Final = 2

_FIXED: Final = struct.Struct("!4BIHH4s4s4s4s16s64s128s")
_PIECE_MAX: Final = 255  # bytes of one option's value; longer ones are split, RFC 3396 §6


class DhcpMessage(NamedTuple):
    """RFC 2131 §2, figure 1.

    0          1          2          3          4
    +----------+----------+----------+----------+
    |    op    |  htype   |   hlen   |   hops   |
    +----------+----------+----------+----------+
    |                    xid                    |
    +---------------------+---------------------+
    |        secs         |        flags        |
    +---------------------+---------------------+
    |      ciaddr, yiaddr, siaddr, giaddr       |
    +-------------------------------------------+
    | chaddr (16), sname (64), file (128)       |
    +-------------------------------------------+
    | options                                   |
    +-------------------------------------------+
    """

    op: int
    htype: int
    hlen: int  # bytes of chaddr in use
    hops: int
    xid: int
    secs: int  # seconds since the client began
    flags: int
    ciaddr: bytes  # the client's own address, once it may answer ARP for it
    yiaddr: bytes  # the address it is given
    siaddr: bytes  # next server of a bootstrap
    giaddr: bytes  # the relay agent
    chaddr: bytes  # 16 bytes, of which hlen count
    sname: bytes  # without trailing zeros; empty where it held options
    file: bytes  # idem
    options: dict[int, bytes]  # in order of first appearance

    @property
    def mac(self) -> bytes:
        return self.chaddr[: self.hlen]

    @classmethod
    def parse(cls, view: memoryview | bytes) -> DhcpMessage:
        size = len(view)
        if size < FIXED_LEN + len(MAGIC_COOKIE):
            raise MalformedPacket(LAYER, "truncated")
        if size > MESSAGE_MAX:
            raise MalformedPacket(LAYER, "oversized")
        fields = _FIXED.unpack_from(view)
        op, _, hlen = fields[:3]
        sname, file = fields[-2:]
        if op not in (BOOTREQUEST, BOOTREPLY):
            raise MalformedPacket(LAYER, "op")
        if hlen > CHADDR_LEN:
            raise MalformedPacket(LAYER, "hardware address length")
        options, overload = _parse_options(bytes(view[FIXED_LEN:]), sname, file)
        sname = b"" if overload & OVERLOAD_SNAME else sname.rstrip(b"\0")
        file = b"" if overload & OVERLOAD_FILE else file.rstrip(b"\0")
        return cls._make((*fields[:-2], sname, file, options))

    def emit(self) -> bytes:
        """The message, padded to BOOTP's 300 bytes."""
        fixed = _FIXED.pack(*self[:-1])
        message = fixed + MAGIC_COOKIE + emit_options(self.options.items())
        return message.ljust(MESSAGE_MIN, b"\0")

    def octet(self, code: int) -> int | None:
        return self._number(code, 1)

    def short(self, code: int) -> int | None:
        return self._number(code, 2)

    def long(self, code: int) -> int | None:
        return self._number(code, 4)

    def address(self, code: int) -> bytes | None:
        """An option that is one IPv4 address."""
        value = self.options.get(code)
        if value is not None and len(value) != 4:
            raise MalformedPacket(LAYER, "option size")
        return value

    def _number(self, code: int, size: int) -> int | None:
        value = self.options.get(code)
        if value is None:
            return None
        if len(value) != size:
            raise MalformedPacket(LAYER, "option size")
        return int.from_bytes(value)


def emit_option(code: int, value: bytes) -> bytes:
    """One option, in as many pieces as its length needs; an empty value is one empty piece."""
    pieces = [value[at : at + _PIECE_MAX] for at in range(0, len(value), _PIECE_MAX)] or [b""]
    return b"".join(bytes((code, len(piece))) + piece for piece in pieces)


def emit_options(options: Iterable[tuple[int, bytes]]) -> bytes:
    """The options and END."""
    return b"".join(emit_option(code, value) for code, value in options) + bytes((END,))


def _parse_options(area: bytes, sname: bytes, file: bytes) -> tuple[dict[int, bytes], int]:
    """All options of a message and the value of option 52 (0: neither field holds options)."""
    options: dict[int, bytes] = {}
    if area[: len(MAGIC_COOKIE)] != MAGIC_COOKIE:
        return options, 0  # plain BOOTP, RFC 951
    _collect(area[len(MAGIC_COOKIE) :], options)
    value = options.pop(OVERLOAD, b"\0")
    if value not in (b"\0", b"\1", b"\2", b"\3"):
        raise MalformedPacket(LAYER, "overload")
    overload = value[0]
    if overload & OVERLOAD_FILE:  # the order file, sname is that of RFC 3396 §5
        _collect(file, options)
    if overload & OVERLOAD_SNAME:
        _collect(sname, options)
    return options, overload


def _collect(area: bytes, options: dict[int, bytes]) -> None:
    """Add one area's options to `options`."""
    index, end = 0, len(area)
    while index < end:
        code = area[index]
        index += 1
        if code == PAD:
            continue
        if code == END:
            return
        if index >= end:
            raise MalformedPacket(LAYER, "option without length")
        stop = index + 1 + area[index]
        if stop > end:
            raise MalformedPacket(LAYER, "option length")
        options[code] = options.get(code, b"") + area[index + 1 : stop]
        index = stop
    raise MalformedPacket(LAYER, "no end option")
