"""The board: what connects CPU, chips and network, and what happens when it does not."""

from __future__ import annotations

import os
import signal
import struct
import sys

import pytest

from dma.iovec import IoVec
from dma.ledma import Mode
from dma.transfer import DmaFault, DmaPath, Transfer
from slirp.errors import ConfigError
from slirp.guest.board import RAM_MIN, Board
from slirp.guest.cpu import GuestCrash
from slirp.guest.prom import Parameters
from tests.kit.lan import Lan
from tests.slirp.guest.bench import NAMES, URL, Bench, need_unicorn

BODY = bytes(range(256)) * 100


def lan() -> Lan:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    return Lan(lambda _request: answer, names=NAMES)


def code(*words: int) -> bytes:
    return struct.pack(f">{len(words)}I", *words)


class Faulty:
    """A path of whose transfers one faults: the one that takes `countdown` to 0."""

    def __init__(self, path: DmaPath) -> None:
        self.path = path
        self.countdown = -1

    def open(self, transfer: Transfer) -> IoVec:
        self.countdown -= 1
        if self.countdown == 0:
            raise DmaFault("test", transfer.ranges[0][0], "on purpose")
        return self.path.open(transfer)


def fault_at(countdown: int, path: DmaPath) -> Faulty:
    faulty = Faulty(path)
    faulty.countdown = countdown
    return faulty


def test_an_interrupt_that_gets_lost_is_missed() -> None:
    bench = Bench(lan())
    bench.board.ledma.interrupt = None
    result = bench.run()
    assert result.status == "no-lease"
    assert bench.board.lance.stats["rx_frames"] > 0
    assert result.counters["rx_frames"] == 0


def test_dma_and_interrupts_take_the_whole_chain() -> None:
    bench = Bench(lan())
    seen: set[str] = set()

    class Watcher:
        def __init__(self, stage: str, path: DmaPath) -> None:
            self.stage, self.path = stage, path

        def open(self, transfer: Transfer) -> IoVec:
            seen.add(self.stage)
            addr = transfer.ranges[0][0]
            assert {"lance": 0, "ledma": 0xFC, "memory": 0}[self.stage] == addr >> 24
            return self.path.open(transfer)

    board = Board(Parameters(url=URL, seed=1), clock=bench.lan.clock, wrap=Watcher)
    bench.lan.lance = board.lance
    result = board.run(bench.lan.on_idle)
    assert result.ok
    assert seen == {"lance", "ledma", "memory"}
    assert result.counters["interrupts"] > 3
    assert board.ledma.copied_bytes == 0


@pytest.mark.parametrize("faulty_transfer", [40, 60, 61, 62, 63])
def test_the_driver_recovers_from_a_memory_error(faulty_transfer: int) -> None:
    network = lan()
    paths: dict[str, Faulty] = {}

    def wrap(stage: str, path: DmaPath) -> DmaPath:
        return paths.setdefault(stage, Faulty(path))

    board = Board(Parameters(url=URL, seed=1), clock=network.clock, wrap=wrap)
    network.lance = board.lance
    paths["lance"].countdown = faulty_transfer
    result = board.run(network.on_idle)
    assert result.ok
    assert result.counters["restarts"] == 1
    assert board.lance.stats["merr"] == 1


def test_a_guest_without_network_comes_to_an_end() -> None:
    network = Lan(lose=lambda packet: True)
    assert Bench(network).run().status == "no-lease"


def test_lane_modes_leave_the_same_octets() -> None:
    digests = set()
    modes: tuple[Mode, ...] = ("in-place", "bounce")
    for mode in modes:
        network = lan()
        parameters = Parameters(url=URL, seed=1, bswp=0, rx_buffer=128, window=4096)
        board = Board(parameters, clock=network.clock, lane_mode=mode)
        network.lance = board.lance
        digests.add(board.run(network.on_idle).sha256)
        assert (board.ledma.copied_bytes > len(BODY)) == (mode == "bounce")
    assert len(digests) == 1
    assert digests != {""}


@pytest.mark.parametrize(
    ("program", "what"),
    [
        (code(0x11140000, 0xD2020000, 0x01000000), "UC_ERR_READ_UNMAPPED"),  # ld [0x50000000], %o1
        (code(0x91D02005, 0x01000000), "trap 0x85"),  # ta 5
        (code(0x00000000), "UC_ERR_"),  # unimp
    ],
)
def test_a_crash_is_told_in_a_line(program: bytes, what: str) -> None:
    with pytest.raises(GuestCrash, match="the guest crashed") as crash:
        Bench(lan(), firmware=program).run()
    assert "\n" not in str(crash.value)
    assert what in str(crash.value)


def test_stop_ends_the_run() -> None:
    bench = Bench(lan())

    def on_idle(timeout: float) -> None:
        bench.lan.on_idle(timeout)
        bench.board.stop()

    assert bench.board.run(on_idle).status == "running"


def test_what_the_network_raises_comes_out() -> None:
    class Unplugged(Exception):
        pass

    def on_idle(timeout: float) -> None:
        raise Unplugged

    with pytest.raises(Unplugged):
        Bench(lan()).board.run(on_idle)


@pytest.mark.parametrize("while_computing", [False, True])
def test_interrupt_from_the_keyboard(while_computing: bool) -> None:
    """While the guest waits, or in a callback while it computes, where exceptions are lost."""
    bench = Bench(lan())
    before = signal.getsignal(signal.SIGINT)
    turns = 0

    def console(_line: str) -> None:
        if while_computing:
            os.kill(os.getpid(), signal.SIGINT)

    def on_idle(timeout: float) -> None:
        nonlocal turns
        turns += 1
        if not while_computing:
            os.kill(os.getpid(), signal.SIGINT)
        bench.lan.on_idle(timeout)

    board = Board(Parameters(url=URL), console=console, clock=bench.lan.clock)
    bench.lan.lance = board.lance
    with pytest.raises(KeyboardInterrupt):
        board.run(on_idle)
    assert turns == (0 if while_computing else 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_without_unicorn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unicorn", None)
    with pytest.raises(ConfigError, match=r"pip install 'slirp\[guest\]'"):
        Board(Parameters())


@pytest.mark.parametrize("ram_len", [0, 2 << 20, (8 << 20) + 1, 1 << 30])
def test_ram_that_does_not_fit_is_refused(ram_len: int) -> None:
    with pytest.raises(ConfigError, match="ram_len"):
        Board(Parameters(), ram_len=ram_len)


def test_the_largest_rings_fit_the_smallest_ram() -> None:
    need_unicorn()
    network = lan()
    rings = Parameters(url=URL, rx_buffer=4096, rx_entries=128, tx_entries=128, scatter=True)
    board = Board(rings, ram_len=RAM_MIN, clock=network.clock)
    network.lance = board.lance
    assert board.run(network.on_idle).ok


def test_a_chip_that_cannot_read_its_init_block() -> None:
    need_unicorn()
    network = lan()
    board = Board(Parameters(), clock=network.clock, wrap=lambda _stage, path: fault_at(1, path))
    assert board.run(network.on_idle).status == "no-lance"


def test_closing_gives_the_memory_back() -> None:
    need_unicorn()
    fds_before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        bench = Bench(lan(), url="")
        with bench.board:
            assert bench.run().ok
    assert len(os.listdir("/proc/self/fd")) <= fds_before + 1
