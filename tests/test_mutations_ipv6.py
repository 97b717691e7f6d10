"""IPv6 conversations that make sense, with bytes changed at random, against a whole network.

As tests/test_mutations.py does it with IPv4: packets of every kind that the network reads, damaged
on the way, mostly with length and checksum repaired so that the damage reaches the upper layers.
The network raises nothing, sends whole and right frames only, and comes to rest.

Does not do: streams (what TCP makes of damage is the same for both families).
"""

from __future__ import annotations

import os
import random
import struct
from typing import Final

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    HBHOptUnknown,
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Jumbo,
    PadN,
)
from scapy.packet import NoPayload, Packet, Raw

from nic.port import VNET_NONE
from tests.kit.clock import Clock
from tests.kit.guest import GUEST_MAC, OWN_MAC, Lab, ether, internet_sum
from tests.kit.port import MemoryPort
from tests.test_mutations import Hosts, damaged, look_at_what_came, settle

STEPS: Final = 400
GUEST, GATEWAY, RESOLVER = "fd00::100", "fd00::2", "fd00::3"
ADDRESSES: Final = (GUEST, GATEWAY, RESOLVER, "fe80::2", "fe80::9", "ff02::1", "::", "2001:db8::1")
SUM_AT: Final = {58: 2, 6: 16, 17: 6}  # by protocol: where the checksum is
MAC: Final = ":".join(f"{octet:02x}" for octet in GUEST_MAC)


def extensions(dice: random.Random) -> list[Packet]:
    options = [PadN(optdata=b"\0" * dice.randrange(5)), HBHOptUnknown(otype=dice.randrange(256))]
    options.append(Jumbo(jumboplen=dice.choice((0, 70000))))
    return [
        IPv6ExtHdrHopByHop(options=dice.sample(options, 1)),
        IPv6ExtHdrDestOpt(options=dice.sample(options, dice.randrange(3))),
        IPv6ExtHdrRouting(addresses=[GATEWAY] * dice.randrange(2)),
        IPv6ExtHdrFragment(
            offset=dice.choice((0, 1, 185)), m=dice.randrange(2), id=dice.randrange(3)
        ),
    ]


def messages(dice: random.Random, port: int) -> list[Packet]:
    target = dice.choice(ADDRESSES)
    station = ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    return [
        ICMPv6EchoRequest(data=dice.randbytes(dice.choice((0, 56, 1400)))),
        ICMPv6ND_NS(tgt=target) / dice.choice((station, NoPayload())),
        ICMPv6ND_NA(tgt=target, S=dice.randrange(2)) / ICMPv6NDOptDstLLAddr(lladdr=MAC),
        ICMPv6ND_RS() / station,
        ICMPv6ND_RA() / station,
        ICMPv6MLReport2(),
        ICMPv6PacketTooBig(mtu=dice.choice((0, 1280))) / Raw(dice.randbytes(60)),
        ICMPv6DestUnreach() / Raw(dice.randbytes(60)),
        UDP(sport=4000, dport=port) / Raw(dice.randbytes(dice.choice((0, 1, 1400)))),
        UDP(sport=4000, dport=53) / DNS(qd=DNSQR(qname="host.slirp.internal", qtype="AAAA")),
        UDP(sport=546, dport=547) / Raw(dice.randbytes(40)),
        TCP(sport=4000, dport=port, flags=dice.choice(("S", "A", "R", "SF"))),
    ]


def packet(dice: random.Random, port: int) -> bytes:
    made = IPv6(
        src=dice.choice((GUEST, GUEST, *ADDRESSES)),
        dst=dice.choice((GATEWAY, *ADDRESSES)),
        hlim=dice.choice((255, 255, 64, 1, 0)),
    )
    for extension in dice.sample(extensions(dice), dice.choice((0, 0, 0, 1, 2, 3))):
        made = made / extension
    return bytes(made / dice.choice(messages(dice, port)))[:1500]


def repaired(frame: bytes) -> bytes:
    """With the length and, where no other header comes first, the checksum right."""
    octets = bytearray(frame[14:])
    if len(octets) < 40:
        return frame
    size = len(octets) - 40
    octets[4:6] = struct.pack("!H", size)
    protocol = octets[6]
    at = 40 + SUM_AT.get(protocol, 1 << 16)
    if len(octets) >= at + 2:
        octets[at : at + 2] = b"\0\0"
        pseudo = bytes(octets[8:40]) + struct.pack("!II", size, protocol)
        total = 0xFFFF ^ internet_sum(pseudo + bytes(octets[40:]))
        octets[at : at + 2] = (total or 0xFFFF).to_bytes(2, "big")
    return frame[:14] + bytes(octets)


def check(frame: bytes) -> None:
    """An IPv6 frame of the network's: its length, and the sum of what is not a fragment."""
    octets = frame[14:]
    assert octets[0] >> 4 == 6
    assert len(octets) == 40 + int.from_bytes(octets[4:6], "big")
    if octets[6] != 44:
        pseudo = octets[8:40] + struct.pack("!II", len(octets) - 40, octets[6])
        assert internet_sum(pseudo + octets[40:]) == 0xFFFF


@pytest.mark.parametrize("seed", range(16))
def test_damaged_packets(seed: int) -> None:
    dice = random.Random(seed)
    before = len(os.listdir("/proc/self/fd"))
    clock = Clock()
    hosts = Hosts(dice)
    port = MemoryPort(piece=dice.choice((0, 0, 7, 61)))
    with Lab(port, clock=clock, host_loopback=bool(seed % 8)) as lab:
        for _ in range(STEPS):
            frame = ether(packet(dice, hosts.port), 0x86DD, dst=OWN_MAC)
            if dice.random() < 0.6:
                frame = damaged(frame, dice)
                frame = repaired(frame) if dice.random() < 0.8 else frame
            lab.guest.give(frame, VNET_NONE)
            if dice.random() < 0.1:
                port.grant(dice.choice((0, 1, 3, None)))
            if dice.random() < 0.05:
                clock.advance(dice.choice((0.001, 0.3, 3.0, 31.0)))
            hosts.pump()
            lab.network.poll(0.0)
            for octets in lab.port.sent:
                if octets[12:14] == b"\x86\xdd":
                    check(octets)
            look_at_what_came(lab)
        port.grant(None)
        hosts.close()
        settle(lab, clock)
        assert lab.network.flows() == []
    assert len(os.listdir("/proc/self/fd")) == before
