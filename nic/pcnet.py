"""The Am79C970A PCnet-PCI II: the LANCE behind a PCI bus, with registers of its own.

What goes where: pcnet_csr.py and pcnet_bcr.py have the registers and their access rules,
pcnet_memory.py what lies in memory, and the engine (nic/engine.py, with receiver, transmitter, ring
and filter) is the Am7990's. This file is the chip: its ports, what INIT, STRT and SPND do, and
which of the engine's rules follow from its registers. The PCI function around it is
nic/pcnet_card.py.

`read` and `write` take an offset of the 32 bytes that the chip shows, and 1, 2 or 4 bytes:

    0x00-0x0f    the address PROM, in any size
    words        0x10 RDP, 0x12 RAP, 0x14 RESET, 0x16 BDP
    doublewords  0x10 RDP, 0x14 RAP, 0x18 RESET, 0x1c BDP, once the first doubleword was written

An access that the book leaves undefined reads as ones and writes nothing. RAP chooses a CSR for RDP
and a BCR for BDP. Reading RESET is S_RESET; `reset()` is the pin, H_RESET.

INIT fills CSR8 to CSR15, the rings' addresses (CSR24, 30) and lengths (CSR76, 78) from the init
block. STRT makes the rings from those registers, so a driver may write them instead. While the chip
is suspended (CSR5.SPND, which answers at once) MODE, PADR and LADRF may change; they count from the
next frame on. CSR4.APAD_XMT, CSR3.DXSUFLO and the software style's bits come to the transmitter as
`TxRules`.

A cycle that the bus refuses is a master abort: the chip stops, and says SINT in CSR5. (MERR is what
this chip says when it is not given the bus in time, which does not happen.)

In style 0 an address has 24 bits, and CSR2's upper byte is put in front of each: a translation like
any other, `_Window`.

Differs from the chip in:
- everything that nic/lance.py names: wire time is instant, no collisions, chains are given back
  together, room is claimed before a frame has come, and so on.
- STRT begins at the first descriptor of each ring, whatever CSR72 and CSR74 say; these and CSR18 to
  CSR67 (pointers, buffers and status of the chip's insides) read as what was last written.
- rings that are moved or resized while the chip is suspended stay as they are until STRT.
- a chain of more than 512 TX buffers is an underflow, and a received frame that needs more than 128
  is BUFF: a ring may be so long and its buffers so short that looking for room would take for ever.
- BSWP (a big-endian bus), LAPPEN, ASTRP_RCV, RCVCCO, MAGIC PACKET, sleep, JAB, GPSI and CSR124's
  tests: the bits are kept, and nothing follows. DRCVPA and DRCVBC work. RPC and RCC are 0.
- with BCR9.FDEN or without, the line is free. BCR2's and MODE's choice of a medium changes nothing.
- LEDOUT follows the link; pulses are not shown. With the link down (`set_link`) each frame is LCAR.
- the upper two bits of CSR80 read as they were written, where the data sheet (19436, page 135) has
  ones. CSR59's value is not verified (pcnet_csr.py).
- the EEPROM cannot be read through BCR19, and there is no expansion ROM.
- CSR4's and CSR5's events are cleared by STOP, all of them.
- a descriptor that begins no frame gives TINT only where a frame would (TOKINTD, LTINTEN).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from dma.iovec import IoVec
from dma.transfer import DmaPath, Lanes, Transfer
from nic import csr, init_block, pcnet_csr
from nic.csr import Interrupt
from nic.engine import FRAME_MAX, Engine
from nic.filter import BROADCAST, GROUP, is_hashed
from nic.pcnet_bcr import APROMWE, BCR_MASK, MC, SWS, BusRegisters
from nic.pcnet_csr import PcnetRegisters
from nic.pcnet_memory import BAM, LAFM, PAM, SPACE_24, SPACE_32, STYLES, Block, Style
from nic.receiver import Receiver
from nic.ring import TMD3_LCAR, DescriptorRing, Ring
from nic.transmitter import Transmitter, TxRules

PORTS_LEN: Final = 0x20  # bytes that the chip shows
PROM_LEN: Final = 16
ADDRESS_LEN: Final = 6

# MODE, beyond the Am7990's
DRCVBC: Final = 1 << 14
DRCVPA: Final = 1 << 13

_RDP, _RAP, _RESET, _BDP = range(4)
_REGISTERS: Final = ("rap", "csr0", "csr1", "csr2", "csr3", "csr4", "csr5", "line")
_SWS_ALIAS: Final = 58  # CSR58 is BCR20


class PcnetFilter(NamedTuple):
    """The Am7990's filter, which MODE may make deaf to its own address or to broadcasts."""

    padr: bytes
    ladrf: tuple[int, ...]
    mode: int

    def accepts(self, dst: bytes) -> bool:
        return bool(self.mode & init_block.PROM or self.marks(dst))

    def marks(self, dst: bytes) -> int:
        """Why it is accepted: PAM, LAFM or BAM; 0: only for being promiscuous."""
        if not dst[0] & GROUP:
            return PAM if dst == self.padr and not self.mode & DRCVPA else 0
        if dst == BROADCAST and not self.mode & DRCVBC:
            return BAM
        return LAFM if is_hashed(dst, self.ladrf) else 0


