from __future__ import annotations

import errno
import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic import csr
from nic.pcnet_memory import Block, emit_block_32
from nic.ring import ENP, OWN, STP
from nic.vfio_user.memory import REGIONS_MAX
from nic.vfio_user.messages import (
    ACCESS,
    COUNT,
    DEVICE_INFO,
    DMA_MAP,
    DMA_UNMAP,
    ERROR,
    HEADER,
    IRQ_INFO,
    IRQ_SET,
    NO_REPLY,
    POSTED,
    REGION_INFO,
    REPLY,
    VERSION,
    Command,
    capabilities_of,
)
from tests.kit.pcnet import frame_of
from tests.kit.vfio_client import MAC, PROPOSAL, VfioClient

EVENTFD_TRIGGER, NONE_TRIGGER, NONE_UNMASK, NONE_MASK = 36, 33, 17, 9


def begun() -> VfioClient:
    client = VfioClient()
    client.begin()
    return client


def errno_of(client: VfioClient, command: int, payload: bytes, fds: tuple[int, ...] = ()) -> int:
    header = client.ask(command, payload, fds).header
    return header.errno if header.flags & ERROR else 0


# Who and what


def test_version() -> None:
    with VfioClient() as client:
        reply = client.begin()
        assert VERSION.unpack_from(reply.payload) == (0, 0)
        assert capabilities_of(reply.payload[VERSION.size :]) == {
            "max_msg_fds": 16,
            "max_data_xfer_size": 4096,
            "pgsizes": 4096,
            "write_multiple": True,
        }


def test_version_without_capabilities() -> None:
    with VfioClient() as client:
        reply = client.ask(Command.VERSION, VERSION.pack(0, 9))
        assert capabilities_of(reply.payload[VERSION.size :]) == {}


@pytest.mark.parametrize(
    ("command", "payload", "why"),
    [
        (Command.DEVICE_GET_INFO, bytes(16), "did not say VERSION first"),
        (Command.VERSION, VERSION.pack(1, 0), "speaks version 1"),
        (Command.VERSION, b"\0", "sent command 1 with 1 bytes"),
    ],
)
def test_a_bad_beginning(command: int, payload: bytes, why: str) -> None:
    with VfioClient() as client:
        client.send(command, payload)
        client.turn()
        assert why in client.gone[0]
        assert client.port.broken


def test_version_twice() -> None:
    with begun() as client:
        client.send(Command.VERSION, VERSION.pack(0, 0) + PROPOSAL)
        client.turn()
        assert client.gone == ["said VERSION twice"]


def test_what_the_device_is() -> None:
    with begun() as client:
        ask = client.fields
        assert ask(DEVICE_INFO, Command.DEVICE_GET_INFO, bytes(16)) == (16, 3, 9, 5)
        sizes = [
            ask(REGION_INFO, Command.GET_REGION_INFO, REGION_INFO.pack(32, 0, index, 0, 0, 0))
            for index in range(9)
        ]
        assert [info[4] for info in sizes] == [32, 32, 0, 0, 0, 0, 0, 256, 0]
        assert [info[1] for info in sizes] == [3, 3, 0, 0, 0, 0, 0, 3, 0]
        irqs = [
            ask(IRQ_INFO, Command.GET_IRQ_INFO, IRQ_INFO.pack(16, 0, i, 0))[1:] for i in range(5)
        ]
        assert irqs == [(7, 0, 1), (0, 1, 0), (0, 2, 0), (0, 3, 0), (0, 4, 0)]
        assert client.read(7, 0, 4) == bytes.fromhex("22100020")
        assert client.read(0, 0, 4) == MAC[:4]


@pytest.mark.parametrize("command", [6, 11, 12, 14, 16, 17, 18, 99, 0xFFFF])
def test_what_is_not_offered(command: int) -> None:
    with begun() as client:
        assert errno_of(client, command, bytes(32)) == errno.ENOTSUP
        assert client.gone == []


def test_no_reply_where_none_is_wanted() -> None:
    with begun() as client:
        client.send(Command.REGION_WRITE, ACCESS.pack(0x12, 0, 2) + b"\x58\0", flags=NO_REPLY)
        client.send(99, flags=NO_REPLY)
        client.turn()
        with pytest.raises(BlockingIOError):
            client.receive()
        assert client.read(0, 0x12, 2) == b"\x58\0"


