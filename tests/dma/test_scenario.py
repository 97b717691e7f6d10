"""The third scenario of the 2007 e-mail: a TCP socket receives through Lance, LEDMA and IOMMU.

    SLIRP TCP socket → IP → Ethernet interface → Lance → LEDMA → IOMMU → memory

The e-mail follows the (address, size) vectors by hand from stage to stage. Here real stages do it,
a real socket delivers the bytes, and what each stage leaves is printed (`pytest -s`) and compared
with what the e-mail says. Its own slips are put right like this:

- The receive buffer is at LANCE address 0, not 0x1000: only then is 0xfc000000 its DVMA address,
  and only then are both pages of the buffer mapped. Where the e-mail's 0x1000 leads is a test too.
- "stuff" is 58 bytes, not 34: the TCP header and the FCS are there as well.
- 4,096 bytes of payload are no Ethernet frame, and with its headers the frame exceeds one buffer,
  which has at most 4,096 bytes: two descriptors are chained, each gets its own status. MCNT has 12
  bits, so of the 4,154 bytes it can say only 58; a frame of legal size is a test too.
- LEDMA's completion stores the bytes, the Lance's touches the descriptor and nothing else.

Two things are ours. The guest's addresses are translated when the transfer opens and not again in
LEDMA's completion, so that a fault is known while the bytes are still in the socket; hence IOMMU
and memory are printed before anything is received. And the three vectors (four, with TCP's header)
*can* be merged at LEDMA, since they touch: IOMMU sees one range.
"""

from __future__ import annotations

import ctypes
import socket
import sys
import zlib
from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from dma.iommu import BASE, CTRL, Iommu
from dma.iovec import IoVec, PhysAddr, Range
from dma.ledma import E_BASE_ADDR, E_CSR, ERR_PEND, Ledma, Mode
from dma.memory import GuestMemory
from dma.transfer import CompletionQueue, Direction, DmaFault, DmaPath, Lanes, Transfer

ETH_LEN, IP_LEN, TCP_LEN, FCS_LEN = 14, 20, 20, 4
HEADERS_LEN = ETH_LEN + IP_LEN + TCP_LEN
BUFFER_LEN = 4096  # of each receive buffer: the most that BCNT can say
RING = 0x002000  # LANCE address of the receive ring, in a page of its own
PAGES = [(0x1000, 0x1000), (0x4000, 0x1000)]  # physical, of the receive buffers
TABLE = 0x00100000  # physical, of the IOPTEs
OWN, STP, ENP = 0x8000, 0x0200, 0x0100

Trail = list[tuple[str, list[Range]]]


class Watch:
    """A DMA path around another: notes the ranges of frames as this stage passes them on."""

    def __init__(self, inner: DmaPath, stage: str, scenario: Scenario) -> None:
        self.inner = inner
        self.stage = stage
        self.scenario = scenario

    def open(self, transfer: Transfer) -> IoVec:
        if transfer.headers is not None:
            self.scenario.show(self.stage, transfer.ranges)
        return self.inner.open(transfer)


