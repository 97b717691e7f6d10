"""Files over HTTP at the gateway: the connections of the server in slirp.services.http.

A guest's connection is a flow whose host side is one end of a socket pair (slirp.host.inside); the
other end is read here. Heads are written, files go by sendfile(2) from the page cache into the
pair, as fast as the guest takes them; while a response is under way nothing is read.

Does not do: anything with what is asked for or answered.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from slirp.host.descriptors import Descriptors, Idle
from slirp.host.inside import open_pair
from slirp.host.loop import READABLE, WRITABLE, Loop
from slirp.services.http import Folder, HttpStream, Response
from slirp.shortage import is_shortage
from slirp.tcp import connection as tcp

if TYPE_CHECKING:
    from slirp.host.attachment import Attachment
    from slirp.host.tcp import TcpRelay
    from slirp.host.tcp_flow import TcpFlow
    from slirp.ip.neighbours import Guest

CLIENTS_MAX: Final = 128  # connections; at the bound the idlest gives way
CLIENT_FOR: Final = 60.0  # seconds that a connection may move nothing
READ_LEN: Final = 4096
SENT_PER_TURN: Final = 1 << 20  # bytes of a file; then the others have their turn


class HttpClient:
    """A guest's connection, seen from inside."""

    def __init__(
        self, relay: HttpRelay, attachment: Attachment, sock: socket.socket, now: float
    ) -> None:
        self._relay = relay
        self.attachment = attachment  # of the guest, which both ends are charged to
        self.sock = sock
        self.flow: TcpFlow | None = None  # whose other end it is
        self.stream = HttpStream(relay.folder)
        self.head = b""  # what of the response's head is still to be written
        self.response: Response | None = None
        self.offset = 0  # of the next byte of its file
        self.left = 0  # bytes of its file
        self.used_at = now
        self.visit: float | None = None

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit."""
        if now - self.used_at >= CLIENT_FOR:
            self._relay.drop(self)
            return None
        return self.used_at + CLIENT_FOR

    def handle_ready(self, events: int, now: float) -> None:
        """Bytes from the guest, or room for ours."""
        self._relay.handle_client(self, now)


class HttpRelay:
    """The HTTP server of one network."""

    def __init__(
        self, loop: Loop, tcp_relay: TcpRelay, descriptors: Descriptors, folder: Folder
    ) -> None:
        self.folder = folder
        self._loop = loop
        self._tcp = tcp_relay
        self._descriptors = descriptors
        self._clients: dict[HttpClient, None] = {}
        self.requests = 0
        self.octets = 0  # of files

    def accept(self, key: bytes, syn: tcp.Segment, guest: Guest, now: float) -> bool:
        """A guest's SYN; False: there is no room for it."""
        attachment = guest.attachment
        pair = open_pair(self._descriptors, attachment, now) if self._has_place(now) else None
        if pair is None:
            return False
        ours, flows = pair
        client = HttpClient(self, attachment, ours, now)
        client.flow = self._tcp.serve(key, syn, flows, guest, now)
        if client.flow is None:
            flows.close()
            ours.close()
            self._descriptors.release(attachment)
            return False
        self._clients[client] = None
        self._loop.register(ours.fileno(), READABLE, client.handle_ready)
        self._loop.visit_at(client, now + CLIENT_FOR)
        return True

    def _has_place(self, now: float) -> bool:
        if len(self._clients) < CLIENTS_MAX:
            return True
        idle = self.idlest(None, now)
        if idle is not None:
            idle.close()
        return idle is not None

    def idlest(self, attachment: Attachment | None, now: float) -> Idle | None:
        """The connection without a response under way that has been quiet for longest."""
        found = [
            client
            for client in self._clients
            if (attachment is None or client.attachment is attachment)
            and client.response is None
            and client.used_at < now
        ]
        if not found:
            return None
        idlest = min(found, key=lambda client: client.used_at)
        return Idle(idlest.used_at, partial(self._displace, idlest, now))

    def _displace(self, client: HttpClient, now: float) -> None:
        self.drop(client)
        if client.flow is not None:
            client.flow.relay.displace(client.flow, now)

    def handle_client(self, client: HttpClient, now: float) -> None:
        """A connection is ready."""
        if client not in self._clients:
            return
        try:
            if client.response is not None:
                self._write(client, now)
            else:
                self._read(client, now)
        except BlockingIOError:
            return
        except OSError as error:
            if is_shortage(error):
                raise
            self.drop(client)

    def _read(self, client: HttpClient, now: float) -> None:
        data = client.sock.recv(READ_LEN)
        if not data:
            self.drop(client)
            return
        client.used_at = now
        self._respond(client, client.stream.feed(data), now)

    def _respond(self, client: HttpClient, response: Response | None, now: float) -> None:
        if response is None:
            return
        self.requests += 1
        client.response, client.head = response, response.head
        client.offset, client.left = response.offset, response.length
        self._loop.modify(client.sock.fileno(), WRITABLE)

    def _write(self, client: HttpClient, now: float) -> None:
        response = client.response
        assert response is not None
        if client.head:
            client.head = client.head[client.sock.send(client.head) :]
            client.used_at = now
            if client.head:
                return
        if client.left and response.file is not None:
            wanted = min(client.left, SENT_PER_TURN)
            sent = os.sendfile(client.sock.fileno(), response.file.fd, client.offset, wanted)
            client.used_at = now
            if not sent:  # the file became shorter: the client must not take it for whole
                self.drop(client)
                return
            self.octets += sent
            client.offset += sent
            client.left -= sent
            if client.left:
                return
        self._finish(client, response, now)

    def _finish(self, client: HttpClient, response: Response, now: float) -> None:
        if response.file is not None:
            response.file.close()
        client.response = None
        if response.closes:
            self.drop(client)
            return
        self._loop.modify(client.sock.fileno(), READABLE)
        self._respond(client, client.stream.feed(b""), now)

    def drop(self, client: HttpClient) -> None:
        """End a connection; what was written reaches the guest."""
        if client not in self._clients:
            return
        del self._clients[client]
        if client.response is not None and client.response.file is not None:
            client.response.file.close()
        self._loop.unregister(client.sock.fileno())
        client.sock.close()
        self._descriptors.release(client.attachment)
        client.visit = None

    def drop_port(self, attachment: Attachment) -> None:
        """The port is gone."""
        for client in [c for c in self._clients if c.attachment is attachment]:
            self.drop(client)

    def close(self) -> None:
        """End everything."""
        for client in list(self._clients):
            self.drop(client)
