"""A PCnet-PCI II on plain memory, and hands to write its rings in any software style.

    card = PcnetChip(style=3, rx=4, tx=4)
    card.give_rx(0, 0x3000, 1544)
    card.start()
    assert card.chip.receive(frame)
    card.poll()
    assert card.rx_status(0) & STP

Does not do: vfio-user (tests/kit/vfio_client.py).
"""

from __future__ import annotations

from typing import Any

from dma.memory import GuestMemory
from dma.transfer import DmaPath
from nic import csr, pcnet_csr
from nic.pcnet import Pcnet
from nic.pcnet_memory import STYLES, Block, emit_block_16, emit_block_32
from nic.ring import ENP, OWN, STP
from tests.kit.clock import Clock

MAC = bytes.fromhex("525400706301")
OTHER = bytes.fromhex("080020040506")
BLOCK, RX_RING, TX_RING = 0x1000, 0x2000, 0x6000
RDP, RAP, RESET, BDP = range(4)


class PcnetChip:
    """One chip; `levels` is what its interrupt pin did."""

    def __init__(
        self,
        *,
        style: int = 2,
        rlen: int = 2,
        tlen: int = 2,
        mode: int = 0,
        ladrf: tuple[int, int, int, int] = (0, 0, 0, 0),
        padr: bytes = MAC,
        dwio: bool = False,
        memory: int = 1 << 20,
        path: DmaPath | None = None,
        **options: Any,
    ) -> None:
        self.memory = GuestMemory(memory)
        self.levels: list[bool] = []
        self.chip = Pcnet(path or self.memory, self.levels.append, mac=MAC, **options)
        self.clock = Clock()
        self.style = STYLES[style]
        self.width = 4 if dwio else 2
        if dwio:
            self.chip.write(0x10, 0, 4)
        self.block = Block(mode, padr, ladrf, rlen, tlen, RX_RING, TX_RING)

    # Registers

    def port(self, number: int) -> int:
        return 0x10 + self.width * number

    def write_csr(self, number: int, value: int) -> None:
        self.chip.write(self.port(RAP), number, self.width)
        self.chip.write(self.port(RDP), value, self.width)

    def read_csr(self, number: int) -> int:
        self.chip.write(self.port(RAP), number, self.width)
        return self.chip.read(self.port(RDP), self.width)

    def write_bcr(self, number: int, value: int) -> None:
        self.chip.write(self.port(RAP), number, self.width)
        self.chip.write(self.port(BDP), value, self.width)

    def read_bcr(self, number: int) -> int:
        self.chip.write(self.port(RAP), number, self.width)
        return self.chip.read(self.port(BDP), self.width)

    def soft_reset(self) -> int:
        return self.chip.read(self.port(RESET), self.width)

    @property
    def csr0(self) -> int:
        return self.read_csr(0)

    @csr0.setter
    def csr0(self, value: int) -> None:
        self.write_csr(0, value)

    def init(self) -> None:
        self.csr0 = csr.STOP
        self.write_bcr(20, self.style.number)
        emit = emit_block_16 if self.style.number == 0 else emit_block_32
        self.put(BLOCK, emit(self.block))
        self.write_csr(1, BLOCK & 0xFFFF)
        self.write_csr(2, BLOCK >> 16)
        self.csr0 = csr.INIT

    def start(self) -> None:
        self.init()
        self.csr0 = csr.IDON
        self.csr0 = csr.INEA | csr.STRT

    def suspend(self, is_suspended: bool = True) -> None:
        self.write_csr(5, pcnet_csr.SPND if is_suspended else 0)

    def poll(self, after: float = 0.0) -> float | None:
        return self.chip.poll(self.clock.advance(after))

    # Memory

    def put(self, addr: int, octets: bytes) -> None:
        self.memory.write(addr, octets)  # type: ignore[arg-type]

    def get(self, addr: int, length: int) -> bytes:
        return self.memory.read(addr, length)  # type: ignore[arg-type]

    def descriptor(self, addr: int, length: int, status: int) -> bytes:
        """One in this style, with the last word or doublewords zero."""
        count = 0xF000 | -length & 0xFFF
        if self.style.number == 0:
            word1 = status << 8 | addr >> 16
            words = (addr & 0xFFFF, word1, count, 0)
            return b"".join(word.to_bytes(2, "little") for word in words)
        dwords = [addr, status << 24 | count, 0, 0]
        if self.style.number == 3:
            dwords[0], dwords[2] = dwords[2], dwords[0]
        return b"".join(dword.to_bytes(4, "little") for dword in dwords)

    def give_rx(self, index: int, addr: int, length: int, status: int = OWN) -> None:
        at = RX_RING + self.style.step * index
        self.put(at, self.descriptor(addr, length, status))

    def give_tx(self, index: int, addr: int, octets: bytes, status: int = OWN | STP | ENP) -> None:
        self.put(addr, octets)
        at = TX_RING + self.style.step * index
        self.put(at, self.descriptor(addr, len(octets), status))

    def _status(self, at: int) -> int:
        """Status in bits 7:0; of 32-bit descriptors the byte below it in bits 15:8."""
        if self.style.number == 0:
            return self.get(at, 8)[3]
        octets = self.get(at, 16)
        return octets[6] << 8 | octets[7]

    def _last(self, at: int) -> int:
        if self.style.number == 0:
            return int.from_bytes(self.get(at + 6, 2), "little")
        return int.from_bytes(self.get(at + (0 if self.style.number == 3 else 8), 4), "little")

    def rx_status(self, index: int) -> int:
        return self._status(RX_RING + self.style.step * index)

    def tx_status(self, index: int) -> int:
        return self._status(TX_RING + self.style.step * index)

    def mcnt(self, index: int) -> int:
        return self._last(RX_RING + self.style.step * index)

    def tx_errors(self, index: int) -> int:
        """TMD3 as the Am7990 has it."""
        last = self._last(TX_RING + self.style.step * index)
        return last if self.style.number == 0 else last >> 16


def frame_of(size: int, dst: bytes = MAC) -> bytes:
    """A frame of so many bytes, no two neighbours equal."""
    body = bytes((7 * i + (i >> 8)) & 0xFF for i in range(size))
    return (dst + OTHER + b"\x08\x00" + body)[:size]
