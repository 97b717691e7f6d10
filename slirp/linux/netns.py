"""Linux network namespaces as guests: making one, entering one, configuring the TAP in it.

This process stays where the host's network is; only a TAP device's descriptor comes out of the
namespace. For a namespace that exists (`tap_from`), a child process enters its user namespace and
then the namespace itself, opens the device, configures it, passes the descriptor back over a socket
(slirp.linux.report) and ends. A namespace of one's own (`unshare_as_anyone`) is for commands that
are started here: see slirp.linux.command.

Addresses, routes and links are set by ioctl: nothing here needs iproute2.

Does not do: IPv6 addresses, PID namespaces, cgroups; several devices in one namespace.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from slirp.address import mac_from_text
from slirp.linux import report, syscalls
from slirp.linux.report import NamespaceError as NamespaceError

SIOCADDRT: Final = 0x890B  # linux/sockios.h from here on
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
SIOCSIFADDR: Final = 0x8916
SIOCSIFNETMASK: Final = 0x891C
SIOCSIFMTU: Final = 0x8922
SIOCSIFHWADDR: Final = 0x8924
IFF_UP: Final = 0x1
ARPHRD_ETHER: Final = 1
RTF_UP: Final = 0x1  # linux/route.h
RTF_GATEWAY: Final = 0x2
IFNAMSIZ: Final = 16  # octets, the closing NUL included

_IFREQ: Final = struct.Struct("16s24s")  # struct ifreq: name, union
_RTENTRY: Final = struct.Struct("L16s16s16sHhLPhPLLH")  # struct rtentry, linux/route.h

NO_USER_NAMESPACES: Final = (
    "an ordinary user needs user namespaces for this and the kernel refuses them ({error}); "
    "see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and "
    "kernel.apparmor_restrict_unprivileged_userns, or run as root"
)


class Interface(NamedTuple):
    """How the guest's end is configured. Without an address only the device is made."""

    name: str
    address: str | None = None
    prefix_len: int = 24
    gateway: str | None = None
    mtu: int = 1500
    mac: str | None = None


class Target(NamedTuple):
    """A namespace that exists, by its files."""

    netns: str
    userns: str | None = None  # None: the one that owns the network namespace

    @classmethod
    def of_pid(cls, pid: int, userns: str | None = None) -> Target:
        return cls(f"/proc/{pid}/ns/net", userns)


# --- configuration, inside the namespace ----------------------------------------------------------


def _ifreq(name: str, value: bytes) -> bytes:
    return _IFREQ.pack(name.encode(), value)


def _sockaddr(address: str) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def netmask(prefix_len: int) -> str:
    return socket.inet_ntoa(struct.pack("!I", 0xFFFFFFFF << (32 - prefix_len) & 0xFFFFFFFF))


def _bring_up(sock: socket.socket, name: str) -> None:
    answer = fcntl.ioctl(sock, SIOCGIFFLAGS, _ifreq(name, b""))
    (flags,) = struct.unpack_from("=H", answer, 16)
    fcntl.ioctl(sock, SIOCSIFFLAGS, _ifreq(name, struct.pack("=H", flags | IFF_UP)))


def bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _bring_up(sock, "lo")


def _add_default_route(sock: socket.socket, gateway: str) -> None:
    anywhere, via = _sockaddr("0.0.0.0"), _sockaddr(gateway)
    flags = RTF_UP | RTF_GATEWAY
    entry = _RTENTRY.pack(0, anywhere, via, anywhere, flags, 0, 0, 0, 0, 0, 0, 0, 0)
    with contextlib.suppress(FileExistsError):
        fcntl.ioctl(sock, SIOCADDRT, entry)


def configure(interface: Interface) -> None:
    """Give the device its MAC, MTU, address and default route, and bring it and `lo` up."""
    name = interface.name
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if interface.mac is not None:
            value = struct.pack("=H6s", ARPHRD_ETHER, mac_from_text(interface.mac))
            fcntl.ioctl(sock, SIOCSIFHWADDR, _ifreq(name, value))
        fcntl.ioctl(sock, SIOCSIFMTU, _ifreq(name, struct.pack("=i", interface.mtu)))
        _bring_up(sock, "lo")
        if interface.address is not None:
            fcntl.ioctl(sock, SIOCSIFADDR, _ifreq(name, _sockaddr(interface.address)))
            mask = _sockaddr(netmask(interface.prefix_len))
            fcntl.ioctl(sock, SIOCSIFNETMASK, _ifreq(name, mask))
        _bring_up(sock, name)
        if interface.gateway is not None:
            _add_default_route(sock, interface.gateway)


# --- a namespace that exists ----------------------------------------------------------------------


@contextlib.contextmanager
def _namespace_fd(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_own(fd: int, path: str) -> bool:
    return os.path.samestat(os.fstat(fd), os.stat(path))


def _owner_of(netns: int) -> int | None:
    """The user namespace that owns a network namespace; None where it is above our own."""
    try:
        return fcntl.ioctl(netns, syscalls.NS_GET_USERNS)
    except OSError as error:
        if error.errno == errno.ENOTTY:
            path = os.readlink(f"/proc/self/fd/{netns}")
            raise NamespaceError(f"{path}: not a network namespace") from None
        if error.errno != errno.EPERM:
            raise
        return None


def enter(target: Target) -> None:
    """Move this process into the namespace, by way of the user namespace that rules over it."""
    with _namespace_fd(target.netns) as netns:
        if target.userns is not None:
            userns: int | None = os.open(target.userns, os.O_RDONLY | os.O_CLOEXEC)
        else:
            userns = _owner_of(netns)
        if userns is not None:
            if not _is_own(userns, "/proc/self/ns/user"):
                syscalls.setns(userns, syscalls.CLONE_NEWUSER)
            os.close(userns)
        syscalls.setns(netns, syscalls.CLONE_NEWNET)


def tap_from(target: Target, make: Callable[[], int]) -> int:
    """What `make()` opens inside the namespace, as a descriptor here.

    `make` runs in a process of its own, which ends with it. Raises NamespaceError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            _child_of_tap_from(theirs, target, make)
        theirs.close()
        try:
            (fd,) = report.read(ours)
            return fd
        finally:
            os.waitpid(pid, 0)


def _child_of_tap_from(channel: socket.socket, target: Target, make: Callable[[], int]) -> NoReturn:
    status = 1
    try:
        enter(target)
        report.send(channel, make())
        status = 0
    except BaseException as error:  # whatever it is: this process ends here, the parent tells
        report.send_failure(channel, error)
    finally:
        os._exit(status)


# --- a namespace of one's own ---------------------------------------------------------------------


def _write_maps(uid: int, gid: int, inner_uid: int, inner_gid: int) -> None:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{inner_uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{inner_gid} {gid} 1")


def unshare_as_anyone(flags: int, map_root: bool = False) -> None:
    """`unshare`: as root directly, as anyone else by way of a user namespace of one's own."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        with contextlib.suppress(PermissionError):  # root of a container that may not
            syscalls.unshare(flags)
            return
    try:
        syscalls.unshare(flags | syscalls.CLONE_NEWUSER)
        _write_maps(uid, gid, *((0, 0) if map_root else (uid, gid)))
    except OSError as error:
        raise NamespaceError(NO_USER_NAMESPACES.format(error=error.strerror)) from None
