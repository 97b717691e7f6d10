"""LEDMA: registers, the wires to the chip, addresses, and exchanged lanes of any length."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dma import ledma
from dma.iommu import BASE, CTRL, Iommu
from dma.iovec import IoVec, LanceAddr, PhysAddr, Range, scatter_copy, total_len
from dma.ledma import E_BASE_ADDR, E_CSR, E_TST_CSR, E_VLD, Ledma, Mode
from dma.memory import GuestMemory
from dma.transfer import CompletionQueue, Direction, DmaFault, Lanes, Transfer

TO_DEVICE, FROM_DEVICE = Direction.TO_DEVICE, Direction.FROM_DEVICE
MODES: tuple[Mode, ...] = ("in-place", "bounce")

ID = 0xA0000000


class Board:
    """LEDMA on an IOMMU whose pages go down in memory as DVMA goes up, so that none follow."""

    PAGES = 8
    RAM_LEN = 0x20000
    TABLE = 0x10000

    def __init__(self, mode: Mode = "in-place") -> None:
        self.memory = GuestMemory(self.RAM_LEN)
        self.iommu = Iommu(self.memory)
        self.levels: list[bool] = []
        self.resets = 0
        self.ledma = Ledma(self.iommu, mode, interrupt=self.levels.append, reset=self.count_reset)
        self.iommu.write(BASE, self.TABLE >> 4)
        self.iommu.write(CTRL, 0x00000009)
        self.ledma.write(E_BASE_ADDR, 0xFC000000)
        for index in range(self.PAGES):
            iopte = (self.PAGES - index) << 8 | 0x06
            self.memory.write(PhysAddr(self.TABLE + 4 * index), iopte.to_bytes(4, "big"))

    def count_reset(self) -> None:
        self.resets += 1

    def dump(self) -> bytearray:
        """What the LANCE's window holds, in its own addresses."""
        size = 4096 * self.PAGES
        views = self.iommu.open(Transfer(TO_DEVICE, ((0xFC000000, size),)))
        return bytearray(bytes(views))

    def fill(self, octets: bytes) -> None:
        size = 4096 * self.PAGES
        self.iommu.open(Transfer(FROM_DEVICE, ((0xFC000000, size),))).copy_from(octets)

    def scatter(self, ranges: list[Range], octets: bytes) -> IoVec:
        """Open, let the host fill the views with these bytes, and complete."""
        transfer = Transfer(FROM_DEVICE, ranges, Lanes.EXCHANGED)
        iov = self.ledma.open(transfer)
        queue = CompletionQueue()
        queue.start(transfer)
        scatter_copy(iov.segments, (memoryview(octets),))
        queue.finish(transfer, len(octets))
        assert queue.run(1) == 1
        return iov

    def close(self) -> None:
        self.memory.close()


@pytest.fixture(params=MODES)
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    b = Board(request.param)
    yield b
    b.close()


# Registers


def test_registers_at_power_on() -> None:
    with GuestMemory(0x1000) as memory:
        unit = Ledma(memory)
        assert [unit.read(offset) for offset in (E_CSR, E_TST_CSR, E_VLD, E_BASE_ADDR)] == [
            ID,
            0,
            0,
            0xFF000000,
        ]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (ledma.INT_EN, ledma.INT_EN),
        (ledma.RESET, ledma.RESET),
        (ledma.DSBL_WR_DRN, ledma.DSBL_WR_DRN),
        (ledma.DSBL_RD_DRN, ledma.DSBL_RD_DRN),
        (ledma.ILACC, ledma.ILACC),
        (ledma.DSBL_BUF_WR, ledma.DSBL_BUF_WR),
        (ledma.DSBL_WR_INVAL, ledma.DSBL_WR_INVAL),
        (ledma.BURST_SIZE, ledma.BURST_SIZE),
        (ledma.LOOP_TEST, ledma.LOOP_TEST),
        (ledma.TP_AUI, ledma.TP_AUI),
        (ledma.INT_PEND | ledma.ERR_PEND | ledma.DRAINING, 0),  # read-only
        (ledma.INVALIDATE | ledma.SLAVE_ERR | ledma.DRAIN, 0),  # actions
        (3 << 8 | 3 << 13 | 1 << 20 | 0x1F << 23, 0),  # reserved
        (0xFFFFFFFF, 0x006F9890),
    ],
)
def test_e_csr_bits(board: Board, written: int, read: int) -> None:
    board.ledma.write(E_CSR, written)
    assert board.ledma.read(E_CSR) == ID | read
    board.ledma.write(E_CSR, 0)
    assert board.ledma.read(E_CSR) == ID


