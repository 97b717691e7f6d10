"""Errors that pass, and calls that are made again."""

from __future__ import annotations

import errno
import os
import re

import pytest

from slirp.shortage import SHORTAGES, TRIES, is_shortage, persist


class Call:
    """Fails so many times."""

    def __init__(self, number: int, failures: int) -> None:
        self.number = number
        self.failures = failures
        self.made = 0

    def __call__(self, value: str) -> str:
        self.made += 1
        if self.made <= self.failures:
            raise OSError(self.number, os.strerror(self.number))
        return value


@pytest.mark.parametrize("number", sorted(SHORTAGES))
def test_a_shortage_is_tried_again_a_few_times(number: int) -> None:
    for failures in range(TRIES):
        call = Call(number, failures)
        assert persist(call, "done") == "done"
        assert call.made == failures + 1
    call = Call(number, TRIES)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        persist(call, "done")
    assert is_shortage(caught.value)
    assert call.made == TRIES


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.EPIPE, errno.EBADFD, errno.EACCES])
def test_what_does_not_pass_is_told_at_once(number: int) -> None:
    call = Call(number, 1)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        persist(call, "done")
    assert not is_shortage(caught.value)
    assert call.made == 1
