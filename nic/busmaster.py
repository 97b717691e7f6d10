"""The Am7990 as bus master: its one way to memory, and the one place where a fault becomes MERR.

The chip drives 24 address bits; what goes past 0xffffff goes on at 0. (A later one of the family
has 32: `space`.) Ranges are folded here, so that nobody below sees an address that the chip could
not drive.

Does not do: decide what a fault means. `open` answers None and the chip has been told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from dma.iovec import IoVec, Range
from dma.transfer import Direction, DmaFault, DmaPath, Transfer

ADDRESS_SPACE: Final = 1 << 24  # bytes


class BusMaster:
    """Opens transfers on behalf of the chip."""

    __slots__ = ("_fault", "_path", "space")

    def __init__(
        self, path: DmaPath, fault: Callable[[], None], space: int = ADDRESS_SPACE
    ) -> None:
        self._path = path
        self._fault = fault
        self.space = space  # bytes that the chip can address; a power of two

    def open(self, transfer: Transfer) -> IoVec | None:
        """Host views, or None after a memory error."""
        try:
            return self._path.open(transfer)
        except DmaFault:
            self._fault()
            return None

    def refuse(self) -> None:
        """Views that the chip cannot use are a memory error like any other."""
        self._fault()

    def load(self, addr: int, length: int) -> bytes | None:
        """Bytes of the chip's own business: the init block."""
        views = self.open(Transfer(Direction.TO_DEVICE, fold([(addr, length)], self.space)))
        return None if views is None else bytes(views)


def fold(ranges: Iterable[Range], space: int = ADDRESS_SPACE) -> list[Range]:
    """The ranges in the chip's addresses, cut where they wrap."""
    out: list[Range] = []
    for addr, length in ranges:
        addr %= space
        while addr + length > space:
            first = space - addr
            out.append((addr, first))
            addr, length = 0, length - first
        out.append((addr, length))
    return out


def cut(
    buffers: Sequence[Range], lengths: Iterable[int], space: int = ADDRESS_SPACE
) -> list[Range]:
    """The buffers' bytes in order and in the chip's addresses, cut after each of `lengths` as well.

    What the lengths do not reach is left out; bytes past the last buffer are not there.
    """
    out: list[Range] = []
    following = iter(buffers)
    addr = room = beyond = 0
    for length in lengths:
        while length > 0:
            if not room:
                # The rest of a buffer that wraps, or the next one.
                addr, room = (0, beyond) if beyond else next(following, (0, 0))
                if not room:
                    return out
                beyond = addr + room - space if addr + room > space else 0
                room -= beyond
            n = length if length < room else room
            out.append((addr, n))
            addr += n
            room -= n
            length -= n
    return out
