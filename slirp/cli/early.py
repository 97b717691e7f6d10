"""What comes before everything else when a namespace gets a network: its options and its TAP.

Callers of slirp4netns start their DHCP client beside it and do not wait; their device has to be
there soon. Python itself takes 10 ms to start; importing the network takes 40 more. So a command
checks its options and sends a process for the device first (`send_for_tap`), and imports the rest
while that process is in the namespace. What is imported until then is kept small: no `typing`,
whose import takes 10 ms (annotations need it for the type checker only), no `re`, `socket`,
`contextlib`. tests/slirp/cli/test_early.py has the list.

    exec ──→ options ──→ fork ────────────→ import slirp.network ──→ Errand.fd() ──→ ready
                          └─→ setns, TUNSETIFF, addresses ────────────┘

Does not do: say what is wrong with an option; each command has its own words for that.
"""

from __future__ import annotations

from nic.tun import open_tap
from slirp.errors import ConfigError
from slirp.linux import netns

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any, Final

TARGET_TYPES: Final = ("netns", "bess")
NETNS_TYPES: Final = ("pid", "path", "tapfd")
TAP_NAME_MAX: Final = netns.IFNAMSIZ - 1  # bytes


class Options:
    """What the command lines of a network for a namespace say."""

    target: str  # a process id, the path of a namespace or socket, or a descriptor
    tap_name: str = "tap0"
    configure: bool = False
    exit_fd: int | None = None
    ready_fd: int | None = None
    mtu: int = 1500
    ipv6: bool = False
    ipv6_only: bool = False
    network6: str = "fd00::/64"
    api_socket: str | None = None
    cidr: str = "10.0.2.0/24"
    disable_host_loopback: bool = False
    netns_type: str = "pid"
    userns_path: str | None = None
    sandbox: bool = False
    seccomp: bool = False
    outbound_addr: str | None = None
    outbound_addr6: str | None = None
    disable_dns: bool = False
    macaddress: str | None = None
    target_type: str = "netns"
    follow: bool = False  # end with the namespace's last process
    forwards: Sequence[str] = ()
    capture: Path | None = None
    split: bool = False
    stats: bool = False
    control: str | None = None
    metrics: str | None = None
    restore: str | None = None
    verbose: int = 0
    log_json: bool = False
    fields: Mapping[str, Any] = {}  # of a Config, beyond these
    network: Namespace | None = None  # of slirp.cli.service_options, --restrict and --port-share

    def __init__(self, **values: Any) -> None:
        """By the names above; `target` is needed."""
        unknown = values.keys() - self.names()
        if unknown or "target" not in values:
            raise TypeError(f"options: {unknown or 'target is missing'}")
        vars(self).update(values)

    def families(self) -> dict[str, Any]:
        """The fields of a slirp.Config that say what the guest's end is like."""
        return {
            "network": self.cidr,
            "network6": self.network6,
            "mtu": self.mtu,
            "ipv4_only": not (self.ipv6 or self.ipv6_only),
            "ipv6_only": self.ipv6_only,
        }

    @classmethod
    def names(cls) -> set[str]:
        return set(cls.__annotations__)


def send_for_tap(options: Options) -> netns.Errand | None:
    """The process that makes the device in the namespace; None where there is none to make.

    Raises ConfigError.
    """
    if options.target_type == "bess" or options.netns_type == "tapfd":
        return None
    name = options.tap_name
    if not 0 < len(name.encode()) <= TAP_NAME_MAX or "/" in name or name in (".", ".."):
        raise ConfigError(f"{name!r}: a device's name has 1 to {TAP_NAME_MAX} bytes and no slash")
    target = (
        netns.Target.of_pid(int(options.target), options.userns_path)
        if options.netns_type == "pid"
        else netns.Target(options.target, options.userns_path)
    )
    return netns.Errand(target, lambda: _make_tap(options))


def _make_tap(options: Options) -> int:
    """In the namespace."""
    fd, _ = open_tap(options.tap_name)
    if options.configure:  # it is there: what is imported from here on keeps nobody waiting
        from slirp.cli import tap
        from slirp.config import Config

        where = tap.places(Config(**{**options.families(), **options.fields}))
        interface = where.interface(options.tap_name, options.mtu, options.macaddress)
        netns.configure(interface)
    return fd
