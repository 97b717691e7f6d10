"""A file that is truncated while it is mapped: zeros from then on, and the process lives."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from dma import sigbus
from dma.iovec import PhysAddr
from dma.shared import SharedMemory, is_lost, map_whole

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="struct sigaction is Linux's")

SIZE = 4 * mmap.PAGESIZE


@pytest.fixture
def fd() -> Iterator[int]:
    """It cannot be sealed."""
    fd = os.memfd_create("theirs")
    os.pwrite(fd, b"theirs" * (SIZE // 6 + 1), 0)
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


ACCESSES: dict[str, Callable[[memoryview], object]] = {
    "one byte": lambda view: view[5],
    "the last byte": lambda view: view[-1],
    "a copy": bytes,
    "words": lambda view: view.cast("Q").tolist(),
    "a join": lambda view: b"".join((view[:10], view[-10:])),
    "a search": lambda view: view[3:] == b"x" * (len(view) - 3),
    "a number": lambda view: int.from_bytes(view[8:16], "little"),
}


@pytest.mark.parametrize("access", ACCESSES.values(), ids=ACCESSES)
@pytest.mark.parametrize("is_writable", [True, False])
def test_a_truncated_file_reads_as_zeros(
    fd: int, access: Callable[[memoryview], object], is_writable: bool
) -> None:
    view = map_whole(fd, is_writable=is_writable)
    assert bytes(view[:6]) == b"theirs"
    before = sigbus.faults
    os.ftruncate(fd, 0)
    assert not is_lost(view)
    access(view)
    assert is_lost(view)
    assert sigbus.faults == before + 1
    assert bytes(view) == bytes(SIZE)
    assert sigbus.faults == before + 1


def test_what_is_written_then_goes_nowhere(fd: int) -> None:
    view = map_whole(fd)
    os.ftruncate(fd, 0)
    view[100:104] = b"ours"
    assert is_lost(view)
    os.ftruncate(fd, SIZE)
    assert os.pread(fd, 4, 100) == bytes(4)
    assert bytes(view[100:104]) == b"ours"


def test_a_file_that_is_shorter_is_lost_where_it_was(fd: int) -> None:
    """And all of it: nobody can go on with half a machine's memory."""
    view = map_whole(fd)
    os.ftruncate(fd, mmap.PAGESIZE)
    assert bytes(view[:6]) == b"theirs"
    assert not is_lost(view)
    assert view[2 * mmap.PAGESIZE] == 0
    assert is_lost(view)
    assert bytes(view[:6]) == bytes(6)


def test_other_mappings_are_as_they_were(fd: int) -> None:
    other = os.memfd_create("another")
    os.pwrite(other, b"another", 0)
    lost, kept = SharedMemory(), SharedMemory()
    lost.add(0, 0x1000, fd, 0)
    kept.add(0, 7, other, 0)
    os.ftruncate(fd, 0)
    assert lost.read(PhysAddr(0), 6) == bytes(6)
    assert lost.is_lost
    assert not kept.is_lost
    assert kept.read(PhysAddr(0), 7) == b"another"
    os.close(other)


def test_nothing_is_kept_of_a_mapping_that_is_gone(fd: int) -> None:
    gc.collect()
    before = len(sigbus._maps)
    view = map_whole(fd)
    assert len(sigbus._maps) == before + 1
    os.ftruncate(fd, 0)
    assert view[0] == 0
    del view
    gc.collect()
    assert len(sigbus._maps) == before


def test_a_fault_elsewhere_ends_the_process(fd: int) -> None:
    """It is no mapping of ours, so it is whoever's it was before."""
    ours = map_whole(fd)
    plain = mmap.mmap(fd, SIZE)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)  # not pytest's
        sigbus._installed.clear()
        sigbus._install()
        os.ftruncate(fd, 0)
        ours[0] = 1
        plain[0] = 1
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGBUS
