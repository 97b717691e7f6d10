"""A running network's sockets and numbers, from one process to its successor.

`given` lists what a network is made of: plain values, and descriptors that they name by their place
in a list. Nothing is changed by it: the network may go on as if it had not been asked. `Taken`
puts the same into a network of another process: guests, leases, forwards, UDP mappings and TCP
flows, whose bytes are where they always were, in the kernel's queues of the host's sockets. Nothing
is read or written by it either, so that until the first turn there is a way back.

Not carried: connections to the network's own services (DNS over TCP, files over HTTP) and those
that this process copies (PROXY, commands), which are reset when the guest speaks; answers of the
host's resolvers and echo replies that are under way, which the guest asks for again; connections
that wait for a guest; who wrote to a UDP forward, until they write again; frames of the network's
own that wait for room at a port, which are lost as on a wire.

Does not do: move descriptors (slirp.control.heritage), the port (whose it is knows how).
"""

from __future__ import annotations

import base64
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from slirp.address import addr_from_text, addr_to_text, mac_from_text, mac_to_text
from slirp.host.state import Damaged, Server, parse_lease, restore_lease, saved
from slirp.services.asked import Carried
from slirp.tcp.carry import carried, resumed

if TYPE_CHECKING:
    from slirp.config import Config
    from slirp.host.attachment import Attachment
    from slirp.host.dispatch import Dispatcher
    from slirp.host.forward import Forwards
    from slirp.host.tcp_flow import TcpFlow

_FLAGS: Final = ("connecting", "drained", "finishing", "incoming", "to_the_end")


class Given(NamedTuple):
    """Values, and the descriptors that they speak of by their index."""

    values: dict[str, Any]
    fds: list[int]


def given(
    relays: Dispatcher, servers: Sequence[Server], forwards: Forwards, config: Config
) -> Given:
    """All of a network that can go on elsewhere."""
    fds: list[int] = []

    def place(sock: socket.socket) -> int:
        fds.append(sock.fileno())
        return len(fds) - 1

    values = saved(relays, servers, (), config)
    values["guests"] = [
        {
            "address": addr_to_text(guest.addr),
            "mac": mac_to_text(guest.mac),
            "port": guest.attachment.name,
        }
        for guest in relays.stack.guests
    ]
    values["names"] = [
        {"port": attachment.name, "mac": mac.hex(), "address": addr.hex(), "known": known}
        for attachment in relays.attachments
        for mac, addr, known in relays.dns.asked.carried(attachment)
    ]
    values["forwards"] = [
        {**forward._asdict(), "fd": place(sock)} for forward, sock in forwards.sockets()
    ]
    for entry, mapping in zip(values["udp"], relays.udp.mappings.values(), strict=True):
        entry |= {"fd": place(mapping.sock), "number": mapping.number}
        entry["opened_at"] = mapping.opened_at
    values["opened"] = {"tcp": relays.tcp.opened, "udp": relays.udp.opened}
    values["tcp"] = [
        {**_flow(flow), "fd": place(flow.sock)}
        for flow in relays.tcp.flows.values()
        if flow.sock is not None and _can_go(flow)
    ]
    return Given(values, fds)


def _can_go(flow: TcpFlow) -> bool:
    """Is its host side outside of this process? Pairs, whose other end is here, have no name."""
    assert flow.sock is not None
    if flow.sock.family != socket.AF_UNIX:
        return True
    try:
        return bool(flow.sock.getsockname() or flow.sock.getpeername())
    except OSError:  # the peer has gone
        return False


def _flow(flow: TcpFlow) -> dict[str, Any]:
    spill = b"".join(flow.spill) if flow.spill is not None else None
    return {
        "key": flow.key.hex(),
        "conn": carried(flow.conn),
        "owned": flow.owned,
        "peek_at": flow.peek_at,
        "broken_until": flow.broken_until,
        "opened_at": flow.opened_at,
        "number": flow.number,
        "spill": base64.b64encode(spill).decode() if spill is not None else None,
        **{name: getattr(flow, name) for name in _FLAGS},
    }