def test_only_the_top_byte_of_the_base_counts(board: Board) -> None:
    board.ledma.write(E_BASE_ADDR, 0xFCABCDEF)
    assert board.ledma.read(E_BASE_ADDR) == 0xFC000000
    assert board.ledma.to_dvma(LanceAddr(0x001000)) == 0xFC001000
    assert board.ledma.to_dvma(LanceAddr(0x01001000)) == 0xFC001000


def test_test_registers_cannot_be_written(board: Board) -> None:
    for offset in (E_TST_CSR, E_VLD):
        board.ledma.write(offset, 0xFFFFFFFF)
        assert board.ledma.read(offset) == 0


def test_the_block_repeats(board: Board) -> None:
    board.ledma.write(0x10, ledma.INT_EN)
    assert board.ledma.read(E_CSR) == board.ledma.read(0x10) == ID | ledma.INT_EN


@pytest.mark.parametrize(("offset", "size"), [(0, 1), (0, 2), (2, 4), (0xC, 8)])
def test_other_sizes_are_slave_errors(board: Board, offset: int, size: int) -> None:
    board.ledma.write(offset, 0x10, size)
    assert board.ledma.read(E_CSR) == ID | ledma.SLAVE_ERR
    assert board.ledma.read(E_BASE_ADDR) == 0xFC000000
    board.ledma.write(E_CSR, ledma.SLAVE_ERR)
    assert board.ledma.read(E_CSR) == ID
    assert board.ledma.read(offset, size) == 0
    assert board.ledma.read(E_CSR) == ID | ledma.SLAVE_ERR
    assert board.levels == []


def test_an_unknown_mode_is_refused() -> None:
    with GuestMemory(0x1000) as memory, pytest.raises(ValueError, match="in-place"):
        Ledma(memory, "swap")  # type: ignore[arg-type]


# Interrupt and errors


def test_int_pend_mirrors_the_pin_and_int_en_lets_it_out(board: Board) -> None:
    board.ledma.device_interrupt(True)
    assert board.ledma.read(E_CSR) == ID | ledma.INT_PEND
    assert board.levels == []
    board.ledma.write(E_CSR, ledma.INT_EN)
    board.ledma.device_interrupt(True)
    assert board.levels == [True]
    board.ledma.device_interrupt(False)
    assert board.levels == [True, False]
    assert board.ledma.read(E_CSR) == ID | ledma.INT_EN
    board.ledma.device_interrupt(True)
    board.ledma.write(E_CSR, 0)
    assert board.levels == [True, False, True, False]


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize("lanes", Lanes)
def test_a_fault_sets_err_pend_and_goes_on_to_the_chip(
    board: Board, direction: Direction, lanes: Lanes
) -> None:
    board.ledma.write(E_CSR, ledma.INT_EN)
    before = board.dump()
    transfer = Transfer(direction, ((0x007FF0, 64),), lanes)
    with pytest.raises(DmaFault) as raised:
        board.ledma.open(transfer)
    assert (raised.value.stage, raised.value.addr) == ("iommu", 0xFC008000)
    assert transfer.completions == []
    assert board.dump() == before
    assert board.levels == [True]
    assert board.ledma.read(E_CSR) == ID | ledma.INT_EN | ledma.ERR_PEND
    assert board.ledma.read(E_TST_CSR) == 0x008000
    board.ledma.write(E_CSR, ledma.INT_EN)
    assert board.ledma.read(E_CSR) & ledma.ERR_PEND, "only INVALIDATE and RESET clear it"
    board.ledma.open(Transfer(direction, ((0, 64),), lanes))  # the chip decides when to stop
    board.ledma.write(E_CSR, ledma.INT_EN | ledma.INVALIDATE)
    assert board.ledma.read(E_CSR) == ID | ledma.INT_EN
    assert board.levels == [True, False]


