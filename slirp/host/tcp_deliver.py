"""The way to the host: a guest's payload into the host's socket, straight from the guest's memory.

`deliver` gives the bytes that are in order to `sendmsg` as they lie; what the kernel does not take
is copied to the flow's spill, which `drain` empties when the socket has room. The window offered to
the guest is the free space of the socket's send queue, so a spill is rare, and bounded by it. Bytes
that came ahead of their turn are copied (`keep`) and follow when the gap before them closes
(`deliver_kept`); all that is kept is charged to the port's shelf, which is part of the network's.

A host that is broken takes nothing more: what a guest sends it is dropped, so that the guest is not
held up on its way to the host's last bytes.

Does not do: sequence numbers (slirp.tcp), decide when (slirp.host.tcp).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from dma.iovec import IoVec
from slirp.shortage import is_shortage
from slirp.tcp.ahead import Shelf
from slirp.tcp.seq import HALF, MASK

if TYPE_CHECKING:
    from slirp.host.attachment import Attachment
    from slirp.host.descriptors import Descriptors
    from slirp.host.tcp_feed import Feeder
    from slirp.host.tcp_flow import TcpFlow

KEPT_MAX: Final = 64 << 20  # bytes kept ahead of their turn, all flows together; then dropped
KEPT_COST: Final = 128  # bytes charged for what a kept segment costs beside its payload


class Deliverer:
    """What a TcpRelay sends to hosts with."""

    def __init__(self, feeder: Feeder, descriptors: Descriptors) -> None:
        self._feeder = feeder
        self._descriptors = descriptors
        self.shelf = Shelf(KEPT_MAX)
        self.copied = 0  # bytes that went through a spill, or were kept
        self.to_host = 0

    def deliver(
        self, flow: TcpFlow, payload: tuple[memoryview, ...], skip: int, take: int, now: float
    ) -> None:
        """`take` bytes of the payload, behind the first `skip`, are next for the host."""
        if len(payload) != 1:
            payload = IoVec(payload).slice(skip, skip + take).segments
        elif skip or take != len(payload[0]):
            payload = (payload[0][skip : skip + take],)
        sock = flow.sock
        if sock is None or flow.broken_until is not None:
            return
        sent = 0
        if flow.spill is None:
            try:
                sent = sock.send(payload[0]) if len(payload) == 1 else sock.sendmsg(payload)
            except BlockingIOError:
                pass
            except OSError as error:
                if not is_shortage(error):
                    flow.host_failed(now)
                    return
                flow.relay.retry(flow, now)
            self.to_host += sent
        if sent < take:
            self._spill(flow, bytes(IoVec(payload).slice(sent, take)))

    def _spill(self, flow: TcpFlow, rest: bytes) -> None:
        self.copied += len(rest)
        if flow.spill is None:
            flow.spill = deque()
            self._feeder.arm(flow)
        flow.spill.append(memoryview(rest))
        flow.spilled += len(rest)

    def drain(self, flow: TcpFlow, now: float) -> bool:
        """Send what is spilled; is the spill gone?"""
        spill, sock = flow.spill, flow.sock
        assert spill is not None
        assert sock is not None
        while spill:
            try:
                sent = sock.send(spill[0])
            except BlockingIOError:
                self._feeder.arm(flow)
                return False
            except OSError as error:
                if is_shortage(error):
                    flow.relay.retry(flow, now)
                else:
                    flow.host_failed(now)
                return False
            self.to_host += sent
            flow.spilled -= sent
            if sent == len(spill[0]):
                spill.popleft()
            else:
                spill[0] = spill[0][sent:]
        flow.spill = None
        return True

    # Ahead of their turn

    def keep(
        self, flow: TcpFlow, seq: int, payload: tuple[memoryview, ...], skip: int, take: int
    ) -> None:
        """These bytes begin at `seq`, beyond a gap."""
        if flow.kept is None:
            flow.kept = {}
        data = bytes(IoVec(payload).slice(skip, skip + take))
        if len(data) > len(flow.kept.get(seq, b"")):
            flow.kept[seq] = data
            self.copied += take
            self._charge(flow, flow.kept_cost + take + KEPT_COST)

    def deliver_kept(self, flow: TcpFlow, seq: int, now: float) -> None:
        """RCV.NXT has passed over bytes that were kept: they follow those up to `seq`."""
        kept = flow.kept or {}
        end = flow.conn.receive.nxt
        seq &= MASK
        while seq != end:
            for start, data in kept.items():
                behind = (seq - start) & MASK
                if behind < len(data):
                    break
            else:
                break
            left = (end - seq) & MASK
            piece = memoryview(data)[behind : behind + left]
            self.deliver(flow, (piece,), 0, len(piece), now)
            seq = (seq + len(piece)) & MASK
        flow.kept = {
            start: data
            for start, data in kept.items()
            if 0 < (start + len(data) - end) & MASK < HALF
        } or None
        self._charge(flow, sum(len(data) + KEPT_COST for data in (flow.kept or {}).values()))

    def forget(self, flow: TcpFlow) -> None:
        """Nothing that is kept will be wanted."""
        flow.kept = None
        if flow.kept_cost:
            self._charge(flow, 0)

    def shelf_of(self, attachment: Attachment) -> Shelf:
        """The port's part of what may be kept."""
        share = self._descriptors.share_of(KEPT_MAX)
        shelf = attachment.shelf
        if shelf is None:
            shelf = attachment.shelf = Shelf(share, self.shelf)
        else:
            shelf.resize(share)  # ports come and go
        return shelf

    def _charge(self, flow: TcpFlow, cost: int) -> None:
        self.shelf_of(flow.attachment).charge(cost - flow.kept_cost)
        flow.kept_cost = cost
