from __future__ import annotations

import pytest

from slirp.ip.arp import answer, is_probe, request
from slirp.wire.arp import REPLY, REQUEST, ArpPacket

GATEWAY = bytes([10, 0, 2, 2])
DNS = bytes([10, 0, 2, 3])
BROADCAST = bytes([10, 0, 2, 255])
GUEST = bytes([10, 0, 2, 15])
OTHER = bytes([10, 0, 2, 16])
OUR_MAC = bytes.fromhex("525500000202")
MAC = bytes.fromhex("080020010203")
OWN = {GATEWAY: OUR_MAC, DNS: OUR_MAC}


def who_has(target: bytes, sender: bytes = GUEST, operation: int = REQUEST) -> ArpPacket:
    return ArpPacket(operation, MAC, sender, bytes(6), target)


@pytest.mark.parametrize("target", [GATEWAY, DNS])
def test_own_addresses_are_answered_to_the_asker(target: bytes) -> None:
    assert answer(who_has(target), OWN) == (REPLY, OUR_MAC, target, MAC, GUEST)


@pytest.mark.parametrize("target", [GUEST, OTHER, BROADCAST, bytes(4), b"\xff" * 4])
def test_nobody_elses(target: bytes) -> None:
    assert answer(who_has(target), OWN) is None


@pytest.mark.parametrize("operation", [REPLY, 0, 3, 8, 65535])
def test_only_requests(operation: int) -> None:
    assert answer(who_has(GATEWAY, operation=operation), OWN) is None


def test_a_probe_sees_that_the_address_is_taken() -> None:
    probe = who_has(GATEWAY, sender=bytes(4))
    assert is_probe(probe)
    assert answer(probe, OWN) == (REPLY, OUR_MAC, GATEWAY, MAC, bytes(4))
    assert not is_probe(who_has(GATEWAY))


def test_an_announcement_of_the_gateways_address_is_contradicted() -> None:
    assert answer(who_has(GATEWAY, sender=GATEWAY), OWN) == (REPLY, OUR_MAC, GATEWAY, MAC, GATEWAY)


def test_who_claims_to_be_the_gateway_gets_no_answer_about_dns() -> None:
    assert answer(who_has(DNS, sender=GATEWAY), OWN) is None


def test_our_own_request() -> None:
    assert request(OUR_MAC, GATEWAY, GUEST) == (REQUEST, OUR_MAC, GATEWAY, bytes(6), GUEST)
