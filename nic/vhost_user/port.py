"""A vhost-user connection as a port: the guest's virtio-net rings lie in memory that it shares.

The front-end (QEMU, and many others) passes its guest's memory and two eventfds for each ring over
a Unix socket; then frames cross without it. What crosses the socket is nic/vhost_user/backend.py's,
what crosses the rings nic/virtio/device.py's. Here is what is waited for and what is written:
`fileno()` is an epoll descriptor with the socket, the rings' kick descriptors and a bell of the
port's own, for when there is more to do though nobody kicks. `poll`, at the end of each turn of the
loop, shows the driver what was done in the turn and interrupts it at most once for each ring.

A host's socket fills the guest's buffers directly (`claim`), and what the guest sends is seen where
it lies (`frames`): no byte is copied here. With the offloads that Linux agrees to, a frame has up
to 64 KiB at any MTU, and nobody computes a checksum.

`offload`, `gso_tcp`, `gso_udp` and `max_frame` are what the driver agreed to, and may change
whenever a machine boots (firmware, then a kernel). `is_down` says that no ring runs: the machine is
stopped, or has migrated to another connection. `on_change` is called when any of it changes.

What a guest or a front-end does wrong ends this connection and no other: the rings stop, `on_gone`
is told why from within `frames()` or `poll()`, and the ring's error descriptor is rung. Without
`on_gone` they raise `DeviceGone`. A front-end that truncates a file which it has lent is one of
these (dma/sigbus.py).

`carried` and `resume` have another process go on with the connection: the socket, descriptors of
memory and of the rings' events, and where each ring goes on; all else is in the machine's memory.

Does not do: listen or connect (slirp/machines.py). A front-end may freeze its own guest; it could
freeze us with a file that never answers (FUSE) or an eventfd that it makes blocking again. Whoever
can connect has our user's rights, and could as well send us a signal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from dma import sigbus
from dma.transfer import DmaFault, DmaPath
from nic.doorbell import Doorbell
from nic.fdstream import Hangup, take_eventfd
from nic.port import DeviceGone, Frame, PortDefaults
from nic.vhost_user.backend import Backend, Reply
from nic.vhost_user.channel import Channel
from nic.vhost_user.memory import MemoryTable
from nic.vhost_user.messages import BadMessage
from nic.vhost_user.vring import CLOSED
from nic.virtio.chain import BrokenRing
from nic.virtio.device import NetDevice
from nic.virtio.receiver import RxClaim

MESSAGES_PER_CALL: Final = 64  # of one frames(); the rest are there in the next
LOOK_AFTER: Final = 0.001  # seconds between looks at rings that nobody kicks
EVENTS_MAX: Final = 64  # descriptors that one frames() hears of
_LOST: Final = "took back memory that it had lent"
_ONE: Final = (1).to_bytes(8, "little")


class VhostUserPort(PortDefaults):
    """One machine's connection. `path` may put taps between the device and the guest's memory."""

    keeps_frames = True  # frames stay where they are until they are released
    is_far = True  # an interrupt, and a processor that may be emulated, are in each round trip
    holds_claims = True  # and claims, until they are filled

    def __init__(
        self,
        sock: socket.socket,
        *,
        mtu: int = 1500,
        mac: bytes = bytes(6),
        on_gone: Callable[[str], None] | None = None,
        on_change: Callable[[], None] = lambda: None,
        path: Callable[[DmaPath], DmaPath] = lambda memory: memory,
    ) -> None:
        self.mtu = mtu
        self.mac = mac  # for a front-end that has none to give
        self.gone = ""  # why it is over
        self.broken = False  # it is, because of what the guest or the front-end did
        self._on_gone = on_gone
        self._on_change = on_change
        self._channel = Channel(sock)
        self._table = MemoryTable()
        self.device = NetDevice(path(self._table.memory), self._table.memory)
        self._backend = Backend(self.device, self._table, self, mtu, mac)
        self._bell = Doorbell()
        self._kicks: dict[int, int] = {}  # kick descriptor: ring
        self._fault = ""  # what broke while nobody could be told
        self._look_at: float | None = None
        self._faults = sigbus.faults
        self._epoll = select.epoll()
        for fd in (self._channel.fileno(), self._bell.fileno()):
            self._epoll.register(fd, select.EPOLLIN)
        self._read_features()

    def fileno(self) -> int:
        return self._epoll.fileno()

    @property
    def is_down(self) -> bool:
        """Does no ring run?"""
        return all(vring.ring is None for vring in self._backend.vrings.values())

    @property
    def stats(self) -> dict[str, int]:
        """The device's counters."""
        return self.device.stats

    # Towards the guest

    def claim(self, size: int, headers: Sequence[int] = ()) -> RxClaim | None:
        if size > self.max_frame:
            raise ValueError(f"a frame of {size} bytes; this port takes {self.max_frame}")
        try:
            return self.device.claim(size, headers)
        except (BrokenRing, DmaFault) as broken:
            self._fault = str(broken)
            self._bell.set()
            return None

    def poll(self, now: float) -> float | None:
        """Show the driver what was done; look at rings that nobody kicks."""
        if self.gone:
            return None
        if self._fault:
            self._break(self._fault)
            return None
        for index in self.device.publish():
            self._interrupt(index)
        if sigbus.faults != self._faults and self._has_lost():
            self._break(_LOST)
            return None
        return self._look(now)

    def _has_lost(self) -> bool:
        """Was it this machine's memory that was lost? Zeros have been in its place since then."""
        self._faults = sigbus.faults
        return self._backend.is_lost

    def _look(self, now: float) -> float | None:
        polled = [vring.index for vring in self._backend.vrings.values() if vring.is_polled]
        if not polled:
            self._look_at = None
        elif self._look_at is None or now >= self._look_at:
            for index in polled:
                self.device.kicked(index)
            if self.device.has_more:
                self._bell.set()
            self._look_at = now + LOOK_AFTER
        return self._look_at

    def _interrupt(self, index: int) -> None:
        vring = self._backend.vrings.get(index)
        if vring is not None and vring.call != CLOSED:
            self.call(vring.call)

    # From the guest

    def frames(self) -> Iterator[Frame]:
        if self.gone:
            return
        try:
            if self._fault:
                raise BrokenRing(self._fault)
            self._hear()
            yield from self.device.frames()
            if sigbus.faults != self._faults and self._has_lost():
                raise BrokenRing(_LOST)
        except (BrokenRing, DmaFault, BadMessage) as broken:
            self._break(str(broken))
        except Hangup as hangup:
            self._end(str(hangup))
        else:
            if self.device.has_more:
                self._bell.set()
            else:
                self._bell.clear()

    def _hear(self) -> None:
        """Who kicked, and what does the front-end want?"""
        has_message = False
        for fd, _ in self._epoll.poll(0, EVENTS_MAX):
            index = self._kicks.get(fd)
            if index is not None:
                with contextlib.suppress(BlockingIOError):
                    os.read(fd, 8)
                self.device.kicked(index)
            elif fd == self._channel.fileno():
                has_message = True
        if has_message:
            self._obey()

    def _obey(self) -> None:
        features, was_down = self.device.features, self.is_down
        for _ in range(MESSAGES_PER_CALL):
            message = self._channel.receive()
            if message is None:
                break
            try:
                reply = self._backend.handle(message)
            finally:
                for fd in message.fds:
                    os.close(fd)
            if reply is not None:
                self._answer(reply)
        if self.device.features is not features or self.is_down is not was_down:
            self._read_features()
            self._on_change()

    def _answer(self, reply: Reply) -> None:
        if reply.fd == CLOSED:
            self._channel.send(reply.data)
            return
        try:
            self._channel.send(reply.data, reply.fd)
        finally:
            os.close(reply.fd)

    def _read_features(self) -> None:
        features = self.device.features
        self.offload = features.offload
        self.gso_tcp = features.gso_tcp
        self.gso_udp = features.gso_udp
        self.max_frame = features.max_frame(self.mtu)

    # What the back-end asks for

    def kick_changed(self, index: int, old: int, new: int) -> None:
        if old != CLOSED:
            del self._kicks[old]
            self._epoll.unregister(old)
        if new != CLOSED:
            self._kicks[new] = index
            self._epoll.register(new, select.EPOLLIN)

    def call(self, fd: int) -> None:
        with contextlib.suppress(OSError):  # a full one has been rung often enough
            os.write(fd, _ONE)

    def check_event(self, fd: int) -> None:
        if not take_eventfd(fd):
            raise BadMessage("sent a descriptor for events that is no eventfd")

    # Another process

    def carried(self, place: Callable[[int], int]) -> dict[str, Any]:
        """What a port in another process needs; `place` notes a descriptor for it.

        What was done is shown to the driver, and claims that are open are void. A machine whose
        rings cannot be started again is over in the next turn, and nobody goes on with it.
        """
        values = {**self._channel.carried(place), "mac": self.mac.hex()}
        try:
            values |= self._backend.carried(place)
        except (BrokenRing, DmaFault, BadMessage) as broken:
            values["fault"] = self._fault = str(broken)
        self._bell.set()  # rings that were stopped are looked at anew
        return values

    def resume(self, values: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Go on from there, with the same socket. Raises ValueError, LookupError or TypeError."""
        if "fault" in values:
            raise ValueError(f"a machine {values['fault']}")
        self._channel.resume(values, fds)
        try:
            self._backend.resume(values, fds)
        except (BrokenRing, DmaFault, BadMessage) as bad:
            raise ValueError(str(bad)) from None
        self._read_features()
        self._bell.set()

    def abandon(self) -> None:
        """Another process goes on: the machine's memory is not touched any more."""
        self._backend.abandon()

    # The end

    def _break(self, why: str) -> None:
        if self._backend.is_lost:  # and what is wrong with the zeros says nothing
            why = _LOST
        self.broken = True
        for vring in self._backend.vrings.values():
            if vring.error != CLOSED:
                self.call(vring.error)
        self._end(why)

    def _end(self, why: str) -> None:
        self.gone = why
        self._stop()
        if self._on_gone is None:
            raise DeviceGone(errno.ENOTCONN, f"the machine {why}")
        self._on_gone(why)

    def _stop(self) -> None:
        self._bell.clear()
        with contextlib.suppress(BrokenRing, DmaFault):
            self._backend.close()

    def close(self) -> None:
        """Close the connection."""
        self._stop()
        self._epoll.close()
        self._bell.close()
        self._channel.close()
