"""A vfio-user connection as a port: a PCI card that a machine's own driver runs.

The client (QEMU) connects, passes the machine's memory by descriptor and sends each access to the
card's registers as a message. What a message does is nic/vfio_user/server.py's; the card is a
PCnet-PCI II (nic/pcnet_card.py), whose rings lie in the machine's memory. So a host's socket fills
the guest's receive buffers directly, and what the guest sends is seen where it lies: no byte is
copied here.

`fileno()` is an epoll descriptor with the socket and the card's doorbell. `frames` first obeys what
the client says, then hands out what the card has fetched; `poll`, at the end of the loop's turn,
runs the completions, which interrupt the guest by its eventfd.

What a client does wrong ends this connection and no other: `on_gone` is told why from within
`frames()`; without one it raises `DeviceGone`. What a guest writes into the card's registers and
rings is the card's business, and at worst its own master abort.

A client that truncates a file which it has lent has done wrong as well (dma/sigbus.py).

`carried` and `resume` have another process go on with the connection: the socket, descriptors of
memory and of the interrupt's event, and the card's registers and places in its rings.

Does not do: listen or connect (slirp/machines.py). What a client could still do to us is as with
vhost-user (nic/vhost_user/port.py).
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from dma import sigbus
from dma.transfer import DmaPath
from nic.engine import FRAME_MAX
from nic.fdstream import Hangup, take_eventfd
from nic.pcnet_card import PcnetCard
from nic.port import DeviceGone, Frame, PortDefaults
from nic.receiver import RxClaim
from nic.vfio_user.channel import Channel
from nic.vfio_user.intx import CLOSED, Intx
from nic.vfio_user.memory import Exists, MachineMemory
from nic.vfio_user.messages import BadMessage
from nic.vfio_user.server import Server

_LOST: Final = "took back memory that it had lent"


class VfioUserPort(PortDefaults):
    """One machine's connection. `path(stage, memory)` may put taps into the way to its memory."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        mac: bytes,
        mtu: int = 1500,
        on_gone: Callable[[str], None] | None = None,
        path: Callable[[str, DmaPath], DmaPath] = lambda stage, memory: memory,
    ) -> None:
        self.max_frame = min(14 + mtu, FRAME_MAX)
        self.mac = mac  # the card's
        self.gone = ""  # why it is over
        self.broken = False  # it is, because the client broke the protocol
        self._on_gone = on_gone
        self._channel = Channel(sock)
        self._memory = MachineMemory()
        self._intx = Intx()
        self.card = PcnetCard(
            self._memory, self._intx.set_level, mac=mac, max_frame=self.max_frame, path=path
        )
        self.chip = self.card.chip
        self._faults = sigbus.faults
        self._server = Server(self.card, self._memory, self._intx, check_event)
        self._epoll = select.epoll()
        for fd in (self._channel.fileno(), self.chip.fileno()):
            self._epoll.register(fd, select.EPOLLIN)

    @property
    def stats(self) -> dict[str, int]:
        """The chip's counters."""
        return self.chip.stats

    def fileno(self) -> int:
        return self._epoll.fileno()

    def claim(self, size: int, headers: Sequence[int] = ()) -> RxClaim | None:
        return None if self.gone else self.chip.claim(size, headers)

    def poll(self, now: float) -> float | None:
        if self.gone:
            return None
        look_at = self.chip.poll(now)
        if sigbus.faults != self._faults:
            self._look_for_loss()
        return None if self.gone else look_at

    def frames(self) -> Iterator[Frame]:
        if self.gone:
            return
        try:
            self._obey()
        except BadMessage as bad:
            self.broken = True
            self._end(str(bad))
        except Hangup as hangup:
            self._end(str(hangup))
        else:
            yield from self.chip.frames()
            if sigbus.faults != self._faults:
                self._look_for_loss()

    def _look_for_loss(self) -> None:
        """Memory was lost: is it this machine's? Zeros have been in its place since then."""
        self._faults = sigbus.faults
        if self._memory.is_lost:
            self.broken = True
            self._end(_LOST)

    def _obey(self) -> None:
        """What one read brings; the rest is there in the next frames()."""
        if not self._channel.read():
            return
        while (message := self._channel.next()) is not None:
            try:
                reply = self._server.handle(message)
            finally:
                for fd in message.fds:
                    os.close(fd)
            if reply is not None:
                self._channel.send(reply)

    # Another process

    def carried(self, place: Callable[[int], int]) -> dict[str, Any]:
        """What a port in another process needs; `place` notes a descriptor for it.

        What was done is shown to the driver, and claims that are open are void.
        """
        return {
            **self._channel.carried(place),
            "mac": self.mac.hex(),
            "has_version": self._server.has_version,
            "card": self.card.carried(),
            "intx": self._intx.carried(place),
            "regions": self._memory.carried(place),
        }

    def resume(self, values: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Go on from there, with the same socket; the card has its address already.

        Raises ValueError, LookupError, TypeError or OSError.
        """
        self._channel.resume(values, fds)
        self._server.has_version = bool(values["has_version"])
        try:
            self._memory.resume(values["regions"], fds)
        except Exists:
            raise ValueError("regions that are over each other") from None
        self._intx.resume(values["intx"], fds)
        self.card.resume(values["card"])

    def abandon(self) -> None:
        """Another process goes on. The card does nothing unless it is asked to."""

    def _end(self, why: str) -> None:
        self.gone = why
        self._stop()
        if self._on_gone is None:
            raise DeviceGone(errno.ENOTCONN, f"the machine {why}")
        self._on_gone(why)

    def _stop(self) -> None:
        """Nothing reaches the machine's memory from here on, and nobody is interrupted."""
        self._intx.connect(CLOSED)
        self.card.reset()
        self._memory.clear()

    def close(self) -> None:
        """Close the connection."""
        self._stop()
        self._epoll.close()
        self.chip.close()
        self._channel.close()


def check_event(fd: int) -> None:
    """Raises BadMessage where this is no eventfd."""
    if not take_eventfd(fd):
        raise BadMessage("sent a descriptor for events that is no eventfd")
