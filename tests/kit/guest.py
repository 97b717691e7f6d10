"""A guest made by hand, behind a `MemoryPort`: every byte it sends is the test's to choose.

    with Lab() as lab:
        stream = lab.guest.connect(("10.0.2.2", port))
        stream.send(b"ping")
        assert stream.receive(4) == b"ping"

`Guest.ipv4`, `tcp`, `udp`, `icmp`, `arp` build packets whose fields can be wrong; what is not given
is right. `Lab.turn` runs the network until a condition holds, and every frame that comes back is
read: checksums are verified by arithmetic of this file's own, ARP requests for the guest are
answered, segments go to their `Stream`, the rest to `Guest.inbox`.

Does not do: retransmission, reordering (a Stream takes bytes in order and fails on a gap).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, Self

from nic.port import VNET_NONE
from slirp import Network
from tests.kit.clock import Clock
from tests.kit.port import MemoryPort

GATEWAY = "10.0.2.2"
DNS = "10.0.2.3"
GUEST = "10.0.2.15"
GUEST_MAC = bytes.fromhex("52540012 3456")
OWN_MAC = bytes.fromhex("5255 0a000202")
BROADCAST_MAC = b"\xff" * 6

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32

TURNS_FOR = 5.0  # seconds after which what a test waits for counts as never
SOON = 0.005  # seconds: a deadline so near belongs to what is being done (a delayed ACK)


def addr(text: str) -> bytes:
    return socket.inet_aton(text)


def internet_sum(octets: bytes) -> int:
    """RFC 1071, by its definition."""
    octets += b"\0" * (len(octets) & 1)
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Packet(NamedTuple):
    """An IPv4 packet that came for the guest, its checksums found right."""

    src: bytes
    dst: bytes
    protocol: int
    ttl: int
    fragment: int  # the 16 bits: flags and offset in eights
    ident: int
    payload: bytes

    @property
    def is_fragment(self) -> bool:
        return bool(self.fragment & 0x3FFF)


class Icmp(NamedTuple):
    type: int
    code: int
    rest: int
    data: bytes


class Udp(NamedTuple):
    src: bytes
    src_port: int
    dst_port: int
    data: bytes


class Tcp(NamedTuple):
    src_port: int
    dst_port: int
    seq: int
    ack: int
    flags: int
    window: int
    options: bytes
    data: bytes

    @classmethod
    def of(cls, payload: bytes) -> Tcp:
        src_port, dst_port, seq, ack, offset, flags, window = struct.unpack_from(
            "!HHIIBBH", payload
        )
        end = offset >> 4 << 2
        return cls(src_port, dst_port, seq, ack, flags & 63, window, payload[20:end], payload[end:])


def with_sum(segment: bytes, src: bytes, dst: bytes, protocol: int, at: int) -> bytes:
    """The segment with the right checksum in its field at `at`."""
    bare = segment[:at] + b"\0\0" + segment[at + 2 :]
    pseudo = src + dst + struct.pack("!HH", protocol, len(segment))
    total = 0xFFFF ^ internet_sum(pseudo + bare)
    if protocol == 17:
        total = total or 0xFFFF
    return bare[:at] + total.to_bytes(2, "big") + bare[at + 2 :]


def ipv4(
    payload: bytes,
    protocol: int,
    dst: str,
    *,
    src: str = GUEST,
    version: int = 4,
    ihl: int | None = None,
    total: int | None = None,
    ident: int = 0,
    fragment: int = 0,
    ttl: int = 64,
    options: bytes = b"",
    checksum: int | None = None,
) -> bytes:
    """A packet; `ihl` in words, `fragment` the 16 bits of flags and offset."""
    words = 5 + len(options) // 4 if ihl is None else ihl
    size = 20 + len(options) + len(payload) if total is None else total
    header = struct.pack(
        "!BBHHHBBH4s4s", version << 4 | words, 0, size & 0xFFFF, ident, fragment, ttl, protocol, 0,
        addr(src), addr(dst),
    ) + options  # fmt: skip
    total_sum = 0xFFFF ^ internet_sum(header) if checksum is None else checksum
    return header[:10] + total_sum.to_bytes(2, "big") + header[12:] + payload


def ether(
    packet: bytes, ethertype: int = 0x0800, *, dst: bytes = OWN_MAC, src: bytes = GUEST_MAC
) -> bytes:
    return dst + src + ethertype.to_bytes(2, "big") + packet


def udp(
    data: bytes,
    dst: str,
    dst_port: int,
    *,
    src: str = GUEST,
    src_port: int = 40000,
    length: int | None = None,
    checksum: int | None = None,
    **ip: Any,
) -> bytes:
    """A frame with one datagram."""
    size = 8 + len(data) if length is None else length
    datagram = struct.pack("!HHHH", src_port, dst_port, size & 0xFFFF, checksum or 0) + data
    if checksum is None:
        datagram = with_sum(datagram, addr(src), addr(dst), 17, 6)
    return ether(ipv4(datagram, 17, dst, src=src, **ip))


def tcp(
    flags: int,
    dst: str,
    dst_port: int,
    *,
    src: str = GUEST,
    src_port: int = 40000,
    seq: int = 1000,
    ack: int = 0,
    window: int = 65535,
    urgent: int = 0,
    options: bytes = b"",
    offset: int | None = None,
    data: bytes = b"",
    checksum: int | None = None,
    **ip: Any,
) -> bytes:
    """A frame with one segment; `offset` in words."""
    words = 5 + len(options) // 4 if offset is None else offset
    segment = struct.pack(
        "!HHIIBBHHH", src_port, dst_port, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, words << 4, flags,
        window, checksum or 0, urgent,
    ) + options + data  # fmt: skip
    if checksum is None:
        segment = with_sum(segment, addr(src), addr(dst), 6, 16)
    return ether(ipv4(segment, 6, dst, src=src, **ip))


def icmp(
    kind: int,
    code: int,
    rest: int,
    data: bytes,
    dst: str,
    *,
    checksum: int | None = None,
    **ip: Any,
) -> bytes:
    """A frame with one ICMP message."""
    message = struct.pack("!BBHI", kind, code, 0, rest) + data
    total = 0xFFFF ^ internet_sum(message) if checksum is None else checksum
    return ether(ipv4(message[:2] + total.to_bytes(2, "big") + message[4:], 1, dst, **ip))


def arp(
    operation: int,
    sender: str,
    target: str,
    *,
    sender_mac: bytes = GUEST_MAC,
    target_mac: bytes = bytes(6),
    fixed: tuple[int, int, int, int] = (1, 0x0800, 6, 4),
    src: bytes | None = None,
) -> bytes:
    """A frame with one ARP packet."""
    packet = struct.pack(
        "!HHBBH6s4s6s4s", *fixed, operation, sender_mac, addr(sender), target_mac, addr(target)
    )
    return ether(packet, 0x0806, dst=BROADCAST_MAC, src=sender_mac if src is None else src)


def is_right(frame: bytes) -> Packet:
    """The IPv4 packet in a frame for the guest; every checksum in it must be right."""
    packet = frame[14:]
    total = int.from_bytes(packet[2:4], "big")
    assert total == len(packet), "a frame to the guest is as long as its packet"
    assert internet_sum(packet[:20]) == 0xFFFF, "IPv4 header checksum"
    found = Packet(
        packet[12:16], packet[16:20], packet[9], packet[8], int.from_bytes(packet[6:8], "big"),
        int.from_bytes(packet[4:6], "big"), packet[20:],
    )  # fmt: skip
    if not found.is_fragment:
        check_transport(found)
    return found


def check_transport(packet: Packet) -> None:
    if packet.protocol == 1:
        assert internet_sum(packet.payload) == 0xFFFF, "ICMP checksum"
        return
    pseudo = packet.src + packet.dst + struct.pack("!HH", packet.protocol, len(packet.payload))
    assert internet_sum(pseudo + packet.payload) == 0xFFFF, "transport checksum"


class Stream:
    """One TCP connection of the guest's. `auto_ack`: acknowledge what comes as it comes."""

    def __init__(self, guest: Guest, remote: tuple[str, int], port: int, iss: int) -> None:
        self.guest = guest
        self.remote = remote
        self.port = port
        self.seq = iss  # the next to be sent
        self.ack = 0
        self.una = iss
        self.window = 65535  # what the guest offers
        self.peer_window = 0  # bytes that the network offers
        self.scale = 0
        self.connected = False
        self.got_fin = False
        self.got_reset = False
        self.auto_ack = True
        self.received = bytearray()
        self.segments: list[Tcp] = []

    # Sending

    def frame(self, flags: int, data: bytes = b"", **fields: Any) -> bytes:
        """A segment of this connection, as it is due or with `fields` of one's own."""
        fields = {"seq": self.seq, "ack": self.ack, "window": self.window, **fields}
        host, port = self.remote
        return tcp(flags, host, port, src=self.guest.addr, src_port=self.port, data=data, **fields)

    def put(self, flags: int, data: bytes = b"", **fields: Any) -> None:
        """Send one segment; counts in the sequence unless `seq` is given."""
        self.guest.port.give(self.frame(flags, data, **fields))
        if "seq" not in fields:
            self.seq += len(data) + bool(flags & (SYN | FIN))

    def send(self, data: bytes, mss: int = 1460) -> None:
        """All of it, waiting for the network's window where it must."""
        lab = self.guest.lab
        view = memoryview(data)
        while view:
            lab.turn(lambda: self.una + self.peer_window > self.seq or self.got_reset)
            if self.got_reset:
                raise ConnectionResetError
            room = self.una + self.peer_window - self.seq
            piece = bytes(view[: min(mss, room)])
            self.put(ACK | PSH, piece)
            view = view[len(piece) :]
        lab.turn(lambda: self.una >= self.seq or self.got_reset)

    def finish(self) -> None:
        """FIN: nothing more will be sent."""
        self.put(FIN | ACK)

    def reset(self) -> None:
        self.put(RST, ack=0)

    # Receiving

    def handle(self, segment: Tcp) -> None:
        self.segments.append(segment)
        if segment.flags & RST:
            self.got_reset = True
            return
        if segment.flags & SYN:
            self.ack = segment.seq + 1 & 0xFFFFFFFF
            self.connected = True
            self.scale = scale_of(segment.options)
            self.una = segment.ack if segment.flags & ACK else self.una
            self.peer_window = segment.window
            if segment.flags & ACK:
                self.put(ACK)
            return
        self.peer_window = segment.window << self.scale
        ahead = (segment.ack - self.una) & 0xFFFFFFFF
        if ahead < 1 << 31:  # else an old one, overtaken
            self.una += ahead
        if segment.seq != self.ack & 0xFFFFFFFF:
            return
        self.received += segment.data
        self.ack += len(segment.data) + bool(segment.flags & FIN)
        self.got_fin |= bool(segment.flags & FIN)
        if self.auto_ack and (segment.data or segment.flags & FIN):
            self.put(ACK)

    def receive(self, count: int) -> bytes:
        """The next `count` bytes."""
        self.guest.lab.turn(lambda: len(self.received) >= count)
        data = bytes(self.received[:count])
        del self.received[:count]
        return data


