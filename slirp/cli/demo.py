"""`slirp demo`: the embedded SPARC guest fetches a file through the whole chain, for all to see.

The guest boots, gets a lease, pings the gateway, resolves a name and fetches by HTTP; its console
appears as it is written. Afterwards: one data frame's vector at every stage, what was copied where,
how fast it went, what was lost. The exit status is 0 only if the guest's SHA-256 is the host's.

One frame must be seen to be shown, so the taps are in place at the start even without --capture;
as soon as they have seen a full data frame they step aside (Capture.end).

Does not do: TLS, redirects, IPv6 (the guest has none).
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Final

from slirp.cli import capture_file, origin
from slirp.cli.failure import Failure

if TYPE_CHECKING:
    from slirp.cli.demo_report import Outcome
    from slirp.cli.origin import Origin
    from slirp.guest.prom import Parameters
    from slirp.sight.pcapng import PcapngWriter, SplitWriter

DESCRIPTION: Final = """\
Boot the embedded SPARC guest and fetch a file from a host socket through TCP, IPv4, Ethernet, Lance
chip, LEDMA and IOMMU into its memory; show the vector of a frame at every stage. Without --url the
file is generated and served on 127.0.0.1.
"""
EPILOG: Final = """\
examples:
  slirp demo
  slirp demo --url http://127.0.0.1:8000/file.iso --capture demo.pcapng
  slirp demo --size 20M --bswp 0 --rx-buffer 64 --json
"""
SIZE: Final = "4M"
UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def configure(parser: ArgumentParser) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("--url", help="what to fetch; 127.0.0.1 is the host's own")
    parser.add_argument(
        "--size", type=_octets, default=SIZE, help=f"of the generated file: 500k, 20M … ({SIZE})"
    )
    capture_file.add_options(parser)
    parser.add_argument(
        "--bswp", type=int, choices=(0, 1), default=1, help="the chip's CSR3.BSWP; Sun has 1 (1)"
    )
    parser.add_argument(
        "--lanes",
        choices=("in-place", "bounce"),
        default="in-place",
        help="with --bswp 0: where LEDMA exchanges the byte lanes (in-place)",
    )
    parser.add_argument(
        "--rx-buffer",
        type=int,
        default=1544,
        metavar="N",
        help="bytes of a receive buffer, 64 to 4096 (1544)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _octets(text: str) -> int:
    digits = text.rstrip("kKmMgG")
    unit = UNITS.get(text[len(digits) :].lower())
    if not digits.isdecimal() or unit is None or not int(digits):
        raise ArgumentTypeError(f"{text!r} is no size; write 500k or 20M")
    return int(digits) * unit


def run(args: Namespace) -> int:
    from slirp.cli import demo_report

    parameters = _parameters(args)
    with ExitStack() as held:
        writer = capture_file.open_writer(args)
        if writer is not None:
            held.enter_context(writer)
        outcome = _fetch(args, parameters, held.enter_context(_source(args)), writer)
    if args.json:
        sys.stdout.write(json.dumps(demo_report.as_json(outcome)) + "\n")
    else:
        demo_report.show(outcome)
    if not outcome.ok:
        raise Failure(demo_report.why(outcome))
    return 0


def _parameters(args: Namespace) -> Parameters:
    """What the guest is told but for the URL; ConfigError for what it cannot do.

    Its pages are scattered over RAM, as they are in a machine that has run for a while.
    """
    from slirp.guest.board import RAM_LEN
    from slirp.guest.prom import Parameters

    parameters = Parameters(bswp=args.bswp, rx_buffer=args.rx_buffer, scatter=True)
    parameters.pack(RAM_LEN)
    return parameters


def _source(args: Namespace) -> AbstractContextManager[Origin]:
    return origin.generated(args.size) if args.url is None else origin.existing(args.url)


def _fetch(
    args: Namespace,
    parameters: Parameters,
    source: Origin,
    writer: PcapngWriter | SplitWriter | None,
) -> Outcome:
    """Boot the guest on a network of its own and let it fetch."""
    from slirp.cli.demo_report import Outcome
    from slirp.cli.sampling import FrameSample, Tee
    from slirp.cli.terminal import Terminal
    from slirp.guest.board import Board
    from slirp.guest.runner import fetch, run_on
    from slirp.network import Network
    from slirp.sight.capture import Capture

    sample = FrameSample()
    capture = Capture(sample if writer is None else Tee(sample, writer))
    if writer is None:
        sample.on_full = capture.end
    with (
        Network() as network,
        Terminal(sys.stderr if args.json else sys.stdout, source.octets) as terminal,
        Board(
            fetch(source.url, parameters),
            console=terminal.print_line,
            lane_mode=args.lanes,
            wrap=capture.tap,
        ) as board,
    ):
        result = run_on(
            network,
            board,
            port=capture.port(board.lance),
            each_turn=lambda: terminal.progress(lambda: board.result().octets),
        )
        return Outcome(
            origin=source,
            result=result,
            lance=board.lance.stats,
            copied={
                "tcp": network.stats()["tcp"]["octets_copied"],
                "lance": board.lance.stats["rx_slid_octets"],
                "ledma": board.ledma.copied_bytes,
            },
            captures=[] if writer is None else capture_file.files_of(writer, args.capture),
            frame=sample.frame,
        )
