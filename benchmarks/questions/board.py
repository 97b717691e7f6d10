"""The machine that the questions are put to: guest memory, an IOMMU, and the two bridges before it.

DVMA 0xfc000000 and what follows is 32 MiB in RAM from DATA on: either page after page, or with no
page beside its neighbour (`is_scattered`). LANCE address 0 is the first byte of it.

Does not do: devices. For a Lance there is slirp/guest/machine.py.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.report import OUT
from dma import espdma, iommu, ledma
from dma.closing import Closing
from dma.espdma import Espdma
from dma.iommu import Iommu
from dma.iovec import PhysAddr
from dma.ledma import Ledma, Mode
from dma.memory import PAGE_LEN, GuestMemory

DVMA: Final = 0xFC000000
DATA: Final = 0x200000  # physical address
PAGES: Final = 8192  # of 4 KiB
TABLE: Final = 0x100000  # physical address of the IOPTEs
PLACES: Final = 5  # odd, so that multiplying by it is a permutation of the pages


class Board(Closing):
    """Memory, IOMMU, LEDMA and ESPDMA, mapped and switched on."""

    def __init__(self, *, is_scattered: bool = False, mode: Mode = "in-place") -> None:
        self._multiplier = PLACES if is_scattered else 1
        self.memory = GuestMemory(DATA + PAGES * PAGE_LEN)
        self.iommu = Iommu(self.memory)
        self.ledma = Ledma(self.iommu, mode)
        self.espdma = Espdma(self.iommu)
        table = bytearray()
        for index in range(PAGES):
            entry = self.page(index) >> 12 << 8 | iommu.IOPTE_WRITE | iommu.IOPTE_VALID
            table += entry.to_bytes(4, "big")
        self.memory.write(PhysAddr(TABLE), table)
        self.iommu.write(iommu.BASE, TABLE >> 4)
        self.iommu.write(iommu.CTRL, 0x9)  # ENAB, 64 MiB
        self.ledma.write(ledma.E_BASE_ADDR, DVMA)

    def page(self, index: int) -> int:
        """The physical address of a page of DVMA."""
        return DATA + index * self._multiplier % PAGES * PAGE_LEN

    def data(self, length: int) -> memoryview:
        """Guest memory from DATA on."""
        return self.memory.view(PhysAddr(DATA), length)

    def load_espdma(self, addr: int, direction: int) -> None:
        """As a driver has it before each transfer: enable, then the address."""
        self.espdma.write(espdma.D_CSR, espdma.EN_DMA | direction)
        self.espdma.write(espdma.D_ADDR, addr)

    def close(self) -> None:
        self.memory.close()


@contextlib.contextmanager
def file_in_memory(size: int) -> Iterator[str]:
    """The path of a file that is never on a disk."""
    fd = os.memfd_create("image", os.MFD_CLOEXEC)
    try:
        os.write(fd, os.urandom(size))
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


@contextlib.contextmanager
def file_on_disk(size: int) -> Iterator[str]:
    """The path of a file on the disk that benchmarks/out is on; `forget` works on it."""
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=OUT) as folder:
        path = Path(folder) / "image"
        with path.open("wb") as file:
            for _ in range(0, size, 1 << 20):
                file.write(os.urandom(min(size, 1 << 20)))
            file.flush()
            os.fsync(file.fileno())
        yield str(path)


def forget(fd: int) -> None:
    """Have the kernel forget what it has of a file in memory: the next read is the disk's."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
