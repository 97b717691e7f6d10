"""What a network serves at its gateway beside DNS and DHCP, where asked for: TFTP, HTTP and NTP.

What is off is not there: a port without a service leads where any port of the gateway leads. What
serves files opens its folder once, here; an OSError for one that is not to be had names it.

Does not do: the services themselves.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from slirp.linux.beneath import Folder
from slirp.wire import http as wire_http

if TYPE_CHECKING:
    from slirp.config import Config
    from slirp.host.attachment import Attachment
    from slirp.host.datagrams import TftpRelay
    from slirp.host.dispatch import Dispatcher
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

    def open(self, config: Config) -> None:
        """What the configuration asks for. Raises OSError."""
        if config.tftp is not None:
            self._open_tftp(self._folder(config.tftp))
        if config.http is not None:
            self._open_http(self._folder(config.http))
        if config.ntp:
            from slirp.host.datagrams import serve_ntp

            serve_ntp(self._stack, time.time_ns)

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

    def stats(self) -> dict[str, Any]:
        """Counters, as JSON has them, of what is there."""
        found: dict[str, Any] = {}
        if self._tftp is not None:
            found["tftp"] = dict(self._tftp[0].stats)
        if self._http is not None:
            found["http"] = {"requests": self._http.requests, "octets": self._http.octets}
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
        for folder in self._folders:
            folder.close()
        self._folders.clear()
