"""`--capture FILE` and `--split`, for every command that moves packets.

    add_options(parser)
    …
    with open_writer(args) as writer:
        capture = Capture(writer)

Does not do: decide what is captured; the command puts the taps in place (slirp/sight/capture.py).
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from slirp.cli.failure import USAGE, Failure
from slirp.sight.pcapng import PcapngWriter, SplitWriter


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--capture", type=Path, metavar="FILE.pcapng", help="write every packet at every stage"
    )
    parser.add_argument(
        "--split", action="store_true", help="with --capture: a file for each stage"
    )


def open_writer(args: Namespace) -> PcapngWriter | SplitWriter | None:
    """What --capture asks for; None without it. Raises Failure where there can be no such file."""
    path: Path | None = args.capture
    if path is None:
        if args.split:
            raise Failure("--split needs --capture FILE.pcapng", USAGE)
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if args.split:
            return SplitWriter(path, time.time_ns)
        return PcapngWriter.create(path, time.time_ns)
    except OSError as error:
        raise Failure(f"--capture {path}: {error.strerror}; choose another place") from None


def files_of(writer: PcapngWriter | SplitWriter, path: Path) -> list[tuple[Path, dict[str, int]]]:
    """Each file that was written, with its packets by interface."""
    if isinstance(writer, SplitWriter):
        return [(writer.path_of(name), {name: n}) for name, n in writer.packets.items()]
    return [(path, dict(writer.packets))]
