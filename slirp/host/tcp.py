"""TCP between a guest and the host's sockets, without a payload buffer in between.

The connection that the guest sees is numbers (slirp.tcp); the octets are in the kernel. Host to
guest: the receive queue of the host's socket *is* the retransmission buffer. `_pump` asks the
connection what to send (an offset from snd_una and a length), claims a frame, receives with
MSG_PEEK at that offset straight into the claim, writes the headers, commits. What the guest
acknowledges is dropped from the queue with MSG_TRUNC. Guest to host: `segment` sends the payload
from where it lies in the guest's memory and acknowledges what the kernel took; what the kernel did
not take is copied to the flow's spill, which the window bounds, since the window offered to the
guest is the free space of the socket's send queue.

One batch of frames touches some flows; `settle`, at the end of the turn, does per touched flow what
can be done once: pump, control segments, one ACK, the deadline. Sockets are registered edge-
triggered and once: a queue that is full of peeked octets would be readable for ever.

Where the guest has no room, the flow waits at its attachment and goes on when room comes back.
Sockets without MSG_TRUNC (Unix streams) are dropped from by reading into a scratch area. A kernel
without SO_PEEK_OFF for TCP gets a discard segment in front of the claim's views.

An urgent octet of the host's stays in the stream where it was sent (RFC 6093 §5), but a read ends
in front of it, so that a short read does not mean that the queue is empty.

Does not do: urgent data as such, TCP options other than those of slirp.tcp, splicing.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from dma.iovec import IoVec
from slirp import tcp
from slirp.host.attachment import payload_views, write_headers
from slirp.host.loop import EDGE, HANGUP, RDHUP, READABLE, URGENT, WRITABLE, Loop
from slirp.tcp_ahead import Shelf
from slirp.template import PROTOCOL_TCP, Template4
from slirp.wire.checksum import ones_sum
from slirp.wire.virtio_net import GSO_NONE, GSO_TCPV4, NEEDS_CSUM, VnetHeader

if TYPE_CHECKING:
    from nic.port import Claim
    from slirp.flow import Guest
    from slirp.host.attachment import Attachment

FRAMES_PER_PUMP: Final = 32  # frames of one flow in a row; then the others have their turn
SCRATCH_LEN: Final = 16 << 20  # octets: the most that one MSG_TRUNC drops; never touched
KEPT_MAX: Final = 64 << 20  # octets kept ahead of rcv_nxt, all flows together; then dropped
KEPT_COST: Final = 128  # octets charged for what a kept segment costs beside its payload
CHORES_DELAY: Final = 0.001  # seconds that a small ACK or drop waits for company (RFC: 0.5)
DROP_AT: Final = 1024  # acknowledged octets that are dropped from the host's queue at once; fewer
# wait for CHORES_DELAY, no longer: they may hold a large buffer, and with it the host's window
QUIET_WINDOW: Final = 32768  # octets of window left with which no new one need be worked out
UNIX_WINDOW: Final = 65536  # octets offered where the host side is a Unix socket
RECEIVE_AHEAD: Final = 512 << 10  # octets that the host may be ahead of a guest without offloads
WINDOW_SHARE: Final = 3  # quarters of the free send queue that are offered (overhead per skb)
FLOWS_MAX: Final = 65536  # TCP flows of one network; the next SYN is answered with RST
GSO_MAX: Final = 65535 - 20 - 60  # octets of payload that one super-frame carries at the most
LINGER_FOR: Final = 60.0  # seconds for a host to take the spill of a connection that is over
RCV_WSCALE: Final = 8  # windows up to 16 MiB

SO_PEEK_OFF: Final = 42
SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("9I")  # sock_diag.h: [3] sndbuf, [5] wmem_queued
_LINGER_RESET: Final = struct.pack("ii", 1, 0)
_EDGE_BOTH: Final = READABLE | WRITABLE | EDGE | URGENT | RDHUP

_QUIET: Final = tcp.ACK_LATER | tcp.SENDABLE
_ACK_OWED: Final = 1 << 16  # beside slirp.tcp's events: an ACK found no room at the port
MSG_PEEK: Final = int(socket.MSG_PEEK)
MSG_TRUNC: Final = int(socket.MSG_TRUNC)


def peek_offset_works() -> bool:
    """Does this kernel know SO_PEEK_OFF for TCP (Linux 6.9)?"""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        except OSError:
            return False
    return True


class TcpFlow:
    """One TCP connection: the guest's side as numbers, the host's side as a socket."""

    __slots__ = (
        "armed",
        "chores_at",
        "conn",
        "connecting",
        "discard",
        "events",
        "finishing",
        "guest",
        "kept",
        "kept_cost",
        "key",
        "owned",
        "peek_at",
        "readable",
        "relay",
        "sock",
        "spill",
        "spilled",
        "template",
        "to_the_end",
        "touched",
        "visit",
    )

    def __init__(
        self,
        relay: TcpRelay,
        key: bytes,
        conn: tcp.Connection,
        sock: socket.socket,
        guest: Guest,
    ) -> None:
        self.relay = relay
        self.key = key
        self.conn = conn
        self.sock: socket.socket | None = sock
        self.guest = guest
        self.template = Template4(key[4:8] + key[:4], key[10:12] + key[8:10], PROTOCOL_TCP)
        self.discard = MSG_TRUNC if sock.family != socket.AF_UNIX else 0
        self.owned = 0  # octets at the front of the host's queue that the guest has acknowledged
        self.peek_at = -1  # where the socket's peek offset stands; -1: not set yet
        self.chores_at: float | None = None  # when a delayed ACK or drop is due
        self.connecting = False
        self.armed = False  # writability was asked for and not reported yet
        self.readable = False  # the host's queue may hold octets beyond peek_at
        self.to_the_end = False  # a short read is not the last one: a FIN or an urgent mark follows
        self.finishing = False  # the guest's FIN waits for the spill
        self.touched = False
        self.events = 0
        self.spill: deque[memoryview] | None = None  # taken from the guest, not by the kernel
        self.spilled = 0
        self.kept: dict[int, bytes] | None = None  # ahead of rcv_nxt, by sequence number
        self.kept_cost = 0  # octets that it is charged for
        self.visit: float | None = None

    def handle_timeout(self, now: float) -> float | None:
        """The loop's visit."""
        return self.relay.handle_timeout(self, now)

    def handle_ready(self, events: int, now: float) -> None:
        """The host socket is ready."""
        self.relay.handle_ready(self, events, now)

    def resume(self, now: float) -> None:
        """The guest has room again."""
        self.relay.touch(self, tcp.SENDABLE)


