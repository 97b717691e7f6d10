"""Drivers that negotiate and lay out differently, each on a network (tests/kit/drivers.py)."""

from __future__ import annotations

import os
import random
import socket
import struct
from typing import Any

import pytest

from nic.virtio.features import GUEST_TSO4, GUEST_TSO6, MRG_RXBUF, OFFERED
from tests.kit.drivers import DRIVERS, DrivenPort, Driver, finished, pieces_of
from tests.kit.echo import EchoServer
from tests.kit.guest import ACK, GATEWAY, GUEST_MAC, PSH, Lab, Tcp, addr, arp, icmp, is_right, tcp

EVERY_DRIVER = pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)
OTHER, OTHER_MAC = "10.0.2.16", bytes.fromhex("525400123457")
ECHO = 8


@pytest.fixture(autouse=True)
def _checked(request: pytest.FixtureRequest) -> None:
    driver = request.getfixturevalue("driver") if "driver" in request.fixturenames else None
    if driver is not None:
        assert driver.features & ~OFFERED == 0


def lab_of(port: Any) -> Lab:
    """Its guest's port is one in memory, as far as the guest can tell."""
    return Lab(port)


def has_lro(driver: Driver) -> bool:
    return driver.features & GUEST_TSO4 > 0 and driver.features & GUEST_TSO6 > 0


@EVERY_DRIVER
def test_an_address_and_a_ping(driver: Driver) -> None:
    port = DrivenPort(driver)
    with lab_of(port) as lab:
        (reply,) = lab.exchange(arp(1, "10.0.2.15", GATEWAY))
        assert reply[20:22] == b"\0\2"
        for size in (0, 1, 18, 500, 1472):
            lab.guest.give(icmp(ECHO, 0, size, bytes(size), GATEWAY))
            lab.turn()
        assert [echo.rest for echo in lab.guest.icmps()] == [0, 1, 18, 500, 1472]
        if driver.is_silent:
            assert port.front.interrupts(0) == port.front.interrupts(1) == 0
        else:
            assert port.front.interrupts(0)
        assert port.why_gone == []
        assert port.stats["rx_too_long"] == port.stats["tx_dropped"] == 0


@EVERY_DRIVER
def test_connections_both_ways(driver: Driver) -> None:
    """More than any ring holds; super-frames come where the driver takes them, and nowhere else."""
    content = random.Random(1).randbytes(150_000)
    port = DrivenPort(driver)
    with EchoServer() as server, lab_of(port) as lab:
        lab.guest.give(arp(1, "10.0.2.15", GATEWAY))
        stream = lab.guest.connect((GATEWAY, server.port))
        host, _ = server.listener.accept()
        with host:
            host.setblocking(False)
            sent = received = 0
            came = b""
            while len(stream.received) < len(content) or len(came) < len(content):
                if sent < len(content):
                    sent += send_some(host, content[sent:])
                if received < len(content):
                    piece = content[received : received + 10_000]
                    stream.send(piece)
                    received += len(piece)
                came += receive_some(host)
                lab.turn()
            assert came == content
            assert bytes(stream.received) == content
        assert (port.longest > 1514) is has_lro(driver)
        assert lab.network.stats()["tcp"]["octets_copied"] == 0
        assert port.why_gone == []
        assert port.stats["rx_too_long"] == port.stats["tx_dropped"] == 0
        stream.reset()
        lab.turn()


def send_some(sock: socket.socket, data: bytes) -> int:
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


def receive_some(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 20)
    except BlockingIOError:
        return b""


def super_frame(payload: bytes) -> tuple[bytes, bytes]:
    """A segment longer than the MTU, as Linux hands it over: checksum and cutting left to us."""
    frame = tcp(ACK | PSH, OTHER, 80, data=payload, seq=5000)
    frame = OTHER_MAC + frame[6:]
    pseudo = addr("10.0.2.15") + addr(OTHER) + struct.pack("!HH", 6, len(frame) - 34)
    total = sum(struct.unpack("!6H", pseudo))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    frame = frame[:50] + total.to_bytes(2, "big") + frame[52:]
    return frame, struct.pack("<BBHHHH", 1, 1, 54, 1460, 34, 16)