class Scenario:
    """The machine of the e-mail, and a Lance that knows two descriptors and how to receive."""

    def __init__(self, mode: Mode, lanes: Lanes) -> None:
        self.trail: Trail = []
        self.lanes = lanes
        self.queue = CompletionQueue()
        self.memory = GuestMemory([*PAGES, (0x6000, 0x1000), (TABLE, 0x1000)])
        iommu = Iommu(Watch(self.memory, "IOMMU", self))
        self.ledma = Ledma(Watch(iommu, "LEDMA", self), mode)
        self.bus = Watch(self.ledma, "Lance", self)
        self.ledma.write(E_BASE_ADDR, 0xFC000000)
        iommu.write(CTRL, 0x00000009)  # 64 MiB from 0xfc000000
        iommu.write(BASE, TABLE >> 4)
        self.memory.write(PhysAddr(TABLE), bytes.fromhex("00000106 00000406 00000606"))
        for index in range(2):
            self.store_words(RING + 8 * index, BUFFER_LEN * index, OWN, 0xF000, 0)
        self.trail.clear()

    def show(self, stage: str, ranges: Sequence[Range]) -> None:
        self.trail.append((stage, list(ranges)))
        pieces = " ".join(f"({addr:#x},{length})" for addr, length in ranges)
        sys.stdout.write(f"{stage:<10} {pieces}\n")

    # The Lance

    def store_words(self, addr: int, *words: int) -> None:
        """Descriptor words: a small transfer of its own, with its own translation."""
        octets = b"".join(word.to_bytes(2, "big") for word in words)
        self.bus.open(Transfer(Direction.FROM_DEVICE, ((addr, len(octets)),))).copy_from(octets)

    def load_words(self, addr: int, count: int) -> list[int]:
        views = self.bus.open(Transfer(Direction.TO_DEVICE, ((addr, 2 * count),)))
        octets = bytes(views)
        return [int.from_bytes(octets[i : i + 2], "big") for i in range(0, 2 * count, 2)]

    def claim(self, frame_ranges: Sequence[Range]) -> tuple[Transfer, IoVec]:
        """Packet offsets become bus addresses of the descriptors' buffers; room for the FCS too."""
        end = sum(frame_ranges[-1])
        ranges: list[Range] = []
        for offset, length in [*frame_ranges, (end, FCS_LEN)]:
            while length:
                index, inside = divmod(offset, BUFFER_LEN)
                buffer, flags, _, _ = self.load_words(RING + 8 * index, 4)
                assert flags & OWN
                size = min(length, BUFFER_LEN - inside)
                ranges.append((buffer + inside, size))
                offset, length = offset + size, length - size
        headers = [length for _, length in frame_ranges[:-1]]
        transfer = Transfer(Direction.FROM_DEVICE, ranges, self.lanes, headers)
        transfer.completions.append(self.lance_rmd_store)
        iov = self.bus.open(transfer)
        self.queue.start(transfer)
        return transfer, iov

    def lance_rmd_store(self, size: int) -> None:
        sys.stdout.write(f"completion lance_rmd_store({size})\n")
        last = (size - 1) // BUFFER_LEN
        for index in range(last + 1):
            addr = RING + 8 * index
            flags = STP if index == 0 else 0
            if index == last:
                flags |= ENP
                self.store_words(addr + 6, size & 0xFFF)
            self.store_words(addr + 2, flags)

    # The layers above it

    def in_front(self, length: int, ranges: Sequence[Range]) -> list[Range]:
        """A layer's header in front of what it was given."""
        return [(0, length), *((offset + length, size) for offset, size in ranges)]

    def prepare(self, payload_len: int) -> tuple[Transfer, IoVec]:
        """TCP wants payload_len bytes from the host: ask downwards for a place to put them."""
        self.show("socket", [(0, payload_len)])
        ranges: list[Range] = [(0, payload_len)]
        for stage, header_len in (("TCP", TCP_LEN), ("IP", IP_LEN), ("Ethernet", ETH_LEN)):
            ranges = self.in_front(header_len, ranges)
            self.show(stage, ranges)
        return self.claim(ranges)

    def deliver(self, transfer: Transfer, iov: IoVec, source: socket.socket, size: int) -> bytes:
        """recvmsg() into the prepared views, headers in front, FCS behind; the frame it made."""
        room = iov.slice(HEADERS_LEN, len(iov) - FCS_LEN)
        came = source.recvmsg_into(room.slice(0, size).segments)[0]
        iov.slice(0, HEADERS_LEN).copy_from(bytes(range(HEADERS_LEN)))
        end = HEADERS_LEN + came
        fcs = zlib.crc32(bytes(iov.slice(0, end))).to_bytes(4, "little")
        iov.slice(end, end + FCS_LEN).copy_from(fcs)
        frame = bytes(iov.slice(0, end + FCS_LEN))
        self.queue.finish(transfer, len(frame))
        return frame

    # What the guest finds

    def guest_buffers(self) -> bytes:
        """Both buffers as the chip's bus has them: exchanged lanes put right again."""
        octets = self.memory.read(PhysAddr(0x1000), 4096) + self.memory.read(PhysAddr(0x4000), 4096)
        if self.lanes is Lanes.STRAIGHT:
            return octets
        return bytes(octets[i ^ 1] for i in range(len(octets)))

    def host_ranges(self, iov: IoVec) -> list[Range]:
        """Where the views lie in the host, as the guest's physical addresses."""
        found: list[Range] = []
        for view in iov:
            pointer = ctypes.addressof(ctypes.c_char.from_buffer(view))
            for start, end, ram in self.memory.regions:
                offset = pointer - ctypes.addressof(ctypes.c_char.from_buffer(ram))
                if 0 <= offset < end - start:
                    found.append((start + offset, len(view)))
        return found


@pytest.fixture
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    """(where the far end writes, where SLIRP reads)"""
    far, near = socket.socketpair()
    with far, near:
        yield far, near


