"""The Am7990's receiver: room is claimed in the RX ring before a frame has arrived.

A frame's way into the guest:

1. `claim(size)` walks the descriptors that the chip owns, from the first that no other claim
   holds, until their buffers have room for the frame and its FCS. Their bytes become one
   transfer, cut at the header lengths and at the ends of buffers; the bus answers with host views.
   Nothing in guest memory has changed.
2. Whoever claimed fills the views and commits, or cancels. A commit filters by destination (known
   only now); a frame that the filter refuses is a claim cancelled.
3. The queue completes in claim order. First `place`: the frame is padded to what a wire carries,
   its FCS computed and stored. Then the path's own completions (the lane swap). Last `hand_over`:
   RMD3, RMD1 with OWN last, RINT once per frame.

The guest expects frames in the ring's order without gaps. Where an earlier claim was cancelled, or
took fewer descriptors than it held, a later one that was claimed meanwhile *slides*: its bytes
are copied down to the descriptors where the gap begins, and counted (`rx_slid_octets`). With one
claim open at a time, or with frames as long as was claimed, nothing slides.

A frame that comes unasked (`receive`) takes the same way at once: no descriptor is MISS, too few
are BUFF in the last that there was, with what fits in the buffers. A claim is never MISS, it
waits; but where the whole ring, empty, is too small for it, waiting would not help: the surplus
goes to a scratch buffer, and the guest finds BUFF as it would have on the chip.

Decided here, since the book is silent: a frame of less than 60 bytes is padded, as whatever put
it on a wire would have done; a frame that MCNT's twelve bits cannot count is not received.

A claim whose bytes come later is held (`hold`). When the chip stops, whoever fills it is made to
let go before STOP is over: what the guest stores in its buffers from then on stays.

Bounds: each open claim holds at least one of at most 128 descriptors, and no descriptor twice.

Does not do: polling or waiting. nic/lance.py remembers a refused claim and looks again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from dma.iovec import IoVec, scatter_copy
from dma.transfer import CompletionQueue, Direction, Lanes, Transfer
from nic import csr
from nic.busmaster import BusMaster, cut
from nic.csr import Registers
from nic.filter import FCS_LEN, fcs_of
from nic.port import VNET_NONE
from nic.ring import BUFF, ENP, ERR, STP, Descriptor, DescriptorRing

ADDRESS_LEN: Final = 6  # bytes
HEADER_LEN: Final = 14  # bytes: no frame is shorter
FRAME_MIN: Final = 60  # bytes without FCS: no frame on a wire is shorter
MCNT_MAX: Final = 0xFFF  # bytes, FCS included
BUFFERS_MAX: Final = 128  # of one frame: the Am7990's whole ring; a PCnet's may be longer


class Accepts(Protocol):
    """An address filter."""

    def accepts(self, dst: bytes) -> bool:
        """Is a frame with this destination received?"""


class RxClaim:
    """Descriptors held for one frame. Once the chip has stopped, nothing here has an effect."""

    __slots__ = (
        "_receiver",
        "buffers",
        "claimed",
        "iov",
        "is_open",
        "is_sealed",
        "position",
        "room",
        "size",
        "status",
        "tail",
        "total",
        "transfer",
        "views",
        "withdraw",
    )

    def __init__(
        self, receiver: Receiver, position: int, buffers: list[Descriptor], transfer: Transfer
    ) -> None:
        self._receiver = receiver
        self.transfer = transfer
        self.is_open = True  # neither committed nor cancelled nor void
        self.position = position  # of the first descriptor
        self.buffers = buffers
        self.room = 0  # bytes in guest memory; `views` may have a scratch buffer behind them
        self.views = IoVec()  # the frame, its padding and its FCS
        self.iov = self.views  # the frame alone
        self.tail = self.views  # what is behind a frame as long as was claimed
        self.claimed = 0  # bytes of iov
        self.size = 0  # bytes of the frame, once committed
        self.total = 0  # with padding and FCS: what MCNT says
        self.status = 0  # of the last descriptor, beside STP and ENP
        self.is_sealed = False  # the bytes came with their padding and FCS
        self.withdraw: Callable[[], None] | None = None  # has whoever fills it let go

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        """The first `size` bytes are a frame. `vnet` says nothing: the chip has no offload."""
        if not HEADER_LEN <= size <= self.claimed:
            raise ValueError(f"commit of {size} bytes into a claim of {self.claimed}")
        if self.is_open:
            self._receiver.commit(self, size)

    def cancel(self) -> None:
        if self.is_open:
            self._receiver.cancel(self)

    def hold(self, withdraw: Callable[[], None]) -> RxClaim:
        """Descriptors are held as long as it takes anyway; but bytes must not come after STOP."""
        self.withdraw = withdraw
        return self

    def place(self, _size: int) -> None:
        self._receiver.place(self)

    def hand_over(self, _size: int) -> None:
        self._receiver.hand_over(self)


class Receiver:
    """What INIT makes of the init block's receive half; a new INIT makes a new one."""

    def __init__(
        self,
        ring: DescriptorRing,
        accepts: Accepts,
        lanes: Lanes,
        master: BusMaster,
        registers: Registers,
        stats: dict[str, int],
        marks: Callable[[bytes], int] | None = None,
    ) -> None:
        self.queue = CompletionQueue()
        self.filter: Accepts = accepts
        self.marks = marks  # status bits that say why a destination was accepted
        self._ring = ring
        self._lanes = lanes
        self._master = master
        self._registers = registers
        self._stats = stats
        self._position = 0  # of the next descriptor to hand over
        self._claims: deque[RxClaim] = deque()  # not yet handed over, in claim order

    def halt(self) -> None:
        """STOP or a memory error: what is under way is lost, and all claims are void."""
        claims, self._claims = self._claims, deque()
        self.queue.clear()
        for claim in claims:
            if claim.is_open:
                claim.is_open = False
                if claim.withdraw is not None:
                    claim.withdraw()

    def settle(self) -> int:
        """Hand over what has come, and take back what is claimed; where the next frame goes.

        For another process to go on from there.
        """
        for claim in list(self._claims):
            if claim.is_open:
                self.cancel(claim)
                if claim.withdraw is not None:
                    claim.withdraw()
        self.queue.run(self.queue.pending)
        return self._position

    def go_on(self, position: int) -> None:
        """From where another process was."""
        self._position = position

    def has_room(self, size: int) -> bool:
        """Whether a claim of this size would be granted now."""
        need = max(size, FRAME_MIN) + FCS_LEN
        return self._is_enough(self._search(self._free_position(), need), need)

    def claim(self, size: int, headers: Sequence[int] = ()) -> RxClaim | None:
        payload_len = size - sum(headers)
        if payload_len < 0:
            raise ValueError(f"headers of {sum(headers)} bytes in a frame of {size}")
        need = max(size, FRAME_MIN) + FCS_LEN
        start = self._free_position()
        buffers = self._search(start, need)
        if not self._is_enough(buffers, need):
            return None
        parts = (*headers, payload_len, need - size)
        claim = self._hold(start, buffers, parts, headers)
        if claim is not None:
            claim.views = _with_scratch(claim.views, need - claim.room)
            claim.iov, claim.tail = _split(claim.views, size, need - size)
            claim.claimed = size
        return claim

    def commit(self, claim: RxClaim, size: int) -> None:
        dst = claim.views.segments[0][:ADDRESS_LEN].tobytes()
        if len(dst) < ADDRESS_LEN:
            dst = bytes(claim.views.slice(0, ADDRESS_LEN))
        if self.is_addressed(dst):
            if self.marks is not None:
                claim.status = self.marks(dst)
            self._finish(claim, size, max(size, FRAME_MIN) + FCS_LEN)
        else:
            self.cancel(claim)

    def cancel(self, claim: RxClaim) -> None:
        claim.is_open = False
        self._claims.remove(claim)
        self.queue.cancel(claim.transfer)

    def is_addressed(self, dst: bytes) -> bool:
        accepted = self.filter.accepts(dst)
        if not accepted:
            self._stats["rx_filtered"] += 1
        return accepted

    def receive(self, octets: IoVec, status: int, *, may_miss: bool = True) -> bool:
        """A frame with its FCS, unasked and past the filter. False: lost, at least in part."""
        total = len(octets)
        start = self._free_position()
        buffers = self._search(start, total)
        if not self._registers.csr0 & csr.RXON:  # the search met a memory error
            return False
        if not buffers:
            if may_miss:
                self._miss()
            return False
        claim = self._hold(start, buffers, (total,), ())
        if claim is None:
            return False
        claim.views = _with_scratch(claim.views, total - claim.room)
        scatter_copy(claim.views.segments, octets.segments)
        claim.is_sealed = True
        claim.status = status
        if self.marks is not None:
            claim.status |= self.marks(bytes(octets.slice(0, ADDRESS_LEN)))
        self._finish(claim, total - FCS_LEN, total)
        return claim.room >= total

    # Descriptors

    def _free_position(self) -> int:
        """Where the next claim begins: behind the newest."""
        if not self._claims:
            return self._position
        newest = self._claims[-1]
        return max(self._position, newest.position + len(newest.buffers))

    def _search(self, start: int, need: int) -> list[Descriptor]:
        """The chip's buffers from `start` on, of `need` bytes or as many as there are.

        Looks at each descriptor of the ring once at most, so a ring that loops into itself, or
        whose last descriptor is its first, ends.
        """
        stop = min(self._position + self._ring.entries, start + BUFFERS_MAX)
        first = self._ring.load(start) if start < stop else None
        if first is None:
            return []
        buffers = [first]
        need -= first.length
        if need > 0:
            for rmd in self._ring.walk(start + 1, stop):
                buffers.append(rmd)
                need -= rmd.length
                if need <= 0:
                    break
        return buffers

    def _is_enough(self, buffers: list[Descriptor], need: int) -> bool:
        """Room for all of it; or the whole ring, or all that a frame may have: no more comes."""
        if not self._registers.csr0 & csr.RXON:  # or it went off during the search
            return False
        most = min(self._ring.entries, BUFFERS_MAX)
        return _room_in(buffers) >= need or len(buffers) == most

    def _hold(
        self, start: int, buffers: list[Descriptor], parts: Sequence[int], headers: Sequence[int]
    ) -> RxClaim | None:
        """Open the buffers and queue the transfer; None after a memory error."""
        transfer = self._transfer(buffers, parts, headers)
        claim = RxClaim(self, start, buffers, transfer)
        transfer.completions.append(claim.hand_over)
        views = self._master.open(transfer)
        if views is None:
            return None
        transfer.completions.append(claim.place)
        claim.views = claim.iov = views
        claim.room = _room_in(buffers)
        self._claims.append(claim)
        self.queue.start(transfer)
        return claim

    def _transfer(
        self, buffers: list[Descriptor], parts: Sequence[int], headers: Sequence[int]
    ) -> Transfer:
        ranges = cut([(rmd.addr, rmd.length) for rmd in buffers], parts, self._master.space)
        return Transfer(Direction.FROM_DEVICE, ranges, self._lanes, headers)

    def _finish(self, claim: RxClaim, size: int, total: int) -> None:
        claim.is_open = False
        claim.size = size
        claim.total = total
        held = 0
        for count, rmd in enumerate(claim.buffers, 1):
            held += rmd.length
            if held >= total:
                del claim.buffers[count:]  # what is behind is free for the next claim
                break
        self.queue.finish(claim.transfer, min(total, claim.room))

    def _miss(self) -> None:
        self._stats["rx_miss"] += 1
        self._registers.raise_status(csr.MISS)

    # Completions

    def place(self, claim: RxClaim) -> None:
        """Runs first: the bytes come to where they belong, and the frame is made whole."""
        self._claims.popleft()
        if claim.position != self._position and not self._slide(claim):
            claim.transfer.completions.clear()
        elif not claim.is_sealed:
            size, total, views = claim.size, claim.total, claim.views
            frame, tail = claim.iov, claim.tail
            if size != claim.claimed:
                frame, tail = views.slice(0, size), views.slice(size, total)
            pad = bytes(total - FCS_LEN - size)
            tail.copy_from(pad + fcs_of((*frame.segments, memoryview(pad))))

    def _slide(self, claim: RxClaim) -> bool:
        """Move a claim down to where the gap begins. False: it is lost."""
        stored = min(claim.total, claim.room)
        buffers = self._search(self._position, stored)
        if not self._registers.csr0 & csr.RXON:
            return False
        if not buffers:  # the guest took back what it had given
            self._miss()
            return False
        headers = claim.transfer.headers or ()
        moved = self._transfer(buffers, (*headers, max(0, stored - sum(headers))), headers)
        views = self._master.open(moved)
        if views is None:
            return False
        self._stats["rx_slid_octets"] += scatter_copy(views.segments, claim.views.segments)
        claim.transfer.completions[1:] = moved.completions  # hand_over stays; the path's are new
        claim.position = self._position
        claim.buffers = buffers
        claim.room = min(stored, _room_in(buffers))
        claim.views = _with_scratch(views, claim.total - claim.room)
        claim.claimed = -1  # iov and tail are where the claim was
        return True

    def hand_over(self, claim: RxClaim) -> None:
        """Runs last: status words in the ring's order, then the interrupt."""
        status = STP
        for rmd in claim.buffers[:-1]:
            rmd.store(status)
            status = 0
        if claim.room >= claim.total:
            claim.buffers[-1].store(status | ENP | claim.status, claim.total)
        else:
            claim.buffers[-1].store(status | ERR | BUFF)
            self._stats["rx_buff"] += 1
        self._position += len(claim.buffers)
        self._stats["rx_frames"] += 1
        self._stats["rx_octets"] += claim.size
        self._registers.raise_status(csr.RINT)


def _room_in(buffers: list[Descriptor]) -> int:
    return sum([rmd.length for rmd in buffers])


def _with_scratch(views: IoVec, missing: int) -> IoVec:
    """The views, and a scratch buffer for bytes that guest memory has no room for."""
    return views + IoVec.of(bytearray(missing)) if missing > 0 else views


def _split(views: IoVec, size: int, tail_len: int) -> tuple[IoVec, IoVec]:
    """The first `size` bytes, and the `tail_len` behind, which mostly are one segment."""
    *frame, tail = views.segments
    if len(tail) == tail_len:
        return IoVec(tuple(frame)), IoVec((tail,))
    return views.slice(0, size), views.slice(size, size + tail_len)
