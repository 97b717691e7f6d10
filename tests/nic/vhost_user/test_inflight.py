"""Buffers that a back-end had when it died: the next one gives each of them back, once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic.vhost_user import inflight
from nic.vhost_user.inflight import Shape, region_len
from nic.vhost_user.messages import BadMessage
from nic.vhost_user.port import VhostUserPort
from nic.virtio.features import EVENT_IDX, INDIRECT_DESC, MRG_RXBUF, OFFERED, VERSION_1
from nic.virtio.receiver import RxClaim
from tests.kit.frontend import P_ALL, FrontEnd
from tests.nic.vhost_user.test_port import ALL, FRAME, MODERN, PACKED, Wire, wired

KINDS = {
    "legacy": 0,
    "firmware": VERSION_1,
    "mergeable": MODERN,
    "Linux": ALL,
    "packed": PACKED,
    "packed, all": OFFERED,
}
EVERY_KIND = pytest.mark.parametrize("features", KINDS.values(), ids=KINDS)
BOTH = pytest.mark.parametrize("features", [ALL, OFFERED], ids=["split", "packed"])


@contextlib.contextmanager
def recorded(features: int, **options: int) -> Iterator[Wire]:
    with wired(started=False, **options) as wire:
        wire.front.negotiate(features)
        wire.front.keep_inflight()
        wire.front.start()
        yield wire


def claimed(wire: Wire, size: int = 60) -> RxClaim:
    claim = wire.port.claim(size)
    assert claim is not None
    return claim


def numbered(number: int) -> bytes:
    return number.to_bytes(4, "big") + FRAME


# The file


def test_the_layout_of_the_protocol() -> None:
    """Sizes by the structures of vhost-user.rst: 16 + 16 n bytes, and 32 + 32 n."""
    assert region_len(256, False) == 16 + 16 * 256 + 48
    assert region_len(256, True) == 32 + 32 * 256 + 32
    assert region_len(1, False) == 64


@EVERY_KIND
def test_a_front_end_gets_its_file(features: int) -> None:
    with wired(started=False) as wire:
        front = wire.front
        front.negotiate(features)
        front.keep_inflight()
        size, offset, queues, queue_size = struct.unpack("=QQHH4x", front.inflight)
        is_packed = bool(features & 1 << 34)
        assert (offset, queues, queue_size) == (0, 2, 256)
        assert size == 2 * region_len(256, is_packed) == os.fstat(front.inflight_fd).st_size
        assert os.pread(front.inflight_fd, size, 0) == bytes(size)
        with pytest.raises(PermissionError):
            os.ftruncate(front.inflight_fd, 0)


def test_a_front_end_that_does_not_pad_gets_no_padding() -> None:
    with wired(started=False) as wire:
        wire.front.negotiate(MODERN)
        assert len(wire.front.ask(31, struct.pack("=QQHH", 0, 0, 2, 256))) == 20
        os.close(wire.front.fds[0])


def test_what_is_noted_of_a_split_ring() -> None:
    with recorded(ALL, size=8) as wire:
        front = wire.front
        front.receive.post(100)
        head = front.receive.post(100)
        claimed(wire), claimed(wire)
        octets = os.pread(front.inflight_fd, region_len(8, False), 0)
        assert struct.unpack_from("=QHHHH", octets) == (0, 1, 8, 0, 0)
        assert struct.unpack_from("=B5xHQ", octets, 16 + 16 * head) == (1, 0, 2)


def test_what_is_noted_of_a_packed_ring() -> None:
    with recorded(OFFERED, size=8) as wire:
        front = wire.front
        number = front.receive.post(50, 50)
        ((first, _), (second, _)) = front.receive.buffers[number]
        claim = claimed(wire)
        octets = os.pread(front.inflight_fd, region_len(8, True), 0)
        assert struct.unpack_from("=QHHHHHHBB", octets) == (0, 1, 8, 2, 2, 0, 0, 1, 1)
        head = struct.unpack_from("=BxHHHQHHIQ", octets, 32)
        assert head == (1, 1, 1, 2, 1, number, 0x83, 50, first)
        assert struct.unpack_from("=HHIQ", octets, 32 + 32 + 16) == (number, 0x82, 50, second)
        claim.commit(60)
        wire.port.poll(0.0)
        octets = os.pread(front.inflight_fd, region_len(8, True), 0)
        assert struct.unpack_from("=QHHHHHHBB", octets) == (0, 1, 8, 0, 0, 2, 2, 1, 1)
        assert octets[32] == 0


def test_rings_without_a_record_are_the_plain_ones() -> None:
    """Agreeing to it costs nothing: QEMU's network devices do, and bring no record."""
    for features in (ALL, OFFERED):
        with wired(features) as wire:
            assert wire.front.protocol & 1 << 12
            kinds = {type(ring.ring).__name__ for ring in wire.port._backend.vrings.values()}
            assert kinds == {"PackedRing" if features == OFFERED else "SplitRing"}


