"""A port under the network: what waits for room there, and what it carried.

Frames whose bytes the stack already has (ARP and DHCP replies, ICMP, control segments) go through
`send`; when the port has no room they wait in a short backlog, and beyond its bound they are lost
and counted, as on a wire. Whoever still has its bytes in a host socket does not queue: it claims
first and, when refused, waits here to be resumed. So back-pressure ends at the kernel.

Does not do: parsing, addressing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

from dma.iovec import IoVec, scatter_copy
from nic.port import VNET_NONE, Frame, Port, PortDefaults
from slirp.host.socket_endpoint import AT_ONCE, SocketEndpoint
from slirp.ip.family import Plain
from slirp.shortage import is_shortage
from slirp.wire.virtio_net import GSO_ECN, GSO_UDP_L4

if TYPE_CHECKING:
    from slirp.tcp.ahead import Shelf

RESUMES_PER_TURN: Final = 16  # who waits for room, looked at in one turn: most wait in vain
BACKLOG_MAX: Final = 256  # frames that wait for room; the next one is lost


class Outgoing(Protocol):
    """A frame for a guest, as the stack gives it: headers, a segment each, then payload."""

    @property
    def attachment(self) -> Attachment: ...
    @property
    def headers(self) -> tuple[bytes, ...]: ...
    @property
    def payload(self) -> IoVec: ...


class Resumable(Protocol):
    """Something that was refused a claim and goes on when there is room."""

    def resume(self, now: float) -> None:
        """There may be room now."""


class Gone(PortDefaults):
    """What stands in the place of a port that was taken off: no room, no frames."""

    def claim(self, size: int, headers: Sequence[int] = ()) -> None:
        return None

    def frames(self) -> Iterator[Frame]:
        return iter(())

    def fileno(self) -> int:
        return -1


class Attachment:
    """One port of a network."""

    def __init__(
        self, port: Port, name: str, number: int, endpoint: SocketEndpoint = AT_ONCE
    ) -> None:
        self.port: Port = port
        self.name = name
        self.number = number
        self.look: Plain | None = None  # how its frames are recognised (slirp.host.dispatch)
        self.keeps_frames: bool = getattr(port, "keeps_frames", False)
        self.unlabelled: bool = getattr(port, "unlabelled", False)
        # Who receives into its claims; what cannot be held must be filled at once.
        self.endpoint = endpoint if getattr(port, "holds_claims", False) else AT_ONCE
        self.learn()
        self.frames_in = 0
        self.frames_out = 0
        self.lost = 0
        self.sockets = 0  # of the host's, held by guests of this port
        self.flows = 0  # TCP flows of guests of this port
        self.mappings = 0  # UDP mappings of these
        self.shelf: Shelf | None = None  # its share of what is kept ahead of its turn
        self.shortages = 0  # times that the kernel had no memory for its frames, or what has some
        self.visit: float | None = None
        self._backlog: deque[tuple[tuple[bytes, ...], bytes, bytes]] = deque()
        self._waiting: dict[Resumable, None] = {}
        self._is_refusing = False  # somebody found no room since the last look

    def learn(self) -> None:
        """What the port can do: as it is put on the network, and where its driver changes it."""
        port = self.port
        self.offload = port.offload
        self.gso_tcp: bool = getattr(port, "gso_tcp", port.offload)
        self.gso_udp: bool = getattr(port, "gso_udp", False)
        self.is_down: bool = getattr(port, "is_down", False)  # nobody is behind it now
        # A round trip to its guests takes milliseconds: interrupts, a processor that is emulated.
        self.is_far: bool = getattr(port, "is_far", not port.offload)

    def takes(self, vnet: bytes) -> bool:
        """May a frame with this virtio-net header pass as it is?"""
        kind = vnet[1] & ~GSO_ECN
        if not kind:
            return self.offload or not vnet[0]
        return self.gso_udp if kind == GSO_UDP_L4 else self.gso_tcp

    def send(
        self,
        headers: tuple[bytes, ...],
        payload: Iterable[memoryview] = (),
        length: int = 0,
        vnet: bytes = VNET_NONE,
    ) -> None:
        """One frame: these headers, a segment each, then `length` bytes of payload."""
        if self._backlog or not self.try_send(headers, payload, length, vnet):
            if len(self._backlog) >= BACKLOG_MAX:
                self.lost += 1
                return
            self._backlog.append((headers, b"".join(payload), vnet))

    def try_send(
        self,
        headers: tuple[bytes, ...],
        payload: Iterable[memoryview] = (),
        length: int = 0,
        vnet: bytes = VNET_NONE,
    ) -> bool:
        """As `send`, but False where there is no room."""
        lengths = tuple(map(len, headers))
        size = sum(lengths) + length
        claim = self.port.claim(size, lengths)
        if claim is None:
            return False
        write_headers(claim.iov.segments, headers, lengths)
        if length:
            scatter_copy(claim.iov.slice(size - length, size).segments, payload)
        claim.commit(size, vnet)
        self.frames_out += 1
        return True

    def wait(self, who: Resumable) -> None:
        """Resume `who` when there may be room again."""
        self._waiting[who] = None
        self._is_refusing = True

    def forget(self, who: Resumable) -> None:
        """`who` no longer waits."""
        self._waiting.pop(who, None)

    def leave(self, now: float) -> None:
        """The port was taken off, and may be closed: whoever still has this attachment at hand
        finds no room, and who waits for room waits no longer."""
        self.port = Gone()
        self._backlog.clear()
        waiting, self._waiting = self._waiting, {}
        for who in waiting:
            who.resume(now)

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit: the port is polled at the end of every turn, so of this one too."""
        return None

    @property
    def congested(self) -> bool:
        """Does anything wait for room?"""
        return bool(self._backlog or self._waiting)

    def room(self, now: float) -> None:
        """There may be room: first the backlog, then some of those who wait, in turn."""
        backlog = self._backlog
        while backlog:
            headers, payload, vnet = backlog[0]
            if not self.try_send(headers, (memoryview(payload),), len(payload), vnet):
                self._is_refusing = True
                return
            backlog.popleft()
        self._is_refusing = False
        for who in list(islice(self._waiting, RESUMES_PER_TURN)):
            self.forget(who)
            try:
                who.resume(now)
            except OSError as error:  # its socket is watched again: the loop comes back to it
                if not is_shortage(error):
                    raise
                self.shortages += 1
            if self._is_refusing:
                return

    @property
    def has_more(self) -> bool:
        """Does somebody wait still, though nobody was refused?"""
        return bool(self._waiting) and not self._is_refusing


