"""A guest that drives the chip as it likes, with a network behind it.

Registers, rings, init block, IOMMU entries and LEDMA get anything at any time, between frames that
make sense and frames that do not. Whatever happens becomes hardware state: nothing is raised out of
the loop, nothing spins, and a driver that starts afresh finds a chip that works.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import pytest

from dma import iommu, ledma
from dma.iovec import PhysAddr
from nic import csr
from nic.init_block import DTX, INTL, LOOP
from slirp import Network
from slirp.guest.driver import RX_RING, TX_RING, DriverError, LanceDriver
from slirp.guest.machine import IOPTE_FLAGS, IOPTE_PHYS, PAGE_LEN, Board, sun4m_board
from tests.kit.guest import ACK, GATEWAY, GUEST, PSH, SYN, arp, icmp, tcp, udp

MAC: Final = bytes.fromhex("080020010203")
SPIN_TURNS: Final = 200  # in a tenth of a second
STEPS: Final = 150


class Abuse:
    """What a guest can do to the machine, by dice."""

    def __init__(self, board: Board, driver: LanceDriver, dice: random.Random, port: int) -> None:
        self.board = board
        self.driver = driver
        self.dice = dice
        self.port = port

    def step(self) -> None:
        deeds: tuple[Callable[[], object], ...] = (
            self.send, self.send, self.send, self.scribble, self.poke, self.unmap, self.handle,
            self.handle, self.reset_ledma,
        )  # fmt: skip
        self.dice.choice(deeds)()

    def send(self) -> None:
        dice = self.dice
        frames = (
            arp(1, GUEST, GATEWAY, sender_mac=MAC),
            tcp(dice.choice((SYN, ACK, ACK | PSH)), GATEWAY, self.port, seq=dice.choice((1, 2))),
            udp(dice.randbytes(dice.choice((1, 100, 1400))), GATEWAY, self.port),
            icmp(8, 0, 1, dice.randbytes(dice.choice((0, 1000))), GATEWAY),
            dice.randbytes(dice.randrange(1600)),
        )
        self.driver.send(as_mine(dice.choice(frames)))

    def scribble(self) -> None:
        """Over the init block and the rings."""
        dice = self.dice
        addr = dice.choice((0, RX_RING, TX_RING)) + dice.randrange(256)
        octets = dice.choice((dice.randbytes(8), b"\x80", b"\xff" * 8, bytes(8)))
        self.board.slices(addr, len(octets)).copy_from(octets)

    def poke(self) -> None:
        """Any register of the chip."""
        value = self.dice.choice((self.dice.getrandbits(16), csr.STOP, csr.INIT, csr.STRT, 0))
        self.board.lance.write(self.dice.choice((csr.RDP, csr.RAP, 1)), value)
        self.board.lance.read(self.dice.choice((csr.RDP, csr.RAP, 6)))

    def unmap(self) -> None:
        """An IOPTE gone, wrong, or right again."""
        dice, board, page = self.dice, self.board, self.dice.randrange(16)
        right = board.phys(page * PAGE_LEN) >> 12 << 8 | IOPTE_FLAGS
        entry = dice.choice((bytes(4), dice.randbytes(4), right.to_bytes(4, "big")))
        board.memory.write(PhysAddr(IOPTE_PHYS + 4 * page), entry)
        board.iommu.write(iommu.TLBFLUSH, 0)

    def handle(self) -> None:
        # The driver may despair of what was scribbled over its rings.
        with suppress(DriverError, ValueError):
            self.driver.handle_interrupt()
        self.driver.receive()

    def reset_ledma(self) -> None:
        if self.dice.random() < 0.2:
            self.board.ledma.write(ledma.E_CSR, self.dice.getrandbits(32))


def as_mine(frame: bytes) -> bytes:
    """The frame, sent by the chip's own address."""
    return frame[:6] + MAC + frame[12:]


def turns_while_idle(network: Network, seconds: float = 0.1) -> int:
    stop_at = time.monotonic() + seconds
    count = 0
    while time.monotonic() < stop_at:
        network.poll(0.01)
        count += 1
    return count


@pytest.mark.parametrize("seed", range(12))
def test_anything_in_registers_and_memory(seed: int) -> None:
    dice = random.Random(seed)
    with (
        Network(resolvers=()) as network,
        sun4m_board(mode=dice.choice(("in-place", "bounce")), scatter=bool(seed & 1)) as board,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger,
    ):
        forward = network.forward("udp", host=("127.0.0.1", 0), guest=(GUEST, 9))
        driver = LanceDriver(
            board, board.lance, mac=MAC, bswp=dice.randrange(2),
            mode=dice.choice((0, LOOP, LOOP | INTL, DTX, dice.getrandbits(16))),
            rx_count=dice.choice((1, 2, 32)), rx_buffer=dice.choice((1, 64, 1544)),
        )  # fmt: skip
        network.attach(board.lance)
        driver.start()
        abuse = Abuse(board, driver, dice, server.getsockname()[1])
        for _ in range(STEPS):
            abuse.step()
            if dice.random() < 0.2:
                stranger.sendto(dice.randbytes(dice.choice((0, 1, 1472, 5000))), forward.host)
            network.poll(0.0)
        assert turns_while_idle(network) < SPIN_TURNS
        works_again(network, board)


def works_again(network: Network, board: Board) -> None:
    """After power-on a driver that behaves pings the gateway."""
    board.power_on()
    driver = LanceDriver(board, board.lance, mac=MAC)
    driver.start()
    driver.send(as_mine(icmp(8, 0, 0x12340001, b"still there?", GATEWAY)))
    stop_at = time.monotonic() + 5
    while not any(b"still there?" in frame for frame in driver.receive()):
        network.poll(0.01)
        driver.handle_interrupt()
        assert time.monotonic() < stop_at


@pytest.mark.parametrize("mode", [LOOP | INTL, LOOP | INTL | DTX, DTX, LOOP])
def test_frames_for_a_chip_in_loopback_do_not_spin(mode: int) -> None:
    with Network(resolvers=()) as network, sun4m_board() as board:
        driver = LanceDriver(board, board.lance, mac=MAC)
        network.attach(board.lance)
        driver.start()
        driver.send(arp(1, GUEST, GATEWAY, sender_mac=MAC))
        network.poll(0.0)
        LanceDriver(board, board.lance, mac=MAC, mode=mode).start()
        forward = network.forward("udp", host=("127.0.0.1", 0), guest=(GUEST, 9))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"for a deaf chip", forward.host)
        assert turns_while_idle(network) < SPIN_TURNS
        works_again(network, board)
