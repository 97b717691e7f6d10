"""`slirp layout`: the vectors of captured frames, stage by stage, and whether they are true.

Every frame of the capture is checked (see slirp/sight/layout.py for what); the first few are shown.
The first disagreement ends the command with status 1 and is named by packet number and stage.

Does not do: dissect payload; Wireshark does.
"""

from __future__ import annotations

import heapq
import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from slirp.cli import drawing
from slirp.cli.failure import USAGE, Failure
from slirp.errors import MalformedPacket
from slirp.sight.layout import FrameLayout, check, frames
from slirp.sight.pcapng import Packet, read_packets

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION: Final = """\
Show the header vector of captured frames at every stage, and check it: headers and lengths in the
bytes against the vector, the stages against each other, cuts at page ends. Exit status 1 names the
first disagreement. Several files are those that --split made of one capture.
"""
EPILOG: Final = """\
examples:
  slirp layout demo.pcapng                the first frames, and a check of all
  slirp layout --packet 42 demo.pcapng    the frame that packet 42 belongs to
  slirp layout --json demo.pcapng | jq '.layouts[0].stages.memory'
"""
LIMIT: Final = 8  # frames shown unless asked otherwise


def configure(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("files", metavar="FILE.pcapng", nargs="+", type=Path)
    parser.add_argument("--packet", type=int, metavar="N", help="only the frame of packet N")
    parser.add_argument(
        "--limit", type=int, default=LIMIT, metavar="N", help=f"frames to show ({LIMIT}; 0: all)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: Namespace) -> int:
    if args.packet is not None and len(args.files) > 1:
        raise Failure("--packet needs a single file: packets are numbered in each", USAGE)
    with ExitStack() as files:
        try:
            sources = [files.enter_context(path.open("rb")) for path in args.files]
        except OSError as error:
            raise Failure(f"{error.filename}: {error.strerror}") from None
        found = frames(heapq.merge(*map(read_packets, sources), key=_time_of))
        names = ", ".join(map(str, args.files))
        try:
            wanted = _chosen(found, args.packet)
            return show_json(wanted) if args.json else _show(wanted, args)
        except MalformedPacket as error:
            raise Failure(f"{names}: {error}") from None


def _time_of(packet: Packet) -> int:
    return packet.time_ns


def _chosen(found: Iterable[FrameLayout], number: int | None) -> Iterator[FrameLayout]:
    """All frames, or the one that has packet `number`."""
    any_chosen = False
    for frame in found:
        if number is None or any(one.number == number for one in frame.seen):
            any_chosen = True
            yield frame
    if not any_chosen and number is not None:
        raise Failure(f"there is no packet {number} with a vector")
    if not any_chosen:
        raise Failure("no packet has a vector; slirp's --capture writes them")


def _show(found: Iterable[FrameLayout], args: Namespace) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    frame_count = packet_count = 0
    for frame in found:
        frame_count += 1
        packet_count += len(frame.seen)
        wrong = check(frame)
        if wrong is not None or not args.limit or frame_count <= args.limit:
            show_frame(console, frame)
        if wrong is not None:
            raise Failure(str(wrong))
    if args.limit and frame_count > args.limit:
        console.print(f"… and {frame_count - args.limit} more frames (--limit 0 shows all)\n")
    console.print(
        f"{frame_count} frames in {packet_count} packets: every vector agrees with its bytes."
    )
    return 0


def show_frame(console: Console, frame: FrameLayout) -> None:
    """One frame as bars and as a table."""
    numbers = ", ".join(f"{one.vector.stage} {one.number}" for one in frame.seen)
    console.print(f"{drawing.title(frame.seen[-1].vector, frame)}", style="bold")
    console.print(f"packets: {numbers}\n", soft_wrap=True)
    for line in drawing.bars(frame, console.width):
        console.print(line, no_wrap=True, crop=True)
    console.print(drawing.table(frame))


def show_json(found: Iterable[FrameLayout]) -> int:
    """One object, printed as the frames come; whole where a file breaks off, too."""
    out = sys.stdout
    wrong = broken = None
    frame_count = 0
    try:
        for frame in found:
            out.write(",\n" if frame_count else '{"layouts": [\n')
            frame_count += 1
            json.dump(frame_as_json(frame), out)
            wrong = check(frame)
            if wrong is not None:
                break
    except MalformedPacket as error:
        if not frame_count:
            raise
        broken = error
    summary = {
        "ok": wrong is None and broken is None,
        "frames": frame_count,
        "disagreement": wrong and wrong._asdict(),
    }
    out.write("\n],\n" + json.dumps(summary)[1:] + "\n")
    out.flush()
    if broken is not None:
        raise broken
    if wrong is not None:
        raise Failure(str(wrong))
    return 0


def frame_as_json(frame: FrameLayout) -> dict[str, object]:
    return {
        "id": frame.packet_id,
        "direction": {1: "inbound", 2: "outbound"}.get(frame.direction),
        "octets": frame.octets,
        "exchanged": drawing.has_exchanged(frame),
        "packets": {one.vector.stage: one.number for one in frame.seen},
        "stages": drawing.as_json(frame),
    }
