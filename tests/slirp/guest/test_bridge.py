"""The bridge with a packet socket in the TAP's place: one write, one frame."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from slirp import Network
from slirp.guest.bridge import FRAMES_PER_TURN, Bridge
from slirp.guest.driver import LanceDriver
from slirp.guest.machine import Board, sun4m_board
from tests.kit.guest import GATEWAY, GUEST, arp, icmp

MAC = bytes.fromhex("080020010203")
PING = icmp(8, 0, 0x10001, b"x" * 100, GATEWAY)


class Bridged(NamedTuple):
    network: Network
    board: Board
    bridge: Bridge
    outside: socket.socket

    def turn(self, count: int = 20) -> None:
        for _ in range(count):
            self.network.poll(0.0)

    def read(self) -> list[bytes]:
        frames = []
        with suppress(BlockingIOError):
            while True:
                frames.append(self.outside.recv(4096))
        return frames

    def introduce(self) -> None:
        self.outside.send(arp(1, GUEST, GATEWAY, sender_mac=MAC))
        self.turn()
        self.read()


@pytest.fixture
def make() -> Iterator[Any]:
    opened: list[Any] = []

    def build(**options: Any) -> Bridged:
        inside, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        outside.setblocking(False)
        network, board = Network(resolvers=()), sun4m_board()
        driver = LanceDriver(board, board.lance, mac=MAC, **options)
        network.attach(board.lance)
        bridge = Bridge(network, board, driver, inside.fileno())
        driver.start()
        opened.extend((bridge, network, board, inside, outside))
        return Bridged(network, board, bridge, outside)

    yield build
    for thing in opened:
        thing.close()


def mine(frame: bytes) -> bytes:
    return frame[:6] + MAC + frame[12:]


@pytest.mark.parametrize("bswp", [0, 1])
def test_frames_go_through_both_ways(make: Any, bswp: int) -> None:
    chain = make(bswp=bswp)
    chain.introduce()
    chain.outside.send(mine(PING))
    chain.turn()
    (reply,) = chain.read()
    assert reply[42:] == PING[42:]
    assert (chain.bridge.up, chain.bridge.down, chain.bridge.refused) == (2, 2, 0)


def test_a_full_ring_leaves_frames_where_they_are(make: Any) -> None:
    chain = make(tx_count=1)
    chain.introduce()
    for _ in range(3 * FRAMES_PER_TURN):
        chain.outside.send(mine(PING))
    replies = []
    for _ in range(40 * FRAMES_PER_TURN):
        chain.turn(1)
        replies += chain.read()
    assert len(replies) == 3 * FRAMES_PER_TURN
    assert chain.bridge.waits > FRAMES_PER_TURN
    assert chain.board.lance.stats["rx_miss"] == 0


def test_what_the_tap_does_not_take_is_lost_and_counted(make: Any) -> None:
    chain = make()
    chain.introduce()
    sent = 0
    while not chain.bridge.refused:
        chain.outside.send(mine(PING))
        sent += 1
        chain.turn(5)
    assert len(chain.read()) == sent - chain.bridge.refused
    chain.outside.send(mine(PING))
    chain.turn()
    assert len(chain.read()) == 1


def test_a_closed_bridge_leaves_the_loop(make: Any) -> None:
    chain = make()
    chain.introduce()
    chain.bridge.close()
    chain.outside.send(mine(PING))
    chain.turn()
    assert chain.bridge.up == 1
