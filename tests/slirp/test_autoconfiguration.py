"""Configuration over IPv6 through a whole network: what goes to whom, and what no guest can do.

Frames are scapy's, both ways.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Advertise,
    DHCP6_Confirm,
    DHCP6_Decline,
    DHCP6_InfoRequest,
    DHCP6_Rebind,
    DHCP6_Release,
    DHCP6_Renew,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientFQDN,
    DHCP6OptClientId,
    DHCP6OptIA_NA,
    DHCP6OptIAAddress,
    DHCP6OptRapidCommit,
    DHCP6OptServerId,
)
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    in6_chksum,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from nic.port import VNET_NONE
from slirp import Network
from slirp.host.attachment import Attachment
from tests.kit.clock import Clock
from tests.kit.port import MemoryPort

ROUTER = "fe80::2"
OWN_MAC = "52:55:0a:00:02:02"
SERVERS = "ff02::1:2"
SERVER = DUID_LL(lladdr=OWN_MAC)


class Guest:
    def __init__(self, lab: Lab, number: int) -> None:
        self.port = MemoryPort()
        self.mac = f"52:54:00:00:00:{number:02x}"
        self.addr = f"fe80::{number:x}"
        self.duid = DUID_LL(lladdr=self.mac)
        self._lab = lab
        self.attachment: Attachment = lab.network.attach(self.port)

    def say(self, packet: Packet, to: str | None = None, after: float = 0.6) -> list[Packet]:
        """Send a frame, and let time go by; what comes back, each checksum right."""
        self.port.sent.clear()
        ether = Ether(src=self.mac, dst=to) if to else Ether(src=self.mac)
        self.port.give(bytes(ether / packet), VNET_NONE)
        self._lab.settle()
        self._lab.clock.advance(after)
        self._lab.settle()
        return self.heard()

    def heard(self) -> list[Packet]:
        found = [Ether(octets) for octets in self.port.sent]
        self.port.sent.clear()
        for frame in found:
            again = Ether(bytes(frame))
            for layer, field in ((UDP, "chksum"), (ICMPv6ND_RA, "cksum")):
                if layer in again:
                    given = getattr(again[layer], field)
                    delattr(again[layer], field)
                    assert getattr(Ether(bytes(again))[layer], field) == given
        return found

    def dhcp(self, message: Packet, duid: Any = None, dst: str = SERVERS) -> list[Packet]:
        """A message of DHCPv6 with this guest's name, or another's."""
        head = IPv6(src=self.addr, dst=dst) / UDP(sport=546, dport=547)
        to = "33:33:00:01:00:02" if dst == SERVERS else OWN_MAC
        return self.say(head / message / DHCP6OptClientId(duid=duid or self.duid), to)

    def lease(self) -> str:
        ask = DHCP6_Solicit(trid=1) / DHCP6OptRapidCommit() / DHCP6OptIA_NA(iaid=1)
        (reply,) = self.dhcp(ask)
        return str(reply[DHCP6OptIAAddress].addr)


class Lab:
    """A network with two guests, whose first advertisements have been."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.network = Network(resolvers=(), clock=lambda: self.clock.now, **options)
        self.a, self.b = Guest(self, 10), Guest(self, 11)
        for _ in range(3):
            self.clock.advance(20.0)
            self.settle()
        self.first = self.a.heard()
        self.b.heard()

    def settle(self) -> None:
        while self.network.poll(0.0):
            pass


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = Lab()
    with made.network:
        yield made


def leases(lab: Lab) -> set[tuple[str, str]]:
    return {(lease["address"], lease["mac"]) for lease in lab.network.leases()}


# Router advertisements


def test_a_port_hears_three_when_it_is_attached(lab: Lab) -> None:
    assert len(lab.first) == 3
    for frame in lab.first:
        assert (frame.src, frame.dst) == (OWN_MAC, "33:33:00:00:00:01")
        assert (frame[IPv6].src, frame[IPv6].dst, frame[IPv6].hlim) == (ROUTER, "ff02::1", 255)
        assert frame[ICMPv6NDOptPrefixInfo].prefix == "fd00::"


