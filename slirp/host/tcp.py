"""TCP between a guest and the host's sockets, without a payload buffer in between.

The connection that the guest sees is numbers (slirp.tcp); the bytes are in the kernel. Host to
guest (slirp.host.tcp_feed): the receive queue of the host's socket *is* the retransmission buffer;
bytes are peeked at straight into the guest and dropped when it has acknowledged them. Guest to host
(slirp.host.tcp_deliver): the payload leaves from where it lies in the guest's memory, and what the
kernel took is acknowledged. This file ties both to the loop: who connects, who is settled, who
ends. A flow that is over with bytes on their way to the host is slirp.host.tcp_farewell's.

A host that breaks (a reset, mostly) is not the guest's end at once: what its queue still holds goes
to the guest first, through the guest's window, and then the RST does.

One batch of frames touches some flows; `settle`, at the end of the turn, does per touched flow what
can be done once: pump, control segments, one ACK, the deadline. Sockets are registered edge-
triggered and once: a queue that is full of peeked bytes would be readable for ever. Where the
guest has no room, the flow waits at its attachment and goes on when room comes back.

An urgent byte of the host's stays in the stream where it was sent (RFC 6093 §5), but a read ends
in front of it, so that a short read does not mean that the queue is empty.

Does not do: urgent data as such, TCP options other than those of slirp.tcp, splicing.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

from slirp.host.descriptors import (
    HALF_CLOSED_MIN,
    LOOKS,
    TCP_IDLE_MIN,
    Descriptors,
    Idle,
)
from slirp.host.loop import HANGUP, RDHUP, READABLE, RETRY_AFTER, URGENT, WRITABLE, Loop
from slirp.host.loopback import Loopbacks
from slirp.host.sockets import LOCAL_CAUSES, Sockets
from slirp.host.tcp_deliver import Deliverer
from slirp.host.tcp_farewell import Farewells
from slirp.host.tcp_feed import ACK_OWED, DROP_AT, EDGE_BOTH, Feeder
from slirp.host.tcp_flow import TcpFlow, connect_answer, pending_error, widen
from slirp.shortage import SHORTAGES, is_shortage, persist
from slirp.tcp import connection as tcp
from slirp.tcp.initial import SECRET_LEN, InitialNumbers

if TYPE_CHECKING:
    from slirp.host.attachment import Attachment
    from slirp.ip.neighbours import Guest

CHORES_DELAY: Final = 0.001  # seconds that a small ACK or drop waits for company (RFC: 0.5)
QUIET_WINDOW: Final = 32768  # bytes of window left with which no new one need be worked out
FLOWS_MAX: Final = 65536  # TCP flows of one network; the next SYN is answered with RST
TRIES: Final = 2  # of a call that met a shortage, before it waits for another occasion
RCV_WSCALE: Final = 8  # windows up to 16 MiB
CAME_AND_WENT: Final = (errno.ECONNRESET, errno.EPIPE)  # of a connect(2): it succeeded, and then
# the host reset; a reset in answer to the SYN is ECONNREFUSED

OnFlow: TypeAlias = Callable[[str, TcpFlow], None]  # what happened to it, by slirp.events

_QUIET: Final = tcp.ACK_LATER | tcp.SENDABLE | tcp.FIN_RECEIVED


class TcpRelay:
    """All TCP flows of one network."""

    def __init__(
        self,
        loop: Loop,
        descriptors: Descriptors,
        sockets: Sockets,
        loopbacks: Loopbacks,
        *,
        mtu: int,
        on_unreachable: Callable[[bytes, Guest, int, int], None],
    ) -> None:
        self._loop = loop
        self._descriptors = descriptors
        self._sockets = sockets
        self._loopbacks = loopbacks
        self._mtu = mtu
        self._touched: list[TcpFlow] = []
        self._initial = InitialNumbers(os.urandom(SECRET_LEN))
        self.feeder = Feeder(loop, mtu)
        self.farewells = Farewells(loop, self.feeder, descriptors)
        self._on_unreachable = on_unreachable
        self.flows: dict[bytes, TcpFlow] = {}
        self.deliverer = Deliverer(self.feeder, descriptors)
        self.opened = 0
        self.refused = 0
        self.on_flow: OnFlow | None = None  # while somebody listens
        self.shortages = 0  # calls on hosts' sockets that were made again
        loop.add_settler(self.settle)

    # Opening

    def connect(
        self, key: bytes, syn: tcp.Segment, guest: Guest, target: bytes, port: int, now: float
    ) -> bool:
        """A guest's SYN: connect to the host's address; the answer waits for the host's answer.

        False: the table is full; the caller resets.
        """
        if not self._has_place(guest):
            return False
        sock, failure = self._dial_either(guest.attachment, target, port, now)
        if sock is None:
            if failure:
                self.refused += 1
                self._on_unreachable(key, guest, syn.seq, failure)
            return True  # if not told, the SYN comes again, and then there may be what it needs
        flow = TcpFlow(self, key, self._passive(key, syn, guest, now), sock, guest)
        if not self._add(flow):
            return True
        if failure == errno.EINPROGRESS:
            flow.connecting = True
            self._loop.visit_at(flow, flow.conn.poll_at())  # should the kernel never give up
        else:
            self._answered(flow, failure, now)
        return True

    def _has_place(self, guest: Guest) -> bool:
        """Is there room in the table, and in the port's share of it?"""
        if len(self.flows) >= FLOWS_MAX:
            return False
        attachment: Attachment = guest.attachment
        return attachment.flows < self._descriptors.share_of(FLOWS_MAX)

    def _dial_either(
        self, attachment: Attachment, target: bytes, port: int, now: float
    ) -> tuple[socket.socket | None, int]:
        """As `_dial`; where one of the host's loopback addresses refuses, by way of the other."""
        target = self._loopbacks.present(target)
        sock, failure = self._dial(attachment, target, port, now)
        if sock is None or failure != errno.ECONNREFUSED:
            return sock, failure
        other = self._loopbacks.other(target)
        if other is None:
            return sock, failure
        found, answer = self._dial(attachment, other, port, now)
        if answer not in (0, errno.EINPROGRESS, *CAME_AND_WENT):
            found, sock, answer = sock, found, failure  # the first refusal stands
        if sock is not None:
            sock.close()
            self._descriptors.release(attachment)
        return found, answer

    def _dial(
        self, attachment: Attachment, target: bytes, port: int, now: float
    ) -> tuple[socket.socket | None, int]:
        """A socket that connects, and how far it is by its error number.

        Without a socket: the error number says why there can be none, 0 that there is a shortage.
        """
        family = self._sockets.of(target)
        address = family.sockaddr(target, port)
        for _ in range(TRIES):
            sock = None
            try:
                sock = self._descriptors.take(attachment, family.family, socket.SOCK_STREAM, 0, now)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # RFC 6093 §5
                family.leave(sock)
                failure = sock.connect_ex(address)
                if failure == errno.EINPROGRESS:
                    # A local peer has answered by now: to look saves a turn of the loop.
                    failure = connect_answer(sock)
            except OSError as error:
                failure = error.errno or errno.EINVAL
            if failure not in SHORTAGES:
                return sock, failure
            self.shortages += 1
            if sock is not None:
                sock.close()
                self._descriptors.release(attachment)
        return None, 0

    def open(self, key: bytes, sock: socket.socket, guest: Guest, now: float) -> bool:
        """A connection that came in on the host's side: open it towards the guest.

        False: not under this key, or there is no room for it and `sock` is closed.
        """
        if key in self.flows or not self._has_place(guest):
            return False
        admitted = self._descriptors.admit(guest.attachment, sock, now)
        if admitted is None:
            return False
        persist(admitted.setblocking, False)
        family = guest.family
        conn = tcp.Connection.active(
            self._initial.iss(key, now), family.mss(self._mtu), RCV_WSCALE, now,
            ts_offset=self._initial.ts_offset(key), mss_default=family.mss_default,
        )  # fmt: skip
        flow = TcpFlow(self, key, conn, admitted, guest)
        flow.incoming = True
        if not self._add(flow):
            return False
        self.touch(flow, tcp.CONTROL)
        return True

    def adopt(
        self, key: bytes, conn: tcp.Connection, sock: socket.socket, guest: Guest, now: float
    ) -> TcpFlow | None:
        """A connection that another process had: it goes on. None: there is no room for it."""
        admitted = self._descriptors.admit(guest.attachment, sock, now)
        if admitted is None:
            return None
        flow = TcpFlow(self, key, conn, admitted, guest)
        if not self._add(flow):
            return None
        flow.readable = True
        self.touch(flow, tcp.ACK_LATER | tcp.SENDABLE)
        self._loop.visit_at(flow, conn.poll_at())
        return flow

    def abandon(self) -> None:
        """Another process goes on with the flows: nothing is read, written or reset any more."""
        for flow in self.flows.values():
            if flow.sock is not None:
                self._loop.unregister(flow.sock.fileno())
                flow.sock.close()
                flow.sock = None
            flow.visit = None
        self.flows.clear()
        self._touched.clear()

    def serve(
        self, key: bytes, syn: tcp.Segment, sock: socket.socket, guest: Guest, now: float
    ) -> TcpFlow | None:
        """A guest's SYN for a service inside this process, whose other end is `sock`'s peer; None:
        there is no room for it.
        """
        if not self._has_place(guest):
            return None
        admitted = self._descriptors.admit(guest.attachment, sock, now)
        if admitted is None:
            return None
        flow = TcpFlow(self, key, self._passive(key, syn, guest, now), admitted, guest)
        if not self._add(flow):
            return None
        self._connected(flow, now)
        return flow

    def _passive(self, key: bytes, syn: tcp.Segment, guest: Guest, now: float) -> tcp.Connection:
        family = guest.family
        return tcp.Connection.passive(
            syn, self._initial.iss(key, now), family.mss(self._mtu), RCV_WSCALE, now,
            ts_offset=self._initial.ts_offset(key), mss_default=family.mss_default,
        )  # fmt: skip

    def _add(self, flow: TcpFlow) -> bool:
        """Enter the flow in the table; False: its socket found no place, and is closed."""
        assert flow.sock is not None
        try:
            self._loop.register(flow.sock.fileno(), EDGE_BOTH, flow.handle_ready)
        except OSError:
            self.shortages += 1
            flow.sock.close()
            self._descriptors.release(flow.guest.attachment)
            return False
        self.flows[flow.key] = flow
        flow.attachment.flows += 1
        flow.conn.receive.shelf = self.deliverer.shelf_of(flow.attachment)
        self.opened += 1
        flow.number = self.opened
        flow.opened_at = self._loop.now
        if self.on_flow is not None:
            self.on_flow("flow-opened", flow)
        if flow.guest.attachment.is_far:
            widen(flow.sock)
        return True

    def _connected(self, flow: TcpFlow, now: float) -> None:
        flow.connecting = False
        flow.conn.host_connected(now)
        self.touch(flow, tcp.CONTROL)

    def _answered(self, flow: TcpFlow, failure: int, now: float) -> None:
        """The host's connect has its answer, an error number or 0."""
        if failure in CAME_AND_WENT:
            self._connected(flow, now)
            flow.host_failed(now)
        elif failure:
            self._failed(flow, failure, now)
        else:
            self._connected(flow, now)

    def _failed(self, flow: TcpFlow, failure: int, now: float) -> None:
        self.refused += 1
        if failure in LOCAL_CAUSES:
            seq = flow.conn.receive.nxt - 1 & 0xFFFFFFFF  # the SYN's
            self._on_unreachable(flow.key, flow.guest, seq, failure)
            self.forget(flow)
            self.farewells.release(flow)
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
        """A segment of this flow with `length` bytes of payload, in pieces; its events."""
        acked, skip, take, events = flow.conn.handle_segment(segment, length, now)
        if acked:
            flow.owned += acked
            if flow.owned >= DROP_AT:
                self.feeder.drop(flow)
            elif flow.chores_at is None:
                flow.chores_at = now + CHORES_DELAY
                self._loop.visit_at(flow, flow.chores_at)
        if take:
            if events & tcp.KEEP:
                self.deliverer.keep(flow, (segment.seq + skip) & 0xFFFFFFFF, payload, skip, take)
            else:
                self.deliverer.deliver(flow, payload, skip, take, now)
                if flow.kept is not None:
                    self.deliverer.deliver_kept(flow, segment.seq + skip + take, now)
        if events & tcp.ACK_NOW:
            self.feeder.acknowledge(flow, now)
        flow.events |= events
        if not flow.touched:
            flow.touched = True
            self._touched.append(flow)
        return events

    # Towards the guest

    def touch(self, flow: TcpFlow, events: int) -> None:
        """Settle this flow at the end of the turn, as if a segment had had these events."""
        flow.events |= events
        if not flow.touched:
            flow.touched = True
            self._touched.append(flow)

    def settle(self, now: float) -> None:
        """The end of a turn: what is done once per touched flow."""
        touched, self._touched = self._touched, []
        for flow in touched:
            flow.touched = False
            flow.guest.seen_at = now
            events, flow.events = flow.events, 0
            if self.flows.get(flow.key) is not flow:
                self._close(flow, now)
                continue
            try:
                self._settle(flow, events, now)
            except OSError as error:
                if not is_shortage(error):
                    raise
                flow.events |= events
                self.retry(flow, now)
        if self._touched:
            self._loop.again()

    def retry(self, flow: TcpFlow, now: float) -> None:
        """A call on the host's socket met a shortage: go on in a moment."""
        self.shortages += 1
        if flow.retry_at is None:
            flow.retry_at = now + RETRY_AFTER
        self._loop.visit_at(flow, flow.retry_at)

    def _handle_retry(self, flow: TcpFlow, now: float) -> None:
        flow.retry_at = None
        if flow.spill is not None:
            self._drain(flow, now)
        if flow.owned:
            self.feeder.drop(flow)
        flow.readable = True
        self.touch(flow, 0)

    def _settle(self, flow: TcpFlow, events: int, now: float) -> None:
        conn = flow.conn
        if events & tcp.FIN_RECEIVED:
            flow.finishing = True
        if flow.finishing and flow.spill is None:
            self._shut(flow, now)
        if events & (tcp.RESET_RECEIVED | tcp.GUEST_GONE):
            self.forget(flow)
            self.farewells.reset(flow, now)
        emitted = False
        # A few bytes are likely to be answered by the host at once: their ACK goes with the
        # answer (RFC 9293 §3.8.6.3; two segments are acknowledged at once).
        quiet = not events & ~_QUIET and conn.receive.unacknowledged() < 2 * conn.send.mss
        if flow.sock is not None:
            if events & tcp.ACK_LATER and not (quiet and conn.receive.window_left() > QUIET_WINDOW):
                self.feeder.offer(flow)
            if events & tcp.ESTABLISHED:
                flow.readable = True
            if flow.readable or events & tcp.REWIND or conn.send.loss is not None:
                emitted = self.feeder.pump(flow, now)
        owed = events & tcp.ACK_LATER and conn.receive.unacknowledged()
        if not emitted and (owed or events & ACK_OWED):
            if not quiet:
                self.feeder.acknowledge(flow, now)
            elif flow.chores_at is None:
                flow.chores_at = now + CHORES_DELAY
                self._loop.visit_at(flow, flow.chores_at)
        if flow.broken_until is not None:
            self._settle_broken(flow, flow.broken_until, now)
        for emission in conn.poll(now):
            self.feeder.emit(flow, emission)
        if conn.life.state is tcp.State.CLOSED or events & tcp.CLOSED:
            self._close(flow, now)
        else:
            if conn.life.state is tcp.State.TIME_WAIT and flow.spill is None:
                self.farewells.release(flow)
            self._loop.visit_at(flow, conn.poll_at())

    def _settle_broken(self, flow: TcpFlow, until: float, now: float) -> None:
        """The host is gone: reset the guest as soon as it has what the host had sent."""
        send = flow.conn.send
        if ((flow.drained or send.eof) and not send.flight) or now >= until:
            flow.conn.abort(now)
        else:
            self._loop.visit_at(flow, until)

    # From the host

    def handle_ready(self, flow: TcpFlow, events: int, now: float) -> None:
        """The host's socket is ready: connected, readable, writable or broken."""
        if flow.sock is None or flow.broken_until is not None:
            return
        if flow.connecting and not self._is_connected(flow, events, now):
            return  # else the same event may tell of bytes, or of the end
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
            failure = pending_error(flow.sock)
            if failure:
                flow.host_failed(now)

    def arrived(self, flow: TcpFlow, size: int, failure: int, now: float) -> None:
        """A receive that was somebody else's to do is over."""
        self.feeder.arrived(flow, size, failure, now)

    def withdraw(self, flow: TcpFlow) -> None:
        """The port takes back the room that a receive is under way into: again, into other."""
        self.feeder.withdraw(flow)
        self.touch(flow, tcp.REWIND)
        self._loop.again()  # a guest stops its chip between turns

    def _is_connected(self, flow: TcpFlow, events: int, now: float) -> bool:
        """Has the connect that was waited for succeeded, by these events?"""
        assert flow.sock is not None
        failure = pending_error(flow.sock)
        if not failure and not events & WRITABLE:
            return False
        self._answered(flow, failure, now)
        return not failure

    def _drain(self, flow: TcpFlow, now: float) -> None:
        if self.deliverer.drain(flow, now):
            self.touch(flow, 0)
            self.farewells.settle(flow)

    def _reopen(self, flow: TcpFlow) -> None:
        if flow.sock is not None and flow.conn.life.state is not tcp.State.CLOSED:
            self.feeder.offer(flow)
            if flow.conn.receive.update_due():
                self.touch(flow, tcp.ACK_LATER)

    def handle_timeout(self, flow: TcpFlow, now: float) -> float | None:
        """A deadline of the connection may be due."""
        conn = flow.conn
        if flow.retry_at is not None and flow.retry_at <= now:
            self._handle_retry(flow, now)
        if flow in self.farewells:
            return _earliest(self.farewells.handle_timeout(flow, now), flow.retry_at)
        if flow.chores_at is not None and flow.chores_at <= now:
            flow.chores_at = None
            if flow.owned:
                self.feeder.drop(flow)
            if conn.receive.unacknowledged():
                self.feeder.acknowledge(flow, now)
        at = conn.poll_at()
        if at is not None and at <= now:
            self.touch(flow, conn.handle_timeout(now))
            return None  # settle books the next one
        if flow.broken_until is not None and flow.broken_until <= now:
            self.touch(flow, 0)
            return None
        return _earliest(at, flow.chores_at, flow.retry_at, flow.broken_until)

    # Closing

    def _shut(self, flow: TcpFlow, now: float) -> None:
        flow.finishing = False
        if flow.sock is None:
            return
        try:
            flow.sock.shutdown(socket.SHUT_WR)
        except OSError as error:  # else it is over already
            if is_shortage(error):
                flow.finishing = True
                self.retry(flow, now)

    def _close(self, flow: TcpFlow, now: float) -> None:
        """The connection is over."""
        if flow in self.farewells:
            self.farewells.settle(flow)
        else:
            self.forget(flow)
            self.farewells.close(flow, now)

    def forget(self, flow: TcpFlow) -> None:
        """Take the flow out of the table."""
        if self.flows.get(flow.key) is flow:
            del self.flows[flow.key]
            flow.attachment.flows -= 1
            if self.on_flow is not None:
                self.on_flow("flow-closed", flow)
        flow.guest.attachment.forget(flow)
        self.feeder.withdraw(flow)
        flow.visit = None
        self.deliverer.forget(flow)

    def idlest(self, attachment: Attachment | None, now: float) -> Idle | None:
        """A connection that is over for the guest, or has been idle long enough to give way."""
        parting = self.farewells.idlest(attachment)
        best: TcpFlow | None = None
        flows = self.flows
        for key in list(islice(flows, LOOKS)):
            flow = flows[key]
            flows[key] = flows.pop(key)  # the next look is at others
            if attachment is not None and flow.attachment is not attachment:
                continue
            life = flow.conn.life
            least = TCP_IDLE_MIN if life.state is tcp.State.ESTABLISHED else HALF_CLOSED_MIN
            if now - life.heard_at >= least and (
                best is None or life.heard_at < best.conn.life.heard_at
            ):
                best = flow
        if best is None or (parting is not None and parting.since < best.conn.life.heard_at):
            return parting
        return Idle(best.conn.life.heard_at, partial(self.displace, best, now))

    def displace(self, flow: TcpFlow, now: float) -> None:
        """Both ends are reset, so that neither waits for the other."""
        if self.flows.get(flow.key) is not flow:
            return
        flow.conn.abort(now)
        for emission in flow.conn.poll(now):
            self.feeder.emit(flow, emission)
        self.forget(flow)
        self.farewells.cut(flow)

    def drop_port(self, attachment: Attachment) -> None:
        """The port is gone: reset the hosts that its guests talked to."""
        for flow in list(self.flows.values()):
            if flow.guest.attachment is attachment:
                self.forget(flow)
                self.farewells.reset(flow, self._loop.now)

    def close(self) -> None:
        """End every flow; hosts see a reset where bytes were still to come."""
        for flow in list(self.flows.values()):
            self.forget(flow)
            self.farewells.release(flow)
        self.farewells.end()
        self.feeder.close()


def _earliest(*instants: float | None) -> float | None:
    return min((instant for instant in instants if instant is not None), default=None)
