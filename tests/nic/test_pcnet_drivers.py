"""What systems' drivers do with the card's registers, replayed: each ends with a frame each way.

The sequences were read in the drivers' sources: FreeBSD's `sys/dev/pcn/if_pcn.c` and `sys/dev/le`
(`if_le_pci.c`, `lance.c`, `am79900.c`), NetBSD's `sys/dev/pci/if_pcn.c` and `if_le_pci.c` of 1996
(with `am7990.c`, before there was `pcn`). Linux's and iPXE's own run in tests/qemu/test_pcnet.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from dma.memory import GuestMemory
from nic import csr, pci
from nic.pcnet_card import CONFIG_REGION, PcnetCard
from nic.pcnet_csr import SINT, SPND
from nic.pcnet_memory import LTINT, STYLES, Block, emit_block_16, emit_block_32
from nic.ring import ENP, OWN, STP
from tests.kit.pcnet import MAC, OTHER, frame_of

IO, MEMORY = 0, 1
BLOCK, RX_RING, TX_RING, RX_BUFFERS, TX_BUFFERS = 0x1000, 0x2000, 0x8000, 0x10000, 0x80000
BUFFER = 0x800
INEA, STRT, INIT, STOP, TDMD = csr.INEA, csr.STRT, csr.INIT, csr.STOP, csr.TDMD
EVENTS = csr.BABL | csr.MISS | csr.MERR | csr.RINT | csr.TINT | csr.IDON
GROUP = bytes.fromhex("01005e0000fb")


class Slot:
    """The card in a slot, and a processor that reads and writes its window in one width."""

    def __init__(self, region: int = IO, width: int = 2) -> None:
        self.memory = GuestMemory(2 << 20)
        self.line = False
        self.interrupts = 0
        self.card = PcnetCard(self.memory, self._interrupt, mac=MAC)
        self.region = region
        self.width = width
        command = pci.IO_ENABLE | pci.MEMORY_ENABLE | pci.MASTER_ENABLE
        self.card.write(CONFIG_REGION, pci.COMMAND, command.to_bytes(2, "little"))

    def _interrupt(self, level: bool) -> None:
        self.line = level
        self.interrupts += level

    def config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.card.read(CONFIG_REGION, offset, size), "little")

    def read(self, offset: int, size: int = 0) -> int:
        return int.from_bytes(self.card.read(self.region, offset, size or self.width), "little")

    def write(self, offset: int, value: int, size: int = 0) -> None:
        self.card.write(self.region, offset, value.to_bytes(size or self.width, "little"))

    # Ports by width: RDP, RAP, RESET, BDP

    def csr(self, number: int) -> int:
        self.write(0x10 + self.width, number)
        return self.read(0x10)

    def set_csr(self, number: int, value: int) -> None:
        self.write(0x10 + self.width, number)
        self.write(0x10, value)

    def bcr(self, number: int) -> int:
        self.write(0x10 + self.width, number)
        return self.read(0x10 + 3 * self.width)

    def set_bcr(self, number: int, value: int) -> None:
        self.write(0x10 + self.width, number)
        self.write(0x10 + 3 * self.width, value)

    # Memory

    def put(self, addr: int, octets: bytes) -> None:
        self.memory.write(addr, octets)  # type: ignore[arg-type]

    def get(self, addr: int, length: int) -> bytes:
        return self.memory.read(addr, length)  # type: ignore[arg-type]

    def settle(self) -> None:
        self.card.chip.poll(0.0)

    def wait(self, number: int, bits: int, times: int) -> None:
        """Poll a CSR so many times, as a driver does."""
        assert any(self.csr(number) & bits for _ in range(times))


class Rings:
    """Descriptors of a software style; positions go round."""

    def __init__(self, slot: Slot, style: int, rx: int, tx: int, offset: int = 0) -> None:
        self.slot = slot
        self.style = STYLES[style]
        self.rx, self.tx = rx, tx
        self.offset = offset  # of a frame in its buffer
        self.next_rx = self.next_tx = self.done_tx = 0
        for index in range(rx):
            self.give_rx(index)

    def _at(self, base: int, index: int) -> int:
        return base + self.style.step * index

    def _put(self, at: int, addr: int, length: int, status: int) -> None:
        """OWN last, as a driver has it."""
        count = 0xF000 | -length & 0xFFF
        if self.style.number == 0:
            octets = b"".join(
                word.to_bytes(2, "little") for word in (addr & 0xFFFF, addr >> 16, count, 0)
            )
            self.slot.put(at, octets)
            self.slot.put(at + 3, bytes((status,)))
            return
        dwords = [addr, count, 0, 0]
        if self.style.number == 3:
            dwords[0], dwords[2] = dwords[2], dwords[0]
        self.slot.put(at, b"".join(dword.to_bytes(4, "little") for dword in dwords))
        self.slot.put(at + 7, bytes((status,)))

    def give_rx(self, index: int) -> None:
        addr = RX_BUFFERS + BUFFER * index + self.offset
        self._put(self._at(RX_RING, index), addr, BUFFER - self.offset, OWN)

    def _status(self, at: int) -> int:
        return self.slot.get(at + (3 if self.style.number == 0 else 7), 1)[0]

    def received(self) -> list[bytes]:
        """The frames that came, without FCS; their buffers go back."""
        frames = []
        while not (status := self._status(self._at(RX_RING, self.next_rx))) & OWN:
            assert status & (STP | ENP) == STP | ENP, hex(status)
            at = self._at(RX_RING, self.next_rx)
            where = {0: at + 6, 3: at}.get(self.style.number, at + 8)
            length = int.from_bytes(self.slot.get(where, 2), "little") & 0xFFF
            frames.append(
                self.slot.get(RX_BUFFERS + BUFFER * self.next_rx + self.offset, length - 4)
            )
            self.give_rx(self.next_rx)
            self.next_rx = (self.next_rx + 1) % self.rx
        return frames

    def send(self, frame: bytes, pieces: int = 1, extra: int = 0) -> None:
        """In so many descriptors, the first of which is given last."""
        size = -(-len(frame) // pieces)
        indices = [(self.next_tx + n) % self.tx for n in range(pieces)]
        for n in reversed(range(pieces)):
            part = frame[n * size : (n + 1) * size]
            addr = TX_BUFFERS + BUFFER * indices[n]
            self.slot.put(addr, part)
            status = OWN | (STP if n == 0 else 0) | (ENP | extra if n == pieces - 1 else 0)
            self._put(self._at(TX_RING, indices[n]), addr, len(part), status)
        self.next_tx = (self.next_tx + pieces) % self.tx

    def sent(self) -> int:
        """Descriptors that came back."""
        count = 0
        while (
            self.done_tx != self.next_tx and not self._status(self._at(TX_RING, self.done_tx)) & OWN
        ):
            self.done_tx = (self.done_tx + 1) % self.tx
            count += 1
        return count

    def block(self, mode: int, ladrf: tuple[int, ...]) -> bytes:
        emit = emit_block_16 if self.style.number == 0 else emit_block_32
        sizes = self.rx.bit_length() - 1, self.tx.bit_length() - 1
        return emit(Block(mode, MAC, ladrf, *sizes, RX_RING, TX_RING))


class Driver(NamedTuple):
    slot: Slot
    rings: Rings
    interrupt: Callable[[], None]
    transmit: Callable[[bytes], None]


def hash_of(*addresses: bytes) -> tuple[int, ...]:
    """The filter as drivers compute it: the upper six bits of the CRC, least significant first."""
    words = [0, 0, 0, 0]
    for address in addresses:
        crc = 0xFFFFFFFF
        for octet in address:
            for bit in range(8):
                crc = crc >> 1 ^ (0xEDB88320 if (crc ^ octet >> bit) & 1 else 0)
        words[crc >> 30] |= 1 << (crc >> 26 & 15)
    return tuple(words)


# NetBSD pcn


def netbsd_pcn() -> Driver:
    """Memory window, doublewords, style 3, LTINT on one frame in eight."""
    slot = Slot(MEMORY, 4)

    def reset() -> None:
        slot.read(0x14, 2)
        slot.read(0x18, 4)
        slot.write(0x10, 0, 4)

    reset()
    assert bytes(slot.read(n, 1) for n in range(6)) == MAC
    chip_id = slot.csr(88)
    assert (chip_id >> 12 & 0xFFFF, chip_id >> 28) == (0x2621, 0)  # Am79c970A, so no MII
    slot.set_csr(0, STOP)
    reset()
    slot.set_bcr(20, 3)
    rings = Rings(slot, 3, rx=128, tx=512, offset=2)
    slot.put(BLOCK, rings.block(0, hash_of(GROUP)))
    slot.set_csr(3, 1 << 12 | 1 << 8 | 1 << 6)  # MISSM, IDONM, DXSUFLO
    slot.set_csr(4, 1 << 14 | 1 << 11 | 1 << 8 | 1 << 4 | 1 << 2)
    csr5 = 1 << 14 | 1 << 10  # LTINTEN, SINTE
    slot.set_csr(5, csr5)
    slot.set_bcr(18, slot.bcr(18) | 1 << 6 | 1 << 5)
    slot.set_csr(80, 1 << 12 | 1 << 10)
    slot.set_csr(1, BLOCK & 0xFFFF)
    slot.set_csr(2, BLOCK >> 16)
    slot.set_csr(0, INIT)
    slot.wait(0, csr.IDON, 100)
    slot.set_bcr(2, slot.bcr(2) | 1 << 1)  # ASEL
    slot.set_bcr(9, 0)
    slot.set_csr(0, INEA | STRT | csr.IDON)
    assert not slot.line
    assert slot.csr(5) == csr5
    jobs = 0

    def transmit(frame: bytes) -> None:
        nonlocal jobs
        rings.send(frame, 3, 0 if jobs & 7 else LTINT)
        jobs += 1
        slot.set_csr(0, INEA | TDMD)

    def interrupt() -> None:
        while (csr0 := slot.csr(0)) & csr.INTR:
            slot.set_csr(0, csr0 & (INEA | EVENTS))
            assert csr0 & csr.RXON
            assert csr0 & csr.TXON

    return Driver(slot, rings, interrupt, transmit)


def test_netbsd_pcn_suspends_to_change_its_threshold() -> None:
    driver = netbsd_pcn()
    slot = driver.slot
    csr5 = slot.csr(5)
    slot.set_csr(5, csr5 | SPND)
    slot.wait(5, SPND, 1)
    slot.set_csr(80, 1 << 12 | 2 << 10)
    slot.set_csr(5, csr5)
    assert slot.csr(80) == 1 << 12 | 2 << 10
    assert slot.csr(5) & (SPND | SINT) == 0
    exchange(driver)


# FreeBSD


def test_freebsd_pcn_leaves_the_card_to_le_in_word_mode() -> None:
    """It takes the Am79C971 and later. Its probe must not make doublewords of the ports."""
    slot = Slot()
    subsystem = slot.bcr(24) << 16 | slot.bcr(23)
    assert subsystem == slot.config(pci.SUBSYSTEM, 4)  # so it goes on in words
    chip_id = slot.csr(89) << 16 | slot.csr(88)
    assert chip_id >> 12 & 0xFFFF not in (0x2623, 0x2624, 0x2625, 0x2626, 0x2627, 0x2628)
    assert slot.csr(0) == STOP


def freebsd_le() -> Driver:
    """I/O window, words, style 2, INEA toggled by its interrupt handler."""
    slot = Slot()
    assert bytes(slot.read(n, 1) for n in range(6)) == MAC
    slot.set_csr(0, STOP)
    slot.set_bcr(20, 2)
    slot.set_csr(3, 0)
    slot.set_bcr(2, slot.bcr(2) | 1 << 1)  # ASEL
    slot.set_bcr(9, slot.bcr(9) & ~1)  # not FDEN
    rings = Rings(slot, 2, rx=8, tx=2)
    slot.put(BLOCK, rings.block(0, hash_of(GROUP)))
    slot.set_csr(1, BLOCK & 0xFFFF)
    slot.set_csr(2, BLOCK >> 16)
    slot.set_csr(0, INIT)
    slot.wait(0, csr.IDON, 100)
    assert slot.csr(0) & csr.IDON
    slot.set_csr(0, INEA | STRT)
    assert slot.line  # IDON was not cleared
    driver = Driver(
        slot, rings, lambda: am79900_interrupt(slot), lambda frame: le_send(slot, rings, frame)
    )
    driver.interrupt()
    assert not slot.line
    return driver


def am79900_interrupt(slot: Slot) -> None:
    csr0 = slot.csr(0)
    if not csr0 & csr.INTR:
        return
    slot.set_csr(0, csr0 & ~(INEA | TDMD | STOP | STRT | INIT) & 0xFFFF)
    assert csr0 & csr.RXON
    assert csr0 & csr.TXON
    assert not slot.line
    slot.set_csr(0, INEA)


def le_send(slot: Slot, rings: Rings, frame: bytes) -> None:
    rings.send(frame.ljust(60, b"\0"))
    slot.set_csr(0, INEA | TDMD)


# NetBSD before pcn: le at pci


def netbsd_le() -> Driver:
    """I/O window, words, the LANCE's own style: 24 bits of address, no BCR touched."""
    slot = Slot()
    assert bytes(slot.read(n, 1) for n in range(6)) == MAC
    slot.set_csr(0, STOP)
    slot.set_csr(3, 0)
    rings = Rings(slot, 0, rx=8, tx=2)
    slot.put(BLOCK, rings.block(0, hash_of(GROUP)))
    slot.set_csr(1, BLOCK & 0xFFFF)
    slot.set_csr(2, BLOCK >> 16)
    slot.set_csr(0, INIT)
    slot.wait(0, csr.IDON, 100)
    slot.set_csr(0, INEA | STRT | csr.IDON)
    assert not slot.line
    return Driver(
        slot,
        rings,
        lambda: slot.set_csr(0, slot.csr(0) & (INEA | EVENTS)),
        lambda frame: le_send(slot, rings, frame),
    )


