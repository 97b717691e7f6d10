from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dma.iommu import TLBFLUSH
from dma.iovec import PhysAddr
from dma.ledma import Mode
from dma.memory import GuestMemory
from nic import csr, init_block
from nic.lance import Lance
from slirp.guest.driver import IDON_READS, MAC, DriverError, LanceDriver, exchanged
from slirp.guest.machine import IOPTE_PHYS, Board, sun4m_board
from tests.kit.lance import frame_of

GROUP = bytes.fromhex("01005e000001")


def booted(board: Board, **options: object) -> LanceDriver:
    driver = LanceDriver(board, board.lance, **options)  # type: ignore[arg-type]
    driver.start()
    return driver


@pytest.fixture
def board() -> Iterator[Board]:
    with sun4m_board() as made:
        yield made


def turn(board: Board, driver: LanceDriver) -> None:
    """What a loop does once."""
    board.lance.poll(0.0)
    if board.interrupt:
        assert driver.handle_interrupt()


def to_guest(board: Board, frame: bytes) -> None:
    claim = board.lance.claim(len(frame), (14,))
    assert claim is not None
    claim.iov.copy_from(frame)
    claim.commit(len(frame))


def from_guest(board: Board) -> list[bytes]:
    out = []
    for frame in board.lance.frames():
        out.append(bytes(frame.iov))
        frame.release()
    return out


def padded(frame: bytes) -> bytes:
    return frame + bytes(max(0, 60 - len(frame)))


def test_start_leaves_the_chip_on_and_the_line_low(board: Board) -> None:
    booted(board)
    assert board.lance.read(csr.RDP) == 0x0073
    assert not board.interrupt


def test_stop(board: Board) -> None:
    driver = booted(board)
    driver.stop()
    assert board.lance.read(csr.RDP) == csr.STOP


def test_an_interrupt_that_is_not_the_chips(board: Board) -> None:
    assert not booted(board).handle_interrupt()


def test_frames_both_ways_with_interrupts(board: Board) -> None:
    driver = booted(board, check_fcs=True)
    to_guest(board, frame_of(1514))
    to_guest(board, frame_of(42))
    turn(board, driver)
    assert driver.receive() == [frame_of(1514), padded(frame_of(42))]
    assert driver.receive() == []
    assert driver.send(frame_of(1514))
    assert driver.send([frame_of(42)[:10], memoryview(frame_of(42))[10:]])
    assert from_guest(board) == [frame_of(1514), padded(frame_of(42))]
    turn(board, driver)
    assert not board.interrupt


@pytest.mark.parametrize("mode", ["in-place", "bounce"])
@pytest.mark.parametrize("bswp", [0, 1])
@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("rx_buffer", [64, 65, 128, 1544, 4096])
@pytest.mark.parametrize("rx_offset", [0, 1, 0xFF0])
def test_every_set_up_carries_the_same_octets(
    mode: Mode, bswp: int, scatter: bool, rx_buffer: int, rx_offset: int
) -> None:
    with sun4m_board(mode=mode, scatter=scatter) as board:
        driver = booted(
            board,
            bswp=bswp,
            rx_buffer=rx_buffer,
            rx_offset=rx_offset,
            rx_count=64,
            tx_buffer=rx_buffer,
            tx_count=64,
            check_fcs=True,
        )
        sizes = (60, 61, 200, 1513, 1514)
        for size in sizes:
            to_guest(board, frame_of(size))
            turn(board, driver)
            assert driver.send(frame_of(size))
            assert from_guest(board) == [frame_of(size)]
            turn(board, driver)
        assert driver.receive() == [frame_of(size) for size in sizes]
        assert driver.stats["rx_errors"] == driver.stats["rx_bad_fcs"] == 0
        least, most = copies(mode, bswp, (rx_buffer | rx_offset) & 1 == 0, sizes)
        assert least <= board.ledma.copied_bytes <= most


