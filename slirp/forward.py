"""Forwards as people write them: `8080:80`, as containers have it, or `tcp:127.0.0.1:8080-80`.

    [HOST:]PORTS[:[GUEST:]PORTS][/PROTO][,OPTION…]   PROTO is tcp, where none is named, or udp
    /PATH:[GUEST:]PORT[,OPTION…]                     a Unix stream socket on the host

    8080:80                    the host's 127.0.0.1:8080 leads to the guest's port 80
    8080                       the same port on both sides
    0:80                       any port that is free on the host; which one is told
    127.0.0.1:8080:80/udp      datagrams
    0.0.0.0:8080:80            from everywhere, not only from the host itself; * is the same
    [::1]:8080:80              an IPv6 address of the host's stands in brackets
    8000-8010:9000-9010        eleven ports, 8000 to 9000, 8001 to 9001 …
    8080:10.0.2.15:80          a guest of that address
    8080:[fd00::100]:80        its IPv6 address stands in brackets too
    [::]:8080:80               from everywhere, by IPv6 and by IPv4
    8080:web:80                the guest that calls itself so, with DHCP
    /run/web.sock:80
    8080:80,proxy=2            each connection begins with a header of the PROXY protocol (1 or 2)
    8080:80,source=gateway     the guest sees the gateway's address, not the peer's

The older notation has the protocol in front and a hyphen between the two sides:

    PROTO:[HOST:]PORTS[-[GUEST:]PORTS]     tcp:8080-80, udp:5353, tcp:8000-8009-9000
    unix:/PATH-[GUEST:]PORT

A host address that is left out is 127.0.0.1, so that nothing is opened to others unasked.

Guest to host is slirp.guestforward's.

Does not do: names of the host's other than localhost, opening anything.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NoReturn, TypeAlias

from slirp.address import addr_from_text, addr_to_text
from slirp.errors import ConfigError, shown

HostAddress: TypeAlias = tuple[str, int] | str

PORT_MAX: Final = 65535
RANGE_MAX: Final = 4096  # ports of one range; each is a listening socket
LOOPBACK: Final = "127.0.0.1"
NAMES: Final = {"": LOOPBACK, "localhost": LOOPBACK, "*": "0.0.0.0"}

PROXY: Final = (0, 1, 2)  # versions of the PROXY protocol; 0: none
SOURCES: Final = ("peer", "gateway")  # as whom a peer appears to the guest

# Compiled where a forward is read: most networks have none, and starting takes a millisecond less.
_NAME: Final = r"[A-Za-z0-9_.-]*[A-Za-z_][A-Za-z0-9_.-]*"
_BRACKETS: Final = r"\[[^]/]*\]"
_GUEST: Final = rf"[0-9.]+|{_BRACKETS}|{_NAME}"
_HOST: Final = rf"(?:(?P<host>{_BRACKETS}|[^:/[\]]*):)??"
_FORM: Final = (
    _HOST
    + rf"(?P<ports>[0-9-]+)(?::(?:(?P<guest>{_GUEST}):)?(?P<inside>[0-9-]+))?(?:/(?P<proto>\w+))?"
)
# Behind a path, which may end in a number
_INSIDE: Final = rf"(?:([0-9]+\.[0-9.]*|{_BRACKETS}|{_NAME}):)?([0-9]+)"
_UNIX_FORM: Final = r"(?:unix:)?(/.+?):" + _INSIDE
# a number in place of the host is a port of the new form
_OLD_HOST: Final = rf"(?:({_BRACKETS}|[^:-]*[^:0-9-][^:-]*|):)?"
_OLD_FORM: Final = (
    r"(tcp|udp):" + _OLD_HOST + rf"([0-9-]*[0-9])(?:-([0-9.]+|{_BRACKETS}):([0-9-]+))?"
)
_OLD_UNIX_FORM: Final = r"unix:(/.+)-" + _INSIDE
_OPTIONS: Final = r"(.*?)((?:,(?:proxy|source)=[^,]*)+)"
ADVICE: Final = "write [HOST:]PORT[:GUESTPORT][/udp], as 8080:80, or /PATH:GUESTPORT"


class ForwardSpec(NamedTuple):
    """One forward to be opened. `guest_addr` None: the first machine's."""

    proto: str
    host: HostAddress
    guest_addr: str | None  # or a name
    guest_port: int
    proxy: int = 0  # of PROXY
    source: str = SOURCES[0]

    def __str__(self) -> str:
        """As `parse_forward` reads it."""
        guest = "" if self.guest_addr is None else f"{_bracketed(self.guest_addr)}:"
        options = f",proxy={self.proxy}" if self.proxy else ""
        options += f",source={self.source}" if self.source != SOURCES[0] else ""
        if isinstance(self.host, str):
            return f"unix:{self.host}-{guest}{self.guest_port}{options}"
        proto = "" if self.proto == "tcp" else f"/{self.proto}"
        return f"{host_text(self.host)}:{guest}{self.guest_port}{proto}{options}"


def host_text(host: HostAddress) -> str:
    """A forward's end on the host as people write it."""
    if isinstance(host, str):
        return host
    addr, port = host
    return f"{_bracketed(addr)}:{port}"


def _bracketed(addr: str) -> str:
    return f"[{addr}]" if ":" in addr else addr


