"""What a child process in a namespace tells its parent: descriptors, or what went wrong.

One message over a socket of sequenced packets: a word with descriptors beside it (SCM_RIGHTS), or a
text, which becomes the parent's NamespaceError. A child that says nothing has ended.

Does not do: more than one message.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from typing import Final

REPORT_MAX: Final = 4096  # bytes of text
DESCRIPTORS_MAX: Final = 8
FAILED: Final = b"!"

TUN: Final = "/dev/net/tun"
TUN_HINTS: Final = {
    errno.EACCES: f" (for ordinary users it needs mode 666: sudo chmod 666 {TUN})",
    errno.ENOENT: " (load the kernel's module: sudo modprobe tun)",
    errno.ENODEV: " (load the kernel's module: sudo modprobe tun)",
}


class NamespaceError(Exception):
    """A namespace that cannot be made, entered or configured; the text says what to do."""


def send(channel: int, *fds: int) -> None:
    """For the child: all went well, here they are."""
    import socket

    with socket.socket(fileno=channel) as sock:
        socket.send_fds(sock, [b"ok"], fds)
        sock.detach()


def send_failure(channel: int, error: BaseException) -> None:
    """For the child: why it ends."""
    try:
        os.write(channel, FAILED + _plain(error).encode()[: REPORT_MAX - 1])
    except OSError:  # the parent does not listen any more
        pass


def read(channel: int) -> list[int]:
    """For the parent: the child's descriptors, or NamespaceError with its words."""
    import socket

    with socket.socket(fileno=channel) as sock:
        data, fds, _, _ = socket.recv_fds(sock, REPORT_MAX, DESCRIPTORS_MAX)
        sock.detach()
    for fd in fds:
        os.set_inheritable(fd, False)
    if fds:
        return fds
    raise NamespaceError(data[1:].decode() or "the process in the namespace ended unexpectedly")


def _plain(error: BaseException) -> str:
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        hint = TUN_HINTS.get(error.errno or 0, "") if error.filename == TUN else ""
        return f"{where}{error.strerror or error}{hint}"
    if isinstance(error, NamespaceError):
        return str(error)
    return f"{type(error).__name__}: {error}"