# Memory and registers


def test_mapping_over_another_region() -> None:
    with begun() as client:
        assert client.map(0, client.ram).header.flags == REPLY
        assert client.map(0x1000, client.ram).header.errno == errno.EEXIST
        assert client.unmap(0, 0x1000).header.errno == errno.ENOENT
        reply = client.unmap(0, 1 << 20)
        assert reply.payload == DMA_UNMAP.pack(DMA_UNMAP.size, 0, 0, 1 << 20)
        assert client.map(0x1000, client.ram).header.flags == REPLY


def test_everything_is_unmapped_at_once() -> None:
    """VFIO's UNMAP_FLAG_ALL, which QEMU's client knows."""
    with begun() as client:
        for n in range(3):
            assert errno_of(client, 2, DMA_MAP.pack(32, 3, 0, n << 20, 1 << 20)) == 0
        assert errno_of(client, 3, DMA_UNMAP.pack(24, 2, 0, 1 << 20)) == errno.EINVAL
        assert errno_of(client, 3, DMA_UNMAP.pack(24, 2, 0, 0)) == 0
        for n in range(3):
            assert errno_of(client, 3, DMA_UNMAP.pack(24, 0, n << 20, 1 << 20)) == errno.ENOENT
            assert errno_of(client, 2, DMA_MAP.pack(32, 3, 0, n << 20, 1 << 20)) == 0


def test_memory_that_cannot_be_mapped() -> None:
    with begun() as client:
        payload = DMA_MAP.pack(DMA_MAP.size, 3, 0, 0, 1 << 40)
        assert errno_of(client, Command.DMA_MAP, payload, client.ram.fds) == errno.EINVAL
        reader, writer = os.pipe()
        payload = DMA_MAP.pack(DMA_MAP.size, 3, 0, 0, 4096)
        assert errno_of(client, Command.DMA_MAP, payload, (reader,)) in (
            errno.EINVAL,
            errno.ENODEV,
            errno.EACCES,
        )
        os.close(reader)
        os.close(writer)


def test_accesses_that_no_bus_makes() -> None:
    with begun() as client:
        for offset, region, count in ((0x11, 0, 2), (0x20, 0, 1), (0, 5, 4), (0, 99, 4), (0, 7, 0)):
            payload = ACCESS.pack(offset, region, count)
            assert errno_of(client, Command.REGION_READ, payload) == errno.EINVAL
        assert client.gone == []


def test_many_writes_at_once() -> None:
    with begun() as client:
        writes = [(0x12, b"\x0f\0"), (0x10, b"\0\x80"), (0x12, b"\x58\0")]
        payload = COUNT.pack(len(writes)) + b"".join(
            POSTED.pack(offset, 0, len(data), data) for offset, data in writes
        )
        reply = client.ask(Command.REGION_WRITE_MULTI, payload)
        assert COUNT.unpack(reply.payload) == (3,)
        assert client.read(0, 0x12, 2) == b"\x58\0"
        assert client.csr(15) == 0x8000


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (Command.DMA_MAP, bytes(31)),
        (Command.DMA_UNMAP, bytes(8)),
        (Command.DEVICE_GET_INFO, b""),
        (Command.GET_REGION_INFO, bytes(16)),
        (Command.GET_IRQ_INFO, bytes(4)),
        (Command.SET_IRQS, bytes(19)),
        (Command.REGION_READ, bytes(15)),
        (Command.REGION_WRITE, ACCESS.pack(0x12, 0, 4) + b"ab"),
        (Command.REGION_WRITE, ACCESS.pack(0x12, 0, 0xFFFFFFFF) + b"ab"),
        (Command.REGION_WRITE_MULTI, COUNT.pack(1 << 60)),
        (Command.REGION_WRITE_MULTI, COUNT.pack(1) + POSTED.pack(0, 0, 9, b"")),
        (Command.SET_IRQS, IRQ_SET.pack(20, 34, 0, 0, 1)),
    ],
)
def test_malformed_messages_end_the_connection(command: int, payload: bytes) -> None:
    with begun() as client:
        client.send(command, payload)
        client.turn()
        assert len(client.gone) == 1
        assert client.port.broken
        assert client.port.claim(60) is None
        assert client.turn() == []


# Interrupts


