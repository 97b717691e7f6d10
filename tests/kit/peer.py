"""The far ends of a TCP connection under test; no sockets, no clock, no wire.

`Mirror` is the smallest relay: one Connection and a host's stream in memory. It does with the
connection's answers what a relay has to do, and nothing else, so it also shows how the interface is
meant to be used.

`Script` makes a test read like packetdrill. Sequence numbers are relative: ours to the ISS, the
guest's to its own, so that the SYN is 0 and the first byte is 1.

    c = established()
    c.host_writes(1000)
    c.sends(PSH | ACK, seq=1, ack=1, length=1000)
    c.receives(ACK, seq=1, ack=1001)

`Peer` is a guest's TCP, written apart from the product: it keeps all that it sent until it is
acknowledged and all that it received out of order, retransmits from the front after a fixed time,
and acknowledges each segment. It is simple on purpose; what it cannot do, the kernel's TCP does in
the tests that have one.
"""

from __future__ import annotations

from typing import Final

from slirp.tcp.connection import (
    ACK_LATER,
    ACK_NOW,
    CLOSED,
    FIN_RECEIVED,
    KEEP,
    RESET_RECEIVED,
    Connection,
    Emission,
    Outcome,
    Segment,
    State,
)
from slirp.tcp.seq import MASK, distance
from slirp.wire.tcp import ACK, FIN, PSH, RST, SYN, TcpOptions, parse_options
from tests.kit.clock import Clock

PUMPS_MAX: Final = 10_000  # segments in one turn

Sent = tuple[Emission, bytes]  # a segment on its way to the guest


class Mirror:
    """A Connection, and the host's two streams as bytes in memory."""

    def __init__(self, connection: Connection, limit: int = 65000) -> None:
        self.connection = connection
        self.limit = limit  # bytes per segment: more than the MSS, as with GSO
        self.stream = bytearray()  # the host's bytes from SND.UNA on
        self.host_closed = False
        self.received = bytearray()
        self.kept: dict[int, bytes] = {}  # bytes ahead, by sequence number
        self.guest_closed = False
        self.reset = False
        self.over = False
        self.out: list[Sent] = []
        self._ack_due = False

    def receive(self, seg: Segment, payload: bytes, now: float) -> Outcome:
        """One segment from the guest; the batch goes on until end_batch()."""
        before = self.connection.receive.nxt
        outcome = self.connection.handle_segment(seg, len(payload), now)
        del self.stream[: outcome.acked]
        wanted = payload[outcome.skip : outcome.skip + outcome.take]
        assert len(wanted) == outcome.take, "more was taken than had come"
        events = outcome.events
        if events & KEEP:
            self.kept[(seg.seq + outcome.skip) & MASK] = wanted
        else:
            self.received += wanted
            self._drain((before + len(wanted)) & MASK)
        if events & FIN_RECEIVED:
            self.guest_closed = True
        self._note(events)
        if events & ACK_NOW and not self.over:
            self.out.append((self.connection.emit_ack(now), b""))
        elif events & ACK_LATER:
            self._ack_due = True
        return outcome

    def _drain(self, at: int) -> None:
        while at in self.kept:
            data = self.kept.pop(at)
            assert distance(self.connection.receive.nxt, at) >= len(data), "kept, and not in order"
            self.received += data
            at = (at + len(data)) & MASK

    def _note(self, events: int) -> None:
        if events & RESET_RECEIVED:
            self.reset = True
        if events & CLOSED:
            self.over = True

    def end_batch(self, now: float) -> None:
        """Acknowledge what came, send what may go."""
        if self._ack_due and not self.over:
            self.out.append((self.connection.emit_ack(now), b""))
        self._ack_due = False
        self.pump(now)

    def pump(self, now: float) -> None:
        """Everything that may go now."""
        c = self.connection
        self.out += [(emission, b"") for emission in c.poll(now)]
        for _ in range(PUMPS_MAX):
            if self.over:
                break
            offset, length = c.send.plan(self.limit, now)
            assert 0 <= length <= self.limit
            if not length:
                break
            data = bytes(self.stream[offset : offset + length])
            if not data:
                if self.host_closed:
                    c.host_eof(now)  # as a read of no bytes tells
                break
            push = offset + len(data) == len(self.stream)
            self.out.append((c.emit_data(offset, len(data), push, now), data))
        else:
            raise AssertionError("plan() gives bytes without end")
        self.out += [(emission, b"") for emission in c.poll(now)]

    def write(self, data: bytes, now: float) -> None:
        self.stream += data
        self.pump(now)

    def close(self, now: float) -> None:
        self.host_closed = True
        self.pump(now)

    def timeout(self, now: float) -> int:
        events = self.connection.handle_timeout(now)
        self._note(events)
        self.pump(now)
        return events

    def take_out(self) -> list[Sent]:
        out, self.out = self.out, []
        return out


