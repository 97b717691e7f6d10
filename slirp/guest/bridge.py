"""A bridge between a TAP device and a Lance: a Linux namespace as the guest behind the chip.

The namespace's kernel is the TCP, the Python driver is the machine, and between them are whole
frames:

    namespace ⇄ TAP ⇄ Bridge ⇄ LanceDriver ⇄ Lance ⇄ LEDMA ⇄ IOMMU ⇄ memory ⇄ Network

Both sides live in the network's loop: the TAP is watched, and so is a bell that the interrupt line
rings. A frame from the namespace that the TX ring has no room for is kept, and the TAP left alone
until the chip has given descriptors back: the kernel's queue is where frames wait. Towards the
namespace every frame is written at once; what the TAP refuses is lost and counted.

The TAP is opened without IFF_VNET_HDR (`nic.tap.open_tap(name, vnet=False)`), which leaves the
kernel no offload: it hands over frames of at most MTU + 14 bytes with their checksums made.

    driver = LanceDriver(board, board.lance, mode=PROM)
    network.attach(board.lance)
    bridge = Bridge(network, board, driver, tap)
    driver.start()
    network.run()

A TAP that goes away shows as OSError out of the loop.

Does not do: open or close the TAP, learn addresses (the chip's MAC has to be the device's, or the
chip promiscuous).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from nic.doorbell import Doorbell

if TYPE_CHECKING:
    from slirp.guest.driver import LanceDriver
    from slirp.guest.machine import Board
    from slirp.network import Network

FRAMES_PER_TURN: Final = 32  # frames that one look at the TAP takes
READ_LEN: Final = 65536  # bytes


class Bridge:
    """One TAP device, by descriptor, and one driven chip on a network's loop."""

    def __init__(self, network: Network, board: Board, driver: LanceDriver, tap: int) -> None:
        os.set_blocking(tap, False)
        self.up = 0  # frames from the namespace
        self.down = 0
        self.waits = 0  # times that the TX ring had no room
        self.refused = 0  # frames that the TAP did not take
        self._network = network
        self._board = board
        self._driver = driver
        self._tap = tap
        self._held: bytes | None = None  # read from the TAP, not in the ring yet
        self._bell = Doorbell()
        board.on_interrupt = self._bell.set
        network.watch(tap, self._handle_tap)
        network.watch(self._bell.fileno(), self._handle_bell)

    def close(self) -> None:
        """Leave the loop; the TAP stays its owner's."""
        self._board.on_interrupt = lambda: None
        self._network.unwatch(self._tap)
        self._network.unwatch(self._bell.fileno())
        self._bell.close()

    def _handle_bell(self) -> None:
        self._bell.clear()
        while self._board.interrupt and self._driver.handle_interrupt():
            self._write()
        if self._held is not None and self._driver.send(self._held):
            self._held = None
            self.up += 1
            self._network.watch(self._tap, self._handle_tap)

    def _write(self) -> None:
        for frame in self._driver.receive():
            try:
                os.write(self._tap, frame)
            except OSError:  # the device is down, or its queue is full
                self.refused += 1
            else:
                self.down += 1

    def _handle_tap(self) -> None:
        sent = False
        for frame in self._read():
            if not self._driver.send(frame, kick=False):
                self._held = frame
                self.waits += 1
                self._network.unwatch(self._tap)
                break
            sent = True
            self.up += 1
        if sent:
            self._driver.kick()

    def _read(self) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            for _ in range(FRAMES_PER_TURN):
                yield os.read(self._tap, READ_LEN)