def test_interrupts_by_eventfd() -> None:
    with begun() as client:
        client.write(7, 4, b"\x07\0")
        client.map(0, client.ram)
        assert client.set_irqs(EVENTFD_TRIGGER, fds=(client.event,)).header.flags == REPLY
        client.csr(0, csr.INEA | csr.INIT)
        assert client.interrupts() == 1
        client.csr(0)
        assert client.interrupts() == 0
        client.set_irqs(NONE_UNMASK)
        assert client.interrupts() == 1  # still up
        client.csr(0, csr.INEA | csr.IDON)
        client.set_irqs(NONE_UNMASK)
        assert client.interrupts() == 0
        client.set_irqs(NONE_TRIGGER)
        assert client.interrupts() == 1
        client.set_irqs(NONE_MASK)
        client.set_irqs(NONE_TRIGGER, count=0)
        client.set_irqs(NONE_TRIGGER)
        assert client.interrupts() == 0


def test_interrupts_that_there_are_none_of() -> None:
    with begun() as client:
        for flags, index, start, count in (
            *((36, 1, 0, 1), (36, 0, 1, 1), (36, 0, 0, 2), (3 << 4, 0, 0, 1)),
            *((32, 0, 0, 1), (0, 0, 0, 0), (63, 0, 0, 1), (1, 0, 0, 1)),
        ):
            payload = IRQ_SET.pack(20, flags, index, start, count)
            assert errno_of(client, Command.SET_IRQS, payload) == errno.EINVAL
        payload = IRQ_SET.pack(20, 4 | 16, 0, 0, 1)
        assert errno_of(client, Command.SET_IRQS, payload, (client.event,)) == errno.ENOTSUP


def test_an_event_that_is_no_eventfd() -> None:
    with begun() as client:
        reader, writer = os.pipe()
        client.send(Command.SET_IRQS, IRQ_SET.pack(20, EVENTFD_TRIGGER, 0, 0, 1), (writer,))
        client.turn()
        assert client.gone == ["sent a descriptor for events that is no eventfd"]
        os.close(reader)
        os.close(writer)


# The whole


def open_card(client: VfioClient) -> None:
    """As a driver does: rings of four, buffers at 0x10000."""
    client.begin()
    client.map(0, client.ram)
    client.write(7, 4, b"\x07\0")
    client.set_irqs(EVENTFD_TRIGGER, fds=(client.event,))
    client.write(0, 0x12, b"\x14\0")
    client.write(0, 0x16, b"\x02\0")
    block = Block(0, MAC, (0, 0, 0, 0), 2, 2, 0x2000, 0x3000)
    client.ram.write(0x1000, emit_block_32(block))  # type: ignore[arg-type]
    for index in range(4):
        dwords = (0x10000 + 0x1000 * index, OWN << 24 | 0xF9F8, 0, 0)
        octets = b"".join(dword.to_bytes(4, "little") for dword in dwords)
        client.ram.write(0x2000 + 16 * index, octets)  # type: ignore[arg-type]
    client.csr(1, 0x1000)
    client.csr(2, 0)
    client.csr(0, csr.INIT)
    client.csr(0, csr.INEA | csr.STRT | csr.IDON)
    client.interrupts()


def test_frames_cross_in_the_clients_memory() -> None:
    with VfioClient() as client:
        open_card(client)
        frame = frame_of(200, MAC)
        claim = client.port.claim(200)
        assert claim is not None
        claim.iov.copy_from(frame)
        assert client.ram.read(0x10000, 200) == frame  # type: ignore[arg-type]
        claim.commit(200)
        client.turn()
        assert client.ram.read(0x2007, 1)[0] == STP | ENP  # type: ignore[arg-type]
        assert client.interrupts() == 1
        client.write(0, 0x12, b"\0\0")
        client.ram.write(0x20000, frame)  # type: ignore[arg-type]
        dwords = (0x20000, (OWN | STP | ENP) << 24 | 0xF000 | -200 & 0xFFF, 0, 0)
        octets = b"".join(dword.to_bytes(4, "little") for dword in dwords)
        client.ram.write(0x3000, octets)  # type: ignore[arg-type]
        client.send(Command.REGION_WRITE, ACCESS.pack(0x10, 0, 2) + b"\x48\0")
        assert client.turn() == [frame]


def test_memory_that_is_gone_is_a_master_abort() -> None:
    with VfioClient() as client:
        open_card(client)
        client.unmap(0, 1 << 20)
        assert client.port.claim(60) is None
        assert client.csr(0) == csr.STOP
        assert client.gone == []