class Script:
    """A Connection under a packetdrill-like script."""

    def __init__(
        self, connection: Connection, clock: Clock, *, irs: int, limit: int | None = None
    ) -> None:
        self.connection = connection
        self.clock = clock
        self.iss = connection.send.una
        self.irs = irs
        self.mirror = Mirror(connection, limit or 1 << 30)
        self.window = 65535
        self.tsval: int | None = None  # the guest's clock; None: it sends no timestamps
        self.outcome = Outcome(0, 0, 0, 0)
        self.last = Emission(0, 0, 0, 0, b"")

    def receives(
        self,
        flags: int,
        seq: int = 0,
        ack: int = 0,
        length: int = 0,
        *,
        window: int | None = None,
        options: TcpOptions | None = None,
        sack: tuple[tuple[int, int], ...] = (),
        batch_ends: bool = True,
    ) -> Outcome:
        """The guest sends a segment; the bytes of its payload tell their sequence number."""
        if options is None and (sack or self.tsval is not None):
            blocks = tuple((self._ours(left), self._ours(right)) for left, right in sack)
            options = TcpOptions(
                sack=blocks, ts=None if self.tsval is None else (self.tsval & MASK, 0)
            )
        seg = Segment(
            (self.irs + seq) & MASK,
            self._ours(ack) if flags & ACK else 0,
            flags,
            self.window if window is None else window,
            options,
        )
        self.outcome = self.mirror.receive(seg, guest_octets(seq, length), self.clock.now)
        if batch_ends:
            self.mirror.end_batch(self.clock.now)
        return self.outcome

    def _ours(self, seq: int) -> int:
        return (self.iss + seq) & MASK

    def sends(
        self,
        flags: int,
        seq: int | None = None,
        ack: int | None = None,
        length: int = 0,
        *,
        window: int | None = None,
    ) -> Emission:
        """The next segment that goes out is this one."""
        assert self.mirror.out, "nothing was sent"
        emission, data = self.mirror.out.pop(0)
        self.last = emission
        assert flag_names(emission.flags) == flag_names(flags)
        assert len(data) == length
        if seq is not None:
            assert distance(emission.seq, self.iss) == seq
        if ack is not None:
            assert distance(emission.ack, self.irs) == ack
        if window is not None:
            assert emission.window == window
        return emission

    def sends_nothing(self) -> None:
        assert self.mirror.out == []

    def is_in(self, state: State) -> None:
        """The connection's state now."""
        assert self.connection.state is state

    @property
    def options(self) -> TcpOptions:
        """Of the segment that was sent last."""
        return parse_options(self.last.options)

    @property
    def sack(self) -> list[tuple[int, int]]:
        """The SACK blocks sent last, relative."""
        return [
            (distance(left, self.irs), distance(right, self.irs))
            for left, right in self.options.sack
        ]

    def host_writes(self, length: int) -> None:
        self.mirror.write(bytes(length), self.clock.now)

    def host_closes(self) -> None:
        self.mirror.close(self.clock.now)

    def host_resets(self) -> None:
        self.connection.abort(self.clock.now)
        self.mirror.out += [(e, b"") for e in self.connection.poll(self.clock.now)]
        self.mirror.over = True

    def has_room(self, room: int) -> None:
        self.connection.receive.set_room(room)
        self.mirror.pump(self.clock.now)

    def after(self, seconds: float) -> int:
        """So much later: the events of the deadlines that passed, each at its instant."""
        events = 0
        end = self.clock.now + seconds
        for _ in range(10_000):
            at = self.connection.poll_at()
            if at is None or at > end:
                self.clock.until(end)
                return events
            events |= self.mirror.timeout(self.clock.until(at))
        raise AssertionError("deadlines without end")

    def events(self) -> int:
        return self.outcome.events


def guest_octets(seq: int, length: int) -> bytes:
    """The guest's bytes from relative number `seq` on: each tells where it stands."""
    return bytes(number % 251 for number in range(seq, seq + length))


def flag_names(flags: int) -> str:
    names = {FIN: "FIN", SYN: "SYN", RST: "RST", PSH: "PSH", ACK: "ACK"}
    return "|".join(name for bit, name in names.items() if flags & bit)


