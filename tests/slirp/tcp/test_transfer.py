"""Whole connections against a stranger over a bad link: every byte arrives, once, in order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slirp.tcp.connection import Connection, State
from tests.kit.clock import Clock
from tests.kit.lossy import LossyLink, Weather
from tests.kit.peer import Mirror, Peer

NEAR_WRAP = 0xFFFFFFFF - 9000


def octets(count: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(count)


def transfer(
    weather: Weather,
    seed: int,
    *,
    up: int = 30_000,
    down: int = 30_000,
    limit: int = 1448,
    sack: bool = True,
    timestamps: bool = True,
    wscale: int | None = 3,
    buffer: int = 20_000,
    iss: int = NEAR_WRAP,
    guest_iss: int = NEAR_WRAP,
    guest_opens: bool = True,
    slow_reader: bool = False,
) -> LossyLink:
    """Both directions at once, then both FINs; the link when all is over."""
    clock = Clock()
    upward, downward = octets(up, seed), octets(down, seed + 1)
    peer = Peer(
        guest_iss,
        upward,
        sack=sack,
        timestamps=timestamps,
        wscale=wscale,
        buffer=buffer,
        opens=guest_opens,
    )
    if guest_opens:
        peer.start(clock.now)
        ((syn, _),) = peer.take_out()
        connection = Connection.passive(syn, iss, 1460, 4, clock.now, room=16_000)
        connection.host_connected(clock.now)
    else:
        connection = Connection.active(iss, 1460, 4, clock.now, room=16_000)
    mirror = Mirror(connection, limit)
    mirror.write(downward, clock.now)
    mirror.close(clock.now)
    link = LossyLink(mirror, peer, clock, weather, seed)

    def each_turn(now: float) -> None:
        peer.read(300 if slow_reader else 1 << 20, now)
        if connection.state is not State.CLOSED:
            connection.receive.set_room(16_000)

    link.run(3000.0, each_turn)
    assert bytes(peer.received) == downward
    assert bytes(mirror.received) == upward
    assert mirror.guest_closed
    assert peer.got_fin
    assert not mirror.reset
    assert not peer.reset
    assert connection.state is State.CLOSED
    assert connection.poll_at() is None
    return link


def test_a_good_link_carries_nothing_twice() -> None:
    link = transfer(Weather(), 1, up=0, down=30_000)
    # SYN|ACK, 30,000 bytes in 1,448s, one FIN, one ACK of the guest's FIN
    assert link.sent[0] == 1 + -(-30_000 // 1448) + 1 + 1


def test_the_guest_is_acknowledged_once_per_batch() -> None:
    link = transfer(Weather(), 1, up=30_000, down=0)
    assert link.sent[0] <= 30_000 // 1448 + 5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sack", [True, False], ids=["sack", "no sack"])
def test_loss_reordering_and_duplicates(seed: int, sack: bool) -> None:
    transfer(Weather(loss=0.05, duplication=0.05, reorder=0.1), seed, sack=sack)


@pytest.mark.parametrize("seed", range(3))
def test_one_segment_in_four_is_lost(seed: int) -> None:
    transfer(Weather(loss=0.25), seed, up=8_000, down=8_000)


@pytest.mark.parametrize("seed", range(3))
def test_super_segments(seed: int) -> None:
    transfer(Weather(loss=0.1, reorder=0.1), seed, limit=16_000)


@pytest.mark.parametrize("seed", range(3))
def test_the_host_opens(seed: int) -> None:
    transfer(Weather(loss=0.1, duplication=0.1), seed, guest_opens=False)


def test_a_guest_that_reads_slowly_closes_its_window() -> None:
    transfer(Weather(), 5, slow_reader=True, buffer=3_000, down=12_000, up=1_000)


@pytest.mark.parametrize("seed", range(3))
def test_a_slow_guest_on_a_lossy_link(seed: int) -> None:
    transfer(Weather(loss=0.1), seed, slow_reader=True, buffer=3_000, down=9_000, up=1_000)


@settings(max_examples=40, deadline=None)
@given(
    weather=st.builds(
        Weather,
        loss=st.floats(0, 0.2),
        duplication=st.floats(0, 0.2),
        reorder=st.floats(0, 0.3),
        delay=st.sampled_from([0.00002, 0.001, 0.03]),
    ),
    seed=st.integers(0, 1 << 32),
    up=st.integers(0, 9_000),
    down=st.integers(0, 9_000),
    limit=st.sampled_from([500, 1448, 4000, 65_000]),
    sack=st.booleans(),
    timestamps=st.booleans(),
    window=st.sampled_from(
        [(None, 700), (None, 65_535), (0, 3_000), (7, 3_000), (7, 200_000), (14, 200_000)]
    ),
    iss=st.sampled_from([0, 0x7FFFFFFF, 0x80000000, NEAR_WRAP + 8000, 0xFFFFFFFF]),
    guest_opens=st.booleans(),
)
def test_any_link_any_guest(
    weather: Weather,
    seed: int,
    up: int,
    down: int,
    limit: int,
    sack: bool,
    timestamps: bool,
    window: tuple[int | None, int],
    iss: int,
    guest_opens: bool,
) -> None:
    transfer(
        weather,
        seed,
        up=up,
        down=down,
        limit=limit,
        sack=sack,
        timestamps=timestamps,
        wscale=window[0],
        buffer=window[1],
        iss=iss,
        guest_iss=(iss * 3 + 7) & 0xFFFFFFFF,
        guest_opens=guest_opens,
    )
