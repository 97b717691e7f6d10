"""Vectors on a terminal: a bar for each stage, cut alike, and a table of addresses.

All stages of a frame are drawn over the same bytes: a column of the bars begins wherever any stage
cuts, so that what stands under each other is the same byte of the frame. Widths grow with the
logarithm of the bytes, or a header would vanish beside its payload.

The table has a row for each column and each stage's address of its first byte, in that stage's own
space. The stage `tcp`, which nobody can capture, is the datagram without its IPv4 header.

Does not do: checking (slirp/sight/layout.py does).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from slirp.sight import scsi
from slirp.sight.layout import FrameLayout, Part, Segment, Vector

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

LABEL_LEN: Final = 9  # characters in front of a bar
STYLES: Final = {
    "ethernet": "black on cyan",
    "arp": "black on magenta",
    "ipv4": "black on green",
    "ipv6": "black on green",
    "hopbyhop": "black on bright_green",
    "routing": "black on bright_green",
    "fragment": "black on bright_green",
    "destination": "black on bright_green",
    "tcp": "black on yellow",
    "udp": "black on yellow",
    "icmp": "black on yellow",
    "icmpv6": "black on yellow",
    "payload": "white on blue",
    "pad": "white on bright_black",
    "fcs": "white on red",
    "data": "white on blue",
}
_DIGITS: Final = {
    "lance": 6,
    "virtio": 9,
    "pcnet": 9,
    "ledma": 8,
    "memory": 9,
    "scsi": 10,
    "espdma": 8,
}
_TRANSPORTS: Final = ("tcp", "udp", "icmp", "icmpv6")


class Column(NamedTuple):
    """Bytes of a frame that no stage cuts."""

    name: str
    start: int  # offset in the frame
    length: int


def stages(frame: FrameLayout) -> dict[str, tuple[int, tuple[Segment, ...]]]:
    """For each stage the frame offset where its vector begins, and its segments without lanes."""
    found = {one.vector.stage: one.vector for one in frame.seen}
    widest = max(found.values(), key=lambda vector: vector.parts()[:1] == [("ethernet", 14)])
    link_len = dict(widest.parts()).get("ethernet", 0)
    out: dict[str, tuple[int, tuple[Segment, ...]]] = {}
    ip = found.get("ip")
    at = _transport_at(ip.parts()) if ip is not None else None
    if ip is not None and at is not None:
        header_len = sum(length for _, length in ip.parts()[:at])
        segments = [
            (name, None if address is None else address - header_len, length)
            for name, address, length in ip.segments[at:]
        ]
        out[ip.parts()[at][0]] = link_len + header_len, tuple(segments)
    for stage, vector in found.items():
        own = tuple(segment for segment in vector.segments if segment[0] != "lane")
        out[stage] = (link_len if stage == "ip" else 0), own
    return out


def _transport_at(parts: Sequence[Part]) -> int | None:
    """Which of a packet's parts is TCP, UDP or the like."""
    return next((at for at, (name, _) in enumerate(parts) if name in _TRANSPORTS), None)


def columns(frame: FrameLayout) -> list[Column]:
    """The frame cut wherever a stage cuts it, headers and page ends alike."""
    names: dict[int, str] = {}
    ends: set[int] = set()
    for offset, segments in stages(frame).values():
        for name, _, length in segments:
            names[offset] = name
            offset += length
            ends.add(offset)
    out: list[Column] = []
    for start, end in itertools.pairwise(sorted(ends | names.keys())):
        out.append(Column(names.get(start) or out[-1].name, start, end - start))
    return out


def address_at(offset: int, begin: int, segments: tuple[Segment, ...]) -> int | str | None:
    """A stage's address of the frame's byte `offset`: None where it has no such byte."""
    for _, address, length in segments:
        if begin <= offset < begin + length:
            return "wire" if address is None else address + offset - begin
        begin += length
    return None