def test_reset_is_a_level(board: Board) -> None:
    board.ledma.write(E_CSR, ledma.RESET | ledma.INT_EN)
    assert board.resets == 1
    assert board.ledma.read(E_CSR) == ID | ledma.RESET | ledma.INT_EN
    with pytest.raises(DmaFault) as raised:
        board.ledma.open(Transfer(FROM_DEVICE, ((0x1000, 4),)))
    assert (raised.value.stage, raised.value.addr) == ("ledma", 0x1000)
    assert not board.ledma.read(E_CSR) & ledma.ERR_PEND
    board.ledma.write(E_CSR, ledma.RESET | ledma.INT_EN)
    assert board.resets == 1, "held, not reset again"
    board.ledma.write(E_CSR, ledma.INT_EN)
    assert board.resets == 2, "what was written to the chip meanwhile is gone"
    board.ledma.open(Transfer(FROM_DEVICE, ((0x1000, 4),)))
    assert board.ledma.read(E_BASE_ADDR) == 0xFC000000


def test_reset_clears_the_errors(board: Board) -> None:
    with pytest.raises(DmaFault):
        board.ledma.open(Transfer(FROM_DEVICE, ((0x00F000, 4),)))
    board.ledma.write(0, 0, 2)
    assert board.ledma.read(E_CSR) == ID | ledma.ERR_PEND | ledma.SLAVE_ERR
    board.ledma.write(E_CSR, ledma.RESET)
    assert board.ledma.read(E_CSR) == ID | ledma.RESET


def test_power_on_lowers_the_interrupt(board: Board) -> None:
    board.ledma.write(E_CSR, ledma.INT_EN)
    board.ledma.device_interrupt(True)
    board.ledma.power_on()
    assert board.levels == [True, False]
    assert board.ledma.read(E_CSR) == ID | ledma.INT_PEND


def test_no_wires_at_all() -> None:
    with GuestMemory(0x1000) as memory:
        unit = Ledma(memory)
        unit.write(E_CSR, ledma.INT_EN | ledma.RESET)
        unit.device_interrupt(True)
        assert unit.read(E_CSR) == ID | ledma.INT_EN | ledma.RESET | ledma.INT_PEND


# Addresses


def test_straight_lanes_change_addresses_and_nothing_else(board: Board) -> None:
    transfer = Transfer(FROM_DEVICE, ((0x001000, 14), (0x00100E, 20), (0x001FFE, 4)))
    board.ledma.open(transfer).copy_from(bytes(range(38)))
    assert transfer.ranges == [(0x7000, 14), (0x700E, 20), (0x7FFE, 2), (0x6000, 2)]
    assert transfer.completions == []
    assert board.ledma.copied_bytes == 0
    assert board.memory.read(PhysAddr(0x7000), 34) == bytes(range(34))
    assert board.memory.read(PhysAddr(0x6000), 2) == bytes([36, 37])


def test_the_address_counter_has_24_bits(board: Board) -> None:
    # The last page of the 16 MiB window, and its first.
    board.memory.write(PhysAddr(board.TABLE + 4 * 0xFFF), bytes.fromhex("00000e06"))
    for lanes in Lanes:
        transfer = Transfer(FROM_DEVICE, ((0xFFFFFE, 4), (0x1000002, 2)), lanes)
        assert len(board.ledma.open(transfer)) == 6
        assert transfer.ranges[0] == (0xEFFE, 2)
        assert total_len(transfer.ranges) == 6
        assert {addr >> 12 for addr, _ in transfer.ranges[1:]} == {0x8}


# Exchanged lanes


def test_bswp_0_vector(board: Board) -> None:
    """Frame bytes 00 01 02 03 appear as 01 00 03 02."""
    board.scatter([(0x001000, 4)], bytes([0, 1, 2, 3]))
    assert board.memory.read(PhysAddr(0x7000), 4) == bytes([1, 0, 3, 2])


def test_in_place_hands_out_guest_memory_and_copies_nothing() -> None:
    board = Board("in-place")
    ranges = [(0x001000, 14), (0x00100E, 20), (0x001022, 20), (0x001036, 1460)]
    iov = board.scatter(ranges, bytes(1514))
    assert [len(view) for view in iov] == [14, 20, 20, 1460]
    assert all(view.obj is board.memory.view(PhysAddr(0), 1).obj for view in iov)
    assert board.ledma.copied_bytes == 0


def test_bounce_merges_what_touches_and_counts() -> None:
    board = Board("bounce")
    transfer = Transfer(
        FROM_DEVICE,
        [(0x001000, 14), (0x00100E, 20), (0x001022, 20), (0x001036, 1460)],
        Lanes.EXCHANGED,
    )
    iov = board.ledma.open(transfer)
    assert transfer.ranges == [(0x7000, 1514)]
    assert [len(view) for view in iov] == [14, 20, 20, 1460]
    assert all(view.obj is not board.memory.view(PhysAddr(0), 1).obj for view in iov)
    assert board.ledma.copied_bytes == 0
    transfer.complete(1514)
    assert board.ledma.copied_bytes == 1514


