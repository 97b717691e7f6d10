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
from slirp.address import addr_from_text, addr_to_text
from slirp.flow import PROHIBITED, Guest
from slirp.host.attachment import send_all
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
from slirp.ip import icmp
from slirp.shortage import SHORTAGES, is_shortage, persist
from slirp.stack import DONT_FRAGMENT, EchoArrived, Stack
from slirp.wire.icmp import ECHO_REPLY, ECHO_REQUEST, IcmpHeader
from slirp.wire.ipv4 import PROTOCOL_ICMP

if TYPE_CHECKING:
    from slirp.host.attachment import Attachment

PING_FOR: Final = 60.0  # seconds without an echo
PINGS_MAX: Final = 256  # sockets; at the bound the one unused for longest goes
REPLIES_PER_EVENT: Final = 16
SOL_RAW: Final = 255
ICMP_FILTER: Final = 1
_ECHO: Final = struct.Struct("!BBHHH")


class Ping:
    """One guest's echo identifier towards one destination."""

    __slots__ = (
        "attachment",
        "guest",
        "hops",
        "ident",
        "key",
        "outer",
        "raw",
        "relay",
        "sock",
        "used_at",
        "visit",
    )

    def __init__(
        self, relay: PingRelay, key: tuple[bytes, int, bytes], guest: Guest, sock: socket.socket,
        raw: bool,
    ) -> None:  # fmt: skip
        self.relay = relay
        self.key = key
        self.guest = guest
        self.attachment: Attachment = guest.attachment  # that its socket is charged to
        self.ident = key[1]
        self.sock = sock
        self.raw = raw
        self.hops = -1  # as the socket is set: its TTL, and stack.DONT_FRAGMENT or not
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
        self, loop: Loop, stack: Stack, descriptors: Descriptors, *, bind: str | None = None
    ) -> None:
        self._descriptors = descriptors
        self._bind = bind
        self._loop = loop
        self._stack = stack
        self._nat = stack.nat
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
        message = icmp.message(ECHO_REQUEST, 0, rest, IoVec.of(payload))
        set_hops(ping, echo.hops)
        failure, mtu = self._send(ping, bytes(message))
        if failure:
            self.shortages += failure in SHORTAGES
            self._refuse(echo, payload, LOCAL_CODES.get(failure), mtu)
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

    def _refuse(self, echo: EchoArrived, payload: bytes, code: int | None, mtu: int = 0) -> None:
        """Say why it does not go out, by a code of destination unreachable; None: do not."""
        self.failed += 1
        if code is None:
            return
        self.prohibited += code == PROHIBITED
        quoted = _ECHO.pack(ECHO_REQUEST, 0, 0, echo.ident, echo.sequence) + payload
        send_all(
            self._stack.unreachable_by_host(
                echo.guest, code, mtu, PROTOCOL_ICMP, echo.dst, quoted, self._loop.now
            )
        )

    def _open(
        self, key: tuple[bytes, int, bytes], guest: Guest, host_addr: bytes, now: float
    ) -> Ping | int | None:
        code: int | None = PROHIBITED
        if len(self._pings) >= PINGS_MAX:
            self.remove(min(self._pings.values(), key=lambda p: p.used_at))
        for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
            try:
                sock = self._descriptors.take(
                    guest.attachment, socket.AF_INET, kind, socket.IPPROTO_ICMP, now
                )
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EPROTONOSUPPORT):
                    self.shortages += is_shortage(error)
                    return None  # no descriptor, no memory: the next one may find some
                continue
            try:
                persist(sock.setsockopt, socket.IPPROTO_IP, IP_RECVERR, 1)
                if kind == socket.SOCK_RAW:
                    persist(
                        sock.setsockopt,
                        SOL_RAW,
                        ICMP_FILTER,
                        struct.pack("I", ~(1 << ECHO_REPLY) & 0xFFFFFFFF),
                    )
                if self._bind is not None:
                    persist(sock.bind, (self._bind, 0))
                persist(sock.connect, (addr_to_text(host_addr), 0))
            except OSError as error:
                sock.close()
                self._descriptors.release(guest.attachment)
                if is_shortage(error):
                    self.shortages += 1
                    return None  # the next one may find what it needs
                code = LOCAL_CODES.get(error.errno or 0)
                continue
            ping = Ping(self, key, guest, sock, kind == socket.SOCK_RAW)
            self._pings[key] = ping
            self._loop.register(sock.fileno(), READABLE, ping.handle_ready)
            return ping
        return code

    def replies(self, ping: Ping) -> None:
        """Echo replies for the guest."""
        for _ in range(REPLIES_PER_EVENT):
            try:
                data, peer = ping.sock.recvfrom(65535)
            except OSError as error:
                self._bear(error)
                return
            if ping.raw:
                data = data[(data[0] & 15) * 4 :]
            if len(data) < 8:
                continue
            header = IcmpHeader.parse(data)
            if header.type != ECHO_REPLY or (ping.raw and header.ident != ping.outer):
                continue
            self.answered += 1
            reply = icmp.message(
                ECHO_REPLY, 0, ping.ident << 16 | header.sequence, IoVec.of(data[8:])
            )
            src = self._nat.inward(addr_from_text(peer[0]))
            send_all(self._stack.packets(ping.guest, src, PROTOCOL_ICMP, reply))

    def _bear(self, error: OSError) -> None:
        """Nothing was received: is it more than that nothing is there? Then the loop asks later."""
        if is_shortage(error) and not isinstance(error, BlockingIOError):
            self.shortages += 1
            raise error

    def errors(self, ping: Ping) -> int:
        """What the error queue tells, as ICMP for the guest; the path's MTU where it says so."""
        mtu = 0
        for _ in range(REPLIES_PER_EVENT):
            try:
                data, ancillary, _, _ = ping.sock.recvmsg(576, 512, MSG_ERRQUEUE)
            except OSError as failure:
                self._bear(failure)
                persist(ping.sock.getsockopt, socket.SOL_SOCKET, socket.SO_ERROR)
                break
            for level, kind, error in ancillary:
                if level == socket.IPPROTO_IP and kind == IP_RECVERR:
                    mtu = local_mtu(error) or mtu
            if len(data) < 8:
                continue
            quoted = data[:4] + ping.ident.to_bytes(2, "big") + data[6:]
            peer = (addr_to_text(ping.key[2]), 0)
            for level, kind, error in ancillary:
                if level == socket.IPPROTO_IP and kind == IP_RECVERR:
                    send_all(
                        icmp_from_error(self._stack, ping.guest, error, PROTOCOL_ICMP, peer, quoted)
                    )
        return mtu

    def remove(self, ping: Ping) -> None:
        """End one socket."""
        self._pings.pop(ping.key, None)
        self._loop.unregister(ping.sock.fileno())
        ping.sock.close()
        self._descriptors.release(ping.attachment)
        ping.visit = None

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


def set_hops(ping: Ping, hops: int) -> None:
    """What goes out next has the guest's hop limit and, with it, DONT_FRAGMENT or not."""
    if hops == ping.hops:
        return
    discover = IP_PMTUDISC_DO if hops & DONT_FRAGMENT else IP_PMTUDISC_DONT
    persist(ping.sock.setsockopt, socket.IPPROTO_IP, socket.IP_TTL, hops & 0xFF)
    persist(ping.sock.setsockopt, socket.IPPROTO_IP, IP_MTU_DISCOVER, discover)
    ping.hops = hops
