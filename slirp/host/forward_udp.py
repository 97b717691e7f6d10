"""A UDP forward: datagrams of the host's peers to one guest port, and the guest's answers.

Datagrams go from the socket straight into a claim, under their sender's address; a peer on the
host's loopback appears as the gateway. Each sender is remembered, with the address of the host that
it wrote to (slirp.host.pktinfo): the guest's answer leaves the forward's socket from there.

While the guest has not been seen, datagrams are held and it is asked for (slirp.host.holding); they
are then sent before those that came later. Where it has no room they stay in the socket. Where it
never answers they are lost and counted: to tell their senders would take an ICMP error, which only
the kernel and the privileged send.

Does not do: IP options, runs of datagrams (UDP_GRO) from one sender.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from slirp.host import pktinfo
from slirp.host.attachment import payload_views
from slirp.host.loop import READABLE, Loop
from slirp.host.sockets import addr_of
from slirp.host.udp import fill, frame_of
from slirp.host.udp_send import dropped_by_kernel, send_datagrams, widen_queue
from slirp.ip.resolution import HELD_MAX
from slirp.ip.template import PROTOCOL_UDP, Template

if TYPE_CHECKING:
    from slirp.address import SockAddr
    from slirp.host.holding import Holding
    from slirp.host.udp import UdpRelay
    from slirp.ip.neighbours import Guest
    from slirp.stack import Stack

DATAGRAMS_PER_TURN: Final = 64
SENDERS_MAX: Final = 4096  # that one forward remembers; beyond it the oldest is forgotten


class Target(Protocol):
    """Where the forward leads."""

    name: str  # empty: the address does not change
    port: int

    @property
    def addr(self) -> bytes | None: ...


class Sender(NamedTuple):
    """A peer of a forward, as the guest sees it."""

    addr: bytes
    port: int
    template: Template


class Answers(NamedTuple):
    """Where a guest's answers to one sender go, and from where."""

    peer: SockAddr
    asked: bytes
    control: pktinfo.Control


class HeldDatagram:
    """A datagram whose guest has not been seen yet."""

    __slots__ = ("_datagram", "_forward", "_sender")

    def __init__(self, forward: DatagramForward, sender: Sender, datagram: bytes) -> None:
        self._forward = forward
        self._sender = sender
        self._datagram = datagram

    def deliver(self, guest: Guest, now: float) -> None:
        """Pass it on."""
        self._forward.deliver(guest, self._sender, self._datagram)

    def fail(self, now: float) -> None:
        """Nobody can be told; whoever held it has counted it."""
        return


