"""UDP between guests and the host's sockets.

Each guest endpoint that sends has one host socket, whoever it talks to (one in each family, where
it talks to both): an endpoint-independent mapping (RFC 4787 REQ-1), and a peer that knows the
socket's address may answer or write first. A datagram to the guest goes from the socket straight
into a claim of the guest's MTU: payload first, headers when its length and sender are known. One
that is longer than the MTU ends in an overflow area behind the claim's views and goes on as
fragments. When the guest has no room, the datagrams stay in the socket. The
receive may be somebody else's to do (slirp.host.socket_endpoint): then one datagram of a mapping is
under way at a time, with an overflow area of its own, and goes on in `arrived`; the loop tells
again of those behind it.

ICMP errors come back from the socket's error queue (IP_RECVERR) and go to the guest from the
address that reported them, around the datagram that caused them. The guest's TTL goes out with
the socket, so traceroute works. Several equal datagrams handed over as one (USO) leave as one, and
those that come in a row are made one, both ways (slirp.host.udp_runs).

What the kernel refuses at once (no route, forbidden, too long for the path) is told to the guest as
a router would: by an ICMP error from the gateway. A guest's don't-fragment flag goes out with what
would fit Ethernet, so that it learns the path's MTU. What is longer comes from a guest whose
virtual link takes more than any real one, and is fragmented by the host: to refuse the first of
each would lose what only our own link made possible.

A destination that a guest endpoint has sent to is a route, known by the addresses and ports as
they are on the wire: later datagrams need no parsing (slirp.host.dispatch).

Mappings end after MAPPING_FOR without traffic; at MAPPINGS_MAX one goes that was
not used lately.

Does not do: UDP-Lite, multicast, connection tracking (anybody may answer).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from dma.iovec import IoVec
from nic.port import VNET_NONE
from slirp.address import SockAddr, addr_from_text, is_loopback
from slirp.flow import Refusal
from slirp.host.attachment import payload_views, send_all, write_headers
from slirp.host.descriptors import Descriptors, Idle
from slirp.host.loop import HANGUP, READABLE, RETRY_AFTER, Loop
from slirp.host.loopback import Loopbacks
from slirp.host.socket_endpoint import AT_ONCE
from slirp.host.socket_errors import icmp_from_error
from slirp.host.sockets import LOCAL_CAUSES, SocketError, Sockets, addr_of
from slirp.host.udp_mapping import MAPPING_FOR, Incoming, Mapping, Replier
from slirp.host.udp_runs import Outgoing, Route, receive_runs
from slirp.host.udp_send import dropped_by_kernel, send_datagrams, widen_queue
from slirp.ip.icmp_translation import mtu_of
from slirp.ip.layer import Layer, udp_datagram
from slirp.ip.neighbours import Guest
from slirp.ip.packet import DONT_FRAGMENT, UdpArrived
from slirp.ip.template import PROTOCOL_UDP, Template
from slirp.shortage import SHORTAGES, is_shortage, persist
from slirp.stack import Stack
from slirp.wire.checksum import ones_sum

if TYPE_CHECKING:
    from nic.port import Claim, HoldableClaim
    from slirp.host.attachment import Attachment

MAPPINGS_MAX: Final = 8192  # of which one port among others has its share
EVICT_LOOKS: Final = 64  # mappings looked at for one that was not used since the last look
ROUTES_MAX: Final = 8192  # beyond it all are forgotten, and found anew
DATAGRAMS_PER_TURN: Final = 64  # of one mapping; then the others have their turn
OVERFLOW_LEN: Final = 65536  # bytes: whatever a datagram can have
SPARE_MAX: Final = 16  # overflow areas kept for the next receive that takes its time

# A guest's address and port, and the length of the addresses that the host's socket sends to
Key: TypeAlias = tuple[bytes, int, int]


class UdpRelay:
    """All UDP mappings of one network."""

    def __init__(
        self,
        loop: Loop,
        stack: Stack,
        descriptors: Descriptors,
        sockets: Sockets,
        loopbacks: Loopbacks,
    ) -> None:
        self._descriptors = descriptors
        self._sockets = sockets
        self._loopbacks = loopbacks
        self._loop = loop
        self._stack = stack
        self._mtu = stack.link.mtu
        self.overflow = memoryview(bytearray(OVERFLOW_LEN))
        self._spare: list[memoryview] = []  # overflow areas of receives that are over
        self.mappings: dict[Key, Mapping] = {}
        self.repliers: dict[tuple[bytes, int], list[Replier]] = {}  # by guest endpoint
        self.routes: dict[bytes, Route] = {}  # by addresses and ports, as on the wire
        self.outgoing = Outgoing(self)
        self.on_mapping: Callable[[str, Mapping], None] | None = None  # while somebody listens
        self.opened = 0
        self.to_guest = 0
        self.to_host = 0
        self.failed = 0
        self.shortages = 0  # datagrams lost to one, and times that nothing could be received
        self.copied = 0
        self.dropped = 0  # by the kernel, of sockets that are closed: their queue was full
        self.senders_forgotten = 0  # by forwards, beyond their bound

    # From the guest

    def is_answer(self, addr: bytes, port: int, peer: bytes, peer_port: int) -> bool:
        """Has this peer written to this guest endpoint through a forward?"""
        return any(r.knows(peer, peer_port) for r in self.repliers.get((addr, port), ()))

    def answer(self, datagram: UdpArrived, now: float) -> bool:
        """To a peer of a forward, whatever the guest may reach else; False: it is for none."""
        key = (datagram.guest.addr, datagram.src_port)
        payload, size = datagram.payload.segments, datagram.gso_size
        for replier in self.repliers.get(key, ()):
            failure = replier.send_to(datagram.dst, datagram.dst_port, payload, size)
            if failure is None:
                continue
            if failure:
                self._failed(datagram, failure)
            else:
                self.to_host += 1
            return True
        return False

    def send(self, datagram: UdpArrived, host_addr: bytes, now: float) -> None:
        """A guest's datagram, to this host address."""
        host_addr = self._loopbacks.best(host_addr, datagram.dst_port)
        payload = datagram.payload.segments
        mapping = self._mapping(datagram.guest, datagram.src_port, host_addr, now)
        if not isinstance(mapping, Mapping):
            self._failed(datagram, mapping)
            return
        self.set_hops(mapping, datagram.hops)
        target = (host_addr, datagram.dst_port)
        if target != mapping.to_key:
            mapping.to_key = target
            mapping.to_addr = mapping.family.sockaddr(host_addr, datagram.dst_port)
        if not self.repliers.get((datagram.guest.addr, datagram.src_port)):
            self._add_route(datagram, mapping)
        self.send_to(mapping, payload, datagram.gso_size, mapping.to_addr)

    def _mapping(self, guest: Guest, port: int, host_addr: bytes, now: float) -> Mapping | int:
        """The guest endpoint's, towards the family of this address; else why there is none."""
        key = (guest.addr, port, len(host_addr))
        mapping = self.mappings.get(key)
        if mapping is None:
            opened = self._open(key, guest, host_addr, now)
            if not isinstance(opened, Mapping):
                return opened
            mapping = opened
        mapping.used_at = now
        return mapping

    def _add_route(self, datagram: UdpArrived, mapping: Mapping) -> None:
        if len(self.routes) >= ROUTES_MAX:
            self.routes.clear()
        ports = mapping.port.to_bytes(2, "big") + datagram.dst_port.to_bytes(2, "big")
        self.routes[datagram.guest.addr + datagram.dst + ports] = Route(mapping, mapping.to_addr)

    def set_hops(self, mapping: Mapping, hops: int) -> None:
        """What goes out next has the guest's hop limit and, with it, DONT_FRAGMENT or not."""
        if hops != mapping.hops:
            mapping.family.set_hops(mapping.sock, hops, mapping.hops)
            mapping.hops = hops

    def send_to(
        self,
        mapping: Mapping,
        payload: tuple[memoryview, ...],
        gso_size: int,
        address: SockAddr,
    ) -> None:
        """One datagram, or with `gso_size` several of that many bytes."""
        if not gso_size and len(payload) == 1:
            try:
                mapping.sock.sendto(payload[0], address)
            except OSError:
                pass  # the reason is found below
            else:
                self.to_host += 1
                return
        failure = send_datagrams(mapping.sock, payload, gso_size, address)
        if failure == errno.EMSGSIZE and self._may_cut(mapping, payload, gso_size):
            failure = send_datagrams(mapping.sock, payload, gso_size, address)
        if not failure:
            self.to_host += 1
            return
        self.failed += 1
        self.shortages += failure in SHORTAGES
        if failure in LOCAL_CAUSES:
            mtu = self._errors(mapping)  # where the kernel says which MTU the path has
            quoted = IoVec(payload)
            if gso_size:
                quoted = quoted.slice(0, gso_size)
            dst = mapping.layer.nat.inward(addr_of(address))
            self._tell(mapping.guest, mapping.port, (dst, address[1]), failure, mtu, quoted)

    def _may_cut(self, mapping: Mapping, payload: tuple[memoryview, ...], gso_size: int) -> bool:
        """Is the datagram one that no guest of IPv6 can be told to send shorter, on an IPv4 path
        that is too narrow? Then the socket is told that it may be cut (RFC 7915 §5.1)."""
        guest = mapping.guest.family
        size = gso_size or sum(map(len, payload))
        if mapping.family.addr_len >= guest.addr_len or size > guest.udp_room(guest.min_mtu):
            return False
        self.set_hops(mapping, mapping.hops & ~DONT_FRAGMENT)
        for _ in mapping.family.errors(mapping.sock):  # the one that says so
            pass
        return True

    def _failed(self, datagram: UdpArrived, failure: int) -> None:
        """A datagram that has no mapping, or is for a forward's peer."""
        self.failed += 1
        self.shortages += failure in SHORTAGES
        target = (datagram.dst, datagram.dst_port)
        self._tell(datagram.guest, datagram.src_port, target, failure, 0, datagram.payload)

    def _tell(
        self, guest: Guest, port: int, target: tuple[bytes, int], failure: int, mtu: int,
        payload: IoVec,
    ) -> None:  # fmt: skip
        """What a router would say about a datagram that the host's kernel refused."""
        cause = LOCAL_CAUSES.get(failure)
        if cause is not None:
            quoted = udp_bytes(port, target[1], bytes(payload.slice(0, guest.family.quote_max)))
            send_all(
                self._stack.layer(guest.addr).unreachable_by_host(
                    guest, cause, mtu, PROTOCOL_UDP, target[0], quoted, self._loop.now
                )
            )

    def _open(self, key: Key, guest: Guest, host_addr: bytes, now: float) -> Mapping | int:
        """A mapping, or the errno of what stood in the way."""
        attachment: Attachment = guest.attachment
        if attachment.mappings >= self._descriptors.share_of(MAPPINGS_MAX):
            self._displace(attachment, now)
        elif len(self.mappings) >= MAPPINGS_MAX:
            self._displace(None, now)
        family = self._sockets.of(host_addr)
        try:
            sock = self._descriptors.take(attachment, family.family, socket.SOCK_DGRAM, 0, now)
        except OSError as error:
            return error.errno or 0
        return self._enter(key, guest, sock, host_addr, None, now)

    def restore(
        self,
        guest: Guest,
        port: int,
        local: tuple[str, int],
        to: tuple[bytes, int] | None,
        now: float,
    ) -> bool:
        """Open a mapping as an earlier network had it: peers know its host port, if it is free.

        False: there is none of this guest's port to be had.
        """
        addr = addr_from_text(local[0])
        key = (guest.addr, port, len(addr))
        family = self._sockets.get(addr)
        if family is None or key in self.mappings:
            return False
        attachment: Attachment = guest.attachment
        try:
            sock = self._descriptors.take(attachment, family.family, socket.SOCK_DGRAM, 0, now)
        except OSError:
            return False
        mapping = self._enter(key, guest, sock, addr, local, now)
        if not isinstance(mapping, Mapping):
            return False
        self._aim(mapping, to)
        return True

    def adopt(
        self, guest: Guest, port: int, sock: socket.socket, to: tuple[bytes, int] | None, now: float
    ) -> Mapping | None:
        """Take over a mapping's own socket; None: there is no room for it, and it is closed."""
        admitted = self._descriptors.admit(guest.attachment, sock, now)
        if admitted is None:
            return None
        addr = addr_of(admitted.getsockname())
        mapping = self._enter((guest.addr, port, len(addr)), guest, admitted, addr, None, now)
        if not isinstance(mapping, Mapping):
            return None
        self._aim(mapping, to)
        return mapping

    def _aim(self, mapping: Mapping, to: tuple[bytes, int] | None) -> None:
        if to is not None:
            mapping.to_key = to
            mapping.to_addr = mapping.family.sockaddr(*to)

    def _enter(
        self,
        key: Key,
        guest: Guest,
        sock: socket.socket,
        host_addr: bytes,
        local: tuple[str, int] | None,
        now: float,
    ) -> Mapping | int:
        """A mapping of this socket, or the errno of what stood in the way; then it is closed."""
        attachment: Attachment = guest.attachment
        family = self._sockets.of(host_addr)
        mapping = Mapping(self, self._stack.layer(guest.addr), guest, key[1], family, sock)
        try:
            if local is not None:
                sock.bind(local)
            elif not sock.getsockname()[1]:
                family.leave(sock)
            family.prepare(sock)
            persist(sock.setsockopt, socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
            widen_queue(sock)
            self.watch(mapping)
        except OSError as error:  # the host has lost that address, has no port left on it …
            sock.close()
            self._descriptors.release(attachment)
            return error.errno or 0
        mapping.used_at = mapping.queued_at = now
        self.mappings[key] = mapping
        attachment.mappings += 1
        self.opened += 1
        mapping.number = self.opened
        mapping.opened_at = now
        if self.on_mapping is not None:
            self.on_mapping("flow-opened", mapping)
        self._loop.visit_at(mapping, now + MAPPING_FOR)
        return mapping

    def _displace(self, attachment: Attachment | None, now: float) -> None:
        idle = self.idlest(attachment, now)
        if idle is not None:
            idle.close()

    def idlest(self, attachment: Attachment | None, now: float) -> Idle | None:
        """A mapping that has not been used since it took its place; the table is the queue."""
        found: Mapping | None = None
        for key, mapping in list(islice(self.mappings.items(), EVICT_LOOKS)):
            if attachment is not None and mapping.attachment is not attachment:
                continue
            if mapping.used_at <= mapping.queued_at:
                found = mapping
                break
            mapping.queued_at = mapping.used_at
            self.mappings[key] = self.mappings.pop(key)
        if found is None and attachment is not None:
            found = next((m for m in self.mappings.values() if m.attachment is attachment), None)
        elif found is None:
            found = next(iter(self.mappings.values()), None)
        return None if found is None else Idle(found.used_at, partial(self.remove, found))

    def watch(self, mapping: Mapping) -> None:
        """Have the socket's datagrams reported."""
        with contextlib.suppress(FileExistsError):
            self._loop.register(mapping.sock.fileno(), READABLE, mapping.handle_ready)

    def remove(self, mapping: Mapping) -> None:
        """End a mapping."""
        if self.on_mapping is not None:
            self.on_mapping("flow-closed", mapping)
        self.mappings.pop((mapping.guest.addr, mapping.port, mapping.family.addr_len), None)
        mapping.attachment.mappings -= 1
        self.routes.clear()
        mapping.guest.attachment.forget(mapping)
        self.withdraw(mapping)
        self._loop.unregister(mapping.sock.fileno())
        self.dropped += dropped_by_kernel(mapping.sock)
        mapping.sock.close()
        self._descriptors.release(mapping.attachment)
        mapping.visit = None

    def dropped_by_host(self) -> int:
        """Datagrams that the host's kernel had no room for, for want of our turn."""
        forwards = (r.dropped() for group in self.repliers.values() for r in group)
        mappings = (dropped_by_kernel(mapping.sock) for mapping in self.mappings.values())
        return self.dropped + sum(forwards) + sum(mappings)

    # From the host

    def handle_ready(self, mapping: Mapping, events: int, now: float) -> None:
        """Datagrams or errors wait in the socket."""
        if events & HANGUP:
            self._errors(mapping)
        if events & READABLE:
            self.receive(mapping, now)

    def receive(self, mapping: Mapping, now: float) -> None:
        """Pass on what the socket has, as far as the guest has room."""
        guest = mapping.guest
        lengths, room = guest.family.udp_lengths, guest.family.udp_room(self._mtu)
        if mapping.receiving is not None:
            return
        if guest.attachment.endpoint is not AT_ONCE and self._begin(mapping, room):
            return
        if guest.attachment.gso_udp:
            receive_runs(self, mapping, room, now)
            return
        size_max = sum(lengths) + room
        for _ in range(DATAGRAMS_PER_TURN):
            claim = guest.attachment.port.claim(size_max, lengths)
            if claim is None:
                self.wait(mapping)
                return
            views = (*payload_views(claim.iov.segments, lengths, size_max), self.overflow)
            try:
                size, _, _, peer = mapping.sock.recvmsg_into(views)
            except OSError as error:  # nothing more, or an error that the error queue tells of
                claim.cancel()
                self.bear(error)
                return
            self._deliver(mapping, claim, views, size, peer, now)

    def _deliver(
        self, mapping: Mapping, claim: Claim, views: tuple[memoryview, ...], size: int,
        peer: SockAddr, now: float,
    ) -> None:  # fmt: skip
        """A datagram is in these views: the claim's, and an overflow area."""
        guest = mapping.guest
        mapping.used_at = now
        self.to_guest += 1
        if size > guest.family.udp_room(self._mtu):
            datagram = bytes(IoVec(views).slice(0, size))
            claim.cancel()
            self._send_fragments_from(mapping, peer, datagram)
        else:
            fill(claim, guest, self.template_from(mapping, peer), views[:-1], size)

    def _begin(self, mapping: Mapping, room: int) -> bool:
        """Have somebody else receive; False: it is ours to do."""
        attachment: Attachment = mapping.guest.attachment
        endpoint = attachment.endpoint
        lengths = mapping.guest.family.udp_lengths
        size_max = sum(lengths) + room
        claim = attachment.port.claim(size_max, lengths)
        if claim is None:
            self.wait(mapping)
            return True
        views = payload_views(claim.iov.segments, lengths, size_max)
        if not endpoint.begin(mapping.sock, (*views, self.overflow), 0, mapping):
            claim.cancel()
            return False
        held = cast("HoldableClaim", claim).hold(mapping.withdraw)
        mapping.receiving = Incoming(endpoint, held, views, self.overflow)
        self.overflow = self._spare.pop() if self._spare else memoryview(bytearray(OVERFLOW_LEN))
        return True

    def arrived(
        self, mapping: Mapping, size: int, failure: int, peer: SockAddr | None, now: float
    ) -> None:
        """A receive that was somebody else's to do is over."""
        incoming, mapping.receiving = mapping.receiving, None
        assert incoming is not None
        if peer is not None:
            views = (*incoming.views, incoming.overflow)
            self._deliver(mapping, incoming.claim, views, size, peer, now)
        else:  # nothing was there, or an error that the error queue tells of
            incoming.claim.cancel()
            if failure in SHORTAGES and failure != errno.EAGAIN:
                self.shortages += 1
                self._loop.rest(mapping.sock.fileno(), RETRY_AFTER)
        self._put_back(incoming.overflow)

    def withdraw(self, mapping: Mapping) -> None:
        """Give up what is under way; its claim is void, or is to be cancelled. What the kernel had
        handed over already is lost, as a chip that is stopped loses it."""
        incoming, mapping.receiving = mapping.receiving, None
        if incoming is not None:
            incoming.endpoint.withdraw(mapping)
            incoming.claim.cancel()
            self._put_back(incoming.overflow)

    def _put_back(self, overflow: memoryview) -> None:
        if len(self._spare) < SPARE_MAX:
            self._spare.append(overflow)

    def bear(self, error: OSError) -> None:
        """Nothing was received: is it more than that nothing is there? Then the loop asks later."""
        if is_shortage(error) and not isinstance(error, BlockingIOError):
            self.shortages += 1
            raise error

    def wait(self, mapping: Mapping) -> None:
        """The guest has no room: leave the datagrams where they are until it has."""
        self._loop.unregister(mapping.sock.fileno())
        mapping.guest.attachment.wait(mapping)

    def pass_on(self, mapping: Mapping, peer: SockAddr, datagram: bytes, now: float) -> None:
        """A datagram that was received already; lost where the guest has no room."""
        mapping.used_at = now
        self.to_guest += 1
        if len(datagram) > mapping.guest.family.udp_room(self._mtu):
            self._send_fragments_from(mapping, peer, datagram)
            return
        self.copied += len(datagram)
        frame = frame_of(mapping.guest, self.template_from(mapping, peer), datagram)
        mapping.guest.attachment.send(*frame)

    def template_from(self, mapping: Mapping, peer: SockAddr) -> Template:
        """Headers of datagrams from this host address to the mapping's guest."""
        template = mapping.template
        if peer != mapping.from_addr or template is None:
            src = mapping.layer.nat.inward(addr_of(peer))
            template = datagrams_between(mapping.guest, src, peer[1], mapping.port)
            mapping.from_addr, mapping.template = peer, template
        return template

    def _send_fragments_from(self, mapping: Mapping, peer: SockAddr, datagram: bytes) -> None:
        src = mapping.layer.nat.inward(addr_of(peer))
        self.send_fragments(mapping.layer, mapping.guest, (src, peer[1]), mapping.port, datagram)

    def send_fragments(
        self, layer: Layer, guest: Guest, src: tuple[bytes, int], dst_port: int, datagram: bytes
    ) -> None:
        """A datagram longer than the guest's MTU; one that no IP packet can carry is lost."""
        if len(datagram) > guest.family.udp_max:
            self.failed += 1
            return
        self.copied += len(datagram)
        message = udp_datagram(src[0], guest.addr, src[1], dst_port, IoVec.of(datagram))
        send_all(layer.packets(guest, src[0], PROTOCOL_UDP, message))

    # Errors

    def _errors(self, mapping: Mapping) -> int:
        """Pass on what came from outside; the MTU that a failure of our own told of, or 0."""
        mtu = 0
        layer, guest = mapping.layer, mapping.guest
        try:
            for error in mapping.family.errors(mapping.sock):
                mtu = mtu_of(error.mtu, mapping.family.addr_len, guest.family.addr_len) or mtu
                if self._is_elsewhere(mapping, error):
                    continue
                dst = layer.nat.inward(addr_of(error.peer))
                quoted = udp_bytes(mapping.port, error.peer[1], error.quoted)
                send_all(icmp_from_error(layer, guest, error, PROTOCOL_UDP, dst, quoted))
        except OSError as failure:
            self.bear(failure)
            raise
        return mtu

    def _is_elsewhere(self, mapping: Mapping, error: SocketError) -> bool:
        """Nobody listens at one of the host's loopback addresses: does anybody at the other?

        The datagram goes there, where the error has all of it; else the guest is told that it is
        lost, and the next one goes there.
        """
        at, port, nat = addr_of(error.peer), error.peer[1], mapping.layer.nat
        if not is_loopback(at) or not mapping.family.is_closed_port(error):
            return False
        primary = nat.outward(nat.gateway)
        other = None if isinstance(primary, Refusal) else self._loopbacks.refused(primary, at, port)
        self.routes.clear()  # the next datagram finds its way anew
        if other is None or len(error.quoted) >= mapping.family.quoted_max:
            return False
        found = self._mapping(mapping.guest, mapping.port, other, self._loop.now)
        if isinstance(found, Mapping):
            self.set_hops(found, mapping.hops)
            views = (memoryview(error.quoted),)
            self.send_to(found, views, 0, found.family.sockaddr(other, port))
        return True

    def close(self) -> None:
        """End every mapping."""
        for mapping in list(self.mappings.values()):
            self.remove(mapping)


def udp_bytes(src_port: int, dst_port: int, data: bytes) -> bytes:
    """The start of the guest's datagram again, as an ICMP error quotes it."""
    return struct.pack("!HHHH", src_port, dst_port, 8 + len(data), 0) + data


def datagrams_between(guest: Guest, src: bytes, src_port: int, port: int) -> Template:
    """Headers of datagrams from this endpoint to the guest's port."""
    ports = src_port.to_bytes(2, "big") + port.to_bytes(2, "big")
    return guest.family.template(src, guest.addr, ports, PROTOCOL_UDP)


def fill(
    claim: Claim, guest: Guest, template: Template, views: tuple[memoryview, ...], size: int
) -> None:
    """Headers around `size` bytes of payload that are in the claim already; then commit."""
    offload, family = guest.attachment.offload, guest.family
    payload_sum = None if offload else ones_sum(IoVec(views).slice(0, size).segments)
    ip, udp = template.udp(size, payload_sum)
    write_headers(claim.iov.segments, (guest.ethernet, ip, udp), family.udp_lengths)
    claim.commit(family.udp_headers + size, family.udp_single if offload else VNET_NONE)
    guest.attachment.frames_out += 1


def frame_of(
    guest: Guest, template: Template, datagram: bytes
) -> tuple[tuple[bytes, ...], tuple[memoryview], int, bytes]:
    """A frame of a datagram in our own memory, as `Attachment.send` takes it."""
    view = memoryview(datagram)
    offload = guest.attachment.offload
    ip, udp = template.udp(len(datagram), None if offload else ones_sum((view,)))
    headers = (guest.ethernet, ip, udp)
    return headers, (view,), len(datagram), guest.family.udp_single if offload else VNET_NONE
