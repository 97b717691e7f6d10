"""What the ends of a flow are called, for whoever looks at it.

    guest_name      what the guest calls itself with DHCP. An address that it made itself (IPv6) has
                    the name of a lease that the same machine has at the same port
    remote_name     the name by which the guest had asked for the address (slirp.services.asked);
                    else, of the gateway's address, `host.internal` where it leads to the host, or
                    `gateway.internal` where the network itself answers; else the name by which the
                    network knows the address, as a PTR query has it

Names of guests and of resolvers are not trusted: what is told here is a label of letters, digits,
`-` and `_`, or a name with its other octets escaped (RFC 1035 §5.1).

Does not do: ask anybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slirp.flow import ends_of

if TYPE_CHECKING:
    from slirp.config import Config
    from slirp.host.dispatch import Dispatcher
    from slirp.host.tcp_flow import TcpFlow
    from slirp.host.udp_mapping import Mapping
    from slirp.ip.neighbours import Guest
    from slirp.services.zones import LeasedNames, Zones

GATEWAY: Final = "gateway.internal"
HOST: Final = "host.internal"


class Naming:
    """Of one network."""

    def __init__(
        self, relays: Dispatcher, zones: Zones, leased: LeasedNames, config: Config
    ) -> None:
        self._relays = relays
        self._zones = zones
        self._leased = leased
        self._gateways = config.gateway_addrs
        self._reaches_host = config.host_loopback

    def of_tcp(self, flow: TcpFlow) -> dict[str, str | None]:
        """Of a connection."""
        _, remote = ends_of(flow.key)
        is_ours = not self._reaches_host or (
            not flow.incoming and (remote.addr, remote.port) in self._relays.services
        )
        return {
            "guest_name": self._guest(flow.guest),
            "remote_name": self._remote(flow.guest, remote.addr, flow.opened_at, is_ours),
        }

    def of_udp(self, mapping: Mapping) -> dict[str, str | None]:
        """Of a mapping: `remote` is whom the guest wrote to last."""
        name = None
        if mapping.to_key is not None:
            addr = mapping.layer.nat.inward(mapping.to_key[0])
            now = self._relays.loop.now
            name = self._remote(mapping.guest, addr, now, not self._reaches_host)
        return {"guest_name": self._guest(mapping.guest), "remote_name": name}

    def _guest(self, guest: Guest) -> str | None:
        now, guests = self._relays.loop.now, self._relays.stack.guests
        name = self._leased.called(guest.addr, now)
        for addr in self._leased.named_addresses(guest.mac, now) if name is None else ():
            other = guests.get(addr)
            if other is not None and other.attachment is guest.attachment:
                return self._leased.called(addr, now)
        return name

    def _remote(self, guest: Guest, addr: bytes, at: float, is_ours: bool) -> str | None:
        asked = self._relays.dns.asked.name(guest.attachment, guest.mac, addr, at)
        if asked is not None:
            return asked
        if addr in self._gateways:
            return GATEWAY if is_ours else HOST
        return self._zones.name_of(addr, self._relays.loop.now)
