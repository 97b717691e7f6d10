"""A driver for the Lance in Python: the second guest, for tests and for users without Unicorn.

It does what a real driver does, in the order in which one does it (sunlance, am7990): STOP, CSR3,
CSR1 and CSR2, rings and init block, INIT, wait for IDON, STRT with INEA; a frame goes out with OWN
last and TDMD after; an interrupt is read, acknowledged, its rings worked through, INEA set again.
After a memory error it starts afresh.

`memory` is anything with `slices(addr, length)` in the chip's own 24-bit addresses: a `Board`
(machine.py), or plain GuestMemory with the chip directly on it. Its area there:

    addr + 0x000  init block      + 0x400  RX ring      + 0x800  TX ring      + 0x1000  buffers

RX buffers may be as short as one likes, and frames then come in chains; TX buffers likewise. With
`bswp=0` the chip exchanges the bytes of each 16-bit word, and so does this driver, for its
caller.

Received frames wait in `receive()`, as bytes without FCS. With `zero_copy=True` they stay in the
ring until `views()` walks it: each frame as views of guest memory, as it lies there (with BSWP=0
that is exchanged), and its descriptors go back to the chip when the loop asks for the next one.

Bounds: an interrupt handles at most one turn of each ring; frames that nobody takes from
`receive()` stay at most RECEIVED_MAX.

Does not do: parse anything.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from dma.iovec import Buffer, IoVec, scatter_copy
from nic import csr
from nic.filter import FCS_LEN, FCS_RESIDUE, logical_address_filter
from nic.init_block import DTX, INIT_BLOCK_LEN, InitBlock
from nic.lance import Lance
from nic.receiver import FRAME_MIN
from nic.ring import BUFF, CRC, DESCRIPTOR_LEN, ENP, ERR, OWN, STP, Ring, bcnt

MAC: Final = bytes.fromhex("080020010203")
CSR3: Final = csr.ACON | csr.BCON  # beside BSWP, as on every Sun
RX_RING: Final = 0x400
TX_RING: Final = 0x800
BUFFERS: Final = 0x1000
ALIGNMENT: Final = 8  # bytes, of buffers
IDON_READS: Final = 100  # sunlance waits no longer
RECEIVED_MAX: Final = 1024  # frames; the oldest is let go


class Addressable(Protocol):
    """Memory as the chip addresses it."""

    def slices(self, addr: Any, length: int) -> IoVec:
        """Host views of [addr, addr + length)."""


COUNTERS: Final = (
    *("rx_frames", "rx_errors", "rx_crc", "rx_buff", "rx_bad_fcs", "tx_frames", "tx_errors"),
    *("miss", "babl", "merr", "restarts"),
)


class DriverError(Exception):
    """The chip did not do what a driver may rely on."""


class Slot:
    """One descriptor and its buffer, as the driver sees them."""

    __slots__ = ("addr", "length", "skew", "view", "words")

    def __init__(self, view: memoryview, addr: int, length: int, words: IoVec) -> None:
        self.view = view  # the descriptor's eight bytes
        self.addr = addr
        self.length = length  # bytes
        self.words = words  # the buffer, widened to whole 16-bit words
        self.skew = addr & 1

    def give(self, status: int, length: int) -> None:
        """Hand the descriptor to the chip: OWN last."""
        view = self.view
        view[0:2] = (self.addr & 0xFFFF).to_bytes(2, "big")
        view[3] = self.addr >> 16
        view[4:6] = bcnt(length).to_bytes(2, "big")
        view[6:8] = bytes(2)
        view[2] = OWN | status


class LanceDriver:
    """Drives one chip."""

    def __init__(
        self,
        memory: Addressable,
        lance: Lance,
        *,
        addr: int = 0,
        mac: bytes = MAC,
        rx_count: int = 32,
        rx_buffer: int = 1544,
        rx_offset: int = 0,
        tx_count: int = 32,
        tx_buffer: int = 1544,
        bswp: int = 1,
        mode: int = 0,
        groups: Iterable[bytes] = (),
        zero_copy: bool = False,
        check_fcs: bool = False,
    ) -> None:
        if addr % ALIGNMENT:
            raise ValueError(f"addr {addr:#x}: rings need a multiple of {ALIGNMENT}")
        for name, length in (("rx_buffer", rx_buffer), ("tx_buffer", tx_buffer)):
            if not 1 <= length <= 4096:
                raise ValueError(f"{name} {length}: 1 to 4096 bytes")
        self.stats = dict.fromkeys(COUNTERS, 0)
        self._lance = lance
        self._memory = memory
        self._addr = addr
        self._csr3 = CSR3 | (csr.BSWP if bswp else 0)
        self._bswp = bool(bswp)
        self._zero_copy = zero_copy
        self._check_fcs = check_fcs
        self._rx_buffer = rx_buffer
        self._rx_offset = rx_offset
        self._tx_buffer = tx_buffer
        self._block = InitBlock(
            mode=mode,
            padr=mac,
            ladrf=logical_address_filter(groups),
            rx_ring=Ring(addr + RX_RING, rx_count),
            tx_ring=Ring(addr + TX_RING, tx_count),
        )
        self._rx: list[Slot] = []
        self._tx: list[Slot] = []
        self._rx_position = 0  # of the descriptor that the next frame begins in
        self._tx_head = 0  # of the next free descriptor
        self._tx_tail = 0  # of the oldest that the chip may still own
        self._received: deque[bytes] = deque(maxlen=RECEIVED_MAX)

    # The chip

    def start(self) -> None:
        """STOP, rings, INIT, STRT. Raises DriverError where the chip does not answer."""
        self._write_csr(0, csr.STOP)
        self._write_csr(3, self._csr3)
        self._write_csr(1, self._addr & 0xFFFF)
        self._write_csr(2, self._addr >> 16)
        self._build_rings()
        self._memory.slices(self._addr, INIT_BLOCK_LEN).copy_from(self._block.emit())
        self._write_csr(0, csr.INIT)
        for _ in range(IDON_READS):
            csr0 = self._lance.read(csr.RDP)
            if csr0 & (csr.IDON | csr.ERR):
                break
        if csr0 & csr.ERR or not csr0 & csr.IDON:
            raise DriverError(f"INIT ended with CSR0={csr0:#06x}")
        self._lance.write(csr.RDP, csr.IDON)
        self._lance.write(csr.RDP, csr.INEA | csr.STRT)

    def stop(self) -> None:
        self._write_csr(0, csr.STOP)

    def handle_interrupt(self) -> bool:
        """What the chip has to say. False: the interrupt was not the chip's."""
        lance = self._lance
        csr0 = lance.read(csr.RDP)
        if not csr0 & csr.INTR:
            return False
        lance.write(csr.RDP, csr0 & csr.WRITE_1_TO_CLEAR)  # INEA is 0 from here on
        for bit, counter in ((csr.MISS, "miss"), (csr.BABL, "babl"), (csr.MERR, "merr")):
            if csr0 & bit:
                self.stats[counter] += 1
        if not self._zero_copy:
            self._received.extend(self._harvest())
        self._reclaim()
        is_off = not self._block.mode & DTX and not lance.read(csr.RDP) & csr.TXON
        if csr0 & csr.MERR or is_off:
            self.stats["restarts"] += 1
            self.start()
        else:
            lance.write(csr.RDP, csr.INEA)
        return True

    def _write_csr(self, register: int, value: int) -> None:
        """Through RAP, which is left at 0 for the interrupt handler."""
        self._lance.write(csr.RAP, register)
        self._lance.write(csr.RDP, value)
        self._lance.write(csr.RAP, 0)

    def _build_rings(self) -> None:
        addr = self._addr + BUFFERS + self._rx_offset
        self._rx = self._slots(self._block.rx_ring, addr, self._rx_buffer)
        last = self._rx[-1]
        addr = -(-(last.addr + last.length) // ALIGNMENT) * ALIGNMENT
        self._tx = self._slots(self._block.tx_ring, addr, self._tx_buffer)
        self._rx_position = self._tx_head = self._tx_tail = 0
        for slot in self._tx:
            slot.view[:] = bytes(DESCRIPTOR_LEN)
        for slot in self._rx:
            slot.give(0, slot.length)

    def _slots(self, ring: Ring, addr: int, length: int) -> list[Slot]:
        pitch = -(-length // ALIGNMENT) * ALIGNMENT
        slots = []
        for index in range(ring.entries):
            (view,) = self._memory.slices(ring.address(index), DESCRIPTOR_LEN).segments
            start, stop = addr & ~1, (addr + length + 1) & ~1
            slots.append(Slot(view, addr, length, self._memory.slices(start, stop - start)))
            addr += pitch
        return slots

    # Sending

    def send(self, frame: Buffer | Iterable[Buffer], *, kick: bool = True) -> bool:
        """Queue a frame, padded to 60 bytes. False: the ring has no room for it.

        With `kick=False` the chip is not told; a later frame, or `kick()`, does that.
        """
        octets = IoVec.of(frame) if isinstance(frame, Buffer) else IoVec.of(*frame)
        length = len(octets)
        if length < FRAME_MIN:
            octets += IoVec.of(bytes(FRAME_MIN - length))
            length = FRAME_MIN
        count = -(-length // self._tx_buffer)
        if count > self._tx_room():
            self._reclaim()
            if count > self._tx_room():
                return False
        pieces = []
        for index in range(count):
            slot = self._tx[(self._tx_head + index) % len(self._tx)]
            start = index * self._tx_buffer
            piece = octets if count == 1 else octets.slice(start, start + self._tx_buffer)
            self._store(slot, piece)
            status = (STP if index == 0 else 0) | (ENP if index == count - 1 else 0)
            pieces.append((slot, status, len(piece)))
        for slot, status, size in reversed(pieces):  # the first descriptor's OWN comes last
            slot.give(status, size)
        self._tx_head += count
        self.stats["tx_frames"] += 1
        if kick:
            self.kick()
        return True

    def kick(self) -> None:
        """Tell the chip not to wait until it polls."""
        self._lance.write(csr.RDP, csr.INEA | csr.TDMD)

    def _tx_room(self) -> int:
        return self._tx_tail + len(self._tx) - self._tx_head

    def _reclaim(self) -> None:
        """Take back what the chip has sent."""
        while self._tx_tail < self._tx_head:
            status = self._tx[self._tx_tail % len(self._tx)].view[2]
            if status & OWN:
                return
            if status & ERR:
                self.stats["tx_errors"] += 1
            self._tx_tail += 1

    def _store(self, slot: Slot, octets: IoVec) -> None:
        if self._bswp:
            scatter_copy(slot.words.segments, octets.segments)
        else:
            slot.words.copy_from(exchanged(bytes(octets) + bytes(len(octets) & 1)))

    # Receiving

    def receive(self) -> list[bytes]:
        """The frames that interrupts have brought since the last call, without FCS."""
        frames = list(self._received)
        self._received.clear()
        return frames

    def views(self) -> Iterator[IoVec]:
        """Each frame in the ring as it lies there, without FCS, until the next is asked for."""
        for slots, total in self._chains():
            size = total - FCS_LEN
            if len(slots) == 1:
                yield slots[0].words.slice(slots[0].skew, slots[0].skew + size)
            else:
                views = IoVec()
                for slot in slots:
                    views += slot.words.slice(slot.skew, slot.skew + slot.length)
                yield views.slice(0, size)

    def _harvest(self) -> Iterator[bytes]:
        for slots, total in self._chains():
            frame = self._load(slots, total)
            if self._check_fcs and zlib.crc32(frame) != FCS_RESIDUE:
                self.stats["rx_bad_fcs"] += 1
            else:
                yield frame[:-FCS_LEN]

    def _load(self, slots: list[Slot], total: int) -> bytes:
        """A frame's bytes in order, FCS included."""
        parts = []
        for slot in slots:
            size = min(total, slot.length)
            words = bytes(slot.words.slice(0, (slot.skew + size + 1) & ~1))
            parts.append((words if self._bswp else exchanged(words))[slot.skew : slot.skew + size])
            total -= size
        return b"".join(parts)

    def _chains(self) -> Iterator[tuple[list[Slot], int]]:
        """Whole frames as their descriptors and MCNT; given back to the chip after each."""
        rx = self._rx
        left = len(rx)
        while left > 0 and self._rx is rx:
            slots = self._next_chain(left)
            if not slots:
                return
            left -= len(slots)
            self._rx_position += len(slots)
            status = slots[-1].view[2]
            total = int.from_bytes(slots[-1].view[6:8], "big")
            if status & ERR or not status & ENP or not slots[0].view[2] & STP:
                self._count_error(status)
            else:
                self.stats["rx_frames"] += 1
                yield slots, total
            if self._rx is rx:  # not restarted meanwhile
                for slot in slots:
                    slot.view[2] = OWN

    def _next_chain(self, limit: int) -> list[Slot]:
        """The descriptors up to ENP or an error; none while the chip is not done with all."""
        slots = []
        for index in range(limit):
            slot = self._rx[(self._rx_position + index) % len(self._rx)]
            status = slot.view[2]
            if status & OWN:
                return []
            slots.append(slot)
            if status & (ENP | ERR):
                break
        return slots

    def _count_error(self, status: int) -> None:
        self.stats["rx_errors"] += 1
        for bit, counter in ((CRC, "rx_crc"), (BUFF, "rx_buff")):
            if status & bit:
                self.stats[counter] += 1


def exchanged(words: bytes) -> bytes:
    """The two bytes of each 16-bit word, exchanged."""
    out = bytearray(len(words))
    out[0::2] = words[1::2]
    out[1::2] = words[0::2]
    return bytes(out)
