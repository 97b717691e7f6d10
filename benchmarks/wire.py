"""A network in this process with a guest that is a few bytes: what `profile` puts the clock on.

`Wire` is a port in memory with a TAP device's offloads; it makes a system call where a TAP device
makes one (an eventfd is read for each batch of frames, a frame is written to /dev/null), so that
the caches are as cold as they are in earnest. `Rig` has a network on it, and connections whose
guest side is written out by hand.

Does not do: anything that the profile need not.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from dma.iovec import IoVec
from nic.port import VNET_NONE, Frame, PortDefaults
from slirp import Network
from slirp.wire.checksum import checksum, pseudo_sum
from slirp.wire.virtio_net import GSO_NONE, NEEDS_CSUM, VnetHeader

FIN, SYN, PSH, ACK = 1, 2, 8, 16
MASK: Final = 0xFFFFFFFF
GATEWAY: Final = bytes((10, 0, 2, 2))
GUEST: Final = bytes((10, 0, 2, 15))
ETHERNET: Final = bytes.fromhex("52550a000202 020000000001 0800")
SYN_OPTIONS: Final = bytes.fromhex("020405b4 01030307 04020101 0101080a 00000001 00000000")
TIMESTAMPS: Final = bytes.fromhex("0101080a 000003e8 00000000")
VNET: Final = VnetHeader(NEEDS_CSUM, GSO_NONE, 0, 0, 34, 16).emit()
UDP_PORT: Final = 30000


class WireClaim:
    """The one claim of a Wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.iov = IoVec()

    def commit(self, size: int, vnet: bytes = VNET_NONE) -> None:
        segments = self.iov.slice(0, size).segments
        os.writev(self._wire.sink, (vnet, *segments))
        head = b"".join(segments[:3])
        self._wire.heads.append(head)
        self._wire.octets += size - len(head)

    def cancel(self) -> None:
        return


class Wire(PortDefaults):
    """A port in memory that behaves as a TAP device with offloads."""

    max_frame = 14 + 65535
    offload = True
    gso_udp = True
    keeps_frames = True

    def __init__(self) -> None:
        self.heads: list[bytes] = []  # headers of the frames that came for the guest
        self.octets = 0  # of payload, in these
        self.sink = os.open("/dev/null", os.O_WRONLY)
        self._event = os.eventfd(0, os.EFD_NONBLOCK)
        self._frames: list[bytes] = []
        self._memory = memoryview(bytearray(70000))
        self._claim = WireClaim(self)
        self._layouts: dict[tuple[int, Sequence[int]], IoVec] = {}

    def fileno(self) -> int:
        return self._event

    def give(self, *frames: bytes) -> None:
        self._frames += frames
        os.eventfd_write(self._event, 1)

    def frames(self) -> Iterator[Frame]:
        frames, self._frames = self._frames, []
        if frames:
            os.eventfd_read(self._event)
        for frame in frames:
            yield Frame(IoVec((memoryview(frame),)), VNET)

    def claim(self, size: int, headers: Sequence[int] = ()) -> WireClaim:
        key = (size, headers)
        iov = self._layouts.get(key)
        if iov is None:
            iov = IoVec((self._memory[:size],)).cut(headers)
            self._layouts[key] = iov
        self._claim.iov = iov
        return self._claim


def ipv4(protocol: int, payload: bytes) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0, GUEST, GATEWAY
    )
    total = checksum((memoryview(head),))
    return ETHERNET + head[:10] + total.to_bytes(2, "big") + head[12:] + payload


class Connection:
    """The guest's end of a TCP connection, and the host's socket."""

    def __init__(self, rig: Rig, port: int) -> None:
        self._rig = rig
        self._port = port
        self.seq = 100
        self.ack = 0

    def frame(self, flags: int, data: bytes = b"", options: bytes = TIMESTAMPS) -> bytes:
        bits = (20 + len(options)) << 10 | flags
        head = struct.pack(
            "!HHIIHHHH", self._port, self._rig.port, self.seq, self.ack, bits, 65000, 0, 0
        )
        size = len(head) + len(options) + len(data)
        total = pseudo_sum(GUEST, GATEWAY, 6, size)  # the rest is left to who needs it: nobody
        self.seq = (self.seq + len(data) + bool(flags & (SYN | FIN))) & MASK
        return ipv4(6, head[:16] + total.to_bytes(2, "big") + head[18:] + options + data)

    def came(self, length: int) -> None:
        """So many bytes (or a FIN) came for the guest."""
        self.ack = (self.ack + length) & MASK


class Rig:
    """A network, its wire, and a host's sockets."""

    def __init__(self) -> None:
        self.network = Network(resolvers=["127.0.0.1"])
        self.wire = Wire()
        self.network.attach(self.wire)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._guest_port = 20000

    def turn(self) -> None:
        self.network.poll(0.0005)

    def syn(self) -> Connection:
        """A new connection, whose SYN waits at the port."""
        self._guest_port = 20000 + (self._guest_port + 1) % 40000
        connection = Connection(self, self._guest_port)
        self.wire.heads.clear()
        self.wire.give(connection.frame(SYN, options=SYN_OPTIONS))
        return connection

    def turn_until_answered(self) -> None:
        while not self.wire.heads:
            self.turn()

    def answered(self, connection: Connection) -> None:
        """Take the sequence number of the SYN|ACK."""
        head = self.wire.heads.pop()
        connection.ack = (int.from_bytes(head[38:42], "big") + 1) & MASK

    def open(self) -> tuple[Connection, socket.socket]:
        connection = self.syn()
        self.turn_until_answered()
        self.answered(connection)
        self.wire.give(connection.frame(ACK))
        self.turn()
        host, _ = self.listener.accept()
        host.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, host

    def datagram(self, payload: bytes) -> bytes:
        size = 8 + len(payload)
        total = pseudo_sum(GUEST, GATEWAY, 17, size)
        head = struct.pack("!HHHH", UDP_PORT, self.udp.getsockname()[1], size, total)
        return ipv4(17, head + payload)

    def close(self) -> None:
        self.network.close()
        self.listener.close()
        self.udp.close()
        os.close(self.wire.sink)
        os.close(self.wire.fileno())
