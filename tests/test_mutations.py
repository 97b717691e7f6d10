"""Conversations that make sense, with bytes changed at random, against a whole network.

A few streams, datagrams, fragments, DNS and DHCP messages are spoken by a guest and damaged on the
way, mostly with checksums repaired so that the damage reaches the upper layers. Hosts answer, stall
and reset meanwhile, and the guest's buffers run out now and then. After each conversation the
network has raised nothing, sent nothing but whole and right frames, sent no byte that it did not
get from somebody, and, given time, holds nothing any more.
"""

from __future__ import annotations

import os
import random
import socket
import struct
from contextlib import suppress
from typing import Final

import pytest

from nic.port import VNET_NONE
from slirp.host.tcp_deliver import KEPT_MAX
from tests.kit.clock import Clock
from tests.kit.guest import (
    ACK,
    DNS,
    FIN,
    GATEWAY,
    GUEST,
    GUEST_MAC,
    OWN_MAC,
    PSH,
    RST,
    SYN,
    URG,
    Lab,
    Stream,
    arp,
    ether,
    icmp,
    internet_sum,
    ipv4,
    tcp,
    udp,
    with_sum,
)
from tests.kit.port import POISON, SPENT, MemoryPort

STEPS: Final = 500
OFFERS: Final = (
    b"\x02\x04\x05\xb4",
    b"\x02\x04\0\x01",
    bytes.fromhex("0204 05b4 0402 080a 00000001 00000000 0303 0701"),
)
SUM_AT: Final = {1: 2, 6: 16, 17: 6}  # by protocol: where the checksum is
AGES: Final = (0.0, 1.0, 31.0, 130.0, 400.0, 8000.0, *[100.0] * 30, 90000.0)  # seconds


class Hosts:
    """Servers on the host that behave badly."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.listener.setblocking(False)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.port: int = self.listener.getsockname()[1]
        self.udp.bind(("127.0.0.1", self.port))
        self.peers: list[socket.socket] = []

    def pump(self) -> None:
        with suppress(BlockingIOError):
            peer, _ = self.listener.accept()
            peer.setblocking(False)
            self.peers.append(peer)
        with suppress(OSError):
            data, sender = self.udp.recvfrom(65536)
            self.udp.sendto(data * self.dice.choice((1, 1, 3)), sender)
        for peer in self.peers.copy():
            with suppress(OSError):
                self.misbehave(peer)

    def misbehave(self, peer: socket.socket) -> None:
        deed = self.dice.randrange(30)
        if deed < 10:
            peer.recv(self.dice.choice((1, 65536)))
        elif deed < 18:
            peer.send(self.dice.randbytes(self.dice.choice((1, 1460, 20000))))
        elif deed == 18:
            peer.send(b"!", socket.MSG_OOB)
        elif deed == 19:
            peer.shutdown(self.dice.randrange(3))
        elif deed == 20:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.leave(peer)
        elif deed == 21:
            self.leave(peer)

    def leave(self, peer: socket.socket) -> None:
        self.peers.remove(peer)
        peer.close()

    def close(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self.peers.append(self.listener.accept()[0])
        for sock in (self.listener, self.udp, *self.peers):
            sock.close()


class Conversation:
    """What the guest says."""

    def __init__(self, lab: Lab, dice: random.Random, port: int) -> None:
        self.lab = lab
        self.dice = dice
        self.port = port
        self.streams: list[Stream] = []

    def frame(self) -> bytes:
        pick = self.dice.choice
        return pick((self.stranger, self.message, self.fragment, *[self.segment] * 4))()

    def stranger(self) -> bytes:
        """ARP, ICMP, and segments of no connection."""
        dice, pick = self.dice, self.dice.choice
        return pick(
            (
                arp(pick((1, 2)), pick((GUEST, GATEWAY, "0.0.0.0")), pick((GATEWAY, DNS, GUEST))),
                icmp(pick((8, 0, 3)), 0, dice.getrandbits(32), dice.randbytes(64), GATEWAY),
                tcp(dice.randrange(64), GATEWAY, pick((self.port, 9)), src_port=3000),
            )
        )

    def message(self) -> bytes:
        """Datagrams: echo, DNS, DHCP."""
        dice, pick = self.dice, self.dice.choice
        name = pick((b"\x04host\x05slirp\x08internal\0", b"\x03foo\0", b"\xc0\x0c"))
        query = struct.pack("!6H", dice.getrandbits(16), 256, 1, 0, 0, 0) + name + b"\0\x01\0\x01"
        options = b"\x63\x82\x53\x63\x35\x01" + bytes((pick((1, 3, 4, 7, 8, 99)),)) + b"\xff"
        head = struct.pack("!BBBB24x", 1, 1, 6, 0) + GUEST_MAC + bytes(10 + 192)
        return pick(
            (
                udp(
                    dice.randbytes(pick((0, 1, 100, 1472))),
                    GATEWAY,
                    self.port,
                    ttl=pick((0, 1, 64)),
                ),
                udp(query, DNS, 53, src_port=dice.randrange(65536)),
                udp(head + options, "255.255.255.255", 67, src="0.0.0.0", src_port=68),
            )
        )

    def fragment(self) -> bytes:
        pick = self.dice.choice
        payload = self.dice.randbytes(pick((7, 8, 1480)))
        where = pick((0, 0x2000, 0x2001, 1, 185, 0x2000 | 185, 8000))
        return ether(ipv4(payload, pick((1, 6, 17)), GATEWAY, ident=pick((1, 2)), fragment=where))

    def segment(self) -> bytes:
        """Of one of a few streams, in the window or about it."""
        dice, pick = self.dice, self.dice.choice
        if not self.streams or dice.random() < 0.05:
            remote = pick(((GATEWAY, self.port), (DNS, 53)))
            self.streams.append(self.lab.guest.open(remote, options=pick(OFFERS)))
        stream = pick(self.streams)
        flags = pick((ACK, ACK, PSH | ACK, PSH | ACK, FIN | ACK, RST, SYN, SYN | ACK, 0, URG | ACK))
        data = dice.randbytes(pick((0, 0, 1, 1400)))
        seq = stream.seq + pick((0, 0, 0, 0, 1, -1, 1460, -1460, 70000, 1 << 31))
        if seq == stream.seq:
            stream.seq += len(data) + bool(flags & (SYN | FIN))
        ack = stream.ack + pick((0, 0, 0, 1, -1, 1460))
        return stream.frame(flags, data, seq=seq, ack=ack, window=pick((0, 1, 65535, 65535)))


def damaged(frame: bytes, dice: random.Random) -> bytes:
    out = bytearray(frame)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(max(1, min(len(out), 70)))
        match dice.randrange(5):
            case 0:
                out[at : at + 1] = dice.randbytes(1)
            case 1:
                out[at : at + 2] = dice.choice((b"\0\0", b"\xff\xff", b"\x7f\xff"))
            case 2:
                del out[at : at + dice.randrange(1, 20)]
            case 3:
                out[at:at] = dice.randbytes(dice.randrange(1, 20))
            case 4:
                del out[at:]
    return bytes(out[:1514])


def repaired(frame: bytes) -> bytes:
    """With the lengths and sums right that were wrong, as far as there is a header."""
    packet = bytearray(frame[14:])
    ihl = (packet[0] & 15) * 4 if packet else 0
    if frame[12:14] != b"\x08\0" or not 20 <= ihl <= len(packet):
        return frame
    packet[2:4] = len(packet).to_bytes(2, "big")
    packet[10:12] = bytes(2)
    packet[10:12] = (0xFFFF ^ internet_sum(bytes(packet[:ihl]))).to_bytes(2, "big")
    text, at = bytes(packet[ihl:]), SUM_AT.get(packet[9], 0)
    if at and len(text) >= at + 2:
        src, dst = bytes(packet[12:16]), bytes(packet[16:20])
        if packet[9] == 1:
            bare = text[:2] + bytes(2) + text[4:]
            text = text[:2] + (0xFFFF ^ internet_sum(bare)).to_bytes(2, "big") + text[4:]
        else:
            text = with_sum(text, src, dst, packet[9], at)
    return frame[:14] + bytes(packet[:ihl]) + text


def look_at_what_came(lab: Lab) -> None:
    """Every frame is the network's, holds no byte of unwritten memory, and has right sums."""
    for frame in lab.port.sent:
        assert frame[6:12] == OWN_MAC
        assert bytes((POISON,)) * 8 not in frame
        assert bytes((SPENT,)) * 8 not in frame
    lab.guest.read()
    lab.guest.packets(1)
    lab.guest.packets(17)
    lab.guest.inbox.clear()


