"""Where machines connect: `unix:PATH`, `tcp:HOST:PORT`, `fd:N`, `dgram:PATH`, `udp:…`.

    unix:PATH                     a stream socket, mode 0600; any number of machines
    tcp:[HOST:]PORT               the same on a TCP port; without HOST 127.0.0.1
    fd:N                          a socket that this process was started with: one that listens,
                                  or the stream or datagram socket of one machine
    dgram:PATH[,MACHINE]          a datagram socket, mode 0600: one machine, or any number of those
                                  that connect to it; MACHINE: the only one's path
    udp:[HOST:]PORT,[HOST:]PORT   our address and the machine's, for one machine

`open_shared` opens PATH or fd:N for vhost-user or vfio-user, which are stream sockets as well.

Whoever connects is on the virtual network and reaches what the host reaches, so a socket is for
its owner: a path has mode 0600 from its first moment, and a TCP or UDP address must be of the
loopback unless `allow_remote` says that others are meant.

A path that is taken is given up on when somebody answers there, or when it is no socket. A socket
that nobody listens at any more is what a crash left, and is replaced.

A machine that connects to a datagram socket has that socket for ever. `Renewable` makes the next
one at the same path: in a name beside it first, and moved over it, so that there is always one.

Does not do: encryption, authentication; abstract names, which have no mode.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Final, NamedTuple

from slirp.cli.failure import USAGE, Failure

BACKLOG: Final = 16
PATH_MAX: Final = 107  # bytes of sun_path without its final zero
PORT_MAX: Final = 65535
BESIDE: Final = "~"  # what follows a path's name while its next socket is made
LOOPBACK: Final = "127.0.0.1"
FORMS: Final = "write unix:PATH, tcp:HOST:PORT, fd:N, dgram:PATH or udp:HOST:PORT,HOST:PORT"


class Path(NamedTuple):
    """What was made at a path."""

    path: str
    device: int
    inode: int

    def remove(self) -> None:
        """Remove it, if it is still that."""
        if _identity(self.path) == (self.device, self.inode):
            with contextlib.suppress(OSError):
                os.unlink(self.path)


class Endpoint(NamedTuple):
    """An open socket and what it is called in messages."""

    name: str
    sock: socket.socket
    path: str = ""  # to be removed at the end
    identity: tuple[int, int] = (0, 0)  # device and inode of what was made at `path`
    peer: str = ""  # of a datagram socket with a path: the only machine meant
    protocol: str = ""  # what comes over the stream: frames, or this

    @property
    def is_datagram(self) -> bool:
        return self.sock.type == socket.SOCK_DGRAM

    @property
    def listens(self) -> bool:
        return bool(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    @property
    def made(self) -> Path | None:
        """What was made for it."""
        return Path(self.path, *self.identity) if self.path else None

    def remove(self) -> None:
        """Remove the path, if it is still what was made here. The socket has another owner."""
        if self.made is not None:
            self.made.remove()


class Renewable:
    """A datagram socket with a path, of which there is always a fresh one."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def renew(self) -> socket.socket:
        """Another socket at the path, which is this one's from now on. Raises OSError."""
        path, *identity = self.made
        beside = f"{path[: PATH_MAX - len(BESIDE)]}{BESIDE}"
        if _identity(path) != tuple(identity):
            raise FileExistsError(errno.EEXIST, "another socket is at the path")
        sock = _bind(beside, socket.SOCK_DGRAM)
        try:
            os.rename(beside, path)
        except OSError:
            sock.close()
            os.unlink(beside)
            raise
        self.made = Path(path, *_identity(path))
        return sock

    def remove(self) -> None:
        """Remove the path, if it is still what was made last."""
        self.made.remove()


