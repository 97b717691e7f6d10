"""pcapng, written and read: what Wireshark opens, with names, comments and nanoseconds.

A file is a chain of blocks. One Section Header, an Interface Description for each place where
packets were seen (`if_name`, `if_description`, `if_tsresol` = ns, `if_fcslen` where frames carry
their FCS), and an Enhanced Packet per packet with its direction (`epb_flags`), its comments and an
`epb_packetid`: the same number on two interfaces says that it is the same packet. The format is
draft-ietf-opsawg-pcapng; the byte order is the writer's own, and the reader takes both.

The writer gathers whole blocks and stores them in large pieces, never half a block. A store that
an exception interrupts (Ctrl-C is one) is made again at the same place by `close`, so the file is
valid however the program ended, short of the power switch. On a pipe, where there is no place to
go back to, an interrupted store may leave a partial block at the end.

An interface is described at its first packet: a file names only what it has seen. `SplitWriter` has
the same verbs and keeps one file for each interface name.

The reader streams. A file is the work of a stranger: whatever breaks the format's rules, or one of
the bounds below, is `MalformedPacket("pcapng", reason)`.

Does not do: name resolution and decryption blocks (skipped), interface statistics, compression,
the classic pcap format.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from dma.closing import Closing
from slirp.errors import MalformedPacket

LINKTYPE_ETHERNET: Final = 1
LINKTYPE_RAW: Final = 101  # starts with the IP header; its version field says which
LINKTYPE_UPPER_PDU: Final = 252  # Wireshark's own: tags that name a dissector, then bytes
LINKTYPE_USER0: Final = 147  # private use: here, frames whose byte pairs are exchanged

DIRECTION_UNKNOWN: Final = 0  # the low two bits of epb_flags
INBOUND: Final = 1
OUTBOUND: Final = 2
_FCS_LEN_SHIFT: Final = 5  # epb_flags bits 5 to 8: bytes of FCS, 0 for "not said"

MAX_BLOCK_LEN: Final = 1 << 24  # bytes; a longer block is refused
MAX_INTERFACES: Final = 1024  # in one section
MAX_OPTIONS: Final = 256  # in one block
WRITE_LEN: Final = 1 << 18  # bytes gathered before they are stored

_SECTION: Final = 0x0A0D0D0A  # reads the same in both byte orders
_INTERFACE: Final = 1
_SIMPLE_PACKET: Final = 3
_ENHANCED_PACKET: Final = 6
_BYTE_ORDER_MAGIC: Final = 0x1A2B3C4D
_SECTION_LEN_UNKNOWN: Final = (1 << 64) - 1
_NATIVE: Final = "<" if sys.byteorder == "little" else ">"

_OPT_END: Final = 0
_OPT_COMMENT: Final = 1
_SHB_USERAPPL: Final = 4
_IF_NAME: Final = 2
_IF_DESCRIPTION: Final = 3
_IF_TSRESOL: Final = 9
_IF_FCSLEN: Final = 13
_IF_TSOFFSET: Final = 14
_EPB_FLAGS: Final = 2
_EPB_PACKETID: Final = 5

_BLOCK_HEAD = struct.Struct("=II")
_OPTION_HEAD = struct.Struct("=HH")
_INTERFACE_BODY = struct.Struct("=HHI")
_PACKET_BODY = struct.Struct("=IIIII")
_WORD = struct.Struct("=I")


class Interface(NamedTuple):
    """A place where packets are seen."""

    name: str
    linktype: int
    description: str = ""
    fcs_len: int | None = None  # bytes at each packet's end; None: not said


class Packet(NamedTuple):
    """One packet as the file has it."""

    number: int  # from 1, as Wireshark counts
    interface: Interface
    time_ns: int  # since 1970
    data: bytes
    original_len: int  # bytes; more than len(data) where the capture was cut
    comments: tuple[str, ...]
    direction: int
    packet_id: int | None
    fcs_len: int | None  # the packet's own, else its interface's


class RawFile(Protocol):
    """What the writer asks of an unbuffered binary file."""

    def write(self, data: bytes, /) -> int | None: ...
    def seek(self, offset: int, /) -> int: ...
    def seekable(self) -> bool: ...
    def close(self) -> None: ...


class PacketWriter(Protocol):
    """What a tap asks of whoever keeps its packets."""

    def write(
        self,
        interface: Interface,
        segments: Sequence[memoryview],
        *,
        comment: str = "",
        direction: int = DIRECTION_UNKNOWN,
        packet_id: int | None = None,
        fcs_len: int | None = None,
    ) -> None: ...


class PcapngWriter(Closing):
    """One pcapng file. `clock` gives nanoseconds since 1970."""

    def __init__(self, file: RawFile, clock: Callable[[], int]) -> None:
        self.packets: dict[str, int] = {}  # by interface name
        self._clock = clock
        self._file = file
        self._seekable = file.seekable()
        self._interfaces: dict[Interface, int] = {}
        self._pending = bytearray(_section_header())
        self._stored = 0  # bytes in the file that need no second store
        self._closed = False

    @classmethod
    def create(cls, path: Path, clock: Callable[[], int]) -> PcapngWriter:
        """A new file at `path`; OSError where there can be none."""
        return cls(path.open("wb", buffering=0), clock)

    def write(
        self,
        interface: Interface,
        segments: Sequence[memoryview],
        *,
        comment: str = "",
        direction: int = DIRECTION_UNKNOWN,
        packet_id: int | None = None,
        fcs_len: int | None = None,
        original_len: int | None = None,
    ) -> None:
        """Keep one packet, gathered from `segments`, under the clock's time.

        `original_len`: what it was long, where `segments` have its beginning only.
        """
        index = self._interfaces.get(interface)
        if index is None:
            index = self._describe(interface)
        flags = direction | (fcs_len or 0) << _FCS_LEN_SHIFT
        options = [(_EPB_FLAGS, _WORD.pack(flags))] if flags else []
        if packet_id is not None:
            options.append((_EPB_PACKETID, struct.pack("=Q", packet_id)))
        if comment:
            options.append((_OPT_COMMENT, comment.encode()))
        length = sum(map(len, segments))
        now = self._clock()
        whole = length if original_len is None else original_len
        head = _PACKET_BODY.pack(index, now >> 32 & 0xFFFFFFFF, now & 0xFFFFFFFF, length, whole)
        self._pending += _block(
            _ENHANCED_PACKET, b"".join((head, *segments, bytes(-length % 4), _options(options)))
        )
        self.packets[interface.name] += 1
        if len(self._pending) >= WRITE_LEN:
            self.flush()

    def flush(self) -> None:
        """Store what was gathered; repeated in full where an earlier try was interrupted."""
        data = bytes(self._pending)
        done = 0
        if self._seekable:
            self._file.seek(self._stored)
        while done < len(data):
            done += self._file.write(data[done:]) or 0
        self._stored, self._pending = self._stored + len(data), bytearray()

    def close(self) -> None:
        """Store the rest and close the file."""
        if not self._closed:
            self._closed = True
            try:
                self.flush()
            finally:
                self._file.close()

    def _describe(self, interface: Interface) -> int:
        options = [(_IF_NAME, interface.name.encode()), (_IF_TSRESOL, b"\x09")]
        if interface.description:
            options.append((_IF_DESCRIPTION, interface.description.encode()))
        if interface.fcs_len is not None:
            options.append((_IF_FCSLEN, bytes((interface.fcs_len,))))
        body = _INTERFACE_BODY.pack(interface.linktype, 0, 0) + _options(options)
        self._pending += _block(_INTERFACE, body)
        self.packets.setdefault(interface.name, 0)
        return self._interfaces.setdefault(interface, len(self._interfaces))


class SplitWriter(Closing):
    """A file for each interface name: `demo.pcapng` becomes `demo-lance.pcapng` and so on."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self.path = path
        self.files: dict[str, PcapngWriter] = {}  # by interface name
        self._clock = clock

    @property
    def packets(self) -> dict[str, int]:
        return {name: file.packets.get(name, 0) for name, file in self.files.items()}

    def path_of(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.stem}-{name}{self.path.suffix}")

    def write(
        self,
        interface: Interface,
        segments: Sequence[memoryview],
        *,
        comment: str = "",
        direction: int = DIRECTION_UNKNOWN,
        packet_id: int | None = None,
        fcs_len: int | None = None,
    ) -> None:
        file = self.files.get(interface.name)
        if file is None:
            file = PcapngWriter.create(self.path_of(interface.name), self._clock)
            self.files[interface.name] = file
        file.write(
            interface,
            segments,
            comment=comment,
            direction=direction,
            packet_id=packet_id,
            fcs_len=fcs_len,
        )

    def flush(self) -> None:
        for file in self.files.values():
            file.flush()

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return b"".join((_BLOCK_HEAD.pack(kind, length), body, _WORD.pack(length)))


