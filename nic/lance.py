"""The Am7990 LANCE: registers in front, rings in guest memory behind, a port for the stack beside.

What goes where: csr.py has the registers and their access rules, init_block.py and ring.py what
lies in memory, filter.py the addresses, receiver.py and transmitter.py one ring each, busmaster.py
the way to memory. This file is the chip: it obeys the commands of CSR0, turns a memory error into
MERR, and gives the stack `claim`, `frames`, `fileno` and `poll`.

The embedding emulator calls `read` and `write` (offset 0 RDP, 2 RAP, sixteen bits) and passes an
`interrupt(level)` that is called on each change of the pin. `bus` is anything with
`open(Transfer)`. A register access does no more than INIT's one read of the init block and, after
a refused claim, one look for room; it never raises. Frames move when the loop calls `frames()` and
`poll(now)`:

- TDMD and STRT ring the doorbell: `fileno()` is readable, and `frames()` walks the TX ring.
- `poll` runs completions, and looks whether TX descriptors wait that no TDMD announced. A chip
  looks every 1.6 ms. So does this one, while frames keep turning up that way; else every 50 ms,
  which costs an idle machine next to nothing and forgets no driver.
- After a claim was refused, each register access and each `poll` looks whether there is room now,
  every millisecond while the chip is on; then the doorbell rings.

In loopback the frames of the TX ring go to the RX ring: internally in `poll`, with nothing on the
wire; externally in `frames`, on their way out. With DTCR=0 the FCS is appended and not checked,
with DTCR=1 the guest's own is checked. Chosen where the book leaves it open: internal loopback
takes frames of any length, in chains as well; the filter hashes group addresses in either setting
of DTCR.

STRT before INIT turns nothing on: where the rings are is not known. INIT while INIT is set waits
for STOP. INIT and STRT in one write are done in this order.

Differs from the chip in:
- wire time is instant; a frame is on the wire or in memory whole. No collisions but MODE.COLL's,
  no late collision, no loss of carrier, no deferral, no heartbeat: LCOL, LCAR, DEF, ONE, MORE and
  CERR stay 0, and TDR too. DRTY and EMBA change nothing.
- no bits are lost: FRAM and OFLO never happen. CRC does, where `receive` is given a bad FCS.
- buffers of a chain are given back together, when the whole frame is done, not one by one.
- room is claimed before a frame has come, so the descriptors that a frame takes may have been read
  milliseconds earlier; a claim without room waits instead of MISS. After STOP the bytes of a
  claim that was open may still reach buffers that the guest has taken back; descriptors never
  change.
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

from collections.abc import Iterator, Sequence
from typing import Final

from dma.iovec import Buffer, IoVec
from dma.transfer import DmaPath, Lanes
from nic import csr, init_block
from nic.busmaster import BusMaster
from nic.csr import Interrupt, Registers
from nic.doorbell import Doorbell
from nic.filter import FCS_LEN, FCS_RESIDUE, AddressFilter, crc_of, fcs_of
from nic.init_block import INIT_BLOCK_LEN, InitBlock
from nic.port import Frame
from nic.receiver import ADDRESS_LEN, FRAME_MIN, HEADER_LEN, MCNT_MAX, Receiver, RxClaim
from nic.ring import CRC, ERR, TMD3_RTRY, DescriptorRing
from nic.transmitter import Transmitter, TxFrame

FRAME_MAX: Final = 1514  # bytes without FCS
FRAMES_PER_CALL: Final = 64  # what one `frames()` yields at most
COMPLETIONS_PER_POLL: Final = 256  # per direction

TX_POLL_INTERVAL: Final = 0.0016  # seconds, Am7990 datasheet
TX_POLL_IDLE: Final = 0.05  # seconds: nothing has turned up unannounced lately
TX_POLL_ACTIVE_FOR: Final = 0.1  # seconds after a frame that did
ROOM_POLL_INTERVAL: Final = 0.001  # seconds, while a claim is refused

COUNTERS: Final = (
    *("rx_frames", "rx_octets", "rx_miss", "rx_buff", "rx_filtered", "rx_runt", "rx_giant"),
    *("rx_crc", "rx_off", "rx_refused", "rx_slid_octets"),
    *("tx_frames", "tx_octets", "tx_underflow", "tx_bad_fcs", "tx_babl", "tx_jabber"),
    *("merr", "init"),
)

_NONE: Final = -1  # no claim is waiting


class Lance:
    """One chip. Is a Port (nic/port.py)."""

    offload = False

    def __init__(
        self, bus: DmaPath, interrupt: Interrupt | None = None, *, max_frame: int = FRAME_MAX
    ) -> None:
        if not FRAME_MIN <= max_frame <= MCNT_MAX - FCS_LEN:
            raise ValueError(f"max_frame {max_frame}: 60 to 4091 bytes")
        self.max_frame = max_frame
        self.stats = dict.fromkeys(COUNTERS, 0)
        self._registers = Registers(interrupt)
        self._master = BusMaster(bus, self._memory_error)
        self._doorbell = Doorbell()
        self._mode = 0
        self._receiver: Receiver | None = None  # from INIT until STOP
        self._transmitter: Transmitter | None = None
        self._refused = _NONE  # bytes: the smallest claim that was refused
        self._tx_look_at = 0.0
        self._tx_active_until = 0.0

    # The emulator's side

    def read(self, offset: int) -> int:
        """A 16-bit read of a port."""
        if self._refused != _NONE:
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
        if self._refused != _NONE:
            self._look_for_room()

    def reset(self) -> None:
        """The RESET pin."""
        self._halt()
        self._registers.reset()

    def receive(self, frame: Buffer | IoVec, fcs: bytes | None = None) -> bool:
        """A frame comes from the wire, unasked. False: the guest will not see it whole.

        Without `fcs` the frame is padded to 60 bytes and gets the right one.
        """
        octets = frame if isinstance(frame, IoVec) else IoVec.of(frame)
        length = len(octets)
        receiver = self._receiver
        if receiver is None or not self._registers.csr0 & csr.RXON or self._is_internal():
            return self._drop("rx_off")
        if length + FCS_LEN > MCNT_MAX:
            return self._drop("rx_giant")
        if length < HEADER_LEN or (fcs is not None and length < FRAME_MIN):
            return self._drop("rx_runt")
        if not receiver.is_addressed(bytes(octets.slice(0, ADDRESS_LEN))):
            return False
        if fcs is None:
            octets += IoVec.of(bytes(max(0, FRAME_MIN - length)))
            fcs = fcs_of(octets.segments)
        octets += IoVec.of(fcs)
        return receiver.receive(octets, self._check_fcs(octets))

    # The stack's side

    def claim(self, size: int, headers: Sequence[int] = ()) -> RxClaim | None:
        if not HEADER_LEN <= size <= self.max_frame:
            raise ValueError(f"claim of {size} bytes: {HEADER_LEN} to {self.max_frame}")
        receiver = self._receiver
        if receiver is not None and not self._is_internal():
            claim = receiver.claim(size, headers)
            if claim is not None:
                return claim
        self._refused = size if self._refused == _NONE else min(size, self._refused)
        self.stats["rx_refused"] += 1
        return None

    def frames(self) -> Iterator[Frame]:
        for _ in range(FRAMES_PER_CALL):
            frame = self._transmitter.next_frame() if self._transmitter else None
            if frame is None:
                self._registers.clear(csr.TDMD)
                self._doorbell.clear()
                return
            if self._mode & init_block.LOOP:
                self._loop_back(frame)
            if self._is_internal():
                frame.release()
            else:
                yield frame

    def fileno(self) -> int:
        return self._doorbell.fileno()

    def poll(self, now: float) -> float | None:
        receiver, transmitter = self._receiver, self._transmitter
        if receiver is None or transmitter is None:
            return None
        # An interrupt handler may run in here, and may do anything to the chip.
        done = receiver.queue.run(COMPLETIONS_PER_POLL)
        done = max(done, transmitter.queue.run(COMPLETIONS_PER_POLL))
        is_more = done == COMPLETIONS_PER_POLL
        if self._is_internal():
            before = self.stats["tx_frames"]
            next(self.frames(), None)  # all go round inside; none comes out
            is_more |= self.stats["tx_frames"] != before
        if self._refused != _NONE:
            self._look_for_room()
        return now if is_more else self._poll_rings(now)

    def close(self) -> None:
        """Give the doorbell's descriptor back."""
        self._doorbell.close()

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
        self._mode = block.mode
        lanes = Lanes.STRAIGHT if registers.csr3 & csr.BSWP else Lanes.EXCHANGED
        # In loopback the guest's FCS is looked at where the frame is received.
        has_fcs = bool(block.mode & init_block.DTCR and not block.mode & init_block.LOOP)
        accepts = AddressFilter(block.padr, block.ladrf, bool(block.mode & init_block.PROM))
        self._receiver = Receiver(
            DescriptorRing(block.rx_ring, master), accepts, lanes, master, registers, self.stats
        )
        self._transmitter = Transmitter(
            DescriptorRing(block.tx_ring, master), lanes, has_fcs, master, registers, self.stats
        )
        registers.raise_status(csr.IDON)

    def _start(self) -> None:
        if self._receiver is None:
            return
        on = csr.RXON | csr.TXON
        if self._mode & init_block.DRX:
            on &= ~csr.RXON
        if self._mode & init_block.DTX:
            on &= ~csr.TXON
        self._registers.raise_status(on)
        if on & csr.TXON:
            self._doorbell.set()

    def _halt(self) -> None:
        """The rings are forgotten, and with them every claim and every frame that is out."""
        if self._receiver is not None:
            self._receiver.halt()
        if self._transmitter is not None:
            self._transmitter.halt()
        self._receiver = None
        self._transmitter = None
        self._mode = 0

    def _memory_error(self) -> None:
        """No READY from the bus: both sides are off until STOP and INIT."""
        self.stats["merr"] += 1
        self._registers.clear(csr.RXON | csr.TXON)
        if self._receiver is not None:
            self._receiver.halt()
        if self._transmitter is not None:
            self._transmitter.halt()
        self._registers.raise_status(csr.MERR)

    # Polling

    def _look_for_room(self) -> None:
        if self._is_internal():
            return  # no claim is granted, however much room there is
        if self._receiver is not None and self._receiver.has_room(self._refused):
            self._refused = _NONE
            self._doorbell.set()

    def _poll_rings(self, now: float) -> float | None:
        """Ring for frames that no TDMD announced; when to look again, at either ring."""
        deadline: float | None = None
        csr0 = self._registers.csr0
        if csr0 & csr.TXON:
            if now >= self._tx_look_at:
                self._look_for_frames(now)
            deadline = self._tx_look_at
        if self._refused != _NONE and csr0 & csr.RXON:
            deadline = now + ROOM_POLL_INTERVAL
        return deadline

    def _look_for_frames(self, now: float) -> None:
        if (
            not self._doorbell.is_set
            and self._transmitter is not None
            and self._transmitter.is_waiting()
        ):
            self._doorbell.set()
            self._tx_active_until = now + TX_POLL_ACTIVE_FOR
        is_active = now < self._tx_active_until
        self._tx_look_at = now + (TX_POLL_INTERVAL if is_active else TX_POLL_IDLE)

    # Frames that are special

    def _is_internal(self) -> bool:
        """Internal loopback: cut off from the wire."""
        internal = init_block.LOOP | init_block.INTL
        return self._mode & internal == internal

    def _check_fcs(self, octets: IoVec) -> int:
        """The status that a frame's own FCS earns."""
        if crc_of(octets.segments) == FCS_RESIDUE:
            return 0
        self.stats["rx_crc"] += 1
        return CRC | ERR

    def _drop(self, counter: str) -> bool:
        self.stats[counter] += 1
        return False

    def _loop_back(self, frame: TxFrame) -> None:
        """What the transmitter sends, the receiver hears; inside, MISS says nothing."""
        octets, status = frame.iov, 0
        is_internal = self._is_internal()
        if is_internal and self._mode & init_block.COLL:
            frame.tmd3 = TMD3_RTRY
            return
        if self._mode & init_block.DTCR:
            status = self._check_fcs(octets)
            frame.iov = octets.slice(0, len(octets) - FCS_LEN)
        else:
            octets += IoVec.of(fcs_of(octets.segments))
        receiver = self._receiver
        dst = bytes(octets.slice(0, ADDRESS_LEN))
        if receiver is None or not self._registers.csr0 & csr.RXON:
            return
        if FCS_LEN < len(octets) <= MCNT_MAX and receiver.is_addressed(dst):
            receiver.receive(octets, status, may_miss=not is_internal)
