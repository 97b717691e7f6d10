"""ESPDMA: registers, the wires to the chip, addresses, counts, chains and faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma import espdma
from dma.espdma import (
    A_LOADED,
    D_ADDR,
    D_BCNT,
    D_CSR,
    D_TST_CSR,
    DMA_ON,
    EN_CNT,
    EN_DMA,
    EN_NEXT,
    ERR_PEND,
    INT_EN,
    INT_PEND,
    INVALIDATE,
    NA_LOADED,
    RESET,
    SLAVE_ERR,
    TC,
    TCI_DIS,
    WRITE,
    Espdma,
)
from dma.iommu import BASE, CTRL, Iommu
from dma.iovec import IoVec, PhysAddr, Range
from dma.memory import GuestMemory
from dma.transfer import CompletionQueue, Direction, DmaFault, Transfer

TO_DEVICE, FROM_DEVICE = Direction.TO_DEVICE, Direction.FROM_DEVICE
ID = 0xA0000000
TABLE = 0x00100000  # physical, of the IOPTEs


class Board:
    """ESPDMA on an IOMMU with the two pages of the e-mail."""

    def __init__(self) -> None:
        self.memory = GuestMemory([(0x1000, 0x1000), (0x4000, 0x1000), (TABLE, 0x1000)])
        self.iommu = Iommu(self.memory)
        self.levels: list[bool] = []
        self.resets = 0
        self.requests = 0
        self.queue = CompletionQueue()
        self.unit = Espdma(
            self.iommu,
            interrupt=self.levels.append,
            reset=self.count_reset,
            request=self.count_request,
        )
        self.iommu.write(BASE, TABLE >> 4)
        self.iommu.write(CTRL, 0x00000009)
        self.memory.write(PhysAddr(TABLE), bytes.fromhex("00000106 00000406"))

    def count_reset(self) -> None:
        self.resets += 1

    def count_request(self) -> None:
        self.requests += 1

    def csr(self) -> int:
        return self.unit.read(D_CSR) & ~ID

    def start(self, csr: int, addr: int = 0xFC000000) -> None:
        self.unit.write(D_CSR, EN_DMA | csr)
        self.unit.write(D_ADDR, addr)

    def open(self, direction: Direction, *ranges: Range) -> tuple[Transfer, IoVec]:
        transfer = Transfer(direction, ranges)
        iov = self.unit.open(transfer)
        self.queue.start(transfer)
        return transfer, iov

    def move(self, direction: Direction, size: int) -> None:
        transfer, _ = self.open(direction, (0, size))
        self.queue.finish(transfer, size)
        assert self.queue.run(1) == 1


@pytest.fixture
def board() -> Iterator[Board]:
    b = Board()
    yield b
    b.memory.close()


# Registers


def test_registers_at_power_on(board: Board) -> None:
    registers = (D_CSR, D_ADDR, D_BCNT, D_TST_CSR)
    assert [board.unit.read(offset) for offset in registers] == [ID, 0, 0, 0]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (INT_EN, INT_EN),
        (RESET, RESET),
        (WRITE, WRITE),
        (EN_DMA, EN_DMA),
        (EN_CNT, EN_CNT),
        (espdma.DSBL_CSR_DRN | espdma.DSBL_SCSI_DRN, 3 << 16),
        (espdma.BURST_SIZE, 3 << 18),
        (espdma.DIAG | espdma.TWO_CYCLE | espdma.FASTER, 7 << 20),
        (TCI_DIS | EN_NEXT, 3 << 23),
        (INT_PEND | ERR_PEND | espdma.DRAINING | DMA_ON | A_LOADED | NA_LOADED, 0),  # read-only
        (INVALIDATE | SLAVE_ERR | TC | espdma.DRAIN, 0),  # actions
        (3 << 11 | 1 << 15, 0),  # reserved
        (0xFFFFFFFF, 0x01FF2390),
    ],
)
def test_d_csr_bits(board: Board, written: int, read: int) -> None:
    board.unit.write(D_CSR, written)
    assert board.unit.read(D_CSR) == ID | read
    board.unit.write(D_CSR, 0)
    assert board.unit.read(D_CSR) == ID


def test_address_and_count(board: Board) -> None:
    board.unit.write(D_ADDR, 0xFC123456)
    board.unit.write(D_BCNT, 0xFF123456)
    assert board.unit.read(D_ADDR) == 0xFC123456
    assert board.unit.read(D_BCNT) == 0x123456, "24 bits"
    assert board.csr() == A_LOADED
    assert board.unit.read(0x14) == 0xFC123456, "the block repeats"


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (4, 2), (2, 4), (8, 8)])
def test_an_access_that_is_not_a_word_is_a_slave_error(
    board: Board, offset: int, size: int
) -> None:
    board.unit.write(D_CSR, INT_EN)
    board.unit.write(offset, 0xFFFFFFFF, size)
    assert board.unit.read(D_CSR) == ID | INT_EN | SLAVE_ERR
    board.unit.write(D_CSR, SLAVE_ERR)
    assert board.unit.read(D_CSR) == ID
    assert board.unit.read(offset, size) == 0
    assert board.unit.read(D_CSR) == ID | SLAVE_ERR


# Wires


def test_the_interrupt_follows_the_pin_when_enabled(board: Board) -> None:
    board.unit.device_interrupt(True)
    assert (board.csr(), board.levels) == (INT_PEND, [])
    board.unit.write(D_CSR, INT_EN)
    board.unit.write(D_CSR, INT_EN | INVALIDATE)
    board.unit.device_interrupt(False)
    assert (board.csr(), board.levels) == (INT_EN, [True, False])


def test_both_edges_of_reset_reset_the_chip_and_the_rising_one_the_channel(board: Board) -> None:
    board.start(EN_CNT)
    board.unit.write(D_CSR, RESET)
    assert (board.csr(), board.resets) == (RESET, 1)
    board.unit.write(D_CSR, RESET | EN_DMA)
    assert board.resets == 1
    board.unit.write(D_ADDR, 0xFC000000)
    assert board.unit.room(TO_DEVICE) == 0, "held"
    board.unit.write(D_CSR, 0)
    assert (board.csr(), board.resets) == (A_LOADED, 2)


# Room


def test_room_needs_enable_address_and_the_right_direction(board: Board) -> None:
    unit = board.unit
    rooms: list[tuple[int, int]] = []
    for offset, value in (
        (D_CSR, EN_DMA | WRITE),
        (D_ADDR, 0xFC000000),
        (D_CSR, EN_DMA),
        (D_CSR, EN_DMA | EN_CNT),
        (D_BCNT, 100),
        (D_CSR, 0),
    ):
        unit.write(offset, value)
        rooms.append((unit.room(TO_DEVICE), unit.room(FROM_DEVICE)))
    limit = 1 << 24
    assert rooms == [(0, 0), (0, limit), (limit, 0), (limit, 0), (100, 0), (0, 0)]
    assert board.requests == 3, "told whenever the channel is on"
    with pytest.raises(DmaFault):
        board.open(TO_DEVICE, (0, 1))
    assert not board.csr() & ERR_PEND


def test_either_order_of_address_and_enable(board: Board) -> None:
    board.unit.write(D_ADDR, 0xFC000000)
    assert board.requests == 0
    board.unit.write(D_CSR, EN_DMA)
    assert (board.requests, board.csr()) == (1, EN_DMA | A_LOADED | DMA_ON)


# Translation


def test_offsets_become_dvma_and_cuts_stay(board: Board) -> None:
    board.start(WRITE)
    transfer, iov = board.open(FROM_DEVICE, (0x5000, 100), (0x5064, 8092))
    assert transfer.ranges == [(0x1000, 100), (0x1064, 3996), (0x4000, 4096)]
    assert [len(view) for view in iov] == [100, 3996, 4096]
    assert board.unit.read(D_ADDR) == 0xFC000000, "nothing has moved yet"
    board.queue.finish(transfer, 8192)
    board.queue.run(1)
    assert board.unit.read(D_ADDR) == 0xFC002000


def test_fewer_octets_move_the_address_by_as_many(board: Board) -> None:
    board.start(WRITE)
    transfer, _ = board.open(FROM_DEVICE, (0, 8192))
    board.queue.finish(transfer, 5)
    board.queue.run(1)
    assert board.unit.read(D_ADDR) == 0xFC000005


class Ranges:
    """The end of a path: notes what arrives."""

    def __init__(self) -> None:
        self.seen: list[Range] = []

    def open(self, transfer: Transfer) -> IoVec:
        self.seen = list(transfer.ranges)
        return IoVec()


@given(
    st.integers(0, 0xFFFFFFFF),
    st.lists(st.integers(1, 1 << 14), min_size=1, max_size=5),
    st.booleans(),
)
def test_the_top_byte_is_a_latch(addr: int, lengths: list[int], is_at_the_top: bool) -> None:
    if is_at_the_top:
        addr |= 0xFFE000
    end = Ranges()
    unit = Espdma(end)
    unit.write(D_CSR, EN_DMA)
    unit.write(D_ADDR, addr)
    unit.open(Transfer(TO_DEVICE, [(0, length) for length in lengths]))
    octets = [a + i for a, length in end.seen for i in (0, length - 1)]
    assert all(octet >> 24 == addr >> 24 for octet in octets)
    expected = (addr & 0xFFFFFF) + sum(lengths)
    assert sum(length for _, length in end.seen) == sum(lengths)
    last, size = end.seen[-1]
    assert (last + size) & 0xFFFFFF == expected & 0xFFFFFF


def test_a_new_address_is_not_moved_by_an_old_transfer(board: Board) -> None:
    board.start(WRITE)
    transfer, _ = board.open(FROM_DEVICE, (0, 100))
    board.unit.write(D_ADDR, 0xFC001000)
    board.queue.finish(transfer, 100)
    board.queue.run(1)
    assert board.unit.read(D_ADDR) == 0xFC001000


# Count and chain


def test_the_end_of_the_count(board: Board) -> None:
    board.unit.write(D_BCNT, 100)
    board.start(WRITE | EN_CNT | INT_EN)
    board.move(FROM_DEVICE, 60)
    assert (board.unit.read(D_BCNT), board.csr() & TC, board.levels) == (40, 0, [])
    assert board.unit.room(FROM_DEVICE) == 40
    board.move(FROM_DEVICE, 40)
    assert board.csr() == WRITE | EN_CNT | INT_EN | EN_DMA | TC | INT_PEND
    assert (board.levels, board.unit.room(FROM_DEVICE)) == ([True], 0)
    board.unit.write(D_CSR, WRITE | EN_CNT | INT_EN | EN_DMA | TC)
    assert (board.csr() & TC, board.levels) == (0, [True, False])


@pytest.mark.parametrize("clear", [TC, INVALIDATE])
def test_tc_without_interrupt(board: Board, clear: int) -> None:
    board.unit.write(D_BCNT, 1)
    board.start(EN_CNT | INT_EN | TCI_DIS)
    board.move(TO_DEVICE, 1)
    assert board.csr() == EN_DMA | EN_CNT | INT_EN | TCI_DIS | TC
    assert board.levels == []
    board.unit.write(D_CSR, clear)
    assert board.csr() == 0


def test_without_en_cnt_the_count_stands(board: Board) -> None:
    board.unit.write(D_BCNT, 1)
    board.start(WRITE)
    board.move(FROM_DEVICE, 100)
    assert (board.unit.read(D_BCNT), board.csr() & TC) == (1, 0)


def test_a_chain(board: Board) -> None:
    unit = board.unit
    unit.write(D_BCNT, 100)
    board.start(WRITE | EN_CNT | EN_NEXT | TCI_DIS)
    unit.write(D_BCNT, 50)
    unit.write(D_ADDR, 0xFC001000)
    assert (unit.read(D_ADDR), unit.read(D_BCNT)) == (0xFC000000, 100), "the next pair waits"
    assert unit.read(D_TST_CSR) == 0xFC001000
    loaded = board.csr() & (A_LOADED | NA_LOADED | DMA_ON)
    assert loaded == A_LOADED | NA_LOADED | DMA_ON
    board.move(FROM_DEVICE, 100)
    assert (unit.read(D_ADDR), unit.read(D_BCNT)) == (0xFC001000, 50)
    assert board.csr() & (TC | A_LOADED | NA_LOADED | DMA_ON) == TC | A_LOADED | DMA_ON
    board.move(FROM_DEVICE, 50)
    assert board.csr() & (A_LOADED | NA_LOADED | DMA_ON) == 0, "the chain ran dry"
    unit.write(D_BCNT, 7)
    unit.write(D_ADDR, 0xFC000100)
    assert (unit.read(D_ADDR), unit.read(D_BCNT)) == (0xFC000100, 7)
    assert board.csr() & DMA_ON


# Faults


def test_a_fault_sets_err_pend_and_stops_the_channel(board: Board) -> None:
    board.start(WRITE | INT_EN, 0xFC001800)
    with pytest.raises(DmaFault) as raised:
        board.open(FROM_DEVICE, (0, 4096))
    assert (raised.value.stage, raised.value.addr) == ("iommu", 0xFC002000)
    assert board.csr() == WRITE | INT_EN | EN_DMA | A_LOADED | ERR_PEND
    assert (board.levels, board.unit.room(FROM_DEVICE)) == ([True], 0)
    assert board.memory.read(PhysAddr(0x4800), 2048) == bytes(2048)
    board.unit.write(D_CSR, WRITE | INT_EN | EN_DMA | INVALIDATE)
    assert (board.csr() & ERR_PEND, board.levels) == (0, [True, False])
    assert board.unit.room(FROM_DEVICE)


def test_read_only_pages_can_be_written_to_the_disk_but_not_read_into(board: Board) -> None:
    board.memory.write(PhysAddr(TABLE), bytes.fromhex("00000102"))
    board.start(0)
    _, iov = board.open(TO_DEVICE, (0, 512))
    assert len(iov) == 512
    board.unit.write(D_CSR, EN_DMA | WRITE)
    with pytest.raises(DmaFault):
        board.open(FROM_DEVICE, (0, 512))
    assert board.csr() & ERR_PEND


def test_reset_forgets_an_error_and_a_transfer(board: Board) -> None:
    board.start(WRITE)
    transfer, _ = board.open(FROM_DEVICE, (0, 100))
    with pytest.raises(DmaFault):
        board.open(FROM_DEVICE, (0, 9000))
    board.unit.write(D_CSR, RESET)
    assert board.csr() == RESET
    board.queue.finish(transfer, 100)
    board.queue.run(1)
    assert board.unit.read(D_ADDR) == 0xFC000000


@given(st.lists(st.tuples(st.sampled_from(range(0, 16, 4)), st.integers(0, 0xFFFFFFFF))))
def test_any_writes_leave_derived_bits_consistent(writes: list[tuple[int, int]]) -> None:
    levels: list[bool] = []
    unit = Espdma(Ranges(), interrupt=levels.append)
    for offset, value in writes:
        unit.write(offset, value)
        csr = unit.read(D_CSR)
        assert csr >> 28 == 0xA
        assert bool(csr & DMA_ON) == (csr & (EN_DMA | A_LOADED | RESET) == EN_DMA | A_LOADED)
        assert not csr & (INT_PEND | ERR_PEND | INVALIDATE | espdma.DRAINING)
        assert unit.room(TO_DEVICE) * unit.room(FROM_DEVICE) == 0
        assert bool(unit.room(TO_DEVICE) or unit.room(FROM_DEVICE)) == bool(csr & DMA_ON)
    assert levels == []