def _options(options: Sequence[tuple[int, bytes]]) -> bytes:
    if not options:
        return b""
    out = bytearray()
    for code, value in options:
        out += _OPTION_HEAD.pack(code, len(value)) + value + bytes(-len(value) % 4)
    return bytes(out + _OPTION_HEAD.pack(_OPT_END, 0))


def _section_header() -> bytes:
    body = struct.pack("=IHHQ", _BYTE_ORDER_MAGIC, 1, 0, _SECTION_LEN_UNKNOWN)
    return _block(_SECTION, body + _options([(_SHB_USERAPPL, b"slirp")]))


class ReadFile(Protocol):
    """What the reader asks of a binary file."""

    def read(self, size: int, /) -> bytes: ...


class _Source(NamedTuple):
    """An interface as the reader needs it: how its timestamps count."""

    interface: Interface
    units: int  # of the timestamp, per second
    offset: int  # seconds added to it


def read_packets(file: ReadFile) -> Iterator[Packet]:
    """The packets of a file in order. Raises MalformedPacket where the file breaks the rules."""
    order = ""
    sources: list[_Source] = []
    number = 0
    while head := file.read(8):
        kind, order, body = _read_block(file, head, order)
        if kind == _SECTION:
            sources = []
        elif kind == _INTERFACE:
            if len(sources) == MAX_INTERFACES:
                raise _bad("too many interfaces")
            sources.append(_parse_interface(body, order))
        elif kind == _ENHANCED_PACKET:
            number += 1
            yield _parse_packet(body, order, sources, number)
        elif kind == _SIMPLE_PACKET:
            number += 1
            yield _parse_simple(body, order, sources, number)
    if not order:
        raise _bad("not a pcapng file")


