"""Sockets whose calls meet shortages when the product makes them, and not when a test does.

    with starved("sendto", errno.ENOBUFS) as starving: …  # the first of three fails, the fourth …

Does not do: sockets that were made before the block.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

CALLS: Final = (
    "accept", "bind", "connect", "connect_ex", "getsockopt", "recv", "recv_into", "recvfrom",
    "recvfrom_into", "recvmsg", "recvmsg_into", "send", "sendmsg", "sendto", "setsockopt",
    "setblocking", "shutdown",
)  # fmt: skip


class Starving:
    """Which call fails, and how often it was made."""

    def __init__(self, call: str, number: int, every: int) -> None:
        self.call = call
        self.number = number
        self.every = every  # 1: always; 0: never (any more)
        self.made = 0

    def meet(self, call: str, caller: str) -> None:
        if call == self.call and caller.startswith("slirp."):
            self.made += 1
            if self.every and (self.made - 1) % self.every == 0:
                raise OSError(self.number, os.strerror(self.number))


@contextmanager
def starved(call: str, number: int, every: int = 3) -> Iterator[Starving]:
    """Sockets that are made in the block are starved, for as long as they live."""
    assert call in CALLS
    starving = Starving(call, number, every)

    class Starved(socket.socket):
        pass

    for name in CALLS:
        setattr(Starved, name, _sometimes(name, starving))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", Starved)
        yield starving


def _sometimes(name: str, starving: Starving) -> Callable[..., Any]:
    real = getattr(socket.socket, name)

    def call(self: socket.socket, *args: Any, **options: Any) -> Any:
        starving.meet(name, sys._getframe(1).f_globals["__name__"])
        return real(self, *args, **options)

    return call
