"""Errors that pass: the host has no memory, no descriptor, no room just now.

They are nobody's mistake. Whoever meets one tries again soon, and nothing ends because of it.

Does not do: try again.
"""

from __future__ import annotations

import errno
from typing import Final

SHORTAGES: Final = frozenset(
    (
        errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ENOMEM,
        errno.EMFILE, errno.ENFILE, errno.ENOSPC,  # the last: epoll's watches are used up
    )
)  # fmt: skip


def is_shortage(error: OSError) -> bool:
    """May the same call succeed a moment later?"""
    return error.errno in SHORTAGES