@EVERY_DRIVER
def test_a_neighbours_super_frame(driver: Driver) -> None:
    """Cut, and its checksums made, for a driver that cannot take it; whole for one that can."""
    payload = random.Random(2).randbytes(20_000)
    port = DrivenPort(driver)
    with lab_of(DrivenPort(DRIVERS["Linux"])) as lab:
        other = lab.add_guest(OTHER, OTHER_MAC, port)  # type: ignore[arg-type]  # one in memory
        other.give(arp(1, OTHER, GATEWAY, sender_mac=OTHER_MAC))
        lab.turn()
        other.inbox.clear()
        lab.guest.give(*super_frame(payload))
        lab.turn()
        segments = [Tcp.of(is_right(frame).payload) for frame in other.inbox]
        assert b"".join(segment.data for segment in segments) == payload
        assert [segment.seq for segment in segments] == [
            5000 + at for at in range(0, len(payload), 20_000 if has_lro(driver) else 1460)
        ]
        assert {frame[6:12] for frame in other.inbox} == {GUEST_MAC}
        assert port.why_gone == []


@EVERY_DRIVER
def test_a_machine_that_boots_another_system(driver: Driver) -> None:
    """Firmware first, then this driver, on the same connection: rings are stopped in between."""
    port = DrivenPort(DRIVERS["iPXE"])
    with lab_of(port) as lab:
        assert len(lab.exchange(arp(1, "10.0.2.15", GATEWAY))) == 1
        front = port.front
        for index in (0, 1):
            front.stop_ring(index)
        front.memory[: front._first] = bytes(front._first)
        assert port.is_down
        port.driver = driver
        front.size = driver.size
        front.negotiate(driver.features)
        front.start()
        for _ in range(driver.buffers):
            port._post()
        port._kick(0)
        lab.guest.give(icmp(ECHO, 0, 7, bytes(100), GATEWAY))
        lab.turn()
        assert [echo.rest for echo in lab.guest.icmps()] == [7]
        assert (port.max_frame > 1514) is has_lro(driver)


def test_a_checksum_is_made_where_it_is_missing() -> None:
    frame, vnet = super_frame(bytes(range(200)))
    is_right(finished(vnet, frame))
    assert finished(bytes(10), frame) == frame
    assert pieces_of(b"abcde", 2) == [b"ab", b"cd", b"e"]


def test_the_drivers_differ_in_what_they_are_said_to() -> None:
    """Without MRG_RXBUF, without any offload, with legacy headers: there is one of each."""
    drivers = DRIVERS.values()
    assert any(not driver.features & MRG_RXBUF and has_lro(driver) for driver in drivers)
    assert {driver.header_len for driver in drivers} == {10, 12}
    assert any(not driver.features & 3 for driver in drivers)


@pytest.mark.parametrize("pending", [False, True], ids=["idle", "bytes on their way"])
def test_a_machine_whose_memory_is_gone_leaves_the_others_alone(pending: bool) -> None:
    """Our own accesses have zeros, system calls fail with EFAULT; neither is anybody else's."""
    port, others = DrivenPort(DRIVERS["Linux"], sealable=False), DrivenPort(DRIVERS["NetKVM"])
    with EchoServer() as server, lab_of(port) as lab:
        other = lab.add_guest(OTHER, OTHER_MAC, others)  # type: ignore[arg-type]  # one in memory
        for guest in (lab.guest, other):
            guest.give(arp(1, guest.addr, GATEWAY, sender_mac=guest.mac))
        lab.turn()
        stream = lab.guest.connect((GATEWAY, server.port))
        host, _ = server.listener.accept()
        with host:
            if pending:
                host.send(bytes(50_000))
            stream.put(ACK | PSH, bytes(1000))
            lab.guests.remove(lab.guest)  # it is frozen with its memory
            os.ftruncate(port.front.fd, 0)
            for _ in range(20):
                lab.network.poll(0.0)
        assert port.why_gone == ["took back memory that it had lent"]
        echo = icmp(ECHO, 0, 7, bytes(100), GATEWAY, src=OTHER)
        other.give(echo[:6] + OTHER_MAC + echo[12:])
        lab.turn()
        assert [reply.rest for reply in other.icmps()] == [7]
        assert others.why_gone == []
    port.close()
