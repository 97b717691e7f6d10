"""A vfio-user client: one end of a socket pair, with memory of its own to lend.

    with VfioClient() as client:
        client.begin()
        client.map(0, client.ram)
        client.write(7, 4, b"\\x07\\0")
        assert client.read(0, 0, 6) == client.port.mac

`ask` sends a command and returns what comes back; the port has its turn in between.

Does not do: threads, or an operating system (tests/qemu/test_pcnet.py has one).
"""

from __future__ import annotations

import os
import socket
from struct import Struct
from types import TracebackType
from typing import Any, NamedTuple, Self

from dma.memory import GuestMemory
from nic.vfio_user.messages import (
    ACCESS,
    DMA_MAP,
    DMA_UNMAP,
    HEADER,
    IRQ_SET,
    VERSION,
    Command,
    Header,
)
from nic.vfio_user.port import VfioUserPort

MAC = bytes.fromhex("525400706300")
PROPOSAL = (
    b'{"capabilities": {"max_msg_fds": 16, "max_data_xfer_size": 1048576, "pgsizes": 4096,'
    b' "write_multiple": true}}\0'
)


class Reply(NamedTuple):
    header: Header
    payload: bytes


class VfioClient:
    """Both ends: `sock` is the client's, `port` the server."""

    def __init__(self, memory: int = 1 << 20, **options: Any) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.setblocking(False)
        self.gone: list[str] = []
        self.port = VfioUserPort(theirs, mac=MAC, on_gone=self.gone.append, **options)
        self.ram = GuestMemory(memory)
        self.event = os.eventfd(0, os.EFD_NONBLOCK)
        self._id = 0

    # Messages

    def send(
        self, command: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 0
    ) -> None:
        self._id += 1
        header = HEADER.pack(self._id, command, HEADER.size + len(payload), flags, 0)
        socket.send_fds(self.sock, [header + payload], list(fds))

    def turn(self) -> list[bytes]:
        """The port's turn; the frames that its guest sent."""
        frames = []
        for frame in self.port.frames():
            frames.append(bytes(frame.iov))
            frame.release()
        self.port.poll(0.0)
        return frames

    def receive(self) -> Reply:
        data = self.sock.recv(1 << 16)
        return Reply(Header(*HEADER.unpack_from(data)), data[HEADER.size :])

    def ask(self, command: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> Reply:
        self.send(command, payload, fds)
        self.turn()
        return self.receive()

    def fields(self, form: Struct, command: int, payload: bytes) -> tuple[Any, ...]:
        return form.unpack_from(self.ask(command, payload).payload)

    # What a client does

    def begin(self) -> Reply:
        return self.ask(Command.VERSION, VERSION.pack(0, 0) + PROPOSAL)

    def map(self, addr: int, memory: GuestMemory, flags: int = 3, size: int = 0) -> Reply:
        size = size or memory.regions[0].end
        payload = DMA_MAP.pack(DMA_MAP.size, flags, 0, addr, size)
        return self.ask(Command.DMA_MAP, payload, memory.fds[:1])

    def unmap(self, addr: int, size: int) -> Reply:
        return self.ask(Command.DMA_UNMAP, DMA_UNMAP.pack(DMA_UNMAP.size, 0, addr, size))

    def read(self, region: int, offset: int, size: int) -> bytes:
        reply = self.ask(Command.REGION_READ, ACCESS.pack(offset, region, size))
        return reply.payload[ACCESS.size :]

    def write(self, region: int, offset: int, data: bytes) -> Reply:
        return self.ask(Command.REGION_WRITE, ACCESS.pack(offset, region, len(data)) + data)

    def set_irqs(self, flags: int, count: int = 1, fds: tuple[int, ...] = ()) -> Reply:
        return self.ask(Command.SET_IRQS, IRQ_SET.pack(IRQ_SET.size, flags, 0, 0, count), fds)

    def interrupts(self) -> int:
        """How often the eventfd was signalled since the last look."""
        try:
            return int.from_bytes(os.read(self.event, 8), "little")
        except BlockingIOError:
            return 0

    def csr(self, number: int, value: int | None = None) -> int:
        self.write(0, 0x12, number.to_bytes(2, "little"))
        if value is not None:
            self.write(0, 0x10, value.to_bytes(2, "little"))
        return int.from_bytes(self.read(0, 0x10, 2), "little")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.port.close()
        self.sock.close()
        self.ram.close()
        os.close(self.event)
