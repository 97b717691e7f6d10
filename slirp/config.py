"""What a virtual network is to be: one frozen value, checked once, that everything is built from.

    Config("10.0.5.0/24", mtu=9000)
    Config(restrict=True).replace(dns_enabled=False)

A field holds what was given; None leaves the choice to us, and `gateway_addr`, `dns_addr` and
`first_lease_addr` say what became of it. Library, commands and control sockets build the same
object, so that one place knows the defaults and one place refuses what cannot work: a ConfigError
whose text begins with the field's name.

Addresses are text in the fields, as people write them, and bytes in what is derived. `Fields` gives
the same names to whoever passes keywords on; tests/slirp/test_config.py keeps the two in step.

Does not do: read files or command lines, look anything up on the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypedDict, Unpack

from slirp.address import Prefix, addr_from_text, mac_from_text
from slirp.errors import ConfigError

NETWORK: Final = "10.0.2.0/24"
MTU: Final = 1500  # bytes of an IP packet
MTU_MIN: Final = 68  # bytes, RFC 791 §3.2
MTU_MAX: Final = 65521  # bytes: 65,535 with the Ethernet header
LENGTH_MAX: Final = 30  # bits of the prefix: the gateway and one guest
GATEWAY_HOST: Final = 2  # offsets from the network's address, as users of slirp know them
DNS_HOST: Final = 3
FIRST_LEASE: Final = 15
DNS_PORT: Final = 53
LABEL_MAX: Final = 63  # bytes, RFC 1035 §2.3.4
NAME_MAX: Final = 253  # bytes of a name in text
PORT_SHARE: Final = 0.5
RESOLV_CONF: Final = "/etc/resolv.conf"

_UNUSABLE: Final = (  # networks that no host's kernel routes to
    (Prefix(bytes(4), 8), "is “this network” (RFC 1122 §3.2.1.3)"),
    (Prefix(bytes((127, 0, 0, 0)), 8), "is every host's own loopback"),
    (Prefix(bytes((224, 0, 0, 0)), 4), "is multicast"),
    (Prefix(bytes((240, 0, 0, 0)), 4), "is reserved"),
)


class Resolver(NamedTuple):
    """Where to ask for names."""

    address: str  # a literal of either family, with %INTERFACE where it needs one
    port: int = DNS_PORT

    @classmethod
    def from_text(cls, text: str) -> Resolver:
        """From ADDR, ADDR:PORT, [ADDR]:PORT or ADDR#PORT; ValueError where it is none."""
        address, port = _split_port(text)
        try:
            addr_from_text(address.partition("%")[0])
        except ValueError:
            raise ValueError(f"{text}: a resolver is given by its address") from None
        if not port:
            return cls(address)
        if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise ValueError(f"{text!r}: a port is a number from 1 to 65535")
        return cls(address, int(port))

    def __str__(self) -> str:
        if self.port == DNS_PORT:
            return self.address
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else ":".join((self.address, str(self.port)))
        )


def _split_port(text: str) -> tuple[str, str]:
    """An address and the port behind it; a port that is announced must be there."""
    if "#" in text:
        address, _, port = text.partition("#")
        return address, port or "missing"
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r}: write [ADDR]:PORT")
        return address, (rest[1:] or "missing") if rest else ""
    if text.count(":") == 1:
        address, _, port = text.partition(":")
        return address, port or "missing"
    return text, ""


class Fields(TypedDict, total=False):
    """The fields of a Config as keywords."""

    network: str
    gateway: str | None
    dns: str | None
    first_lease: str | None
    mtu: int
    mac: str | None
    host_loopback: bool
    restrict: bool
    isolate: bool
    outbound_addr: str | None
    dns_enabled: bool
    dhcp_enabled: bool
    resolv_conf: str
    resolvers: Sequence[str | Resolver] | None
    names: Mapping[str, Sequence[str]]
    hostname: str
    domain: str
    search: Iterable[str]
    static_leases: Mapping[str, str]
    port_share: float