@pytest.mark.parametrize("addr", [0x001000, 0x001001])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_odd_ends_write_one_lane(board: Board, addr: int, length: int) -> None:
    board.fill(b"\xee" * 0x8000)
    board.scatter([(addr, length)], bytes(range(1, length + 1)))
    wanted = bytearray(b"\xee" * 8)
    for i in range(length):
        wanted[(addr + i - 0x1000) ^ 1] = i + 1
    assert board.dump()[0x1000:0x1008] == wanted


@pytest.mark.parametrize("size", range(9))
def test_a_short_frame_in_an_even_claim(board: Board, size: int) -> None:
    """The odd last byte goes to its lane; the other lane keeps what the guest had there."""
    board.fill(b"\xee" * 0x8000)
    board.scatter([(0x001000, 2), (0x001002, 6)], bytes(range(1, size + 1)))
    wanted = bytearray(b"\xee" * 8)
    for i in range(size):
        wanted[i ^ 1] = i + 1
    assert board.dump()[0x1000:0x1008] == wanted


def test_chained_descriptors_of_odd_lengths(board: Board) -> None:
    """65 bytes to an even buffer, then the rest: the 65th lies in a word of its own buffer."""
    board.fill(b"\xee" * 0x8000)
    board.scatter([(0x001000, 65), (0x003000, 65)], bytes(range(100)))
    dump = board.dump()
    assert dump[0x1000:0x1044] == bytes(i ^ 1 for i in range(64)) + b"\xee\x40\xee\xee"
    assert dump[0x3000:0x3026] == bytes(65 + (i ^ 1) for i in range(34)) + b"\xee\x63\xee\xee"


def test_a_word_shared_by_two_buffers(board: Board) -> None:
    """The second buffer begins in the other lane of the first one's last word."""
    board.fill(b"\xee" * 0x8000)
    board.scatter([(0x002001, 3), (0x002000, 1)], b"\x01\x02\x03\x04")
    assert board.dump()[0x2000:0x2004] == b"\x01\x04\x03\x02"


def test_header_cuts_at_odd_offsets_stay_in_place() -> None:
    board = Board("in-place")
    iov = board.scatter([(0x001000, 15), (0x00100F, 21), (0x001024, 24)], bytes(range(60)))
    assert [len(view) for view in iov] == [15, 21, 24]
    assert board.dump()[0x1000:0x103C] == bytes(i ^ 1 for i in range(60))
    assert board.ledma.copied_bytes == 0


def test_cancel_leaves_no_trace() -> None:
    board = Board("bounce")
    before = board.dump()
    queue = CompletionQueue()
    transfer = Transfer(FROM_DEVICE, ((0x001000, 65),), Lanes.EXCHANGED)
    iov = board.ledma.open(transfer)
    queue.start(transfer)
    iov.copy_from(b"\xff" * 65)
    queue.cancel(transfer)
    assert queue.run(8) == 0
    assert board.dump() == before
    assert board.ledma.copied_bytes == 0


def test_gathering_bounces_in_both_modes(board: Board) -> None:
    board.fill(bytes(i & 0xFF for i in range(0x8000)))
    before = board.dump()
    transfer = Transfer(TO_DEVICE, ((0x001001, 3), (0x001004, 2)), Lanes.EXCHANGED)
    iov = board.ledma.open(transfer)
    assert bytes(iov) == bytes([0, 3, 2, 5, 4])
    assert [len(view) for view in iov] == [3, 2]
    assert transfer.completions == []
    assert board.dump() == before
    assert board.ledma.copied_bytes == 5


# Properties

WINDOW = 4096 * Board.PAGES


