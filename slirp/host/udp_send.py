"""Datagrams to the host's kernel, and what it says when it takes them not.

A send fails for two reasons that look alike. An ICMP error for an *earlier* datagram waits in the
socket and is reported once, by whatever call comes next: the same send, tried again, succeeds. A
failure that stays is this datagram's own: there is no route, a filter forbids it, it is longer than
the path takes and may not be fragmented. `send_datagrams` tells the second kind from the first.

Several datagrams handed over as one (`size` bytes each, UDP_SEGMENT) may be refused where each of
them would pass (the path's MTU, a device without checksums): then they go one by one.

Does not do: telling the guest (slirp.host.socket_errors makes the error of it).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from dma.iovec import IoVec
from slirp.shortage import persist

if TYPE_CHECKING:
    from slirp.address import SockAddr
    from slirp.host.pktinfo import Control

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
SO_MEMINFO: Final = 55  # asm-generic/socket.h
_MEMINFO: Final = struct.Struct("=9I")  # linux/sock_diag.h, SK_MEMINFO_VARS; the last is drops
QUEUE_LEN: Final = 4 << 20  # bytes of a socket's receive queue that is asked for. The kernel gives
# up to twice net.core.rmem_max (212,992) and charges a small datagram 832: 512 of them at least,
# where the default has room for 256.
# What a path says that cannot take several as one
REFUSALS: Final = (errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.EOPNOTSUPP)


def send_datagrams(
    sock: socket.socket,
    payload: tuple[memoryview, ...],
    size: int,
    address: SockAddr,
    control: Control = (),
) -> int:
    """One datagram, or with `size` several of that many bytes: 0, or the errno of the failure."""
    if not size:
        return _send(sock, payload, address, control)
    segment = (SOL_UDP, UDP_SEGMENT, size.to_bytes(2, "little"))
    failure = _send(sock, payload, address, (*control, segment))
    if failure in REFUSALS:
        failures = [_send(sock, piece, address, control) for piece in cut(payload, size)]
        failure = next(filter(None, failures), 0)
    return failure


def _send(
    sock: socket.socket, payload: tuple[memoryview, ...], address: SockAddr, control: Control
) -> int:
    failure = 0
    for _ in range(2):
        try:
            sock.sendmsg(payload, control, 0, address)
        except BlockingIOError:  # a full queue loses datagrams, as any link does
            return errno.EAGAIN
        except OSError as error:
            failure = error.errno or errno.EIO
        else:
            return 0
    return failure


def cut(payload: tuple[memoryview, ...], size: int) -> Iterator[tuple[memoryview, ...]]:
    """The datagrams of a run."""
    whole = IoVec(payload)
    for at in range(0, len(whole), size):
        yield whole.slice(at, min(at + size, len(whole))).segments


def widen_queue(sock: socket.socket) -> None:
    """Have room for a burst that comes while the loop does something else."""
    persist(sock.setsockopt, socket.SOL_SOCKET, socket.SO_RCVBUF, QUEUE_LEN)


def dropped_by_kernel(sock: socket.socket) -> int:
    """Datagrams that came when the socket's receive queue was full."""
    with contextlib.suppress(OSError):  # before Linux 4.12
        drops: int = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size))[
            8
        ]
        return drops
    return 0
