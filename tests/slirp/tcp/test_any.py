"""Any segment, any deadline and any host, in any state: the machine stays legal and bounded."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from slirp.tcp.ahead import AHEAD_OCTETS_MAX, AHEAD_RANGES_MAX, AHEAD_SEGMENTS_MAX, Ahead
from slirp.tcp.connection import KEEP, Connection, Segment, State
from slirp.tcp.loss import SACKED_RANGES_MAX, Loss
from slirp.tcp.seq import MASK, distance
from slirp.wire.tcp import ACK, SYN, TcpOptions, parse_options

HALF = 1 << 31
ROOM = 65535 << 8

near = st.one_of(
    st.integers(-3, 3),
    st.integers(-70_000, 70_000),
    st.sampled_from([-HALF, HALF - 1, 1 << 30, -(1 << 30), 65535, 65536, 1460, -1460]),
)
lengths = st.one_of(st.integers(0, 3), st.integers(0, 70_000))
flags = st.one_of(st.sampled_from([ACK, ACK | 8, ACK | 1, ACK | 4, SYN, 4]), st.integers(0, 63))


class Op:
    """One thing that happens to a connection."""

    def __init__(self, name: str, run: Callable[[Walk], None]) -> None:
        self.name = name
        self.run = run

    def __repr__(self) -> str:
        return self.name


class Walk:
    """A connection on its way through arbitrary events, checked after each."""

    def __init__(self, connection: Connection) -> None:
        self.c = connection
        self.now = 50.0
        self.edge = connection.receive.adv
        self.emitted = 0  # host bytes, each counted once
        self.acked = 0
        self.irs = connection.receive.irs

    def arrive(self, seg: Segment, length: int) -> None:
        c = self.c
        before, flight = c.receive.nxt, (c.send.max - c.send.una) & MASK
        outcome = c.handle_segment(seg, length, self.now)
        assert 0 <= outcome.acked <= flight
        self.acked += outcome.acked
        assert self.acked <= self.emitted
        assert min(outcome.skip, outcome.take) >= 0
        assert outcome.skip + outcome.take <= length
        if outcome.take:
            start = distance((seg.seq + outcome.skip) & MASK, before)
            if outcome.events & KEEP:
                assert start > 0
                assert c.receive.nxt == before
            else:
                assert start == 0
                assert distance(c.receive.nxt, before) >= outcome.take

    def send(self, limit: int, have: int) -> None:
        c = self.c
        flight = (c.send.max - c.send.una) & MASK
        offset, length = c.send.plan(limit, self.now)
        assert 0 <= length <= limit
        if not length:
            return
        assert offset + length <= c.send.wnd
        assert offset <= flight
        if offset == flight:
            length = min(length, have)
            self.emitted += length
        if length:
            emission = c.emit_data(offset, length, True, self.now)
            assert emission.seq == (c.send.una + offset) & MASK
            assert 0 <= emission.window <= 65535
            assert len(emission.options) == c.timestamps.length

    def poll(self) -> None:
        emissions = self.c.poll(self.now)
        assert len(emissions) <= 5
        for emission in emissions:
            assert 0 <= emission.seq <= MASK
            assert 0 <= emission.ack <= MASK
            assert 0 <= emission.window <= 65535
            parse_options(emission.options)
        assert self.c.poll(self.now) == []

    def acknowledge(self) -> None:
        if self.c.state not in (State.CONNECTING, State.SYN_SENT):
            emission = self.c.emit_ack(self.now)
            assert len(emission.options) % 4 == 0
            assert len(parse_options(emission.options).sack) <= 4

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.c.handle_timeout(self.now)

    def check(self) -> None:
        c = self.c
        for number in (c.send.una, c.send.nxt, c.send.max, c.receive.nxt, c.receive.adv):
            assert 0 <= number <= MASK
        flight = (c.send.max - c.send.una) & MASK
        assert flight < HALF
        assert (c.send.nxt - c.send.una) & MASK <= flight
        assert 0 <= c.send.wnd <= 65535 << 14
        assert (c.receive.adv - c.receive.nxt) & MASK <= 65535 << c.receive.wscale
        if c.receive.irs == self.irs:
            assert distance(c.receive.adv, self.edge) >= 0, "the right edge moved left"
        self.edge, self.irs = c.receive.adv, c.receive.irs
        self.check_loss(c.send.loss, flight)
        self.check_ahead(c.receive.ahead)
        at = c.poll_at()
        if c.state is State.CLOSED:
            assert at is None
        else:
            assert at is not None, "a state without a deadline"
            assert at <= self.now + 7200.0 or c.life.heard_at + 7200.0 >= at

    def check_loss(self, loss: Loss | None, flight: int) -> None:
        if loss is None:
            return
        una = self.c.send.una
        assert len(loss.ranges) <= SACKED_RANGES_MAX
        assert 0 <= loss.sacked <= flight
        last = 0
        for left, right in loss.ranges:
            lo, hi = (left - una) & MASK, (right - una) & MASK
            assert last <= lo < hi <= flight
            last = hi + 1
        assert (loss.lost_end - una) & MASK <= flight
        assert loss.cwnd > 0
        assert 0 <= loss.pipe(una, self.c.send.max) <= flight

    def check_ahead(self, ahead: Ahead | None) -> None:
        if ahead is None:
            return
        nxt = self.c.receive.nxt
        spans = sorted(((a - nxt) & MASK, (b - nxt) & MASK) for a, b in ahead.ranges)
        assert len(spans) <= AHEAD_RANGES_MAX
        assert ahead.segments <= AHEAD_SEGMENTS_MAX
        assert sum(b - a for a, b in spans) == ahead.octets <= AHEAD_OCTETS_MAX
        last = 0
        for a, b in spans:
            assert last < a < b < HALF  # never touching: those were joined
            last = b


@st.composite
def segments(draw: st.DrawFn) -> Op:
    seq, ack, length = draw(near), draw(near), draw(lengths)
    bits, window = draw(flags), draw(st.sampled_from([0, 1, 100, 5000, 65535]))
    ack_from_max = draw(st.booleans())
    tsval = draw(st.one_of(st.none(), st.integers(-2, 5), st.integers(0, MASK)))
    blocks = draw(st.lists(st.tuples(near, st.integers(-5, 4000)), max_size=4))
    syn_options = draw(st.sampled_from([(None, None), (0, 14), (1, 15), (1460, 7), (65535, 255)]))

    def run(walk: Walk) -> None:
        c = walk.c
        sack = tuple(
            ((c.send.una + at) & MASK, (c.send.una + at + size) & MASK) for at, size in blocks
        )
        ts = None if tsval is None else ((c.timestamps.recent + tsval) & MASK, 0)
        options = TcpOptions(*syn_options, True, sack, ts) if bits & SYN else None
        if options is None and (sack or ts):
            options = TcpOptions(sack=sack, ts=ts)
        base = c.send.max if ack_from_max else c.send.una
        seg = Segment((c.receive.nxt + seq) & MASK, (base + ack) & MASK, bits, window, options)
        walk.arrive(seg, length)

    return Op(f"segment({seq}, {ack}, {bits}, {length}, w={window}, {tsval}, {blocks})", run)


def op(name: str, run: Callable[[Walk], None]) -> st.SearchStrategy[Op]:
    return st.just(Op(name, run))


waits = st.sampled_from([0.0, 0.001, 0.2, 1.0, 61.0, 7200.0])
rooms = st.sampled_from([0, 1, 100, 1460, 65536, 1 << 20, ROOM, 1 << 30])
operations = st.one_of(
    segments(),
    segments(),
    segments(),
    st.builds(
        lambda limit, have: Op(f"send({limit}, {have})", lambda w: w.send(limit, have)),
        st.sampled_from([1, 100, 1448, 65000]),
        st.sampled_from([0, 1, 100, 65000]),
    ),
    op("poll", Walk.poll),
    op("ack", Walk.acknowledge),
    st.builds(lambda s: Op(f"wait({s})", lambda w: w.wait(s)), waits),
    st.builds(lambda r: Op(f"room({r})", lambda w: w.c.receive.set_room(r)), rooms),
    op("update_due", lambda w: assert_bool(w.c.receive.update_due())),
    op("host_eof", lambda w: w.c.host_eof(w.now)),
    op("host_connected", lambda w: w.c.host_connected(w.now)),
)
ending = st.sampled_from(
    [Op("abort", lambda w: w.c.abort(w.now)), Op("nothing", lambda w: None)],
)


def assert_bool(value: object) -> None:
    assert isinstance(value, bool)


def opened(iss: int, irs: int, options: TcpOptions | None, *, by_guest: bool) -> Walk:
    """A connection at its handshake's end; the ways before it are among the operations too."""
    if by_guest:
        syn = Segment(irs, 0, SYN, 65535, options)
        return Walk(Connection.passive(syn, iss, 1460, 8, 50.0))
    return Walk(Connection.active(iss, 1460, 8, 50.0))