# Death


@EVERY_KIND
def test_buffers_that_were_held_come_back_once_and_in_order(features: int) -> None:
    with recorded(features) as wire:
        front = wire.front
        heads = [front.receive.post(front.header_len + 60) for _ in range(6)]
        assert wire.give(FRAME)
        for _ in range(3):
            claimed(wire)  # held, as for bytes that are on their way
        sent = [front.transmit.send(numbered(n)) for n in range(5)]
        frames = wire.port.frames()
        first = next(frames)
        first.release()
        next(frames), next(frames)
        wire.port.poll(0.0)
        assert [used.id for used in front.transmit.used()] == sent[:1]
        wire.die()
        wire.turn()
        assert [frame[:4] for frame in wire.sent] == [n.to_bytes(4, "big") for n in range(1, 5)]
        assert [used.id for used in front.transmit.used()] == sent[1:]
        for n in range(5):
            assert wire.give(numbered(n)[:60])
        assert not wire.give(FRAME)
        assert [used.id for used in front.receive.used()] == heads
        assert wire.gone == []


@EVERY_KIND
def test_buffers_used_out_of_order_are_not_used_again(features: int) -> None:
    """What the used index alone cannot tell: a later buffer is used, an earlier one is not."""
    with recorded(features) as wire:
        front = wire.front
        heads = [front.receive.post(front.header_len + 60) for _ in range(4)]
        early, late = claimed(wire), claimed(wire)
        early.cancel()
        late.commit(60)
        wire.port.poll(0.0)
        assert [used.id for used in front.receive.used()] == [heads[1]]
        wire.die()
        for _ in range(3):
            assert wire.give(FRAME)
        assert not wire.give(FRAME)
        assert [used.id for used in front.receive.used()] == [heads[0], heads[2], heads[3]]


@BOTH
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("indirect", [False, True])
def test_chains_are_taken_up_again(features: int, pieces: int, indirect: bool) -> None:
    """Packed: their descriptors are in the record, since used ones have taken their place."""
    with recorded(features, size=8) as wire:
        front = wire.front
        cuts = range(20, 20 * pieces, 20)
        for n in range(2):
            front.transmit.send(numbered(n), cuts=cuts, indirect=indirect)
        frames = list(wire.port.frames())
        assert len(frames) == 2
        wire.die()
        wire.die()  # before the second one did anything
        wire.turn()
        assert wire.sent == [numbered(0), numbered(1)]
        assert len(front.transmit.used()) == 2
        for n in range(20):
            front.transmit.send(numbered(n), cuts=cuts, indirect=indirect)
            wire.turn()
            assert len(front.transmit.used()) == 1
        assert wire.sent[2:] == [numbered(n) for n in range(20)]


class Dead(Exception):
    """The process ended here."""


