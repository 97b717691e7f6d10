from __future__ import annotations

from slirp.tcp.challenge import PER_SECOND, Challenges


def test_so_many_a_second_and_no_more() -> None:
    challenges = Challenges(0.0)
    assert [challenges.allow(0.5) for _ in range(PER_SECOND + 3)].count(True) == PER_SECOND
    assert challenges.allow(1.0)
