"""Guest to host, as people write it: an address and port in the network, and where they lead.

    [ADDR]:PORT=TARGET         ADDR is the gateway's where none is written

    10.0.2.100:80=127.0.0.1:8080       an address of the host's, or of anybody it reaches
    :5000=/run/db.sock                 a Unix stream socket
    10.0.2.100:7=cmd:/usr/bin/cat      a command of its own per connection: its stdin and stdout
    192.0.2.80:80=127.0.0.1:8080       instead of a host outside
    [fd00::100]:80=[::1]:8080

QEMU's notation is read as well: `tcp:10.0.2.100:80-cmd:cat`,
`tcp:10.0.2.100:80-tcp:127.0.0.1:8080`, `tcp:10.0.2.100:80-unix:/run/db.sock`.

Does not do: datagrams, opening anything.
"""

from __future__ import annotations

import re
import shlex
from typing import Final, NamedTuple, NoReturn

from slirp.address import addr_from_text, addr_to_text
from slirp.errors import ConfigError, shown
from slirp.forward import LOOPBACK, PORT_MAX, HostAddress, host_text

COMMAND: Final = "cmd:"
_FORM: Final = r"(\[[^]]*\]|[0-9.]*):([0-9]+)=(.+)"
_QEMU_FORM: Final = r"tcp:(\[[^]]*\]|[0-9.]*):([0-9]+)-(.+)"
_TARGET: Final = r"(?:tcp:)?(\[[^]]*\]|[0-9.]+|localhost):([0-9]+)"
ADVICE: Final = "write ADDR:PORT=TARGET, as 10.0.2.100:80=127.0.0.1:8080, =/PATH or =cmd:COMMAND"


class GuestForward(NamedTuple):
    """One of them. `addr` None: the gateway's."""

    addr: str | None
    port: int
    target: HostAddress = ""  # an address and port, or the path of a Unix socket
    command: str = ""  # instead of a target

    def __str__(self) -> str:
        """As `parse_guest_forward` reads it."""
        addr = self.addr or ""
        end = f"[{addr}]:{self.port}" if ":" in addr else f"{addr}:{self.port}"
        return f"{end}=" + (COMMAND + self.command if self.command else host_text(self.target))


def parse_guest_forward(text: str) -> GuestForward:
    """Raises ConfigError."""
    match = re.fullmatch(_QEMU_FORM, text, re.DOTALL) or re.fullmatch(_FORM, text, re.DOTALL)
    if match is None:
        _refuse(text, ADVICE)
    word, port, rest = match.groups()
    addr = _address(text, word) if word else None
    number = _port(text, port)
    if rest.startswith(COMMAND):
        command = rest.removeprefix(COMMAND).strip()
        try:
            words = shlex.split(command)
        except ValueError as error:
            _refuse(text, f"the command: {error}")
        if not words or "\0" in command:
            _refuse(text, "there is no command")
        return GuestForward(addr, number, command=command)
    path = rest.removeprefix("unix:")
    if path.startswith("/") and "\0" not in path:
        return GuestForward(addr, number, path)
    target = re.fullmatch(_TARGET, rest)
    if target is None:
        _refuse(text, ADVICE)
    host = LOOPBACK if target[1] == "localhost" else _address(text, target[1])
    return GuestForward(addr, number, (host, _port(text, target[2])))


def _port(text: str, word: str) -> int:
    if len(word) > len(str(PORT_MAX)) or not 0 < int(word) <= PORT_MAX:
        _refuse(text, f"a port is a number from 1 to {PORT_MAX}")
    return int(word)


def _address(text: str, word: str) -> str:
    bare = word[1:-1] if word.startswith("[") else word
    try:
        addr = addr_from_text(bare)
    except ValueError:
        _refuse(text, f"{shown(word)} is no IP address")
    if (len(addr) == 16) != word.startswith("["):
        _refuse(text, "an IPv6 address stands in brackets, and no other does")
    return addr_to_text(addr)


def _refuse(text: str, advice: str) -> NoReturn:
    raise ConfigError(f"guest forward {shown(text)}: {advice}", "guest forward")