def _bad(reason: str) -> MalformedPacket:
    return MalformedPacket("pcapng", reason)


def _read_exactly(file: ReadFile, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _bad("file ends inside a block")
    return data


def _read_block(file: ReadFile, head: bytes, order: str) -> tuple[int, str, bytes]:
    """One block behind its first 8 bytes: its type, the byte order from here on, its body."""
    start = b""
    if head[:4] == _SECTION.to_bytes(4, "big"):
        start = _read_exactly(file, 4)
        order = _byte_order(start)
    elif not order:
        raise _bad("not a pcapng file")
    if len(head) != 8:
        raise _bad("file ends inside a block")
    kind, length = struct.unpack(order + "II", head)
    if length % 4 or length < 12 + len(start) or length > MAX_BLOCK_LEN:
        raise _bad("block length")
    rest = _read_exactly(file, length - 8 - len(start))
    if struct.unpack(order + "I", rest[-4:])[0] != length:
        raise _bad("block lengths differ")
    return kind, order, start + rest[:-4]


def _byte_order(magic: bytes) -> str:
    for order in "<>":
        if struct.unpack(order + "I", magic)[0] == _BYTE_ORDER_MAGIC:
            return order
    raise _bad("byte-order magic")


def _parse_options(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    at = 0
    for _ in range(MAX_OPTIONS):
        if at == len(data):
            return
        if len(data) - at < 4:
            raise _bad("option length")
        code, length = struct.unpack_from(order + "HH", data, at)
        at += 4
        if code == _OPT_END:
            return
        if length > len(data) - at:
            raise _bad("option length")
        yield code, data[at : at + length]
        at = min(at + length + -length % 4, len(data))
    raise _bad("too many options")


def _unsigned(value: bytes, order: str, size: int) -> int:
    if len(value) != size:
        raise _bad("option length")
    return int.from_bytes(value, "little" if order == "<" else "big")


def _parse_interface(body: bytes, order: str) -> _Source:
    if len(body) < 8:
        raise _bad("block length")
    linktype = struct.unpack_from(order + "H", body)[0]
    name = description = ""
    fcs_len = None
    units = 10**6
    offset = 0
    for code, value in _parse_options(body[8:], order):
        if code == _IF_NAME:
            name = value.decode(errors="replace")
        elif code == _IF_DESCRIPTION:
            description = value.decode(errors="replace")
        elif code == _IF_FCSLEN:
            fcs_len = _unsigned(value, order, 1)
        elif code == _IF_TSRESOL:
            resolution = _unsigned(value, order, 1)
            units = (2 if resolution & 0x80 else 10) ** (resolution & 0x7F)
        elif code == _IF_TSOFFSET:
            offset = _unsigned(value, order, 8)
            offset -= (offset >> 63) << 64
    return _Source(Interface(name, linktype, description, fcs_len), units, offset)


def _source_at(sources: Sequence[_Source], index: int) -> _Source:
    if index >= len(sources):
        raise _bad("packet of an interface that was not described")
    return sources[index]


def _parse_packet(body: bytes, order: str, sources: Sequence[_Source], number: int) -> Packet:
    if len(body) < 20:
        raise _bad("block length")
    index, high, low, length, original_len = struct.unpack_from(order + "IIIII", body)
    interface, units, offset = _source_at(sources, index)
    if length > len(body) - 20:
        raise _bad("packet length")
    comments: list[str] = []
    flags = 0
    packet_id = None
    for code, value in _parse_options(body[20 + length + -length % 4 :], order):
        if code == _OPT_COMMENT:
            comments.append(value.decode(errors="replace"))
        elif code == _EPB_FLAGS:
            flags = _unsigned(value, order, 4)
        elif code == _EPB_PACKETID:
            packet_id = _unsigned(value, order, 8)
    time_ns = (high << 32 | low) * 10**9 // units + offset * 10**9
    return Packet(
        number,
        interface,
        time_ns,
        body[20 : 20 + length],
        original_len,
        tuple(comments),
        flags & 3,
        packet_id,
        flags >> _FCS_LEN_SHIFT & 15 or interface.fcs_len,
    )


def _parse_simple(body: bytes, order: str, sources: Sequence[_Source], number: int) -> Packet:
    interface = _source_at(sources, 0).interface
    if len(body) < 4:
        raise _bad("block length")
    original_len = struct.unpack_from(order + "I", body)[0]
    data = body[4 : 4 + original_len]
    return Packet(number, interface, 0, data, original_len, (), 0, None, interface.fcs_len)
