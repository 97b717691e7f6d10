"""The server's side of vfio-user: what each message does. No socket is touched here.

`handle(message)` does what the client asks and returns the reply, if one is wanted. It keeps the
machine's memory (memory.py), passes register accesses to the device, and connects the device's
interrupt line with the client's eventfd (intx.py).

A client must say VERSION first, and once. What is malformed ends the connection (`BadMessage`):
a payload that is too short, a data length that is not the one it says. What is well formed and
cannot be had is an error reply with an errno: a region over another one (EEXIST), one that is not
there (ENOENT), an access that no bus could make (EINVAL), a command that is not offered (ENOTSUP).

Not offered: migration (its features and data), ioeventfds for registers, more interrupts than
INTA#, a second socket for the server's own commands, of which it has none.

Does not do: wait, read, or close descriptors that nobody took.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, Protocol

from nic.vfio_user.intx import CLOSED, Intx
from nic.vfio_user.memory import REGIONS_MAX, Exists, MachineMemory
from nic.vfio_user.messages import (
    ACCESS,
    COUNT,
    DATA_MAX,
    DEVICE_INFO,
    DMA_MAP,
    DMA_UNMAP,
    FDS_MAX,
    IRQ_INFO,
    IRQ_SET,
    MAJOR,
    POSTED,
    REGION_INFO,
    VERSION,
    BadMessage,
    Command,
    Message,
    capabilities_of,
    emit_version,
    error_to,
    reply_to,
)

REGIONS: Final = 9  # BAR 0 to 5, ROM, configuration space, VGA
IRQ_TYPES: Final = 5  # INTx, MSI, MSI-X, error, request
PAGE_SIZES: Final = 4096

DEVICE_RESETS: Final = 1 << 0
DEVICE_IS_PCI: Final = 1 << 1
REGION_READABLE: Final = 1 << 0
REGION_WRITABLE: Final = 1 << 1
IRQ_EVENTFD: Final = 1 << 0
IRQ_MASKABLE: Final = 1 << 1
IRQ_AUTOMASKED: Final = 1 << 2

UNMAP_ALL: Final = 1 << 1  # flags of DMA_UNMAP: with address and size 0

INTX: Final = 0

# SET_IRQS
DATA_NONE: Final = 1 << 0
DATA_BOOL: Final = 1 << 1
DATA_EVENTFD: Final = 1 << 2
ACTION_MASK: Final = 1 << 3
ACTION_UNMASK: Final = 1 << 4
ACTION_TRIGGER: Final = 1 << 5
_DATA: Final = DATA_NONE | DATA_BOOL | DATA_EVENTFD

POSTED_DATA_MAX: Final = 8  # bytes of one write of REGION_WRITE_MULTI

Handler = Callable[[Message], bytes]


class Refused(Exception):
    """Not an error of the protocol, but not to be had."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Device(Protocol):
    """What a client sees: regions by VFIO's numbers."""

    def region_len(self, region: int) -> int:
        """Bytes; 0: there is none."""

    def takes(self, region: int, offset: int, size: int) -> bool:
        """May this access be made?"""

    def read(self, region: int, offset: int, size: int) -> bytes: ...
    def write(self, region: int, offset: int, data: bytes) -> None: ...
    def reset(self) -> None: ...