def scale_of(options: bytes) -> int:
    at = 0
    while at < len(options) and options[at]:
        if options[at] == 1:
            at += 1
            continue
        if options[at] == 3:
            return options[at + 2]
        at += options[at + 1]
    return 0


class Guest:
    """One address at one port."""

    def __init__(self, lab: Lab, port: MemoryPort, address: str, mac: bytes) -> None:
        self.lab = lab
        self.port = port
        self.addr = address
        self.mac = mac
        self.inbox: list[bytes] = []
        self.listening: dict[int, list[Stream]] = {}  # by port: streams that came in
        self.answers_arp = True
        self.dst_mac = b""  # of the last frame that came
        self._streams: dict[tuple[bytes, int, int], Stream] = {}
        self._next_port = 50000

    def give(self, frame: bytes, vnet: bytes = VNET_NONE) -> None:
        """Send one frame."""
        self.port.give(frame, vnet)

    def open(
        self, remote: tuple[str, int], *, options: bytes = b"\x02\x04\x05\xb4", **fields: Any
    ) -> Stream:
        """Send a SYN; the answer is not waited for."""
        self._next_port += 1
        stream = Stream(self, remote, self._next_port, fields.pop("iss", 5000))
        self._streams[addr(remote[0]), remote[1], stream.port] = stream
        stream.put(SYN, options=options, **fields)
        return stream

    def connect(self, remote: tuple[str, int], **fields: Any) -> Stream:
        """A connection that is established."""
        fields.setdefault("options", b"\x02\x04\x05\xb4\x01\x03\x03\x00")
        stream = self.open(remote, **fields)
        self.lab.turn(lambda: stream.connected or stream.got_reset)
        if stream.got_reset:
            raise ConnectionRefusedError
        self.lab.turn()
        return stream

    def listen(self, port: int) -> list[Stream]:
        """Accept what comes to this port: the list that it will be in."""
        return self.listening.setdefault(port, [])

    def read(self) -> None:
        """Look at what came."""
        for frame in self.port.take():
            self.dst_mac = frame[:6]
            if frame[12:14] == b"\x08\x06":
                self._read_arp(frame)
            elif frame[12:14] == b"\x08\x00" and frame[23:24] == b"\x06":
                self._read_tcp(frame)
            else:
                self.inbox.append(frame)

    def _read_arp(self, frame: bytes) -> None:
        packet = frame[14:]
        if packet[6:8] == b"\0\1" and packet[24:28] == addr(self.addr) and self.answers_arp:
            self.give(arp(2, self.addr, GATEWAY, sender_mac=self.mac, target_mac=packet[8:14]))
        else:
            self.inbox.append(frame)

    def _read_tcp(self, frame: bytes) -> None:
        packet = is_right(frame)
        segment = Tcp.of(packet.payload)
        key = (packet.src, segment.src_port, segment.dst_port)
        stream = self._streams.get(key)
        if stream is None and segment.flags == SYN and segment.dst_port in self.listening:
            stream = self._accept(packet, segment)
        elif stream is not None:
            stream.handle(segment)
        if stream is None:
            self.inbox.append(frame)

    def _accept(self, packet: Packet, segment: Tcp) -> Stream:
        remote = (socket.inet_ntoa(packet.src), segment.src_port)
        stream = Stream(self, remote, segment.dst_port, 7000)
        self._streams[packet.src, segment.src_port, segment.dst_port] = stream
        stream.handle(segment)
        stream.scale = 0
        stream.put(SYN | ACK, options=b"\x02\x04\x05\xb4")
        self.listening[segment.dst_port].append(stream)
        return stream

    def packets(self, protocol: int) -> list[Packet]:
        """The packets of this protocol in the inbox, taken out of it."""
        found = [f for f in self.inbox if f[12:14] == b"\x08\x00" and f[23] == protocol]
        self.inbox = [f for f in self.inbox if f not in found]
        return [is_right(frame) for frame in found]

    def icmps(self) -> list[Icmp]:
        """ICMP messages that came, oldest first."""
        return [
            Icmp(p.payload[0], p.payload[1], int.from_bytes(p.payload[4:8], "big"), p.payload[8:])
            for p in self.packets(1)
        ]

    def datagrams(self) -> list[Udp]:
        """UDP datagrams that came, oldest first."""
        out = []
        for packet in self.packets(17):
            src_port, dst_port, size = struct.unpack_from("!HHH", packet.payload)
            assert size == len(packet.payload)
            out.append(Udp(packet.src, src_port, dst_port, packet.payload[8:]))
        return out


