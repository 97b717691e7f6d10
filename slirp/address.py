"""Addresses on the packet path and their other forms.

An address is the bytes that stand in a header: 4 for IPv4, 16 for IPv6. An `Endpoint` is an
address and a port, and a tuple, so it serves as a key as it is. Text, `ipaddress` objects and the
sockets' own tuples exist at the edges only (configuration, the host's sockets, what a person reads)
and are converted here, by functions named for both sides. Which family an address has is its
length: no code that goes through these functions assumes IPv4.

Malformed text is a ValueError: it comes from whoever configures, never from a packet.

A `Prefix` is a network: an address and how many of its bits count. It is written here rather than
taken from `ipaddress`, whose import costs a command more than all of this package's together.

Does not do: names (that is DNS).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

UNSPECIFIED_V4: Final = bytes(4)
UNSPECIFIED_V6: Final = bytes(16)
LIMITED_BROADCAST: Final = b"\xff" * 4

_MAPPED: Final = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291 §2.5.5.2
_LOOPBACK_V6: Final = bytes(15) + b"\x01"


class Endpoint(NamedTuple):
    addr: bytes  # 4 or 16 bytes
    port: int

    def __str__(self) -> str:
        text = addr_to_text(self.addr)
        return f"[{text}]:{self.port}" if len(self.addr) == 16 else f"{text}:{self.port}"

    def to_sockaddr(self, scope_id: int = 0) -> SockAddr:
        """As `socket` methods take it; `scope_id` is the interface of a link-local address."""
        if len(self.addr) == 4:
            return socket.inet_ntop(socket.AF_INET, self.addr), self.port
        return socket.inet_ntop(socket.AF_INET6, self.addr), self.port, 0, scope_id

    @classmethod
    def from_sockaddr(cls, sockaddr: SockAddr) -> Endpoint:
        """From what `socket` methods give, IPv4 in IPv6's clothes included."""
        return cls(unmapped(addr_from_text(sockaddr[0].partition("%")[0])), sockaddr[1])


class Prefix(NamedTuple):
    """A network of either family."""

    addr: bytes  # 4 or 16 bytes, those beyond `length` zero
    length: int  # bits

    @classmethod
    def from_text(cls, text: str) -> Prefix:
        """From ADDR/BITS (or ADDR/NETMASK); ValueError where it is none."""
        word, slash, bits = text.partition("/")
        addr = addr_from_text(word)
        length = _bits(text, bits, addr) if slash else 8 * len(addr)
        prefix = cls(addr, length)
        if int.from_bytes(addr) % prefix.size:
            raise ValueError(f"{text} has host bits set")
        return prefix

    @property
    def size(self) -> int:
        """Addresses in it."""
        return 1 << 8 * len(self.addr) - self.length

    @property
    def mask(self) -> bytes:
        """The netmask."""
        octets = len(self.addr)
        return ((1 << 8 * octets) - self.size).to_bytes(octets)

    @property
    def last(self) -> bytes:
        """Its highest address: the broadcast address, in IPv4."""
        return self.host(self.size - 1)

    def host(self, offset: int) -> bytes:
        """The address so far behind the first."""
        return (int.from_bytes(self.addr) + offset).to_bytes(len(self.addr))

    def covers(self, addr: bytes) -> bool:
        """Is the address in it?"""
        if len(addr) != len(self.addr):
            return False
        return 0 <= int.from_bytes(addr) - int.from_bytes(self.addr) < self.size

    def has_host(self, addr: bytes) -> bool:
        """May a host have the address: neither the network's own number nor its broadcast?"""
        return self.covers(addr) and addr not in (self.addr, self.last)

    def overlaps(self, other: Prefix) -> bool:
        """Have the two an address in common?"""
        return self.covers(other.addr) or other.covers(self.addr)

    def __str__(self) -> str:
        return f"{addr_to_text(self.addr)}/{self.length}"


def _bits(text: str, word: str, addr: bytes) -> int:
    """The length that stands behind the slash."""
    size = 8 * len(addr)
    if word.isascii() and word.isdecimal() and int(word) <= size:
        return int(word)
    if "." in word and len(addr) == 4:
        host = 0xFFFFFFFF ^ int.from_bytes(addr_from_text(word))
        if not host & (host + 1):
            return 32 - host.bit_length()
    raise ValueError(f"{text}: behind the slash stands a number of bits, 0 to {size}")


def family(addr: bytes) -> socket.AddressFamily:
    return socket.AF_INET if len(addr) == 4 else socket.AF_INET6


def addr_from_text(text: str) -> bytes:
    """Bytes of a literal address; ValueError where it is none (names are not looked up)."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        raise ValueError(f"not an IP address: {text!r}") from None


def addr_to_text(addr: bytes) -> str:
    return socket.inet_ntop(family(addr), addr)


def addr_to_ipaddress(addr: bytes) -> IPv4Address | IPv6Address:
    import ipaddress

    return ipaddress.ip_address(addr)


def unmapped(addr: bytes) -> bytes:
    """The IPv4 address inside ::ffff:a.b.c.d; any other address as it is."""
    return addr[12:] if len(addr) == 16 and addr.startswith(_MAPPED) else addr


def mac_from_text(text: str) -> bytes:
    """Bytes of aa:bb:cc:dd:ee:ff (or with hyphens)."""
    parts = text.replace("-", ":").split(":")
    try:
        octets = bytes(int(part, 16) for part in parts if 1 <= len(part) <= 2)
    except ValueError:
        octets = b""
    if len(octets) != 6 or len(parts) != 6:
        raise ValueError(f"not a MAC address: {text!r}")
    return octets


def mac_to_text(mac: bytes) -> str:
    return mac.hex(":")


def is_unspecified(addr: bytes) -> bool:
    return not any(addr)


def is_loopback(addr: bytes) -> bool:
    """127.0.0.0/8 or ::1."""
    return addr[0] == 127 if len(addr) == 4 else addr == _LOOPBACK_V6


def is_multicast(addr: bytes) -> bool:
    """224.0.0.0/4 or ff00::/8."""
    return addr[0] & 0xF0 == 0xE0 if len(addr) == 4 else addr[0] == 0xFF


def is_reserved(addr: bytes) -> bool:
    """240.0.0.0/4, the limited broadcast 255.255.255.255 included; no such block in IPv6."""
    return len(addr) == 4 and addr[0] >= 0xF0


def is_link_local(addr: bytes) -> bool:
    """169.254.0.0/16 or fe80::/10."""
    if len(addr) == 4:
        return addr[0] == 169 and addr[1] == 254
    return addr[0] == 0xFE and addr[1] & 0xC0 == 0x80


def is_host(addr: bytes) -> bool:
    """Whether the address can be that of one host on a link: what a source address must be.

    A network's own broadcast address is the one thing that cannot be seen from the bytes.
    """
    if len(addr) == 4:
        return 0 < addr[0] < 0xE0 and addr[0] != 127
    return addr[0] != 0xFF and addr != UNSPECIFIED_V6 and addr != _LOOPBACK_V6