RETRANSMIT_AFTER: Final = 0.3  # seconds


class Peer:
    """A guest's TCP that opens a connection, sends `outgoing`, closes, and collects what comes."""

    def __init__(
        self,
        iss: int,
        outgoing: bytes = b"",
        *,
        mss: int = 1460,
        buffer: int = 65535,
        wscale: int | None = 3,
        sack: bool = True,
        timestamps: bool = True,
        opens: bool = True,
    ) -> None:
        self.una = self.nxt = iss
        self.iss = iss
        self.mss = mss
        self.buffer = buffer  # bytes that it takes in ahead of its application
        self.wscale = wscale
        self.sack = sack
        self.timestamps = timestamps
        self.opens = opens
        self.outgoing = outgoing  # from iss + 1 on, then the FIN
        self.received = bytearray()  # all in order
        self.unread = 0  # bytes of those that its application has not taken
        self.ahead: dict[int, int] = {}  # relative offset in the stream: byte
        self.irs: int | None = None
        self.fin_offset: int | None = None
        self.got_fin = False
        self.snd_wnd = 1
        self.snd_wscale = 0
        self.ts_recent = 0
        self.established = False
        self.reset = False
        self.resend_at: float | None = None
        self.out: list[tuple[Segment, bytes]] = []

    # Towards the network

    def start(self, now: float) -> None:
        """Send the SYN, or the SYN|ACK where the other side opened."""
        options = TcpOptions(
            mss=self.mss,
            wscale=self.wscale,
            sack_permitted=self.sack,
            ts=self._ts(now),
        )
        flags = SYN if self.irs is None else SYN | ACK
        self.nxt = (self.iss + 1) & MASK
        self.resend_at = now + RETRANSMIT_AFTER
        window = min(self.buffer, 65535)
        self.out.append((Segment(self.iss, self._ack(), flags, window, options), b""))

    def pump(self, now: float) -> None:
        """Send new bytes as the window allows, then the FIN."""
        if not self.established or self.reset:
            return
        while True:
            flight = (self.nxt - self.una) & MASK
            sent = (self.nxt - self.iss - 1) & MASK
            data = self.outgoing[sent : sent + min(self.mss, max(0, self.snd_wnd - flight))]
            fin = sent + len(data) == len(self.outgoing)
            if sent > len(self.outgoing) or not (data or fin):
                break
            self._send(self.nxt, data, fin, now)
            self.nxt = (self.nxt + len(data) + fin) & MASK
            if self.resend_at is None:
                self.resend_at = now + RETRANSMIT_AFTER
        if self.resend_at is None and not self.snd_wnd:
            self.resend_at = now + RETRANSMIT_AFTER

    def timeout(self, now: float) -> None:
        """Send the oldest segment again; into a closed window, one byte."""
        self.resend_at = now + RETRANSMIT_AFTER
        if not self.established:
            self.start(now)
            return
        sent = (self.una - self.iss - 1) & MASK
        if sent > len(self.outgoing):
            self.resend_at = None
            return
        data = self.outgoing[sent : sent + min(self.mss, max(1, self.snd_wnd))]
        fin = sent + len(data) == len(self.outgoing)
        self._send(self.una, data, fin, now)
        end = (self.una + len(data) + fin) & MASK
        if distance(end, self.nxt) > 0:
            self.nxt = end

    def _send(self, seq: int, data: bytes, fin: bool, now: float) -> None:
        flags = ACK | (FIN if fin else 0) | (PSH if data else 0)
        self.out.append((self._segment(seq, flags, now), data))

    def _segment(self, seq: int, flags: int, now: float) -> Segment:
        options = TcpOptions(sack=self._blocks(), ts=self._ts(now))
        window = self._window() >> (self.wscale or 0)
        return Segment(seq, self._ack(), flags, min(window, 65535), options)

    def _ts(self, now: float) -> tuple[int, int] | None:
        return (int(now * 1000) & MASK, self.ts_recent) if self.timestamps else None

    def _ack(self) -> int:
        if self.irs is None:
            return 0
        return (self.irs + 1 + len(self.received) + self.got_fin) & MASK

    def _window(self) -> int:
        return max(0, self.buffer - self.unread)

    def _blocks(self) -> tuple[tuple[int, int], ...]:
        if not self.sack or not self.ahead or self.irs is None:
            return ()
        blocks: list[list[int]] = []
        for offset in sorted(self.ahead):
            if blocks and blocks[-1][1] == offset:
                blocks[-1][1] += 1
            else:
                blocks.append([offset, offset + 1])
        first = (self.irs + 1) & MASK
        return tuple(((first + a) & MASK, (first + b) & MASK) for a, b in blocks[:3])

    def read(self, octets: int, now: float) -> None:
        """The application takes bytes; the other side learns of the window."""
        was_closed = self._window() < self.mss
        self.unread = max(0, self.unread - octets)
        if was_closed and self._window() >= self.mss and self.established:
            self.out.append((self._segment(self.nxt, ACK, now), b""))

    # From the network

    def handle(self, emission: Emission, payload: bytes, now: float) -> None:
        options = parse_options(emission.options)
        if emission.flags & RST:
            self.reset = True
            self.resend_at = None
            return
        if emission.flags & SYN:
            self._handle_syn(emission, options, now)
        if self.irs is None:
            return
        if options.ts is not None:
            self.ts_recent = options.ts[0]
        if emission.flags & ACK:
            self._handle_ack(emission, now)
        if emission.flags & SYN and self.established:
            self.out.append((self._segment(self.nxt, ACK, now), b""))
        elif not emission.flags & SYN and self.established:
            self._handle_text(emission, payload, now)
        self.pump(now)

    def _handle_syn(self, emission: Emission, options: TcpOptions, now: float) -> None:
        self.irs = emission.seq
        if options.wscale is None:
            self.wscale = None
        else:
            self.snd_wscale = options.wscale
        self.timestamps = self.timestamps and options.ts is not None
        self.sack = self.sack and options.sack_permitted
        if options.mss is not None:
            self.mss = min(self.mss, options.mss)
        if not emission.flags & ACK and not self.established:
            self.start(now)

    def _handle_ack(self, emission: Emission, now: float) -> None:
        acked = (emission.ack - self.una) & MASK
        if acked > (self.nxt - self.una) & MASK:
            return
        self.established = True
        self.snd_wnd = emission.window << (0 if emission.flags & SYN else self.snd_wscale)
        if acked:
            self.una = emission.ack
            self.resend_at = None if self.una == self.nxt else now + RETRANSMIT_AFTER

    def _handle_text(self, emission: Emission, payload: bytes, now: float) -> None:
        assert self.irs is not None
        offset = distance(emission.seq, (self.irs + 1) & MASK)
        edge = len(self.received) + self._window()
        for index, octet in enumerate(payload):
            if len(self.received) <= offset + index < edge:
                self.ahead[offset + index] = octet
        while len(self.received) in self.ahead:
            self.received.append(self.ahead.pop(len(self.received)))
            self.unread += 1
        if emission.flags & FIN:
            self.fin_offset = offset + len(payload)
        if self.fin_offset == len(self.received):
            self.got_fin = True
        if payload or emission.flags & FIN or offset < len(self.received):
            self.out.append((self._segment(self.nxt, ACK, now), b""))

    def take_out(self) -> list[tuple[Segment, bytes]]:
        out, self.out = self.out, []
        return out

    @property
    def done(self) -> bool:
        """Everything sent was acknowledged, and the other side's FIN came."""
        return self.got_fin and distance(self.una, self.iss) == len(self.outgoing) + 2


