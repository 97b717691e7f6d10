"""The kernel's TIME-WAIT as the judge of our initial numbers."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from slirp import Forward
from tests.kit.served import GUEST, served
from tests.kit.watched import WatchedPort

SERVER = """
import socket
s = socket.create_server(('', 80), backlog=100)
print(flush=True)
while True:
    c = s.accept()[0]
    c.recv(10)
    c.sendall(bytes({size}))
    c.close()
"""
TIMES = 40


@pytest.mark.parametrize("size", [2, 300_000])
def test_a_peer_comes_back_from_the_same_port(size: int) -> None:
    """The guest closed first and holds TIME-WAIT: a SYN that is older has to be sent again, a
    second later, and there is a RST in between."""
    flags: list[str] = []

    def see(frame: bytes) -> None:
        packet = Ether(frame)
        if TCP in packet:
            flags.append(str(packet[TCP].flags))

    with served(wrap=lambda port: WatchedPort(port, see)) as guest:
        forward = guest.call(
            lambda network: network.forward("tcp", host=("127.0.0.1", 0), guest=(GUEST, 80))
        )
        server = guest.start(sys.executable, "-c", SERVER.format(size=size), stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            server.stdout.readline()
            come_back(forward, size)
        finally:
            server.kill()
            server.communicate()
    assert flags.count("S") == TIMES
    assert not [f for f in flags if "R" in f]


def come_back(forward: Forward, size: int) -> None:
    """TIMES connections from one port."""
    port = 0
    for _ in range(TIMES):
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            peer.settimeout(20)
            peer.bind(("127.0.0.1", port))
            port = peer.getsockname()[1]
            peer.connect(forward.host)
            peer.sendall(b"x")
            got = 0
            while data := peer.recv(1 << 16):
                got += len(data)
            assert got == size
