"""Connections that end in every way at once, in any weather: nothing may be left of them.

Both ends decide by a seeded die when to send, read, reset, close a half or all of it.
"""

from __future__ import annotations

import random
import socket
import struct
import sys
import threading
from contextlib import ExitStack, suppress

import pytest

from nic.port import Port
from tests.kernel.test_transfers import descriptors
from tests.kit.served import Served, served
from tests.kit.weather import Forecast, WeatherPort

RESET = struct.pack("ii", 1, 0)
CONNECTIONS = 160
GUEST_END = """
import random, socket, struct, sys, threading

def one(port, die):
    with socket.create_connection(("10.0.2.2", port), timeout=5) as s:
        s.settimeout(0.3)
        for _ in range(die.randrange(4)):
            s.sendall(bytes(die.randrange(200_000)))
            s.recv(die.randrange(1, 100_000))
        ending = die.randrange(4)
        if ending == 0:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif ending == 1:
            s.shutdown(socket.SHUT_WR)
            s.recv(1)

def many(port, seed):
    die = random.Random(seed)
    for _ in range(int(sys.argv[2]) // 8):
        try:
            one(port, die)
        except OSError:
            pass

for seed in range(8):
    threading.Thread(target=many, args=(int(sys.argv[1]), seed)).start()
"""


def host_end(peer: socket.socket, die: random.Random) -> None:
    with peer, suppress(OSError):
        peer.settimeout(0.3)
        for _ in range(die.randrange(5)):
            if die.randrange(2):
                peer.recv(die.randrange(1, 300_000))
            else:
                peer.sendall(bytes(die.randrange(300_000)))
        if die.random() < 0.3:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def accept_all(listener: socket.socket) -> None:
    die = random.Random(1)
    threads = []
    with suppress(OSError):
        while True:
            peer, _ = listener.accept()
            end = threading.Thread(target=host_end, args=(peer, random.Random(die.random())))
            end.start()
            threads.append(end)
    for end in threads:
        end.join(10)


@pytest.mark.parametrize("weather", [Forecast(), Forecast(loss=0.02, doubled=0.02, late=0.1)])
@pytest.mark.parametrize("tso", [True, False])
def test_nothing_is_left(tso: bool, weather: Forecast) -> None:
    with ExitStack() as stack:

        def wrap(port: Port) -> Port:
            made = WeatherPort(port, weather, seed=3)
            stack.callback(made.close)
            return made

        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        guest = stack.enter_context(served(tso=tso, wrap=wrap, ra_enabled=False))
        before = descriptors()
        server = threading.Thread(target=accept_all, args=(listener,))
        server.start()
        port = listener.getsockname()[1]
        guest.run(sys.executable, "-c", GUEST_END, str(port), str(CONNECTIONS))
        listener.shutdown(socket.SHUT_RDWR)
        server.join(20)
        wait_for_the_end(guest)
        assert guest.stats()["tcp"]["opened"] >= CONNECTIONS
        assert not guest.stats()["malformed"]
        assert descriptors() <= before  # fewer where a thread of an earlier test ended meanwhile
        assert guest.call(lambda network: network._loop.deadline()) is None


def wait_for_the_end(guest: Served) -> None:
    wait = threading.Event()
    for _ in range(200):
        tcp = guest.stats()["tcp"]
        if not tcp["flows"] and not tcp["lingering"]:
            return
        wait.wait(0.1)
    raise AssertionError(guest.call(lambda network: network.flows()))