Wire = tuple[socket.socket, socket.socket]

HEADER_CUTS = [(0, 14), (14, 20), (34, 20)]


def trail_of(payload_len: int) -> Trail:
    """Down to the Ethernet interface, addresses are packet offsets."""
    return [
        ("socket", [(0, payload_len)]),
        ("TCP", [(0, 20), (20, payload_len)]),
        ("IP", [(0, 20), (20, 20), (40, payload_len)]),
        ("Ethernet", [*HEADER_CUTS, (54, payload_len)]),
    ]


def test_the_scenario(wire: Wire, capsys: pytest.CaptureFixture[str]) -> None:
    """BSWP=0 with LEDMA's bounce buffer, as the e-mail has it."""
    far, near = wire
    scenario = Scenario("bounce", Lanes.EXCHANGED)
    payload = bytes(i * 7 & 0xFF for i in range(4096))

    transfer, lebuffer = scenario.prepare(4096)
    scenario.show("to recvmsg", cumulative(lebuffer))
    assert scenario.trail == [
        *trail_of(4096),
        # Two descriptors: the payload goes on in the second, and the FCS follows it.
        ("Lance", [*HEADER_CUTS, (54, 4042), (0x1000, 54), (0x1036, 4)]),
        # LEDMA keeps those for its own buffer; what touches goes on to IOMMU as one.
        ("LEDMA", [(0xFC000000, 4154)]),
        ("IOMMU", [(0x1000, 4096), (0x4000, 58)]),
        ("to recvmsg", [*HEADER_CUTS, (54, 4042), (4096, 54), (4150, 4)]),
    ]
    assert scenario.host_ranges(lebuffer) == [], "the socket fills lebuffer, not the guest"
    lance_rmd_store, le_bswap_buffer = transfer.completions
    assert lance_rmd_store == scenario.lance_rmd_store
    assert isinstance(le_bswap_buffer, partial)
    guest: IoVec = le_bswap_buffer.args[0]
    scenario.show("memory", scenario.host_ranges(guest))
    assert scenario.trail[-1] == ("memory", [(0x1000, 4096), (0x4000, 58)])

    far.sendall(payload)
    frame = scenario.deliver(transfer, lebuffer, near, 4096)
    assert scenario.guest_buffers() == bytes(8192), "nothing happens before the loop runs"
    assert scenario.queue.run(8) == 1

    assert frame[HEADERS_LEN:-FCS_LEN] == payload
    assert scenario.guest_buffers() == frame + bytes(8192 - 4154)
    assert scenario.load_words(RING, 4) == [0x0000, STP, 0xF000, 0]
    assert scenario.load_words(RING + 8, 4) == [0x1000, ENP, 0xF000, 4154 & 0xFFF]
    assert scenario.ledma.copied_bytes == 4154
    assert capsys.readouterr().out.splitlines() == [
        "socket     (0x0,4096)",
        "TCP        (0x0,20) (0x14,4096)",
        "IP         (0x0,20) (0x14,20) (0x28,4096)",
        "Ethernet   (0x0,14) (0xe,20) (0x22,20) (0x36,4096)",
        "Lance      (0x0,14) (0xe,20) (0x22,20) (0x36,4042) (0x1000,54) (0x1036,4)",
        "LEDMA      (0xfc000000,4154)",
        "IOMMU      (0x1000,4096) (0x4000,58)",
        "to recvmsg (0x0,14) (0xe,20) (0x22,20) (0x36,4042) (0x1000,54) (0x1036,4)",
        "memory     (0x1000,4096) (0x4000,58)",
        "completion lance_rmd_store(4154)",
    ]


def cumulative(iov: IoVec) -> list[Range]:
    """(offset, length) of each segment."""
    ranges: list[Range] = []
    for view in iov:
        ranges.append((sum(length for _, length in ranges), len(view)))
    return ranges


