"""Errors that pass: the host has no memory, no descriptor, no room just now.

They are nobody's mistake. Whoever meets one tries again soon, and nothing ends because of it.
`persist` is for small calls that are due at once, such as setting an option: the kernel has had a
moment when it is asked again. Whatever can wait waits in its loop (slirp.host.loop).

Does not do: wait.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

TRIES: Final = 3  # of a call that meets a shortage each time
SHORTAGES: Final = frozenset(
    (
        errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM,
        errno.EMFILE, errno.ENFILE, errno.ENOSPC,  # the last: epoll's watches are used up
    )
)  # fmt: skip


def is_shortage(error: OSError) -> bool:
    """May the same call succeed a moment later?"""
    return error.errno in SHORTAGES


def persist(call: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Make a call, and make it again where it meets a shortage; the last one's error is raised."""
    for _ in range(TRIES - 1):
        try:
            return call(*args, **options)
        except OSError as error:
            if not is_shortage(error):
                raise
    return call(*args, **options)
