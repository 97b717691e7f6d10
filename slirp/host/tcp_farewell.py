"""Flows that are over for the guest while the host has still to take what the guest sent.

A connection may end with bytes on their way to the host: in the flow's spill, which the kernel has
had no room for, or in the kernel's send queue, which a reset would throw away (SO_LINGER 0 discards
it). So the socket stays here for a while. One that closes in order leaves when its spill is empty:
the kernel delivers the rest. One that resets leaves when the peer has acknowledged everything;
nobody reports that, so it is looked at, after LOOK_AFTER and then less and less often. Then comes
the RST. LINGER_FOR bounds both; after it the RST comes regardless, and before it where descriptors
run out and this one has waited longest.

Does not do: anything towards the guest.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import termios
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from slirp.host.descriptors import LINGER_RESET, LOOKS, Idle
from slirp.host.loop import Loop
from slirp.host.tcp_flow import TCP_CLOSE, tcp_state
from slirp.shortage import is_shortage, persist

if TYPE_CHECKING:
    from slirp.host.attachment import Attachment
    from slirp.host.descriptors import Descriptors
    from slirp.host.tcp_feed import Feeder
    from slirp.host.tcp_flow import TcpFlow

LINGER_FOR: Final = 60.0  # seconds for a host to take what the guest sent before it ended
LOOK_AFTER: Final = 0.02  # seconds to the first look at a send queue
LOOK_SHARE: Final = 4  # the next look comes after this part of the time that has passed


class Farewells:
    """The flows of one relay that have left its table with a socket still open."""

    def __init__(self, loop: Loop, feeder: Feeder, descriptors: Descriptors) -> None:
        self._descriptors = descriptors
        self._loop = loop
        self._feeder = feeder
        self._until: dict[TcpFlow, float] = {}
        self._resetting: set[TcpFlow] = set()

    def __contains__(self, flow: TcpFlow) -> bool:
        return flow in self._until

    def __len__(self) -> int:
        return len(self._until)

    def close(self, flow: TcpFlow, now: float) -> None:
        """In order: the kernel delivers what it has, once it has everything."""
        if flow.sock is None:
            return
        if flow.spill is None:
            self.release(flow)
        else:
            self._keep(flow, now, LINGER_FOR)

    def reset(self, flow: TcpFlow, now: float) -> None:
        """By a RST, behind what the guest sent before it."""
        if flow.sock is None:
            return
        if flow.spill is None and not unsent(flow.sock):
            self.cut(flow)
        else:
            self._resetting.add(flow)
            self._keep(flow, now, LOOK_AFTER)

    def _keep(self, flow: TcpFlow, now: float, first: float) -> None:
        self._until.setdefault(flow, now + LINGER_FOR)
        self._loop.visit_at(flow, now + first)

    def settle(self, flow: TcpFlow) -> None:
        """Something happened to it: is there still a spill that the host may take?"""
        if flow in self._until and flow.spill is None and flow not in self._resetting:
            self.release(flow)

    def handle_timeout(self, flow: TcpFlow, now: float) -> float | None:
        """The loop's visit to one of these."""
        until = self._until[flow]
        if now >= until:
            self.cut(flow)
            return None
        if flow not in self._resetting:
            return until
        if flow.sock is not None and (flow.spill is not None or unsent(flow.sock)):
            passed = now - (until - LINGER_FOR)
            return min(now + max(LOOK_AFTER, passed / LOOK_SHARE), until)
        self.cut(flow)
        return None

    def idlest(self, attachment: Attachment | None) -> Idle | None:
        """The one that has waited longest, of this port or of any."""
        for flow, until in islice(self._until.items(), LOOKS):
            if attachment is None or flow.attachment is attachment:
                return Idle(until - LINGER_FOR, partial(self.cut, flow))
        return None

    def cut(self, flow: TcpFlow) -> None:
        """By a RST, now: what is on its way is lost."""
        if flow.sock is not None:
            with contextlib.suppress(OSError):
                persist(flow.sock.setsockopt, socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        flow.spill = None
        self.release(flow)

    def release(self, flow: TcpFlow) -> None:
        """Close the socket."""
        sock = flow.sock
        self._until.pop(flow, None)
        self._resetting.discard(flow)
        if sock is not None:
            self._feeder.withdraw(flow)
            if flow.owned:
                self._feeder.drop(flow)  # closing over unread bytes would reset the host
            flow.sock = None
            self._loop.unregister(sock.fileno())
            sock.close()
            self._descriptors.release(flow.attachment)

    def end(self) -> None:
        """The network closes."""
        for flow in list(self._until):
            self.release(flow)


def unsent(sock: socket.socket) -> int:
    """Bytes in the kernel's send queue that the peer has not acknowledged (tcp(7), SIOCOUTQ).

    A Unix socket has none: what it was given is in its peer's queue. Neither has a connection that
    is over, though the kernel goes on counting.
    """
    if sock.family == socket.AF_UNIX:
        return 0
    try:
        if tcp_state(sock) == TCP_CLOSE:
            return 0
        return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), "little")
    except OSError as error:
        return 1 if is_shortage(error) else 0  # there may be some: whoever asks looks again
