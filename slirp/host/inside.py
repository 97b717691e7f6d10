"""Sockets for services inside this process that guests reach by TCP.

A guest's connection to such a service is an ordinary flow (slirp.host.tcp) whose host side is one
end of a socket pair; the service reads and writes the other. `open_pair` makes the pair and charges
the service's end to the guest's port; the flow charges its own.

Does not do: anything with what is read.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from slirp.tcp import connection as tcp

if TYPE_CHECKING:
    from slirp.host.attachment import Attachment
    from slirp.host.descriptors import Descriptors
    from slirp.ip.neighbours import Guest

PAIR: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK

# A guest's SYN to a service: the flow's key, the segment, the guest, now. False: it is reset.
Service: TypeAlias = "Callable[[bytes, tcp.Segment, Guest, float], bool]"


def open_pair(
    descriptors: Descriptors, attachment: Attachment, now: float
) -> tuple[socket.socket, socket.socket] | None:
    """The service's end and the flow's; None where there is no room."""
    try:
        end, flows = socket.socketpair(type=PAIR)
    except OSError as error:
        is_full = error.errno in (errno.EMFILE, errno.ENFILE)
        if is_full and not descriptors.make_room(now):
            return None
        try:
            end, flows = socket.socketpair(type=PAIR)
        except OSError:
            return None
    ours = descriptors.admit(attachment, end, now)
    if ours is None:
        flows.close()
        return None
    return ours, flows
