"""What a network remembers, taken out of its relays and put into those of its successor.

For a restart: leases, forwards, UDP mappings and who was where. A mapping's host port is bound
again, so that peers still reach the guest by it. A TCP connection cannot outlive its sockets; its
guest is told by a RST instead of waiting for an answer that nobody will give. The numbers of that
RST are the network's side of the connection; a guest that had not received everything answers with
a challenge ACK (RFC 5961 §3.2), which is reset by what it says.

`saved` makes plain values, `Restorer` takes them: at once what needs no guest; the rest when the
guest answers, who is asked for as soon as there is a port, or is seen later. It may have another
hardware address by then: a namespace's TAP is a new one.

Does not do: files (slirp.statefile), connections that live on (slirp.host.handover).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from slirp.address import addr_from_text, addr_to_text, mac_from_text, mac_to_text
from slirp.config import Config
from slirp.errors import ConfigError
from slirp.flow import ends_of
from slirp.forward import ForwardSpec, parse_forward
from slirp.host.forward import Forward
from slirp.ip.template import PROTOCOL_TCP
from slirp.services.dhcp import DhcpServer, Lease
from slirp.services.dhcpv6 import Dhcpv6Server
from slirp.services.dhcpv6 import Lease as Lease6
from slirp.tcp.segment import Emission
from slirp.wire.tcp import ACK, RST

if TYPE_CHECKING:
    from slirp.host.dispatch import Dispatcher
    from slirp.host.udp_mapping import Mapping as UdpMapping
    from slirp.ip.neighbours import Guest

HELD_AS: Final = "restored"  # in the statistics of what waits for guests
KEY_LENGTHS: Final = (12, 36)  # bytes of a flow's key: two addresses and two ports


Server: TypeAlias = DhcpServer | Dhcpv6Server


class Damaged(Exception):
    """The values are not as `saved` makes them."""


class SavedMapping(NamedTuple):
    """A UDP mapping that is to be opened again."""

    guest: bytes
    port: int
    local: tuple[str, int]
    to: tuple[bytes, int] | None


class SavedFlow(NamedTuple):
    """A TCP connection whose guest is to be told."""

    key: bytes
    guest: bytes
    seq: int
    ack: int


def saved(
    relays: Dispatcher, servers: Sequence[Server], forwards: Sequence[Forward], config: Config
) -> dict[str, Any]:
    """Everything that a restart would lose, as JSON has it."""
    now = relays.loop.now
    return {
        "saved_at": time.time(),
        "network": config.network,
        "config": config.plain(),
        "leases": [_lease(lease, now) for server in servers for lease in server.leases(now)],
        "forwards": [str(_spec(forward)) for forward in forwards],
        "udp": [_mapping(mapping) for mapping in relays.udp.mappings.values()],
        "tcp": [
            {
                "key": flow.key.hex(),
                "seq": flow.conn.send.max,
                "ack": flow.conn.receive.nxt,
            }
            for flow in relays.tcp.flows.values()
        ],
    }


def _lease(lease: Lease | Lease6, now: float) -> dict[str, Any]:
    left = lease.expires_at - now
    if isinstance(lease, Lease):
        client: dict[str, Any] = {"client_id": lease.client_id.hex()}
    else:
        client = {"duid": lease.duid.hex(), "iaid": lease.iaid}
    return {
        **client,
        "address": addr_to_text(lease.addr),
        "mac": mac_to_text(lease.mac),
        "hostname": lease.hostname.hex(),
        "left": left if left < float("inf") else None,  # seconds; null: for ever
    }


def _spec(forward: Forward) -> ForwardSpec:
    return ForwardSpec(forward.proto, forward.host, *forward.guest, forward.proxy, forward.source)


def _mapping(mapping: UdpMapping) -> dict[str, Any]:
    to = mapping.to_key
    return {
        "guest": addr_to_text(mapping.guest.addr),
        "port": mapping.port,
        "local": list(mapping.sock.getsockname()[:2]),
        "to": [addr_to_text(to[0]), to[1]] if to is not None else None,
    }


class Saved:
    """Saved values, found to be whole. Raises Damaged."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        try:
            self.network = str(body["network"])
            self.config: dict[str, Any] = dict(body["config"])
            self.passed = max(0.0, time.time() - float(body["saved_at"]))
            self.leases = [parse_lease(lease, self.passed) for lease in body["leases"]]
            self.forwards = [spec for text in body["forwards"] for spec in parse_forward(text)]
            self.mappings = [_parse_mapping(mapping) for mapping in body["udp"]]
            self.flows = [_parse_flow(flow) for flow in body["tcp"]]
        except (LookupError, TypeError, ValueError, ConfigError, OverflowError) as error:
            raise Damaged(f"is not as it was written: {error}") from None