def passive(
    clock: Clock | None = None,
    *,
    irs: int = 0x1000,
    iss: int = 0x5000,
    mss: int = 1460,
    wscale: int | None = 0,
    sack: bool = False,
    ts: int | None = None,
    rcv_wscale: int = 0,
    room: int = 65535,
    limit: int | None = None,
    guest_mss: int | None = 1460,
) -> Script:
    """A connection whose SYN came; the host's connect has no answer yet."""
    clock = clock or Clock()
    options = TcpOptions(guest_mss, wscale, sack, (), None if ts is None else (ts, 0))
    syn = Segment(irs, 0, SYN, 65535, options)
    connection = Connection.passive(syn, iss, mss, rcv_wscale, clock.now, room=room)
    script = Script(connection, clock, irs=irs, limit=limit)
    script.tsval = ts
    return script


def established(clock: Clock | None = None, *, window: int = 65535, **how: object) -> Script:
    """A connection that the guest opened, ready for bytes."""
    script = passive(clock, **how)  # type: ignore[arg-type]
    script.window = window
    script.connection.host_connected(script.clock.now)
    script.mirror.pump(script.clock.now)
    script.sends(SYN | ACK, seq=0, ack=1)
    script.receives(ACK, seq=1, ack=1)
    script.sends_nothing()
    return script
