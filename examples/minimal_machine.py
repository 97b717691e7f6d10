"""An emulator author's machine: RAM, a bus, a Lance chip, a CPU loop; and this network under it.

    python examples/minimal_machine.py

The guest gets a lease by DHCP and fetches a page from a web server on the host's 127.0.0.1, which
it reaches at 10.0.2.2. In a real emulator the CPU runs guest code, whose driver reads and writes
the chip's two registers; here a driver in Python does that, with the rings in the machine's RAM.
"""

from __future__ import annotations

import slirp
from dma.iovec import IoVec, Ranges
from dma.transfer import DmaFault, Transfer
from nic.lance import Lance
from slirp.guest.driver import LanceDriver
from toy_guest import ToyGuest
from toy_host import web_server

RAM_LEN = 1 << 20  # bytes


class Bus:
    """What the chip sees: RAM at address 0. A machine with an IOMMU translates in `open`."""

    def __init__(self) -> None:
        self._ram = memoryview(bytearray(RAM_LEN))

    def open(self, transfer: Transfer) -> IoVec:
        """The chip's addresses as views of host memory; DmaFault becomes MERR in its CSR0."""
        return self._views(transfer.ranges)

    def slices(self, addr: int, length: int) -> IoVec:
        """The same for the CPU's side: the driver's loads and stores."""
        return self._views([(addr, length)])

    def _views(self, ranges: Ranges) -> IoVec:
        for addr, length in ranges:
            if addr + length > RAM_LEN:
                raise DmaFault("bus", addr, "no RAM there")
        return IoVec(tuple(self._ram[addr : addr + length] for addr, length in ranges))


class Machine:
    """RAM, chip, interrupt line."""

    def __init__(self) -> None:
        self.interrupt = False
        self.bus = Bus()
        self.lance = Lance(self.bus, self._set_interrupt)
        self.driver = LanceDriver(self.bus, self.lance)

    def _set_interrupt(self, level: bool) -> None:
        self.interrupt = level

    def run_cpu(self, guest: ToyGuest) -> None:
        """A slice of guest code: the interrupt handler, and what the frames lead to."""
        if self.interrupt:
            self.driver.handle_interrupt()
        for frame in self.driver.receive():
            guest.handle_frame(frame)


def main() -> None:
    with web_server(b"hello from the host\n") as port, slirp.Network() as net:
        machine = Machine()
        net.attach(machine.lance)
        guest = ToyGuest(machine.driver.send, fetch=("10.0.2.2", port))
        machine.driver.start()
        guest.start()
        while not guest.is_done:
            machine.run_cpu(guest)
            net.poll(1.0)  # at most a second; a machine with work to do says poll(0)
        print(guest.received.decode())
        print(f"{machine.lance.stats['rx_frames']} frames received through the ring")
        machine.lance.close()


if __name__ == "__main__":
    main()