def establish(walk: Walk, irs: int, options: TcpOptions | None) -> None:
    c = walk.c
    c.host_connected(walk.now)
    walk.poll()
    flags = SYN | ACK if c.state is State.SYN_SENT else ACK
    seq = irs if flags & SYN else c.receive.nxt
    walk.arrive(Segment(seq, c.send.max, flags, 60000, options if flags & SYN else None), 0)
    assert c.state is State.ESTABLISHED
    walk.edge = c.receive.adv
    walk.irs = c.receive.irs


starts = st.sampled_from([0, 1, HALF - 1, HALF, MASK - 70_000, MASK - 1, MASK])


@settings(max_examples=150)
@given(
    ops=st.lists(operations, max_size=25),
    end=ending,
    iss=starts,
    irs=starts,
    options=st.sampled_from(
        [None, TcpOptions(1460, 7, True, (), (9, 0)), TcpOptions(1460, 14, True), TcpOptions(0)]
    ),
    by_guest=st.booleans(),
    ready=st.booleans(),
)
def test_any_segment_in_any_state(
    ops: list[Op],
    end: Op,
    iss: int,
    irs: int,
    options: TcpOptions | None,
    by_guest: bool,
    ready: bool,
) -> None:
    walk = opened(iss, irs, options, by_guest=by_guest)
    if ready:
        establish(walk, irs, options)
    for each in [*ops, end]:
        each.run(walk)
        walk.check()


@settings(max_examples=40)
@given(ops=st.lists(operations, max_size=25), by_guest=st.booleans(), has_room=st.booleans())
def test_a_silent_guest_is_forgotten_in_the_end(
    ops: list[Op], by_guest: bool, has_room: bool
) -> None:
    options = TcpOptions(1460, 7, True, (), (9, 0))
    walk = opened(5, 9, options, by_guest=by_guest)
    establish(walk, 9, options)
    for each in ops:
        each.run(walk)
    c = walk.c
    start = walk.now
    for _ in range(500):
        at = c.poll_at()
        if at is None:
            break
        walk.now = max(walk.now, at)
        c.handle_timeout(walk.now)
        c.poll(walk.now)
        if has_room:
            walk.send(65000, 0)
    assert c.state is State.CLOSED
    assert walk.now - start < 7200 + 10 * 75 + 600
