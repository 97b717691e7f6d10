"""What `slirp demo` tells when the guest is done: for a person, or as JSON.

Does not do: measure. Everything here was counted by those whom it concerns.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

from slirp.cli import drawing
from slirp.cli.origin import Origin
from slirp.guest.prom import Result
from slirp.sight.layout import FrameLayout

WHY: Final = {
    "no-lease": "the guest got no address",
    "bad-url": "the guest does not understand the URL; write http://HOST[:PORT]/PATH",
    "no-such-name": "DNS does not know the name (it may be in /etc/hosts alone); use the address",
    "no-resolver": "no DNS server of the host answered; see /etc/resolv.conf",
    "unreachable": "the host has no way to the server",
    "refused": "the server refused the connection; is it running?",
    "timed-out": "the server did not answer in time",
    "reset": "the server broke the connection off",
    "truncated": "the server ended the connection before the file's end",
    "redirect": "the server redirects; give --url the address that it redirects to",
    "no-disk": "the guest found no disk that is ready; an image has at least one block of 512",
    "disk-full": "the image is too small for the file; give --disk a larger one",
    "disk-error": "the disk failed; may the image be written, and is there room for it?",
}

# Wireshark 4.2 and later: what came by another interface is another conversation.
EACH_STAGE: Final = "-o protocols.conversation_deinterlacing_key:.MI"


class DiskOutcome(NamedTuple):
    """What there is to tell of the disk."""

    sha256_host: str  # of the image, as many bytes as were fetched
    sha256_guest: str  # of what the guest read back
    bytes_read: int  # by the disk from its image, and
    bytes_written: int
    copied: dict[str, int]  # bytes of blocks, by stage
    frame: FrameLayout | None

    @property
    def ok(self) -> bool:
        return self.sha256_guest == self.sha256_host


class Outcome(NamedTuple):
    """All that there is to tell afterwards."""

    origin: Origin
    result: Result
    lance: dict[str, int]  # the chip's counters
    copied: dict[str, int]  # bytes by stage
    captures: list[tuple[Path, dict[str, int]]]  # packets by interface
    frame: FrameLayout | None
    disk: DiskOutcome | None = None

    @property
    def ok(self) -> bool:
        is_fetched = self.result.ok and self.result.sha256 == self.origin.sha256
        return is_fetched and (self.disk is None or self.disk_ok)

    @property
    def disk_ok(self) -> bool:
        """What the guest read back is what the host's image has, and what was fetched."""
        disk = self.disk
        return disk is not None and disk.ok and disk.sha256_guest == self.origin.sha256

    @property
    def mbit_per_s(self) -> float:
        seconds = self.result.seconds
        return self.result.octets * 8e-6 / seconds if seconds else 0.0

    @property
    def packets(self) -> dict[str, int]:
        return {"to_guest": self.lance["rx_frames"], "from_guest": self.lance["tx_frames"]}

    @property
    def drops(self) -> dict[str, int]:
        """Frames lost, by who lost them; and what TCP had to send again."""
        return {
            "lance_miss": self.lance["rx_miss"],
            "lance_buff": self.lance["rx_buff"],
            "guest": self.result.counters["rx_dropped"],
            "guest_bad_checksums": self.result.counters["tcp_bad_checksums"],
            "guest_retransmits": self.result.counters["tcp_retransmits"],
        }


def why(outcome: Outcome) -> str:
    """One line on what went wrong."""
    result = outcome.result
    if result.ok and result.sha256 == outcome.origin.sha256:
        return "what the guest read back from its disk is not what it wrote"
    if result.ok:
        return "the guest's SHA-256 is not the host's; is the file the same each time?"
    status = result.status
    if status == "http-error":
        return f"the server answered the guest with HTTP status {result.http_status}"
    return f"{WHY.get(status, 'the guest could not fetch the file')} (guest: {status})"


