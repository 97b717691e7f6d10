"""`--capture FILE` and `--split`, for every command that moves packets.

    add_options(parser)
    …
    with open_writer(args) as writer:
        capture = Capture(writer)

Does not do: decide what is captured; the command puts the taps in place (slirp/sight/capture.py).
"""

from __future__ import annotations

import time

from slirp.cli.failure import USAGE, Failure

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from pathlib import Path
    from typing import Protocol

    from slirp.sight.pcapng import PcapngWriter, SplitWriter

    class Output(Protocol):
        """What the options come to, for those who have no parser's Namespace."""

        @property
        def capture(self) -> Path | None: ...
        @property
        def split(self) -> bool: ...
        @property
        def stats(self) -> bool: ...


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--capture", type=_path, metavar="FILE.pcapng", help="write every packet at every stage"
    )
    parser.add_argument(
        "--split", action="store_true", help="with --capture: a file for each stage"
    )


def add_output_options(parser: ArgumentParser) -> None:
    """The same and --stats, for every command that runs until something ends it."""
    add_options(parser)
    parser.add_argument(
        "--stats", action="store_true", help="print statistics at the end, as JSON, to stderr"
    )


def _path(text: str) -> Path:
    from pathlib import Path  # like pcapng, only where a capture is asked for

    return Path(text)


def open_writer(args: Namespace | Output) -> PcapngWriter | SplitWriter | None:
    """What --capture asks for; None without it. Raises Failure where there can be no such file."""
    path: Path | None = args.capture
    if path is None:
        if args.split:
            raise Failure("--split needs --capture FILE.pcapng", USAGE)
        return None
    from slirp.sight.pcapng import PcapngWriter, SplitWriter

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if args.split:
            return SplitWriter(path, time.time_ns)
        return PcapngWriter.create(path, time.time_ns)
    except OSError as error:
        raise Failure(f"--capture {path}: {error.strerror}; choose another place") from None


def files_of(writer: PcapngWriter | SplitWriter, path: Path) -> list[tuple[Path, dict[str, int]]]:
    """Each file that was written, with its packets by interface."""
    from slirp.sight.pcapng import SplitWriter

    if isinstance(writer, SplitWriter):
        return [(writer.path_of(name), {name: n}) for name, n in writer.packets.items()]
    return [(path, dict(writer.packets))]
