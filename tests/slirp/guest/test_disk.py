"""The guest and its disk: fetched onto it through the Lance, read back, and what can go wrong."""

from __future__ import annotations

import hashlib
import random

import pytest

from dma.iovec import IoVec
from dma.scsi.disk import Disk
from dma.scsi.target import Target
from dma.transfer import DmaFault, DmaPath, Transfer
from slirp.guest.board import Board, Wrap
from slirp.guest.prom import Parameters, Result
from tests.kit.lan import Lan
from tests.kit.scsi import MemoryImage
from tests.slirp.guest.bench import NAMES, URL, need_unicorn

BODY = random.Random(2).randbytes(200_001)
BUFFER = 32768  # bytes, in firmware/disk.c


class Machine:
    """A guest with disks by id, on scapy's network."""

    def __init__(
        self,
        images: dict[int, MemoryImage],
        body: bytes = BODY,
        *,
        wrap: Wrap = lambda _stage, path: path,
        disk: bool = True,
        scatter: bool = False,
    ) -> None:
        need_unicorn()
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        self.lines: list[str] = []
        self.disks = {number: Disk(image) for number, image in images.items()}
        lan = Lan(lambda _request: answer, names=NAMES)
        self.board = Board(
            Parameters(url=URL, pings=0, seed=1, disk=disk, scatter=scatter),
            console=self.lines.append,
            clock=lan.clock,
            wrap=wrap,
            targets={number: Target(disk) for number, disk in self.disks.items()},
        )
        lan.lance = self.board.lance
        self._lan = lan

    def run(self) -> Result:
        with self.board:
            return self.board.run(self._lan.on_idle)


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, BUFFER, BUFFER + 1, len(BODY)])
def test_what_is_fetched_is_on_the_disk(size: int, scatter: bool) -> None:
    image = MemoryImage(b"\xee" * (1 << 18))
    machine = Machine({0: image}, BODY[:size], scatter=scatter)
    result = machine.run()
    blocks = -(-size // 512) * 512
    assert (result.status, result.disk_written, result.disk_read) == ("ok", blocks, blocks)
    digest = hashlib.sha256(BODY[:size]).hexdigest()
    assert (result.sha256, result.disk_sha256) == (digest, digest)
    assert image.data[:blocks] == BODY[:size] + bytes(blocks - size)
    assert image.data[blocks:] == b"\xee" * (len(image.data) - blocks)
    assert image.syncs == 1
    disk = machine.disks[0]
    assert (disk.bytes_written, disk.bytes_read) == (blocks, blocks)
    assert disk.copied_bytes == machine.board.esp.copied_bytes == 0


def test_the_probe_names_all_targets_and_takes_the_first_disk() -> None:
    images = {n: MemoryImage(bytes(1 << 18)) for n in (2, 5)}
    machine = Machine(images)
    assert machine.run().ok
    named = [line for line in machine.lines if line.startswith(("scsi:", "disk: target"))]
    assert named == [
        "scsi: target 2 is SLIRP   IMAGE DISK      0100",
        "disk: target 2, 512 blocks of 512 bytes",
        "scsi: target 5 is SLIRP   IMAGE DISK      0100",
    ]
    assert images[5].data == bytes(1 << 18)


def test_both_chips_interrupt() -> None:
    machine = Machine({0: MemoryImage(bytes(1 << 18))})
    counters = machine.run().counters
    assert counters["interrupts"] > 5
    assert counters["disk_interrupts"] > 3 * counters["disk_commands"] - 20
    assert counters["disk_commands"] > 2 * len(BODY) // BUFFER


def test_no_disk() -> None:
    result = Machine({}).run()
    assert (result.status, result.octets) == ("no-disk", 0)


def test_a_disk_without_medium_is_no_disk() -> None:
    machine = Machine({0: MemoryImage(b"")})
    assert machine.run().status == "no-disk"
    assert "disk: target 0, sense 2/3a/0" in machine.lines


def test_a_disk_that_is_too_small() -> None:
    result = Machine({0: MemoryImage(bytes(1 << 16))}).run()
    assert (result.status, result.disk_sha256) == ("disk-full", "")


def test_a_read_only_disk() -> None:
    machine = Machine({0: MemoryImage(bytes(1 << 18), read_only=True)})
    assert machine.run().status == "disk-error"
    assert "disk: target 0, sense 7/27/0" in machine.lines


def test_a_bad_block() -> None:
    image = MemoryImage(bytes(1 << 18))
    image.bad_from = 100_000
    machine = Machine({0: image})
    assert machine.run().status == "disk-error"
    assert "disk: target 0, sense 3/c/2" in machine.lines


def test_a_cache_that_cannot_be_flushed() -> None:
    image = MemoryImage(bytes(1 << 18))
    image.sync_error = 5
    assert Machine({0: image}).run().status == "disk-error"


def test_without_the_parameter_the_disk_is_left_alone() -> None:
    image = MemoryImage(b"\xee" * (1 << 18))
    machine = Machine({0: image}, disk=False)
    result = machine.run()
    assert (result.status, result.disk_blocks, result.disk_sha256) == ("ok", 0, "")
    assert not any(line.startswith(("scsi", "disk")) for line in machine.lines)
    assert image.data == b"\xee" * (1 << 18)


def test_the_driver_gives_up_after_a_memory_error() -> None:
    """ERR_PEND in the middle of the download: the bus is reset, and the guest says so."""

    class Faulty:
        def __init__(self, path: DmaPath) -> None:
            self.path = path
            self.countdown = 12  # data transfers

        def open(self, transfer: Transfer) -> IoVec:
            self.countdown -= transfer.headers is not None
            if not self.countdown:
                raise DmaFault("test", 0, "on purpose")
            return self.path.open(transfer)

    def wrap(stage: str, path: DmaPath) -> DmaPath:
        return Faulty(path) if stage == "espdma" else path

    image = MemoryImage(bytes(1 << 18))
    machine = Machine({0: image}, wrap=wrap)
    assert machine.run().status == "disk-error"