def as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "ok": outcome.ok,
        "url": outcome.origin.url,
        "status": outcome.result.status,
        "bytes": outcome.result.octets,
        "seconds": outcome.result.seconds,
        "mbit_per_s": round(outcome.mbit_per_s, 3),
        "sha256_host": outcome.origin.sha256,
        "sha256_guest": outcome.result.sha256,
        "copied_bytes": outcome.copied,
        "packets": outcome.packets,
        "drops": outcome.drops,
        "captures": [{"path": str(path), "packets": packets} for path, packets in outcome.captures],
        "layout": {} if outcome.frame is None else drawing.as_json(outcome.frame),
        **({} if outcome.disk is None else {"disk": _disk_as_json(outcome, outcome.disk)}),
    }


def _disk_as_json(outcome: Outcome, disk: DiskOutcome) -> dict[str, Any]:
    return {
        "ok": outcome.disk_ok,
        "bytes_read": disk.bytes_read,
        "bytes_written": disk.bytes_written,
        "sha256_host": disk.sha256_host,
        "sha256_guest": disk.sha256_guest,
        "copied_bytes": disk.copied,
        "layout": {} if disk.frame is None else drawing.as_json(disk.frame),
    }


def show(outcome: Outcome) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    result = outcome.result
    console.print()
    disk = outcome.disk
    for kind, frame in (("data frame", outcome.frame), ("disk transfer", disk and disk.frame)):
        if frame is not None:
            what = drawing.title(frame.seen[-1].vector, frame)
            console.print(f"One {kind} at every stage, {what}:\n", style="bold")
            for line in drawing.bars(frame, console.width):
                console.print(line, no_wrap=True, crop=True)
            console.print(drawing.table(frame))
    lines = [
        ("fetched", _fetched(outcome)),
        ("SHA-256", f"{'equal' if outcome.ok else 'NOT EQUAL'}: host {outcome.origin.sha256}"),
        ("", f"{'':{len('equal') if outcome.ok else len('NOT EQUAL')}}  guest {result.sha256}"),
        ("copied", _named(outcome.copied) + " bytes on the way, payload and headers"),
        ("packets", _named(outcome.packets)),
        ("drops", _named({name: n for name, n in outcome.drops.items() if n}) or "none"),
        *(() if disk is None else _disk_lines(outcome, disk)),
    ]
    for label, text in lines:
        console.print(f"{label:9}{text}", soft_wrap=True)
    _show_captures(outcome)
    sys.stdout.flush()


def _disk_lines(outcome: Outcome, disk: DiskOutcome) -> list[tuple[str, str]]:
    verdict = "equal" if outcome.disk_ok else "NOT EQUAL"
    return [
        ("disk", f"{disk.bytes_written:,} bytes written, {disk.bytes_read:,} read back"),
        ("SHA-256", f"{verdict}: image {disk.sha256_host}"),
        ("", f"{'':{len(verdict)}}  guest {disk.sha256_guest}"),
        ("copied", _named(disk.copied) + " bytes between image and memory"),
    ]


def _fetched(outcome: Outcome) -> str:
    octets, seconds = outcome.result.octets, outcome.result.seconds
    return f"{octets:,} bytes in {seconds:.3f} s, {outcome.mbit_per_s:.1f} Mbit/s"


def _named(counts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items())


def _show_captures(outcome: Outcome) -> None:
    """Where the files are, and how to open them."""
    out = sys.stdout
    for path, packets in outcome.captures:
        out.write(f"capture  {path} ({_named(packets)})\n")
    if not outcome.captures:
        out.write("capture  none; --capture demo.pcapng writes one for Wireshark\n")
        return
    paths = [path for path, _ in outcome.captures]
    out.write("\nTo look into it:\n")
    if len(paths) == 1:
        pick = 'frame.interface_name == "lance"'
        out.write(f"  wireshark {EACH_STAGE} {paths[0]}\n")
        out.write(f"  tshark {EACH_STAGE} -r {paths[0]} -Y http\n")
        out.write("  before Wireshark 4.2, one stage alone:\n")
        out.write(f"  tshark -r {paths[0]} -Y '{pick}' -w - | tshark -r - -Y http\n")
    else:
        out.write(f"  wireshark {paths[0]}\n  tshark -r {paths[0]} -Y http\n")
    out.write(f"  slirp layout {' '.join(map(str, paths))}\n")
