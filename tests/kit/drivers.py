"""virtio-net drivers, each as it negotiates and lays out its rings, without the system around it.

    with Lab(DrivenPort(DRIVERS["iPXE"])) as lab:
        stream = lab.guest.connect(("10.0.2.2", port))

What is known of a driver was read in its source: FreeBSD's `if_vtnet` (14), NetBSD's `if_vioif` (7
and 10), virtio-win's NetKVM (`ParaNdis-RX`, `-TX`), iPXE's `virtio-net`. They differ in

- the features they agree to, and with that in the length of the header (10 or 12 bytes);
- where the header is: in front of the frame, or a descriptor of its own, which iPXE shares between
  all buffers of a ring;
- receive buffers: one of 1,518 or 2,048 bytes, one of pages, or without MRG_RXBUF chains of them
  for 64 KiB, in an indirect table where that was agreed upon;
- how a frame to be sent is cut: into mbufs of 2,048 bytes, or pages;
- whether they kick when nobody asked, and want interrupts.

A `DrivenPort` is the back-end's port with one of these at its other end; to `tests.kit.guest` it is
a port in memory. Frames that come are checked against what the driver agreed to.

Does not do: the control queue, which the emulator serves; more than one pair of rings.
"""

from __future__ import annotations

import socket
import struct
from itertools import pairwise
from typing import NamedTuple

from nic.port import VNET_NONE
from nic.vhost_user.port import VhostUserPort
from nic.virtio.features import (
    ANY_LAYOUT,
    CSUM,
    EVENT_IDX,
    GUEST_ANNOUNCE,
    GUEST_CSUM,
    GUEST_TSO4,
    GUEST_TSO6,
    HOST_ECN,
    HOST_TSO4,
    HOST_TSO6,
    INDIRECT_DESC,
    MAC,
    MRG_RXBUF,
    MTU,
    OFFERED,
    RING_PACKED,
    STATUS,
    VERSION_1,
)
from tests.kit.frontend import WRITE, FrontEnd, SplitDriver

MEMORY = 64 << 20
NEEDS_CSUM, DATA_VALID = 1, 2
PAGE, CLUSTER = 4096, 2048


class Driver(NamedTuple):
    features: int
    buffer: tuple[int, ...]  # bytes of a receive buffer's parts; 0: the header
    buffers: int = 64  # that it has posted
    size: int = 256  # descriptors of a ring
    has_header_apart: bool = True  # of a frame that it sends
    shares_header: bool = False  # one for all
    piece: int = CLUSTER  # bytes that a part of such a frame has at most
    kicks_always: bool = False
    is_silent: bool = False  # it wants no interrupts

    @property
    def header_len(self) -> int:
        return 12 if self.features & (VERSION_1 | MRG_RXBUF) else 10


_VTNET = MAC | STATUS | MTU | CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | GUEST_CSUM
_VTNET |= EVENT_IDX | INDIRECT_DESC
_LRO = GUEST_TSO4 | GUEST_TSO6
_NETKVM = MAC | STATUS | MTU | CSUM | GUEST_CSUM | HOST_TSO4 | HOST_TSO6 | EVENT_IDX
_NETKVM |= INDIRECT_DESC | GUEST_ANNOUNCE
_IPXE = MAC | MTU
_VIOIF = MAC | STATUS
_LEGACY_MBUF = (0, CLUSTER - 14)  # vtnet: the header apart, then four bytes that are skipped
_LRO_CHAIN = (CLUSTER,) * 33  # 65,550 bytes and a header in clusters
_NETKVM_64K = (0, *(PAGE,) * 17)

DRIVERS = {
    "Linux": Driver(OFFERED & ~RING_PACKED, (PAGE,), has_header_apart=False, piece=PAGE),
    "iPXE": Driver(
        _IPXE | VERSION_1 | ANY_LAYOUT, (0, 1518), 8, shares_header=True, is_silent=True
    ),
    "iPXE, legacy": Driver(_IPXE, (0, 1518), 8, shares_header=True, is_silent=True),
    "NetBSD 7 vioif": Driver(_VIOIF, (0, CLUSTER)),
    "NetBSD 10 vioif": Driver(_VIOIF | VERSION_1 | EVENT_IDX | INDIRECT_DESC, (0, CLUSTER)),
    "FreeBSD vtnet": Driver(_VTNET | MRG_RXBUF | VERSION_1, (CLUSTER,)),
    "FreeBSD vtnet, LRO": Driver(_VTNET | MRG_RXBUF | VERSION_1 | _LRO, (PAGE,)),
    "FreeBSD vtnet without MRG_RXBUF": Driver(_VTNET | VERSION_1, (CLUSTER,)),
    "FreeBSD vtnet without MRG_RXBUF, LRO": Driver(
        _VTNET | VERSION_1 | _LRO, _LRO_CHAIN, buffers=16
    ),
    "FreeBSD vtnet without offload": Driver(MAC | STATUS | MRG_RXBUF | VERSION_1, (CLUSTER,)),
    "FreeBSD vtnet, legacy": Driver(_VTNET | MRG_RXBUF, (CLUSTER,)),
    "FreeBSD vtnet, legacy without MRG_RXBUF": Driver(_VTNET, _LEGACY_MBUF),
    "NetKVM": Driver(_NETKVM | MRG_RXBUF | VERSION_1, (0, PAGE), piece=PAGE, kicks_always=True),
    "NetKVM, RSC": Driver(
        _NETKVM | MRG_RXBUF | VERSION_1 | _LRO, _NETKVM_64K, 32, piece=PAGE, kicks_always=True
    ),
    "NetKVM without MRG_RXBUF": Driver(
        _NETKVM | VERSION_1, (0, PAGE), piece=PAGE, kicks_always=True
    ),
    "NetKVM without MRG_RXBUF, RSC": Driver(
        _NETKVM | VERSION_1 | _LRO, _NETKVM_64K, 32, piece=PAGE, kicks_always=True
    ),
    "NetKVM, legacy": Driver(
        _NETKVM & ~INDIRECT_DESC, (0, PAGE), piece=PAGE, kicks_always=True, size=128
    ),
}


