"""UDP between guests and the host's sockets.

Each guest endpoint that sends has one host socket, whoever it talks to: an endpoint-independent
mapping (RFC 4787 REQ-1), and a peer that knows the socket's address may answer or write first.
A datagram to the guest goes from the socket straight into a claim of the guest's MTU: payload
first, headers when its length and sender are known. One that is longer than the MTU ends in an
overflow area behind the claim's views and goes on as fragments. When the guest has no room, the
datagrams stay in the socket.

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
import socket
import struct
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from dma.iovec import IoVec
from nic.port import VNET_NONE
from slirp.address import addr_from_text, addr_to_text
from slirp.flow import Guest
from slirp.host.attachment import payload_views, send_all, write_headers
from slirp.host.descriptors import Descriptors, Idle
from slirp.host.loop import HANGUP, READABLE, Loop
from slirp.host.socket_errors import (
    IP_MTU_DISCOVER,
    IP_PMTUDISC_DO,
    IP_PMTUDISC_DONT,
    IP_RECVERR,
    LOCAL_CODES,
    MSG_ERRQUEUE,
    icmp_from_error,
    local_mtu,
)
from slirp.host.udp_mapping import MAPPING_FOR, Mapping, Replier
from slirp.host.udp_runs import (
    HEADER_LENGTHS,
    HEADERS_LEN,
    Outgoing,
    Route,
    receive_runs,
    vnet_of,
)
from slirp.host.udp_send import dropped_by_kernel, send_datagrams, widen_queue
from slirp.ip.icmp import QUOTE_MAX
from slirp.ip.template import PROTOCOL_UDP, Template4
from slirp.shortage import SHORTAGES, is_shortage, persist
from slirp.stack import DONT_FRAGMENT, Stack, udp_header
from slirp.wire.checksum import ones_sum

if TYPE_CHECKING:
    from nic.port import Claim
    from slirp.host.attachment import Attachment
    from slirp.stack import UdpArrived

MAPPINGS_MAX: Final = 8192
EVICT_LOOKS: Final = 64  # mappings looked at for one that was not used since the last look
ROUTES_MAX: Final = 8192  # beyond it all are forgotten, and found anew
DATAGRAMS_PER_TURN: Final = 64  # of one mapping; then the others have their turn
PAYLOAD_MAX: Final = 65507  # bytes, RFC 768 over IPv4
ERRORS_PER_EVENT: Final = 16

IP_TTL: Final = socket.IP_TTL

_VNET: Final = vnet_of(0)


class UdpRelay:
    """All UDP mappings of one network."""

    def __init__(
        self,
        loop: Loop,
        stack: Stack,
        descriptors: Descriptors,
        *,
        mtu: int,
        bind: str | None = None,
    ) -> None:
        self._descriptors = descriptors
        self._loop = loop
        self._stack = stack
        self._nat = stack.nat
        self.room = mtu - 28
        self._bind = bind
        self.overflow = memoryview(bytearray(PAYLOAD_MAX + 1))
        self.mappings: dict[tuple[bytes, int], Mapping] = {}
        self.repliers: dict[tuple[bytes, int], list[Replier]] = {}  # by guest endpoint
        self.routes: dict[bytes, Route] = {}  # by addresses and ports, as on the wire
        self.outgoing = Outgoing(self)
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
        key = (datagram.guest.addr, datagram.src_port)
        payload = datagram.payload.segments
        mapping = self.mappings.get(key)
        if mapping is None:
            opened = self._open(key, datagram.guest, now)
            if not isinstance(opened, Mapping):
                self._failed(datagram, opened)
                return
            mapping = opened
        mapping.used_at = now
        self.set_hops(mapping, datagram.hops)
        target = (host_addr, datagram.dst_port)
        if target != mapping.to_key:
            mapping.to_key = target
            mapping.to_addr = (addr_to_text(host_addr), datagram.dst_port)
        if not self.repliers.get(key):
            self._add_route(datagram, mapping)
        self.send_to(mapping, payload, datagram.gso_size, mapping.to_addr)

    def _add_route(self, datagram: UdpArrived, mapping: Mapping) -> None:
        if len(self.routes) >= ROUTES_MAX:
            self.routes.clear()
        ports = mapping.port.to_bytes(2, "big") + datagram.dst_port.to_bytes(2, "big")
        self.routes[datagram.guest.addr + datagram.dst + ports] = Route(mapping, mapping.to_addr)

    def set_hops(self, mapping: Mapping, hops: int) -> None:
        """What goes out next has the guest's hop limit and, with it, DONT_FRAGMENT or not."""
        changed = hops ^ mapping.hops
        if not changed:
            return
        option = mapping.sock.setsockopt
        if changed & 0xFF:
            persist(option, socket.IPPROTO_IP, IP_TTL, hops & 0xFF)
        if changed & DONT_FRAGMENT:
            discover = IP_PMTUDISC_DO if hops & DONT_FRAGMENT else IP_PMTUDISC_DONT
            persist(option, socket.IPPROTO_IP, IP_MTU_DISCOVER, discover)
        mapping.hops = hops

    def send_to(
        self,
        mapping: Mapping,
        payload: tuple[memoryview, ...],
        gso_size: int,
        address: tuple[str, int],
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
        if not failure:
            self.to_host += 1
            return
        self.failed += 1
        self.shortages += failure in SHORTAGES
        if failure in LOCAL_CODES:
            mtu = self._errors(mapping)  # where the kernel says which MTU the path has
            quoted = IoVec(payload).slice(0, gso_size or QUOTE_MAX)
            dst = self._nat.inward(addr_from_text(address[0]))
            self._tell(mapping.guest, mapping.port, (dst, address[1]), failure, mtu, quoted)

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
        code = LOCAL_CODES.get(failure)
        if code is not None:
            quoted = udp_bytes(port, target[1], bytes(payload.slice(0, QUOTE_MAX)))
            send_all(
                self._stack.unreachable_by_host(
                    guest, code, mtu, PROTOCOL_UDP, target[0], quoted, self._loop.now
                )
            )

    def _open(self, key: tuple[bytes, int], guest: Guest, now: float) -> Mapping | int:
        """A mapping, or the errno of what stood in the way."""
        attachment: Attachment = guest.attachment
        if len(self.mappings) >= MAPPINGS_MAX:
            idle = self.idlest(attachment, now) or self.idlest(None, now)
            if idle is not None:
                idle.close()
        try:
            sock = self._descriptors.take(attachment, socket.AF_INET, socket.SOCK_DGRAM, 0, now)
        except OSError as error:
            return error.errno or 0
        mapping = Mapping(self, guest, key[1], sock)
        try:
            self._set_up(sock)
            self.watch(mapping)
        except OSError as error:  # the host has lost that address, has no port left on it …
            sock.close()
            self._descriptors.release(attachment)
            return error.errno or 0
        mapping.used_at = mapping.queued_at = now
        self.mappings[key] = mapping
        self._loop.visit_at(mapping, now + MAPPING_FOR)
        return mapping

    def _set_up(self, sock: socket.socket) -> None:
        if self._bind is not None:
            persist(sock.bind, (self._bind, 0))
        persist(sock.setsockopt, socket.IPPROTO_IP, IP_RECVERR, 1)
        persist(sock.setsockopt, socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        persist(sock.setsockopt, socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
        widen_queue(sock)

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
        self.mappings.pop((mapping.guest.addr, mapping.port), None)
        self.routes.clear()
        mapping.guest.attachment.forget(mapping)
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
        if mapping.guest.attachment.gso_udp:
            receive_runs(self, mapping, now)
            return
        for _ in range(DATAGRAMS_PER_TURN):
            claim = mapping.guest.attachment.port.claim(HEADERS_LEN + self.room, HEADER_LENGTHS)
            if claim is None:
                self.wait(mapping)
                return
            views = payload_views(claim.iov.segments, HEADER_LENGTHS, HEADERS_LEN + self.room)
            try:
                size, _, _, peer = mapping.sock.recvmsg_into((*views, self.overflow))
            except OSError as error:  # nothing more, or an error that the error queue tells of
                claim.cancel()
                self.bear(error)
                return
            mapping.used_at = now
            self.to_guest += 1
            if size > self.room:
                datagram = bytes(IoVec((*views, self.overflow)).slice(0, size))
                claim.cancel()
                src = self._nat.inward(addr_from_text(peer[0]))
                self.send_fragments(mapping.guest, src, peer[1], mapping.port, datagram)
                continue
            fill(claim, mapping.guest, self.template_from(mapping, peer), views, size)

    def bear(self, error: OSError) -> None:
        """Nothing was received: is it more than that nothing is there? Then the loop asks later."""
        if is_shortage(error) and not isinstance(error, BlockingIOError):
            self.shortages += 1
            raise error

    def wait(self, mapping: Mapping) -> None:
        """The guest has no room: leave the datagrams where they are until it has."""
        self._loop.unregister(mapping.sock.fileno())
        mapping.guest.attachment.wait(mapping)

    def pass_on(self, mapping: Mapping, peer: tuple[str, int], datagram: bytes, now: float) -> None:
        """A datagram that was received already; lost where the guest has no room."""
        mapping.used_at = now
        self.to_guest += 1
        if len(datagram) > self.room:
            src = self._nat.inward(addr_from_text(peer[0]))
            self.send_fragments(mapping.guest, src, peer[1], mapping.port, datagram)
            return
        self.copied += len(datagram)
        frame = frame_of(mapping.guest, self.template_from(mapping, peer), datagram)
        mapping.guest.attachment.send(*frame)

    def template_from(self, mapping: Mapping, peer: tuple[str, int]) -> Template4:
        """Headers of datagrams from this host address to the mapping's guest."""
        template = mapping.template
        if peer != mapping.from_addr or template is None:
            src = self._nat.inward(addr_from_text(peer[0]))
            template = self.template(src, peer[1], mapping)
            mapping.from_addr, mapping.template = peer, template
        return template

    def template(self, src: bytes, src_port: int, mapping: Mapping) -> Template4:
        """Headers of datagrams from this endpoint to the mapping's guest."""
        ports = src_port.to_bytes(2, "big") + mapping.port.to_bytes(2, "big")
        return Template4(src + mapping.guest.addr, ports, PROTOCOL_UDP)

    def send_fragments(
        self, guest: Guest, src: bytes, src_port: int, dst_port: int, datagram: bytes
    ) -> None:
        """A datagram longer than the guest's MTU."""
        payload = IoVec.of(datagram)
        header = udp_header(src, guest.addr, src_port, dst_port, payload)
        self.copied += len(datagram)
        send_all(self._stack.packets(guest, src, PROTOCOL_UDP, IoVec.of(header) + payload))

    # Errors

    def _errors(self, mapping: Mapping) -> int:
        """Pass on what came from outside; the MTU that a failure of our own told of, or 0."""
        mtu = 0
        for _ in range(ERRORS_PER_EVENT):
            try:
                data, ancillary, _, peer = mapping.sock.recvmsg(576, 512, MSG_ERRQUEUE)
            except OSError as failure:
                self.bear(failure)
                persist(mapping.sock.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
                break
            for level, kind, error in ancillary:
                if level == socket.IPPROTO_IP and kind == IP_RECVERR:
                    mtu = local_mtu(error) or mtu
                    send_all(
                        icmp_from_error(
                            self._stack, mapping.guest, error, PROTOCOL_UDP, peer,
                            udp_bytes(mapping.port, peer[1], data),
                        )
                    )  # fmt: skip
        return mtu

    def close(self) -> None:
        """End every mapping."""
        for mapping in list(self.mappings.values()):
            self.remove(mapping)


def udp_bytes(src_port: int, dst_port: int, data: bytes) -> bytes:
    """The start of the guest's datagram again, as an ICMP error quotes it."""
    return struct.pack("!HHHH", src_port, dst_port, 8 + len(data), 0) + data


def fill(
    claim: Claim, guest: Guest, template: Template4, views: tuple[memoryview, ...], size: int
) -> None:
    """Headers around `size` bytes of payload that are in the claim already; then commit."""
    offload = guest.attachment.offload
    payload_sum = None if offload else ones_sum(IoVec(views).slice(0, size).segments)
    ip, udp = template.udp(size, payload_sum)
    write_headers(claim.iov.segments, (guest.ethernet, ip, udp), HEADER_LENGTHS)
    claim.commit(HEADERS_LEN + size, _VNET if offload else VNET_NONE)
    guest.attachment.frames_out += 1


def frame_of(
    guest: Guest, template: Template4, datagram: bytes
) -> tuple[tuple[bytes, ...], tuple[memoryview], int, bytes]:
    """A frame of a datagram in our own memory, as `Attachment.send` takes it."""
    view = memoryview(datagram)
    offload = guest.attachment.offload
    ip, udp = template.udp(len(datagram), None if offload else ones_sum((view,)))
    headers = (guest.ethernet, ip, udp)
    return headers, (view,), len(datagram), _VNET if offload else VNET_NONE
