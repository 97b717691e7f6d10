"""A small capture made without the chain: one data frame towards a guest, seen at every stage."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from slirp.sight.capture import ETHERNET, IP, LANCE
from slirp.sight.layout import Vector, parts_of, place
from slirp.sight.pcapng import (
    INBOUND,
    LINKTYPE_ETHERNET,
    Interface,
    PcapngWriter,
    SplitWriter,
)

LEDMA: Final = Interface("ledma", LINKTYPE_ETHERNET)
MEMORY: Final = Interface("memory", LINKTYPE_ETHERNET)
IPV4: Final = bytes.fromhex("4500 008c 0001 4000 40 06 0000 0a000202 0a00020f")
TCP: Final = bytes.fromhex("0050 0401 00000001 00000002 50 10 2000 0000 0000")
FRAME: Final = bytes.fromhex("080020010203 52550a000202 0800") + IPV4 + TCP + b"x" * 100
WIRE: Final = FRAME + zlib.crc32(FRAME).to_bytes(4, "little")


def clock() -> Iterator[int]:
    yield from range(1_795_399_885_000_000_000, 1 << 62, 1000)


def stages() -> Iterator[tuple[Interface, bytes, Vector]]:
    named = parts_of(WIRE, fcs_len=4)
    yield IP, FRAME[14:], Vector("ip", False, place(named[1:-1], [(0, 140)]))
    yield ETHERNET, FRAME, Vector("ethernet", False, place(named[:-1], [(0, 154)]))
    yield LANCE, WIRE, Vector("lance", False, place(named, [(0x1FF0, 158)]))
    yield LEDMA, WIRE, Vector("ledma", False, place(named, [(0xFC001FF0, 158)]))
    yield MEMORY, WIRE, Vector("memory", False, place(named, [(0x9FF0, 16), (0x3000, 142)]))


def write_sample(path: Path, *, count: int = 1, split: bool = False, spoil: str = "") -> Path:
    """`count` frames; in the last one, stage `spoil` has a byte changed."""
    ticks = clock()
    make = SplitWriter if split else PcapngWriter.create
    with make(path, lambda: next(ticks)) as writer:
        for packet_id in range(1, count + 1):
            for interface, octets, vector in stages():
                if interface.name == spoil and packet_id == count:
                    octets = octets[:60] + b"y" + octets[61:]
                writer.write(
                    interface,
                    [memoryview(octets)],
                    comment=vector.emit(),
                    direction=INBOUND,
                    packet_id=packet_id,
                )
    return path
