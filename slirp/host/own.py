"""What a network serves beside DNS and DHCP, where asked for: TFTP, HTTP, NTP, guest forwards.

What is off is not there: a port without a service leads where any port of the gateway leads. What
serves files opens its folder once, here; an OSError for one that is not to be had names it.

Does not do: the services themselves.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from slirp.address import addr_from_text
from slirp.linux.beneath import Folder
from slirp.wire import http as wire_http

if TYPE_CHECKING:
    from slirp.config import Config
    from slirp.guestforward import GuestForward
    from slirp.host.attachment import Attachment
    from slirp.host.datagrams import TftpRelay
    from slirp.host.dispatch import Dispatcher
    from slirp.host.guestforward import GuestForwards
    from slirp.host.http import HttpRelay
    from slirp.host.loop import Loop
    from slirp.services.tftp import TftpServer
    from slirp.stack import Stack


class OwnServices:
    """Of one network; none of them is there before `open`."""

    def __init__(self, loop: Loop, stack: Stack, relays: Dispatcher) -> None:
        self._loop = loop
        self._stack = stack
        self._relays = relays
        self._folders: list[Folder] = []
        self._tftp: tuple[TftpServer, TftpRelay] | None = None
        self._http: HttpRelay | None = None
        self._guest_forwards: GuestForwards | None = None

    def open(self, config: Config) -> None:
        """What the configuration asks for. Raises OSError."""
        if config.tftp is not None:
            self._open_tftp(self._folder(config.tftp))
        if config.http is not None:
            self._open_http(self._folder(config.http))
        if config.ntp:
            from slirp.host.datagrams import serve_ntp

            serve_ntp(self._stack, time.time_ns)
        for spec in config.guest_forwards:
            self.open_guest_forward(spec)

    def _folder(self, path: str) -> Folder:
        folder = Folder(path)
        self._folders.append(folder)
        return folder

    def _open_tftp(self, folder: Folder) -> None:
        from slirp.host.datagrams import TftpRelay
        from slirp.services.tftp import TftpServer

        server = TftpServer(folder)
        self._tftp = server, TftpRelay(self._loop, self._stack, self._relays.holding, server)

    def _open_http(self, folder: Folder) -> None:
        from slirp.host.http import HttpRelay

        relays = self._relays
        relay = self._http = HttpRelay(self._loop, relays.tcp, relays.descriptors, folder)
        relays.descriptors.add(relay)
        for found in self._stack.inputs:
            relays.services[found.layer.nat.gateway, wire_http.PORT] = relay.accept

    def open_guest_forward(self, spec: GuestForward) -> None:
        """Lead a guest's connections to the host. Raises ConfigError."""
        if self._guest_forwards is None:
            from slirp.host.guestforward import GuestForwards

            relays = self._relays
            self._guest_forwards = GuestForwards(
                self._loop, relays.tcp, relays.sockets, relays.services
            )
        if spec.addr is not None:
            self._guest_forwards.open(spec, addr_from_text(spec.addr))
            return
        for found in self._stack.inputs:  # the gateway, in either family
            self._guest_forwards.open(spec, found.layer.nat.gateway)

    def stats(self) -> dict[str, Any]:
        """Counters, as JSON has them, of what is there."""
        found: dict[str, Any] = {}
        if self._tftp is not None:
            found["tftp"] = dict(self._tftp[0].stats)
        if self._http is not None:
            found["http"] = {"requests": self._http.requests, "octets": self._http.octets}
        if self._guest_forwards is not None:
            found["guest_forwards"] = {"refused": self._guest_forwards.refused}
        return found

    def drop_port(self, attachment: Attachment) -> None:
        """The port is gone."""
        if self._tftp is not None:
            self._tftp[1].drop_port(attachment)
        if self._http is not None:
            self._http.drop_port(attachment)

    def close(self) -> None:
        """End what is there."""
        if self._tftp is not None:
            self._tftp[1].close()
        if self._http is not None:
            self._http.close()
        if self._guest_forwards is not None:
            self._guest_forwards.close()
        for folder in self._folders:
            folder.close()
        self._folders.clear()