@pytest.mark.parametrize("lanes", Lanes)
def test_without_the_bounce_buffer_the_socket_fills_the_guest(wire: Wire, lanes: Lanes) -> None:
    """BSWP=1, as all Sun software has it; and BSWP=0 with the lanes exchanged in place."""
    far, near = wire
    scenario = Scenario("in-place", lanes)
    transfer, iov = scenario.prepare(4096)
    cuts = [*HEADER_CUTS, (54, 4042)]
    second = [(0x4000, 54), (0x4036, 4)]
    assert scenario.trail[4] == ("Lance", [*cuts, (0x1000, 54), (0x1036, 4)])
    if lanes is Lanes.STRAIGHT:
        dvma = [(0xFC000000 + addr, length) for addr, length in cuts]
        assert scenario.trail[5:] == [
            ("LEDMA", [*dvma, (0xFC001000, 54), (0xFC001036, 4)]),
            ("IOMMU", [*((0x1000 + addr, length) for addr, length in cuts), *second]),
        ]
    else:
        assert scenario.trail[5:] == [
            ("LEDMA", [(0xFC000000, 4154)]),
            ("IOMMU", [(0x1000, 4096), (0x4000, 58)]),
        ]
    views = scenario.host_ranges(iov)
    assert views == [*((0x1000 + addr, length) for addr, length in cuts), *second]
    far.sendall(bytes(i * 7 & 0xFF for i in range(4096)))
    frame = scenario.deliver(transfer, iov, near, 4096)
    assert scenario.queue.run(8) == 1
    assert scenario.guest_buffers() == frame + bytes(8192 - 4154)
    assert scenario.ledma.copied_bytes == 0


@pytest.mark.parametrize("mode", ["in-place", "bounce"])
@pytest.mark.parametrize("came", [1, 5, 1460])
def test_a_legal_frame_of_which_less_came_than_was_asked_for(
    wire: Wire, mode: Mode, came: int
) -> None:
    """How big must the buffer be? As big as TCP may take; fewer bytes are no trouble."""
    far, near = wire
    scenario = Scenario(mode, Lanes.EXCHANGED)
    transfer, iov = scenario.prepare(1460)
    far.sendall(bytes(range(1, 256)) * 6)
    frame = scenario.deliver(transfer, iov, near, came)
    assert scenario.queue.run(8) == 1
    assert scenario.guest_buffers() == frame + bytes(8192 - len(frame))
    assert len(frame) == HEADERS_LEN + came + FCS_LEN
    assert scenario.load_words(RING, 4) == [0, STP | ENP, 0xF000, len(frame)]
    assert scenario.load_words(RING + 8, 2) == [0x1000, OWN], "the second one was not needed"


@pytest.mark.parametrize("mode", ["in-place", "bounce"])
def test_octets_that_come_late_make_no_difference(wire: Wire, mode: Mode) -> None:
    far, near = wire
    scenario = Scenario(mode, Lanes.EXCHANGED)
    transfer, iov = scenario.prepare(1460)
    assert scenario.queue.run(8) == 0
    assert scenario.load_words(RING, 2) == [0, OWN]
    far.sendall(bytes(1460))
    frame = scenario.deliver(transfer, iov, near, 1460)
    assert scenario.queue.run(8) == 1
    assert scenario.guest_buffers()[: len(frame)] == frame


def test_a_claim_that_is_cancelled_leaves_the_descriptor_to_the_chip() -> None:
    scenario = Scenario("bounce", Lanes.EXCHANGED)
    transfer, _ = scenario.prepare(1460)
    scenario.queue.cancel(transfer)
    assert scenario.queue.run(8) == 0
    assert scenario.load_words(RING, 4) == [0, OWN, 0xF000, 0]
    assert scenario.guest_buffers() == bytes(8192)


def test_where_the_e_mails_own_buffer_address_leads() -> None:
    """LANCE 0x1000 is DVMA 0xfc001000 is 0x4000, and the page after it is not mapped."""
    with GuestMemory([*PAGES, (TABLE, 0x1000)]) as memory:
        memory.write(PhysAddr(TABLE), bytes.fromhex("00000106 00000406"))
        iommu = Iommu(memory)
        iommu.write(CTRL, 0x00000009)
        iommu.write(BASE, TABLE >> 4)
        ledma = Ledma(iommu, "bounce")
        ledma.write(E_BASE_ADDR, 0xFC000000)
        headers = Transfer(Direction.FROM_DEVICE, ((0x1000, 14), (0x100E, 20)))
        ledma.open(headers)
        assert headers.ranges == [(0x4000, 14), (0x400E, 20)]
        ranges = ((0x1000, 14), (0x100E, 20), (0x1022, 4096))
        with pytest.raises(DmaFault) as raised:
            ledma.open(Transfer(Direction.FROM_DEVICE, ranges, Lanes.EXCHANGED))
        assert (raised.value.stage, raised.value.addr) == ("iommu", 0xFC002000)
        assert ledma.read(E_CSR) & ERR_PEND
