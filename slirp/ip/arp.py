"""ARP (RFC 826): which requests the network answers, and the requests that it makes.

The stack owns a few addresses (gateway, DNS), each with its MAC. `answer` replies to a request for
one of them, whoever asks: a host with an address; a probe from 0.0.0.0 (RFC 5227 §2.1.1), so that a
guest that wants such an address sees it taken; an announcement of it, where the reply tells the
announcer of the conflict. Nothing else is answered: other guests speak for themselves.

Does not do: remember anybody (slirp.ip.neighbours), send, retransmit.
"""

from __future__ import annotations

from collections.abc import Mapping

from slirp.address import UNSPECIFIED_V4
from slirp.wire.arp import REPLY, REQUEST, ArpPacket


def answer(packet: ArpPacket, own: Mapping[bytes, bytes]) -> ArpPacket | None:
    """The reply to `packet`, or None. `own`: the stack's addresses and their MACs."""
    target = packet.target_addr
    mac = own.get(target)
    if mac is None or packet.operation != REQUEST:
        return None
    sender = packet.sender_addr
    if sender in own and sender != target:  # claims one of our addresses, asks for another
        return None
    return ArpPacket(REPLY, mac, target, packet.sender_mac, sender)


def request(sender_mac: bytes, sender_addr: bytes, target_addr: bytes) -> ArpPacket:
    """Who has `target_addr`? To be sent to the broadcast MAC."""
    return ArpPacket(REQUEST, sender_mac, sender_addr, bytes(6), target_addr)


def is_probe(packet: ArpPacket) -> bool:
    """Asked by a host that does not use the address yet: nothing to learn from (RFC 5227 §1.1)."""
    return packet.sender_addr == UNSPECIFIED_V4