class TcpRelay:
    """All TCP flows of one network."""

    def __init__(
        self, loop: Loop, *, mss: int, on_unreachable: Callable[[TcpFlow, int], None]
    ) -> None:
        self._loop = loop
        self._mss = mss
        self._on_unreachable = on_unreachable
        self.flows: dict[bytes, TcpFlow] = {}
        self._touched: list[TcpFlow] = []
        self._lingering: set[TcpFlow] = set()
        self._shelf = Shelf(KEPT_MAX)
        self._scratch = mmap.mmap(-1, SCRATCH_LEN)
        self._peek_off = peek_offset_works()
        self._vnets: dict[tuple[int, int], bytes] = {}
        self.opened = 0
        self.refused = 0
        self.copied = 0  # octets that went through a spill
        self.to_guest = 0
        self.to_host = 0
        loop.add_settler(self.settle)

    # Opening

    def connect(
        self, key: bytes, syn: tcp.Segment, guest: Guest, address: tuple[str, int], now: float,
        bind: str | None = None,
    ) -> bool:  # fmt: skip
        """A guest's SYN: connect to the host address; the answer waits for the host's answer.

        False: no socket or no table entry was to be had; the caller resets.
        """
        if len(self.flows) >= FLOWS_MAX:
            return False
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:  # EMFILE, ENFILE, ENOBUFS
            return False
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # RFC 6093 §5
            if bind is not None:
                sock.bind((bind, 0))
            failure = sock.connect_ex(address)
            if failure == errno.EINPROGRESS:
                # A local peer has answered by now: asking again saves a turn of the loop.
                failure = sock.connect_ex(address)
        except OSError as error:
            failure = error.errno or errno.EINVAL
        conn = tcp.Connection.passive(syn, new_iss(), self._mss, RCV_WSCALE, now)
        flow = TcpFlow(self, key, conn, sock, guest)
        self._add(flow)
        if failure in (errno.EALREADY, errno.EINPROGRESS):
            flow.connecting = True
            self._loop.visit_at(flow, conn.poll_at())  # should the kernel never give up
        elif failure in (0, errno.EISCONN):
            self._connected(flow, now)
        else:
            self._failed(flow, failure, now)
        return True

    def open(self, key: bytes, sock: socket.socket, guest: Guest, now: float) -> bool:
        """A connection that came in on the host's side: open it towards the guest."""
        if len(self.flows) >= FLOWS_MAX or key in self.flows:
            return False
        sock.setblocking(False)
        conn = tcp.Connection.active(new_iss(), self._mss, RCV_WSCALE, now)
        flow = TcpFlow(self, key, conn, sock, guest)
        self._add(flow)
        self.touch(flow, tcp.CONTROL)
        return True

    def serve(
        self, key: bytes, syn: tcp.Segment, sock: socket.socket, guest: Guest, now: float
    ) -> bool:
        """A guest's SYN for a service inside this process, whose other end is `sock`'s peer."""
        if len(self.flows) >= FLOWS_MAX:
            return False
        conn = tcp.Connection.passive(syn, new_iss(), self._mss, RCV_WSCALE, now)
        flow = TcpFlow(self, key, conn, sock, guest)
        self._add(flow)
        self._connected(flow, now)
        return True

    def _add(self, flow: TcpFlow) -> None:
        assert flow.sock is not None
        self.flows[flow.key] = flow
        flow.conn.shelf = self._shelf
        self.opened += 1
        if not flow.guest.attachment.offload:
            _widen(flow.sock)
        self._loop.register(flow.sock.fileno(), _EDGE_BOTH, flow.handle_ready)

    def _connected(self, flow: TcpFlow, now: float) -> None:
        flow.connecting = False
        flow.conn.host_connected(now)
        self.touch(flow, tcp.CONTROL)

    def _failed(self, flow: TcpFlow, failure: int, now: float) -> None:
        self.refused += 1
        if failure in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.EACCES):
            self._on_unreachable(flow, failure)
            self.forget(flow)
            self._release(flow)
        else:
            flow.conn.abort(now)
            self.touch(flow, tcp.CONTROL)

    # From the guest

    def segment(
        self,
        flow: TcpFlow,
        segment: tcp.Segment,
        payload: tuple[memoryview, ...],
        length: int,
        now: float,
    ) -> int:
        """A segment of this flow with `length` octets of payload, in pieces; its events."""
        acked, skip, take, events = flow.conn.handle_segment(segment, length, now)
        if acked:
            flow.owned += acked
            if flow.owned >= DROP_AT:
                self._drop(flow)
            elif flow.chores_at is None:
                flow.chores_at = now + CHORES_DELAY
                self._loop.visit_at(flow, flow.chores_at)
        if take:
            if events & tcp.KEEP:
                self._keep(flow, (segment.seq + skip) & 0xFFFFFFFF, payload, skip, take)
            else:
                self._deliver(flow, payload, skip, take, now)
                if flow.kept is not None:
                    self._deliver_kept(flow, segment.seq + skip + take, now)
        if events & tcp.ACK_NOW:
            self._acknowledge(flow, now)
        flow.events |= events
        if not flow.touched:
            flow.touched = True
            self._touched.append(flow)
        return events

    def touch(self, flow: TcpFlow, events: int) -> None:
        """Settle this flow at the end of the turn, as if a segment had had these events."""
        flow.events |= events
        if not flow.touched:
            flow.touched = True
            self._touched.append(flow)

    def _deliver(
        self, flow: TcpFlow, payload: tuple[memoryview, ...], skip: int, take: int, now: float
    ) -> None:
        if len(payload) != 1:
            payload = IoVec(payload).slice(skip, skip + take).segments
        elif skip or take != len(payload[0]):
            payload = (payload[0][skip : skip + take],)
        sock = flow.sock
        if sock is None:
            return
        sent = 0
        if flow.spill is None:
            try:
                sent = sock.send(payload[0]) if len(payload) == 1 else sock.sendmsg(payload)
            except BlockingIOError:
                pass
            except OSError:
                flow.conn.abort(now)
                self.touch(flow, tcp.CONTROL)
                return
            self.to_host += sent
        if sent < take:
            rest = bytes(IoVec(payload).slice(sent, take))
            self.copied += len(rest)
            if flow.spill is None:
                flow.spill = deque()
                self._arm(flow)
            flow.spill.append(memoryview(rest))
            flow.spilled += len(rest)

    def _keep(
        self, flow: TcpFlow, seq: int, payload: tuple[memoryview, ...], skip: int, take: int
    ) -> None:
        if flow.kept is None:
            flow.kept = {}
        data = bytes(IoVec(payload).slice(skip, skip + take))
        if len(data) > len(flow.kept.get(seq, b"")):
            flow.kept[seq] = data
            self.copied += take
            self._charge(flow, flow.kept_cost + take + KEPT_COST)

    def _charge(self, flow: TcpFlow, cost: int) -> None:
        self._shelf.left += flow.kept_cost - cost
        flow.kept_cost = cost

    def _deliver_kept(self, flow: TcpFlow, seq: int, now: float) -> None:
        # rcv_nxt has passed over octets that were kept: they follow what was just delivered.
        kept = flow.kept or {}
        end = flow.conn.rcv_nxt
        seq &= 0xFFFFFFFF
        while seq != end:
            for start, data in kept.items():
                behind = (seq - start) & 0xFFFFFFFF
                if behind < len(data):
                    break
            else:
                break
            left = (end - seq) & 0xFFFFFFFF
            piece = memoryview(data)[behind : behind + left]
            self._deliver(flow, (piece,), 0, len(piece), now)
            seq = (seq + len(piece)) & 0xFFFFFFFF
        flow.kept = {
            start: data
            for start, data in kept.items()
            if 0 < (start + len(data) - end) & 0xFFFFFFFF < 1 << 31
        } or None
        self._charge(flow, sum(len(data) + KEPT_COST for data in (flow.kept or {}).values()))

    def _drop(self, flow: TcpFlow) -> None:
        """Take what the guest owns from the front of the host's queue."""
        sock, count = flow.sock, flow.owned
        flow.owned = 0
        if sock is None:
            return
        while count > 0:
            try:
                got = sock.recv_into(self._scratch, min(count, SCRATCH_LEN), flow.discard)
            except OSError:
                return  # the host reset it; the error is seen where the flow reads next
            if not got:
                return
            count -= got
            if flow.peek_at >= 0:
                flow.peek_at = max(0, flow.peek_at - got)  # as the kernel does

    # Towards the guest

    def settle(self, now: float) -> None:
        """The end of a turn: what is done once per touched flow."""
        touched, self._touched = self._touched, []
        for flow in touched:
            flow.touched = False
            flow.guest.seen_at = now
            events, flow.events = flow.events, 0
            if self.flows.get(flow.key) is flow:
                self._settle(flow, events, now)
            else:
                self._close(flow, now)
        if self._touched:
            self._loop.again()

    def _settle(self, flow: TcpFlow, events: int, now: float) -> None:
        conn = flow.conn
        if events & tcp.FIN_RECEIVED:
            flow.finishing = True
        if flow.finishing and flow.spill is None:
            self._shut(flow)
        if events & (tcp.RESET_RECEIVED | tcp.GUEST_GONE):
            self._reset_host(flow)
        emitted = False
        # A few octets are likely to be answered by the host at once: their ACK goes with the
        # answer (RFC 9293 §3.8.6.3; two segments are acknowledged at once).
        quiet = not events & ~_QUIET and conn.unacknowledged() < 2 * conn.mss
        if flow.sock is not None:
            if events & tcp.ACK_LATER and not (quiet and conn.window_left() > QUIET_WINDOW):
                self._offer(flow)
            if events & tcp.ESTABLISHED:
                flow.readable = True
            if flow.readable or events & tcp.REWIND:
                emitted = self._pump(flow, now)
        owed = events & tcp.ACK_LATER and conn.unacknowledged()
        if not emitted and (owed or events & _ACK_OWED):
            if not quiet:
                self._acknowledge(flow, now)
            elif flow.chores_at is None:
                flow.chores_at = now + CHORES_DELAY
                self._loop.visit_at(flow, flow.chores_at)
        for emission in conn.poll(now):
            self._emit(flow, emission)
        if conn.state is tcp.State.CLOSED or events & tcp.CLOSED:
            self._close(flow, now)
        else:
            if conn.state is tcp.State.TIME_WAIT and flow.spill is None:
                self._release(flow)
            self._loop.visit_at(flow, conn.poll_at())

    def _offer(self, flow: TcpFlow) -> None:
        # The window follows the free space of the kernel's send queue, less what still waits here.
        assert flow.sock is not None
        if flow.discard:
            info = _MEMINFO.unpack(flow.sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))
            free = info[3] - info[5]
            full = 3 * free < info[3]
            free = free * WINDOW_SHARE >> 2
        else:
            free, full = UNIX_WINDOW, False
        room = free - flow.spilled
        flow.conn.set_room(room if room > 0 else 0)
        if full and not flow.armed:
            self._arm(flow)

    def _arm(self, flow: TcpFlow) -> None:
        # The kernel calls a socket writable while a third of its queue is free. Polling one that
        # is not makes it report when it is so again (SOCK_NOSPACE), which a window that closes
        # before the queue is full would otherwise never see.
        assert flow.sock is not None
        flow.armed = True
        self._loop.modify(flow.sock.fileno(), _EDGE_BOTH)

    def _pump(self, flow: TcpFlow, now: float) -> bool:
        """Send what the guest's window and the host's queue allow; was anything sent?"""
        conn, attachment = flow.conn, flow.guest.attachment
        limit = self._limit(flow, attachment)
        lengths = (14, flow.template.ip_len, 20 + conn.options_len)
        header_len = sum(lengths)
        emitted = False
        for _ in range(FRAMES_PER_PUMP):
            offset, length = conn.plan(limit, now)
            if not length:
                return emitted
            claim = attachment.port.claim(header_len + length, lengths)
            if claim is None:
                attachment.wait(flow)
                return emitted
            views = payload_views(claim.iov.segments, lengths, header_len + length)
            got = self._peek(flow, flow.owned + offset, views, now)
            if got <= 0:
                claim.cancel()
                return emitted
            emission = conn.emit_data(offset, got, got < length, now)
            self._fill(flow, claim, emission, views, got, lengths)
            attachment.frames_out += 1
            self.to_guest += got
            emitted = True
            if got < length and not flow.to_the_end:
                flow.readable = False  # the next octets come with an edge
                return emitted
        self.touch(flow, tcp.SENDABLE)
        return emitted

    def _limit(self, flow: TcpFlow, attachment: Attachment) -> int:
        mss = flow.conn.mss
        if not attachment.offload or attachment.port.max_frame <= 14 + self._mss + 40:
            return mss
        return GSO_MAX // mss * mss or mss

    def _peek(self, flow: TcpFlow, offset: int, views: tuple[memoryview, ...], now: float) -> int:
        """Receive at `offset` of the host's queue without taking: octets, 0 if none came."""
        sock = flow.sock
        assert sock is not None
        try:
            if not self._peek_off and flow.discard:
                got = self._peek_behind(sock, offset, views)
            else:
                if offset != flow.peek_at:
                    sock.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, offset)
                    flow.peek_at = offset
                if len(views) == 1:
                    got = sock.recv_into(views[0], 0, MSG_PEEK)
                else:
                    got = sock.recvmsg_into(views, 0, MSG_PEEK)[0]
                flow.peek_at += got
        except BlockingIOError:
            flow.readable = False
            return 0
        except OSError:
            flow.conn.abort(now)
            self.touch(flow, tcp.CONTROL)
            return 0
        if got == 0:
            flow.readable = False
            flow.to_the_end = True
            flow.conn.host_eof(now)
        return got

    def _peek_behind(self, sock: socket.socket, offset: int, views: tuple[memoryview, ...]) -> int:
        discard = memoryview(self._scratch)[:offset]
        try:
            got = sock.recvmsg_into((discard, *views), 0, MSG_PEEK)[0]
        finally:
            discard.release()
        if got and got <= offset:
            raise BlockingIOError
        return got - offset if got else 0

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
            claim.commit(size, self._vnet(flow.conn.mss, got, sum(lengths)))
        else:
            claim.commit(size)

    def _vnet(self, mss: int, length: int, header_len: int) -> bytes:
        key = (mss if length > mss else 0, header_len)
        vnet = self._vnets.get(key)
        if vnet is None:
            if len(self._vnets) >= 4096:
                self._vnets.clear()
            gso = GSO_TCPV4 if length > mss else GSO_NONE
            vnet = VnetHeader(NEEDS_CSUM, gso, header_len, key[0], 34, 16).emit()
            self._vnets[key] = vnet
        return vnet

    def _acknowledge(self, flow: TcpFlow, now: float) -> None:
        emission = flow.conn.emit_ack(now)
        headers = (flow.guest.ethernet, *flow.template.tcp(emission, 0, 0))
        attachment = flow.guest.attachment
        if not attachment.try_send(headers):
            flow.events |= _ACK_OWED
            attachment.wait(flow)

    def _emit(self, flow: TcpFlow, emission: tcp.Emission) -> None:
        flow.guest.attachment.send((flow.guest.ethernet, *flow.template.tcp(emission, 0, 0)))

    # From the host

    def handle_ready(self, flow: TcpFlow, events: int, now: float) -> None:
        """The host's socket is ready: connected, readable, writable or broken."""
        if flow.sock is None:
            return
        if flow.connecting:
            self._handle_connect(flow, events, now)
            return
        if events & (RDHUP | URGENT | HANGUP):
            flow.to_the_end = True
        if events & (READABLE | HANGUP):
            flow.readable = True
            self.touch(flow, 0)
        if events & WRITABLE and (flow.armed or flow.spill is not None):
            flow.armed = False
            if flow.spill is not None:
                self._drain(flow, now)
            self._reopen(flow)
        if events & HANGUP and flow.sock is not None:
            failure = flow.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                flow.conn.abort(now)
                self.touch(flow, tcp.CONTROL)

    def _handle_connect(self, flow: TcpFlow, events: int, now: float) -> None:
        assert flow.sock is not None
        failure = flow.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            self._failed(flow, failure, now)
        elif events & WRITABLE:
            self._connected(flow, now)

    def _drain(self, flow: TcpFlow, now: float) -> None:
        spill, sock = flow.spill, flow.sock
        assert spill is not None
        assert sock is not None
        while spill:
            try:
                sent = sock.send(spill[0])
            except BlockingIOError:
                return
            except OSError:
                flow.conn.abort(now)
                self.touch(flow, tcp.CONTROL)
                return
            self.to_host += sent
            flow.spilled -= sent
            if sent == len(spill[0]):
                spill.popleft()
            else:
                spill[0] = spill[0][sent:]
        flow.spill = None
        self.touch(flow, 0)
        if flow in self._lingering:
            self._release(flow)

    def _reopen(self, flow: TcpFlow) -> None:
        if flow.sock is not None and flow.conn.state is not tcp.State.CLOSED:
            self._offer(flow)
            if flow.conn.update_due():
                self.touch(flow, tcp.ACK_LATER)

    def handle_timeout(self, flow: TcpFlow, now: float) -> float | None:
        """A deadline of the connection may be due."""
        if flow in self._lingering:
            self._reset_host(flow)
            return None
        conn = flow.conn
        if flow.chores_at is not None and flow.chores_at <= now:
            flow.chores_at = None
            if flow.owned:
                self._drop(flow)
            if conn.unacknowledged():
                self._acknowledge(flow, now)
        at = conn.poll_at()
        if at is not None and at <= now:
            self.touch(flow, conn.handle_timeout(now))
            return None  # settle books the next one
        chores_at = flow.chores_at
        return at if chores_at is None or (at is not None and at < chores_at) else chores_at

    # Closing

    def _shut(self, flow: TcpFlow) -> None:
        flow.finishing = False
        if flow.sock is not None:
            with contextlib.suppress(OSError):
                flow.sock.shutdown(socket.SHUT_WR)

    def _reset_host(self, flow: TcpFlow) -> None:
        if flow.sock is not None:
            with contextlib.suppress(OSError):
                flow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        flow.spill = None
        self._release(flow)

    def _close(self, flow: TcpFlow, now: float) -> None:
        """The connection is over; a spill that the host has not taken keeps the socket a while."""
        self.forget(flow)
        if flow.spill is None:
            self._release(flow)
        elif flow.sock is not None:
            self._lingering.add(flow)
            self._loop.visit_at(flow, now + LINGER_FOR)

    def forget(self, flow: TcpFlow) -> None:
        """Take the flow out of the table."""
        if self.flows.get(flow.key) is flow:
            del self.flows[flow.key]
        flow.guest.attachment.forget(flow)
        flow.visit = None
        flow.kept = None
        self._charge(flow, 0)

    def _release(self, flow: TcpFlow) -> None:
        sock = flow.sock
        self._lingering.discard(flow)
        if sock is not None:
            if flow.owned:
                self._drop(flow)  # closing over unread octets would reset the host
            flow.sock = None
            self._loop.unregister(sock.fileno())
            sock.close()

    def drop_port(self, attachment: Attachment) -> None:
        """The port is gone: reset the hosts that its guests talked to."""
        for flow in list(self.flows.values()):
            if flow.guest.attachment is attachment:
                self.forget(flow)
                self._reset_host(flow)

    def close(self) -> None:
        """End every flow; hosts see a reset where octets were still to come."""
        for flow in [*self.flows.values(), *self._lingering]:
            self.forget(flow)
            self._release(flow)
        self._scratch.close()


def _widen(sock: socket.socket) -> None:
    # The octets in flight stay in the kernel's queue, which grows by what is taken within the
    # round trip to the *host's* peer: over loopback never. A guest whose own round trip is
    # milliseconds (emulated, frame by frame) needs it larger. To raise the low-water mark makes
    # room for it and, other than SO_RCVBUF, leaves the kernel free to make more.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, RECEIVE_AHEAD)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def new_iss() -> int:
    """An initial sequence number nobody can guess (RFC 9293 §3.4.1, from the system's CSPRNG)."""
    return int.from_bytes(os.urandom(4), "big")
