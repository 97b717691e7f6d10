"""Which packets are wanted: a small part of the language that tcpdump's users know.

    tcp port 80 and not host 10.0.2.2
    udp or (icmp and src net 10.0.2.0/24)

    FILTER     PRIMITIVE, not FILTER, FILTER and FILTER, FILTER or FILTER, (FILTER)
    PRIMITIVE  ip, ip6, arp, tcp, udp, icmp, icmp6
               [src|dst] host ADDR, [src|dst] net CIDR, [tcp|udp] [src|dst] port N

`and` and `or` bind alike and from the left, as pcap-filter(7) has it; write parentheses where it
matters. What has no addresses (ARP) or no ports (a later fragment) does not
match what asks for them. `parse` compiles a filter to a function over `Facts`; `facts_of` reads a
packet. Neither raises for any packet: a header that is cut short has nothing that matches.

Does not do: MAC addresses, VLANs, offsets into packets, names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from slirp.address import Prefix, addr_from_text
from slirp.errors import ConfigError, shown

FILTER_MAX: Final = 4096  # letters
DEPTH_MAX: Final = 64  # of `not` and parentheses
EXTENSIONS_MAX: Final = 8  # IPv6 extension headers that are looked behind

IPV4: Final = 0x0800
IPV6: Final = 0x86DD
ARP: Final = 0x0806
ETHERTYPES: Final = {"ip": IPV4, "ip6": IPV6, "arp": ARP}
PROTOCOLS: Final = {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58}
WITH_PORTS: Final = (6, 17)
_EXTENSIONS: Final = (0, 43, 60)  # hop-by-hop, routing, destination: length in eights behind
_FRAGMENT: Final = 44


class Facts(NamedTuple):
    """What a filter can ask of a packet."""

    ethertype: int
    protocol: int | None = None
    src: bytes = b""
    dst: bytes = b""
    src_port: int | None = None
    dst_port: int | None = None


Predicate: TypeAlias = Callable[[Facts], bool]


def facts_of(octets: bytes, *, ethernet: bool) -> Facts:
    """Of a frame, or of an IP packet without one."""
    if ethernet:
        ethertype, at = int.from_bytes(octets[12:14], "big"), 14
    else:
        version = octets[0] >> 4 if octets else 0
        ethertype, at = {4: IPV4, 6: IPV6}.get(version, 0), 0
    if ethertype == IPV4 and len(octets) >= at + 20:
        return _ipv4(octets, at)
    if ethertype == IPV6 and len(octets) >= at + 40:
        return _ipv6(octets, at)
    return Facts(ethertype)


def _ipv4(octets: bytes, at: int) -> Facts:
    protocol, src, dst = octets[at + 9], octets[at + 12 : at + 16], octets[at + 16 : at + 20]
    later = int.from_bytes(octets[at + 6 : at + 8], "big") & 0x1FFF
    behind = len(octets) if later else at + (octets[at] & 15) * 4
    return Facts(IPV4, protocol, src, dst, *_ports(octets, behind, protocol))


def _ipv6(octets: bytes, at: int) -> Facts:
    protocol, behind = octets[at + 6], at + 40
    for _ in range(EXTENSIONS_MAX):
        if len(octets) < behind + 8:
            break
        if protocol in _EXTENSIONS:
            protocol, behind = octets[behind], behind + 8 * (octets[behind + 1] + 1)
        elif protocol == _FRAGMENT:
            later = int.from_bytes(octets[behind + 2 : behind + 4], "big") & 0xFFF8
            protocol, behind = octets[behind], len(octets) if later else behind + 8
        else:
            break
    src, dst = octets[at + 8 : at + 24], octets[at + 24 : at + 40]
    return Facts(IPV6, protocol, src, dst, *_ports(octets, behind, protocol))


def _ports(octets: bytes, at: int, protocol: int) -> tuple[int | None, int | None]:
    if protocol not in WITH_PORTS or len(octets) < at + 4:
        return None, None
    return int.from_bytes(octets[at : at + 2], "big"), int.from_bytes(
        octets[at + 2 : at + 4], "big"
    )


def parse(text: str) -> Predicate:
    """What `text` asks for; empty: everything. Raises ConfigError."""
    if len(text) > FILTER_MAX:
        raise ConfigError(f"filter: has more than {FILTER_MAX} letters", "filter")
    words = _Words(text)
    if not words.left:
        return lambda facts: True
    found = _joined(words, 0)
    if words.left:
        words.refuse(f"{shown(words.left[-1])} is not expected there")
    return found


class _Words:
    """What is still to be read, the next word last."""

    def __init__(self, text: str) -> None:
        self.text = text
        spaced = text.replace("(", " ( ").replace(")", " ) ")
        self.left = spaced.split()[::-1]

    def take(self, *expected: str) -> str:
        """The next word if it is one of these, or else ''."""
        if self.left and self.left[-1].lower() in expected:
            return self.left.pop().lower()
        return ""

    def value(self, what: str) -> str:
        if not self.left:
            self.refuse(f"{what} is missing at the end")
        return self.left.pop()

    def refuse(self, why: str) -> None:
        raise ConfigError(f"filter {shown(self.text)}: {why}", "filter")


def _joined(words: _Words, depth: int) -> Predicate:
    first = _one(words, depth)
    rest: list[tuple[bool, Predicate]] = []  # is it an `and`, and what follows
    while word := words.take("and", "&&", "or", "||"):
        rest.append((word in ("and", "&&"), _one(words, depth)))
    if not rest:
        return first

    def found(facts: Facts) -> bool:
        holds = first(facts)
        for both, other in rest:
            if holds is both:  # else the word before it has settled it
                holds = other(facts)
        return holds

    return found


def _one(words: _Words, depth: int) -> Predicate:
    if depth > DEPTH_MAX:
        words.refuse(f"more than {DEPTH_MAX} deep")
    if words.take("not", "!"):
        inner = _one(words, depth + 1)
        return lambda facts: not inner(facts)
    if words.take("("):
        inner = _joined(words, depth + 1)
        if not words.take(")"):
            words.refuse("a ) is missing")
        return inner
    return _primitive(words)


def _primitive(words: _Words) -> Predicate:
    kind = words.take(*ETHERTYPES, *PROTOCOLS)
    side = words.take("src", "dst")
    what = words.take("host", "net", "port")
    if not what and (side or not kind):
        found = shown(words.left[-1]) if words.left else "the end"
        words.refuse(f"{found} where host, net, port or a protocol is expected")
    if not what:
        return _kind(kind)
    ends = ("src", "dst") if not side else (side,)
    asked = _port(words, ends) if what == "port" else _place(words, what, ends)
    if not kind:
        return asked
    of_kind = _kind(kind)
    return lambda facts: of_kind(facts) and asked(facts)


def _kind(name: str) -> Predicate:
    if name in ETHERTYPES:
        ethertype = ETHERTYPES[name]
        return lambda facts: facts.ethertype == ethertype
    protocol = PROTOCOLS[name]
    return lambda facts: facts.protocol == protocol


def _port(words: _Words, ends: tuple[str, ...]) -> Predicate:
    word = words.value("a port")
    if not (word.isascii() and word.isdecimal() and len(word) <= 5 and int(word) <= 65535):
        words.refuse(f"{shown(word)} is no port")
    port, names = int(word), [f"{end}_port" for end in ends]
    return lambda facts: any(getattr(facts, name) == port for name in names)


def _place(words: _Words, what: str, ends: tuple[str, ...]) -> Predicate:
    word = words.value("an address" if what == "host" else "a network")
    try:
        addr = addr_from_text(word) if what == "host" else b""
        prefix = Prefix(addr, 8 * len(addr)) if addr else Prefix.from_text(word)
    except ValueError as error:
        raise ConfigError(f"filter {shown(words.text)}: {shown(word)}: {error}", "filter") from None
    return lambda facts: any(prefix.covers(getattr(facts, end)) for end in ends)
