"""Linux network namespaces as guests: making one, entering one, configuring the TAP in it.

This process stays where the host's network is; only a TAP device's descriptor comes out of the
namespace. For a namespace that exists (`Errand`), a child process enters its user namespace and
then the namespace itself, opens the device, configures it, passes the descriptor back over a socket
(slirp.linux.report) and ends. A namespace of one's own (`unshare_as_anyone`) is for commands that
are started here: see slirp.linux.command.

Links and IPv4 are set by ioctl, IPv6 by netlink (slirp.linux.rtnetlink): nothing here needs
iproute2. A device whose IPv6 address is set here takes none from router advertisements, and does
not wait for duplicate address detection, since the only other station is ours. Where the kernel has
no IPv6, the device goes without, if it has an IPv4 address.

Does not do: PID namespaces, cgroups; several devices in one namespace.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from slirp.linux import report, syscalls
from slirp.linux.report import NamespaceError as NamespaceError

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Final, NoReturn

SIOCADDRT: Final = 0x890B  # linux/sockios.h from here on
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
SIOCSIFADDR: Final = 0x8916
SIOCSIFNETMASK: Final = 0x891C
SIOCSIFMTU: Final = 0x8922
SIOCSIFHWADDR: Final = 0x8924
IFF_UP: Final = 0x1
AF_INET: Final = 2  # linux/socket.h
ARPHRD_ETHER: Final = 1
RTF_UP: Final = 0x1  # linux/route.h
RTF_GATEWAY: Final = 0x2
IFNAMSIZ: Final = 16  # bytes, the closing NUL included

_IFREQ: Final = struct.Struct("16s24s")  # struct ifreq: name, union
_RTENTRY: Final = struct.Struct("L16s16s16sHhLPhPLLH")  # struct rtentry, linux/route.h

# What says that a kernel has no IPv6, or that it is disabled for the device.
NO_IPV6: Final = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.ENODEV, errno.EPERM)

NO_USER_NAMESPACES: Final = (
    "an ordinary user needs user namespaces for this and the kernel refuses them ({error}); "
    "see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and "
    "kernel.apparmor_restrict_unprivileged_userns, or run as root"
)


class Interface:
    """How the guest's end is configured. Without an address only the device is made."""

    def __init__(
        self, name: str, address: str | None = None, prefix_len: int = 24,
        gateway: str | None = None, mtu: int = 1500, mac: str | None = None, *,
        address6: str | None = None, prefix6_len: int = 64, gateway6: str | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.address = address
        self.prefix_len = prefix_len
        self.gateway = gateway
        self.mtu = mtu
        self.mac = mac
        self.address6 = address6
        self.prefix6_len = prefix6_len
        self.gateway6 = gateway6


class Target:
    """A namespace that exists, by its files."""

    def __init__(self, netns: str, userns: str | None = None) -> None:
        """`userns` None: the one that owns the network namespace."""
        self.netns = netns
        self.userns = userns

    @classmethod
    def of_pid(cls, pid: int, userns: str | None = None) -> Target:
        return cls(f"/proc/{pid}/ns/net", userns)


# --- configuration, inside the namespace ----------------------------------------------------------


def _ifreq(name: str, value: bytes) -> bytes:
    return _IFREQ.pack(name.encode(), value)


def _sockaddr(address: str) -> bytes:
    return struct.pack("=HH4s8x", AF_INET, 0, bytes(map(int, address.split("."))))


def netmask(prefix_len: int) -> str:
    return ".".join(map(str, (0xFFFFFFFF << (32 - prefix_len) & 0xFFFFFFFF).to_bytes(4, "big")))


def _bring_up(sock: socket.socket, name: str) -> None:
    answer = fcntl.ioctl(sock, SIOCGIFFLAGS, _ifreq(name, b""))
    (flags,) = struct.unpack_from("=H", answer, 16)
    fcntl.ioctl(sock, SIOCSIFFLAGS, _ifreq(name, struct.pack("=H", flags | IFF_UP)))


def _any_socket() -> socket.socket:
    import socket

    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def bring_loopback_up() -> None:
    with _any_socket() as sock:
        _bring_up(sock, "lo")


def _add_default_route(sock: socket.socket, gateway: str) -> None:
    anywhere, via = _sockaddr("0.0.0.0"), _sockaddr(gateway)
    flags = RTF_UP | RTF_GATEWAY
    entry = _RTENTRY.pack(0, anywhere, via, anywhere, flags, 0, 0, 0, 0, 0, 0, 0, 0)
    try:
        fcntl.ioctl(sock, SIOCADDRT, entry)
    except FileExistsError:
        pass


def configure(interface: Interface) -> None:
    """Give the device its MAC, MTU, address and default route, and bring it and `lo` up."""
    name = interface.name
    with _any_socket() as sock:
        if interface.mac is not None:
            from slirp.address import mac_from_text

            value = struct.pack("=H6s", ARPHRD_ETHER, mac_from_text(interface.mac))
            fcntl.ioctl(sock, SIOCSIFHWADDR, _ifreq(name, value))
        fcntl.ioctl(sock, SIOCSIFMTU, _ifreq(name, struct.pack("=i", interface.mtu)))
        _bring_up(sock, "lo")
        if interface.address is not None:
            fcntl.ioctl(sock, SIOCSIFADDR, _ifreq(name, _sockaddr(interface.address)))
            mask = _sockaddr(netmask(interface.prefix_len))
            fcntl.ioctl(sock, SIOCSIFNETMASK, _ifreq(name, mask))
        if interface.address6 is not None:
            _prepare_ipv6(name)
        _bring_up(sock, name)
        if interface.gateway is not None:
            _add_default_route(sock, interface.gateway)
    if interface.address6 is not None:
        try:
            _configure_ipv6(interface, interface.address6)
        except OSError as error:
            if interface.address is None or error.errno not in NO_IPV6:
                raise


def _prepare_ipv6(name: str) -> None:
    # What cannot be set is done without: /proc may be read-only, or have no IPv6 at all.
    for setting, value in (("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0")):
        try:
            write_to(f"/proc/sys/net/ipv6/conf/{name}/{setting}", value)
        except OSError:
            continue


def _configure_ipv6(interface: Interface, address: str) -> None:
    from slirp.linux import rtnetlink

    rtnetlink.add_address(interface.name, address, interface.prefix6_len)
    if interface.gateway6 is not None:
        rtnetlink.add_default_route(interface.name, interface.gateway6)


# --- a namespace that exists ----------------------------------------------------------------------


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
    netns = os.open(target.netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if target.userns is not None:
            userns: int | None = os.open(target.userns, os.O_RDONLY | os.O_CLOEXEC)
        else:
            userns = _owner_of(netns)
        if userns is not None:
            if not _is_own(userns, "/proc/self/ns/user"):
                syscalls.setns(userns, syscalls.CLONE_NEWUSER)
            os.close(userns)
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
    finally:
        os.close(netns)


class Errand:
    """What `make()` opens inside a namespace that exists, by a process that ends with it.

    The process is on its way from the start; `fd()` waits for it, once.
    """

    def __init__(self, target: Target, make: Callable[[], int]) -> None:
        self._channel, theirs = syscalls.socketpair()
        try:
            self._pid = os.fork()
            if self._pid == 0:
                _run_errand(theirs, target, make)
        finally:
            os.close(theirs)

    def fd(self) -> int:
        """The descriptor, which is the caller's. Raises NamespaceError."""
        try:
            (fd,) = report.read(self._channel)
            return fd
        finally:
            self.close()

    def close(self) -> None:
        """Leave it; what it opened is closed with it."""
        if self._pid:
            os.close(self._channel)
            os.waitpid(self._pid, 0)
            self._pid = 0


def _run_errand(channel: int, target: Target, make: Callable[[], int]) -> NoReturn:
    status = 1
    try:
        enter(target)
        report.send(channel, make())
        status = 0
    except BaseException as error:  # whatever it is: this process ends here, the parent tells
        report.send_failure(channel, error)
    finally:
        os._exit(status)


def tap_from(target: Target, make: Callable[[], int]) -> int:
    """An errand that is waited for at once. Raises NamespaceError."""
    return Errand(target, make).fd()


# --- a namespace of one's own ---------------------------------------------------------------------


def _write_maps(uid: int, gid: int, inner_uid: int, inner_gid: int) -> None:
    write_to("/proc/self/setgroups", "deny")
    write_to("/proc/self/uid_map", f"{inner_uid} {uid} 1")
    write_to("/proc/self/gid_map", f"{inner_gid} {gid} 1")


def write_to(path: str, text: str) -> None:
    """Into a file of the kernel's, in one call. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def unshare_as_anyone(flags: int, map_root: bool = False) -> None:
    """`unshare`: as root directly, as anyone else by way of a user namespace of one's own."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        try:
            syscalls.unshare(flags)
            return
        except PermissionError:  # root of a container that may not
            pass
    try:
        syscalls.unshare(flags | syscalls.CLONE_NEWUSER)
        _write_maps(uid, gid, *((0, 0) if map_root else (uid, gid)))
    except OSError as error:
        raise NamespaceError(NO_USER_NAMESPACES.format(error=error.strerror)) from None
