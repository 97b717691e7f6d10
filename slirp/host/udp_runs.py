"""Runs of datagrams: several of one size between the same two endpoints cross as one.

From the guest: what one batch of frames brings for the same destination leaves with one `sendmsg`
and UDP_SEGMENT, from where it lies in the guest's memory. Frames are held until then, so their port
must keep them (`keeps_frames`). A run ends with the first datagram that is shorter, and before one
that is longer, goes elsewhere, or has another TTL or don't-fragment flag; so the order of a flow's
datagrams stays.

To the guest: datagrams that wait in a socket are received one behind the other into one claim, and
a port that takes UDP super-frames (`gso_udp`) gets them as one frame that its kernel cuts again.
The one that ends a run without belonging to it has to be moved to a claim of its own, and is
counted as copied.

Where the host's path refuses a run (its MTU is smaller than the datagrams, no checksum offload),
the datagrams go one by one from then on.

Does not do: waiting for company. A run is what is there already.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from dma.iovec import IoVec
from slirp.host.attachment import payload_views, write_headers
from slirp.host.udp_send import REFUSALS, SOL_UDP, UDP_SEGMENT

if TYPE_CHECKING:
    from nic.port import Frame
    from slirp.address import SockAddr
    from slirp.host.udp_mapping import Mapping
    from slirp.ip.template import Template

RUN_MAX: Final = 64  # datagrams, linux/udp.h UDP_MAX_SEGMENTS in its oldest form
RUNS_PER_TURN: Final = 8  # of one mapping towards the guest; then the others have their turn


class Route(NamedTuple):
    """Where a guest endpoint's datagrams to one destination go."""

    mapping: Mapping
    address: SockAddr


class Relay(Protocol):
    """What runs need of the relay that they belong to."""

    overflow: memoryview
    to_guest: int
    to_host: int
    failed: int

    def set_hops(self, mapping: Mapping, hops: int) -> None: ...
    def send_to(
        self,
        mapping: Mapping,
        payload: tuple[memoryview, ...],
        gso_size: int,
        address: SockAddr,
    ) -> None: ...
    def bear(self, error: OSError) -> None: ...
    def wait(self, mapping: Mapping) -> None: ...
    def template_from(self, mapping: Mapping, peer: SockAddr) -> Template: ...
    def pass_on(self, mapping: Mapping, peer: SockAddr, datagram: bytes, now: float) -> None: ...


class Outgoing:
    """The run that is being gathered from a batch of frames."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._route: Route | None = None
        self._hops = 0
        self._size = 0  # bytes of each datagram, but for the last
        self._octets = 0
        self._most = 0  # bytes that a run may have
        self._ended = False
        self._payloads: list[memoryview] = []
        self._frames: list[Frame] = []

    def add(self, route: Route, payload: memoryview, hops: int, frame: Frame, now: float) -> None:
        """A datagram of this batch; it leaves at the next flush at the latest."""
        size = len(payload)
        if self._payloads:
            if (
                route is self._route
                and size <= self._size
                and not self._ended
                and hops == self._hops
                and self._octets + size <= self._most
                and len(self._payloads) < RUN_MAX
            ):
                self._payloads.append(payload)
                self._frames.append(frame)
                self._octets += size
                self._ended = size < self._size
                return
            self.flush(now)
        self._route, self._hops, self._size, self._octets = route, hops, size, size
        self._most = route.mapping.guest.family.udp_super_max
        self._ended = not route.mapping.takes_runs
        self._payloads.append(payload)
        self._frames.append(frame)

    def flush(self, now: float) -> None:
        """Send what was gathered, and let go of its frames."""
        route, payloads = self._route, self._payloads
        if route is None:
            return
        self._route = None
        mapping = route.mapping
        mapping.used_at = now
        mapping.guest.seen_at = now
        try:
            self._relay.set_hops(mapping, self._hops)
            if len(payloads) == 1 or not self._send_run(mapping.sock, route, payloads):
                for payload in payloads:
                    self._relay.send_to(mapping, (payload,), 0, route.address)
        finally:  # or they would leave with the next run, to wherever that goes
            payloads.clear()
            for frame in self._frames:
                frame.release()
            self._frames.clear()

    def _send_run(self, sock: socket.socket, route: Route, payloads: list[memoryview]) -> bool:
        """False: they have to go one by one."""
        segment = (SOL_UDP, UDP_SEGMENT, self._size.to_bytes(2, "little"))
        try:
            sock.sendmsg(payloads, (segment,), 0, route.address)
        except BlockingIOError:
            self._relay.failed += len(payloads)  # a full queue loses datagrams, as any link does
            return True
        except OSError as error:
            if error.errno in REFUSALS:
                route.mapping.takes_runs = False
            return False
        self._relay.to_host += len(payloads)
        return True


def receive_runs(relay: Relay, mapping: Mapping, room: int, now: float) -> None:
    """Pass on what the socket has, a run per frame.

    `room`: bytes of payload that one frame to the guest carries.
    """
    for _ in range(RUNS_PER_TURN):
        if not _receive_run(relay, mapping, room, now):
            return


def _receive_run(relay: Relay, mapping: Mapping, room: int, now: float) -> bool:
    """One run; whether there may be more."""
    guest = mapping.guest
    family = guest.family
    lengths, most = family.udp_lengths, family.udp_super_max
    size_max = family.udp_headers + most
    claim = guest.attachment.port.claim(size_max, lengths)
    if claim is None:
        relay.wait(mapping)
        return False
    views = payload_views(claim.iov.segments, lengths, size_max)
    payload = views[0] if len(views) == 1 else None  # one view is cut at half the cost of a vector
    receive, overflow = mapping.sock.recvmsg_into, relay.overflow
    first: SockAddr | None = None
    odd: tuple[SockAddr, bytes] | None = None
    at = size = count = 0
    more = True
    while count < RUN_MAX and at + size <= most:
        try:
            if at:
                left = (payload[at:],) if payload else IoVec(views).slice(at, most).segments
            else:
                left = views
            got, _, _, peer = receive((*left, overflow))
        except OSError as error:  # nothing more, or an error that the error queue tells of
            if not count:
                claim.cancel()
                relay.bear(error)
                return False
            more = False
            break
        if not count and 0 < got <= room:
            first, size = peer, got
        elif not count or peer != first or not 0 < got <= size:
            odd = peer, bytes(IoVec((*left, overflow)).slice(0, got))
            break
        at += got
        count += 1
        if got < size:
            break
    if first is None:
        claim.cancel()
    else:
        template = relay.template_from(mapping, first)
        ip, udp = template.udp(at, None)
        write_headers(claim.iov.segments, (guest.ethernet, ip, udp), lengths)
        vnet = family.udp_single if count == 1 else family.udp_vnet(size)
        claim.commit(family.udp_headers + at, vnet)
        guest.attachment.frames_out += 1
        mapping.used_at = now
        relay.to_guest += count
    if odd is not None:
        relay.pass_on(mapping, *odd, now)
    return more