class _Values(NamedTuple):
    network: str = NETWORK  # IPv4 prefix
    gateway: str | None = None  # .2 of it
    dns: str | None = None  # .3 of it; the gateway's in a /30, which has no more addresses
    first_lease: str | None = None  # .15, or the first that is free in a network without it
    mtu: int = MTU  # bytes of an IP packet; told to guests
    mac: str | None = None  # the gateway's; 52:55 and its address
    host_loopback: bool = True  # the gateway's address leads to the host's 127.0.0.1
    restrict: bool = False  # guests reach the network's own services and each other only
    isolate: bool = False  # guests do not reach each other
    outbound_addr: str | None = None  # the host's address that connections come from
    dns_enabled: bool = True
    dhcp_enabled: bool = True
    resolv_conf: str = RESOLV_CONF  # where the host's resolvers are named
    resolvers: tuple[Resolver, ...] | None = None  # asked instead of those; empty: nobody
    names: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # further DNS names
    hostname: str = ""  # told to guests by DHCP
    domain: str = ""
    search: tuple[str, ...] = ()
    static_leases: Mapping[str, str] = MappingProxyType({})  # MAC → address
    port_share: float = PORT_SHARE  # of descriptors, flows and memory, for one port among others


class Config(_Values):
    """The configuration of one network. Raises ConfigError for one that cannot work."""

    __slots__ = ()

    def __new__(cls, network: str | None = None, /, **fields: Unpack[Fields]) -> Config:
        """The network's prefix may stand first, without its name."""
        values: dict[str, Any] = {**fields}
        if network is not None:
            values["network"] = network
        unknown = values.keys() - set(_Values._fields)
        if unknown:
            name = min(unknown)
            raise ConfigError(f"{name}: there is no such field", name)
        for name, convert in _CONVERSIONS.items():
            if name in values:
                values[name] = convert(name, values[name])
        self = tuple.__new__(cls, _Values(**values))
        self._check()
        return self

    def replace(self, **changes: Any) -> Config:
        """The same with these fields changed, checked anew."""
        return Config(**{**self._asdict(), **changes})

    def __repr__(self) -> str:
        default = _Values()
        given = [
            f"{name}={value!r}"
            for name, value in self._asdict().items()
            if value != getattr(default, name)
        ]
        return f"Config({', '.join(given)})"

    # What follows from the fields

    @property
    def prefix(self) -> Prefix:
        """The network's."""
        return Prefix.from_text(self.network)

    @property
    def gateway_addr(self) -> bytes:
        return _host("gateway", self.gateway, self.prefix, GATEWAY_HOST)

    @property
    def dns_addr(self) -> bytes:
        if self.dns is None and self.prefix.length == LENGTH_MAX:
            return self.gateway_addr
        return _host("dns", self.dns, self.prefix, DNS_HOST)

    @property
    def first_lease_addr(self) -> bytes:
        """Where the DHCP pool begins: the address of the first machine, and of forwards to it."""
        prefix = self.prefix
        if self.first_lease is not None:
            return _host("first_lease", self.first_lease, prefix, 0)
        if prefix.size - 1 > FIRST_LEASE:
            return prefix.host(FIRST_LEASE)
        own = (self.gateway_addr, self.dns_addr)
        free = [addr for n in range(1, prefix.size - 1) if (addr := prefix.host(n)) not in own]
        behind = [addr for addr in free if addr > max(own)]
        return (behind or free)[0]

    @property
    def mac_addr(self) -> bytes:
        return b"\x52\x55" + self.gateway_addr if self.mac is None else mac_from_text(self.mac)

    @property
    def outbound(self) -> bytes | None:
        """The host's address that connections come from."""
        return None if self.outbound_addr is None else addr_from_text(self.outbound_addr)

    @property
    def leases(self) -> dict[bytes, bytes]:
        """Static leases: MAC → address."""
        return {
            mac_from_text(mac): addr_from_text(addr) for mac, addr in self.static_leases.items()
        }

    # What can work

    def _check(self) -> None:
        _check_network(self.network)
        if not MTU_MIN <= self.mtu <= MTU_MAX:
            raise ConfigError(f"mtu {self.mtu}: must be {MTU_MIN} to {MTU_MAX}", "mtu")
        if self.gateway_addr == self.dns_addr and self.prefix.length != LENGTH_MAX:
            raise ConfigError("dns: must not be the gateway's address", "dns")
        if self.first_lease_addr in (self.gateway_addr, self.dns_addr):
            raise ConfigError("first_lease: must not be the network's own address", "first_lease")
        if self.mac_addr[0] & 1:
            raise ConfigError(f"mac {self.mac}: must not be a group address", "mac")
        if self.outbound is not None and len(self.outbound) != 4:
            raise ConfigError(f"outbound_addr {self.outbound_addr}: must be IPv4", "outbound_addr")
        self._check_leases()

    def _check_leases(self) -> None:
        leases, field = self.leases, "static_leases"
        own = (self.gateway_addr, self.dns_addr)
        for addr in leases.values():
            if not self.prefix.has_host(addr) or addr in own:
                text = f"{field}: must lead to free host addresses of {self.network}"
                raise ConfigError(text, field)
        if len(set(leases.values())) != len(leases):
            raise ConfigError(f"{field}: an address is given twice", field)


