"""A bucket of tokens: so many in a row, so many a second."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slirp.ip.limit import ERRORS_AT_ONCE, TokenBucket


def taken(bucket: TokenBucket, now: float, tries: int = 100_000) -> int:
    return sum(bucket.take(now) for _ in range(tries))


def test_a_burst_and_then_the_rate() -> None:
    bucket = TokenBucket(7.0, rate=1024.0)  # exact in binary
    assert taken(bucket, 7.0) == ERRORS_AT_ONCE
    assert taken(bucket, 7.0 + 10 / 1024) == 10
    assert taken(bucket, 1000.0) == ERRORS_AT_ONCE, "what is not used is not saved up"


def test_time_that_stands_still_or_steps_back_gives_nothing() -> None:
    bucket = TokenBucket(7.0, rate=1.0, burst=1)
    assert taken(bucket, 7.0) == 1
    assert taken(bucket, 6.0) == 0
    assert taken(bucket, 7.0) == 1


@given(
    st.lists(st.floats(0.0, 3.0), max_size=100),
    st.floats(0.5, 50.0),
    st.integers(1, 10),
)
def test_never_more_than_burst_and_rate(waits: list[float], rate: float, burst: int) -> None:
    bucket = TokenBucket(0.0, rate, burst)
    now = passed = 0.0
    for wait in waits:
        now += wait
        passed += bucket.take(now)
        assert passed <= burst + rate * now + 1e-6