@BOTH
@pytest.mark.parametrize("step", ["give", "given", "take"])
def test_death_between_the_ring_and_its_record(
    features: int, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was shown to the driver is used though the notes lack it, and what was not is not."""
    with recorded(features, size=8) as wire:
        front = wire.front
        sent = [front.transmit.send(numbered(n)) for n in range(3)]
        record = inflight.PackedRecord if features == OFFERED else inflight.SplitRecord

        def die(*_: object) -> None:
            raise Dead

        with monkeypatch.context() as patched:
            if step != "take":
                for frame in wire.port.frames():
                    frame.release()
            patched.setattr(record, step, die)
            with pytest.raises(Dead):
                list(wire.port.frames()) if step == "take" else wire.port.poll(0.0)
        shown = [used.id for used in front.transmit.used()]
        assert shown == (sent if step == "given" else [])
        wire.die()
        wire.turn()
        assert [used.id for used in front.transmit.used()] == sent[len(shown) :]
        assert wire.sent == [numbered(n) for n in range(len(shown), 3)]
        front.transmit.send(FRAME)
        wire.turn()
        assert len(front.transmit.used()) == 1
        assert wire.gone == []


@BOTH
def test_a_process_that_is_killed(features: int) -> None:
    ours, theirs = socket.socketpair()
    front = FrontEnd(theirs)
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            hold_and_be_killed(ours)
        os._exit(1)
    ours.close()
    front.negotiate(features)
    front.keep_inflight()
    front.start()
    for _ in range(4):
        front.receive.post(100)
    heads = [front.transmit.send(numbered(n)) for n in range(5)]
    front.acknowledged(3)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert front.transmit.used() == []
    ours, theirs = socket.socketpair()
    with contextlib.closing(VhostUserPort(ours)) as port:

        def turn() -> None:
            for frame in port.frames():
                frame.release()
            port.poll(0.0)

        front.turn = turn
        front.reconnect(theirs)
        turn()
        assert [used.id for used in front.transmit.used()] == heads
        for _ in range(4):
            claim = port.claim(60)
            assert claim is not None
            claim.commit(60)
        assert port.claim(60) is None
        port.poll(0.0)
        assert len(front.receive.collect()) == 4
    front.close()


def hold_and_be_killed(sock: socket.socket) -> None:
    """A back-end that has five frames and two claims, and no time to do anything about it."""
    port = VhostUserPort(sock)
    frames: list[object] = []
    while len(frames) < 5:
        frames += list(port.frames())
        port.poll(0.0)
    claims = [port.claim(60), port.claim(60)]
    while None not in claims:
        list(port.frames())  # answers the last message
        os.kill(os.getpid(), signal.SIGKILL)


# An orderly stop


@EVERY_KIND
def test_a_ring_that_is_stopped_has_nothing_in_flight(features: int) -> None:
    with recorded(features) as wire:
        front = wire.front
        for _ in range(4):
            front.receive.post(front.header_len + 60)
        claimed(wire), claimed(wire)
        bases = [front.stop_ring(0), front.stop_ring(1)]
        octets = os.pread(front.inflight_fd, 1 << 16, 0)
        entry = 32 if features & 1 << 34 else 16
        assert not any(octets[entry + entry * n] for n in range(256))
        for index in (0, 1):
            front.start_ring(index, bases[index])
        for _ in range(4):
            assert wire.give(FRAME)
        assert not wire.give(FRAME)
        assert len(front.receive.collect()) == 4


@BOTH
def test_a_reset_forgets_the_record(features: int) -> None:
    with recorded(features) as wire:
        front = wire.front
        front.receive.post(100)
        claimed(wire)
        front.send(34)
        front.memory[: front._first] = bytes(front._first)  # the driver begins anew
        front.start()
        front.receive.post(100)
        assert wire.give(FRAME)
        assert len(front.receive.collect()) == 1
        assert wire.gone == []


@BOTH
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), log2=st.integers(2, 5))
def test_whenever_it_dies_each_buffer_comes_back_once(features: int, seed: int, log2: int) -> None:
    """Claims, frames, cancels, deaths and stops in any order."""
    choice = random.Random(seed)
    with recorded(features, size=1 << log2) as wire:
        front = wire.front
        given_out: list[set[int]] = [set(), set()]
        claims: list[RxClaim] = []
        frames: list[Callable[[], None]] = []
        number = 0

        def look() -> None:
            for index, ring in enumerate(front.rings):
                for used in ring.used():
                    given_out[index].remove(used.id)  # KeyError: twice
                    ring.buffers.pop(used.id)

        def step(action: int) -> None:
            nonlocal number
            if action < 3 and front.receive.room > 2:
                given_out[0].add(front.receive.post(*choice.choice(((80,), (40, 60)))))
            elif action < 6 and front.transmit.room > 2:
                given_out[1].add(front.transmit.send(numbered(number), cuts=(30,)[: number & 1]))
                number += 1
            elif action < 8:
                claim = wire.port.claim(60)
                if claim is not None:
                    claims.append(claim)
            elif action < 10:
                for frame in wire.port.frames():
                    wire.sent.append(bytes(frame.iov))
                    frames.append(frame.release)
            elif action < 13 and claims:
                claim = claims.pop(choice.randrange(len(claims)))
                claim.cancel() if choice.random() < 0.3 else claim.commit(60)
            elif action < 16 and frames:
                frames.pop(choice.randrange(len(frames)))()
            elif action == 16:
                claims.clear()
                frames.clear()
                wire.die()
            elif action == 17:
                claims.clear()
                frames.clear()
                bases = [front.stop_ring(index) for index in (0, 1)]
                for index in (0, 1):
                    front.start_ring(index, bases[index])
            else:
                wire.port.poll(0.0)
                look()

        for _ in range(120):
            step(choice.randrange(20))
        for release in frames:
            release()
        for claim in claims:
            claim.commit(60)
        wire.turn()
        look()
        while wire.give(FRAME):
            look()
        assert wire.gone == []
        assert given_out == [set(), set()]
        assert {int.from_bytes(frame[:4], "big") for frame in wire.sent} == set(range(number))


# What a front-end may have written into it


def overwritten(wire: Wire, choice: random.Random, count: int) -> None:
    length = os.fstat(wire.front.inflight_fd).st_size
    for _ in range(count):
        at = choice.randrange(min(length - 1, 400))
        octets = choice.choice((b"\0", b"\1", b"\xff", b"\x07", choice.randbytes(2)))
        os.pwrite(wire.front.inflight_fd, octets, at)


@settings(max_examples=150, deadline=None)
@given(
    features=st.sampled_from([ALL, OFFERED]), seed=st.integers(0, 1 << 32), count=st.integers(1, 40)
)
def test_any_bytes_in_the_record(features: int, seed: int, count: int) -> None:
    """The rings go on, or the connection is over with a word."""
    choice = random.Random(seed)
    with recorded(features, size=8) as wire:
        front = wire.front
        for _ in range(4):
            front.receive.post(100)
        claimed(wire)
        front.transmit.send(FRAME)
        front.transmit.send(FRAME)
        list(wire.port.frames())
        overwritten(wire, choice, count)
        with contextlib.suppress(OSError, AssertionError):  # it is gone while we speak
            wire.die()
        for _ in range(3):
            if wire.port.gone:
                break
            claim = wire.port.claim(60)
            if claim is not None:
                claim.commit(60)
            for frame in wire.port.frames():
                frame.release()
            wire.port.poll(0.0)
            overwritten(wire, choice, count)  # while they run: nobody reads it
        assert len(wire.gone) <= 1


SPLIT_LIES = {
    "another version": (8, b"\2\0", "of version 2"),
    "another size": (10, b"\7\0", "for 7 descriptors, not 8"),
    "a batch of too many": (14, b"\x64\0", "contradicts itself"),
    "a batch that leads out": (12, b"\xff\0" + b"\xff\xff", "contradicts itself"),
}
PACKED_LIES = {
    "another version": (8, b"\2\0", "of version 2"),
    "a used index outside": (18, b"\x08\0", "contradicts itself"),
    "a free list that loops": (32 + 32 * 3 + 2, b"\3\0", "contradicts itself"),
    "a buffer of nothing": (32 + 6, b"\0\0", "contradicts itself"),
    "a buffer that leads out": (32 + 6, b"\x09\0", "contradicts itself"),
    "entries that are nowhere": (32, b"\0", "contradicts itself"),
}
LIES = {f"split, {name}": (ALL, *lie) for name, lie in SPLIT_LIES.items()} | {
    f"packed, {name}": (OFFERED, *lie) for name, lie in PACKED_LIES.items()
}


@pytest.mark.parametrize(("features", "at", "octets", "why"), LIES.values(), ids=LIES)
def test_a_record_that_cannot_be(features: int, at: int, octets: bytes, why: str) -> None:
    with recorded(features, size=8) as wire, recorded(features) as other:
        wire.front.receive.post(100)
        claimed(wire)
        os.pwrite(wire.front.inflight_fd, octets, at)
        with contextlib.suppress(OSError, AssertionError):
            wire.die()
        assert len(wire.gone) == 1
        assert why in wire.gone[0]
        other.front.transmit.send(FRAME)
        other.turn()
        assert other.sent == [FRAME]


@BOTH
def test_a_buffer_that_is_available_twice_breaks_the_ring(features: int) -> None:
    with recorded(features, size=8) as wire:
        ring = wire.front.transmit
        head = ring.send(FRAME)
        if features == ALL:
            ring.offer(head)  # type: ignore[union-attr]  # a split ring
        else:
            for n in range(8):
                struct.pack_into("<QIHH", ring.table, 16 * n, 0x10000, 80, 0, 1 << 7)
            wire.port.poll(0.0)
        frames = []
        for _ in range(3):
            frames += list(wire.port.frames())
            for n in range(8 if features == OFFERED else 0):
                struct.pack_into("<QIHH", ring.table, 16 * n, 0x10000, 80, 0, 1 << 15)
            ring.kick()
        assert len(wire.gone) == 1
        assert "available twice" in wire.gone[0] or "more descriptors out" in wire.gone[0]


INFLIGHT = struct.Struct("=QQHH").pack
MESSAGES = {
    "no rings": (31, INFLIGHT(0, 0, 0, 256), 0, "in 0 rings"),
    "too many rings": (31, INFLIGHT(0, 0, 33, 256), 0, "in 33 rings"),
    "rings of nothing": (31, INFLIGHT(0, 0, 2, 0), 0, "of 0 descriptors"),
    "rings that are too long": (32, INFLIGHT(0, 0, 2, 32769), 1, "of 32769 descriptors"),
    "half a message": (32, bytes(12), 1, "with 12 bytes"),
    "no descriptor": (32, INFLIGHT(64, 0, 2, 256), 0, "without its descriptor"),
    "a file that is shorter": (32, INFLIGHT(1 << 40, 0, 2, 256), 1, "a record of"),
    "an offset behind it": (32, INFLIGHT(64, (1 << 64) - 64, 2, 256), 1, "a record of"),
}


@pytest.mark.parametrize(("request_", "payload", "fds", "why"), MESSAGES.values(), ids=MESSAGES)
def test_a_message_that_nobody_may_send(request_: int, payload: bytes, fds: int, why: str) -> None:
    with wired(started=False) as wire:
        wire.front.negotiate(MODERN)
        wire.front.send(request_, payload, [wire.front.fd] * fds)
        assert len(wire.gone) == 1
        assert why in wire.gone[0]


def test_it_has_to_be_agreed_upon() -> None:
    with wired(started=False) as wire:
        wire.front.negotiate(MODERN, P_ALL & ~(1 << 12))
        wire.front.send(31, INFLIGHT(0, 0, 2, 256))
        assert wire.gone == ["has buffers in flight, which was not agreed upon"]


def test_a_record_comes_before_the_rings() -> None:
    with recorded(MODERN) as wire:
        wire.front.bring_inflight()
        assert wire.gone == ["changed the record of buffers in flight under rings that run"]


def test_a_record_that_is_too_short_for_its_rings() -> None:
    with wired(started=False) as wire:
        wire.front.negotiate(MODERN)
        wire.front.send(32, INFLIGHT(4096, 0, 2, 128), [wire.front.fd])
        wire.front.start()
        assert len(wire.gone) == 1
        assert "a ring of 256 descriptors, and a record of 4096 bytes" in wire.gone[0]


def test_a_ring_beyond_the_record_has_none() -> None:
    with wired(started=False) as wire:
        wire.front.negotiate(MODERN | INDIRECT_DESC | EVENT_IDX | MRG_RXBUF)
        wire.front.send(32, INFLIGHT(8192, 0, 1, 256), [wire.front.fd])
        wire.front.start()
        wire.front.transmit.send(FRAME)
        wire.turn()
        assert wire.sent == [FRAME]


def test_a_shape_is_checked() -> None:
    Shape(0, 0, 32, 32768).check(32)
    with pytest.raises(BadMessage):
        Shape(0, 0, 33, 1).check(32)


# Without a record, as QEMU's network devices are


@EVERY_KIND
@pytest.mark.parametrize("rounds", [1, 3, 8, 11, 16, 21])
def test_rings_go_on_without_a_record(features: int, rounds: int) -> None:
    """A split ring by its index, a packed one by what its descriptors show."""
    with wired(features, size=8) as wire:
        front = wire.front
        for n in range(rounds):
            front.receive.post(front.header_len + 60)
            front.transmit.send(numbered(n))
            wire.turn()
            assert wire.give(FRAME)
            assert len(front.transmit.used()) == len(front.receive.used()) == 1
        for n in range(3):
            front.receive.post(front.header_len + 60)
            front.transmit.send(numbered(rounds + n))
        claimed(wire)
        assert len(list(wire.port.frames())) == 3
        wire.die()
        wire.turn()
        assert wire.sent == [numbered(n) for n in range(rounds + 3)]
        assert len(front.transmit.used()) == 3
        for _ in range(3):
            assert wire.give(FRAME)
        assert not wire.give(FRAME)
        assert len(front.receive.used()) == 3
        assert wire.gone == []
