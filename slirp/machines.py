"""The network of virtual machines: who connects, who is connected, who left.

Each machine that connects gets a port of its own on the one network, and with it an address from
the one DHCP pool; a machine that leaves, or breaks the framing or its rings, is taken off and its
flows are reset, while the others go on. It may come back at any time.

A datagram socket has no connections: its port stays, and the machine behind it may change. But
where a machine joins, that is connects its own socket to ours (libkrun), it is one with this socket
for ever. So it gets a port of its own with the socket that it has found, and for the next one there
is a new socket at the same path. Two that connect before the first of them has sent anything meet
at one socket: the second is not heard, and is told of. Nobody says when such a machine ends; a
frame that it does not take shows it, or the next one's coming.

`wrap` puts something around each port, and `wrap_path(stage, path)` at a stage of the way to the
memory of a machine that shares it (a capture); `report` gets one line per event, without a newline;
`when_over` is called when the last machine has left and no other can come.

`carried` and `adopt` have another process go on with the same sockets: with those that listen, and
with each machine's as its port leaves it. Ports are attached under the names that they had.

A machine that gets its card from us (vfio-user; vhost-user with crosvm) gets an Ethernet address
too: the lowest that no other has, so that whoever comes back has the one that it had.

Does not do: open sockets (slirp/cli/endpoint.py), move frames.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from nic.dgram import DgramPort
from nic.stream import StreamPort
from nic.vfio_user.port import VfioUserPort
from nic.vhost_user.port import VhostUserPort

if TYPE_CHECKING:
    from dma.transfer import DmaPath
    from nic.port import Port
    from slirp.host.attachment import Attachment
    from slirp.network import Network

MACHINES_MAX: Final = 64  # connected at once; the next one is turned away
ACCEPTS_PER_TURN: Final = 16
CARDS: Final = bytes.fromhex(
    "5254 0070 6300"
)  # Ethernet addresses of cards that we make: the first

VHOST_USER: Final = "vhost-user"  # protocols, as slirp.cli.endpoint has them
VFIO_USER: Final = "vfio-user"
DGRAM: Final = "dgram"

Renew: TypeAlias = Callable[[], socket.socket]
MachinePort: TypeAlias = StreamPort | DgramPort | VhostUserPort | VfioUserPort


class Machine:
    """One machine's connection."""

    port: MachinePort

    def __init__(self, name: str, protocol: str) -> None:
        self.name = name
        self.protocol = protocol
        self.attachment: Attachment | None = None


class _Listener(NamedTuple):
    """Where machines connect."""

    sock: socket.socket
    name: str
    protocol: str


