"""Forwards that come and go with the programs that listen in a namespace (`--forward auto`).

Once per LOOK_EVERY the namespace's listening sockets are looked at (slirp.linux.listening). A port
that has come is forwarded from the same port of the host's 127.0.0.1; one that has gone is not any
longer. Where the port is taken on the host, or may not be had, another that is free is taken, and
kept for the program's next start. What is opened is told, with who listens and who has the port:

    forward 127.0.0.1:8000:10.0.2.100:8000 for python3 (4711)
    forward 127.0.0.1:41873:10.0.2.100:80 for nginx (4712): port 80 is taken by apache2 (88)

A program that listens on the namespace's own loopback only cannot be reached from outside it; that
is told once. Ports that are forwarded anyhow, by whatever way, are left alone.

Does not do: guests other than a namespace's, IPv6-only listeners, changes of the rules.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from slirp.address import addr_from_text, is_loopback
from slirp.autoforward import AutoRules
from slirp.errors import ConfigError
from slirp.linux.listening import Listener, listeners, program_at, program_of

if TYPE_CHECKING:
    from slirp.host.forward import Forward
    from slirp.network import Network

LOOK_EVERY: Final = 1.0  # seconds
FORWARDS_MAX: Final = 256  # at a time; further ports are not forwarded
HOST: Final = "127.0.0.1"
UNSPECIFIED: Final = (bytes(4), bytes(16))

Port = tuple[str, int]  # protocol and number


class AutoForward:
    """The forwards of one namespace. `guest`: its address on the network."""

    def __init__(
        self,
        network: Network,
        guest: str,
        rules: AutoRules,
        pid: Callable[[], int | None],
        say: Callable[[str], None],
        look: Callable[[int], list[Listener]] = listeners,
    ) -> None:
        """`pid`: a process in the namespace, or None when there is none any more."""
        self._network = network
        self._guest = guest
        self._guest_addr = addr_from_text(guest)
        self._rules = rules
        self._pid = pid
        self._say = say
        self._look = look
        self._open: dict[Port, Forward] = {  # those of a process before this one
            (forward.proto, forward.guest[1]): forward
            for forward in network.forwards()
            if forward.automatic
        }
        self._chosen: dict[Port, int] = {  # host ports of those that could not have their own
            port: forward.host[1]
            for port, forward in self._open.items()
            if isinstance(forward.host, tuple) and forward.host[1] != port[1]
        }
        self._passed_over: set[Port] = set()  # told once
        self.visit: float | None = None
        network.visit_at(self, network.now)

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit: what has come and what has gone."""
        found = self._listening()
        for port in [port for port in self._open if port not in found]:
            self._network.remove_forward(self._open.pop(port).id)
            self._say(f"forward to port {port[1]}/{port[0]} ended: nobody listens")
        self._passed_over &= found.keys()
        for port, listener in found.items():
            if port not in self._open and port not in self._passed_over:
                self._add(port, listener)
        return now + LOOK_EVERY

    def _listening(self) -> dict[Port, Listener]:
        """What could be forwarded, those that can be reached before those that cannot."""
        pid = self._pid()
        if pid is None:
            return {}
        try:
            found = self._look(pid)
        except OSError:  # it has just ended
            return {}
        ports: dict[Port, Listener] = {}
        for listener in sorted(found, key=lambda one: not self._is_reachable(one)):
            if self._rules.allow(listener.proto, listener.port):
                ports.setdefault((listener.proto, listener.port), listener)
        return ports

    def _is_reachable(self, listener: Listener) -> bool:
        return listener.addr in UNSPECIFIED or listener.addr == self._guest_addr

    def _add(self, port: Port, listener: Listener) -> None:
        proto, number = port
        if self._is_forwarded(port):
            return
        if not self._is_reachable(listener):
            self._pass_over(port, listener)
            return
        if len(self._open) >= FORWARDS_MAX:
            self._passed_over.add(port)
            self._say(f"port {number}/{proto} is not forwarded: {FORWARDS_MAX} are")
            return
        wanted, why = self._chosen.get(port, number), ""
        try:
            forward = self._forward(proto, wanted, number)
        except OSError as error:
            why = f": port {wanted} {self._reason(error, proto, wanted)}"
            try:
                forward = self._forward(proto, 0, number)
            except OSError as failure:
                self._passed_over.add(port)
                self._say(f"port {number}/{proto} is not forwarded: {failure.strerror}")
                return
            self._chosen[port] = forward.host[1] if isinstance(forward.host, tuple) else 0
        except ConfigError as error:
            self._passed_over.add(port)
            self._say(str(error))
            return
        self._open[port] = forward
        program = program_of(listener.inode)
        self._say(f"forward {forward}" + (f" for {program}" if program else "") + why)

    def _forward(self, proto: str, port: int, number: int) -> Forward:
        return self._network.forward(
            proto, host=(HOST, port), guest=(self._guest, number), automatic=True
        )

    def _is_forwarded(self, port: Port) -> bool:
        """By somebody else's wish?"""
        proto, number = port
        protos = ("tcp", "unix") if proto == "tcp" else ("udp",)
        own = {forward.id for forward in self._open.values()}
        return any(
            forward.guest == (self._guest, number)
            and forward.proto in protos
            and forward.id not in own
            for forward in self._network.forwards()
        )

    def _pass_over(self, port: Port, listener: Listener) -> None:
        self._passed_over.add(port)
        if is_loopback(listener.addr):
            program = program_of(listener.inode) or "a program"
            self._say(
                f"port {port[1]}/{port[0]} is not forwarded: {program} listens on the namespace's "
                "loopback only"
            )

    def _reason(self, error: OSError, proto: str, port: int) -> str:
        if error.errno == errno.EADDRINUSE:
            return f"is taken by {program_at(proto, port) or 'another program'}"
        if error.errno == errno.EACCES:
            return "is for root only"
        return f"cannot be had ({error.strerror})"

    def close(self) -> None:
        """End what is open."""
        self.visit = None
        for forward in self._open.values():
            self._network.remove_forward(forward.id)
        self._open.clear()
