"""`slirp demo`: the embedded SPARC guest fetches a file through the whole chain, for all to see.

The guest boots, gets a lease, pings the gateway, resolves a name and fetches by HTTP; its console
appears as it is written. Afterwards: one data frame's vector at every stage, what was copied where,
how fast it went, what was lost. The exit status is 0 only if the guest's SHA-256 is the host's.
With --disk the guest writes the file to a disk as it comes, through ESP, ESPDMA and IOMMU, and
reads it back: then its SHA-256 of that must be the image's as well.

One frame must be seen to be shown, so the taps are in place at the start even without --capture;
as soon as they have seen a full data frame (and a disk's transfer) they step aside (Capture.end).

With --ipv6 the guest speaks nothing else: a router's advertisement takes the place of the lease.

Does not do: TLS, redirects.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from slirp.cli import capture_file, disk_image, origin
from slirp.cli.failure import Failure
from slirp.config_fields import ENDPOINTS

if TYPE_CHECKING:
    from slirp.cli.demo_report import Outcome
    from slirp.cli.origin import Origin
    from slirp.cli.sampling import DiskSample, FrameSample
    from slirp.guest.prom import Parameters
    from slirp.host.endpoints import Image
    from slirp.sight.capture import Capture
    from slirp.sight.pcapng import PcapngWriter, SplitWriter

DESCRIPTION: Final = """\
Boot the embedded SPARC guest and fetch a file from a host socket through TCP, IPv4, Ethernet, Lance
chip, LEDMA and IOMMU into its memory; show the vector of a frame at every stage. Without --url the
file is generated and served on 127.0.0.1. With --disk the guest writes it to a SCSI disk and reads
it back, through ESP, ESPDMA and IOMMU.
"""
EPILOG: Final = """\
examples:
  slirp demo
  slirp demo --url http://127.0.0.1:8000/file.iso --capture demo.pcapng
  slirp demo --ipv6
  slirp demo --disk --size 20M --json | jq .disk
  slirp demo --disk disk.img --endpoint uring
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
    parser.add_argument(
        "--disk",
        nargs="?",
        const=disk_image.FOR_THE_OCCASION,
        metavar="IMAGE",
        help="write the file to this raw image, from its first block on, and read it back; "
        "without IMAGE to one made for the occasion",
    )
    parser.add_argument(
        "--endpoint",
        choices=ENDPOINTS,
        default=ENDPOINTS[0],
        help="who moves bytes between host and guest memory, a socket's and the disk's: the loop "
        "itself, threads, or io_uring (epoll)",
    )
    parser.add_argument(
        "--ipv6", action="store_true", help="the guest speaks IPv6 only, configured by the router"
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

    _check_endpoint(args.endpoint)
    parameters = _parameters(args)
    with ExitStack() as held:
        writer = capture_file.open_writer(args)
        if writer is not None:
            held.enter_context(writer)
        source = held.enter_context(_source(args))
        image = None
        if args.disk is not None:
            image = held.enter_context(disk_image.opened(args.disk, source.octets, args.endpoint))
        outcome = _fetch(args, parameters, source, writer, image)
    if args.json:
        sys.stdout.write(json.dumps(demo_report.as_json(outcome)) + "\n")
    else:
        demo_report.show(outcome)
    if not outcome.ok:
        raise Failure(demo_report.why(outcome))
    return 0


def _check_endpoint(name: str) -> None:
    from slirp.errors import ConfigError
    from slirp.host import endpoints

    try:
        endpoints.check(name)
    except ConfigError as error:
        raise Failure(f"--{error}") from None


def _parameters(args: Namespace) -> Parameters:
    """What the guest is told but for the URL; ConfigError for what it cannot do.

    Its pages are scattered over RAM, as they are in a machine that has run for a while.
    """
    from slirp.guest.board import RAM_LEN
    from slirp.guest.prom import Parameters

    parameters = Parameters(
        bswp=args.bswp,
        rx_buffer=args.rx_buffer,
        scatter=True,
        disk=args.disk is not None,
        ipv6=args.ipv6,
    )
    parameters.pack(RAM_LEN)
    return parameters


def _source(args: Namespace) -> AbstractContextManager[Origin]:
    if args.url is None:
        return origin.generated(args.size)
    return origin.existing(args.url, ipv6=args.ipv6)


def _fetch(
    args: Namespace,
    parameters: Parameters,
    source: Origin,
    writer: PcapngWriter | SplitWriter | None,
    image: Image | None,
) -> Outcome:
    """Boot the guest on a network of its own and let it fetch."""
    from dma.scsi.disk import Disk
    from dma.scsi.target import Target
    from slirp.cli.demo_report import DiskOutcome, Outcome
    from slirp.cli.sampling import DiskSample, FrameSample, Tee
    from slirp.cli.terminal import Terminal
    from slirp.guest.board import Board
    from slirp.guest.runner import fetch, run_on
    from slirp.network import Network
    from slirp.sight.capture import Capture

    disk = None if image is None else Disk(image)
    sample, disk_sample = FrameSample(), DiskSample()
    capture = Capture(Tee(sample, disk_sample, *(() if writer is None else (writer,))))
    if writer is None:
        _end_when_full(capture, *((sample,) if disk is None else (sample, disk_sample)))
    with (
        Network(endpoint=args.endpoint, ipv4_only=not args.ipv6) as network,
        Terminal(sys.stderr if args.json else sys.stdout, source.octets) as terminal,
        Board(
            fetch(source.url, parameters),
            console=terminal.print_line,
            lane_mode=args.lanes,
            wrap=capture.tap,
            targets={} if disk is None else {0: Target(disk)},
        ) as board,
    ):
        bell = None if image is None else image.fileno()
        if image is not None and bell is not None:
            network.watch(bell, image.poll)
        result = run_on(
            network,
            board,
            port=capture.port(board.lance),
            each_turn=lambda: terminal.progress(lambda: board.result().octets),
        )
        told = None
        if image is not None and disk is not None:
            told = DiskOutcome(
                sha256_host=disk_image.sha256_of(image, result.octets),
                sha256_guest=result.disk_sha256,
                bytes_read=disk.bytes_read,
                bytes_written=disk.bytes_written,
                copied={"esp": board.esp.copied_bytes, "disk": disk.copied_bytes},
                frame=disk_sample.frame,
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
            disk=told,
        )


def _end_when_full(capture: Capture, *samples: FrameSample | DiskSample) -> None:
    """The taps step aside when all samples have what they look for."""
    waiting = set(samples)

    def has_enough(sample: FrameSample | DiskSample) -> None:
        waiting.discard(sample)
        if not waiting:
            capture.end()

    for sample in samples:
        sample.on_full = partial(has_enough, sample)