def test_who_solicits_is_answered(lab: Lab) -> None:
    ask = IPv6(src=lab.a.addr, dst="ff02::2", hlim=255) / ICMPv6ND_RS()
    (frame,) = lab.a.say(ask / ICMPv6NDOptSrcLLAddr(lladdr=lab.a.mac), "33:33:00:00:00:02")
    assert (frame.dst, frame[IPv6].dst, frame[IPv6].hlim) == (lab.a.mac, lab.a.addr, 255)
    assert [f for f in lab.b.heard() if ICMPv6ND_RA in f] == []


@pytest.mark.parametrize(
    "ask",
    [
        IPv6(src="fe80::a", dst="ff02::2", hlim=64) / ICMPv6ND_RS(),
        IPv6(src="::", dst="ff02::2", hlim=255)
        / ICMPv6ND_RS()
        / ICMPv6NDOptSrcLLAddr(lladdr="52:54:00:00:00:0a"),
        IPv6(src="fe80::a", dst="ff02::2", hlim=255) / ICMPv6ND_RS(code=1),
    ],
)
def test_solicitations_that_do_not_count(lab: Lab, ask: Packet) -> None:
    assert lab.a.say(ask, "33:33:00:00:00:02", after=5.0) == []
    assert sum(lab.network.stats()["malformed"].values()) == 1


def test_a_port_that_is_taken_off_hears_no_more(lab: Lab) -> None:
    lab.network.detach(lab.a.attachment)
    lab.clock.advance(601.0)
    lab.settle()
    assert lab.a.heard() == []
    assert len(lab.b.heard()) == 1


def test_a_forged_advertisement_reaches_and_moves_nobody(lab: Lab) -> None:
    before = lab.network.guests()
    for src in (ROUTER, lab.b.addr):
        forged = IPv6(src=src, dst="ff02::1", hlim=255) / ICMPv6ND_RA(routerlifetime=0)
        lab.b.say(forged / ICMPv6NDOptPrefixInfo(prefix="bad::"), "33:33:00:00:00:01")
        assert lab.a.heard() == []
    assert [g for g in lab.network.guests() if g["address"] == ROUTER] == []
    assert len(before) <= len(lab.network.guests())


# DHCPv6


def test_a_lease_and_where_the_answers_go(lab: Lab) -> None:
    (offer,) = lab.a.dhcp(DHCP6_Solicit(trid=7) / DHCP6OptIA_NA(iaid=1))
    assert (offer.dst, offer[IPv6].src, offer[IPv6].dst) == (lab.a.mac, ROUTER, lab.a.addr)
    assert (offer[UDP].sport, offer[UDP].dport) == (547, 546)
    assert offer[DHCP6_Advertise].trid == 7
    given = DHCP6OptIAAddress(addr=offer[DHCP6OptIAAddress].addr)
    ask = DHCP6_Request(trid=8) / DHCP6OptServerId(duid=SERVER)
    (reply,) = lab.a.dhcp(ask / DHCP6OptIA_NA(iaid=1, ianaopts=[given]))
    assert reply[DHCP6_Reply].trid == 8
    assert leases(lab) == {("fd00::100", lab.a.mac)}
    assert "fd00::100" in [guest["address"] for guest in lab.network.guests()]
    assert [frame for frame in lab.b.heard() if frame.src == OWN_MAC] == []


def test_a_message_to_the_routers_own_address(lab: Lab) -> None:
    (reply,) = lab.a.dhcp(DHCP6_InfoRequest(trid=1), dst=ROUTER)
    assert reply[DHCP6_Reply].trid == 1
    assert lab.a.dhcp(DHCP6_Solicit(trid=1), dst=ROUTER) == []


def test_a_datagram_that_only_has_the_port(lab: Lab) -> None:
    """Of another host's port 547 the network's server knows nothing."""
    lab.a.dhcp(DHCP6_InfoRequest(trid=1), dst="fd00::3")
    assert lab.network.stats()["dhcpv6"] == {}


