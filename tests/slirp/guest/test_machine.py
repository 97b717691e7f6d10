from __future__ import annotations

import pytest

from dma import ledma
from dma.iovec import IoVec
from dma.transfer import Direction, DmaPath, Transfer
from nic import csr
from slirp.guest.driver import LanceDriver
from slirp.guest.machine import DMA_PHYS, WINDOW, sun4m_board
from tests.kit.lance import frame_of


@pytest.mark.parametrize("scatter", [False, True])
def test_the_cpu_and_the_chip_see_the_same_octets(scatter: bool) -> None:
    with sun4m_board(scatter=scatter) as board:
        pieces = set()
        for addr in range(0, WINDOW, 4096):
            board.slices(addr + 4090, 6).copy_from(addr.to_bytes(6, "big"))
            pieces.add(int(board.phys(addr)))
        assert len(pieces) == WINDOW // 4096, "no page is mapped twice"
        assert min(pieces) == DMA_PHYS
        for addr in range(0, WINDOW, 4096):
            seen = board.ledma.open(Transfer(Direction.TO_DEVICE, [(addr + 4090, 6)]))
            assert bytes(seen) == addr.to_bytes(6, "big")


def test_scattered_pages_are_not_neighbours() -> None:
    with sun4m_board(scatter=True) as board:
        assert [len(s) for s in board.slices(4000, 200)] == [96, 104]
        assert bytes(board.slices(0, 8192)) == bytes(8192)
    with sun4m_board() as board:
        assert len(board.slices(4000, 200).segments) == 1


def test_the_interrupt_reaches_the_cpu_through_ledma() -> None:
    with sun4m_board() as board:
        LanceDriver(board, board.lance).start()
        board.lance.receive(frame_of(60))
        assert not board.interrupt
        board.lance.poll(0.0)
        assert board.interrupt
        board.ledma.write(ledma.E_CSR, 0)
        assert not board.interrupt


def test_reset_through_ledma_stops_the_chip() -> None:
    with sun4m_board() as board:
        LanceDriver(board, board.lance).start()
        board.ledma.write(ledma.E_CSR, ledma.RESET)
        assert board.lance.read(csr.RDP) == csr.STOP


def test_stages_can_be_wrapped() -> None:
    seen: list[tuple[str, list[tuple[int, int]]]] = []

    class Watch:
        def __init__(self, stage: str, path: DmaPath) -> None:
            self.stage, self.path = stage, path

        def open(self, transfer: Transfer) -> IoVec:
            if transfer.headers is not None:
                seen.append((self.stage, list(transfer.ranges)))
            return self.path.open(transfer)

    with sun4m_board(wrap=Watch) as board:
        LanceDriver(board, board.lance).start()
        assert board.lance.claim(1514, (14, 20, 20)) is not None
        headers = [(0, 14), (14, 20), (34, 20), (54, 1460), (1514, 4)]
        starts = {"lance": 0x001000, "ledma": 0xFC001000, "memory": DMA_PHYS + 0x1000}
        for stage, ranges in seen:
            base = starts[stage]
            assert ranges == [(base + offset, length) for offset, length in headers]
        assert [stage for stage, _ in seen] == ["lance", "ledma", "memory"]