@st.composite
def disjoint_ranges(draw: st.DrawFn) -> list[Range]:
    """Ranges in any order that share no byte; many touch, many cross pages. Half the time all of
    them begin and end even, else anywhere."""
    step = draw(st.sampled_from([1, 2]))
    ends = draw(st.sets(st.integers(0, WINDOW // step), min_size=2, max_size=8))
    near = draw(st.sets(st.integers(4096 // step - 4, 4096 // step + 40), max_size=6))
    ranges = [(a * step, (b - a) * step) for a, b in pairwise(sorted(ends | near))]
    return draw(st.permutations(ranges))[: draw(st.integers(1, len(ranges)))]


def lanes_model(memory: bytearray, ranges: list[Range]) -> list[int]:
    """Where each byte of the transfer lies in the window, in data order."""
    return [(addr + i) ^ 1 for addr, length in ranges for i in range(length)]


frames = st.binary(min_size=1, max_size=64)


@given(disjoint_ranges(), frames, st.floats(0, 1), st.sampled_from(MODES))
def test_scatter_puts_every_octet_on_its_lane_and_touches_no_other(
    ranges: list[Range], pattern: bytes, share: float, mode: Mode
) -> None:
    board = Board(mode)
    board.fill(bytes(i * 7 & 0xFF for i in range(WINDOW)))
    wanted = board.dump()
    total = total_len(ranges)
    size = round(total * share)
    octets = (pattern * (size // len(pattern) + 1))[:size]
    iov = board.scatter(ranges, octets)
    assert len(iov) == total
    for octet, where in zip(octets, lanes_model(wanted, ranges), strict=False):
        wanted[where] = octet
    assert board.dump() == wanted
    in_place = mode == "in-place" and not any((addr | length) & 1 for addr, length in ranges)
    if in_place or mode == "bounce":
        assert board.ledma.copied_bytes == (0 if in_place else size)


@given(disjoint_ranges(), st.sampled_from(MODES))
def test_gather_takes_every_octet_from_its_lane_and_leaves_memory_alone(
    ranges: list[Range], mode: Mode
) -> None:
    board = Board(mode)
    board.fill(bytes((i * 7 ^ i >> 8) & 0xFF for i in range(WINDOW)))
    before = board.dump()
    iov = board.ledma.open(Transfer(TO_DEVICE, ranges, Lanes.EXCHANGED))
    assert bytes(iov) == bytes(before[where] for where in lanes_model(before, ranges))
    assert [len(view) for view in iov.cut(length for _, length in ranges)] == [len(v) for v in iov]
    assert board.dump() == before


@given(disjoint_ranges(), st.sampled_from(MODES))
def test_what_is_scattered_is_gathered(ranges: list[Range], mode: Mode) -> None:
    board = Board(mode)
    octets = bytes(i * 31 >> 3 & 0xFF for i in range(total_len(ranges)))
    board.scatter(ranges, octets)
    assert bytes(board.ledma.open(Transfer(TO_DEVICE, ranges, Lanes.EXCHANGED))) == octets


steps = st.one_of(
    st.tuples(st.just("write"), st.sampled_from([E_CSR, E_BASE_ADDR]), st.integers(0, 0xFFFFFFFF)),
    st.tuples(st.just("write"), st.integers(0, 0x20), st.just(0xFC000000)),
    st.tuples(st.just("read"), st.integers(0, 0x20), st.sampled_from([1, 2, 4])),
)
chip_ranges = st.lists(
    st.tuples(st.integers(0, 0x9000) | st.integers(0xFFFF00, 0x1000100), st.integers(0, 0x1100)),
    max_size=4,
)


@given(
    st.lists(steps, max_size=4),
    chip_ranges,
    st.sampled_from(Direction),
    st.sampled_from(Lanes),
    st.sampled_from(MODES),
    st.floats(0, 1),
)
def test_whatever_guest_and_chip_ask_for_only_faults_come_out(
    before: list[tuple[str, int, int]],
    ranges: list[Range],
    direction: Direction,
    lanes: Lanes,
    mode: Mode,
    share: float,
) -> None:
    """Ranges that overlap, wrap, are empty or run off the mapping; registers written at random."""
    board = Board(mode)
    for step, offset, value in before:
        if step == "write":
            board.ledma.write(offset, value)
        else:
            assert 0 <= board.ledma.read(offset, value) <= 0xFFFFFFFF
    transfer = Transfer(direction, ranges, lanes)
    iov = open_or_fault(board.ledma, transfer)
    if isinstance(iov, IoVec):
        assert len(iov) == total_len(ranges)
        transfer.complete(round(len(iov) * share))
    else:
        csr = board.ledma.read(E_CSR)
        assert iov.stage == ("ledma" if csr & ledma.RESET else "iommu")
        assert csr & (ledma.RESET | ledma.ERR_PEND)
        assert transfer.completions == []


def open_or_fault(path: Ledma, transfer: Transfer) -> IoVec | DmaFault:
    try:
        return path.open(transfer)
    except DmaFault as fault:
        return fault
