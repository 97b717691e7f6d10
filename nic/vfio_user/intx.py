"""INTA# as VFIO has it: a level, told by an eventfd and masked by being told.

The client passes an eventfd. When the line goes up it is signalled, once; the interrupt is masked
then, and nothing more is said until the client unmasks it (QEMU does so when the guest touches the
device). If the line is still up at that moment it is signalled again at once: a level is not
forgotten.

Does not do: MSI, or telling that the line has gone down. The client takes it for down when it
unmasks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

CLOSED: Final = -1
_ONE: Final = (1).to_bytes(8, "little")


class Intx:
    """The line, and who is told of it."""

    def __init__(self) -> None:
        self.level = False
        self.is_masked = False
        self._fd = CLOSED

    def set_level(self, level: bool) -> None:
        """The device's side."""
        self.level = level
        self._tell()

    def connect(self, fd: int) -> None:
        """Tell this eventfd from now on, which belongs to this line; CLOSED: nobody."""
        if self._fd != CLOSED:
            os.close(self._fd)
        self._fd = fd
        self.is_masked = False
        self._tell()

    def mask(self) -> None:
        self.is_masked = True

    def unmask(self) -> None:
        self.is_masked = False
        self._tell()

    def trigger(self) -> None:
        """The client wants to be told, whatever the line does."""
        if self._fd != CLOSED:
            with contextlib.suppress(OSError):  # a full one has been signalled often enough
                os.write(self._fd, _ONE)

    def carried(self, place: Callable[[int], int]) -> dict[str, Any]:
        """For another process; `place` notes a descriptor."""
        fd = None if self._fd == CLOSED else place(self._fd)
        return {"level": self.level, "is_masked": self.is_masked, "fd": fd}

    def resume(self, values: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Go on from there. Nobody is told."""
        self.level, self.is_masked = bool(values["level"]), bool(values["is_masked"])
        self._fd = CLOSED if values["fd"] is None else fds[values["fd"]]

    def _tell(self) -> None:
        if self.level and not self.is_masked and self._fd != CLOSED:
            self.is_masked = True
            self.trigger()
