"""The sun4m IOMMU: translation, IOTLB, faults and registers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma import iommu
from dma.iommu import AFAR, AFSR, BASE, CTRL, IOTLB_ENTRIES, PGFLUSH, TLBFLUSH, Iommu
from dma.iovec import Dvma, IoVec, PhysAddr, Range
from dma.memory import GuestMemory
from dma.transfer import Direction, DmaFault, Transfer

TO_DEVICE, FROM_DEVICE = Direction.TO_DEVICE, Direction.FROM_DEVICE

RNGE_64M_ON = 0x00000009
RNGE_256M_ON = 0x00000011
TABLE = 0x00100000  # where the worked example puts its IOPTEs


class Board:
    """Memory, an IOMMU in front of it, and the record of its interrupt line."""

    def __init__(self, regions: int | list[Range] = 0x200000) -> None:
        self.memory = GuestMemory(regions)
        self.levels: list[bool] = []
        self.iommu = Iommu(self.memory, interrupt=self.levels.append)

    def turn_on(self, ctrl: int = RNGE_64M_ON, table: int = TABLE) -> None:
        self.iommu.write(CTRL, ctrl)
        self.iommu.write(BASE, table >> 4)

    def map(self, index: int, iopte: int, table: int = TABLE) -> None:
        self.memory.write(PhysAddr(table + 4 * index), iopte.to_bytes(4, "big"))

    def translate(self, addr: int, length: int, direction: Direction = FROM_DEVICE) -> list[Range]:
        """What open() hands to memory; translate() must agree."""
        transfer = Transfer(direction, ((addr, length),))
        views = self.iommu.open(transfer)
        assert len(views) == length
        ranges = list(transfer.ranges)
        assert self.iommu.translate(Dvma(addr), length, direction) == ranges
        return ranges

    def fault(self, addr: int, length: int, direction: Direction = FROM_DEVICE) -> DmaFault:
        with pytest.raises(DmaFault) as raised:
            self.iommu.open(Transfer(direction, ((addr, length),)))
        assert raised.value.stage == "iommu"
        return raised.value


@pytest.fixture
def board() -> Iterator[Board]:
    """The mapping of the 2007 e-mail: 0xfc000000 → 0x1000, 0xfc001000 → 0x4000."""
    b = Board()
    b.turn_on()
    b.map(0, 0x00000106)
    b.map(1, 0x00000406)
    yield b
    b.memory.close()


# Worked examples


def test_worked_example_registers(board: Board) -> None:
    assert board.iommu.read(CTRL) == 0x05000009
    assert board.iommu.read(BASE) == 0x00010000


@pytest.mark.parametrize(
    ("addr", "length", "ranges"),
    [
        (0xFC000000, 8192, [(0x1000, 4096), (0x4000, 4096)]),
        (0xFC000FFE, 4, [(0x1FFE, 2), (0x4000, 2)]),
        (0xFC001ABC, 1, [(0x4ABC, 1)]),
        (0xFC000FF0, 16, [(0x1FF0, 16)]),
        (0xFC000FF0, 64, [(0x1FF0, 16), (0x4000, 48)]),
    ],
)
def test_worked_example_addresses(
    board: Board, addr: int, length: int, ranges: list[Range]
) -> None:
    for direction in Direction:
        assert board.translate(addr, length, direction) == ranges


def test_worked_example_fault_of_a_write(board: Board) -> None:
    fault = board.fault(0xFC002000, 1)
    assert (fault.addr, fault.reason) == (0xFC002000, "invalid page")
    assert board.levels == [True]
    assert board.iommu.read(AFSR) == 0xC0820000
    assert board.iommu.read(AFAR) == 0xFC002000


def test_worked_example_fault_of_a_read(board: Board) -> None:
    board.fault(0xFC002ABC, 4, TO_DEVICE)
    assert board.iommu.read(AFSR) == 0xC0860000
    assert board.iommu.read(AFAR) == 0xFC002000


@pytest.mark.parametrize(("iopte", "phys"), [(0x0F000106, 0xF0001000), (0xE0000106, 0xE_0000_1000)])
def test_worked_example_36_bits(iopte: int, phys: int) -> None:
    board = Board([(0, 0x200000), (phys, 0x1000)])
    board.turn_on()
    board.map(0, iopte)
    assert board.translate(0xFC000010, 16) == [(phys + 0x10, 16)]


def test_worked_example_256_mib_window() -> None:
    board = Board()
    board.turn_on(RNGE_256M_ON)
    board.memory.write(PhysAddr(TABLE + 0x30000), bytes.fromhex("00000106"))
    assert board.translate(0xFC000000, 16) == [(0x1000, 16)]


WINDOWS = [0xFF000000, 0xFE000000, 0xFC000000, 0xF8000000, 0xF0000000, 0xE0000000]
WINDOWS += [0xC0000000, 0x80000000]


@pytest.mark.parametrize(("rnge", "start"), list(enumerate(WINDOWS)))
def test_window_of_each_range(rnge: int, start: int) -> None:
    board = Board(0x800000)
    table = 0x400000
    board.turn_on(rnge << 2 | 1, table)
    last = (16 << 20 << rnge) // 4096 - 1
    board.map(0, 0x00000106, table)
    board.map(last, 0x00000406, table)
    assert board.translate(start, 16) == [(0x1000, 16)]
    assert board.translate(0xFFFFFFF0, 16) == [(0x4FF0, 16)]
    assert board.fault(start - 1, 1).reason == "outside the window"
    assert board.fault(0xFFFFFFF0, 17).addr == 1 << 32


# Shape of the result


def test_ranges_keep_the_cuts_they_came_with(board: Board) -> None:
    transfer = Transfer(FROM_DEVICE, ((0xFC000000, 14), (0xFC00000E, 20), (0xFC000FFC, 8)))
    views = board.iommu.open(transfer)
    assert transfer.ranges == [(0x1000, 14), (0x100E, 20), (0x1FFC, 4), (0x4000, 4)]
    assert [len(view) for view in views] == [14, 20, 4, 4]


def test_pages_that_touch_in_memory_stay_one_range(board: Board) -> None:
    board.map(2, 0x00000506)
    assert board.translate(0xFC001FF0, 32) == [(0x4FF0, 32)]


def test_empty_ranges_need_no_page(board: Board) -> None:
    assert board.translate(0xFC005000, 0) == []


# IOTLB


def test_a_changed_iopte_is_not_seen_until_software_flushes(board: Board) -> None:
    assert board.translate(0xFC000000, 4) == [(0x1000, 4)]
    board.map(0, 0x00000806)
    assert board.translate(0xFC000000, 4) == [(0x1000, 4)]
    board.iommu.write(TLBFLUSH, 0)
    assert board.translate(0xFC000000, 4) == [(0x8000, 4)]


def test_pgflush_drops_one_page(board: Board) -> None:
    assert board.translate(0xFC000000, 8192) == [(0x1000, 4096), (0x4000, 4096)]
    board.map(0, 0x00000806)
    board.map(1, 0x00000A06)
    board.iommu.write(PGFLUSH, 0xFC001FFF)  # the low bits do not count
    assert board.translate(0xFC000000, 8192) == [(0x1000, 4096), (0xA000, 4096)]
    board.iommu.write(PGFLUSH, 0xFC005000)  # not in the IOTLB: nothing to drop
    assert board.translate(0xFC000000, 4) == [(0x1000, 4)]


def test_an_unmapped_page_is_served_until_flushed_and_faults_after(board: Board) -> None:
    board.translate(0xFC000000, 4)
    board.map(0, 0)
    board.translate(0xFC000000, 4)
    board.iommu.write(PGFLUSH, 0xFC000000)
    assert board.fault(0xFC000000, 4).reason == "invalid page"


def test_invalid_pages_are_not_remembered(board: Board) -> None:
    board.fault(0xFC002000, 4)
    board.map(2, 0x00000606)
    assert board.translate(0xFC002000, 4) == [(0x6000, 4)]


def test_write_permission_is_as_stale_as_the_rest(board: Board) -> None:
    board.map(2, 0x00000602)
    board.translate(0xFC002000, 4, TO_DEVICE)
    board.map(2, 0x00000606)
    assert board.fault(0xFC002000, 4).reason == "read-only page"
    board.iommu.write(PGFLUSH, 0xFC002000)
    board.translate(0xFC002000, 4)


def test_ctrl_and_base_do_not_flush(board: Board) -> None:
    board.translate(0xFC000000, 4)
    board.turn_on(table=0x180000)
    assert board.translate(0xFC000000, 4) == [(0x1000, 4)]
    board.iommu.write(TLBFLUSH, 1)
    assert board.fault(0xFC000000, 4).reason == "invalid page"


def test_the_iotlb_is_bounded() -> None:
    board = Board()
    board.turn_on()
    count = IOTLB_ENTRIES + 1
    board.memory.write(PhysAddr(TABLE), bytes.fromhex("00000106") * count)
    for index in range(count):
        board.translate(0xFC000000 + 4096 * index, 4)
    # The last page did not fit: the first ones are gone, and a change of theirs is seen unflushed.
    board.map(0, 0x00000406)
    assert board.translate(0xFC000000, 4) == [(0x4000, 4)]
    board.map(count - 1, 0x00000406)
    assert board.translate(0xFC000000 + 4096 * (count - 1), 4) == [(0x1000, 4)]


# Rights and faults


def test_a_read_only_page_can_be_read(board: Board) -> None:
    board.map(2, 0x00000602)
    assert board.translate(0xFC002000, 16, TO_DEVICE) == [(0x6000, 16)]
    fault = board.fault(0xFC002010, 16)
    assert (fault.addr, fault.reason) == (0xFC002010, "read-only page")
    assert board.iommu.read(AFSR) == 0xC0820000
    assert board.iommu.read(AFAR) == 0xFC002000


def test_a_fault_in_the_middle_leaves_nothing_behind(board: Board) -> None:
    before = board.memory.read(PhysAddr(0), 0x100000)
    ranges = ((0xFC000000, 14), (0xFC001FF0, 32))
    transfer = Transfer(FROM_DEVICE, ranges)
    with pytest.raises(DmaFault) as raised:
        board.iommu.open(transfer)
    assert raised.value.addr == 0xFC002000
    assert transfer.ranges == ranges
    assert transfer.completions == []
    assert board.memory.read(PhysAddr(0), 0x100000) == before


def test_nothing_is_translated_while_off(board: Board) -> None:
    board.translate(0xFC000000, 4)
    board.iommu.write(CTRL, RNGE_64M_ON & ~1)
    assert board.fault(0xFC000000, 4).reason == "translation is off"
    board.iommu.write(CTRL, RNGE_64M_ON)
    board.translate(0xFC000000, 4)


def test_a_table_outside_ram(board: Board) -> None:
    board.turn_on(table=0x10000000)
    fault = board.fault(0xFC000004, 4, TO_DEVICE)
    assert (fault.addr, fault.reason) == (0xFC000004, "no RAM at 0x10000000")
    assert board.iommu.read(AFSR) == 0xA0860000  # ERR, TO, RD, FAV


def test_a_page_outside_ram_faults_with_its_dvma_address(board: Board) -> None:
    board.map(2, 0x00200006)  # 0x0200_0000: behind the end of RAM
    ranges = ((0xFC000000, 8), (0xFC001FFC, 8))
    transfer = Transfer(FROM_DEVICE, ranges)
    with pytest.raises(DmaFault) as raised:
        board.iommu.open(transfer)
    assert (raised.value.stage, raised.value.addr) == ("iommu", 0xFC002000)
    assert transfer.ranges == ranges
    assert board.iommu.read(AFSR) == 0xA0820000
    assert board.iommu.read(AFAR) == 0xFC002000


def test_a_page_whose_ram_ends_in_the_middle_of_a_transfer() -> None:
    board = Board([(0, 0x2000), (TABLE, 0x1000)])
    board.turn_on()
    board.map(0, 0x00000106)
    board.map(1, 0x00000206)
    assert board.fault(0xFC000FF0, 32).addr == 0xFC001000


def test_memory_that_blames_an_address_nobody_asked_for(board: Board) -> None:
    class Picky:
        def open(self, transfer: Transfer) -> IoVec:
            if transfer.direction is FROM_DEVICE:
                raise DmaFault("memory", 0xDEAD0000, "no")
            return board.memory.open(transfer)

    board.iommu = Iommu(Picky())
    board.turn_on()
    assert board.fault(0xFC001010, 4).addr == 0xFC001010


def test_the_first_fault_stays_and_later_ones_add_me(board: Board) -> None:
    board.fault(0xFC002000, 4)
    board.fault(0xFC003000, 4, TO_DEVICE)
    assert board.iommu.read(AFSR) == 0xC08A0000
    assert board.iommu.read(AFAR) == 0xFC002000
    board.iommu.write(AFSR, 0)
    assert board.iommu.read(AFSR) == 0x00800000
    board.fault(0xFC003000, 4, TO_DEVICE)
    assert board.iommu.read(AFSR) == 0xC0860000
    assert board.iommu.read(AFAR) == 0xFC003000


@pytest.mark.parametrize("register", [AFSR, AFAR])
@pytest.mark.parametrize("access", ["read", "write"])
def test_any_access_to_afsr_or_afar_lowers_the_interrupt(
    board: Board, register: int, access: str
) -> None:
    board.fault(0xFC002000, 4)
    board.fault(0xFC002000, 4)
    assert board.levels == [True]
    if access == "read":
        board.iommu.read(register)
    else:
        board.iommu.write(register, 0)
    assert board.levels == [True, False]
    board.fault(0xFC002000, 4)
    assert board.levels == [True, False, True]


def test_a_fault_without_an_interrupt_wire() -> None:
    with GuestMemory(0x1000) as memory, pytest.raises(DmaFault):
        Iommu(memory).open(Transfer(TO_DEVICE, ((0xFC000000, 4),)))


# Registers


@pytest.mark.parametrize(
    ("offset", "at_reset", "all_ones"),
    [
        (CTRL, 0x05000000, 0x0500001F),
        (BASE, 0, 0xFFFFFC00),
        (TLBFLUSH, 0, 0),
        (PGFLUSH, 0, 0),
        (AFSR, 0x00800000, 0xFF8FFFFF),
        (AFAR, 0, 0xFFFFFFFF),
        (iommu.AER, 0x00000001, 0x801F000F),
        (iommu.SBCFG[0], 0, 0x00010007),
        (iommu.SBCFG[1], 0, 0x00010007),
        (iommu.SBCFG[2], 0, 0x00010007),
        (iommu.SBCFG[3], 0, 0x00010007),
        (iommu.MFSR, 0, 0),
        (iommu.MFAR, 0, 0),
        (iommu.ARBEN, 0x00000008, 0x001F0008),
        (iommu.MASK_ID, 0x26000000, 0x26000000),
        (0x0008, 0, 0),
        (0x3FFC, 0, 0),
    ],
)
def test_registers(offset: int, at_reset: int, all_ones: int) -> None:
    board = Board()
    assert board.iommu.read(offset) == at_reset
    board.iommu.write(offset, 0xFFFFFFFF)
    assert board.iommu.read(offset) == all_ones
    board.iommu.write(offset, 0)
    assert board.iommu.read(offset) == at_reset
    board.iommu.write(offset, 0xFFFFFFFF)
    board.iommu.reset()
    assert board.iommu.read(offset) == at_reset


def test_version_and_mask_id_are_the_machines() -> None:
    with GuestMemory(0x1000) as memory:
        unit = Iommu(memory, version=0x13FFFFFF, mask_id=0x23000000)
        assert (unit.read(CTRL), unit.read(iommu.MASK_ID)) == (0x13000000, 0x23000000)


def test_reset_drops_the_iotlb_and_the_interrupt(board: Board) -> None:
    board.translate(0xFC000000, 4)
    board.fault(0xFC002000, 4)
    board.iommu.reset()
    assert board.levels == [True, False]
    board.map(0, 0)
    board.turn_on()
    assert board.fault(0xFC000000, 4).reason == "invalid page"


# Properties

PAGES = 8  # of the window, mapped at random


@st.composite
def maps(draw: st.DrawFn) -> list[int]:
    """An IOPTE for each page: unmapped, read-only or writable, to any page of 16."""
    flags = st.sampled_from([0x06, 0x86, 0x06, 0x86, 0x02, 0])
    return [draw(st.integers(0, 15)) << 8 | draw(flags) for _ in range(PAGES)]


def model(ioptes: list[int], ranges: list[Range], needed: int) -> tuple[list[int], int | None]:
    """The physical address of each byte, looked up on its own, and the first that has none."""
    phys: list[int] = []
    for start, length in ranges:
        for addr in range(start, start + length):
            index = (addr - 0xFC000000) >> 12
            iopte = ioptes[index] if index < PAGES else 0
            if iopte & needed != needed:
                return phys, addr
            phys.append((iopte >> 8) << 12 | addr & 0xFFF)
    return phys, None


dvma_ranges = st.tuples(
    st.integers(0xFC000000, 0xFC000000 + PAGES * 4096), st.integers(0, 3 * 4096)
)


@given(
    maps(),
    st.lists(dvma_ranges, max_size=4),
    st.sampled_from(Direction),
    st.sets(st.integers(0, PAGES - 1)),
)
def test_open_is_the_translation_of_every_octet(
    ioptes: list[int], ranges: list[Range], direction: Direction, known: set[int]
) -> None:
    """Whatever part of the table is in the IOTLB beforehand."""
    board = Board()
    board.turn_on()
    for index, iopte in enumerate(ioptes):
        board.map(index, iopte)
    for index in known:
        if ioptes[index] & iommu.IOPTE_VALID:
            board.iommu.translate(Dvma(0xFC000000 + 4096 * index), 1, TO_DEVICE)
    wanted, bad = model(ioptes, ranges, 0x06 if direction is FROM_DEVICE else 0x02)
    transfer = Transfer(direction, ranges)
    if bad is not None:
        with pytest.raises(DmaFault) as raised:
            board.iommu.open(transfer)
        assert raised.value.addr == bad
        return
    views = board.iommu.open(transfer)
    assert [addr + i for addr, length in transfer.ranges for i in range(length)] == wanted
    assert len(views) == len(wanted)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 0x4000), st.integers(0, 0xFFFFFFFF)),
            st.tuples(st.just("read"), st.integers(0, 0x4000), st.just(0)),
            st.tuples(st.just("open"), st.integers(0, 0x1_0000_1000), st.integers(0, 0x3000)),
        ),
        max_size=12,
    ),
    st.binary(min_size=64, max_size=64),
)
def test_whatever_software_writes_only_faults_come_out(
    steps: list[tuple[str, int, int]], table: bytes
) -> None:
    with GuestMemory(0x10000) as memory:
        memory.write(PhysAddr(0x8000), table)
        unit = Iommu(memory)
        unit.write(BASE, 0x800)
        unit.write(CTRL, 1)
        for step, offset, value in steps:
            if step == "write":
                unit.write(offset, value)
            elif step == "read":
                assert 0 <= unit.read(offset) <= 0xFFFFFFFF
            else:
                open_or_fault(unit, offset, value)


def open_or_fault(unit: Iommu, addr: int, length: int) -> None:
    try:
        views = unit.open(Transfer(FROM_DEVICE, ((addr, length),)))
    except DmaFault:
        assert unit.read(AFSR) & 0x80000000
    else:
        assert isinstance(views, IoVec)
        assert len(views) == length
