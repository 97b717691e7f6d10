"""Linux network namespaces as guests: making one, entering one, configuring the TAP in it.

This process stays where the host's network is; only a TAP device's descriptor comes out of the
namespace. For a namespace that exists (`tap_from`), a child process enters its user namespace and
then the namespace itself, opens the device, configures it, passes the descriptor back over a socket
(SCM_RIGHTS) and ends. For a command of our own (`Command`), the child makes the namespaces first
(network and mount; as an ordinary user also a user namespace, which is what gives the right to the
others), sets the device up, waits until the parent's network runs, and becomes the command.

    parent                                child
    fork ───────────────────────────────→ unshare, maps, mounts, TAP, addresses, routes
    its descriptor  ←───── SCM_RIGHTS ─── ("ok", or the text of what went wrong)
    attaches it to a network, forwards …
    start() ──────────── one octet ─────→ execvp

A parent that ends takes its command with it (PR_SET_PDEATHSIG); the command's files of its own
(/etc/resolv.conf, /etc/hosts) are bind mounts from a tmpfs that has no other name, so nothing has
to be cleaned up. Addresses, routes and links are set by ioctl: nothing here needs iproute2.

Does not do: IPv6 addresses, PID namespaces, cgroups; several devices in one namespace. When the
host replaces its resolv.conf by another file of that name, the kernel drops the bind mount that
covered the old one, and a command that runs then sees the host's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from slirp.address import mac_from_text
from slirp.linux import syscalls

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

REPORT_MAX: Final = 4096  # octets of a child's report
SIGNALS_OF_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)  # which the interpreter ignores

EXIT_NOT_EXECUTABLE: Final = 126  # as shells have it
EXIT_NOT_FOUND: Final = 127

TUN: Final = "/dev/net/tun"
TUN_HINTS: Final = {
    errno.EACCES: f" (for ordinary users it needs mode 666: sudo chmod 666 {TUN})",
    errno.ENOENT: " (load the kernel's module: sudo modprobe tun)",
    errno.ENODEV: " (load the kernel's module: sudo modprobe tun)",
}

NO_USER_NAMESPACES: Final = (
    "an ordinary user needs user namespaces for this and the kernel refuses them ({error}); "
    "see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and "
    "kernel.apparmor_restrict_unprivileged_userns, or run as root"
)


class NamespaceError(Exception):
    """A namespace that cannot be made, entered or configured; the text says what to do."""


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


# --- a child's report -----------------------------------------------------------------------------


def _report(channel: socket.socket, fd: int) -> None:
    socket.send_fds(channel, [b"ok"], [fd])


def _report_failure(channel: socket.socket, text: str) -> None:
    with contextlib.suppress(OSError):
        channel.send(b"!" + text.encode()[: REPORT_MAX - 1])


def _read_report(channel: socket.socket) -> int:
    """The descriptor that the child sends, or NamespaceError with the child's words."""
    data, fds, _, _ = socket.recv_fds(channel, REPORT_MAX, 1)
    if fds:
        os.set_inheritable(fds[0], False)
        return fds[0]
    raise NamespaceError(data[1:].decode() or "the process in the namespace ended unexpectedly")


def _plain(error: BaseException) -> str:
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        hint = TUN_HINTS.get(error.errno or 0, "") if error.filename == TUN else ""
        return f"{where}{error.strerror or error}{hint}"
    if isinstance(error, NamespaceError):
        return str(error)
    return f"{type(error).__name__}: {error}"


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
            return _read_report(ours)
        finally:
            os.waitpid(pid, 0)


def _child_of_tap_from(channel: socket.socket, target: Target, make: Callable[[], int]) -> NoReturn:
    status = 1
    try:
        enter(target)
        _report(channel, make())
        status = 0
    except BaseException as error:  # whatever it is: this process ends here, the parent tells
        _report_failure(channel, _plain(error))
    finally:
        os._exit(status)


# --- a command in a namespace of its own ----------------------------------------------------------


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


