"""What one frame costs in the Lance, step by step.

    python -m benchmarks.lance

The machine without a CPU (slirp/guest/machine.py): Lance, LEDMA, IOMMU, memory; and the Python
driver. Frames of 1,514 bytes in batches of eight, as a loop handles them. Nobody puts bytes into
the claims or takes them out of the frames: that is the host's I/O, measured elsewhere. The columns:

    claim     search the ring, translate, open      frames    load the descriptors, translate, open
    commit    filter                                release   mark it done
    complete  FCS, lanes, status, interrupt         complete  status, interrupt
    driver    interrupt handler, ring walk          driver    copy into a buffer, ring, TDMD

Times are µs per frame, the median over turns; the results go to benchmarks/out/lance.json too.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from dma.ledma import Mode
from slirp.guest.driver import MAC, LanceDriver
from slirp.guest.machine import Board, sun4m_board

OUT: Final = Path(__file__).parent / "out" / "lance.json"
FRAME_LEN: Final = 1514  # bytes
HEADERS: Final = (14, 20, 20)
BATCH: Final = 8  # frames per turn of the loop
TURNS: Final = 1000

TO_GUEST: Final = ("claim", "commit", "complete", "driver")
FROM_GUEST: Final = ("frames", "release", "complete", "driver")


class SetUp(NamedTuple):
    """How the guest has set the chip up."""

    bswp: int
    mode: Mode
    buffer: int  # bytes


SET_UPS: Final = {
    "BSWP=1": SetUp(1, "in-place", 1544),
    "BSWP=0 in place": SetUp(0, "in-place", 1544),
    "BSWP=0 bounced": SetUp(0, "bounce", 1544),
    "BSWP=1, buffers of 256": SetUp(1, "in-place", 256),
    "BSWP=1, buffers of 128": SetUp(1, "in-place", 128),
}


class Stopwatch:
    """Seconds of each lap by step, each since the lap before it."""

    def __init__(self, steps: tuple[str, ...]) -> None:
        self.laps: dict[str, list[float]] = {step: [] for step in steps}
        self._at = time.perf_counter()

    def start(self) -> None:
        self._at = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.laps[step].append(now - self._at)
        self._at = now

    def microseconds(self) -> dict[str, float]:
        """Of one frame, by step."""
        return {step: 1e6 * median(laps) / BATCH for step, laps in self.laps.items()}


def to_guest(board: Board, driver: LanceDriver) -> dict[str, float]:
    watch = Stopwatch(TO_GUEST)
    for _ in range(TURNS):
        watch.start()
        claims = [board.lance.claim(FRAME_LEN, HEADERS) for _ in range(BATCH)]
        watch.lap("claim")
        granted = [claim for claim in claims if claim is not None]
        assert len(granted) == BATCH
        for claim in granted:
            claim.iov.copy_from(MAC)
        watch.start()
        for claim in granted:
            claim.commit(FRAME_LEN)
        watch.lap("commit")
        board.lance.poll(0.0)
        watch.lap("complete")
        driver.handle_interrupt()
        assert sum(1 for _ in driver.views()) == BATCH
        watch.lap("driver")
    return watch.microseconds()


def from_guest(board: Board, driver: LanceDriver) -> dict[str, float]:
    watch = Stopwatch(FROM_GUEST)
    octets = bytes(FRAME_LEN)
    for _ in range(TURNS):
        driver.handle_interrupt()
        watch.start()
        for _ in range(BATCH):
            assert driver.send(octets, kick=False)
        driver.kick()
        watch.lap("driver")
        frames = list(board.lance.frames())
        watch.lap("frames")
        assert len(frames) == BATCH
        for frame in frames:
            frame.release()
        watch.lap("release")
        board.lance.poll(0.0)
        watch.lap("complete")
    return watch.microseconds()


def measure(set_up: SetUp) -> dict[str, dict[str, float]]:
    """µs per frame by direction and step."""
    out = {}
    with sun4m_board(mode=set_up.mode) as board:
        driver = LanceDriver(
            board,
            board.lance,
            bswp=set_up.bswp,
            rx_buffer=set_up.buffer,
            tx_buffer=set_up.buffer,
            rx_count=128,
            tx_count=128,
            zero_copy=True,
        )
        driver.start()
        for direction, run in (("to guest", to_guest), ("from guest", from_guest)):
            out[direction] = run(board, driver)
    return out


def main() -> None:
    results = {name: measure(set_up) for name, set_up in SET_UPS.items()}
    write = sys.stdout.write
    for direction, steps in (("to guest", TO_GUEST), ("from guest", FROM_GUEST)):
        write(f"{direction + ', µs per frame':<26}" + "".join(f"{step:>10}" for step in steps))
        write(f"{'nic, dma':>10}\n")
        for name, result in results.items():
            row = result[direction]
            chip = sum(row.values()) - row["driver"]
            write(f"  {name:<24}" + "".join(f"{row[step]:10.2f}" for step in steps))
            write(f"{chip:10.2f}\n")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
