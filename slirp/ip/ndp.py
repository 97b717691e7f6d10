"""Neighbour discovery (RFC 4861): which solicitations the network answers, and those it makes.

The network owns a few addresses, each at its one MAC. `answer` replies to a solicitation for one of
them, whoever asks: a host with an address, which gets the reply itself, or one that is about to use
the address and asks from the unspecified one (RFC 4862 §5.4.3), where everybody on the link is told
that it is taken. Nothing else is answered: other guests speak for themselves.

Does not do: remember anybody (slirp.ip.neighbours), retransmit (slirp.ip.resolution), advertise
itself as a router.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dma.iovec import IoVec
from slirp.address import UNSPECIFIED_V6
from slirp.ip import icmpv6
from slirp.wire.ethernet import ETHERTYPE_IPV6, EthernetHeader
from slirp.wire.icmpv6 import HEADER_LEN as ICMPV6_LEN
from slirp.wire.icmpv6 import NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION
from slirp.wire.ipv6 import PROTOCOL_ICMPV6, Ipv6Header
from slirp.wire.ndp import HOP_LIMIT, OVERRIDE, ROUTER, SOLICITED, NeighbourMessage

ALL_NODES: Final = bytes.fromhex("ff02") + bytes(13) + b"\x01"  # RFC 4291 §2.7.1
_SOLICITED_NODE: Final = bytes.fromhex("ff02") + bytes(9) + bytes.fromhex("01ff")


class Message(NamedTuple):
    """A message of discovery, and where it goes."""

    src: bytes
    dst: bytes
    octets: bytes  # without its checksum

    def headers(self, own_mac: bytes, dst_mac: bytes) -> tuple[bytes, ...]:
        """Of the frame: Ethernet, IPv6, ICMPv6, and what the message says."""
        ethernet = EthernetHeader(dst_mac, own_mac, ETHERTYPE_IPV6).emit()
        size = len(self.octets)
        ip = Ipv6Header(0, size, PROTOCOL_ICMPV6, HOP_LIMIT, self.src, self.dst).emit()
        message = bytes(icmpv6.finished(self.src, self.dst, self.octets, IoVec()))
        return ethernet, ip, message[:ICMPV6_LEN], message[ICMPV6_LEN:]


def answer(asked: NeighbourMessage, src: bytes, own_mac: bytes) -> Message:
    """The advertisement that answers a solicitation from `src` for an address of ours."""
    probe = src == UNSPECIFIED_V6
    flags = ROUTER | OVERRIDE | (0 if probe else SOLICITED)
    reply = NeighbourMessage(NEIGHBOUR_ADVERTISEMENT, flags, asked.target, own_mac)
    return Message(asked.target, ALL_NODES if probe else src, reply.emit())


def request(target: bytes, src: bytes, own_mac: bytes) -> Message:
    """Who has `target`? To the few whose address ends alike (RFC 4291 §2.7.1)."""
    message = NeighbourMessage(NEIGHBOUR_SOLICITATION, 0, target, own_mac)
    return Message(src, solicited_node(target), message.emit())


def solicited_node(addr: bytes) -> bytes:
    """The group that everybody with such an address listens to."""
    return _SOLICITED_NODE + addr[13:]


def group_mac(group: bytes) -> bytes:
    """Where a multicast packet goes on Ethernet, RFC 2464 §7."""
    return b"\x33\x33" + group[12:]