def _relax(gid: int) -> None:
    # A file's capabilities do not count in a user namespace, so `ping` needs the ping socket; and
    # an ordinary user's server may have port 80 of a network that is the user's own.
    settings = {"ping_group_range": f"{gid} {gid}", "ip_unprivileged_port_start": "0"}
    for name, value in settings.items():
        with contextlib.suppress(OSError):
            Path("/proc/sys/net/ipv4", name).write_text(value)


def mount_files(files: Mapping[str, str]) -> list[str]:
    """Put other contents in the place of files, for this mount namespace; the paths that failed.

    The contents lie in a tmpfs that is unmounted again at once: only the files keep it alive. A
    path that does not exist (or is a dangling link) cannot be covered.
    """
    failed = []
    syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_SLAVE)
    place = "/tmp" if os.path.isdir("/tmp") else "/run"
    targets = {os.path.realpath(path): text for path, text in files.items()}
    syscalls.mount(
        "slirp", place, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "size=1m,mode=755"
    )
    for number, (target, text) in enumerate(targets.items()):
        source = os.path.join(place, str(number))
        Path(source).write_text(text)
        try:
            syscalls.mount(source, target, flags=syscalls.MS_BIND)
        except OSError:
            failed.append(target)
    syscalls.umount(place, syscalls.MNT_DETACH)
    return failed


class Command:
    """A command in a network namespace of its own, held until its network runs.

    `make_tap()` runs inside the namespace and returns the device's descriptor, which `ready()`
    hands out here. `files` are contents for paths that only the command sees. `before_exec()` runs
    last in the child, to undo what the parent did to itself (signal masks).
    """

    def __init__(
        self,
        argv: Sequence[str],
        make_tap: Callable[[], int],
        *,
        files: Mapping[str, str] | None = None,
        map_root: bool = False,
        before_exec: Callable[[], None] = lambda: None,
    ) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._channel.close()
            _child_of_command(theirs, parent, argv, make_tap, files or {}, map_root, before_exec)
        theirs.close()
        self.pidfd = os.pidfd_open(self.pid)  # readable when the command has ended
        self.status: int | None = None

    def ready(self) -> int:
        """Wait until the namespace is there: the TAP's descriptor. Raises NamespaceError."""
        return _read_report(self._channel)

    def start(self) -> None:
        """Let the command begin."""
        with contextlib.suppress(BrokenPipeError):
            self._channel.send(b"!")
        self._channel.close()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def wait(self) -> int:
        """The exit status as a shell gives it: 128 + the signal that killed it."""
        if self.status is None:
            _, status = os.waitpid(self.pid, 0)
            code = os.waitstatus_to_exitcode(status)
            self.status = code if code >= 0 else 128 - code
        return self.status

    def close(self) -> None:
        """End it, if it still runs, and give the descriptors back (not the TAP's)."""
        self._channel.close()
        if self.status is None:
            self.signal(signal.SIGKILL)
            self.wait()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def _child_of_command(
    channel: socket.socket,
    parent: int,
    argv: Sequence[str],
    make_tap: Callable[[], int],
    files: Mapping[str, str],
    map_root: bool,
    before_exec: Callable[[], None],
) -> NoReturn:
    status = 1
    try:
        unshare_as_anyone(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS, map_root)
        syscalls.die_with_parent(parent)
        for path in mount_files(files):
            os.write(2, f"slirp: warning: {path} is the host's own here\n".encode())
        _relax(os.getegid())
        tap = make_tap()
        _report(channel, tap)
        os.close(tap)
        if channel.recv(1):
            before_exec()
            status = _execute(argv)
    except BaseException as error:  # whatever it is: this process ends here, the parent tells
        _report_failure(channel, _plain(error))
    finally:
        os._exit(status)


def _execute(argv: Sequence[str]) -> int:
    """Become the command; returns only when that fails, with the exit status for it."""
    for number in SIGNALS_OF_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(argv[0], list(argv))
    except OSError as error:
        os.write(2, f"slirp run: {argv[0]}: {error.strerror}\n".encode())
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        return EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE
