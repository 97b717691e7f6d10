"""The contract between the stack and a network interface.

A port moves whole Ethernet frames. Towards the guest the stack *claims* room before it has the
bytes, fills the claim's vector (the payload by `recvmsg_into`, the headers last) and *commits* as
many bytes as really came; a claim that is cancelled leaves no trace. From the guest, `frames()`
yields what it sent, as views of the guest's memory, each to be released when the stack is done.

A claim is committed or cancelled before the next is made, unless the port says `holds_claims`: then
it may be held (`hold`) while its bytes are on their way, for as long as that takes and beside any
number of others, which may be over before it. A port that needs the room back meanwhile, as a chip
that is stopped does, calls what `hold` was given, and until that returns the bytes may still come.

Three members are the contract: `claim`, `frames`, `fileno`. The rest has defaults that fit a plain
1,500-byte interface; `PortDefaults` carries them, so that a minimal port is three methods.

Offloads follow the virtio-net header (virtio 1.2 §5.1.6), the form that TAP devices, virtio-net and
vhost-user share: a port with `offload` set takes one at `commit` and gives one with each frame.
Where it says NEEDS_CSUM, the checksum field holds the pseudo-header's sum and nobody sums payload.

A port with `unlabelled` set passes on frames from which this header may have been dropped: then a
checksum field that holds the pseudo-header's sum is taken for what it says, and a frame may be as
long as an IP packet can.

A port that cannot go on raises, from `frames()` or `poll()` only: `DeviceGone` where it is over,
`Shortage` where the kernel lacked something that it may have again in a moment.

Does not do: addressing, parsing, queueing. A port that has no room says so by returning None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from dma.iovec import IoVec

VNET_LEN = 10  # bytes of struct virtio_net_hdr without num_buffers
VNET_NONE = bytes(VNET_LEN)  # no offload: checksums are complete, one frame is one frame


class DeviceGone(OSError):
    """The device, or what it was attached to, does not exist any more."""


class Shortage(OSError):
    """The kernel had no memory for it just now: nothing was lost, ask again in a moment."""


class Claim(Protocol):
    """Room for one frame on its way to the guest."""

    iov: IoVec  # where the frame's bytes go, in order; cut at the header lengths asked for

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        """The first `size` bytes are there: hand them to the guest."""

    def cancel(self) -> None:
        """Give the room back as if it had never been claimed."""


class HoldableClaim(Claim, Protocol):
    """A claim of a port that holds claims."""

    def hold(self, withdraw: Callable[[], None]) -> Claim:
        """The bytes come later: the same room as a claim that outlasts the next ones.

        The port calls `withdraw` if it takes the room back; when that returns, nobody writes there
        any more, and the claim is over.
        """


class Frame:
    """One frame that the guest sent: views of its memory until `release()`."""

    __slots__ = ("iov", "vnet")

    def __init__(self, iov: IoVec, vnet: bytes = VNET_NONE) -> None:
        self.iov = iov
        self.vnet = vnet

    def release(self) -> None:
        """The stack is done with the views; the guest may have its memory back."""


class Port(Protocol):
    """A network interface as the stack sees it."""

    @property
    def max_frame(self) -> int:
        """Bytes, Ethernet header included: the largest frame that claim() takes."""

    @property
    def offload(self) -> bool:
        """True: commit() takes a virtio-net header, and frames carry one."""

    def claim(self, size: int, headers: Sequence[int] = ()) -> Claim | None:
        """Room for a frame of up to `size` bytes, or None: not now.

        `headers` are the lengths of the leading segments (Ethernet, IP, TCP …); the claim's
        vector is cut there, so that each header is a segment of its own wherever the guest's
        buffers allow it.
        """

    def frames(self) -> Iterator[Frame]:
        """What the guest sent, oldest first; a bounded number per call."""

    def fileno(self) -> int:
        """Readable when frames() has something, or when room came back after a refused claim."""

    def poll(self, now: float) -> float | None:
        """Run completions and deadlines; the instant of the next deadline, or None."""


class PortDefaults:
    """What a plain Ethernet interface answers for the members it need not care about."""

    max_frame: int = 1514
    offload: bool = False
    holds_claims: bool = False  # True: claims are HoldableClaims
    unlabelled: bool = False  # True: frames may have left offloads to the wire without saying so

    def poll(self, now: float) -> float | None:
        return None
