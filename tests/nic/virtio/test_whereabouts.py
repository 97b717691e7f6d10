from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nic.virtio.whereabouts import AVAIL, FLAGS_AT, USED, place_of


def ring(size: int, used: int, out: int) -> list[int]:
    """After so many buffers were used and `out` more made available."""
    flags = [0] * size
    for n in range(used + out):
        odd = n // size & 1
        flags[n % size] = USED if odd else AVAIL
        if n < used:
            flags[n % size] = 0 if odd else AVAIL | USED
    return [f << FLAGS_AT | 0xABCD for f in flags]


@given(st.integers(1, 40), st.integers(0, 300), st.integers(0, 40))
def test_a_ring_of_single_descriptors_says_where_it_is(size: int, used: int, out: int) -> None:
    at, wrap = used % size, 1 - (used // size & 1)
    assert place_of(ring(size, used, min(out, size))) == (at, wrap)


@pytest.mark.parametrize(
    "flags",
    [
        [AVAIL | USED, AVAIL, AVAIL | USED, AVAIL],
        [0, AVAIL | USED, 0, 0],
        [USED, AVAIL, USED, AVAIL],
    ],
)
def test_a_ring_with_chains_does_not(flags: list[int]) -> None:
    assert place_of([f << FLAGS_AT for f in flags]) is None


@given(st.lists(st.sampled_from([0, AVAIL, USED, AVAIL | USED]), min_size=1, max_size=12))
def test_what_it_says_is_in_the_ring(flags: list[int]) -> None:
    place = place_of([f << FLAGS_AT for f in flags])
    assert place is None or (0 <= place[0] < len(flags) and place[1] in (0, 1))
