"""A vhost-user port against a front-end of the kit's: what is negotiated, and frames both ways."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nic.port import DeviceGone
from nic.vhost_user.port import VhostUserPort
from nic.virtio.features import (
    CSUM,
    EVENT_IDX,
    GUEST_CSUM,
    GUEST_TSO4,
    GUEST_TSO6,
    GUEST_USO4,
    GUEST_USO6,
    INDIRECT_DESC,
    MRG_RXBUF,
    OFFERED,
    RING_PACKED,
    VERSION_1,
)
from tests.kit.frontend import F_PROTOCOL, P_ALL, FrontEnd
from tests.kit.need import need_file

MODERN = VERSION_1 | MRG_RXBUF
ALL = OFFERED & ~RING_PACKED
PACKED = MODERN | RING_PACKED
KINDS = {
    "legacy": 0,
    "legacy with mergeable": MRG_RXBUF,
    "firmware": VERSION_1,
    "mergeable": MODERN,
    "events": VERSION_1 | EVENT_IDX,
    "Linux": ALL,
    "packed": VERSION_1 | RING_PACKED,
    "packed, mergeable": PACKED,
    "packed, all": OFFERED,
}
FRAME = bytes(range(60))


class Wire:
    """A port, a front-end, and what was said when it went."""

    def __init__(self, features: int = MODERN, *, started: bool = True, **options: Any) -> None:
        ours, theirs = socket.socketpair()
        self.gone: list[str] = []
        self.changes = 0
        self.port = VhostUserPort(ours, on_gone=self.gone.append, on_change=self._changed)
        self.sent: list[bytes] = []
        self.vnets: list[bytes] = []
        self.dead: list[VhostUserPort] = []
        self.front = FrontEnd(theirs, turn=self.turn, **options)
        if started:
            self.front.negotiate(features)
            self.front.start()

    def die(self) -> None:
        """The back-end is gone without a word, whatever it held, and another one takes over."""
        self.dead.append(self.port)
        ours, theirs = socket.socketpair()
        self.port = VhostUserPort(ours, on_gone=self.gone.append, on_change=self._changed)
        self.front.reconnect(theirs)

    def _changed(self) -> None:
        self.changes += 1

    def turn(self) -> None:
        """As the loop does it: frames, then the end of the turn."""
        while True:
            for frame in self.port.frames():
                self.sent.append(bytes(frame.iov))
                self.vnets.append(bytes(frame.vnet))
                frame.release()
            self.port.poll(0.0)
            if self.port.gone or not self.readable:
                return

    @property
    def readable(self) -> bool:
        return bool(select.select([self.port.fileno()], [], [], 0)[0])

    def give(self, frame: bytes, headers: Sequence[int] = (), claimed: int = 0) -> bool:
        """A frame for the guest; False: no room."""
        claim = self.port.claim(claimed or len(frame), headers)
        if claim is None:
            return False
        claim.iov.copy_from(frame)
        claim.commit(len(frame))
        self.port.poll(0.0)
        return True

    def close(self) -> None:
        for port in (*self.dead, self.port):
            port.close()
        self.front.close()


@contextlib.contextmanager
def wired(features: int = MODERN, *, started: bool = True, **options: Any) -> Iterator[Wire]:
    wire = Wire(features, started=started, **options)
    try:
        yield wire
    finally:
        wire.close()


# Frames


@pytest.mark.parametrize("features", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("indirect", [False, True])
def test_frames_cross_both_ways(features: int, indirect: bool) -> None:
    indirect = indirect and bool(features & INDIRECT_DESC)
    with wired(features) as wire:
        front = wire.front
        header = front.header_len
        for length in (14, 60, 1000, 1514):
            frame = bytes(length % 251 for _ in range(length))
            front.transmit.send(frame, cuts=(header, header + 14), indirect=indirect)
            wire.turn()
            assert wire.sent.pop() == frame
            assert front.interrupts(1) == 1
            assert [used.length for used in front.transmit.used()] == [0]
            if features & MRG_RXBUF:
                front.receive.post(600, indirect=indirect)
                front.receive.post(500, 500, indirect=indirect)
            else:
                front.receive.post(header, 1514, indirect=indirect)
            assert wire.give(frame, (14,))
            assert front.interrupts(0) == 1
            ((vnet, got),) = front.receive.collect()
            assert got == frame
            assert vnet[:10] == bytes(10)
        assert wire.port.stats["rx_frames"] == wire.port.stats["tx_frames"] == 4


@pytest.mark.parametrize("features", KINDS.values(), ids=KINDS)
def test_no_byte_is_copied(features: int) -> None:
    """What is claimed, and what is seen, is guest memory itself."""
    with wired(features) as wire:
        front = wire.front
        front.receive.post(4096)
        claim = wire.port.claim(60, (14, 20))
        assert claim is not None
        assert [len(view) for view in claim.iov] == [14, 20, 26]
        (where,) = next(iter(front.receive.buffers.values()))
        claim.iov.segments[0][:4] = b"here"
        start = where[0] + front.header_len
        assert bytes(front.memory[start : start + 4]) == b"here"
        claim.cancel()
        front.transmit.send(FRAME, kick=True)
        (frame,) = wire.port.frames()
        ((addr, length),) = next(iter(front.transmit.buffers.values()))
        front.memory[addr + length - 1] = 0xEE
        assert bytes(frame.iov)[-1] == 0xEE
        frame.release()


def test_a_frame_takes_as_many_buffers_as_it_needs() -> None:
    with wired() as wire:
        for _ in range(50):
            wire.front.receive.post(1500)
        frame = os.urandom(65549)
        assert wire.port.max_frame == 1514
        assert wire.give(frame[:1514], claimed=1514)
        ((vnet, got),) = wire.front.receive.collect()
        assert got == frame[:1514]
        assert vnet[10:] == b"\2\0"


def test_a_super_frame_takes_as_many_buffers_as_it_needs() -> None:
    with wired(ALL) as wire:
        for _ in range(50):
            wire.front.receive.post(1500)
        frame = os.urandom(65549)
        assert wire.port.max_frame == len(frame)
        assert wire.give(frame, (14, 20, 32))
        ((vnet, got),) = wire.front.receive.collect()
        assert got == frame
        assert vnet[10:] == (44).to_bytes(2, "little")
        assert wire.give(FRAME, claimed=8900)  # the six that are left, and one is needed
        ((vnet, got),) = wire.front.receive.collect()
        assert (vnet[10:], got) == (b"\1\0", FRAME)
        for _ in range(5):
            assert wire.give(FRAME)
        assert not wire.give(FRAME)


def test_what_was_not_needed_is_used_next() -> None:
    with wired() as wire:
        for _ in range(4):
            wire.front.receive.post(600)
        heads = list(wire.front.receive.buffers)
        first, second = wire.port.claim(1000), wire.port.claim(1000)
        assert first is not None
        assert second is not None
        assert wire.port.claim(1) is None
        first.cancel()
        second.iov.copy_from(FRAME)
        second.commit(60)
        third = wire.port.claim(1400)
        assert third is not None
        third.iov.copy_from(FRAME * 20)
        third.commit(1200)
        wire.port.poll(0.0)
        used = wire.front.receive.used()
        assert [u.id for u in used] == [heads[2], heads[0], heads[1], heads[3]]
        assert [u.length for u in used] == [72, 600, 600, 12]


def test_completions_wait_for_the_end_of_the_turn_and_for_claims_before() -> None:
    with wired() as wire:
        wire.front.receive.post(100)
        wire.front.receive.post(100)
        first, second = wire.port.claim(60), wire.port.claim(60)
        assert first is not None
        assert second is not None
        second.commit(60)
        wire.port.poll(0.0)
        assert wire.front.receive.used() == []
        first.commit(60)
        assert wire.front.receive.used() == []
        wire.port.poll(0.0)
        assert len(wire.front.receive.used()) == 2
        assert wire.front.interrupts(0) == 1


def test_a_commit_of_the_wrong_size_is_our_own_mistake() -> None:
    with wired() as wire:
        wire.front.receive.post(100)
        claim = wire.port.claim(60)
        assert claim is not None
        for size in (13, 61):
            with pytest.raises(ValueError, match="into a claim of 60"):
                claim.commit(size)
        claim.commit(60)
        claim.commit(60)  # once only
        claim.cancel()
        with pytest.raises(ValueError, match="takes 1514"):
            wire.port.claim(1515)


def test_a_frame_that_fits_no_buffer_is_lost_and_the_buffer_stays() -> None:
    with wired(VERSION_1) as wire:
        wire.front.receive.post(200)
        assert wire.give(bytes(1000))
        assert wire.port.stats["rx_too_long"] == 1
        assert wire.front.receive.collect() == []
        assert wire.give(FRAME, claimed=1514)
        assert [frame for _, frame in wire.front.receive.collect()] == [FRAME]


def test_a_ring_that_is_full_and_too_small_does_not_wait_for_ever() -> None:
    with wired(size=4) as wire:
        for _ in range(4):
            wire.front.receive.post(100)
        assert wire.give(bytes(1000))
        assert wire.port.stats["rx_too_long"] == 1
        assert wire.give(FRAME, claimed=1514)
        assert [frame for _, frame in wire.front.receive.collect()] == [FRAME]


def test_frames_released_out_of_order_come_back_in_order() -> None:
    with wired() as wire:
        heads = [wire.front.transmit.send(FRAME + bytes([n])) for n in range(3)]
        frames = list(wire.port.frames())
        assert [bytes(frame.iov)[-1] for frame in frames] == [0, 1, 2]
        frames[2].release()
        frames[1].release()
        frames[1].release()
        wire.port.poll(0.0)
        assert wire.front.transmit.used() == []
        frames[0].release()
        wire.port.poll(0.0)
        assert [used.id for used in wire.front.transmit.used()] == heads


def test_what_is_no_frame_is_dropped() -> None:
    with wired(ALL, memory=64 << 20) as wire:
        front = wire.front
        front.transmit.send(b"short")
        front.transmit.add([(front.allocate(4), 4)])
        addr = front.allocate(70000)
        front.transmit.add([(addr, 70000)])
        front.transmit.add([(addr, 70000)] * 200, indirect=True)
        front.transmit.send(FRAME)
        wire.turn()
        assert wire.sent == [FRAME]
        assert wire.port.stats["tx_dropped"] == 4
        assert len(front.transmit.used()) == 5


def test_a_call_takes_a_bounded_number_of_frames() -> None:
    with wired() as wire:
        for _ in range(200):
            wire.front.transmit.send(FRAME, kick=False)
        wire.front.transmit.kick()
        frames = list(wire.port.frames())
        assert len(frames) == 64
        for frame in frames:
            frame.release()
        assert wire.readable
        wire.turn()
        assert len(wire.sent) == 136


def test_a_call_takes_a_bounded_number_of_pieces() -> None:
    with wired(ALL) as wire:
        for _ in range(10):
            wire.front.transmit.send(bytes(1000), cuts=range(1000), indirect=True)
        assert len(list(wire.port.frames())) == 5


# Who tells whom


@pytest.mark.parametrize("features", [MODERN, MODERN | EVENT_IDX, PACKED, PACKED | EVENT_IDX])
def test_a_refused_claim_has_the_driver_kick(features: int) -> None:
    with wired(features) as wire:
        receive = wire.front.receive
        receive.must_kick()
        assert not wire.give(FRAME)
        receive.post(100)
        assert receive.must_kick()
        assert not wire.readable
        receive.kick()
        assert wire.readable
        assert wire.give(FRAME)
        assert list(wire.port.frames()) == []
        assert not wire.readable
        receive.post(100)
        assert not receive.must_kick()  # nobody waits for it


@pytest.mark.parametrize("features", [MODERN, MODERN | EVENT_IDX, PACKED, PACKED | EVENT_IDX])
def test_a_busy_transmitter_wants_no_kicks_and_an_idle_one_does(features: int) -> None:
    with wired(features) as wire:
        transmit = wire.front.transmit
        transmit.send(FRAME)
        transmit.must_kick()
        for frame in wire.port.frames():
            transmit.send(FRAME, kick=False)
            assert not transmit.must_kick()
            frame.release()
            if len(transmit.buffers) > 9:
                break
        wire.turn()
        transmit.send(FRAME, kick=False)
        assert transmit.must_kick()


def test_a_driver_that_wants_no_interrupts_gets_none() -> None:
    with wired() as wire:
        wire.front.receive.post(100)
        wire.front.receive.avail[0] = 1  # type: ignore[union-attr]  # a split ring
        assert wire.give(FRAME)
        assert wire.front.interrupts(0) == 0
    with wired(MODERN | EVENT_IDX) as wire:
        ring = wire.front.receive
        for _ in range(3):
            ring.post(100)
        ring.avail[2 + ring.size] = 1  # type: ignore[union-attr]  # when the second is used
        wire.give(FRAME)
        assert wire.front.interrupts(0) == 0
        wire.give(FRAME)
        assert wire.front.interrupts(0) == 1
        wire.give(FRAME)
        assert wire.front.interrupts(0) == 0


def test_a_turn_interrupts_once() -> None:
    with wired() as wire:
        for _ in range(9):
            wire.front.receive.post(100)
            claim = wire.port.claim(60)
            assert claim is not None
            claim.commit(60)
        wire.port.poll(0.0)
        assert wire.front.interrupts(0) == 1
        assert len(wire.front.receive.collect()) == 9


def test_a_ring_without_a_kick_descriptor_is_looked_at_by_the_clock() -> None:
    with wired() as wire:
        wire.front.send(12, struct.pack("=Q", 1 | 0x100))
        assert wire.port.poll(1.0) == pytest.approx(1.001)
        wire.turn()
        wire.front.transmit.send(FRAME, kick=False)
        assert not wire.readable
        assert wire.port.poll(1.0005) == pytest.approx(1.001)
        assert not wire.readable
        assert wire.port.poll(1.0011) == pytest.approx(1.0021)
        wire.turn()
        assert wire.sent == [FRAME]


@pytest.mark.parametrize("features", [ALL, OFFERED])
def test_indices_wrap(features: int) -> None:
    with wired(features, size=8) as wire:
        for n in range(70_000 // 4):
            for _ in range(4):
                wire.front.transmit.send(FRAME, kick=False)
            wire.front.transmit.kick()
            wire.turn()
            assert len(wire.front.transmit.used()) == 4, n
            wire.front.transmit.buffers.clear()
        assert len(wire.sent) == 70_000


# What is negotiated


def test_what_the_driver_agrees_to_shows_in_the_port() -> None:
    offloads = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6
    for bits, expected in (
        (0, (False, False, False, 1514)),
        (CSUM, (False, False, False, 1514)),
        (GUEST_CSUM, (True, False, False, 1514)),
        (GUEST_CSUM | GUEST_TSO4, (True, False, False, 1514)),
        (GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6, (True, True, False, 65549)),
        (offloads, (True, True, True, 65549)),
    ):
        with wired(started=False) as wire:
            wire.front.negotiate(VERSION_1 | bits)
            port = wire.port
            assert (port.offload, port.gso_tcp, port.gso_udp, port.max_frame) == expected
            assert wire.changes == 1


def test_offload_headers_cross_as_they_are() -> None:
    with wired(ALL) as wire:
        vnet = struct.pack("<BBHHHH", 1, 1, 54, 1448, 34, 16)
        wire.front.transmit.send(FRAME, vnet)
        wire.turn()
        assert wire.vnets == [vnet]
        wire.front.receive.post(200)
        claim = wire.port.claim(60)
        assert claim is not None
        claim.commit(60, vnet)
        wire.port.poll(0.0)
        assert wire.front.receive.collect()[0][0] == vnet + b"\1\0"


def test_requests_are_acknowledged_where_that_is_wanted() -> None:
    with wired(started=False) as wire:
        front = wire.front
        front.send(3, flags=9)  # REPLY_ACK is not negotiated: no answer
        front.negotiate(MODERN)
        assert front.acknowledged(3) == 0
        assert front.acknowledged(20, struct.pack("=Q", 1500)) == 0
        assert front.acknowledged(20, struct.pack("=Q", 1499)) == 1
        assert front.ask_number(17) == 16
        assert front.ask_number(36) == 509
        assert front.acknowledged(39, struct.pack("=Q", 11)) == 0
        assert front.ask_number(40) == 11
        assert wire.gone == []


def test_a_front_end_without_protocol_features() -> None:
    with wired(started=False) as wire:
        wire.front.negotiate(MODERN, protocol=0)
        wire.front.start()
        wire.front.transmit.send(FRAME)
        wire.turn()
        assert wire.sent == [FRAME]


def test_a_disabled_ring_receives_nothing_and_drops_what_is_sent() -> None:
    with wired() as wire:
        front = wire.front
        front.receive.post(100)
        for index in (0, 1):
            front.send(18, struct.pack("=II", index, 0))
        assert not wire.give(FRAME)
        front.transmit.send(FRAME)
        wire.turn()
        assert wire.sent == []
        assert len(front.transmit.used()) == 1
        for index in (0, 1):
            front.send(18, struct.pack("=II", index, 1))
        assert wire.give(FRAME)
        front.transmit.send(FRAME)
        wire.turn()
        assert wire.sent == [FRAME]


def test_several_pairs() -> None:
    with wired(pairs=4) as wire:
        front = wire.front
        for pair in range(4):
            front.rings[2 * pair + 1].send(FRAME + bytes([pair]))
            front.rings[2 * pair].post(100)
        wire.turn()
        assert sorted(frame[-1] for frame in wire.sent) == [0, 1, 2, 3]
        assert wire.give(FRAME)
        assert len(front.rings[0].collect()) == 1
        front.send(18, struct.pack("=II", 0, 0))
        assert wire.give(FRAME)
        assert len(front.rings[2].collect()) == 1


# Rings and memory that come and go


@pytest.mark.parametrize("features", KINDS.values(), ids=KINDS)
def test_a_ring_that_is_stopped_goes_on_where_it_was(features: int) -> None:
    with wired(features) as wire:
        front = wire.front
        for _ in range(4):
            front.receive.post(1600)
        assert wire.give(FRAME)
        held = wire.port.claim(100)
        assert held is not None
        front.transmit.send(FRAME)
        wire.turn()
        front.transmit.send(FRAME, kick=False)
        bases = [front.stop_ring(0), front.stop_ring(1)]
        if not features & RING_PACKED:
            assert bases == [1, 1]
        before = bytes(front.memory)
        held.commit(60)
        assert wire.port.claim(60) is None
        wire.turn()
        assert bytes(front.memory) == before
        for index in (0, 1):
            front.start_ring(index, bases[index])
        wire.turn()
        assert len(wire.sent) == 2
        for _ in range(3):
            assert wire.give(FRAME)
        assert not wire.give(FRAME)
        assert [frame for _, frame in front.receive.collect()] == [FRAME] * 4


def test_a_ring_that_is_stopped_has_whoever_fills_a_claim_let_go() -> None:
    with wired() as wire:
        wire.front.receive.post(100)
        wire.front.receive.post(100)
        done, held = wire.port.claim(60), wire.port.claim(60)
        assert done is not None
        assert held is not None
        withdrawn: list[int] = []
        assert done.hold(lambda: withdrawn.append(1)) is done
        held.hold(lambda: withdrawn.append(2))
        done.commit(60)
        assert wire.front.stop_ring(0) == 1
        assert withdrawn == [2]
        held.commit(60)
        wire.port.poll(0.0)
        assert len(wire.front.receive.used()) == 1


def test_a_port_is_down_while_no_ring_runs() -> None:
    with wired(started=False) as wire:
        assert wire.port.is_down
        wire.front.negotiate(MODERN)
        wire.front.start()
        assert not wire.port.is_down
        wire.front.stop_ring(0)
        assert not wire.port.is_down
        changes = wire.changes
        base = wire.front.stop_ring(1)
        assert wire.port.is_down
        assert wire.changes == changes + 1
        wire.front.start_ring(1, base)
        assert not wire.port.is_down
        assert wire.changes == changes + 2


def test_a_stopped_ring_gives_back_what_lies_before_a_used_one() -> None:
    with wired() as wire:
        for _ in range(4):
            wire.front.receive.post(100)
        heads = list(wire.front.receive.buffers)
        claims = []
        for action in ("cancel", "cancel", "commit"):
            claim = wire.port.claim(60)
            assert claim is not None
            claims.append((claim, action))
        for claim, action in claims:
            claim.cancel() if action == "cancel" else claim.commit(60)
        assert wire.front.stop_ring(0) == 3
        used = wire.front.receive.used()
        assert [(u.id, u.length) for u in used] == [(heads[2], 72), (heads[0], 0), (heads[1], 0)]


def test_memory_changes_under_rings_that_run() -> None:
    with wired() as wire:
        front = wire.front
        size = len(front.memory)
        front.receive.post(100)
        front.share_memory([(0, size // 2), (size // 2, size // 2)])
        assert wire.give(FRAME)
        half = struct.pack("=Q", 0) + front.region(size // 2, size // 2)
        assert front.acknowledged(38, half) == 0
        assert front.acknowledged(38, half) == 1  # it is not there any more
        front.transmit.send(FRAME)
        wire.turn()
        assert wire.sent == [FRAME]
        assert front.acknowledged(37, half, [front.fd]) == 0
        # Without its memory a ring rests, and goes on when it is back.
        lower = struct.pack("=Q", 0) + front.region(0, size // 2)
        front.receive.post(100)
        assert front.acknowledged(38, lower) == 0
        front.transmit.send(FRAME)
        wire.turn()
        assert not wire.give(FRAME)
        assert len(wire.sent) == 1
        assert front.acknowledged(37, lower, [front.fd]) == 0
        front.transmit.kick()
        wire.turn()
        assert len(wire.sent) == 2
        assert wire.give(FRAME)
        assert len(front.receive.collect()) == 2
        assert wire.gone == []


@pytest.mark.parametrize("how", ["device", "status"])
def test_a_reset_stops_everything(how: str) -> None:
    with wired() as wire:
        front = wire.front
        front.receive.post(100)
        assert front.acknowledged(*((34, b"") if how == "device" else (39, bytes(8)))) == 0
        assert not wire.give(FRAME)
        front.transmit.send(FRAME)
        wire.turn()
        assert wire.sent == []
        front.negotiate(VERSION_1)
        front.start()
        front.transmit.send(FRAME)
        wire.turn()
        assert wire.sent == [FRAME]


def test_descriptors_do_not_pile_up() -> None:
    need_file("/proc/self/fd")
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with wired(pairs=2) as wire:
            for _ in range(10):
                wire.front.share_memory()
                wire.front.send(13, struct.pack("=Q", 0), [wire.front.calls[0]])
                wire.front.send(12, struct.pack("=Q", 0), [wire.front.kicks[0]])
                wire.front.send(3, b"", [wire.front.fd] * 8)
            inside = len(os.listdir("/proc/self/fd"))
        assert inside - before < 60
    del wire
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


# The dirty log


def test_what_is_written_while_a_machine_migrates_is_logged() -> None:
    with wired(ALL) as wire:
        front = wire.front
        log = os.memfd_create("log")
        os.ftruncate(log, 4096)

        def dirty() -> set[int]:
            bits = os.pread(log, 2048, 1024)
            os.pwrite(log, bytes(2048), 1024)
            return {n for n in range(8 * len(bits)) if bits[n >> 3] >> (n & 7) & 1}

        assert front.ask_number(6, struct.pack("=QQ", 2048, 1024), [log]) == 0
        front.receive.post(9000)
        assert wire.give(FRAME)
        assert dirty() == set()
        front.send(2, struct.pack("=Q", ALL | F_PROTOCOL | 1 << 26))
        for index in (0, 1):
            front.send(9, front.place(index, 1))
        addr = front.allocate(4096) // 4096 * 4096 + 4096
        head = front.receive.add([(addr + 4000, 12), (addr + 8190, 4100)], 2)
        assert wire.give(bytes(3000))
        used = front.receive.places[2] // 4096
        assert dirty() == {addr // 4096, addr // 4096 + 1, addr // 4096 + 2, used}
        assert head in [u.id for u in front.receive.used()]
        front.transmit.send(FRAME)
        wire.turn()
        assert dirty() == {front.transmit.places[2] // 4096}
        front.send(2, struct.pack("=Q", ALL | F_PROTOCOL))
        front.receive.post(100)
        assert wire.give(FRAME)
        assert dirty() == set()
        assert wire.gone == []
        os.close(log)


# What breaks a connection


def test_a_front_end_that_goes_is_told_of() -> None:
    with wired() as wire:
        wire.front.sock.close()
        wire.turn()
        assert wire.gone == ["closed its connection"]
        assert not wire.port.broken
        assert wire.port.claim(60) is None
        assert list(wire.port.frames()) == []
        assert wire.port.poll(0.0) is None


def test_without_a_listener_the_port_raises() -> None:
    ours, theirs = socket.socketpair()
    port = VhostUserPort(ours)
    theirs.close()
    with pytest.raises(DeviceGone, match="the machine closed its connection"):
        list(port.frames())
    port.close()


Q, II = struct.Struct("=Q").pack, struct.Struct("=II").pack
MESSAGES = {
    "an unknown request": (99, b"", 0, "request 99, which was not offered"),
    "features that were not offered": (2, Q(1 << 63), 0, "features that were not offered"),
    "protocol features": (16, Q(1 << 9), 0, "protocol features that were not offered"),
    "features under rings": (2, Q(F_PROTOCOL), 0, "changed features under rings"),
    "a short payload": (8, b"\0" * 7, 0, "request 8 with 7 bytes"),
    "a ring too far": (8, II(32, 256), 0, "named ring 32 of 32"),
    "a ring of nothing": (8, II(2, 0), 0, "a ring of 0 descriptors"),
    "a ring that is too long": (8, II(2, 65536), 0, "a ring of 65536 descriptors"),
    "a size under a ring": (8, II(0, 128), 0, "changed ring 0 while it runs"),
    "a base under a ring": (10, II(0, 0), 0, "changed ring 0 while it runs"),
    "regions without descriptors": (5, II(2, 0) + bytes(64), 0, "2 regions of memory and 0"),
    "too many regions": (5, II(9, 0) + bytes(288), 0, "9 regions"),
    "memory of no bytes": (5, II(1, 0) + bytes(32), 1, "cannot be mapped"),
    "memory without a descriptor": (37, bytes(40), 0, "without its descriptor"),
    "a log without a descriptor": (6, bytes(16), 0, "a log without its descriptor"),
    "a log that is too long": (6, struct.pack("=QQ", 1 << 40, 0), 1, "a log of"),
    "a kick that is no eventfd": (12, Q(0), 1, "no eventfd"),
    "a kick without a descriptor": (12, Q(0), 0, "without its descriptor"),
    "memory over other memory": (
        37, Q(0) + struct.pack("=QQQQ", 4096, 4096, 0, 0), 1, "over another one",
    ),
    "removing what is not there": (
        38, Q(0) + struct.pack("=QQQQ", 64 << 20, 4096, 0, 0), 0, "that was not there",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "payload", "fds", "why"), MESSAGES.values(), ids=MESSAGES)
def test_a_message_that_nobody_may_send(request_: int, payload: bytes, fds: int, why: str) -> None:
    with wired() as wire:
        wire.front.send(request_, payload, [wire.front.fd] * fds)
        assert len(wire.gone) == 1
        assert why in wire.gone[0]
        assert wire.port.broken


def test_a_split_ring_has_a_power_of_two() -> None:
    with wired(started=False, size=96) as wire:
        wire.front.negotiate(MODERN)
        wire.front.start()
        assert wire.gone == ["has a split ring of 96 descriptors, no power of two"]


@pytest.mark.parametrize(
    "header", [(1, 0, 0), (1, 2, 0), (1, 5, 0), (1, 1, 4097), (1, 1, 0xFFFFFFFF)]
)
def test_a_header_that_nobody_may_send(header: tuple[int, int, int]) -> None:
    with wired() as wire:
        wire.front.sock.send(struct.pack("=III", *header))
        wire.turn()
        assert len(wire.gone) == 1


def test_messages_may_come_in_pieces() -> None:
    with wired(started=False) as wire:
        data = struct.pack("=III", 1, 1, 0) + struct.pack("=IIIQ", 2, 1, 8, MODERN)
        for octet in data:
            wire.front.sock.send(bytes([octet]))
            wire.turn()
        assert wire.front.reply()[0] == 1
        assert wire.port.device.features.bits == MODERN
        wire.front.sock.send(data[:5])
        wire.front.sock.close()
        wire.turn()
        assert wire.gone == ["closed its connection inside a message"]


def test_a_front_end_that_reads_no_replies_is_over() -> None:
    with wired(started=False) as wire:
        wire.front.turn = lambda: None
        for _ in range(20_000):
            wire.front.sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                wire.front.send(1)
            wire.turn()
            if wire.gone:
                break
        assert wire.gone == ["does not take its replies"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 44), st.binary(max_size=80), st.integers(0, 3), st.booleans()),
        max_size=12,
    ),
    st.booleans(),
)
def test_any_messages(messages: list[tuple[int, bytes, int, bool]], started: bool) -> None:
    with wired(started=started) as wire:
        front = wire.front
        fds = [front.fd, front.kicks[0], front.calls[0]]
        for request, payload, count, wants in messages:
            if wire.gone:
                break
            front.send(request, payload, fds[:count], 9 if wants else 1)
            wire.port.claim(60)
        wire.turn()


def test_protocol_features_that_are_offered() -> None:
    with wired(started=False) as wire:
        assert wire.front.ask_number(15) == P_ALL
        assert wire.front.ask_number(1) == OFFERED | 1 << 26 | F_PROTOCOL