def send_all(frames: Iterable[Outgoing]) -> None:
    """Each frame to the port that it is for."""
    for frame in frames:
        frame.attachment.send(frame.headers, frame.payload.segments, len(frame.payload))


def write_headers(
    segments: Sequence[memoryview], headers: Sequence[bytes], lengths: Sequence[int]
) -> None:
    """Store headers in the leading segments of a claim, across segment ends where they must."""
    if not _cut_at(segments, lengths):
        scatter_copy(segments, (memoryview(b"".join(headers)),))
        return
    for index, header in enumerate(headers):
        segments[index][:] = header


def payload_views(
    segments: tuple[memoryview, ...], lengths: Sequence[int], size: int
) -> tuple[memoryview, ...]:
    """The views of a claim's vector behind its headers."""
    count = len(lengths)
    if len(segments) > count and _cut_at(segments, lengths):
        return segments[count:]
    return IoVec(segments).slice(sum(lengths), size).segments


def _cut_at(segments: Sequence[memoryview], lengths: Sequence[int]) -> bool:
    """Is each header a segment of its own? A claim is cut where asked, and then at buffer ends."""
    if len(segments) < len(lengths):
        return False
    for index, length in enumerate(lengths):  # noqa: SIM110 - half the time of all()
        if len(segments[index]) != length:
            return False
    return True