class Server:
    """One client's connection."""

    def __init__(
        self,
        device: Device,
        memory: MachineMemory,
        intx: Intx,
        check_event: Callable[[int], None],
    ) -> None:
        self._device = device
        self._memory = memory
        self._intx = intx
        self._check_event = check_event  # raises BadMessage where this is no eventfd
        self.has_version = False
        self._handlers: dict[int, Handler] = {
            Command.VERSION: self._version,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._device_info,
            Command.GET_REGION_INFO: self._region_info,
            Command.GET_IRQ_INFO: self._irq_info,
            Command.SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.DEVICE_RESET: self._reset,
            Command.REGION_WRITE_MULTI: self._region_write_multi,
        }

    def handle(self, message: Message) -> bytes | None:
        """Do what it says; the reply, if one is wanted. Raises BadMessage."""
        header = message.header
        if (header.command == Command.VERSION) is self.has_version:
            late = "said VERSION twice" if self.has_version else "did not say VERSION first"
            raise BadMessage(late)
        handler = self._handlers.get(header.command)
        try:
            if handler is None:
                raise Refused(errno.ENOTSUP)
            payload = handler(message)
        except Refused as refusal:
            return error_to(header, refusal.number) if header.wants_reply else None
        return reply_to(header, payload) if header.wants_reply else None

    # Who and what

    def _version(self, message: Message) -> bytes:
        major, _ = message.fields(VERSION)
        if major != MAJOR:
            raise BadMessage(f"speaks version {major} of vfio-user, not {MAJOR}")
        proposed = capabilities_of(message.payload[VERSION.size :])
        self.has_version = True
        ours = {
            "max_msg_fds": FDS_MAX,
            "max_data_xfer_size": DATA_MAX,
            "max_dma_maps": REGIONS_MAX,
            "pgsizes": PAGE_SIZES,
            "write_multiple": True,
        }
        return emit_version({key: ours[key] for key in ours if key in proposed})

    def _device_info(self, message: Message) -> bytes:
        message.fields(DEVICE_INFO)
        flags = DEVICE_RESETS | DEVICE_IS_PCI
        return DEVICE_INFO.pack(DEVICE_INFO.size, flags, REGIONS, IRQ_TYPES)

    def _region_info(self, message: Message) -> bytes:
        _, _, index, *_ = message.fields(REGION_INFO)
        if index >= REGIONS:
            raise Refused(errno.EINVAL)
        size = self._device.region_len(index)
        flags = REGION_READABLE | REGION_WRITABLE if size else 0
        return REGION_INFO.pack(REGION_INFO.size, flags, index, 0, size, 0)

    def _irq_info(self, message: Message) -> bytes:
        _, _, index, _ = message.fields(IRQ_INFO)
        if index >= IRQ_TYPES:
            raise Refused(errno.EINVAL)
        flags = IRQ_EVENTFD | IRQ_MASKABLE | IRQ_AUTOMASKED if index == INTX else 0
        return IRQ_INFO.pack(IRQ_INFO.size, flags, index, int(index == INTX))

    def _reset(self, message: Message) -> bytes:
        self._device.reset()
        return b""

    # Memory

    def _dma_map(self, message: Message) -> bytes:
        _, flags, offset, addr, size = message.fields(DMA_MAP)
        fd = message.fds[0] if message.fds else None
        try:
            self._memory.add(addr, size, flags, fd, offset)
        except Exists:
            raise Refused(errno.EEXIST) from None
        except ValueError:
            raise Refused(errno.EINVAL) from None
        except OSError as error:
            raise Refused(error.errno or errno.EINVAL) from None
        return b""

    def _dma_unmap(self, message: Message) -> bytes:
        _, flags, addr, size = message.fields(DMA_UNMAP)
        if flags & UNMAP_ALL:
            if addr or size:
                raise Refused(errno.EINVAL)
            self._memory.clear()
        elif not self._memory.remove(addr, size):
            raise Refused(errno.ENOENT)
        return message.payload[: DMA_UNMAP.size]

    # Registers

    def _check(self, region: int, offset: int, count: int) -> None:
        if region >= REGIONS or not self._device.takes(region, offset, count):
            raise Refused(errno.EINVAL)

    def _region_read(self, message: Message) -> bytes:
        offset, region, count = message.fields(ACCESS)
        self._check(region, offset, count)
        data = self._device.read(region, offset, count)
        return ACCESS.pack(offset, region, count) + data

    def _region_write(self, message: Message) -> bytes:
        offset, region, count = message.fields(ACCESS)
        data = message.payload[ACCESS.size :]
        if len(data) != count:
            raise BadMessage(f"sent {len(data)} bytes to write, not {count}")
        self._check(region, offset, count)
        self._device.write(region, offset, data)
        return ACCESS.pack(offset, region, count)

    def _region_write_multi(self, message: Message) -> bytes:
        (writes,) = message.fields(COUNT)
        if len(message.payload) != COUNT.size + writes * POSTED.size:
            raise BadMessage(f"sent {writes} writes in {len(message.payload)} bytes")
        for number in range(writes):
            at = COUNT.size + number * POSTED.size
            offset, region, count, data = message.fields(POSTED, at)
            if count > POSTED_DATA_MAX:
                raise BadMessage(f"sent {count} bytes in one of many writes")
            self._check(region, offset, count)
            self._device.write(region, offset, data[:count])
        return COUNT.pack(writes)

    # Interrupts

    def _set_irqs(self, message: Message) -> bytes:
        _, flags, index, start, count = message.fields(IRQ_SET)
        if index != INTX:
            raise Refused(errno.EINVAL)
        kind, action = flags & _DATA, flags & ~_DATA
        if start + count > 1 or kind not in (DATA_NONE, DATA_BOOL, DATA_EVENTFD):
            raise Refused(errno.EINVAL)
        if kind == DATA_EVENTFD:
            self._connect(message, action)
        elif kind == DATA_NONE and action == ACTION_TRIGGER and not count:
            self._intx.connect(CLOSED)
        elif kind == DATA_NONE or (count and message.fields(IRQ_SET) and self._is_true(message)):
            self._act(action)
        return b""

    def _is_true(self, message: Message) -> bool:
        """The one boolean that DATA_BOOL brings."""
        data = message.payload[IRQ_SET.size :]
        if not data:
            raise BadMessage("sent an interrupt's booleans without one")
        return bool(data[0])

    def _connect(self, message: Message, action: int) -> None:
        if action != ACTION_TRIGGER:  # events for the client's own masking
            raise Refused(errno.ENOTSUP)
        if not message.fds:
            self._intx.connect(CLOSED)
            return
        self._check_event(message.fds[0])
        self._intx.connect(message.fds.pop(0))

    def _act(self, action: int) -> None:
        if action == ACTION_MASK:
            self._intx.mask()
        elif action == ACTION_UNMASK:
            self._intx.unmask()
        elif action == ACTION_TRIGGER:
            self._intx.trigger()
        else:
            raise Refused(errno.EINVAL)