def open_endpoint(text: str, *, allow_remote: bool = False) -> Endpoint:
    """Open what `text` names. Raises Failure, with a line that says what to do."""
    kind, colon, rest = text.partition(":")
    if not colon or not rest:
        raise _bad(text, FORMS)
    match kind:
        case "unix":
            return _open_path(text, rest, socket.SOCK_STREAM)
        case "dgram":
            path, _, peer = rest.partition(",")
            return _open_path(f"dgram:{path}", path, socket.SOCK_DGRAM)._replace(peer=peer)
        case "tcp":
            return _open_tcp(text, _address(text, rest, allow_remote))
        case "udp":
            ours, comma, theirs = rest.partition(",")
            if not comma:
                raise _bad(text, "write udp:HOST:PORT,HOST:PORT, the second for the machine")
            return _open_udp(
                text, _address(text, ours, allow_remote), _address(text, theirs, allow_remote)
            )
        case "fd":
            return _open_fd(text, rest)
    raise _bad(text, FORMS)


def open_shared(text: str, protocol: str) -> Endpoint:
    """Open a path or fd:N for vhost-user or vfio-user. Raises Failure."""
    if text.startswith("fd:"):
        endpoint = _open_fd(text, text.removeprefix("fd:"))
    else:
        endpoint = _open_path(text, text.removeprefix("unix:"), socket.SOCK_STREAM)
    if endpoint.sock.family != socket.AF_UNIX or endpoint.is_datagram:
        raise Failure(f"{text}: {protocol} needs a Unix stream socket")
    return endpoint._replace(protocol=protocol)


def _bad(text: str, advice: str) -> Failure:
    return Failure(f"{text}: {advice}", USAGE)


def _failed(text: str, error: OSError) -> Failure:
    return Failure(f"{text}: {error.strerror or error}")


# Paths


def _open_path(text: str, path: str, kind: int) -> Endpoint:
    if not 0 < len(os.fsencode(path)) <= PATH_MAX:
        raise _bad(text, f"a path of 1 to {PATH_MAX} bytes is needed")
    _clear(text, path, kind)
    try:
        sock = _bind(path, kind)
    except OSError as error:
        raise _failed(text, error) from None
    return Endpoint(text, sock, path, _identity(path))


def _bind(path: str, kind: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        sock.bind(path)
        if kind == socket.SOCK_STREAM:
            sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def _clear(text: str, path: str, kind: int) -> None:
    """Remove a socket that nobody answers at."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # nothing there, or bind() has the better words for it
        return
    if not stat.S_ISSOCK(mode):
        raise Failure(f"{text}: there is something that is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        if probe.connect_ex(path) != errno.ECONNREFUSED:
            raise Failure(f"{text}: another program answers there; choose another path")
    with contextlib.suppress(OSError):
        os.unlink(path)


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.lstat(path)
    except OSError:
        return (0, 0)
    return (status.st_dev, status.st_ino)


# Addresses


def _address(text: str, word: str, allow_remote: bool) -> tuple[str, int]:
    host, _, port = word.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) <= PORT_MAX:
        raise _bad(text, f"a port is a number from 1 to {PORT_MAX}")
    host = LOOPBACK if host in ("", "localhost") else host
    try:
        addr = socket.inet_ntoa(socket.inet_pton(socket.AF_INET, host))
    except OSError:
        raise _bad(text, f"{host} is no IPv4 address") from None
    if not addr.startswith("127.") and not allow_remote:
        raise _bad(
            text, f"{addr} is open to other hosts, and there is no password; "
            "use 127.0.0.1, or --allow-remote if that is meant"
        )  # fmt: skip
    return addr, int(port)


def _open_tcp(text: str, address: tuple[str, int]) -> Endpoint:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _failed(text, error) from None
    return Endpoint(text, sock)


def _open_udp(text: str, ours: tuple[str, int], theirs: tuple[str, int]) -> Endpoint:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.bind(ours)
        sock.connect(theirs)  # from now on the kernel drops what others send
    except OSError as error:
        sock.close()
        raise _failed(text, error) from None
    return Endpoint(text, sock)


def _open_fd(text: str, word: str) -> Endpoint:
    if not word.isdecimal():
        raise _bad(text, "a descriptor is a number")
    try:
        sock = socket.socket(fileno=int(word))
    except OSError:
        raise Failure(f"{text}: that descriptor is no open socket") from None
    sock.setblocking(False)
    if sock.type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        sock.detach()
        raise Failure(f"{text}: neither a stream nor a datagram socket")
    return Endpoint(text, sock)