class Taken:
    """What was given, for a network whose ports are attached, under the names that they had.

    Raises Damaged.
    """

    def __init__(self, values: Mapping[str, Any], socks: Mapping[int, socket.socket]) -> None:
        self._values = values
        self._socks = socks
        self._ports: dict[str, Attachment] = {}
        self.report = {"tcp": 0, "udp": 0, "forwards": 0, "guests": 0}

    def enter(
        self,
        relays: Dispatcher,
        servers: Sequence[Server],
        forwards: Forwards,
    ) -> None:
        """Take its place in these relays."""
        now = relays.loop.now
        self._ports = {attachment.name: attachment for attachment in relays.attachments}
        try:
            for value in self._values["leases"]:
                restore_lease(servers, parse_lease(value, 0.0), now)
            for guest in self._values["guests"]:
                self._learn(relays, self._ports[guest["port"]], guest, now)
            for entry in self._values["names"]:
                self._name(relays, entry)
            for entry in self._values["forwards"]:
                forwards.adopt(entry, self._socks[entry["fd"]])
                self.report["forwards"] += 1
            for entry in self._values["udp"]:
                self._mapping(relays, entry, now)
            for entry in self._values["tcp"]:
                self._flow(relays, entry, now)
            # So that an id never means another flow than it did.
            relays.tcp.opened = int(self._values["opened"]["tcp"])
            relays.udp.opened = int(self._values["opened"]["udp"])
        except (LookupError, TypeError, ValueError) as error:
            raise Damaged(f"{type(error).__name__}: {error}") from None

    def _learn(self, relays: Dispatcher, attachment: Attachment, guest: Any, now: float) -> None:
        addr = addr_from_text(guest["address"])
        family = relays.stack.layer(addr).family
        link = relays.stack.link
        mac = mac_from_text(guest["mac"])
        found = link.guests.learn(family, addr, mac, attachment, now)
        relays.stack.switch.learn(mac, attachment)
        self.report["guests"] += found is not None

    def _name(self, relays: Dispatcher, entry: Any) -> None:
        known = tuple((float(since), str(name)) for since, name in entry["known"])
        mac, addr = bytes.fromhex(entry["mac"]), bytes.fromhex(entry["address"])
        relays.dns.asked.resume(self._ports[entry["port"]], Carried(mac, addr, known))

    def _mapping(self, relays: Dispatcher, entry: Any, now: float) -> None:
        guest, sock = relays.guest(addr_from_text(entry["guest"])), self._socks[entry["fd"]]
        to = entry["to"]
        if guest is None:
            sock.close()
            return
        target = None if to is None else (addr_from_text(to[0]), int(to[1]))
        mapping = relays.udp.adopt(guest, int(entry["port"]), sock, target, now)
        if mapping is not None:
            mapping.opened_at, mapping.number = float(entry["opened_at"]), int(entry["number"])
            self.report["udp"] += 1

    def _flow(self, relays: Dispatcher, entry: Any, now: float) -> None:
        key = bytes.fromhex(entry["key"])
        guest, sock = relays.guest(key[: (len(key) - 4) // 2]), self._socks[entry["fd"]]
        if guest is None:
            sock.close()
            return
        flow = relays.tcp.adopt(key, resumed(entry["conn"], now), sock, guest, now)
        if flow is None:
            return
        flow.owned, flow.peek_at = int(entry["owned"]), int(entry["peek_at"])
        flow.broken_until = entry["broken_until"]
        flow.opened_at, flow.number = float(entry["opened_at"]), int(entry["number"])
        for name in _FLAGS:
            setattr(flow, name, bool(entry[name]))
        if entry["spill"] is not None:
            spill = base64.b64decode(entry["spill"])
            flow.spill, flow.spilled = deque([memoryview(spill)]), len(spill)
        self.report["tcp"] += 1
