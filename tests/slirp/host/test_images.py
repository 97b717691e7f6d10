"""Every endpoint of a disk, behind the same machine: at once, by threads, by io_uring.

The device cannot tell them apart: each test is one script of a driver, and the image, guest memory,
interrupts and sense are the same whichever endpoint is behind.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from dma import espdma
from dma.espdma import D_CSR, WRITE
from dma.iovec import IoVec, PhysAddr
from dma.scsi import esp as chip
from dma.scsi import registers as reg
from dma.scsi.disk import Disk
from dma.scsi.endpoint import VIEWS_MAX, Endpoint, ImageFile
from dma.scsi.target import Target
from slirp.host import image_uring, uring
from slirp.host.image_threads import ThreadedImage
from slirp.host.image_uring import UringImage
from tests.kit.need import missing
from tests.kit.scsi import DVMA, ScsiMachine, cdb_10

BLOCKS: Final = 64
CONTENT: Final = b"".join((i + 1).to_bytes(2, "big") * 256 for i in range(BLOCKS))
KINDS: Final[dict[str, Callable[[Path], Endpoint]]] = {
    "at once": ImageFile,
    "threads": ThreadedImage,
    "uring": UringImage,
}
LATER: Final = ("threads", "uring")


def opened(kind: str, path: Path) -> Endpoint:
    if kind == "uring" and (reason := uring.why_not()):
        missing(reason)
    return KINDS[kind](path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "disk"
    image.write_bytes(CONTENT)
    return image


class Rig:
    """A machine with one disk over an endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.disk = Disk(endpoint)
        self.machine = ScsiMachine({0: Target(self.disk)}, endpoints=(endpoint,))
        self.machine.ready()

    def close(self) -> None:
        self.machine.close()
        self.endpoint.close()


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, path: Path) -> Iterator[Rig]:
    r = Rig(opened(request.param, path))
    yield r
    r.close()


def test_a_read_and_a_write(rig: Rig, path: Path) -> None:
    outcome = rig.machine.run(cdb_10(0x28, 3, 16), into=8192)
    assert outcome.interrupts == [
        (reg.BUS_SERVICE | reg.FUNCTION_COMPLETE, 4, 1),
        (reg.BUS_SERVICE, 0, 3),
        (reg.FUNCTION_COMPLETE, 0, 7),
        (reg.DISCONNECTED, 0, 0),
    ]
    assert outcome.data == CONTENT[1536:][:8192]
    fresh = os.urandom(8192)
    assert rig.machine.run(cdb_10(0x2A, 40, 16), out=fresh, pieces=3000).status == 0
    assert rig.machine.run(cdb_10(0x35, 0, 0)).status == 0
    assert path.read_bytes() == CONTENT[: 40 * 512] + fresh + CONTENT[56 * 512 :]
    assert rig.disk.copied_bytes == rig.machine.esp.copied_bytes == 0


def test_other_commands_that_need_the_image(rig: Rig) -> None:
    run = rig.machine.run
    assert run(cdb_10(0x2F, 0, BLOCKS)).status == 0
    assert run(cdb_10(0x2F, 5, 2, 2), out=CONTENT[2560:3584]).status == 0
    assert run(cdb_10(0x2F, 5, 2, 2), out=bytes(1024)).status == 2
    assert rig.machine.sense() == (0xE, 0x1D, 0)
    assert run(cdb_10(0x2A, 0, 1, 8), out=bytes(512)).status == 0, "FUA"
    assert run(bytes((0x1B, 0, 0, 0, 0, 0))).status == 0, "stop"