class _Window:
    """Puts the upper byte in front of addresses that have 24 bits."""

    __slots__ = ("_path", "base")

    def __init__(self, path: DmaPath) -> None:
        self._path = path
        self.base = 0

    def open(self, transfer: Transfer) -> IoVec:
        base = self.base
        if base:
            transfer.ranges = [(base | addr, length) for addr, length in transfer.ranges]
        return self._path.open(transfer)


class Pcnet(Engine):
    """One chip. Is a Port (nic/port.py)."""

    _registers: PcnetRegisters

    def __init__(
        self,
        bus: DmaPath,
        interrupt: Interrupt | None = None,
        *,
        mac: bytes,
        max_frame: int = FRAME_MAX,
    ) -> None:
        self._window = _Window(bus)
        self._rings: tuple[Style, Ring, Ring]  # those that were made last
        super().__init__(self._window, PcnetRegisters(interrupt), max_frame)
        self._bus = BusRegisters()
        self._first_prom = prom_of(mac)
        self._prom = bytearray(self._first_prom)
        self._load_address()

    # The bus's side

    def read(self, offset: int, size: int) -> int:
        """A read of 1, 2 or 4 bytes of the ports."""
        if self._refused >= 0:
            self._look_for_room()
        if offset + size <= PROM_LEN:
            return int.from_bytes(self._prom[offset : offset + size], "little")
        port = self._port_at(offset, size)
        if port is None:
            return (1 << 8 * size) - 1
        return self._read_port(port, size)

    def write(self, offset: int, value: int, size: int) -> None:
        """A write of 1, 2 or 4 bytes."""
        if offset + size <= PROM_LEN:
            if self._bus.file[MC] & APROMWE:
                self._prom[offset : offset + size] = value.to_bytes(size, "little")
            return
        if offset == PROM_LEN and size == 4:
            self._bus.set_dwio()
        port = self._port_at(offset, size)
        if port is not None:
            self._write_port(port, value & 0xFFFF)
        if self._refused >= 0:
            self._look_for_room()

    def reset(self) -> None:
        """H_RESET, the RST pin: as if the power had come just now."""
        self._soft_reset()
        self._bus.reset()
        self._prom[:] = self._first_prom
        self._load_address()

    def set_link(self, is_up: bool) -> None:
        """The cable: what BCR4 shows, and whether frames get anywhere."""
        self._bus.is_link_up = is_up
        self._follow()
        if is_up:
            self._doorbell.set()

    def _port_at(self, offset: int, size: int) -> int | None:
        width = 4 if self._bus.is_dwio else 2
        port, within = divmod(offset - PROM_LEN, width)
        return port if size == width and not within and 0 <= port <= _BDP else None

    def _read_port(self, port: int, size: int) -> int:
        registers = self._registers
        if port == _RDP:
            return self._read_csr(registers.rap, size)
        if port == _RAP:
            return registers.rap
        if port == _BDP:
            return self._bus.read(registers.rap & BCR_MASK)
        self._soft_reset()
        return 0

    def _read_csr(self, number: int, size: int) -> int:
        if number == _SWS_ALIAS:
            return self._bus.read(SWS)
        if number == pcnet_csr.CHIP_ID and size == 4:  # all of it at once
            return self._registers.address(number)
        return self._registers.read()

    def _write_port(self, port: int, value: int) -> None:
        registers = self._registers
        if port == _RAP:
            registers.rap = value & pcnet_csr.RAP_MASK
        elif port == _RDP and not registers.rap:
            self._obey(registers.write_csr0(value))
        elif port == _BDP or (port == _RDP and registers.rap == _SWS_ALIAS):
            number = registers.rap if port == _BDP else SWS
            self._bus.write(number, value, registers.is_open)
            self._follow()
        elif port == _RDP:
            csr3 = registers.csr3
            registers.write_csr(registers.rap, value)
            # Drivers mask and unmask events with CSR3 at every interrupt.
            if registers.rap != 3 or (csr3 ^ registers.csr3) & pcnet_csr.DXSUFLO:
                self._follow()

    def _load_address(self) -> None:
        """CSR12 to CSR14 from the PROM."""
        for index in range(3):
            word = int.from_bytes(self._prom[2 * index : 2 * index + 2], "little")
            self._registers.file[pcnet_csr.PADR + index] = word

    # Commands

    def _soft_reset(self) -> None:
        self._halt()
        self._registers.reset()
        self._follow()

    def _obey(self, commands: int) -> None:
        if commands & csr.STOP:
            self._halt()
            self._follow()
            return
        if commands & csr.INIT:
            self._initialize()
        if commands & (csr.INIT | csr.STRT) and self._registers.csr0 & csr.STRT:
            self._make_rings()
            self._start()
        if commands & csr.TDMD:
            self._doorbell.set()

    def _initialize(self) -> None:
        self._halt()
        self.stats["init"] += 1
        style, registers = self._bus.style, self._registers
        # The block itself may lie anywhere: CSR2's upper byte is part of its address.
        self._window.base, self._master.space = 0, SPACE_32
        octets = self._master.load(registers.init_block_addr, style.block_len)
        if octets is None:
            return
        self._keep(style.parse_block(octets), style)
        registers.raise_status(csr.IDON)

    def _keep(self, block: Block, style: Style) -> None:
        """INIT's result is in registers."""
        registers = self._registers
        file = registers.file
        file[6] = (block.tlen << 4 | block.rlen) << 8
        file[pcnet_csr.LADRF : pcnet_csr.LADRF + 4] = block.ladrf
        for index in range(3):
            word = int.from_bytes(block.padr[2 * index : 2 * index + 2], "little")
            file[pcnet_csr.PADR + index] = word
        file[pcnet_csr.MODE] = block.mode
        registers.set_address(pcnet_csr.RX_BASE, block.rdra)
        registers.set_address(pcnet_csr.TX_BASE, block.tdra)
        registers.set_count(pcnet_csr.RX_LEN, 1 << min(block.rlen, style.rlen_max))
        registers.set_count(pcnet_csr.TX_LEN, 1 << min(block.tlen, style.rlen_max))

    def _make_rings(self) -> None:
        """Both rings, as the registers have them now."""
        style, registers = self._bus.style, self._registers
        self._use_rings(
            style,
            style.ring(registers.address(pcnet_csr.RX_BASE), registers.count(pcnet_csr.RX_LEN)),
            style.ring(registers.address(pcnet_csr.TX_BASE), registers.count(pcnet_csr.TX_LEN)),
        )

    def _use_rings(self, style: Style, rx: Ring, tx: Ring) -> None:
        self._halt()
        registers, master = self._registers, self._master
        master.space = style.space
        self._window.base = registers.csr2 >> 8 << 24 if style.space == SPACE_24 else 0
        self._rings = style, rx, tx
        accepts = self._make_filter()
        receiver = Receiver(
            DescriptorRing(rx, master, style.parse_rx),
            accepts,
            Lanes.STRAIGHT,
            master,
            registers,
            self.stats,
            accepts.marks,
        )
        transmitter = Transmitter(
            DescriptorRing(tx, master, style.parse_tx),
            Lanes.STRAIGHT,
            self._make_rules(),
            master,
            registers,
            self.stats,
        )
        self._begin(registers.file[pcnet_csr.MODE], receiver, transmitter)

    # Another process

    def carried(self) -> dict[str, Any]:
        """What a chip in another process needs, which has the same memory.

        What has come and what was sent is handed over to the driver, and claims are void.
        """
        rings = None
        if self._receiver is not None and self._transmitter is not None:
            style, *places = self._rings
            rings = {
                "style": style.number,
                "places": [[ring.base, ring.entries] for ring in places],
                "window": self._window.base,
                "mode": self._mode,
                "receiver": self._receiver.settle(),
                "transmitter": self._transmitter.settle(),
            }
        return {
            "registers": {name: getattr(self._registers, name) for name in _REGISTERS},
            "file": self._registers.file,
            "bus": self._bus.file,
            "is_link_up": self._bus.is_link_up,
            "prom": self._prom.hex(),
            "rings": rings,
        }

    def resume(self, values: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError, LookupError or TypeError."""
        registers, bus, rings = self._registers, self._bus, values["rings"]
        for file, name in ((registers.file, "file"), (bus.file, "bus")):
            if len(values[name]) != len(file):
                raise ValueError(f"{len(values[name])} registers")
            file[:] = map(int, values[name])
        bus.is_link_up = bool(values["is_link_up"])
        self._prom[:] = bytes.fromhex(values["prom"])[:PROM_LEN].ljust(PROM_LEN, b"\0")
        for name in _REGISTERS:
            setattr(registers, name, int(values["registers"][name]))
        if rings is not None:
            style = STYLES[rings["style"]]
            rx, tx = (style.ring(int(base), int(entries)) for base, entries in rings["places"])
            self._use_rings(style, rx, tx)
            self._window.base, self._mode = int(rings["window"]), int(rings["mode"])
            assert self._receiver is not None
            assert self._transmitter is not None
            self._receiver.go_on(int(rings["receiver"]))
            self._transmitter.go_on(rings["transmitter"])
        self.polls_tx = not registers.csr4 & pcnet_csr.TXDPOLL
        self.is_suspended = bool(registers.csr5 & pcnet_csr.SPND)
        self._doorbell.set()  # have the ring looked at

    # What follows from registers

    def _follow(self) -> None:
        """A register may have changed that the engine must know of."""
        registers = self._registers
        self.polls_tx = not registers.csr4 & pcnet_csr.TXDPOLL
        self._suspend(bool(registers.csr5 & pcnet_csr.SPND))
        if self._receiver is None or self._transmitter is None:
            return
        self._mode = registers.file[pcnet_csr.MODE]
        accepts = self._make_filter()
        self._receiver.filter, self._receiver.marks = accepts, accepts.marks
        self._transmitter.use(self._make_rules())

    def _make_filter(self) -> PcnetFilter:
        file = self._registers.file
        padr = b"".join(
            word.to_bytes(2, "little") for word in file[pcnet_csr.PADR : pcnet_csr.PADR + 3]
        )
        ladrf = tuple(file[pcnet_csr.LADRF : pcnet_csr.LADRF + 4])
        return PcnetFilter(padr, ladrf, file[pcnet_csr.MODE])

    def _make_rules(self) -> TxRules:
        registers, style = self._registers, self._bus.style
        mode = registers.file[pcnet_csr.MODE]
        is_looped = bool(mode & init_block.LOOP)
        pads = bool(registers.csr4 & pcnet_csr.APAD_XMT)
        is_down = not self._bus.is_link_up and not is_looped
        return TxRules(
            # In loopback the guest's FCS is looked at where the frame is received.
            has_fcs=bool(mode & init_block.DTCR) and not is_looped and not pads,
            pads=pads,
            makes_fcs=style.makes_fcs,
            no_fcs=0 if pads or is_looped else style.no_fcs,
            kept=style.kept,
            survives_underflow=bool(registers.csr3 & pcnet_csr.DXSUFLO),
            error=TMD3_LCAR if is_down else 0,
        )

    def _is_cut_off(self) -> bool:
        return super()._is_cut_off() or not self._bus.is_link_up

    def _memory_error(self) -> None:
        """A master abort: the chip stops, and interrupts by SINT."""
        self.stats["merr"] += 1
        self._stop_rings()
        self._registers.stop()
        self._registers.raise_system()


def prom_of(mac: bytes) -> bytes:
    """The address PROM of a card with this address.

    Bytes 0-5 the address, 9 the hardware's identity (11h, which AMD's drivers look for), 12 and 13
    the sum of the others, 14 and 15 'WW'.
    """
    if len(mac) != ADDRESS_LEN:
        raise ValueError(f"an Ethernet address of {len(mac)} bytes")
    prom = bytearray(PROM_LEN)
    prom[:ADDRESS_LEN] = mac
    prom[9] = 0x11
    prom[14:] = b"WW"
    prom[12:14] = sum(prom).to_bytes(2, "little")
    return bytes(prom)