class Lab:
    """A network with one guest in memory; keywords are Network's, but for the port.

    With a `clock` of the kit's, time stands still but for deadlines that are SOON.
    """

    endpoint = "epoll"  # unless it is said otherwise

    def __init__(
        self, port: MemoryPort | None = None, *, clock: Clock | None = None, **options: Any
    ) -> None:
        options.setdefault("resolvers", ())
        options.setdefault("ra_enabled", False)  # so that nothing comes unasked
        options.setdefault("endpoint", self.endpoint)
        self._clock = clock
        if clock is not None:
            options["clock"] = lambda: clock.now
        self.network = Network(**options)
        self.port = port or MemoryPort()
        self.attachment = self.network.attach(self.port)
        self.guest = Guest(self, self.port, GUEST, GUEST_MAC)
        self.guests = [self.guest]

    def add_guest(self, address: str, mac: bytes, port: MemoryPort | None = None) -> Guest:
        """Another guest, at a port of its own."""
        port = port or MemoryPort()
        self.network.attach(port)
        self.guests.append(Guest(self, port, address, mac))
        return self.guests[-1]

    def turn(self, until: Callable[[], bool] | None = None) -> None:
        """Run the network until it has nothing to do, or until the condition holds.

        A condition that does not come to hold is a failure.
        """
        stop_at = time.monotonic() + TURNS_FOR
        while True:
            soon = self._wait_for_what_is_soon()
            busy = self.network.poll(0.0 if until is None else 0.01)
            busy += self.network._dispatcher.endpoint.under_way
            for guest in self.guests:
                busy += len(guest.port.sent)
                guest.read()
            if until is None:
                if not busy and not soon:
                    return
            elif until():
                return
            assert time.monotonic() < stop_at, "what was waited for did not come"

    def arrive(self) -> None:
        """Whatever is under way from hosts' sockets arrives."""
        while self.network._dispatcher.endpoint.under_way:
            self.network.poll(0.01)

    def _wait_for_what_is_soon(self) -> bool:
        loop = self.network._loop
        at = loop.deadline()
        if self._clock is None:
            if at is None or at - time.monotonic() > SOON:
                return False
            self.network.poll(SOON)
            return True
        if at is None or at - self._clock.now > SOON:
            return False
        self._clock.until(at)
        return True

    def exchange(self, frame: bytes) -> list[bytes]:
        """Give a frame; what comes back at once, TCP to no stream included."""
        self.guest.give(frame)
        self.turn()
        replies, self.guest.inbox = self.guest.inbox, []
        return replies

    def malformed(self) -> dict[str, int]:
        found: dict[str, int] = self.network.stats()["malformed"]
        return found

    def refused(self) -> dict[str, int]:
        found: dict[str, int] = self.network.stats()["refused"]
        return found

    def close(self) -> None:
        self.network.close()
        for guest in self.guests:
            guest.port.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if kind is None:
            assert not any(guest.port.open_claims for guest in self.guests), "a claim was left open"