def settle(lab: Lab, clock: Clock) -> None:
    """Let time go by, the guest silent: the network comes to rest at every instant."""
    for age in AGES:
        clock.advance(age)
        for _ in range(3000):
            handled = lab.network.poll(0.0)
            lab.port.take()
            at = lab.network._loop.deadline()
            if not handled and not lab.network._loop._again and (at is None or at > clock.now):
                break
        else:
            pytest.fail(f"no rest: {lab.network.stats()}")


@pytest.mark.parametrize("seed", range(24))
def test_damaged_conversations(seed: int) -> None:
    dice = random.Random(seed)
    before = len(os.listdir("/proc/self/fd"))
    clock = Clock()
    hosts = Hosts(dice)
    port = MemoryPort(piece=dice.choice((0, 0, 7, 61)))
    with Lab(port, clock=clock, host_loopback=bool(seed % 8)) as lab:
        conversation = Conversation(lab, dice, hosts.port)
        for _ in range(STEPS):
            frame = conversation.frame()
            if dice.random() < 0.4:
                frame = damaged(frame, dice)
                frame = repaired(frame) if dice.random() < 0.8 else frame
            lab.guest.give(frame, VNET_NONE)
            if dice.random() < 0.1:
                port.grant(dice.choice((0, 1, 3, None)))
            if dice.random() < 0.05:
                clock.advance(dice.choice((0.001, 0.3, 3.0, 31.0)))
            hosts.pump()
            lab.network.poll(0.0)
            look_at_what_came(lab)
        port.grant(None)
        hosts.close()
        settle(lab, clock)
        assert lab.network.flows() == []
        assert lab.network._dispatcher.tcp.deliverer.shelf.left == KEPT_MAX
    assert len(os.listdir("/proc/self/fd")) == before
