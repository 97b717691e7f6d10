"""A disk's bytes as packets: the envelope that Wireshark opens, and the names of commands.

There is no link type for a SCSI bus, and one for private use makes Wireshark warn that it does not
know what is inside. So the bytes go in an envelope of Wireshark's own, link type
WIRESHARK_UPPER_PDU (252): tags that say which dissector is meant (`data`) and what the protocol
column shows (the command's name), then the bytes. The command itself and the vector are in the
packet's comment.

    tag 12  dissector name   "data"
    tag 33  protocol column  "READ(10)"
    tag 0   end

A tag is two bytes of number, two of length, and a value padded with zeros to a multiple of four,
all big-endian. `octets_of` reads any such envelope, as a file is the work of a stranger.

Does not do: SCSI without data; status and messages are not captured.
"""

from __future__ import annotations

import struct
from typing import Final

from slirp.errors import MalformedPacket
from slirp.sight.pcapng import LINKTYPE_UPPER_PDU, Interface

NAMES: Final = {
    0x03: "REQUEST SENSE",
    0x08: "READ(6)",
    0x0A: "WRITE(6)",
    0x12: "INQUIRY",
    0x1A: "MODE SENSE(6)",
    0x25: "READ CAPACITY",
    0x28: "READ(10)",
    0x2A: "WRITE(10)",
    0x2F: "VERIFY(10)",
}
MAX_TAGS: Final = 64  # of an envelope

INTERFACES: Final = {
    "scsi": Interface("scsi", LINKTYPE_UPPER_PDU, "a disk's data: bytes of the image"),
    "esp": Interface("esp", LINKTYPE_UPPER_PDU, "the ESP: positions in the request"),
    "espdma": Interface("espdma", LINKTYPE_UPPER_PDU, "behind ESPDMA: DVMA addresses"),
    "memory": Interface(
        "memory", LINKTYPE_UPPER_PDU, "guest RAM, a disk's data, gathered; physical addresses"
    ),
}

_TAG: Final = struct.Struct("!HH")
_END: Final = 0
_DISSECTOR: Final = 12
_PROTOCOL_COLUMN: Final = 33


def name_of(command: bytes) -> str:
    """What the standard calls a command."""
    return NAMES.get(command[0], f"command {command[0]:#04x}") if command else "command"


def envelope(command: bytes) -> bytes:
    """What goes in front of the bytes."""
    tags = ((_DISSECTOR, b"data"), (_PROTOCOL_COLUMN, name_of(command).encode()), (_END, b""))
    return b"".join(map(_emit, *zip(*tags, strict=True)))


def _emit(number: int, value: bytes) -> bytes:
    padded = value + bytes(-len(value) % 4)
    return _TAG.pack(number, len(padded)) + padded


def octets_of(packet: bytes) -> bytes:
    """What is behind the envelope."""
    at = 0
    for _ in range(MAX_TAGS):
        if len(packet) < at + _TAG.size:
            break
        number, length = _TAG.unpack_from(packet, at)
        at += _TAG.size + length
        if number == _END:
            return packet[at:]
    raise MalformedPacket("upper-pdu", "the tags do not end")