def _check_network(text: str) -> None:
    prefix = _converted("network", Prefix.from_text, text)
    if len(prefix.addr) != 4:
        raise ConfigError(f"network {text}: must be IPv4", "network")
    if prefix.length > LENGTH_MAX:
        what = f"network {text}: must leave room for hosts, /{LENGTH_MAX} at the longest"
        raise ConfigError(what, "network")
    for block, why in _UNUSABLE:
        if prefix.overlaps(block):
            what = f"network {text}: {block} {why}; take a private one, as {NETWORK}"
            raise ConfigError(what, "network")


def _host(field: str, given: str | None, prefix: Prefix, offset: int) -> bytes:
    if given is None:
        return prefix.host(offset)
    addr: bytes = _converted(field, addr_from_text, given)
    if not prefix.has_host(addr):
        raise ConfigError(f"{field} {given}: must be a host address in {prefix}", field)
    return addr


# How what was given becomes what a field holds; a ConfigError where it cannot.


def _converted(field: str, convert: Any, value: Any) -> Any:
    try:
        return convert(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{field}: {error}", field) from None


def _integer(field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{field} {value!r}: must be a whole number", field)
    return value


def _share(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"{field} {value!r}: must be above 0 and up to 1", field)
    return float(value)


def _flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{field} {value!r}: must be true or false", field)
    return value


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{field} {value!r}: must be text", field)
    return value


def _optional_text(field: str, value: Any) -> str | None:
    return None if value is None else _text(field, value)


def _address(field: str, value: Any) -> str | None:
    if value is not None:
        _converted(field, addr_from_text, _text(field, value))
    return _optional_text(field, value)


def _station(field: str, value: Any) -> str | None:
    if value is not None:
        _converted(field, mac_from_text, _text(field, value))
    return _optional_text(field, value)


def _resolvers(field: str, value: Any) -> tuple[Resolver, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        raise ConfigError(f"{field} {value!r}: must be a list of addresses", field)

    def resolver(item: Any) -> Resolver:
        return item if isinstance(item, Resolver) else Resolver.from_text(item)

    return tuple(_converted(field, resolver, item) for item in _items(field, value))


def _items(field: str, value: Any) -> tuple[Any, ...]:
    return tuple(_converted(field, tuple, value))


def _names(field: str, value: Any) -> Mapping[str, tuple[str, ...]]:
    found = {}
    for name, addrs in _converted(field, dict, value).items():
        _name(field, name)
        found[name] = _items(field, addrs)
        for addr in found[name]:
            _converted(field, addr_from_text, _text(field, addr))
    return MappingProxyType(found)


def _leases(field: str, value: Any) -> Mapping[str, str]:
    found = _converted(field, dict, value)
    for mac, addr in found.items():
        _station(field, mac)
        _address(field, addr)
    return MappingProxyType(found)


def _search(field: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ConfigError(f"{field} {value!r}: must be a list of names", field)
    return tuple(_name(field, name) for name in _items(field, value))


def _optional_name(field: str, value: Any) -> str:
    return _name(field, value) if value else _text(field, value)


def _name(field: str, value: Any) -> str:
    """A DNS name, RFC 1035 §2.3.4."""
    name = _text(field, value)
    bare = name.removesuffix(".")
    if not bare.isascii() or len(bare) > NAME_MAX:
        raise ConfigError(f"{field} {name!r}: a name is at most {NAME_MAX} ASCII bytes", field)
    if not all(0 < len(label) <= LABEL_MAX for label in bare.split(".")):
        raise ConfigError(f"{field} {name!r}: a label is 1 to {LABEL_MAX} bytes", field)
    return name


_CONVERSIONS: Final = {
    "network": _text,
    "gateway": _address,
    "dns": _address,
    "first_lease": _address,
    "mtu": _integer,
    "mac": _station,
    "host_loopback": _flag,
    "restrict": _flag,
    "isolate": _flag,
    "outbound_addr": _address,
    "dns_enabled": _flag,
    "dhcp_enabled": _flag,
    "resolv_conf": _text,
    "resolvers": _resolvers,
    "names": _names,
    "hostname": _text,
    "domain": _optional_name,
    "search": _search,
    "static_leases": _leases,
    "port_share": _share,
}