def test_where_dhcp_is_off_that_is_said() -> None:
    lab = Lab(dhcp_enabled=False)
    with lab.network:
        lab.a.say(IPv6(src=lab.a.addr, dst=ROUTER, hlim=255) / ICMPv6ND_RS(), OWN_MAC)
        (frame,) = lab.a.dhcp(DHCP6_InfoRequest(trid=1), dst=ROUTER)
        assert frame[ICMPv6DestUnreach].code == 4


def test_one_guest_neither_gets_nor_ends_anothers_lease(lab: Lab) -> None:
    """B says A's name, in every message that could move or end what A has."""
    address = lab.a.lease()
    held = DHCP6OptIA_NA(iaid=1, ianaopts=[DHCP6OptIAAddress(addr=address)])
    known = DHCP6OptServerId(duid=SERVER)
    for message in (
        DHCP6_Release(trid=1) / known / held,
        DHCP6_Decline(trid=1) / known / held,
        DHCP6_Renew(trid=1) / known / held,
        DHCP6_Rebind(trid=1) / held,
        DHCP6_Request(trid=1) / known / held,
        DHCP6_Solicit(trid=1) / DHCP6OptRapidCommit() / held,
    ):
        lab.b.dhcp(message, lab.a.duid)
        assert (address, lab.a.mac) in leases(lab), message.summary()
        assert (address, lab.b.mac) not in leases(lab), message.summary()
        assert [frame for frame in lab.a.heard() if frame.src == OWN_MAC] == []
    (guest,) = [g for g in lab.network.guests() if g["address"] == address]
    assert guest["mac"] == lab.a.mac
    (reply,) = lab.a.dhcp(DHCP6_Renew(trid=1) / known / held)
    assert reply[DHCP6OptIAAddress].validlft == 86400


def test_a_forged_server_reaches_nobody(lab: Lab) -> None:
    forged = DHCP6_Reply(trid=1) / DHCP6OptServerId(duid=SERVER)
    for src in (ROUTER, lab.b.addr):
        head = IPv6(src=src, dst=lab.a.addr) / UDP(sport=547, dport=546)
        lab.b.say(head / forged / DHCP6OptClientId(duid=lab.a.duid), lab.a.mac)
        assert lab.a.heard() == []
    assert lab.network.stats()["refused"]["forged"] >= 2


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x01\0\0",
        b"\x01\0\0\1" + b"\0\1\0\x83" + bytes(131),  # a DUID of more than 128 bytes
        b"\x01\0\0\1" + b"\0\1\1\1" + bytes(257),
        b"\x01\0\0\1" + b"\0\3\0\x10" + bytes(12) + b"\0\5\0\x18" + bytes(24),  # nested overrun
        b"\x01\0\0\1" + b"\0\6\0\3\0\x17\0",  # option request of an odd length
        b"\x0c\0" + bytes(32) + b"\0\x09\0\0",  # relay-forw
        b"\x0d\0" + bytes(32),
        b"\x07\0\0\1",
        b"\x63\0\0\1",
    ],
)
def test_hostile_messages(lab: Lab, octets: bytes) -> None:
    head = IPv6(src=lab.a.addr, dst=SERVERS) / UDP(sport=546, dport=547)
    assert lab.a.say(head / octets, "33:33:00:01:00:02") == []
    assert sum(lab.network.stats()["malformed"].values()) == 1
    assert lab.a.lease() == "fd00::100", "and others go on"


def test_leases_are_told_as_they_come_and_go(lab: Lab) -> None:
    told: list[Any] = []
    end = lab.network.subscribe(told.append)
    address = lab.a.lease()
    held = DHCP6OptIA_NA(iaid=1, ianaopts=[DHCP6OptIAAddress(addr=address)])
    lab.a.dhcp(DHCP6_Release(trid=1) / DHCP6OptServerId(duid=SERVER) / held)
    end()
    kinds = [event.kind for event in told if "lease" in event.kind]
    assert kinds == ["lease", "lease-ended"]


