"""A resolver on the host's loopback, driven by the test: it answers, lies, or says nothing."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import Self

from scapy.layers.dns import DNS, DNSRR

from tests.kit.echo import both_on_one_port


class Resolver:
    """`addr`: what every name is; None: silence. Call `pump` between turns."""

    def __init__(
        self, at: str, addr: str | None = "198.51.100.7", rcode: int = 0, port: int = 0
    ) -> None:
        self.at = at
        self.addr = addr
        self.rcode = rcode
        self.truncates = False
        self.asked: list[str] = []
        self.over_tcp = 0
        self.clients: list[tuple[str, int]] = []  # who asked, oldest first
        self._tcp, self._udp = both_on_one_port(at, port)
        self.port: int = self._udp.getsockname()[1]
        self._peers: list[socket.socket] = []

    def pump(self) -> bool:
        """Answer what has come; True, so that it can stand in a condition."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            query, client = self._udp.recvfrom(4096)
            self.clients.append(client)
            answer = self.answer(query, self.truncates)
            if answer:
                self._udp.sendto(answer, client)
        with contextlib.suppress(BlockingIOError):
            peer, client = self._tcp.accept()
            self.clients.append(client)
            peer.setblocking(False)
            self._peers.append(peer)
        for peer in self._peers:
            with contextlib.suppress(BlockingIOError):
                framed = peer.recv(4096)
                answer = self.answer(framed[2:], False) if framed else None
                if answer:
                    self.over_tcp += 1
                    peer.send(len(answer).to_bytes(2, "big") + answer)
        return True

    def answer(self, query: bytes, truncated: bool) -> bytes | None:
        asked = DNS(query)
        name = asked.qd[0].qname
        self.asked.append(name.decode().rstrip("."))
        if self.addr is None:
            return None
        records = [] if truncated or self.rcode else [DNSRR(rrname=name, ttl=5, rdata=self.addr)]
        return bytes(
            DNS(
                id=asked.id,
                qr=1,
                rd=1,
                ra=1,
                tc=truncated,
                rcode=self.rcode,
                qd=asked.qd,
                an=records,
            )
        )

    def close(self) -> None:
        for sock in (self._udp, self._tcp, *self._peers):
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
