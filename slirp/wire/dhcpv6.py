"""DHCPv6 messages between a client and a server: RFC 8415 §8, their options of §21 and others.

    type (1), transaction (3), then options: code (2), length (2), data

Some options hold options: an IA_NA its addresses, an address its status. All that the network
reads is parsed at once into one value, two levels deep and no further; an option that it has no use
for is passed over, which is what §16 asks for. An option that may stand once and comes twice is
malformed: one of the two would have been ignored, and not by everyone the same.

The bounds are ours: MESSAGE_MAX, OPTIONS_MAX in one area, IAS_MAX of a client, ADDRS_MAX of an IA.
A DUID has 128 bytes behind its type at the most (RFC 8415 §11.1).

Does not do: messages of relay agents (there is one link), temporary addresses (4), delegated
prefixes (25), authentication (11), reconfiguration (19, 20).
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from slirp.errors import MalformedPacket
from slirp.wire.dns import LABEL_MAX, NAME_MAX, Labels, emit_name

LAYER: Final = "dhcpv6"

SERVER_PORT: Final = 547
CLIENT_PORT: Final = 546
HEADER_LEN: Final = 4  # bytes
MESSAGE_MAX: Final = 4096  # bytes; a longer one is refused before its options are walked
OPTIONS_MAX: Final = 64  # options in one area
IAS_MAX: Final = 8  # identity associations in one message
ADDRS_MAX: Final = 8  # addresses in one of them
DUID_MIN: Final = 3  # bytes: the type's 2, and RFC 8415 §11.1's 1
DUID_MAX: Final = 130  # idem
FOREVER: Final = 0xFFFFFFFF  # as a lifetime, RFC 8415 §7.7

SOLICIT: Final = 1
ADVERTISE: Final = 2
REQUEST: Final = 3
CONFIRM: Final = 4
RENEW: Final = 5
REBIND: Final = 6
REPLY: Final = 7
RELEASE: Final = 8
DECLINE: Final = 9
RECONFIGURE: Final = 10
INFORMATION_REQUEST: Final = 11
RELAY_FORW: Final = 12
RELAY_REPL: Final = 13

CLIENT_ID: Final = 1
SERVER_ID: Final = 2
IA_NA: Final = 3
IA_ADDR: Final = 5
OPTION_REQUEST: Final = 6
PREFERENCE: Final = 7
STATUS_CODE: Final = 13
RAPID_COMMIT: Final = 14
DNS_SERVERS: Final = 23  # RFC 3646 §3
DOMAIN_LIST: Final = 24  # RFC 3646 §4
CLIENT_FQDN: Final = 39  # RFC 4704 §4
BOOT_URL: Final = 59  # RFC 5970 §3.1

SUCCESS: Final = 0  # status codes, RFC 8415 §21.13
UNSPECIFIED_FAILURE: Final = 1
NO_ADDRS_AVAILABLE: Final = 2
NO_BINDING: Final = 3
NOT_ON_LINK: Final = 4
USE_MULTICAST: Final = 5

FQDN_S: Final = 1  # flags of CLIENT_FQDN: the server shall update the AAAA record …
FQDN_O: Final = 2  # … and has its own mind about it
FQDN_N: Final = 4  # nobody shall

_OPTION: Final = Struct("!HH")
_IA: Final = Struct("!III")
_ADDR: Final = Struct("!16sII")
_ONCE: Final = frozenset(
    {CLIENT_ID, SERVER_ID, OPTION_REQUEST, PREFERENCE, STATUS_CODE, RAPID_COMMIT}
    | {DNS_SERVERS, DOMAIN_LIST, CLIENT_FQDN, BOOT_URL}
)


class Status(NamedTuple):
    """RFC 8415 §21.13."""

    code: int
    text: bytes = b""  # UTF-8, for a person

    @classmethod
    def parse(cls, data: bytes) -> Status:
        if len(data) < 2:
            raise MalformedPacket(LAYER, "option size")
        return cls(int.from_bytes(data[:2]), data[2:])

    def emit(self) -> bytes:
        return emit_option(STATUS_CODE, self.code.to_bytes(2) + self.text)


class IaAddress(NamedTuple):
    """RFC 8415 §21.6."""

    addr: bytes  # 16 bytes
    preferred: int = 0  # seconds
    valid: int = 0  # seconds
    status: Status | None = None

    @classmethod
    def parse(cls, data: bytes) -> IaAddress:
        if len(data) < _ADDR.size:
            raise MalformedPacket(LAYER, "option size")
        inner = dict(_options(data, _ADDR.size, frozenset((STATUS_CODE,))))
        addr, preferred, valid = _ADDR.unpack_from(data)
        return cls(addr, preferred, valid, _status(inner))

    def emit(self) -> bytes:
        status = self.status.emit() if self.status else b""
        return emit_option(IA_ADDR, _ADDR.pack(*self[:3]) + status)


class IaNa(NamedTuple):
    """RFC 8415 §21.4."""

    iaid: int  # 32 bits, the client's choice
    t1: int = 0  # seconds until the client renews; 0: the other side's choice
    t2: int = 0  # seconds until it rebinds
    addrs: tuple[IaAddress, ...] = ()
    status: Status | None = None

    @classmethod
    def parse(cls, data: bytes) -> IaNa:
        if len(data) < _IA.size:
            raise MalformedPacket(LAYER, "option size")
        inner = list(_options(data, _IA.size, frozenset((STATUS_CODE,))))
        addrs = tuple(IaAddress.parse(value) for code, value in inner if code == IA_ADDR)
        if len(addrs) > ADDRS_MAX:
            raise MalformedPacket(LAYER, "too many addresses")
        iaid, t1, t2 = _IA.unpack_from(data)
        return cls(iaid, t1, t2, addrs, _status(dict(inner)))

    def emit(self) -> bytes:
        inner = b"".join(map(IaAddress.emit, self.addrs))
        inner += self.status.emit() if self.status else b""
        return emit_option(IA_NA, _IA.pack(*self[:3]) + inner)


class Fqdn(NamedTuple):
    """RFC 4704 §4."""

    flags: int  # FQDN_S | FQDN_O | FQDN_N
    labels: Labels
    partial: bool  # the name's end is left to the server

    @classmethod
    def parse(cls, data: bytes) -> Fqdn:
        if not data:
            raise MalformedPacket(LAYER, "option size")
        labels, stop, rooted = _labels(data, 1)
        if stop != len(data):
            raise MalformedPacket(LAYER, "more than one name")
        return cls(data[0] & 7, labels, not rooted)

    def emit(self) -> bytes:
        name = emit_name(self.labels)
        return emit_option(CLIENT_FQDN, bytes((self.flags,)) + name[: -1 if self.partial else None])


class Dhcpv6Message(NamedTuple):
    """RFC 8415 §8."""

    kind: int
    transaction: int  # 24 bits
    client_id: bytes | None = None  # a DUID
    server_id: bytes | None = None  # a DUID
    ias: tuple[IaNa, ...] = ()
    wanted: tuple[int, ...] | None = None  # codes of options; None: no such list
    preference: int | None = None
    status: Status | None = None
    rapid_commit: bool = False
    dns: tuple[bytes, ...] = ()  # 16 bytes each
    search: tuple[Labels, ...] = ()
    fqdn: Fqdn | None = None
    boot_url: bytes | None = None

    @classmethod
    def parse(cls, view: memoryview | bytes) -> Dhcpv6Message:
        data = bytes(view[: MESSAGE_MAX + 1])
        if len(data) < HEADER_LEN:
            raise MalformedPacket(LAYER, "truncated")
        if len(data) > MESSAGE_MAX:
            raise MalformedPacket(LAYER, "oversized")
        kind = data[0]
        if kind in (RELAY_FORW, RELAY_REPL):  # whose header is another
            raise MalformedPacket(LAYER, "relayed")
        if not SOLICIT <= kind <= INFORMATION_REQUEST:
            raise MalformedPacket(LAYER, "message type")
        found = list(_options(data, HEADER_LEN, _ONCE))
        ias = tuple(IaNa.parse(value) for code, value in found if code == IA_NA)
        if len(ias) > IAS_MAX:
            raise MalformedPacket(LAYER, "too many identity associations")
        only = dict(found)
        wanted, preference, fqdn = (
            only.get(code) for code in (OPTION_REQUEST, PREFERENCE, CLIENT_FQDN)
        )
        if preference is not None and len(preference) != 1:
            raise MalformedPacket(LAYER, "option size")
        return cls(
            kind,
            int.from_bytes(data[1:4]),
            _duid(only.get(CLIENT_ID)),
            _duid(only.get(SERVER_ID)),
            ias,
            None if wanted is None else tuple(map(int.from_bytes, _pieces(wanted, 2))),
            None if preference is None else preference[0],
            _status(only),
            RAPID_COMMIT in only,
            tuple(_pieces(only.get(DNS_SERVERS, b""), 16)),
            tuple(_names(only.get(DOMAIN_LIST, b""))),
            None if fqdn is None else Fqdn.parse(fqdn),
            only.get(BOOT_URL),
        )

    def emit(self) -> bytes:
        return bytes((self.kind,)) + self.transaction.to_bytes(3) + b"".join(self._emit_options())

    def _emit_options(self) -> Iterator[bytes]:
        """The identifiers first, as everybody has them."""
        if self.client_id is not None:
            yield emit_option(CLIENT_ID, self.client_id)
        if self.server_id is not None:
            yield emit_option(SERVER_ID, self.server_id)
        yield from map(IaNa.emit, self.ias)
        if self.wanted is not None:
            yield emit_option(OPTION_REQUEST, b"".join(code.to_bytes(2) for code in self.wanted))
        if self.preference is not None:
            yield emit_option(PREFERENCE, bytes((self.preference,)))
        if self.status is not None:
            yield self.status.emit()
        if self.rapid_commit:
            yield emit_option(RAPID_COMMIT, b"")
        if self.dns:
            yield emit_option(DNS_SERVERS, b"".join(self.dns))
        if self.search:
            # Nothing is compressed, RFC 8415 §10.
            yield emit_option(DOMAIN_LIST, b"".join(map(emit_name, self.search)))
        if self.fqdn is not None:
            yield self.fqdn.emit()
        if self.boot_url is not None:
            yield emit_option(BOOT_URL, self.boot_url)


def emit_option(code: int, value: bytes) -> bytes:
    return _OPTION.pack(code, len(value)) + value


def _options(data: bytes, at: int, once: frozenset[int]) -> Iterator[tuple[int, bytes]]:
    """Code and value of each option from `at` to the end; those of `once` do not come again."""
    seen: set[int] = set()
    for _ in range(OPTIONS_MAX):
        if at == len(data):
            return
        if at + _OPTION.size > len(data):
            raise MalformedPacket(LAYER, "option without length")
        code, size = _OPTION.unpack_from(data, at)
        start, at = at + _OPTION.size, at + _OPTION.size + size
        if at > len(data):
            raise MalformedPacket(LAYER, "option length")
        if code in seen and code in once:
            raise MalformedPacket(LAYER, "option twice")
        seen.add(code)
        yield code, data[start:at]
    if at != len(data):
        raise MalformedPacket(LAYER, "too many options")


def _status(options: dict[int, bytes]) -> Status | None:
    value = options.get(STATUS_CODE)
    return None if value is None else Status.parse(value)


def _duid(value: bytes | None) -> bytes | None:
    if value is not None and not DUID_MIN <= len(value) <= DUID_MAX:
        raise MalformedPacket(LAYER, "DUID length")
    return value


def _pieces(value: bytes, size: int) -> Iterator[bytes]:
    """A list of values of one size."""
    if len(value) % size:
        raise MalformedPacket(LAYER, "option size")
    return (value[at : at + size] for at in range(0, len(value), size))


def _names(value: bytes) -> Iterator[Labels]:
    at = 0
    while at < len(value):
        labels, at, rooted = _labels(value, at)
        if not labels or not rooted:
            raise MalformedPacket(LAYER, "name")
        yield labels


def _labels(value: bytes, at: int) -> tuple[Labels, int, bool]:
    """The labels of the name at `at`, and where it ends; whether its root is there, or rather the
    value has ended."""
    labels: list[bytes] = []
    start = at
    while at < len(value):
        size = value[at]
        at += 1 + size
        if size > LABEL_MAX or at > len(value) or at - start >= NAME_MAX + (not size):
            raise MalformedPacket(LAYER, "name")
        if not size:
            return tuple(labels), at, True
        labels.append(value[at - size : at])
    return tuple(labels), at, False