class DatagramForward:
    """A bound UDP socket."""

    def __init__(
        self, loop: Loop, stack: Stack, udp: UdpRelay, holding: Holding, sock: socket.socket,
        target: Target, as_gateway: bool,
    ) -> None:  # fmt: skip
        self._loop = loop
        self._stack = stack
        self._udp = udp
        self._holding = holding
        self.sock = sock
        self._target = target
        self._as_gateway = as_gateway
        self._info = pktinfo.enable(sock)
        self._seen: dict[tuple[SockAddr, bytes], Sender] = {}  # by peer and address asked
        self._peers: dict[tuple[bytes, int], Answers] = {}  # as the guest sees them
        self._late: deque[tuple[Sender, bytes]] = deque(maxlen=HELD_MAX)  # were held; no room yet
        self._nobody = bytes(stack.inputs[0].layer.family.addr_len)
        self._lead_to(target.addr or self._nobody)
        widen_queue(sock)
        loop.register(sock.fileno(), READABLE, self.handle_ready)

    def _lead_to(self, addr: bytes) -> None:
        """The guest is here, from now on; whoever wrote to another one is forgotten."""
        self._layer = self._stack.layer(addr)
        self._family = self._layer.family
        self._room = self._family.udp_room(self._stack.link.mtu)
        self.key = (addr, self._target.port)
        self._seen.clear()
        self._peers.clear()
        self._late.clear()
        self._udp.repliers.setdefault(self.key, []).append(self)
        self._udp.routes.clear()  # who sent before may now answer a peer

    def _leave(self) -> None:
        group = self._udp.repliers[self.key]
        group.remove(self)
        if not group:
            del self._udp.repliers[self.key]

    # From the host

    def handle_ready(self, events: int, now: float) -> None:
        """Datagrams wait."""
        if self._target.name:
            addr = self._target.addr or self._nobody
            if addr != self.key[0]:
                self._leave()
                self._lead_to(addr)
        guest = self._stack.guests.get(self.key[0])
        if guest is None:
            self._hold(now)
            return
        if not self._send_late(guest):
            return
        udp, info = self._udp, self._info
        lengths, room, ancillary = self._family.udp_lengths, self._room, info.room
        size_max = sum(lengths) + room
        for _ in range(DATAGRAMS_PER_TURN):
            claim = guest.attachment.port.claim(size_max, lengths)
            if claim is None:
                self._wait(guest)
                return
            views = payload_views(claim.iov.segments, lengths, size_max)
            try:
                size, control, _, peer = self.sock.recvmsg_into((*views, udp.overflow), ancillary)
            except OSError as error:
                claim.cancel()
                udp.bear(error)
                return
            sender = self._sender(peer, info.asked(control) if ancillary else b"")
            if size > self._family.udp_max:  # which IPv6 can carry and IPv4 cannot
                claim.cancel()
                udp.failed += 1
                continue
            if size > room:
                datagram = b"".join((*views, udp.overflow))[:size]
                claim.cancel()
                self._send_fragments(guest, sender, datagram)
            else:
                fill(claim, guest, sender.template, views, size)
            udp.to_guest += 1

    def _hold(self, now: float) -> None:
        area = self._udp.overflow
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                size, control, _, peer = self.sock.recvmsg_into((area,), self._info.room)
            except OSError as error:
                self._udp.bear(error)
                return
            if size > self._family.udp_max:
                self._udp.failed += 1
                continue
            sender = self._sender(peer, self._info.asked(control))
            held = HeldDatagram(self, sender, bytes(area[:size]))
            self._holding.hold(self.key[0], "udp", held, size, now)

    def deliver(self, guest: Guest, sender: Sender, datagram: bytes) -> None:
        """One that was held."""
        self._late.append((sender, datagram))
        if len(self._late) == 1:
            self._send_late(guest)

    def _send_late(self, guest: Guest) -> bool:
        """Send what was held; False: there is no room for all of it."""
        while self._late:
            sender, datagram = self._late[0]
            if len(datagram) > self._room:
                self._send_fragments(guest, sender, datagram)
            elif not guest.attachment.try_send(*frame_of(guest, sender.template, datagram)):
                self._wait(guest)
                return False
            self._late.popleft()
            self._udp.to_guest += 1
        return True

    def _send_fragments(self, guest: Guest, sender: Sender, datagram: bytes) -> None:
        src = (sender.addr, sender.port)
        self._udp.send_fragments(self._layer, guest, src, self.key[1], datagram)

    def _wait(self, guest: Guest) -> None:
        self._loop.unregister(self.sock.fileno())
        guest.attachment.wait(self)

    def resume(self, now: float) -> None:
        """The guest has room again."""
        if self.sock.fileno() >= 0:
            self._loop.register(self.sock.fileno(), READABLE, self.handle_ready)
            # Looked at now: where there is no room after all, it must not be readable meanwhile.
            self.handle_ready(READABLE, now)

    def _sender(self, peer: SockAddr, asked: bytes) -> Sender:
        known = self._seen.get((peer, asked))
        if known is None:
            if len(self._seen) >= SENDERS_MAX:
                gone = self._seen.pop(next(iter(self._seen)))
                del self._peers[gone.addr, gone.port]
                self._udp.senders_forgotten += 1
            known = self._seen[peer, asked] = self._name(peer)
            answers = Answers(peer, asked, self._info.source(asked))
            self._peers[known.addr, known.port] = answers
        return known

    def _name(self, peer: SockAddr) -> Sender:
        # Several peers may stand for one address (the gateway's), and one peer may ask at several
        # of the host's: the later ones get other ports, so that each gets its own answers.
        nat = self._layer.nat
        addr = nat.gateway if self._as_gateway else nat.inward(addr_of(peer))
        port = peer[1]
        while (addr, port) in self._peers:
            port = random_port()
        ports = port.to_bytes(2, "big") + self.key[1].to_bytes(2, "big")
        template = self._family.template(addr, self.key[0], ports, PROTOCOL_UDP)
        return Sender(addr, port, template)

    # From the guest

    def knows(self, peer: bytes, port: int) -> bool:
        """Has this peer written to this forward?"""
        return (peer, port) in self._peers

    def send_to(
        self, peer: bytes, port: int, payload: tuple[memoryview, ...], gso_size: int
    ) -> int | None:
        """The guest answers one of the peers: 0, or the failure; None: it is for none of them."""
        found = self._peers.get((peer, port))
        if found is None:
            return None
        return send_datagrams(self.sock, payload, gso_size, found.peer, found.control)

    def dropped(self) -> int:
        """Datagrams that the kernel had no room for."""
        return dropped_by_kernel(self.sock)

    def close(self) -> None:
        """Stop."""
        self._leave()
        self._udp.dropped += self.dropped()
        self._loop.unregister(self.sock.fileno())
        self.sock.close()


def random_port() -> int:
    """A port that nobody can guess, above the well-known ones."""
    return 1024 + int.from_bytes(os.urandom(8), "big") % 64512
