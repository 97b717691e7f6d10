"""The Am7990 LANCE: registers in front, rings in guest memory behind, a port for the stack beside.

What goes where: csr.py has the registers and their access rules, init_block.py and ring.py what
lies in memory, filter.py the addresses, receiver.py and transmitter.py one ring each, busmaster.py
the way to memory, and engine.py what makes a port of all this for every chip of the family. This
file is the chip: it obeys the commands of CSR0.

The embedding emulator calls `read` and `write` (offset 0 RDP, 2 RAP, sixteen bits) and passes an
`interrupt(level)` that is called on each change of the pin. `bus` is anything with
`open(Transfer)`. A register access does no more than INIT's one read of the init block and, after
a refused claim, one look for room; it never raises. Frames move when the loop calls `frames()` and
`poll(now)`, as the engine has it.

STRT before INIT turns nothing on: where the rings are is not known. INIT while INIT is set waits
for STOP. INIT and STRT in one write are done in this order.

Differs from the chip in:
- wire time is instant; a frame is on the wire or in memory whole. No collisions but MODE.COLL's,
  no late collision, no loss of carrier, no deferral, no heartbeat: LCOL, LCAR, DEF, ONE, MORE and
  CERR stay 0, and TDR too. DRTY and EMBA change nothing.
- no bits are lost: FRAM and OFLO never happen. CRC does, where `receive` is given a bad FCS.
- buffers of a chain are given back together, when the whole frame is done, not one by one.
- room is claimed before a frame has come, so the descriptors that a frame takes may have been read
  milliseconds earlier; a claim without room waits instead of MISS. Bytes that are on their way
  into a claim when the chip is stopped may still come while the write of STOP lasts, not after it.
- `frames` looks at as many descriptors as there are frames, ahead of giving any back; the chip
  reads one frame at a time.
- TX polling: see above. TDMD stays 1 until the loop has called `frames`.
- a descriptor is translated when it is loaded, for writing as well: a ring on a read-only page is
  a memory error at the first look, and a page that is unmapped later still gets the status.
- buffers of any length are taken (the book wants 64 bytes for receiving, 100 for a chain's
  first); frames of less than 60 bytes are padded when received, and sent as they are.
- a frame of more than 4,091 bytes is not received: MCNT could not count it.
- CSR1..3 read as stored while STOP=0. No test modes, no timing of READY, no ACON or BCON.
"""

from __future__ import annotations

from dma.transfer import DmaPath, Lanes
from nic import csr, init_block
from nic.csr import Interrupt, Registers
from nic.engine import (
    COUNTERS,
    FRAME_MAX,
    FRAMES_PER_CALL,
    ROOM_POLL_INTERVAL,
    TX_POLL_ACTIVE_FOR,
    TX_POLL_IDLE,
    TX_POLL_INTERVAL,
    Engine,
)
from nic.filter import AddressFilter
from nic.init_block import INIT_BLOCK_LEN, InitBlock
from nic.receiver import Receiver
from nic.ring import DescriptorRing
from nic.transmitter import Transmitter, TxRules

__all__ = [
    "COUNTERS",
    "FRAMES_PER_CALL",
    "FRAME_MAX",
    "ROOM_POLL_INTERVAL",
    "TX_POLL_ACTIVE_FOR",
    "TX_POLL_IDLE",
    "TX_POLL_INTERVAL",
    "Lance",
]


class Lance(Engine):
    """One chip. Is a Port (nic/port.py)."""

    def __init__(
        self, bus: DmaPath, interrupt: Interrupt | None = None, *, max_frame: int = FRAME_MAX
    ) -> None:
        super().__init__(bus, Registers(interrupt), max_frame)

    # The emulator's side

    def read(self, offset: int) -> int:
        """A 16-bit read of a port."""
        if self._refused >= 0:
            self._look_for_room()
        if offset == csr.RDP:
            return self._registers.read()
        return self._registers.rap if offset == csr.RAP else 0

    def write(self, offset: int, value: int) -> None:
        """A 16-bit write of a port. What is no port takes it without effect."""
        value &= 0xFFFF
        registers = self._registers
        if offset == csr.RAP:
            registers.rap = value & 3
        elif offset == csr.RDP and registers.rap:
            registers.write_address(value)
        elif offset == csr.RDP:
            self._obey(registers.write_csr0(value))
        if self._refused >= 0:
            self._look_for_room()

    def reset(self) -> None:
        """The RESET pin."""
        self._halt()
        self._registers.reset()

    # Commands

    def _obey(self, commands: int) -> None:
        if commands & csr.STOP:
            self._halt()
            return
        if commands & csr.INIT:
            self._initialize()
        if commands & (csr.INIT | csr.STRT) and self._registers.csr0 & csr.STRT:
            self._start()
        if commands & csr.TDMD:
            self._doorbell.set()

    def _initialize(self) -> None:
        self._halt()
        self.stats["init"] += 1
        octets = self._master.load(self._registers.init_block_addr, INIT_BLOCK_LEN)
        if octets is None:
            return
        block = InitBlock.parse(octets)
        registers, master = self._registers, self._master
        lanes = Lanes.STRAIGHT if registers.csr3 & csr.BSWP else Lanes.EXCHANGED
        # In loopback the guest's FCS is looked at where the frame is received.
        has_fcs = bool(block.mode & init_block.DTCR and not block.mode & init_block.LOOP)
        accepts = AddressFilter(block.padr, block.ladrf, bool(block.mode & init_block.PROM))
        receiver = Receiver(
            DescriptorRing(block.rx_ring, master), accepts, lanes, master, registers, self.stats
        )
        transmitter = Transmitter(
            DescriptorRing(block.tx_ring, master),
            lanes,
            TxRules(has_fcs),
            master,
            registers,
            self.stats,
        )
        self._begin(block.mode, receiver, transmitter)
        registers.raise_status(csr.IDON)
