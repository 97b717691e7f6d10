"""TFTP packets: RFC 1350, the option extension of RFC 2347 and its OACK.

    RRQ, WRQ   | opcode | file name, 0 | mode, 0 | option, 0 | value, 0 | …
    DATA       | opcode | block | up to blksize octets |
    ACK        | opcode | block |
    ERROR      | opcode | code | text, 0 |
    OACK       | opcode | option, 0 | value, 0 | …

`parse` gives one value per packet. Names and options are bytes as they came, options in lower case
(RFC 2347: compared without case); an option that comes twice is malformed, as is a text without its
zero byte and an option without its value. What a name, a mode or a value means is the server's
business (slirp/services/tftp.py).

Does not do: netascii, the older "mail" mode.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

from slirp.errors import MalformedPacket

LAYER: Final = "tftp"

PORT: Final = 69
RRQ: Final = 1
WRQ: Final = 2
DATA: Final = 3
ACK: Final = 4
ERROR: Final = 5
OACK: Final = 6

REQUEST_MAX: Final = 512  # bytes of a request, RFC 2347 §3
OPTIONS_MAX: Final = 16  # of one request; nobody knows as many

# Error codes, RFC 1350 §5 and RFC 2347 §4
UNDEFINED: Final = 0
NOT_FOUND: Final = 1
ACCESS_VIOLATION: Final = 2
ILLEGAL_OPERATION: Final = 4
UNKNOWN_TID: Final = 5
REFUSED_OPTION: Final = 8

_WORDS: Final = struct.Struct("!HH")
_OPCODE_LEN: Final = 2
HEADER_LEN: Final = 4  # bytes of DATA in front of the block


class Request(NamedTuple):
    opcode: int  # RRQ or WRQ
    name: bytes
    mode: bytes  # lower case
    options: dict[bytes, bytes]  # in the order in which they came


class Data(NamedTuple):
    block: int
    payload: bytes


class Ack(NamedTuple):
    block: int


class Error(NamedTuple):
    code: int
    text: bytes


class OptionAck(NamedTuple):
    options: dict[bytes, bytes]


Packet: TypeAlias = Request | Data | Ack | Error | OptionAck


def parse(view: memoryview | bytes) -> Packet:
    """One packet. Raises MalformedPacket."""
    data = bytes(view)
    if len(data) < _OPCODE_LEN:
        raise MalformedPacket(LAYER, "truncated")
    opcode = int.from_bytes(data[:_OPCODE_LEN])
    if opcode in (RRQ, WRQ):
        return _parse_request(opcode, data)
    if opcode == OACK:
        return OptionAck(_options(_texts(data[_OPCODE_LEN:])))
    if opcode not in (DATA, ACK, ERROR):
        raise MalformedPacket(LAYER, "opcode")
    if len(data) < HEADER_LEN:
        raise MalformedPacket(LAYER, "truncated")
    word, rest = int.from_bytes(data[2:4]), data[4:]
    if opcode == DATA:
        return Data(word, rest)
    if opcode == ACK:
        return Ack(word)
    return Error(word, rest.partition(b"\0")[0])  # boot ROMs leave the zero out


def _parse_request(opcode: int, data: bytes) -> Request:
    if len(data) > REQUEST_MAX:
        raise MalformedPacket(LAYER, "oversized")
    texts = _texts(data[_OPCODE_LEN:])
    if len(texts) < 2:
        raise MalformedPacket(LAYER, "no mode")
    return Request(opcode, texts[0], texts[1].lower(), _options(texts[2:]))


def _texts(area: bytes) -> list[bytes]:
    if not area:
        return []
    *texts, rest = area.split(b"\0")
    if rest:
        raise MalformedPacket(LAYER, "text without end")
    return texts


def _options(texts: list[bytes]) -> dict[bytes, bytes]:
    if len(texts) % 2:
        raise MalformedPacket(LAYER, "option without value")
    if len(texts) > 2 * OPTIONS_MAX:
        raise MalformedPacket(LAYER, "too many options")
    found: dict[bytes, bytes] = {}
    for name, value in zip(texts[::2], texts[1::2], strict=True):
        if name.lower() in found:
            raise MalformedPacket(LAYER, "option twice")
        found[name.lower()] = value
    return found


def emit_request(opcode: int, name: bytes, mode: bytes, options: Mapping[bytes, bytes]) -> bytes:
    """For tests and clients."""
    return b"".join((opcode.to_bytes(2), name, b"\0", mode, b"\0", _emit_options(options)))


def emit_data(block: int, payload: bytes) -> bytes:
    return _WORDS.pack(DATA, block) + payload


def emit_ack(block: int) -> bytes:
    return _WORDS.pack(ACK, block)


def emit_error(code: int, text: str) -> bytes:
    return _WORDS.pack(ERROR, code) + text.encode("ascii", "replace") + b"\0"


def emit_oack(options: Mapping[bytes, bytes]) -> bytes:
    return OACK.to_bytes(2) + _emit_options(options)


def _emit_options(options: Mapping[bytes, bytes]) -> bytes:
    return b"".join(name + b"\0" + value + b"\0" for name, value in options.items())
