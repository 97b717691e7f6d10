"""A PCnet-PCI II as a PCI function: configuration space, two windows to the same 32 bytes, INTA#.

What an emulator or a vfio-user server (nic/vfio_user) needs of a device: regions by number, as VFIO
counts them (0 to 5 the base address registers, 7 configuration space), each with `read` and
`write`; `reset`; and an interrupt line. Region 0 is in I/O space, region 1 in memory space.

The card is also what stands between the chip and the machine's memory: while the command register
does not let it be bus master, and where there is no memory, a cycle is a master abort, which the
status register keeps (RMABORT).

`path(stage, memory)` may put taps into the way: `pcnet` is what the chip drives, `memory` what the
machine's memory is asked for. Both have the machine's physical addresses.

Differs from the card in: a chip that may not be bus master waits for ever; here its first cycle is
a master abort. I/O and memory enable bits change nothing: whoever decodes the windows looks at
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from dma.iovec import IoVec
from dma.transfer import DmaFault, DmaPath, Transfer
from nic import pci
from nic.csr import Interrupt
from nic.engine import FRAME_MAX
from nic.pci import Bar, ConfigSpace, Identity
from nic.pcnet import PORTS_LEN, Pcnet

CONFIG_REGION: Final = 7
IDENTITY: Final = Identity(
    vendor=0x1022,  # AMD
    device=0x2000,
    class_code=0x020000,  # an Ethernet controller
    revision=0x10,
    subsystem=0,  # this chip has none
    status=0x0280,  # medium DEVSEL timing, fast back-to-back
    min_gnt=0xFF06,
    command_writable=0x0147,  # SERREN, PERREN, BMEN, MEMEN, IOEN
    status_clearable=0xF900,
)
BARS: Final = (Bar(PORTS_LEN, True), Bar(PORTS_LEN, False))
ACCESSES: Final = (1, 2, 4)  # bytes

Wrap = Callable[[str, DmaPath], DmaPath]


def _straight(stage: str, path: DmaPath) -> DmaPath:
    return path


class _Master:
    """The way from the card's PCI pins to memory."""

    def __init__(self, config: ConfigSpace, memory: DmaPath) -> None:
        self._config = config
        self._memory = memory
        self.is_enabled = False

    def look(self) -> None:
        """The command register may have changed."""
        self.is_enabled = bool(self._config.word(pci.COMMAND) & pci.MASTER_ENABLE)

    def open(self, transfer: Transfer) -> IoVec:
        try:
            if not self.is_enabled:
                raise DmaFault("pci", transfer.ranges[0][0], "the function may not be bus master")
            return self._memory.open(transfer)
        except DmaFault:
            self._config.set_bits(pci.STATUS, pci.MASTER_ABORT)
            raise


class PcnetCard:
    """One card in a slot."""

    def __init__(
        self,
        memory: DmaPath,
        interrupt: Interrupt,
        *,
        mac: bytes,
        max_frame: int = FRAME_MAX,
        path: Wrap = _straight,
    ) -> None:
        self._config = ConfigSpace.build(IDENTITY, BARS)
        self._master = _Master(self._config, path("memory", memory))
        way = path("pcnet", self._master)
        self.chip = Pcnet(way, interrupt, mac=mac, max_frame=max_frame)

    def region_len(self, region: int) -> int:
        """Bytes; 0: there is no such region."""
        if region < len(BARS):
            return BARS[region].size
        return pci.CONFIG_LEN if region == CONFIG_REGION else 0

    def takes(self, region: int, offset: int, size: int) -> bool:
        """Is this an access that a bus could make?"""
        if not 0 < size <= self.region_len(region) - offset:
            return False
        return region == CONFIG_REGION or (size in ACCESSES and not offset % size)

    def read(self, region: int, offset: int, size: int) -> bytes:
        if region == CONFIG_REGION:
            return self._config.read(offset, size)
        return self.chip.read(offset, size).to_bytes(size, "little")

    def write(self, region: int, offset: int, data: bytes) -> None:
        if region == CONFIG_REGION:
            self._config.write(offset, data)
            self._master.look()
        else:
            self.chip.write(offset, int.from_bytes(data, "little"), len(data))

    def carried(self) -> dict[str, Any]:
        """What a card in another process needs, which has the same memory."""
        return {"config": self._config.read(0, pci.CONFIG_LEN).hex(), "chip": self.chip.carried()}

    def resume(self, values: Mapping[str, Any]) -> None:
        """Go on from there. Raises ValueError, LookupError or TypeError."""
        self._config.put_all(bytes.fromhex(values["config"]))
        self._master.look()
        self.chip.resume(values["chip"])

    def reset(self) -> None:
        """The slot's RST#."""
        self._config.reset()
        self._master.look()
        self.chip.reset()