def copies(mode: Mode, bswp: int, is_even: bool, sizes: Sequence[int]) -> tuple[int, int]:
    """Bytes that go through a bounce buffer: at least, and at most."""
    if bswp:
        return 0, 0
    sent = sum(sizes)
    received = sum(sizes) + 4 * len(sizes)  # with the FCS
    if mode == "bounce":
        return sent + received, sent + received
    odd = sum(size + 4 for size in sizes if size & 1)  # such a transfer ends within a word
    return (sent + odd, sent + odd) if is_even else (sent + odd, sent + received)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(14, 1514)), max_size=30),
    st.sampled_from([1, 2, 8, 128]),
    st.sampled_from([64, 1544]),
    st.booleans(),
)
def test_any_traffic_arrives_in_order(
    traffic: Sequence[tuple[bool, int]], count: int, buffer: int, scatter: bool
) -> None:
    count = max(count, 2048 // buffer)
    with sun4m_board(scatter=scatter) as board:
        driver = booted(
            board, rx_count=count, tx_count=count, rx_buffer=buffer, tx_buffer=buffer, bswp=0
        )
        sent, arrived, expected = [], [], []
        for is_inward, size in traffic:
            frame = frame_of(size)
            if is_inward:
                to_guest(board, frame)
            else:
                assert driver.send(frame)
                sent += from_guest(board)
            turn(board, driver)
            arrived += driver.receive()
            expected.append((is_inward, padded(frame)))
        assert arrived == [frame for is_inward, frame in expected if is_inward]
        assert sent == [frame for is_inward, frame in expected if not is_inward]


def test_back_pressure_when_the_ring_is_full(board: Board) -> None:
    driver = booted(board, tx_count=2)
    assert driver.send(frame_of(60))
    assert driver.send(frame_of(60))
    assert not driver.send(frame_of(60))
    assert len(from_guest(board)) == 2
    board.lance.poll(0.0)
    assert driver.send(frame_of(60)), "a driver looks at the ring before it gives up"


def test_frames_that_are_not_announced_yet(board: Board) -> None:
    driver = booted(board)
    list(board.lance.frames())
    for index in range(3):
        assert driver.send(frame_of(60 + index), kick=False)
    assert not board.lance.read(csr.RDP) & csr.TDMD
    driver.kick()
    assert board.lance.read(csr.RDP) & csr.TDMD
    assert from_guest(board) == [frame_of(60 + index) for index in range(3)]


@pytest.mark.parametrize("rx_buffer", [1544, 64])
def test_views_show_the_frame_as_it_lies(board: Board, rx_buffer: int) -> None:
    driver = booted(board, zero_copy=True, rx_buffer=rx_buffer, rx_count=64, bswp=0)
    for size in (60, 700):
        to_guest(board, frame_of(size))
    turn(board, driver)
    assert driver.receive() == []
    seen = []
    for views in driver.views():
        seen.append(exchanged(bytes(views)))
        turn(board, driver)
    assert seen == [frame_of(60), frame_of(700)]
    assert list(driver.views()) == []
    assert board.lance.claim(1514) is not None


def test_a_view_is_guest_memory(board: Board) -> None:
    driver = booted(board, zero_copy=True)
    to_guest(board, frame_of(60))
    turn(board, driver)
    (segment,) = next(driver.views()).segments
    assert segment.obj is board.memory.view(PhysAddr(0), 1).obj


def test_descriptors_come_back_after_a_view(board: Board) -> None:
    driver = booted(board, zero_copy=True, rx_count=1)
    to_guest(board, frame_of(60))
    turn(board, driver)
    views = driver.views()
    next(views)
    assert board.lance.claim(60) is None
    assert next(views, None) is None
    assert board.lance.claim(60) is not None


def test_groups_and_promiscuity(board: Board) -> None:
    driver = booted(board, groups=[GROUP])
    assert board.lance.receive(frame_of(60, GROUP))
    assert not board.lance.receive(frame_of(60, bytes.fromhex("0180c2000000")))
    driver = booted(board, mode=init_block.PROM)
    assert board.lance.receive(frame_of(60, bytes.fromhex("0180c2000000")))
    turn(board, driver)
    assert len(driver.receive()) == 1


def test_a_bad_frame_is_counted_and_dropped(board: Board) -> None:
    driver = booted(board)
    assert board.lance.receive(frame_of(60), fcs=b"nope")
    assert board.lance.receive(frame_of(61))
    turn(board, driver)
    assert driver.receive() == [frame_of(61)]
    assert (driver.stats["rx_errors"], driver.stats["rx_crc"]) == (1, 1)


def test_a_frame_that_did_not_fit_is_counted_and_dropped(board: Board) -> None:
    driver = booted(board, rx_buffer=64, rx_count=4)
    assert not board.lance.receive(frame_of(1000))
    turn(board, driver)
    assert driver.receive() == []
    assert driver.stats["rx_buff"] == 1
    assert board.lance.receive(frame_of(100))
    turn(board, driver)
    assert driver.receive() == [frame_of(100)]


def test_what_came_unasked_and_found_no_room_is_counted(board: Board) -> None:
    driver = booted(board, rx_count=2)
    for _ in range(3):
        board.lance.receive(frame_of(60))
    turn(board, driver)
    assert len(driver.receive()) == 2
    assert driver.stats["miss"] == 1


def test_a_fresh_start_after_a_memory_error(board: Board) -> None:
    driver = booted(board)
    entry = PhysAddr(IOPTE_PHYS + 4 * 1)  # the page of the first RX buffer
    valid = board.memory.read(entry, 4)
    board.memory.write(entry, bytes(4))
    board.iommu.write(TLBFLUSH, 0)
    assert board.lance.claim(1514) is None
    assert board.interrupt
    board.memory.write(entry, valid)
    assert driver.handle_interrupt()
    assert (driver.stats["merr"], driver.stats["restarts"]) == (1, 1)
    to_guest(board, frame_of(60))
    turn(board, driver)
    assert driver.receive() == [frame_of(60)]


def test_a_fresh_start_after_an_underflow(board: Board) -> None:
    driver = booted(board, tx_buffer=64)
    assert driver.send(frame_of(150), kick=False)
    board.slices(0x800 + 8 + 2, 1).copy_from(b"\0")  # the second descriptor is not the chip's
    driver.kick()
    assert from_guest(board) == []
    turn(board, driver)
    assert driver.stats["restarts"] == 1
    assert driver.send(frame_of(150))
    assert from_guest(board) == [frame_of(150)]


def test_a_transmitter_that_is_off_by_choice_is_left_off(board: Board) -> None:
    driver = booted(board, mode=init_block.DTX)
    to_guest(board, frame_of(60))
    turn(board, driver)
    assert driver.receive() == [frame_of(60)]
    assert driver.stats["restarts"] == 0


def test_on_plain_memory_without_a_bus() -> None:
    memory = GuestMemory(1 << 20)
    lance = Lance(memory)
    driver = LanceDriver(memory, lance, addr=0x10000)
    driver.start()
    assert lance.receive(frame_of(100, MAC))
    lance.poll(0.0)
    assert driver.handle_interrupt()
    assert driver.receive() == [frame_of(100, MAC)]


def test_a_chip_that_does_not_initialise() -> None:
    class Deaf(Lance):
        reads = 0

        def read(self, offset: int) -> int:
            self.reads += 1
            return 0

    memory = GuestMemory(1 << 20)
    lance = Deaf(memory)
    with pytest.raises(DriverError, match="CSR0=0x0000"):
        LanceDriver(memory, lance).start()
    assert lance.reads == IDON_READS


def test_an_init_block_out_of_reach() -> None:
    with sun4m_board() as board:
        board.memory.write(PhysAddr(IOPTE_PHYS), bytes(4))
        board.iommu.write(TLBFLUSH, 0)
        with pytest.raises(DriverError, match="INIT ended"):
            booted(board)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"addr": 4}, "multiple of 8"),
        ({"rx_buffer": 0}, "rx_buffer"),
        ({"tx_buffer": 5000}, "4096"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, int], match: str) -> None:
    memory = GuestMemory(1 << 20)
    with pytest.raises(ValueError, match=match):
        LanceDriver(memory, Lance(memory), **options)  # type: ignore[arg-type]


def test_exchanged() -> None:
    assert exchanged(bytes(range(6))) == bytes([1, 0, 3, 2, 5, 4])


def test_fcs_is_checked_on_request(board: Board) -> None:
    driver = booted(board, check_fcs=True)
    to_guest(board, frame_of(60))
    board.lance.poll(0.0)
    board.slices(0x1000, 1).copy_from(b"\xff")  # the guest's RAM has a bad bit
    driver.handle_interrupt()
    assert driver.receive() == []
    assert driver.stats["rx_bad_fcs"] == 1