def test_names_of_leases(lab: Lab) -> None:
    message = DHCP6_Solicit(trid=1) / DHCP6OptRapidCommit() / DHCP6OptIA_NA(iaid=1)
    lab.a.dhcp(message / DHCP6OptClientFQDN(fqdn="web"))
    (guest,) = [g for g in lab.network.guests() if g["address"] == "fd00::100"]
    assert guest["hostname"] == "web"
    query = DNS(id=7, rd=1, qd=DNSQR(qname="web.internal", qtype="AAAA"))
    head = IPv6(src="fd00::100", dst="fd00::3") / UDP(sport=4000, dport=53)
    (answer,) = lab.a.say(head / query, OWN_MAC)
    assert answer[DNS].an[0].rdata == "fd00::100"


def some_message(lab: Lab, dice: random.Random) -> Packet:
    """Of the conversations above, by either guest in anybody's name."""
    pick = dice.choice
    held = [DHCP6OptIAAddress(addr=pick(("fd00::100", "fd00::101", "fd00::2", "2001:db8::1")))]
    association = DHCP6OptIA_NA(iaid=pick((1, 2)), ianaopts=held[: dice.randrange(2)])
    kinds = (
        *(DHCP6_Solicit, DHCP6_Request, DHCP6_Renew, DHCP6_Rebind, DHCP6_Release),
        *(DHCP6_Decline, DHCP6_InfoRequest, DHCP6_Confirm, DHCP6_Advertise, DHCP6_Reply),
    )
    message = pick(kinds)(trid=dice.getrandbits(24))
    if dice.random() < 0.7:
        message = message / DHCP6OptServerId(duid=SERVER)
    if dice.random() < 0.5:
        message = message / DHCP6OptRapidCommit()
    return message / association / DHCP6OptClientId(duid=pick((lab.a.duid, lab.b.duid)))


@pytest.mark.parametrize("seed", range(8))
def test_damaged_conversations(seed: int) -> None:
    """Bytes changed at random, checksums right all the same: nothing is raised, no frame is wrong,
    no address is the network's own or two guests', and in the end all goes on as ever."""
    dice = random.Random(seed)
    lab = Lab()
    with lab.network:
        for _ in range(150):
            guest = dice.choice((lab.a, lab.b))
            if dice.random() < 0.2:
                solicitation = bytearray(bytes(ICMPv6ND_RS(res=0) / ICMPv6NDOptSrcLLAddr()))
                head = IPv6(src=guest.addr, dst="ff02::2", hlim=255, nh=58)
                octets, to = solicitation, "33:33:00:00:00:02"
            else:
                octets = bytearray(bytes(some_message(lab, dice)))
                head = IPv6(src=guest.addr, dst=SERVERS) / UDP(sport=546, dport=547)
                to = "33:33:00:01:00:02"
            for _ in range(dice.choice((0, 1, 1, 2, 5))):
                at = dice.randrange(len(octets))
                octets[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
                octets = octets or bytearray(1)
            if head.nh == 58 and len(octets) >= 4:
                octets[2:4] = bytes(2)
                octets[2:4] = in6_chksum(58, head, bytes(octets)).to_bytes(2)
            guest.say(head / Raw(bytes(octets)), to, after=dice.choice((0.0, 0.6, 30.0)))
            held = [lease["address"] for lease in lab.network.leases()]
            assert len(held) == len(set(held))
            assert not {"fd00::2", "fd00::3", "fe80::2"} & set(held)
        lab.clock.advance(90000.0)
        lab.settle()
        assert lab.network.leases() == []
        lab.a.heard()
        assert lab.a.lease().startswith("fd00::")


def test_a_lease_survives_a_restart_at_whatever_port(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "state"
    lab.b.lease()
    address = lab.a.lease()
    assert lab.network.save(path)["leases"] == 2
    again = Lab()
    with again.network:
        assert again.network.restore(path)["leases"] == 2
        assert (address, again.a.mac) in leases(again)
        assert again.a.lease() == address
        held = DHCP6OptIA_NA(iaid=1, ianaopts=[DHCP6OptIAAddress(addr=address)])
        again.b.dhcp(DHCP6_Release(trid=1) / DHCP6OptServerId(duid=SERVER) / held, again.a.duid)
        assert (address, again.a.mac) in leases(again)
