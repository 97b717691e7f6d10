"""How each field of a Config is read: what is given becomes what is kept, or a ConfigError.

`CONVERSIONS` has one function per field, which takes the field's name, for the error, and the value
as a caller, a command line or a file has it: text, or what the text stands for. It returns a value
that does not change any more. What fields have to do with one another is slirp.config's to check.

Does not do: read files or command lines, look anything up on the host.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn

from slirp.address import (
    Prefix,
    addr_from_text,
    addr_to_text,
    mac_from_text,
)
from slirp.autoforward import parse_auto
from slirp.errors import ConfigError, shown
from slirp.forward import ForwardSpec, parse_forward
from slirp.guestforward import GuestForward, parse_guest_forward

NAT64_AUTO: Final = "auto"  # on in a network without IPv4
DUID_SIZES: Final = range(7, 131)  # bytes; RFC 8415 §11.1 has 3 at least, but 6 are a MAC
DNS_PORT: Final = 53
LABEL_MAX: Final = 63  # bytes, RFC 1035 §2.3.4
NAME_MAX: Final = 253  # bytes of a name in text
ENDPOINTS: Final = ("epoll", "threads", "uring")  # who moves bytes between host and guest memory
BOOTFILE_MAX: Final = 255  # bytes of a bootfile's name or URL: one DHCP option
# Who may be given a bootfile of its own, by architectures as option 93 has them (RFC 4578 §2.1 and
# IANA's registry): firmware that boots by TFTP, and then by HTTP. iPXE is known otherwise.
BOOT_KINDS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        "ipxe": (),
        "bios": (0, 20),
        "efi-ia32": (6, 15),
        "efi-x64": (7, 9, 16, 17),
        "efi-arm": (10, 18),
        "efi-arm64": (11, 19),
        "efi-riscv64": (27, 28),
    }
)


class Resolver(NamedTuple):
    """Where to ask for names."""

    address: str  # a literal of either family, with %INTERFACE where it needs one
    port: int = DNS_PORT

    @classmethod
    def from_text(cls, text: str) -> Resolver:
        """From ADDR, ADDR:PORT, [ADDR]:PORT or ADDR#PORT; ValueError where it is none."""
        address, port = _split_port(text)
        bare, percent, interface = address.partition("%")
        try:
            addr_from_text(bare)
        except ValueError:
            raise ValueError("a resolver is given by its address") from None
        if percent and (":" not in bare or not interface or shown(interface) != interface):
            raise ValueError("write fe80::1%INTERFACE where the address needs one")
        if not port:
            return cls(address)
        if not (port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
            raise ValueError("a port is a number from 1 to 65535")
        return cls(address, int(port))

    def __str__(self) -> str:
        if self.port == DNS_PORT:
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else "{}:{}".format(*self)


def _split_port(text: str) -> tuple[str, str]:
    """An address and the port behind it; a port that is announced must be there."""
    if "#" in text:
        address, _, port = text.partition("#")
        return address, port or "missing"
    if text.startswith("["):
        address, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("write [ADDR]:PORT")
        return address, (rest[1:] or "missing") if rest else ""
    if text.count(":") == 1:
        address, _, port = text.partition(":")
        return address, port or "missing"
    return text, ""


def client_from_text(text: str) -> bytes:
    """Who has a static lease: the bytes of a MAC, or of a DUID, which are more."""
    parts = text.replace("-", ":").split(":")
    if len(parts) == 6:
        return mac_from_text(text)
    try:
        octets = bytes.fromhex("".join(part.zfill(2) for part in parts))
    except ValueError:
        octets = b""
    if len(octets) not in DUID_SIZES:
        raise ValueError(f"neither a MAC address nor a DUID: {text!r}")
    return octets


def refuse(field: str, value: Any, why: str) -> NoReturn:
    raise ConfigError(f"{field} {shown(value)}: {why}", field)


def _integer(field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        refuse(field, value, "must be a whole number")
    return value


def _share(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        refuse(field, value, "must be above 0 and up to 1")
    return float(value)


def _endpoint(field: str, value: Any) -> str:
    name = _text(field, value)
    if name not in ENDPOINTS:
        refuse(field, name, f"must be one of {', '.join(ENDPOINTS)}")
    return name


def _flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        refuse(field, value, "must be true or false")
    return value


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        refuse(field, value, "must be text")
    return value


def _prefix(field: str, value: Any) -> str:
    text = _text(field, value)
    if shown(text) != text:
        refuse(field, text, "is no network")
    return text


def _path(field: str, value: Any) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else _text(field, value)
    if not isinstance(path, str) or "\0" in path:
        refuse(field, value, "is no path")
    return path


def literal(field: str, value: Any) -> bytes:
    try:
        return addr_from_text(_text(field, value))
    except ValueError:
        refuse(field, value, "is no IP address")


def _address(field: str, value: Any) -> str | None:
    return None if value is None else addr_to_text(literal(field, value))


def _station(field: str, value: Any) -> str | None:
    """A MAC that one station can have: not zero, nor a group's."""
    if value is None:
        return None
    try:
        mac = mac_from_text(_text(field, value))
    except ValueError:
        refuse(field, value, "is no MAC address")
    if mac[0] & 1:
        refuse(field, value, "must not be a group address")
    if not any(mac):
        refuse(field, value, "is nobody's address")
    return str(value)


def _items(field: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        refuse(field, value, "must be a list")
    return tuple(value)


def _pairs(field: str, value: Any) -> Iterable[tuple[Any, Any]]:
    if not isinstance(value, Mapping):
        refuse(field, value, "must be a table")
    return value.items()


def _resolvers(field: str, value: Any) -> tuple[Resolver, ...] | None:
    return None if value is None else tuple(_resolver(field, item) for item in _items(field, value))


def _resolver(field: str, value: Any) -> Resolver:
    text = str(value) if isinstance(value, Resolver) else _text(field, value)
    try:
        return Resolver.from_text(text)
    except ValueError as error:
        refuse(field, text, str(error))


def _forwards(field: str, value: Any) -> tuple[ForwardSpec, ...]:
    found: list[ForwardSpec] = []
    for item in _items(field, value):
        text = str(item) if isinstance(item, ForwardSpec) else _text(field, item)
        try:
            found += parse_forward(text)
        except ConfigError as error:
            raise ConfigError(field + str(error).removeprefix(error.field), field) from None
    return tuple(found)


def _optional_path(field: str, value: Any) -> str | None:
    return None if value is None else _path(field, value)


def _paths(field: str, value: Any) -> tuple[str, ...]:
    return tuple(_path(field, item) for item in _items(field, value))


def _domain_resolvers(field: str, value: Any) -> Mapping[str, tuple[Resolver, ...]]:
    found = {}
    for domain, items in _pairs(field, value):
        found[_name(field, domain)] = tuple(_resolver(field, item) for item in _items(field, items))
    return MappingProxyType(found)


def _bootfiles(field: str, value: Any) -> Mapping[str, str]:
    found = {}
    for kind, item in [("", value)] if isinstance(value, str) else _pairs(field, value):
        if kind and kind not in BOOT_KINDS:
            refuse(field, kind, f"there are {', '.join(BOOT_KINDS)}")
        name = _text(field, item)
        if not 0 < len(name) <= BOOTFILE_MAX or not all("!" <= letter <= "~" for letter in name):
            refuse(field, item, f"has 1 to {BOOTFILE_MAX} visible ASCII letters")
        found[kind] = name
    return MappingProxyType(found)


def _auto_forward(field: str, value: Any) -> str | None:
    if value is not None:
        parse_auto(_text(field, value))
    return value if value is None else str(value)


def _guest_forwards(field: str, value: Any) -> tuple[GuestForward, ...]:
    found: list[GuestForward] = []
    for item in _items(field, value):
        text = str(item) if isinstance(item, GuestForward) else _text(field, item)
        try:
            found.append(parse_guest_forward(text))
        except ConfigError as error:
            raise ConfigError(field + str(error).removeprefix(error.field), field) from None
    return tuple(found)


def _names(field: str, value: Any) -> Mapping[str, tuple[str, ...]]:
    found = {}
    for name, addrs in _pairs(field, value):
        texts = (addr_to_text(literal(field, addr)) for addr in _items(field, addrs))
        found[_name(field, name)] = tuple(texts)
    return MappingProxyType(found)


def _leases(field: str, value: Any) -> Mapping[str, str]:
    found = {}
    for mac, addr in _pairs(field, value):
        if not isinstance(mac, str):
            refuse(field, mac, "is no MAC address")
        _station(field, mac)
        found[mac] = addr_to_text(literal(field, addr))
    return MappingProxyType(found)


def _leases6(field: str, value: Any) -> Mapping[str, str]:
    found = {}
    for who, addr in _pairs(field, value):
        try:
            client = client_from_text(_text(field, who))
        except ValueError as error:
            refuse(field, who, str(error).partition(":")[0])
        if len(client) == 6:
            _station(field, who)
        found[who] = addr_to_text(literal(field, addr))
    return MappingProxyType(found)


def _nat64(field: str, value: Any) -> str:
    text = _prefix(field, value)
    if text in (NAT64_AUTO, "on", "off"):
        return text
    try:
        prefix = Prefix.from_text(text)
    except ValueError as error:
        refuse(field, text, str(error))
    if len(prefix.addr) != 16:
        refuse(field, text, "must be IPv6, on, off or auto")
    return text


def _search(field: str, value: Any) -> tuple[str, ...]:
    return tuple(_name(field, name) for name in _items(field, value))


def _optional_name(field: str, value: Any) -> str:
    return _text(field, value) and _name(field, value)


def _name(field: str, value: Any) -> str:
    """A DNS name, RFC 1035 §2.3.4."""
    name = _text(field, value)
    bare = name.removesuffix(".")
    if not all("!" <= letter <= "~" for letter in bare):
        refuse(field, value, "a name has visible ASCII letters only")
    if len(bare) > NAME_MAX or not all(0 < len(label) <= LABEL_MAX for label in bare.split(".")):
        refuse(field, value, f"a name has {NAME_MAX} letters at most, its labels 1 to {LABEL_MAX}")
    return name


CONVERSIONS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "network": _prefix,
    "network6": _prefix,
    "ipv4_only": _flag,
    "ipv6_only": _flag,
    "gateway": _address,
    "gateway6": _address,
    "dns": _address,
    "dns6": _address,
    "first_lease": _address,
    "mtu": _integer,
    "mac": _station,
    "host_loopback": _flag,
    "restrict": _flag,
    "isolate": _flag,
    "either_loopback": _flag,
    "nat64": _nat64,
    "outbound_addr": _address,
    "outbound_addr6": _address,
    "dns_enabled": _flag,
    "dhcp_enabled": _flag,
    "ra_enabled": _flag,
    "resolv_conf": _path,
    "resolvers": _resolvers,
    "names": _names,
    "hostname": _optional_name,
    "domain": _optional_name,
    "search": _search,
    "static_leases": _leases,
    "static_leases6": _leases6,
    "port_share": _share,
    "endpoint": _endpoint,
    "forwards": _forwards,
    "tftp": _optional_path,
    "http": _optional_path,
    "bootfiles": _bootfiles,
    "next_server": _address,
    "ntp": _flag,
    "hosts": _paths,
    "domain_resolvers": _domain_resolvers,
    "dns_cache": _integer,
    "guest_forwards": _guest_forwards,
    "auto_forward": _auto_forward,
}
