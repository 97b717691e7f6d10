"""Echo to the world: the kernel's ping sockets (IPPROTO_ICMP datagram sockets).

Each (guest, identifier, destination) has a socket; the kernel chooses the identifier that goes out
and checks what comes back, and the guest's own identifier is put back into the reply. Errors come
from the error queue, as for UDP, so a guest's traceroute with ICMP works. The kernel grants these
sockets to the groups in net.ipv4.ping_group_range; a raw socket serves where the process may open
one (then the reply is matched here). Where neither is allowed, the guest is told so: communication
administratively prohibited; nothing is forged. What the kernel refuses to send is told as for UDP,
and the guest's don't-fragment flag goes out as UDP's does.

Does not do: ICMPv6 (another family's file), record route, timestamps.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from dma.iovec import IoVec
from slirp.flow import Cause
from slirp.host.attachment import send_all
from slirp.host.descriptors import Descriptors, Idle
from slirp.host.loop import HANGUP, READABLE, Loop
from slirp.host.socket_errors import icmp_from_error
from slirp.host.sockets import LOCAL_CAUSES, SocketFamily, Sockets, addr_of
from slirp.ip.icmp_translation import mtu_of
from slirp.ip.neighbours import Guest
from slirp.ip.packet import EchoArrived
from slirp.shortage import SHORTAGES, is_shortage, persist
from slirp.stack import Stack

if TYPE_CHECKING:
    from slirp.host.attachment import Attachment
    from slirp.ip.layer import Layer

PING_FOR: Final = 60.0  # seconds without an echo
PINGS_MAX: Final = 256  # sockets; at the bound, or a port's share, the one idle longest goes
REPLIES_PER_EVENT: Final = 16
ECHO_LEN: Final = 8  # bytes of an echo's header, RFC 792 and RFC 4443 §4.1
_ECHO: Final = struct.Struct("!BBHHH")


class Ping:
    """One guest's echo identifier towards one destination."""

    __slots__ = (
        "attachment",
        "family",
        "guest",
        "hops",
        "ident",
        "key",
        "layer",
        "outer",
        "raw",
        "relay",
        "sock",
        "used_at",
        "visit",
    )

    def __init__(
        self, relay: PingRelay, layer: Layer, key: tuple[bytes, int, bytes], guest: Guest,
        family: SocketFamily, sock: socket.socket, raw: bool,
    ) -> None:  # fmt: skip
        self.relay = relay
        self.layer = layer  # the guest's
        self.family = family  # the socket's
        self.key = key
        self.guest = guest
        self.attachment: Attachment = guest.attachment  # that its socket is charged to
        self.ident = key[1]
        self.sock = sock
        self.raw = raw
        self.hops = 0  # as the socket is set: its TTL, and DONT_FRAGMENT or not (slirp.ip.packet)
        self.outer = int.from_bytes(os.urandom(2), "big")  # the identifier outside, where raw
        self.used_at = 0.0
        self.visit: float | None = None

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit."""
        if now - self.used_at >= PING_FOR:
            self.relay.remove(self)
            return None
        return self.used_at + PING_FOR

    def handle_ready(self, events: int, now: float) -> None:
        """A reply or an error."""
        if events & HANGUP:
            self.relay.errors(self)
        if events & READABLE:
            self.relay.replies(self)


class PingRelay:
    """All echo sockets of one network."""

    def __init__(
        self, loop: Loop, stack: Stack, descriptors: Descriptors, sockets: Sockets
    ) -> None:
        self._descriptors = descriptors
        self._sockets = sockets
        self._loop = loop
        self._stack = stack
        self._pings: dict[tuple[bytes, int, bytes], Ping] = {}
        self.sent = 0
        self.answered = 0
        self.prohibited = 0
        self.failed = 0
        self.shortages = 0  # echoes lost to one, and times that nothing could be received

    def send(self, echo: EchoArrived, host_addr: bytes, now: float) -> None:
        """A guest's echo request, to this host address."""
        key = (echo.guest.addr, echo.ident, echo.dst)
        ping = self._pings.get(key) or self._open(key, echo.guest, host_addr, now)
        payload = bytes(echo.payload)
        if not isinstance(ping, Ping):
            self._refuse(echo, payload, ping)
            return
        ping.used_at = now
        self._loop.visit_at(ping, now + PING_FOR)
        rest = ping.outer << 16 | echo.sequence
        if echo.hops != ping.hops:
            ping.family.set_hops(ping.sock, echo.hops, ping.hops)
            ping.hops = echo.hops
        failure, mtu = self._send(ping, ping.family.echo_request(rest, payload))
        if failure:
            self.shortages += failure in SHORTAGES
            self._refuse(echo, payload, LOCAL_CAUSES.get(failure), mtu)
        else:
            self.sent += 1

    def _send(self, ping: Ping, message: bytes) -> tuple[int, int]:
        """(0, 0), or the errno of the failure and the path's MTU where it is known."""
        failure = mtu = 0
        for _ in range(2):  # an error of an earlier echo is reported once, by whatever comes next
            try:
                ping.sock.send(message)
            except OSError as error:
                failure = error.errno or errno.EIO
                mtu = self.errors(ping)
            else:
                return 0, 0
        return failure, mtu

    def _refuse(self, echo: EchoArrived, payload: bytes, cause: Cause | None, mtu: int = 0) -> None:
        """Say why it does not go out; None: do not."""
        self.failed += 1
        if cause is None:
            return
        self.prohibited += cause is Cause.PROHIBITED
        guest, family = echo.guest, echo.guest.family
        quoted = _ECHO.pack(family.echo_request, 0, 0, echo.ident, echo.sequence) + payload
        send_all(
            self._stack.layer(guest.addr).unreachable_by_host(
                guest, cause, mtu, family.icmp, echo.dst, quoted, self._loop.now
            )
        )

    def _open(
        self, key: tuple[bytes, int, bytes], guest: Guest, host_addr: bytes, now: float
    ) -> Ping | Cause | None:
        cause: Cause | None = Cause.PROHIBITED
        attachment: Attachment = guest.attachment
        family = self._sockets.of(host_addr)
        held = sum(ping.attachment is attachment for ping in self._pings.values())
        if held >= self._descriptors.share_of(PINGS_MAX):
            self._displace(attachment, now)
        elif len(self._pings) >= PINGS_MAX:
            self._displace(None, now)
        for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
            try:
                sock = self._descriptors.take(
                    guest.attachment, family.family, kind, family.icmp, now
                )
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EPROTONOSUPPORT):
                    self.shortages += is_shortage(error)
                    return None  # no descriptor, no memory: the next one may find some
                continue
            try:
                family.prepare(sock)
                if kind == socket.SOCK_RAW:
                    family.filter_echoes(sock)
                family.leave(sock)
                persist(sock.connect, family.sockaddr(host_addr, 0))
            except OSError as error:
                sock.close()
                self._descriptors.release(guest.attachment)
                if is_shortage(error):
                    self.shortages += 1
                    return None  # the next one may find what it needs
                cause = LOCAL_CAUSES.get(error.errno or 0)
                continue
            layer = self._stack.layer(guest.addr)
            ping = Ping(self, layer, key, guest, family, sock, kind == socket.SOCK_RAW)
            self._pings[key] = ping
            self._loop.register(sock.fileno(), READABLE, ping.handle_ready)
            return ping
        return cause

    def replies(self, ping: Ping) -> None:
        """Echo replies for the guest."""
        for _ in range(REPLIES_PER_EVENT):
            try:
                data, peer = ping.sock.recvfrom(65535)
            except OSError as error:
                self._bear(error)
                return
            found = ping.family.echo_reply(data, ping.raw)
            if found is None:
                continue
            number, payload = found
            if ping.raw and number >> 16 != ping.outer:
                continue
            self.answered += 1
            layer, guest = ping.layer, ping.guest
            src, rest = layer.nat.inward(addr_of(peer)), ping.ident << 16 | number & 0xFFFF
            reply = layer.family.message(
                src, guest.addr, layer.family.echo_reply, 0, rest, IoVec.of(payload)
            )
            send_all(layer.packets(guest, src, layer.family.icmp, reply))

    def _bear(self, error: OSError) -> None:
        """Nothing was received: is it more than that nothing is there? Then the loop asks later."""
        if is_shortage(error) and not isinstance(error, BlockingIOError):
            self.shortages += 1
            raise error

    def errors(self, ping: Ping) -> int:
        """What the error queue tells, as ICMP for the guest; the path's MTU where it says so."""
        mtu = 0
        layer, guest, dst = ping.layer, ping.guest, ping.key[2]
        try:
            for error in ping.family.errors(ping.sock):
                mtu = mtu_of(error.mtu, ping.family.addr_len, guest.family.addr_len) or mtu
                if len(error.quoted) < ECHO_LEN:
                    continue
                head = bytes((guest.family.echo_request, 0)) + error.quoted[2:4]
                quoted = head + ping.ident.to_bytes(2, "big") + error.quoted[6:]
                send_all(icmp_from_error(layer, guest, error, layer.family.icmp, dst, quoted))
        except OSError as failure:
            self._bear(failure)
            raise
        return mtu

    def remove(self, ping: Ping) -> None:
        """End one socket."""
        self._pings.pop(ping.key, None)
        self._loop.unregister(ping.sock.fileno())
        ping.sock.close()
        self._descriptors.release(ping.attachment)
        ping.visit = None

    def _displace(self, attachment: Attachment | None, now: float) -> None:
        idle = self.idlest(attachment, now)
        if idle is not None:
            idle.close()

    def idlest(self, attachment: Attachment | None, now: float) -> Idle | None:
        """The echo that nobody has sent for longest."""
        pings = [
            ping
            for ping in self._pings.values()
            if attachment is None or ping.attachment is attachment
        ]
        if not pings:
            return None
        found = min(pings, key=lambda ping: ping.used_at)
        return Idle(found.used_at, partial(self.remove, found))

    def drop_port(self, attachment: Attachment) -> None:
        """The port is gone: nobody is left to have the replies."""
        for ping in list(self._pings.values()):
            if ping.guest.attachment is attachment:
                self.remove(ping)

    def close(self) -> None:
        """End them all."""
        for ping in list(self._pings.values()):
            self.remove(ping)
