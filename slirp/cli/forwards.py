"""The command line's way to write a forward: `tcp:127.0.0.1:8080-80`.

    PROTO:[HOST:]PORTS[-[GUEST:]PORTS]     PROTO is tcp or udp
    unix:/PATH-[GUEST:]PORT                a Unix stream socket on the host

    tcp:8080-80               the host's 127.0.0.1:8080 leads to the guest's port 80
    tcp:0.0.0.0:8080-80       from everywhere, not only from the host itself
    udp:5353                  the same port on both sides
    tcp:8000-8009-9000        ten ports, 8000 to 9000, 8001 to 9001 …
    tcp:8000-8009-9000-9009   the same, in full
    tcp:8080-10.0.2.15:80     a guest of that address
    unix:/tmp/web.sock-80

A host address that is left out is 127.0.0.1, so that nothing is opened to others unasked; `*` is
every address. Does not do: IPv6 addresses, names other than localhost.
"""

from __future__ import annotations

import re
import socket
from typing import Final, NamedTuple, TypeAlias

from slirp.cli.failure import USAGE, Failure

HostAddress: TypeAlias = tuple[str, int] | str

PORT_MAX: Final = 65535
RANGE_MAX: Final = 4096  # ports of one range; each is a listening socket
LOOPBACK: Final = "127.0.0.1"
NAMES: Final = {"": LOOPBACK, "localhost": LOOPBACK, "*": "0.0.0.0"}

_FORM: Final = re.compile(r"(tcp|udp):(?:([^:-]*):)?([0-9-]*[0-9])(?:-([0-9.]+):([0-9-]+))?")
_UNIX_FORM: Final = re.compile(r"unix:(/.+)-(?:([0-9.]+):)?([0-9]+)")


class ForwardSpec(NamedTuple):
    """One forward to be opened. `guest_addr` None: the guest's own, as the command knows it."""

    proto: str
    host: HostAddress
    guest_addr: str | None
    guest_port: int


def parse_forward(text: str) -> list[ForwardSpec]:
    """The forwards that one option stands for. Raises Failure."""
    unix = _UNIX_FORM.fullmatch(text)
    if unix is not None:
        path, guest, port = unix.groups()
        return [ForwardSpec("unix", path, _guest(text, guest), _port(text, port))]
    match = _FORM.fullmatch(text)
    if match is None:
        raise _bad(text, "write tcp:HOST:PORT-GUESTPORT, udp:… or unix:/PATH-GUESTPORT")
    proto, host, numbers, guest, guest_numbers = match.groups()
    ports = [_port(text, word) for word in numbers.split("-")]
    if guest_numbers is None:
        host_ports, guest_ports = _split(text, ports)
    else:
        host_ports = _range(text, ports)
        guest_ports = _matching(
            text, host_ports, [_port(text, w) for w in guest_numbers.split("-")]
        )
    addr = _host(text, host or "")
    guest_addr = _guest(text, guest)
    pairs = zip(host_ports, guest_ports, strict=True)
    return [ForwardSpec(proto, (addr, ours), guest_addr, theirs) for ours, theirs in pairs]


def _split(text: str, ports: list[int]) -> tuple[range, range]:
    """One number: both sides; two: host and guest; three: a range and where it begins; four."""
    cut = {1: 1, 2: 1, 3: 2, 4: 2}.get(len(ports))
    if cut is None:
        raise _bad(text, "at most two ranges of ports")
    host_ports = _range(text, ports[:cut])
    return host_ports, _matching(text, host_ports, ports[cut:] or ports)


def _range(text: str, ends: list[int]) -> range:
    if len(ends) > 2 or ends[-1] < ends[0]:
        raise _bad(text, "a range of ports is FIRST-LAST")
    if ends[-1] - ends[0] >= RANGE_MAX:
        raise _bad(text, f"a range has at most {RANGE_MAX} ports")
    return range(ends[0], ends[-1] + 1)


def _matching(text: str, host_ports: range, ends: list[int]) -> range:
    first = ends[0]
    last = first + len(host_ports) - 1
    if len(ends) > 2 or (len(ends) == 2 and ends[1] != last):
        raise _bad(text, "the two ranges must be of one length")
    if last > PORT_MAX:
        raise _bad(text, f"the range ends above port {PORT_MAX}")
    return range(first, last + 1)


def _port(text: str, word: str) -> int:
    if not word.isdecimal() or not 0 < int(word) <= PORT_MAX:
        raise _bad(text, f"a port is a number from 1 to {PORT_MAX}")
    return int(word)


def _host(text: str, word: str) -> str:
    return NAMES[word] if word in NAMES else _address(text, word)


def _guest(text: str, word: str | None) -> str | None:
    return None if word is None else _address(text, word)


def _address(text: str, word: str) -> str:
    try:
        return socket.inet_ntoa(socket.inet_pton(socket.AF_INET, word))
    except OSError:
        raise _bad(text, f"{word} is no IPv4 address") from None


def _bad(text: str, advice: str) -> Failure:
    return Failure(f"--forward {text}: {advice}", USAGE)