def parse_lease(value: Any, passed: float) -> Lease | Lease6:
    """With the seconds that are left of it, `passed` since it was saved, for its end."""
    left = float("inf") if value["left"] is None else float(value["left"]) - passed
    addr, mac = addr_from_text(str(value["address"])), mac_from_text(str(value["mac"]))
    hostname = bytes.fromhex(value["hostname"])
    if "duid" in value:
        return Lease6(addr, mac, bytes.fromhex(value["duid"]), int(value["iaid"]), hostname, left)
    return Lease(addr, mac, bytes.fromhex(value["client_id"]), hostname, left)


def restore_lease(servers: Sequence[Server], lease: Lease | Lease6, now: float) -> bool:
    """Give a saved lease, its end counted from now, back to the server of its family."""
    lease = lease._replace(expires_at=now + lease.expires_at)
    for server in servers:
        if isinstance(server, DhcpServer) and isinstance(lease, Lease):
            return server.restore(lease, now)
        if isinstance(server, Dhcpv6Server) and isinstance(lease, Lease6):
            return server.restore(lease, now)
    return False


def _parse_mapping(value: Any) -> SavedMapping:
    local, to = value["local"], value["to"]
    return SavedMapping(
        addr_from_text(str(value["guest"])),
        _port(value["port"]),
        (addr_to_text(addr_from_text(str(local[0]))), _port(local[1])),
        None if to is None else (addr_from_text(str(to[0])), _port(to[1])),
    )


def _parse_flow(value: Any) -> SavedFlow:
    key = bytes.fromhex(value["key"])
    if len(key) not in KEY_LENGTHS:
        raise ValueError("a flow's key")
    guest, _ = ends_of(key)
    return SavedFlow(key, guest.addr, _word(value["seq"]), _word(value["ack"]))


def _port(value: Any) -> int:
    if type(value) is not int or not 0 < value < 65536:
        raise ValueError("a port")
    return value


def _word(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError("a sequence number")
    return value


class _Asked:
    """A guest is asked for: what waits for its answer (slirp.host.holding)."""

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer

    def deliver(self, guest: Guest, now: float) -> None:
        """It is there."""
        self._restorer.guest_seen(guest, now)

    def fail(self, now: float) -> None:
        """It is not; it may come later."""
        return


class Restorer:
    """Puts saved values into a network that has just begun."""

    def __init__(
        self,
        relays: Dispatcher,
        servers: Sequence[Server],
        found: Saved,
        open_forward: Callable[[ForwardSpec], object],
    ) -> None:
        self._relays = relays
        self._mappings = list(found.mappings)
        self._flows = list(found.flows)
        self.report: dict[str, Any] = {"leases": 0, "forwards": 0, "failed": []}
        now = relays.loop.now
        for lease in found.leases:
            self.report["leases"] += restore_lease(servers, lease, now)
        for spec in found.forwards:
            self._forward(spec, open_forward)
        self.report |= {"udp": len(self._mappings), "tcp_reset": len(self._flows)}

    def _forward(self, spec: ForwardSpec, open_forward: Callable[[ForwardSpec], object]) -> None:
        try:
            open_forward(spec)
            self.report["forwards"] += 1
        except (OSError, ConfigError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            self.report["failed"].append(f"forward {spec}: {why or error}")

    @property
    def waits(self) -> bool:
        """Is there still something for guests that were not seen yet?"""
        return bool(self._mappings or self._flows)

    def attached(self, now: float) -> None:
        """A port is there: ask for the guests. One that answers nobody is waited for."""
        addrs = {mapping.guest for mapping in self._mappings} | {flow.guest for flow in self._flows}
        for addr in addrs:
            guest = self._relays.stack.guests.get(addr)
            if guest is not None:
                self.guest_seen(guest, now)
            elif len(addr) in self._relays.stack.lengths:
                self._relays.holding.hold(addr, HELD_AS, _Asked(self), 0, now)

    def guest_seen(self, guest: Guest, now: float) -> None:
        """What was kept for this guest."""
        addr = guest.addr
        mine = [mapping for mapping in self._mappings if mapping.guest == addr]
        if mine:
            self._mappings = [mapping for mapping in self._mappings if mapping.guest != addr]
        for mapping in mine:
            self._relays.udp.restore(guest, mapping.port, mapping.local, mapping.to, now)
        if any(flow.guest == addr for flow in self._flows):
            for flow in self._flows:
                if flow.guest == addr:
                    self._reset(guest, flow)
            self._flows = [flow for flow in self._flows if flow.guest != addr]

    def _reset(self, guest: Guest, flow: SavedFlow) -> None:
        template = guest.family.answering(flow.key, PROTOCOL_TCP)
        emission = Emission(flow.seq, flow.ack, RST | ACK, 0, b"")
        guest.attachment.send((guest.ethernet, *template.tcp(emission, 0, 0)))
