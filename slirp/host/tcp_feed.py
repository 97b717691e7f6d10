"""The way to the guest: from the host socket's queue into claims, and what is acknowledged.

`pump` asks the connection what to send (an offset from SND.UNA and a length), claims a frame,
receives with MSG_PEEK at that offset straight into the claim's views (`_peek`), writes the headers
(`_fill`) and commits. What the guest has acknowledged is taken from the queue with MSG_TRUNC
(`drop`). `offer` works out how much the guest may send, from the free space of the kernel's queue
the other way.

The receive may be somebody else's to do (slirp.host.socket_endpoint). Then `pump` ends there, and
goes on in `arrived` if what was planned is still what the guest is to get; otherwise the claim is
cancelled and `pump` plans anew: peeking has taken nothing. A flow has one receive under way, and
nothing is dropped from the queue meanwhile, so that offsets mean what they meant.

Sockets without MSG_TRUNC (Unix streams) are dropped from by reading into a scratch area. A kernel
without SO_PEEK_OFF for TCP gets a discard segment in front of the claim's views.

Does not do: decide when (slirp.host.tcp), or what (slirp.tcp).
"""

from __future__ import annotations

import errno
import mmap
import socket
import struct
from typing import TYPE_CHECKING, Final, cast

from dma.iovec import IoVec
from slirp.host.attachment import payload_views, write_headers
from slirp.host.loop import EDGE, RDHUP, READABLE, URGENT, WRITABLE, Loop
from slirp.host.tcp_flow import SO_PEEK_OFF, Incoming, TcpFlow, has_ended, queued
from slirp.shortage import is_shortage
from slirp.tcp import connection as tcp
from slirp.tcp.seq import MASK
from slirp.wire.checksum import ones_sum

if TYPE_CHECKING:
    from nic.port import Claim, HoldableClaim
    from slirp.host.attachment import Attachment

DROP_AT: Final = 1024  # acknowledged bytes that are dropped from the host's queue at once; fewer
# wait for a chore, no longer: they may hold a large buffer, and with it the host's window
FRAMES_PER_PUMP: Final = 32  # frames of one flow in a row; then the others have their turn
SCRATCH_LEN: Final = 16 << 20  # bytes: the most that one MSG_TRUNC drops; never touched
UNIX_WINDOW: Final = 65536  # bytes offered where the host side is a Unix socket
WINDOW_SHARE: Final = 3  # quarters of the free send queue that are offered (overhead per skb)
VNETS_KEPT: Final = 4096  # virtio-net headers kept for reuse

SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("9I")  # sock_diag.h: [3] sndbuf, [5] wmem_queued
EDGE_BOTH: Final = READABLE | WRITABLE | EDGE | URGENT | RDHUP
ACK_OWED: Final = 1 << 16  # beside slirp.tcp's events: an ACK found no room at the port
MSG_PEEK: Final = int(socket.MSG_PEEK)
NOTHING_YET: Final = -1  # of _peek(), beside how many bytes came
LATER: Final = -2


