"""A Lance on plain memory, and hands to write its rings word by word.

For tests of the chip itself: what lies in memory is spelled out, as the datasheet has it. Whoever
wants a guest that behaves takes `slirp.guest.driver.LanceDriver`.

    chip = Chip(rx=4, tx=4)
    chip.give_rx(0, addr=0x3000, length=64)
    chip.start()
    assert chip.lance.receive(frame)
    chip.poll()
    assert chip.rmd(0) == (0x3000, 0x0300, 0xF9F8, 64)
"""

from __future__ import annotations

import struct
from typing import Any

from dma.memory import GuestMemory
from dma.transfer import DmaPath
from nic import csr
from nic.init_block import InitBlock
from nic.lance import Lance
from nic.ring import Ring, bcnt
from tests.kit.clock import Clock

PADR = bytes.fromhex("080020010203")
OTHER = bytes.fromhex("080020040506")

BLOCK = 0x1000
RX_RING = 0x2000
TX_RING = 0x2400

OWN, ERR, STP, ENP = 0x8000, 0x4000, 0x0200, 0x0100


class Chip:
    """One Lance; `levels` is what its interrupt pin did."""

    def __init__(
        self,
        *,
        rx: int = 4,
        tx: int = 4,
        mode: int = 0,
        ladrf: tuple[int, int, int, int] = (0, 0, 0, 0),
        memory: int = 1 << 20,
        path: DmaPath | None = None,
        bswp: bool = True,
        **options: Any,
    ) -> None:
        self.memory = GuestMemory(memory)
        self.levels: list[bool] = []
        self.lance = Lance(path or self.memory, self.levels.append, **options)
        self.clock = Clock()
        self.bswp = bswp
        self.block = InitBlock(mode, PADR, ladrf, Ring(RX_RING, rx), Ring(TX_RING, tx))

    # Registers

    def write_csr(self, register: int, value: int) -> None:
        self.lance.write(csr.RAP, register)
        self.lance.write(csr.RDP, value)

    def read_csr(self, register: int) -> int:
        self.lance.write(csr.RAP, register)
        return self.lance.read(csr.RDP)

    @property
    def csr0(self) -> int:
        return self.read_csr(0)

    @csr0.setter
    def csr0(self, value: int) -> None:
        self.write_csr(0, value)

    def init(self) -> None:
        """STOP, CSR1 to 3, the block, INIT."""
        self.csr0 = csr.STOP
        self.write_csr(1, BLOCK & 0xFFFF)
        self.write_csr(2, BLOCK >> 16)
        self.write_csr(3, csr.BSWP if self.bswp else 0)
        self.put(BLOCK, self.block.emit())
        self.csr0 = csr.INIT

    def start(self) -> None:
        """INIT and STRT as a driver does them, with interrupts on."""
        self.init()
        self.csr0 = csr.IDON
        self.csr0 = csr.INEA | csr.STRT

    def poll(self, after: float = 0.0) -> float | None:
        return self.lance.poll(self.clock.advance(after))

    # Memory

    def put(self, addr: int, octets: bytes) -> None:
        self.memory.slices(addr, len(octets)).copy_from(octets)  # type: ignore[arg-type]

    def get(self, addr: int, length: int) -> bytes:
        return bytes(self.memory.slices(addr, length))  # type: ignore[arg-type]

    def words(self, addr: int, *words: int) -> None:
        self.put(addr, struct.pack(f">{len(words)}H", *words))

    def give_rx(self, index: int, addr: int, length: int, flags: int = OWN) -> None:
        self.words(RX_RING + 8 * index, addr & 0xFFFF, flags | addr >> 16, bcnt(length), 0)

    def give_tx(self, index: int, addr: int, octets: bytes, flags: int = OWN | STP | ENP) -> None:
        """A TX descriptor and its buffer's bytes."""
        self.put(addr, octets)
        words = (addr & 0xFFFF, flags | addr >> 16, bcnt(len(octets)), 0)
        self.words(TX_RING + 8 * index, *words)

    def rmd(self, index: int) -> tuple[int, ...]:
        return struct.unpack(">4H", self.get(RX_RING + 8 * index, 8))

    def tmd(self, index: int) -> tuple[int, ...]:
        return struct.unpack(">4H", self.get(TX_RING + 8 * index, 8))


def frame_of(size: int, dst: bytes = PADR) -> bytes:
    """A frame of so many bytes, no two neighbours equal."""
    body = bytes((7 * i + (i >> 8)) & 0xFF for i in range(size))
    return (dst + OTHER + b"\x08\x00" + body)[:size]
