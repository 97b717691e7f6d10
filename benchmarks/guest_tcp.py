"""The smallest TCP that can be the guest's end of a benchmark; no sockets, no timers, no loss.

One connection, opened by the guest, with segments of 1,460 bytes and no options but MSS and window
scale. Frames come in as views of guest memory and go out through the Python driver. Payload is
counted, not looked at. Every second segment is acknowledged, as RFC 9293 §3.8.6.3 asks.

With `bswp=0` the frames lie in memory with the bytes of each word exchanged; only the headers are
put right here, since only they are read.

Does not do: what a network that loses nothing does not need. For a TCP that does, see the kernel's.
"""

from __future__ import annotations

import struct
from typing import Final

from dma.iovec import IoVec
from slirp.guest.driver import MAC, LanceDriver, exchanged

MSS: Final = 1460  # bytes
WSCALE: Final = 2
HOST_WSCALE: Final = 8  # the stack's
WINDOW: Final = 0xFFFF  # in units of 4 bytes
HEADERS_LEN: Final = 54
TX_AHEAD: Final = 64  # segments queued in one go

FIN, SYN, PSH, ACK = 1, 2, 8, 16
MASK: Final = 0xFFFFFFFF

_TCP: Final = struct.Struct("!HHIIHHHH")
_HEAD: Final = struct.Struct("!16xH20xIIHH")  # total length; seq, ack, offset and flags, window
_OPTIONS: Final = struct.pack("!BBHBBBB", 2, 4, MSS, 3, 3, WSCALE, 1)


class GuestTcp:
    """A connection of the guest at 10.0.2.15 with a host's port at the gateway."""

    def __init__(self, driver: LanceDriver, gateway_mac: bytes, port: int, bswp: int) -> None:
        self._driver = driver
        self._port = port
        self._bswp = bswp
        self._ethernet = gateway_mac + MAC + b"\x08\x00"
        self._addrs = bytes((10, 0, 2, 15, 10, 0, 2, 2))
        self._payload = memoryview(bytes(MSS))  # zeros: their sum is 0
        self.is_open = False
        self.received = 0  # bytes
        self.frames = 0
        self._snd_una = self._snd_nxt = 1000
        self._snd_wnd = 0
        self._rcv_nxt = 0
        self._unacknowledged = 0  # segments

    def connect(self) -> None:
        self._send(SYN, _OPTIONS)
        self._driver.kick()
        self._snd_nxt += 1

    def close(self) -> None:
        self._send(FIN | ACK)
        self._driver.kick()
        self._snd_nxt += 1

    def handle_frames(self) -> None:
        """Everything in the ring."""
        for views in self._driver.views():
            self._handle_frame(views)
            if self._unacknowledged >= 2:
                self._acknowledge()
        self._driver.kick()

    def handle_interrupt(self) -> None:
        self._driver.handle_interrupt()
        self.handle_frames()

    def flush(self) -> None:
        """The delayed ACK."""
        if self._unacknowledged:
            self._acknowledge()
            self._driver.kick()

    def pump(self) -> int:
        """Send what the host's window and the ring have room for; segments."""
        count = 0
        while count < TX_AHEAD and self.in_flight() + MSS <= self._snd_wnd:
            if not self._send(PSH | ACK, payload=self._payload):
                break
            self._snd_nxt += MSS
            count += 1
        if count:
            self._driver.kick()
        return count

    def in_flight(self) -> int:
        """Bytes that the host has not acknowledged."""
        return (self._snd_nxt - self._snd_una) & MASK

    def _handle_frame(self, views: IoVec) -> None:
        first = views.segments[0]
        if len(first) < HEADERS_LEN:
            first = memoryview(bytes(views.slice(0, HEADERS_LEN)))
        head = first[:HEADERS_LEN]
        total, seq, ack, bits, window = _HEAD.unpack_from(
            head if self._bswp else exchanged(bytes(head))
        )
        if bits & SYN:
            self._rcv_nxt = (seq + 1) & MASK
            self.is_open = True
            self._snd_una, self._snd_wnd = ack, window  # the one that is never scaled
            self._acknowledge()
            return
        if length := total - 20 - (bits >> 10 & 60):
            if seq == self._rcv_nxt:
                self._rcv_nxt = (seq + length) & MASK
                self.received += length
                self.frames += 1
            self._unacknowledged += 1
        self._snd_una = ack
        self._snd_wnd = window << HOST_WSCALE

    def _acknowledge(self) -> None:
        if self._send(ACK):
            self._unacknowledged = 0

    def _send(self, flags: int, options: bytes = b"", payload: memoryview | None = None) -> bool:
        length = 0 if payload is None else MSS
        bits = (20 + len(options)) << 10 | flags
        bare = _TCP.pack(40000, self._port, self._snd_nxt & MASK, self._rcv_nxt, bits, WINDOW, 0, 0)
        size = 20 + len(options) + length
        total = int.from_bytes(self._addrs + bare + options, "big") + 6 + size
        tcp = bare[:16] + struct.pack("!H", -total % 0xFFFF) + bare[18:] + options
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0x4000, 64, 6, 0) + self._addrs
        ip = ip[:10] + struct.pack("!H", -int.from_bytes(ip, "big") % 0xFFFF) + ip[12:]
        header = self._ethernet + ip + tcp
        frame = header if payload is None else (header, payload)
        return self._driver.send(frame, kick=False)