def test_reset_leaves_nothing_running() -> None:
    with VfioClient() as client:
        open_card(client)
        assert client.ask(Command.DEVICE_RESET).header.flags == REPLY
        assert client.csr(0) == csr.STOP
        assert client.port.claim(60) is None
        assert client.read(7, 4, 2) == b"\0\0"


def test_descriptors_that_nobody_takes_are_closed() -> None:
    with begun() as client:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(REGIONS_MAX):
            client.ask(Command.DEVICE_GET_INFO, bytes(16), (client.event, client.event))
            client.map(0, client.ram)
            client.unmap(0, 1 << 20)
        assert len(os.listdir("/proc/self/fd")) == before


def test_closing_gives_everything_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with VfioClient() as client:
        open_card(client)
    assert len(os.listdir("/proc/self/fd")) == before


commands = st.one_of(st.sampled_from(sorted(Command)), st.integers(0, 20))
small = st.integers(0, 40)


@given(st.lists(st.tuples(commands, st.binary(max_size=64)), max_size=12))
@settings(max_examples=150, deadline=None)
def test_any_messages(messages: list[tuple[int, bytes]]) -> None:
    with begun() as client:
        for command, payload in messages:
            client.send(command, payload)
            client.turn()
        assert len(client.gone) <= 1


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_mutations_of_a_drivers_messages(data: st.DataObject) -> None:
    """Each message of a driver's opening with some of its bytes changed."""
    with VfioClient() as client:
        open_card(client)
        seeds = [
            HEADER.pack(1, Command.DMA_MAP, 48, 0, 0) + DMA_MAP.pack(32, 3, 0, 1 << 20, 4096),
            HEADER.pack(2, Command.REGION_READ, 32, 0, 0) + ACCESS.pack(0x10, 0, 2),
            HEADER.pack(3, Command.REGION_WRITE, 34, 0, 0) + ACCESS.pack(0x10, 0, 2) + b"\x48\0",
            HEADER.pack(4, Command.SET_IRQS, 36, 0, 0) + IRQ_SET.pack(20, 36, 0, 0, 1),
            HEADER.pack(5, Command.DEVICE_RESET, 16, 0, 0),
        ]
        for _ in range(4):
            seed = bytearray(data.draw(st.sampled_from(seeds)))
            for at in data.draw(st.lists(st.integers(0, len(seed) - 1), max_size=3)):
                seed[at] = data.draw(st.integers(0, 255))
            client.sock.send(seed)
            client.turn()
            claim = client.port.claim(60)
            if claim is not None:
                claim.commit(60)
        assert len(client.gone) <= 1


@pytest.mark.parametrize("way", ["receive", "transmit"])
def test_a_file_that_is_truncated_ends_its_machine(way: str) -> None:
    fd = os.memfd_create("ram")  # cannot be sealed
    os.ftruncate(fd, 1 << 20)
    with VfioClient() as client, VfioClient() as other:
        client.begin()
        other.begin()
        assert (
            client.ask(Command.DMA_MAP, DMA_MAP.pack(32, 3, 0, 0, 1 << 20), (fd,)).header.flags
            == REPLY
        )
        client.write(7, 4, b"\x07\0")
        client.write(0, 0x12, b"\x14\0")
        client.write(0, 0x16, b"\x02\0")
        os.pwrite(fd, emit_block_32(Block(0, MAC, (0, 0, 0, 0), 2, 2, 0x2000, 0x3000)), 0x1000)
        os.pwrite(fd, struct.pack("<IIII", 0x10000, OWN << 24 | 0xF9F8, 0, 0) * 4, 0x2000)
        client.csr(1, 0x1000)
        client.csr(2, 0)
        client.csr(0, csr.INIT)
        client.csr(0, csr.INEA | csr.STRT | csr.IDON)
        os.ftruncate(fd, 0)
        if way == "receive":
            claim = client.port.claim(60)
            assert claim is None
        else:
            client.send(Command.REGION_WRITE, ACCESS.pack(0x10, 0, 2) + b"\x48\0")
        client.turn()
        client.port.poll(1.0)
        assert client.gone == ["took back memory that it had lent"]
        assert client.port.broken
        assert other.read(0, 0, 4) == MAC[:4]
    os.close(fd)