def shown_address(stage: str, address: int | str | None) -> str:
    if address is None:
        return "–"
    if isinstance(address, str):
        return address
    return f"0x{address:0{_DIGITS[stage]}x}" if stage in _DIGITS else str(address)


def bars(frame: FrameLayout, width: int) -> list[Text]:
    """One line for each stage."""
    from rich.text import Text

    cut = columns(frame)
    widths = _widths(cut, width - LABEL_LEN)
    lines = []
    for stage, (begin, segments) in stages(frame).items():
        line = Text(f"{stage:<{LABEL_LEN}}", no_wrap=True, overflow="crop")
        for name, left, span, octets in _cells(cut, widths, begin, segments):
            line.append(" " * (left + LABEL_LEN - len(line.plain)))
            label = f"{name} {octets}"
            label = label if len(label) <= span - 2 else name[: max(span - 2, 0)]
            line.append(f"[{label:<{span - 2}}]", STYLES.get(name, ""))
        lines.append(line)
    return lines


def _cells(
    cut: list[Column], widths: list[int], begin: int, segments: tuple[Segment, ...]
) -> list[tuple[str, int, int, int]]:
    """(name, first character, characters, bytes) for each segment."""
    lefts: dict[int, int] = {}
    left = 0
    for column, width in zip(cut, widths, strict=True):
        lefts[column.start] = left
        left += width
        lefts[column.start + column.length] = left
    out = []
    for name, _, length in segments:
        left = lefts[begin]
        begin += length
        out.append((name, left, lefts[begin] - left, length))
    return out


def _widths(cut: list[Column], room: int) -> list[int]:
    """Characters of each column: enough for its label if there is room, more for more bytes.

    Where many pieces leave no room, only the first piece of each part is labelled.
    """
    labels = [len(f"{column.name} {column.length}") + 2 for column in cut]
    firsts = [i == 0 or cut[i - 1].name != column.name for i, column in enumerate(cut)]
    first_labels = [label if first else 2 for label, first in zip(labels, firsts, strict=True)]
    choices = (labels, first_labels, [2] * len(cut))
    least = next((widths for widths in choices if sum(widths) <= room), choices[-1])
    spare = max(0, room - sum(least))
    weights = [column.length.bit_length() ** 2 for column in cut]
    return [
        width + spare * weight // sum(weights) for width, weight in zip(least, weights, strict=True)
    ]


def table(frame: FrameLayout) -> Table:
    """Rows: bytes that no stage cuts. Columns: where each stage has the first of them."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = stages(frame)
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    out.add_column("part", no_wrap=True)
    out.add_column("bytes", justify="right", no_wrap=True)
    for stage in shown:
        out.add_column(stage, justify="right", no_wrap=True)
    for column in columns(frame):
        addresses = (
            shown_address(stage, address_at(column.start, begin, segments))
            for stage, (begin, segments) in shown.items()
        )
        name = Text(column.name, STYLES.get(column.name, ""))
        out.add_row(name, str(column.length), *addresses)
    return out


def as_json(frame: FrameLayout) -> dict[str, list[list[str | int | None]]]:
    """The segments of each stage as [name, address, bytes]; no address: on the wire only."""
    return {
        stage: [list(segment) for segment in segments]
        for stage, (_, segments) in stages(frame).items()
    }


def has_exchanged(frame: FrameLayout) -> bool:
    """Do some stages hold the frame with its byte lanes exchanged?"""
    return any(one.vector.exchanged for one in frame.seen)


def title(vector: Vector, frame: FrameLayout) -> str:
    """What kind of frame it is, in a few words."""
    names = [name for name, _ in vector.parts() if name not in ("payload", "pad", "fcs")]
    if vector.command:
        names = [f"{scsi.name_of(vector.command)}, command {vector.command.hex(' ')}"]
    way = {1: "to the guest", 2: "from the guest"}.get(frame.direction, "")
    lanes = ", byte lanes exchanged on the bus" if has_exchanged(frame) else ""
    return f"{frame.octets} bytes {way}: {' / '.join(names)}{lanes}"
