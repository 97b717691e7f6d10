"""What a network leaves to the process that goes on in its place.

    {…what Network.hand_over gives…, "run": {"options": {…}, "sockets": 12, "device": 17, …}}

Descriptors are told by their places in the list that goes with it; the first `sockets` of them are
`Network.hand_over`'s. Behind them are those of a namespace's device (`will_of`), or of machines and
of the sockets where they connect (`will_of_machines`).

    exit    the network ends when something happens on it
    child   the process that the network is for, by pidfd: told to end when the network is

slirp.cli.successor reads it. Does not do: send it (slirp.control.heritage).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from nic.bess import BessPort
from nic.tap import TapPort
from slirp.network import Network

if TYPE_CHECKING:
    from slirp.cli.endpoint import Renewable
    from slirp.control.slirp4netns import ApiSocket
    from slirp.machines import Server

# Options that the successor has as well, as slirp.cli.early.Options calls them.
HANDED_ON: Final = (
    "control", "metrics", "verbose", "log_json", "tap_name", "mtu", "sandbox", "seccomp", "stats",
)  # fmt: skip

Will = tuple[Mapping[str, Any], Sequence[int]]  # values and descriptors


class _Making:
    """A will that is being written."""

    def __init__(
        self, network: Network, options: Mapping[str, Any], exit_fd: int | None, child: int | None
    ) -> None:
        self._values, fds = network.hand_over()
        self._fds = [*fds]
        self._entry: dict[str, Any] = {
            "options": {name: options[name] for name in HANDED_ON if name in options},
            "sockets": len(fds),
            "stderr": self.place(sys.stderr.fileno()),  # what is said goes on where it was said
            "exit": None if exit_fd is None else self.place(exit_fd),
            "child": None if child is None else self.place(child),
        }

    def place(self, fd: int) -> int:
        """A descriptor goes with it."""
        self._fds.append(fd)
        return len(self._fds) - 1

    def made(self, more: Mapping[str, Any]) -> Will:
        return {**self._values, "run": {**self._entry, **more}}, self._fds


def will_of(
    network: Network,
    port: TapPort | BessPort,
    options: Mapping[str, Any],
    *,
    follow: int | None,
    exit_fd: int | None = None,
    child: int | None = None,
    inode: int | None = None,
    api: ApiSocket | None = None,
) -> Will:
    """Of a namespace's network. `follow`: a process whose namespace's end is the network's too;
    `inode`: of the namespace's file, where its listening programs are looked at; `api`:
    slirp4netns's control socket."""
    making = _Making(network, options, exit_fd, child)
    return making.made(
        {
            "device": making.place(port.fileno()),
            "is_tap": isinstance(port, TapPort),
            "vnet": port.offload,
            "follow": follow,
            "inode": inode,
            "api": None if api is None else [api.path, making.place(api.fileno())],
        }
    )


def will_of_machines(
    network: Network,
    server: Server,
    options: Mapping[str, Any],
    places: Mapping[str, Renewable],
    *,
    exit_fd: int | None = None,
    child: int | None = None,
) -> Will:
    """Of a network of machines. `places`: of its sockets that have a path."""
    making = _Making(network, options, exit_fd, child)
    return making.made(
        {
            "machines": server.carried(making.place),
            "paths": {name: list(place.made) for name, place in places.items()},
        }
    )


def inode_of(pid: int | None) -> int | None:
    """Of the file of a process's network namespace."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino if pid else None
    except OSError:
        return None
