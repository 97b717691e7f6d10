"""The host's resolvers, as resolv.conf(5) names them, followed when the file changes.

`parse_resolv_conf` reads the text: the first three `nameserver` lines, as the host's own resolver
library does, and the last `search` or `domain` line. Options are the library's business.

`ResolvConf` looks at the file at most once a second and reads it again when it is another one than
before. Where the file is missing, empty or unreadable, or names no resolver, the one on the host
itself is asked (`LOCAL`), as resolv.conf(5) says that the library does.

A resolver on the host's loopback (127.0.0.53, ::1) is as good as any: the host asks it, not the
guest. Addresses stay text, with the scope that link-local ones need (`fe80::1%eth0`).

Does not do: nsswitch, resolvers per interface.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, NamedTuple

from slirp.address import addr_from_text
from slirp.services import watched
from slirp.services.watched import Watched

NAMESERVERS_MAX: Final = 3  # MAXNS of resolv.conf(5)
SEARCH_MAX: Final = 32  # domains
FILE_MAX: Final = 65536  # bytes that are read of the file
LOCAL: Final = ("127.0.0.1",)  # resolv.conf(5), nameserver: where none is named
LOOK_EVERY: Final = watched.LOOK_EVERY


class ResolvText(NamedTuple):
    servers: tuple[str, ...]
    search: tuple[str, ...]


NOTHING: Final = ResolvText((), ())


def parse_resolv_conf(text: str) -> ResolvText:
    """What the file says; a line that says nothing sensible is passed over, as the host does."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or line[0] in "#;":
            continue
        if words[0] == "nameserver" and _is_address(words[1]):
            servers.append(words[1])
        elif words[0] == "search":
            search = tuple(words[1 : 1 + SEARCH_MAX])
        elif words[0] == "domain":
            search = (words[1],)
    return ResolvText(tuple(dict.fromkeys(servers))[:NAMESERVERS_MAX], search)


def _is_address(word: str) -> bool:
    address, percent, scope = word.partition("%")
    if percent and (":" not in address or not scope):
        return False
    try:
        addr_from_text(address)
    except ValueError:
        return False
    return True


def resolvers(text: str) -> tuple[str, ...]:
    """Whom a host with this file asks."""
    return parse_resolv_conf(text).servers or LOCAL


def read_file(path: str) -> bytes:
    """The file's bytes; also where it is a pipe that nobody writes to. Raises OSError."""
    return watched.read_file(path, FILE_MAX)


class ResolvConf:
    """One file, read when it changed. `stat` and `read` raise OSError as the originals do."""

    def __init__(
        self,
        path: str = "/etc/resolv.conf",
        *,
        stat: Callable[[str], os.stat_result] = os.stat,
        read: Callable[[str], bytes] | None = None,
    ) -> None:
        self.path = path
        self._file = Watched(path, parse_resolv_conf, size_max=FILE_MAX, stat=stat, read=read)

    @property
    def changes(self) -> int:
        """Times that what the file says became different."""
        return self._file.changes

    def servers(self, now: float) -> tuple[str, ...]:
        return self._file.look(now).servers or LOCAL

    def search(self, now: float) -> tuple[str, ...]:
        return self._file.look(now).search