@pytest.mark.parametrize("cut", [0, 1000, 4096])
def test_an_image_that_became_short(rig: Rig, path: Path, cut: int) -> None:
    os.truncate(path, cut)
    outcome = rig.machine.run(cdb_10(0x28, 0, 16), into=8192)
    whole = cut // 512 * 512
    assert (outcome.status, outcome.residue) == (2, 8192 - whole)
    assert outcome.data == CONTENT[:whole]
    assert rig.machine.sense() == (3, 0x11, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_numbers(kind: str, path: Path) -> None:
    endpoint = opened(kind, path)
    bad = os.open(path, os.O_WRONLY)
    os.dup2(bad, endpoint.fd)  # type: ignore[attr-defined]  # all of ours have one
    os.close(bad)
    assert results(endpoint, lambda done: endpoint.read(0, room(512), done)) == (0, errno.EBADF)
    bad = os.open(path, os.O_RDONLY)
    os.dup2(bad, endpoint.fd)  # type: ignore[attr-defined]
    os.close(bad)
    assert results(endpoint, lambda done: endpoint.write(0, room(512), done)) == (0, errno.EBADF)
    endpoint.close()
    endpoint.close()


@pytest.mark.parametrize("kind", KINDS)
def test_more_views_than_one_call_takes_and_none(kind: str, path: Path) -> None:
    endpoint = opened(kind, path)
    size = VIEWS_MAX * 2 + 5
    data = bytearray(size)
    views = IoVec(tuple(memoryview(data)[i : i + 1] for i in range(size)))
    assert results(endpoint, lambda done: endpoint.read(7, views, done)) == (size, 0)
    assert data == CONTENT[7 : 7 + size]
    assert results(endpoint, lambda done: endpoint.read(0, IoVec(), done)) == (0, 0)
    assert results(endpoint, endpoint.sync) == (0, 0)
    end = len(CONTENT)
    assert results(endpoint, lambda done: endpoint.read(end - 3, room(9), done)) == (3, 0)
    endpoint.close()


@pytest.mark.parametrize("kind", LATER)
def test_what_cannot_be_opened(kind: str, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        opened(kind, tmp_path / "none")
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", LATER)
def test_nothing_is_said_before_the_loop_asks(kind: str, path: Path) -> None:
    endpoint = opened(kind, path)
    heard: list[tuple[int, int]] = []
    endpoint.read(0, room(512), lambda size, error: heard.append((size, error)))
    bell = endpoint.fileno()
    assert bell is not None
    assert select.select([bell], [], [], 10.0)[0]
    assert heard == []
    endpoint.poll()
    assert heard == [(512, 0)]
    endpoint.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["channel", "chip", "bus"])
def test_a_reset_in_flight_leaves_no_late_write(kind: str, how: str, path: Path) -> None:
    """After it, guest memory is the guest's: what it stores there stays."""
    rig = Rig(opened(kind, path))
    machine = rig.machine
    for _ in range(20):
        machine.select(cdb_10(0x28, 0, 16))
        machine.dma_command(chip.TRANSFER_INFORMATION, DVMA, 8192, WRITE)
        if how == "channel":
            machine.espdma.write(D_CSR, espdma.RESET)
        else:
            machine.esp.write(reg.COMMAND, chip.CHIP_RESET if how == "chip" else chip.BUS_RESET)
        for addr in (0x1000, 0x4000):
            machine.memory.write(PhysAddr(addr), b"\xee" * 4096)
        rig.endpoint.poll()
        machine.esp.poll(0.0)
        assert machine.esp.queue.pending == 0
        for addr in (0x1000, 0x4000):
            assert machine.memory.read(PhysAddr(addr), 4096) == b"\xee" * 4096
        machine.ready()
    rig.close()


def test_a_withdrawal_waits_for_a_thread_that_has_begun(path: Path) -> None:
    """And takes back what none has begun."""
    image = ThreadedImage(path, threads=1)
    begun, may_end = threading.Event(), threading.Event()
    heard: list[int] = []

    def slow() -> tuple[int, int]:
        begun.set()
        assert may_end.wait(10)
        return 1, 0

    image._start(slow, lambda size, _error: heard.append(size))
    data = bytearray(512)
    image.read(0, IoVec.of(data), lambda size, _error: heard.append(size))
    assert begun.wait(10)
    withdrawn = threading.Thread(target=image.withdraw)
    withdrawn.start()
    assert withdrawn.is_alive()
    may_end.set()
    withdrawn.join(10)
    image.poll()
    assert (heard, bytes(data)) == ([], bytes(512))
    image.close()


def test_a_withdrawal_cancels_what_the_kernel_has(path: Path) -> None:
    """A read of an empty pipe never ends by itself."""
    image = opened("uring", path)
    assert isinstance(image, UringImage)
    reader, writer = os.pipe()
    os.dup2(reader, image.fd)
    heard: list[int] = []
    data = bytearray(512)
    image.read(0, IoVec.of(data), lambda size, _error: heard.append(size))
    image.withdraw()
    os.write(writer, b"late")
    image.poll()
    assert (heard, bytes(data)) == ([], bytes(512))
    for fd in (reader, writer):
        os.close(fd)
    image.close()


def test_more_requests_than_the_queue_has_room_for(path: Path) -> None:
    image = opened("uring", path)
    heard: list[tuple[int, int]] = []
    for _ in range(3 * image_uring.ENTRIES):
        image.read(0, room(512), lambda size, error: heard.append((size, error)))
    deadline = time.monotonic() + 10
    while len(heard) < 3 * image_uring.ENTRIES and time.monotonic() < deadline:
        image.poll()
    assert heard.count((512, 0)) == image_uring.ENTRIES
    assert heard.count((0, errno.EAGAIN)) == 2 * image_uring.ENTRIES
    image.close()


def room(size: int) -> IoVec:
    return IoVec.of(bytearray(size))


def results(
    endpoint: Endpoint, start: Callable[[Callable[[int, int], None]], None]
) -> tuple[int, int]:
    """What one request comes to."""
    heard: list[tuple[int, int]] = []
    start(lambda size, error: heard.append((size, error)))
    deadline = time.monotonic() + 10
    while not heard and time.monotonic() < deadline:
        endpoint.poll()
    (result,) = heard
    return result