# Each with a frame each way


DRIVERS = {"NetBSD pcn": netbsd_pcn, "FreeBSD le": freebsd_le, "NetBSD le at pci": netbsd_le}


def exchange(driver: Driver) -> None:
    slot, rings, interrupt, transmit = driver
    chip = slot.card.chip
    for size in (60, 61, 1514):
        frame = frame_of(size)
        assert chip.receive(frame)
        slot.settle()
        assert slot.line
        interrupt()
        assert not slot.line
        assert rings.received() == [frame]
        group = GROUP + frame[6:]
        assert chip.receive(group)
        slot.settle()
        interrupt()
        assert rings.received() == [group]
        assert not chip.receive(bytes.fromhex("01005e112233") + frame[6:])
        assert not chip.receive(OTHER + frame[6:])
        transmit(frame)
        (out,) = chip.frames()
        assert bytes(out.iov) == frame
        out.release()
        slot.settle()
        assert rings.sent()
        interrupt()
        assert not slot.line


@pytest.mark.parametrize("attach", DRIVERS.values(), ids=DRIVERS)
def test_a_driver_gets_and_sends_frames(attach: Callable[[], Driver]) -> None:
    exchange(attach())


@pytest.mark.parametrize("attach", DRIVERS.values(), ids=DRIVERS)
def test_its_rings_go_round(attach: Callable[[], Driver]) -> None:
    driver = attach()
    chip, seen = driver.slot.card.chip, 0
    for n in range(2 * max(driver.rings.rx, driver.rings.tx) + 3):
        frame = frame_of(60 + n % 1400)
        assert chip.receive(frame)
        driver.transmit(frame)
        for out in chip.frames():
            assert bytes(out.iov) == frame
            out.release()
            seen += 1
        driver.slot.settle()
        driver.interrupt()
        assert driver.rings.received() == [frame]
        assert driver.rings.sent()
    assert seen == 2 * max(driver.rings.rx, driver.rings.tx) + 3
