"""One ring as the front-end sets it up: numbers and descriptors, in whatever order they come.

A ring runs from SET_VRING_KICK on, once its size, its addresses and the memory that these lie in
are known, until GET_VRING_BASE. (The protocol starts it at the first kick; the common back-ends
start it here, and front-ends that hand a ring over to a new back-end need not kick again.)

Does not do: the ring's work (nic/virtio).
"""

from __future__ import annotations

import os
from typing import NamedTuple

from nic.vhost_user.messages import VRING_F_LOG
from nic.virtio.chain import Ring

CLOSED = -1


class Place(NamedTuple):
    """SET_VRING_ADDR, in the front-end's addresses."""

    flags: int
    descriptors: int
    used: int
    available: int
    log: int  # guest physical address that writes to the used ring are logged at

    @property
    def is_logged(self) -> bool:
        return bool(self.flags & VRING_F_LOG)


class Vring:
    """What is known of one ring."""

    __slots__ = (
        "base", "call", "error", "index", "is_enabled", "is_kicked", "kick", "place", "ring", "size"
    )  # fmt: skip

    def __init__(self, index: int) -> None:
        self.index = index
        self.size = 0
        self.base = 0
        self.place: Place | None = None
        self.kick = self.call = self.error = CLOSED  # eventfds, owned
        self.is_kicked = False  # SET_VRING_KICK came since the last GET_VRING_BASE
        self.is_enabled = False  # by SET_VRING_ENABLE
        self.ring: Ring | None = None  # while it runs

    @property
    def is_ready(self) -> bool:
        """Is all there that a ring needs?"""
        return self.is_kicked and self.place is not None and self.size > 0

    @property
    def is_polled(self) -> bool:
        """Does it run, though nobody will ever kick?"""
        return self.ring is not None and self.kick == CLOSED

    def close(self) -> None:
        for fd in (self.kick, self.call, self.error):
            if fd != CLOSED:
                os.close(fd)
        self.kick = self.call = self.error = CLOSED
