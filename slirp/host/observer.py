"""A running network, looked at and acted upon from outside: guests, flows, events, a capture.

Everything that a control socket, a metrics reader or a Python program asks of a network and that is
not its traffic's way. It reads the relays' tables when it is asked, hangs itself into them while
somebody listens to events, and puts a tap around each port while a capture runs. When nothing of
that is on, nothing of it is on a packet's way.

Does not do: JSON, sockets (slirp.control).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from slirp.address import addr_to_text, mac_to_text
from slirp.errors import ConfigError
from slirp.events import Events
from slirp.host.listing import describe_guest, describe_tcp, describe_udp

if TYPE_CHECKING:
    from slirp.host.attachment import Attachment
    from slirp.host.dispatch import Dispatcher
    from slirp.host.naming import Naming
    from slirp.host.state import Restorer
    from slirp.host.tcp_flow import TcpFlow
    from slirp.host.udp_mapping import Mapping
    from slirp.ip.neighbours import Guest
    from slirp.services.dhcp import DhcpServer, Lease
    from slirp.services.dhcpv6 import Dhcpv6Server
    from slirp.services.dhcpv6 import Lease as Lease6
    from slirp.sight.capture import Capture
    from slirp.sight.selection import Selection


class Observer:
    """What stands beside one network's relays."""

    def __init__(
        self, relays: Dispatcher, dhcp: Sequence[DhcpServer | Dhcpv6Server], naming: Naming
    ) -> None:
        self._relays = relays
        self._dhcp = dhcp
        self._naming = naming
        self.events = Events(lambda: relays.loop.now, self._listen)
        self._capture: tuple[Selection, Capture] | None = None
        self._restorer: Restorer | None = None

    # Guests and flows

    def guests(self) -> list[dict[str, Any]]:
        """Addresses on the virtual wire, with their leases."""
        now = self._relays.loop.now
        leases: dict[bytes, Lease | Lease6] = {}
        for server in self._dhcp:
            leases |= {lease.addr: lease for lease in server.leases(now)}
        found = []
        for guest in self._relays.stack.guests:
            lease = leases.get(guest.addr)
            described = describe_guest(guest, now)
            described["hostname"] = _hostname(lease) if lease else None
            described["lease_expires_in"] = _seconds(lease.expires_at - now) if lease else None
            found.append(described)
        return found

    def flows(self) -> Iterator[dict[str, Any]]:
        """TCP flows and UDP mappings, one at a time: they may be many."""
        now = self._relays.loop.now
        for flow in list(self._relays.tcp.flows.values()):
            yield describe_tcp(flow, now) | self._naming.of_tcp(flow)
        for mapping in list(self._relays.udp.mappings.values()):
            yield describe_udp(mapping, now) | self._naming.of_udp(mapping)

    def kill(self, name: str) -> bool:
        """End a flow: both ends of a TCP connection are reset. False: there is none so called."""
        kind, number = name[:1], name[1:]
        if not (number.isascii() and number.isdecimal() and len(number) < 20):
            return False
        if kind == "t":
            for flow in self._relays.tcp.flows.values():
                if flow.number == int(number):
                    self._relays.tcp.displace(flow, self._relays.loop.now)
                    return True
        elif kind == "u":
            for mapping in self._relays.udp.mappings.values():
                if mapping.number == int(number):
                    self._relays.udp.remove(mapping)
                    return True
        return False

    def is_own_socket(self, addr: str, port: int) -> bool:
        """Is this the host's end of a guest's TCP connection?"""
        for flow in self._relays.tcp.flows.values():
            try:
                name = flow.sock.getsockname() if flow.sock is not None else None
            except OSError:
                continue
            if isinstance(name, tuple) and name[:2] == (addr, port):
                return True
        return False

    # Events

    def _listen(self, on: bool) -> None:
        """Somebody listens now, or nobody does any more."""
        relays = self._relays
        relays.tcp.on_flow = self._tell_tcp if on else None
        relays.udp.on_mapping = self._tell_udp if on else None
        self._hang()
        for server in self._dhcp:
            server.on_lease = self._tell_lease if on else None

    def _hang(self) -> None:
        """Be told of guests while there is somebody to tell."""
        relays = self._relays
        wanted = bool(self.events) or self._restorer is not None
        relays.stack.link.on_guest = self._guest_seen if wanted else relays.holding.guest_seen

    def _tell_tcp(self, kind: str, flow: TcpFlow) -> None:
        described = describe_tcp(flow, self._relays.loop.now)
        self.events.tell(kind, described | self._naming.of_tcp(flow))

    def _tell_udp(self, kind: str, mapping: Mapping) -> None:
        described = describe_udp(mapping, self._relays.loop.now)
        self.events.tell(kind, described | self._naming.of_udp(mapping))

    def _guest_seen(self, guest: Guest, now: float) -> None:
        self._relays.holding.guest_seen(guest, now)
        if self._restorer is not None:
            self._restorer.guest_seen(guest, now)
            self._is_restored()
        told = describe_guest(guest, now)
        self.events.tell("guest-seen", {key: told[key] for key in ("address", "mac", "port")})

    def _tell_lease(self, kind: str, lease: Lease | Lease6) -> None:
        self.events.tell(
            kind,
            {
                "address": addr_to_text(lease.addr),
                "mac": mac_to_text(lease.mac),
                "hostname": _hostname(lease),
            },
        )

    # Ports

    def attached(self, attachment: Attachment) -> None:
        """A port came onto the network."""
        if self._capture is not None:
            attachment.port = self._capture[1].port(attachment.port)
        if self._restorer is not None:
            self._restorer.attached(self._relays.loop.now)
            self._is_restored()
        if self.events:
            self.events.tell("port-attached", {"port": attachment.name})

    def detached(self, attachment: Attachment) -> None:
        """It has left."""
        if self.events:
            self.events.tell("port-detached", {"port": attachment.name})

    # State

    def restore(self, restorer: Restorer) -> None:
        """Have saved state take its place as guests become reachable."""
        self._restorer = restorer
        self._hang()
        if self._relays.attachments:
            restorer.attached(self._relays.loop.now)
        self._is_restored()

    def _is_restored(self) -> None:
        if self._restorer is not None and not self._restorer.waits:
            self._restorer = None
            self._hang()

    # The capture

    def start_capture(
        self,
        path: str | os.PathLike[str],
        *,
        filter: str,
        snaplen: int | None,
        files: int,
        file_size: int | None,
    ) -> dict[str, Any]:
        """Write what passes every port. Raises ConfigError, or OSError with the file's name."""
        if self._capture is not None:
            raise ConfigError("capture: one is running already; stop it first", "capture")
        from pathlib import Path

        from slirp.sight.capture import Capture
        from slirp.sight.selection import FILE_SIZE, SNAPLEN_MAX, Selection

        selection = Selection(
            Path(path),
            time.time_ns,
            filter=filter,
            snaplen=SNAPLEN_MAX if snaplen is None else snaplen,
            files=files,
            file_size=FILE_SIZE if file_size is None else file_size,
        )
        capture = Capture(selection)
        self._capture = selection, capture
        selection.on_failure = lambda: self.events.tell("capture-stopped", selection.describe())
        for attachment in self._relays.attachments:
            attachment.port = capture.port(attachment.port)
        described = selection.describe()
        self.events.tell("capture-started", described)
        return described

    def capture(self) -> dict[str, Any] | None:
        """The capture that runs, what it wrote stored; None: there is none."""
        if self._capture is None:
            return None
        self._capture[0].flush()
        return self._capture[0].describe()

    def stop_capture(self) -> dict[str, Any] | None:
        """Take the taps off and close the file; None: there was no capture."""
        if self._capture is None:
            return None
        from slirp.sight.capture import CapturePort

        (selection, capture), self._capture = self._capture, None
        for attachment in self._relays.attachments:
            if isinstance(attachment.port, CapturePort) and attachment.port.belongs_to(capture):
                attachment.port = attachment.port.inner
        capture.end()  # whoever holds a tap still passes through it
        selection.close()
        described = selection.describe()
        self.events.tell("capture-stopped", described)
        return described


def _hostname(lease: Lease | Lease6) -> str:
    return lease.hostname.decode("ascii", "replace")


def _seconds(left: float) -> float | None:
    """For JSON, which knows no infinity."""
    return round(left, 1) if left < float("inf") else None
