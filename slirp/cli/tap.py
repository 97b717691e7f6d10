"""What `slirp run` and `slirp attach` share: a namespace's TAP device put on a network.

Everything here is small and is imported before the namespace is made; the network itself, which
takes longer to import, comes after, while the other process sets the namespace up.

Does not do: options; each command has its own.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final, NamedTuple

from nic.tap import TapPort, open_tap
from slirp.address import addr_to_text
from slirp.config import Config
from slirp.errors import ConfigError
from slirp.linux import netns

GUEST_HOST: Final = 100  # the guest's address, as an offset; slirp4netns's "recommended IP"
TAP_NAME_MAX: Final = netns.IFNAMSIZ - 1  # octets


class Addresses(NamedTuple):
    """Where the parties of a virtual network are."""

    prefix_len: int
    gateway: str
    dns: str
    guest: str


def addresses(config: Config) -> Addresses:
    """The usual ones: gateway .2, DNS .3, guest .100, or the last one of a smaller network."""
    prefix, own = config.prefix, (config.gateway_addr, config.dns_addr)
    guest = prefix.host(min(GUEST_HOST, prefix.size - 2))
    if guest in own:
        guest = config.first_lease_addr
    return Addresses(prefix.length, *map(addr_to_text, (*own, guest)))


def make_tap(interface: netns.Interface, configure: bool = True) -> int:
    """To be run inside the namespace: open the device and configure it."""
    fd, _ = open_tap(interface.name)
    if configure:
        netns.configure(interface)
    return fd


def check_tap_name(name: str) -> str:
    if not 0 < len(name.encode()) <= TAP_NAME_MAX or "/" in name or name in (".", ".."):
        raise ConfigError(f"{name!r}: a device's name has 1 to {TAP_NAME_MAX} octets and no slash")
    return name


def tap_port(fd: int, mtu: int, stack: ExitStack, vnet: bool = True) -> TapPort:
    """The device as a port, closed with `stack`."""
    port = TapPort(fd, mtu=mtu, vnet=vnet)
    stack.callback(port.close)
    return port