class DrivenPort(VhostUserPort):
    """The port, and the driver at its other end as one in memory (tests/kit/port.py)."""

    def __init__(self, driver: Driver, *, mtu: int = 1500, sealable: bool = True) -> None:
        ours, theirs = socket.socketpair()
        self.why_gone: list[str] = []
        super().__init__(ours, mtu=mtu, on_gone=self.why_gone.append)
        self.driver = driver
        self.front = FrontEnd(
            theirs, memory=MEMORY, size=driver.size, sealable=sealable, turn=self._obey_all
        )
        self.front.negotiate(driver.features)
        self.front.start()
        self.sent: list[bytes] = []
        self.vnets: list[bytes] = []
        self.longest = 0  # bytes of a frame that came
        self.open_claims = 0
        self._header = self.front.allocate(driver.header_len)
        for ring in self.front.rings:
            assert isinstance(ring, SplitDriver)
            if driver.is_silent:
                ring.avail[0] = 1
        for _ in range(driver.buffers):
            self._post()
        self._kick(0)

    def _obey_all(self) -> None:
        assert not list(self.frames())
        self.poll(0.0)

    def _kick(self, index: int) -> None:
        ring = self.front.rings[index]
        if ring.must_kick() or self.driver.kicks_always:
            ring.kick()

    def _post(self) -> None:
        allocate, driver = self.front.allocate, self.driver
        ranges = []
        for length in driver.buffer:
            if length:
                ranges.append((allocate(length), length))
            else:
                where = self._header if driver.shares_header else allocate(driver.header_len)
                ranges.append((where, driver.header_len))
        is_indirect = len(ranges) > 1 and bool(driver.features & INDIRECT_DESC)
        self.front.receive.add(ranges, WRITE, indirect=is_indirect)

    def give(self, frame: bytes, vnet: bytes = VNET_NONE) -> None:
        """The guest sends a frame."""
        driver, transmit = self.driver, self.front.transmit
        for used in transmit.used():
            transmit.buffers.pop(used.id)
        start = driver.header_len if driver.has_header_apart else 0
        whole = driver.header_len + len(frame)
        cuts = (start, *range(start + driver.piece, whole, driver.piece))
        is_indirect = len(cuts) > 1 and bool(driver.features & INDIRECT_DESC)
        transmit.send(frame, vnet, cuts=cuts, indirect=is_indirect, kick=False)
        self._kick(1)

    def take(self) -> list[bytes]:
        """What came, with checksums as the driver's own stack would have them."""
        self._collect()
        frames, self.sent, self.vnets = self.sent, [], []
        return frames

    def _collect(self) -> None:
        for vnet, frame in self.front.receive.collect():
            self.longest = max(self.longest, len(frame))
            self._check(vnet, frame)
            self.sent.append(finished(vnet, frame))
            self.vnets.append(vnet)
        missing = self.driver.buffers - len(self.front.receive.buffers)
        for _ in range(missing):
            self._post()
        if missing:
            self._kick(0)

    def _check(self, vnet: bytes, frame: bytes) -> None:
        features = self.driver.features
        assert features & GUEST_CSUM or not vnet[0], "an offload that was not agreed upon"
        has_lro = features & (GUEST_TSO4 | GUEST_TSO6) == GUEST_TSO4 | GUEST_TSO6
        assert has_lro or (not vnet[1] and len(frame) <= self.mtu + 14), "a super-frame"
        if features & (VERSION_1 | MRG_RXBUF):
            buffers = int.from_bytes(vnet[10:12], "little")
            assert buffers == 1 or features & MRG_RXBUF

    def close(self) -> None:
        super().close()
        self.front.close()


def finished(vnet: bytes, frame: bytes) -> bytes:
    """A frame whose checksum is where the header says that it is to be made."""
    if not vnet[0] & NEEDS_CSUM:
        return frame
    start = int.from_bytes(vnet[6:8], "little")
    at = start + int.from_bytes(vnet[8:10], "little")
    total = 0xFFFF ^ ones_sum(frame[start:])
    return frame[:at] + (total or 0xFFFF).to_bytes(2, "big") + frame[at + 2 :]


def ones_sum(octets: bytes) -> int:
    octets += b"\0" * (len(octets) & 1)
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pieces_of(octets: bytes, size: int) -> list[bytes]:
    """Consecutive pieces of so many bytes, the last one shorter."""
    ends = [*range(0, len(octets), size), len(octets)]
    return [octets[start:stop] for start, stop in pairwise(ends)]
