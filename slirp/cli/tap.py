"""What `slirp run` and `slirp attach` share: a namespace's TAP device put on a network.

What is imported here is small; the network itself, which takes longer to import, comes after, while
another process sets the namespace up.

Does not do: options; each command has its own.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from nic.tun import open_tap
from slirp.address import addr_to_text
from slirp.config import Config
from slirp.linux import netns

if TYPE_CHECKING:
    from nic.tap import TapPort

GUEST_HOST: Final = 100  # the guest's address, as an offset; slirp4netns's "recommended IP"


class Addresses(NamedTuple):
    """Where the parties of a virtual network are, in one family."""

    prefix_len: int
    gateway: str
    dns: str
    guest: str


class Places(NamedTuple):
    """The same in each family that the network has."""

    ipv4: Addresses | None
    ipv6: Addresses | None

    @property
    def each(self) -> list[Addresses]:
        return [where for where in self if where is not None]

    @property
    def guest(self) -> str:
        """The address that forwards to the guest lead to, where none is named."""
        return self.each[0].guest

    def interface(self, name: str, mtu: int, mac: str | None = None) -> netns.Interface:
        """The guest's end."""
        four, six = self
        made = netns.Interface(name, mtu=mtu, mac=mac)
        if four is not None:
            made.address, made.prefix_len, made.gateway = four.guest, four.prefix_len, four.gateway
        if six is not None:
            made.address6, made.prefix6_len = six.guest, six.prefix_len
            made.gateway6 = six.gateway
        return made


def places(config: Config) -> Places:
    """Where everybody is."""
    return Places(
        addresses(config) if config.has_ipv4 else None,
        addresses6(config) if config.has_ipv6 else None,
    )


def addresses(config: Config) -> Addresses:
    """The usual ones: gateway .2, DNS .3, guest .100, or the last one of a smaller network."""
    prefix, own = config.prefix, (config.gateway_addr, config.dns_addr)
    guest = prefix.host(min(GUEST_HOST, prefix.size - 2))
    if guest in own:
        guest = config.first_lease_addr
    return Addresses(prefix.length, *map(addr_to_text, (*own, guest)))


def addresses6(config: Config) -> Addresses:
    """The usual ones of IPv6: gateway ::2, DNS ::3, guest ::100."""
    own = (config.gateway6_addr, config.dns6_addr, config.first_guest6_addr)
    return Addresses(config.prefix6.length, *map(addr_to_text, own))


def make_tap(interface: netns.Interface) -> int:
    """To be run inside the namespace: open the device and configure it."""
    fd, _ = open_tap(interface.name)
    netns.configure(interface)
    return fd


def tap_port(fd: int, mtu: int, stack: ExitStack, vnet: bool = True) -> TapPort:
    """The device as a port, closed with `stack`."""
    from nic.tap import TapPort

    port = TapPort(fd, mtu=mtu, vnet=vnet)
    stack.callback(port.close)
    return port
