"""What the exchange of byte lanes costs, and what the DMA path costs around it.

    python -m benchmarks.lanes

First table: ways to exchange the bytes of each 16-bit word of a view of guest memory, by length.
`numpy in place` is what dma/lanes.py does in place and `words, copied back` is what a bounce buffer
comes to (an array that swaps itself, and one copy). The others are why it is not done like that.

Second table: one transfer through LEDMA, IOMMU and memory, opened and completed, without the host's
own I/O: a descriptor of 8 bytes, and a frame as the Lance claims it, in its four ranges.

Times are the best of several runs, in µs per call; the results go to benchmarks/out/lanes.json too.
"""

from __future__ import annotations

import json
import sys
import timeit
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from dma.iommu import BASE, CTRL, Iommu
from dma.iovec import PhysAddr, Range
from dma.lanes import exchange_lanes
from dma.ledma import E_BASE_ADDR, Ledma, Mode
from dma.memory import GuestMemory
from dma.transfer import Direction, Lanes, Transfer

OUT: Final = Path(__file__).parent / "out" / "lanes.json"
LENGTHS: Final = (14, 60, 1460, 1518, 65536)  # bytes
RUNS: Final = 7
RUN_FOR: Final = 0.02  # seconds

FRAME: Final = ((0x1000, 14), (0x100E, 20), (0x1022, 20), (0x1036, 1460))
FRAME_LEN: Final = 1514
DESCRIPTOR: Final = ((0x3000, 8),)
TABLE: Final = 0x100000  # physical address of the IOPTEs


def microseconds(call: Callable[[], object]) -> float:
    """Of one call: the best mean of several runs."""
    call()
    number = max(1, int(RUN_FOR / max(timeit.timeit(call, number=10) / 10, 1e-7)))
    return min(timeit.repeat(call, number=number, repeat=RUNS)) / number * 1e6


# Ways to exchange


def strided_view(view: memoryview) -> None:
    odd = bytes(view[1::2])
    view[1::2] = view[::2]
    view[::2] = odd


def strided_bytearray(view: memoryview) -> None:
    octets = bytearray(view)
    octets[::2], octets[1::2] = octets[1::2], octets[::2]
    view[:] = octets


def words_copied_back(view: memoryview) -> None:
    words = array("H", bytes(view))
    words.byteswap()
    view[:] = memoryview(words).cast("B")


def numpy_reversed_pairs(view: memoryview) -> None:
    import numpy as np

    pairs = np.frombuffer(view, np.uint8).reshape(-1, 2)
    pairs[:] = pairs[:, ::-1].copy()


WAYS: Final[dict[str, Callable[[memoryview], None]]] = {
    "numpy in place": exchange_lanes,
    "words, copied back": words_copied_back,
    "bytearray, strided": strided_bytearray,
    "numpy, reversed pairs": numpy_reversed_pairs,
    "memoryview, strided": strided_view,
}


def measure_ways() -> dict[str, dict[str, float]]:
    """µs by way and length."""
    with GuestMemory(0x20000) as memory:
        views = {str(length): memory.view(PhysAddr(0x1000), length) for length in LENGTHS}
        return {
            name: {length: microseconds(partial(way, view)) for length, view in views.items()}
            for name, way in WAYS.items()
        }


# Ways through the path


def build(memory: GuestMemory, mode: Mode) -> Ledma:
    """A LEDMA on an IOMMU whose first pages lie apart in memory."""
    iommu = Iommu(memory)
    iommu.write(CTRL, 0x00000009)
    iommu.write(BASE, TABLE >> 4)
    for index in range(16):
        iopte = (0x10 + 2 * index) << 8 | 0x06
        memory.write(PhysAddr(TABLE + 4 * index), iopte.to_bytes(4, "big"))
    ledma = Ledma(iommu, mode)
    ledma.write(E_BASE_ADDR, 0xFC000000)
    return ledma


def passage(
    ledma: Ledma, direction: Direction, ranges: tuple[Range, ...], lanes: Lanes, size: int
) -> Callable[[], None]:
    def once() -> None:
        transfer = Transfer(direction, ranges, lanes)
        ledma.open(transfer)
        transfer.complete(size)

    return once


def measure_path() -> dict[str, float]:
    """µs from the device's addresses to host views, and completions."""
    with GuestMemory(0x200000) as memory:
        in_place, bounce = build(memory, "in-place"), build(memory, "bounce")
        to, of = Direction.TO_DEVICE, Direction.FROM_DEVICE
        straight, exchanged = Lanes.STRAIGHT, Lanes.EXCHANGED
        calls = {
            "descriptor": passage(in_place, to, DESCRIPTOR, straight, 8),
            "to the guest, BSWP=1": passage(in_place, of, FRAME, straight, FRAME_LEN),
            "to the guest, BSWP=0 in place": passage(in_place, of, FRAME, exchanged, FRAME_LEN),
            "to the guest, BSWP=0 bounced": passage(bounce, of, FRAME, exchanged, FRAME_LEN),
            "from the guest, BSWP=1": passage(in_place, to, FRAME, straight, FRAME_LEN),
            "from the guest, BSWP=0 bounced": passage(bounce, to, FRAME, exchanged, FRAME_LEN),
        }
        return {name: microseconds(call) for name, call in calls.items()}


def main() -> None:
    ways = measure_ways()
    path = measure_path()
    write = sys.stdout.write
    write(f"{'lane exchange, µs for':<32}" + "".join(f"{n:>8}" for n in LENGTHS) + " bytes\n")
    for name, row in ways.items():
        write(f"  {name:<30}" + "".join(f"{row[str(n)]:8.2f}" for n in LENGTHS) + "\n")
    write("\nLEDMA → IOMMU → memory, µs per transfer\n")
    for name, cost in path.items():
        write(f"  {name:<30}{cost:8.2f}\n")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"exchange_us": ways, "path_us": path}, indent=2) + "\n")


if __name__ == "__main__":
    main()
