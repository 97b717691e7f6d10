"""The sockets of the DNS service: guests on one side, the host's resolvers on the other.

What to answer and whom to ask is slirp.services.dns's; here its actions become datagrams and
streams. Every attempt at a resolver has a socket of its own, connected, with a port that the kernel
chose; it is closed when the service forgets the attempt. A guest that comes over TCP is an ordinary
flow of the TCP relay whose host side is one end of a socket pair; the other end is read here.

Does not do: DNS over TLS, pipelining towards resolvers.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Hashable
from functools import partial
from typing import Final, cast

from dma.iovec import IoVec
from slirp.address import addr_from_text, is_loopback
from slirp.config_fields import DNS_PORT
from slirp.errors import MalformedPacket
from slirp.host.attachment import Attachment, send_all
from slirp.host.descriptors import Descriptors, Idle
from slirp.host.holding import Holding
from slirp.host.inside import open_pair
from slirp.host.loop import HANGUP, READABLE, RETRY_AFTER, WRITABLE, Loop
from slirp.host.sockets import Sockets
from slirp.host.tcp_flow import TcpFlow
from slirp.ip.layer import udp_datagram
from slirp.ip.neighbours import Guest
from slirp.ip.packet import Unresolved
from slirp.ip.template import PROTOCOL_UDP
from slirp.services.asked import AskedNames
from slirp.services.dns import Action, Answer, DnsService, Forget, SendToResolver
from slirp.shortage import is_shortage, persist
from slirp.stack import Stack
from slirp.wire.dns import MessageStream, frame_message

CLIENTS_MAX: Final = 256  # guests' TCP connections; at the bound the idlest gives way
CLIENT_FOR: Final = 30.0  # seconds without a query on a TCP connection (RFC 7766 §6.2.3)
UNSENT_MAX: Final = 256 << 10  # bytes of answers that a client does not take; then it is closed
READ_LEN: Final = 65536


class Attempt:
    """One question to one resolver."""

    __slots__ = ("attachment", "relay", "resolver", "sock", "stream", "token", "unsent")

    def __init__(
        self, relay: DnsRelay, action: SendToResolver, attachment: Attachment, sock: socket.socket
    ) -> None:
        self.relay = relay
        self.token = action.token
        self.resolver = action.resolver
        self.attachment = attachment  # of the guest that asks, which its socket is charged to
        self.sock = sock
        self.stream = MessageStream() if action.over_tcp else None
        self.unsent = frame_message(action.payload) if action.over_tcp else action.payload

    def handle_ready(self, events: int, now: float) -> None:
        """The resolver answered, or the connection is there, or neither will come."""
        self.relay.handle_resolver(self, events, now)


class Client:
    """A guest's TCP connection to the DNS address, seen from inside."""

    __slots__ = (
        "asked",
        "attachment",
        "ended",
        "flow",
        "number",
        "relay",
        "sock",
        "stream",
        "unsent",
        "used_at",
        "visit",
    )

    def __init__(
        self, relay: DnsRelay, number: int, attachment: Attachment, sock: socket.socket, now: float
    ) -> None:
        self.relay = relay
        self.number = number
        self.attachment = attachment  # of the guest, which both ends are charged to
        self.sock = sock
        self.flow: TcpFlow | None = None  # whose other end it is
        self.stream = MessageStream()
        self.asked = 0  # queries without an answer yet
        self.ended = False  # the guest has closed its side; it may still wait for answers
        self.unsent = b""
        self.used_at = now
        self.visit: float | None = None

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit."""
        if now - self.used_at >= CLIENT_FOR:
            self.relay.drop(self)
            return None
        return self.used_at + CLIENT_FOR

    def handle_ready(self, events: int, now: float) -> None:
        """Bytes from the guest, or room for ours."""
        self.relay.handle_client(self, events, now)


class DnsRelay:
    """Queries and answers of one network."""

    def __init__(
        self, loop: Loop, stack: Stack, service: DnsService, holding: Holding,
        descriptors: Descriptors, sockets: Sockets,
    ) -> None:  # fmt: skip
        self._descriptors = descriptors
        self._sockets = sockets
        self._holding = holding
        self._loop = loop
        self._stack = stack
        self.service = service
        self._attempts: dict[int, Attempt] = {}
        self._clients: dict[int, Client] = {}
        self._accepted = 0
        self.asked = AskedNames()
        self.shortages = 0  # times that the kernel had no memory for a query or an answer
        self.visit: float | None = None

    def query(self, guest: Guest, src_port: int, payload: IoVec, now: float) -> None:
        """A query that came in a datagram."""
        self._ask(bytes(payload), (guest.addr, src_port), False, guest.attachment, now)

    def _ask(
        self, payload: bytes, client: Hashable, over_tcp: bool, port: Attachment, now: float
    ) -> bool:
        try:
            self._perform(self.service.handle_query(payload, client, over_tcp, now, port), now)
        except MalformedPacket as error:
            self._stack.malformed[error.layer, error.reason] += 1
            return False
        return True

    def _perform(self, actions: list[Action], now: float) -> None:
        pending = list(actions)
        while pending:
            action = pending.pop(0)
            match action:
                case SendToResolver():
                    pending += self._send(action, now)
                case Forget(token):
                    self._forget(token)
                case Answer():
                    self._answer(action)
        self._loop.visit_at(self, self.service.poll_at())

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit: attempts that took too long."""
        self._perform(self.service.handle_timeout(now), now)
        return self.service.poll_at()

    # Resolvers

    def _send(self, action: SendToResolver, now: float) -> list[Action]:
        kind = socket.SOCK_STREAM if action.over_tcp else socket.SOCK_DGRAM
        attachment = cast(Attachment, action.port)
        try:
            found = socket.getaddrinfo(*action.resolver, type=kind, flags=socket.AI_NUMERICHOST)
            sock = self._descriptors.take(attachment, found[0][0], kind, 0, now)
        except OSError:
            return self.service.handle_failure(action.token, now)
        attempt = Attempt(self, action, attachment, sock)
        self._attempts[action.token] = attempt
        try:
            self._leave(sock, action.resolver.address)
            persist(sock.connect, found[0][4])
        except OSError as error:
            if error.errno != errno.EINPROGRESS:
                return self.service.handle_failure(action.token, now)
        if not action.over_tcp:
            try:
                sock.send(action.payload)
                attempt.unsent = b""
            except OSError as error:
                if not is_shortage(error):
                    return self.service.handle_failure(action.token, now)
                self.shortages += 1  # it leaves when the loop finds the socket writable
        events = READABLE | (WRITABLE if attempt.unsent else 0)
        self._loop.register(sock.fileno(), events, attempt.handle_ready)
        return []

    def _leave(self, sock: socket.socket, resolver: str) -> None:
        # A resolver on the host's loopback is no way out: systemd-resolved answers nobody there
        # who comes from another address than loopback's.
        addr = addr_from_text(resolver.partition("%")[0])
        family = self._sockets.get(addr)
        if family is None or family.outbound is None:
            return
        if not is_loopback(addr) or is_loopback(family.outbound):
            family.leave(sock)

    def handle_resolver(self, attempt: Attempt, events: int, now: float) -> None:
        """A resolver's socket is ready."""
        try:
            if events & WRITABLE and attempt.unsent:
                attempt.unsent = attempt.unsent[attempt.sock.send(attempt.unsent) :]
                if not attempt.unsent:
                    self._loop.modify(attempt.sock.fileno(), READABLE)
            if not events & (READABLE | HANGUP):
                return
            data = attempt.sock.recv(READ_LEN)
            messages = [data]
            if attempt.stream is not None:
                if not data:
                    raise ConnectionError("closed by the resolver")
                messages = attempt.stream.feed(data)
        except (OSError, MalformedPacket) as error:
            if isinstance(error, OSError) and is_shortage(error):
                self._bear(error)
                return
            self._perform(self.service.handle_failure(attempt.token, now), now)
            self._forget(attempt.token)  # whatever the service knows of it: it stays readable
            return
        for message in messages:
            self._perform(
                self.service.handle_answer(attempt.resolver, message, attempt.token, now), now
            )

    def _bear(self, error: OSError) -> None:
        """A socket gave or took nothing: more than that it is busy? Then the loop asks later."""
        if not isinstance(error, BlockingIOError):
            self.shortages += 1
            raise error

    def _forget(self, token: int) -> None:
        attempt = self._attempts.pop(token, None)
        if attempt is not None:
            self._loop.unregister(attempt.sock.fileno())
            attempt.sock.close()
            self._descriptors.release(attempt.attachment)

    # Guests

    def _answer(self, action: Answer) -> None:
        if action.over_tcp:
            client = self._clients.get(cast(int, action.client))
            if client is not None:
                client.asked -= 1
                if client.flow is not None:
                    self._note(client.flow.guest, action)
                client.unsent += frame_message(action.payload)
                self._flush(client)
            return
        addr, port = cast(tuple[bytes, int], action.client)
        payload = IoVec.of(action.payload)
        layer = self._stack.layer(addr)
        src = layer.nat.dns
        datagram = udp_datagram(src, addr, DNS_PORT, port, payload)
        guest = self._stack.guests.get(addr)
        if guest is None:
            unresolved = Unresolved(addr, src, PROTOCOL_UDP, datagram)
            self._holding.hold_packet(unresolved, self._loop.now)
        else:
            self._note(guest, action)
            send_all(layer.packets(guest, src, PROTOCOL_UDP, datagram))

    def _note(self, guest: Guest, answer: Answer) -> None:
        """What a guest learns by this, for whoever looks at its flows."""
        self.asked.learn(guest.attachment, guest.mac, answer.payload, self._loop.now)

    def accept(self, attachment: Attachment, now: float) -> tuple[Client, socket.socket] | None:
        """A guest connects: our side and its flow's, or None where there is no room."""
        if not self._has_place(attachment, now):
            return None
        pair = open_pair(self._descriptors, attachment, now)
        if pair is None:
            return None
        ours, flows = pair
        self._accepted += 1
        client = Client(self, self._accepted, attachment, ours, now)
        self._clients[client.number] = client
        self._loop.register(ours.fileno(), READABLE, client.handle_ready)
        self._loop.visit_at(client, now + CLIENT_FOR)
        return client, flows

    def _has_place(self, attachment: Attachment, now: float) -> bool:
        """Is there room for one more stream, or can there be?"""
        held = sum(client.attachment is attachment for client in self._clients.values())
        if held >= self._descriptors.share_of(CLIENTS_MAX):
            idle = self.idlest(attachment, now)
        elif len(self._clients) >= CLIENTS_MAX:
            idle = self.idlest(None, now)
        else:
            return True
        if idle is not None:
            idle.close()
        return idle is not None

    def idlest(self, attachment: Attachment | None, now: float) -> Idle | None:
        """The stream that has asked nothing for longest and waits for no answer."""
        found = [
            client
            for client in self._clients.values()
            if (attachment is None or client.attachment is attachment)
            and client.asked <= 0
            and client.used_at < now  # not one whose other end is still to find room
        ]
        if not found:
            return None
        idlest = min(found, key=lambda client: client.used_at)
        return Idle(idlest.used_at, partial(self._displace, idlest, now))

    def _displace(self, client: Client, now: float) -> None:
        """Both of its sockets are wanted: the guest is reset, and may connect again."""
        self.drop(client)
        if client.flow is not None:
            client.flow.relay.displace(client.flow, now)

    def handle_client(self, client: Client, events: int, now: float) -> None:
        """A guest's stream is ready."""
        if events & WRITABLE and client.number in self._clients:
            self._flush(client)
        if client.ended and events & HANGUP:
            self.drop(client)  # nobody is left to answer
        if client.ended or client.number not in self._clients:
            return
        try:
            data = client.sock.recv(READ_LEN)
            messages = client.stream.feed(data)
        except OSError as error:
            if is_shortage(error):
                self._bear(error)
            else:
                self.drop(client)
            return
        except MalformedPacket as error:
            self._stack.malformed[error.layer, error.reason] += 1
            self.drop(client)
            return
        for message in messages:
            if client.number not in self._clients:
                return  # dropped over an earlier one
            client.used_at = now
            client.asked += 1
            if not self._ask(message, client.number, True, client.attachment, now):
                self.drop(client)  # RFC 7766 §6.2.3 leaves a malformed stream to us
        if not data:
            client.ended = True
            self._flush(client)

    def _flush(self, client: Client) -> None:
        if client.number not in self._clients:
            return
        rests = False
        try:
            sent = client.sock.send(client.unsent) if client.unsent else 0
        except OSError as error:
            if not is_shortage(error):
                self.drop(client)
                return
            sent = 0
            rests = not isinstance(error, BlockingIOError)
        client.unsent = client.unsent[sent:]
        done = client.ended and client.asked <= 0 and not client.unsent
        if done or len(client.unsent) > UNSENT_MAX:
            self.drop(client)
            return
        wanted = 0 if client.ended else READABLE
        self._loop.modify(client.sock.fileno(), wanted | (WRITABLE if client.unsent else 0))
        if rests:  # it is writable: to be told so at once is of no use
            self.shortages += 1
            self._loop.rest(client.sock.fileno(), RETRY_AFTER)

    def drop(self, client: Client) -> None:
        """End a guest's stream."""
        if self._clients.pop(client.number, None) is None:
            return
        self._loop.unregister(client.sock.fileno())
        client.sock.close()
        self._descriptors.release(client.attachment)
        client.visit = None
        for action in self.service.forget_client(client.number):
            if isinstance(action, Forget):
                self._forget(action.token)

    def drop_port(self, attachment: Attachment) -> None:
        """The port is gone: nobody is left to have the answers."""
        for client in list(self._clients.values()):
            if client.attachment is attachment:
                self.drop(client)
        self._perform(self.service.forget_port(attachment), self._loop.now)
        self.asked.forget_port(attachment)

    def close(self) -> None:
        """End everything."""
        for client in list(self._clients.values()):
            self.drop(client)
        for token in list(self._attempts):
            self._forget(token)
