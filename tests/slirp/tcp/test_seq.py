"""Sequence numbers are compared modulo 2^32."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slirp.tcp.seq import HALF, MASK, distance

numbers = st.integers(0, MASK)


@pytest.mark.parametrize(
    ("later", "earlier", "apart"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (0, 1, -1),
        (0, MASK, 1),
        (MASK, 0, -1),
        (HALF - 1, 0, HALF - 1),
        (HALF, 0, -HALF),
        (5, MASK - 4, 10),
    ],
)
def test_distance(later: int, earlier: int, apart: int) -> None:
    assert distance(later, earlier) == apart


@given(numbers, st.integers(-HALF, HALF - 1))
def test_distance_undoes_addition(start: int, step: int) -> None:
    assert distance((start + step) & MASK, start) == step