def parse_forward(text: str) -> list[ForwardSpec]:
    """The forwards that one specification stands for. Raises ConfigError."""
    match = re.fullmatch(_OPTIONS, text, re.DOTALL)
    if match is None:
        return _parse(text, text)
    bare, options = match.groups()
    proxy, source = _options(text, options[1:].split(","))
    specs = [spec._replace(proxy=proxy, source=source) for spec in _parse(text, bare)]
    if proxy and any(spec.proto == "udp" for spec in specs):
        _refuse(text, "the PROXY protocol is for tcp")
    return specs


def _options(text: str, words: list[str]) -> tuple[int, str]:
    proxy, source = 0, SOURCES[0]
    for word in words:
        name, _, value = word.partition("=")
        if name == "source":
            if value not in SOURCES:
                _refuse(text, f"source is {' or '.join(SOURCES)}")
            source = value
        else:
            if value not in map(str, PROXY):
                _refuse(text, "proxy is 1 or 2, a version of the PROXY protocol")
            proxy = int(value)
    return proxy, source


def _parse(whole: str, text: str) -> list[ForwardSpec]:
    """Without options; `whole` is what a mistake is told about."""
    unix = re.fullmatch(_OLD_UNIX_FORM, text) or re.fullmatch(_UNIX_FORM, text)
    if unix is not None:
        path, guest, port = unix.groups()
        return [ForwardSpec("unix", path, _guest(whole, guest), _port(whole, port))]
    old = re.fullmatch(_OLD_FORM, text)
    if old is not None:
        return _parse_old(whole, old)
    proto, colon, rest = text.partition(":")
    named = proto in ("tcp", "udp") and bool(colon)
    new = re.fullmatch(_FORM, rest if named else text)
    if new is None or (named and new["proto"]):
        _refuse(whole, ADVICE)
    proto = proto if named else (new["proto"] or "tcp")
    if proto not in ("tcp", "udp"):
        _refuse(whole, "the protocol is tcp or udp")
    _host(whole, new["host"] or "")
    inside = new["inside"]
    host_ports = _range(whole, new["ports"], anything=inside is not None)
    guest_ports = host_ports if inside is None else _matching(whole, host_ports, inside)
    return _pairs(whole, proto, new["host"], host_ports, new["guest"], guest_ports)


def _parse_old(text: str, match: re.Match[str]) -> list[ForwardSpec]:
    proto, host, numbers, guest, inside = match.groups()
    if inside is None:
        words = numbers.split("-")
        # One number: both sides; two: host and guest; three: a range and where it begins; four.
        cut = {1: 1, 2: 1, 3: 2, 4: 2}.get(len(words))
        if cut is None:
            _refuse(text, "at most two ranges of ports")
        numbers, inside = "-".join(words[:cut]), "-".join(words[cut:] or words)
    host_ports = _range(text, numbers, anything=True)
    return _pairs(text, proto, host, host_ports, guest, _matching(text, host_ports, inside))


def _pairs(
    text: str, proto: str, host: str | None, ours: range, guest: str | None, theirs: range
) -> list[ForwardSpec]:
    addr, guest_addr = _host(text, host or ""), _guest(text, guest)
    pairs = zip(ours, theirs, strict=True)
    return [ForwardSpec(proto, (addr, port), guest_addr, inner) for port, inner in pairs]


def _range(text: str, word: str, *, anything: bool = False) -> range:
    """`anything`: 0 stands for a port that is free."""
    if word == "0" and anything:
        return range(1)
    ends = [_port(text, number) for number in word.split("-")]
    if len(ends) > 2 or ends[-1] < ends[0]:
        _refuse(text, "a range of ports is FIRST-LAST")
    if ends[-1] - ends[0] >= RANGE_MAX:
        _refuse(text, f"a range has at most {RANGE_MAX} ports")
    return range(ends[0], ends[-1] + 1)


def _matching(text: str, ours: range, word: str) -> range:
    """The guest's side of a range; its end need not be written."""
    ends = [_port(text, number) for number in word.split("-")]
    last = ends[0] + len(ours) - 1
    if len(ends) > 2 or (len(ends) == 2 and ends[1] != last):
        _refuse(text, "the two ranges must be of one length")
    if last > PORT_MAX:
        _refuse(text, f"the range ends above port {PORT_MAX}")
    return range(ends[0], last + 1)


def _port(text: str, word: str) -> int:
    if not word.isdecimal() or len(word) > len(str(PORT_MAX)) or not 0 < int(word) <= PORT_MAX:
        _refuse(text, f"a port is a number from 1 to {PORT_MAX}")
    return int(word)


def _host(text: str, word: str) -> str:
    return NAMES[word] if word in NAMES else _address(text, word)


def _guest(text: str, word: str | None) -> str | None:
    return word if word is None or is_name(word) else _address(text, word)


def is_name(guest: str) -> bool:
    """Is this what a guest calls itself, not its address?"""
    return re.fullmatch(_NAME, guest) is not None


def _address(text: str, word: str) -> str:
    """IPv6 in brackets, IPv4 without."""
    size = 4
    if word.startswith("["):
        word, size = word[1:-1], 16
    try:
        addr = addr_from_text(word)
    except ValueError:
        addr = b""
    if len(addr) != size:
        _refuse(text, f"{shown(word)} is no IPv{4 if size == 4 else 6} address")
    return addr_to_text(addr)


def _refuse(text: str, advice: str) -> NoReturn:
    raise ConfigError(f"forward {shown(text)}: {advice}", "forward")
