"""What a network of a namespace leaves to the process that goes on in its place.

    {…what Network.hand_over gives…, "run": {"options": {…}, "device": 17, "exit": null, …}}

`will_of` makes it; slirp.cli.successor reads it. Numbers are places in the list of descriptors.

Does not do: send it (slirp.control.heritage).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nic.bess import BessPort
from nic.tap import TapPort
from slirp.network import Network

# Options that the successor has as well, as slirp.cli.early.Options calls them.
HANDED_ON: Final = (
    "control", "metrics", "verbose", "log_json", "tap_name", "mtu", "sandbox", "seccomp", "stats",
)  # fmt: skip


def will_of(
    network: Network,
    port: TapPort | BessPort,
    options: Mapping[str, Any],
    *,
    follow: int | None,
    exit_fd: int | None = None,
) -> tuple[Mapping[str, Any], Sequence[int]]:
    """Values and descriptors. `follow`: a process whose namespace's end is the network's too."""
    values, fds = network.hand_over()
    fds = [*fds, port.fileno(), sys.stderr.fileno()]
    entry: dict[str, Any] = {
        "options": {name: options[name] for name in HANDED_ON},
        "device": len(fds) - 2,
        "stderr": len(fds) - 1,  # what is said goes on where it was said
        "is_tap": isinstance(port, TapPort),
        "vnet": port.offload,
        "follow": follow,
        "exit": None,
    }
    if exit_fd is not None:
        entry["exit"] = len(fds)
        fds.append(exit_fd)
    return {**values, "run": entry}, fds