class Server:
    """Machines and the sockets that they come from. Close it before its network."""

    def __init__(
        self,
        network: Network,
        *,
        report: Callable[[str], None] = lambda line: None,
        wrap: Callable[[Port], Port] = lambda port: port,
        wrap_path: Callable[[str, DmaPath], DmaPath] = lambda stage, path: path,
        when_over: Callable[[], None] = lambda: None,
    ) -> None:
        self._network = network
        self._report = report
        self._wrap = wrap
        self._wrap_path = wrap_path
        self._when_over = when_over
        self._listeners: list[_Listener] = []
        self._fixed: list[tuple[DgramPort, Attachment]] = []
        self._renewed: dict[str, DgramPort] = {}  # those that any machine may join
        self._gone: dict[Machine, str] = {}  # to be taken off in a moment, and why
        self.visit: float | None = None
        self._abandoned = False
        self.machines: list[Machine] = []
        self._count = 0

    def listen(self, listener: socket.socket, name: str, protocol: str = "") -> None:
        """Serve every machine that connects to this socket, which is the server's from now on.

        They speak this protocol (`add`).
        """
        listener.setblocking(False)
        self._listeners.append(_Listener(listener, name, protocol))
        self._network.watch(
            listener.fileno(), lambda: self._handle_connect(listener, name, protocol)
        )

    def add(self, sock: socket.socket, name: str, protocol: str = "") -> Machine:
        """Serve the machine behind this socket: vhost-user, vfio-user, or frames in a stream."""
        machine = Machine(f"machine {self._count + 1}", protocol)
        machine.port = self._port(machine, sock)
        self._count += 1
        self._attach(machine)
        self._report(f"{machine.name} connected to {name}")
        return machine

    def add_stream(self, sock: socket.socket, name: str) -> Machine:
        """Serve the machine at the other end of this stream socket."""
        return self.add(sock, name)

    def add_vhost_user(self, sock: socket.socket, name: str) -> Machine:
        """Serve the machine whose front-end is at the other end of this Unix socket."""
        return self.add(sock, name, VHOST_USER)

    def add_vfio_user(self, sock: socket.socket, name: str) -> Machine:
        """Serve the machine at the other end of this Unix socket, which gets a PCI card."""
        return self.add(sock, name, VFIO_USER)

    def _port(self, machine: Machine, sock: socket.socket, mac: str | None = None) -> MachinePort:
        """`mac`: of the card that the machine had from another process."""
        mtu = self._network.mtu

        def gone(why: str) -> None:
            self._left(machine, why)

        def changed() -> None:
            if machine.attachment is not None:
                machine.attachment.learn()

        card = self._free_address() if mac is None else bytes.fromhex(mac)
        if machine.protocol == VHOST_USER:
            return VhostUserPort(
                sock,
                mtu=mtu,
                mac=card,
                on_gone=gone,
                on_change=changed,
                path=lambda path: self._wrap_path("virtio", self._wrap_path("memory", path)),
            )
        if machine.protocol == VFIO_USER:
            return VfioUserPort(sock, mac=card, mtu=mtu, on_gone=gone, path=self._wrap_path)
        if machine.protocol == DGRAM:  # one that has joined in another process
            return DgramPort(
                sock, mtu=mtu, on_peer=lambda path: self._forget_soon(machine, "is gone")
            )
        with contextlib.suppress(OSError):  # not TCP
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return StreamPort(sock, mtu=mtu, on_gone=gone)

    def _free_address(self) -> bytes:
        """The lowest Ethernet address that no card of ours has."""
        taken = {getattr(machine.port, "mac", b"") for machine in self.machines}
        first = int.from_bytes(CARDS, "big")
        every = ((first + number).to_bytes(6, "big") for number in range(MACHINES_MAX + 1))
        return next(mac for mac in every if mac not in taken)

    def _attach(self, machine: Machine) -> None:
        machine.attachment = self._network.attach(self._wrap(machine.port), machine.name)
        self.machines.append(machine)

    def add_datagram(self, sock: socket.socket, name: str, peer: str = "") -> DgramPort:
        """Serve the machine that sends to this datagram socket."""

        port = self._datagram_port(sock, name, peer)
        self._fixed.append((port, self._network.attach(self._wrap(port), name)))
        return port

    def _datagram_port(self, sock: socket.socket, name: str, peer: str) -> DgramPort:
        def changed(path: str) -> None:
            self._report(f"{name}: {'a machine is there' if path else 'the machine is gone'}")

        return DgramPort(sock, mtu=self._network.mtu, peer=peer, on_peer=changed)

    def add_datagrams(self, sock: socket.socket, name: str, renew: Renew) -> None:
        """Serve the machines that send to this datagram socket, which is bound to a path.

        `renew` makes another one at the same path. Raises OSError.
        """
        port = self._shared_port(sock, name, renew)
        self._fixed.append((port, self._network.attach(self._wrap(port), name)))

    def _shared_port(self, sock: socket.socket, name: str, renew: Renew) -> DgramPort:
        machine: Machine | None = None

        def changed(path: str) -> None:
            nonlocal machine
            if machine is not None:
                self._forget_soon(machine, "is gone")
            elif path and port.has_joined:
                machine = self._joined(port, name, renew)
            else:
                self._report(f"{name}: {'a machine is there' if path else 'the machine is gone'}")

        def stranger(path: str) -> None:
            self._report(f"{name}: {path} connected at the same time as another and is not heard")

        port = DgramPort(sock, mtu=self._network.mtu, on_peer=changed, on_stranger=stranger)
        self._renewed[name] = port
        return port

    def _joined(self, port: DgramPort, name: str, renew: Renew) -> Machine:
        """The machine at this port has it to itself; another one waits for the next machine."""
        port.keep()
        (attachment,) = (found for kept, found in self._fixed if kept is port)
        self._fixed.remove((port, attachment))
        for other in self.machines:
            if isinstance(other.port, DgramPort) and not other.port.is_there():
                self._forget_soon(other, "is gone")
        self._count += 1
        machine = Machine(f"machine {self._count}", DGRAM)
        machine.port, machine.attachment = port, attachment
        attachment.name = machine.name
        self.machines.append(machine)
        self._report(f"{machine.name} connected to {name}")
        if len(self.machines) - len(self._gone) > MACHINES_MAX:
            self._forget_soon(machine, f"is turned away: {MACHINES_MAX} others are connected")
        try:
            self.add_datagrams(renew(), name, renew)
        except OSError as error:
            self._report(f"{name}: {error.strerror}; no other machine can come")
        return machine

    def _forget_soon(self, machine: Machine, why: str) -> None:
        """Its port is in use just now."""
        self._gone.setdefault(machine, why)
        self._network.visit_at(self, self._network.now)

    def handle_timeout(self, now: float) -> None:
        """The loop's visit: take those off that are gone."""
        gone, self._gone = self._gone, {}
        for machine, why in gone.items():
            if machine in self.machines:
                self._left(machine, why)

    def _handle_connect(self, listener: socket.socket, name: str, protocol: str) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # no descriptor is left
                self._network.rest(listener.fileno())
                return
            if len(self.machines) >= MACHINES_MAX:
                sock.close()
                self._report(f"{name}: {MACHINES_MAX} machines are connected; one more turned away")
                continue
            try:
                self.add(sock, name, protocol)
            except OSError as error:  # it took the last descriptor
                sock.close()
                self._report(f"{name}: {error.strerror}; a machine was turned away")

    def _left(self, machine: Machine, why: str) -> None:
        self._report(f"{machine.name} {why}")
        self._remove(machine)
        if not (self.machines or self._listeners or self._fixed):
            self._when_over()

    def _remove(self, machine: Machine) -> None:
        self.machines.remove(machine)
        if machine.attachment is not None:
            self._detach(machine.attachment)
        machine.port.close()

    # Another process

    @property
    def serves(self) -> bool:
        """Is anybody there, or can somebody come?"""
        return bool(self.machines or self._fixed or self._listeners)

    def carried(self, place: Callable[[int], int]) -> dict[str, Any]:
        """What a server in another process needs; `place` notes a descriptor for it.

        Whoever had it made may go on as well.
        """
        return {
            "count": self._count,
            "listeners": [
                {"sock": place(at.sock.fileno()), "name": at.name, "protocol": at.protocol}
                for at in self._listeners
            ],
            "machines": [
                {
                    "name": machine.name,
                    "protocol": machine.protocol,
                    "port": machine.port.carried(place),
                }
                for machine in self.machines
            ],
            "fixed": [
                {
                    "name": attachment.name,
                    "renews": self._renewed.get(attachment.name) is port,
                    "port": port.carried(place),
                }
                for port, attachment in self._fixed
            ],
        }

    def adopt(
        self, values: Mapping[str, Any], fds: Sequence[int], renew: Mapping[str, Renew]
    ) -> None:
        """Go on with what `carried` told, its descriptors being these. Nothing is sent by it.

        `renew`: of datagram sockets that any machine may join, as `add_datagrams` has it.

        Raises ValueError, LookupError or TypeError for what is none of `carried`'s, and OSError.
        """
        self._count = int(values["count"])
        for entry in values["machines"]:
            machine = Machine(str(entry["name"]), str(entry["protocol"]))
            sock = socket.socket(fileno=fds[entry["port"]["sock"]])
            machine.port = self._port(machine, sock, entry["port"].get("mac"))
            machine.port.resume(entry["port"], fds)
            self._attach(machine)
        for entry in values["fixed"]:
            sock = socket.socket(fileno=fds[entry["port"]["sock"]])
            name, only = str(entry["name"]), str(entry["port"]["only"])
            if entry["renews"]:
                port = self._shared_port(sock, name, renew[name])
            else:
                port = self._datagram_port(sock, name, only)
            port.resume(entry["port"], fds)
            self._fixed.append((port, self._network.attach(self._wrap(port), entry["name"])))
        for entry in values["listeners"]:
            sock = socket.socket(fileno=fds[entry["sock"]])
            self.listen(sock, str(entry["name"]), str(entry["protocol"]))

    def abandon(self) -> None:
        """Another process goes on: nothing more is done to machines and their memory."""
        self._abandoned = True
        for machine in self.machines:
            machine.port.abandon()
        for port, _ in self._fixed:
            port.abandon()

    def close(self) -> None:
        """Close every connection and every socket."""
        for listener in self._listeners:
            if not self._abandoned:
                self._network.unwatch(listener.sock.fileno())
            listener.sock.close()
        self._listeners.clear()
        for machine in list(self.machines):
            self._remove(machine)
        for port, attachment in self._fixed:
            self._detach(attachment)
            port.close()
        self._fixed.clear()

    def _detach(self, attachment: Attachment) -> None:
        if not self._abandoned:
            self._network.detach(attachment)