class Feeder:
    """What a TcpRelay sends to guests with."""

    def __init__(self, loop: Loop, mtu: int) -> None:
        self._loop = loop
        self._max_frame = 14 + mtu  # bytes of one that is no super-frame
        self._scratch = mmap.mmap(-1, SCRATCH_LEN)
        self._vnets: dict[tuple[int, int, int], bytes] = {}
        self.to_guest = 0

    def offer(self, flow: TcpFlow) -> None:
        """Work out how much the guest may send."""
        # The window follows the free space of the kernel's send queue, less what still waits here.
        assert flow.sock is not None
        if flow.discard:
            try:
                info = _MEMINFO.unpack(flow.sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
            except OSError:  # the window stays as it is
                return
            free = info[3] - info[5]
            full = 3 * free < info[3]
            free = free * WINDOW_SHARE >> 2
        else:
            free, full = UNIX_WINDOW, False
        room = free - flow.spilled
        flow.conn.receive.set_room(room if room > 0 else 0)
        if full and not flow.armed:
            self.arm(flow)

    def arm(self, flow: TcpFlow) -> None:
        """Have the loop tell when the host takes more."""
        # The kernel calls a socket writable while a third of its queue is free. Polling one that
        # is not makes it report when it is so again (SOCK_NOSPACE), which a window that closes
        # before the queue is full would otherwise never see.
        assert flow.sock is not None
        flow.armed = True
        try:
            self._loop.modify(flow.sock.fileno(), EDGE_BOTH)
        except OSError:  # no memory for it
            flow.relay.retry(flow, self._loop.now)

    def pump(self, flow: TcpFlow, now: float) -> bool:
        """Send what the guest's window and the host's queue allow; was anything sent?"""
        conn, attachment = flow.conn, flow.guest.attachment
        if flow.receiving is not None:
            flow.receiving.again = True
            return False
        limit = self._limit(flow, attachment)
        lengths = (14, flow.template.ip_len, 20 + conn.timestamps.length)
        header_len = sum(lengths)
        emitted = False
        for _ in range(FRAMES_PER_PUMP):
            offset, length = conn.send.plan(limit, now)
            if not length:
                return emitted
            claim = attachment.port.claim(header_len + length, lengths)
            if claim is None:
                attachment.wait(flow)
                return emitted
            views = payload_views(claim.iov.segments, lengths, header_len + length)
            got = self._peek(flow, offset, views, now)
            if got <= 0:
                if got == LATER:
                    held = cast("HoldableClaim", claim).hold(flow.withdraw)
                    seq = (conn.send.una + offset) & MASK
                    flow.receiving = Incoming(
                        attachment.endpoint, held, views, seq, length, lengths
                    )
                    flow.readable = False  # from here on an edge, or `arrived`, says so
                else:
                    claim.cancel()
                return emitted
            emission = conn.emit_data(offset, got, got < length, now)
            self._fill(flow, claim, emission, views, got, lengths)
            attachment.frames_out += 1
            self.to_guest += got
            emitted = True
            if got < length and not flow.to_the_end:
                flow.readable = False  # the next bytes come with an edge
                return emitted
        flow.relay.touch(flow, tcp.SENDABLE)
        return emitted

    def arrived(self, flow: TcpFlow, got: int, failure: int, now: float) -> None:
        """What `pump` has stopped for is there."""
        incoming, flow.receiving = flow.receiving, None
        assert incoming is not None
        known = flow.conn.send.eof, flow.drained
        if failure and failure != errno.EAGAIN:
            got = self._failed(flow, OSError(failure, ""), now)
        elif not failure:
            flow.peek_at += got
            if not got:
                self._ended(flow, now)
        if flow.owned >= DROP_AT or flow.chores_at is None:
            self.drop(flow)  # what was acknowledged meanwhile
        if incoming.again:
            flow.relay.touch(flow, tcp.REWIND)
        if not got:
            incoming.claim.cancel()
            if (flow.conn.send.eof, flow.drained) != known:
                flow.relay.touch(flow, 0)
            return  # else nothing is new, and whatever comes tells of itself
        flow.relay.touch(flow, 0)
        if got == incoming.length or flow.to_the_end:
            flow.readable = True
        send = flow.conn.send
        attachment = flow.guest.attachment
        offset, length = send.plan(self._limit(flow, attachment), now)
        if not length or (send.una + offset) & MASK != incoming.seq:
            incoming.claim.cancel()
            flow.readable = True
            return
        got = min(got, length)
        emission = flow.conn.emit_data(offset, got, got < incoming.length, now)
        self._fill(flow, incoming.claim, emission, incoming.views, got, incoming.lengths)
        attachment.frames_out += 1
        self.to_guest += got

    def withdraw(self, flow: TcpFlow) -> None:
        """Give up what is under way: its claim is void, or is to be cancelled."""
        incoming, flow.receiving = flow.receiving, None
        if incoming is not None:
            incoming.endpoint.withdraw(flow)
            flow.peek_at = -1  # whether the kernel has moved it is not known
            incoming.claim.cancel()

    def _limit(self, flow: TcpFlow, attachment: Attachment) -> int:
        mss = flow.conn.send.mss
        if not attachment.offload or attachment.port.max_frame <= self._max_frame:
            return mss
        return flow.guest.family.tcp_super_max // mss * mss or mss

    def _peek(self, flow: TcpFlow, offset: int, views: tuple[memoryview, ...], now: float) -> int:
        """Receive without taking, `offset` bytes behind what the guest owns: how many came.

        0: none, and the flow knows why. LATER: they come by themselves.
        """
        sock = flow.sock
        assert sock is not None
        try:
            if not flow.peeks and flow.discard:
                got = self._peek_behind(flow, sock, offset, views)
            else:
                offset += flow.owned
                if offset != flow.peek_at:
                    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)
                    flow.peek_at = offset
                if flow.guest.attachment.endpoint.begin(sock, views, MSG_PEEK, flow):
                    return LATER
                if len(views) == 1:
                    got = sock.recv_into(views[0], 0, MSG_PEEK)
                else:
                    got = sock.recvmsg_into(views, 0, MSG_PEEK)[0]
                flow.peek_at += got
        except BlockingIOError:
            flow.readable = False
            return 0
        except OSError as error:
            return self._failed(flow, error, now)
        if got == 0:
            self._ended(flow, now)
        return got

    def _failed(self, flow: TcpFlow, error: OSError, now: float) -> int:
        """Nothing could be received: 0."""
        if is_shortage(error):
            flow.relay.retry(flow, now)
        else:
            flow.host_failed(now)
            self._ended(flow, now)
        return 0

    def _ended(self, flow: TcpFlow, now: float) -> None:
        """The host has sent all that it will."""
        flow.readable = False
        flow.to_the_end = True
        if flow.broken_until is None:
            flow.conn.host_eof(now)
        else:
            flow.drained = True  # the kernel tells of a reset behind the last byte

    def _peek_behind(
        self, flow: TcpFlow, sock: socket.socket, offset: int, views: tuple[memoryview, ...]
    ) -> int:
        """_peek() where TCP has no peek offset: what lies before `offset` goes nowhere.

        NOTHING_YET: nothing now, though there is more.
        """
        if flow.owned:
            self.drop(flow)
        offset += flow.owned
        whole, rest = divmod(offset, SCRATCH_LEN)
        with memoryview(self._scratch)[:rest] as discard:
            got = sock.recvmsg_into((*(self._scratch,) * whole, discard, *views), 0, MSG_PEEK)[0]
        if not got or got > offset:
            return got and got - offset
        if not flow.to_the_end:
            raise BlockingIOError
        # No more, no more ever, or not past an urgent mark before the queue's head is there?
        ended = has_ended(sock)
        if queued(sock) > offset:
            return NOTHING_YET
        if not ended:
            raise BlockingIOError
        return 0

    def _fill(
        self,
        flow: TcpFlow,
        claim: Claim,
        emission: tcp.Emission,
        views: tuple[memoryview, ...],
        got: int,
        lengths: tuple[int, int, int],
    ) -> None:
        offload = flow.guest.attachment.offload
        if offload:
            payload_sum = None
        else:
            payload_sum = ones_sum(IoVec(views).slice(0, got).segments)
        ip, transport = flow.template.tcp(emission, got, payload_sum)
        write_headers(claim.iov.segments, (flow.guest.ethernet, ip, transport), lengths)
        size = sum(lengths) + got
        if offload:
            claim.commit(size, self._vnet(flow, got, sum(lengths)))
        else:
            claim.commit(size)

    def _vnet(self, flow: TcpFlow, length: int, header_len: int) -> bytes:
        mss = flow.conn.send.mss
        key = (mss if length > mss else 0, header_len, flow.template.ip_len)
        vnet = self._vnets.get(key)
        if vnet is None:
            if len(self._vnets) >= VNETS_KEPT:
                self._vnets.clear()
            vnet = self._vnets[key] = flow.guest.family.tcp_vnet(header_len, key[0])
        return vnet

    def acknowledge(self, flow: TcpFlow, now: float) -> None:
        """An ACK, now or as soon as the port has room."""
        emission = flow.conn.emit_ack(now)
        headers = (flow.guest.ethernet, *flow.template.tcp(emission, 0, 0))
        attachment = flow.guest.attachment
        if not attachment.try_send(headers):
            flow.events |= ACK_OWED
            attachment.wait(flow)

    def emit(self, flow: TcpFlow, emission: tcp.Emission) -> None:
        """A segment without payload."""
        flow.guest.attachment.send((flow.guest.ethernet, *flow.template.tcp(emission, 0, 0)))

    def drop(self, flow: TcpFlow) -> None:
        """Take what the guest owns from the front of the host's queue."""
        sock, count = flow.sock, flow.owned
        if not count or flow.receiving is not None:
            return
        flow.owned = 0
        if sock is None:
            return
        while count > 0:
            try:
                got = sock.recv_into(self._scratch, min(count, SCRATCH_LEN), flow.discard)
            except OSError as error:
                if is_shortage(error):
                    flow.owned = count  # still there; the next drop takes it along
                    flow.relay.retry(flow, self._loop.now)
                return  # else the host reset it: the error is seen where the flow reads next
            if not got:
                return
            count -= got
            if flow.peek_at >= 0:
                flow.peek_at = max(0, flow.peek_at - got)  # as the kernel does

    def close(self) -> None:
        """Give the scratch area back."""
        self._scratch.close()
