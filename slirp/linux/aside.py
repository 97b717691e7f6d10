"""A small process of ours beside the one that runs the network.

It does one thing, holds no descriptor but those that it was given (whoever waits for another one to
close must not wait for it), and ends with the process that started it, however that ends.

Does not do: restart what has ended.
"""

from __future__ import annotations

import os

from slirp.linux import syscalls

TYPE_CHECKING = False  # as typing has it; this is imported before there is time for `typing`
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final

DESCRIPTORS_MAX: Final = 1 << 20


class Aside:
    """Runs `work` in a forked process. Only `keep` stays open there."""

    def __init__(self, work: Callable[[], None], keep: Iterable[int]) -> None:
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _close_all_but(keep)
                syscalls.die_with_parent(parent)
                work()
            finally:
                os._exit(0)

    def close(self) -> None:
        """End it."""
        try:
            os.kill(self.pid, syscalls.SIGKILL)
        except ProcessLookupError:  # it has ended
            pass
        os.waitpid(self.pid, 0)


def _close_all_but(keep: Iterable[int]) -> None:
    first = 0
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, DESCRIPTORS_MAX)
