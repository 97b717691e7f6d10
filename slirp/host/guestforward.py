"""Guest to host: connections of guests to some address and port, led to where they are to go.

The destination may be the gateway's, another address in the network (which is the network's own
then), or any address outside; the rest of that address is what it was. The flow gets

    a host address    a socket that connects there, as any flow has
    a Unix socket     a connected one
    a command         one end of a socket pair; the other is the stdin and stdout of a new process

so that bytes go through the same queues as any flow's. A guest that connects where nobody listens
is reset, as where there is no command or where COMMANDS_MAX of them run. A command ends with its
connection: it reads the end of its stdin when the guest has closed, and gets SIGTERM with the
network. Whatever a restricted network forbids, this is allowed.

Does not do: datagrams.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Final

from slirp.address import addr_from_text
from slirp.errors import ConfigError
from slirp.host.inside import PAIR
from slirp.host.loop import READABLE, Loop
from slirp.linux.syscalls import die_with_parent
from slirp.tcp import connection as tcp

if TYPE_CHECKING:
    from slirp.guestforward import GuestForward
    from slirp.host.inside import Service
    from slirp.host.sockets import Sockets
    from slirp.host.tcp import TcpRelay
    from slirp.ip.neighbours import Guest

COMMANDS_MAX: Final = 64  # processes of one network; beyond them a guest is reset


class GuestForwards:
    """All of one network."""

    def __init__(
        self, loop: Loop, relay: TcpRelay, sockets: Sockets,
        services: dict[tuple[bytes, int], Service],
    ) -> None:  # fmt: skip
        """`services`: of the dispatcher, by destination."""
        self._loop = loop
        self._relay = relay
        self._sockets = sockets
        self._services = services
        self._commands: dict[int, subprocess.Popen[bytes]] = {}  # by descriptor
        self.refused = 0

    def open(self, spec: GuestForward, addr: bytes) -> None:
        """Lead connections to `addr` where this says. Raises ConfigError."""
        key = (addr, spec.port)
        if key in self._services:
            raise ConfigError(f"guest forward {spec}: something is there already", "guest_forwards")
        if spec.command:
            argv = shlex.split(spec.command)
            self._services[key] = partial(self._run, argv)
        elif isinstance(spec.target, str):
            self._services[key] = partial(self._connect_path, spec.target)
        else:
            target = addr_from_text(spec.target[0])
            if self._sockets.get(target) is None:
                why = "the network has no sockets of this family"
                raise ConfigError(f"guest forward {spec}: {why}", "guest_forwards")
            self._services[key] = partial(self._connect, target, spec.target[1])

    def close_one(self, addr: bytes, port: int) -> None:
        """Connections that are open stay."""
        del self._services[addr, port]

    def _connect(
        self, target: bytes, port: int, key: bytes, syn: tcp.Segment, guest: Guest, now: float
    ) -> bool:
        return self._relay.connect(key, syn, guest, target, port, now)

    def _connect_path(
        self, path: str, key: bytes, syn: tcp.Segment, guest: Guest, now: float
    ) -> bool:
        try:
            sock = socket.socket(socket.AF_UNIX, PAIR)
        except OSError:
            self.refused += 1
            return False
        try:
            sock.connect(path)
        except OSError:  # a listener whose queue is full, too
            sock.close()
            self.refused += 1
            return False
        return self._serve(key, syn, sock, guest, now)

    def _serve(
        self, key: bytes, syn: tcp.Segment, sock: socket.socket, guest: Guest, now: float
    ) -> bool:
        if self._relay.serve(key, syn, sock, guest, now) is None:
            sock.close()
            self.refused += 1
            return False
        return True

    def _run(self, argv: list[str], key: bytes, syn: tcp.Segment, guest: Guest, now: float) -> bool:
        if len(self._commands) >= COMMANDS_MAX:
            self.refused += 1
            return False
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            self.refused += 1
            return False
        with theirs:
            try:
                process = _start(argv, theirs)
            except (OSError, subprocess.SubprocessError):
                ours.close()
                self.refused += 1
                return False
        self._watch(process)
        ours.setblocking(False)
        return self._serve(key, syn, ours, guest, now)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Take notice of its end."""
        fd = os.pidfd_open(process.pid)
        self._commands[fd] = process

        def ended(events: int, now: float) -> None:
            self._forget(fd)
            process.wait()

        self._loop.register(fd, READABLE, ended)

    def _forget(self, fd: int) -> None:
        del self._commands[fd]
        self._loop.unregister(fd)
        os.close(fd)

    def close(self) -> None:
        """End every command."""
        for fd, process in list(self._commands.items()):
            self._forget(fd)
            process.terminate()
            process.wait()


def _start(argv: list[str], sock: socket.socket) -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # ours may be blocked, to be read elsewhere
        die_with_parent(parent, signal.SIGTERM)

    return subprocess.Popen(argv, stdin=sock.fileno(), stdout=sock.fileno(), preexec_fn=prepare)
